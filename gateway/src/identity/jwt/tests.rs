//! Attacks on tokens, each refused; valid tokens, accepted; keys that are fetched, rotated and kept.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::HeaderValue;
use parking_lot::Mutex;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA512,
    RsaKeyPair,
};
use serde_json::{Value, json};
use spillway_config::schema::{Authentication, Consumer, RouteAuthentication};
use spillway_filter::{Call, Fields, HttpError};

use super::*;
use crate::identity::{Authenticator, Identity};

/// Made for these tests with `openssl genpkey -algorithm rsa`; it opens nothing.
const RSA: &[u8] = include_bytes!("test_rsa.der");

enum Signer {
    Rsa(RsaKeyPair),
    Es256(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::from_pkcs8(RSA).unwrap())
    }
    fn es256() -> Self {
        let random = SystemRandom::new();
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        Self::Es256(EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, made.as_ref(), &random).unwrap())
    }
    fn ed() -> Self {
        let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed(Ed25519KeyPair::from_pkcs8(made.as_ref()).unwrap())
    }

    fn jwk(&self, id: &str) -> Value {
        match self {
            Self::Rsa(key) => {
                let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({"kty": "RSA", "kid": id, "use": "sig", "n": b64(public.n), "e": b64(public.e)})
            }
            Self::Es256(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({"kty": "EC", "crv": "P-256", "kid": id, "alg": "ES256", "x": b64(x), "y": b64(y)})
            }
            Self::Ed(key) => json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": b64(key.public_key().as_ref())}),
        }
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(key) => {
                let how: &dyn ring::signature::RsaEncoding =
                    if algorithm == "PS512" { &RSA_PSS_SHA512 } else { &RSA_PKCS1_SHA256 };
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(how, &random, message, &mut signature).unwrap();
                signature
            }
            Self::Es256(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let signature = self.sign(header["alg"].as_str().unwrap_or_default(), message.as_bytes());
        format!("{message}.{}", b64(signature))
    }
}

/// An issuer of keys that can be changed and taken down.
#[derive(Default)]
struct Site {
    keys: Mutex<Vec<Value>>,
    down: std::sync::atomic::AtomicBool,
    fetches: AtomicUsize,
}

struct Web(Arc<Site>);

impl HttpClient for Web {
    fn call(&self, request: http::Request<Bytes>, _: Duration) -> Call {
        let site = self.0.clone();
        Box::pin(async move {
            site.fetches.fetch_add(1, Ordering::SeqCst);
            if site.down.load(Ordering::SeqCst) {
                return Err(HttpError("down".into()));
            }
            let body = if request.uri().path().ends_with("openid-configuration") {
                json!({"issuer": "http://id.example", "jwks_uri": "http://id.example/keys"})
            } else {
                json!({"keys": *site.keys.lock()})
            };
            Ok(http::Response::new(Bytes::from(body.to_string())))
        })
    }
}

struct House {
    authenticator: Authenticator,
    site: Arc<Site>,
    metrics: Arc<Metrics>,
    limits: Limits,
    states: SharedStates,
    http: Arc<dyn HttpClient>,
}

fn now() -> u64 {
    crate::clock::unix_now()
}

fn house(keys: Vec<Value>, issuer: Value) -> House {
    let site = Arc::new(Site { keys: Mutex::new(keys), ..Site::default() });
    let metrics = Arc::new(Metrics::new());
    let limits = Limits::new(1024, metrics.clone());
    let states = SharedStates::default();
    let http: Arc<dyn HttpClient> = Arc::new(Web(site.clone()));
    let commit_steps = CommitSteps::default();
    let deps =
        IdentityDeps { limits: &limits, states: &states, http: &http, metrics: &metrics, commit_steps: &commit_steps };
    let authenticator = compile(&issuer, None, deps);
    House { authenticator, site, metrics, limits, states, http }
}

fn compile(issuer: &Value, previous: Option<&Authenticator>, deps: IdentityDeps<'_>) -> Authenticator {
    let mut written = json!({"issuer": "http://id.example", "audiences": ["spillway"]});
    written.as_object_mut().unwrap().extend(issuer.as_object().unwrap().clone());
    let failures = written.as_object_mut().unwrap().remove("failures").unwrap_or(json!("1000/s"));
    let written = json!({"jwt": [written], "failures": {"rate": failures}});
    let authentication: Authentication = serde_json::from_value(written).unwrap();
    let acme =
        json!({"name": "acme", "tenant": "north", "jwt": {"issuer": "http://id.example", "subject": "svc-acme"}});
    let consumers: Vec<Consumer> = vec![serde_json::from_value(acme).unwrap()];
    let tenants = [serde_json::from_value(json!({"name": "7", "limits": {"concurrency": 3}})).unwrap()];
    let made = Authenticator::new(&authentication, &consumers, &tenants, previous, deps).unwrap();
    deps.commit_steps.run();
    made
}

impl House {
    async fn show(&self, token: &str) -> Result<Identity, &'static str> {
        let mut headers = Fields::default();
        headers.insert(
            http::HeaderName::from_static("authorization"),
            HeaderValue::from_str(&format!("Bearer {token}")).unwrap(),
        );
        let address = IpAddr::from([127, 0, 0, 1]);
        let identified = self.authenticator.identify(&headers, address, now(), RouteAuthentication::Required).await;
        identified.map(Option::unwrap).map_err(|unidentified| {
            assert_eq!(unidentified.refusal.status, 401);
            assert!(!unidentified.refusal.message.contains("eyJ"), "a token is never repeated");
            unidentified.reason.as_str()
        })
    }
}

fn claims() -> Value {
    json!({"iss": "http://id.example", "aud": "spillway", "sub": "svc-acme", "exp": now() + 300, "scope": "chat.write models.read"})
}

fn changed(pairs: &[(&str, Value)]) -> Value {
    let mut claims = claims();
    for (name, value) in pairs {
        claims[*name] = value.clone();
    }
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

#[tokio::test]
async fn every_kind_of_signature_is_believed_when_it_holds() {
    let (rsa, es, ed) = (Signer::rsa(), Signer::es256(), Signer::ed());
    let house = house(vec![rsa.jwk("r"), es.jwk("e"), ed.jwk("d")], json!({}));
    for (signer, algorithm, id) in
        [(&rsa, "RS256", "r"), (&rsa, "PS512", "r"), (&es, "ES256", "e"), (&ed, "EdDSA", "d")]
    {
        let token = signer.token(&json!({"alg": algorithm, "kid": id, "typ": "JWT"}), &claims());
        let identity = house.show(&token).await.unwrap_or_else(|e| panic!("{algorithm}: {e}"));
        assert_eq!((&*identity.consumer.name, &*identity.consumer.tenant), ("acme", "north"));
        assert_eq!(identity.token.unwrap().scopes, ["chat.write", "models.read"]);
    }
    assert_eq!(house.site.fetches.load(Ordering::SeqCst), 2, "the description and the keys, once");
    assert_eq!(house.metrics.process.token_cache_entries.get(), 4);
}

#[tokio::test]
async fn attacks_on_tokens_are_refused() {
    let (rsa, es) = (Signer::rsa(), Signer::es256());
    let (mut only, mut enciphers) = (rsa.jwk("only-rs256"), rsa.jwk("enciphers"));
    only["alg"] = json!("RS256");
    enciphers["use"] = json!("enc");
    let house = house(vec![rsa.jwk("r"), es.jwk("e"), only, enciphers], json!({"leeway": "30s"}));
    let rs = json!({"alg": "RS256", "kid": "r"});
    let good = rsa.token(&rs, &claims());
    house.show(&good).await.unwrap();
    let [head, body, signature] = good.split('.').collect::<Vec<_>>().try_into().unwrap();

    // Signed as HS256 with what everybody knows: the public key.
    let hs = b64(json!({"alg": "HS256", "kid": "r"}).to_string());
    let Signer::Rsa(key) = &rsa else { unreachable!() };
    let public = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.public().as_ref());
    let confused = format!("{hs}.{body}.{}", b64(ring::hmac::sign(&public, format!("{hs}.{body}").as_bytes())));
    let none =
        |alg: &str, signature: &str| format!("{}.{body}.{signature}", b64(json!({"alg": alg, "kid": "r"}).to_string()));
    let other_body = b64(changed(&[("sub", json!("svc-root"))]).to_string());
    let day_ago = now() - 86_400;
    let cases: Vec<(String, &str)> = vec![
        (confused, "token_algorithm"),
        (none("none", ""), "token_algorithm"),
        (none("None", signature), "token_algorithm"),
        (none("nOnE", ""), "token_algorithm"),
        // The key is for another kind of signature than the token claims.
        (es.token(&json!({"alg": "ES256", "kid": "r"}), &claims()), "token_key"),
        (rsa.token(&json!({"alg": "RS256", "kid": "e"}), &claims()), "token_key"),
        // The key says what it is for.
        (es.token(&json!({"alg": "ES384", "kid": "e"}), &claims()), "token_key"),
        (rsa.token(&json!({"alg": "PS512", "kid": "only-rs256"}), &claims()), "token_key"),
        (rsa.token(&json!({"alg": "RS256", "kid": "enciphers"}), &claims()), "token_key"),
        (format!("{head}.{other_body}.{signature}"), "token_signature"),
        (format!("{head}.{body}."), "token_signature"),
        (es.token(&rs, &claims()), "token_signature"),
        // A signature of two zeros, which verifies under every key in a careless verifier (CVE-2022-21449).
        (
            format!("{}.{body}.{}", b64(json!({"alg": "ES256", "kid": "e"}).to_string()), b64([0; 64])),
            "token_signature",
        ),
        (rsa.token(&rs, &changed(&[("exp", json!(day_ago))])), "token_expired"),
        (rsa.token(&rs, &changed(&[("exp", json!(now() - 40))])), "token_expired"),
        (rsa.token(&rs, &changed(&[("exp", Value::Null)])), "token_claims"),
        (rsa.token(&rs, &changed(&[("exp", json!("never"))])), "token_claims"),
        (rsa.token(&rs, &changed(&[("nbf", json!(now() + 600))])), "token_not_yet_valid"),
        (rsa.token(&rs, &changed(&[("aud", json!("other"))])), "token_audience"),
        (rsa.token(&rs, &changed(&[("aud", json!(["a", "b"]))])), "token_audience"),
        (rsa.token(&rs, &changed(&[("aud", Value::Null)])), "token_claims"),
        (rsa.token(&rs, &changed(&[("aud", json!([]))])), "token_audience"),
        (rsa.token(&rs, &without("aud")), "token_claims"),
        (rsa.token(&rs, &without("exp")), "token_claims"),
        (rsa.token(&rs, &changed(&[("iss", json!("http://evil.example"))])), "token_issuer"),
        (rsa.token(&rs, &changed(&[("iss", json!(["http://id.example"]))])), "token_malformed"),
        (rsa.token(&rs, &changed(&[("sub", json!("svc-other"))])), "token_consumer"),
        // A header that must be understood, a key that the token brings along.
        (rsa.token(&json!({"alg": "RS256", "kid": "r", "crit": ["exp"]}), &claims()), "token_malformed"),
        (es.token(&json!({"alg": "ES256", "kid": "x", "jwk": es.jwk("x")}), &claims()), "token_key"),
        (es.token(&json!({"alg": "ES256", "kid": "x", "jku": "http://evil.example"}), &claims()), "token_key"),
        ("eyJ..".to_owned(), "token_malformed"),
        (format!("eyJ{}.a.b", "x".repeat(MAX_TOKEN_BYTES)), "malformed"),
    ];
    for (token, reason) in cases {
        let told = house.show(&token).await.map(|identity| identity.consumer.name.clone());
        assert_eq!(told.unwrap_err(), reason, "{token:.80}");
    }
    // Within the leeway of clocks.
    house.show(&rsa.token(&rs, &changed(&[("exp", json!(now() - 20))]))).await.unwrap();
}

#[tokio::test]
async fn keys_that_must_not_be_believed_are_left_out_of_a_set() {
    let (rsa, es) = (Signer::rsa(), Signer::es256());
    let point = |kid: &str, curve: &str, length: usize| json!({"kty": "EC", "crv": curve, "kid": kid, "x": b64(vec![1; length]), "y": b64(vec![2; length])});
    let keys = vec![
        json!({"kty": "RSA", "kid": "rsa-1024", "n": b64(vec![0xff; 128]), "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "rsa-2040", "n": b64([&[0; 8][..], &[0xff; 255]].concat()), "e": "AQAB"}),
        json!({"kty": "RSA", "kid": "rsa-16384", "n": b64(vec![0xff; 2048]), "e": "AQAB"}),
        json!({"kty": "oct", "kid": "secret", "k": b64(b"secret")}),
        point("p-521", "P-521", 66),
        point("short", "P-256", 31),
        point("long", "P-256", 33),
        es.jwk("good"),
    ];
    let house = house(keys, json!({}));
    for (algorithm, kid) in [
        ("RS256", "rsa-1024"),
        ("PS512", "rsa-2040"),
        ("RS256", "rsa-16384"),
        ("RS256", "secret"),
        ("ES256", "p-521"),
        ("ES384", "p-521"),
        ("ES256", "short"),
        ("ES256", "long"),
        ("ES384", "good"),
    ] {
        let signer = if algorithm.starts_with("ES") { &es } else { &rsa };
        let token = signer.token(&json!({"alg": algorithm, "kid": kid}), &claims());
        assert_eq!(house.show(&token).await.unwrap_err(), "token_key", "{algorithm} {kid}");
    }
    // Signed as HS256 with the secret that the set holds.
    let message =
        format!("{}.{}", b64(json!({"alg": "HS256", "kid": "secret"}).to_string()), b64(claims().to_string()));
    let tag = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"secret"), message.as_bytes());
    assert_eq!(house.show(&format!("{message}.{}", b64(tag))).await.unwrap_err(), "token_algorithm");
    let token = es.token(&json!({"alg": "ES512", "kid": "p-521"}), &claims());
    assert_eq!(house.show(&token).await.unwrap_err(), "token_algorithm");
    // Without a name it means the one key that fits.
    house.show(&es.token(&json!({"alg": "ES256"}), &claims())).await.unwrap();
}

#[tokio::test]
async fn a_token_that_is_remembered_ends_when_it_ends() {
    let es = Signer::es256();
    let house = house(vec![es.jwk("e")], json!({"leeway": "0s"}));
    let token = es.token(&json!({"alg": "ES256", "kid": "e"}), &claims());
    house.show(&token).await.unwrap();
    let mut headers = Fields::default();
    headers.insert(
        http::HeaderName::from_static("authorization"),
        HeaderValue::from_str(&format!("Bearer {token}")).unwrap(),
    );
    let at = |seconds| {
        house.authenticator.identify(
            &headers,
            IpAddr::from([127, 0, 0, 1]),
            now() + seconds,
            RouteAuthentication::Required,
        )
    };
    assert!(at(200).await.is_ok());
    // The clock of the verification is the system's; what is remembered is asked first and must not hold any more.
    let digest: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(token.as_bytes()).into();
    assert!(house.authenticator.tokens.remembered(&digest, now() + 200).is_some());
    assert!(house.authenticator.tokens.remembered(&digest, now() + 301).is_none());
}

#[tokio::test(start_paused = true)]
async fn keys_rotate_without_a_refused_token_and_outlive_their_issuer() {
    let (old, new, next) = (Signer::es256(), Signer::es256(), Signer::es256());
    let house = house(vec![old.jwk("old")], json!({}));
    let token = |signer: &Signer, id: &str| signer.token(&json!({"alg": "ES256", "kid": id}), &claims());
    let first = token(&old, "old");
    house.show(&first).await.unwrap();
    tokio::time::sleep(Duration::from_secs(11)).await;
    // A key that is not there yet is fetched, once, while its token waits.
    *house.site.keys.lock() = vec![old.jwk("old"), new.jwk("new")];
    let before = house.site.fetches.load(Ordering::SeqCst);
    house.show(&token(&new, "new")).await.unwrap();
    assert_eq!(house.site.fetches.load(Ordering::SeqCst), before + 2);
    // Tokens with invented keys do not make us fetch again and again.
    for n in 0..20 {
        assert_eq!(house.show(&token(&next, &format!("invented-{n}"))).await.unwrap_err(), "token_key");
    }
    assert_eq!(house.site.fetches.load(Ordering::SeqCst), before + 2);
    // An issuer that is down keeps its keys.
    house.site.down.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    house.show(&token(&new, "new")).await.unwrap();
    assert!(house.metrics.process.jwks_failures.get() > 0);
    // A key that is taken back ends the tokens that it signed, also those that are remembered.
    house.site.down.store(false, Ordering::SeqCst);
    *house.site.keys.lock() = vec![new.jwk("new")];
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert_eq!(house.show(&first).await.unwrap_err(), "token_key");
    // A reload keeps what was fetched.
    let commit_steps = CommitSteps::default();
    let (states, http) = (&house.states, &house.http);
    let deps =
        IdentityDeps { limits: &house.limits, states, http, metrics: &house.metrics, commit_steps: &commit_steps };
    let fetches = house.site.fetches.load(Ordering::SeqCst);
    let again = compile(&json!({}), Some(&house.authenticator), deps);
    let mut headers = Fields::default();
    headers.insert(
        http::HeaderName::from_static("authorization"),
        HeaderValue::from_str(&format!("Bearer {}", token(&new, "new"))).unwrap(),
    );
    assert!(again.identify(&headers, IpAddr::from([127, 0, 0, 1]), now(), RouteAuthentication::Required).await.is_ok());
    assert_eq!(house.site.fetches.load(Ordering::SeqCst), fetches);
}

#[tokio::test]
async fn claims_make_consumers_and_never_those_of_the_file() {
    let es = Signer::es256();
    let issuer = json!({
        "claims": {"consumer": "org.user", "tenant": "org.id", "plan": "plan"},
        "plans": {"gold": {"requests": "9/s"}},
    });
    let house = house(vec![es.jwk("e")], issuer);
    let with = |user: Value, plan: &str| {
        let more = [("sub", json!("u1")), ("org", json!({"user": user, "id": 7})), ("plan", json!(plan))];
        es.token(&json!({"alg": "ES256", "kid": "e"}), &changed(&more))
    };
    let identity = house.show(&with(json!("mia"), "gold")).await.unwrap();
    assert_eq!((&*identity.consumer.name, &*identity.consumer.tenant), ("mia", "7"));
    assert_eq!(identity.consumer.rules.len(), 2, "its plan's and its tenant's");
    for (user, plan) in [
        (json!("acme"), "gold"),
        (json!("mia"), "platinum"),
        (json!("a b"), "gold"),
        (json!({}), "gold"),
        (json!(""), "gold"),
    ] {
        assert_eq!(house.show(&with(user.clone(), plan)).await.unwrap_err(), "token_consumer", "{user} {plan}");
    }
    let acme = house.show(&es.token(&json!({"alg": "ES256", "kid": "e"}), &claims())).await.unwrap();
    assert_eq!(&*acme.consumer.name, "acme", "the file says itself which token is its consumer");
}

#[tokio::test]
async fn a_name_of_a_tenant_makes_nobody_that_tenant() {
    let es = Signer::es256();
    let house = house(vec![es.jwk("e")], json!({"claims": {"consumer": "user"}}));
    let with = |user: &str| {
        es.token(&json!({"alg": "ES256", "kid": "e"}), &changed(&[("sub", json!("u1")), ("user", json!(user))]))
    };
    let mia = house.show(&with("mia")).await.unwrap();
    assert_eq!((&*mia.consumer.name, &*mia.consumer.tenant), ("mia", "mia"));
    // The tenant of a consumer, and one that has limits of its own.
    for tenant in ["north", "7"] {
        assert_eq!(house.show(&with(tenant)).await.unwrap_err(), "token_consumer", "{tenant}");
    }
}

#[tokio::test]
async fn the_tokens_of_an_address_with_many_bad_ones_are_not_looked_at() {
    let es = Signer::es256();
    let house = house(vec![es.jwk("e")], json!({"failures": "2/h"}));
    let header = json!({"alg": "ES256", "kid": "e"});
    let known = es.token(&header, &claims());
    house.show(&known).await.unwrap();
    for _ in 0..2 {
        assert_eq!(house.show(&Signer::es256().token(&header, &claims())).await.unwrap_err(), "token_signature");
    }
    let from = async |address: [u8; 4], token: &str| {
        let mut headers = Fields::default();
        headers.insert(http::HeaderName::from_static("x-api-key"), HeaderValue::from_str(token).unwrap());
        let mode = RouteAuthentication::Required;
        let identified = house.authenticator.identify(&headers, IpAddr::from(address), now(), mode).await;
        identified.map_or_else(|unidentified| unidentified.refusal.status.as_u16(), |_| 200)
    };
    let fresh = es.token(&header, &changed(&[("exp", json!(now() + 301))]));
    assert_eq!(from([127, 0, 0, 1], &fresh).await, 429, "a signature costs too much to be checked for a guesser");
    assert_eq!(from([127, 0, 0, 1], &known).await, 200, "one that was verified before passes");
    assert_eq!(from([10, 0, 0, 1], &fresh).await, 200, "another address is not held to account");
}

#[test]
fn remembered_tokens_are_bounded() {
    let gauge = prometheus_client::metrics::gauge::Gauge::<i64>::default();
    let cache = Cache::new(160, gauge.clone());
    let consumer = Arc::new(crate::identity::Consumer::from_claims("c".into(), "t".into(), Vec::new()));
    for n in 0..5_000u32 {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_be_bytes());
        let bearer = Bearer { consumer: consumer.clone(), token: Arc::default(), credential: 0 };
        cache.put(digest, Verified { issuer: 0, epoch: 1, until: 100 + u64::from(n % 3), bearer }, 1);
    }
    assert!(cache.len() <= 160 && cache.len() > 80, "{}", cache.len());
    assert_eq!(gauge.get(), i64::try_from(cache.len()).unwrap());
    drop(cache);
    assert_eq!(gauge.get(), 0);
}
