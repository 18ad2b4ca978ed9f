//! Files of users as `htpasswd -B` writes them: a name and a hash by bcrypt on each line.

use std::collections::HashMap;

use bcrypt::HashParts;

/// Most users of a file: more belong into an identity provider.
const MAX_USERS: usize = 10_000;
/// Longest name, in bytes.
const MAX_NAME: usize = 255;
/// Bytes of a hash by bcrypt.
const HASH: usize = 60;
/// Costs of bcrypt that are taken. One more doubles the time: 4 is the least that there is, and 14 takes about a second.
const COSTS: std::ops::RangeInclusive<u32> = 4..=14;

/// Users with their hashes.
pub(super) struct Users {
    by_name: HashMap<String, Box<str>>,
    /// Hashes in the order of the file, for names that are not there.
    all: Vec<Box<str>>,
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Users({})", self.all.len())
    }
}

impl Users {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The first mistake with its line, and nothing of a hash.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let mut users = Self { by_name: HashMap::new(), all: Vec::new() };
        for (n, line) in text.lines().enumerate() {
            let (number, line) = (n + 1, line.trim());
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: String| format!("line {number}: {why}");
            let (name, hash) = line
                .split_once(':')
                .ok_or_else(|| wrong("found no colon; expected `NAME:HASH`, as `htpasswd -B` writes it".to_owned()))?;
            if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
                return Err(wrong(format!("expected a name of 1 to {MAX_NAME} bytes without control characters")));
            }
            checked(hash).map_err(wrong)?;
            if users.by_name.insert(name.to_owned(), hash.into()).is_some() {
                return Err(wrong("the name stands on an earlier line already; expected one line for each".to_owned()));
            }
            users.all.push(hash.into());
            if users.all.len() > MAX_USERS {
                return Err(wrong(format!("expected at most {MAX_USERS} users")));
            }
        }
        if users.all.is_empty() { Err("the file has no user; expected one at least".to_owned()) } else { Ok(users) }
    }

    /// Hash of a user, and true; for a name that is not there the hash of another user, which `chosen` picks, and false. The
    /// same work is done for both, so that no time tells which names there are.
    pub(super) fn hash(&self, name: &str, chosen: u64) -> (&str, bool) {
        let other = usize::try_from(chosen).unwrap_or(usize::MAX) % self.all.len().max(1);
        match self.by_name.get(name) {
            Some(hash) => (hash, true),
            None => (self.all.get(other).map_or("", |hash| hash), false),
        }
    }
}

/// Checks a hash; the error says what it is, and not what it holds.
fn checked(hash: &str) -> Result<(), String> {
    let kind = match hash {
        hash if ["$2y$", "$2b$", "$2a$"].iter().any(|prefix| hash.starts_with(prefix)) => {
            let parts = hash.parse::<HashParts>().ok().filter(|_| hash.len() == HASH);
            let parts = parts.ok_or("found a hash by bcrypt that is cut or changed; expected 60 characters")?;
            if COSTS.contains(&parts.get_cost()) {
                return Ok(());
            }
            return Err(format!(
                "found bcrypt of cost {}; expected {} to {}, such as `htpasswd -B -C 10` writes",
                parts.get_cost(),
                COSTS.start(),
                COSTS.end()
            ));
        }
        hash if hash.starts_with("$apr1$") || hash.starts_with("$1$") => "a hash by MD5",
        hash if hash.starts_with("{SHA}") => "a hash by SHA-1 without salt",
        hash if hash.starts_with("$5$") || hash.starts_with("$6$") => "a hash by SHA-256 or SHA-512",
        _ => "a password as it is, or a hash of an unknown kind",
    };
    Err(format!("found {kind}; expected bcrypt (`$2y$`), as `htpasswd -B` writes it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_those_of_htpasswd() {
        let hash = bcrypt::hash("test", 4).unwrap();
        let other = bcrypt::hash("test", 5).unwrap().replace("$2b$", "$2y$");
        let users = Users::read(&format!("# comment\n\nann:{hash}\r\nbob:{other}\n")).unwrap();
        assert_eq!(users.hash("ann", 1), (hash.as_str(), true));
        assert_eq!(users.hash("bob", 0), (other.as_str(), true));
        assert_eq!(users.hash("eve", 0), (hash.as_str(), false));
        assert_eq!(users.hash("eve", 3), (other.as_str(), false));
    }

    #[test]
    fn mistakes_are_told_with_their_line_and_without_a_hash() {
        let good = bcrypt::hash("test", 4).unwrap();
        for (file, message) in [
            (String::new(), "the file has no user"),
            ("# none\n".to_owned(), "the file has no user"),
            ("ann".to_owned(), "line 1: found no colon"),
            (format!("\n:{good}"), "line 2: expected a name"),
            (format!("a:{good}\na:{good}"), "line 2: the name stands on an earlier line"),
            ("a:hunter2".to_owned(), "line 1: found a password as it is"),
            ("a:$apr1$abc$hunter2".to_owned(), "line 1: found a hash by MD5"),
            ("a:{SHA}hunter2".to_owned(), "line 1: found a hash by SHA-1"),
            ("a:$6$abc$hunter2".to_owned(), "line 1: found a hash by SHA-256 or SHA-512"),
            ("a:$2y$10$hunter2".to_owned(), "line 1: found a hash by bcrypt that is cut"),
            (format!("a:{good}x"), "line 1: found a hash by bcrypt that is cut"),
            (format!("a:{}", good.replace("$04$", "$15$")), "line 1: found bcrypt of cost 15; expected 4 to 14"),
        ] {
            let found = Users::read(&file).unwrap_err();
            assert!(found.starts_with(message) && !found.contains("hunter2"), "{found}");
        }
    }
}
