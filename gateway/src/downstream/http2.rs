//! Requests over HTTP/2 (RFC 9113), each on a stream of a client's connection. The crate `h2` frames the streams; the task of
//! the connection drives them all.
//!
//! A read that is dropped loses nothing: what was read is returned at once. A write that is dropped may have written a part of
//! its part.

use std::future::poll_fn;
use std::io;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use pingora::ErrorType::{H2Error, ReadError, WriteError};
use pingora::protocols::http::authority::{RawTargetAuthority, raw_target_authority};
use pingora::{Error, OrErr};
use spillway_filter::Fields;

use super::tunnel::ClientTunnel;
use crate::clock;
use crate::framing::{MAX_FIELDS, Violation};
use crate::message::{InvalidHeader, RequestHead, ResponseHead};
use crate::tunnel::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, WEBSOCKET, new_key};
use crate::wire::{remove_fields_of_connection, send_part};

/// Request over HTTP/2, and its answer.
pub struct Http2Session {
    head: RequestHead,
    /// True if the request has no body.
    is_empty: bool,
    body: RecvStream,
    /// Bytes of the body that were read.
    body_bytes: u64,
    trailers: Option<HeaderMap>,
    respond: SendResponse<Bytes>,
    /// Body of the answer, once its head was written.
    answer: Option<SendStream<Bytes>>,
    /// Status of the answer, or of the last early one, once its head was written.
    written: Option<StatusCode>,
    /// True once the end of the answer was written.
    has_ended: bool,
    /// True for an extended CONNECT (RFC 8441), whose head has the form of an upgrade of HTTP/1.1.
    is_extended_connect: bool,
}

impl Http2Session {
    /// Begins a request, whose head gets the form of HTTP/1.1. A malformed one is answered and gives `None`
    /// (RFC 9113, 8.1.1).
    pub fn begin(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Option<Self> {
        let (parts, body) = request.into_parts();
        let protocol = parts.extensions.get::<Protocol>().cloned();
        let mut head = RequestHead::from(parts);
        if let Some(protocol) = &protocol
            && to_upgrade(&mut head, protocol).is_err()
        {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return None;
        }
        let Some(length) = announced(&head.headers).filter(|_| has_target_of_text(&head)) else {
            respond.send_reset(Reason::PROTOCOL_ERROR);
            return None;
        };
        if !has_one_authority(&head) {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::BAD_REQUEST;
            let _ = respond.send_response(response, true);
            return None;
        }
        to_common_form(&mut head);
        // What follows an extended CONNECT is no body.
        let is_empty = protocol.is_some() || body.is_end_stream() || length == Length::Zero;
        Some(Self {
            head,
            is_empty,
            body,
            body_bytes: 0,
            trailers: None,
            respond,
            answer: None,
            written: None,
            has_ended: false,
            is_extended_connect: protocol.is_some(),
        })
    }

    /// True for an extended CONNECT.
    pub fn is_extended_connect(&self) -> bool {
        self.is_extended_connect
    }

    /// Accepts an extended CONNECT with the head of a server's 101.
    pub fn open_tunnel(&mut self, mut head: ResponseHead) -> pingora::Result<()> {
        if !std::mem::take(&mut self.is_extended_connect) {
            return Error::e_explain(WriteError, "a tunnel that was not asked for");
        }
        head.status = StatusCode::OK;
        head.set_reason(None);
        head.remove_header(&SEC_WEBSOCKET_ACCEPT);
        self.write_head(head, false)
    }

    /// Byte stream of a tunnel; `None` before its answer.
    pub fn tunnel(&mut self) -> Option<ClientTunnel<'_>> {
        let to = self.answer.as_mut()?;
        Some(ClientTunnel::Http2 { early: Bytes::new(), from: &mut self.body, to })
    }

    /// Head of the request.
    pub fn head(&self) -> &RequestHead {
        &self.head
    }

    /// Head of the request, to be changed.
    pub fn head_mut(&mut self) -> &mut RequestHead {
        &mut self.head
    }

    /// True if the request has no body.
    pub fn is_body_empty(&self) -> bool {
        self.is_empty
    }

    /// True once the body was read to its end.
    pub fn is_body_done(&self) -> bool {
        self.is_empty || self.body.is_end_stream()
    }

    /// Bytes of the body that were read.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Reads the next part of the body; `None` at its end.
    pub async fn read_body(&mut self) -> pingora::Result<Option<Bytes>> {
        let Some(part) = self.body.data().await else {
            // They have come with the end of the body.
            if let Some(trailers) = self.body.trailers().await.or_err(ReadError, "the trailers of a request")? {
                if trailers.len() > usize::from(MAX_FIELDS) {
                    let violation = io::Error::from(Violation::TrailersTooLong);
                    return Error::e_because(ReadError, "the trailers of a request", violation);
                }
                self.trailers = Some(trailers);
            }
            return Ok(None);
        };
        let part = part.or_err(ReadError, "the body of a request")?;
        self.body_bytes = self.body_bytes.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
        let _ = self.body.flow_control().release_capacity(part.len());
        Ok(Some(part))
    }

    /// Trailers of a request whose body was read to its end.
    pub fn trailers(&self) -> Option<HeaderMap> {
        self.trailers.clone()
    }

    /// Waits until the client leaves: that is an error.
    pub async fn left(&mut self) -> pingora::Error {
        let reset = match &mut self.answer {
            Some(answer) => poll_fn(|cx| answer.poll_reset(cx)).await,
            None => poll_fn(|cx| self.respond.poll_reset(cx)).await,
        };
        *match reset {
            Ok(reason) => Error::explain(H2Error, format!("the client has reset the stream: {reason}")),
            Err(e) => Error::because(H2Error, "the connection of the client", e),
        }
    }

    /// Status of the answer, or of the last early one, once its head was written.
    pub fn written(&self) -> Option<StatusCode> {
        self.written
    }

    /// Writes the head of an early answer (1xx), or of the answer, which is the whole answer where it `ends`.
    pub fn write_head(&mut self, head: ResponseHead, ends: bool) -> pingora::Result<()> {
        if self.answer.is_some() {
            return Error::e_explain(WriteError, "a second head of one answer");
        }
        // A success would open a tunnel that nobody serves (RFC 9110, 9.3.6).
        let opens_tunnel = self.is_extended_connect && head.status.is_success();
        let status = if opens_tunnel { StatusCode::BAD_GATEWAY } else { head.status };
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.version_mut() = Version::HTTP_2;
        *response.headers_mut() = head.headers.into();
        let headers = response.headers_mut();
        remove_fields_of_connection(headers);
        if status.is_informational() {
            self.written = Some(status);
            return self.respond.send_informational(response).or_err(WriteError, "an early answer");
        }
        if !headers.contains_key(header::DATE)
            && let Ok(date) = HeaderValue::from_bytes(clock::http_date().as_bytes())
        {
            headers.insert(header::DATE, date);
        }
        self.answer = Some(self.respond.send_response(response, ends).or_err(WriteError, "the head of an answer")?);
        self.written = Some(status);
        self.has_ended = ends;
        Ok(())
    }

    /// Writes a part of the body, the last one where it `ends`. Waits for room in the windows of the client.
    pub async fn write_body(&mut self, part: Bytes, ends: bool) -> pingora::Result<()> {
        if self.has_ended {
            return Ok(());
        }
        let Some(answer) = &mut self.answer else {
            return Error::e_explain(WriteError, "a body before its head");
        };
        send_part(answer, part, ends).await?;
        self.has_ended = ends;
        Ok(())
    }

    /// Writes trailers, and so ends the answer.
    pub fn write_trailers(&mut self, trailers: HeaderMap) -> pingora::Result<()> {
        if self.has_ended {
            return Ok(());
        }
        let Some(answer) = &mut self.answer else {
            return Error::e_explain(WriteError, "trailers before a head");
        };
        answer.send_trailers(trailers).or_err(WriteError, "the trailers of an answer")?;
        self.has_ended = true;
        Ok(())
    }

    /// Ends the stream of a whole answer.
    pub fn finish(mut self) {
        if !self.has_ended
            && let Some(answer) = &mut self.answer
        {
            let _ = answer.send_data(Bytes::new(), true);
        }
    }

    /// Resets the stream, unless its answer is whole.
    pub fn shutdown(&mut self) {
        if !self.has_ended {
            self.respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

/// Rewrites an extended CONNECT to the upgrade of HTTP/1.1 that asks a server for the same (RFC 8441, 5). Its client has no
/// nonce; the gateway sends one of its own and verifies the proof.
fn to_upgrade(head: &mut RequestHead, protocol: &Protocol) -> Result<(), InvalidHeader> {
    head.method = Method::GET;
    head.insert_header(header::CONNECTION, "upgrade")?;
    head.insert_header(header::UPGRADE, protocol.as_str())?;
    if protocol.as_str().eq_ignore_ascii_case(WEBSOCKET) {
        head.insert_header(SEC_WEBSOCKET_KEY.clone(), new_key())?;
    }
    Ok(())
}

/// Length of a body as its head announces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Unknown,
    Zero,
    Some,
}

/// Announced length; `None` where it is not one number, given once (RFC 9110, 8.6).
fn announced(headers: &Fields) -> Option<Length> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    let Some(length) = lengths.next() else { return Some(Length::Unknown) };
    let is_number = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    let is_zero = length.iter().all(|digit| *digit == b'0');
    (is_number && lengths.next().is_none()).then_some(if is_zero { Length::Zero } else { Length::Some })
}

/// True if the target has no byte that would end it, or its line, in HTTP/1.
fn has_target_of_text(head: &RequestHead) -> bool {
    !head.raw_path().iter().any(|byte| *byte <= b' ' || *byte == 0x7f)
}

/// True if a request names one authority, without the name of a user, and its target is no URI with another one
/// (RFC 9113, 8.3.1).
fn has_one_authority(head: &RequestHead) -> bool {
    let mut hosts = head.headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    let (host, another) = (hosts.next(), hosts.next());
    let authority = head.uri.authority().map(|authority| authority.as_str().as_bytes());
    let is_one = match (host, authority) {
        (Some(host), Some(authority)) => host == authority,
        (host, authority) => host.or(authority).is_some(),
    };
    let has_user = |name: Option<&[u8]>| name.is_some_and(|name| name.contains(&b'@'));
    is_one
        && another.is_none()
        && !has_user(host)
        && !has_user(authority)
        && (head.method == Method::CONNECT || matches!(raw_target_authority(head.raw_path()), RawTargetAuthority::None))
}

/// Rewrites the head of a request to the form of HTTP/1.1, which the pipeline expects. The authority becomes `Host`,
/// the target loses it, and cookies are joined (RFC 9113, 8.3.1 and 8.2.3).
fn to_common_form(head: &mut RequestHead) {
    if let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        let _ = head.insert_header(header::HOST, host);
    }
    if head.method != Method::CONNECT
        && head.uri.authority().is_some()
        && let Some(target) = head.uri.path_and_query().cloned()
    {
        head.set_uri(http::Uri::from(target));
    }
    let cookies = head.headers.get_all(header::COOKIE);
    if cookies.iter().nth(1).is_some() {
        let joined = cookies.iter().map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b"; "[..]);
        if let Ok(joined) = HeaderValue::from_bytes(&joined) {
            let _ = head.insert_header(header::COOKIE, joined);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(uri: &str, fields: &[(&'static str, &'static str)]) -> RequestHead {
        let mut head = RequestHead::from(Request::builder().uri(uri).body(()).unwrap().into_parts().0);
        for (name, value) in fields {
            head.append_header(*name, *value).unwrap();
        }
        head
    }

    #[test]
    fn a_head_gets_the_form_of_http_1() {
        let mut head = head("https://a.test:8443/x?y=1", &[("cookie", "a=1"), ("cookie", "b=2")]);
        to_common_form(&mut head);
        assert_eq!(head.headers[header::HOST], "a.test:8443");
        assert_eq!(head.uri, "/x?y=1");
        assert_eq!(head.headers.get_all(header::COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        assert_eq!(head.raw_path(), b"/x?y=1");
    }

    #[test]
    fn a_request_names_one_authority() {
        for (uri, hosts, is_one) in [
            ("https://a.test/x", &[][..], true),
            ("https://a.test/x", &[("host", "a.test")], true),
            ("https://a.test/x", &[("host", "b.test")], false),
            ("https://a.test/x", &[("host", "a.test"), ("host", "a.test")], false),
            ("https://u@a.test/x", &[], false),
            ("/x", &[("host", "a.test")], true),
            ("/x", &[("host", "u@a.test")], false),
            ("/x", &[], false),
        ] {
            assert_eq!(has_one_authority(&head(uri, hosts)), is_one, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn a_length_is_one_number() {
        for (lengths, expected) in [
            (&[][..], Some(Length::Unknown)),
            (&[("content-length", "0")], Some(Length::Zero)),
            (&[("content-length", "17")], Some(Length::Some)),
            (&[("content-length", "")], None),
            (&[("content-length", "+1")], None),
            (&[("content-length", "3, 3")], None),
            (&[("content-length", "3"), ("content-length", "3")], None),
        ] {
            assert_eq!(announced(&head("/", lengths).headers), expected, "{lengths:?}");
        }
    }
}
