//! Examples: texts of some requests and their answers, kept where the configuration says so, in an SQLite file that only the
//! gateway's user may read. The task of the room owns the file; what is deleted, or too old, is overwritten in it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, params};
use serde::Serialize;

/// Name of the file.
const FILE: &str = "examples.db";
/// Version of the table.
const VERSION: i64 = 1;
/// Most examples that are shown at once, the newest first.
const SHOWN: u32 = 100;
/// Longest wait for another program that reads the file.
const PATIENCE: Duration = Duration::from_secs(1);

const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS examples (
        id INTEGER PRIMARY KEY AUTOINCREMENT, route TEXT NOT NULL, target TEXT NOT NULL, at REAL NOT NULL,
        prompt TEXT NOT NULL, answer TEXT NOT NULL, finish TEXT, bytes INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS examples_of ON examples (route, id);";

/// Rules of a route whose texts are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Keeping {
    /// Share of the requests that are looked at.
    pub share: f64,
    /// True if what looks like personal data or a credential is replaced.
    pub redacts: bool,
    /// Age at which an example is deleted.
    pub retention: Duration,
    /// Most bytes of the texts of the route.
    pub max_bytes: u64,
}

/// Texts of a request and its answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Example {
    /// Number, in the order of time.
    pub id: i64,
    /// Name of the route.
    pub route: String,
    /// Name of the target that has answered.
    pub target: String,
    /// End of the request, in Unix seconds.
    pub at: f64,
    /// Last text of the user, or its beginning.
    pub prompt: String,
    /// Text of the answer, or its beginning.
    pub answer: String,
    /// Finish reason of the answer.
    pub finish: Option<String>,
}

/// Fault of the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExamplesError {
    /// The folder or file cannot be made.
    #[error("{0}")]
    File(#[from] io::Error),
    /// SQLite refuses.
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file is of a later version.
    #[error(
        "the file is of version {0}, and this program writes version {VERSION}: use the later program, or delete the file"
    )]
    Version(i64),
}

/// Store of examples.
pub(super) struct Examples {
    path: PathBuf,
    file: Connection,
}

impl Examples {
    /// Opens the store in a folder, and makes it where it is not there.
    pub(super) fn open(folder: &Path) -> Result<Self, ExamplesError> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join(FILE);
        // SQLite gives its journal the permissions of the file.
        OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
        let file = Connection::open(&path)?;
        file.busy_timeout(PATIENCE)?;
        // Deleted texts are overwritten with zeros.
        file.pragma_update(None, "secure_delete", true)?;
        let version: i64 = file.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version > VERSION {
            return Err(ExamplesError::Version(version));
        }
        file.execute_batch(TABLE)?;
        file.pragma_update(None, "user_version", VERSION)?;
        Ok(Self { path, file })
    }

    /// True if a folder has a store.
    pub(super) fn is_in(folder: &Path) -> bool {
        folder.join(FILE).exists()
    }

    /// Folder of the store.
    pub(super) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// Keeps an example; the oldest of its route give way where there are too many bytes.
    pub(super) fn add(&mut self, example: &Example, keeping: &Keeping) -> Result<(), ExamplesError> {
        let bytes = example.prompt.len() + example.answer.len();
        let Example { route, target, at, prompt, answer, finish, .. } = example;
        let written = self.file.transaction()?;
        written.execute(
            "INSERT INTO examples (route, target, at, prompt, answer, finish, bytes) VALUES (?, ?, ?, ?, ?, ?, ?)",
            params![route, target, at, prompt, answer, finish, i64::try_from(bytes).unwrap_or(i64::MAX)],
        )?;
        written.execute(
            "DELETE FROM examples WHERE route = ?1 AND id <= (SELECT max(id) FROM (SELECT id, sum(bytes) OVER \
             (ORDER BY id DESC) AS newer FROM examples WHERE route = ?1) WHERE newer > ?2)",
            params![route, i64::try_from(keeping.max_bytes).unwrap_or(i64::MAX)],
        )?;
        Ok(written.commit()?)
    }

    /// Deletes the examples that are older than their route's rules allow, and those of routes without rules.
    pub(super) fn expire(&mut self, now: f64, rules: &[(&str, Keeping)]) -> Result<usize, ExamplesError> {
        let known: Vec<String> = {
            let mut asked = self.file.prepare("SELECT DISTINCT route FROM examples")?;
            let rows = asked.query_map([], |row| row.get(0))?;
            rows.collect::<Result<_, _>>()?
        };
        let mut deleted = 0;
        for route in known {
            let rule = rules.iter().find(|(name, _)| *name == route).map(|(_, rule)| rule);
            let before = rule.map_or(f64::INFINITY, |rule| now - rule.retention.as_secs_f64());
            deleted += self.file.execute("DELETE FROM examples WHERE route = ? AND at < ?", params![route, before])?;
        }
        Ok(deleted)
    }

    /// Newest examples, of one route or of all.
    pub(super) fn newest(&self, route: Option<&str>) -> Result<Vec<Example>, ExamplesError> {
        let mut asked = self.file.prepare(
            "SELECT id, route, target, at, prompt, answer, finish FROM examples WHERE ?1 IS NULL OR route = ?1 \
             ORDER BY id DESC LIMIT ?2",
        )?;
        let rows = asked.query_map(params![route, SHOWN], |row| {
            Ok(Example {
                id: row.get(0)?,
                route: row.get(1)?,
                target: row.get(2)?,
                at: row.get(3)?,
                prompt: row.get(4)?,
                answer: row.get(5)?,
                finish: row.get(6)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Deletes the examples of one route or of all. Returns their number.
    pub(super) fn delete(&mut self, route: Option<&str>) -> Result<usize, ExamplesError> {
        Ok(self.file.execute("DELETE FROM examples WHERE ?1 IS NULL OR route = ?1", params![route])?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn example(route: &str, at: f64, prompt: &str) -> Example {
        let [route, prompt] = [route, prompt].map(str::to_owned);
        Example { id: 0, route, target: "t".into(), at, prompt, answer: "a".repeat(90), finish: None }
    }

    fn prompts(store: &Examples, route: Option<&str>) -> Vec<String> {
        store.newest(route).unwrap().into_iter().map(|one| one.prompt).collect()
    }

    #[test]
    fn the_oldest_give_way_and_nothing_outlives_its_rules() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("state/quality");
        assert!(!Examples::is_in(&folder));
        let mut store = Examples::open(&folder).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&store.path), mode(&folder)), (0o600, 0o700));
        let rule = Keeping { share: 1.0, redacts: true, retention: Duration::from_secs(100), max_bytes: 250 };
        for n in 0..5 {
            store.add(&example("a", f64::from(n), &format!("prompt{n:04}")), &rule).unwrap();
        }
        store.add(&example("b", 10.0, "other"), &rule).unwrap();
        assert_eq!(prompts(&store, Some("a")), ["prompt0004", "prompt0003"], "100 bytes each");
        assert_eq!(prompts(&store, None), ["other", "prompt0004", "prompt0003"]);
        assert_eq!(store.expire(103.5, &[("a", rule), ("b", rule)]).unwrap(), 1);
        assert_eq!(prompts(&store, None), ["other", "prompt0004"]);
        assert_eq!(store.expire(0.0, &[("a", rule)]).unwrap(), 1, "nobody keeps the texts of b");
        drop(store);
        let mut store = Examples::open(&folder).unwrap();
        assert_eq!(prompts(&store, None), ["prompt0004"], "they outlive a restart");
        assert_eq!(store.delete(Some("b")).unwrap() + store.delete(None).unwrap(), 1);
        let bytes = std::fs::read(&store.path).unwrap();
        assert!(!bytes.windows(9).any(|part| part == b"prompt000"), "a deleted text is in the file");
    }

    #[test]
    fn a_text_that_alone_is_too_long_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Examples::open(folder.path()).unwrap();
        let rule = Keeping { share: 1.0, redacts: true, retention: Duration::from_secs(100), max_bytes: 50 };
        store.add(&example("a", 1.0, "x"), &rule).unwrap();
        assert!(prompts(&store, None).is_empty());
        store.file.pragma_update(None, "user_version", 9).unwrap();
        assert!(matches!(Examples::open(folder.path()), Err(ExamplesError::Version(9))));
    }
}
