//! Texts of model calls for their spans, in the form of OpenTelemetry's conventions for generative AI. Redacted as kept examples
//! are. Read on a blocking thread of the runtime when the exchange has ended, and in bounded number; the request waits for nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_filter::Fields;

use super::facts::decoded;
use super::sampled::{AnswerBytes, Waiting};
use super::sampling::{MOST_BODY, Tap};
use super::texts::{Prompt, Said, Text, Turn};
use crate::telemetry::{Span, names};

/// Bytes of the texts in one attribute.
const MOST_CONTENT: usize = 16 << 10;
/// Bytes of answers that are being collected, and of exchanges that wait to be read.
const MOST_WAITING: usize = 16 << 20;
/// Exchanges that wait to be read: each has a thread of the blocking ones for a millisecond or two.
const MOST_EXCHANGES: usize = 64;
/// Longest wait for the last exchanges at the end of the process.
const LAST: Duration = Duration::from_secs(1);
/// Time between two looks at what is left of them.
const POLL: Duration = Duration::from_millis(10);

/// Reader of texts for spans. One for the process, kept over reloads.
#[derive(Debug, Default)]
pub struct Contents {
    bytes: Arc<AtomicUsize>,
    exchanges: AtomicUsize,
}

/// Tap on an exchange whose texts its span shows.
#[derive(Debug)]
pub struct ContentTap {
    tap: Tap,
    contents: Arc<Contents>,
}

/// Exchange that waits to be read, counted until it is dropped.
struct ContentJob {
    body: Option<Bytes>,
    answer: AnswerBytes,
    is_whole: bool,
    finish: Option<String>,
    contents: Arc<Contents>,
    /// Counts its bytes.
    _waiting: Waiting,
}

impl Drop for ContentJob {
    fn drop(&mut self) {
        self.contents.exchanges.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Contents {
    /// Tap on a request with these headers.
    pub fn tap(self: &Arc<Self>, request: &Fields) -> ContentTap {
        ContentTap { tap: Tap::within(request, self.bytes.clone(), MOST_WAITING), contents: self.clone() }
    }

    /// Waits, for a bounded time, until all exchanges are read.
    pub async fn finish(&self) {
        let began = Instant::now();
        while self.exchanges.load(Ordering::Acquire) > 0 && began.elapsed() < LAST {
            tokio::time::sleep(POLL).await;
        }
    }
}

impl ContentTap {
    /// Tap on the answer.
    pub fn answer(&mut self) -> &mut Tap {
        &mut self.tap
    }

    /// Reads the texts of an exchange that has ended, and ends its span with them. Where there is no room, the span ends without
    /// them and says so.
    pub fn end(self, body: Option<&Bytes>, is_whole: bool, finish: Option<&str>, mut span: Span) {
        let Self { tap, contents } = self;
        let ended = SystemTime::now();
        let body = body.filter(|body| body.len() <= MOST_BODY).cloned();
        let is_room = contents.exchanges.fetch_add(1, Ordering::AcqRel) < MOST_EXCHANGES;
        let taken = tap.into_parts().and_then(|(answer, mut waiting)| {
            let bytes = body.as_ref().map_or(0, Bytes::len);
            (is_room && waiting.grow(bytes, MOST_WAITING)).then_some((answer, waiting))
        });
        let Some((answer, waiting)) = taken else {
            contents.exchanges.fetch_sub(1, Ordering::AcqRel);
            span.set(names::SPILLWAY_CONTENT_DROPPED, true);
            return;
        };
        let finish = finish.map(str::to_owned);
        let exchange = ContentJob { body, answer, is_whole, finish, contents, _waiting: waiting };
        tokio::task::spawn_blocking(move || {
            exchange.show(&mut span);
            span.end_at(ended);
        });
    }
}

impl ContentJob {
    fn show(&self, span: &mut Span) {
        let mut is_cut = false;
        if let Some(prompt) = self.body.as_deref().and_then(Prompt::read_turns) {
            if let Some(turns) = &prompt.turns {
                let messages = messages(turns, &mut is_cut);
                if !messages.is_empty() {
                    span.set_long(names::GEN_AI_INPUT_MESSAGES, Value::Array(messages).to_string());
                }
            }
            if !prompt.instructions.is_empty() {
                let content = content(&prompt.instructions, MOST_CONTENT, &mut is_cut);
                let part = json!([{"type": "text", "content": content}]);
                span.set_long(names::GEN_AI_SYSTEM_INSTRUCTIONS, part.to_string());
            }
        } else {
            is_cut |= self.body.is_none();
        }
        if let Some(plain) = decoded(&self.answer, self.is_whole) {
            let said = Said::read(&plain);
            is_cut |= self.answer.is_cut;
            if !said.text.is_empty() {
                let finish = self.finish.as_deref().or(said.finish.as_deref());
                let content = content(&said.text, MOST_CONTENT, &mut is_cut);
                let message = json!({
                    "role": "assistant", "parts": [{"type": "text", "content": content}],
                    "finish_reason": finish.unwrap_or("unknown"),
                });
                span.set_long(names::GEN_AI_OUTPUT_MESSAGES, json!([message]).to_string());
            }
        }
        if is_cut {
            span.set(names::SPILLWAY_CONTENT_TRUNCATED, true);
        }
    }
}

/// Messages of a request, the newest of those that find no room together.
fn messages(turns: &VecDeque<Turn>, is_cut: &mut bool) -> Vec<Value> {
    let mut room = MOST_CONTENT;
    let mut messages = VecDeque::new();
    for turn in turns.iter().rev().filter(|turn| !turn.text.is_empty()) {
        if room == 0 {
            *is_cut = true;
            break;
        }
        let content = content(&turn.text, room, is_cut);
        room = room.saturating_sub(content.len());
        messages.push_front(json!({"role": &*turn.role, "parts": [{"type": "text", "content": content}]}));
    }
    messages.into()
}

/// Text without what looks like personal data or a credential, of at most so many bytes.
fn content(text: &Text, most: usize, is_cut: &mut bool) -> String {
    *is_cut |= text.is_cut();
    let mut content = text.kept(true);
    if content.len() > most {
        *is_cut = true;
        content.truncate(content.floor_char_boundary(most));
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_roles_and_the_newest_have_room() {
        let body = json!({
            "model": "m",
            "system": "Be brief.",
            "messages": [
                {"role": "system", "content": "You are kind."},
                {"role": "user", "content": [{"type": "text", "text": "Mail ann@example.com"}]},
                {"role": "assistant", "content": null, "tool_calls": [{"id": "x"}]},
                {"role": "tool", "content": "sent"},
            ],
        });
        let prompt = Prompt::read_turns(body.to_string().as_bytes()).unwrap();
        let mut is_cut = false;
        let shown = messages(prompt.turns.as_ref().unwrap(), &mut is_cut);
        let text = |role: &str, text: &str| json!({"role": role, "parts": [{"type": "text", "content": text}]});
        assert_eq!(shown, [text("system", "You are kind."), text("user", "Mail [email]"), text("tool", "sent")]);
        assert_eq!((prompt.instructions.start.as_str(), is_cut), ("Be brief.", false));

        let long = "words and more words ".repeat(180);
        let many: Vec<Value> = (0..100).map(|n| json!({"role": "user", "content": format!("{n} {long}")})).collect();
        let prompt = Prompt::read_turns(json!({"messages": many}).to_string().as_bytes()).unwrap();
        let shown = messages(prompt.turns.as_ref().unwrap(), &mut is_cut);
        assert!(is_cut);
        let size = Value::Array(shown.clone()).to_string().len();
        assert!((MOST_CONTENT / 2..MOST_CONTENT + 1024).contains(&size), "{size}");
        assert!(shown.last().unwrap()["parts"][0]["content"].as_str().unwrap().starts_with("99 "), "the newest");
    }
}
