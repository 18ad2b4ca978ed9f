//! Any bytes as a request of the Responses API or of Ollama's for a built-in model: it is read or refused in words, and the
//! members that an answer repeats are JSON in one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway::protocol::{Encode, OLLAMA, OPENAI, Operation};

fuzz_target!(|body: &[u8]| {
    for (dialect, operation) in [
        (OPENAI, Operation::Responses),
        (OLLAMA, Operation::Chat),
        (OLLAMA, Operation::Completions),
    ] {
        match dialect.read_chat(operation, body).expect("the operation is known") {
            Ok(request) => {
                let echoed = &request.echoed;
                assert!(!echoed.contains('\n') && !echoed.contains('\r'));
                let repeated: serde_json::Value =
                    serde_json::from_str(&format!("{{{echoed}}}")).expect("what is repeated is JSON");
                assert!(repeated.is_object());
            }
            Err(refusal) => assert!(!refusal.message.is_empty()),
        }
    }
    if let Err(refusal) = OLLAMA.read_encode(Encode::Embeddings, body).expect("the operation is known") {
        assert!(!refusal.message.is_empty());
    }
});
