//! Tests of bodies with one reading, of bodies that are refused, and that no other reader reads anything else.

use std::borrow::Cow;

use super::*;

fn read(body: &[u8]) -> Result<Peek<'_>, Refusal> {
    peek(body, true)
}

#[test]
fn options_and_images_of_ollama_are_read() {
    let body = br#"{"model":"m","messages":[{"role":"user","content":"abcd","images":["aGk="]}],"options":{"num_predict":7,"stop":["a"]},"num_predict":3}"#;
    let seen = peek(body, true).unwrap();
    assert_eq!((seen.max_tokens, seen.images, seen.prompt_bytes, seen.stream), (Some(7), 1, 4, None));
    for options in ["null", "[]", "{}", r#"{"num_predict":-1}"#, r#"{"num_predict":"7"}"#, r#"{"x":{"num_predict":7}}"#]
    {
        let body = format!(r#"{{"options":{options}}}"#);
        assert_eq!(peek(body.as_bytes(), true).unwrap().max_tokens, None, "{options}");
    }
    assert!(peek(br#"{"options":{},"options":{}}"#, false).is_err());
}

#[test]
fn peek_reads_what_routing_needs() {
    let body = r#"{"x":[1,{"model":"no"}],"model":"m","stream":true,"stream_options":{"include_usage":true},"max_tokens":7,
        "messages":[{"role":"user","content":"abc","name":"nobody"},
            {"role":"user","content":[{"type":"text","text":"dé"},{"type":"image_url","image_url":{"url":"data:no"}}]}]}"#;
    let expected = Peek {
        model: Some("m".into()),
        model_at: Some(32..35),
        stream: Some(true),
        usage_edit: None,
        max_tokens: Some(7),
        answers: 1,
        prompt_bytes: 6,
        images: 1,
        sounds: 0,
    };
    assert_eq!(read(body.as_bytes()).unwrap(), expected);
    let nothing = Peek { answers: 1, ..Peek::default() };
    assert_eq!(read(b" {} \n").unwrap(), nothing);
    // Of a field that routing only wants to know, another type is the server's to refuse.
    let odd = br#"{"model":null,"stream":"yes","stream_options":[],"max_tokens":-1,"messages":{"a":[]}}"#;
    assert_eq!(read(odd).unwrap(), Peek { model_at: Some(9..13), ..nothing });
    for (prompt, bytes) in [
        (r#""prompt":"four""#, 4),
        (r#""input":["one","two"]"#, 6),
        (r#""input":[[1,2,3],[4]]"#, 16),
        (r#""input":[{"role":"user","content":[{"type":"input_text","text":"abc"}]}]"#, 3),
        (r#""instructions":"ab","input":"cd""#, 4),
        (r#""system":[{"type":"text","text":"abc"}],"messages":[{"content":[{"type":"text","text":"de"}]}]"#, 5),
        (r#""messages":[{"content":[{"type":"tool_result","content":[{"type":"text","text":"abc"}]}]}]"#, 3),
        (r#""messages":[{"content":[{"type":"thinking","thinking":"abc","signature":"no"}]}]"#, 3),
        (r#""messages":[{"tool_calls":[{"id":"no","function":{"name":"no","arguments":"{1}"}}]}]"#, 3),
        (r#""input":[{"type":"function_call_output","call_id":"no","output":"abc"}]"#, 3),
        (r#""tools":[{"name":"f"}],"functions": null"#, 14),
    ] {
        assert_eq!(read(format!("{{{prompt}}}").as_bytes()).unwrap().prompt_bytes, bytes, "{prompt}");
    }
    for image in [
        r#"{"messages":[{"content":[{"type":"image","source":{"type":"base64","data":"no"}}]}]}"#,
        r#"{"input":[{"content":[{"type":"input_image","image_url":"no"}]}]}"#,
        r#"{"input":[{"content":[{"type":"input_file","file_data":"no"}]}]}"#,
    ] {
        let read = read(image.as_bytes()).unwrap();
        assert_eq!((read.prompt_bytes, read.images), (0, 1), "{image}");
    }
    // Which of several names counts is for the server: as much is reserved as the largest of them says.
    for (fields, most, answers) in [
        (r#""max_tokens":1,"max_completion_tokens":2"#, Some(2), 1),
        (r#""max_completion_tokens":2,"max_tokens":3"#, Some(3), 1),
        (r#""max_tokens":4,"n_predict":900"#, Some(900), 1),
        (r#""max_tokens":1e2"#, Some(100), 1),
        (r#""max_tokens":100.0"#, Some(100), 1),
        (r#""max_tokens":1e9,"n":1E1"#, Some(1_000_000_000), 10),
        (r#""max_tokens":99999999999999999999999"#, Some(u64::MAX), 1),
        (r#""max_tokens":-1e9,"n":-5"#, None, 1),
        (r#""max_tokens":null,"n":null"#, None, 1),
        (r#""n":128"#, None, 128),
        (r#""n":2,"best_of":5"#, None, 5),
        (r#""n":2,"prompt":["a","b","c"]"#, None, 6),
        (r#""prompt":[[1,2],[3]]"#, None, 2),
        (r#""prompt":[1,2,3]"#, None, 1),
        (r#""n":18446744073709551615,"prompt":["a","b"]"#, None, u64::MAX),
    ] {
        let body = format!("{{{fields}}}");
        let found = read(body.as_bytes()).unwrap();
        assert_eq!((found.max_tokens, found.answers), (most, answers), "{fields}");
    }
    // Names of parts count in any spelling that some server reads.
    let parts = br#"{"messages":[{"Content":"abc","TEXT":"de","cont\u0065nt":"f"},{"IMAGE_URL":{},"input_audio":{"data":"x"}}]}"#;
    let read = read(parts).unwrap();
    assert_eq!((read.prompt_bytes, read.images, read.sounds), (6, 1, 1));
}

/// Go's `encoding/json` matches a name that it does not know with a known one by Unicode's simple case folding.
#[test]
fn names_that_another_reader_takes_for_known_ones_are_refused_where_a_body_decides() {
    for (field, known) in [
        (r#""Model":"big""#, "model"),
        (r#""MODEL":"big""#, "model"),
        (r#""mod\u0045l":"big""#, "model"),
        (r#""Max_Tokens":1"#, "max_tokens"),
        ("\"max_to\u{212A}ens\":1", "max_tokens"),
        ("\"me\u{17F}\u{17F}ages\":[]", "messages"),
        ("\"\u{17F}tream\":true", "stream"),
        (r#""\u017ftream":true"#, "stream"),
        (r#""N":2"#, "n"),
        (r#""Stream_Options":{}"#, "stream_options"),
    ] {
        for body in [format!("{{{field}}}"), format!(r#"{{"model":"small",{field},"x":1}}"#)] {
            let refusal = peek(body.as_bytes(), true).unwrap_err();
            let told = (refusal.status.as_u16(), refusal.code, refusal.param.as_deref());
            assert_eq!(told, (400, "ambiguous_parameter", Some(known)), "{body}");
            assert!(refusal.message.contains(&format!("write `{known}`")), "{}", refusal.message);
            // Where nothing is decided by it, it is the server's.
            assert!(peek(body.as_bytes(), false).is_ok(), "{body}");
        }
    }
    for other in ["models", "mode", "mod el", "mödel", "max-tokens", "nn", "ı", "\u{17F}", ""] {
        assert!(peek(format!(r#"{{"{other}":1}}"#).as_bytes(), true).is_ok(), "{other}");
    }
}

#[test]
fn values_that_another_reader_takes_otherwise_are_refused_where_a_body_decides() {
    for (field, code, param) in [
        (r#""max_tokens":"900000""#, "invalid_type", "max_tokens"),
        (r#""max_tokens":true"#, "invalid_type", "max_tokens"),
        (r#""n":[2]"#, "invalid_type", "n"),
        (r#""model":"small\u0000big""#, "invalid_value", "model"),
        (r#""model":"small ""#, "invalid_value", "model"),
        (r#""model":"\tsmall""#, "invalid_value", "model"),
        (r#""model":"\u00a0small""#, "invalid_value", "model"),
    ] {
        let body = format!("{{{field}}}");
        let refusal = peek(body.as_bytes(), true).unwrap_err();
        assert_eq!(
            (refusal.status.as_u16(), refusal.code, refusal.param.as_deref()),
            (400, code, Some(param)),
            "{body}"
        );
        assert!(peek(body.as_bytes(), false).is_ok(), "{body}");
    }
}

#[test]
fn bodies_that_some_readers_take_for_json_are_known() {
    let utf16: Vec<u8> = "{\"model\":\"big\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let utf32: Vec<u8> = "{}".chars().flat_map(|c| (c as u32).to_be_bytes()).collect();
    let marked = [b"\xEF\xBB\xBF".as_slice(), b"{}"].concat();
    for body in [b"{}".as_slice(), b" \n{\"a\":1}", &utf16, &utf32, &marked, b"\xFF\xFE{\0"] {
        assert!(looks_like_json(body), "{body:?}");
    }
    for body in [&utf16, &utf32, &marked] {
        assert_eq!(peek(body, true).unwrap_err().code, "invalid_json", "and have one reading only as they should be");
    }
    for body in [b"--x\r\nContent-Disposition".as_slice(), b"model=big", b"", b"\x1f\x8b\x08", b"RIFF", b"[1]"] {
        assert!(!looks_like_json(body), "{body:?}");
    }
}

#[test]
fn the_model_is_borrowed_and_its_escapes_are_read() {
    assert!(matches!(read(br#"{"model":"plain"}"#).unwrap().model, Some(Cow::Borrowed("plain"))));
    assert_eq!(read(br#"{"model":"a\u0062"}"#).unwrap().model.unwrap(), "ab");
    assert_eq!(read(br#"{"mod\u0065l":"m"}"#).unwrap().model.unwrap(), "m");
}

#[test]
fn bodies_that_two_readers_could_read_differently_are_refused() {
    for (body, code, param) in [
        (&br#"{"model":"a","model":"a"}"#[..], "duplicate_parameter", "model"),
        (br#"{"model":"a","x":1,"mod\u0065l":"b"}"#, "duplicate_parameter", "model"),
        (br#"{"stream":true,"stream":false}"#, "duplicate_parameter", "stream"),
        (br#"{"messages":[],"messages":[]}"#, "duplicate_parameter", "messages"),
        (br#"{"model":1}"#, "invalid_type", "model"),
        (br#"{"model":["m"]}"#, "invalid_type", "model"),
        (format!(r#"{{"model":"{}"}}"#, "m".repeat(257)).as_bytes(), "invalid_value", "model"),
    ] {
        let refusal = read(body).unwrap_err();
        assert_eq!((refusal.status.as_u16(), refusal.code, refusal.param.as_deref()), (400, code, Some(param)));
        assert!(refusal.message.len() < 200);
    }
    assert!(read(format!(r#"{{"model":"{}"}}"#, "m".repeat(256)).as_bytes()).is_ok());
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = read(&bytes);
    }

    /// Every reader behind the gateway finds the values that the gateway found.
    #[test]
    fn peek_agrees_with_a_reader_of_everything(
        keys in proptest::collection::vec(proptest::sample::select(vec!["model", "stream", "x", "y"]), 0..5),
        values in proptest::collection::vec(proptest::sample::select(vec!["\"a\"", "\"b\\n\"", "true", "false", "null", "{\"model\":\"c\"}"]), 5),
    ) {
        let fields: Vec<String> = keys.iter().zip(&values).map(|(key, value)| format!("\"{key}\":{value}")).collect();
        let body = format!("{{{}}}", fields.join(","));
        let whole: serde_json::Value = serde_json::from_str(&body).unwrap();
        if let Ok(peek) = read(body.as_bytes()) {
            proptest::prop_assert_eq!(peek.model.as_deref(), whole.get("model").and_then(|m| m.as_str()));
            proptest::prop_assert_eq!(peek.stream, whole.get("stream").and_then(serde_json::Value::as_bool));
        }
    }

    /// The scanner accepts and refuses the same bytes as serde_json.
    #[test]
    fn the_scanner_agrees_with_serde_json(text in "[\\[\\]{}:,\"\\\\ueE0-9.+\\- a-f\\x01\\x7f\u{e9}\u{1F600}trulsn]{0,24}") {
        let body = format!("{{\"k\":{text}}}");
        let by_serde = serde_json::from_str::<Everything>(&body).is_ok();
        proptest::prop_assert_eq!(peek(body.as_bytes(), false).is_ok(), by_serde, "{}", body);
    }

    /// Scanner and serde_json agree also on JSON with one changed byte.
    #[test]
    fn the_scanner_agrees_with_serde_json_on_a_body_with_a_mistake(at in 0usize..190, byte in 0u8..128) {
        let mut body = br#"{"k":[1,-2.5e+10,"a\u00e9\n\ud83d\ude00",{"l":null,"m":[true,false,[],{}]}],"text":"a longer text that has more than thirty two bytes, \"quoted\"","o":{"p":{"q":[0,1e-7]}}}  "#.to_vec();
        if let Some(place) = body.get_mut(at) {
            *place = byte;
        }
        let by_serde = serde_json::from_slice::<Everything>(&body).is_ok();
        proptest::prop_assert_eq!(peek(&body, false).is_ok(), by_serde, "{}", String::from_utf8_lossy(&body));
    }
}

/// Object of which serde_json reads every value.
type Everything = serde_json::Map<String, serde_json::Value>;

#[test]
fn nesting_ends_where_it_does_for_serde_json() {
    for levels in 100..140 {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let body = format!("{{\"k\":{}1{}}}", open.repeat(levels), close.repeat(levels));
            let by_serde = serde_json::from_str::<Everything>(&body).is_ok();
            assert_eq!(peek(body.as_bytes(), false).is_ok(), by_serde, "{levels} of {open}");
        }
    }
}

#[test]
fn a_charset_other_than_utf_8_is_known() {
    for (content_type, expected) in [
        ("", true),
        ("application/json", true),
        ("application/json; odata=a b", true),
        ("application/json; charset=utf-8", true),
        ("Application/JSON;Charset=\"UTF-8\"", true),
        ("application/json; charset=utf8;", true),
        ("application/json; charset=us-ascii", true),
        ("application/json; charset=utf-7", false),
        ("application/json; charset=utf-16", false),
        ("application/json; charset=\"utf-7\"", false),
        ("application/json; charset =utf-7", false),
        ("application/json; charset*=utf-8''utf-7", false),
        ("application/json; charset=utf-8; charset=utf-7", false),
        ("application/json; x=\"; charset=utf-7\"; charset=utf-8", false),
        ("application/json, text/plain; charset=utf-7", false),
    ] {
        assert_eq!(is_utf8(content_type.as_bytes()), expected, "{content_type}");
    }
}

#[test]
fn a_name_with_a_control_character_is_refused() {
    let long = format!(r"model\u0000{}", "x".repeat(200));
    for name in [r"model\u0000", r"\u0000model", r"max_tokens\u0000x", r"other\u0007", long.as_str()] {
        let body = format!(r#"{{"model":"small","{name}":"big"}}"#);
        assert_eq!(peek(body.as_bytes(), true).unwrap_err().code, "ambiguous_parameter", "{body}");
        assert!(peek(body.as_bytes(), false).is_ok(), "{body}");
    }
    for name in [r"caf\u00e9", r#"a \"quoted\" name"#] {
        assert!(peek(format!(r#"{{"{name}":1}}"#).as_bytes(), true).is_ok(), "{name}");
    }
}

fn form(parts: &str) -> Result<Option<String>, Refusal> {
    let body = parts.replace('\n', "\r\n");
    let found = form_model(b"multipart/form-data; boundary=\"x y\"", body.as_bytes())?;
    Ok(found.map(|(model, at)| {
        assert_eq!(&body[at], model);
        model
    }))
}

#[test]
fn the_model_of_a_form_is_read_where_it_has_one_reading() {
    let part = |head: &str, value: &str| format!("--x y\nContent-Disposition: form-data; {head}\n\n{value}\n");
    let file = part("name=\"file\"; filename=\"a;model.wav\"", "RIFF\n\n\0");
    let model = part("name=\"model\"", "whisper-1");
    let end = "--x y--\n";
    for parts in [
        format!("{file}{model}{end}"),
        format!("{model}{file}--x y--"),
        format!("{}{end}", part("name=model", "whisper-1")),
        format!("{}{end}", part("name=\"model\";\nContent-Type: text/plain; charset=\"UTF-8\"", "whisper-1")),
        format!("{model}{}{end}", part("name=file; filename=a.wav; filename*=utf-8''%C3%A4.wav", "RIFF")),
        format!("{model}{}{end}", part("name=\"file\"; filename=\"ä.wav\"\nContent-Type: audio/wav", "RIFF")),
        format!("{model}{}{end}", part("name=\"timestamp_granularities[]\"", "word")),
    ] {
        assert_eq!(form(&parts).unwrap().as_deref(), Some("whisper-1"), "{parts}");
    }
    assert_eq!(form(&format!("{file}{end}")).unwrap(), None);
    assert_eq!(form("--x y--").unwrap(), None);
    for (what, parts) in [
        ("two models", format!("{model}{model}{end}")),
        ("another case", format!("{model}{}{end}", part("name=\"Model\"", "b"))),
        ("two names", format!("{}{end}", part("name=\"a\"; name=\"model\"", "b"))),
        ("an extended name", format!("{}{end}", part("name=\"a\"; name*=utf-8''model", "b"))),
        ("a continued name", format!("{model}{}{end}", part("name=\"x\"; name*0=\"model\"", "b"))),
        ("a name in pieces", format!("{model}{}{end}", part("name=\"mo\"; name*0=\"del\"", "b"))),
        ("a continued file name", format!("{model}{}{end}", part("name=\"x\"; filename*0=\"m\"", "b"))),
        ("a tab before `=`", format!("{model}{}{end}", part("name=\"x\"; name\t=\"model\"", "b"))),
        ("a blank before `=`", format!("{model}{}{end}", part("name=\"x\"; name =\"model\"", "b"))),
        ("a blank behind `=`", format!("{model}{}{end}", part("name= model", "b"))),
        ("another case of `name`", format!("{model}{}{end}", part("name=\"x\"; NAME=\"model\"", "b"))),
        ("a parameter without a value", format!("{model}{}{end}", part("name=\"x\"; model", "b"))),
        (
            "many parameters",
            format!(
                "{model}{}{end}",
                part(&format!("name=x{}", (0..16).map(|n| format!("; p{n}=1")).collect::<String>()), "b")
            ),
        ),
        (
            "a blank before the colon",
            format!("{model}{}{end}", part("name=\"x\"\nContent-Disposition : form-data; name=\"model\"", "b")),
        ),
        (
            "two dispositions",
            format!("{model}{}{end}", part("name=\"x\"\nContent-Disposition: form-data; name=\"model\"", "b")),
        ),
        (
            "another disposition",
            format!("{model}{}{end}", "--x y\nContent-Disposition: attachment; name=\"model\"\n\nb\n"),
        ),
        ("an encoded word", format!("{model}{}{end}", part("name=\"=?utf-8?q?model?=\"", "b"))),
        ("blanks around a name", format!("{model}{}{end}", part("name=\" model\"", "b"))),
        ("a charset of all fields", format!("{model}{}{end}", part("name=\"_charset_\"", "utf-7"))),
        (
            "a charset of the model",
            format!("{}{end}", part("name=\"model\"\nContent-Type: text/plain; charset=utf-16", "b")),
        ),
        ("a file by its extended name", format!("{}{end}", part("name=\"model\"; filename*=utf-8''m", "b"))),
        ("a backslash", format!("{}{end}", part("name=\"mod\\el\"", "b"))),
        ("a quote", format!("{}{end}", part("name=\"mo\"del\"", "b"))),
        ("a file", format!("{}{end}", part("name=\"model\"; filename=\"m\"", "b"))),
        ("an encoding", format!("{}{end}", part("name=\"model\"\nContent-Transfer-Encoding: base64", "Yg=="))),
        ("a folded line", format!("{}{end}", part("x=1;\n name=\"model\"", "b"))),
        ("no name", format!("{}{end}", part("x=1", "b"))),
        ("a preamble", format!("hello\n{model}{end}")),
        ("an epilogue", format!("{model}{end}{model}{end}")),
        ("no end", model.clone()),
        ("a boundary within a line", format!("{model}x--x y\n{end}")),
        ("a blank behind it", format!("{model}--x y \n{model}{end}")),
        ("blanks around the model", format!("{}{end}", part("name=\"model\"", " b"))),
        ("nothing", String::new()),
    ] {
        let refusal = form(&parts).expect_err(what);
        assert_eq!(refusal.status.as_u16(), 400, "{what}");
    }
    let bare_line_feeds = format!("{model}{end}");
    assert!(form_model(b"multipart/form-data; boundary=\"x y\"", bare_line_feeds.as_bytes()).is_err());
    for (content_type, fits) in [
        ("multipart/form-data; boundary=a", true),
        ("Multipart/Form-Data; Charset=UTF-8; Boundary=\"a\";", true),
        ("multipart/form-data", false),
        ("multipart/form-data; boundary=", false),
        ("multipart/form-data; boundary=a; Boundary=b", false),
        ("multipart/form-data; boundary=a; boundary*0=b", false),
        ("multipart/form-data; boundary=a; boundary*=utf-8''b", false),
        ("multipart/form-data; boundary=a; charset=utf-7", false),
        ("multipart/form-data; boundary=a; type=x", false),
        ("multipart/mixed; boundary=a", false),
    ] {
        assert_eq!(form_model(content_type.as_bytes(), b"--a--").is_ok(), fits, "{content_type}");
    }
    for boundary in ["a ", " a", "a\t"] {
        let content_type = format!("multipart/form-data; boundary=\"{boundary}\"");
        assert!(form_model(content_type.as_bytes(), format!("--{boundary}--").as_bytes()).is_err(), "{boundary:?}");
    }
    assert!(is_form(b"Multipart/Form-Data; boundary=a") && !is_form(b"application/json"));
}

proptest::proptest! {
    #[test]
    fn any_form_is_judged(body in "(--a|\r\n|:|content-disposition: |name=|\"|;|model|--|x| ){0,30}") {
        let _ = form_model(b"multipart/form-data; boundary=a", body.as_bytes());
    }
}
