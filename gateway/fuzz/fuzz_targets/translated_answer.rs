//! Any bytes as an answer of a server of each translated API, whole and as a stream: what a stream says does not depend on
//! where it is cut (the first byte says where), and what is read is written for every API.
#![no_main]

use bytes::BytesMut;
use http::StatusCode;
use libfuzzer_sys::fuzz_target;
use spillway::protocol::translate::{Asked, CallerApi, Delta, ServerApi};
use spillway::protocol::{ANTHROPIC, OLLAMA, OPENAI, Operation};

/// APIs of callers, with the side of servers of those that have one.
fn callers() -> [(&'static dyn CallerApi, Option<&'static dyn ServerApi>); 6] {
    [
        (OPENAI, Operation::Chat, OPENAI.conversations()),
        (ANTHROPIC, Operation::Messages, ANTHROPIC.conversations()),
        (OPENAI, Operation::Completions, None),
        (OPENAI, Operation::Responses, None),
        (OLLAMA, Operation::Chat, None),
        (OLLAMA, Operation::Completions, None),
    ]
    .map(|(dialect, operation, server)| (dialect.translator(operation).expect("an API of callers"), server))
}

/// APIs of servers.
fn servers() -> [&'static dyn ServerApi; 2] {
    [OPENAI, ANTHROPIC].map(|dialect| dialect.conversations().expect("an API of servers"))
}

/// Deltas of a stream with so many choices, in parts of `size` bytes. Ids of calls whose server tells none are new each time.
fn read(api: &dyn ServerApi, choices: usize, stream: &[u8], size: usize) -> (Vec<Delta>, bool) {
    let (mut reader, mut deltas) = (api.read_stream(choices), Vec::new());
    let mut emit = |delta| {
        deltas.push(match delta {
            Delta::ToolCall { index, name, .. } => Delta::ToolCall { index, id: String::new(), name },
            delta => delta,
        });
    };
    for part in stream.chunks(size) {
        if reader.feed(part, &mut emit).is_err() {
            return (deltas, false);
        }
    }
    let ended = reader.finish(&mut emit) == Ok(true);
    (deltas, ended)
}

fuzz_target!(|input: &[u8]| {
    let [size, answer @ ..] = input else { return };
    for from in servers() {
        let choices = usize::from(*size) % 3;
        let whole = read(from, choices, answer, usize::MAX);
        assert_eq!(whole, read(from, choices, answer, usize::from(*size).max(1)));
        for (api, server) in callers() {
            let asked =
                Asked { model: "m".to_owned(), choices, stream: true, include_usage: true, ..Asked::default() };
            let (mut writer, mut out) = (api.write_stream(&asked), BytesMut::new());
            for delta in whole.0.clone() {
                if writer.write(delta, &mut out).is_err() {
                    break;
                }
            }
            let (error, _) = api.write_error(&from.read_error(StatusCode::BAD_GATEWAY, answer), "id");
            assert!(error.is_server_error());
            if let Ok(reply) = from.read_reply(answer)
                && let Ok(body) = api.write_reply(&reply, &asked)
                && let Some(server) = server
            {
                server.read_reply(&body).expect("what was written is read");
            }
        }
    }
});
