//! Model files: opened, checked as hostile input, presented as metadata and tensors. Owns the mapping of the file;
//! every count of the file is checked against its length before anything is copied or allocated by it.

mod gguf;
mod kind;
mod safetensors;
mod types;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

pub use gguf::{Header, MetaValue, TensorEntry, WeightLayout};
pub(crate) use types::round_to_bytes;
pub use types::{BLOCK, QuantBlock, TensorType};

use crate::LoadError;
use kind::{Kind, kind};

/// Largest usual page of memory, in bytes: 64 KiB on arm64 and ppc64, 4 KiB on x86-64.
#[cfg(unix)]
const LARGEST_PAGE: usize = 64 << 10;

/// An open model: one file, or the parts that its weights are split into.
pub struct ModelFile {
    path: PathBuf,
    maps: Arc<[Mmap]>,
    header: Header,
    architecture: String,
    /// Path of `tokenizer.json`, if the tokenizer is not in the model file.
    tokenizer: Option<PathBuf>,
}

/// A tensor: shape and bytes.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Name in GGUF.
    pub name: &'a str,
    /// Type of the values.
    pub kind: TensorType,
    /// Values in a row, the contiguous dimension.
    pub columns: usize,
    /// Number of rows.
    pub rows: usize,
    /// Data, exactly as long as type and shape say.
    pub data: &'a [u8],
}

impl ModelFile {
    /// Opens and checks a file, or the weights in a folder.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let path = &safetensors::weights(path)?;
        let (first, magic) = open(path)?;
        let (maps, header) = match kind(path, &magic) {
            Kind::Other(other) => return Err(other.error(path)),
            Kind::Gguf => {
                let map = map(path, &first)?;
                let corrupt = |reason| LoadError::Corrupt { path: path.to_owned(), reason };
                let header = Header::parse(&map).map_err(corrupt)?;
                if let Some(parts) = header.metadata.get("split.count").and_then(MetaValue::as_u64).filter(|n| *n > 1) {
                    return Err(LoadError::Unsupported {
                        path: path.to_owned(),
                        reason: format!(
                            "it is one of {parts} parts: put them together with llama.cpp's `llama-gguf-split --merge` \
                             and name the file that it makes"
                        ),
                    });
                }
                (vec![map], header)
            }
            Kind::Safetensors => {
                let map = map(path, &first)?;
                let header = safetensors::parse(path, &map)?;
                (vec![map], header)
            }
            Kind::Index => {
                let index = safetensors::PartIndex::read(path)?;
                let maps = index.files().map(|part| map(part, &open(part)?.0)).collect::<Result<Vec<_>, _>>()?;
                let header = index.parse(&maps.iter().map(|map| &**map).collect::<Vec<_>>())?;
                (maps, header)
            }
        };
        let architecture = match header.metadata.get("general.architecture") {
            Some(MetaValue::String(name)) => name.clone(),
            _ => {
                let reason = "`general.architecture` is missing".to_owned();
                return Err(LoadError::Corrupt { path: path.to_owned(), reason });
            }
        };
        let tokenizer = header.has_tokenizer_beside.then(|| safetensors::ModelFolder::of(path).tokenizer());
        Ok(Self { path: path.to_owned(), maps: maps.into(), header, architecture, tokenizer })
    }

    /// Path of the file, or of the weights that were found in a folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// `general.architecture`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }
    /// Size of the file, or of all parts together.
    pub fn bytes(&self) -> u64 {
        self.maps.iter().map(|map| u64::try_from(map.len()).unwrap_or(u64::MAX)).sum()
    }
    /// Differences of the weights from a GGUF file of the same architecture.
    pub fn layout(&self) -> WeightLayout {
        self.header.layout
    }
    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        self.header.tensors.values().map(|t| t.elements).sum()
    }

    /// Most frequent type of the matrices, by weights.
    pub fn quantization(&self) -> String {
        let mut by_type = std::collections::BTreeMap::<String, u64>::new();
        for tensor in self.header.tensors.values() {
            *by_type.entry(tensor.type_name().to_owned()).or_default() += tensor.elements;
        }
        by_type.into_iter().max_by_key(|(_, weights)| *weights).map(|(name, _)| name).unwrap_or_default()
    }

    /// Metadata value of a key.
    pub fn meta(&self, key: &str) -> Option<&MetaValue> {
        self.header.metadata.get(key)
    }

    /// A whole number of the architecture, such as `block_count`.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.meta(&format!("{}.{key}", self.architecture)).and_then(MetaValue::as_u64)
    }

    /// A number of the architecture, such as `rope.freq_base`.
    pub fn float(&self, key: &str) -> Option<f64> {
        self.meta(&format!("{}.{key}", self.architecture)).and_then(MetaValue::as_f64)
    }

    /// Returns a function that releases the page cache of data of this file after it was read; later reads come from
    /// the disk again. Ignores other data.
    pub(crate) fn page_releaser(&self) -> impl Fn(&[u8]) + Send + 'static {
        let maps = self.maps.clone();
        move |data| {
            let start = data.as_ptr().addr();
            let holds = |map: &&Mmap| (map.as_ptr().addr()..map.as_ptr().addr() + map.len()).contains(&start);
            let Some(map) = maps.iter().find(holds) else { return };
            let offset = start - map.as_ptr().addr();
            if offset + data.len() > map.len() {
                return;
            }
            #[cfg(unix)]
            {
                let from = offset.next_multiple_of(LARGEST_PAGE);
                let to = (offset + data.len()) / LARGEST_PAGE * LARGEST_PAGE;
                if from < to {
                    // SAFETY: the mapping is of a file, read-only and private, so that its pages can be read again
                    // from the file at any time.
                    let advice =
                        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from) };
                    if let Err(e) = advice {
                        tracing::debug!(event = "mapping_kept", error = %e);
                    }
                }
            }
        }
    }

    /// True if the tokenizer is a file beside the model.
    pub fn has_tokenizer_beside(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// Reads the `tokenizer.json` beside the model, for a kind of file without a tokenizer inside; `None` for other
    /// kinds.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>, LoadError> {
        let Some(path) = &self.tokenizer else { return Ok(None) };
        let missing = || self.unsupported("`tokenizer.json` is missing beside it: put the whole model folder in place");
        safetensors::bytes(path)?.ok_or_else(missing).map(Some)
    }

    /// Makes a [`LoadError::Unsupported`] for this file.
    pub fn unsupported(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Unsupported { path: self.path.clone(), reason: reason.into() }
    }

    /// Makes a [`LoadError::Corrupt`] for this file.
    pub fn corrupt(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Corrupt { path: self.path.clone(), reason: reason.into() }
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Entry of the tensor table.
    pub fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.header.tensors.get(name)
    }

    /// Rows of a tensor, if the file has it.
    pub fn rows(&self, name: &str) -> Option<usize> {
        self.header.tensors.get(name).map(|entry| entry.shape().1)
    }

    /// True if the file has a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// Returns a required tensor. Fails if it is missing, of a type that is not supported, or of another shape.
    pub fn tensor(&self, name: &str, columns: usize, rows: usize) -> Result<Tensor<'_>, LoadError> {
        let (name, entry) = self
            .header
            .tensors
            .get_key_value(name)
            .ok_or_else(|| self.corrupt(format!("tensor `{name}` is missing")))?;
        let kind = entry.kind.ok_or_else(|| {
            self.unsupported(format!(
                "tensor `{name}` has type {}; this version runs {}: quantise the model to one of these",
                entry.type_name(),
                TensorType::ALL.map(|kind| format!("{kind:?}")).join(", ")
            ))
        })?;
        let (have_columns, have_rows) = entry.shape();
        if (have_columns, have_rows) != (columns, rows) {
            return Err(self.corrupt(format!(
                "tensor `{name}` is {have_columns} x {have_rows}; the model expects {columns} x {rows}"
            )));
        }
        let data = self
            .maps
            .get(entry.part)
            .and_then(|map| map.get(entry.range.clone()))
            .ok_or_else(|| self.corrupt(format!("tensor `{name}` lies outside of the file")))?;
        Ok(Tensor { name, kind, columns, rows, data })
    }
}

/// Opens a regular file and reads its first bytes.
fn open(path: &Path) -> Result<(File, Vec<u8>), LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    is_file(path).map_err(io)?;
    let mut file = File::open(path).map_err(io)?;
    let mut magic = [0u8; 8];
    let read = file.read(&mut magic).map_err(io)?;
    Ok((file, magic.get(..read).unwrap_or_default().to_vec()))
}

/// Refuses anything but a regular file: a pipe, for example, may block forever.
fn is_file(path: &Path) -> std::io::Result<()> {
    let is_file = std::fs::metadata(path)?.is_file();
    is_file.then_some(()).ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a file"))
}

fn map(path: &Path, file: &File) -> Result<Mmap, LoadError> {
    // SAFETY: the mapping is private and read-only. A file that another process shortens while it is read would
    // raise SIGBUS; model files are replaced by rename, as the guide says, and unmapped after the upload.
    unsafe { Mmap::map(file) }.map_err(|source| LoadError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect;

    #[cfg(unix)]
    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["model.gguf", "model.safetensors", "config.json"] {
            let path = folder.path().join(name);
            let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
            assert!(made.success());
            let source = if name == "config.json" { folder.path().join("model.safetensors") } else { path.clone() };
            let refused = inspect(&source).unwrap_err().to_string();
            assert!(refused.contains("not a file"), "{refused}");
            if name == "model.safetensors" {
                std::fs::remove_file(&path).unwrap();
                std::fs::write(&path, "x").unwrap();
            }
        }
    }

    #[test]
    fn a_type_that_nobody_knows_yet_is_refused_by_its_number() {
        let mut bytes = crate::testing::small_model(TensorType::F32);
        let name = b"token_embd.weight";
        let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
        // After the name, the number of its dimensions, and two of them.
        bytes[at + name.len() + 4 + 16] = 99;
        let mut file = tempfile::Builder::new().suffix(".gguf").tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let refused = inspect(file.path()).unwrap_err().to_string();
        assert!(refused.contains("`token_embd.weight` has type number 99") && refused.contains("Q4_K"), "{refused}");
    }

    #[test]
    fn one_of_several_parts_is_refused_with_what_to_do() {
        let mut file = crate::testing::gguf::Gguf::default();
        file.text("general.architecture", "llama");
        file.number("split.count", 3);
        let refused = inspect(file.write().path()).unwrap_err().to_string();
        assert!(refused.contains("one of 3 parts") && refused.contains("llama-gguf-split --merge"), "{refused}");
    }
}
