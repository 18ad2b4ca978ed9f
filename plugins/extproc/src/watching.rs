//! A processor that only watches: it gets what it has room for, and nothing waits for it.

use bytes::Bytes;
use http::StatusCode;
use spillway_filter::{ExchangeEnd, Headers, Observer, Refusal};

use crate::messages::{BodySendMode, HeaderMap, HeaderValue, HttpHeaders};
use crate::session::{Half, PART, Session};

/// Tells a processor of an exchange.
pub(crate) struct Watching {
    session: Session,
    /// True once the head of the answer has passed.
    is_answered: bool,
}

impl Watching {
    pub(crate) fn new(session: Session) -> Self {
        Self { session, is_answered: false }
    }

    fn tell_body(&mut self, half: Half, body: &[u8]) {
        for part in body.chunks(PART) {
            let message = self.session.show_body(half, Bytes::copy_from_slice(part), false);
            if !self.session.tell(message) {
                self.session.settings.report("it is too slow: a part is left out");
            }
        }
    }
}

impl Observer for Watching {
    fn on_request_body(&mut self, part: &[u8]) -> Result<(), Box<Refusal>> {
        if self.session.modes.request_body == BodySendMode::Streamed {
            self.tell_body(Half::Request, part);
        }
        Ok(())
    }

    fn on_response_head(&mut self, status: StatusCode, headers: &mut dyn Headers) {
        self.is_answered = true;
        if !self.session.modes.response_headers {
            return;
        }
        let value = |key: &str, value: &[u8]| HeaderValue {
            key: key.to_owned(),
            value: String::new(),
            raw_value: Bytes::copy_from_slice(value),
        };
        let mut shown = vec![value(":status", status.as_str().as_bytes())];
        headers.for_each(&mut |name, text| shown.push(value(name.as_str(), text.as_bytes())));
        let shown = HttpHeaders { headers: Some(HeaderMap { headers: shown }), end_of_stream: false };
        let message = self.session.show_headers(Half::Response, shown);
        self.session.tell(message);
    }

    fn on_response_body(&mut self, part: &[u8]) {
        if self.session.modes.response_body == BodySendMode::Streamed {
            self.tell_body(Half::Response, part);
        }
    }

    fn on_end(&mut self, _: &ExchangeEnd<'_>) {
        if self.is_answered && self.session.modes.response_body == BodySendMode::Streamed {
            let message = self.session.show_body(Half::Response, Bytes::new(), true);
            self.session.tell(message);
        }
    }
}
