//! Headers of a caller that end at the gateway, compiled at reload. The decision depends on names, and on whether a trusted
//! proxy sent them. Inputs are `authentication`, the names that routes' filters set, and the names that the gateway sets
//! itself.
//!
//! Many servers read a header through an environment variable (CGI, RFC 3875 section 4.1.18; WSGI, Rack, FastCGI). There
//! `-`, `_` and often any other mark become the same character, so names are compared as such servers read them.

use std::collections::{HashMap, HashSet};

use http::HeaderName;
use smallvec::SmallVec;
use spillway_config::header_names::{GUARDED, OURS, OVERRIDES, PROXY_CLAIMS, USUAL_CREDENTIALS, begins_as_claim};
use spillway_config::schema::Authentication;
use spillway_filter::NameSet;

use crate::message::RequestHead;

/// Words of names whose values are credentials, such as `x-auth-token`.
const CREDENTIAL_WORDS: [&str; 8] = ["token", "secret", "password", "passwd", "apikey", "credential", "jwt", "cookie"];

/// Words before `key` that make it a credential, as in `x-goog-api-key`; an `idempotency-key` is none.
const KEYS: [&str; 5] = ["access", "api", "auth", "private", "subscription"];

/// Headers of almost every request, which pass unless the configuration says otherwise.
const USUAL: [HeaderName; 9] = [
    http::header::HOST,
    http::header::USER_AGENT,
    http::header::ACCEPT,
    http::header::CONTENT_TYPE,
    http::header::CONTENT_LENGTH,
    http::header::AUTHORIZATION,
    http::header::ACCEPT_ENCODING,
    http::header::CONNECTION,
    http::header::COOKIE,
];

/// Folded name; names up to 64 bytes need no allocation.
type Folded = SmallVec<[u8; 64]>;

/// Names of headers that do not pass from callers to servers, for one snapshot.
#[derive(Debug, Default)]
pub struct CallerHeaders {
    /// Headers that may hold a credential, as the configuration spells them.
    credentials: Vec<HeaderName>,
    /// Folded names that callers may not set in any spelling.
    owned: HashMap<Box<[u8]>, Setter, ahash::RandomState>,
    /// Names of the gateway that it reads first: removed when a request goes upstream.
    late: Vec<HeaderName>,
    /// Folded names of which only the right spelling counts.
    guarded: HashSet<Box<[u8]>, ahash::RandomState>,
    /// Names of [`USUAL`] that pass whoever sends them.
    usual: NameSet,
}

/// Sender that is trusted to set a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setter {
    Gateway,
    /// A trusted proxy too.
    Proxy,
}

/// Decision about one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameRuling {
    Passes,
    /// Passes, but some servers cannot tell it from a name with `-`.
    PassesOdd,
    Ends,
}

impl CallerHeaders {
    /// Compiles the names. `owned` are names that only the gateway may set, besides `x-spillway-*`.
    pub fn new<'n>(authentication: &Authentication, owned: impl IntoIterator<Item = &'n HeaderName>) -> Self {
        let mut credentials = USUAL_CREDENTIALS.map(HeaderName::from_static).to_vec();
        let written = authentication.api_key.headers.iter();
        for name in written.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()) {
            if !credentials.contains(&name) {
                credentials.push(name);
            }
        }
        let folded = |name: &str| fold(name).into_vec().into_boxed_slice();
        let guarded = GUARDED.iter().copied().chain(credentials.iter().map(HeaderName::as_str));
        let guarded: HashSet<Box<[u8]>, ahash::RandomState> = guarded.map(folded).collect();
        let fixed = PROXY_CLAIMS.iter().map(|name| (*name, Setter::Proxy));
        let fixed = fixed.chain(OVERRIDES.iter().map(|name| (*name, Setter::Gateway)));
        // A name that the configuration reads as a credential stays one.
        let fixed = fixed.map(|(name, setter)| (folded(name), setter)).filter(|(name, _)| !guarded.contains(name));
        let mut names: HashMap<Box<[u8]>, Setter, ahash::RandomState> = fixed.collect();
        let mut late = Vec::new();
        for name in owned {
            // Such as an `authorization` that another server exchanges for one of its own.
            if credentials.contains(name) || *name == http::header::COOKIE {
                late.push(name.clone());
            } else {
                names.insert(folded(name.as_str()), Setter::Gateway);
            }
        }
        let mut compiled = Self { credentials, owned: names, late, guarded, usual: NameSet::default() };
        let passes =
            |name: &HeaderName| [false, true].map(|proxy| compiled.judge(name, proxy)) == [NameRuling::Passes; 2];
        compiled.usual = USUAL.into_iter().filter(passes).collect();
        compiled
    }

    /// Headers that only the gateway may set and that it reads first: removed when a request goes upstream.
    pub fn owned_late(&self) -> &[HeaderName] {
        &self.late
    }

    /// Headers that may hold a credential of a caller.
    pub fn credentials(&self) -> &[HeaderName] {
        &self.credentials
    }

    /// True for a header whose name says that its value is a credential: those of callers, and usual names of other
    /// servers.
    pub fn may_hold_credential(&self, name: &HeaderName) -> bool {
        let mut words = name.as_str().split(|letter: char| !letter.is_ascii_alphanumeric());
        let mut before = "";
        self.credentials.contains(name)
            || *name == http::header::PROXY_AUTHORIZATION
            || words.any(|word| {
                let before = std::mem::replace(&mut before, word);
                CREDENTIAL_WORDS.contains(&word) || (word == "key" && KEYS.contains(&before))
            })
    }

    /// Removes headers that only the gateway may set, and names that a server could read as such a header. Unless a trusted
    /// proxy sent the request, headers that only such a proxy may set are removed too. True if a name is left that some
    /// servers cannot tell from another (see [`same_name`]).
    pub fn strip(&self, head: &mut RequestHead, from_trusted_proxy: bool) -> bool {
        let mut ends: SmallVec<[HeaderName; 4]> = SmallVec::new();
        let mut odd = false;
        for name in head.headers.keys().filter(|name| !self.usual.contains(name)) {
            match self.judge(name, from_trusted_proxy) {
                NameRuling::Passes => {}
                NameRuling::PassesOdd => odd = true,
                NameRuling::Ends => ends.push(name.clone()),
            }
        }
        for name in &ends {
            head.remove_header(name);
        }
        odd
    }

    fn judge(&self, name: &HeaderName, from_trusted_proxy: bool) -> NameRuling {
        let text = name.as_str().as_bytes();
        if is_plain(text) {
            let ends = text.starts_with(OURS.as_bytes())
                || match self.owned.get(text) {
                    Some(Setter::Gateway) => true,
                    Some(Setter::Proxy) => !from_trusted_proxy,
                    None => !from_trusted_proxy && begins_as_claim(text) && !self.guarded.contains(text),
                };
            return if ends { NameRuling::Ends } else { NameRuling::Passes };
        }
        // A trusted proxy writes plain names: another spelling is what a caller sent through it.
        let folded = fold(name.as_str());
        let is_written = || self.credentials.contains(name);
        if folded.starts_with(OURS.as_bytes())
            || self.owned.contains_key(&*folded)
            || ((begins_as_claim(&folded) || self.guarded.contains(&*folded)) && !is_written())
        {
            NameRuling::Ends
        } else {
            NameRuling::PassesOdd
        }
    }
}

/// True for a name that every server reads alike: letters, digits and `-`. Names are in lower case already.
fn is_plain(name: &[u8]) -> bool {
    name.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// Folds a name: every mark becomes `-`.
fn fold(name: &str) -> Folded {
    name.bytes().map(|b| if b.is_ascii_alphanumeric() { b } else { b'-' }).collect()
}

/// True if some servers cannot tell the two names from each other.
pub fn same_name(a: &HeaderName, b: &HeaderName) -> bool {
    let (a, b) = (a.as_str().as_bytes(), b.as_str().as_bytes());
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| a == b || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric()))
}

/// True for `x-spillway-*` in any spelling that some server or client could read as such.
pub fn claims_to_be_ours(name: &HeaderName) -> bool {
    let (name, ours) = (name.as_str().as_bytes(), OURS.as_bytes());
    name.len() >= ours.len()
        && name.iter().zip(ours).all(|(have, want)| have == want || (*want == b'-' && !have.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use spillway_config::header_names::{HeaderNames, Sender};

    use super::*;

    fn names(authentication: &str, owned: &[&'static str]) -> CallerHeaders {
        let authentication = serde_json::from_str(authentication).unwrap();
        let owned: Vec<_> = owned.iter().map(|name| HeaderName::from_static(name)).collect();
        CallerHeaders::new(&authentication, &owned)
    }

    #[test]
    fn our_own_names_are_known_in_every_spelling() {
        for (name, ours) in [
            ("x-spillway-consumer", true),
            ("x_spillway_consumer", true),
            ("x-spillway_tenant", true),
            ("x.spillway-tenant", true),
            ("x-spillway", false),
            ("x-spillways-x", false),
            ("spillway-x", false),
        ] {
            assert_eq!(claims_to_be_ours(&HeaderName::from_static(name)), ours, "{name}");
        }
    }

    #[test]
    fn a_name_passes_unless_a_server_could_take_it_for_one_of_ours() {
        let names = names(r#"{"apiKey": {"headers": ["x_key"]}}"#, &["x-caller", "x_tenant"]);
        for (name, judged) in [
            ("x-caller", NameRuling::Ends),
            ("x_caller", NameRuling::Ends),
            ("x~caller", NameRuling::Ends),
            ("x-tenant", NameRuling::Ends),
            ("x_tenant", NameRuling::Ends),
            ("x-spillway-fallback", NameRuling::Ends),
            ("x_spillway-fallback", NameRuling::Ends),
            ("content_length", NameRuling::Ends),
            ("transfer_encoding", NameRuling::Ends),
            ("x_forwarded_for", NameRuling::Ends),
            ("x-forwarded_host", NameRuling::Ends),
            ("x_request_id", NameRuling::Ends),
            ("x_api_key", NameRuling::Ends),
            ("api.key", NameRuling::Ends),
            // Configured as it is written; its other spelling holds no key.
            ("x_key", NameRuling::PassesOdd),
            ("x-key", NameRuling::Passes),
            ("x.key", NameRuling::Ends),
            ("my_header", NameRuling::PassesOdd),
            ("content-length", NameRuling::Passes),
            ("x-forwarded-for", NameRuling::Passes),
            ("authorization", NameRuling::Passes),
            ("proxy", NameRuling::Ends),
            ("x-original-url", NameRuling::Ends),
            ("x_original_url", NameRuling::Ends),
            ("x-rewrite-url", NameRuling::Ends),
            ("x-http-method", NameRuling::Ends),
            ("x-http-method-override", NameRuling::Ends),
            ("x-method-override", NameRuling::Ends),
            ("x-original", NameRuling::Passes),
        ] {
            for from_trusted_proxy in [false, true] {
                assert_eq!(names.judge(&HeaderName::from_static(name), from_trusted_proxy), judged, "{name}");
            }
        }
    }

    #[test]
    fn what_proxies_say_of_a_caller_passes_from_trusted_ones_only() {
        let names = names(r#"{"apiKey": {"headers": ["x-forwarded-token", "x-client-ip"]}}"#, &["x-forwarded-user"]);
        for (name, from_outsider, from_proxy) in [
            ("x-real-ip", NameRuling::Ends, NameRuling::Passes),
            ("true-client-ip", NameRuling::Ends, NameRuling::Passes),
            ("x-cluster-client-ip", NameRuling::Ends, NameRuling::Passes),
            ("cf-connecting-ip", NameRuling::Ends, NameRuling::Passes),
            ("x-forwarded-port", NameRuling::Ends, NameRuling::Passes),
            ("x-forwarded-prefix", NameRuling::Ends, NameRuling::Passes),
            ("x-forwarded-scheme", NameRuling::Ends, NameRuling::Passes),
            ("x-forwarded-ssl", NameRuling::Ends, NameRuling::Passes),
            ("x-forwarded-server", NameRuling::Ends, NameRuling::Passes),
            ("x-forwarded-client-cert", NameRuling::Ends, NameRuling::Passes),
            ("x-forwarded", NameRuling::Ends, NameRuling::Passes),
            ("x-forwarded-uri", NameRuling::Ends, NameRuling::Passes),
            ("fastly-client-ip", NameRuling::Ends, NameRuling::Passes),
            ("client-ip", NameRuling::Ends, NameRuling::Passes),
            ("client-cert", NameRuling::Ends, NameRuling::Passes),
            ("remote-user", NameRuling::Ends, NameRuling::Passes),
            ("x-envoy-external-address", NameRuling::Ends, NameRuling::Passes),
            ("x-envoy-original-path", NameRuling::Ends, NameRuling::Passes),
            ("x-ssl-client-verify", NameRuling::Ends, NameRuling::Passes),
            ("ssl-client-subject-dn", NameRuling::Ends, NameRuling::Passes),
            ("x-original-uri", NameRuling::Ends, NameRuling::Passes),
            ("x-auth-request-email", NameRuling::Ends, NameRuling::Passes),
            ("x_envoy_external_address", NameRuling::Ends, NameRuling::Ends),
            ("x-ssl_client_cert", NameRuling::Ends, NameRuling::Ends),
            ("client_cert", NameRuling::Ends, NameRuling::Ends),
            ("x-original-filename", NameRuling::Passes, NameRuling::Passes),
            ("ssl-client", NameRuling::Passes, NameRuling::Passes),
            ("x_real_ip", NameRuling::Ends, NameRuling::Ends),
            ("x-forwarded_port", NameRuling::Ends, NameRuling::Ends),
            // Set by the gateway, or read by it as a credential.
            ("x-forwarded-user", NameRuling::Ends, NameRuling::Ends),
            ("x-forwarded-proto", NameRuling::Passes, NameRuling::Passes),
            ("x-forwarded-token", NameRuling::Passes, NameRuling::Passes),
            ("x-client-ip", NameRuling::Passes, NameRuling::Passes),
        ] {
            let judge = |from_trusted_proxy| names.judge(&HeaderName::from_static(name), from_trusted_proxy);
            assert_eq!((judge(false), judge(true)), (from_outsider, from_proxy), "{name}");
        }
    }

    #[test]
    fn what_check_knows_of_a_header_is_what_becomes_of_it() {
        let authentication = r#"{
            "apiKey": {"headers": ["x_key", "x-forwarded-token", "x-client-ip", "proxy"]},
            "identityHeaders": {"consumer": "x-caller", "tenant": "x_tenant"}
        }"#;
        let ours = names(authentication, &["x-caller", "x_tenant", "x-forwarded-user", "authorization"]);
        let yaml = format!(
            r#"{{"listeners": [{{"address": "127.0.0.1:1"}}], "authentication": {authentication}, "routes": [{{
                "backendRefs": [], "filters": [{{"externalAuthorization": {{"copyToRequest": ["x-forwarded-user", "authorization"]}}}}]
            }}]}}"#
        );
        let theirs = HeaderNames::of(&serde_json::from_str(&yaml).unwrap());
        let listed = GUARDED.iter().chain(&OVERRIDES).chain(&PROXY_CLAIMS).chain(&USUAL_CREDENTIALS);
        let others = ["x-key", "x-caller", "x-tenant", "x-forwarded-token", "x-forwarded-user", "x-forwarded-port"];
        let claims = ["x-envoy-external-address", "x-ssl-client-cert", "ssl-client-verify", "x-amzn-oidc-data"];
        let others = others.iter().chain(&claims);
        let others = others.chain(&["x-spillway-a", "x-spillway", "my-header", "accept", "cookie"]);
        let plain: Vec<_> = listed.chain(others).map(|name| (*name).to_owned()).collect();
        let odd = plain.iter().flat_map(|name| [name.replace('-', "_"), name.replacen('-', ".", 1)]);
        for name in plain.iter().cloned().chain(odd) {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            let stays = |from_trusted_proxy| ours.judge(&name, from_trusted_proxy) != NameRuling::Ends;
            let expected = match (stays(false), stays(true)) {
                (true, true) => Sender::Anybody,
                (false, true) => Sender::TrustedProxy,
                (false, false) => Sender::Nobody,
                (true, false) => panic!("{name}: a proxy may say less than anybody"),
            };
            assert_eq!(theirs.sender(&name), expected, "{name}");
        }
    }

    #[test]
    fn names_are_removed_and_odd_ones_that_stay_are_reported() {
        let names = names("{}", &["x-caller"]);
        let mut head =
            RequestHead::new(http::Method::GET, http::uri::PathAndQuery::from_static("/"), http::HeaderMap::new());
        for name in ["host", "x-caller", "X_Caller", "content_length", "accept"] {
            head.append_header(name, "v").unwrap();
        }
        assert!(!names.strip(&mut head, false));
        assert_eq!(head.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["host", "accept"]);
        head.append_header("my_header", "v").unwrap();
        assert!(names.strip(&mut head, false));
    }

    #[test]
    fn names_of_credentials_are_known_by_their_words() {
        let names = names(r#"{"apiKey": {"headers": ["x-team"]}}"#, &[]);
        for (name, may) in [
            ("authorization", true),
            ("x-team", true),
            ("cookie", true),
            ("proxy-authorization", true),
            ("x-goog-api-key", true),
            ("ocp-apim-subscription-key", true),
            ("x-amz-security-token", true),
            ("x_secret", true),
            ("idempotency-key", false),
            ("x-auth-request-email", false),
            ("x-tokens-left", false),
            ("x-user", false),
        ] {
            assert_eq!(names.may_hold_credential(&HeaderName::from_static(name)), may, "{name}");
        }
    }

    #[test]
    fn two_names_are_one_where_only_marks_differ() {
        let same = |a, b| same_name(&HeaderName::from_static(a), &HeaderName::from_static(b));
        assert!(same("x-internal", "x_internal") && same("x-internal", "x-internal") && same("x.a", "x-a"));
        assert!(!same("x-internal", "x-internals") && !same("xa", "x-") && !same("x-a", "x-b"));
    }
}
