//! What files a model was loaded from: a change of one of them makes another model.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use spillway_config::schema::Model;

/// What a file was when it was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

/// Of a model's file and of those beside it, which need not be there.
pub(super) type Identities = Vec<Option<FileIdentity>>;

/// What the files of a model are now; `None` where the first, which must be there, is not.
pub(super) fn identities(model: &Model) -> Option<Identities> {
    let all: Vec<_> = model.files().iter().map(|path| identity(path)).collect();
    all.first().is_some_and(Option::is_some).then_some(all)
}

/// Links are followed: a file that took another's place under the same name is another one.
fn identity(path: &Path) -> Option<FileIdentity> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(FileIdentity {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
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
}
