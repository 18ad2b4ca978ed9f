//! Conversation with a processor about one exchange: each part of it is sent, and what the processor says of it is awaited.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use spillway_filter::{Exchanged, GrpcStream};

use crate::Settings;
use crate::messages::{
    BodyChange, BodySendMode, CommonResponse, HeaderSendMode, HttpBody, HttpHeaders, ImmediateResponse, Metadata,
    PartResponse, ProcessingMode, ProcessingRequest, ProcessingResponse, ProtocolConfiguration, Said, Shown, Struct,
};

/// Longest part in which a body is sent, in bytes.
pub(crate) const PART: usize = 64 << 10;

/// Metadata by which a picker is told the endpoint that has answered: its namespace and its key.
const BALANCING: &str = "envoy.lb";
const SERVED: &str = "x-gateway-destination-endpoint-served";

/// Parts without bytes that a processor may send beside one for each part that it got.
const EMPTY_PARTS: u32 = 1000;
/// Time for a processor to answer a part of a stream in both directions, of which it may answer several at once.
const PROMPT: Duration = Duration::from_millis(20);

/// Parts of an exchange that are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Modes {
    pub(crate) request_body: BodySendMode,
    pub(crate) response_headers: bool,
    pub(crate) response_body: BodySendMode,
}

impl Modes {
    fn overridden(self, by: &ProcessingMode) -> Self {
        Self {
            request_body: by.request_body_mode(),
            response_headers: by.response_header_mode() != HeaderSendMode::Skip,
            response_body: by.response_body_mode(),
        }
    }

    /// True if nothing is sent of an answer.
    pub(crate) fn skips_answer(self) -> bool {
        !self.response_headers && self.response_body == BodySendMode::None
    }
}

/// Half of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Request,
    Response,
}

/// Part of a half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Headers,
    Body,
}

/// Word of a processor on a part.
#[derive(Debug)]
pub(crate) enum Word {
    /// The exchange goes on without it.
    Nothing,
    /// Changes.
    Change(Box<CommonResponse>),
    /// Answer in place of the server's.
    Answer(Box<ImmediateResponse>),
}

/// Failure of a processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed(pub(crate) String);

/// Body as a processor returns it.
#[derive(Debug)]
pub(crate) enum Processed {
    Body(Bytes),
    Answer(Box<ImmediateResponse>),
}

/// Conversation about one exchange.
pub(crate) struct Session {
    stream: Box<dyn GrpcStream>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) modes: Modes,
    /// True if the processor wants to hear nothing more.
    pub(crate) is_over: bool,
    is_begun: bool,
    /// Facts of the exchange that go with its headers.
    pub(crate) facts: Facts,
    /// True while each part of a stream in both directions gets its answer at once.
    is_prompt: bool,
    /// Parts without bytes that may still come.
    empty_parts: u32,
    /// True once parts of an answer were sent that only the processor can give back.
    pub(crate) has_sent_parts: bool,
    /// True once the processor has ended the body of an answer: what the server still sends of it is not for the caller.
    pub(crate) has_ended_body: bool,
}

/// Facts of the exchange that a processor gets besides its headers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub(crate) metadata: Struct,
    /// Endpoint that has answered.
    pub(crate) served: Option<SocketAddr>,
    pub(crate) attributes: Struct,
}

impl Session {
    pub(crate) fn new(stream: Box<dyn GrpcStream>, settings: Arc<Settings>, facts: Facts) -> Self {
        let modes = settings.modes;
        Self {
            stream,
            settings,
            modes,
            is_over: false,
            is_begun: false,
            facts,
            is_prompt: true,
            empty_parts: EMPTY_PARTS,
            has_sent_parts: false,
            has_ended_body: false,
        }
    }

    /// Sends headers and awaits what is said of them.
    pub(crate) async fn headers(&mut self, half: Half, headers: HttpHeaders) -> Result<Word, Failed> {
        let request = self.show_headers(half, headers);
        self.send(&request).await?;
        self.hear(half, Piece::Headers).await
    }

    /// Sends a part of a body, the last one where it `ends`, and awaits what is said of it.
    pub(crate) async fn body(&mut self, half: Half, body: Bytes, ends: bool) -> Result<Word, Failed> {
        let request = self.show_body(half, body, ends);
        self.send(&request).await?;
        self.hear(half, Piece::Body).await
    }

    /// Sends a body in parts, each of which is answered by itself. Returns what takes its place.
    pub(crate) async fn streamed(&mut self, half: Half, mut body: Bytes, ends: bool) -> Result<Processed, Failed> {
        let mut out = BytesMut::with_capacity(body.len());
        loop {
            let part = body.split_to(body.len().min(PART));
            let is_last = ends && body.is_empty();
            if !self.is_over && (!part.is_empty() || is_last) {
                match self.body(half, part.clone(), is_last).await? {
                    Word::Answer(answer) => return Ok(Processed::Answer(answer)),
                    Word::Nothing => out.extend_from_slice(&part),
                    Word::Change(change) => out.extend_from_slice(&changed_body(*change, part)?),
                }
            } else {
                out.extend_from_slice(&part);
            }
            if body.is_empty() {
                return Ok(Processed::Body(out.freeze()));
            }
        }
    }

    /// Sends the headers of a request and its body in parts, and receives what takes their place meanwhile: a processor may answer the
    /// headers when it has read the body, and several parts by one.
    pub(crate) async fn duplex_request(
        &mut self,
        headers: Option<HttpHeaders>,
        mut body: Bytes,
        on_headers: &mut (dyn FnMut(CommonResponse) + Send),
    ) -> Result<Processed, Failed> {
        let mut awaits_headers = headers.is_some();
        if let Some(headers) = headers {
            let request = self.show_headers(Half::Request, headers);
            self.send(&request).await?;
        }
        let (whole, mut out) = (body.clone(), BytesMut::new());
        let mut next = Some(self.part_of(Half::Request, &mut body, true));
        loop {
            let response = match next.take() {
                None => self.receive().await?,
                Some(message) => match self.exchange(&message).await? {
                    Exchanged::Sent => {
                        next = (!body.is_empty()).then(|| self.part_of(Half::Request, &mut body, true));
                        continue;
                    }
                    Exchanged::Received(received) => {
                        next = Some(message);
                        received.map(decode).transpose()?
                    }
                },
            };
            let Some(response) = response else { return Ok(Processed::Body(whole)) };
            match response.said {
                Some(Said::Immediate(answer)) => return Ok(Processed::Answer(Box::new(answer))),
                Some(Said::RequestHeaders(said)) if awaits_headers => {
                    awaits_headers = false;
                    on_headers(said.response.unwrap_or_default());
                }
                Some(Said::RequestBody(said)) if !awaits_headers => {
                    let part = self.streamed_part(said.response)?;
                    out.extend_from_slice(&part.body);
                    if out.len() > self.settings.max_message {
                        return Err(self.too_long());
                    }
                    if part.end_of_stream {
                        return Ok(Processed::Body(out.freeze()));
                    }
                }
                _ => return Err(Failed("it answered what it was not asked".to_owned())),
            }
        }
    }

    /// Sends a part of an answer's body, and returns what has come to take the place of it and of those before it.
    pub(crate) async fn duplex_response(&mut self, mut body: Bytes, ends: bool) -> Result<Processed, Failed> {
        let (mut out, timeout) = (BytesMut::new(), self.settings.timeout);
        let most = self.settings.max_message.max(body.len().saturating_mul(2));
        let mut next = (!body.is_empty() || ends).then(|| self.part_of(Half::Response, &mut body, ends));
        self.has_sent_parts |= next.is_some();
        loop {
            let received = if let Some(message) = next.take() {
                match self.exchange(&message).await? {
                    Exchanged::Sent => {
                        next = (!body.is_empty()).then(|| self.part_of(Half::Response, &mut body, ends));
                        continue;
                    }
                    Exchanged::Received(received) => {
                        next = Some(message);
                        received
                    }
                }
            } else {
                // What has come is taken; a part that is answered by itself is waited for.
                let wait = match (ends, self.is_prompt && out.is_empty()) {
                    (true, _) => timeout,
                    (false, true) => PROMPT.min(timeout),
                    (false, false) => Duration::ZERO,
                };
                match self.stream.receive(wait).await {
                    Ok(received) => received,
                    Err(_) if !ends && wait <= PROMPT => {
                        self.is_prompt &= !out.is_empty();
                        return Ok(Processed::Body(out.freeze()));
                    }
                    Err(error) => return Err(Failed(error.0)),
                }
            };
            let Some(message) = received else {
                return Err(Failed("it ended a stream in both directions in the middle".to_owned()));
            };
            let response = decode(message)?;
            match response.said {
                Some(Said::Immediate(answer)) => return Ok(Processed::Answer(Box::new(answer))),
                Some(Said::ResponseBody(said)) => {
                    let part = self.streamed_part(said.response)?;
                    out.extend_from_slice(&part.body);
                    if out.len() > most {
                        return Err(self.too_long());
                    }
                    if part.end_of_stream {
                        self.has_ended_body = true;
                        self.is_over = true;
                        return Ok(Processed::Body(out.freeze()));
                    }
                }
                _ => return Err(Failed("it answered what it was not asked".to_owned())),
            }
        }
    }

    /// Part of a body of a stream in both directions. One without bytes brings nothing and starts the wait anew, so that there may be only
    /// some more of these than parts were sent.
    fn streamed_part(&mut self, response: Option<CommonResponse>) -> Result<crate::messages::StreamedBody, Failed> {
        match response.and_then(|response| response.body_mutation).and_then(|mutation| mutation.change) {
            Some(BodyChange::Streamed(part)) => {
                if part.body.is_empty() && !part.end_of_stream {
                    let left = self.empty_parts.checked_sub(1);
                    self.empty_parts =
                        left.ok_or_else(|| Failed("it sends parts without bytes and no end".to_owned()))?;
                }
                Ok(part)
            }
            _ => Err(Failed("it answered a stream in both directions without `streamed_response`".to_owned())),
        }
    }

    /// Message with the next part of a body, which ends with the last one where it `ends`.
    fn part_of(&mut self, half: Half, body: &mut Bytes, ends: bool) -> Bytes {
        let part = body.split_to(body.len().min(PART));
        self.empty_parts = self.empty_parts.saturating_add(1);
        let is_last = ends && body.is_empty();
        self.show_body(half, part, is_last).encode_to_vec().into()
    }

    async fn exchange(&mut self, message: &Bytes) -> Result<Exchanged, Failed> {
        let exchanged = self.stream.exchange(message.clone(), self.settings.timeout).await;
        exchanged.map_err(|error| Failed(error.0))
    }

    /// Sends a message without waiting for anything; `false` where there is no room for it.
    pub(crate) fn tell(&mut self, shown: ProcessingRequest) -> bool {
        self.stream.offer(ProcessingRequest { observability_mode: true, ..shown }.encode_to_vec().into())
    }

    pub(crate) fn show_headers(&mut self, half: Half, headers: HttpHeaders) -> ProcessingRequest {
        let shown = match half {
            Half::Request => Shown::RequestHeaders(headers),
            Half::Response => Shown::ResponseHeaders(headers),
        };
        let mut filter_metadata = BTreeMap::from([("spillway".to_owned(), self.facts.metadata.clone())]);
        if let Some(endpoint) = self.facts.served.filter(|_| self.settings.picks_endpoints) {
            let served = Struct::of([(SERVED, Some(endpoint.to_string().as_str()))]);
            filter_metadata.insert(BALANCING.to_owned(), served);
        }
        let attributes = match half {
            Half::Request if !self.facts.attributes.fields.is_empty() => {
                BTreeMap::from([("envoy.filters.http.ext_proc".to_owned(), std::mem::take(&mut self.facts.attributes))])
            }
            _ => BTreeMap::new(),
        };
        ProcessingRequest { metadata_context: Some(Metadata { filter_metadata }), attributes, ..self.message(shown) }
    }

    pub(crate) fn show_body(&mut self, half: Half, body: Bytes, end_of_stream: bool) -> ProcessingRequest {
        let body = HttpBody { body, end_of_stream };
        self.message(match half {
            Half::Request => Shown::RequestBody(body),
            Half::Response => Shown::ResponseBody(body),
        })
    }

    /// The first message tells what is sent of the exchange.
    fn message(&mut self, shown: Shown) -> ProcessingRequest {
        let config = ProtocolConfiguration {
            request_body_mode: self.modes.request_body.into(),
            response_body_mode: self.modes.response_body.into(),
            send_body_without_waiting_for_header_response: false,
        };
        let protocol_config = (!std::mem::replace(&mut self.is_begun, true)).then_some(config);
        ProcessingRequest { shown: Some(shown), protocol_config, ..ProcessingRequest::default() }
    }

    async fn send(&mut self, request: &ProcessingRequest) -> Result<(), Failed> {
        let sent = self.stream.send(request.encode_to_vec().into(), self.settings.timeout).await;
        sent.map_err(|error| Failed(error.0))
    }

    /// Receives what is said of a piece.
    async fn hear(&mut self, half: Half, piece: Piece) -> Result<Word, Failed> {
        let Some(response) = self.receive().await? else { return Ok(Word::Nothing) };
        let said: PartResponse = match (half, piece, response.said) {
            (_, _, Some(Said::Immediate(answer))) => {
                self.is_over = true;
                return Ok(Word::Answer(Box::new(answer)));
            }
            (Half::Request, Piece::Headers, Some(Said::RequestHeaders(said)))
            | (Half::Request, Piece::Body, Some(Said::RequestBody(said)))
            | (Half::Response, Piece::Headers, Some(Said::ResponseHeaders(said)))
            | (Half::Response, Piece::Body, Some(Said::ResponseBody(said))) => said,
            _ => return Err(Failed("it answered what it was not asked".to_owned())),
        };
        if let Some(modes) = response.mode_override
            && piece == Piece::Headers
            && self.settings.allow_mode_override
        {
            self.modes = self.modes.overridden(&modes);
        }
        Ok(Word::Change(Box::new(said.response.unwrap_or_default())))
    }

    /// Next answer; `None` where the processor has ended the conversation. It may ask for more time once.
    async fn receive(&mut self) -> Result<Option<ProcessingResponse>, Failed> {
        let mut timeout = self.settings.timeout;
        for _ in 0..2 {
            let Some(message) = self.stream.receive(timeout).await.map_err(|error| Failed(error.0))? else {
                self.is_over = true;
                return Ok(None);
            };
            let response = decode(message)?;
            match &response.override_message_timeout {
                Some(more) if self.settings.max_timeout.is_some() => {
                    let seconds = Duration::from_secs(u64::try_from(more.seconds).unwrap_or(0));
                    let more = seconds.saturating_add(Duration::from_nanos(u64::try_from(more.nanos).unwrap_or(0)));
                    timeout = more.min(self.settings.max_timeout.unwrap_or_default());
                }
                _ => return Ok(Some(response)),
            }
        }
        Err(Failed("it asked for more time twice".to_owned()))
    }

    pub(crate) fn too_long(&self) -> Failed {
        Failed(format!("a message would be longer than `maxMessageBytes`, {} bytes", self.settings.max_message))
    }
}

fn decode(message: Bytes) -> Result<ProcessingResponse, Failed> {
    if !message.has_remaining() {
        return Err(Failed("it sent an empty message".to_owned()));
    }
    ProcessingResponse::decode(message).map_err(|error| Failed(format!("its message cannot be read: {error}")))
}

/// Body after a change to a part of it.
pub(crate) fn changed_body(change: CommonResponse, part: Bytes) -> Result<Bytes, Failed> {
    match change.body_mutation.and_then(|mutation| mutation.change) {
        None | Some(BodyChange::Clear(false)) => Ok(part),
        Some(BodyChange::Body(body)) => Ok(body),
        Some(BodyChange::Clear(true)) => Ok(Bytes::new()),
        Some(BodyChange::Streamed(_)) => {
            Err(Failed("it used `streamed_response`, which is for `fullDuplexStreamed` alone".to_owned()))
        }
    }
}
