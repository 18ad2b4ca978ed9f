//! Calls over gRPC: messages of callers, and answers as prost reads them.

use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::protocol::OIP_GRPC;
use crate::protocol::chat::{Encode, EncodeInput};

#[derive(Clone, PartialEq, prost::Message)]
struct InferRequestMessage {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "2")]
    model_version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<InputMessage>,
    #[prost(message, repeated, tag = "6")]
    outputs: Vec<OutputMessage>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    raw_input_contents: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct InputMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
    #[prost(message, repeated, tag = "4")]
    parameters: Vec<ParameterMessage>,
    #[prost(message, optional, tag = "5")]
    contents: Option<ContentsMessage>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ParameterMessage {
    #[prost(string, tag = "1")]
    key: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContentsMessage {
    #[prost(int32, repeated, tag = "2")]
    ints: Vec<i32>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    bytes: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OutputMessage {
    #[prost(string, tag = "1")]
    name: String,
}

fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0][..], &length, &message].concat()
}

fn call(model: &str, texts: &[&str]) -> InferRequestMessage {
    let contents = ContentsMessage { bytes: texts.iter().map(|text| text.as_bytes().to_vec()).collect(), ints: vec![] };
    InferRequestMessage {
        model_name: model.to_owned(),
        id: "7".to_owned(),
        inputs: vec![InputMessage {
            name: "text".to_owned(),
            datatype: "BYTES".to_owned(),
            shape: vec![i64::try_from(texts.len()).unwrap()],
            parameters: vec![],
            contents: Some(contents),
        }],
        ..InferRequestMessage::default()
    }
}

fn raw(call: &InferRequestMessage, raw: &[&[u8]]) -> InferRequestMessage {
    let mut call = call.clone();
    call.inputs[0].contents = None;
    call.raw_input_contents = raw.iter().map(|bytes| bytes.to_vec()).collect();
    call
}

fn texts(body: &[u8]) -> Result<Vec<EncodeInput>, String> {
    let request = read_infer(body).and_then(|call| call.for_task(Encode::Embeddings, "m"));
    request.map(|(request, _)| request.inputs).map_err(|refusal| refusal.message.into_owned())
}

#[test]
fn texts_come_typed_and_raw() {
    let expected = Ok(["a", "é"].map(|text| EncodeInput::Text(text.to_owned())).to_vec());
    let typed = call("m", &["a", "é"]);
    assert_eq!(texts(&framed(&typed)), expected);
    assert_eq!(texts(&framed(&raw(&typed, &[b"\x01\0\0\0a\x02\0\0\0\xC3\xA9"]))), expected);
}

#[test]
fn a_call_that_does_not_agree_with_itself_is_refused_by_name() {
    let typed = call("m", &["a"]);
    let with = |change: &dyn Fn(&mut InferRequestMessage)| {
        let mut call = typed.clone();
        change(&mut call);
        texts(&framed(&call)).unwrap_err()
    };
    assert_eq!(
        with(&|call| call.raw_input_contents = vec![vec![], vec![]]),
        "`raw_input_contents` has 2 entries for 1 inputs; expected one for each."
    );
    assert_eq!(
        with(&|call| call.raw_input_contents = vec![vec![]]),
        "An input has both `contents` and `raw_input_contents`."
    );
    assert_eq!(with(&|call| call.inputs[0].shape = vec![-1]), "A shape has a negative dimension.");
    assert_eq!(with(&|call| call.inputs[0].shape = vec![1; 9]), "The message has more than 8 dimensions in a shape.");
    assert_eq!(with(&|call| call.inputs[0].shape = vec![2]), "The input `text` has 1 elements; its shape has 2.");
    assert_eq!(
        with(&|call| call.inputs[0].contents = Some(ContentsMessage { ints: vec![300], bytes: vec![] })),
        "The input `text` has elements that are not BYTES."
    );
    assert_eq!(
        with(&|call| call.inputs[0].contents.as_mut().unwrap().bytes[0] = vec![0xFF]),
        "The message is not in the form of the Open Inference Protocol."
    );
    assert_eq!(
        with(&|call| call.inputs[0].parameters = vec![ParameterMessage { key: "shared_memory_region".to_owned() }]),
        "The parameter `shared_memory_region` is not accepted: the caller and a built-in model share no memory."
    );
    assert_eq!(with(&|call| call.inputs = vec![call.inputs[0].clone(); 17]), "The message has more than 16 inputs.");
    assert_eq!(with(&|call| call.model_version = "2".to_owned()), "A built-in model has only the version 1, not `2`.");
    let mut compressed = framed(&typed);
    compressed[0] = 1;
    assert!(texts(&compressed).unwrap_err().starts_with("The message is compressed"));
    let two = [framed(&typed), framed(&typed)].concat();
    assert_eq!(texts(&two).unwrap_err(), "The call must have one message, and all of it.");
}

#[test]
fn the_model_is_found_and_renamed_wherever_it_is() {
    let body = framed(&call("first", &["a"]));
    let named = OIP_GRPC.model_in_message(&body).unwrap().unwrap();
    assert_eq!((named.name.as_str(), named.at.clone()), ("first", 5..12));
    // The same fields in another order.
    let moved = [&body[12..], &body[5..12]].concat();
    let moved = [&[0][..], &u32::try_from(moved.len()).unwrap().to_be_bytes(), &moved].concat();
    for body in [body, moved] {
        let named = OIP_GRPC.model_in_message(&body).unwrap().unwrap();
        for name in ["", "x", &"long".repeat(100)] {
            let (range, bytes) = OIP_GRPC.rename_in_message(&body, &named.at, name).unwrap();
            let renamed = [&body[..range.start], &bytes, &body[range.end..]].concat();
            let super::wire::Frame::Message(message) = super::wire::frame(&renamed) else { panic!("{renamed:?}") };
            let read = InferRequestMessage::decode(message).unwrap();
            assert_eq!(read, InferRequestMessage { model_name: name.to_owned(), ..call("first", &["a"]) });
        }
    }
    let twice = [call("a", &[]).encode_to_vec(), call("b", &[]).encode_to_vec()].concat();
    let twice = [&[0][..], &u32::try_from(twice.len()).unwrap().to_be_bytes(), &twice].concat();
    assert_eq!(OIP_GRPC.model_in_message(&twice).unwrap_err().code, "duplicate_parameter");
    assert_eq!(OIP_GRPC.model_in_message(&framed(&call("", &[]))).unwrap(), None);
}

#[test]
fn a_second_name_is_found_however_its_key_is_written() {
    let first = call("a", &[]).encode_to_vec();
    for (key, code) in [
        (&[0x0A][..], "duplicate_parameter"),
        (&[0x8A, 0x00], "duplicate_parameter"),
        (&[0x8A, 0x80, 0x80, 0x80, 0x00], "duplicate_parameter"),
        // Readers in C++ drop all but 32 bits of a key, and readers in Java those of up to 64.
        (&[0x8A, 0x80, 0x80, 0x80, 0x10], "invalid_message"),
        (&[0x8A, 0x80, 0x80, 0x80, 0x70], "invalid_message"),
        (&[0x8A, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01], "invalid_message"),
    ] {
        let message = [&first, key, &[1, b'b']].concat();
        let body = [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat();
        assert_eq!(OIP_GRPC.model_in_message(&body).unwrap_err().code, code, "{key:x?}");
    }
}

#[test]
fn a_name_is_no_longer_than_in_any_other_request() {
    // It becomes part of logs and spans.
    let named = |name: &str| OIP_GRPC.model_in_message(&framed(&call(name, &[])));
    assert_eq!(named(&"n".repeat(256)).unwrap().unwrap().name.len(), 256);
    for name in ["n".repeat(257), "n".repeat(1 << 20), "n\n".to_owned(), " n".to_owned()] {
        assert_eq!(named(&name).unwrap_err().code, "invalid_value");
    }
}

#[test]
fn an_answer_is_raw_where_the_call_was() {
    let vectors = Encoded::Vectors(vec![(vec![0.5, -1.0], true)]);
    let typed = call("m", &["a"]);
    let plan =
        |call: &InferRequestMessage| read_infer(&framed(call)).unwrap().for_task(Encode::Embeddings, "m").unwrap().1;
    let answer = write_infer(&plan(&typed), "m", &vectors);
    assert_eq!(u32::from_be_bytes(answer[1..5].try_into().unwrap()) as usize, answer.len() - 5);
    let values = [0.5f32, -1.0].map(f32::to_le_bytes).concat();
    assert!(memchr::memmem::find(&answer, &[&[0x32, 8][..], &values].concat()).is_some(), "packed `fp32_contents`");
    let mut call = raw(&typed, &[b"\x01\0\0\0a"]);
    call.outputs = vec![OutputMessage { name: "embedding".to_owned() }];
    let answer = write_infer(&plan(&call), "m", &vectors);
    assert!(answer.ends_with(&[&[0x32, 8][..], &values].concat()), "`raw_output_contents` alone: {answer:?}");
    assert_eq!(write_state(true)[..], [0, 0, 0, 0, 2, 8, 1]);
    assert_eq!(write_state(false)[..], [0, 0, 0, 0, 0]);
}

#[test]
fn a_method_says_what_is_asked() {
    for (method, expected) in [
        ("ModelInfer", Some(InferenceCall::Infer)),
        ("ModelStreamInfer", Some(InferenceCall::StreamInfer)),
        ("ModelReady", Some(InferenceCall::ModelReady)),
        ("ModelMetadata", Some(InferenceCall::ModelMetadata)),
        ("ServerLive", Some(InferenceCall::ServerLive)),
        ("ServerReady", Some(InferenceCall::ServerReady)),
        ("ServerMetadata", Some(InferenceCall::ServerMetadata)),
        ("RepositoryIndex", Some(InferenceCall::OtherOfServer)),
    ] {
        let path = format!("/inference.GRPCInferenceService/{method}");
        let known = OIP_GRPC.operation(&Method::POST, &path).map(|known| known.operation);
        assert_eq!(known, expected.map(Operation::Inference), "{method}");
        assert!(OIP_GRPC.operation(&Method::GET, &path).is_none());
    }
    assert!(OIP_GRPC.operation(&Method::POST, "/other.Service/ModelInfer").is_none());
}

proptest! {
    #[test]
    fn any_message_is_read_or_refused(message in prop::collection::vec(any::<u8>(), 0..80)) {
        let body = [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat();
        let _ = read_infer(&body);
        let _ = read_version(&body);
        if let Ok(Some(named)) = OIP_GRPC.model_in_message(&body) {
            let (range, bytes) = OIP_GRPC.rename_in_message(&body, &named.at, "renamed").unwrap();
            let renamed = [&body[..range.start], &bytes, &body[range.end..]].concat();
            prop_assert_eq!(OIP_GRPC.model_in_message(&renamed).unwrap().unwrap().name, "renamed");
        }
    }

    #[test]
    fn texts_survive(texts_in in prop::collection::vec(".{0,12}", 1..12)) {
        let written: Vec<&str> = texts_in.iter().map(String::as_str).collect();
        let read = texts(&framed(&call("m", &written)));
        prop_assert_eq!(read, Ok(texts_in.into_iter().map(EncodeInput::Text).collect()));
    }
}
