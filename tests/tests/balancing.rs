//! Balancing: weights, capacity, health, and the failure of a server.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use spillway_tests::{Dns, Gateway, Says, Upstream, digest, eventually, reply, streamed};
use tokio::sync::mpsc;

#[tokio::test]
async fn a_split_follows_its_weights_and_a_sticky_caller_stays() {
    let (a, b) = (Upstream::fixed(200, "a").await, Upstream::fixed(200, "b").await);
    let yaml = format!(
        "backends:
  - {{name: a, endpoints: [{{url: \"{}\"}}]}}
  - {{name: b, endpoints: [{{url: \"{}\"}}]}}
routes:
  - backendRefs: [{{name: a, weight: 80}}, {{name: b, weight: 20}}]
    sticky: {{header: x-session-id}}
",
        a.url(),
        b.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for _ in 0..1000 {
        client.get("/").await;
    }
    // Five standard deviations of a binomial with p = 0.2: 200 +- 63.
    assert!((137..=263).contains(&b.count()), "{} of 1000", b.count());
    let mut moved = 0;
    for session in 0..50 {
        let id = format!("s{session}");
        let ask = async || client.send(client.request("GET", "/", &[("x-session-id", &id)], "")).await.text();
        let first = ask().await;
        for _ in 0..3 {
            moved += usize::from(ask().await != first);
        }
    }
    assert_eq!(moved, 0);
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_or_hangs_up_costs_no_request() {
    let good = Upstream::digest().await;
    let closes = Upstream::start(|_| async { None }).await;
    let yaml = format!(
        "backends:
  - {{name: dead, protocol: openai, loadBalancing: {{policy: roundRobin}}, endpoints: [{{url: \"{}\"}}, {{url: \"{good}\"}}]}}
  - {{name: closes, protocol: openai, loadBalancing: {{policy: roundRobin}}, endpoints: [{{url: \"{}\"}}, {{url: \"{good}\"}}]}}
routes:
  - {{name: dead, matches: [{{path: {{prefix: /dead}}}}], backendRefs: [{{name: dead}}]}}
  - {{name: closes, matches: [{{path: {{prefix: /closes}}}}], backendRefs: [{{name: closes}}]}}
",
        Upstream::nobody().await,
        closes.url(),
        good = good.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for size in [10, 65_537, 1 << 20] {
        let body = vec![b'x'; size];
        for path in ["/dead", "/closes"] {
            for _ in 0..4 {
                let answer = client.post(path, &[], body.clone()).await;
                assert_eq!((answer.status.as_u16(), answer.text()), (200, digest(&body)), "{path} {size}");
            }
        }
    }
    assert!(closes.count() > 0, "the bad server was tried");
}

#[tokio::test]
async fn a_plain_request_that_may_have_been_acted_on_is_not_sent_twice() {
    let closes = Upstream::start(|_| async { None }).await;
    let good = Upstream::fixed(200, "ok").await;
    let yaml = format!(
        "backends: [{{name: x, loadBalancing: {{policy: roundRobin}}, endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: x}}]}}]
",
        closes.url(),
        good.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    assert_eq!(client.get("/").await.status, 200, "GET is idempotent");
    let mut statuses = Vec::new();
    for _ in 0..2 {
        statuses.push(client.post("/", &[], "order").await.status.as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 503]);
}

#[tokio::test]
async fn full_is_not_failed_the_request_moves_on_and_the_server_is_left_alone() {
    let full = Upstream::start(|_| async { Some(reply(503, &[("retry-after", "30")], "full")) }).await;
    let good = Upstream::digest().await;
    let yaml = format!(
        "backends:
  - name: x
    protocol: openai
    loadBalancing: {{policy: roundRobin}}
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]
    capacity: {{maxFullFor: 30s}}
routes: [{{retry: {{attempts: 0}}, backendRefs: [{{name: x}}]}}]
",
        full.url(),
        good.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for _ in 0..10 {
        let body = vec![b'x'; 200_000];
        let answer = client.post("/", &[], body.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, digest(&body)));
    }
    assert_eq!(full.count(), 1, "asked once, then left alone");
}

#[tokio::test]
async fn a_spent_quota_is_the_callers_business() {
    const SPENT: &str =
        r#"{"error":{"message":"no money","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
    let spent = Upstream::start(|_| async { Some(reply(429, &[("content-type", "application/json")], SPENT)) }).await;
    let yaml = format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}]
routes: [{{backendRefs: [{{name: x}}]}}]
",
        spent.url()
    );
    let gateway = Gateway::start(&yaml).await;
    for _ in 0..2 {
        let answer = gateway.client().post("/", &[], "{}").await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (429, SPENT));
    }
    assert_eq!(spent.count(), 2);
}

#[tokio::test]
async fn requests_in_flight_never_pass_their_limit_and_the_rest_is_refused_as_the_route_says() {
    let (send, parts) = mpsc::channel(1);
    let parts = std::sync::Arc::new(tokio::sync::Mutex::new(Some(parts)));
    let busy = Upstream::start(move |_| {
        let parts = parts.clone();
        async move {
            match parts.lock().await.take() {
                Some(parts) => Some(streamed(&[], parts)),
                None => Some(reply(200, &[], "second")),
            }
        }
    })
    .await;
    let yaml = format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 1}}}}]
routes: [{{backendRefs: [{{name: x}}], whenSaturated: {{reject: {{status: 429, retryAfter: 7s}}}}}}]
",
        busy.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let mut first = client.stream(client.request("GET", "/", &[], "")).await.unwrap();
    send.send(Ok("x".into())).await.unwrap();
    first.part().await.unwrap().unwrap();
    let refused = client.get("/").await;
    assert_eq!((refused.status.as_u16(), refused.header("retry-after")), (429, "7"), "{}", refused.text());
    assert_eq!(refused.header("x-should-retry"), "false", "seven seconds are too long for a client to hold its caller");
    drop(send);
    assert!(first.part().await.is_none());
    let answer = eventually("the slot is free", || async {
        let answer = client.get("/").await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(answer.text(), "second");
}

#[tokio::test]
async fn an_unhealthy_server_gets_no_traffic_until_it_is_healthy_again() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    let sick = Arc::new(AtomicBool::new(false));
    let state = sick.clone();
    let a = Upstream::start(move |seen| {
        let sick = state.load(Ordering::Relaxed);
        async move {
            let status = if sick && seen.path == "/health" { 500 } else { 200 };
            Some(reply(status, &[], "a"))
        }
    })
    .await;
    let b = Upstream::fixed(200, "b").await;
    let yaml = format!(
        "backends:
  - name: x
    loadBalancing: {{policy: roundRobin}}
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]
    healthCheck: {{http: {{path: /health}}, interval: 50ms, timeout: 1s, healthyThreshold: 2, unhealthyThreshold: 2}}
routes: [{{backendRefs: [{{name: x}}]}}]
",
        a.url(),
        b.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let answers = async || {
        let mut answers = String::new();
        for _ in 0..8 {
            answers.push_str(&client.get("/").await.text());
        }
        answers
    };
    assert!(answers().await.contains('a'));
    sick.store(true, Ordering::Relaxed);
    eventually("it is found unhealthy", || async { gateway.events("endpoint_unhealthy").first().map(|_| ()) }).await;
    assert_eq!(answers().await, "bbbbbbbb");
    let series = format!("spillway_endpoint_healthy{{backend=\"x\",endpoint=\"{}\"}}", a.url());
    gateway.metric_becomes(&series, 0.0).await;
    sick.store(false, Ordering::Relaxed);
    eventually("it is found healthy", || async { gateway.events("endpoint_healthy").first().map(|_| ()) }).await;
    assert!(answers().await.contains('a'));
}

/// Two servers on one port of two addresses.
async fn neighbours() -> (Upstream, Upstream) {
    loop {
        let first = Upstream::fixed_on(SocketAddr::from(([127, 0, 0, 2], 0)), "first").await;
        let beside = SocketAddr::from(([127, 0, 0, 3], first.address.port()));
        if tokio::net::TcpListener::bind(beside).await.is_ok() {
            return (first, Upstream::fixed_on(beside, "second").await);
        }
    }
}

#[tokio::test]
async fn endpoints_follow_the_addresses_of_a_name_by_its_time_to_live_and_outlast_its_servers() {
    const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
    const SECOND: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
    let (dns, (first, second)) = (Dns::start().await, neighbours().await);
    dns.tell("chat.test", Says::Addresses(vec![FIRST], 1));
    let port = first.address.port();
    let gateway = Gateway::start(&format!(
        "dns: {{servers: [\"{}\"], timeout: 300ms}}
backends: [{{name: x, endpoints: [{{url: \"http://chat.test:{port}\"}}], loadBalancing: {{policy: roundRobin}}}}]
routes: [{{backendRefs: [{{name: x}}]}}]
",
        dns.address
    ))
    .await;
    let client = gateway.client();
    let ask = async || {
        let answer = client.get("/").await;
        assert_eq!(answer.status, 200, "no request fails of a change");
        answer.text()
    };
    assert_eq!(ask().await, "first");
    // One more address: known endpoints keep their state.
    dns.tell("chat.test", Says::Addresses(vec![SECOND, FIRST], 1));
    eventually("the second is found", || async { (ask().await == "second").then_some(()) }).await;
    let of = |address: Ipv4Addr| {
        let endpoint = format!("http://chat.test:{port} ({address})");
        format!("spillway_endpoint_attempts_total{{backend=\"x\",endpoint=\"{endpoint}\",outcome=\"answered\"}}")
    };
    assert!(gateway.metric(&of(FIRST)).await >= 1.0);
    dns.tell("chat.test", Says::Addresses(vec![SECOND], 1));
    eventually("the first is gone", || async {
        let (then, _) = (first.count(), [ask().await, ask().await]);
        (first.count() == then).then_some(())
    })
    .await;
    // Without a usable answer the last good one holds.
    for says in [Says::Failure, Says::Silence, Says::NoName] {
        let (told, asked) = (gateway.events("name_not_resolved").len(), dns.asked("chat.test"));
        dns.tell("chat.test", says);
        eventually("it was asked and has failed", || async {
            (gateway.events("name_not_resolved").len() > told && dns.asked("chat.test") > asked).then_some(())
        })
        .await;
        assert_eq!(ask().await, "second");
    }
    // Nor does a reload need a new one.
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    std::fs::write(gateway.config(), format!("{text}# an edit\n")).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    assert_eq!(ask().await, "second");
    // An answer with a long time to live is not asked for again meanwhile.
    dns.tell("chat.test", Says::Addresses(vec![FIRST], 3_600));
    eventually("it is found", || async { (ask().await == "first").then_some(()) }).await;
    let asked = dns.asked("chat.test");
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(dns.asked("chat.test"), asked);
    assert!(second.count() > 0);
}

#[tokio::test]
async fn names_that_dns_does_not_know_keep_nothing_from_starting_and_are_used_when_they_appear() {
    for says in [Says::NoName, Says::Failure, Says::Silence] {
        let (dns, (first, second)) = (Dns::start().await, neighbours().await);
        for name in ["later.test", "never.test", "alone.test"] {
            dns.tell(name, says.clone());
        }
        let port = first.address.port();
        let gateway = Gateway::start(&format!(
            "dns: {{servers: [\"{}\"], timeout: 200ms}}
backends:
  - {{name: alone, endpoints: [{{url: \"http://alone.test:{port}\"}}]}}
  - name: tiers
    endpoints: [{{url: \"http://never.test:{port}\"}}, {{url: \"http://127.0.0.2:{port}\", priority: 1}}]
  - name: mixed
    endpoints: [{{url: \"http://later.test:{port}\"}}, {{url: \"http://127.0.0.2:{port}\"}}]
    loadBalancing: {{policy: roundRobin}}
routes:
  - name: alone
    matches: [{{path: {{prefix: /alone}}}}]
    backendRefs: [{{name: alone}}]
    whenUnavailable: {{reject: {{status: 503, retryAfter: 7s}}}}
  - {{name: tiers, matches: [{{path: {{prefix: /tiers}}}}], backendRefs: [{{name: tiers}}]}}
  - {{name: mixed, backendRefs: [{{name: mixed}}]}}
",
            dns.address
        ))
        .await;
        let client = gateway.client();
        for path in ["/", "/tiers", "/", "/tiers"] {
            assert_eq!(client.get(path).await.text(), "first", "{says:?} {path}: the one that is known takes all");
        }
        let refused = client.get("/alone").await;
        assert_eq!((refused.status.as_u16(), refused.header("retry-after")), (503, "7"), "{says:?}");
        for host in ["later", "never", "alone"] {
            let url = format!("http://{host}.test:{port}");
            let events = gateway.events("name_not_resolved");
            assert!(events.iter().any(|e| e["level"] == "WARN" && e["endpoint"] == url.as_str()), "{says:?} {url}");
            let shown = gateway.endpoint(&url).await;
            assert_eq!((&shown["state"], &shown["healthy"]), (&"unresolved".into(), &false.into()), "{shown}");
        }
        // An edit changes nothing of it.
        let text = std::fs::read_to_string(gateway.config()).unwrap();
        std::fs::write(gateway.config(), format!("{text}# an edit\n")).unwrap();
        assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
        assert_eq!(client.get("/").await.text(), "first");
        for name in ["later.test", "alone.test"] {
            dns.tell(name, Says::Addresses(vec![Ipv4Addr::new(127, 0, 0, 3)], 60));
        }
        for path in ["/", "/alone"] {
            eventually("the name is used", || async { (client.get(path).await.text() == "second").then_some(()) })
                .await;
        }
        assert_eq!(gateway.endpoint(&format!("http://later.test:{port}")).await["state"], "open");
        assert!(second.count() > 0 && dns.asked("never.test") > 1, "asked for again");
    }
}
