//! The filter `publicLocation`: callers follow redirects of servers and keep their cookies, and nobody is led elsewhere.

use std::time::Duration;

use spillway_tests::{Answer, Gateway, PathReader, Upstream, reply};

/// Gateway whose route has this filter behind others, before a server at `url`.
async fn start(url: &str, filters: &str, further: &str) -> Gateway {
    Gateway::start(&format!(
        "backends: [{{name: up, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{matches: [{{path: {{prefix: /app}}}}], filters: [{filters}], backendRefs: [{{name: up}}]{further}}}]
"
    ))
    .await
}

const HOST: (&str, &str) = ("host", "api.example.com");

async fn get(gateway: &Gateway, path: &str) -> Answer {
    let http = gateway.client();
    http.send(http.request("GET", path, &[HOST], "")).await
}

/// Server that answers with the headers that the query of a request lists, `name=value` behind `&`. `SERVER` in a value is the
/// host that it was asked by.
async fn echo() -> Upstream {
    Upstream::start(|seen| async move {
        let host = seen.headers["host"].to_str().unwrap().to_owned();
        let query = seen.path.split_once('?').map_or("", |(_, query)| query).to_owned();
        if seen.path.contains("slow") {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let headers: Vec<(String, String)> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.replace("SERVER", &host).replace("%20", " ")))
            .collect();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Some(reply(302, &headers, "moved"))
    })
    .await
}

#[tokio::test]
async fn answers_of_servers_name_the_public_host_and_the_paths_of_callers() {
    let upstream = echo().await;
    let filters = "{publicLocation: {host: api.example.com, scheme: https}}, {urlRewrite: {replacePrefix: /v2, hostname: web.internal}}";
    let gateway = start(&upstream.url(), filters, "").await;
    let query = "location=http://SERVER/v2/new&content-location=/v2/here&refresh=5;url=//SERVER/v2/x\
                 &set-cookie=a=1;Domain=SERVER;Path=/v2&set-cookie=b=2&set-cookie=c=3;Domain=.SERVER";
    let answer = get(&gateway, &format!("/app/x?{query}")).await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (302, "moved"));
    assert_eq!(answer.header("location"), "https://api.example.com/app/new");
    assert_eq!(answer.header("content-location"), "/app/here");
    assert_eq!(answer.header("refresh"), "5;url=https://api.example.com/app/x");
    let cookies: Vec<&str> = answer.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(cookies, ["a=1;Domain=api.example.com;Path=/app", "b=2", "c=3;Domain=api.example.com"]);

    // The address of the endpoint, which the server was not asked by.
    let answer = get(&gateway, &format!("/app/x?location={}/v2/new", upstream.url())).await;
    assert_eq!(answer.header("location"), "https://api.example.com/app/new");
}

#[tokio::test]
async fn an_answer_that_was_opened_beside_another_is_changed_as_well() {
    let upstream = echo().await;
    let filters = "{urlRewrite: {replacePrefix: /, hostname: web.internal}}, {publicLocation: {host: api.example.com}}";
    let gateway = start(&upstream.url(), filters, ", retry: {hedge: {after: 20ms}}").await;
    let answer = get(&gateway, "/app/slow?location=https://SERVER/new").await;
    assert_eq!(answer.header("location"), "http://api.example.com/app/new");
}

#[tokio::test]
async fn addresses_of_the_gateway_and_of_others_pass_as_they_are() {
    let upstream = echo().await;
    let filters = "{publicLocation: {host: api.example.com}}, {urlRewrite: {replacePrefix: /, hostname: web.internal}}, \
                   {responseHeaders: {set: {refresh: \"1; url=http://web.internal/\"}}}";
    let gateway = start(&upstream.url(), filters, "").await;
    for location in [
        "https://other.test/web.internal",
        "//evil.test/",
        "http://web.internal@evil.test/",
        "http://evil.test\\@web.internal/",
        "https:///evil.test/",
        // The path that callers know already, and one that leaves the prefix.
        "/app/y",
        "/../y",
    ] {
        let answer = get(&gateway, &format!("/app/x?location={location}")).await;
        assert_eq!(answer.header("location"), location);
        assert_eq!(answer.header("refresh"), "1; url=http://web.internal/", "what the file sets is not a server's");
    }

    // A redirect of the gateway's own is made of what the file says.
    let filters = "{publicLocation: {host: api.example.com}}, {redirect: {hostname: web.internal}}";
    let gateway = start(&upstream.url(), filters, "").await;
    assert_eq!(get(&gateway, "/app/x").await.header("location"), "http://web.internal/app/x");
}

#[tokio::test]
async fn a_prefix_that_is_taken_off_makes_no_address_of_another_host() {
    let upstream = echo().await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: up, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{filters: [{{urlRewrite: {{replacePrefix: /v2}}}}, {{publicLocation: {{host: api.example.com}}}}], backendRefs: [{{name: up}}]}}]
",
        upstream.url()
    ))
    .await;
    for (location, expected) in [
        ("/v2//evil.test/", "/v2//evil.test/"),
        ("/v2/\\evil.test/", "/v2/\\evil.test/"),
        ("/v2/./evil.test/", "/v2/./evil.test/"),
        ("http://SERVER/v2//evil.test/", "http://api.example.com/v2//evil.test/"),
        ("/v2/good", "/good"),
        ("http://SERVER/v2/good", "http://api.example.com/good"),
    ] {
        let answer = get(&gateway, &format!("/x?location={location}")).await;
        assert_eq!(answer.header("location"), expected, "{location}");
    }
}

/// nginx writes its own port behind the name that it was asked by, Starlette the name alone; neither knows of TLS before the
/// gateway, nor of the prefix.
#[tokio::test]
async fn redirects_of_nginx_and_of_starlette_lead_callers_back_to_the_gateway() {
    let filters = "{urlRewrite: {replacePrefix: /}}, {publicLocation: {host: api.example.com, scheme: https}}";
    for (server, path, location) in [
        (PathReader::nginx().await, "/app/admin", "https://api.example.com/app/admin/"),
        (PathReader::asgi().await, "/app/folder", "https://api.example.com/app/folder/"),
    ] {
        let gateway = start(&server.url, filters, "").await;
        let answer = get(&gateway, path).await;
        assert!(answer.status.is_redirection(), "{path}: {}", answer.status);
        assert_eq!(answer.header("location"), location);
    }
}
