//! Tests that the facts read from an answer do not depend on where it was cut, and that no answer takes more memory than
//! another.

use proptest::prelude::*;

use super::*;
use crate::protocol::chat::{ObservedError, Usage, Written};

const STREAM: &str = "\u{feff}: hello\n\nid: 7\nevent: message\n\
    data: {\"id\":\"\",\"model\":\"\",\"choices\":[],\"prompt_filter_results\":[{\"content\":\"no\"}]}\n\n\
    data: {\"id\":\"c\\u0031\",\"model\":\"m\\\"1\\\"\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n\
    : ping\r\n\r\n\
    data:{\"id\":\"c2\",\"choices\":[{\"delta\":{\"content\":\"hé, \\\"you\\\\\\\" {]\"}}]}\r\r\
    data\ndatabase: {\"model\":\"no\"}\n data: {\"model\":\"no\"}\n\n\
    data: {\"choices\":[{\"delta\":{},\ndata: \"finish_reason\": \"stop\"}],\ndata: \"x\":{\"usage\":{\"prompt_tokens\":99}}}\n\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7,\
    \"prompt_tokens_details\":{\"cached_tokens\":3},\"completion_tokens_details\":{\"reasoning_tokens\":1}}}\r\n\r\ndata: [DONE]\r\n\r\n";

fn observer(kind: &'static str) -> Observer {
    Observer::for_response(Some(&HeaderValue::from_static(kind))).unwrap()
}

/// Feeds `bytes` in parts that end at `cuts`.
fn observe(kind: &'static str, bytes: &[u8], cuts: &[usize], now: Instant) -> Observation {
    let mut observer = observer(kind);
    let mut from = 0;
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.sort_unstable();
    for cut in cuts.into_iter().chain([bytes.len()]) {
        observer.feed(&bytes[from..cut], now);
        from = cut;
    }
    observer.finish().clone()
}

fn expected(now: Instant) -> Observation {
    Observation {
        id: Some("c1".into()),
        model: Some("m\"1\"".into()),
        finish_reason: Some("stop".into()),
        usage: Some(Usage {
            prompt_tokens: 5,
            completion_tokens: 2,
            cached_tokens: Some(3),
            cache_written_tokens: None,
            cache_written_1h_tokens: None,
            reasoning_tokens: Some(1),
        }),
        first_content: Some(now),
        written: Written { events: 1, bytes: 14 },
        reported: Written { events: 1, bytes: 14 },
        is_known_shape: true,
        is_deferred: false,
        is_whole: true,
        error: None,
        is_certain: true,
        has_failed: false,
    }
}

/// Of a beginning that is too long to be remembered nothing is.
#[test]
fn a_long_beginning_is_read_each_time() {
    let long = format!("{{\"id\":\"{}\",\"choices\":[{{\"delta\":{{\"content\":\"c\"}}}}]}}", "x".repeat(600));
    let repeated = "{\"reasoning\":\"r\"}";
    let lines = [long.as_str(), long.as_str(), repeated, repeated, repeated].map(|line| format!("{line}\n")).concat();
    let now = Instant::now();
    let every_byte: Vec<usize> = (0..lines.len()).collect();
    let seen = |cuts: &[usize]| observe("application/x-ndjson", lines.as_bytes(), cuts, now);
    assert_eq!(seen(&[]), seen(&every_byte));
}

#[test]
fn a_stream_cut_at_any_two_bytes_tells_the_same() {
    let now = Instant::now();
    let bytes = STREAM.as_bytes();
    for first in 0..bytes.len() {
        for second in [first, first + 1, first + 2, bytes.len()] {
            let seen = observe("text/event-stream; charset=utf-8", bytes, &[first, second], now);
            assert_eq!(seen, expected(now), "cut at {first} and {second}");
        }
    }
    let every_byte: Vec<usize> = (0..bytes.len()).collect();
    assert_eq!(observe("text/event-stream", bytes, &every_byte, now), expected(now));
}

proptest! {
    #[test]
    fn any_bytes_tell_the_same_however_they_are_cut(
        pieces in proptest::collection::vec(prop_oneof![
            proptest::sample::select(vec![
                "data: ", "data", "\n", "\r", "\r\n", "[DONE]", "{", "}", "[", "]", "\"", "\\", ",", ":", " ", "null", "12",
                "\"id\":\"a\"", "\"model\":\"b\"", "\"choices\":[{", "\"delta\":{", "\"content\":\"c\"", "\"usage\":{",
                "\"prompt_tokens\":3", "\"completion_tokens\":4", "\"finish_reason\":\"stop\"", "\"error\":{", "\"type\":\"t\"",
                "\"delta\":\"d\"", "\"message\":{", "\"response\":{", "\"content\":[", "\"tool_calls\":[{", "\"arguments\":{",
                "\"text\":\"\\u00e9\\ud83d\\ude00\\n\"", "\"output_tokens\":5", "\"input_tokens\":6", "\"total_tokens\":9",
                "\\u", "\"reasoning\":\"r\"", "\"output\":[{", "\"eval_count\":7", "\"type\":\"message_stop\"",
            ]).prop_map(|text| text.as_bytes().to_vec()),
            proptest::collection::vec(any::<u8>(), 0..9),
        ], 0..60),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let bytes = pieces.concat();
        let now = Instant::now();
        for kind in ["text/event-stream", "application/json", "application/x-ndjson"] {
            prop_assert_eq!(observe(kind, &bytes, &cuts, now), observe(kind, &bytes, &[], now));
        }
    }

    /// Events that begin alike are read as if each were the first. Cut at every byte, no beginning is known again.
    #[test]
    fn a_beginning_that_is_known_tells_what_it_told_before(
        events in proptest::collection::vec((
            proptest::sample::select(vec![
                "{\"id\":\"a\",\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":",
                "{\"id\":\"\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":",
                "{\"choices\":[{\"finish_reason\":\"length\",\"delta\":{\"reasoning\":",
                "{\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4},\"choices\":[{\"delta\":{\"content\":",
                "{\"choices\":[{\"delta\":{\"reasoning\":\"r\",\"content\":",
                "{\"choices\":[{\"delta\":{\"tool_calls\":[{\"function\":{\"arguments\":",
                "{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":",
                "{\"type\":\"message_stop\",\"delta\":{\"text\":",
                "{\"type\":\"error\",\"delta\":{\"text\":",
                "{\"type\":\"error\",\"error\":{\"code\":\"c\",\"message\":",
                "{\"reasoning\":", "{\"done\":true,\"message\":{\"content\":", "{\"delta\":",
            ]),
            proptest::sample::select(vec!["\"word\"", "\"\"", "\"a\\n\\u00e9\"", "null", "7", "[\"x\"]"]),
            proptest::sample::select(vec!["}", "}}", "}]}", "}}]}", "},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":1}}"]),
        ), 1..9),
    ) {
        let now = Instant::now();
        let lines = events.iter().map(|(beginning, text, rest)| format!("{beginning}{text}{rest}"));
        for (kind, stream) in [
            ("text/event-stream", lines.clone().map(|line| format!("data: {line}\n\n")).collect::<String>()),
            ("application/x-ndjson", lines.map(|line| format!("{line}\n")).collect()),
        ] {
            let bytes = stream.as_bytes();
            let every_byte: Vec<usize> = (0..bytes.len()).collect();
            prop_assert_eq!(observe(kind, bytes, &[], now), observe(kind, bytes, &every_byte, now), "{}", stream);
        }
    }

    /// The facts read agree with a parser that holds the whole answer.
    #[test]
    fn a_whole_answer_is_read_as_a_parser_reads_it(
        id in ".{1,20}", model in ".{1,20}", reason in "[a-z_]{1,12}", text in any::<String>(),
        prompt in any::<u64>(), completion in any::<u64>(), pretty in any::<bool>(),
    ) {
        let answer = serde_json::json!({
            "extra": [{"id": "no", "usage": {"prompt_tokens": 1}}, text, -1.5e3, true],
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text, "id": "no"}, "finish_reason": reason}],
            "id": id, "model": model,
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 0},
        });
        let bytes = if pretty { serde_json::to_vec_pretty(&answer) } else { serde_json::to_vec(&answer) }.unwrap();
        let seen = observe("application/json", &bytes, &[bytes.len() / 2], Instant::now());
        prop_assert_eq!(seen.written, Written { events: u64::from(!text.is_empty()), bytes: text.len() as u64 });
        prop_assert_eq!(seen.id, Some(id));
        prop_assert_eq!(seen.model, Some(model));
        prop_assert_eq!(seen.finish_reason, Some(reason));
        let usage = seen.usage.unwrap();
        prop_assert_eq!((usage.prompt_tokens, usage.completion_tokens), (prompt, completion));
        prop_assert!(seen.is_whole);
    }
}

#[test]
fn content_begins_with_the_first_event_that_has_some() {
    let events = [
        (r#"{"choices":[{"delta":{"role":"assistant"}}]}"#, false),
        (r#"{"choices":[{"delta":{"content":""}}]}"#, false),
        (r#"{"choices":[{"delta":{"content":null,"tool_calls":[]}}]}"#, false),
        (r#"{"choices":[{"other":{"content":"x"}}]}"#, false),
        (r#"{"choices":[{"delta":{"content":"x"}}]}"#, true),
        (r#"{"index":0,"content":"","tokens":[],"stop":false}"#, false),
        (r#"{"index":0,"content":"x","tokens":[5],"stop":false}"#, true),
        (r#"{"choices":[{"delta":{"reasoning_content":"x"}}]}"#, true),
        (r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#, true),
        (r#"{"choices":[{"text":"x"}]}"#, true),
    ];
    for (event, has_content) in events {
        let mut observer = observer("text/event-stream");
        let (early, late) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(1));
        observer.feed(b": ping\n\n", early);
        observer.feed(format!("data: {event}\n\n").as_bytes(), late);
        let seen = observer.finish();
        assert_eq!(seen.first_content, has_content.then_some(late), "{event}");
        assert_eq!(seen.written.events, u64::from(has_content), "{event}");
        assert!(!seen.is_whole);
    }
}

#[test]
fn endless_input_takes_no_memory_and_what_follows_is_read() {
    let mut observer = observer("text/event-stream");
    let now = Instant::now();
    for start in ["data: {\"model\":\"", "data: ", "x", "data: {\"x\":", "\n\ndata: {\"usage\":{\"prompt_tokens\":1"] {
        observer.feed(start.as_bytes(), now);
        for _ in 0..2000 {
            observer.feed(&[b'1'; 1024], now);
        }
        observer.feed(b"\n\n", now);
    }
    // Nested without end.
    observer.feed(b"data: ", now);
    for _ in 0..2000 {
        observer.feed(&[b'['; 1024], now);
    }
    observer.feed(b"\r\rdata: {\"model\":\"m\"}\n\n", now);
    assert_eq!(*observer.finish(), Observation { model: Some("m".into()), is_certain: true, ..Observation::default() });
    assert!(size_of::<Observer>() < 1024, "an observer holds {} bytes", size_of::<Observer>());
}

#[test]
fn text_that_is_not_utf8_is_not_told() {
    let now = Instant::now();
    let seen = observe(
        "text/event-stream",
        b"data: {\"model\":\"\xff\xfe\",\"id\":\"a\\ud800\",\"choices\":[{\"delta\":{\"content\":\"\xc3\"}}]}\n\n",
        &[],
        now,
    );
    assert_eq!((&seen.model, &seen.id, seen.written.events), (&None, &None, 1));
}

#[test]
fn answers_larger_than_any_buffer_are_read_to_their_usage() {
    let numbers = "0.123456,".repeat(1 << 20);
    let body = format!(
        r#"{{"object":"list","data":[{{"embedding":[{numbers}0]}}],"usage":{{"prompt_tokens":8,"total_tokens":8}}}}"#
    );
    let now = Instant::now();
    let mut observer = observer("application/json");
    for part in body.as_bytes().chunks(16 << 10) {
        observer.feed(part, now);
    }
    let seen = observer.finish();
    assert_eq!(seen.usage, Some(Usage { prompt_tokens: 8, ..Usage::default() }));
    assert!(seen.is_whole);
}

#[test]
fn errors_are_told() {
    for (body, kind, code) in [
        (
            r#"{"error":{"message":"m","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
            "insufficient_quota",
            Some("insufficient_quota"),
        ),
        (
            r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#,
            "unavailable_error",
            Some("503"),
        ),
        (r#"{"error":{"code":null}}"#, "", None),
        (r#"{"error":"plain"}"#, "", None),
        (r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#, "overloaded_error", None),
        (r#"{"type":"response.failed","response":{"error":{"code":"c"}}}"#, "", Some("c")),
        (r#"{"type":"error","code":"c"}"#, "", Some("c")),
    ] {
        let expected = Some(ObservedError { kind: kind.into(), code: code.map(str::to_owned) });
        assert_eq!(observe("application/json", body.as_bytes(), &[], Instant::now()).error, expected, "{body}");
        let event = format!("data: {body}\n\n");
        assert_eq!(observe("text/event-stream", event.as_bytes(), &[], Instant::now()).error, expected, "{body}");
    }
    for none in [r#"{"error":null}"#, r#"{"error":""}"#] {
        assert_eq!(observe("application/json", none.as_bytes(), &[], Instant::now()).error, None);
    }
}

#[test]
fn an_event_that_the_end_of_the_stream_cuts_off_counts() {
    for (end, is_whole) in [
        ("data: [DONE]\n", true),
        ("data: [DONE]", true),
        ("data: [DONE] \n\n", true),
        ("data: [DONE]x\n\n", false),
        ("data: [DO", false),
    ] {
        assert_eq!(observe("text/event-stream", end.as_bytes(), &[], Instant::now()).is_whole, is_whole, "{end:?}");
        assert_eq!(observe("text/event-stream", end.as_bytes(), &[9], Instant::now()).is_whole, is_whole, "{end:?}");
    }
}

#[test]
fn only_what_can_be_read_is_observed() {
    for (kind, reads) in [
        ("text/event-stream", true),
        ("Text/Event-Stream;charset=utf-8", true),
        ("application/json; charset=utf-8", true),
        ("application/vnd.api+JSON", true),
        ("text/html", false),
        ("application/x-ndjson", true),
        ("text/plain", false),
        ("é", false),
    ] {
        let kind = HeaderValue::from_bytes(kind.as_bytes()).unwrap();
        assert_eq!(Observer::for_response(Some(&kind)).is_some(), reads, "{kind:?}");
    }
    assert!(Observer::for_response(None).is_none());
}

/// Usage and text after it of an event stream with these events.
fn counted(events: &[&str]) -> (Option<(u64, u64, Option<u64>)>, Written) {
    let stream: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    let seen = observe("text/event-stream", stream.as_bytes(), &[], Instant::now());
    let usage = seen.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens));
    (usage, seen.written.since(seen.reported))
}

#[test]
fn text_that_no_usage_covers_is_known() {
    let text = r#"{"choices":[{"delta":{"content":"abc"}}]}"#;
    let so_far = r#"{"choices":[{"delta":{"content":"abc"}}],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#;
    let usage_first = r#"{"usage":{"prompt_tokens":5,"completion_tokens":3},"choices":[{"delta":{"content":"abc"}}]}"#;
    let only_prompt = r#"{"choices":[],"usage":{"prompt_tokens":5}}"#;
    let none = Written::default();
    let one = Written { events: 1, bytes: 3 };
    for (events, usage, rest) in [
        (&[text, text][..], None, Written { events: 2, bytes: 6 }),
        (&[so_far], Some((5, 2, None)), none),
        (&[so_far, usage_first], Some((5, 3, None)), none),
        (&[so_far, text], Some((5, 2, None)), one),
        (&[text, only_prompt], Some((5, 0, None)), one),
        // A count never becomes less.
        (&[so_far, r#"{"usage":{"prompt_tokens":0,"completion_tokens":0}}"#], Some((5, 2, None)), none),
    ] {
        assert_eq!(counted(events), (usage, rest), "{events:?}");
    }
}

#[test]
fn usage_has_other_names_in_other_shapes() {
    for (events, usage) in [
        // Rerankers and encoders.
        (&[r#"{"usage":{"total_tokens":8}}"#][..], (8, 0, None)),
        (&[r#"{"usage":{"total_tokens":8,"completion_tokens":3}}"#], (5, 3, None)),
        (&[r#"{"usage":{"prompt_tokens":8,"total_tokens":9}}"#], (8, 1, None)),
        (&[r#"{"usage":{"prompt_tokens":8,"completion_tokens":1,"prompt_cache_hit_tokens":4}}"#], (8, 1, Some(4))),
        (&[r#"{"usage":{"prompt_tokens":8,"completion_tokens":1,"cache_read_input_tokens":4}}"#], (8, 1, Some(4))),
        (
            &[
                r#"{"response":{"usage":{"input_tokens":8,"input_tokens_details":{"cached_tokens":4},"output_tokens":1}}}"#,
            ],
            (8, 1, Some(4)),
        ),
        (
            &[
                r#"{"message":{"usage":{"input_tokens":2,"cache_read_input_tokens":4,"cache_creation_input_tokens":3,"output_tokens":1}}}"#,
                r#"{"usage":{"output_tokens":7}}"#,
            ],
            (9, 7, Some(4)),
        ),
        (
            &[
                r#"{"message":{"usage":{"input_tokens":0,"output_tokens":0}}}"#,
                r#"{"usage":{"input_tokens":9,"output_tokens":7}}"#,
            ],
            (9, 7, None),
        ),
        (&[r#"{"prompt_eval_count":9,"eval_count":7}"#], (9, 7, None)),
        (
            &[r#"{"tokens_predicted":1,"tokens_evaluated":9}"#, r#"{"tokens_predicted":7,"tokens_evaluated":9}"#],
            (9, 7, None),
        ),
    ] {
        assert_eq!(counted(events), (Some(usage), Written::default()), "{events:?}");
    }
}

#[test]
fn text_is_found_in_every_shape_and_counted_once() {
    let cases = [
        (r#"{"choices":[{"text":"abc"}]}"#, 3),
        (r#"{"choices":[{"message":{"content":[{"type":"text","text":"abc"}]}}]}"#, 3),
        (r#"{"choices":[{"delta":{"reasoning":"abc","reasoning_content":"abc"}}]}"#, 3),
        (r#"{"choices":[{"delta":{"reasoning":"","reasoning_content":"abc"}}]}"#, 3),
        (r#"{"choices":[{"delta":{"content":"\u00e9\n\ud83d\ude00\u4e2d"}}]}"#, 10),
        (r#"{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":"{\"a\":1}"}}]}}]}"#, 8),
        (r#"{"type":"response.output_text.delta","delta":"abc"}"#, 3),
        (r#"{"index":0,"content":"abc","tokens":[1,2],"stop":false,"timings":{"content":"no"}}"#, 3),
        (r#"{"type":"response.output_text.done","text":"abc"}"#, 0),
        (r#"{"type":"response.completed","response":{"output":[{"content":[{"text":"abc"}]}]}}"#, 0),
        (r#"{"output":[{"content":[{"text":"abc"}]},{"type":"function_call","name":"f","arguments":"{}"}]}"#, 6),
        (r#"{"type":"content_block_start","content_block":{"type":"text","text":""}}"#, 0),
        (r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"abc"}}"#, 3),
        (r#"{"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"abc"}}"#, 3),
        (r#"{"type":"content_block_delta","delta":{"type":"signature_delta","signature":"abc"}}"#, 0),
        (r#"{"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"abc"}}"#, 3),
        (
            r#"{"content":[{"type":"text","text":"abc"},{"type":"tool_use","name":"f","input":{"key":["v",12,true]}}]}"#,
            14,
        ),
        (r#"{"message":{"role":"assistant","content":"abc","thinking":"de"}}"#, 5),
        (r#"{"message":{"content":"","tool_calls":[{"function":{"name":"f","arguments":{"k":1}}}]}}"#, 3),
        (r#"{"model":"m","response":"abc","done":false}"#, 3),
    ];
    for (answer, bytes) in cases {
        let seen = observe("application/json", answer.as_bytes(), &[], Instant::now());
        assert_eq!(
            (seen.written.bytes, seen.is_known_shape),
            (bytes, bytes > 0 || !answer.contains(".done")),
            "{answer}"
        );
        // As much of a text as has come.
        if let Some(at) = answer.find("abc") {
            let seen = observe("application/json", &answer.as_bytes()[..at + 2], &[], Instant::now());
            assert_eq!(seen.written.bytes, bytes.min(2), "{answer}");
        }
    }
    for unknown in
        [r#"{"generated_text":"abc"}"#, r#"[{"text":"abc"}]"#, r#"{"message":"abc"}"#, r#"{"data":[{"b64":"abc"}]}"#]
    {
        assert!(!observe("application/json", unknown.as_bytes(), &[], Instant::now()).is_known_shape, "{unknown}");
    }
}

#[test]
fn an_answer_that_is_written_later_says_so() {
    for (answer, is_deferred) in [
        (r#"{"id":"r","status":"queued","output":[],"usage":null}"#, true),
        (r#"{"id":"r","status":"in_progress"}"#, true),
        (r#"{"id":"r","status":"completed"}"#, false),
        (r#"{"response":{"status":"in_progress"}}"#, false),
        (r#"{"output":[{"status":"in_progress"}]}"#, false),
    ] {
        let seen = observe("application/json", answer.as_bytes(), &[], Instant::now());
        assert_eq!(seen.is_deferred, is_deferred, "{answer}");
    }
}

#[test]
fn the_end_of_a_stream_is_known_in_every_shape() {
    for (end, kind) in [
        ("data: {\"type\":\"message_stop\"}\n\n", "text/event-stream"),
        ("data: {\"type\":\"response.completed\",\"response\":{}}\n\n", "text/event-stream"),
        ("data: {\"type\":\"response.incomplete\"}\n\n", "text/event-stream"),
        ("{\"done\":false}\n{\"done\":true}\n", "application/x-ndjson"),
    ] {
        assert!(observe(kind, end.as_bytes(), &[], Instant::now()).is_whole, "{end}");
        assert!(!observe(kind, &end.as_bytes()[..end.len() / 2], &[], Instant::now()).is_whole, "{end}");
    }
}

#[test]
fn an_error_in_place_of_an_answer_is_told_from_an_answer_as_soon_as_it_can_be() {
    // Bytes after which it is certain, and whether it is an error.
    let fails = |body: &str| (body.len(), true);
    let answers = |read: &str| (read.len(), false);
    for (body, (certain_at, has_failed)) in [
        (r#"{"error":{"message":"m","code":500}}"#, fails(r#"{"error":{"message":"m","code":500}}"#)),
        (r#"{"error":"plain"}"#, fails(r#"{"error":"plain"}"#)),
        (r#"{"error":{"code":5},"user_id":"u"}"#, fails(r#"{"error":{"code":5},"user_id":"u"}"#)),
        (r#"{"object":"error","message":"m","code":400}"#, fails(r#"{"object":"error","message":"m","code":400}"#)),
        (r#"{"id":"a","choices":[]}"#, answers(r#"{"id""#)),
        (r#"{"error":null,"choices":[]}"#, answers(r#"{"error":null,"choices""#)),
        (r#"{"error":"","object":"list","data":[]}"#, answers(r#"{"error":"","object":"list","data""#)),
        // The kept answer of a run that failed: the one who asks for it gets what it wants.
        (r#"{"id":"r","error":{"code":"server_error"}}"#, answers(r#"{"id""#)),
        (r#"[{"error":{}}]"#, answers("[")),
    ] {
        let mut observer = observer("application/json");
        let found = body.bytes().position(|byte| {
            observer.feed(&[byte], Instant::now());
            observer.observation().is_certain
        });
        let seen = observer.observation();
        assert_eq!((found.map(|at| at + 1), seen.has_failed), (Some(certain_at), has_failed), "{body}");
    }
    for (events, certain_after, has_failed) in [
        ("data: {\"error\":{\"code\":500}}\n\n", 1, true),
        ("data: {\"id\":\"c\",\"choices\":[],\"error\":{\"code\":502}}\n\n", 1, true),
        ("event: error\ndata: {\"type\":\"error\",\"code\":\"server_error\"}\n\n", 1, true),
        ("data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}],\"error\":null}\n\n", 1, false),
        (": hello\n\ndata: {\"error\":{\"code\":500}}\n\n", 1, true),
        ("data: {\"choices\":[]}\n\ndata: {\"error\":{\"code\":500}}\n\n", 1, true),
    ] {
        let mut observer = observer("text/event-stream");
        let mut certain = 0;
        for event in events.split_inclusive("\n\n") {
            observer.feed(event.as_bytes(), Instant::now());
            certain += usize::from(observer.observation().is_certain);
        }
        let count = events.split_inclusive("\n\n").count();
        assert_eq!((count + 1 - certain, observer.finish().has_failed), (certain_after, has_failed), "{events}");
    }
    let mut cut = observer("text/event-stream");
    cut.feed(b"data: {\"error\":{\"code\":500}}", Instant::now());
    assert!(!cut.observation().has_failed && cut.finish().has_failed, "no empty line ends it");
}

#[test]
fn an_error_without_an_object_of_its_own_has_its_type_and_code_beside_it() {
    for (body, kind, code) in [
        (
            r#"{"object":"error","message":"m","type":"BadRequestError","param":null,"code":400}"#,
            "BadRequestError",
            "400",
        ),
        (r#"{"type":"error","code":"server_error","message":"m"}"#, "", "server_error"),
        (r#"{"type":"error","error":{"type":"overloaded_error","code":"x"}}"#, "overloaded_error", "x"),
    ] {
        let expected = Some(ObservedError { kind: kind.into(), code: Some(code.into()) });
        assert_eq!(observe("application/json", body.as_bytes(), &[], Instant::now()).error, expected, "{body}");
    }
}

#[test]
fn an_answer_in_the_shape_of_any_api_is_no_error() {
    for (kind, body, has_failed) in [
        ("application/json", r#"{"error":{"code":5},"output":[{"content":[{"text":"a"}]}]}"#, false),
        (
            "application/json",
            r#"{"type":"message","error":{"type":"x"},"content":[{"type":"text","text":"a"}]}"#,
            false,
        ),
        ("application/json", r#"{"message":{"role":"assistant","content":"a"},"error":"late"}"#, false),
        ("application/json", r#"{"error":"early","response":"a"}"#, false),
        ("application/json", r#"{"message":"no object of its own","object":"error"}"#, true),
        ("application/x-ndjson", "{\"error\":\"model runner has stopped\"}\n", true),
        ("application/x-ndjson", "{\"error\":\"model runner has stopped\"}", true),
        ("application/x-ndjson", "{\"response\":\"a\",\"done\":false}\n{\"response\":\"\",\"done\":true}\n", false),
        ("text/event-stream", "data: {\"type\":\"message_start\",\"message\":{\"content\":[]}}\n\n", false),
        ("text/event-stream", "data: {\"type\":\"response.created\",\"response\":{\"error\":null}}\n\n", false),
        ("text/event-stream", "data: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n", true),
        (
            "text/event-stream",
            "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"c\"}}}\n\n",
            true,
        ),
    ] {
        let mut observer = observer(kind);
        observer.feed(body.as_bytes(), Instant::now());
        assert!(observer.observation().is_certain, "{body}");
        assert_eq!(observer.finish().has_failed, has_failed, "{body}");
    }
}

#[test]
fn tokens_written_to_a_cache_are_read_in_both_forms_and_from_any_event() {
    for (events, usage) in [
        (
            &[
                r#"{"usage":{"prompt_tokens":40,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":30,"cache_write_tokens":5}}}"#,
            ][..],
            (40, 7, Some(30), Some(5)),
        ),
        (
            &[
                r#"{"response":{"usage":{"input_tokens":40,"output_tokens":7,"input_tokens_details":{"cached_tokens":30,"cache_write_tokens":5}}}}"#,
            ],
            (40, 7, Some(30), Some(5)),
        ),
        (
            &[
                r#"{"message":{"usage":{"input_tokens":5,"cache_read_input_tokens":30,"output_tokens":1}}}"#,
                r#"{"usage":{"cache_creation_input_tokens":5,"output_tokens":7}}"#,
            ],
            (40, 7, Some(30), Some(5)),
        ),
        (
            // Each count anew, as `message_delta` of newer servers has them.
            &[
                r#"{"message":{"usage":{"input_tokens":5,"cache_read_input_tokens":30,"cache_creation_input_tokens":5,"output_tokens":1}}}"#,
                r#"{"usage":{"input_tokens":5,"cache_read_input_tokens":30,"cache_creation_input_tokens":5,"output_tokens":7}}"#,
            ],
            (40, 7, Some(30), Some(5)),
        ),
        (
            &[
                r#"{"message":{"usage":{"input_tokens":5,"cache_read_input_tokens":30,"output_tokens":1}}}"#,
                r#"{"usage":{"input_tokens":6,"output_tokens":7}}"#,
            ],
            (36, 7, Some(30), None),
        ),
    ] {
        let mut observer = observer("text/event-stream");
        for event in events {
            observer.feed(format!("data: {event}\n\n").as_bytes(), Instant::now());
        }
        let told = observer.finish().usage.unwrap();
        let told = (told.prompt_tokens, told.completion_tokens, told.cached_tokens, told.cache_written_tokens);
        assert_eq!(told, usage, "{events:?}");
    }
}
