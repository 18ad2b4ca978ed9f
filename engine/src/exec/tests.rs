//! Tests of every executor: each operation against its plain reference, over shapes that do not divide evenly; then a
//! whole model on both. The modules of the executors call these with their adapters, vector units and threads.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::plain::Plain;
use super::*;
use crate::artifact::{ModelFile, TensorType};
use crate::model::{Decoder, DecoderShape};
use crate::testing::{random, small_model};

pub(super) fn sizes() -> Sizes {
    Sizes {
        max_rows: 7,
        max_picks: 3,
        slots: 3,
        context: 2 * PAGE + 5,
        pages: 10,
        vocabulary: 70,
        types: 2,
        layers: 1,
        heads: 6,
        kv_heads: 2,
        head_dim: 10,
    }
}

/// An executor whose activations tests can read and write.
pub(super) trait Tested: Executor {
    /// Values in a row of an activation.
    fn width(&self, id: ActId) -> usize;
    /// Ends the step and returns the rows of an activation.
    fn read(&mut self, id: ActId) -> Vec<f32>;
    /// Fills an activation.
    fn write(&mut self, id: ActId, values: &[f32]);
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap()
}

fn values(n: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// Three sequences: one token far into the first, a stretch of the second, the beginning of the third.
pub(super) fn batch(sizes: &Sizes) -> Batch {
    let row = |slot, position| Row { token: (position * 3 + slot) % 70, position, slot };
    let per_slot = narrow(sizes.pages_per_slot());
    Batch {
        rows: vec![row(0, 40), row(1, 0), row(1, 1), row(1, 2), row(1, 3), row(2, 0)],
        picks: vec![0, 4, 5],
        pages: (0..narrow(sizes.slots) * per_slot).map(|n| 9 - n).collect(),
        types: vec![0, 1, 1, 0, 1, 1],
    }
}

fn assert_close(name: &str, plain: &[f32], tested: &[f32]) {
    assert_eq!(plain.len(), tested.len(), "{name}");
    let most = plain.iter().fold(1e-3f32, |most, v| most.max(v.abs()));
    for (at, (p, t)) in plain.iter().zip(tested).enumerate() {
        assert!((p - t).abs() <= most * 2e-3, "{name}[{at}]: {p} in plain, {t} as tested");
    }
}

/// The reference and the tested executor, with the same matrices, vectors and activations.
struct Both<E> {
    rows: usize,
    plain: Plain,
    tested: E,
    rng: ChaCha8Rng,
}

impl<E: Tested> Both<E> {
    fn new(sizes: Sizes, tested: E, seed: u64) -> Self {
        Self { rows: sizes.max_rows, plain: Plain::new(sizes), tested, rng: ChaCha8Rng::seed_from_u64(seed) }
    }
    fn matrix(&mut self, parts: &[Tensor<'_>]) -> MatrixId {
        let id = self.plain.matrix(parts).unwrap();
        assert_eq!(self.tested.matrix(parts).unwrap(), id);
        id
    }
    fn vector(&mut self, width: usize) -> VectorId {
        let values = values(width, &mut self.rng);
        let id = self.plain.vector(&values).unwrap();
        assert_eq!(self.tested.vector(&values).unwrap(), id);
        id
    }
    fn place(&mut self, width: usize) -> ActId {
        let id = self.plain.activation(width, self.rows).unwrap();
        assert_eq!(self.tested.activation(width, self.rows).unwrap(), id);
        id
    }
    /// Fills activations with random values, runs one operation on both and compares the contents of `out`.
    fn compare(&mut self, name: &str, batch: &Batch, fills: &[ActId], out: ActId, run: impl Fn(&mut dyn Executor)) {
        for id in fills {
            let values = values(batch.rows.len() * self.tested.width(*id), &mut self.rng);
            self.plain.write(*id, &values);
            self.tested.write(*id, &values);
        }
        self.plain.begin(batch).unwrap();
        self.tested.begin(batch).unwrap();
        run(&mut self.plain);
        run(&mut self.tested);
        assert_close(name, &self.plain.finish(out).unwrap(), &self.tested.read(out));
    }
}

/// A stretch of one sequence, and one row of it.
fn batches(sizes: &Sizes) -> [Batch; 2] {
    let many = batch(sizes);
    let one = Batch { rows: vec![many.rows[0]], picks: vec![0], pages: many.pages.clone(), types: vec![1] };
    [many, one]
}

/// Operations along rows.
pub(super) fn operations_on_rows<E: Tested>(make: impl Fn(Sizes) -> E) {
    let sizes = sizes();
    let mut both = Both::new(sizes, make(sizes), 3);
    let width = 96;
    let (norm, bias) = (both.vector(width), both.vector(width));
    let (query, key) = (both.vector(sizes.head_dim), both.vector(sizes.head_dim));
    let (x, y, half) = (both.place(width), both.place(width), both.place(width / 2));
    let qkv = both.place(sizes.qkv_width());
    both.tested.ready().unwrap();
    for batch in batches(&sizes) {
        both.compare("add", &batch, &[x, y], y, |e| e.add(x, y));
        both.compare("add_bias", &batch, &[y], y, |e| e.add_bias(bias, y));
        both.compare("rms_norm", &batch, &[x], y, |e| e.rms_norm(x, norm, 1e-5, y));
        both.compare("layer_norm", &batch, &[x], y, |e| e.layer_norm(x, norm, bias, 1e-5, y));
        both.compare("head_norm", &batch, &[qkv], qkv, |e| e.head_norm(qkv, query, key, 1e-6));
        for function in [Function::Silu, Function::Gelu, Function::GeluTanh, Function::Tanh, Function::Relu] {
            both.compare(&format!("activate {function:?}"), &batch, &[x], x, |e| e.activate(function, x));
            both.compare(&format!("gate {function:?}"), &batch, &[x], half, |e| e.gate(function, x, half));
        }
        both.compare("pick", &batch, &[x], y, |e| e.pick(x, y));
        both.compare("pick_mean", &batch, &[x], y, |e| e.pick_mean(x, y));
        // Operations after a pick run on the picked rows.
        both.compare("pick and add_bias", &batch, &[x], y, |e| {
            e.pick(x, y);
            e.add_bias(bias, y);
        });
    }
}

/// Operations with matrices, of every type.
pub(super) fn operations_on_weights<E: Tested>(make: impl Fn(Sizes) -> E) {
    let sizes = sizes();
    let mut both = Both::new(sizes, make(sizes), 4);
    let odd = 70;
    let mut tables = Vec::new();
    for kind in TensorType::ALL {
        let width = if kind.block().0 == 256 { 256 } else { 96 };
        let (a, b) = (random(kind, width * odd, &mut both.rng), random(kind, width * 3, &mut both.rng));
        let part = |data| Tensor { name: "t", kind, columns: width, rows: odd, data };
        let table = both.matrix(&[part(&a)]);
        let joined = both.matrix(&[part(&a), Tensor { rows: 3, ..part(&b) }]);
        tables.push((kind, table, joined, both.place(width)));
    }
    // Types of two packings and two types of one packing in one matrix.
    let kinds = [TensorType::Q4_0, TensorType::Q4_1, TensorType::Q8_0];
    let data = kinds.map(|kind| random(kind, 96 * 5, &mut both.rng));
    let parts: Vec<_> = kinds
        .iter()
        .zip(&data)
        .map(|(kind, data)| Tensor { name: "t", kind: *kind, columns: 96, rows: 5, data })
        .collect();
    let mixed = both.matrix(&parts);
    let (x, fifteen, tall) = (both.place(96), both.place(15), both.place(odd + 3));
    both.tested.ready().unwrap();
    for batch in batches(&sizes) {
        for (kind, table, joined, wide) in &tables {
            for (index, add) in [(Index::Token, false), (Index::Position, true), (Index::Type, true)] {
                let name = format!("embed {kind:?} by {index:?}, add {add}");
                both.compare(&name, &batch, &[*wide], *wide, |e| e.embed(*table, index, 1.5, *wide, add));
            }
            for add in [false, true] {
                let name = format!("matmul {kind:?} of {} rows, add {add}", batch.rows.len());
                both.compare(&name, &batch, &[*wide, tall], tall, |e| e.matmul(*joined, *wide, tall, add));
            }
        }
        both.compare("matmul of several types", &batch, &[x], fifteen, |e| e.matmul(mixed, x, fifteen, false));
    }
}

/// Products of random shapes, with more rows than a tile has. Weights are random, or the largest of their type, with
/// activations that are all the largest.
pub(super) fn products_of_random_shapes<E: Tested>(make: impl Fn(Sizes) -> E) {
    let sizes = Sizes { max_rows: 41, ..sizes() };
    for seed in 0..4 {
        let mut both = Both::new(sizes, make(sizes), 100 + seed);
        let mut products = Vec::new();
        for kind in TensorType::ALL {
            let (values, _) = kind.block();
            // Floats need not fill a block.
            let step = values.max(4);
            let columns = both.rng.random_range(1..=512 / step) * step;
            let rows = both.rng.random_range(1..60);
            let data = random(kind, columns * rows, &mut both.rng);
            for data in [largest(kind, &data), data] {
                let matrix = both.matrix(&[Tensor { name: "t", kind, columns, rows, data: &data }]);
                products.push((kind, matrix, both.place(columns), both.place(rows)));
            }
        }
        both.tested.ready().unwrap();
        let least = if seed == 0 { sizes.max_rows } else { 1 };
        let rows = both.rng.random_range(narrow(least)..=narrow(sizes.max_rows));
        let batch = Batch {
            rows: (0..rows).map(|position| Row { token: 0, position, slot: 0 }).collect(),
            picks: vec![0],
            types: Vec::new(),
            ..batch(&sizes)
        };
        for (kind, matrix, x, out) in products {
            let name = format!("matmul {kind:?} of {rows} rows, seed {seed}");
            both.compare(&name, &batch, &[x], out, |e| e.matmul(matrix, x, out, false));
            // Its first row and its last give the same alone, bit for bit.
            let tested = &mut both.tested;
            tested.begin(&batch).unwrap();
            let (values, together) = (tested.read(x), tested.read(out));
            let (width, height) = (tested.width(x), tested.width(out));
            for row in [0, batch.rows.len() - 1] {
                tested.begin(&Batch { rows: batch.rows[..1].to_vec(), ..batch.clone() }).unwrap();
                tested.write(x, &values[row * width..(row + 1) * width]);
                tested.matmul(matrix, x, out, false);
                assert_eq!(tested.read(out), together[row * height..(row + 1) * height], "{name}: row {row} alone");
            }
            let count = batch.rows.len() * both.tested.width(x);
            // A number without an inverse in f32 counts as 0, and spoils no other value.
            let tiny = (0..count).map(|n| if n % 3 == 0 { 0.0 } else { 1e-37 }).collect();
            for same in [vec![1.0; count], tiny] {
                both.plain.write(x, &same);
                both.tested.write(x, &same);
                both.compare(&name, &batch, &[], out, |e| e.matmul(matrix, x, out, false));
            }
        }
    }
}

/// Data with every quantised value as far from zero as possible.
fn largest(kind: TensorType, data: &[u8]) -> Vec<u8> {
    let (quants, byte) = match kind {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => (0..0, 0),
        TensorType::Q4_0 | TensorType::Q5_0 => (2..22, 0xff),
        TensorType::Q4_1 | TensorType::Q5_1 => (4..24, 0xff),
        TensorType::Q8_0 => (2..34, 0x80),
        TensorType::Q4_K | TensorType::Q5_K => (16..176, 0xff),
        TensorType::Q6_K => (0..192, 0xff),
    };
    let mut data = data.to_vec();
    for block in data.chunks_mut(kind.block().1) {
        let end = quants.end.min(block.len());
        block[quants.start.min(end)..end].fill(byte);
    }
    data
}

/// Rotation, the KV cache, attention.
pub(super) fn rotation_and_attention<E: Tested>(make: impl Fn(Sizes) -> E) {
    // Heads whose words do not divide by two, rotated in part; heads of two words for each invocation, as gemma's.
    for (heads, kv_heads, head_dim, dim, pairing) in [
        (6, 2, 10, 8, Pairing::Neighbours),
        (6, 2, 10, 8, Pairing::Halves),
        (4, 4, 16, 16, Pairing::Halves),
        (2, 1, 256, 256, Pairing::Halves),
        (2, 1, 140, 100, Pairing::Neighbours),
    ] {
        let sizes = Sizes { heads, kv_heads, head_dim, ..sizes() };
        let name = |what: &str| format!("{what} of {heads} heads of {head_dim}, {pairing:?}");
        let mut both = Both::new(sizes, make(sizes), 5);
        let rope =
            Rope { dim, pairing, base: 1e4, scale: 0.5, factors: (0..dim / 2).map(|n| 1.0 + n as f32).collect() };
        let id = both.plain.rope(&rope).unwrap();
        let on_tested = both.tested.rope(&rope).unwrap();
        let (qkv, attended) = (both.place(sizes.qkv_width()), both.place(heads * head_dim));
        both.tested.ready().unwrap();
        let [many, _] = batches(&sizes);
        // The row at position 40 of the first sequence needs the earlier positions in the cache.
        for position in 0..40u32 {
            let row = Row { token: 0, position, slot: 0 };
            let step = Batch { rows: vec![row], picks: vec![0], pages: many.pages.clone(), types: vec![] };
            let values = values(sizes.qkv_width(), &mut both.rng);
            both.plain.write(qkv, &values);
            both.tested.write(qkv, &values);
            both.plain.begin(&step).unwrap();
            both.tested.begin(&step).unwrap();
            both.plain.rope_store(qkv, Some(id), 0);
            both.tested.rope_store(qkv, Some(on_tested), 0);
            assert_close(&name("rope_store"), &both.plain.finish(qkv).unwrap(), &both.tested.read(qkv));
        }
        for window in [None, Some(7), Some(100)] {
            both.compare(&name("attention"), &many, &[qkv], attended, |e| {
                e.rope_store(qkv, None, 0);
                e.attention(qkv, 0, 0.3, window, attended);
            });
        }
        both.compare(&name("attention_both_ways"), &many, &[qkv], attended, |e| {
            e.attention_both_ways(qkv, 0.3, attended);
        });
    }
}

/// Attention over more positions than an executor computes at a time.
/// Covers a stretch of rows and a single row, which gives the same bits alone.
pub(super) fn attention_far_back<E: Tested>(make: impl Fn(Sizes) -> E) {
    let (max_rows, context) = (190, 21 * PAGE);
    let sizes = Sizes { max_rows, context, pages: 22, slots: 1, ..sizes() };
    let mut both = Both::new(sizes, make(sizes), 6);
    let (qkv, attended) = (both.place(sizes.qkv_width()), both.place(sizes.heads * sizes.head_dim));
    both.tested.ready().unwrap();
    let pages: Vec<u32> = (0..21).map(|n| 21 - n).collect();
    let step = |positions: std::ops::Range<u32>| Batch {
        rows: positions.map(|position| Row { token: 0, position, slot: 0 }).collect(),
        picks: vec![0],
        pages: pages.clone(),
        types: vec![],
    };
    for window in [None, Some(300)] {
        for from in [0, 190, 380] {
            both.compare("attention far back", &step(from..from + 190), &[qkv], attended, |e| {
                e.rope_store(qkv, None, 0);
                e.attention(qkv, 0, 0.3, window, attended);
            });
        }
        let whole = step(380..570);
        both.tested.begin(&whole).unwrap();
        let (values, together) = (both.tested.read(qkv), both.tested.read(attended));
        let (width, height) = (both.tested.width(qkv), both.tested.width(attended));
        for row in [0, 77, 189] {
            let alone = step(380 + narrow(row)..381 + narrow(row));
            both.tested.begin(&alone).unwrap();
            both.tested.write(qkv, &values[row * width..(row + 1) * width]);
            both.tested.attention(qkv, 0, 0.3, window, attended);
            let name = format!("row {row} alone, window {window:?}");
            assert_eq!(both.tested.read(attended), together[row * height..(row + 1) * height], "{name}");
        }
    }
    // Heads of more than 64 words, one row.
    let sizes = Sizes { heads: 2, kv_heads: 1, head_dim: 140, ..sizes };
    let mut both = Both::new(sizes, make(sizes), 7);
    let (qkv, attended) = (both.place(sizes.qkv_width()), both.place(sizes.heads * sizes.head_dim));
    both.tested.ready().unwrap();
    for from in [0, 190] {
        both.compare("keys and values", &step(from..from + 190), &[qkv], qkv, |e| e.rope_store(qkv, None, 0));
    }
    both.compare("attention of wide heads", &step(380..381), &[qkv], attended, |e| {
        e.rope_store(qkv, None, 0);
        e.attention(qkv, 0, 0.3, None, attended);
    });
}

#[test]
fn a_window_hides_what_is_older() {
    let sizes = sizes();
    let mut plain = Plain::new(sizes);
    let qkv = plain.activation(sizes.qkv_width(), 7).unwrap();
    let attended = plain.activation(sizes.heads * sizes.head_dim, 7).unwrap();
    let row = |position| Row { token: 0, position, slot: 1 };
    let pages = vec![1; sizes.slots * sizes.pages_per_slot()];
    let step = Batch { rows: (0..4).map(row).collect(), picks: vec![0], pages, types: vec![] };
    // All keys have the same score for a query; the values of row `r` are `r`.
    let mut values = vec![0.0; 4 * sizes.qkv_width()];
    for r in 0..4 {
        let start = r * sizes.qkv_width() + (sizes.heads + sizes.kv_heads) * sizes.head_dim;
        values[start..(r + 1) * sizes.qkv_width()].fill(r as f32);
    }
    let mut run = |attend: &dyn Fn(&mut Plain)| {
        plain.write(qkv, &values);
        plain.begin(&step).unwrap();
        plain.rope_store(qkv, None, 0);
        attend(&mut plain);
        let width = sizes.heads * sizes.head_dim;
        plain.finish(attended).unwrap().chunks(width).map(|row| row[0]).collect::<Vec<_>>()
    };
    assert_eq!(run(&|e| e.attention(qkv, 0, 1.0, None, attended)), [0.0, 0.5, 1.0, 1.5]);
    assert_eq!(run(&|e| e.attention(qkv, 0, 1.0, Some(2), attended)), [0.0, 0.5, 1.5, 2.5]);
    assert_eq!(run(&|e| e.attention_both_ways(qkv, 1.0, attended)), [1.5; 4]);
}

/// A step outside of the sizes is refused.
pub(super) fn steps_outside_of_the_sizes<E: Tested>(make: impl Fn(Sizes) -> E) {
    let mut tested = make(sizes());
    let good = batch(&sizes());
    assert!(tested.begin(&good).is_ok());
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
        spoil(&|b| b.types[0] = 2),
        spoil(&|b| b.types.truncate(3)),
        spoil(&|b| b.pages[0] = 10),
        spoil(&|b| b.rows.extend_from_within(..2)),
    ] {
        assert!(tested.begin(&bad).is_err(), "{bad:?}");
    }
}

/// A whole model gives the same logits.
pub(super) fn a_whole_model<E: Tested>(make: impl Fn(Sizes) -> E) {
    for kind in [TensorType::F32, TensorType::Q4_1, TensorType::Q8_0] {
        let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        std::io::Write::write_all(&mut file, &small_model(kind)).unwrap();
        let file = ModelFile::open(file.path()).unwrap();
        let shape = DecoderShape::of(&file).unwrap();
        let sizes = shape.sizes(100, 2, 1 << 20);
        let (mut plain, mut tested) = (Plain::new(sizes), make(sizes));
        let on_plain = Decoder::load(&shape, &file, &sizes, crate::WeightPrecision::File, &mut plain).unwrap();
        let on_tested = Decoder::load(&shape, &file, &sizes, crate::WeightPrecision::File, &mut tested).unwrap();
        tested.ready().unwrap();
        let rows = |slot, from, to| (from..to).map(move |position| Row { token: position * 7 % 250, position, slot });
        let pages: Vec<u32> = (1..=narrow(2 * sizes.pages_per_slot())).collect();
        // A prompt in two chunks, then one token of it beside the prompt of another.
        let steps = [
            Batch { rows: rows(0, 0, 20).collect(), picks: vec![19], pages: pages.clone(), types: vec![] },
            Batch { rows: rows(0, 20, 50).collect(), picks: vec![29], pages: pages.clone(), types: vec![] },
            Batch { rows: rows(0, 50, 51).chain(rows(1, 0, 9)).collect(), picks: vec![0, 9], pages, types: vec![] },
        ];
        for step in &steps {
            let plain = on_plain.forward(&mut plain, step).unwrap();
            let tested = on_tested.forward(&mut tested, step).unwrap();
            let most = plain.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            for (p, t) in plain.iter().zip(&tested) {
                assert!((p - t).abs() < most * 0.02, "{kind:?}: {p} in plain, {t} as tested, up to {most}");
            }
        }
    }
}

/// A row's logits are the same to the last bit, alone and in company of any size.
pub(super) fn the_same_alone_and_in_company<E: Tested>(make: impl Fn(Sizes) -> E) {
    for kind in TensorType::ALL.into_iter().filter(|kind| kind.block().0 < 256) {
        let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        std::io::Write::write_all(&mut file, &small_model(kind)).unwrap();
        let file = ModelFile::open(file.path()).unwrap();
        let shape = DecoderShape::of(&file).unwrap();
        let sizes = shape.sizes(100, 6, 1 << 20);
        let mut tested = make(sizes);
        let model = Decoder::load(&shape, &file, &sizes, crate::WeightPrecision::File, &mut tested).unwrap();
        tested.ready().unwrap();
        let pages: Vec<u32> = (1..=narrow(6 * sizes.pages_per_slot())).collect();
        let row = |slot: u32, position: u32| Row { token: (slot * 31 + position * 7) % 250, position, slot };
        let batch =
            |rows: Vec<Row>| Batch { picks: vec![narrow(rows.len() - 1)], rows, pages: pages.clone(), types: vec![] };
        // One by one; then in one chunk; then in chunks among the rows of others.
        let mut alone = Vec::new();
        for position in 0..40 {
            alone = model.forward(&mut tested, &batch(vec![row(0, position)])).unwrap();
        }
        let whole = model.forward(&mut tested, &batch((0..40).map(|position| row(0, position)).collect())).unwrap();
        assert!(alone == whole, "{kind:?}: a prompt read at once");
        let mut parts = Vec::new();
        for (from, to) in [(0, 13), (13, 33), (33, 39), (39, 40)] {
            let company = (1..6).map(|slot| row(slot, from));
            parts = model.forward(&mut tested, &batch(company.chain((from..to).map(|p| row(0, p))).collect())).unwrap();
        }
        assert!(alone == parts, "{kind:?}: in company");
    }
}
