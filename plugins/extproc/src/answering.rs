//! The answer's half of a conversation.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use spillway_filter::{AnswerEdit, AnswerHead, Fields, Pending, Processor, Reads, Refusal};

use crate::messages::{BodySendMode, CommonResponse, HttpHeaders, ImmediateResponse};
use crate::mutation::has_no_body;
use crate::session::{Failed, Half, Processed, Session, Word, changed_body};
use crate::{headers_of, mutation, refused};

/// Shows an answer to the processor, and changes it as that says.
pub(crate) struct Answering(pub(crate) Session);

impl Processor for Answering {
    fn reads(&self, _: &AnswerHead<'_>) -> bool {
        !self.0.is_over && !self.0.modes.skips_answer()
    }

    fn may_read_body(&self) -> bool {
        self.0.modes.response_body != BodySendMode::None || self.0.settings.allow_mode_override
    }

    fn head<'a>(&'a mut self, mut head: AnswerEdit<'a>, has_body: bool) -> Pending<'a, Result<Reads, Box<Refusal>>> {
        Box::pin(async move {
            let reads = self.show_head(&mut head, has_body).await;
            reads.or_else(|failed| self.failed(&failed).map_or(Ok(Reads::Nothing), Err))
        })
    }

    fn part<'a>(
        &'a mut self,
        part: Bytes,
        is_last: bool,
        head: Option<AnswerEdit<'a>>,
    ) -> Pending<'a, Result<Bytes, Box<Refusal>>> {
        Box::pin(async move {
            if self.0.is_over {
                return Ok(if self.0.has_ended_body { Bytes::new() } else { part });
            }
            match self.show_part(part.clone(), is_last, head).await {
                Ok(Some(body)) => Ok(body),
                // The head is out: nothing but an end can follow.
                Ok(None) => Err(Box::new(refused())),
                Err(failed) => self.failed(&failed).map_or(Ok(part), Err),
            }
        })
    }
}

impl Answering {
    async fn show_head(&mut self, head: &mut AnswerEdit<'_>, has_body: bool) -> Result<Reads, Failed> {
        if self.0.modes.response_headers {
            let status = head.status.as_str().to_owned();
            let shown = HttpHeaders {
                headers: Some(headers_of([(":status", status.as_bytes())], head.headers, &[])),
                end_of_stream: !has_body,
            };
            self.0.facts.served = head.endpoint;
            match self.0.headers(Half::Response, shown).await? {
                Word::Nothing => return Ok(Reads::Nothing),
                Word::Answer(answer) => return Ok(Reads::Replaced(replace(head, &answer))),
                Word::Change(change) => {
                    let (replaces, change) = (change.status == 1, *change);
                    self.change_head(head, &change);
                    if replaces {
                        self.0.is_over = true;
                        return Ok(Reads::Replaced(changed_body(change, Bytes::new())?));
                    }
                }
            }
        }
        Ok(match self.0.modes.response_body {
            BodySendMode::None => Reads::Nothing,
            BodySendMode::Buffered | BodySendMode::BufferedPartial => Reads::Whole,
            BodySendMode::Streamed | BodySendMode::FullDuplexStreamed => Reads::Parts,
        })
    }

    /// Body in place of a part; `None` where an answer of the processor comes too late.
    async fn show_part(
        &mut self,
        part: Bytes,
        is_last: bool,
        head: Option<AnswerEdit<'_>>,
    ) -> Result<Option<Bytes>, Failed> {
        let mode = self.0.modes.response_body;
        let processed = match (mode, head) {
            (BodySendMode::Buffered | BodySendMode::BufferedPartial, Some(mut head)) => {
                let most = self.0.settings.max_body();
                if mode == BodySendMode::Buffered && part.len() > most {
                    return Err(self.0.too_long());
                }
                let (shown, rest) = (part.slice(..part.len().min(most)), part.slice(part.len().min(most)..));
                match self.0.body(Half::Response, shown.clone(), rest.is_empty()).await? {
                    Word::Nothing => return Ok(Some(part)),
                    Word::Answer(answer) => return Ok(Some(replace(&mut head, &answer))),
                    Word::Change(change) => {
                        self.change_head(&mut head, &change);
                        self.0.is_over = true;
                        return Ok(Some(joined(changed_body(*change, shown)?, &rest)));
                    }
                }
            }
            (BodySendMode::FullDuplexStreamed, head) => (self.0.duplex_response(part, is_last).await?, head),
            (_, head) => (self.0.streamed(Half::Response, part, is_last).await?, head),
        };
        match processed {
            (Processed::Body(body), _) => Ok(Some(body)),
            (Processed::Answer(answer), Some(mut head)) => Ok(Some(replace(&mut head, &answer))),
            (Processed::Answer(_), None) => {
                self.0.is_over = true;
                Ok(None)
            }
        }
    }

    fn change_head(&self, head: &mut AnswerEdit<'_>, change: &CommonResponse) {
        let Some(mutation) = &change.header_mutation else { return };
        let changed = mutation::apply(mutation, head.headers);
        if let Some(status) = changed.status {
            *head.status = status;
        }
        if let Some(why) = changed.left_out {
            self.0.settings.report(&why);
        }
    }

    /// Ends the conversation after a failure: the refusal, unless the exchange can go on without the processor.
    fn failed(&mut self, failed: &Failed) -> Option<Box<Refusal>> {
        self.0.is_over = true;
        self.0.settings.report(&failed.0);
        self.0.settings.answer_failures.inc();
        (!self.0.settings.is_open || self.0.has_sent_parts).then(|| Box::new(refused()))
    }
}

/// Replaces a head by that of a processor's answer, and returns its body.
fn replace(head: &mut AnswerEdit<'_>, answer: &ImmediateResponse) -> Bytes {
    let (status, headers, body) = parts_of(answer);
    *head.status = status;
    *head.headers = headers;
    body
}

/// Status, headers and body of a processor's answer.
pub(crate) fn parts_of(answer: &ImmediateResponse) -> (StatusCode, Fields, Bytes) {
    let code = answer.status.and_then(|status| u16::try_from(status.code).ok()).unwrap_or(200);
    let status = StatusCode::from_u16(code).ok().filter(|status| status.as_u16() >= 200).unwrap_or(StatusCode::OK);
    let body = if has_no_body(status) { Bytes::new() } else { answer.body.clone() };
    let mut headers = Fields::default();
    if !body.is_empty() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    if let Some(changes) = &answer.headers {
        mutation::apply(changes, &mut headers);
    }
    (status, headers, body)
}

/// Two parts in one.
pub(crate) fn joined(first: Bytes, rest: &Bytes) -> Bytes {
    if rest.is_empty() {
        return first;
    }
    let mut out = BytesMut::with_capacity(first.len().saturating_add(rest.len()));
    out.extend_from_slice(&first);
    out.extend_from_slice(rest);
    out.freeze()
}
