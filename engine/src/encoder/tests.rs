//! Serving of an encoder on a simulated device: a fault, hang or panic fails its own requests and nothing else.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Encoded, EncoderHandle, Input, begin};
use crate::artifact::ModelFile;
use crate::device::block_on;
use crate::exec::Batch;
use crate::model::BertShape;
use crate::runner::Runner;
use crate::runner::doubles::{Fault, Faults, SharedFaults, meet, rebuildable, tuning};
use crate::testing::gguf::small_reranker_with;
use crate::text::TextModel;
use crate::{BusyReason, DeviceChoice, EngineError, LoadError, LoadOptions};

struct Simulated(SharedFaults);

impl Runner for Simulated {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        meet(&self.0)?;
        Ok(batch.picks.iter().map(|pick| batch.rows[*pick as usize].token as f32).collect())
    }
}

fn try_scene(name: &str, device: DeviceChoice, faults: Faults) -> (Result<EncoderHandle, LoadError>, SharedFaults) {
    try_scene_with("[UNK]", name, device, faults)
}

/// As `try_scene`, with another token for unknown words.
fn try_scene_with(
    unknown: &str,
    name: &str,
    device: DeviceChoice,
    faults: Faults,
) -> (Result<EncoderHandle, LoadError>, SharedFaults) {
    let file = small_reranker_with(unknown, 32);
    let file = ModelFile::open(file.path()).unwrap();
    let (shape, tokenizer) = (BertShape::of(&file).unwrap(), TextModel::tokenizer_of(&file).unwrap());
    let options = LoadOptions { device, max_queue_wait: Duration::from_secs(600), ..LoadOptions::new("nowhere") };
    let faults = Arc::new(Mutex::new(faults));
    let shared = faults.clone();
    let may_fall_back = options.device == DeviceChoice::Auto;
    let made = rebuildable(name, may_fall_back, &faults, move || Box::new(Simulated(shared.clone())));
    let tuning = tuning(&faults);
    (begin(made, shape, tokenizer, &options, tuning), faults)
}

fn scene(device: DeviceChoice, faults: Faults) -> (EncoderHandle, SharedFaults) {
    let (handle, faults) = try_scene("simulated", device, faults);
    (handle.unwrap(), faults)
}

fn encode(handle: &EncoderHandle) -> Result<Vec<Encoded>, EngineError> {
    let input = Input::Text("what is".into());
    block_on(handle.encode(vec![input.clone(), input]))
}

/// Encodes once the model runs again; until then only [`BusyReason::Recovering`] and device errors may be returned.
fn encode_again(handle: &EncoderHandle) -> Vec<Encoded> {
    let started = Instant::now();
    loop {
        match encode(handle) {
            Ok(encoded) => return encoded,
            Err(EngineError::Busy(busy)) => assert_eq!(busy.reason, BusyReason::Recovering),
            Err(other) => assert!(matches!(other, EngineError::Device(_)), "{other:?}"),
        }
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_model_with_no_room_for_two_texts_is_refused() {
    for (context, is_read) in [(1, false), (2, false), (3, true)] {
        let file = small_reranker_with("[UNK]", context);
        let shape = BertShape::of(&ModelFile::open(file.path()).unwrap());
        assert_eq!(shape.is_ok(), is_read, "{context}");
    }
}

#[test]
fn an_encoder_whose_device_fails_or_panics_is_set_up_again_and_only_its_requests_fail() {
    for fault in [Fault::Error, Fault::Panic] {
        let (handle, faults) = scene(DeviceChoice::Index(0), Faults { refusals: 2, ..Faults::default() });
        let before = encode(&handle).unwrap();
        assert!(handle.stats().is_ready && handle.thread.placement().rate > 0.0, "{:?}", handle.thread.placement());
        faults.lock().unwrap().next.push_back(fault);
        assert!(matches!(encode(&handle), Err(EngineError::Device(_))));
        assert_eq!(encode_again(&handle), before);
        let stats = handle.stats();
        assert_eq!((stats.faults, stats.is_ready, stats.active, stats.waiting), (1, true, 0, 0));
        assert_eq!(handle.estimated_wait(), Duration::ZERO, "nothing is counted that was given up");
        assert_eq!(faults.lock().unwrap().on_processor, [false; 4]);
    }
}

#[test]
fn an_encoder_whose_device_hangs_fails_its_requests_in_time() {
    let (handle, faults) = scene(DeviceChoice::Index(0), Faults::default());
    faults.lock().unwrap().next.push_back(Fault::Hang(Duration::from_secs(3)));
    let started = Instant::now();
    assert!(matches!(encode(&handle), Err(EngineError::Device(_))));
    assert!(started.elapsed() < Duration::from_secs(3), "it was told before the device came back");
    assert!(!handle.stats().is_ready);
    assert!(matches!(encode(&handle), Err(EngineError::Busy(busy)) if busy.reason == BusyReason::Recovering));
    assert_eq!(encode_again(&handle).len(), 2);
    assert_eq!(faults.lock().unwrap().on_processor.len(), 2);
}

#[test]
fn an_encoder_on_a_gpu_that_is_lost_goes_on_on_the_processor() {
    let (handle, faults) = scene(DeviceChoice::Auto, Faults { refusals: usize::MAX, ..Faults::default() });
    faults.lock().unwrap().next.push_back(Fault::Error);
    assert!(encode(&handle).is_err());
    assert_eq!(encode_again(&handle).len(), 2);
    assert_eq!(handle.thread.placement().device.kind, "CPU");
}

#[test]
fn an_encoder_that_has_ended_is_not_ready() {
    let (handle, _) = scene(DeviceChoice::Index(0), Faults::default());
    handle.thread.shutdown();
    assert!(handle.thread.has_ended() && !handle.stats().is_ready);
    assert!(matches!(encode(&handle), Err(EngineError::Busy(busy)) if busy.reason == BusyReason::Stopped));
}

#[test]
fn an_encoder_that_hangs_in_its_first_step_is_not_waited_for() {
    let hang = || Faults::first(Fault::Hang(Duration::from_secs(3)));
    for device in [DeviceChoice::Index(0), DeviceChoice::Auto] {
        let started = Instant::now();
        let (handle, faults) = try_scene("hangs, an encoder", device, hang());
        assert!(matches!(handle, Err(LoadError::Hangs { kind: "discrete GPU", .. })), "{:?}", handle.err());
        assert!(started.elapsed() < Duration::from_secs(3), "it was told before the device came back");
        assert_eq!(faults.lock().unwrap().on_processor, [false]);
    }
}

#[test]
fn an_input_without_tokens_is_refused() {
    let (handle, _) = scene(DeviceChoice::Index(0), Faults::default());
    let none = block_on(handle.encode(vec![Input::Tokens(vec![]), Input::Text("what".into())]));
    assert!(matches!(none, Err(EngineError::Input(_))), "{none:?}");
    assert_eq!(encode(&handle).unwrap().len(), 2);
}

#[test]
fn a_text_that_has_no_tokens_fails_its_request_and_no_other() {
    // A vocabulary without a token for unknown words.
    let (handle, _) = try_scene_with("[none]", "simulated", DeviceChoice::Index(0), Faults::default());
    let handle = handle.unwrap();
    let text = |text: &str| Input::Text(text.into());
    let unknown = block_on(handle.encode(vec![text("what"), text("nobody knows"), text("is")]));
    assert!(
        matches!(&unknown, Err(EngineError::Input(why)) if why.contains("cannot tokenise this text")),
        "{unknown:?}"
    );
    assert_eq!(encode(&handle).unwrap().len(), 2);
    let pair = block_on(handle.encode(vec![Input::Pair("what".into(), "nobody".into())]));
    assert!(matches!(pair, Err(EngineError::Input(_))), "{pair:?}");
    assert_eq!((handle.stats().active, handle.stats().waiting, handle.stats().faults), (0, 0, 0));
}
