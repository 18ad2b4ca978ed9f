//! Files that are replaced as a whole: a crash leaves the old content or the new. Only the gateway's user may read them.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Replaces a file: writes a new one that no other writer uses, in this or another gateway, and renames it. Its folder is made
/// where it is not there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let new = path.with_extension(format!("{:016x}.new", rand::random::<u64>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let moved = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&new, path));
    if moved.is_err() {
        // The fault of the write is the one to tell.
        let _ = std::fs::remove_file(&new);
    }
    moved?;
    // Makes the name as well outlive a loss of power.
    File::open(folder)?.sync_all()
}
