//! Model files: read, checked as hostile input, seen as metadata and tensors. It owns the mapping of the file; nothing
//! is copied or allocated by a count in the file that was not held against the file's length before.

mod gguf;
mod kind;
mod safetensors;
mod types;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

pub use gguf::{Header, Layout, MetaValue, TensorEntry};
pub use types::{BLOCK, QuantBlock, TensorType};

use crate::LoadError;
use kind::{Kind, kind};

/// The largest page of memory that systems we run on have, unless asked for larger ones.
#[cfg(unix)]
const LARGEST_PAGE: usize = 64 << 10;

/// An open model: one file, or the parts that its weights were cut into.
pub struct ModelFile {
    path: PathBuf,
    maps: Arc<[Mmap]>,
    header: Header,
    architecture: String,
    /// Where its tokenizer lies, if not in the file.
    tokenizer: Option<PathBuf>,
}

/// One tensor: its shape and its bytes.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type.
    pub kind: TensorType,
    /// Values in a row, the dimension that is contiguous.
    pub columns: usize,
    /// Rows.
    pub rows: usize,
    /// Its data, exactly as long as type and shape say.
    pub data: &'a [u8],
}

impl ModelFile {
    /// Opens and checks a file, or the weights of a folder.
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
                let index = safetensors::Index::read(path)?;
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
        let tokenizer = header.has_tokenizer_beside.then(|| safetensors::Folder::of(path).tokenizer());
        Ok(Self { path: path.to_owned(), maps: maps.into(), header, architecture, tokenizer })
    }

    /// The path it was opened under.
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
    /// In what its weights differ from those of a GGUF file of the same architecture.
    pub fn layout(&self) -> Layout {
        self.header.layout
    }
    /// Weights.
    pub fn parameters(&self) -> u64 {
        self.header.tensors.values().map(|t| t.elements).sum()
    }

    /// Most frequent type of its matrices, by weights.
    pub fn quantization(&self) -> String {
        let mut by_type = std::collections::BTreeMap::<String, u64>::new();
        for tensor in self.header.tensors.values() {
            *by_type.entry(tensor.type_name().to_owned()).or_default() += tensor.elements;
        }
        by_type.into_iter().max_by_key(|(_, weights)| *weights).map(|(name, _)| name).unwrap_or_default()
    }

    /// A metadata value.
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

    /// What lets go of the memory that data of this file takes, once it was read: what is read again comes from the file
    /// again. Other data is left alone.
    pub(crate) fn forgetter(&self) -> impl Fn(&[u8]) + Send + 'static {
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
                    // SAFETY: the mapping is of a file, read-only and private, so that its pages can be had again from
                    // the file at any time.
                    let advice =
                        unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from) };
                    if let Err(e) = advice {
                        tracing::debug!(event = "mapping_kept", error = %e);
                    }
                }
            }
        }
    }

    /// Whether its tokenizer lies beside it.
    pub fn has_tokenizer_beside(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// The `tokenizer.json` beside the file, for a kind of file that has none inside.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>, LoadError> {
        let Some(path) = &self.tokenizer else { return Ok(None) };
        let missing =
            || self.unsupported("there is no `tokenizer.json` beside it: put the whole model folder in place");
        safetensors::bytes(path)?.ok_or_else(missing).map(Some)
    }

    /// An error that names this file.
    pub fn unsupported(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Unsupported { path: self.path.clone(), reason: reason.into() }
    }

    /// An error that says that this file is damaged.
    pub fn corrupt(&self, reason: impl Into<String>) -> LoadError {
        LoadError::Corrupt { path: self.path.clone(), reason: reason.into() }
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// A line of the tensor table.
    pub fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.header.tensors.get(name)
    }

    /// Rows of a tensor, if there is one of this name.
    pub fn rows(&self, name: &str) -> Option<usize> {
        self.header.tensors.get(name).map(|entry| entry.shape().1)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// A tensor that must be there, in a type that this engine runs, with this shape.
    pub fn tensor(&self, name: &str, columns: usize, rows: usize) -> Result<Tensor<'_>, LoadError> {
        let (name, entry) = self
            .header
            .tensors
            .get_key_value(name)
            .ok_or_else(|| self.corrupt(format!("tensor `{name}` is missing")))?;
        let kind = entry.kind.ok_or_else(|| {
            self.unsupported(format!(
                "tensor `{name}` has type {}: this version runs {}; quantise the model to one of these",
                entry.type_name(),
                TensorType::ALL.map(|kind| format!("{kind:?}")).join(", ")
            ))
        })?;
        let (have_columns, have_rows) = entry.shape();
        if (have_columns, have_rows) != (columns, rows) {
            return Err(self.corrupt(format!(
                "tensor `{name}` is {have_columns} x {have_rows}, its model wants {columns} x {rows}"
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

/// Opens a file that must be one, and reads its first bytes.
fn open(path: &Path) -> Result<(File, Vec<u8>), LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    is_file(path).map_err(io)?;
    let mut file = File::open(path).map_err(io)?;
    let mut magic = [0u8; 8];
    let read = file.read(&mut magic).map_err(io)?;
    Ok((file, magic.get(..read).unwrap_or_default().to_vec()))
}

/// Something else, such as a pipe, may never end, or never begin.
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
        // Behind the name, the count of its dimensions, and two of them.
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
