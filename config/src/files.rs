//! Reads of the files that a configuration names, bounded in size and never from a device or pipe.

use std::ffi::OsStr;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::{Component, Path, PathBuf};

/// Most paths that a pattern matches: a pattern over a folder of other things must not take all memory.
const MAX_MATCHES: usize = 10_000;
/// Longest file that is read whole, in bytes: three hundred thousand consumers, each with a key and limits.
const MAX_FILE: u64 = 64 << 20;

/// Reads a regular file of at most 64 MiB. A directory, a device or a pipe is an error, not a wait.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "not a regular file; expected one of at most 64 MiB"));
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

/// Reads a regular file of at most 64 MiB as UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    utf8(read_bytes(path)?)
}

/// Reads at most 64 MiB of UTF-8 from an input that is no file, such as standard input.
pub fn read_input(input: impl Read) -> Result<String> {
    utf8(read_bounded(input)?)
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        Error::new(ErrorKind::InvalidData, format!("not UTF-8 from byte {valid} on: save it as UTF-8"))
    })
}

/// True for a path that is a pattern: `*` in it stands for any characters of one name, `?` for one. A file whose name has
/// such a character is that file.
pub fn is_pattern(path: &Path) -> bool {
    path.components().any(|part| is_wild(part.as_os_str())) && !path.is_file()
}

/// Files that a pattern matches, sorted. Names that begin with a dot match only a pattern that does: editors and Kubernetes
/// keep their own files under such names.
pub fn matching(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.components() {
        let name = part.as_os_str();
        if let (Component::Normal(_), true, Some(wanted)) = (part, is_wild(name), name.to_str()) {
            found = found.iter().flat_map(|folder| entries(folder, wanted)).take(MAX_MATCHES).collect();
        } else {
            found.iter_mut().for_each(|path| path.push(name));
        }
    }
    found.retain(|path| path.is_file());
    found.sort_unstable();
    found
}

fn is_wild(name: &OsStr) -> bool {
    name.as_encoded_bytes().iter().any(|byte| matches!(byte, b'*' | b'?'))
}

/// Entries of a folder whose names match.
fn entries(folder: &Path, wanted: &str) -> Vec<PathBuf> {
    let is_wanted = |name: &str| wanted.starts_with('.') == name.starts_with('.') && matches(wanted, name);
    let Ok(all) = std::fs::read_dir(folder) else { return Vec::new() };
    let all = all.filter_map(|entry| Some(entry.ok()?.file_name()));
    all.filter(|name| name.to_str().is_some_and(is_wanted)).map(|name| folder.join(name)).take(MAX_MATCHES).collect()
}

/// True if a name matches a pattern. Goes back to the last `*` only, so that no pattern takes more than the product of both
/// lengths.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut next, mut star) = (0, 0, None);
    while let Some(c) = name.get(at) {
        match pattern.get(next) {
            Some('*') => {
                star = Some((next, at));
                next += 1;
            }
            Some(wanted) if *wanted == '?' || wanted == c => {
                at += 1;
                next += 1;
            }
            _ => {
                let Some((from, taken)) = star else { return false };
                star = Some((from, taken + 1));
                (at, next) = (taken + 1, from + 1);
            }
        }
    }
    pattern.get(next..).is_some_and(|rest| rest.iter().all(|c| *c == '*'))
}

fn too_large() -> Error {
    Error::new(ErrorKind::FileTooLarge, "larger than 64 MiB; expected at most that")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_names_in_one_folder() {
        for (pattern, name, is) in [
            ("*.yaml", "a.yaml", true),
            ("*.yaml", ".yaml", true),
            ("*.yaml", "a.yaml~", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("?.yaml", "a.yaml", true),
            ("?.yaml", "ab.yaml", false),
            ("*", "", true),
            ("ä?", "äö", true),
            ("**a", "bba", true),
            ("*a*a*a*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(matches(pattern, name), is, "{pattern} {name}");
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("x/d.yaml")).unwrap();
        std::fs::create_dir_all(at("y")).unwrap();
        for name in ["b.yaml", "a.yaml", ".hidden.yaml", "x/one.yaml", "y/one.yaml", "y/star*.yaml"] {
            std::fs::write(at(name), "").unwrap();
        }
        let names = |pattern: &str| -> Vec<String> {
            let found = matching(&at(pattern));
            found.iter().map(|p| p.strip_prefix(folder.path()).unwrap().display().to_string()).collect()
        };
        assert_eq!(names("*.yaml"), ["a.yaml", "b.yaml"]);
        assert_eq!(names(".*.yaml"), [".hidden.yaml"]);
        assert_eq!(names("*/one.yaml"), ["x/one.yaml", "y/one.yaml"]);
        assert_eq!(names("x/*"), ["x/one.yaml"], "a folder is no file");
        assert!(names("none/*").is_empty());
        assert!(is_pattern(&at("*.yaml")) && !is_pattern(&at("a.yaml")) && !is_pattern(&at("y/star*.yaml")));
    }

    #[test]
    fn what_is_no_file_of_a_fair_size_is_refused_and_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("good"), "a: 1").unwrap();
        assert_eq!(read_text(&at("good")).unwrap(), "a: 1");
        std::fs::File::create(at("most")).unwrap().set_len(MAX_FILE).unwrap();
        assert_eq!(read_bytes(&at("most")).unwrap().len(), 64 << 20);
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
