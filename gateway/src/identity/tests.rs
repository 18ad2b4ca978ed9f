//! Promises to the rest of the gateway: credentials that identify a consumer, and credentials that are refused.

use std::net::IpAddr;
use std::sync::Arc;

use futures::FutureExt;
use http::{HeaderName, HeaderValue};
use serde_json::json;
use sha2::{Digest, Sha256};
use spillway_config::schema::{Authentication, Consumer, RouteAuthentication};
use spillway_filter::{Fields, HttpClient, NoHttp, Refusal, SharedStates};

use super::{Authenticator, CallerProof, Identity, IdentityDeps, IdentityError, NewKey, Unidentified};
use crate::commit_steps::CommitSteps;
use crate::limits::Limits;
use crate::telemetry::Metrics;

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
/// 2026-11-24.
const NOW: u64 = 1_795_521_600;

fn digest(key: &str) -> String {
    hex::encode(Sha256::digest(key.as_bytes()))
}

fn consumer(name: &str, tenant: Option<&str>, keys: &[&str]) -> Consumer {
    let keys: Vec<_> = keys.iter().map(|key| json!({"sha256": digest(key)})).collect();
    serde_json::from_value(json!({"name": name, "tenant": tenant, "keys": keys})).unwrap()
}

/// An authenticator whose answers come at once.
struct Known(Authenticator);

impl Known {
    fn new(authentication: &Authentication, consumers: &[Consumer]) -> Result<Self, IdentityError> {
        let metrics = Arc::new(Metrics::new());
        let limits = Limits::new(1024, metrics.clone());
        let http: Arc<dyn HttpClient> = Arc::new(NoHttp);
        let states = SharedStates::default();
        let commit_steps = CommitSteps::default();
        let deps = IdentityDeps {
            limits: &limits,
            states: &states,
            http: &http,
            metrics: &metrics,
            commit_steps: &commit_steps,
        };
        Authenticator::new(authentication, consumers, &[], None, deps).map(Self)
    }

    fn at(&self, headers: &Fields, mode: RouteAuthentication, now: u64) -> Result<Option<Identity>, Unidentified> {
        self.0.identify(headers, ADDRESS, now, mode).now_or_never().expect("nothing to wait for")
    }

    fn identify(&self, headers: &Fields, mode: RouteAuthentication) -> Result<Option<Identity>, Box<Refusal>> {
        self.at(headers, mode, NOW).map_err(|unidentified| unidentified.refusal)
    }
}

fn authenticator() -> Known {
    let consumers =
        [consumer("acme", Some("north"), &["sk-acme-1", "sk-acme-2"]), consumer("bolt", None, &["sk-bolt"])];
    Known::new(&Authentication::default(), &consumers).unwrap()
}

fn headers(pairs: &[(&str, &[u8])]) -> Fields {
    let mut map = Fields::default();
    for (name, value) in pairs {
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(value).unwrap());
    }
    map
}

#[test]
fn known_keys_identify_their_consumer_in_every_configured_header() {
    let authenticator = authenticator();
    type Case<'c> = (&'c [(&'c str, &'c [u8])], &'c str, &'c str, &'c str);
    let cases: &[Case<'_>] = &[
        (&[("authorization", b"Bearer sk-acme-1")], "acme", "north", "authorization"),
        (&[("authorization", b"bearer sk-acme-2")], "acme", "north", "authorization"),
        (&[("authorization", b"BEARER   sk-bolt  ")], "bolt", "bolt", "authorization"),
        (&[("x-api-key", b"sk-bolt")], "bolt", "bolt", "x-api-key"),
        (&[("api-key", b" sk-bolt ")], "bolt", "bolt", "api-key"),
        // One key shown twice is one credential.
        (&[("api-key", b"sk-bolt"), ("authorization", b"Bearer sk-bolt")], "bolt", "bolt", "authorization"),
        (&[("x-api-key", b"sk-bolt"), ("x-api-key", b"sk-bolt")], "bolt", "bolt", "x-api-key"),
    ];
    for (shown, name, tenant, header) in cases {
        let identity = authenticator.identify(&headers(shown), RouteAuthentication::Required).unwrap().unwrap();
        assert_eq!(&*identity.consumer.name, *name, "{shown:?}");
        assert_eq!(&*identity.consumer.tenant, *tenant, "{shown:?}");
        assert_eq!(identity.header, *header, "{shown:?}");
    }
}

#[test]
fn bad_credentials_are_refused_and_never_repeated() {
    let authenticator = authenticator();
    let (long, digest) = ([b'k'; 513], digest("sk-acme-1"));
    let cases: &[&[(&str, &[u8])]] = &[
        &[("authorization", b"Bearer sk-wrong-SECRET")],
        &[("authorization", b"sk-acme-1")],
        &[("authorization", b"Basic c2stYWNtZS0x")],
        &[("authorization", b"Bearer")],
        &[("authorization", b"Bearer ")],
        &[("authorization", b"Bearer sk-acme-1 SECRET")],
        &[("authorization", b"Bearer sk-acme-1, Bearer SECRET")],
        &[("authorization", b"Bearer sk-acme-\xff1")],
        &[("authorization", b"Bearer\tsk-acme-1")],
        &[("authorization", b"")],
        &[("x-api-key", b"")],
        &[("x-api-key", b"   ")],
        &[("x-api-key", b"Bearer sk-acme-1")],
        &[("x-api-key", b"sk-acme-1\tSECRET")],
        &[("x-api-key", &long)],
        // The digest is no key.
        &[("x-api-key", digest.as_bytes())],
        // Case matters in a key.
        &[("x-api-key", b"SK-ACME-1")],
        // Different credentials, even when each of them is good or one of them is of another kind.
        &[("authorization", b"Bearer sk-acme-1"), ("x-api-key", b"sk-bolt")],
        &[("authorization", b"Bearer sk-acme-1"), ("authorization", b"Bearer sk-acme-2")],
        &[("authorization", b"Basic c2stYWNtZS0x"), ("x-api-key", b"sk-bolt")],
    ];
    for shown in cases {
        for mode in [RouteAuthentication::Required, RouteAuthentication::Optional] {
            let refusal = authenticator.identify(&headers(shown), mode).expect_err(&format!("{shown:?}"));
            assert_eq!(refusal.status, 401, "{shown:?}");
            assert_eq!(refusal.code, "invalid_api_key", "{shown:?}");
            for secret in ["SECRET", "sk-", "c2st", "kkkk"] {
                assert!(!refusal.message.contains(secret), "{shown:?} is repeated in {}", refusal.message);
            }
        }
    }
}

#[test]
fn a_key_of_the_longest_length_is_looked_up() {
    let key = "k".repeat(512);
    let authenticator = Known::new(&Authentication::default(), &[consumer("long", None, &[&key])]).unwrap();
    let shown = headers(&[("x-api-key", key.as_bytes())]);
    assert!(authenticator.identify(&shown, RouteAuthentication::Required).unwrap().is_some());
}

#[test]
fn no_credential_is_anonymous_only_where_that_is_allowed() {
    let authenticator = authenticator();
    let none = Fields::default();
    assert!(authenticator.identify(&none, RouteAuthentication::Optional).unwrap().is_none());
    assert!(authenticator.identify(&none, RouteAuthentication::None).unwrap().is_none());
    let refusal = authenticator.identify(&none, RouteAuthentication::Required).unwrap_err();
    assert_eq!((refusal.status.as_u16(), refusal.code), (401, "invalid_api_key"));
    assert!(refusal.message.contains("Authorization: Bearer"));
    // Where credentials are not looked at, a bad one passes.
    let bad = headers(&[("authorization", b"Basic abc")]);
    assert!(authenticator.identify(&bad, RouteAuthentication::None).unwrap().is_none());
}

#[test]
fn headers_that_are_not_configured_do_not_count() {
    let written = json!({"apiKey": {"headers": ["X-Team-Key", "x-team-key"]}});
    let authentication: Authentication = serde_json::from_value(written).unwrap();
    let authenticator = Known::new(&authentication, &[consumer("acme", None, &["sk-acme"])]).unwrap();
    let shown = headers(&[("authorization", b"Bearer sk-acme"), ("x-api-key", b"sk-acme")]);
    let refusal = authenticator.identify(&shown, RouteAuthentication::Required).unwrap_err();
    assert!(refusal.message.contains("`x-team-key`"), "{}", refusal.message);
    let shown = headers(&[("x-team-key", b"sk-acme"), ("authorization", b"Basic other")]);
    assert!(authenticator.identify(&shown, RouteAuthentication::Required).unwrap().is_some());
}

#[test]
fn mistakes_of_the_configuration_are_typed() {
    let shared = [consumer("acme", None, &["sk-same"]), consumer("bolt", None, &["sk-same"])];
    let error = Known::new(&Authentication::default(), &shared).err().unwrap();
    assert!(
        matches!(&error, IdentityError::SharedKey { first, second } if first == "acme" && second == "bolt"),
        "{error:?}"
    );
    let authentication: Authentication =
        serde_json::from_value(json!({"apiKey": {"headers": ["not a header"]}})).unwrap();
    let error = Known::new(&authentication, &[]).err().unwrap();
    assert!(matches!(&error, IdentityError::HeaderName(name) if name == "not a header"), "{error:?}");
}

#[test]
fn a_new_key_identifies_its_consumer() {
    let made = NewKey::generate().unwrap();
    assert!(made.key.starts_with("sk-spillway-") && made.key.len() == 12 + 43, "{}", made.key.len());
    assert_ne!(made.key, NewKey::generate().unwrap().key);
    assert!(!format!("{made:?}").contains(&made.key));
    let consumer: Consumer = serde_json::from_value(json!({"name": "new", "keys": [{"sha256": made.digest}]})).unwrap();
    let authenticator = Known::new(&Authentication::default(), &[consumer]).unwrap();
    let bearer = format!("Bearer {}", made.key);
    let shown = headers(&[("authorization", bearer.as_bytes())]);
    assert!(authenticator.identify(&shown, RouteAuthentication::Required).unwrap().is_some());
}

#[test]
fn a_key_ends_on_its_day_and_a_file_of_keys_adds_to_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("{} 2026-12-01\n{}\n", digest("sk-old"), digest("sk-new"))).unwrap();
    let written =
        json!({"name": "acme", "keysFile": file, "keys": [{"sha256": digest("sk-yaml"), "expires": "2026-11-25"}]});
    let consumer: Consumer = serde_json::from_value(written).unwrap();
    let authenticator = Known::new(&Authentication::default(), &[consumer]).unwrap();
    let known = |key: &str, now| {
        authenticator.at(&headers(&[("x-api-key", key.as_bytes())]), RouteAuthentication::Required, now).is_ok()
    };
    let day = 86_400;
    assert!(known("sk-yaml", NOW) && known("sk-old", NOW) && known("sk-new", NOW));
    assert!(!known("sk-yaml", NOW + day) && known("sk-old", NOW + day));
    assert!(!known("sk-old", NOW + 7 * day) && known("sk-new", NOW + 7 * day));
    let ends = |key: &str, consumer: &str| {
        let shown = headers(&[("x-api-key", key.as_bytes())]);
        let known = authenticator.at(&shown, RouteAuthentication::Required, NOW).unwrap().unwrap();
        authenticator.0.ends(&CallerProof::Key(known.credential), consumer)
    };
    let midnight = NOW - NOW % day + day;
    assert_eq!((ends("sk-yaml", "acme"), ends("sk-old", "acme")), (Some(midnight), Some(midnight + 6 * day)));
    assert_eq!(
        (ends("sk-new", "acme"), ends("sk-new", "other")),
        (None, Some(0)),
        "a key without an end; no key of it"
    );
}

#[test]
fn an_address_with_many_bad_keys_is_refused_unseen_and_its_good_keys_are_not() {
    let written = json!({"failures": {"rate": "3/h"}});
    let authentication: Authentication = serde_json::from_value(written).unwrap();
    let authenticator = Known::new(&authentication, &[consumer("acme", None, &["sk-acme"])]).unwrap();
    let bad = headers(&[("x-api-key", b"sk-guess")]);
    let show = |shown: &Fields| authenticator.at(shown, RouteAuthentication::Required, NOW);
    for _ in 0..3 {
        assert_eq!(show(&bad).unwrap_err().refusal.status, 401);
    }
    let refused = show(&bad).unwrap_err();
    assert!(refused.throttled && refused.refusal.status == 429 && refused.refusal.retry_after.is_some());
    assert!(show(&headers(&[("x-api-key", b"sk-acme")])).is_ok());
    assert_eq!(show(&Fields::default()).unwrap_err().refusal.status, 401, "nothing is guessed by showing nothing");
    let elsewhere = "10.1.1.1".parse().unwrap();
    let other = authenticator.0.identify(&bad, elsewhere, NOW, RouteAuthentication::Required).now_or_never().unwrap();
    assert_eq!(other.unwrap_err().refusal.status, 401);
}
