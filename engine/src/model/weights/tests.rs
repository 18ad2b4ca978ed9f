use proptest::prelude::*;

use super::*;
use crate::device::block_on;
use crate::testing::gguf::{small_reranker, small_rounded_reranker};
use crate::{DeviceChoice, Engine, LoadOptions, Needs};

proptest! {
    #[test]
    fn a_rounded_value_is_off_by_half_a_step(values in proptest::collection::vec(-1000.0f32..1000.0, 64), small in 0i32..40) {
        let values: Vec<f32> = values.iter().map(|value| value * 2.0f32.powi(-small)).collect();
        let mut bytes = Vec::new();
        round_to_bytes(&values, &mut bytes);
        let mut back = Vec::new();
        TensorType::Q8_0.dequantize(&bytes, &mut back);
        prop_assert_eq!(back.len(), values.len());
        for (values, back) in values.chunks(32).zip(back.chunks(32)) {
            let most = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            // A scale in f16 is exact to 1 in 2048, and near zero to 2^-25.
            let step = most / 127.0 * (1.0 + 1.0 / 1024.0) + 2.0f32.powi(-24);
            for (value, back) in values.iter().zip(back) {
                let cut = most / 2048.0 + 127.0 * 2.0f32.powi(-25);
                prop_assert!((value - back).abs() <= step / 2.0 + cut, "{value} became {back}, most {most}");
            }
        }
    }
}

#[test]
fn values_without_a_scale_are_zero_and_large_ones_are_cut() {
    let largest = half::f16::MAX.to_f32() * 127.0;
    for (value, expected) in [(0.0, 0.0), (1e-30, 0.0), (f32::INFINITY, largest), (f32::MAX, largest), (-1e9, -largest)]
    {
        let (mut bytes, mut back) = (Vec::new(), Vec::new());
        round_to_bytes(&[value; 32], &mut bytes);
        TensorType::Q8_0.dequantize(&bytes, &mut back);
        assert_eq!(back, vec![expected; 32], "{value}");
    }
}

/// A file whose matrices of layers were rounded before gives the same to the last bit as one that is rounded at load.
#[test]
fn weights_rounded_at_load_are_those_of_a_rounded_file() {
    let float = small_reranker();
    let rounded = small_rounded_reranker();
    let scores = |path: &std::path::Path, weights| {
        let options = LoadOptions { weights, device: DeviceChoice::Cpu, ..LoadOptions::new(path) };
        let engine = Engine::load(options).unwrap();
        let texts = ["what is a proxy", "proxys", "nobody knows what a proxy is"].map(str::to_owned).to_vec();
        let logits: Vec<Vec<f32>> =
            block_on(engine.classify(texts)).unwrap().into_iter().map(|scores| scores.logits).collect();
        (logits, engine.info().quantization.clone(), engine.placement().memory_bytes)
    };
    let (exact, kind, all) = scores(float.path(), WeightPrecision::File);
    assert_eq!(kind, "F32");
    let (at_load, kind, less) = scores(float.path(), WeightPrecision::Int8);
    assert_eq!(kind, "Q8_0");
    assert!(less < all, "{less} bytes rounded, {all} as they are");
    let (before, ..) = scores(rounded.path(), WeightPrecision::File);
    assert_eq!(at_load, before);
    assert_ne!(at_load, exact);
    // Weights in 8 bits are not rounded again.
    assert_eq!(scores(rounded.path(), WeightPrecision::Int8).0, before);
}

#[test]
fn memory_is_counted_as_it_will_be_kept() {
    let file = small_reranker();
    let needs = |weights| -> Needs {
        let options = LoadOptions { weights, ..LoadOptions::new(file.path()) };
        super::super::needs(&ModelFile::open(file.path()).unwrap(), &options).unwrap()
    };
    let [whole, rounded] = [WeightPrecision::File, WeightPrecision::Int8].map(needs);
    // Two layers of four matrices of 64 x 64 and two of 64 x 96, and the table of nine tokens, at 34 bytes for 128.
    let floats = (2 * (4 * 64 * 64 + 2 * 64 * 96) + 9 * 64) * 4;
    assert_eq!(whole.weights - rounded.weights, floats / 128 * (128 - 34));
    assert_eq!(Needs { weights: 0, ..whole }, Needs { weights: 0, ..rounded });
}
