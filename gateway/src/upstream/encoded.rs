//! Compressed errors of servers that were shown a credential of the gateway's. A repeated credential cannot be masked in
//! compressed bytes. Such an answer is read whole, within bounds, decoded and sent without a coding. An error that cannot
//! be decoded loses its body and keeps its status; an answer that may be one becomes an error. Inputs are the head and the
//! bytes of an answer.

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderValue};
use spillway_filter::{ErrorKind, Refusal};

use super::masking::SentCredentials;
use crate::coding::{ACCEPTED, Coding};
use crate::exchange::Exchange;
use crate::message::{ResponseHead, without_coding};
use crate::protocol::render;

/// Most bytes of a compressed error that are read. Errors of APIs have some hundred bytes, pages of frameworks some tens of
/// KiB before they are compressed.
pub(super) const MAX_ENCODED: usize = 64 << 10;

/// Most bytes of a decoded error. With the bound on the compressed bytes it bounds the work of the decoder at any ratio.
const MAX_DECODED: usize = 256 << 10;

/// Code of an answer that must be read and cannot be.
const UNREADABLE: &str = "upstream_answer_unreadable";

/// Code of an error whose body was left out.
pub(super) const WITHHELD: &str = "upstream_error_withheld";

/// Decodes and masks the body of an answer, and adapts its head. A body that cannot be decoded is replaced by an error that
/// says so.
pub(super) fn decode_and_mask(
    coding: Coding,
    body: &[u8],
    shown: &SentCredentials,
    head: &mut ResponseHead,
    exchange: &mut Exchange,
) -> Bytes {
    without_coding(head);
    let decoded = if body.len() > MAX_ENCODED { None } else { coding.decode(body, MAX_DECODED).ok() };
    let body = match decoded {
        Some(plain) => match shown.mask() {
            Some(mask) => mask.whole(plain.into()),
            None => plain.into(),
        },
        None => {
            let is_error = head.status.is_client_error() || head.status.is_server_error();
            let refusal = if is_error { withheld(head.status) } else { unsearched() };
            exchange.outcome.error_code = Some(refusal.code);
            if head.status != refusal.status {
                head.status = refusal.status;
                head.set_reason(None);
            }
            let rendered = render(&refusal, exchange.dialect, exchange.request_id.to_str().unwrap_or_default());
            let of_the_body = [header::CONTENT_LANGUAGE, header::CONTENT_LOCATION, header::CONTENT_DISPOSITION];
            for name in of_the_body.iter().chain([&header::CONTENT_RANGE, &header::LAST_MODIFIED]) {
                head.remove_header(name);
            }
            let _ = head.insert_header(header::CONTENT_TYPE, rendered.content_type);
            rendered.body
        }
    };
    let _ = head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    body
}

fn withheld(status: StatusCode) -> Refusal {
    let message = format!(
        "the backend answered {}; its text is left out, because it is compressed in a way, or longer than, the gateway can \
         search for credentials (gzip, deflate, br or zstd, at most {} KiB, decoded {} KiB)",
        status.as_u16(),
        MAX_ENCODED >> 10,
        MAX_DECODED >> 10
    );
    Refusal::new(status, ErrorKind::Upstream, WITHHELD, message)
}

/// Refusal in place of an answer of a model API that may hold an error.
fn unsearched() -> Refusal {
    let message = format!(
        "the backend's answer is left out, because it is in a coding in which the gateway cannot search for credentials; it can \
         in one of {ACCEPTED}"
    );
    Refusal::new(StatusCode::BAD_GATEWAY, ErrorKind::Upstream, UNREADABLE, message)
}
