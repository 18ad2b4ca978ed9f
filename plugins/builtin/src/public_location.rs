//! `publicLocation`: the public address in place of a server's own, in the headers of its answers that name it.
//!
//! Only what is certain is changed. A value that a browser and a server could read in two ways passes as it came: no rewriting
//! may lead a browser to a host to which the value itself does not.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{self, HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_filter::{FieldError, Filter, FilterFactory, Headers, ServerView, define_compiled};

use crate::target::Scheme;

/// Headers whose value is an address.
const ADDRESSES: [HeaderName; 2] = [header::LOCATION, header::CONTENT_LOCATION];

/// Shows callers the public address where the answer of a server names the server's own: in `Location`, `Content-Location`,
/// `Refresh`, and the domains and paths of cookies. Addresses of the server that answered are known: that of its endpoint, and
/// the `Host` that it got. Paths that `urlRewrite` changed are led back where that is certain. Other addresses pass.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PublicLocation {
    /// Host that callers use, with a port where it is not that of the scheme.
    host: String,
    /// Scheme that callers use, http or https; default: that of the request.
    #[serde(default)]
    scheme: Option<Scheme>,
    /// Further hosts that callers should not see: names or addresses, `*.internal` for all below a name; with a port that
    /// port alone, without one all.
    #[serde(default)]
    internal: Option<Vec<String>>,
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define_compiled("publicLocation", Compiled::new)
}

/// Host of an authority.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// Name in small letters, without the dot of the root.
    Name(String),
}

impl Host {
    /// Host as it stands in an authority; an IPv6 address in brackets.
    fn parse(text: &str) -> Option<Self> {
        if let Some(address) = text.strip_prefix('[') {
            return Some(Self::Address(IpAddr::V6(address.strip_suffix(']')?.parse().ok()?)));
        }
        if let Ok(address) = text.parse::<std::net::Ipv4Addr>() {
            return Some(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_label = |label: &str| {
            !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        (name.len() <= 253 && name.split('.').all(is_label)).then_some(Self::Name(name))
    }

    /// Host of a server's URL, which has no brackets.
    fn of_url(text: &str) -> Option<Self> {
        text.parse().map(Self::Address).ok().or_else(|| Self::parse(text))
    }

    fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }

    /// True for `name` itself and all names below it.
    fn is_within(&self, name: &str) -> bool {
        self.name()
            .is_some_and(|own| own.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.')))
    }
}

/// Host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Authority {
    host: Host,
    port: Option<u16>,
}

impl Authority {
    /// Authority without a user.
    fn parse(text: &str) -> Option<Self> {
        let end_of_host = text.rfind(']').map_or(0, |at| at.saturating_add(1));
        let (host, port) = match text.get(end_of_host..)?.find(':') {
            Some(colon) => {
                let (host, port) = text.split_at_checked(end_of_host.saturating_add(colon))?;
                (host, port.get(1..)?)
            }
            None => (text, ""),
        };
        let port = match port {
            "" => None,
            digits if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
            _ => return None,
        };
        Some(Self { host: Host::parse(host)?, port })
    }

    fn port_or_default(&self, https: bool) -> u16 {
        self.port.unwrap_or(default_port(https))
    }
}

fn default_port(https: bool) -> u16 {
    if https { 443 } else { 80 }
}

/// Host that `internal` lists.
#[derive(Debug)]
struct Internal {
    /// True if only hosts below the name are meant.
    is_below: bool,
    authority: Authority,
}

impl Internal {
    fn matches_host(&self, host: &Host) -> bool {
        match &self.authority.host {
            Host::Name(name) if self.is_below => host.is_within(name) && host != &self.authority.host,
            own => own == host,
        }
    }
}

/// Mistake in the text of a host, which may be one of several (`is_listed`); `None` for a host.
fn mistake_in(text: &str, is_listed: bool) -> Option<String> {
    let example = if is_listed { "app.internal" } else { "api.example.com" };
    if let Some((scheme, rest)) = text.split_once("://") {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let further = if is_listed { "" } else { " and `scheme` beside it" };
        return Some(format!("`{text}` has a scheme (`{scheme}`); expected a host: write `{host}`{further}"));
    }
    if let Some((host, _)) = text.split_once(['/', '?', '#']) {
        return Some(format!("`{text}` has a path; expected a host alone: write `{host}`"));
    }
    if let Some((_, host)) = text.rsplit_once('@') {
        return Some(format!("`{text}` has a user; expected a host alone: write `{host}`"));
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Some(format!("`{text}` is an IPv6 address; expected it in brackets: write `[{text}]`"));
    }
    let host = if is_listed { text.strip_prefix("*.").unwrap_or(text) } else { text };
    let is_sound = Authority::parse(host).is_some_and(|authority| {
        let ends_in_colon = host.ends_with(':');
        let is_name = host.len() == text.len() || authority.host.name().is_some();
        authority.port != Some(0) && !ends_in_colon && is_name
    });
    (!is_sound).then(|| format!("`{text}` is not a host; expected one such as `{example}` or `{example}:8443`"))
}

/// Address of a server or of another host, in its parts.
struct Address<'a> {
    https: bool,
    authority: Authority,
    /// Path, query and fragment.
    rest: &'a str,
}

impl<'a> Address<'a> {
    /// Address with a host; `None` for another form. `secure` is the scheme of one that names none.
    fn parse(text: &'a str, secure: bool) -> Option<Self> {
        let after = |scheme: &str| {
            text.get(..scheme.len()).filter(|start| start.eq_ignore_ascii_case(scheme))?;
            text.get(scheme.len()..)
        };
        let (https, after) = after("http://")
            .map(|rest| (false, rest))
            .or_else(|| after("https://").map(|rest| (true, rest)))
            .or_else(|| after("//").map(|rest| (secure, rest)))?;
        let (authority, rest) = after.split_at_checked(after.find(['/', '?', '#']).unwrap_or(after.len()))?;
        // A user in it was meant for the server and is left out.
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        Some(Self { https, authority: Authority::parse(authority)?, rest })
    }
}

/// Compiled filter.
struct Compiled {
    public: Authority,
    /// Public host as it stands in an address.
    host: String,
    scheme: Option<Scheme>,
    internal: Vec<Internal>,
}

impl Compiled {
    fn new(config: &PublicLocation) -> Result<Self, Vec<FieldError>> {
        let mut errors: Vec<FieldError> =
            mistake_in(&config.host, false).map(|why| FieldError::at(["host"], why)).into_iter().collect();
        let mut internal = Vec::new();
        if config.internal.as_ref().is_some_and(Vec::is_empty) {
            errors.push(FieldError::at(["internal"], "no host is listed: add one, or remove the key"));
        }
        for (n, text) in config.internal.iter().flatten().enumerate() {
            let (is_below, host) = text.strip_prefix("*.").map_or((false, text.as_str()), |name| (true, name));
            match (mistake_in(text, true), Authority::parse(host)) {
                (None, Some(authority)) => internal.push(Internal { is_below, authority }),
                (why, _) => {
                    let why = why.unwrap_or_else(|| format!("`{text}` is not a host"));
                    errors.push(FieldError::at(["internal", &n.to_string()], why));
                }
            }
        }
        match Authority::parse(&config.host) {
            Some(public) if errors.is_empty() => {
                let host = match &public.host {
                    Host::Name(name) => name.clone(),
                    Host::Address(IpAddr::V4(address)) => address.to_string(),
                    Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
                };
                Ok(Self { public, host, scheme: config.scheme, internal })
            }
            _ => Err(errors),
        }
    }

    /// True for an address of the server that answered, or of a host that the file lists.
    fn is_internal(&self, address: &Address<'_>, server: &ServerView<'_>) -> bool {
        let authority = &address.authority;
        let port = authority.port_or_default(address.https);
        if Host::of_url(server.host).is_some_and(|host| host == authority.host) && port == server.port {
            return true;
        }
        let is_sent = server.sent_host.and_then(Authority::parse).is_some_and(|sent| {
            // A server that sees no port of callers writes none, or its own.
            let own = sent.port.unwrap_or(default_port(address.https));
            sent.host == authority.host && (port == own || port == server.port)
        });
        is_sent
            || self.internal.iter().any(|internal| {
                internal.matches_host(&authority.host) && internal.authority.port.is_none_or(|own| own == port)
            })
    }

    /// Address for callers in place of `text`; `None` where it stays.
    fn address(&self, text: &str, server: &ServerView<'_>) -> Option<String> {
        // Browsers leave line breaks and tabs out and read `\` as `/`: such an address has two readings.
        if text.bytes().any(|b| b.is_ascii_control() || b == b'\\') {
            return None;
        }
        if text.starts_with('/') && !text.starts_with("//") {
            let (path, further) = split_path(text);
            return Some(format!("{}{further}", (server.caller_path)(path)?));
        }
        let address = Address::parse(text, server.secure)?;
        if !self.is_internal(&address, server) {
            return None;
        }
        // A server that sends callers from http to https knows why.
        let is_public = address.authority.host == self.public.host
            && address.authority.port_or_default(address.https) == self.public.port_or_default(address.https);
        let https = match self.scheme {
            Some(scheme) => scheme == Scheme::Https,
            None => server.secure || (is_public && address.https),
        };
        let port = self.public.port.filter(|port| *port != default_port(https));
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let (path, further) = split_path(address.rest);
        let path =
            (server.caller_path)(if path.is_empty() { "/" } else { path }).map_or(Cow::Borrowed(path), Cow::Owned);
        let scheme = if https { "https" } else { "http" };
        Some(format!("{scheme}://{}{port}{path}{further}", self.host))
    }

    /// Value of `Refresh` for callers: seconds, and an address that may stand in quotes behind `url=`, as HTML reads it.
    fn refresh(&self, text: &str, server: &ServerView<'_>) -> Option<String> {
        let rest = text.trim_start_matches(is_blank).trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let rest = rest.trim_start_matches(is_blank);
        let rest = rest.strip_prefix([';', ',']).unwrap_or(rest).trim_start_matches(is_blank);
        let key = rest.get(..3).filter(|key| key.eq_ignore_ascii_case("url"));
        let behind = key.and_then(|key| rest.get(key.len()..)?.trim_start_matches(is_blank).strip_prefix('='));
        let rest = behind.map_or(rest, |behind| behind.trim_start_matches(is_blank));
        let quote = rest.chars().next().filter(|first| matches!(first, '"' | '\''));
        let rest = quote.map_or(rest, |quote| rest.strip_prefix(quote).unwrap_or(rest));
        let end = quote.and_then(|quote| rest.find(quote)).unwrap_or(rest.trim_end_matches(is_blank).len());
        let (address, after) = rest.split_at_checked(end)?;
        let before = text.get(..text.len().checked_sub(rest.len())?)?;
        Some(format!("{before}{}{after}", self.address(address, server)?))
    }

    /// True if a cookie for this domain is one for a server: no caller's browser would keep it.
    fn is_internal_domain(&self, domain: &str, server: &ServerView<'_>) -> bool {
        let Some(host) = Host::parse(domain) else { return false };
        if host == self.public.host {
            return false;
        }
        let endpoint = Host::of_url(server.host);
        let listed = || self.internal.iter().map(|internal| &internal.authority.host);
        if endpoint.as_ref() == Some(&host) || self.internal.iter().any(|internal| internal.matches_host(&host)) {
            return true;
        }
        // Other domains above a server are internal too, unless callers are below them.
        let host_of = |text: Option<&str>| text.and_then(Authority::parse).map(|authority| authority.host);
        let (sent, caller) = (host_of(server.sent_host), host_of(server.caller_host));
        let Some(name) = host.name() else { return sent == Some(host) && caller != sent };
        let is_callers =
            [Some(&self.public.host), caller.as_ref()].into_iter().flatten().any(|own| own.is_within(name));
        !is_callers && endpoint.iter().chain(&sent).chain(listed()).any(|own| own.is_within(name))
    }

    /// True if a browser that sent the request keeps a cookie for the public host: names of one label, and addresses, get none
    /// with a domain.
    fn takes_domain(&self, server: &ServerView<'_>) -> bool {
        let caller = server.caller_host.and_then(Authority::parse);
        self.public
            .host
            .name()
            .is_some_and(|name| name.contains('.') && caller.is_some_and(|caller| caller.host.is_within(name)))
    }

    /// Value of `Set-Cookie` for callers; `None` where it stays.
    fn cookie(&self, text: &str, server: &ServerView<'_>) -> Option<String> {
        let mut parts = text.split(';');
        let pair = parts.next()?;
        // Such a cookie has neither a domain nor a path of its own.
        let is_host_only =
            pair.trim_start_matches(is_blank).get(..7).is_some_and(|start| start.eq_ignore_ascii_case("__host-"));
        let (mut out, mut is_changed) = (pair.to_owned(), false);
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            let value = value.trim_matches(is_blank);
            let changed = if key.trim_matches(is_blank).eq_ignore_ascii_case("domain") {
                let is_internal = self.is_internal_domain(value.strip_prefix('.').unwrap_or(value), server);
                let keeps = !is_host_only && self.takes_domain(server);
                is_internal.then(|| if keeps { self.host.clone() } else { String::new() })
            } else if key.trim_matches(is_blank).eq_ignore_ascii_case("path")
                && value.starts_with('/')
                && value != "/"
                && !is_host_only
            {
                (server.caller_path)(value)
            } else {
                None
            };
            is_changed |= changed.is_some();
            match changed {
                Some(value) if value.is_empty() => {}
                Some(value) => out.extend([";", key, "=", &value]),
                None => out.extend([";", part]),
            }
        }
        is_changed.then_some(out)
    }
}

/// Path of an address, and its query and fragment.
fn split_path(text: &str) -> (&str, &str) {
    text.split_at_checked(text.find(['?', '#']).unwrap_or(text.len())).unwrap_or((text, ""))
}

/// True for the blanks that may stand around a part of a header.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}

/// Replaces the values of `name` for which `change` has another. Bytes outside ASCII are shown to it as one letter each.
fn change_values(headers: &mut dyn Headers, name: &HeaderName, change: impl Fn(&str) -> Option<String>) {
    let changed = |value: &HeaderValue| {
        let text: String = value.as_bytes().iter().copied().map(char::from).collect();
        let bytes: Option<Vec<u8>> = change(&text)?.chars().map(|c| u8::try_from(c).ok()).collect();
        HeaderValue::from_bytes(&bytes?).ok()
    };
    let values: Vec<(Option<HeaderValue>, HeaderValue)> =
        headers.get_all(name).into_iter().map(|value| (changed(value), value.clone())).collect();
    if values.iter().all(|(changed, _)| changed.is_none()) {
        return;
    }
    headers.remove(name);
    for (changed, kept) in values {
        headers.append(name, changed.unwrap_or(kept));
    }
}

impl Filter for Compiled {
    fn on_server_response(&self, headers: &mut dyn Headers, server: &ServerView<'_>) {
        for name in &ADDRESSES {
            change_values(headers, name, |text| self.address(text.trim_matches(is_blank), server));
        }
        change_values(headers, &header::REFRESH, |text| self.refresh(text, server));
        change_values(headers, &header::SET_COOKIE, |text| self.cookie(text, server));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use spillway_filter::Fields;
    use spillway_filter::testing::{self, FilterBuilder, server_view};

    use super::*;

    fn built(json: &serde_json::Value) -> Arc<dyn Filter> {
        FilterBuilder::new().build(&*factory(), json)
    }

    /// Value of a header after the filter.
    fn shown(filter: &Arc<dyn Filter>, name: &str, value: &str, server: &ServerView<'_>) -> String {
        let mut headers = testing::headers([(name, value)]);
        filter.on_server_response(&mut headers, server);
        headers[name].to_str().unwrap().to_owned()
    }

    /// Servers below `/openai`, which callers know as `/v1`.
    fn from_openai(path: &str) -> Option<String> {
        Some(format!("/v1{}", path.strip_prefix("/openai")?))
    }

    #[test]
    fn an_address_of_the_server_becomes_the_public_one_and_any_other_stays() {
        let filter = built(
            &serde_json::json!({"host": "api.example.com", "internal": ["app.internal", "*.svc.local", "db:5432"]}),
        );
        let server = ServerView { sent_host: Some("web.internal"), caller_host: Some("x.test:8080"), ..server_view() };
        let tls = ServerView { secure: true, sent_host: Some("web.internal:81"), ..server_view() };
        for (server, location, expected) in [
            (&server, "http://10.0.0.11:8000/a?b#c", "http://api.example.com/a?b#c"),
            (&tls, "http://10.0.0.11:8000/a", "https://api.example.com/a"),
            (&server, "https://10.0.0.11:8000", "http://api.example.com"),
            (&server, "//10.0.0.11:8000/a", "http://api.example.com/a"),
            (&tls, "http://10.0.0.11:8000?q", "https://api.example.com?q"),
            // The name that it was asked by, with the port of callers, of the scheme, or its own.
            (&server, "http://web.internal/a", "http://api.example.com/a"),
            (&server, "https://web.internal:443/a", "http://api.example.com/a"),
            (&server, "HTTP://WEB.Internal.:8000/a", "http://api.example.com/a"),
            (&tls, "http://web.internal:81/a", "https://api.example.com/a"),
            (&tls, "http://web.internal:/a", "http://web.internal:/a"),
            // Hosts of the file.
            (&server, "https://app.internal:9/a", "http://api.example.com/a"),
            (&server, "http://a.b.svc.local/", "http://api.example.com/"),
            (&server, "http://db:5432/", "http://api.example.com/"),
            // A user was for the server.
            (&tls, "http://root:secret@10.0.0.11:8000/a", "https://api.example.com/a"),
            // Other servers, ports and forms.
            (&server, "http://10.0.0.11/a", "http://10.0.0.11/a"),
            (&server, "http://10.0.0.12:8000/a", "http://10.0.0.12:8000/a"),
            (&server, "http://svc.local/", "http://svc.local/"),
            (&server, "http://evilsvc.local/", "http://evilsvc.local/"),
            (&server, "http://db/", "http://db/"),
            (&server, "https://other.test/a", "https://other.test/a"),
            (&server, "https://api.example.com/a", "https://api.example.com/a"),
            (&server, "/a", "/a"),
            (&server, "a/b", "a/b"),
            (&server, "?q", "?q"),
            (&server, "", ""),
            (&server, "app://web.internal/a", "app://web.internal/a"),
            (&server, "mailto:a@web.internal", "mailto:a@web.internal"),
        ] {
            assert_eq!(shown(&filter, "location", location, server), expected, "{location}");
            assert_eq!(shown(&filter, "content-location", location, server), expected, "{location}");
        }
    }

    #[test]
    fn what_has_two_readings_leads_nowhere_else_than_it_did() {
        let filter = built(&serde_json::json!({"host": "api.example.com"}));
        let server = ServerView { sent_host: Some("web.internal"), caller_path: &from_openai, ..server_view() };
        for location in [
            "//evil.test/openai/x",
            "https:///evil.test/",
            "http://web.internal@evil.test/",
            "http://web.internal:80@evil.test/",
            "http://evil.test\\@web.internal/",
            "http://web.internal\\@evil.test/",
            "http://web.internal.evil.test/",
            "http://evil.test#@web.internal/",
            "http://evil.test?@web.internal/",
            "http://evil.test/http://web.internal/",
            "http://web.internal:99999/",
            "http://web.internal:80:80/",
            "http://web.internal:+80/",
            "http://[::1/",
            "http://[web.internal]/",
            "http://web%2einternal/",
            "http://web.internal%00.evil.test/",
            "http://web..internal/",
            "http://",
            "//",
            "/openai\\evil.test",
            "\\\\web.internal/",
            "http:/web.internal/",
            "http:web.internal/",
            "http://web.internal/\t/evil.test",
            "/openai/\t/x",
        ] {
            assert_eq!(shown(&filter, "location", location, &server), location);
        }
    }

    #[test]
    fn paths_are_led_back_with_the_address_and_without_one() {
        let filter = built(&serde_json::json!({"host": "api.example.com"}));
        let server = ServerView { caller_path: &from_openai, secure: true, ..server_view() };
        for (location, expected) in [
            ("http://10.0.0.11:8000/openai/x?y", "https://api.example.com/v1/x?y"),
            ("http://api.example.com/openai/x", "https://api.example.com/v1/x"),
            ("http://10.0.0.11:8000/login", "https://api.example.com/login"),
            ("/openai/x#y", "/v1/x#y"),
            ("/login?next=/openai/x", "/login?next=/openai/x"),
            ("https://other.test/openai/x", "https://other.test/openai/x"),
        ] {
            assert_eq!(shown(&filter, "location", location, &server), expected, "{location}");
        }
        let stripped = |path: &str| Some(format!("/app{path}"));
        let server = ServerView { caller_path: &stripped, ..server_view() };
        assert_eq!(shown(&filter, "location", "http://10.0.0.11:8000", &server), "http://api.example.com/app/");
    }

    #[test]
    fn the_scheme_is_that_of_the_file_else_of_the_caller_and_never_a_step_back_from_tls() {
        let host = "api.example.com:8443";
        for (scheme, secure, location, expected) in [
            (None, false, "http://10.0.0.11:8000/", "http://api.example.com:8443/"),
            (None, true, "http://10.0.0.11:8000/", "https://api.example.com:8443/"),
            (None, false, "https://api.example.com:8443/", "https://api.example.com:8443/"),
            (Some("https"), false, "http://10.0.0.11:8000/", "https://api.example.com:8443/"),
            (Some("http"), true, "http://10.0.0.11:8000/", "http://api.example.com:8443/"),
        ] {
            let filter = built(&serde_json::json!({"host": host, "scheme": scheme}));
            let server = ServerView { secure, sent_host: Some(host), ..server_view() };
            assert_eq!(shown(&filter, "location", location, &server), expected, "{scheme:?} {secure}");
        }
        // A server that sends callers to TLS must not send them in a circle.
        let filter = built(&serde_json::json!({"host": "api.example.com"}));
        assert_eq!(
            shown(&filter, "location", "https://api.example.com/a", &server_view()),
            "https://api.example.com/a"
        );
        let secure = ServerView { secure: true, ..server_view() };
        for location in ["http://api.example.com/a", "http://api.example.com:8000/a", "https://api.example.com/a"] {
            assert_eq!(shown(&filter, "location", location, &secure), "https://api.example.com/a", "{location}");
        }
        let filter = built(&serde_json::json!({"host": "API.example.com.:443", "scheme": "https"}));
        assert_eq!(shown(&filter, "location", "http://10.0.0.11:8000/", &server_view()), "https://api.example.com/");
    }

    #[test]
    fn addresses_of_ipv6_are_compared_as_addresses() {
        let filter = built(&serde_json::json!({"host": "[2001:DB8::1]:8443", "internal": ["[fd00::2]"]}));
        let server = ServerView { host: "fd00::1", sent_host: None, caller_host: None, ..server_view() };
        for (location, expected) in [
            ("http://[fd00:0::1]:8000/a", "http://[2001:db8::1]:8443/a"),
            ("http://[FD00::2]/a", "http://[2001:db8::1]:8443/a"),
            ("http://[fd00::3]:8000/a", "http://[fd00::3]:8000/a"),
            ("http://fd00::1/a", "http://fd00::1/a"),
            ("http://[fd00::1%25eth0]:8000/a", "http://[fd00::1%25eth0]:8000/a"),
        ] {
            assert_eq!(shown(&filter, "location", location, &server), expected, "{location}");
        }
    }

    #[test]
    fn the_address_of_a_refresh_is_changed_in_every_form_that_browsers_read() {
        let filter = built(&serde_json::json!({"host": "api.example.com"}));
        for (value, expected) in [
            ("5; url=http://10.0.0.11:8000/a", "5; url=http://api.example.com/a"),
            ("0;URL='http://10.0.0.11:8000/a' ", "0;URL='http://api.example.com/a' "),
            ("0.5 , Url = \"http://10.0.0.11:8000/a\"; x", "0.5 , Url = \"http://api.example.com/a\"; x"),
            ("5 url=http://10.0.0.11:8000/a", "5 url=http://api.example.com/a"),
            ("5; http://10.0.0.11:8000/a ", "5; http://api.example.com/a "),
            ("5; url='http://10.0.0.11:8000/a", "5; url='http://api.example.com/a"),
            ("5", "5"),
            ("5;", "5;"),
            ("", ""),
            ("5; url=/a", "5; url=/a"),
            ("5; url=http://other.test/?http://10.0.0.11:8000/", "5; url=http://other.test/?http://10.0.0.11:8000/"),
        ] {
            assert_eq!(shown(&filter, "refresh", value, &server_view()), expected, "{value}");
        }
    }

    #[test]
    fn cookies_are_for_the_public_host_and_paths_of_callers() {
        let filter = built(&serde_json::json!({"host": "api.example.com", "internal": ["app.corp.test"]}));
        let server = ServerView { sent_host: Some("web.internal"), caller_path: &from_openai, ..server_view() };
        for (cookie, expected) in [
            ("a=b; Domain=web.internal; Path=/", "a=b; Domain=api.example.com; Path=/"),
            ("a=b; domain=.WEB.internal;Secure", "a=b; domain=api.example.com;Secure"),
            ("a=b; Domain=10.0.0.11", "a=b; Domain=api.example.com"),
            ("a=b; Domain=app.corp.test; Domain=web.internal", "a=b; Domain=api.example.com; Domain=api.example.com"),
            // A domain above an internal host, which no caller's browser takes.
            ("a=b; Domain=corp.test", "a=b; Domain=api.example.com"),
            // Domains of callers and of others.
            ("a=b; Domain=example.com", "a=b; Domain=example.com"),
            ("a=b; Domain=api.example.com", "a=b; Domain=api.example.com"),
            ("a=b; Domain=other.test", "a=b; Domain=other.test"),
            ("a=b; Domain=p.test", "a=b; Domain=p.test"),
            ("a=b; Domain", "a=b; Domain"),
            ("a=b; Domain=", "a=b; Domain="),
            ("Domain=web.internal", "Domain=web.internal"),
            ("__Host-a=b; Domain=web.internal; Path=/openai", "__Host-a=b; Path=/openai"),
            ("a=b; Path=/openai/x; HttpOnly", "a=b; Path=/v1/x; HttpOnly"),
            ("a=b; path=/other", "a=b; path=/other"),
            ("a=/openai; Path=openai", "a=/openai; Path=openai"),
        ] {
            assert_eq!(shown(&filter, "set-cookie", cookie, &server), expected, "{cookie}");
        }
        // A browser that came by another name, and public hosts that no cookie may name, get one for the host that they asked.
        let elsewhere = ServerView { caller_host: Some("www.test"), sent_host: Some("web.internal"), ..server_view() };
        assert_eq!(shown(&filter, "set-cookie", "a=b; Domain=web.internal; Path=/", &elsewhere), "a=b; Path=/");
        for host in ["localhost:8080", "192.0.2.1"] {
            let filter = built(&serde_json::json!({"host": host}));
            let server = ServerView { caller_host: Some(host), sent_host: Some("web.internal"), ..server_view() };
            assert_eq!(shown(&filter, "set-cookie", "a=b;Domain=web.internal", &server), "a=b", "{host}");
        }
    }

    #[test]
    fn several_cookies_keep_their_order_and_bytes_outside_ascii() {
        let filter = built(&serde_json::json!({"host": "api.example.com"}));
        let server = ServerView { sent_host: Some("web.internal"), ..server_view() };
        let cookies: [&[u8]; 4] =
            [b"a=1", b"b=\xfc\xa0; Domain=web.internal", b"c=\xc3\xa4", b"d=4; Domain=web.internal"];
        let mut headers = Fields::default();
        for cookie in cookies {
            headers.append(header::SET_COOKIE, HeaderValue::from_bytes(cookie).unwrap());
        }
        headers.append(header::LOCATION, HeaderValue::from_bytes(b"http://web.internal/m\xfc\xa0").unwrap());
        filter.on_server_response(&mut headers, &server);
        let expected: [&[u8]; 4] =
            [b"a=1", b"b=\xfc\xa0; Domain=api.example.com", b"c=\xc3\xa4", b"d=4; Domain=api.example.com"];
        assert_eq!(headers.get_all("set-cookie").iter().map(HeaderValue::as_bytes).collect::<Vec<_>>(), expected);
        assert_eq!(headers["location"].as_bytes(), b"http://api.example.com/m\xfc\xa0");
    }

    #[test]
    fn what_is_no_host_is_refused_with_its_place_and_what_to_write() {
        for (json, path, says) in [
            (serde_json::json!({"host": ""}), "host", "is not a host"),
            (serde_json::json!({"host": "https://api.example.com/x"}), "host", "write `api.example.com` and `scheme`"),
            (serde_json::json!({"host": "api.example.com/v1"}), "host", "write `api.example.com`"),
            (serde_json::json!({"host": "me@api.example.com"}), "host", "write `api.example.com`"),
            (serde_json::json!({"host": "::1"}), "host", "write `[::1]`"),
            (serde_json::json!({"host": "*.example.com"}), "host", "is not a host"),
            (serde_json::json!({"host": "api.example.com:"}), "host", "is not a host"),
            (serde_json::json!({"host": "api.example.com:0"}), "host", "is not a host"),
            (serde_json::json!({"host": "api.example.com:70000"}), "host", "is not a host"),
            (serde_json::json!({"host": "api.example.com\r\nx: y"}), "host", "is not a host"),
            (serde_json::json!({"host": "a", "internal": []}), "internal", "no host is listed"),
            (serde_json::json!({"host": "a", "internal": ["b", "http://c"]}), "internal.1", "write `c`"),
            (serde_json::json!({"host": "a", "internal": ["*.10.0.0.1"]}), "internal.0", "is not a host"),
            (serde_json::json!({"host": "a", "internal": ["*"]}), "internal.0", "is not a host"),
        ] {
            let errors = factory().check(&json);
            assert_eq!(errors.len(), 1, "{json}: {errors:?}");
            assert_eq!(errors[0].path.join("."), path, "{json}");
            assert!(errors[0].message.contains(says), "{json}: {}", errors[0].message);
        }
    }
}
