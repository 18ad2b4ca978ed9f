//! Tests of requests that are accepted, that are refused with the field at fault, and that the built-in model cannot answer.

use spillway_filter::Refusal;

use super::{chat, completions};
use crate::protocol::chat::{ChatRequest, Message, PromptInput, ResponseFormat, ToolChoice};
use crate::protocol::peek::{Peek, peek};
use crate::protocol::refusals::named;

const HI: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

fn read(body: &[u8]) -> Result<Peek<'_>, Refusal> {
    peek(body, true)
}

fn parse(fields: &str) -> Result<ChatRequest, Refusal> {
    chat(format!("{{{HI}{fields}}}").as_bytes())
}

fn parse_messages(messages: &str) -> Result<ChatRequest, Refusal> {
    chat(format!(r#"{{"messages":{messages}}}"#).as_bytes())
}

fn nested(levels: usize) -> String {
    format!(r#"{{"model":"m","x":{}{}}}"#, "[".repeat(levels), "]".repeat(levels))
}

#[test]
fn what_is_no_json_object_is_refused_with_the_place() {
    for (body, says) in [
        (&b""[..], "EOF while parsing a value at line 1 column 0"),
        (b"{\n  \"a\": 1,\n  b\n}", "line 3 column 3"),
        (b"{", "EOF while parsing an object"),
        (b"{} x", "trailing characters at line 1 column 4"),
        (b"{\"a\":\"\xff\"}", "invalid unicode"),
        (b"{\"a\":{\"\xff\":1}}", "invalid unicode"),
        (b"{\"a\":\"\n\"}", "control character"),
        (b"{\"a\":\"\\ud800\"}", "hex escape"),
        (b"{\"a\":01}", "invalid number"),
        (b"{\"a\":1e999}", "number out of range"),
        (b"{\"a\":NaN}", "expected value"),
        (b"{'a':1}", "key must be a string"),
        (b"[]", "must be a JSON object"),
        (b"[\"m\"]", "must be a JSON object"),
        (b"3", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"\"SECRET\"", "must be a JSON object"),
        (nested(200).as_bytes(), "recursion limit exceeded"),
    ] {
        for refusal in [read(body).unwrap_err(), chat(body).unwrap_err()] {
            assert_eq!((refusal.status.as_u16(), refusal.code), (400, "invalid_json"), "{says}");
            assert!(refusal.message.contains(says), "{} does not say {says}", refusal.message);
            assert!(!refusal.message.contains("SECRET"));
        }
    }
    assert!(read(nested(100).as_bytes()).is_ok());
}

#[test]
fn a_plain_request_is_read_in_full() {
    let request = parse(
        r#","model":"m","stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false},"seed":-1,
        "temperature":2,"top_p":0.5,"top_k":40,"stop":["a","b"],"max_tokens":5"#,
    )
    .unwrap();
    assert_eq!(request.model.as_deref(), Some("m"));
    assert_eq!(request.messages, [Message { role: "user", content: "hi".into(), ..Message::default() }]);
    assert!(request.stream && request.include_usage);
    assert_eq!((request.temperature, request.top_p, request.top_k), (Some(2.0), Some(0.5), Some(40)));
    assert_eq!((request.seed, request.max_tokens), (Some(u64::MAX), Some(5)));
    assert_eq!(request.stop, ["a", "b"]);
    assert_eq!(request.text_bytes(), 2);
    assert!(request.unsupported.is_none());
    let none = parse("").unwrap();
    let none = named(none.model.as_deref()).unwrap_err();
    assert_eq!((none.status.as_u16(), none.param.as_deref()), (400, Some("model")));
}

#[test]
fn values_that_ask_for_nothing_are_taken() {
    let request = parse(
        r#","n":1,"presence_penalty":0,"frequency_penalty":0.0,"logprobs":false,"top_logprobs":0,"tools":[],
        "functions":[],"tool_choice":"auto","function_call":"none","parallel_tool_calls":false,"user":"u",
        "metadata":{"a":["b"]},"store":false,"response_format":{"type":"text"},"modalities":["text"],"logit_bias":{},
        "service_tier":"auto","verbosity":"medium","reasoning_effort":"none","prompt_cache_key":"k",
        "safety_identifier":"s","audio":null,"prediction":null,"min_p":0,"repetition_penalty":1.0,"ignore_eos":false,
        "chat_template_kwargs":{},"anything":null,"stop":null,"temperature":null,"stream_options":null,"top_k":-1"#,
    )
    .unwrap();
    assert!(request.unsupported.is_none(), "{:?}", request.unsupported.as_ref());
    assert_eq!((request.top_k, request.temperature), (None, None));
    assert_eq!(parse(r#","top_k":0"#).unwrap().top_k, None);
    assert_eq!(parse(r#","max_tokens":99999999999"#).unwrap().max_tokens, Some(u32::MAX));
    for names in [r#","max_tokens":1,"max_completion_tokens":2"#, r#","max_completion_tokens":2,"max_tokens":1"#] {
        assert_eq!(parse(names).unwrap().max_tokens, Some(2), "{names}");
    }
    assert_eq!(parse(r#","stop":"a""#).unwrap().stop, ["a"]);
    assert!(parse(r#","stop":[]"#).unwrap().stop.is_empty());
}

#[test]
fn what_is_not_implemented_is_named() {
    for (field, param) in [
        (r#""tools":[{"type":"retrieval"}]"#, "tools[0].type"),
        (r#""tools":[{"type":"function","function":{"name":"f"}}],"logprobs":true"#, "logprobs"),
        (
            r#""tools":[{"type":"function","function":{"name":"f"}}],"response_format":{"type":"json_object"}"#,
            "response_format",
        ),
        (r#""functions":[{"name":"f"}]"#, "functions"),
        (r#""tool_choice":{"type":"allowed_tools"}"#, "tool_choice.type"),
        (r#""response_format":{"type":"grammar"}"#, "response_format.type"),
        (r#""response_format":{"type":"json_object","more":1}"#, "response_format.more"),
        (
            r#""response_format":{"type":"json_schema","json_schema":{"name":"a","schema":{},"more":1}}"#,
            "response_format.json_schema.more",
        ),
        (r#""modalities":["text","audio"]"#, "modalities"),
        (r#""modalities":["text","text","text","text","text","audio"]"#, "modalities"),
        (r#""audio":{"voice":"x"}"#, "audio"),
        (r#""web_search_options":{}"#, "web_search_options"),
        (r#""guided_choice":["a","b"]"#, "guided_choice"),
        (r#""guided_regex":"a+""#, "guided_regex"),
        (r#""grammar":"root ::= x""#, "grammar"),
        (r#""structured_outputs":{"regex":"a"}"#, "structured_outputs.regex"),
        (r#""allowed_token_ids":[1]"#, "allowed_token_ids"),
        (r#""prompt_logprobs":1"#, "prompt_logprobs"),
        (r#""continue_final_message":true"#, "continue_final_message"),
    ] {
        let request = parse(&format!(",{field}")).unwrap_or_else(|e| panic!("{field}: {e:?}"));
        let refusal = request.unsupported.unwrap_or_else(|| panic!("{field} is taken"));
        assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(param)), "{field}");
        assert!(refusal.message.contains(param));
    }
}

#[test]
fn what_changes_no_form_is_ignored_and_named() {
    for (field, name) in [
        (r#""verbosity":"high""#, "verbosity"),
        (r#""reasoning_effort":"high""#, "reasoning_effort"),
        (r#""chat_template_kwargs":{"enable_thinking":false}"#, "chat_template_kwargs"),
        (r#""stream_options":{"continuous_usage_stats":true}"#, "stream_options.continuous_usage_stats"),
        (r#""stream_options":{"more":1}"#, "stream_options.more"),
        (r#""stream_options":{"a":null,"b":null,"c":null,"d":null,"e":null,"f":1}"#, "stream_options.%2A"),
        (r#""store":true"#, "store"),
        (r#""service_tier":"priority""#, "service_tier"),
        (r#""prediction":{}"#, "prediction"),
        (r#""ignore_eos":true"#, "ignore_eos"),
        (r#""frobnicate":false"#, "frobnicate"),
        (r#""x, y\r\n\u00e9":[{"a":{}}]"#, "x%2C%20y%C3%A9"),
        (r#""tools":[{"type":"function","function":{"name":"f","cost":1}}]"#, "tools[0].function.cost"),
        (r#""max_tokens":5,"n_predict":7"#, "n_predict"),
    ] {
        let request = parse(&format!(",{field}")).unwrap_or_else(|e| panic!("{field}: {e:?}"));
        assert!(request.unsupported.is_none(), "{field}: {:?}", request.unsupported.as_ref());
        assert_eq!(request.ignored.header().unwrap().to_str().unwrap(), name, "{field}");
    }
    let message = parse_messages(r#"[{"role":"user","content":"x","cache_control":{"type":"ephemeral"}}]"#).unwrap();
    assert_eq!(message.ignored.first(), Some("messages[0].cache_control"));
    let many: Vec<String> = (0..20).map(|n| format!("\"x{n}\":1")).collect();
    let ignored = parse(&format!(",{}", many.join(","))).unwrap().ignored;
    let header = ignored.header().unwrap();
    assert!(header.to_str().unwrap().starts_with("x0, x1, ") && header.to_str().unwrap().ends_with(", x15, ..."));
    assert!(parse(r#","verbosity":"medium","user":"u","metadata":{"a":"b"}"#).unwrap().ignored.header().is_none());
}

#[test]
fn other_names_of_a_field_are_read_as_that() {
    let request = parse(r#","max_new_tokens":7,"repeat_penalty":1.2,"random_seed":3"#).unwrap();
    assert_eq!((request.max_tokens, request.repetition_penalty, request.seed), (Some(7), Some(1.2), Some(3)));
    assert!(request.ignored.first().is_none());
    assert_eq!(parse(r#","n_predict":-1"#).unwrap().max_tokens, None);
    for both in [r#","n_predict":7,"max_completion_tokens":9"#, r#","max_tokens":9,"max_new_tokens":7"#] {
        assert_eq!(parse(both).unwrap().max_tokens, Some(9), "{both}");
    }
    for (fields, param) in [(r#","n_predict":0"#, "n_predict"), (r#","repeat_penalty":-1"#, "repeat_penalty")] {
        assert_eq!(parse(fields).unwrap_err().param.as_deref(), Some(param));
    }
    let schema = ResponseFormat::JsonSchema(r#"{"type":"integer"}"#.into());
    for field in [
        r#""guided_json":{"type":"integer"}"#,
        r#""guided_json":"{\"type\":\"integer\"}""#,
        r#""json_schema":{"type":"integer"}"#,
        r#""structured_outputs":{"json":{"type":"integer"},"regex":null}"#,
    ] {
        assert_eq!(parse(&format!(",{field}")).unwrap().response_format, schema, "{field}");
    }
    assert_eq!(parse(r#","guided_json":"{""#).unwrap_err().param.as_deref(), Some("guided_json"));
}

#[test]
fn what_is_wrong_is_refused_with_its_field() {
    for (field, code, param) in [
        (r#""temperature":2.1"#, "decimal_above_max_value", "temperature"),
        (r#""temperature":-0.1"#, "decimal_below_min_value", "temperature"),
        (r#""temperature":"hot""#, "invalid_type", "temperature"),
        (r#""top_p":1.5"#, "decimal_above_max_value", "top_p"),
        (r#""top_k":-2"#, "integer_below_min_value", "top_k"),
        (r#""top_k":1.5"#, "invalid_type", "top_k"),
        (r#""max_tokens":0"#, "integer_below_min_value", "max_tokens"),
        (r#""max_tokens":-5"#, "integer_below_min_value", "max_tokens"),
        (r#""max_tokens":1.5"#, "invalid_type", "max_tokens"),
        (r#""max_completion_tokens":"9""#, "invalid_type", "max_completion_tokens"),
        (r#""max_completion_tokens":3,"max_tokens":0"#, "integer_below_min_value", "max_tokens"),
        (r#""seed":1.5"#, "invalid_type", "seed"),
        (r#""n":0"#, "integer_below_min_value", "n"),
        (r#""n":129"#, "integer_above_max_value", "n"),
        (r#""n":"1""#, "invalid_type", "n"),
        (r#""presence_penalty":2.5"#, "decimal_above_max_value", "presence_penalty"),
        (r#""frequency_penalty":-2.5"#, "decimal_below_min_value", "frequency_penalty"),
        (r#""frequency_penalty":"x""#, "invalid_type", "frequency_penalty"),
        (r#""min_p":1.5"#, "decimal_above_max_value", "min_p"),
        (r#""repetition_penalty":0"#, "decimal_below_min_value", "repetition_penalty"),
        (r#""logprobs":1"#, "invalid_type", "logprobs"),
        (r#""logprobs":true,"top_logprobs":21"#, "integer_above_max_value", "top_logprobs"),
        (r#""logprobs":true,"top_logprobs":-1"#, "integer_below_min_value", "top_logprobs"),
        (r#""top_logprobs":2"#, "invalid_value", "top_logprobs"),
        (r#""logit_bias":[1]"#, "invalid_value", "logit_bias"),
        (r#""logit_bias":{"hello":1}"#, "invalid_value", "logit_bias"),
        (r#""logit_bias":{"5":101}"#, "invalid_value", "logit_bias"),
        (r#""logit_bias":{"5":"x"}"#, "invalid_value", "logit_bias"),
        (r#""response_format":"json""#, "invalid_type", "response_format"),
        (r#""response_format":{}"#, "missing_required_parameter", "response_format.type"),
        (r#""response_format":{"type":3}"#, "invalid_type", "response_format.type"),
        (r#""response_format":{"type":"text","type":"json_object"}"#, "duplicate_parameter", "response_format"),
        (r#""response_format":{"type":"text","json_schema":{}}"#, "invalid_value", "response_format"),
        (r#""response_format":{"type":"json_schema"}"#, "missing_required_parameter", "response_format.json_schema"),
        (
            r#""response_format":{"type":"json_schema","json_schema":{"schema":{}}}"#,
            "missing_required_parameter",
            "response_format.json_schema.name",
        ),
        (
            r#""response_format":{"type":"json_schema","json_schema":{"name":"a b","schema":{}}}"#,
            "invalid_value",
            "response_format.json_schema.name",
        ),
        (
            r#""response_format":{"type":"json_schema","json_schema":{"name":"a"}}"#,
            "missing_required_parameter",
            "response_format.json_schema.schema",
        ),
        (r#""tools":{}"#, "invalid_type", "tools"),
        (r#""tools":[{}]"#, "missing_required_parameter", "tools[0].type"),
        (r#""tools":[{"type":"function"}]"#, "missing_required_parameter", "tools[0].function"),
        (r#""tools":[{"type":"function","function":{"name":"a b"}}]"#, "invalid_value", "tools[0].function.name"),
        (
            r#""tools":[{"type":"function","function":{"name":"f","parameters":[]}}]"#,
            "invalid_type",
            "tools[0].function.parameters",
        ),
        (
            r#""tools":[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"f"}}]"#,
            "invalid_value",
            "tools[1].function.name",
        ),
        (r#""tool_choice":"required""#, "invalid_value", "tool_choice"),
        (r#""tool_choice":7"#, "invalid_value", "tool_choice"),
        (r#""tool_choice":{"type":"function"}"#, "missing_required_parameter", "tool_choice.function.name"),
        (r#""tool_choice":{"type":"function","function":{"name":"f"}}"#, "invalid_value", "tool_choice.function.name"),
        (r#""parallel_tool_calls":1"#, "invalid_type", "parallel_tool_calls"),
        (r#""seed":99999999999999999999"#, "invalid_type", "seed"),
        (r#""stop":["a","b","c","d","e"]"#, "array_above_max_length", "stop"),
        (r#""stop":["a","b","c","d","e","f"]"#, "array_above_max_length", "stop"),
        (r#""stop":"""#, "invalid_value", "stop"),
        (r#""stop":["a",3]"#, "invalid_type", "stop"),
        (r#""stop":7"#, "invalid_type", "stop"),
        (r#""stream":1"#, "invalid_type", "stream"),
        (r#""stream":"true""#, "invalid_type", "stream"),
        (r#""stream_options":true"#, "invalid_type", "stream_options"),
        (r#""stream_options":{"include_usage":1}"#, "invalid_type", "stream_options.include_usage"),
        (r#""model":{}"#, "invalid_type", "model"),
        (r#""seed":1,"seed":1"#, "duplicate_parameter", "seed"),
        (r#""user":"a","user":"b""#, "duplicate_parameter", "user"),
        (r#""messages":[]"#, "duplicate_parameter", "messages"),
    ] {
        let refusal = parse(&format!(",{field}")).expect_err(field);
        assert_eq!(
            (refusal.status.as_u16(), refusal.code, refusal.param.as_deref()),
            (400, code, Some(param)),
            "{field}"
        );
    }
    let long = format!(r#","stop":"{}""#, "s".repeat(257));
    assert_eq!(parse(&long).unwrap_err().code, "invalid_value");
    assert_eq!(chat(b"{}").unwrap_err().code, "missing_required_parameter");
}

/// Numbers of the API: a value below the range, one above it where there is one, and one within it.
const NUMBERS: &[(&str, &[&str], &str)] = &[
    ("best_of", &["0", "-1", "21", "1.5", "1e30"], "2"),
    ("frequency_penalty", &["-2.01", "2.01", "-1e300", "1e300"], "-2"),
    ("length_penalty", &["-101", "1e300"], "0.5"),
    ("max_completion_tokens", &["0", "-1", "1.5", "-9223372036854775808", "1e300"], "18446744073709551615"),
    ("max_new_tokens", &["0", "-2", "1.5"], "-1"),
    ("max_tokens", &["0", "-1", "1.5", "-9223372036854775808", "1e300"], "18446744073709551615"),
    ("min_p", &["-0.01", "1.01"], "0"),
    ("min_tokens", &["-1", "0.5", "1e30"], "4"),
    ("mirostat", &["-1", "3", "0.5"], "2"),
    ("n", &["0", "-1", "129", "1.5", "1000000000000", "1e30"], "128"),
    ("n_predict", &["0", "-2", "1.5"], "7"),
    ("presence_penalty", &["-2.01", "2.01"], "2"),
    ("random_seed", &["1.5", "99999999999999999999"], "-1"),
    ("repeat_penalty", &["0", "-1", "101"], "1.5"),
    ("repetition_penalty", &["0", "-1", "101", "1e-300"], "1.5"),
    ("seed", &["1.5", "99999999999999999999", "-99999999999999999999"], "-1"),
    ("temperature", &["-0.01", "2.01", "-1e300", "1e300", "1000000000000"], "2"),
    ("top_k", &["-2", "1.5", "1e30"], "1000000000000"),
    ("top_logprobs", &["-1", "21", "1.5", "1000000000000", "1e30"], "0"),
    ("top_p", &["-0.01", "1.01", "2"], "0"),
    ("typical_p", &["-0.1", "1.1"], "0.5"),
];

/// Fields of the API that hold no number, or one whose every other value is unsupported.
const NO_NUMBERS: &[&str] = &[
    "add_generation_prompt",
    "allowed_token_ids",
    "audio",
    "bad_words",
    "cache_prompt",
    "chat_template_kwargs",
    "continue_final_message",
    "documents",
    "ebnf",
    "echo",
    "function_call",
    "functions",
    "grammar",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "ignore_eos",
    "include_stop_str_in_output",
    "json_schema",
    "logit_bias",
    "logits_processors",
    "logprobs",
    "messages",
    "metadata",
    "modalities",
    "model",
    "n_probs",
    "parallel_tool_calls",
    "prediction",
    "priority",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_logprobs",
    "reasoning_effort",
    "regex",
    "response_format",
    "return_hidden_states",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "safety_identifier",
    "service_tier",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop",
    "stop_token_ids",
    "store",
    "stream",
    "stream_options",
    "structural_tag",
    "structured_outputs",
    "suffix",
    "tool_choice",
    "tools",
    "use_beam_search",
    "user",
    "verbosity",
    "web_search_options",
];

#[test]
fn every_number_out_of_range_is_refused_with_its_field() {
    for (name, _) in super::fields::names() {
        let listed = NUMBERS.iter().any(|(field, ..)| *field == name) || NO_NUMBERS.contains(&name);
        assert!(listed, "`{name}` is in no list of this test");
    }
    for (field, wrong, right) in NUMBERS {
        for value in wrong.iter().chain(&["\"1\"", "true", "[1]", "{}"]) {
            let fields = format!(r#","logprobs":true,"{field}":{value}"#);
            let refusal = parse(&fields).expect_err(&fields);
            assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(*field)), "{fields}");
        }
        let fields = format!(r#","logprobs":true,"{field}":{right}"#);
        assert!(parse(&fields).unwrap_or_else(|e| panic!("{fields}: {e:?}")).unsupported.is_none());
    }
    for (biases, is_right) in [
        (r#"{"5":-100,"6":100}"#, true),
        (r#"{"5":-100.01}"#, false),
        (r#"{"5":1e300}"#, false),
        (r#"{"-1":1}"#, false),
        (r#"{"4294967296":1}"#, false),
        (r#"{"1.5":1}"#, false),
    ] {
        let param = parse(&format!(r#","logit_bias":{biases}"#)).err().and_then(|refusal| refusal.param);
        assert_eq!(param.as_deref(), (!is_right).then_some("logit_bias"), "{biases}");
    }
    for value in ["-1", "6", "1.5", "1e30"] {
        let body = format!(r#"{{"prompt":"a","logprobs":{value}}}"#);
        assert_eq!(completions(body.as_bytes()).unwrap_err().param.as_deref(), Some("logprobs"), "{value}");
    }
}

#[test]
fn sampling_and_formats_are_read() {
    let request = parse(
        r#","n":3,"presence_penalty":-2,"frequency_penalty":0.5,"min_p":0.05,"repetition_penalty":1.1,"logprobs":true,
        "top_logprobs":20,"logit_bias":{"7":-100,"49151":1.5}"#,
    )
    .unwrap();
    assert!(request.unsupported.is_none(), "{:?}", request.unsupported.as_ref());
    assert_eq!((request.n, request.logprobs, request.top_logprobs), (Some(3), true, 20));
    assert_eq!((request.presence_penalty, request.frequency_penalty), (Some(-2.0), Some(0.5)));
    assert_eq!((request.min_p, request.repetition_penalty), (Some(0.05), Some(1.1)));
    assert_eq!(request.logit_bias, [(7, -100.0), (49151, 1.5)]);
    let many: Vec<String> = (0..1025).map(|n| format!("\"{n}\":1")).collect();
    let refusal = parse(&format!(r#","logit_bias":{{{}}}"#, many.join(","))).unwrap_err();
    assert_eq!(refusal.code, "object_above_max_properties");

    let schema = r#"{"type":"object", "properties":{"a":{"const":1}}}"#;
    for (format, expected) in [
        ("null".to_owned(), ResponseFormat::Text),
        (r#"{"type":"text"}"#.to_owned(), ResponseFormat::Text),
        (r#"{"type":"json_object"}"#.to_owned(), ResponseFormat::JsonObject),
        (format!(r#"{{"type":"json_object","schema":{schema}}}"#), ResponseFormat::JsonSchema(schema.into())),
        (
            format!(r#"{{"json_schema":{{"strict":true,"schema":{schema},"name":"a-b_1"}},"type":"json_schema"}}"#),
            ResponseFormat::JsonSchema(schema.into()),
        ),
    ] {
        let request = parse(&format!(r#","response_format":{format}"#)).unwrap();
        assert!(request.unsupported.is_none(), "{format}");
        assert_eq!(request.response_format, expected, "{format}");
    }
    let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
    let body = format!(r#","response_format":{{"type":"json_object","schema":{deep}}}"#);
    assert_eq!(parse(&body).unwrap_err().param.as_deref(), Some("response_format"));
}

#[test]
fn tools_and_what_became_of_their_calls_are_read() {
    let body = r#"{"messages":[{"role":"user","content":"hi"},
        {"role":"assistant","tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]},
        {"role":"tool","tool_call_id":"c1","content":"7"}],
        "tools":[{"type":"function","function":{"name":"f","description":null,"parameters":{"type":"object"},"strict":true}},
            {"type":"function","function":{"name":"g"}}],
        "tool_choice":{"type":"function","function":{"name":"f"}},"parallel_tool_calls":false}"#;
    let request = chat(body.as_bytes()).unwrap();
    assert!(request.unsupported.is_none(), "{:?}", request.unsupported.as_ref());
    let functions: Vec<_> = request.tools.iter().map(|tool| tool.function.as_str()).collect();
    assert_eq!(functions, [r#"{"name":"f","parameters":{"type":"object"}}"#, r#"{"name":"g"}"#]);
    assert_eq!(request.tool_choice, ToolChoice::Named("f".into()));
    assert!(request.one_tool_call);
    assert_eq!(request.messages[1].tool_calls[0].name, "f");
    assert_eq!(request.messages[2].tool_call_id.as_deref(), Some("c1"));
    // Where none may be called there are none.
    let none = parse(r#","tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none""#).unwrap();
    assert!(none.tools.is_empty() && none.unsupported.is_none());
}

#[test]
fn completions_are_read() {
    let parse = |fields: &str| completions(format!("{{{fields}}}").as_bytes());
    let request = parse(r#""prompt":"once","logprobs":2,"suffix":"","echo":false,"best_of":1,"n":2"#).unwrap();
    assert!(request.unsupported.is_none(), "{:?}", request.unsupported.as_ref());
    assert_eq!(request.prompt, Some(PromptInput::Text("once".into())));
    assert_eq!((request.max_tokens, request.logprobs, request.top_logprobs), (Some(16), true, 2));
    for (prompt, expected) in [
        ("[1,2]", PromptInput::Tokens(vec![1, 2])),
        ("[[1,2]]", PromptInput::Tokens(vec![1, 2])),
        (r#"["a"]"#, PromptInput::Text("a".into())),
    ] {
        assert_eq!(parse(&format!(r#""prompt":{prompt}"#)).unwrap().prompt, Some(expected), "{prompt}");
    }
    for (fields, param) in [
        ("", "prompt"),
        (r#""prompt":[]"#, "prompt"),
        (r#""prompt":7"#, "prompt"),
        (r#""prompt":[1,"a"]"#, "prompt"),
        (r#""prompt":"a","logprobs":true"#, "logprobs"),
        (r#""prompt":"a","logprobs":6"#, "logprobs"),
    ] {
        assert_eq!(parse(fields).unwrap_err().param.as_deref(), Some(param), "{fields}");
    }
    for (fields, param) in [
        (r#""prompt":["a","b"]"#, "prompt"),
        (r#""prompt":"a","echo":true"#, "echo"),
        (r#""prompt":"a","suffix":"b""#, "suffix"),
        (r#""prompt":"a","messages":[]"#, "messages"),
        (r#""prompt":"a","tools":[]"#, "tools"),
    ] {
        assert_eq!(parse(fields).unwrap().unsupported.unwrap().param.as_deref(), Some(param), "{fields}");
    }
    assert_eq!(self::parse(r#","prompt":"a""#).unwrap().unsupported.unwrap().param.as_deref(), Some("prompt"));
}

#[test]
fn conversations_are_read_by_role() {
    let request = parse_messages(
        r#"[{"role":"developer","content":[{"type":"text","text":"a"},{"text":"b\n","type":"text"}]},
            {"content":"c","role":"user","name":"bob"},
            {"role":"assistant","content":"","refusal":null,"tool_calls":[],"audio":null,"annotations":[{}],"reasoning_content":"r"},
            {"role":"user","content":"d\u00e9"}]"#,
    )
    .unwrap();
    assert!(request.unsupported.is_none(), "{:?}", request.unsupported.as_ref());
    let read: Vec<_> = request.messages.iter().map(|m| (m.role, m.content.as_str())).collect();
    assert_eq!(read, [("system", "a\nb\n"), ("user", "c"), ("assistant", ""), ("user", "dé")]);
}

#[test]
fn messages_that_the_model_cannot_read_are_named() {
    for (messages, param) in [
        (r#"[{"role":"function","name":"f","content":"y"}]"#, "messages[0].role"),
        (r#"[{"role":"assistant","content":"","tool_calls":[{"type":"custom"}]}]"#, "messages[0].tool_calls[0].type"),
        (r#"[{"role":"assistant","function_call":{"name":"f"}}]"#, "messages[0].function_call"),
        (
            r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{}}]}]"#,
            "messages[0].content[1].type",
        ),
        (r#"[{"role":"user","content":[{"type":"input_audio","input_audio":{}}]}]"#, "messages[0].content[0].type"),
        (r#"[{"role":"assistant","content":"x","prefix":true}]"#, "messages[0].prefix"),
    ] {
        let request = parse_messages(messages).unwrap_or_else(|e| panic!("{messages}: {e:?}"));
        assert_eq!(request.unsupported.unwrap().param.as_deref(), Some(param), "{messages}");
    }
}

#[test]
fn messages_that_nobody_could_read_are_refused() {
    for (messages, code, param) in [
        ("[]", "empty_array", "messages"),
        ("null", "invalid_type", "messages"),
        (r#""x""#, "invalid_type", "messages"),
        ("{}", "invalid_type", "messages"),
        ("[3]", "invalid_type", "messages[0]"),
        ("[[]]", "invalid_type", "messages[0]"),
        (r#"[{"content":"x"}]"#, "missing_required_parameter", "messages[0].role"),
        (r#"[{"role":"king","content":"x"}]"#, "invalid_value", "messages[0].role"),
        (r#"[{"role":1,"content":"x"}]"#, "invalid_type", "messages[0].role"),
        (r#"[{"role":"user"}]"#, "missing_required_parameter", "messages[0].content"),
        (r#"[{"role":"user","content":null}]"#, "missing_required_parameter", "messages[0].content"),
        (r#"[{"role":"assistant","content":null}]"#, "missing_required_parameter", "messages[0].content"),
        (r#"[{"role":"assistant","tool_calls":[{}]}]"#, "invalid_value", "messages[0].tool_calls[0]"),
        (r#"[{"role":"tool","content":"x"}]"#, "missing_required_parameter", "messages[0].tool_call_id"),
        (r#"[{"role":"user","content":"x","tool_call_id":"1"}]"#, "invalid_value", "messages[0].tool_call_id"),
        (r#"[{"role":"user","content":5}]"#, "invalid_type", "messages[0].content"),
        (r#"[{"role":"user","content":{}}]"#, "invalid_type", "messages[0].content"),
        (r#"[{"role":"user","content":[]}]"#, "empty_array", "messages[0].content"),
        (r#"[{"role":"user","content":["x"]}]"#, "missing_required_parameter", "messages[0].content[0].type"),
        (
            r#"[{"role":"user","content":[{"type":"text"}]}]"#,
            "missing_required_parameter",
            "messages[0].content[0].text",
        ),
        (
            r#"[{"role":"user","content":[{"type":"text","text":1}]}]"#,
            "missing_required_parameter",
            "messages[0].content[0].text",
        ),
        (r#"[{"role":"user","role":"system","content":"x"}]"#, "duplicate_parameter", "messages[0].role"),
        (r#"[{"role":"user","content":"x","content":"y"}]"#, "duplicate_parameter", "messages[0].content"),
        (
            r#"[{"role":"assistant","content":null,"content":null,"tool_calls":[1]}]"#,
            "duplicate_parameter",
            "messages[0].content",
        ),
    ] {
        let refusal = parse_messages(messages).expect_err(messages);
        assert_eq!(
            (refusal.status.as_u16(), refusal.code, refusal.param.as_deref()),
            (400, code, Some(param)),
            "{messages}"
        );
    }
    let message = r#"{"role":"user","content":"x"}"#;
    assert!(parse_messages(&format!("[{}]", [message; 2048].join(","))).is_ok());
    let refusal = parse_messages(&format!("[{}]", [message; 2049].join(","))).unwrap_err();
    assert_eq!((refusal.code, refusal.param.as_deref()), ("array_above_max_length", Some("messages")));
}

#[test]
fn a_mistake_of_syntax_counts_before_one_of_sense() {
    assert_eq!(chat(br#"{"temperature":9,"messages":[}"#).unwrap_err().code, "invalid_json");
    assert_eq!(read(br#"{"model":9,"model":[}"#).unwrap_err().code, "invalid_json");
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_judged(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let _ = chat(&bytes);
    }
}
