//! Writes GGUF files for tests.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::artifact::{TensorType, round_to_bytes};

/// A GGUF file under construction.
#[derive(Default)]
pub(crate) struct Gguf {
    keys: Vec<u8>,
    count: u64,
    table: Vec<u8>,
    tensors: u64,
    data: Vec<u8>,
    /// Keeps random values of all types as small as the smallest, so that small models stay well-conditioned.
    gentle: bool,
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Gguf {
    pub(crate) fn gentle() -> Self {
        Self { gentle: true, ..Self::default() }
    }
    fn key(&mut self, key: &str, kind: u32, value: &[u8]) {
        string(&mut self.keys, key);
        self.keys.extend(kind.to_le_bytes());
        self.keys.extend(value);
        self.count += 1;
    }
    pub(crate) fn number(&mut self, key: &str, value: usize) {
        self.key(key, 4, &(value as u32).to_le_bytes());
    }
    pub(crate) fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6, &value.to_le_bytes());
    }
    pub(crate) fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7, &[u8::from(value)]);
    }
    pub(crate) fn text(&mut self, key: &str, value: &str) {
        let mut out = Vec::new();
        string(&mut out, value);
        self.key(key, 8, &out);
    }
    fn array(&mut self, key: &str, kind: u32, count: usize, values: &[u8]) {
        let out = [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes(), values].concat();
        self.key(key, 9, &out);
    }
    pub(crate) fn texts(&mut self, key: &str, values: &[String]) {
        let mut out = Vec::new();
        values.iter().for_each(|value| string(&mut out, value));
        self.array(key, 8, values.len(), &out);
    }
    pub(crate) fn integers(&mut self, key: &str, values: &[i32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, 5, values.len(), &bytes);
    }
    pub(crate) fn floats(&mut self, key: &str, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.array(key, 6, values.len(), &bytes);
    }
    pub(crate) fn tensor(&mut self, name: &str, kind: TensorType, dimensions: &[usize], data: &[u8]) {
        string(&mut self.table, name);
        self.table.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|n| self.table.extend((*n as u64).to_le_bytes()));
        self.table.extend(kind.ggml().to_le_bytes());
        self.table.extend((self.data.len() as u64).to_le_bytes());
        self.data.extend(data);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
        self.tensors += 1;
    }
    /// Adds a tensor of random values.
    pub(crate) fn random(&mut self, name: &str, kind: TensorType, dimensions: &[usize], rng: &mut ChaCha8Rng) {
        let mut data = super::random(kind, dimensions.iter().product(), rng);
        // Position in a block of the scales of the types with the largest random values.
        let scales: &[usize] = match kind {
            TensorType::Q5_0 | TensorType::Q8_0 => &[0],
            TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
            TensorType::Q6_K => &[208],
            _ => &[],
        };
        for block in data.chunks_mut(kind.block().1).filter(|_| self.gentle) {
            for at in scales {
                let scale = half::f16::from_le_bytes([block[*at], block[at + 1]]);
                block[*at..at + 2].copy_from_slice(&half::f16::from_f32(scale.to_f32() * 0.4).to_le_bytes());
            }
        }
        self.tensor(name, kind, dimensions, &data);
    }
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.tensors.to_le_bytes());
        file.extend(self.count.to_le_bytes());
        file.extend(self.keys);
        file.extend(self.table);
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(self.data);
        file
    }
    /// Writes the file, which is deleted on drop.
    pub(crate) fn write(self) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        std::io::Write::write_all(&mut file, &self.bytes()).unwrap();
        file
    }
}

/// A small random cross-encoder of 32 tokens with one score.
pub(crate) fn small_reranker() -> tempfile::NamedTempFile {
    small_reranker_with("[UNK]", 32)
}

/// As [`small_reranker`], with another token for unknown words and another context.
pub(crate) fn small_reranker_with(unknown: &str, context: usize) -> tempfile::NamedTempFile {
    write_reranker(unknown, context, false)
}

/// As [`small_reranker`], with the matrices of its layers and the table of its tokens rounded to `Q8_0`.
pub(crate) fn small_rounded_reranker() -> tempfile::NamedTempFile {
    write_reranker("[UNK]", 32, true)
}

fn write_reranker(unknown: &str, context: usize, rounded: bool) -> tempfile::NamedTempFile {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut file = Gguf::default();
    file.text("general.architecture", "bert");
    for (key, value) in [
        ("context_length", context),
        ("embedding_length", 64),
        ("block_count", 2),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
    ] {
        file.number(&format!("bert.{key}"), value);
    }
    let words = ["[PAD]", unknown, "[CLS]", "[SEP]", "\u{2581}what", "\u{2581}is", "\u{2581}a", "\u{2581}proxy", "s"];
    let tokens: Vec<String> = words.map(str::to_owned).to_vec();
    file.text("tokenizer.ggml.model", "bert");
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.number("tokenizer.ggml.token_type_count", 2);
    // Keys that llama.cpp requires.
    file.number("bert.pooling_type", 4);
    file.float("bert.attention.layer_norm_epsilon", 1e-12);
    file.flag("bert.attention.causal", false);
    file.text("tokenizer.ggml.pre", "jina-v2-en");
    file.integers("tokenizer.ggml.token_type", &[3, 3, 3, 3, 1, 1, 1, 1, 1]);
    for (key, id) in [("cls", 2), ("bos", 2), ("seperator", 3), ("eos", 3), ("unknown", 1)] {
        file.number(&format!("tokenizer.ggml.{key}_token_id"), id);
    }
    file.texts("bert.classifier.output_labels", &["relevance".to_owned()]);
    let f32s = TensorType::F32;
    let matrix = |file: &mut Gguf, name: &str, dimensions: [usize; 2], rng: &mut ChaCha8Rng| {
        let data = super::random(f32s, dimensions.iter().product(), rng);
        if rounded {
            let (mut values, mut bytes) = (Vec::new(), Vec::new());
            f32s.dequantize(&data, &mut values);
            round_to_bytes(&values, &mut bytes);
            file.tensor(name, TensorType::Q8_0, &dimensions, &bytes);
        } else {
            file.tensor(name, f32s, &dimensions, &data);
        }
    };
    matrix(&mut file, "token_embd.weight", [64, tokens.len()], &mut rng);
    for (name, dimensions) in [
        ("position_embd.weight", vec![64, context]),
        ("token_types.weight", vec![64, 2]),
        ("token_embd_norm.weight", vec![64]),
        ("token_embd_norm.bias", vec![64]),
        ("cls.weight", vec![64, 64]),
        ("cls.bias", vec![64]),
        ("cls.output.weight", vec![64, 1]),
        ("cls.output.bias", vec![1]),
    ] {
        file.random(name, f32s, &dimensions, &mut rng);
    }
    for n in 0..2 {
        for (name, columns, rows) in [
            ("attn_q", 64, 64),
            ("attn_k", 64, 64),
            ("attn_v", 64, 64),
            ("attn_output", 64, 64),
            ("ffn_up", 64, 96),
            ("ffn_down", 96, 64),
        ] {
            matrix(&mut file, &format!("blk.{n}.{name}.weight"), [columns, rows], &mut rng);
            file.random(&format!("blk.{n}.{name}.bias"), f32s, &[rows], &mut rng);
        }
        for name in ["attn_output_norm", "layer_output_norm"] {
            file.random(&format!("blk.{n}.{name}.weight"), f32s, &[64], &mut rng);
            file.random(&format!("blk.{n}.{name}.bias"), f32s, &[64], &mut rng);
        }
    }
    file.write()
}
