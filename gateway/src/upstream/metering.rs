//! Counts the tokens of a socket of a model API as its messages pass: each response is reserved before it begins, and settled
//! by the usage that its end tells. A caller with nothing left begins no further response.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use spillway_filter::Refusal;

use super::socket_names::SocketNames;
use crate::clock;
use crate::exchange::Outcome;
use crate::limits::{Costs, Estimate, Ledger, Payer, Prices, TokenRules, Used};
use crate::protocol::{ReadSocket, SocketEvent, SocketMessage, Speaker, Usage, Written};
use crate::telemetry::{CallStats, ModelMetrics};
use crate::tunnel::{Messages, Side};

type Reserving = Pin<Box<dyn Future<Output = Result<Ledger, Box<Refusal>>> + Send>>;

/// Most responses of one socket that are under way or asked for. Each has a reservation.
const MOST_RESPONSES: u32 = 128;

fn too_many_responses() -> Refusal {
    Refusal::invalid(
        "too_many_responses",
        format!("More than {MOST_RESPONSES} responses of one socket are asked for at once."),
    )
}

fn hidden_name() -> Refusal {
    Refusal::invalid(
        "ambiguous_parameter",
        "Send messages as text, with `model` in small letters and without escapes.".to_owned(),
    )
}

/// Prices, model and rules by which the tokens of a socket are counted.
pub(super) struct SocketTariff<'e> {
    pub(super) prices: &'e Prices,
    pub(super) costs: &'e Costs,
    pub(super) payer: Payer<'e>,
    /// Model that the caller named.
    pub(super) asked: Option<&'e str>,
    pub(super) rules: Arc<TokenRules>,
}

/// Response that is under way, or was asked for.
#[derive(Debug, Default)]
struct Response {
    /// Responses that the server has begun and not ended.
    running: u32,
    /// Responses that the client has asked for and that have not begun.
    asked: u32,
    began: Option<Instant>,
    first_text: Option<Instant>,
    /// Text of responses that no usage covers.
    written: Written,
}

/// Counter of the tokens of a socket, which puts each side's name of the model in place as well. What no usage has told is settled
/// when it is dropped.
pub(super) struct SocketMeter<'e> {
    reader: Box<dyn ReadSocket>,
    /// Names of the model to exchange on the way.
    names: Option<Box<SocketNames>>,
    tariff: SocketTariff<'e>,
    metrics: Option<&'e ModelMetrics>,
    /// Reservations of the handshake, by which the first response is settled.
    opened: &'e mut Ledger,
    outcome: &'e mut Outcome,
    is_first: bool,
    /// Reservations of the responses under way and asked for, beside that of the handshake.
    held: Vec<Ledger>,
    reserving: Option<Reserving>,
    refused: Option<Box<Refusal>>,
    response: Response,
    /// Text of the client that is transcribed and whose usage is to come.
    transcribed: Written,
    /// Text that the client has sent since the last usage.
    sent: Written,
    /// Tokens that the last response has read, which the next one reads again.
    last_prompt: u64,
}

impl<'e> SocketMeter<'e> {
    pub(super) fn new(
        (reader, names): (Box<dyn ReadSocket>, Option<Box<SocketNames>>),
        tariff: SocketTariff<'e>,
        metrics: Option<&'e ModelMetrics>,
        opened: &'e mut Ledger,
        outcome: &'e mut Outcome,
    ) -> Self {
        Self {
            reader,
            names,
            tariff,
            metrics,
            opened,
            outcome,
            is_first: true,
            held: Vec::new(),
            reserving: None,
            refused: None,
            response: Response::default(),
            transcribed: Written::default(),
            sent: Written::default(),
            last_prompt: 0,
        }
    }

    /// Reserves for the responses that are under way and asked for, and for `more`, as far as that is not done. False if a limit
    /// is reached. A reservation that waits for the shared store lets messages pass meanwhile.
    fn may_begin(&mut self, more: u32, cx: &mut Context<'_>) -> bool {
        if self.tariff.rules.is_empty() {
            return true;
        }
        let needed = self.response.running.saturating_add(self.response.asked).saturating_add(more);
        if needed > MOST_RESPONSES {
            self.refused.get_or_insert_with(|| Box::new(too_many_responses()));
        }
        while self.refused.is_none() {
            if let Some(reserving) = &mut self.reserving {
                let Poll::Ready(reserved) = reserving.as_mut().poll(cx) else { return true };
                self.reserving = None;
                match reserved {
                    Ok(ledger) => self.held.push(ledger),
                    Err(refusal) => self.refused = Some(refusal),
                }
                continue;
            }
            let reserved = u32::try_from(self.held.len()).unwrap_or(u32::MAX).saturating_add(u32::from(self.is_first));
            if needed <= reserved {
                return true;
            }
            let rules = self.tariff.rules.clone();
            self.reserving = Some(Box::pin(async move { rules.reserve().await }));
        }
        false
    }

    fn said(&mut self, message: SocketMessage, is_text: bool, cx: &mut Context<'_>) -> bool {
        self.sent = self.sent.and(message.written);
        match message.event {
            SocketEvent::Quiet if is_text => true,
            event => {
                let may_begin = self.may_begin(1, cx);
                if may_begin && event == SocketEvent::Asks {
                    self.response.asked = self.response.asked.saturating_add(1);
                }
                may_begin
            }
        }
    }

    fn answered(&mut self, message: SocketMessage, cx: &mut Context<'_>) {
        let SocketMessage { event, usage, written, model, id } = message;
        self.outcome.model_answered = model.or(self.outcome.model_answered.take());
        self.outcome.response_id = id.or(self.outcome.response_id.take());
        match event {
            SocketEvent::Transcript => {
                self.transcribed = self.transcribed.and(written);
                if let Some(usage) = usage {
                    self.transcribed = Written::default();
                    self.settle(used(usage), false);
                }
            }
            SocketEvent::Begins => {
                self.response.running = self.response.running.saturating_add(1);
                self.response.asked = self.response.asked.saturating_sub(1);
                self.response.began.get_or_insert_with(clock::instant);
                self.may_begin(0, cx);
            }
            SocketEvent::Ends => self.ended(usage),
            SocketEvent::Fails => self.response.asked = self.response.asked.saturating_sub(1),
            _ => {
                if written != Written::default() {
                    self.response.first_text.get_or_insert_with(clock::instant);
                    self.response.written = self.response.written.and(written);
                }
            }
        }
    }

    /// Settles a response that has ended.
    fn ended(&mut self, usage: Option<Usage>) {
        let now = clock::instant();
        // Some servers do not tell that a response begins.
        if self.response.running == 0 {
            self.response.asked = self.response.asked.saturating_sub(1);
        }
        self.response.running = self.response.running.saturating_sub(1);
        // One that failed has told no usage, and has no text.
        let used = usage.map_or_else(|| self.estimated(0), used);
        let began = self.response.began.unwrap_or(now);
        let first = self.response.first_text.map(|first| first.saturating_duration_since(began));
        if let (Some(metrics), Some(usage)) = (self.metrics, usage) {
            let tokens = CallStats {
                input: Some(usage.prompt_tokens),
                cached: usage.cached_tokens,
                cache_written: usage.cache_written_tokens,
                output: Some(usage.completion_tokens),
                first,
                trace: None,
            };
            metrics.called(tokens, now.saturating_duration_since(began));
        }
        self.settle(used, true);
        if self.response.running == 0 {
            self.response = Response { asked: self.response.asked, ..Response::default() };
        } else {
            // Of the text of several, that of the one that has ended is covered.
            let covered = Written { events: used.output, bytes: used.output.saturating_mul(4) };
            self.response.written = self.response.written.since(covered);
        }
        if usage.is_some() {
            (self.sent, self.last_prompt) = (Written::default(), used.input);
        }
    }

    /// Tokens of responses of which no usage tells: the text that has passed, and for each that is under way a prompt as long as
    /// the last one with what was said since. A text had a prompt.
    fn estimated(&self, under_way: u32) -> Used {
        let output = tokens(self.response.written);
        let prompts = u64::from(under_way.max(u32::from(output > 0)));
        let prompt = self.last_prompt.saturating_add(tokens(self.sent));
        Used { input: prompt.saturating_mul(prompts), output, ..Used::default() }
    }

    /// Settles what was used, by the reservation that was made for it where there is one.
    fn settle(&mut self, mut used: Used, is_response: bool) {
        used.nanos = self.tariff.prices.of(used, self.outcome.model_answered.as_deref(), self.tariff.asked, false);
        let model = self.tariff.prices.name_of(self.outcome.model_answered.as_deref(), self.tariff.asked, false);
        if used.tokens() > 0 {
            self.tariff.costs.add(self.tariff.payer, model, used);
        }
        if is_response && std::mem::take(&mut self.is_first) {
            self.opened.settle(used);
        } else if is_response && let Some(mut held) = self.held.pop() {
            held.settle(used);
        } else {
            self.tariff.rules.charge(used);
        }
        let add = |sum: &mut Option<u64>, more: u64| *sum = Some(sum.unwrap_or(0).saturating_add(more));
        add(&mut self.outcome.prompt_tokens, used.input);
        add(&mut self.outcome.completion_tokens, used.output);
        for (sum, more) in [
            (&mut self.outcome.cached_tokens, used.cached),
            (&mut self.outcome.cache_written_tokens, used.cache_written),
            (&mut self.outcome.cache_written_1h_tokens, used.cache_written_1h),
        ] {
            if more > 0 {
                add(sum, more);
            }
        }
    }
}

impl Messages for SocketMeter<'_> {
    fn part(&mut self, from: Side, payload: &[u8]) {
        self.reader.feed(speaker(from), payload);
    }

    fn rewrites(&self) -> bool {
        self.names.is_some()
    }

    fn write(&mut self, from: Side, payload: &[u8], out: &mut Vec<u8>) {
        match &mut self.names {
            Some(names) => names.write(from, payload, out),
            None => out.extend_from_slice(payload),
        }
    }

    fn write_end(&mut self, from: Side, out: &mut Vec<u8>) {
        if let Some(names) = &mut self.names {
            names.write_end(from, out);
        }
    }

    fn end(&mut self, from: Side, is_text: bool, cx: &mut Context<'_>) -> bool {
        let message = self.reader.end(speaker(from));
        match from {
            Side::Client if self.names.as_mut().is_some_and(|names| names.are_evaded(is_text)) => {
                self.refused = Some(Box::new(hidden_name()));
                false
            }
            Side::Client => self.said(message, is_text, cx),
            Side::Server => {
                self.answered(message, cx);
                true
            }
        }
    }

    fn must_end(&mut self, cx: &mut Context<'_>) -> bool {
        !self.may_begin(0, cx)
    }

    fn reason(&self) -> &str {
        self.refused.as_ref().map_or("", |refusal| &*refusal.message)
    }
}

impl Drop for SocketMeter<'_> {
    fn drop(&mut self) {
        // Who leaves pays for what was asked, as for a request.
        let mut used = self.estimated(self.response.running.saturating_add(self.response.asked));
        used.output = used.output.saturating_add(tokens(self.transcribed));
        if used != Used::default() {
            self.settle(used, true);
        }
    }
}

fn speaker(side: Side) -> Speaker {
    match side {
        Side::Client => Speaker::Client,
        Side::Server => Speaker::Server,
    }
}

fn tokens(written: Written) -> u64 {
    Estimate::of_written(written.bytes, written.events)
}

fn used(usage: Usage) -> Used {
    Used {
        input: usage.prompt_tokens,
        cached: usage.cached_tokens.unwrap_or(0),
        cache_written: usage.cache_written_tokens.unwrap_or(0),
        cache_written_1h: usage.cache_written_1h_tokens.unwrap_or(0),
        output: usage.completion_tokens,
        nanos: 0,
    }
}
