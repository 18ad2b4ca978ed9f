//! Paths by a regular expression, for `urlRewrite`: the expression, its replacement, and the judgement of the result. A result
//! is read as the path of a request is: one that a server could read in two ways goes to none.

use http::StatusCode;
use regex::{Captures, Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::path::PathError;
use spillway_config::spelling::{self, Spelling};
use spillway_filter::{ErrorKind, FieldError, Refusal};

/// Longest expression and longest replacement, in bytes: longer ones are written by mistake.
const MAX_PATTERN: usize = 1 << 10;
/// Most memory of a compiled expression, in bytes, as for expressions of routes.
const MAX_COMPILED: usize = 1 << 20;
/// Longest path for a server, in bytes: many servers read no longer line of a request, and groups may repeat.
const MAX_PATH: usize = 8 << 10;

/// A path by a regular expression.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct WrittenPattern {
    /// Regular expression (RE2), looked for in the path without its query; `^` and `$` hold it to the ends. Its first match is
    /// replaced. A path without a match stays.
    regex: String,
    /// Text in place of the match: `\1` to `\9` are groups of the expression, `\0` is the match, `\\` a backslash.
    replacement: String,
}

/// Part of a replacement.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Group(usize),
}

/// Compiled expression with its replacement.
#[derive(Debug)]
pub(crate) struct PathPattern {
    regex: Regex,
    parts: Box<[Part]>,
    /// Second readings that the replacement itself has: the file asks for them.
    own: Spelling,
}

/// Reason for which a path cannot be rewritten for a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RewriteError {
    #[error("{0}")]
    Path(#[from] PathError),
    #[error("the path does not begin with a slash")]
    NoSlash,
    #[error("the path has a second reading, such as a double encoding or a dot at the end of a name")]
    Ambiguous,
    #[error("the path is longer than {MAX_PATH} bytes")]
    TooLong,
}

impl RewriteError {
    /// Refusal of the request.
    pub(crate) fn refusal(self) -> Refusal {
        if self == Self::TooLong {
            let message = format!("the path of the request is too long for the server: {self}");
            return Refusal::new(StatusCode::URI_TOO_LONG, ErrorKind::InvalidRequest, "path_too_long", message);
        }
        let message =
            format!("the path of the request would be another one for the server, which it may not get: {self}");
        Refusal::invalid("ambiguous_path", message)
    }
}

/// Parts of a replacement; groups are those of an expression with `groups` of them, the match included.
fn parts(text: &str, groups: usize) -> Result<Vec<Part>, String> {
    let (mut parts, mut literal) = (Vec::new(), String::new());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            literal.push(letter);
            continue;
        }
        match letters.next().map(|next| (next, next.to_digit(10))) {
            Some(('\\', _)) => literal.push('\\'),
            Some((digit, Some(number))) => {
                let number = number as usize;
                if number >= groups {
                    return Err(format!("found `\\{digit}`; expected a group of `regex`, which has {}", groups - 1));
                }
                if !literal.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut literal).into()));
                }
                parts.push(Part::Group(number));
            }
            _ => return Err("found a backslash alone; expected `\\0` to `\\9`, or `\\\\` for a backslash".to_owned()),
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Text(literal.into()));
    }
    Ok(parts)
}

impl PathPattern {
    /// Compiles what the file has.
    ///
    /// # Errors
    ///
    /// The mistakes, with their keys.
    pub(crate) fn new(written: &WrittenPattern) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        for (key, text) in [("regex", &written.regex), ("replacement", &written.replacement)] {
            if text.len() > MAX_PATTERN {
                errors
                    .push(FieldError::at([key], format!("found {} bytes; expected at most {MAX_PATTERN}", text.len())));
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let regex = RegexBuilder::new(&written.regex).size_limit(MAX_COMPILED).build().map_err(|e| {
            let why = e.to_string().lines().last().unwrap_or_default().to_owned();
            vec![FieldError::at(["regex"], format!("not a regular expression ({why}); expected one for the path"))]
        })?;
        let wrong = |why: String| vec![FieldError::at(["replacement"], why)];
        let parts = parts(&written.replacement, regex.captures_len()).map_err(wrong)?;
        if written.replacement.contains(['?', '#']) {
            return Err(wrong(
                "found `?` or `#`; expected a part of a path: the query of the request stays".to_owned(),
            ));
        }
        // A letter stands for each group: what is wrong with it is wrong with the text around it.
        let letter = |part: &Part| match part {
            Part::Text(text) => text.to_string(),
            Part::Group(_) => "x".to_owned(),
        };
        let sample = format!("/{}", parts.iter().map(letter).collect::<String>().trim_start_matches('/'));
        let (_, own) = spelling::read(&sample).map_err(|e| wrong(format!("{e}; expected a part of a path")))?;
        if own.is_hidden() {
            let why = "found a spelling that no server may get (a control character, a second encoding, a blank at an end \
                       of a name); expected a part of a path";
            return Err(wrong(why.to_owned()));
        }
        Ok(Self { regex, parts: parts.into(), own })
    }

    /// Path for the server; `None` where nothing matches.
    ///
    /// # Errors
    ///
    /// Mistake of the path that would come out.
    pub(crate) fn apply(&self, path: &str) -> Result<Option<String>, RewriteError> {
        // `OPTIONS *` has no path.
        if path == "*" {
            return Ok(None);
        }
        let Some(found) = self.regex.captures(path) else { return Ok(None) };
        let whole = self.replaced(path, &found)?;
        if !whole.starts_with('/') {
            return Err(RewriteError::NoSlash);
        }
        let (normal, spelling) = spelling::read(&whole)?;
        let (_, before) = spelling::read(path)?;
        // Rules of the route have judged the readings that the caller's path has, and no others.
        if spelling.is_hidden() || !spelling.is_within(before.and(self.own)) {
            return Err(RewriteError::Ambiguous);
        }
        let normal = normal.into_owned();
        if normal.len() > MAX_PATH { Err(RewriteError::TooLong) } else { Ok(Some(normal)) }
    }

    fn replaced(&self, path: &str, found: &Captures<'_>) -> Result<String, RewriteError> {
        let (start, end) = found.get(0).map_or((0, 0), |whole| (whole.start(), whole.end()));
        let mut out = path.get(..start).unwrap_or_default().to_owned();
        for part in &self.parts {
            out.push_str(match part {
                Part::Text(text) => text,
                Part::Group(number) => found.get(*number).map_or("", |group| group.as_str()),
            });
            if out.len() > MAX_PATH {
                return Err(RewriteError::TooLong);
            }
        }
        out.push_str(path.get(end..).unwrap_or_default());
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(regex: &str, replacement: &str) -> Result<PathPattern, Vec<FieldError>> {
        PathPattern::new(&WrittenPattern { regex: regex.to_owned(), replacement: replacement.to_owned() })
    }

    #[test]
    fn the_first_match_is_replaced() {
        for (regex, replacement, path, expected) in [
            ("^/users/([^/]+)/chat$", r"/v1/chat/\1", "/users/ann/chat", Some("/v1/chat/ann")),
            ("^/users/([^/]+)/chat$", r"/v1/chat/\1", "/users/ann/chat/x", None),
            ("/v[12]/", "/v3/", "/api/v1/v2/x", Some("/api/v3/v2/x")),
            ("^", "/base", "/x", Some("/base/x")),
            ("^/(a)?(b)?$", r"/\1-\2", "/b", Some("/-b")),
            ("^/(?i:OLD)(?<rest>/.*)?$", r"/new\1", "/old/x", Some("/new/x")),
            ("^/x(.*)$", r"/y\1\1", "/x1", Some("/y11")),
            (".*", "/all", "*", None),
            // As the path of a request, it is written in one form.
            ("^/a", "/b/", "/a/x", Some("/b/x")),
            ("^/a", "/%7Ebob", "/a/x", Some("/~bob/x")),
            // The file asks for an encoded slash; a caller may have one of its own.
            ("^/([^/]+)/([^/]+)/raw$", r"/projects/\1%2F\2", "/org/repo/raw", Some("/projects/org%2Frepo")),
            ("^/a/", "/b/", "/a/org%2fname", Some("/b/org%2fname")),
            ("^/a/", "/b/", "/a/c%20d;v=1", Some("/b/c%20d;v=1")),
        ] {
            let found = pattern(regex, replacement).unwrap().apply(path);
            assert_eq!(found, Ok(expected.map(str::to_owned)), "{regex} {path}");
        }
    }

    #[test]
    fn no_path_comes_out_that_a_request_may_not_have() {
        let ambiguous = Err(RewriteError::Ambiguous);
        for (regex, replacement, path, expected) in [
            ("^/(.*)-", r"/\1.", "/a/-/x", Err(RewriteError::Path(PathError::Dots))),
            ("^/(.*)-(.*)$", r"/\1\2", "/a/.-./x", Err(RewriteError::Path(PathError::Dots))),
            ("^/(.*)-(.*)$", r"/\1\2", "/%25-41", ambiguous.clone()),
            ("^/(.*)-(.*)$", r"/\1\2", "/x/..-;/y", ambiguous.clone()),
            ("^/(.*)-.*$", r"/\1", "/a.-x", ambiguous.clone()),
            ("^/caf%C3(.*)$", r"/\1", "/caf%C3%A9", ambiguous.clone()),
            ("^/.*/(.*)$", r"\1", "/a/b", Err(RewriteError::NoSlash)),
            ("^/(.*)0(.*)$", r"/\1\2", "/%20", Err(RewriteError::Path(PathError::Percent))),
        ] {
            assert_eq!(pattern(regex, replacement).unwrap().apply(path), expected, "{regex} {path}");
        }
        let repeated = pattern("^(.*)$", r"\0\0\0\0").unwrap();
        assert_eq!(repeated.apply(&format!("/{}", "x".repeat(3000))), Err(RewriteError::TooLong));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (regex, replacement, key, part) in [
            ("(", "/", "regex", "not a regular expression"),
            ("a{1000}{1000}", "/", "regex", "size limit"),
            ("^/(a)", r"/\2", "replacement", r"found `\2`; expected a group of `regex`, which has 1"),
            ("^/(a)", r"/\x", "replacement", "a backslash alone"),
            ("^/(a)", "/\\", "replacement", "a backslash alone"),
            ("^/a", "/b?c=d", "replacement", "the query of the request stays"),
            ("-", ".", "replacement", "segment `.` or `..`"),
            ("^/a", "/../b", "replacement", "segment `.` or `..`"),
            ("^/a", "/b%", "replacement", "two hexadecimal digits"),
            ("^/a", r"/b\\c", "replacement", "backslash"),
            ("^/a", "/b%2541", "replacement", "a second encoding"),
        ] {
            let errors = pattern(regex, replacement).unwrap_err();
            assert_eq!((errors.len(), errors[0].path.as_slice()), (1, &[key.to_owned()][..]), "{regex} {replacement}");
            assert!(errors[0].message.contains(part), "{}", errors[0].message);
        }
        assert!(pattern(&"a".repeat(MAX_PATTERN + 1), &"a".repeat(MAX_PATTERN + 1)).is_err_and(|e| e.len() == 2));
    }
}
