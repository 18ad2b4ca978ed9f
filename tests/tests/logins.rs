//! Filter `basicAuth`: names and passwords of a file before servers of people.

use spillway_tests::{Gateway, Upstream, eventually};

/// `ann` with the password `test`, and the line of `bob` with the password `other`, by bcrypt.
const ANN: &str = "ann:$2y$04$abcdefghijklmnopqrstuuoD8yw7MmybLKVooaTGGZAt3HXugv2.a\n";
const BOB: &str = "bob:$2y$04$abcdefghijklmnopqrstuu0HtfOlPbTiymk5tcV.3TsFPDd3SYZqu\n";
/// `ann:test`, `bob:other`, `ann:other` and `eve:test`.
const LOGINS: [&str; 4] = ["Basic YW5uOnRlc3Q=", "Basic Ym9iOm90aGVy", "Basic YW5uOm90aGVy", "Basic ZXZlOnRlc3Q="];

async fn start(upstream: &Upstream) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("users.htpasswd"), ANN).unwrap();
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: web, endpoints: [{{url: \"{}\"}}], callerCredentials: pass}}]
routes:
  - name: kept
    matches: [{{path: {{prefix: /kept}}}}]
    filters: [{{basicAuth: {{usersFile: users.htpasswd, keepAuthorization: true}}}}]
    backendRefs: [{{name: web}}]
  - name: web
    filters: [{{basicAuth: {{usersFile: users.htpasswd, realm: Staging}}}}]
    backendRefs: [{{name: web}}]
",
        upstream.url()
    );
    Gateway::start_in(folder, &yaml).await
}

#[tokio::test]
async fn only_a_name_with_its_password_reaches_the_server() {
    let upstream = Upstream::fixed(200, "page").await;
    let gateway = start(&upstream).await;
    let ask = async |path: &str, login: &[(&str, &str)]| {
        gateway.client().send(gateway.client().request("GET", path, login, "")).await
    };
    for login in
        [&[][..], &[("authorization", LOGINS[2])], &[("authorization", LOGINS[3])], &[("authorization", "Bearer test")]]
    {
        let got = ask("/page", login).await;
        assert_eq!(got.status, 401, "{login:?}");
        assert_eq!(got.header("www-authenticate"), "Basic realm=\"Staging\", charset=\"UTF-8\"");
        assert_eq!(got.json()["code"], "login_required", "{}", got.text());
    }
    // The errors of the API that is called.
    let got = gateway.client().post("/v1/chat/completions", &[("content-type", "application/json")], "{}").await;
    assert_eq!((got.status.as_u16(), got.json()["error"]["code"].as_str().unwrap()), (401, "login_required"));
    assert_eq!(upstream.count(), 0);
    for n in 1..=2 {
        assert_eq!(ask("/page", &[("authorization", LOGINS[0])]).await.text(), "page");
        assert_eq!(upstream.count(), n);
        assert!(!upstream.last().headers.contains_key("authorization"), "the password ends here");
    }
    assert_eq!(ask("/kept", &[("authorization", LOGINS[0])]).await.status, 200);
    assert_eq!(upstream.last().headers["authorization"], LOGINS[0]);
}

#[tokio::test]
async fn an_edit_of_the_file_counts_at_once() {
    let upstream = Upstream::fixed(200, "page").await;
    let gateway = start(&upstream).await;
    let status = async |login: &str| {
        let request = gateway.client().request("GET", "/page", &[("authorization", login)], "");
        gateway.client().send(request).await.status.as_u16()
    };
    assert_eq!((status(LOGINS[0]).await, status(LOGINS[1]).await), (200, 401));
    let (file, edits) = (gateway.folder().join("users.htpasswd"), gateway.edits());
    std::fs::write(&file, BOB).unwrap();
    assert_eq!(gateway.reloads(edits).await["event"], "config_reloaded");
    // A password that was right before is none any more.
    eventually("the new user", || async { (status(LOGINS[1]).await == 200).then_some(()) }).await;
    assert_eq!(status(LOGINS[0]).await, 401);

    std::fs::write(&file, "bob:secret-password\n").unwrap();
    let refused = eventually("the mistake is reported", || async { gateway.events("config_rejected").pop() }).await;
    let refused = refused.to_string();
    assert!(refused.contains("line 1: found a password as it is"), "{refused}");
    assert!(!gateway.log().contains("secret-password"));
    assert_eq!(status(LOGINS[1]).await, 200);
}
