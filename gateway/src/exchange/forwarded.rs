//! Address of the caller behind proxies that name it in a header. The header is read from its end: each entry was written by
//! the hop behind it. The first entry that is no trusted proxy is the caller, and the entries before it are only claims.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue, header};
use spillway_config::schema::{ClientAddress, ClientAddressHeader};
use spillway_config::values::Network;

use spillway_filter::Fields;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Origin of a request, as far as it is known by trusted hops.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Address of the caller.
    pub client: IpAddr,
    /// Address of the caller as a header value.
    pub text: HeaderValue,
    /// True if the caller used TLS, to the gateway or to the trusted proxy before it.
    pub secure: bool,
}

/// Writes an address as a header value.
pub(super) fn address_value(address: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&address.to_string()).unwrap_or(HeaderValue::from_static("unknown"))
}

/// Proxies whose headers name the caller, and the header that they write.
#[derive(Debug)]
pub struct TrustedProxies {
    networks: Vec<Network>,
    header: ClientAddressHeader,
}

impl TrustedProxies {
    /// Compiles the trusted proxies of a listener.
    pub fn new(rule: &ClientAddress) -> Self {
        Self { networks: rule.trusted_proxies.clone(), header: rule.header }
    }

    /// True if an address is that of a trusted proxy.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }

    /// Returns the address of the caller behind `peer`, the other end of the connection.
    pub(super) fn caller(&self, peer: IpAddr, headers: &Fields) -> IpAddr {
        let name = match self.header {
            ClientAddressHeader::XForwardedFor => &X_FORWARDED_FOR,
            ClientAddressHeader::Forwarded => &header::FORWARDED,
        };
        let mut caller = peer;
        for value in headers.get_all(name).iter().rev() {
            let Ok(text) = value.to_str() else { return caller };
            for entry in text.rsplit(',') {
                if !self.contains(caller) {
                    return caller;
                }
                let entry = match self.header {
                    ClientAddressHeader::XForwardedFor => Some(entry.trim()),
                    ClientAddressHeader::Forwarded => parameter(entry, "for"),
                };
                // `unknown`, a hidden name or nonsense: nothing before it can be attributed.
                let Some(address) = entry.and_then(node_address) else { return caller };
                caller = address;
            }
        }
        caller
    }

    /// True if the nearest proxy reports that its client used TLS; `None` where it does not report the scheme.
    pub(super) fn secure(&self, headers: &Fields) -> Option<bool> {
        let name = match self.header {
            ClientAddressHeader::XForwardedFor => &X_FORWARDED_PROTO,
            ClientAddressHeader::Forwarded => &header::FORWARDED,
        };
        let last = headers.get_all(name).iter().next_back()?.to_str().ok()?.rsplit(',').next()?;
        let scheme = match self.header {
            ClientAddressHeader::XForwardedFor => Some(last.trim()),
            ClientAddressHeader::Forwarded => parameter(last, "proto"),
        }?;
        if scheme.eq_ignore_ascii_case("https") {
            Some(true)
        } else if scheme.eq_ignore_ascii_case("http") {
            Some(false)
        } else {
            None
        }
    }
}

/// Returns a parameter of one element of `Forwarded` (RFC 7239, section 4), without quotes. A comma or semicolon inside quotes
/// ends the value too: no address or scheme has either, so a value cut there is not valid.
fn parameter<'h>(element: &'h str, name: &str) -> Option<&'h str> {
    element.split(';').find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        key.trim_end().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

/// Parses an address with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`,
/// `[2001:db8::1]:80`.
fn node_address(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches('"');
    let host = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None => match text.split_once(':') {
            Some((host, port)) if !port.contains(':') => host,
            _ => text,
        },
    };
    host.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trusted(header: &str) -> TrustedProxies {
        let rule = serde_json::json!({"trustedProxies": ["10.0.0.0/8", "2001:db8::/32"], "header": header});
        TrustedProxies::new(&serde_json::from_value(rule).unwrap())
    }

    fn headers(name: &'static str, values: &[&str]) -> Fields {
        let mut headers = Fields::default();
        for value in values {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn the_header_is_walked_from_its_end_through_trusted_proxies_only() {
        let proxies = trusted("x-forwarded-for");
        for (peer, values, caller) in [
            ("10.0.0.1", &["203.0.113.7"][..], "203.0.113.7"),
            ("10.0.0.1", &["1.1.1.1, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
            ("10.0.0.1", &["1.1.1.1", "203.0.113.7 ,10.0.0.2"], "203.0.113.7"),
            ("10.0.0.1", &["203.0.113.7", "10.0.0.2"], "203.0.113.7"),
            ("192.0.2.1", &["203.0.113.7"], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["203.0.113.7, unknown, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.7:4711"], "203.0.113.7"),
            ("2001:db8::1", &["2001:dead::7"], "2001:dead::7"),
            ("2001:db8::1", &["[2001:dead::7]:443"], "2001:dead::7"),
            ("::ffff:10.0.0.1", &["::ffff:203.0.113.7"], "203.0.113.7"),
        ] {
            let found = proxies.caller(peer.parse().unwrap(), &headers("x-forwarded-for", values));
            assert_eq!(found.to_string(), caller, "{peer} {values:?}");
        }
    }

    #[test]
    fn the_standard_header_is_read_too() {
        let proxies = trusted("forwarded");
        for (value, caller, secure) in [
            ("for=203.0.113.7;proto=https", "203.0.113.7", Some(true)),
            ("for=1.1.1.1, For=\"203.0.113.7:80\" ; Proto=HTTP;by=10.0.0.1", "203.0.113.7", Some(false)),
            ("for=\"[2001:dead::7]:4711\"", "2001:dead::7", None),
            ("for=_hidden;proto=wss", "10.0.0.1", None),
            ("by=203.0.113.7", "10.0.0.1", None),
        ] {
            let headers = headers("forwarded", &[value]);
            assert_eq!(proxies.caller("10.0.0.1".parse().unwrap(), &headers).to_string(), caller, "{value}");
            assert_eq!(proxies.secure(&headers), secure, "{value}");
        }
        assert_eq!(trusted("x-forwarded-for").secure(&headers("x-forwarded-proto", &["http, https"])), Some(true));
    }

    proptest! {
        /// The caller is the address that the trusted proxy saw, whatever entries the caller wrote before it.
        #[test]
        fn nobody_can_speak_for_another(claims in "[ -~]{0,60}", seen in any::<[u8; 4]>()) {
            let seen = IpAddr::from(seen);
            let proxies = trusted("x-forwarded-for");
            prop_assume!(!proxies.contains(seen));
            let headers = headers("x-forwarded-for", &[&format!("{claims}, {seen}")]);
            prop_assert_eq!(proxies.caller("10.0.0.1".parse().unwrap(), &headers), seen);
        }
    }
}
