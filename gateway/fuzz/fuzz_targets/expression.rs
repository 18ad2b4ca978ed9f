//! Any text as an expression: it is compiled or refused in words, and what is compiled answers or fails, in bounded time.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use spillway_cel::{Expression, Scope, Seen, Served};
use spillway_filter::Fields;

fuzz_target!(|text: &str| {
    let headers = Fields::default();
    let seen = Seen {
        method: "POST",
        path: "/v1/chat/completions",
        query: "a=b",
        headers: &headers,
        client: IpAddr::from([127, 0, 0, 1]),
        route: "r",
        model: Some("m"),
        body: Some(br#"{"model":"m","messages":[]}"#),
        caller: None,
        secure: false,
        now: None,
        served: Served::default(),
        prompt: None,
        hides: None,
    };
    match Expression::condition(text, Scope::Request) {
        Ok(expression) => drop(expression.holds(&seen)),
        Err(why) => assert!(!why.is_empty()),
    }
    if let Ok(expression) = Expression::value(text, Scope::Request) {
        let _ = expression.text(&seen);
    }
});
