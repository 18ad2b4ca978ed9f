//! Reads of the files that a configuration names, bounded in size and never from a device or pipe.

use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// Longest file that is read whole, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Reads a regular file of at most 4 MiB. A directory, a device or a pipe is an error, not a wait.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "not a regular file; expected one of at most 4 MiB"));
    }
    if metadata.len() > MAX_FILE {
        return Err(too_large());
    }
    // A file may grow while it is read.
    read_bounded(std::fs::File::open(path)?)
}

fn read_bounded(input: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length <= MAX_FILE) { Ok(bytes) } else { Err(too_large()) }
}

/// Reads a regular file of at most 4 MiB as UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    utf8(read_bytes(path)?)
}

/// Reads at most 4 MiB of UTF-8 from an input that is no file, such as standard input.
pub fn read_input(input: impl Read) -> Result<String> {
    utf8(read_bounded(input)?)
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        Error::new(ErrorKind::InvalidData, format!("not UTF-8 from byte {valid} on: save it as UTF-8"))
    })
}

fn too_large() -> Error {
    Error::new(ErrorKind::FileTooLarge, "larger than 4 MiB; expected at most that")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_of_a_fair_size_is_refused_and_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("good"), "a: 1").unwrap();
        assert_eq!(read_text(&at("good")).unwrap(), "a: 1");
        std::fs::File::create(at("most")).unwrap().set_len(MAX_FILE).unwrap();
        assert_eq!(read_bytes(&at("most")).unwrap().len(), 4 << 20);
        std::fs::File::create(at("large")).unwrap().set_len(MAX_FILE + 1).unwrap();
        assert_eq!(read_bytes(&at("large")).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read_bytes(&at("none")).unwrap_err().kind(), ErrorKind::NotFound);
        std::fs::write(at("binary"), b"ab\xff").unwrap();
        assert!(read_text(&at("binary")).unwrap_err().to_string().contains("byte 2"));
        for endless in [folder.path(), Path::new("/dev/zero")] {
            assert_eq!(read_bytes(endless).unwrap_err().kind(), ErrorKind::InvalidInput, "{}", endless.display());
        }
    }
}
