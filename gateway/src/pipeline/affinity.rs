//! Affinity of a request to an endpoint: by the value of a header or cookie, the client, or the beginning of the prompt.

use http::header;
use spillway_config::schema::HashOn;

use crate::balancing::hash_key;
use crate::downstream::ClientSession;
use crate::exchange::{Exchange, RequestBody};
use crate::off_loop::INLINE;
use crate::protocol::prompt_prefix;
use crate::topology::Backend;

/// The key of a request at a backend; `None` where the backend asks for none, or the request has none.
pub(super) fn key(backend: &Backend, session: &ClientSession, exchange: &Exchange) -> Option<u64> {
    match backend.hash_on.as_ref()? {
        HashOn::Header(name) => session.get_header(name.as_str()).map(|value| hash_key(value.as_bytes())),
        HashOn::Cookie(name) => {
            let headers = session.req_header().headers.get_all(header::COOKIE);
            headers.iter().find_map(|value| cookie(value.as_bytes(), name)).map(hash_key)
        }
        HashOn::ClientAddress(_) => Some(hash_key(exchange.client_text.as_bytes())),
        HashOn::PromptPrefix(size) => {
            let RequestBody::Held(held) = &exchange.body else { return None };
            // What comes before the prompt is read with every choice of an endpoint.
            let begin = held.bytes.get(..INLINE).unwrap_or(&held.bytes);
            let prefix = prompt_prefix(begin, usize::try_from(size.0).unwrap_or(usize::MAX));
            (!prefix.is_empty()).then(|| hash_key(&prefix))
        }
    }
}

/// The value of a cookie (RFC 6265, 4.2.1).
fn cookie<'h>(header: &'h [u8], name: &str) -> Option<&'h [u8]> {
    header.split(|byte| *byte == b';').find_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (key, value) = pair.split_at_checked(at)?;
        (key.trim_ascii() == name.as_bytes()).then(|| value.get(1..).unwrap_or_default().trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_by_its_whole_name() {
        let header = b"asid=1; sid=2=3 ;sid2=4; flag; =5";
        assert_eq!(cookie(header, "sid"), Some(&b"2=3"[..]));
        assert_eq!(cookie(header, "flag"), None);
        assert_eq!(cookie(b"", "sid"), None);
    }
}
