//! What the rest of the gateway relies on: which credentials identify whom, and which are refused.

use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use spillway_config::schema::{ApiKeyHeaders, Authentication, Consumer, ConsumerKey, RouteAuthentication};
use spillway_config::values::KeyDigest;

use super::{Authenticator, IdentityError, NewKey};

fn consumer(name: &str, tenant: Option<&str>, keys: &[&str]) -> Consumer {
    Consumer {
        name: name.to_owned(),
        tenant: tenant.map(str::to_owned),
        priority: 0,
        keys: keys.iter().map(|key| ConsumerKey { sha256: KeyDigest(Sha256::digest(key.as_bytes()).into()) }).collect(),
    }
}

fn authenticator() -> Authenticator {
    let consumers =
        [consumer("acme", Some("north"), &["sk-acme-1", "sk-acme-2"]), consumer("bolt", None, &["sk-bolt"])];
    Authenticator::new(&Authentication::default(), &consumers).unwrap()
}

fn headers(pairs: &[(&str, &[u8])]) -> HeaderMap {
    let mut map = HeaderMap::new();
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
        assert_eq!(identity.consumer.caller().tenant, *tenant);
    }
}

#[test]
fn bad_credentials_are_refused_and_never_repeated() {
    let authenticator = authenticator();
    let long = [b'k'; 513];
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
        &[("x-api-key", b"2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b")],
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
    let authenticator = Authenticator::new(&Authentication::default(), &[consumer("long", None, &[&key])]).unwrap();
    let shown = headers(&[("x-api-key", key.as_bytes())]);
    assert!(authenticator.identify(&shown, RouteAuthentication::Required).unwrap().is_some());
}

#[test]
fn no_credential_is_anonymous_only_where_that_is_allowed() {
    let authenticator = authenticator();
    let none = HeaderMap::new();
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
    let authentication =
        Authentication { api_key: ApiKeyHeaders { headers: vec!["X-Team-Key".to_owned(), "x-team-key".to_owned()] } };
    let authenticator = Authenticator::new(&authentication, &[consumer("acme", None, &["sk-acme"])]).unwrap();
    assert_eq!(authenticator.headers(), ["x-team-key"]);
    let shown = headers(&[("authorization", b"Bearer sk-acme"), ("x-api-key", b"sk-acme")]);
    let refusal = authenticator.identify(&shown, RouteAuthentication::Required).unwrap_err();
    assert!(refusal.message.contains("`x-team-key`"), "{}", refusal.message);
    let shown = headers(&[("x-team-key", b"sk-acme"), ("authorization", b"Basic other")]);
    assert!(authenticator.identify(&shown, RouteAuthentication::Required).unwrap().is_some());
}

#[test]
fn mistakes_of_the_configuration_are_typed() {
    let shared = [consumer("acme", None, &["sk-same"]), consumer("bolt", None, &["sk-same"])];
    assert_eq!(
        Authenticator::new(&Authentication::default(), &shared).unwrap_err(),
        IdentityError::SharedKey { first: "acme".to_owned(), second: "bolt".to_owned() }
    );
    let authentication = Authentication { api_key: ApiKeyHeaders { headers: vec!["not a header".to_owned()] } };
    assert_eq!(
        Authenticator::new(&authentication, &[]).unwrap_err(),
        IdentityError::HeaderName("not a header".to_owned())
    );
}

#[test]
fn a_new_key_identifies_its_consumer() {
    let made = NewKey::generate().unwrap();
    assert!(made.key.starts_with("sk-spillway-") && made.key.len() == 12 + 43, "{}", made.key.len());
    assert_ne!(made.key, NewKey::generate().unwrap().key);
    assert!(!format!("{made:?}").contains(&made.key));
    let consumer = Consumer {
        name: "new".to_owned(),
        tenant: None,
        priority: 0,
        keys: vec![ConsumerKey { sha256: made.digest.parse().unwrap() }],
    };
    let authenticator = Authenticator::new(&Authentication::default(), &[consumer]).unwrap();
    let bearer = format!("Bearer {}", made.key);
    let shown = headers(&[("authorization", bearer.as_bytes())]);
    assert!(authenticator.identify(&shown, RouteAuthentication::Required).unwrap().is_some());
}
