//! Reading a configuration from its files, as `serve`, `check` and an edit do, and the state in which files were read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use spillway_config::{LoadOptions, Loaded, Report};
use spillway_filter::Registry;

/// Reads a configuration as `serve` and `check` do.
pub fn read(path: &Path, registry: &Registry, offline: bool) -> Result<Loaded, Report> {
    let env = |name: &str| std::env::var(name).ok();
    spillway_config::load(path, &LoadOptions { catalog: registry, env: &env, files: &ModelFiles, offline })
}

/// Checks of the files that a configuration names.
pub struct ModelFiles;

impl spillway_config::FileChecks for ModelFiles {
    fn model(&self, path: &Path) -> Result<(), String> {
        spillway_engine::inspect(path).map(|_| ()).map_err(|e| e.to_string())
    }
    fn certificate(&self, cert: &Path, key: &Path, server: bool) -> Result<Vec<String>, String> {
        crate::tls::check_pair(cert, key, server).map_err(|e| e.to_string())
    }
    fn authorities(&self, path: &Path) -> Result<(), String> {
        crate::tls::check_authorities(path).map_err(|e| e.to_string())
    }
}

/// What files were when they were last looked at.
pub type Seen = BTreeMap<PathBuf, Option<(u64, SystemTime)>>;

/// State of files now.
pub fn look(files: &[PathBuf]) -> Seen {
    files
        .iter()
        .map(|file| {
            let metadata = std::fs::metadata(file).ok();
            (file.clone(), metadata.and_then(|m| Some((m.len(), m.modified().ok()?))))
        })
        .collect()
}

/// The same of files that were read just now. What was written since `began`, when the reading began, may not be what
/// was read, and counts as not looked at.
pub fn look_again(files: &[PathBuf], began: SystemTime) -> Seen {
    let unsure = |state: &(u64, SystemTime)| state.1 >= began;
    look(files).into_iter().map(|(file, state)| (file, state.filter(|state| !unsure(state)))).collect()
}
