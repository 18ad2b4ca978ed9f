//! Any credentials in the head of a request. A token that was not signed by its issuer, in whatever way it was put together from
//! a good one, names nobody. A key names only its own consumer. What identifies a caller is known again where headers for
//! servers are cleaned.
#![no_main]

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures::FutureExt;
use http::{HeaderName, HeaderValue, header};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};
use spillway::commit_steps::CommitSteps;
use spillway::identity::{Authenticator, IdentityDeps};
use spillway::limits::Limits;
use spillway::telemetry::Metrics;
use spillway_config::schema::{Authentication, Consumer, RouteAuthentication};
use spillway_filter::{Fields, HttpClient, NoHttp, SharedStates};

/// Consumers with their keys.
const KEYS: [(&str, &str); 2] = [("acme", "sk-acme-1"), ("bolt", "sk-bolt-1")];
/// 2026-12-01; tokens are judged by the clock of the system.
const NOW: u64 = 1_796_083_200;
/// 2100-01-01.
const LATER: u64 = 4_102_444_800;

/// The gateway's side, and what an attacker may know: public keys, and tokens that are good elsewhere or were good once.
struct World {
    authenticator: Authenticator,
    good: String,
    known: Vec<String>,
    secrets: Vec<Vec<u8>>,
}

static WORLD: LazyLock<World> = LazyLock::new(world);

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn world() -> World {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed");
    let public = pair.public_key().as_ref().to_vec();
    let sign = |header: &Value, claims: &Value| {
        let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        format!("{message}.{}", b64(pair.sign(message.as_bytes())))
    };
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "kid": "d", "x": b64(&public)});
    let claims = json!({"iss": "http://id.test", "aud": "spillway", "sub": "svc", "exp": LATER});
    let changed = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        sign(&json!({"alg": "EdDSA", "kid": "d"}), &claims)
    };
    let folder = std::env::temp_dir().join(format!("spillway-fuzz-tokens-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the keys");
    let file = folder.join("jwks.json");
    std::fs::write(&file, json!({"keys": [jwk]}).to_string()).expect("room for the keys");
    let authentication: Authentication = serde_json::from_value(json!({
        "jwt": [{"issuer": "http://id.test", "audiences": ["spillway"], "jwks": {"file": file}}],
        "failures": {"rate": "1000000/s"},
    }))
    .expect("a configuration");
    let mut consumers: Vec<Consumer> = KEYS
        .iter()
        .map(|(name, key)| {
            let digest = ring::digest::digest(&ring::digest::SHA256, key.as_bytes());
            let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            serde_json::from_value(json!({"name": name, "keys": [{"sha256": digest}]})).expect("a consumer")
        })
        .collect();
    let bearer = json!({"name": "svc", "jwt": {"issuer": "http://id.test", "subject": "svc"}});
    consumers.push(serde_json::from_value(bearer).expect("a consumer"));
    let metrics = Arc::new(Metrics::new());
    let limits = Limits::new(1024, metrics.clone());
    let http: Arc<dyn HttpClient> = Arc::new(NoHttp);
    let (states, commit_steps) = (SharedStates::default(), CommitSteps::default());
    let deps =
        IdentityDeps { limits: &limits, states: &states, http: &http, metrics: &metrics, commit_steps: &commit_steps };
    let authenticator = Authenticator::new(&authentication, &consumers, &[], None, deps).expect("identities");
    let _ = std::fs::remove_dir_all(folder);
    World {
        authenticator,
        good: sign(&json!({"alg": "EdDSA", "kid": "d"}), &claims),
        known: vec![
            changed("aud", json!("elsewhere")),
            changed("exp", json!(1)),
            changed("nbf", json!(LATER)),
            changed("iss", json!("http://other.test")),
            changed("sub", json!("nobody")),
            changed("exp", json!("never")),
        ],
        secrets: vec![
            public.clone(),
            b64(&public).into_bytes(),
            [&b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"[..], &public].concat(),
            jwk.to_string().into_bytes(),
            Vec::new(),
        ],
    }
}

/// Part of a token.
#[derive(Arbitrary, Debug)]
enum TokenPart<'a> {
    OfGood,
    OfKnown(u8),
    /// JSON, or what passes for it.
    Text(&'a str),
    /// A claim or parameter of the good part with another value.
    Changed(u8, &'a str),
    /// Anything at all.
    Raw(&'a str),
    Empty,
}

#[derive(Arbitrary, Debug)]
enum Signature<'a> {
    OfGood,
    OfKnown(u8),
    /// HMAC of the token's own text, with public knowledge as its secret.
    Hmac(u8, u8),
    Bytes(&'a [u8]),
    Zeros(u8),
    Raw(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Credential<'a> {
    Token(TokenPart<'a>, TokenPart<'a>, Signature<'a>),
    Good,
    Known(u8),
    Key(u8),
    /// A key with other letters around it.
    Around(&'a str, u8, &'a str),
    Raw(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
enum Place {
    Bearer,
    Scheme(u8),
    XApiKey,
    Basic(bool),
    Bare,
    Elsewhere(u8),
}

const SCHEMES: [&str; 8] = ["bearer", "BEARER  ", "Basic", "Token", "Bearer\t", "Bearer:", "Bearer,", " Bearer"];
const ELSEWHERE: [&str; 6] =
    ["proxy-authorization", "cookie", "x_api_key", "api-key", "x-forwarded-user", "x-goog-api-key"];
const NAMES: [&str; 12] = ["alg", "kid", "typ", "crit", "jwk", "jku", "iss", "aud", "sub", "exp", "nbf", "enc"];

/// Text of one part of a token; `n` says which.
fn part(part: &TokenPart<'_>, n: usize) -> String {
    let of = |token: &str| token.split('.').nth(n).unwrap_or_default().to_owned();
    match part {
        TokenPart::OfGood => of(&WORLD.good),
        TokenPart::OfKnown(which) => of(&WORLD.known[usize::from(*which) % WORLD.known.len()]),
        TokenPart::Text(text) => b64(text),
        TokenPart::Changed(name, value) => {
            let good = URL_SAFE_NO_PAD.decode(of(&WORLD.good)).expect("a part of a token");
            let mut json: Value = serde_json::from_slice(&good).expect("JSON");
            let value = serde_json::from_str(value).unwrap_or_else(|_| json!(value));
            json[NAMES[usize::from(*name) % NAMES.len()]] = value;
            b64(json.to_string())
        }
        TokenPart::Raw(text) => (*text).to_owned(),
        TokenPart::Empty => String::new(),
    }
}

fn signature(written: &Signature<'_>, message: &str) -> String {
    let of = |token: &str| token.split('.').nth(2).unwrap_or_default().to_owned();
    match written {
        Signature::OfGood => of(&WORLD.good),
        Signature::OfKnown(which) => of(&WORLD.known[usize::from(*which) % WORLD.known.len()]),
        Signature::Hmac(secret, hash) => {
            let hashes = [ring::hmac::HMAC_SHA256, ring::hmac::HMAC_SHA384, ring::hmac::HMAC_SHA512];
            let secret = &WORLD.secrets[usize::from(*secret) % WORLD.secrets.len()];
            let key = ring::hmac::Key::new(hashes[usize::from(*hash) % hashes.len()], secret);
            b64(ring::hmac::sign(&key, message.as_bytes()))
        }
        Signature::Bytes(bytes) => b64(bytes),
        Signature::Zeros(count) => b64(vec![0; usize::from(*count)]),
        Signature::Raw(text) => (*text).to_owned(),
    }
}

fn credential(written: &Credential<'_>) -> Vec<u8> {
    let key = |n: u8| KEYS[usize::from(n) % KEYS.len()].1;
    match written {
        Credential::Token(header, claims, signed) => {
            let message = format!("{}.{}", part(header, 0), part(claims, 1));
            format!("{message}.{}", signature(signed, &message)).into_bytes()
        }
        Credential::Good => WORLD.good.clone().into_bytes(),
        Credential::Known(which) => WORLD.known[usize::from(*which) % WORLD.known.len()].clone().into_bytes(),
        Credential::Key(n) => key(*n).into(),
        Credential::Around(before, n, after) => format!("{before}{}{after}", key(*n)).into_bytes(),
        Credential::Raw(bytes) => bytes.to_vec(),
    }
}

fn field(place: &Place, credential: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let after = |scheme: &str| [scheme.as_bytes(), b" ", credential].concat();
    let (name, value) = match place {
        Place::Bearer => (header::AUTHORIZATION, after("Bearer")),
        Place::Scheme(n) => (header::AUTHORIZATION, after(SCHEMES[usize::from(*n) % SCHEMES.len()])),
        Place::XApiKey => (HeaderName::from_static("x-api-key"), credential.to_vec()),
        Place::Basic(first) => {
            let pair = if *first { [credential, b":x"].concat() } else { [b"x:", credential].concat() };
            (header::AUTHORIZATION, format!("Basic {}", STANDARD.encode(pair)).into_bytes())
        }
        Place::Bare => (header::AUTHORIZATION, credential.to_vec()),
        Place::Elsewhere(n) => {
            (HeaderName::from_static(ELSEWHERE[usize::from(*n) % ELSEWHERE.len()]), credential.to_vec())
        }
    };
    Some((name, HeaderValue::from_bytes(&value).ok()?))
}

/// Consumer whose key or good token stands in a field where a credential is looked for, alone or behind `Bearer`.
fn owner(name: &HeaderName, value: &HeaderValue) -> Option<&'static str> {
    let text = std::str::from_utf8(value.as_bytes()).ok()?.trim_ascii();
    let shown = match name.as_str() {
        "authorization" => {
            let (scheme, shown) = text.split_once(' ')?;
            Some(shown.trim_ascii()).filter(|_| scheme.eq_ignore_ascii_case("bearer"))?
        }
        "x-api-key" | "api-key" => text,
        _ => return None,
    };
    // Another text of the same signature may pass; another message may not.
    let signed = |token: &str| token.rsplit_once('.').map(|(message, _)| message.to_owned());
    if shown.starts_with("ey") && signed(shown).is_some_and(|message| signed(&WORLD.good) == Some(message)) {
        return Some("svc");
    }
    KEYS.iter().find(|(_, key)| *key == shown).map(|(name, _)| *name)
}

fuzz_target!(|input: Vec<(Place, Credential<'_>)>| {
    let headers: Fields =
        input.iter().take(4).filter_map(|(place, written)| field(place, &credential(written))).collect();
    let address = IpAddr::from([127, 0, 0, 1]);
    let authenticator = &WORLD.authenticator;
    authenticator.note_guess(&headers, address, NOW);
    let owners: Vec<&str> = headers.iter().filter_map(|(name, value)| owner(name, value)).collect();
    for mode in [RouteAuthentication::Required, RouteAuthentication::Optional] {
        let identified =
            authenticator.identify(&headers, address, NOW, mode).now_or_never().expect("nothing to wait for");
        match identified {
            Ok(Some(identity)) => {
                assert!(owners.iter().all(|owner| *owner == &*identity.consumer.name), "{headers:?}");
                assert!(!owners.is_empty(), "{} is believed: {headers:?}", identity.consumer.name);
                let shown = headers.get(&identity.header).expect("the header of the credential");
                assert!(authenticator.holds_credential(shown.as_bytes()), "{headers:?}");
            }
            Ok(None) => assert!(mode == RouteAuthentication::Optional && owners.is_empty(), "{headers:?}"),
            Err(unidentified) => {
                assert!(!unidentified.refusal.message.contains("sk-") && !unidentified.refusal.message.contains("eyJ"));
            }
        }
    }
    if let Some((_, value)) = headers.iter().next() {
        let _ = authenticator.holds_credential(value.as_bytes());
    }
    if let ([(Place::Bearer | Place::XApiKey, Credential::Good | Credential::Key(_))], false) =
        (&input[..], owners.is_empty())
    {
        let mode = RouteAuthentication::Required;
        let known = authenticator.identify(&headers, address, NOW, mode).now_or_never().expect("nothing to wait for");
        assert!(known.is_ok(), "a good credential is refused: {headers:?}");
    }
});
