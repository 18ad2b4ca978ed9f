//! Identities of the files that a model is loaded from: a change of one of them makes another model.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use spillway_config::schema::Model;

/// Identity of a file at the time of loading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    /// Last change of the file or its attributes: unlike the time before, programs cannot set it.
    changed: (i64, i64),
}

/// Identities of all files of a model: its weights, and files beside them that need not exist.
pub(super) type Identities = Vec<(PathBuf, Option<FileIdentity>)>;

/// Reads the identities of the files of a model now; `None` if the weights are missing.
pub(super) fn identities(model: &Model) -> Option<Identities> {
    let all: Vec<_> = model.files().into_iter().map(|path| (path.clone(), identity(&path))).collect();
    all.first().is_some_and(|(_, weights)| weights.is_some()).then_some(all)
}

/// Reads the identity of a file and follows links: a file that replaces another under the same name has another identity.
fn identity(path: &Path) -> Option<FileIdentity> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(FileIdentity {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_beside_the_weights_that_changed_makes_another_model() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("model.safetensors");
        let model: Model = serde_json::from_value(serde_json::json!({"name": "m", "source": weights})).unwrap();
        assert_eq!(identities(&model), None);
        for name in ["model.safetensors", "config.json", "tokenizer.json"] {
            std::fs::write(folder.path().join(name), "a").unwrap();
        }
        let first = identities(&model);
        assert_eq!(first, identities(&model));
        for name in ["model.safetensors", "config.json", "tokenizer.json"] {
            let before = identities(&model);
            std::fs::write(folder.path().join(name), "another").unwrap();
            assert_ne!(before, identities(&model), "{name}");
        }
    }

    #[test]
    fn what_else_lies_in_the_folder_of_a_model_is_not_the_model() {
        for in_parts in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
            put("config.json", "{}");
            if in_parts {
                put(
                    "model.safetensors.index.json",
                    r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#,
                );
                put("model-1.safetensors", "a");
                put("model-2.safetensors", "b");
            } else {
                put("model.safetensors", "a");
            }
            let model: Model =
                serde_json::from_value(serde_json::json!({"name": "m", "source": folder.path()})).unwrap();
            let first = identities(&model);
            assert!(first.is_some());
            put("notes.txt", "it was tried");
            put("consolidated.safetensors", "the same weights once more");
            std::fs::create_dir(folder.path().join(".cache")).unwrap();
            let touched = std::fs::File::open(folder.path()).unwrap();
            touched.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(9)).unwrap();
            assert_eq!(identities(&model), first);
            let read = if in_parts { "model-2.safetensors" } else { "model.safetensors" };
            put(read, "other weights");
            assert_ne!(identities(&model), first);
        }
        // A single file takes the place of parts.
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str| std::fs::write(folder.path().join(name), "{}").unwrap();
        let model: Model = serde_json::from_value(serde_json::json!({"name": "m", "source": folder.path()})).unwrap();
        assert_eq!(identities(&model), None);
        put("model.safetensors.index.json");
        let parts = identities(&model);
        put("model.safetensors");
        assert!(parts.is_some() && identities(&model) != parts);
    }
}
