//! Any bytes as a request of each translated API: what is read is written for every API, and what one has written another
//! reads. A second way there and back changes nothing more.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway::protocol::translate::{Lossy, Translate, chat_request};
use spillway::protocol::{ANTHROPIC, OPENAI};

fn apis() -> [&'static dyn Translate; 2] {
    [OPENAI, ANTHROPIC].map(|dialect| dialect.conversations().expect("an API of conversations"))
}

/// Body of a request for a server of an API, if it can be said there.
fn written(api: &dyn Translate, from: &dyn Translate, body: &[u8]) -> Option<Vec<u8>> {
    let conversation = from.read_request(body).ok()?;
    let request = api.write_request(&conversation, "m", &mut Lossy::new(&[])).ok()?;
    Some(request.body.to_vec())
}

fuzz_target!(|body: &[u8]| {
    for from in apis() {
        if let Ok(conversation) = from.read_request(body) {
            let _ = chat_request(conversation);
        }
        for api in apis() {
            let Some(once) = written(api, from, body) else { continue };
            let Ok(conversation) = api.read_request(&once) else { continue };
            let Ok(again) = api.write_request(&conversation, "m", &mut Lossy::new(&[])) else { continue };
            let twice = api.read_request(&again.body).expect("what was written is read");
            let third = api.write_request(&twice, "m", &mut Lossy::new(&[])).expect("what was read is written");
            assert_eq!(again.body, third.body, "{}", String::from_utf8_lossy(&once));
        }
    }
});
