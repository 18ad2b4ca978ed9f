//! An answer on its way to the client: head, parts, and end, in order or early. Event streams pass in whole events, and their
//! usage is read on the way.

use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, Version, header};
use pingora::ErrorType;
use spillway_filter::Refusal;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::answer_model::AnswerModel;
use super::bounds::has_room_for;
use super::connection::{close, release_early};
use super::conversation::{Conversation, ConversationEvent, ConversationState};
use super::decoding::StreamDecoder;
use super::encoded::decode_and_mask;
use super::events::{Gate, has_comment, stream_framing};
use super::headers::{filter_server_response, finish_response, outgoing_response, remove_hop_by_hop};
use super::outcome::{Attempt, AttemptOutcome, CutReason, Died};
use super::renaming::Renaming;
use super::stages::{Passing, Sealed, Waiting};
use super::trailers::of_answer;
use super::translating::{self, StreamTranslator};
use super::translation::Translation;
use super::usage_chunk;
use super::verdict::{grpc_error, judge_beginning, judge_reported};
use crate::balancing::{Class, orca};
use crate::clock;
use crate::coding::Coding;
use crate::connect::UpstreamSession;
use crate::downstream::{Beside, ClientSession, SLICE, WriteLimits, deliver, slice};
use crate::exchange::{self, AttemptSlot, Exchange, ServedBy};
use crate::message::{ResponseHead, without_coding};
use crate::protocol::translate::Unreadable;
use crate::protocol::{DROPPED, GRPC_STATUS, Observation, Observe, SERVED_BY, StreamFraming, Written, server_error};

/// Ends an event of which a part has passed, so that the next one stands by itself.
pub(super) const END_OF_EVENT: &[u8] = b"\n\n";
/// Time for trailers to follow the end of a body.
const TRAILERS: Duration = Duration::from_secs(5);
/// Time for an error event to reach the client.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Most bytes of an event stream that wait for its first content.
const MAX_WAITING: usize = 64 << 10;
/// Longest time for which a head waits for the begin of its body. Most errors come at once; a client that bounds its wait for
/// a head must not see a model that thinks as a server that is silent.
const MAX_HEAD_WAIT: Duration = Duration::from_secs(1);
/// Most bytes of an answer that wait until it is certain that they are no error. Errors are shorter.
const MAX_BEGINNING: usize = 16 << 10;

impl<'a> Conversation<'_, 'a> {
    /// Begins to pass on an answer: its head, and the part of its body that was read already. Returns an outcome if the answer
    /// has ended with them.
    pub(super) async fn begin(&mut self, head: ResponseHead, prefix: Option<Bytes>) -> Option<AttemptOutcome> {
        let is_head = self.session.req_header().method == Method::HEAD;
        self.state.heard = clock::now();
        let own = self.exchange.dialect.stream_framing();
        let framing = stream_framing(&head, own);
        self.state.event_stream = framing.is_some();
        let mut head = head;
        let mut coding = Coding::of(&head.headers);
        self.exchange.outcome.begin_answer();
        self.passing.observer = self.attempt.observer(&head);
        let is_changed = || {
            !is_head
                && self
                    .exchange
                    .rewriting
                    .as_ref()
                    .is_some_and(|it| it.reads_body(&head, self.exchange.outcome.spilled.is_some()))
        };
        if coding != Coding::Identity
            && (self.is_searched(&head, coding, is_head) || (self.attempt.translation.is_none() && is_changed()))
        {
            if self.begin_decoding(&mut head, coding) {
                coding = Coding::Identity;
            } else {
                self.passing.sealed = Some(Sealed::Unsearched(Coding::Unknown));
            }
        }
        self.state.takes_events = framing == Some(own) && coding == Coding::Identity;
        let is_error = head.status.is_client_error() || head.status.is_server_error();
        if self.attempt.translation.is_some() && !is_head {
            self.begin_translation(&mut head, coding, is_error);
        } else if is_error && !self.state.shown.is_empty() {
            match coding {
                Coding::Identity => self.passing.mask = self.state.shown.mask(),
                // The head describes the body that another method would get.
                _ if is_head => without_coding(&mut head),
                coding => self.passing.sealed = Some(Sealed::Unsearched(coding)),
            }
        } else if coding == Coding::Identity && self.is_searched(&head, coding, is_head) {
            self.passing.may_mask = true;
            // A message of gRPC must not wait for the next one, which may never come. Its errors are in heads and trailers.
            if !self.exchange.is_grpc {
                self.passing.mask = self.state.shown.mask_of_answer();
            }
        }
        if !is_head {
            self.passing.names = AnswerModel::of(self.attempt, self.exchange, &head);
            if self.passing.names.is_some() {
                // The length is that of the answer with the other name.
                without_coding(&mut head);
            }
        }
        let may_fail = self.passing.observer.is_some() && !is_head;
        if let Some(status) = grpc_error(self.attempt, &head) {
            self.exchange.outcome.note_reported(Some(status));
            self.exchange.outcome.is_error = true;
        } else if !self.state.event_stream && !may_fail {
            self.attempt.answered(Class::Head, head.status);
        }
        let is_observed = self.state.event_stream && self.passing.observer.is_some();
        if is_observed && self.state.takes_events && self.attempt.translation.is_none() {
            self.passing.gate = Some(Gate::new(own));
            if self.attempt.route.resume && !head.headers.contains_key(header::CONTENT_LENGTH) {
                self.passing.transcript = self.attempt.backend.dialect.and_then(|dialect| dialect.transcribe());
            }
            if usage_chunk::edit(self.attempt, self.exchange).is_some() {
                self.passing.hides_usage = true;
                // The length is that of the stream with the chunk.
                without_coding(&mut head);
            }
        }
        let is_named = !is_head && !self.state.event_stream;
        self.passing.renaming = is_named.then(|| Renaming::of(self.attempt, self.exchange, &head)).flatten();
        if self.passing.sealed.is_some() || may_fail || self.passing.renaming.is_some() {
            let for_content = is_observed && self.state.limits.first_token.is_some() && self.attempt.move_on.retry;
            if self.passing.sealed.is_none() && !for_content {
                self.state.release_at = Some(clock::now() + MAX_HEAD_WAIT);
            }
            let took = clock::since(self.attempt.started);
            self.passing.waiting = Some(Waiting { head, took, for_content, parts: BytesMut::new() });
            if self.passing.sealed == Some(Sealed::Unsearched(Coding::Unknown)) {
                // No part of such a body can be passed on.
                self.leave().await;
            } else if let Some(prefix) = prefix
                && let Err(outcome) = self.pass_part(prefix).await
            {
                return Some(outcome);
            }
        } else {
            // Observed first: more may be read while the client is slow to read the head.
            let ends = prefix.as_ref().is_none_or(Bytes::is_empty) && self.is_read();
            let prefix = prefix.map(|prefix| self.observe(prefix)).unwrap_or_default();
            self.release_server_when_read().await;
            if self.pass_head(head, is_head, ends).await.is_err() {
                return Some(self.state.client_gone());
            }
            if let Err(outcome) = self.pass(prefix).await {
                return Some(outcome);
            }
        }
        let is_read = match self.state.pending {
            None => self.is_read(),
            Some(ConversationEvent::AnswerEnd) => self.state.answer_read,
            Some(_) => false,
        };
        if is_read { Some(self.finish().await) } else { None }
    }

    /// True of an answer that may hold an error in which credentials are to be masked, although its status says success.
    fn is_searched(&self, head: &ResponseHead, coding: Coding, is_head: bool) -> bool {
        // Of a coding without a decoder there is no observer.
        let is_read = || self.passing.observer.is_some() || (coding != Coding::Identity && self.attempt.reads(head));
        !self.state.shown.is_empty() && self.attempt.translation.is_none() && !is_head && is_read()
    }

    /// Begins to decode an answer in which credentials are to be masked, which cannot be done in compressed bytes. Returns false
    /// where no decoder is left.
    fn begin_decoding(&mut self, head: &mut ResponseHead, coding: Coding) -> bool {
        // The window of the observer's decoder is that of the answer's.
        self.passing.observer = None;
        self.passing.decoder = StreamDecoder::new(coding).map(Box::new);
        if self.passing.decoder.is_some() {
            without_coding(head);
        }
        self.passing.observer = self.attempt.observer(head);
        self.passing.decoder.is_some()
    }

    /// Begins to translate an answer: a stream on its way, anything else once it was read whole.
    fn begin_translation(&mut self, head: &mut ResponseHead, coding: Coding, is_error: bool) {
        let Some(translation) = &self.attempt.translation else { return };
        let streamed = translation.streamed().filter(|_| head.status.is_success() && self.state.event_stream);
        let Some(conversation) = streamed else {
            // A caller of another transport could not read a redirection either.
            let is_call = matches!(**translation, Translation::Call(_));
            let translates = is_call || is_error || head.status.is_success();
            self.passing.sealed = translates.then_some(Sealed::Foreign(coding));
            return;
        };
        if coding != Coding::Identity {
            // The window of the observer's decoder is that of the stream's.
            self.passing.observer = None;
            self.passing.decoder = StreamDecoder::new(coding).map(Box::new);
            if self.passing.decoder.is_none() {
                self.passing.sealed = Some(Sealed::Foreign(coding));
                return;
            }
        }
        translating::adapt_head(head, |name, _| conversation.server.is_own_header(name));
        if self.passing.decoder.is_some() {
            self.passing.observer = self.attempt.observer(head);
        }
        translating::set_stream_type(conversation, head);
        self.passing.translator = Some(StreamTranslator::new(conversation, &self.state.shown, self.exchange));
        self.state.takes_events = true;
    }

    /// True if the server's answer has ended, and all of it was read.
    fn is_read(&mut self) -> bool {
        self.upstream.as_ref().is_some_and(UpstreamSession::is_done)
    }

    /// Stops reading an answer, as if it had ended.
    async fn leave(&mut self) {
        if let Some(server) = self.upstream.take() {
            close(self.attempt, server).await;
        }
        self.state.pending = Some(ConversationEvent::AnswerEnd);
    }

    /// Passes on the head, which is the whole answer where it `ends`.
    async fn pass_head(&mut self, head: ResponseHead, is_head: bool, ends: bool) -> pingora::Result<()> {
        self.exchange.outcome.status = head.status.as_u16();
        self.exchange.outcome.served_by = ServedBy::Backend(self.attempt.backend.name.clone());
        self.exchange.outcome.target = self.attempt.target;
        self.exchange.outcome.endpoint = Some(self.attempt.endpoint.address.clone());
        let has_body = !(is_head || head.status == StatusCode::NO_CONTENT || head.status == StatusCode::NOT_MODIFIED);
        let is_http11 = self.session.req_header().version == Version::HTTP_11;
        let mut head = head;
        remove_hop_by_hop(&mut head);
        if self.attempt.backend.load_reports {
            // The gateway asked for the report, not the caller.
            head.remove_header(&orca::REPORT);
        }
        self.state.shown.strip(&mut head);
        let (client, sent_host) = (self.session.req_header(), self.state.sent_host.as_ref());
        filter_server_response(&mut head, self.attempt, client, self.exchange, sent_host);
        if self.exchange.snapshot.server_timing {
            self.exchange.outcome.was_at_target(clock::since(self.attempt.started));
        }
        self.state.head_passed = true;
        self.passing.has_ended = ends;
        if let Some(rewriting) = &mut self.exchange.rewriting {
            let most = u64::try_from(self.attempt.backend.max_translated_bytes).unwrap_or(u64::MAX);
            let is_spilled = self.exchange.outcome.spilled.is_some();
            rewriting.answered_by(self.attempt.endpoint.socket);
            // Boxed, because the answers of few routes are changed.
            match Box::pin(rewriting.begin(Box::new(head), is_spilled, has_body && !ends, most)).await {
                Some(begun) => head = *begun,
                None => {
                    self.passing.has_ended = false;
                    return Ok(());
                }
            }
        }
        let out = self.outgoing(head, is_http11, has_body);
        let (session, mut server, limits) = self.sides();
        deliver(pin!(session.write_head(out, ends)), limits, &mut server).await
    }

    /// Head of the answer as the client gets it.
    fn outgoing(&mut self, head: ResponseHead, is_http11: bool, has_body: bool) -> Box<ResponseHead> {
        let mut out = outgoing_response(head, self.session.req_header(), self.exchange, is_http11, has_body);
        if let Some(dropped) = self.attempt.dropped() {
            let _ = out.insert_header(DROPPED.clone(), dropped.clone());
        }
        if self.exchange.outcome.spilled.is_some()
            && let Ok(name) = header::HeaderValue::from_str(&self.attempt.backend.name)
        {
            let _ = out.insert_header(SERVED_BY.clone(), name);
        }
        if self.attempt.translation.is_some() {
            self.exchange.look_for_id(&out.headers);
        }
        out
    }

    /// Passes on a part of the answer, or keeps it while the head waits. An error is the end of the attempt.
    pub(super) async fn pass_part(&mut self, part: Bytes) -> Result<(), AttemptOutcome> {
        let mut part = self.observe(part);
        if self.passing.is_spoiled || self.passing.translator.as_ref().is_some_and(|it| it.failure().is_some()) {
            self.leave().await;
        }
        if self.passing.waiting.is_some() {
            if let Some(outcome) = self.judge_beginning() {
                return Err(outcome);
            }
            // A client hears that its server is at work, even where another one could still answer.
            let keeps_alive = self.state.takes_events && has_comment(&part);
            let is_awaited = !keeps_alive && self.is_awaited(part.len());
            let Some(waiting) = &mut self.passing.waiting else { return Ok(()) };
            waiting.parts.extend_from_slice(&part);
            let is_unnamed = self.passing.renaming.as_ref().is_some_and(|renaming| renaming.is_open(&waiting.parts));
            let most_translated = self.attempt.backend.max_translated_bytes;
            if self.passing.sealed.is_some_and(|sealed| waiting.parts.len() > sealed.most(most_translated)) {
                self.leave().await;
            }
            if is_awaited || is_unnamed {
                return Ok(());
            }
            // Not while the head waits: the end of the answer may still show that another target is to answer.
            self.release_server_when_read().await;
            part = self.release(false).await?;
        } else {
            self.release_server_when_read().await;
        }
        self.pass(part).await
    }

    /// True if the head waits on after a further part of `more` bytes.
    fn is_awaited(&self, more: usize) -> bool {
        let Some(waiting) = &self.passing.waiting else { return false };
        if self.passing.sealed.is_some() {
            return true;
        }
        let length = waiting.parts.len().saturating_add(more);
        let is_certain = self.passing.observer.as_ref().is_none_or(|observer| observer.observation().is_certain);
        let needs_content = waiting.for_content && !self.state.content_seen && length <= MAX_WAITING;
        needs_content || (!is_certain && length <= MAX_BEGINNING)
    }

    /// Outcome of an answer whose beginning is an error that another target may not have.
    fn judge_beginning(&mut self) -> Option<AttemptOutcome> {
        let seen = self.passing.observer.as_ref()?.observation();
        let can_resend = self.exchange.body.can_resend(self.session);
        let outcome = judge_beginning(self.attempt, self.state.callers_account, can_resend, seen)?;
        // Of an answer that reaches the client, what is noted stays.
        (self.exchange.outcome.reported, self.exchange.outcome.error_code) = (None, None);
        Some(outcome)
    }

    /// Outcome of a whole answer of another API that is an error, although it begins as an answer.
    async fn judge_foreign(&mut self) -> Option<AttemptOutcome> {
        let is_suspect = self.passing.observer.as_ref().is_some_and(|observer| observer.observation().error.is_some());
        let (Some(translation), Some(Sealed::Foreign(coding)), true) =
            (&self.attempt.translation, self.passing.sealed, is_suspect)
        else {
            return None;
        };
        let waiting = self.passing.waiting.as_ref().filter(|waiting| waiting.head.status.is_success())?;
        let weight = translating::weight(coding, &waiting.parts);
        let read = || translating::reported(translation, coding, &waiting.parts);
        let status = match self.exchange.off_loop.run(weight, read).await {
            Ok(status) => status?.as_u16(),
            Err(refusal) => return Some(unread(self.exchange, refusal)),
        };
        let can_resend = self.exchange.body.can_resend(self.session);
        judge_reported(self.attempt, self.state.callers_account, can_resend, status)
    }

    /// Writes a part to the client, then the bytes that were read meanwhile where the client was slow.
    async fn pass(&mut self, part: Bytes) -> Result<(), AttemptOutcome> {
        // Boxed, because the answers of few routes are changed.
        match self.exchange.rewriting {
            None => self.write(part).await.map_err(|_| self.state.client_gone()),
            Some(_) => Box::pin(self.pass_changed(part)).await,
        }
    }

    /// Writes a part as the filters change it.
    async fn pass_changed(&mut self, part: Bytes) -> Result<(), AttemptOutcome> {
        let mut rest = part;
        loop {
            while let Some(next) = slice(&mut rest) {
                let changed = self.exchange.pass(next).await;
                self.write_slices(changed).await.map_err(|_| self.state.client_gone())?;
            }
            match self.passing.unread.take_slice() {
                Some(more) => rest = more,
                None => break,
            }
        }
        self.exchange.outcome.pause.end();
        if let Some(cut) = refused(self.exchange) {
            self.leave().await;
            return Err(Box::pin(self.break_off(cut)).await);
        }
        if self.exchange.rewriting.as_ref().is_some_and(|rewriting| rewriting.needs_no_more()) {
            self.leave().await;
        }
        Ok(())
    }

    /// Writes a part that was changed and shown.
    async fn write_slices(&mut self, mut part: Bytes) -> pingora::Result<()> {
        while let Some(next) = slice(&mut part) {
            let (session, mut server, limits) = self.sides();
            deliver(pin!(session.write_response_body(next, false)), limits, &mut server).await?;
        }
        Ok(())
    }

    async fn write(&mut self, mut part: Bytes) -> pingora::Result<()> {
        loop {
            while let Some(next) = slice(&mut part) {
                self.exchange.show(&next);
                let (session, mut server, limits) = self.sides();
                deliver(pin!(session.write_response_body(next, false)), limits, &mut server).await?;
            }
            match self.passing.unread.take_slice() {
                Some(more) => part = more,
                None => {
                    self.exchange.outcome.pause.end();
                    return Ok(());
                }
            }
        }
    }

    /// Passes on a head that has waited long enough, with the bytes of the body so far.
    pub(super) async fn pass_waiting(&mut self) -> Result<(), AttemptOutcome> {
        let part = self.release(false).await?;
        self.pass(part).await
    }

    /// Writes the head that waited, and returns the bytes of the body so far. With `is_all`, nothing follows them.
    async fn release(&mut self, is_all: bool) -> Result<Bytes, AttemptOutcome> {
        self.state.release_at = None;
        let Some(Waiting { mut head, took, parts, .. }) = self.passing.waiting.take() else { return Ok(Bytes::new()) };
        if !self.state.event_stream && self.exchange.outcome.reported.is_none() && self.passing.observer.is_some() {
            self.attempt.answered_in(Class::Head, head.status, took);
        }
        let body = match self.passing.sealed.take() {
            Some(Sealed::Unsearched(coding)) => {
                decode_and_mask(coding, &parts, &self.state.shown, &mut head, self.exchange)
            }
            // Rare branches are boxed, so that the future of every request does not carry them.
            Some(Sealed::Foreign(coding)) => Box::pin(self.translate(coding, parts.freeze(), &mut head)).await?,
            // An answer that may still be an error, or is one of which no part has told so.
            None if self.passing.may_mask && self.passing.observer.as_ref().is_some_and(|it| is_suspect(&**it)) => {
                self.passing.mask_error(&self.state.shown, parts.freeze(), Bytes::new())
            }
            // Of an error in place of the answer, parts that came before its end.
            None if self.passing.mask.is_some() && self.exchange.outcome.reported.is_some() => {
                let parts = parts.freeze();
                match self.state.shown.mask() {
                    Some(mask) => mask.whole(parts),
                    None => parts,
                }
            }
            None => parts.freeze(),
        };
        let body = match self.passing.renaming.take() {
            Some(renaming) => {
                let off_loop = &self.exchange.off_loop;
                let renamed = off_loop.run(renaming.weight(&body), || renaming.apply(&mut head, body));
                match Box::pin(renamed).await {
                    Ok(renamed) => renamed,
                    Err(refusal) => return Err(unread(self.exchange, refusal)),
                }
            }
            None => body,
        };
        let ends = is_all && body.is_empty();
        self.pass_head(head, false, ends).await.map_err(|_| self.state.client_gone())?;
        Ok(body)
    }

    /// Writes a whole answer of another API or transport anew, apart from other requests where it is large.
    async fn translate(
        &mut self,
        coding: Coding,
        body: Bytes,
        head: &mut ResponseHead,
    ) -> Result<Bytes, AttemptOutcome> {
        let Some(translation) = self.attempt.translation.as_deref() else { return Ok(body) };
        let off_loop = self.exchange.off_loop.clone();
        let (shown, exchange, trailers) = (&self.state.shown, &mut *self.exchange, &mut self.passing.trailers);
        let work = || match translation {
            Translation::Conversation(conversation) => {
                translating::whole(conversation, coding, &body, shown, head, exchange)
            }
            Translation::Call(call) => {
                let came = trailers.take().flatten();
                let trailers = trailers.insert(came);
                translating::call(call, (coding, &body), shown, head, trailers, exchange)
            }
        };
        let translated = off_loop.run(translating::weight(coding, &body), work).await;
        translated.map_err(|refusal| unread(self.exchange, refusal))
    }

    pub(super) async fn finish(&mut self) -> AttemptOutcome {
        if self.passing.waiting.is_some()
            && let Some(observer) = &mut self.passing.observer
        {
            observer.finish();
            if let Some(outcome) = self.judge_beginning() {
                return outcome;
            }
            // Boxed, because few answers are errors in place of answers.
            if let Some(outcome) = Box::pin(self.judge_foreign()).await {
                return outcome;
            }
        }
        let trailers = match (self.passing.trailers.take(), &mut self.upstream) {
            (Some(read), _) => read,
            (None, Some(server)) => trailers(server).await,
            (None, None) => None,
        };
        let is_of_grpc = match self.attempt.translation.as_deref() {
            None => self.exchange.is_grpc,
            Some(translation) => translation.is_to_grpc(),
        };
        if is_of_grpc
            && let Some(status) = trailers.as_ref().and_then(|trailers| server_error(trailers.get(&GRPC_STATUS)))
        {
            self.exchange.outcome.note_reported(Some(status));
        }
        // Trailers of another transport are a part of the answer that is read whole.
        let is_call = matches!(self.attempt.translation.as_deref(), Some(Translation::Call(_)));
        let mut trailers = if is_call && matches!(self.passing.sealed, Some(Sealed::Foreign(_))) {
            self.passing.trailers = Some(trailers);
            None
        } else {
            trailers.filter(|_| self.session.takes_trailers())
        };
        if let Some(trailers) = &mut trailers {
            self.state.shown.strip_trailers(trailers);
        }
        self.release_server().await;
        let mut gated = self.passing.gate.as_mut().map(Gate::rest).unwrap_or_default();
        if self.passing.may_hide() {
            gated = usage_chunk::hide(gated);
        }
        if let Some(names) = &mut self.passing.names {
            gated = names.finish(gated);
        }
        let translated = self.passing.translator.as_mut().map(StreamTranslator::finish).unwrap_or_default();
        if let Some(observer) = &mut self.passing.observer {
            observer.finish();
        }
        let is_broken = self.passing.is_broken();
        let is_masked = self.passing.may_mask || self.passing.mask.is_some();
        let is_all = trailers.is_none() && gated.is_empty() && translated.is_empty() && !is_masked && !is_broken;
        let mut last = match self.release(is_all).await {
            Ok(last) => last,
            Err(outcome) => return outcome,
        };
        if is_call {
            trailers = trailers.or(self.passing.trailers.take().flatten());
        }
        for rest in [self.passing.mask_rest(&self.state.shown, gated), translated] {
            if !rest.is_empty() {
                last = [last, rest].concat().into();
            }
        }
        if let Some(observer) = &mut self.passing.observer {
            note_answer(self.attempt, &mut self.exchange.outcome, observer.finish());
        }
        if self.passing.has_ended {
            return AttemptOutcome::Answered;
        }
        if is_broken {
            return match self.pass(last).await {
                Ok(()) => self.break_translation().await,
                Err(outcome) => outcome,
            };
        }
        let before = last.split_to(last.len().saturating_sub(SLICE));
        if let Err(outcome) = self.pass(before).await {
            return outcome;
        }
        if trailers.as_ref().is_some_and(|trailers| !has_room_for(trailers, self.attempt.backend.max_header_bytes)) {
            return self.break_off(CutReason::TrailersTooLarge).await;
        }
        let last = if self.exchange.rewriting.is_some() {
            // Boxed, because the answers of few routes are changed.
            match Box::pin(self.finish_rewriting(last)).await {
                Ok(last) => last,
                Err(outcome) => return outcome,
            }
        } else {
            self.exchange.show(&last);
            last
        };
        let (session, mut server, limits) = self.sides();
        let delivered = match trailers {
            None => deliver(pin!(session.write_response_body(last, true)), limits, &mut server).await,
            // Boxed, because few answers have trailers.
            Some(trailers) => {
                let write = Box::pin(async {
                    session.write_response_body(last, false).await?;
                    session.write_response_trailers(trailers).await
                });
                deliver(pin!(write), limits, &mut server).await
            }
        };
        match delivered {
            Ok(()) => AttemptOutcome::Answered,
            Err(_) => self.state.client_gone(),
        }
    }

    /// Ends the changes of filters to an answer, of which `last` is the end: writes its head where that has waited, and all but
    /// the last bytes, which are returned.
    async fn finish_rewriting(&mut self, last: Bytes) -> Result<Bytes, AttemptOutcome> {
        let passed = self.exchange.pass(last).await;
        let ended = match self.exchange.end_rewriting().await {
            Ok(ended) => ended,
            Err(refusal) => return Err(unread(self.exchange, refusal)),
        };
        if let Some(head) = ended.head {
            let is_http11 = self.session.req_header().version == Version::HTTP_11;
            let out = self.outgoing(*head, is_http11, true);
            let (session, mut server, limits) = self.sides();
            let written = deliver(pin!(session.write_response_header(out)), limits, &mut server).await;
            written.map_err(|_| self.state.client_gone())?;
        }
        self.exchange.show(&ended.body);
        let cut = refused(self.exchange);
        let mut whole = if passed.is_empty() { ended.body } else { Bytes::from([passed, ended.body].concat()) };
        let last = if cut.is_some() { Bytes::new() } else { whole.split_off(whole.len().saturating_sub(SLICE)) };
        self.write_slices(whole).await.map_err(|_| self.state.client_gone())?;
        match cut {
            None => Ok(last),
            Some(cut) => Err(self.break_off(cut).await),
        }
    }

    /// Cuts an answer that cannot be translated or decoded to its end.
    async fn break_translation(&mut self) -> AttemptOutcome {
        let failure = self.passing.translator.as_ref().and_then(StreamTranslator::failure);
        let cut = match failure {
            Some(Unreadable::TOO_LARGE) => {
                self.attempt.route.metrics.answers_too_large.inc();
                CutReason::AnswerTooLarge
            }
            None if !self.passing.is_spoiled => CutReason::UpstreamReset,
            _ => CutReason::Unreadable,
        };
        self.break_off(cut).await
    }

    /// Cuts the answer as [`break_off`] does.
    pub(super) async fn break_off(&mut self, cut: CutReason) -> AttemptOutcome {
        break_off(self.session, self.exchange, self.state.takes_events, cut).await
    }

    /// Releases the server, with an answer that was read whole, before the client is sent the end of it: a client that
    /// asks again at once must not find its own slot taken.
    async fn release_server(&mut self) {
        self.state.answer_read = true;
        let Self { attempt, exchange, upstream, state, .. } = self;
        if upstream.is_some() || exchange.place.is_some() {
            let answered_in = &mut exchange.outcome.answered_in;
            release_early(attempt, upstream, &mut exchange.place, answered_in, state.sent, true).await;
        }
    }

    /// As [`Self::release_server`], where the part that was read last is known to be the last one.
    async fn release_server_when_read(&mut self) {
        if self.state.pending.is_none() && self.is_read() && !self.passing.is_cut_short() {
            self.release_server().await;
            self.state.pending = Some(ConversationEvent::AnswerEnd);
        }
    }

    fn observe(&mut self, part: Bytes) -> Bytes {
        let had_content = self.state.content_seen;
        let Exchange { outcome, started, .. } = &mut *self.exchange;
        let part = observe(self.attempt, outcome, *started, &mut self.state, &mut self.passing, part);
        if self.state.content_seen && !had_content && self.exchange.rollout.is_some() {
            self.exchange.tell_first_token(&self.attempt.backend.name);
        }
        part
    }

    /// Session of the client for one write, the server's side that goes on meanwhile, and the limits of the write.
    fn sides(&mut self) -> (&mut ClientSession, ServerSide<'_, 'a>, WriteLimits<'a>) {
        let Self { attempt, session, exchange, upstream, state, passing } = self;
        let downstream = attempt.downstream;
        let limits = WriteLimits { timeout: exchange.write_timeout, deadline: state.limits.deadline, downstream };
        let most = exchange.snapshot.buffered_answers_per_request;
        let (outcome, place, started) = (&mut exchange.outcome, &mut exchange.place, exchange.started);
        (session, ServerSide { attempt, outcome, place, started, most, upstream, state, passing }, limits)
    }

    /// Outcome of an answer that ended early after its head was sent: another server continues it where that is possible, else
    /// it is cut.
    pub(super) async fn died(&mut self, cut: CutReason) -> AttemptOutcome {
        match self.passing.transcript.as_ref().and_then(|transcript| transcript.to_continue()) {
            Some(said) => AttemptOutcome::Died(Box::new(Died { said, cut })),
            None => self.break_off(cut).await,
        }
    }
}

/// The server's side of a conversation while a write waits for the client: reads the answer on as far as memory allows, and
/// releases connection and slot at its end.
struct ServerSide<'l, 'a> {
    attempt: &'l Attempt<'a>,
    outcome: &'l mut exchange::Outcome,
    place: &'l mut Option<AttemptSlot>,
    started: std::time::Instant,
    /// Most bytes of one answer that may wait for the client.
    most: u64,
    upstream: &'l mut Option<UpstreamSession>,
    state: &'l mut ConversationState,
    passing: &'l mut Passing,
}

impl Beside for ServerSide<'_, '_> {
    async fn take_in(&mut self) {
        let Self { attempt, outcome, place, started, most, upstream, state, passing } = self;
        if state.answer_read || state.pending.is_some() {
            if upstream.is_some() || place.is_some() {
                release_early(attempt, upstream, place, &mut outcome.answered_in, state.sent, state.answer_read).await;
            }
            return std::future::pending().await;
        }
        let Some(server) = upstream.as_mut() else { return std::future::pending().await };
        if !passing.unread.has_room() {
            outcome.pause.begin();
            return std::future::pending().await;
        }
        if outcome.pause.end() {
            // The time that the client took to read is not the server's.
            state.heard = clock::now();
        }
        let read = tokio::select! {
            biased;
            () = sleep_until(state.server_due(attempt)) => {
                state.pending = Some(ConversationEvent::Silent);
                return;
            }
            read = server.read_part() => read,
        };
        match read {
            Ok(Some(part)) => {
                state.heard = clock::now();
                let part = observe(attempt, outcome, *started, state, passing, part);
                passing.unread.push(&part, attempt.downstream, *most);
            }
            Ok(None) => {
                passing.trailers = Some(trailers(server).await);
                state.answer_read = !passing.is_cut_short();
                state.pending = Some(ConversationEvent::AnswerEnd);
                if let Some(observer) = &mut passing.observer {
                    note_answer(attempt, outcome, observer.finish());
                }
            }
            Err(e) => state.pending = Some(ConversationEvent::UpstreamFailed(e)),
        }
    }
}

/// Bounds a write to the client by `limit`. A write that takes longer is treated as if the client had left.
pub async fn client_write(limit: Instant, write: impl Future<Output = pingora::Result<()>>) -> pingora::Result<()> {
    timeout_at(limit, write).await.unwrap_or_else(|_| pingora::Error::err(ErrorType::WriteTimedout))
}

/// Observes a part of an answer, and returns the bytes that may be passed on.
fn observe(
    attempt: &Attempt<'_>,
    outcome: &mut exchange::Outcome,
    started: std::time::Instant,
    state: &mut ConversationState,
    passing: &mut Passing,
    mut part: Bytes,
) -> Bytes {
    outcome.bytes_answered = outcome.bytes_answered.saturating_add(u64::try_from(part.len()).unwrap_or(0));
    let mut is_spoiled = false;
    if let Some(decoder) = passing.decoder.as_mut().filter(|_| !passing.is_spoiled) {
        (part, is_spoiled) = decoder.decode(&part);
    } else if passing.is_spoiled {
        part = Bytes::new();
    }
    if let Some(observer) = &mut passing.observer {
        observer.feed(&part, clock::instant());
        note_usage(attempt, outcome, observer.observation());
        if !state.content_seen
            && let Some(first) = observer.observation().first_content
        {
            state.content_seen = true;
            if state.event_stream {
                attempt.answered(Class::FirstToken, StatusCode::OK);
            }
            outcome.first_token = Some(first.saturating_duration_since(started));
        }
    }
    // Of an answer that nobody can read, the first byte is the first content.
    state.content_seen |= passing.observer.is_none() && !part.is_empty();
    if let Some(gate) = &mut passing.gate {
        part = gate.pass(part);
    }
    if passing.may_hide() {
        part = usage_chunk::hide(part);
    }
    if let Some(names) = &mut passing.names {
        part = names.pass(part);
    }
    part = passing.mask_part(&state.shown, part);
    if let Some(translator) = &mut passing.translator {
        part = translator.pass(&part);
        if is_spoiled {
            translator.fail();
        }
    }
    passing.is_spoiled |= is_spoiled;
    if let Some(transcript) = &mut passing.transcript {
        transcript.feed(&part);
    }
    part
}

/// True of an answer that is an error, or may still be one.
fn is_suspect(observer: &dyn Observe) -> bool {
    let seen = observer.observation();
    seen.has_failed || !seen.is_certain
}

/// Records the usage so far, and an error that the answer reports, for answers that are cut too.
fn note_usage(attempt: &Attempt<'_>, outcome: &mut exchange::Outcome, seen: &Observation) {
    if seen.has_failed {
        outcome.note_reported(attempt.reported(seen));
    }
    if outcome.response_id.is_none() {
        // Of an answer that its client does not read to the end too.
        outcome.response_id.clone_from(&seen.id);
    }
    outcome.unreported = seen.written.since(seen.reported);
    outcome.is_text_known = seen.is_known_shape;
    outcome.is_deferred = seen.is_deferred;
    outcome.is_error = seen.error.is_some() && seen.usage.is_none() && seen.written == Written::default();
    if let Some(usage) = &seen.usage {
        // A server that tells no prompt has read one all the same.
        outcome.prompt_tokens = Some(usage.prompt_tokens).filter(|tokens| *tokens > 0);
        outcome.completion_tokens = Some(usage.completion_tokens);
        outcome.cached_tokens = usage.cached_tokens;
        outcome.cache_written_tokens = usage.cache_written_tokens;
        outcome.cache_written_1h_tokens = usage.cache_written_1h_tokens;
    }
}

/// Records the facts of an answer that has ended.
pub(super) fn note_answer(attempt: &Attempt<'_>, outcome: &mut exchange::Outcome, seen: &Observation) {
    outcome.model_answered.clone_from(&seen.model);
    outcome.finish_reason.clone_from(&seen.finish_reason);
    outcome.response_id.clone_from(&seen.id);
    note_usage(attempt, outcome, seen);
}

/// Trailers of an answer, such as the status of gRPC.
async fn trailers(upstream: &mut UpstreamSession) -> Option<http::HeaderMap> {
    let trailers = clock::within(TRAILERS, upstream.trailers()).await.ok()??;
    Some(of_answer(trailers))
}

/// Cuts an answer whose head was sent: with an error event or trailers where the API has them, else by closing the
/// connection or resetting the stream. So no client mistakes half an answer for a whole one.
pub async fn break_off(
    session: &mut ClientSession,
    exchange: &mut Exchange,
    takes_events: bool,
    cut: CutReason,
) -> AttemptOutcome {
    exchange.outcome.broken = true;
    exchange.outcome.error_code = Some(cut.as_str());
    session.close_after();
    let (status, kind) = cut.class();
    let refusal = Refusal::new(status, kind, cut.as_str(), cut.message());
    let dialect = exchange.error_dialect();
    // A client that reads no more must not hold the server's slot for these writes.
    let until = clock::now() + LAST_WORD;
    if exchange.rewriting.take().is_some_and(|rewriting| rewriting.holds_head()) {
        exchange.outcome.broken = false;
        // Its server has worked for what the caller does not get.
        exchange.outcome.is_answer_unread = true;
        let _ = client_write(until, Box::pin(refuse(&refusal, session, exchange))).await;
        return AttemptOutcome::Broken(cut);
    }
    if session.is_http2()
        && let Some(trailers) = dialect.error_trailers(&refusal)
    {
        let _ = client_write(until, session.write_response_trailers(trailers)).await;
    } else if takes_events && let Some(mut event) = dialect.error_event(exchange.resolved.operation, &refusal) {
        let end = match dialect.stream_framing() {
            StreamFraming::Events if exchange.is_within_event() => END_OF_EVENT,
            StreamFraming::Lines if exchange.is_within_line() => b"\n",
            _ => b"",
        };
        if !end.is_empty() {
            event = [end, &event].concat().into();
        }
        exchange.observers.response_body(&event);
        let _ = client_write(until, session.write_response_body(event, true)).await;
    }
    AttemptOutcome::Broken(cut)
}

/// Reason to cut a stream whose event a filter has refused.
pub fn refused(exchange: &mut Exchange) -> Option<CutReason> {
    let Refusal { status, kind, code, .. } = *exchange.rewriting.as_mut()?.take_refusal()?;
    Some(CutReason::RefusedByFilter { status, kind, code })
}

/// Sends a refusal in place of an answer whose head no client has.
async fn refuse(refusal: &Refusal, session: &mut ClientSession, exchange: &mut Exchange) -> pingora::Result<()> {
    let (mut head, body) = exchange.render(refusal);
    let _ = head.insert_header(header::CONTENT_LENGTH, header::HeaderValue::from(body.len()));
    finish_response(&mut head, session.req_header(), exchange);
    exchange.outcome.status = refusal.status.as_u16();
    exchange.show(&body);
    session.write_response_header(Box::new(head)).await?;
    session.write_response_body(body, true).await
}

/// Outcome of an answer that is there and that no turn came to read. Its server has worked for it, and may have billed that.
fn unread(exchange: &mut Exchange, refusal: Box<Refusal>) -> AttemptOutcome {
    exchange.outcome.is_answer_unread = true;
    AttemptOutcome::Refused(refusal)
}
