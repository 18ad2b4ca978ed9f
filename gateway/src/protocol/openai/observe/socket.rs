//! Messages of sockets of OpenAI's API: those of the Realtime API and of the socket of the Responses API, each an event in
//! JSON. Of a message its type, its usage and the length of its text are read, whatever its length.

use super::scan::Scanner;
use crate::protocol::chat::{Observation, Written};
use crate::protocol::dialect::{ReadSocket, SocketEvent, SocketMessage, Speaker};

/// Characters of Base64 for a token of sound that a model says: 50 ms of G.711, which is 400 bytes. The other format, PCM of 16
/// bits at 24 kHz, has six times as many, so that no format is counted as less than it is.
const SAID_PER_TOKEN: u64 = 533;
/// Characters of Base64 for a token of sound that a model hears: 100 ms.
const HEARD_PER_TOKEN: u64 = 1067;
/// Bytes of text that an estimate counts as a token.
const TEXT_PER_TOKEN: u64 = 4;

/// Reader of one direction.
#[derive(Debug)]
struct Direction {
    scanner: Scanner,
    seen: Observation,
    length: u64,
}

impl Default for Direction {
    fn default() -> Self {
        let mut scanner = Scanner::default();
        scanner.restart();
        Self { scanner, seen: Observation::default(), length: 0 }
    }
}

impl Direction {
    fn feed(&mut self, part: &[u8]) {
        self.length = self.length.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
        self.scanner.feed(part, &mut self.seen);
    }

    fn end(&mut self) -> (SocketEvent, Observation, u64) {
        let named = self.scanner.message.unwrap_or_default();
        let (is_whole, has_type) = (self.scanner.is_complete, named.is_named());
        self.scanner.restart();
        let (mut seen, length) = (std::mem::take(&mut self.seen), std::mem::take(&mut self.length));
        if !(is_whole && has_type) {
            // Of what is no event, each byte may be text.
            seen.written = Written { events: 1, bytes: length };
        }
        (named.event(), seen, length)
    }
}

/// Reader of both directions.
#[derive(Debug, Default)]
pub(in crate::protocol::openai) struct SocketReader {
    client: Box<Direction>,
    server: Box<Direction>,
}

impl ReadSocket for SocketReader {
    fn feed(&mut self, from: Speaker, part: &[u8]) {
        match from {
            Speaker::Client => self.client.feed(part),
            Speaker::Server => self.server.feed(part),
        }
    }

    fn end(&mut self, from: Speaker) -> SocketMessage {
        let text = |length: u64, per_token: u64| length.div_ceil(per_token).saturating_mul(TEXT_PER_TOKEN);
        match from {
            // All that a client says is for the model to read.
            Speaker::Client => {
                let (event, seen, length) = self.client.end();
                let bytes = if event == SocketEvent::Hears { text(length, HEARD_PER_TOKEN) } else { length };
                SocketMessage {
                    event,
                    written: Written { events: 0, bytes },
                    model: seen.model,
                    ..SocketMessage::default()
                }
            }
            Speaker::Server => {
                let (event, seen, _) = self.server.end();
                let mut written = seen.written;
                if event == SocketEvent::Sound {
                    written.bytes = text(written.bytes, SAID_PER_TOKEN);
                }
                SocketMessage { event, usage: seen.usage, written, model: seen.model, id: seen.id }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::chat::Usage;

    fn said(from: Speaker, message: &str) -> SocketMessage {
        let mut reader = SocketReader::default();
        // What a message before has said counts for nothing.
        reader.feed(from, br#"{"type":"response.cancel","id":"x","delta":"text","usage":{"input_tokens":9}}"#);
        reader.end(from);
        reader.feed(from, message.as_bytes());
        let whole = reader.end(from);
        for byte in message.as_bytes() {
            reader.feed(from, &[*byte]);
        }
        assert_eq!(reader.end(from), whole, "{message}");
        whole
    }

    #[test]
    fn responses_of_both_apis_tell_their_usage() {
        let realtime = said(
            Speaker::Server,
            r#"{"type":"response.done","event_id":"e","response":{"object":"realtime.response","id":"r1","status":"completed",
                "output":[{"type":"message","content":[{"type":"output_audio","transcript":"Hello there"}]}],
                "usage":{"total_tokens":253,"input_tokens":132,"output_tokens":121,
                    "input_token_details":{"text_tokens":119,"audio_tokens":13,"cached_tokens":64,
                        "cached_tokens_details":{"text_tokens":64,"audio_tokens":0}},
                    "output_token_details":{"text_tokens":30,"audio_tokens":91}}}}"#,
        );
        let usage = Usage { prompt_tokens: 132, completion_tokens: 121, cached_tokens: Some(64), ..Usage::default() };
        let id = Some("r1".to_owned());
        assert_eq!(realtime, SocketMessage { event: SocketEvent::Ends, usage: Some(usage), id, ..realtime.clone() });
        assert_eq!(realtime.written, Written::default(), "its text has come before");
        let responses = said(
            Speaker::Server,
            r#"{"type":"response.completed","sequence_number":9,"response":{"id":"resp_1","model":"gpt-5","output":[],"usage":
                {"input_tokens":10,"input_tokens_details":{"cached_tokens":4},"output_tokens":3,
                 "output_tokens_details":{"reasoning_tokens":2},"total_tokens":13}}}"#,
        );
        let usage = Usage {
            prompt_tokens: 10,
            completion_tokens: 3,
            cached_tokens: Some(4),
            reasoning_tokens: Some(2),
            cache_written_tokens: None,
            cache_written_1h_tokens: None,
        };
        assert_eq!((responses.event, responses.usage), (SocketEvent::Ends, Some(usage)));
        assert_eq!(responses.model.as_deref(), Some("gpt-5"));
        let transcript = said(
            Speaker::Server,
            r#"{"type":"conversation.item.input_audio_transcription.completed","item_id":"i","transcript":"Hi",
                "usage":{"type":"tokens","total_tokens":22,"input_tokens":13,"output_tokens":9}}"#,
        );
        assert_eq!((transcript.event, transcript.usage.unwrap().completion_tokens), (SocketEvent::Transcript, 9));
    }

    #[test]
    fn text_and_sound_are_counted_as_they_come() {
        let written = |message: &str| said(Speaker::Server, message).written;
        let text = r#"{"type":"response.output_text.delta","response_id":"r","delta":"Hello"}"#;
        assert_eq!(written(text), Written { events: 1, bytes: 5 });
        let sound = format!(r#"{{"delta":"{}","type":"response.output_audio.delta"}}"#, "A".repeat(1066));
        assert_eq!(written(&sound), Written { events: 1, bytes: 8 }, "two tokens");
        assert_eq!(written("no event"), Written { events: 1, bytes: 8 });
        assert_eq!(written(r#"{"type":"rate_limits.updated","rate_limits":[]}"#), Written::default());
        let heard = format!(r#"{{"type":"input_audio_buffer.append","audio":"{}"}}"#, "A".repeat(3200));
        assert_eq!(said(Speaker::Client, &heard).written.bytes, 16, "four tokens");
    }

    #[test]
    fn only_a_message_that_surely_starts_nothing_is_quiet() {
        let event = |message: &str| said(Speaker::Client, message).event;
        assert_eq!(
            event(r#"{"event_id":"e","type":"session.update","session":{"type":"response.create"}}"#),
            SocketEvent::Quiet
        );
        assert_eq!(event(r#"{"response":{"type":"session.update"},"type":"response.create"}"#), SocketEvent::Asks);
        for unsure in [
            r#"{"type":"session.update","type":"response.create"}"#,
            r#"{"type":"session.update","type":"session.update"}"#,
            r#"{"type":"session.updat\u0065"}"#,
            r#"{"Type":"session.update"}"#,
            r#"{"typ\u0065":"response.create","type":"session.update"}"#,
            r#"["session.update"]"#,
            "",
            "response.cancel",
        ] {
            assert_eq!(event(unsure), SocketEvent::Other, "{unsure}");
        }
    }
}
