//! Reads a configuration from its files, as `serve`, `check` and an edit do, and records the state in which files were read.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use spillway_config::{FileError, LoadOptions, Loaded, Report};
use spillway_filter::Registry;

use crate::memory;

/// Reads a configuration as `serve` and `check` do.
pub fn read(path: &Path, registry: &Registry, offline: bool) -> Result<Loaded, Report> {
    let loaded = spillway_config::load(path, &options(registry, offline));
    memory::give_back();
    loaded
}

/// Reads a configuration from a text; `path` is its name in messages, and paths in it are relative to that.
pub fn read_text(path: &Path, text: &str, registry: &Registry, offline: bool) -> Result<Loaded, Report> {
    spillway_config::load_text(path, text, &options(registry, offline))
}

/// Settings with which configurations are read and joined.
pub fn options(registry: &Registry, offline: bool) -> LoadOptions<'_> {
    LoadOptions {
        catalog: registry,
        env: &|name| std::env::var(name).ok(),
        files: &ModelFiles,
        offline,
        kubernetes: cfg!(feature = "kubernetes"),
    }
}

/// Checks of the files that a configuration names.
pub struct ModelFiles;

impl spillway_config::FileChecks for ModelFiles {
    fn model(&self, path: &Path) -> Result<(), FileError> {
        spillway_engine::inspect(path)?;
        Ok(())
    }
    fn certificate(&self, cert: &Path, key: &Path, server: bool) -> Result<Vec<String>, FileError> {
        Ok(crate::tls::check_pair(cert, key, server)?)
    }
    fn authorities(&self, path: &Path) -> Result<(), FileError> {
        Ok(crate::tls::check_authorities(path)?)
    }
}

/// State of a file, by which a change of it is found. Length and time of writing are not enough: a file may take the place of
/// another of the same length and time, as archives, `cp -p` and package stores write them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileState {
    device: u64,
    inode: u64,
    length: u64,
    modified: SystemTime,
    /// Time of the last change of the file or its attributes, which programs cannot set.
    changed: SystemTime,
}

/// States of files, by path; `None` for a missing file. A pattern has a number for the files that it matches in place of a
/// length, and no times: what else is in their folder does not matter.
pub type FileStates = BTreeMap<PathBuf, Option<FileState>>;

/// State of files now.
pub fn file_states(files: &[PathBuf]) -> FileStates {
    files.iter().map(|file| (file.clone(), file_state(file))).collect()
}

fn file_state(file: &Path) -> Option<FileState> {
    if spillway_config::is_pattern(file) {
        let mut hasher = DefaultHasher::new();
        spillway_config::matching(file).hash(&mut hasher);
        let (length, never) = (hasher.finish(), SystemTime::UNIX_EPOCH);
        return Some(FileState { device: 0, inode: 0, length, modified: never, changed: never });
    }
    let metadata = std::fs::metadata(file).ok()?;
    let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
    let since_1970 = Duration::new(u64::try_from(metadata.ctime()).unwrap_or(0), nanoseconds);
    Some(FileState {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified: metadata.modified().ok()?,
        changed: SystemTime::UNIX_EPOCH.checked_add(since_1970)?,
    })
}

/// True if entries of the folder of a pattern have come or gone since `began`.
fn has_changed_since(pattern: &Path, began: SystemTime) -> bool {
    let folder = pattern.parent().and_then(|folder| std::fs::metadata(folder).ok()?.modified().ok());
    folder.is_some_and(|changed| changed >= began)
}

/// State of files that were read from `began` on. A file that was changed since then counts as missing, because the change
/// may have come after the reading.
pub fn file_states_as_read(files: &[PathBuf], began: SystemTime) -> FileStates {
    let unsure = |file: &Path, state: &FileState| {
        state.modified >= began
            || state.changed >= began
            || (spillway_config::is_pattern(file) && has_changed_since(file, began))
    };
    let sure = |(file, state): (PathBuf, Option<FileState>)| {
        let state = state.filter(|state| !unsure(&file, state));
        (file, state)
    };
    file_states(files).into_iter().map(sure).collect()
}
