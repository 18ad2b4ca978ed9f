//! The opening handshake of an upgrade, as a client asks for it and a server accepts it (RFC 9110, 7.8; RFC 6455, 4). Nothing
//! here reads or writes; the inputs are heads.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderName, HeaderValue};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use spillway_filter::Fields;
use tokio::time::Instant;

use crate::limits::TokenRules;

/// Name of the protocol WebSocket in `Upgrade`.
pub const WEBSOCKET: &str = "websocket";
/// Nonce of a client.
pub static SEC_WEBSOCKET_KEY: HeaderName = header::SEC_WEBSOCKET_KEY;
/// Proof of a server that it has read the nonce.
pub static SEC_WEBSOCKET_ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;
/// Version of WebSocket.
static SEC_WEBSOCKET_VERSION: HeaderName = header::SEC_WEBSOCKET_VERSION;
/// Subprotocols that a client offers, or the one that its server picks.
pub static SEC_WEBSOCKET_PROTOCOL: HeaderName = header::SEC_WEBSOCKET_PROTOCOL;
/// Extensions that a client offers, or those that its server picks.
pub static SEC_WEBSOCKET_EXTENSIONS: HeaderName = header::SEC_WEBSOCKET_EXTENSIONS;

/// The only version of WebSocket (RFC 6455, 4.1).
const VERSION: &[u8] = b"13";
/// Bytes of a nonce.
const NONCE: usize = 16;
/// Text that a server hashes behind the nonce (RFC 6455, 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Protocol of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpgradeProtocol {
    /// WebSocket, whose frames are followed.
    WebSocket {
        /// Nonce for the server.
        key: HeaderValue,
    },
    /// Another protocol that the route names; its bytes pass as they are.
    Other(Box<str>),
}

/// An upgrade that a client asks for and its route passes.
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// Protocol.
    pub protocol: UpgradeProtocol,
    /// Address of the listener's side of the client's connection.
    pub listener: SocketAddr,
    /// Expiry of the client's certificate, at which the socket ends.
    pub certificate_ends: Option<Instant>,
    /// Rules that count the tokens of the socket.
    pub rules: Arc<TokenRules>,
}

/// Fault of an opening handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The client speaks another version.
    #[error("`Sec-WebSocket-Version` must be 13, once")]
    Version,
    /// The nonce is missing, or is none.
    #[error("`Sec-WebSocket-Key` must be 16 bytes in Base64, once")]
    Key,
    /// The server switched to a protocol that nobody asked for.
    #[error("101 for another protocol than the one asked for")]
    Protocol,
    /// The server did not hash the nonce of this request.
    #[error("101 with a wrong `Sec-WebSocket-Accept`")]
    Accept,
    /// The server picked a subprotocol that the client had not offered.
    #[error("101 with a `Sec-WebSocket-Protocol` that was not offered")]
    Subprotocol,
    /// The server picked an extension that the client had not offered.
    #[error("101 with a `Sec-WebSocket-Extensions` that was not offered")]
    Extension,
}

impl UpgradeProtocol {
    /// True for WebSocket.
    pub fn is_websocket(&self) -> bool {
        matches!(self, Self::WebSocket { .. })
    }
}

impl Upgrade {
    /// Name of the protocol in `Upgrade`.
    pub fn name(&self) -> &str {
        match &self.protocol {
            UpgradeProtocol::WebSocket { .. } => WEBSOCKET,
            UpgradeProtocol::Other(name) => name,
        }
    }

    /// True for WebSocket.
    pub fn is_websocket(&self) -> bool {
        self.protocol.is_websocket()
    }

    /// Checks the head of a 101 against that of the request, as it went to the server: exactly the protocol that was asked
    /// for and, of WebSocket, the proof and choices that a client must verify (RFC 6455, 4.1).
    pub fn check_accepted(&self, request: &Fields, answer: &Fields) -> Result<(), HandshakeError> {
        let mut protocols = words(answer, &header::UPGRADE);
        let is_same = protocols.next().is_some_and(|word| word.eq_ignore_ascii_case(self.name().as_bytes()));
        if !is_same || protocols.next().is_some() || !has_token(answer, &header::CONNECTION, "upgrade") {
            return Err(HandshakeError::Protocol);
        }
        let UpgradeProtocol::WebSocket { key } = &self.protocol else { return Ok(()) };
        let accept = once(answer, &SEC_WEBSOCKET_ACCEPT).ok_or(HandshakeError::Accept)?;
        if accept.as_bytes() != accept_of(key.as_bytes()).as_bytes() {
            return Err(HandshakeError::Accept);
        }
        let mut picked = words(answer, &SEC_WEBSOCKET_PROTOCOL);
        if let Some(subprotocol) = picked.next()
            && (picked.next().is_some() || !words(request, &SEC_WEBSOCKET_PROTOCOL).any(|word| word == subprotocol))
        {
            return Err(HandshakeError::Subprotocol);
        }
        let name = |extension: &[u8]| -> Vec<u8> {
            let name = extension.split(|byte| *byte == b';').next().unwrap_or_default();
            name.trim_ascii().to_ascii_lowercase()
        };
        let is_offered =
            |picked: &[u8]| words(request, &SEC_WEBSOCKET_EXTENSIONS).any(|word| name(word) == name(picked));
        if words(answer, &SEC_WEBSOCKET_EXTENSIONS).all(is_offered) { Ok(()) } else { Err(HandshakeError::Extension) }
    }
}

/// Checks the opening handshake of a client of WebSocket, and returns its nonce (RFC 6455, 4.2.1).
pub fn check_opening(headers: &Fields) -> Result<HeaderValue, HandshakeError> {
    if once(headers, &SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != VERSION) {
        return Err(HandshakeError::Version);
    }
    let key = once(headers, &SEC_WEBSOCKET_KEY).ok_or(HandshakeError::Key)?;
    match STANDARD.decode(key.as_bytes()) {
        Ok(nonce) if nonce.len() == NONCE => Ok(key.clone()),
        _ => Err(HandshakeError::Key),
    }
}

/// Nonce of a handshake that the gateway begins.
pub fn new_key() -> HeaderValue {
    let nonce: [u8; NONCE] = rand::random();
    // Base64 is always a value of a header.
    HeaderValue::from_str(&STANDARD.encode(nonce)).unwrap_or(HeaderValue::from_static(""))
}

/// Protocols of a request that asks to be upgraded, in its order; none for one that does not. `Upgrade` counts only where
/// `Connection` names it (RFC 9110, 7.8).
pub fn asks_to_upgrade(headers: &Fields) -> impl Iterator<Item = &[u8]> {
    let is_named = headers.contains_key(header::UPGRADE) && has_token(headers, &header::CONNECTION, "upgrade");
    words(headers, &header::UPGRADE).filter(move |_| is_named)
}

/// True if a list has this word, whatever its case.
fn has_token(headers: &Fields, name: &'static HeaderName, token: &str) -> bool {
    words(headers, name).any(|word| word.eq_ignore_ascii_case(token.as_bytes()))
}

/// Words of a header that is a list.
fn words<'h>(headers: &'h Fields, name: &'static HeaderName) -> impl Iterator<Item = &'h [u8]> {
    let words = headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    words.map(<[u8]>::trim_ascii).filter(|word| !word.is_empty())
}

/// Value of a header that is there once.
fn once<'h>(headers: &'h Fields, name: &'static HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Proof of a server that it has read the nonce `key`.
fn accept_of(key: &[u8]) -> String {
    let mut text = key.to_vec();
    text.extend_from_slice(GUID);
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&'static str, &'static str)]) -> Fields {
        Fields::from_iter(
            list.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))),
        )
    }

    /// Nonce and proof of RFC 6455, 1.3.
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    #[test]
    fn a_client_opens_with_one_version_and_one_nonce() {
        let version = ("sec-websocket-version", "13");
        for (headers, expected) in [
            (&[version, ("sec-websocket-key", KEY)][..], None),
            (&[("sec-websocket-version", "8"), ("sec-websocket-key", KEY)], Some(HandshakeError::Version)),
            (&[version, version, ("sec-websocket-key", KEY)], Some(HandshakeError::Version)),
            (&[("sec-websocket-key", KEY)], Some(HandshakeError::Version)),
            (&[version], Some(HandshakeError::Key)),
            (&[version, ("sec-websocket-key", KEY), ("sec-websocket-key", KEY)], Some(HandshakeError::Key)),
            (&[version, ("sec-websocket-key", "c2hvcnQ=")], Some(HandshakeError::Key)),
            (&[version, ("sec-websocket-key", "not base64 at all!!!====")], Some(HandshakeError::Key)),
        ] {
            assert_eq!(check_opening(&fields(headers)).err(), expected, "{headers:?}");
        }
        assert_eq!(check_opening(&fields(&[version])).err(), Some(HandshakeError::Key));
        assert!(STANDARD.decode(new_key().as_bytes()).unwrap().len() == NONCE && new_key() != new_key());
    }

    #[test]
    fn an_upgrade_counts_only_where_the_connection_names_it() {
        for (headers, expected) in [
            (&[("upgrade", "websocket"), ("connection", "Upgrade")][..], &["websocket"][..]),
            (&[("upgrade", "h2c, websocket"), ("connection", "keep-alive, upgrade")], &["h2c", "websocket"]),
            (&[("upgrade", "websocket")], &[]),
            (&[("upgrade", "websocket"), ("connection", "keep-alive")], &[]),
            (&[("connection", "upgrade")], &[]),
        ] {
            let headers = fields(headers);
            let asked: Vec<_> = asks_to_upgrade(&headers).map(|word| std::str::from_utf8(word).unwrap()).collect();
            assert_eq!(asked, expected, "{headers:?}");
        }
    }

    #[test]
    fn a_server_accepts_what_was_asked_and_proves_it() {
        let request = fields(&[
            ("sec-websocket-protocol", "chat, superchat"),
            ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits"),
        ]);
        let key = HeaderValue::from_static(KEY);
        let upgrade = Upgrade {
            protocol: UpgradeProtocol::WebSocket { key },
            listener: SocketAddr::from(([127, 0, 0, 1], 1)),
            certificate_ends: None,
            rules: Arc::default(),
        };
        let good = [("upgrade", "WebSocket"), ("connection", "Upgrade"), ("sec-websocket-accept", ACCEPT)];
        let check = |further: &[(&'static str, &'static str)], good: &[(&'static str, &'static str)]| {
            upgrade.check_accepted(&request, &fields(&[good, further].concat())).err()
        };
        for (further, expected) in [
            (&[][..], None),
            (&[("sec-websocket-protocol", "chat")], None),
            (&[("sec-websocket-protocol", "other")], Some(HandshakeError::Subprotocol)),
            (&[("sec-websocket-protocol", "chat, superchat")], Some(HandshakeError::Subprotocol)),
            (&[("sec-websocket-extensions", "Permessage-Deflate; server_no_context_takeover")], None),
            (&[("sec-websocket-extensions", "x-own")], Some(HandshakeError::Extension)),
            (&[("sec-websocket-accept", ACCEPT)], Some(HandshakeError::Accept)),
            (&[("upgrade", "h2c")], Some(HandshakeError::Protocol)),
        ] {
            assert_eq!(check(further, &good), expected, "{further:?}");
        }
        let wrong = ("sec-websocket-accept", "AAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        assert_eq!(check(&[], &[good[0], good[1], wrong]), Some(HandshakeError::Accept));
        assert_eq!(check(&[], &good[..2]), Some(HandshakeError::Accept));
        assert_eq!(check(&[], &good[1..]), Some(HandshakeError::Protocol));
        assert_eq!(check(&[], &[good[0], good[2]]), Some(HandshakeError::Protocol), "no `Connection: upgrade`");
        assert_eq!(check(&[], &[("upgrade", "h2c"), good[1], good[2]]), Some(HandshakeError::Protocol));
    }
}
