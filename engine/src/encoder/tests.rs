//! Serving an encoder on a device that is simulated: what fails, hangs or panics fails its requests and nothing else.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Encoded, Handle, Input, begin};
use crate::artifact::ModelFile;
use crate::device::block_on;
use crate::exec::Batch;
use crate::model::BertShape;
use crate::runner::{Made, Rebuildable, Runner, Target, Tuning};
use crate::testing::gguf::small_reranker;
use crate::text::TextModel;
use crate::{BusyReason, DeviceChoice, DeviceInfo, EngineError, LoadError, LoadOptions, Placement};

#[derive(Debug, Clone, Copy)]
enum Fault {
    Error,
    Panic,
    Hang(Duration),
}

#[derive(Default)]
struct World {
    faults: VecDeque<Fault>,
    /// How many times the GPU cannot be had again.
    refusals: usize,
    on_processor: Vec<bool>,
}

struct Simulated(Arc<Mutex<World>>);

impl Runner for Simulated {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        let fault = self.0.lock().unwrap().faults.pop_front();
        match fault {
            Some(Fault::Error) => return Err(EngineError::Device("out of memory".into())),
            Some(Fault::Panic) => panic!("a driver panics"),
            Some(Fault::Hang(time)) => std::thread::sleep(time),
            None => {}
        }
        Ok(batch.picks.iter().map(|pick| batch.rows[*pick as usize].token as f32).collect())
    }
}

fn scene(device: DeviceChoice, world: World) -> (Handle, Arc<Mutex<World>>) {
    let file = small_reranker();
    let file = ModelFile::open(file.path()).unwrap();
    let (shape, tokenizer) = (BertShape::of(&file).unwrap(), TextModel::tokenizer_of(&file).unwrap());
    let options = LoadOptions { device, max_queue_wait: Duration::from_secs(600), ..LoadOptions::new("nowhere") };
    let world = Arc::new(Mutex::new(world));
    let shared = world.clone();
    let make = move |target: Target<'_>| {
        let mut world = shared.lock().unwrap();
        let on_processor = target != Target::AsWanted;
        world.on_processor.push(on_processor);
        if !on_processor && world.refusals > 0 && world.on_processor.len() > 1 {
            world.refusals -= 1;
            return Err(LoadError::NoDevice("none yet".into()));
        }
        let kind = if on_processor { "CPU" } else { "discrete GPU" };
        let (name, backend, driver, reason) = ("simulated".into(), "none".into(), "none".into(), String::new());
        let device = DeviceInfo { name, backend, kind, driver, reason };
        Ok(Made { runner: Box::new(Simulated(shared.clone())), placement: Placement::new(device, 0) })
    };
    let first = make(Target::AsWanted).unwrap();
    let made = Rebuildable::new(first, options.device == DeviceChoice::Auto, 1000, Box::new(make));
    let tuning = Tuning { hang_least: Duration::from_millis(300), retry_first: Duration::from_millis(20) };
    (begin(made, shape, tokenizer, &options, tuning).unwrap(), world)
}

fn encode(handle: &Handle) -> Result<Vec<Encoded>, EngineError> {
    let input = Input::Text("what is".into());
    block_on(handle.encode(vec![input.clone(), input]))
}

/// Encodes once the model can again; until then it must say that it is set up.
fn encode_again(handle: &Handle) -> Vec<Encoded> {
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
fn an_encoder_whose_device_fails_or_panics_is_set_up_again_and_only_its_requests_fail() {
    for fault in [Fault::Error, Fault::Panic] {
        let (handle, world) = scene(DeviceChoice::Index(0), World { refusals: 2, ..World::default() });
        let before = encode(&handle).unwrap();
        assert!(handle.stats().is_ready && handle.placement().rate > 0.0, "{:?}", handle.placement());
        world.lock().unwrap().faults.push_back(fault);
        assert!(matches!(encode(&handle), Err(EngineError::Device(_))));
        assert_eq!(encode_again(&handle), before);
        let stats = handle.stats();
        assert_eq!((stats.faults, stats.is_ready, stats.active, stats.waiting), (1, true, 0, 0));
        assert_eq!(handle.estimated_wait(), Duration::ZERO, "nothing is counted that was given up");
        assert_eq!(world.lock().unwrap().on_processor, [false; 4]);
    }
}

#[test]
fn an_encoder_whose_device_hangs_fails_its_requests_in_time() {
    let (handle, world) = scene(DeviceChoice::Index(0), World::default());
    world.lock().unwrap().faults.push_back(Fault::Hang(Duration::from_secs(3)));
    let started = Instant::now();
    assert!(matches!(encode(&handle), Err(EngineError::Device(_))));
    assert!(started.elapsed() < Duration::from_secs(3), "it was told before the device came back");
    assert!(!handle.stats().is_ready);
    assert!(matches!(encode(&handle), Err(EngineError::Busy(busy)) if busy.reason == BusyReason::Recovering));
    assert_eq!(encode_again(&handle).len(), 2);
    assert_eq!(world.lock().unwrap().on_processor.len(), 2);
}

#[test]
fn an_encoder_on_a_gpu_that_is_lost_goes_on_on_the_processor() {
    let (handle, world) = scene(DeviceChoice::Auto, World { refusals: usize::MAX, ..World::default() });
    world.lock().unwrap().faults.push_back(Fault::Error);
    assert!(encode(&handle).is_err());
    assert_eq!(encode_again(&handle).len(), 2);
    assert_eq!(handle.placement().device.kind, "CPU");
}

#[test]
fn an_encoder_that_has_ended_is_not_ready() {
    let (handle, _) = scene(DeviceChoice::Index(0), World::default());
    handle.shutdown();
    assert!(handle.has_ended() && !handle.stats().is_ready);
    assert!(matches!(encode(&handle), Err(EngineError::Busy(busy)) if busy.reason == BusyReason::Stopped));
}
