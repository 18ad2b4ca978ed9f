//! Any bytes as a request of each translated API: what is read is written for every API, and what one has written another
//! reads. A second way there and back changes nothing more.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway::protocol::translate::{CallerApi, Lossy, ServerApi, ServerWords, chat_request};
use spillway::protocol::{ANTHROPIC, OLLAMA, OPENAI, Operation};

/// APIs of callers.
fn callers() -> [&'static dyn CallerApi; 6] {
    [
        (OPENAI, Operation::Chat),
        (OPENAI, Operation::Completions),
        (OPENAI, Operation::Responses),
        (ANTHROPIC, Operation::Messages),
        (OLLAMA, Operation::Chat),
        (OLLAMA, Operation::Completions),
    ]
    .map(|(dialect, operation)| dialect.translator(operation).expect("an API of callers"))
}

/// APIs of servers, with their side of callers.
fn apis() -> [(&'static dyn CallerApi, &'static dyn ServerApi); 2] {
    [(OPENAI, Operation::Chat), (ANTHROPIC, Operation::Messages)].map(|(dialect, operation)| {
        let caller = dialect.translator(operation).expect("an API of callers");
        (caller, dialect.conversations().expect("an API of servers"))
    })
}

/// Body of a request for a server of an API, if it can be said there.
fn written(server: &dyn ServerApi, from: &dyn CallerApi, body: &[u8]) -> Option<Vec<u8>> {
    let conversation = from.read_request(body).ok()?;
    let request = server.write_request(&conversation, ("m", ServerWords::default()), &mut Lossy::new(&[])).ok()?;
    Some(request.body.to_vec())
}

fuzz_target!(|body: &[u8]| {
    for from in callers() {
        if let Ok(conversation) = from.read_request(body) {
            let _ = chat_request(conversation);
        }
        for (caller, server) in apis() {
            let Some(once) = written(server, from, body) else { continue };
            let Ok(conversation) = caller.read_request(&once) else { continue };
            let Ok(again) = server.write_request(&conversation, ("m", ServerWords::default()), &mut Lossy::new(&[])) else { continue };
            let twice = caller.read_request(&again.body).expect("what was written is read");
            let third = server.write_request(&twice, ("m", ServerWords::default()), &mut Lossy::new(&[])).expect("what was read is written");
            assert_eq!(again.body, third.body, "{}", String::from_utf8_lossy(&once));
        }
    }
});
