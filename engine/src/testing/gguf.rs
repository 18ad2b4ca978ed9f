//! Writes GGUF files for tests.

use rand_chacha::ChaCha8Rng;

use crate::artifact::TensorType;

/// A file in the making.
#[derive(Default)]
pub(crate) struct Gguf {
    keys: Vec<u8>,
    count: u64,
    table: Vec<u8>,
    tensors: u64,
    data: Vec<u8>,
    /// Keeps random values of 8 bits as small as those of other types are.
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
    /// A tensor of random values.
    pub(crate) fn random(&mut self, name: &str, kind: TensorType, dimensions: &[usize], rng: &mut ChaCha8Rng) {
        let mut data = super::random(kind, dimensions.iter().product(), rng);
        if self.gentle && matches!(kind, TensorType::Q8_0 | TensorType::Q5_0) {
            for block in data.chunks_mut(kind.block().1) {
                let scale = half::f16::from_le_bytes([block[0], block[1]]);
                block[..2].copy_from_slice(&half::f16::from_f32(scale.to_f32() * 0.4).to_le_bytes());
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
    /// Writes it to a file that is deleted when dropped.
    pub(crate) fn write(self) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        std::io::Write::write_all(&mut file, &self.bytes()).unwrap();
        file
    }
}
