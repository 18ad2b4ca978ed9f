//! The guard for a model's memory lives for as long as any of the memory is taken.

use std::cell::Cell;
use std::io::Write;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use super::small_model;
use crate::artifact::TensorType;
use crate::device::{HangMark, HangSource};
use crate::{DeviceChoice, Engine, LoadError, LoadOptions};

struct SentOnDrop(Sender<()>);

impl Drop for SentOnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[test]
fn it_is_asked_for_when_the_model_can_be_loaded_and_let_go_with_its_memory() {
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    file.write_all(&small_model(TensorType::F32)).unwrap();
    let (told, dropped) = channel();
    let asked = Cell::new(0);
    let load = |options: LoadOptions| {
        Engine::load_holding::<LoadError>(options, || {
            asked.set(asked.get() + 1);
            Ok(Box::new(SentOnDrop(told.clone())))
        })
    };
    let options = LoadOptions { device: DeviceChoice::Cpu, ..LoadOptions::new(file.path()) };
    let engine = load(options.clone()).unwrap();
    assert!(dropped.try_recv().is_err());
    drop(engine);
    dropped.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(load(LoadOptions { memory: Some(1 << 10), ..options.clone() }).is_err());
    dropped.try_recv().unwrap();
    assert_eq!(asked.get(), 2);

    // No memory is reserved for a model that hangs already.
    let mark = HangMark::new(HangSource::File(file.path().into()));
    let mut devices = vec![DeviceChoice::Cpu];
    // On a machine where automatic choice means the CPU as well.
    devices.extend(crate::device::no_gpu().map(|_| DeviceChoice::Auto));
    for device in devices {
        let hangs = load(LoadOptions { device, ..options.clone() }).err().unwrap();
        assert!(matches!(hangs, LoadError::Hangs { kind: "CPU", .. }), "{hangs}");
        assert_eq!(asked.get(), 2);
    }
    drop(mark);
    assert!(load(options.clone()).is_ok());

    let none = Engine::load_holding(options, || Err(LoadError::NoDevice("no room".into()))).err().unwrap();
    assert!(matches!(&none, LoadError::NoDevice(why) if why == "no room"), "{none}");
}
