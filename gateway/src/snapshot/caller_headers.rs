//! Headers of a caller that end at the gateway, compiled at reload. It decides by names, and by whether a
//! trusted proxy sent them, and owns no request. Its inputs are `authentication`, the names that routes' filters set, and
//! the names that the gateway sets itself.
//!
//! Many servers read a header through an environment variable (CGI, RFC 3875 section 4.1.18; WSGI, Rack, FastCGI), in
//! which `-`, `_` and often any other mark become the same character. So a name is compared as such a server reads it.

use std::collections::{HashMap, HashSet};

use http::HeaderName;
use pingora::http::RequestHeader;
use smallvec::SmallVec;
use spillway_config::header_names::{FORWARDED, GUARDED, OURS, OVERRIDES, PROXY_CLAIMS, USUAL_CREDENTIALS};
use spillway_config::schema::Authentication;

/// Words of names whose values are credentials, such as `x-auth-token`.
const CREDENTIAL_WORDS: [&str; 7] = ["token", "secret", "password", "apikey", "credential", "jwt", "cookie"];

/// Words in front of `key` that make it one, as in `x-goog-api-key`; an `idempotency-key` is none.
const KEYS: [&str; 5] = ["access", "api", "auth", "private", "subscription"];

/// Bytes of a name that are compared without an allocation.
type Folded = SmallVec<[u8; 64]>;

/// Names of one snapshot's headers that do not pass from callers to servers.
#[derive(Debug, Default)]
pub struct CallerHeaders {
    /// Headers that may hold a credential, as they are written.
    credentials: Vec<HeaderName>,
    /// Names that callers do not set, folded: no spelling of them comes from a caller.
    owned: HashMap<Box<[u8]>, Setter, ahash::RandomState>,
    /// Of the gateway's own, those that are read at the gateway first: they are removed when a request goes on.
    late: Vec<HeaderName>,
    /// Names of which only the right spelling counts, folded.
    guarded: HashSet<Box<[u8]>, ahash::RandomState>,
}

/// Sender from whom a header is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Setter {
    Gateway,
    /// A trusted proxy too.
    Proxy,
}

/// Judgement of one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judged {
    Passes,
    /// Passes, but some servers cannot tell it from a name with `-`.
    PassesOdd,
    Ends,
}

impl CallerHeaders {
    /// Compiles the names. `owned` are those that only the gateway may set, besides `x-spillway-*`.
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
        // A name that the file reads as a credential stays one.
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
        Self { credentials, owned: names, late, guarded }
    }

    /// Headers that only the gateway may set and that it reads itself before: removed when a request goes on.
    pub fn owned_late(&self) -> &[HeaderName] {
        &self.late
    }

    /// Headers that may hold a credential of a caller.
    pub fn credentials(&self) -> &[HeaderName] {
        &self.credentials
    }

    /// True for a header whose value is a credential by its name: those of callers, and what servers of other kinds call
    /// theirs.
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

    /// Removes what only the gateway may set, and names that a server could take for a header of the gateway's; from
    /// anybody but a trusted proxy, also what only such a proxy may say. True if a name is left that some servers cannot
    /// tell from another (see [`same_name`]).
    pub fn strip(&self, head: &mut RequestHeader, from_trusted_proxy: bool) -> bool {
        let mut ends: SmallVec<[HeaderName; 4]> = SmallVec::new();
        let mut odd = false;
        for name in head.headers.keys() {
            match self.judge(name, from_trusted_proxy) {
                Judged::Passes => {}
                Judged::PassesOdd => odd = true,
                Judged::Ends => ends.push(name.clone()),
            }
        }
        for name in &ends {
            head.remove_header(name);
        }
        odd
    }

    fn judge(&self, name: &HeaderName, from_trusted_proxy: bool) -> Judged {
        let text = name.as_str().as_bytes();
        if is_plain(text) {
            let ends = text.starts_with(OURS.as_bytes())
                || match self.owned.get(text) {
                    Some(Setter::Gateway) => true,
                    Some(Setter::Proxy) => !from_trusted_proxy,
                    None => {
                        !from_trusted_proxy && text.starts_with(FORWARDED.as_bytes()) && !self.guarded.contains(text)
                    }
                };
            return if ends { Judged::Ends } else { Judged::Passes };
        }
        // A trusted proxy writes plain names: another spelling is what a caller sent through it.
        let folded = fold(name.as_str());
        let is_written = || self.credentials.contains(name);
        if folded.starts_with(OURS.as_bytes())
            || self.owned.contains_key(&*folded)
            || ((folded.starts_with(FORWARDED.as_bytes()) || self.guarded.contains(&*folded)) && !is_written())
        {
            Judged::Ends
        } else {
            Judged::PassesOdd
        }
    }
}

/// True for a name that every server reads alike: letters, digits and `-`. Names are in lower case already.
fn is_plain(name: &[u8]) -> bool {
    name.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// Marks other than `-` written as `-`.
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
            ("x-caller", Judged::Ends),
            ("x_caller", Judged::Ends),
            ("x~caller", Judged::Ends),
            ("x-tenant", Judged::Ends),
            ("x_tenant", Judged::Ends),
            ("x-spillway-fallback", Judged::Ends),
            ("x_spillway-fallback", Judged::Ends),
            ("content_length", Judged::Ends),
            ("transfer_encoding", Judged::Ends),
            ("x_forwarded_for", Judged::Ends),
            ("x-forwarded_host", Judged::Ends),
            ("x_request_id", Judged::Ends),
            ("x_api_key", Judged::Ends),
            ("api.key", Judged::Ends),
            // Configured as it is written; its other spelling holds no key.
            ("x_key", Judged::PassesOdd),
            ("x-key", Judged::Passes),
            ("x.key", Judged::Ends),
            ("my_header", Judged::PassesOdd),
            ("content-length", Judged::Passes),
            ("x-forwarded-for", Judged::Passes),
            ("authorization", Judged::Passes),
            ("proxy", Judged::Ends),
            ("x-original-url", Judged::Ends),
            ("x_original_url", Judged::Ends),
            ("x-rewrite-url", Judged::Ends),
            ("x-http-method", Judged::Ends),
            ("x-http-method-override", Judged::Ends),
            ("x-method-override", Judged::Ends),
            ("x-original", Judged::Passes),
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
            ("x-real-ip", Judged::Ends, Judged::Passes),
            ("true-client-ip", Judged::Ends, Judged::Passes),
            ("x-cluster-client-ip", Judged::Ends, Judged::Passes),
            ("cf-connecting-ip", Judged::Ends, Judged::Passes),
            ("x-forwarded-port", Judged::Ends, Judged::Passes),
            ("x-forwarded-prefix", Judged::Ends, Judged::Passes),
            ("x-forwarded-scheme", Judged::Ends, Judged::Passes),
            ("x-forwarded-ssl", Judged::Ends, Judged::Passes),
            ("x-forwarded-server", Judged::Ends, Judged::Passes),
            ("x-forwarded-client-cert", Judged::Ends, Judged::Passes),
            ("x_real_ip", Judged::Ends, Judged::Ends),
            ("x-forwarded_port", Judged::Ends, Judged::Ends),
            // Set by the gateway, or read by it as a credential.
            ("x-forwarded-user", Judged::Ends, Judged::Ends),
            ("x-forwarded-proto", Judged::Passes, Judged::Passes),
            ("x-forwarded-token", Judged::Passes, Judged::Passes),
            ("x-client-ip", Judged::Passes, Judged::Passes),
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
        let others = others.iter().chain(&["x-spillway-a", "x-spillway", "my-header", "accept", "cookie"]);
        let plain: Vec<_> = listed.chain(others).map(|name| (*name).to_owned()).collect();
        let odd = plain.iter().flat_map(|name| [name.replace('-', "_"), name.replacen('-', ".", 1)]);
        for name in plain.iter().cloned().chain(odd) {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            let stays = |from_trusted_proxy| ours.judge(&name, from_trusted_proxy) != Judged::Ends;
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
    fn names_are_removed_and_odd_ones_that_stay_are_told() {
        let names = names("{}", &["x-caller"]);
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
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
