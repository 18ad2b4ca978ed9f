//! Files with the sketches of routes, one for each, which survive a restart. Written whole beside the old file and then put in its
//! place, so that a crash leaves the one or the other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::state::RouteState;
use crate::whole_file;

/// Longest file that is read.
const MOST_BYTES: u64 = 32 << 20;

/// End of the name of a file with sketches, with the version of its form and of the hashes in it. A file of another version is left as
/// it is.
const SKETCHES: &str = "2.json";

/// File of a route: its name as far as letters and digits go, and a digest that tells it from all others.
fn path(folder: &Path, route: &str, end: &str) -> PathBuf {
    let plain: String = route.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    let digest = hex::encode(Sha256::digest(route.as_bytes()).get(..6).unwrap_or_default());
    folder.join(format!("{plain}-{digest}.{end}"))
}

/// Writes the state of a route.
///
/// # Errors
/// The folder cannot be made, or the file not be written.
pub(super) fn write(folder: &Path, route: &str, state: &RouteState) -> io::Result<()> {
    write_as(folder, route, SKETCHES, state)
}

/// Writes what is known of a route to its file with this end.
///
/// # Errors
/// The folder cannot be made, or the file not be written.
pub(super) fn write_as(folder: &Path, route: &str, end: &str, state: &impl Serialize) -> io::Result<()> {
    whole_file::replace(&path(folder, route, end), &serde_json::to_vec(state)?)
}

fn wrong(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()))
}

/// Reads the state of a route; `None` where none was written.
///
/// # Errors
/// The file cannot be read, or its content is not of the form.
pub(super) fn read(folder: &Path, route: &str) -> io::Result<Option<RouteState>> {
    let state: Option<RouteState> = read_as(folder, route, SKETCHES)?;
    match state {
        Some(state) if !state.is_consistent() => {
            Err(wrong(&path(folder, route, SKETCHES), "the content contradicts itself"))
        }
        state => Ok(state),
    }
}

/// Reads what was written of a route to its file with this end; `None` where nothing was.
///
/// # Errors
/// The file cannot be read, or its content is not of the form.
pub(super) fn read_as<T: DeserializeOwned>(folder: &Path, route: &str, end: &str) -> io::Result<Option<T>> {
    let path = path(folder, route, end);
    let length = match fs::metadata(&path) {
        Ok(facts) => facts.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    if length > MOST_BYTES {
        return Err(wrong(&path, "the file is too long"));
    }
    serde_json::from_slice(&fs::read(&path)?).map(Some).map_err(|e| wrong(&path, &e.to_string()))
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
        assert!(
            read(&folder, "../r").unwrap().is_none() && path(&folder, "../r", SKETCHES) != path(&folder, "r", SKETCHES)
        );
        fs::write(path(&folder, "r", SKETCHES), b"{").unwrap();
        assert!(read(&folder, "r").is_err());
    }
}
