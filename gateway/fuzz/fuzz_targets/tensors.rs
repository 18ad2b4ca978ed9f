//! Any bytes as the body of a call of the Open Inference Protocol, over HTTP and gRPC: what is read fills its shapes, and a
//! message that is renamed names its new model and nothing else.
#![no_main]

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use spillway::protocol::oip::{self, INFERENCE_HEADER_CONTENT_LENGTH, InferRequest};
use spillway::protocol::{Encode, OIP_GRPC};
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

fuzz_target!(|data: &[u8]| {
    let Some(([low, high], body)) = data.split_first_chunk() else { return };
    judge(|| oip::read_infer(&Fields::default(), body));
    let length = HeaderValue::from(u16::from_le_bytes([*low, *high]));
    let headers: Fields = [(INFERENCE_HEADER_CONTENT_LENGTH.clone(), length)].into_iter().collect();
    judge(|| oip::read_infer(&headers, body));
    over_grpc(body);
    let _ = oip::grpc::read_infer(body);
    let _ = OIP_GRPC.model_in_message(body);
});
