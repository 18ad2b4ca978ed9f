#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::borrow::Cow;

use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proptest::prelude::*;
use spillway_filter::{Fields, Refusal};

use super::http::{self, AnswerForm};
use super::message::{Message, Parameter, Parameters, Tensor, Wanted};
use super::{GrpcToHttp, HttpToGrpc, elements, protobuf};
use crate::protocol::inference::InferenceCall;
use crate::protocol::oip::grpc::request::message;
use crate::protocol::oip::grpc::wire::framed_parts;
use crate::protocol::oip::json::INFERENCE_HEADER_CONTENT_LENGTH;
use crate::protocol::oip::tensor::DataType;
use crate::protocol::operation::Operation;
use crate::protocol::translate::{
    CallAnswer, CallTranslator, CallerCall, Lossy, MostKept, ServerAnswer, Unreadable, WrittenCall,
};

fn parameter() -> impl Strategy<Value = Parameter<'static>> {
    prop_oneof![
        any::<bool>().prop_map(Parameter::Bool),
        any::<i64>().prop_map(Parameter::Int),
        (i64::MAX as u64 + 1..).prop_map(Parameter::Unsigned),
        any::<f64>().prop_filter("JSON has none", |value| value.is_finite()).prop_map(Parameter::Double),
        ".{0,8}".prop_map(|text| Parameter::Text(text.into())),
    ]
}

fn parameters() -> impl Strategy<Value = Parameters<'static>> {
    // Sorted by name, as they are written.
    let named = prop::collection::btree_map("[a-z]{1,4}", parameter(), 0..3);
    named.prop_map(|all| all.into_iter().map(|(name, value)| (name.into(), value)).collect())
}

fn texts(texts: &[Vec<u8>]) -> Vec<u8> {
    let one = |text: &Vec<u8>| [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], text].concat();
    texts.iter().flat_map(one).collect()
}

fn tensor() -> impl Strategy<Value = Tensor<'static>> {
    let datatype = prop::sample::select(&DataType::ALL[..]);
    (datatype, prop::collection::vec(0i64..4, 0..4), ".{0,5}", parameters()).prop_flat_map(
        |(datatype, shape, name, parameters)| {
            let count = elements::count(&shape).unwrap();
            let data = match datatype.size() {
                Some(_) if datatype == DataType::Bool => prop::collection::vec(0u8..2, count).boxed(),
                Some(size) => prop::collection::vec(any::<u8>(), count * size).boxed(),
                None => {
                    let text =
                        prop_oneof![".{0,5}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..5)];
                    prop::collection::vec(text, count).prop_map(|all| texts(&all)).boxed()
                }
            };
            data.prop_map(move |data| Tensor {
                name: name.clone().into(),
                datatype,
                shape: shape.clone(),
                parameters: parameters.clone(),
                data: data.into(),
            })
        },
    )
}

fn messages(most_wanted: usize) -> impl Strategy<Value = Message<'static>> {
    let wanted = (".{0,5}", parameters()).prop_map(|(name, parameters)| Wanted { name: name.into(), parameters });
    let wanted = prop::collection::vec(wanted, 0..=most_wanted);
    (".{0,5}", parameters(), prop::collection::vec(tensor(), 0..4), wanted).prop_map(
        |(id, parameters, tensors, wanted)| Message {
            model: None,
            version: Cow::Borrowed(""),
            id: id.into(),
            parameters,
            tensors,
            wanted,
        },
    )
}

fn json_length(length: Option<usize>) -> Fields {
    length.map(|length| (INFERENCE_HEADER_CONTENT_LENGTH.clone(), HeaderValue::from(length))).into_iter().collect()
}

proptest! {
    #[test]
    fn a_call_survives_both_transports(call in messages(3)) {
        let (body, length) = http::write_request(&call);
        let headers = json_length(length);
        let mut lossy = Lossy::default();
        let (read, form) = http::read_request(&headers, &body, &mut lossy).unwrap();
        prop_assert_eq!(&read, &call);
        prop_assert!(form != AnswerForm::default());

        let body = protobuf::write_request(read, "m", "2");
        let (read, is_raw) = protobuf::read_request(&body, &mut lossy).unwrap();
        prop_assert_eq!(is_raw, !call.tensors.is_empty());
        let expected = Message { model: Some("m".into()), version: "2".into(), ..call };
        prop_assert_eq!(read, expected);
        prop_assert_eq!(lossy.header(), None);
    }

    #[test]
    fn an_answer_survives_both_transports(answer in messages(0), is_raw: bool, is_binary: bool) {
        let named = Message { model: Some("m".into()), version: "1".into(), ..answer.clone() };
        let body = protobuf::write_answer(named.clone(), "m", is_raw);
        prop_assert_eq!(&protobuf::read_answer(message(&body).unwrap()).unwrap(), &named);

        let parameters = format!("{{\"parameters\":{{\"binary_data_output\":{is_binary}}}}}");
        let (_, form) = http::read_request(&Fields::default(), parameters.as_bytes(), &mut Lossy::default()).unwrap();
        let fits = answer.tensors.iter().all(|tensor| elements::fits_json(tensor.datatype, &tensor.data));
        match http::write_answer(&named, "m", &form) {
            Ok((body, length)) => {
                prop_assert!(is_binary || fits);
                prop_assert_eq!(length.is_some(), is_binary && !answer.tensors.is_empty());
                prop_assert_eq!(http::read_answer(&json_length(length), &body).unwrap(), named);
            }
            Err(refusal) => prop_assert!(!is_binary && !fits && refusal.message.contains("binary_data")),
        }
    }

    #[test]
    fn the_length_in_json_is_known_before_it_is_written(tensor in tensor()) {
        prop_assume!(elements::fits_json(tensor.datatype, &tensor.data));
        let mut written = Vec::new();
        elements::write_json(tensor.datatype, &tensor.data, &mut written);
        let length = elements::json_length(tensor.datatype, &tensor.data);
        prop_assert!(written.len() <= length);
        // Without a comma behind the last element.
        prop_assert!(!elements::is_exact(tensor.datatype) || written.len() + 1 >= length);
    }

    #[test]
    fn any_bytes_are_translated_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let framed = framed_parts(&[&body]);
        for body in [&body[..], &framed] {
            let _ = to_grpc(&[], body, &[]);
            let _ = to_http("ModelInfer", body);
            let _ = http::read_answer(&Fields::default(), body);
            let _ = protobuf::read_answer(body);
        }
    }
}

fn call<'a>(
    method: &'a Method,
    path: &'a str,
    headers: &'a Fields,
    body: &'a [u8],
    call: InferenceCall,
) -> CallerCall<'a> {
    CallerCall {
        operation: Operation::Inference(call),
        method,
        path,
        headers,
        body,
        model: Some("m"),
        renamed: Some("theirs"),
        takes_trailers: true,
    }
}

fn to_grpc(headers: &[(HeaderName, HeaderValue)], body: &[u8], dropped: &[String]) -> Result<WrittenCall, Refusal> {
    let headers = headers.iter().cloned().collect();
    let call = call(&Method::POST, "/v2/models/m/versions/2/infer", &headers, body, InferenceCall::Infer);
    HttpToGrpc.write(&call, &mut Lossy::new(dropped))
}

fn to_http(name: &str, body: &[u8]) -> Result<WrittenCall, Refusal> {
    let path = format!("/inference.GRPCInferenceService/{name}");
    let of = |name| match name {
        "ModelInfer" => InferenceCall::Infer,
        "ModelReady" => InferenceCall::ModelReady,
        "ModelMetadata" => InferenceCall::ModelMetadata,
        "ServerLive" => InferenceCall::ServerLive,
        "ServerReady" => InferenceCall::ServerReady,
        "ServerMetadata" => InferenceCall::ServerMetadata,
        "ModelStreamInfer" => InferenceCall::StreamInfer,
        _ => InferenceCall::OtherOfServer,
    };
    let headers = Fields::default();
    GrpcToHttp.write(&call(&Method::POST, &path, &headers, body, of(name)), &mut Lossy::default())
}

fn refused(body: &str) -> String {
    to_grpc(&[], body.as_bytes(), &[]).err().unwrap().message.into_owned()
}

#[test]
fn hostile_shapes_and_elements_are_refused_before_memory_is_reserved() {
    let input = |shape: &str, datatype: &str, data: &str| {
        format!(r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}"#)
    };
    for (shape, datatype, data, what) in [
        ("[9223372036854775807,4]", "INT8", "[1]", "has a shape with too many elements, or a negative dimension"),
        ("[-1]", "INT8", "[1]", "has a shape with too many elements, or a negative dimension"),
        ("[4294967296]", "FP64", "[1]", "has fewer elements than its shape, which has 4294967296"),
        ("[3]", "INT32", "[1,2]", "has 2 elements; its shape has 3"),
        ("[1]", "INT32", "[[1],[2]]", "has more elements than its shape, which has 1"),
        ("[1]", "INT8", "[128]", "has an element that is not INT8"),
        ("[1]", "UINT64", "[-1]", "has an element that is not UINT64"),
        ("[1]", "INT32", "[1.0]", "has an element that is not INT32"),
        ("[1]", "FP32", "[1e39]", "has an element that is not FP32"),
        ("[1]", "FP32", "[\"1\"]", "has an element that is not FP32"),
        ("[1]", "FP64", "[true]", "has an element that is not FP64"),
        ("[1]", "BOOL", "[2]", "has an element that is not BOOL"),
        ("[1]", "BYTES", "[1]", "has an element that is not BYTES"),
        ("[1]", "BYTES", "[{\"a\":1}]", "has an element that is not BYTES"),
        ("[1]", "FP16", "[1.0]", "is FP16, which only binary data and raw contents can hold"),
        ("[1]", "INT8", "1", "has no list of elements in `data`"),
        ("[1]", "STRING", "[1]", "has an unknown datatype `STRING`"),
    ] {
        assert_eq!(
            refused(&input(shape, datatype, data)),
            format!("The input `x` {what}."),
            "{shape} {datatype} {data}"
        );
    }
    for (body, what) in [
        (r#"{"inputs":[{"name":"x","shape":[1],"datatype":"INT8"}]}"#, "has neither `data` nor `binary_data_size`"),
        (
            r#"{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","parameters":{"binary_data_size":1}}]}"#,
            "has `binary_data_size` 1; 0 bytes are left",
        ),
        (r#"{"parameters":{"shared_memory_region":"r"}}"#, "share no memory"),
        (r#"{"parameters":{"p":[1]}}"#, "must be a text, a number, true or false"),
        (r#"{"model_name":"other"}"#, "the path another"),
        (r#"{"model_version":"3"}"#, "the path another"),
        (r#"{"surprise":1}"#, "`surprise` has no counterpart"),
        (
            r#"{"inputs":[{"name":"x","shape":[0],"datatype":"INT8","data":[],"odd":1}]}"#,
            "`inputs.odd` has no counterpart",
        ),
        (r#"{"id":1}"#, "`id` must be a string"),
    ] {
        assert!(refused(body).contains(what), "{body}: {}", refused(body));
    }
    let many = format!("[{}]", vec![r#"{"name":"x","shape":[0],"datatype":"INT8","data":[]}"#; 257].join(","));
    assert!(refused(&format!("{{\"inputs\":{many}}}")).contains("at most 256 entries"));
    assert!(
        refused(&format!("{{\"inputs\":[{{\"name\":\"x\",\"shape\":[{}1]}}]}}", "1,".repeat(32)))
            .contains("at most 32")
    );
    let dropped = to_grpc(&[], br#"{"surprise":1}"#, &["surprise".to_owned()]);
    assert!(dropped.is_ok());

    // Of gRPC: field 5 is a tensor with datatype (2), shape (3) and contents (5).
    for (tensor, what) in [
        (&b"\x12\x04INT8\x1a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x7f"[..], "has fewer elements"),
        (b"\x12\x04INT8\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "negative dimension"),
        (b"\x12\x04INT8\x1a\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x04", "too many elements"),
        (b"\x12\x04INT8\x18\x01\x2a\x03\x10\x80\x01", "has an element that is not INT8"),
        (b"\x12\x04INT8\x18\x01\x2a\x02\x08\x01", "has an element that is not INT8"),
        (b"\x12\x04FP32\x18\x01\x2a\x04\x32\x02\x00\x00", "no message of the protocol"),
        (b"\x12\x04FP16\x18\x01", "is FP16, which only binary data and raw contents can hold"),
    ] {
        let message = [&[0x2A, u8::try_from(tensor.len()).unwrap()][..], tensor].concat();
        let refusal = to_http("ModelInfer", &framed_parts(&[&message])).err().unwrap();
        assert!(refusal.message.contains(what), "{tensor:x?}: {}", refusal.message);
    }
    let raw = to_http("ModelInfer", &framed_parts(&[b"\x3a\x01x"])).err().unwrap();
    assert!(raw.message.contains("1 entries for 0 tensors"), "{}", raw.message);
    // A parameter (4) that would frame the body over HTTP.
    let framing = framed_parts(&[b"\x22\x16\x0a\x10binary_data_size\x12\x02\x10\x01"]);
    assert!(to_http("ModelInfer", &framing).err().unwrap().message.contains("it frames tensors over HTTP"));
}

#[test]
fn calls_keep_their_names_and_those_without_a_counterpart_are_refused() {
    let written = to_grpc(&[], br#"{"id":"7"}"#, &[]).unwrap();
    assert_eq!((written.method, &*written.path), (Method::POST, "/inference.GRPCInferenceService/ModelInfer"));
    let (read, _) = protobuf::read_request(&written.body, &mut Lossy::default()).unwrap();
    assert_eq!((read.model.as_deref(), &*read.version, &*read.id), (Some("theirs"), "2", "7"));

    let about = protobuf::write_model("m", "a/b");
    for (name, body, path) in [
        ("ModelInfer", &framed_parts(&[]), Some("/v2/models/theirs/infer")),
        ("ModelReady", &about, Some("/v2/models/theirs/versions/a%2Fb/ready")),
        ("ModelMetadata", &about, Some("/v2/models/theirs/versions/a%2Fb")),
        ("ServerLive", &framed_parts(&[]), Some("/v2/health/live")),
        ("ServerReady", &framed_parts(&[]), Some("/v2/health/ready")),
        ("ServerMetadata", &framed_parts(&[]), Some("/v2")),
        ("ModelStreamInfer", &about, None),
        ("RepositoryIndex", &about, None),
    ] {
        match (to_http(name, body), path) {
            (Ok(written), Some(path)) => {
                let method = if name == "ModelInfer" { Method::POST } else { Method::GET };
                assert_eq!((written.method, &*written.path), (method, path), "{name}");
            }
            (Err(refusal), None) => {
                assert_eq!((refusal.status, refusal.code), (StatusCode::NOT_IMPLEMENTED, "unsupported_transport"));
                assert!(refusal.message.contains(name), "{}", refusal.message);
            }
            (other, _) => panic!("{name}: {:?}", other.err()),
        }
    }
    for version in [".", ".."] {
        let refusal = to_http("ModelReady", &protobuf::write_model("m", version)).err().unwrap();
        assert_eq!(refusal.param.as_deref(), Some("model_version"));
    }
    for (method, path, kind) in [
        (Method::HEAD, "/v2/health/live", InferenceCall::ServerLive),
        (Method::POST, "/v2/models/m/generate", InferenceCall::OtherOfModel),
    ] {
        let headers = Fields::default();
        let refusal = HttpToGrpc.write(&call(&method, path, &headers, b"", kind), &mut Lossy::default()).err().unwrap();
        assert_eq!(refusal.code, "unsupported_transport", "{method} {path}");
    }
    let headers = Fields::default();
    let over_http1 = CallerCall {
        takes_trailers: false,
        ..call(&Method::POST, "/inference.GRPCInferenceService/ServerLive", &headers, b"", InferenceCall::ServerLive)
    };
    assert_eq!(GrpcToHttp.write(&over_http1, &mut Lossy::default()).err().unwrap().code, "http2_required");
}

fn from_http(name: &str, status: u16, body: &str) -> CallAnswer {
    let asked = match name {
        "ModelInfer" => framed_parts(&[]),
        _ => protobuf::write_model("m", ""),
    };
    let written = to_http(name, &asked).unwrap();
    written.reader.read(&ServerAnswer {
        status: StatusCode::from_u16(status).unwrap(),
        headers: &Fields::default(),
        body: Ok(body.as_bytes()),
        most_kept: MostKept::default(),
        trailers: None,
        stands_in: false,
        request_id: "",
    })
}

fn header<'a>(answer: &'a CallAnswer, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_str().unwrap())
}

#[test]
fn errors_and_states_of_servers_over_http_become_those_of_grpc() {
    for (status, body, code, message) in [
        (400, r#"{"error":"no 100%"}"#, "3", "no 100%25"),
        (404, r#"{"error":"no such model"}"#, "5", "no such model"),
        (422, r#"{"detail":[]}"#, "3", "{\"detail\":[]}"),
        (429, "", "8", "the backend answered 429"),
        (500, r#"{"error":"x"}"#, "13", "x"),
        (503, r#"{"error":"x"}"#, "14", "x"),
        (504, r#"{"error":"x"}"#, "4", "x"),
    ] {
        let answer = from_http("ModelInfer", status, body);
        assert_eq!((answer.status.as_u16(), answer.body.len(), answer.trailers.is_none()), (200, 0, true));
        assert_eq!((header(&answer, "grpc-status"), header(&answer, "grpc-message")), (Some(code), Some(message)));
        assert_eq!(answer.failed.map(|status| status.as_u16()), Some(status));
    }
    for body in ["", "{}", r#"{"outputs":[{"name":"x","shape":[2],"datatype":"INT8","data":[1]}]}"#] {
        let answer = from_http("ModelInfer", 200, body);
        assert!(answer.unreadable.is_some(), "{body}");
        assert_eq!(header(&answer, "grpc-status"), Some("14"), "{body}");
    }
    for (name, status, body, holds) in [
        ("ServerLive", 200, r#"{"live":true}"#, true),
        ("ServerReady", 200, "", true),
        ("ServerReady", 503, "", false),
        ("ModelReady", 400, r#"{"error":"not ready"}"#, false),
        ("ModelReady", 200, r#"{"name":"m","ready":false}"#, false),
    ] {
        let answer = from_http(name, status, body);
        assert_eq!(answer.body, super::metadata::state_to_message(holds), "{name} {status} {body}");
        assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
    }
    let answer = from_http("ModelInfer", 200, r#"{"model_name":"theirs","model_version":null,"outputs":[]}"#);
    let read = protobuf::read_answer(message(&answer.body).unwrap()).unwrap();
    assert_eq!(read.model.as_deref(), Some("m"));
}

fn from_grpc(body: &[u8], head: &[(&str, &str)], trailers: &[(&str, &str)]) -> CallAnswer {
    fn map<C: FromIterator<(HeaderName, HeaderValue)>>(all: &[(&str, &str)]) -> C {
        all.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
    }
    let trailers: HeaderMap = map(trailers);
    to_grpc(&[], b"{}", &[]).unwrap().reader.read(&ServerAnswer {
        status: StatusCode::OK,
        headers: &map(head),
        body: Ok(body),
        most_kept: MostKept::default(),
        trailers: Some(&trailers),
        stands_in: false,
        request_id: "",
    })
}

#[test]
fn statuses_of_servers_over_grpc_become_those_of_http() {
    for (code, status) in [
        ("1", 499),
        ("2", 500),
        ("3", 400),
        ("4", 504),
        ("5", 404),
        ("7", 403),
        ("8", 429),
        ("9", 400),
        ("12", 501),
        ("13", 500),
        ("14", 503),
        ("16", 401),
        ("99", 500),
    ] {
        let told = [("grpc-status", code), ("grpc-message", "n%C3%A9 %")];
        for answer in [from_grpc(b"", &told, &[]), from_grpc(b"", &[], &told)] {
            assert_eq!((answer.status.as_u16(), &*answer.body), (status, "{\"error\":\"né %\"}".as_bytes()), "{code}");
            assert_eq!(header(&answer, "content-type"), Some("application/json"));
        }
    }
    // Cut, or of no form.
    for (body, trailers) in [
        (&b""[..], &[][..]),
        (b"\x00\x00\x00\x00\x02\x08", &[("grpc-status", "0")]),
        (b"\x01\x00\x00\x00\x00", &[("grpc-status", "0")]),
    ] {
        let answer = from_grpc(body, &[], trailers);
        assert_eq!((answer.status.as_u16(), answer.unreadable.is_some()), (502, true), "{body:x?}");
    }
    let sixteen = Message {
        tensors: vec![Tensor {
            name: "half".into(),
            datatype: DataType::Fp16,
            shape: vec![1],
            parameters: Vec::new(),
            data: vec![0, 60].into(),
        }],
        ..Message::default()
    };
    let answer = from_grpc(&protobuf::write_answer(sixteen, "theirs", true), &[], &[("grpc-status", "0")]);
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(String::from_utf8_lossy(&answer.body).contains("`half` is FP16"), "{answer:?}");
}

/// Answer or call with one tensor of texts or truth values.
fn of_one(datatype: DataType, shape: i64, data: Vec<u8>) -> Message<'static> {
    let tensor = Tensor { name: "x".into(), datatype, shape: vec![shape], parameters: Vec::new(), data: data.into() };
    Message { tensors: vec![tensor], ..Message::default() }
}

#[test]
fn elements_that_json_makes_much_longer_are_sent_as_binary_data() {
    let long = 1 << 20;
    let text = |byte: u8| of_one(DataType::Bytes, 1, texts(&[vec![byte; long]]));
    let short = of_one(DataType::Bytes, 1, texts(&[vec![1; 100]]));
    for (call, is_binary) in [
        (text(b'a'), false),
        (text(1), true),
        (text(b'"'), true),
        (text(b'\\'), true),
        (short, false),
        (of_one(DataType::Bool, 4, vec![1, 0, 1, 0]), false),
        (of_one(DataType::Bool, 1 << 20, vec![1; long]), true),
    ] {
        let (body, length) = http::write_request(&call);
        assert_eq!(length.is_some(), is_binary, "{}", call.tensors[0].datatype.as_str());
        assert!(body.len() < 2 * call.tensors[0].data.len() + 1000);
        assert_eq!(http::read_request(&json_length(length), &body, &mut Lossy::default()).unwrap().0, call);
    }
}

#[test]
fn an_answer_that_its_form_makes_too_long_is_refused() {
    let ok = [("grpc-status", "0")];
    for (answer, is_too_long) in [
        (of_one(DataType::Bytes, 1, texts(&[vec![b'a'; 7 << 20]])), false),
        (of_one(DataType::Bytes, 1, texts(&[vec![1; 2 << 20]])), true),
        (of_one(DataType::Bool, 2 << 20, vec![1; 2 << 20]), true),
        (of_one(DataType::Int8, 3 << 20, vec![0x80; 3 << 20]), true),
        (of_one(DataType::Int8, 3 << 20, vec![1; 3 << 20]), false),
    ] {
        let answer = from_grpc(&protobuf::write_answer(answer, "m", true), &[], &ok);
        assert_eq!(
            (answer.status.as_u16(), answer.unreadable),
            if is_too_long { (502, Some(Unreadable::TOO_LARGE)) } else { (200, None) }
        );
    }
}

#[test]
fn a_compressed_answer_that_is_too_long_says_so_and_one_that_is_cut_that_it_cannot_be_read() {
    let plain = protobuf::write_answer(of_one(DataType::Int8, 9 << 20, vec![0; 9 << 20]), "m", true);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, message(&plain).unwrap()).unwrap();
    let packed = encoder.finish().unwrap();
    let told = |message: &[u8]| {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        from_grpc(&[&[1][..], &length, message].concat(), &[("grpc-encoding", "gzip")], &[("grpc-status", "0")])
    };
    let (long, cut) = (told(&packed), told(&packed[..100]));
    assert_eq!((long.status.as_u16(), long.unreadable), (502, Some(Unreadable::TOO_LARGE)));
    assert!(String::from_utf8_lossy(&long.body).contains("`limits.maxTranslatedBytes`"), "{long:?}");
    assert_eq!((cut.status.as_u16(), cut.unreadable), (502, Some(Unreadable::NOT_IN_CODING)));
}

#[test]
fn empty_contents_beside_raw_ones_are_none() {
    // An answer of MLServer 1.7.1.
    let answer = b"\x0a\x07doubler\x1a\x017*%\x0a\x01x\x12\x04FP32\x1a\x02\x01\x02\"\x14\x0a\x0ccontent_type\x12\x04\x1a\x02np*\x002\x08\x00\x00\x00@\x00\x00\x80@";
    let read = protobuf::read_answer(answer).unwrap();
    assert_eq!((read.tensors.len(), &*read.tensors[0].data), (1, &answer[answer.len() - 8..]));
}
