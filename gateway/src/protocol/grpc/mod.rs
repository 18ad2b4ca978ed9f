//! Errors of gRPC calls: a status in headers or trailers over HTTP 200, as clients of gRPC read it ("gRPC over HTTP2",
//! PROTOCOL-HTTP2.md of gRPC). The messages of a call are opaque here: they pass as any body does.

mod timeout;

use std::fmt::Write;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use spillway_config::path;
use spillway_filter::{ErrorKind, Fields, Refusal};

use super::dialect::{Dialect, RetryAdvice};
use super::whole_millis;

pub use timeout::{GRPC_TIMEOUT, read_timeout, write_timeout};

/// Status of a call; in a head it means that there is no body.
pub static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Text of an error, percent-encoded.
pub(super) static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// Codings of messages that the receiver of this header reads.
pub static GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// Time to the next try that a server asks for; negative for none.
pub static GRPC_RETRY_PUSHBACK_MS: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Content type of gRPC, to which `+proto` and the like may be added.
const CONTENT_TYPE: &str = "application/grpc";

/// Longest encoded message, in bytes. Clients take 8 KiB of headers and trailers by default, and other headers need room.
const MAX_MESSAGE: usize = 2 << 10;

/// Coding of metadata in bytes, which senders may pad.
const BINARY: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Dialect of gRPC calls, chosen by their content type and not by their path.
pub(super) struct Grpc;

/// True for the head of a gRPC call. gRPC-Web is none: its clients read a status from the body.
pub fn is_grpc(method: &Method, headers: &Fields) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    *method == Method::POST
        && kind.split_at_checked(CONTENT_TYPE.len()).is_some_and(|(name, rest)| {
            name.eq_ignore_ascii_case(CONTENT_TYPE.as_bytes())
                && matches!(rest.first(), None | Some(b'+' | b';' | b' ' | b'\t'))
        })
}

/// Status codes of gRPC that refusals have (`google.rpc.Code`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl Code {
    /// Code that stands for a refusal. Most follow gRPC's table for HTTP statuses; an invalid request is
    /// `INVALID_ARGUMENT` and a limit `RESOURCE_EXHAUSTED`, as gRPC servers say it themselves.
    fn of(refusal: &Refusal) -> Self {
        Self::of_status(refusal.status, refusal.kind, refusal.code == "model_not_found")
    }

    /// Code that stands for an error with a status of HTTP. With `is_missing` its 404 speaks of a thing and not of a method.
    fn of_status(status: StatusCode, kind: ErrorKind, is_missing: bool) -> Self {
        match (status.as_u16(), kind) {
            (401, _) => Self::Unauthenticated,
            (403, _) => Self::PermissionDenied,
            // A method that no route takes. A model that the request names is a thing that is not there.
            (404, _) if is_missing => Self::NotFound,
            (404 | 405 | 501, _) => Self::Unimplemented,
            (413 | 429 | 431, _) => Self::ResourceExhausted,
            (499, _) => Self::Cancelled,
            (502 | 503, _) => Self::Unavailable,
            (408 | 504, _) => Self::DeadlineExceeded,
            (400..500, ErrorKind::InvalidRequest) => Self::InvalidArgument,
            (500..600, _) => Self::Internal,
            _ => Self::Unknown,
        }
    }

    fn value(self) -> HeaderValue {
        // The discriminants are the numbers of the protocol.
        HeaderValue::from(self as u16)
    }
}

/// True for a header that gRPC can carry as metadata ("gRPC over HTTP2", Custom-Metadata). A server of gRPC answers a name with
/// other letters, text beyond printable ASCII, or bytes under `-bin` that are not in base64, with an error of the whole call.
pub(super) fn is_metadata(name: &HeaderName, value: &HeaderValue) -> bool {
    let is_letter = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.');
    // Servers are to split a list of values, and those of gRPC's core do not.
    let is_base64 = |value: &[u8]| BINARY.decode(value.trim_ascii()).is_ok();
    let is_text = |value: &[u8]| value.iter().all(|byte| matches!(byte, b' '..=b'~'));
    let is_value =
        if name.as_str().ends_with("-bin") { is_base64(value.as_bytes()) } else { is_text(value.as_bytes()) };
    is_value && name.as_str().bytes().all(|byte| is_letter(&byte))
}

/// HTTP status that a server would have sent for an error of its own, of the status of a gRPC call in the head or trailers of an
/// answer. `None` for success, for an error of the request, and where the time of the call was over, which its caller sets.
pub fn server_error(status: Option<&HeaderValue>) -> Option<u16> {
    match status?.as_bytes() {
        // UNKNOWN, INTERNAL, DATA_LOSS.
        b"2" | b"13" | b"15" => Some(500),
        b"8" => Some(429),
        b"14" => Some(503),
        _ => None,
    }
}

/// HTTP status that stands for the status of a gRPC call other than OK (the table of `google/rpc/code.proto`).
pub(super) fn status_of(code: &HeaderValue) -> StatusCode {
    let status = match code.as_bytes() {
        b"3" | b"9" | b"11" => 400,
        b"16" => 401,
        b"7" => 403,
        b"5" => 404,
        b"6" | b"10" => 409,
        b"8" => 429,
        b"1" => 499,
        b"12" => 501,
        b"14" => 503,
        b"4" => 504,
        _ => 500,
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Text of the error in a value of `grpc-message`; `None` for an empty one, or one that is no text.
pub(super) fn text_of(message: &HeaderValue) -> Option<String> {
    let text = message.to_str().ok().filter(|text| !text.is_empty())?;
    let bytes: Vec<u8> = path::decoded(text).into_iter().map(|(byte, _)| byte).collect();
    Some(String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect())
}

/// Status and message, for the head of an answer without messages or for trailers.
fn status_headers(code: Code, text: &str) -> [(HeaderName, HeaderValue); 2] {
    [(GRPC_STATUS.clone(), code.value()), (GRPC_MESSAGE.clone(), message(text))]
}

/// Status and message of the error of a server over HTTP, whose 404 says that a model is not there.
pub(super) fn error_of_server(status: StatusCode, kind: ErrorKind, text: &str) -> [(HeaderName, HeaderValue); 2] {
    status_headers(Code::of_status(status, kind, true), text)
}

/// Text of `grpc-message`: UTF-8 in which all but printable ASCII, and `%`, is percent-encoded. A longer text than
/// [`MAX_MESSAGE`] is cut between two characters.
fn message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len().min(MAX_MESSAGE));
    for character in text.chars() {
        let before = encoded.len();
        let mut utf8 = [0; 4];
        for byte in character.encode_utf8(&mut utf8).bytes() {
            if matches!(byte, b' '..=b'~') && byte != b'%' {
                encoded.push(char::from(byte));
            } else {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
        if encoded.len() > MAX_MESSAGE {
            encoded.truncate(before);
            break;
        }
    }
    HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static(""))
}

/// Value of `grpc-retry-pushback-ms`; `None` where clients follow their own policy. It holds an `int32`, and a negative one
/// tells a client not to retry by itself (gRFC A6).
fn pushback(retry: RetryAdvice) -> Option<HeaderValue> {
    match retry {
        RetryAdvice::None => None,
        RetryAdvice::After(wait) => Some(HeaderValue::from(i32::try_from(whole_millis(wait)).unwrap_or(i32::MAX))),
        RetryAdvice::NotByItself(_) => Some(HeaderValue::from_static("-1")),
    }
}

impl Dialect for Grpc {
    fn name(&self) -> &'static str {
        "grpc"
    }

    fn sent_status(&self, _refusal: &Refusal) -> StatusCode {
        StatusCode::OK
    }

    fn error(&self, _refusal: &Refusal, _request_id: &str) -> (HeaderValue, Bytes) {
        (HeaderValue::from_static(CONTENT_TYPE), Bytes::new())
    }

    fn accept_encoding_name(&self) -> HeaderName {
        GRPC_ACCEPT_ENCODING.clone()
    }

    fn error_headers(&self, refusal: &Refusal, retry: RetryAdvice) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::from(status_headers(Code::of(refusal), &refusal.message));
        headers.extend(pushback(retry).map(|value| (GRPC_RETRY_PUSHBACK_MS.clone(), value)));
        headers
    }

    fn error_trailers(&self, refusal: &Refusal) -> Option<HeaderMap> {
        Some(self.error_headers(refusal, RetryAdvice::None).into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::protocol::{GRPC, Rendered, render};

    fn refusal(status: u16, kind: ErrorKind, code: &'static str) -> Refusal {
        Refusal::new(StatusCode::from_u16(status).unwrap(), kind, code, "no 100%: né\n")
    }

    fn value<'r>(rendered: &'r Rendered, name: &str) -> Option<&'r str> {
        rendered.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_str().unwrap())
    }

    #[test]
    fn a_call_is_known_by_its_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/GRPC+json", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpcx", false),
            ("application/json", false),
            ("", false),
        ] {
            let headers = [(header::CONTENT_TYPE, HeaderValue::from_static(kind))].into_iter().collect();
            assert_eq!(is_grpc(&Method::POST, &headers), expected, "{kind}");
            assert!(!is_grpc(&Method::GET, &headers), "{kind}");
        }
        assert!(!is_grpc(&Method::POST, &Fields::default()));
    }

    #[test]
    fn every_refusal_has_the_code_that_a_server_of_grpc_would_send() {
        for (status, kind, code, expected) in [
            (400, ErrorKind::InvalidRequest, "x", "3"),
            (401, ErrorKind::Authentication, "x", "16"),
            (403, ErrorKind::Permission, "x", "7"),
            (404, ErrorKind::NotFound, "no_route", "12"),
            (404, ErrorKind::NotFound, "model_not_found", "5"),
            (405, ErrorKind::InvalidRequest, "x", "12"),
            (408, ErrorKind::Timeout, "x", "4"),
            (413, ErrorKind::InvalidRequest, "x", "8"),
            (421, ErrorKind::InvalidRequest, "x", "3"),
            (429, ErrorKind::RateLimited, "x", "8"),
            (429, ErrorKind::Overloaded, "x", "8"),
            (431, ErrorKind::InvalidRequest, "x", "8"),
            (451, ErrorKind::Permission, "x", "2"),
            (499, ErrorKind::Internal, "x", "1"),
            (500, ErrorKind::Internal, "x", "13"),
            (501, ErrorKind::InvalidRequest, "x", "12"),
            (502, ErrorKind::Upstream, "x", "14"),
            (503, ErrorKind::Overloaded, "x", "14"),
            (504, ErrorKind::Timeout, "x", "4"),
            (508, ErrorKind::Internal, "x", "13"),
        ] {
            let refusal = refusal(status, kind, code);
            let rendered = render(&refusal, GRPC, "id");
            assert_eq!((rendered.status, rendered.body.len()), (StatusCode::OK, 0), "{status} {code}");
            assert_eq!(rendered.content_type, "application/grpc");
            assert_eq!(value(&rendered, "grpc-status"), Some(expected), "{status} {code}");
            assert_eq!(value(&rendered, "grpc-message"), Some("no 100%25: n%C3%A9%0A"));
            let trailers = GRPC.error_trailers(&refusal).unwrap();
            assert_eq!(trailers["grpc-status"], expected);
            assert_eq!((trailers["grpc-message"].as_bytes(), trailers.len()), (&b"no 100%25: n%C3%A9%0A"[..], 2));
        }
    }

    #[test]
    fn only_what_grpc_defines_is_metadata() {
        for (name, value, expected) in [
            ("x-text", "any text, printable ~", true),
            ("x-text", "", true),
            ("x-text", "né", false),
            ("x-text", "a\tb", false),
            ("x_text.1", "a", true),
            ("x!text", "a", false),
            ("x-bin", "aGk=", true),
            ("x-bin", "aGk", true),
            ("x-bin", "aGk, aGk=", false),
            ("x-bin", "", true),
            ("x-bin", "hello", false),
            ("x-bin", "a b!", false),
            ("x-bin", "_-_-", false),
        ] {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            assert_eq!(is_metadata(&HeaderName::from_static(name), &value), expected, "{name}: {value:?}");
        }
    }

    #[test]
    fn a_retry_is_advised_as_to_other_clients() {
        for (status, kind, code, wait, expected) in [
            (429, ErrorKind::RateLimited, "x", Some(9_000_000), Some("9000")),
            (429, ErrorKind::RateLimited, "insufficient_quota", Some(9_000_000), Some("-1")),
            (503, ErrorKind::Overloaded, "x", None, Some("1000")),
            (503, ErrorKind::Overloaded, "x", Some(1_500_001), Some("1501")),
            (503, ErrorKind::Overloaded, "x", Some(9_000_000), Some("-1")),
            (429, ErrorKind::RateLimited, "x", Some(u64::MAX), Some("2147483647")),
            (401, ErrorKind::Authentication, "x", None, None),
            (504, ErrorKind::Timeout, "x", None, None),
        ] {
            let mut refusal = refusal(status, kind, code);
            refusal.retry_after = wait.map(Duration::from_micros);
            let rendered = render(&refusal, GRPC, "id");
            assert_eq!(value(&rendered, "grpc-retry-pushback-ms"), expected, "{status} {wait:?}");
            assert_eq!(value(&rendered, "retry-after").is_some(), expected.is_some(), "{status} {wait:?}");
        }
    }

    #[test]
    fn only_errors_of_servers_have_a_status_of_http() {
        let of = |status: &'static str| server_error(Some(&HeaderValue::from_static(status)));
        let statuses: Vec<_> = (0..=17)
            .filter_map(|code| {
                Some((
                    code,
                    of([
                        "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16",
                        "17",
                    ][code])?,
                ))
            })
            .collect();
        assert_eq!(statuses, [(2, 500), (8, 429), (13, 500), (14, 503), (15, 500)]);
        assert_eq!((of(""), of("x"), of(" 14"), server_error(None)), (None, None, None, None));
    }

    #[test]
    fn a_long_message_is_cut_between_two_characters() {
        let long = message(&"é".repeat(2000));
        let text = long.to_str().unwrap();
        assert!(text.len() <= MAX_MESSAGE && text.len() > MAX_MESSAGE - 6, "{}", text.len());
        assert_eq!(text.replace("%C3%A9", ""), "");
        assert_eq!(message("").as_bytes(), b"");
    }
}
