//! Kind of a model file, and the advice for a kind that is not supported.

use std::path::Path;

use super::safetensors;
use crate::LoadError;

/// Kind of a model file.
pub(super) enum Kind {
    Gguf,
    Safetensors,
    /// The index of a model in several safetensors files.
    Index,
    /// An unsupported kind.
    Other(Other),
}

/// An unsupported kind of file: its name, and the advice.
pub(super) struct Other {
    name: &'static str,
    remedy: &'static str,
}

impl Other {
    /// Recognises a kind by the extension.
    pub(super) fn by_name(path: &Path) -> Option<Self> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let (name, remedy) = match extension.as_str() {
            "onnx" => ("an ONNX model", FROM_THE_SOURCE),
            "pb" => ("a TensorFlow graph", FROM_THE_SOURCE),
            "tflite" => ("a TensorFlow Lite model", FROM_THE_SOURCE),
            "h5" | "keras" => ("a Keras model", FROM_THE_SOURCE),
            "msgpack" => ("a Flax checkpoint", FROM_THE_SOURCE),
            "npz" | "npy" => ("a NumPy archive", FROM_THE_SOURCE),
            "mlmodel" | "mlpackage" => ("a Core ML model", FROM_THE_SOURCE),
            "ggml" | "ggmf" | "ggjt" => ("a file of a format before GGUF", FROM_THE_SOURCE),
            "pt" | "pth" | "bin" | "ckpt" => ("a PyTorch checkpoint", CONVERT),
            "pkl" | "pickle" => ("a Python pickle", CONVERT),
            _ => return None,
        };
        Some(Self { name, remedy })
    }

    /// Recognises a kind by the first bytes.
    fn by_magic(magic: &[u8]) -> Self {
        let (name, remedy) = match magic {
            [b'P', b'K', ..] => ("a zip archive (a PyTorch checkpoint, most likely)", CONVERT),
            [0x89, b'H', b'D', b'F', ..] => ("an HDF5 file (a Keras model, most likely)", FROM_THE_SOURCE),
            [0x80, 2 | 4, ..] => ("a Python pickle", CONVERT),
            _ => ("not a GGUF file", CONVERT),
        };
        Self { name, remedy }
    }

    pub(super) fn error(&self, path: &Path) -> LoadError {
        LoadError::WrongKind { path: path.to_owned(), kind: self.name, remedy: self.remedy }
    }
}

/// Advice for files that llama.cpp's script converts.
const CONVERT: &str =
    "convert it to GGUF (llama.cpp's convert_hf_to_gguf.py does, given its folder) and name that file";
/// Advice for models that were exported for another program and cannot be converted back.
const FROM_THE_SOURCE: &str = "take the model's weights in safetensors as they were trained, with their folder, or convert it to \
                               GGUF from there (llama.cpp's convert_hf_to_gguf.py does)";

/// Detects the kind by the first bytes, or else by the name.
pub(super) fn kind(path: &Path, magic: &[u8]) -> Kind {
    let is_safetensors = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors"));
    if magic.starts_with(b"GGUF") {
        Kind::Gguf
    } else if magic.starts_with(b"version ") {
        let (name, remedy) = ("a Git LFS pointer and not the file itself", "fetch the file (`git lfs pull` does)");
        Kind::Other(Other { name, remedy })
    } else if is_safetensors {
        Kind::Safetensors
    } else if safetensors::is_index(path) {
        Kind::Index
    } else {
        Kind::Other(Other::by_name(path).unwrap_or_else(|| Other::by_magic(magic)))
    }
}

#[cfg(test)]
mod tests {
    use crate::inspect;

    #[test]
    fn a_file_of_another_kind_is_refused_with_its_name_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes, what) in [
            ("model.pt", &b"PK\x03\x04"[..], "a PyTorch checkpoint"),
            ("model.onnx", b"\x08\x07", "an ONNX model"),
            ("model.pb", b"\x0a", "a TensorFlow graph"),
            ("model.tflite", b"TFL3", "a TensorFlow Lite model"),
            ("model.gguf", b"PK\x03\x04", "a zip archive"),
            ("model.bin", b"\x80\x02", "a PyTorch checkpoint"),
            ("model", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
            ("model.gguf", b"", "not a GGUF file"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let refused = inspect(&path).unwrap_err().to_string();
            assert!(refused.contains(what) && refused.contains("convert it to GGUF"), "{refused}");
        }
        for name in ["model.gguf", "model.safetensors"] {
            let path = folder.path().join(name);
            std::fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n").unwrap();
            let refused = inspect(&path).unwrap_err().to_string();
            assert!(refused.contains("is a Git LFS pointer") && refused.contains("git lfs pull"), "{refused}");
        }
    }

    #[test]
    fn a_folder_without_weights_is_refused_with_what_is_in_it() {
        let told = |files: &[&str]| {
            let folder = tempfile::tempdir().unwrap();
            files.iter().for_each(|name| std::fs::write(folder.path().join(name), "x").unwrap());
            inspect(folder.path()).unwrap_err().to_string()
        };
        let all = ["config.json", "pytorch_model.bin", "tokenizer.json", "tf_model.h5"];
        let refused = told(&all);
        assert!(refused.contains("pytorch_model.bin is a PyTorch checkpoint: convert it to GGUF"), "{refused}");
        let refused = told(&["config.json", "model.onnx"]);
        assert!(refused.contains("model.onnx is an ONNX model") && refused.contains("in safetensors"), "{refused}");
        let refused = told(&["a.gguf", "model.onnx"]);
        assert!(refused.contains("name the file `a.gguf` in it"), "{refused}");
        let refused = told(&["config.json"]);
        assert!(refused.contains("neither `model.safetensors` nor `model.safetensors.index.json`"), "{refused}");
    }
}
