//! Every kernel against its plain reference, over shapes that do not divide evenly, with wgpu's bounds checks and
//! without; then a whole model on both.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::artifact::ModelFile;
use crate::device::{self, DeviceChoice};
use crate::exec::PAGE;
use crate::exec::plain::Plain;
use crate::model::{Llama, Shape};
use crate::testing::{random, small_model};

fn sizes() -> Sizes {
    Sizes {
        max_rows: 7,
        max_picks: 3,
        slots: 3,
        context: 2 * PAGE + 5,
        pages: 10,
        layers: 1,
        heads: 6,
        kv_heads: 2,
        head_dim: 10,
        rope_dim: 8,
        rope_base: 1e4,
    }
}

fn executors(sizes: Sizes, checked: bool) -> (Plain, Gpu) {
    (Plain::new(sizes), Gpu::new(device::open(&DeviceChoice::Auto).unwrap(), sizes, None, checked).unwrap())
}

fn values(n: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// Three sequences: one token far into the first, a stretch of the second, the beginning of the third.
fn batch(sizes: &Sizes) -> Batch {
    let row = |slot, position| Row { token: (position * 3 + slot) % 70, position, slot };
    let per_slot = narrow(sizes.pages_per_slot());
    Batch {
        rows: vec![row(0, 40), row(1, 0), row(1, 1), row(1, 2), row(1, 3), row(2, 0)],
        picks: vec![0, 4, 5],
        pages: (0..narrow(sizes.slots) * per_slot).map(|n| 9 - n).collect(),
    }
}

fn assert_close(name: &str, plain: &[f32], gpu: &[f32]) {
    assert_eq!(plain.len(), gpu.len(), "{name}");
    let most = plain.iter().fold(1e-3f32, |most, v| most.max(v.abs()));
    for (at, (p, g)) in plain.iter().zip(gpu).enumerate() {
        assert!((p - g).abs() <= most * 2e-3, "{name}[{at}]: {p} in plain, {g} on the device");
    }
}

/// Runs one operation on both and compares what it leaves in `out`.
fn compare(
    name: &str,
    (plain, gpu): (&mut Plain, &mut Gpu),
    batch: &Batch,
    fills: &[(ActId, Vec<f32>)],
    out: ActId,
    run: impl Fn(&mut dyn Executor),
) {
    for (id, values) in fills {
        plain.write(*id, values);
        gpu.write(*id, values);
    }
    plain.begin(batch).unwrap();
    gpu.begin(batch).unwrap();
    run(plain);
    run(gpu);
    assert_close(name, &plain.finish(out).unwrap(), &gpu.read(out));
}

#[test]
fn every_kernel_is_what_its_reference_is() {
    for checked in [false, true] {
        let sizes = sizes();
        let (mut plain, mut gpu) = executors(sizes, checked);
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (width, odd) = (96, 70);
        let make = |plain: &mut Plain, gpu: &mut Gpu, parts: &[Tensor<'_>]| {
            let id = plain.matrix(parts).unwrap();
            assert_eq!(gpu.matrix(parts).unwrap(), id);
            id
        };
        let mut tables = Vec::new();
        // The first matrix is the vocabulary, which bounds the tokens of a batch.
        for kind in [TensorType::Q8_0, TensorType::Q4_1, TensorType::F32] {
            let (a, b) = (random(kind, width * odd, &mut rng), random(kind, width * 3, &mut rng));
            let part = |data| Tensor { name: "t", kind, columns: width, rows: odd, data };
            let table = make(&mut plain, &mut gpu, &[part(&a)]);
            let joined = make(&mut plain, &mut gpu, &[part(&a), Tensor { rows: 3, ..part(&b) }]);
            tables.push((kind, table, joined));
        }
        let scale = values(width, &mut rng);
        let norm = plain.vector(&scale).unwrap();
        assert_eq!(gpu.vector(&scale).unwrap(), norm);
        let place = |plain: &mut Plain, gpu: &mut Gpu, width| {
            let id = plain.activation(width).unwrap();
            assert_eq!(gpu.activation(width).unwrap(), id);
            id
        };
        let (x, y) = (place(&mut plain, &mut gpu, width), place(&mut plain, &mut gpu, width));
        let tall = place(&mut plain, &mut gpu, odd + 3);
        let qkv = place(&mut plain, &mut gpu, sizes.qkv_width());
        let attended = place(&mut plain, &mut gpu, sizes.heads * sizes.head_dim);
        let half = place(&mut plain, &mut gpu, width / 2);
        gpu.ready().unwrap();
        let many = batch(&sizes);
        let one = Batch { rows: vec![many.rows[0]], picks: vec![0], pages: many.pages.clone() };
        for batch in [&many, &one] {
            let rows = batch.rows.len();
            let both = (&mut plain, &mut gpu);
            let input = values(rows * width, &mut rng);
            compare("rms_norm", both, batch, &[(x, input.clone())], y, |e| e.rms_norm(x, norm, 1e-5, y));
            for (kind, table, joined) in &tables {
                compare(&format!("embed {kind:?}"), (&mut plain, &mut gpu), batch, &[], y, |e| e.embed(*table, y));
                for add in [false, true] {
                    let fills = [(x, input.clone()), (tall, values(rows * (odd + 3), &mut rng))];
                    let name = format!("matmul {kind:?} of {rows} rows, add {add}");
                    compare(&name, (&mut plain, &mut gpu), batch, &fills, tall, |e| e.matmul(*joined, x, tall, add));
                }
            }
            compare("silu_mul", (&mut plain, &mut gpu), batch, &[(x, input.clone())], half, |e| e.silu_mul(x, half));
            compare("pick", (&mut plain, &mut gpu), batch, &[(x, input.clone())], y, |e| e.pick(x, y));
        }
        // The first sequence needs its past in the cache before its row at position 40 can look at it.
        let per_slot = many.pages.clone();
        for position in 0..40u32 {
            let row = Row { token: 0, position, slot: 0 };
            let step = Batch { rows: vec![row], picks: vec![0], pages: per_slot.clone() };
            let fills = [(qkv, values(sizes.qkv_width(), &mut rng))];
            compare("rope_store", (&mut plain, &mut gpu), &step, &fills, qkv, |e| e.rope_store(qkv, 0));
        }
        let fills = [(qkv, values(many.rows.len() * sizes.qkv_width(), &mut rng))];
        compare("attention", (&mut plain, &mut gpu), &many, &fills, attended, |e| {
            e.rope_store(qkv, 0);
            e.attention(qkv, 0, attended);
        });
    }
}

#[test]
fn a_step_outside_of_the_sizes_is_refused() {
    let (_, mut gpu) = executors(sizes(), false);
    let data = random(TensorType::Q8_0, 32 * 70, &mut ChaCha8Rng::seed_from_u64(1));
    gpu.matrix(&[Tensor { name: "t", kind: TensorType::Q8_0, columns: 32, rows: 70, data: &data }]).unwrap();
    let good = batch(&sizes());
    assert!(gpu.begin(&good).is_ok());
    let spoil = |change: &dyn Fn(&mut Batch)| {
        let mut bad = good.clone();
        change(&mut bad);
        bad
    };
    for bad in [
        spoil(&|b| b.rows[0].token = 70),
        spoil(&|b| b.rows[0].position = 69),
        spoil(&|b| b.rows[0].slot = 3),
        spoil(&|b| b.picks[0] = 6),
        spoil(&|b| b.pages[0] = 10),
        spoil(&|b| b.rows.extend_from_within(..2)),
    ] {
        assert!(gpu.begin(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_whole_model_gives_the_same_logits_on_both() {
    for kind in [TensorType::F32, TensorType::Q4_1, TensorType::Q8_0] {
        let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        std::io::Write::write_all(&mut file, &small_model(kind)).unwrap();
        let file = ModelFile::open(file.path()).unwrap();
        let shape = Shape::of(&file).unwrap();
        let sizes = shape.sizes(100, 2, 1 << 20);
        let (mut plain, mut gpu) = executors(sizes, false);
        let on_plain = Llama::load(&shape, &file, &sizes, &mut plain).unwrap();
        let on_gpu = Llama::load(&shape, &file, &sizes, &mut gpu).unwrap();
        gpu.ready().unwrap();
        let rows = |slot, from, to| (from..to).map(move |position| Row { token: position * 7 % 250, position, slot });
        let pages: Vec<u32> = (1..=narrow(2 * sizes.pages_per_slot())).collect();
        // A prompt in two parts, then one token of it beside the prompt of another.
        let steps = [
            Batch { rows: rows(0, 0, 20).collect(), picks: vec![19], pages: pages.clone() },
            Batch { rows: rows(0, 20, 50).collect(), picks: vec![29], pages: pages.clone() },
            Batch { rows: rows(0, 50, 51).chain(rows(1, 0, 9)).collect(), picks: vec![0, 9], pages },
        ];
        for step in &steps {
            let plain = on_plain.forward(&mut plain, step).unwrap();
            let gpu = on_gpu.forward(&mut gpu, step).unwrap();
            let most = plain.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            for (p, g) in plain.iter().zip(&gpu) {
                assert!((p - g).abs() < most * 0.02, "{kind:?}: {p} in plain, {g} on the device, up to {most}");
            }
        }
    }
}
