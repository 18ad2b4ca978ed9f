//! Model folders of Hugging Face's libraries: weights in safetensors, in one file or in parts with an index, beside
//! `config.json`, `tokenizer.json` and others. They are read into the metadata and tensor names of a GGUF file of the
//! same model, so that later stages know one format. Headers are checked by the `safetensors` crate: offsets, sizes,
//! no gap, no overlap.

mod bert;
mod decoder;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::gguf::{Header, MetaValue, TensorEntry, WeightLayout};
use super::is_file;
use super::kind::Other;
use super::types::TensorType;
use crate::LoadError;
use decoder::DecoderConfig;

/// Longest JSON file that is read, in bytes; a tokenizer of a quarter of a million words has some 30 MB.
const MAX_JSON: u64 = 64 << 20;
/// Longest settings file, in bytes.
const MAX_SETTINGS: u64 = 1 << 20;
/// Most entries of a folder that are examined.
const MAX_ENTRIES: usize = 4096;
/// Most parts of a model; the largest have some two hundred.
const MAX_PARTS: usize = 1024;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Path of the weights: in a folder, the file with a known name; else the path itself.
pub(super) fn weights(path: &Path) -> Result<PathBuf, LoadError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let found = [WEIGHTS, INDEX].map(|name| path.join(name)).into_iter().find(|file| file.exists());
    found.map_or_else(|| Err(without_weights(path)), Ok)
}

/// Error for a folder without supported weights; names what it holds instead.
fn without_weights(path: &Path) -> LoadError {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(source) => return LoadError::Io { path: path.to_owned(), source },
    };
    let files: BTreeSet<PathBuf> = entries.take(MAX_ENTRIES).flatten().map(|entry| entry.path()).collect();
    let gguf = files.iter().find(|file| file.extension().is_some_and(|extension| extension == "gguf"));
    let other = || files.iter().filter_map(|file| Other::by_name(file).map(|other| other.error(file))).next();
    let instead = match gguf {
        Some(file) => {
            format!("name the file `{}` in it", shown(&file.file_name().unwrap_or_default().to_string_lossy()))
        }
        None => match other() {
            Some(error) => return error,
            None => "put a model into it, or name a GGUF file".to_owned(),
        },
    };
    LoadError::Unsupported {
        path: path.to_owned(),
        reason: format!("neither `{WEIGHTS}` nor `{INDEX}` is in this folder: {instead}"),
    }
}

/// True if the name is that of an index of parts.
pub(super) fn is_index(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(".safetensors.index.json"))
}

/// Folder of the weights, for the files beside them.
pub(super) struct ModelFolder(PathBuf);

impl ModelFolder {
    pub(super) fn of(weights: &Path) -> Self {
        Self(weights.parent().map(Path::to_owned).unwrap_or_default())
    }

    pub(super) fn tokenizer(&self) -> PathBuf {
        self.0.join("tokenizer.json")
    }

    fn json(&self, name: &str) -> Result<Option<Value>, LoadError> {
        json(&self.0.join(name))
    }

    /// Reads a text file of bounded length; invalid UTF-8 is replaced.
    fn text(&self, name: &str) -> Result<Option<String>, LoadError> {
        Ok(bytes(&self.0.join(name))?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }
}

fn json(path: &Path) -> Result<Option<Value>, LoadError> {
    let Some(bytes) = bytes(path)? else { return Ok(None) };
    let corrupt = |e: serde_json::Error| LoadError::Corrupt { path: path.to_owned(), reason: e.to_string() };
    serde_json::from_slice(&bytes).map(Some).map_err(corrupt)
}

/// Reads a file of bounded length; `None` if there is none.
pub(super) fn bytes(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let file = match is_file(path).and_then(|()| std::fs::File::open(path)) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    let mut bytes = Vec::new();
    // Tokenizers and indexes are long; other settings are short, and a longer file would only waste memory.
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let most = if name.starts_with("tokenizer") || name.ends_with("index.json") { MAX_JSON } else { MAX_SETTINGS };
    file.take(most + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > most {
        return Err(LoadError::Corrupt {
            path: path.to_owned(),
            reason: format!("the file is longer than {} MiB", most >> 20),
        });
    }
    Ok(Some(bytes))
}

/// Text of a file, shortened and escaped for an error.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

/// Index of a model in parts: the tensors of each file.
pub(super) struct PartIndex {
    path: PathBuf,
    parts: BTreeMap<PathBuf, BTreeSet<String>>,
}

impl PartIndex {
    /// Reads the index. Parts lie in the same folder: a path that leads elsewhere is refused.
    pub(super) fn read(path: &Path) -> Result<Self, LoadError> {
        let corrupt = |reason: String| LoadError::Corrupt { path: path.to_owned(), reason };
        let list = json(path)?.ok_or_else(|| corrupt("the index is missing".into()))?;
        let map = list.get("weight_map").and_then(Value::as_object);
        let map = map.filter(|map| !map.is_empty()).ok_or_else(|| corrupt("the index names no tensor".into()))?;
        let mut parts = BTreeMap::<PathBuf, BTreeSet<String>>::new();
        for (tensor, part) in map {
            let name = part.as_str().unwrap_or_default();
            let is_plain = matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
            if !is_plain || !name.ends_with(".safetensors") {
                return Err(corrupt(format!("`{}` is no name of a part in the folder of the index", shown(name))));
            }
            parts.entry(path.with_file_name(name)).or_default().insert(tensor.clone());
            if parts.len() > MAX_PARTS {
                return Err(corrupt(format!("the index has more than {MAX_PARTS} parts")));
            }
        }
        Ok(Self { path: path.to_owned(), parts })
    }

    /// Paths of the parts.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.parts.keys()
    }

    /// Parses the headers of the parts, which are given in the order of [`Self::files`].
    pub(super) fn parse(&self, parts: &[&[u8]]) -> Result<Header, LoadError> {
        let parts = self.parts.iter().zip(parts);
        parse_parts(&self.path, parts.map(|((path, tensors), file)| Part { path, file, tensors: Some(tensors) }))
    }
}

/// One file of weights.
struct Part<'a> {
    path: &'a Path,
    file: &'a [u8],
    /// Tensors that must be in the file.
    tensors: Option<&'a BTreeSet<String>>,
}

/// Parses the header of a single file, and the files beside it.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header, LoadError> {
    parse_parts(path, std::iter::once(Part { path, file, tensors: None }))
}

/// Model type of a folder.
enum FolderModel {
    Encoder(bert::Encoder),
    Decoder(DecoderConfig),
}

impl FolderModel {
    fn gguf_name(&self, name: &str) -> Option<String> {
        match self {
            Self::Encoder(encoder) => bert::gguf_name(*encoder, name),
            Self::Decoder(decoder) => decoder.gguf_name(name),
        }
    }
}

fn parse_parts<'a>(path: &Path, parts: impl Iterator<Item = Part<'a>>) -> Result<Header, LoadError> {
    let unsupported = |reason: String| LoadError::Unsupported { path: path.to_owned(), reason };
    let folder = ModelFolder::of(path);
    let config = folder.json("config.json")?.ok_or_else(|| {
        unsupported(
            "there is no `config.json` beside it: put the whole model folder in place, not the weights alone".into(),
        )
    })?;
    if let Some(how) = config.get("quantization_config").filter(|how| !how.is_null()) {
        let method = how.get("quant_method").and_then(Value::as_str).unwrap_or("a method of its own");
        return Err(unsupported(format!(
            "its weights are quantised (`{}`): of safetensors this version runs F32, F16 and BF16; take the weights as \
             they were trained, or a GGUF file",
            shown(method)
        )));
    }
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("unknown");
    if let Some(why) = bert::refuse_classifier(&config) {
        return Err(unsupported(why));
    }
    let (model, metadata, layout) = match bert::Encoder::of(kind) {
        Some(encoder) => {
            let metadata = bert::metadata(encoder, &config, &folder, &unsupported)?;
            (FolderModel::Encoder(encoder), metadata, WeightLayout::default())
        }
        None => {
            let decoder = DecoderConfig::of(kind, &config).ok_or_else(|| {
                unsupported(format!(
                    "its `config.json` says `model_type` `{}`: of safetensors this version runs {}, {}; convert \
                     others to GGUF with llama.cpp's convert_hf_to_gguf.py",
                    shown(kind),
                    bert::MODEL_TYPES.join(", "),
                    decoder::MODEL_TYPES.join(", ")
                ))
            })?;
            let metadata = decoder.metadata(&folder, &unsupported)?;
            let layout = decoder.layout();
            (FolderModel::Decoder(decoder), metadata, layout)
        }
    };
    let mut tensors = BTreeMap::new();
    for (n, part) in parts.enumerate() {
        tensors_of(&part, n, &model, &mut tensors)?;
    }
    if let FolderModel::Decoder(decoder) = &model
        && !decoder.is_tied()
        && !tensors.contains_key("output.weight")
    {
        let reason = "tensor `lm_head.weight` is missing, and `tie_word_embeddings` is not true".into();
        return Err(LoadError::Corrupt { path: path.to_owned(), reason });
    }
    Ok(Header { metadata, tensors, layout, has_tokenizer_beside: true })
}

/// Adds the tensors of one part.
fn tensors_of(
    part: &Part<'_>,
    n: usize,
    model: &FolderModel,
    tensors: &mut BTreeMap<String, TensorEntry>,
) -> Result<(), LoadError> {
    let corrupt = |reason: String| LoadError::Corrupt { path: part.path.to_owned(), reason };
    let (header, parsed) = SafeTensors::read_metadata(part.file).map_err(|e| corrupt(e.to_string()))?;
    let start = header.checked_add(8).ok_or_else(|| corrupt("the header overflows".into()))?;
    let there = parsed.tensors();
    if let Some(missing) = part.tensors.and_then(|names| names.iter().find(|name| !there.contains_key(*name))) {
        return Err(corrupt(format!("tensor `{}` is missing, which the index expects here", shown(missing))));
    }
    // Sorted by name, so that the same error is reported each time.
    for (name, info) in BTreeMap::from_iter(there) {
        let Some(name) = model.gguf_name(&name) else { continue };
        let (from, to) = info.data_offsets;
        let range = start.saturating_add(from)..start.saturating_add(to);
        if range.end > part.file.len() {
            return Err(corrupt(format!("tensor `{}` lies outside of the file", shown(&name))));
        }
        let dimensions = info.shape.iter().rev().copied().collect();
        let entry = TensorEntry::new(kind(info.dtype), info.dtype.to_string(), dimensions, range, n)
            .ok_or_else(|| corrupt(format!("tensor `{}` has an invalid shape", shown(&name))))?;
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(corrupt(format!("duplicate tensor `{}`", shown(&name))));
        }
    }
    Ok(())
}

/// Maps a type of safetensors to a supported one.
fn kind(kind: Dtype) -> Option<TensorType> {
    match kind {
        Dtype::F32 => Some(TensorType::F32),
        Dtype::F16 => Some(TensorType::F16),
        Dtype::BF16 => Some(TensorType::BF16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const CONFIG: &str = r#"{"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 2, "vocab_size": 2,
        "max_position_embeddings": 8, "id2label": {"1": "bad", "0": "good"}}"#;

    fn folder(config: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        folder
    }

    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
    }

    #[test]
    fn a_folder_is_read_and_what_it_is_not_is_named() {
        let header = r#"{"embeddings.word_embeddings.weight":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}"#;
        let here = folder(CONFIG);
        let path = here.path().join("model.safetensors");
        let read = parse(&path, &file(header, 12)).unwrap();
        let table = &read.tensors["token_embd.weight"];
        assert_eq!((table.shape(), table.elements, table.range.len()), ((3, 2), 6, 12));
        assert_eq!(read.metadata["bert.context_length"], MetaValue::Unsigned(8));
        assert_eq!(
            read.metadata["bert.classifier.output_labels"],
            MetaValue::Strings(vec!["good".into(), "bad".into()])
        );
        // A type that is not supported keeps its own name.
        let eights = header.replace("F16", "F8_E4M3").replace("12]", "6]");
        let read = parse(&path, &file(&eights, 6)).unwrap();
        assert_eq!(
            (read.tensors["token_embd.weight"].kind, read.tensors["token_embd.weight"].type_name()),
            (None, "F8_E4M3")
        );
        let refused = |config: &str, bytes: &[u8]| {
            let here = folder(config);
            parse(&here.path().join("model.safetensors"), bytes).unwrap_err().to_string()
        };
        let cut = refused(CONFIG, &file(header, 11));
        assert!(cut.contains("damaged"), "{cut}");
        let other = refused(r#"{"model_type": "t5"}"#, &file(header, 12));
        assert!(other.contains("`t5`") && other.contains("convert_hf_to_gguf.py"), "{other}");
        let alone = parse(Path::new("/nowhere/model.safetensors"), &file(header, 12)).unwrap_err().to_string();
        assert!(alone.contains("no `config.json` beside it"), "{alone}");
    }

    #[test]
    fn a_damaged_file_is_refused_and_harms_nothing() {
        let header = r#"{"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b.bias":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]}}"#;
        let whole = file(header, 24);
        let here = folder(CONFIG);
        let path = here.path().join("model.safetensors");
        assert!(parse(&path, &whole).is_ok());
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..3000 {
            let mut bytes = whole.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            bytes.truncate(bytes.len() - rng.random_range(0..2) * rng.random_range(0..bytes.len()));
            if let Ok(read) = parse(&path, &bytes) {
                assert!(read.tensors.values().all(|tensor| tensor.range.end <= bytes.len()));
            }
        }
    }
}
