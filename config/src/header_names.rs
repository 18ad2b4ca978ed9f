//! Names of headers that the gateway removes from requests before a route or filter reads them. The lists are in this
//! crate so that `check` finds rules that would read such a header in vain; the gateway removes them.

use http::HeaderName;

use crate::schema::Config;

/// Prefix of the gateway's own headers.
pub const OURS: &str = "x-spillway-";

/// Headers in which callers usually put credentials, whatever `authentication.apiKey.headers` names.
pub const USUAL_CREDENTIALS: [&str; 3] = ["authorization", "x-api-key", "api-key"];

/// Names that frame a message, belong to one connection, or are set by the gateway. The right spelling is handled where
/// the header is made; another spelling of it is removed. Names without a mark have no other spelling.
pub const GUARDED: [&str; 14] = [
    "content-encoding",
    "content-length",
    "content-type",
    "endpoint-load-metrics-format",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "transfer-encoding",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-request-id",
];

/// Names by which some servers use another path or method than the one that routes, limits and filters saw. Programs
/// behind CGI take `proxy` for the proxy of their own requests (CVE-2016-5385). A caller never sets them.
pub const OVERRIDES: [&str; 6] =
    ["proxy", "x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url"];

/// Names in which proxies write what they know of a caller: its address, the scheme, host and path that it used, the user
/// that they authenticated and its certificate. Servers believe them, so that only a trusted proxy
/// (`clientAddress.trustedProxies`) sets them.
pub const PROXY_CLAIMS: [&str; 45] = [
    "cf-access-authenticated-user-email",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-ipcountry",
    "cf-pseudo-ipv4",
    "cf-visitor",
    "client-cert",
    "client-cert-chain",
    "client-ip",
    "fastly-client",
    "fastly-client-ip",
    "fastly-ssl",
    "front-end-https",
    "proxy-client-ip",
    "remote-addr",
    "remote-user",
    "true-client-ip",
    "wl-proxy-client-cert",
    "wl-proxy-client-ip",
    "wl-proxy-ssl",
    "x-arr-clientcert",
    "x-arr-ssl",
    "x-authenticated-user",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-cert",
    "x-client-dn",
    "x-client-ip",
    "x-client-verify",
    "x-cluster-client-ip",
    "x-forwarded",
    "x-host",
    "x-http-host-override",
    "x-original-for",
    "x-original-host",
    "x-original-method",
    "x-original-path",
    "x-original-proto",
    "x-original-uri",
    "x-originating-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-remote-user",
    "x-scheme",
];

/// Beginnings of further such names: every name with one of them is a claim, except for those that the gateway writes
/// anew. Each begins with `x-` or `ssl-`, so that most names of requests need one comparison.
const CLAIM_PREFIXES: [&str; 8] = [
    "x-amzn-mtls-",
    "x-amzn-oidc-",
    "x-appengine-",
    "x-auth-request-",
    "x-envoy-",
    "x-forwarded-",
    "x-goog-authenticated-user-",
    "x-ssl-",
];

/// Beginning of the names in which nginx writes a client certificate.
const TLS_CLAIMS: &str = "ssl-client-";

/// True for a name, in small letters and with `-` for every mark, that begins as what proxies say of a caller does.
pub fn begins_as_claim(folded: &[u8]) -> bool {
    if folded.starts_with(b"x-") {
        CLAIM_PREFIXES.iter().any(|prefix| folded.starts_with(prefix.as_bytes()))
    } else {
        folded.starts_with(TLS_CLAIMS.as_bytes())
    }
}

/// Sender from whom a header is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// Every caller.
    Anybody,
    /// A proxy of `clientAddress.trustedProxies`.
    TrustedProxy,
    /// Nobody: only the gateway sets it.
    Nobody,
}

/// Names that a configuration adds to the lists.
#[derive(Debug, Default)]
pub struct HeaderNames {
    /// Headers that may hold a credential, as they are written.
    credentials: Vec<HeaderName>,
    /// Headers that only the gateway sets, folded.
    owned: Vec<String>,
}

impl HeaderNames {
    /// Names of this configuration.
    pub fn of(config: &Config) -> Self {
        let authentication = config.authentication.clone().unwrap_or_default();
        let header = |name: &str| HeaderName::from_bytes(name.as_bytes()).ok();
        let usual = USUAL_CREDENTIALS.iter().copied();
        let written = authentication.api_key.headers.iter().map(String::as_str);
        let credentials: Vec<_> = usual.chain(written).filter_map(header).collect();
        let identity = &authentication.identity_headers;
        let identity = [&identity.consumer, &identity.tenant].into_iter().flatten().map(String::as_str);
        let copied = config
            .routes
            .iter()
            .flat_map(|route| &route.filters)
            .filter_map(|filter| filter.config.get("copyToRequest")?.as_array())
            .flatten()
            .filter_map(serde_json::Value::as_str);
        // Credentials and cookies are read before they are removed.
        let is_early = |name: &HeaderName| !credentials.contains(name) && *name != http::header::COOKIE;
        let owned =
            identity.chain(copied).filter_map(header).filter(is_early).map(|name| fold(name.as_str())).collect();
        Self { credentials, owned }
    }

    /// The sender from whom a rule of the file gets to see this header.
    pub fn sender(&self, name: &HeaderName) -> Sender {
        let (text, folded) = (name.as_str(), fold(name.as_str()));
        let is = |list: &[&str]| list.contains(&folded.as_str());
        let is_credential = self.credentials.iter().any(|credential| fold(credential.as_str()) == folded);
        let is_guarded = is(&GUARDED) || is_credential;
        if folded.starts_with(OURS) || self.owned.contains(&folded) || (is(&OVERRIDES) && !is_guarded) {
            return Sender::Nobody;
        }
        let is_claim = begins_as_claim(folded.as_bytes()) || (is(&PROXY_CLAIMS) && !is_guarded);
        if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return if is_claim && !is_guarded { Sender::TrustedProxy } else { Sender::Anybody };
        }
        // Another spelling, which some servers cannot tell from the right one. A credential of the file counts as it is
        // written, and a claim of an address in no spelling but its own.
        let is_written = self.credentials.contains(name);
        let ends = (is(&PROXY_CLAIMS) && !is_guarded) || ((is_claim || is_guarded) && !is_written);
        if ends { Sender::Nobody } else { Sender::Anybody }
    }
}

/// Marks other than `-` written as `-`, as many servers read a name (CGI, RFC 3875 section 4.1.18).
fn fold(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}
