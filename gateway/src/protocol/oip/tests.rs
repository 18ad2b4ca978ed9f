//! Calls over HTTP: bodies of callers, answers and metadata as the protocol's documents have them.

use http::HeaderValue;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::protocol::chat::{Encode, EncodeInput, EncodeRequest};

/// Fields of a request whose JSON has this length.
fn length(length: &str) -> Fields {
    [(INFERENCE_HEADER_CONTENT_LENGTH.clone(), HeaderValue::from_str(length).unwrap())].into_iter().collect()
}

/// Reads a call for a model `m`.
fn read_as(what: Encode, headers: &Fields, body: &[u8]) -> Result<(EncodeRequest, AnswerPlan), Refusal> {
    read_infer(headers, body)?.for_task(what, "m")
}

fn embed(body: &Value) -> Result<(EncodeRequest, AnswerPlan), Refusal> {
    read_as(Encode::Embeddings, &Fields::default(), body.to_string().as_bytes())
}

fn refusal(body: &Value) -> (&'static str, String) {
    let refusal = embed(body).unwrap_err();
    (refusal.code, refusal.message.into_owned())
}

fn texts(request: &EncodeRequest) -> Vec<&str> {
    fn text(input: &EncodeInput) -> &str {
        if let EncodeInput::Text(text) = input { text } else { panic!("{input:?}") }
    }
    request.inputs.iter().map(text).collect()
}

fn input(shape: &[u64], data: Value) -> Value {
    json!({"inputs": [{"name": "text", "datatype": "BYTES", "shape": shape, "data": data}]})
}

/// Body with its JSON and binary data, and the fields that tell them apart.
fn with_binary(body: &Value, binary: &[u8]) -> (Fields, Vec<u8>) {
    let head = body.to_string();
    (length(&head.len().to_string()), [head.as_bytes(), binary].concat())
}

#[test]
fn texts_come_as_json_flat_or_nested_and_as_binary_data() {
    for (shape, data) in [(&[2][..], json!(["a", "é"])), (&[2, 1], json!(["a", "é"])), (&[2, 1], json!([["a"], ["é"]]))]
    {
        let (request, plan) = embed(&input(shape, data)).unwrap();
        assert_eq!((texts(&request), request.model.as_deref()), (vec!["a", "é"], Some("m")));
        assert!(plan.outputs.iter().all(|(_, is_binary)| !is_binary));
    }
    let call = json!({"id": "7", "model_name": "m", "model_version": "1", "parameters": {"binary_data_output": true},
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": 11}}],
        "outputs": [{"name": "embedding"}]});
    let (headers, body) = with_binary(&call, b"\x01\0\0\0a\x02\0\0\0\xC3\xA9");
    let (request, plan) = read_as(Encode::Embeddings, &headers, &body).unwrap();
    assert_eq!((texts(&request), plan.id.as_deref()), (vec!["a", "é"], Some("7")));
    assert_eq!(plan.outputs, [(infer::Output::Embedding, true)]);
}

#[test]
fn a_query_and_its_documents_are_two_inputs() {
    let tensor =
        |name: &str, data: &[&str]| json!({"name": name, "datatype": "BYTES", "shape": [data.len()], "data": data});
    let rank = |inputs: Value| {
        let body = json!({"inputs": inputs}).to_string();
        read_as(Encode::Rerank, &Fields::default(), body.as_bytes()).map_err(|refusal| refusal.message.into_owned())
    };
    let (request, _) = rank(json!([tensor("documents", &["a", "b"]), tensor("query", &["q"])])).unwrap();
    assert_eq!((request.query.as_deref(), request.texts), (Some("q"), vec!["a".to_owned(), "b".to_owned()]));
    for (inputs, message) in [
        (json!([tensor("query", &["q"])]), "The input `documents` is missing."),
        (json!([tensor("documents", &["a"])]), "The input `query` is missing."),
        (
            json!([tensor("query", &["q", "r"]), tensor("documents", &["a"])]),
            "The input `query` has 2 texts; expected one.",
        ),
        (json!([tensor("query", &["q"]), tensor("query", &["q"])]), "`query` appears more than once in the body."),
        (json!([tensor("text", &["q"])]), "The input `text` does not exist; expected `query` and `documents`."),
    ] {
        assert_eq!(rank(inputs).unwrap_err(), message);
    }
}

#[test]
fn a_call_that_does_not_agree_with_itself_is_refused_by_name() {
    let tensor = |more: Value| {
        let mut tensor = json!({"name": "text", "datatype": "BYTES", "shape": [1]});
        tensor.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"inputs": [tensor]})
    };
    for (call, code, message) in [
        (json!({}), "missing_required_parameter", "The input `text` is missing."),
        (tensor(json!({})), "invalid_tensor", "The input `text` has neither `data` nor `binary_data_size`."),
        (
            tensor(json!({"data": ["a"], "parameters": {"binary_data_size": 0}})),
            "invalid_tensor",
            "The input `text` has both `data` and `binary_data_size`.",
        ),
        (
            tensor(json!({"parameters": {"binary_data_size": 9}})),
            "invalid_tensor",
            "The input `text` has `binary_data_size` 9; 0 bytes are left.",
        ),
        (
            tensor(json!({"parameters": {"binary_data_size": -1}})),
            "invalid_value",
            "The parameter `binary_data_size` must be a number of bytes.",
        ),
        (input(&[2], json!(["a"])), "invalid_tensor", "The input `text` has 1 elements; its shape has 2."),
        (input(&[1], json!([1])), "invalid_tensor", "The input `text` has elements that are not BYTES."),
        (input(&[0], json!([])), "invalid_tensor", "The input `text` has no text."),
        (input(&[1, 1, 1], json!(["a"])), "invalid_tensor", "The input `text` has another shape than [n] or [n, 1]."),
        (
            json!({"inputs": [{"name": "text", "datatype": "FP32", "shape": [1], "data": [1]}]}),
            "invalid_tensor",
            "The input `text` is FP32; expected BYTES.",
        ),
        (
            json!({"inputs": [{"name": "input-0", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}),
            "invalid_tensor",
            "The input `input-0` does not exist; expected `text`.",
        ),
        (
            tensor(json!({"data": ["a"], "parameters": {"shared_memory_region": "r"}})),
            "invalid_value",
            "The parameter `shared_memory_region` is not accepted: the caller and a built-in model share no memory.",
        ),
    ] {
        assert_eq!(refusal(&call), (code, message.to_owned()), "{call}");
    }
    let outputs = |outputs: Value| {
        let mut call = input(&[1], json!(["a"]));
        call["outputs"] = outputs;
        call
    };
    for (call, message) in [
        (outputs(json!([{"name": "x"}])), "The output `x` does not exist; expected `embedding` and `truncated`."),
        (
            outputs(json!([{"name": "truncated"}, {"name": "truncated"}])),
            "`truncated` appears more than once in the body.",
        ),
        (
            outputs(json!([{"name": "embedding", "parameters": {"classification": 3}}])),
            "The parameter `classification` is not accepted: the outputs of this model are no classes.",
        ),
        (
            outputs(json!([{"name": "embedding", "parameters": {"binary_data": 1}}])),
            "The parameter `binary_data` must be true or false.",
        ),
    ] {
        assert_eq!(refusal(&call).1, message);
    }
    let mut named = input(&[1], json!(["a"]));
    named["model_name"] = "other".into();
    assert_eq!(refusal(&named), ("ambiguous_model", "The body names the model `other`, the path another.".to_owned()));
    named["model_name"] = "m".into();
    named["model_version"] = "3".into();
    assert_eq!(refusal(&named).0, "model_not_found");
}

#[test]
fn json_that_is_of_another_form_is_refused() {
    for (body, message) in [
        ("", "EOF while parsing"),
        ("[]", "expected an object with `inputs`"),
        (r#"{"inputs":[],"inputs":[]}"#, "duplicate field `inputs`"),
        (r#"{"inputs":[{"name":"a","name":"b"}]}"#, "duplicate field `name`"),
        (r#"{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":"a"}]}"#, "`data` must be a list"),
        (r#"{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":[null]}]}"#, "invalid type: null"),
        (r#"{"inputs":[{"name":"text","shape":[-1],"datatype":"BYTES","data":[]}]}"#, "invalid value: integer `-1`"),
        (r#"{"inputs":[{"name":"text","shape":[1,1,1,1,1,1,1,1,1],"datatype":"BYTES"}]}"#, "invalid length 9"),
        (r#"{"inputs":[{"name":"text","x":1}]}"#, "unknown field `x`"),
        (r#"{"parameters":{"a":{}}}"#, "expected a string, a number, true or false"),
        (r#"{"parameters":{"a":1,"a":2}}"#, "duplicate parameter `a`"),
    ] {
        let refusal = read_infer(&Fields::default(), body.as_bytes()).unwrap_err();
        assert!(refusal.message.contains(message) && refusal.code == "invalid_json", "{body}: {}", refusal.message);
    }
    let deep = format!(
        "{{\"inputs\":[{{\"name\":\"text\",\"shape\":[1],\"datatype\":\"BYTES\",\"data\":{}",
        "[".repeat(100_000)
    );
    assert!(read_infer(&Fields::default(), deep.as_bytes()).unwrap_err().message.contains("recursion limit"));
    let many = json!({"inputs": vec![json!({"name": "text", "datatype": "BYTES", "shape": [0], "data": []}); 17]});
    assert!(refusal(&many).1.contains("invalid length 17"), "{:?}", refusal(&many));
}

#[test]
fn the_length_of_the_json_must_fit_the_body() {
    let (_, body) = with_binary(&input(&[1], json!(["a"])), b"");
    let all = body.len();
    for (written, message) in [
        ("0".to_owned(), "is 0, which says that the body has no JSON"),
        ((all + 1).to_string(), "the whole body has"),
        ("-1".to_owned(), "must be the length of the JSON in bytes"),
        ("+1".to_owned(), "must be the length of the JSON in bytes"),
        ("99999999999999999999999".to_owned(), "must be the length of the JSON in bytes"),
    ] {
        let refusal = read_infer(&length(&written), &body).unwrap_err();
        assert!(refusal.message.contains(message), "{written}: {}", refusal.message);
        assert_eq!(refusal.param.as_deref(), Some("inference-header-content-length"));
    }
    let twice: Fields = length("1").iter().chain(&length("1")).map(|(n, v)| (n.clone(), v.clone())).collect();
    assert!(read_infer(&twice, &body).unwrap_err().message.contains("more than once"));
    assert!(read_infer(&length(&all.to_string()), &body).is_ok());
    let more = [&body[..], b"xy"].concat();
    let refusal = read_infer(&length(&all.to_string()), &more).unwrap_err();
    assert_eq!(refusal.message, "The body has 2 bytes behind the data of its last input.");
}

#[test]
fn fields_that_are_not_known_are_noted() {
    let mut call = input(&[1], json!(["a"]));
    call["x"] = json!({"y": [1]});
    call["parameters"] = json!({"sequence_id": 4, "priority": 1.5, "name": "n"});
    let (request, _) = embed(&call).unwrap();
    let noted = request.ignored.header().unwrap();
    assert_eq!(noted, "x, parameters.sequence_id, parameters.priority, parameters.name");
}

#[test]
fn an_answer_has_the_outputs_in_the_form_that_was_asked_for() {
    let vectors = Encoded::Vectors(vec![(vec![0.5, -1.0], false), (vec![0.0, 0.25], true)]);
    let (_, plan) = embed(&input(&[2], json!(["a", "b"]))).unwrap();
    let answer = write_infer(&plan, "m", &vectors);
    assert_eq!(answer.json_length, None);
    assert_eq!(
        serde_json::from_slice::<Value>(&answer.body).unwrap(),
        json!({"model_name": "m", "model_version": "1", "outputs": [
            {"name": "embedding", "datatype": "FP32", "shape": [2, 2], "data": [0.5, -1.0, 0.0, 0.25]},
            {"name": "truncated", "datatype": "BOOL", "shape": [2], "data": [false, true]}]})
    );
    let mut call = input(&[2], json!(["a", "b"]));
    call["id"] = "9".into();
    call["outputs"] = json!([{"name": "truncated", "parameters": {"binary_data": true}},
        {"name": "embedding", "parameters": {"binary_data": true}}]);
    let (_, plan) = embed(&call).unwrap();
    let answer = write_infer(&plan, "m", &vectors);
    let (head, binary) = answer.body.split_at(answer.json_length.unwrap());
    assert_eq!(
        serde_json::from_slice::<Value>(head).unwrap(),
        json!({"model_name": "m", "model_version": "1", "id": "9", "outputs": [
            {"name": "truncated", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}},
            {"name": "embedding", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": 16}}]})
    );
    let values: Vec<u8> = [0.5f32, -1.0, 0.0, 0.25].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(binary, [&[0, 1][..], &values].concat());
}

#[test]
fn metadata_tells_inputs_and_outputs() {
    let told = |what| serde_json::from_slice::<Value>(&write_model(&ModelFacts::new("m", what, 384))).unwrap();
    assert_eq!(
        told(Encode::Embeddings),
        json!({"name": "m", "versions": ["1"], "platform": "spillway",
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]},
                {"name": "truncated", "datatype": "BOOL", "shape": [-1]}]})
    );
    assert_eq!(
        told(Encode::Rerank),
        json!({"name": "m", "versions": ["1"], "platform": "spillway",
            "inputs": [{"name": "query", "datatype": "BYTES", "shape": [1]},
                {"name": "documents", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1]}]})
    );
    let server: Value = serde_json::from_slice(&write_server()).unwrap();
    assert_eq!((&server["name"], &server["extensions"]), (&json!("spillway"), &json!(["binary_tensor_data"])));
    assert_eq!(write_model_ready("m", true), r#"{"name":"m","ready":true}"#);
}

proptest! {
    #[test]
    fn texts_are_the_same_in_json_and_in_binary_data(texts_in in prop::collection::vec(".{0,12}", 1..12)) {
        let count = u64::try_from(texts_in.len()).unwrap();
        let (as_json, _) = embed(&input(&[count], json!(texts_in))).unwrap();
        let element = |text: &String| [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text.as_bytes()].concat();
        let binary: Vec<u8> = texts_in.iter().flat_map(element).collect();
        let call = json!({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [count, 1],
            "parameters": {"binary_data_size": binary.len()}}]});
        let (headers, body) = with_binary(&call, &binary);
        let (as_binary, _) = read_as(Encode::Embeddings, &headers, &body).unwrap();
        prop_assert_eq!(texts(&as_json), texts_in.iter().map(String::as_str).collect::<Vec<_>>());
        prop_assert_eq!(texts(&as_json), texts(&as_binary));
    }

    #[test]
    fn a_cut_body_is_refused(cut in 1usize..120) {
        let call = json!({"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}}]});
        let (headers, body) = with_binary(&call, b"\x01\0\0\0a\x02\0\0\0\xC3\xA9");
        prop_assert!(read_infer(&headers, &body).is_ok());
        prop_assert!(read_infer(&headers, &body[..body.len().saturating_sub(cut)]).is_err());
    }
}
