//! Any bytes as the body of a request to a model: what is read of it is what serde_json reads, and a body that is refused is
//! refused in words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway::protocol::{form_model, looks_like_json, peek, prompt_prefix};

fuzz_target!(|body: &[u8]| {
    let _ = prompt_prefix(body, 64);
    if let Ok(Some((model, at))) = form_model(b"multipart/form-data; boundary=x", body) {
        assert!(body.get(at).is_some_and(|written| written == model.as_bytes()));
    }
    for is_strict in [false, true] {
        match peek(body, is_strict) {
            Ok(seen) => {
                assert!(looks_like_json(body));
                let read: serde_json::Value = serde_json::from_slice(body).expect("what is taken is JSON");
                if let Some(model) = &seen.model {
                    assert_eq!(read["model"], **model);
                }
            }
            Err(refusal) => assert!(!refusal.message.is_empty()),
        }
    }
});
