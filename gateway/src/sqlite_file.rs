//! SQLite files judged without making or changing anything: for `spillway check`, and for a configuration that may yet be
//! refused.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

/// Opens a file for reading if this process may also write it. The file is opened as immutable, because SQLite makes `-wal`
/// and `-shm` beside any other. The `-wal` of a running gateway is not read.
pub(crate) fn open_unchanged(path: &Path) -> rusqlite::Result<Connection> {
    let denied = |e: std::io::Error| {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        rusqlite::Error::SqliteFailure(code, Some(e.to_string()))
    };
    std::fs::OpenOptions::new().read(true).append(true).open(path).map_err(denied)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(immutable_uri(path), flags)
}

/// Checks that a file which is not there could be made; the error says why not.
pub(crate) fn judge_absent(path: &Path) -> Result<(), String> {
    let Some(found) = path.ancestors().skip(1).find(|folder| folder.exists()) else { return Ok(()) };
    if !found.is_dir() {
        return Err(format!("{} is not a folder", found.display()));
    }
    if !may_write(found) {
        return Err(format!("nothing may be written in {}", found.display()));
    }
    Ok(())
}

/// True if this process may make files in a folder.
fn may_write(folder: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(folder.as_os_str().as_bytes()) else { return false };
    // SAFETY: the call gets a pointer to a string with its end that lives until it returns.
    unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) == 0 }
}

/// URI under which SQLite reads a file as immutable (<https://sqlite.org/uri.html>): without locks, and without files
/// beside it.
fn immutable_uri(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut uri = if path.is_absolute() { "file://".to_owned() } else { "file:".to_owned() };
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri + "?immutable=1"
}
