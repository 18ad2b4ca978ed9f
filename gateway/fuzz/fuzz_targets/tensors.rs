//! Any bytes as the body of a call of the Open Inference Protocol, over HTTP and gRPC: what is read fills its shapes, and a
//! message that is renamed names its new model and nothing else. A call that is translated to the other transport is the same call
//! after the way there and back.
#![no_main]

use http::{HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;
use spillway::protocol::oip::{self, INFERENCE_HEADER_CONTENT_LENGTH, InferRequest};
use spillway::protocol::translate::{CallerCall, Lossy, ServerKind, WrittenCall};
use spillway::protocol::{Dialect, Encode, InferenceCall, OIP, OIP_GRPC, Operation, call_translator};
use spillway_filter::{Fields, Refusal};

/// Most texts of a call.
const MOST: usize = 2048;

fn judge(read: impl Fn() -> Result<InferRequest, Refusal>) {
    for what in [Encode::Embeddings, Encode::Rerank] {
        match read().and_then(|call| call.for_task(what, "m")) {
            Ok((request, _)) => {
                let texts = request.inputs.len() + request.texts.len();
                assert!(texts > 0 && texts <= MOST);
                assert_eq!(request.query.is_some(), what == Encode::Rerank);
            }
            Err(refusal) => assert!(!refusal.message.is_empty()),
        }
    }
}

fn over_grpc(message: &[u8]) {
    let framed = |message: &[u8]| {
        let length = u32::try_from(message.len()).unwrap_or_default().to_be_bytes();
        [&[0][..], &length, message].concat()
    };
    let body = framed(message);
    judge(|| oip::grpc::read_infer(&body));
    let _ = oip::grpc::read_version(&body);
    let Ok(Some(named)) = OIP_GRPC.model_in_message(&body) else { return };
    let (range, bytes) = OIP_GRPC.rename_in_message(&body, &named.at, "renamed").expect("a short message");
    let renamed = [&body[..range.start], &bytes, &body[range.end..]].concat();
    let again = OIP_GRPC.model_in_message(&renamed).expect("a message").expect("a model");
    assert_eq!(again.name, "renamed");
    let (range, bytes) = OIP_GRPC.rename_in_message(&renamed, &again.at, &named.name).expect("a short message");
    let back = [&renamed[..range.start], &bytes, &renamed[range.end..]].concat();
    assert_eq!(OIP_GRPC.model_in_message(&back).expect("a message").expect("a model").name, named.name);
}

/// Call as it is for a server of the other transport; `None` where it is refused.
fn translated(
    caller: &'static dyn Dialect,
    server: &'static dyn Dialect,
    headers: &[(HeaderName, HeaderValue)],
    body: &[u8],
) -> Option<WrittenCall> {
    let operation = Operation::Inference(InferenceCall::Infer);
    let kind = ServerKind { dialect: server, has_responses: true, has_tokenize: false };
    let call = CallerCall {
        operation,
        method: &Method::POST,
        path: "/v2/models/m/infer",
        headers: &headers.iter().cloned().collect(),
        body,
        model: Some("m"),
        renamed: None,
        takes_trailers: true,
    };
    let translator = call_translator(caller, operation, kind).expect("both transports have the call");
    translator.write(&call, &mut Lossy::default()).ok()
}

fn there_and_back(headers: &[(HeaderName, HeaderValue)], body: &[u8]) {
    let Some(there) = translated(OIP, OIP_GRPC, headers, body) else { return };
    let back = translated(OIP_GRPC, OIP, &[], &there.body).expect("a call that came over HTTP");
    let again = translated(OIP, OIP_GRPC, &back.headers, &back.body).expect("a call that was written");
    assert_eq!(again.body, there.body);
}

fuzz_target!(|data: &[u8]| {
    let Some(([low, high], body)) = data.split_first_chunk() else { return };
    judge(|| oip::read_infer(&Fields::default(), body));
    let length = HeaderValue::from(u16::from_le_bytes([*low, *high]));
    let headers: Fields = [(INFERENCE_HEADER_CONTENT_LENGTH.clone(), length)].into_iter().collect();
    judge(|| oip::read_infer(&headers, body));
    there_and_back(&[], body);
    there_and_back(
        &[(INFERENCE_HEADER_CONTENT_LENGTH.clone(), HeaderValue::from(u16::from_le_bytes([*low, *high])))],
        body,
    );
    let _ = translated(OIP_GRPC, OIP, &[], body);
    over_grpc(body);
    let _ = oip::grpc::read_infer(body);
    let _ = OIP_GRPC.model_in_message(body);
});
