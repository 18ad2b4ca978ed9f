//! Login of operators by OpenID Connect, before an issuer that is scripted: the whole way of a browser, and what is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::digest::SHA256;
use serde_json::{Value, json};
use spillway_tests::{Answer, Client, Gateway, IssuerKey, Upstream, eventually, reply};

/// Origin of the admin address, as browsers see it.
const ORIGIN: &str = "http://localhost:9901";

/// Code that the issuer has given out.
struct Grant {
    challenge: String,
    token: String,
}

/// Issuer with an authorization endpoint that the test plays, and a token endpoint that takes each code once.
struct LoginIssuer {
    server: Upstream,
    key: IssuerKey,
    grants: Arc<Mutex<HashMap<String, Grant>>>,
}

fn form(body: &[u8]) -> HashMap<String, String> {
    url::form_urlencoded::parse(body).into_owned().collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn digest(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(ring::digest::digest(&SHA256, text.as_bytes()))
}

impl LoginIssuer {
    async fn start() -> Self {
        let key = IssuerKey::new("k");
        let (jwk, grants) = (key.jwk(), Arc::<Mutex<HashMap<String, Grant>>>::default());
        let given = grants.clone();
        let server = Upstream::start(move |seen| {
            let (jwk, given) = (jwk.clone(), given.clone());
            async move {
                let own = format!("http://{}", seen.headers["host"].to_str().unwrap());
                let json = [("content-type", "application/json")];
                let (status, said) = match seen.path.as_str() {
                    "/.well-known/openid-configuration" => {
                        let said = json!({
                            "issuer": own, "jwks_uri": format!("{own}/keys"),
                            "authorization_endpoint": format!("{own}/authorize?tenant=a"),
                            "token_endpoint": format!("{own}/token"),
                        });
                        (200, said)
                    }
                    "/keys" => (200, json!({"keys": [jwk]})),
                    "/token" => {
                        let sent = form(&seen.body);
                        let basic = format!("Basic {}", STANDARD.encode("spill+way:s%26cret"));
                        let grant = given.lock().unwrap().remove(sent.get("code").map_or("", String::as_str));
                        let is_ours = seen.headers.get("authorization").is_some_and(|sent| *sent == *basic)
                            && sent["grant_type"] == "authorization_code"
                            && sent["redirect_uri"] == format!("{ORIGIN}/auth/callback");
                        let fits = |grant: &Grant| digest(&sent["code_verifier"]) == grant.challenge;
                        match grant.filter(|grant| is_ours && fits(grant)) {
                            Some(grant) => (200, json!({"access_token": "x", "id_token": grant.token})),
                            None => (400, json!({"error": "invalid_grant"})),
                        }
                    }
                    _ => (404, json!({})),
                };
                Some(reply(status, &json, said.to_string()))
            }
        })
        .await;
        Self { server, key, grants }
    }

    fn yaml(&self, more: &str) -> String {
        format!(
            "admin:
  address: \"127.0.0.1:0\"
  oidc:
    issuer: \"{}\"
    clientId: spill way
    clientSecret: {{env: TEST_LOGIN_SECRET}}
    publicUrl: {ORIGIN}
    allow: [{{claim: groups, values: [operators]}}, {{claim: email, values: [boss@example.com]}}]
    {more}
authentication: {{keysByApi: {{}}}}
consumers: [{{name: acme}}]
backends: [{{name: x, endpoints: [{{url: \"http://127.0.0.1:9\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}]}}]
",
            self.server.url()
        )
    }

    async fn gateway(&self, more: &str) -> Gateway {
        let folder = tempfile::tempdir().unwrap();
        let yaml = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{}", self.yaml(more));
        let gateway = Gateway::start_with_variables(folder, &yaml, &[("TEST_LOGIN_SECRET", "s&cret")]).await;
        // The keys of the issuer are fetched in the background.
        eventually("the keys are fetched", || async {
            self.server.seen.lock().unwrap().iter().any(|seen| seen.path == "/keys").then_some(())
        })
        .await;
        gateway
    }

    /// Claims of the id token of a person in this login.
    fn claims(&self, nonce: &str) -> Value {
        json!({
            "iss": self.server.url(), "aud": "spill way", "sub": "7", "exp": now() + 300, "iat": now(), "nonce": nonce,
            "groups": ["staff", "operators"], "email": "ann@example.com", "email_verified": true,
        })
    }

    /// Gives out a code for a token.
    fn grant(&self, asked: &Asked, token: String) -> String {
        let code = format!("code-{}", self.grants.lock().unwrap().len());
        self.grants
            .lock()
            .unwrap()
            .insert(code.clone(), Grant { challenge: asked.query["code_challenge"].clone(), token });
        code
    }
}

/// Login that the gateway has begun.
struct Asked {
    query: HashMap<String, String>,
    cookie: String,
}

impl Asked {
    fn state(&self) -> &str {
        &self.query["state"]
    }
}

/// First part of the cookie with this name that an answer sets.
fn set_cookie(answer: &Answer, name: &str) -> Option<String> {
    let all = answer.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap().to_owned());
    all.into_iter().find(|cookie| cookie.starts_with(&format!("{name}=")))
}

fn pair(cookie: &str) -> String {
    cookie.split(';').next().unwrap().to_owned()
}

async fn get(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> Answer {
    let admin = Client::new(gateway.admin);
    admin.send(admin.request("GET", path, headers, "")).await
}

async fn begin(gateway: &Gateway) -> Asked {
    let answer = get(gateway, "/auth/login", &[]).await;
    assert_eq!(answer.status, 303, "{}", answer.text());
    let to = url::Url::parse(answer.header("location")).unwrap();
    let cookie = set_cookie(&answer, "spillway-login").unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"), "{cookie}");
    Asked { query: to.query_pairs().into_owned().collect(), cookie: pair(&cookie) }
}

/// Comes back with a code.
async fn back(gateway: &Gateway, asked: &Asked, code: &str) -> Answer {
    let path = format!("/auth/callback?code={code}&state={}", asked.state());
    get(gateway, &path, &[("cookie", &asked.cookie)]).await
}

/// Logs in with claims that `change` has changed.
async fn attempt(issuer: &LoginIssuer, gateway: &Gateway, change: impl FnOnce(&mut Value)) -> Answer {
    let asked = begin(gateway).await;
    let mut claims = issuer.claims(&asked.query["nonce"]);
    change(&mut claims);
    let code = issuer.grant(&asked, issuer.key.token(&claims));
    back(gateway, &asked, &code).await
}

/// Logs in, and returns the cookie of the session.
async fn logged_in(issuer: &LoginIssuer, gateway: &Gateway) -> String {
    let answer = attempt(issuer, gateway, |_| {}).await;
    assert_eq!(answer.status, 303, "{}", answer.text());
    pair(&set_cookie(&answer, "spillway-session").unwrap())
}

/// Waits for a line of the audit log, which is written behind the answer.
async fn audited(gateway: &Gateway, path: &str, status: u64, who: &str) {
    let what = format!("{who} {path} {status} is in the audit log");
    eventually(&what, || async {
        let lines = gateway.events("audit");
        lines.iter().any(|line| line["path"] == path && line["status"] == status && line["who"] == who).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_person_logs_in_makes_a_key_and_logs_out() {
    let issuer = LoginIssuer::start().await;
    let gateway = issuer.gateway("").await;
    let refused = get(&gateway, "/api/overview", &[]).await;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401.try_into().unwrap(), ""), "on loopback too");
    assert!(refused.text().contains("/auth/login"), "{}", refused.text());
    assert_eq!(get(&gateway, "/", &[("accept", "text/html")]).await.status, 200, "the page itself is open");
    let shown = get(&gateway, "/auth/session", &[]).await.json();
    assert_eq!(shown, json!({"login": true, "token": false, "person": null}));

    let asked = begin(&gateway).await;
    let query = |name: &str| asked.query[name].as_str();
    assert_eq!((query("response_type"), query("code_challenge_method"), query("tenant")), ("code", "S256", "a"));
    assert_eq!((query("client_id"), query("scope")), ("spill way", "openid profile email"));
    assert_eq!(query("redirect_uri"), format!("{ORIGIN}/auth/callback"));
    let code = issuer.grant(&asked, issuer.key.token(&issuer.claims(query("nonce"))));
    let answer = back(&gateway, &asked, &code).await;
    assert_eq!((answer.status, answer.header("location")), (303.try_into().unwrap(), "/"), "{}", answer.text());
    let cookie = set_cookie(&answer, "spillway-session").unwrap();
    for part in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=28800"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(set_cookie(&answer, "spillway-login").unwrap().contains("Max-Age=0"), "the login is over");
    let cookie = pair(&cookie);
    assert_eq!(get(&gateway, "/api/overview", &[("cookie", &cookie)]).await.status, 200);
    let shown = get(&gateway, "/auth/session", &[("cookie", &cookie)]).await.json();
    assert_eq!(shown["person"], "ann@example.com");

    let admin = Client::new(gateway.admin);
    let body = json!({"consumer": "acme"}).to_string();
    let change = |headers: Vec<(&'static str, String)>| {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        admin.request("POST", "/api/keys", &headers, body.clone())
    };
    let (own, header) = (("origin", ORIGIN.to_owned()), ("x-spillway-admin", "1".to_owned()));
    let session = ("cookie", cookie.clone());
    for (headers, why) in [
        (vec![session.clone(), header.clone()], "no origin"),
        (vec![session.clone(), header.clone(), ("origin", "http://evil.example".to_owned())], "another origin"),
        (vec![session.clone(), own.clone()], "no header"),
    ] {
        assert_eq!(admin.send(change(headers)).await.status, 403, "{why}");
    }
    let made = admin.send(change(vec![session.clone(), header.clone(), own.clone()])).await;
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(made.json()["createdBy"], "person ann@example.com 127.0.0.1");
    for (path, status) in [("/auth/callback", 303), ("/api/keys", 403), ("/api/keys", 201)] {
        audited(&gateway, path, status, "person ann@example.com").await;
    }

    let out = |headers: &[(&str, &str)]| admin.request("POST", "/auth/logout", headers, "");
    let evil = [("cookie", cookie.as_str()), ("x-spillway-admin", "1"), ("origin", "http://evil.example")];
    assert_eq!(admin.send(out(&evil)).await.status, 403);
    assert_eq!(get(&gateway, "/api/overview", &[("cookie", &cookie)]).await.status, 200);
    let own = [("cookie", cookie.as_str()), ("x-spillway-admin", "1"), ("origin", ORIGIN)];
    let ended = admin.send(out(&own)).await;
    assert_eq!(ended.status, 200, "{}", ended.text());
    assert!(set_cookie(&ended, "spillway-session").unwrap().contains("Max-Age=0"));
    assert_eq!(
        get(&gateway, "/api/overview", &[("cookie", &cookie)]).await.status,
        401,
        "the id is of no use any more"
    );
}

#[tokio::test]
async fn a_login_belongs_to_the_browser_that_began_it_and_is_used_once() {
    let issuer = LoginIssuer::start().await;
    let gateway = issuer.gateway("").await;
    let (ours, theirs) = (begin(&gateway).await, begin(&gateway).await);
    let code = |asked: &Asked| issuer.grant(asked, issuer.key.token(&issuer.claims(&asked.query["nonce"])));
    let refused = |answer: &Answer, why: &str| {
        assert_eq!(answer.status, 400, "{why}: {}", answer.text());
        assert!(set_cookie(answer, "spillway-session").is_none() && answer.text().contains("Not signed in"), "{why}");
    };
    // Login CSRF: somebody else's answer in this browser, with and without a login of its own under way.
    let path = format!("/auth/callback?code={}&state={}", code(&theirs), theirs.state());
    refused(&get(&gateway, &path, &[]).await, "no login in this browser");
    refused(&get(&gateway, &path, &[("cookie", &ours.cookie)]).await, "the state of another login");
    refused(&get(&gateway, &path, &[("cookie", "spillway-login=AAAA")]).await, "an invented login");
    let without = format!("/auth/callback?code={}", code(&ours));
    refused(&get(&gateway, &without, &[("cookie", &ours.cookie)]).await, "no state");
    // Mix-up: an answer of another issuer.
    let other = format!("/auth/callback?code={}&state={}&iss=http://other.example", code(&ours), ours.state());
    refused(&get(&gateway, &other, &[("cookie", &ours.cookie)]).await, "another issuer");

    // Fixation: an id that was set before stays worthless.
    let chosen = "spillway-session=chosen";
    let used = code(&ours);
    let path =
        format!("/auth/callback?code={used}&state={}&return=https://evil.example&next=//evil.example", ours.state());
    let answer = get(&gateway, &path, &[("cookie", &format!("{}; {chosen}", ours.cookie))]).await;
    assert_eq!((answer.status, answer.header("location")), (303.try_into().unwrap(), "/"), "no address of the request");
    assert_ne!(pair(&set_cookie(&answer, "spillway-session").unwrap()), chosen);
    assert_eq!(get(&gateway, "/api/overview", &[("cookie", chosen)]).await.status, 401);

    // The same code again is refused by the issuer, and a second code of the same login by the gateway.
    let again = back(&gateway, &ours, &used).await;
    assert_eq!(again.status, 403);
    assert!(again.text().contains("invalid_grant"), "{}", again.text());
    refused(&back(&gateway, &ours, &code(&ours)).await, "a login that was used");
    // PKCE: a code that was given out for another login.
    let stolen = back(&gateway, &begin(&gateway).await, &code(&theirs)).await;
    assert!(stolen.status == 403 && stolen.text().contains("invalid_grant"), "{}", stolen.text());
    let markup = format!("/auth/callback?error=%3Cscript%3E&state={}", theirs.state());
    let said = get(&gateway, &markup, &[("cookie", &theirs.cookie)]).await;
    assert!(said.status == 403 && !said.text().contains("<script>"), "{}", said.text());
}

#[tokio::test]
async fn only_tokens_of_the_issuer_for_this_client_and_login_let_in_and_only_who_is_allowed() {
    let issuer = LoginIssuer::start().await;
    let gateway = issuer.gateway("").await;
    type Change = fn(&mut Value);
    let refused: [(&str, Change); 12] = [
        ("another issuer", |claims| claims["iss"] = json!("https://evil.example")),
        ("another audience", |claims| claims["aud"] = json!("other")),
        ("several audiences and no party", |claims| claims["aud"] = json!(["spill way", "other"])),
        ("another party", |claims| claims["azp"] = json!("other")),
        ("expired", |claims| claims["exp"] = json!(now() - 60)),
        ("not yet valid", |claims| claims["nbf"] = json!(now() + 600)),
        ("another nonce", |claims| claims["nonce"] = json!("other")),
        ("no nonce", |claims| drop(claims.as_object_mut().unwrap().remove("nonce"))),
        ("no subject", |claims| drop(claims.as_object_mut().unwrap().remove("sub"))),
        ("another group", |claims| claims["groups"] = json!(["Operators", "operators2"])),
        ("no group", |claims| drop(claims.as_object_mut().unwrap().remove("groups"))),
        ("an address that nobody has verified", |claims| {
            claims["groups"] = json!([]);
            claims["email"] = json!("boss@example.com");
            claims["email_verified"] = json!(false);
        }),
    ];
    for (why, change) in refused {
        let answer = attempt(&issuer, &gateway, change).await;
        assert_eq!(answer.status, 403, "{why}: {}", answer.text());
        assert!(set_cookie(&answer, "spillway-session").is_none(), "{why}");
    }
    let let_in: [(&str, Change); 3] = [
        ("one of several audiences, issued to it", |claims| {
            claims["aud"] = json!(["spill way", "other"]);
            claims["azp"] = json!("spill way");
        }),
        ("a claim that is one text", |claims| claims["groups"] = json!("operators")),
        ("a verified address", |claims| {
            claims["groups"] = json!([]);
            claims["email"] = json!("boss@example.com");
        }),
    ];
    for (why, change) in let_in {
        assert_eq!(attempt(&issuer, &gateway, change).await.status, 303, "{why}");
    }
    // No signature, one by a shared secret, and one by a key that the issuer does not show.
    let asked = begin(&gateway).await;
    let claims = issuer.claims(&asked.query["nonce"]);
    let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let unsigned =
        |algorithm: &str| format!("{}.{}.", encoded(&json!({"alg": algorithm, "kid": "k"})), encoded(&claims));
    let other = IssuerKey::new("k").token(&claims);
    for token in [unsigned("none"), format!("{}AAAA", unsigned("HS256")), other, "x".to_owned()] {
        let code = issuer.grant(&asked, token.clone());
        let answer = back(&gateway, &asked, &code).await;
        assert_eq!(answer.status, 403, "{token}: {}", answer.text());
    }
    // A refusal is in the audit log without the text of the issuer.
    audited(&gateway, "/auth/callback", 403, "unknown").await;
}

#[tokio::test]
async fn a_session_idles_out_and_the_token_opens_beside_it() {
    let issuer = LoginIssuer::start().await;
    let more = "sessions: {idle: 1s, most: 1}\n  token: {env: TEST_SECRET}";
    let gateway = issuer.gateway(more).await;
    let refused = get(&gateway, "/metrics", &[]).await;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401.try_into().unwrap(), "Bearer"));
    let bearer = [("authorization", "Bearer upstream-secret")];
    assert_eq!(get(&gateway, "/metrics", &bearer).await.status, 200);
    let first = logged_in(&issuer, &gateway).await;
    eventually("the session idles out", || async {
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        (get(&gateway, "/api/overview", &[("cookie", &first)]).await.status == 401).then_some(())
    })
    .await;
}

#[tokio::test]
async fn over_tls_the_cookies_are_bound_to_the_host() {
    let issuer = LoginIssuer::start().await;
    let yaml = issuer.yaml("").replace(ORIGIN, "https://ops.example");
    let folder = tempfile::tempdir().unwrap();
    let yaml = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}");
    let gateway = Gateway::start_with_variables(folder, &yaml, &[("TEST_LOGIN_SECRET", "s&cret")]).await;
    let answer = get(&gateway, "/auth/login", &[("host", "ops.example")]).await;
    let cookie = set_cookie(&answer, "__Host-spillway-login").unwrap();
    assert!(cookie.ends_with("; Secure") && cookie.contains("Path=/;"), "{cookie}");
}
