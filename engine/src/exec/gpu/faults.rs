//! Requirements of serving beside the kernels: a copied page equals the original, and a lost device reports an error.

use std::io::Write;

use super::Gpu;
use crate::artifact::{ModelFile, TensorType};
use crate::device::{self, DeviceChoice};
use crate::exec::cpu::{Cpu, CpuUnit};
use crate::exec::plain::Plain;
use crate::exec::{Batch, Executor, PAGE, Row};
use crate::model::{Decoder, DecoderShape};
use crate::testing::small_model;

/// Prefills 40 tokens in one sequence, copies the second page, and continues in another sequence.
fn copied(exec: &mut dyn Executor, model: &Decoder, per_slot: usize) -> [Vec<f32>; 2] {
    let row = |slot, position| Row { token: position * 7 % 250, position, slot };
    let table = |second: [u32; 2]| {
        let mut pages = vec![0; 2 * per_slot];
        pages[..2].copy_from_slice(&[3, 1]);
        pages[per_slot..per_slot + 2].copy_from_slice(&second);
        pages
    };
    let prompt = Batch { rows: (0..40).map(|p| row(0, p)).collect(), pages: table([0, 0]), ..Batch::default() };
    model.forward(exec, &Batch { picks: vec![39], ..prompt }).unwrap();
    assert!(exec.copy_page(1, 4));
    // The first page is shared, the second a copy.
    let next =
        Batch { rows: vec![row(0, 40), row(1, 40)], picks: vec![0, 1], pages: table([3, 4]), ..Batch::default() };
    let logits = model.forward(exec, &next).unwrap();
    let (own, other) = logits.split_at(logits.len() / 2);
    [own.to_vec(), other.to_vec()]
}

#[test]
fn a_copied_page_is_the_same_and_a_device_that_is_gone_says_so() {
    let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
    file.write_all(&small_model(TensorType::Q8_0)).unwrap();
    let file = ModelFile::open(file.path()).unwrap();
    let shape = DecoderShape::of(&file).unwrap();
    let sizes = shape.sizes(4 * PAGE, 2, 1 << 20);
    let mut plain = Plain::new(sizes);
    let model = Decoder::load(&shape, &file, &sizes, crate::WeightPrecision::File, &mut plain).unwrap();
    let [own, other] = copied(&mut plain, &model, sizes.pages_per_slot());
    assert_eq!(own, other);
    let mut cpu = Cpu::new(CpuUnit::best(), 2, sizes).unwrap();
    let model = Decoder::load(&shape, &file, &sizes, crate::WeightPrecision::File, &mut cpu).unwrap();
    cpu.ready().unwrap();
    let [own, other] = copied(&mut cpu, &model, sizes.pages_per_slot());
    assert_eq!(own, other);
    let mut gpu = Gpu::new(device::open(&DeviceChoice::Software).unwrap(), sizes, None, false).unwrap();
    let model = Decoder::load(&shape, &file, &sizes, crate::WeightPrecision::File, &mut gpu).unwrap();
    gpu.ready().unwrap();
    let [own, other] = copied(&mut gpu, &model, sizes.pages_per_slot());
    assert_eq!(own, other);

    gpu.device.destroy();
    let batch = Batch {
        rows: vec![Row { token: 1, position: 0, slot: 0 }],
        picks: vec![0],
        pages: vec![1; 2 * sizes.pages_per_slot()],
        ..Batch::default()
    };
    let gone = model.forward(&mut gpu, &batch);
    assert!(matches!(gone, Err(crate::EngineError::Device(_))), "{gone:?}");
}
