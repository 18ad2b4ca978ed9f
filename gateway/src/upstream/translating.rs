//! The way back of a translated answer. A whole answer or an error is held until it has ended and is written anew; an event
//! stream passes event by event. A compressed answer, which no server was asked for, is decoded within bounds before.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName};
use http::{HeaderValue, StatusCode};

use super::masking::{Mask, SentCredentials};
use super::translation::{CallTranslation, ConversationTranslation, Translation};
use crate::coding::Coding;
use crate::exchange::Exchange;
use crate::message::{ResponseHead, without_coding};
use crate::off_loop::{BUILDS_VALUES, INLINE};
use crate::protocol::oip::grpc::compressed_frame;
use crate::protocol::translate::{
    ApiError, Delta, InOrder, MostKept, ReadStream, Reply, ServerAnswer, Unreadable, WriteStream, deltas_of,
};

/// Fields of a head that describe another body than the translated one.
const OF_THE_BODY: [HeaderName; 2] = [header::CONTENT_LANGUAGE, header::CONTENT_DISPOSITION];

/// Translator of an event stream.
pub(super) struct StreamTranslator {
    reader: Box<dyn ReadStream>,
    writer: Box<dyn WriteStream>,
    /// Reason why the rest of the stream cannot be translated, once it cannot.
    failed: Option<Unreadable>,
    /// True once the answer has come to its end.
    has_ended: bool,
}

impl StreamTranslator {
    /// Translator of a stream.
    pub(super) fn new(translation: &ConversationTranslation, shown: &SentCredentials, exchange: &Exchange) -> Self {
        let reader = translation.server.read_stream(translation.asked.choices);
        let mut writer = translation.caller.write_stream(&translation.asked);
        if !translation.caller.interleaves_calls() {
            writer = Box::new(InOrder::new(writer, translation.asked.most_kept));
        }
        let named = Named {
            writer,
            name: translation.name_for_caller(Some(translation.model.clone()), exchange),
            servers: translation.model.clone(),
            mask: shown.mask(),
        };
        let writer: Box<dyn WriteStream> = Box::new(named);
        Self { reader, writer, failed: None, has_ended: false }
    }

    /// Translates a part. What a part says that cannot be translated is lost, and [`Self::is_broken`] then.
    pub(super) fn pass(&mut self, part: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        if self.failed.is_some() {
            return Bytes::new();
        }
        let Self { reader, writer, failed, has_ended } = self;
        *failed = read(reader.as_mut(), writer.as_mut(), part, has_ended, &mut out).err();
        out.freeze()
    }

    /// Ends the translation of a stream whose rest cannot be decoded.
    pub(super) fn fail(&mut self) {
        self.failed.get_or_insert(Unreadable::NOT_IN_CODING);
    }

    /// Translates the end of the stream.
    pub(super) fn finish(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        if self.failed.is_none() {
            let Self { reader, writer, has_ended, .. } = self;
            let mut written = Ok(());
            let finished = reader.finish(&mut |delta| {
                if written.is_ok() {
                    written = write(writer.as_mut(), delta, has_ended, &mut out);
                }
            });
            self.failed = written.and(finished.map(|_| ())).err();
        }
        out.freeze()
    }

    /// True if the stream cannot be translated to its end, or has ended before it. Bytes behind its end change nothing.
    pub(super) fn is_broken(&self) -> bool {
        !self.has_ended
    }

    /// Reason why the stream cannot be translated.
    pub(super) fn failure(&self) -> Option<Unreadable> {
        self.failed
    }
}

/// Writer of a stream in which the caller reads its own name of the model, and no credential in an error.
struct Named {
    writer: Box<dyn WriteStream>,
    /// Name in place of the server's.
    name: Option<String>,
    /// Name that the server knows.
    servers: String,
    /// Masks credentials of the gateway.
    mask: Option<Mask>,
}

impl WriteStream for Named {
    fn write(&mut self, mut delta: Delta, out: &mut BytesMut) -> Result<(), Unreadable> {
        if let Delta::Start { model, .. } = &mut delta
            && model.as_ref() == Some(&self.servers)
        {
            *model = self.name.take();
        }
        if let (Delta::Error(error), Some(mask)) = (&mut delta, &mut self.mask) {
            mask_error(error, mask);
        }
        self.writer.write(delta, out)
    }
}

/// Masks what a server said in an error.
fn mask_error(error: &mut ApiError, mask: &mut Mask) {
    let ApiError { message, code, param, .. } = error;
    for text in [Some(message), code.as_mut(), param.as_mut()].into_iter().flatten() {
        mask.text(text);
    }
}

fn read(
    reader: &mut dyn ReadStream,
    writer: &mut dyn WriteStream,
    part: &[u8],
    has_ended: &mut bool,
    out: &mut BytesMut,
) -> Result<(), Unreadable> {
    let mut written = Ok(());
    let read = reader.feed(part, &mut |delta| {
        if written.is_ok() {
            written = write(writer, delta, has_ended, out);
        }
    });
    written.and(read)
}

fn write(
    writer: &mut dyn WriteStream,
    delta: Delta,
    has_ended: &mut bool,
    out: &mut BytesMut,
) -> Result<(), Unreadable> {
    *has_ended |= matches!(delta, Delta::End | Delta::Error(_));
    writer.write(delta, out)
}

/// Adapts the head of an answer: fields of the server's API and of its bytes end here.
pub(super) fn adapt_head(head: &mut ResponseHead, is_own: impl Fn(&HeaderName, &HeaderValue) -> bool) {
    without_coding(head);
    let ends = |(name, value): &(&HeaderName, &HeaderValue)| is_own(name, value) || OF_THE_BODY.contains(name);
    let own: Vec<HeaderName> = head.headers.iter().filter(ends).map(|(name, _)| name.clone()).collect();
    for name in &own {
        head.remove_header(name);
    }
}

/// Sets the content type of a translated event stream.
pub(super) fn set_stream_type(translation: &ConversationTranslation, head: &mut ResponseHead) {
    let _ = head.insert_header(header::CONTENT_TYPE, HeaderValue::from_static(translation.caller.stream_type()));
}

/// Weight of the work on a whole answer, for [`OffLoop::run`](crate::off_loop::OffLoop::run).
pub(super) fn weight(coding: Coding, body: &[u8]) -> usize {
    // More comes out of a coding than one pass beside other requests may write, however little goes in.
    let is_coded = coding != Coding::Identity || compressed_frame(body).is_some();
    let least = if is_coded { INLINE + 1 } else { 0 };
    body.len().saturating_mul(BUILDS_VALUES).max(least)
}

/// Status of an answer that is an error, although its own status says success; `None` where it can be read.
pub(super) fn reported(translation: &Translation, coding: Coding, body: &[u8]) -> Option<StatusCode> {
    let Translation::Conversation(translation) = translation else { return None };
    let plain = plain(coding, body, translation.asked.most_kept).ok()?;
    translation.server.read_reply(&plain).err()?;
    Some(translation.server.reported_error(&plain)?.status)
}

/// Decodes a whole answer, where it is not too long and is in its coding.
fn plain(coding: Coding, body: &[u8], most: MostKept) -> Result<Cow<'_, [u8]>, Unreadable> {
    most.check(body.len())?;
    Ok(match coding {
        Coding::Identity => Cow::Borrowed(body),
        coding => Cow::Owned(coding.decode(body, most.0)?),
    })
}

/// Notes an answer that cannot be translated.
fn note_unreadable(why: Unreadable, exchange: &mut Exchange) {
    if why == Unreadable::TOO_LARGE
        && let Some(route) = &exchange.route
    {
        route.metrics.answers_too_large.inc();
    }
    exchange.outcome.error_code = Some(why.code());
}

/// Masks what a server was shown in an error.
fn masked<'b>(plain: Cow<'b, [u8]>, shown: &SentCredentials) -> Cow<'b, [u8]> {
    match shown.mask() {
        Some(mask) => Cow::Owned(mask.whole(Bytes::from(plain.into_owned())).into()),
        None => plain,
    }
}

fn is_error(head: &ResponseHead) -> bool {
    head.status.is_client_error() || head.status.is_server_error()
}

/// Writes the answer to a call anew, and adapts its head. The trailers are those of the server, and then those for the caller.
pub(super) fn call(
    translation: &CallTranslation,
    (coding, body): (Coding, &[u8]),
    shown: &SentCredentials,
    head: &mut ResponseHead,
    trailers: &mut Option<HeaderMap>,
    exchange: &mut Exchange,
) -> Bytes {
    let is_success = head.status.is_success();
    let plain = plain(coding, body, translation.most_kept);
    // Any other status becomes an error, that of a redirection too.
    let plain = if is_success { plain } else { plain.map(|plain| masked(plain, shown)) };
    // An error of gRPC is told in a head or in trailers.
    shown.strip(head);
    if let Some(trailers) = trailers {
        shown.strip_trailers(trailers);
    }
    let read = |plain: Result<&[u8], Unreadable>| {
        translation.reader.read(&ServerAnswer {
            status: head.status,
            headers: &head.headers,
            body: plain,
            most_kept: translation.most_kept,
            trailers: trailers.as_ref(),
            stands_in: translation.stands_in(exchange),
            request_id: exchange.request_id.to_str().unwrap_or_default(),
        })
    };
    let mut answer = read(plain.as_deref().map_err(|why| *why));
    let is_failed = answer.failed.is_some() || !answer.status.is_success();
    // An error in place of an answer.
    if is_success && is_failed {
        answer = read(plain.map(|plain| masked(plain, shown)).as_deref().map_err(|why| *why));
    }
    adapt_head(head, |name, value| translation.is_servers_header(name, value));
    if let Some(failed) = answer.failed.filter(|status| status.is_server_error() || status.as_u16() == 429) {
        exchange.outcome.note_reported(Some(failed.as_u16()));
    }
    if is_success && !answer.status.is_success() && answer.unreadable.is_none() {
        let known = exchange.outcome.reported;
        exchange.outcome.note_reported(known.or(Some(answer.status.as_u16())));
    }
    if let Some(why) = answer.unreadable {
        note_unreadable(why, exchange);
    }
    head.status = answer.status;
    head.set_reason(None);
    for (name, value) in answer.headers {
        let _ = head.insert_header(name, value);
    }
    // The bytes before trailers are framed by HTTP/2 alone.
    if answer.trailers.is_none() {
        let _ = head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(answer.body.len()));
    }
    *trailers = answer.trailers;
    answer.body
}

/// Writes a whole answer or an error of a conversation anew, and adapts its head. An error in place of an answer, whose status
/// said success, has the status that belongs to it.
pub(super) fn whole(
    translation: &ConversationTranslation,
    coding: Coding,
    body: &[u8],
    shown: &SentCredentials,
    head: &mut ResponseHead,
    exchange: &mut Exchange,
) -> Bytes {
    let is_error = is_error(head);
    let plain = plain(coding, body, translation.asked.most_kept);
    adapt_head(head, |name, _| translation.server.is_own_header(name));
    let masked = |mut error: ApiError| {
        if let Some(mut mask) = shown.mask() {
            mask_error(&mut error, &mut mask);
        }
        error
    };
    let answer = match plain {
        Ok(plain) if is_error => Err(masked(translation.server.read_error(head.status, &plain))),
        Err(_) if is_error => Err(ApiError::of_text(head.status, b"")),
        Ok(plain) => match translation.server.read_reply(&plain) {
            Ok(reply) => {
                let mut reply = Reply { model: translation.name_for_caller(reply.model, exchange), ..reply };
                reply.further.truncate(translation.asked.choices.saturating_sub(1));
                answer(translation, reply, head).map_err(|why| unreadable(why, exchange))
            }
            Err(why) => match translation.server.reported_error(&plain) {
                Some(error) => {
                    let known = exchange.outcome.reported;
                    exchange.outcome.note_reported(known.or(Some(error.status.as_u16())));
                    Err(masked(error))
                }
                None => Err(unreadable(why, exchange)),
            },
        },
        Err(why) => Err(unreadable(why, exchange)),
    };
    let body = answer.unwrap_or_else(|error| {
        let request_id = exchange.request_id.to_str().unwrap_or_default();
        let (status, body) = translation.caller.write_error(&error, request_id);
        head.status = status;
        let _ = head.insert_header(header::CONTENT_TYPE, "application/json");
        body
    });
    head.set_reason(None);
    let _ = head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    body
}

/// Writes an answer as the caller wants it: whole, or as events although the server sent none.
fn answer(translation: &ConversationTranslation, reply: Reply, head: &mut ResponseHead) -> Result<Bytes, Unreadable> {
    let ConversationTranslation { caller, asked, .. } = translation;
    if !asked.stream {
        let body = caller.write_reply(&reply, asked)?;
        let _ = head.insert_header(header::CONTENT_TYPE, "application/json");
        return Ok(body);
    }
    let (mut writer, mut out) = (caller.write_stream(asked), BytesMut::new());
    for delta in deltas_of(reply) {
        writer.write(delta, &mut out)?;
    }
    set_stream_type(translation, head);
    Ok(out.freeze())
}

/// Error in place of an answer that cannot be translated.
fn unreadable(why: Unreadable, exchange: &mut Exchange) -> ApiError {
    note_unreadable(why, exchange);
    why.into()
}
