//! Program that this process runs, to be started anew: by the path that it was started by, where a new version lies once it is
//! installed. The path is found when the process starts, while the file is still the one that runs.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Program with its arguments.
#[derive(Debug, Clone)]
pub struct Program {
    pub(super) path: PathBuf,
    pub(super) name: OsString,
    pub(super) arguments: Vec<OsString>,
}

impl Program {
    /// Program of this process.
    pub fn running() -> Self {
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_default();
        let file = std::env::current_exe().ok();
        let path = path_of(&name, file.as_deref(), std::env::var_os("PATH").as_deref());
        Self { path, name, arguments: arguments.collect() }
    }
}

/// Path by which a program was started as `name`. A link stays a link: a new version may be another target of it. A name that
/// is not that of the running `file` is no path.
fn path_of(name: &OsStr, file: Option<&Path>, folders: Option<&OsStr>) -> PathBuf {
    let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let running = file.and_then(identity);
    let is_running = |path: &PathBuf| running.is_none() || identity(path) == running;
    let named = if name.as_encoded_bytes().contains(&b'/') {
        std::path::absolute(name).ok().filter(is_running)
    } else {
        let mut found = folders.into_iter().flat_map(std::env::split_paths).map(|folder| folder.join(name));
        found.find(|path| path.is_file() && is_running(path))
    };
    named.or_else(|| file.map(Path::to_owned)).unwrap_or_else(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_by_the_path_that_it_was_started_by() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("spillway-1"), "one").unwrap();
        std::fs::write(at("other"), "two").unwrap();
        std::os::unix::fs::symlink(at("spillway-1"), at("spillway")).unwrap();
        let file = at("spillway-1");
        let found = |name: &OsStr| path_of(name, Some(&file), Some(folder.path().as_os_str()));
        assert_eq!(found(at("spillway").as_os_str()), at("spillway"), "the link, whose target may be another one soon");
        assert_eq!(found("spillway".as_ref()), at("spillway"), "looked for in PATH");
        assert_eq!(found(at("other").as_os_str()), file, "a name that says something else");
        assert_eq!(found("-bash".as_ref()), file);
    }
}
