//! Costs of answers: by consumer, tenant, route and price, as metrics, JSON and CSV; and the catalogue of prices.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use spillway_tests::{
    Client, Gateway, Issuer, IssuerKey, RawSocket, SocketServer, TEXT, Upstream, binary, eventually, new_key, opening,
    reply, whole,
};

/// A server that answers as the model that was asked for, and says that it read 1,000 tokens, 400 of its cache, and wrote 100.
async fn server() -> Upstream {
    Upstream::start(|seen| async move {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
        let usage = json!({
            "prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100,
            "prompt_tokens_details": {"cached_tokens": 400},
        });
        let answer = json!({"object": "chat.completion", "model": asked["model"], "choices": [], "usage": usage});
        Some(reply(200, &[("content-type", "application/json")], answer.to_string()))
    })
    .await
}

async fn costs(gateway: &Gateway) -> Vec<Value> {
    let shown: Value = serde_json::from_str(&gateway.shown("/api/costs").await).unwrap();
    assert!(shown["since"].as_str().unwrap().ends_with('Z'), "{shown}");
    shown["costs"].as_array().unwrap().clone()
}

/// Waits until so many answers are counted: an answer is counted when it has ended.
async fn counted(gateway: &Gateway, answers: u64) -> Vec<Value> {
    eventually("the answers are counted", || async {
        let rows = costs(gateway).await;
        (rows.iter().map(|row| row["answers"].as_u64().unwrap()).sum::<u64>() == answers).then_some(rows)
    })
    .await
}

#[tokio::test]
async fn costs_are_told_by_consumer_tenant_route_and_price() {
    let (upstream, issuer, signer) = (server().await, Issuer::start().await, IssuerKey::new("k"));
    issuer.shows(&[&signer]);
    let (key, digest) = new_key();
    let yaml = format!(
        "authentication: {{jwt: [{{issuer: \"{}\", audiences: [spillway], claims: {{consumer: sub}}}}]}}
consumers: [{{name: acme, tenant: shop, keys: [{{sha256: \"{digest}\"}}]}}]
prices: [{{model: \"gpt-*\", input: 2, cachedInput: 0.5, output: 10}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}]
routes:
  - {{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}
  - {{name: open, matches: [{{path: {{prefix: /open/v1}}}}], authentication: none, backendRefs: [{{name: x}}]}}
",
        issuer.url(),
        url = upstream.url(),
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for model in ["gpt-one", "GPT-two", "of-no-price"] {
        assert_eq!(client.chat(model, &[("x-api-key", &key)]).await.status, 200);
    }
    let body = json!({"model": "gpt-one", "messages": []}).to_string();
    let json = [("content-type", "application/json")];
    assert_eq!(client.post("/open/v1/chat/completions", &json, body).await.status, 200);
    let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    let formula = "=HYPERLINK(\"http://evil\")";
    let token = signer.token(&json!({"iss": issuer.url(), "aud": "spillway", "sub": formula, "exp": ends}));
    assert_eq!(client.chat("gpt-one", &[("authorization", &format!("Bearer {token}"))]).await.status, 200);
    // 600 tokens at 2, 400 at 0.5 and 100 at 10 dollars for a million.
    let rows = counted(&gateway, 4).await;
    let row = |consumer: &str| rows.iter().find(|row| row["consumer"] == consumer).unwrap();
    let acme = json!({
        "consumer": "acme", "tenant": "shop", "route": "chat", "model": "gpt-*", "answers": 2,
        "inputTokens": 2000, "cachedTokens": 800, "outputTokens": 200, "usd": 0.0048,
    });
    assert_eq!(*row("acme"), acme);
    assert_eq!((&row("")["route"], &row("")["usd"]), (&json!("open"), &json!(0.0024)));
    assert_eq!(row(formula)["tenant"], formula);
    let shown: Value = serde_json::from_str(&gateway.shown("/api/costs").await).unwrap();
    let unpriced = json!([{
        "consumer": "acme", "tenant": "shop", "route": "chat", "answers": 1,
        "inputTokens": 1000, "cachedTokens": 400, "outputTokens": 100,
    }]);
    assert_eq!(shown["unpriced"], unpriced, "use without a price is told, and is no cost");
    assert!(!gateway.shown("/metrics").await.contains("model=\"\""));
    let series = "spillway_cost_usd_total{consumer=\"acme\",tenant=\"shop\",http_route=\"chat\",model=\"gpt-*\"}";
    assert_eq!(gateway.metric(series).await, 0.0048);
    assert_eq!(gateway.metric(&series.replace("usd", "answers")).await, 2.0);

    let admin = Client::new(gateway.admin);
    let table = admin.get("/api/costs?format=csv").await;
    assert_eq!(table.header("content-type"), "text/csv; charset=utf-8");
    let by_header = admin.send(admin.request("GET", "/api/costs", &[("accept", "text/csv")], "")).await;
    assert_eq!(table.text(), by_header.text());
    let text = table.text();
    let lines: Vec<&str> = text.split_terminator("\r\n").collect();
    assert_eq!(lines[0], "consumer,tenant,route,model,answers,inputTokens,cachedTokens,outputTokens,usd");
    assert_eq!(lines[1], ",,open,gpt-*,1,1000,400,100,0.002400000");
    let cell = "\"'=HYPERLINK(\"\"http://evil\"\")\"";
    assert_eq!(lines[2], format!("{cell},{cell},chat,gpt-*,1,1000,400,100,0.002400000"));
    assert_eq!(lines[3], "acme,shop,chat,gpt-*,2,2000,800,200,0.004800000");
    assert_eq!(lines.len(), 4);
    assert_eq!(admin.get("/api/costs?format=xml").await.status, 400);
}

#[tokio::test]
async fn the_catalogue_prices_what_the_file_does_not_where_it_is_on() {
    let upstream = server().await;
    let yaml = |prices: &str| {
        format!(
            "{prices}
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}]}}]
",
            upstream.url()
        )
    };
    // 600 tokens at 0.15, 400 at 0.075 and 100 at 0.6 dollars for a million, as the catalogue says of gpt-4o-mini.
    let catalogued = json!(0.00018);
    let own = "prices: [{model: gpt-4o, input: 1, output: 1}]";
    let both = format!("{own}\npriceCatalogue: true");
    for (prices, expected) in [
        ("", Some(catalogued.clone())),
        ("priceCatalogue: false", None),
        (own, None),
        (both.as_str(), Some(catalogued)),
        ("prices: [{model: \"*\", input: 1, output: 1}]\npriceCatalogue: true", Some(json!(0.0011))),
    ] {
        let gateway = Gateway::start(&yaml(prices)).await;
        for model in ["gpt-4o-mini", "gpt-4o-mini-audio", "made-up"] {
            assert_eq!(gateway.client().chat(model, &[]).await.status, 200);
        }
        let wildcard = prices.contains('*');
        let answers = if wildcard { 3 } else { u64::from(expected.is_some()) };
        let rows = counted(&gateway, answers).await;
        let per_answer = rows.first().map(|row| row["usd"].as_f64().unwrap() / row["answers"].as_f64().unwrap());
        let same = |expected: &Value| (per_answer.unwrap() - expected.as_f64().unwrap()).abs() < 1e-12;
        assert!(expected.as_ref().map_or(rows.is_empty(), same), "{prices}: {rows:?}");
    }
}

#[tokio::test]
async fn a_budget_in_dollars_needs_no_prices_of_its_own_and_means_what_it_meant_with_some() {
    let upstream = server().await;
    let (key, digest) = new_key();
    let yaml = |prices: &str| {
        format!(
            "consumers: [{{name: c, keys: [{{sha256: \"{digest}\"}}], limits: {{budget: {{usd: 0.0001, per: day}}}}}}]
{prices}
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}]}}]
",
            upstream.url()
        )
    };
    let gateway = Gateway::start(&yaml("")).await;
    let asked = async |gateway: &Gateway| gateway.client().chat("gpt-4o-mini", &[("x-api-key", &key)]).await.status;
    assert_eq!(asked(&gateway).await, 200);
    eventually("the budget is spent", || async { (asked(&gateway).await == 429).then_some(()) }).await;
    // With prices in the file, a model that none of them fits costs nothing, as before there was a catalogue.
    let gateway = Gateway::start(&yaml("prices: [{model: gpt-4o, input: 1, output: 1}]")).await;
    for _ in 0..5 {
        assert_eq!(asked(&gateway).await, 200);
    }
    // Without any price it is an error that says what to do.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("free.yaml");
    std::fs::write(
        &file,
        whole(&format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{}", yaml("priceCatalogue: false"))),
    )
    .unwrap();
    let out = Command::new(binary()).arg("check").arg(&file).output().unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(2) && told.contains("priceCatalogue: true"), "{told}");
}

#[tokio::test]
async fn each_answer_over_a_socket_costs_what_it_used() {
    let server = SocketServer::start().await;
    let yaml = format!(
        "prices: [{{model: \"*\", input: 1000000, output: 1000000}}]
backends: [{{name: s, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: s}}]}}]
",
        server.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let request = opening("/v1/realtime?model=gpt-realtime", "");
    let mut client = RawSocket::send_to(gateway.address, request.as_bytes()).await;
    let mut far = server.open().await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    for _ in 0..2 {
        client.send_frame(TEXT, br#"{"type":"response.create"}"#).await;
        far.frame().await.unwrap();
        let done = json!({"type": "response.done", "response": {"usage": {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}}});
        far.send_frame(TEXT, done.to_string().as_bytes()).await;
        client.frame().await.unwrap();
    }
    let rows = counted(&gateway, 2).await;
    assert_eq!((rows.len(), &rows[0]["usd"], &rows[0]["inputTokens"]), (1, &json!(10.0), &json!(6)));
}
