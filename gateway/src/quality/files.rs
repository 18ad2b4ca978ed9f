//! Files with the sketches of routes, one for each, which survive a restart. Written whole beside the old file and then put in its
//! place, so that a crash leaves the one or the other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::state::RouteState;
use crate::whole_file;

/// Longest file that is read.
const MOST_BYTES: u64 = 32 << 20;

/// File of a route: its name as far as letters and digits go, and a digest that tells it from all others.
fn path(folder: &Path, route: &str) -> PathBuf {
    let plain: String = route.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    let digest = hex::encode(Sha256::digest(route.as_bytes()).get(..6).unwrap_or_default());
    folder.join(format!("{plain}-{digest}.json"))
}

/// Writes the state of a route.
///
/// # Errors
/// The folder cannot be made, or the file not be written.
pub(super) fn write(folder: &Path, route: &str, state: &RouteState) -> io::Result<()> {
    whole_file::replace(&path(folder, route), &serde_json::to_vec(state)?)
}

/// Reads the state of a route; `None` where none was written.
///
/// # Errors
/// The file cannot be read, or its content is not of the form.
pub(super) fn read(folder: &Path, route: &str) -> io::Result<Option<RouteState>> {
    let path = path(folder, route);
    let length = match fs::metadata(&path) {
        Ok(facts) => facts.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()));
    if length > MOST_BYTES {
        return Err(wrong("the file is too long"));
    }
    let state: RouteState = serde_json::from_slice(&fs::read(&path)?).map_err(|e| wrong(&e.to_string()))?;
    if state.is_consistent() { Ok(Some(state)) } else { Err(wrong("the content contradicts itself")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_as_it_was_written_and_a_spoiled_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("a/b");
        assert!(read(&folder, "r").unwrap().is_none());
        write(&folder, "r", &RouteState::default()).unwrap();
        assert_eq!(read(&folder, "r").unwrap(), Some(RouteState::default()));
        assert!(read(&folder, "../r").unwrap().is_none() && path(&folder, "../r") != path(&folder, "r"));
        fs::write(path(&folder, "r"), b"{").unwrap();
        assert!(read(&folder, "r").is_err());
    }
}
