//! Values of the environment in a configuration (`${NAME}`), and their removal from texts. Each value is kept with its
//! place, and only to find it in texts.
//!
//! Shown configurations and messages (the admin address, log lines, `spillway check`) have `${NAME}` as in the file. A
//! value is recognised by its place, not by the name of its key.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value as Json;

use crate::literal::is_credential_header;
use crate::validate::{Segment, text};

/// Shortest value that is replaced as a whole word of a message, bytes. A shorter one is replaced between backticks only:
/// a message would not be read any more without each `a`.
const LEAST_WORD: usize = 4;
/// Shortest value that is replaced inside words too, bytes: `LOG=info` must not cut `information`, and no common word
/// contains a value of this length.
const LEAST_ANYWHERE: usize = 8;
/// Shortest part of a value that is masked in a message about that value, bytes: what a parser quotes of it.
const LEAST_PART: usize = 8;
/// Longest message in which parts of values are looked for, bytes; a longer one is not shown.
const LONGEST_MESSAGE: usize = 16 << 10;
/// Replacement of a value that is not shown and has no reference in the file.
const WITHHELD: &str = "(withheld)";
/// Characters that end the host of a URL in a message.
const ENDS_OF_HOSTS: [char; 7] = ['/', '?', '#', ' ', '`', '"', '\''];
/// Characters that end a word with a URL in it.
const ENDS_OF_WORDS: [char; 5] = [' ', '`', '"', '\'', '\n'];
/// Characters that end a query.
const ENDS_OF_QUERIES: [char; 7] = [' ', '`', '"', '\'', '\\', '\n', '#'];

/// Values that came from the environment, with their places in the document.
#[derive(Clone, Default)]
pub struct Origins {
    entries: Vec<Entry>,
    /// Values to look for in texts, the longest first, each with the text that replaces it.
    known: BTreeMap<(Reverse<usize>, String), String>,
    /// Credentials that stand in the file itself, the longest first.
    literals: BTreeSet<(Reverse<usize>, String)>,
}

/// Scalar with a value from the environment in it.
#[derive(Clone)]
struct Entry {
    at: Vec<Segment>,
    /// Scalar as in the file.
    written: String,
    /// Values that were inserted.
    values: Vec<String>,
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Origins({} values)", self.entries.len())
    }
}

impl Origins {
    /// Notes a scalar at `at` that became `value`. `parts` are the references in it, as written, with what they brought.
    pub(crate) fn add(&mut self, at: &[Segment], written: &str, value: &str, parts: Vec<(String, String)>) {
        let mut know = |found: &str, shown: &str| {
            if !found.is_empty() {
                self.known.entry((Reverse(found.len()), found.to_owned())).or_insert_with(|| shown.to_owned());
            }
        };
        for (found, shown) in
            std::iter::once((value, written)).chain(parts.iter().map(|(w, v)| (v.as_str(), w.as_str())))
        {
            know(found, shown);
            // As error messages write it.
            let escaped = format!("{found:?}");
            know(escaped.trim_matches('"'), shown);
            found.lines().filter(|line| line.len() >= LEAST_PART).for_each(|line| know(line, shown));
        }
        let values = parts.into_iter().map(|(_, value)| value).filter(|value| !value.is_empty()).collect();
        self.entries.push(Entry { at: at.to_vec(), written: written.to_owned(), values });
    }

    /// Notes a credential that stands in the file itself.
    pub(crate) fn add_literal(&mut self, literal: &str) {
        let key = (Reverse(literal.len()), literal.to_owned());
        self.known.entry(key.clone()).or_insert_with(|| WITHHELD.to_owned());
        self.literals.insert(key);
    }

    /// Credentials that stand in the file itself, the longest first.
    pub(crate) fn literals(&self) -> impl Iterator<Item = &str> {
        self.literals.iter().map(|(_, literal)| literal.as_str())
    }

    /// Values from a place, written as `routes[0].filters[1]`, or inside it.
    pub fn values_at<'o>(&'o self, place: &str) -> impl Iterator<Item = &'o str> {
        let is_inside = move |entry: &&Entry| {
            let at = text(&entry.at);
            at.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.entries.iter().filter(is_inside).flat_map(|entry| entry.values.iter().map(String::as_str))
    }

    /// Replaces each value in a text by its reference, and users and queries of URLs.
    pub fn redact(&self, message: &str) -> String {
        let shown = if self.known.is_empty() { message.to_owned() } else { self.with_references(message) };
        without_credentials(&shown, &ENDS_OF_HOSTS, withheld).unwrap_or(shown)
    }

    /// Replaces each value in a text by its reference.
    fn with_references(&self, message: &str) -> String {
        let mut out = String::with_capacity(message.len());
        let mut rest = message;
        while let Some(next) = rest.chars().next() {
            let quoted =
                |found: &str| out.ends_with('`') && rest.get(found.len()..).is_some_and(|r| r.starts_with('`'));
            let is_whole = |found: &str| {
                let after = rest.get(found.len()..).and_then(|after| after.chars().next());
                !(joins(out.chars().next_back(), found.chars().next()) || joins(found.chars().next_back(), after))
            };
            let found = self.known.iter().find(|((_, found), _)| {
                rest.starts_with(found.as_str())
                    && match found.len() {
                        LEAST_ANYWHERE.. => true,
                        LEAST_WORD.. => is_whole(found),
                        _ => quoted(found),
                    }
            });
            let taken = match found {
                Some(((_, found), shown)) => {
                    out.push_str(shown);
                    found.len()
                }
                None => {
                    out.push(next);
                    next.len_utf8()
                }
            };
            rest = rest.get(taken..).unwrap_or_default();
        }
        out
    }

    /// Redacts a message about the value at `path`: parts of values from there are masked too.
    pub(crate) fn redact_at(&self, path: &str, message: &str) -> String {
        let mut shown = self.redact(message);
        let near = |entry: &&Entry| {
            let at = text(&entry.at);
            at.starts_with(path) || path.starts_with(&at)
        };
        for value in self.entries.iter().filter(near).flat_map(|entry| &entry.values) {
            if shown.len() > LONGEST_MESSAGE {
                return WITHHELD.to_owned();
            }
            shown = without_parts(&shown, value);
        }
        shown
    }

    /// Restores references in a configuration that is shown, and removes plain credentials: those of URLs, and headers
    /// that hold nothing else.
    pub fn redact_config(&self, config: &mut Json) {
        for entry in &self.entries {
            // Where the configuration has no such place, it holds the value nearby, if at all.
            let mut places = (0..=entry.at.len()).rev().filter_map(|depth| entry.at.get(..depth)).map(pointer);
            let Some(place) = places.find(|place| config.pointer(place).is_some()) else { continue };
            let Some(node) = config.pointer_mut(&place) else { continue };
            match node {
                Json::String(shown) => shown.clone_from(&entry.written),
                around => strings(around, &mut |_, shown| {
                    if entry.values.iter().any(|value| shown.contains(value.as_str())) {
                        shown.clone_from(&entry.written);
                    }
                }),
            }
        }
        strings(config, &mut |key, shown| {
            if is_credential_header(key) {
                WITHHELD.clone_into(shown);
            } else if let Some(without) = without_credentials(shown, &['/', '?', '#'], withheld) {
                *shown = without;
            }
        });
    }
}

/// True if two characters that follow each other belong to one word.
fn joins(before: Option<char>, after: Option<char>) -> bool {
    before.is_some_and(char::is_alphanumeric) && after.is_some_and(char::is_alphanumeric)
}

/// A path as a JSON pointer (RFC 6901).
fn pointer(at: &[Segment]) -> String {
    let segment = |segment: &Segment| match segment {
        Segment::Key(key) => format!("/{}", key.replace('~', "~0").replace('/', "~1")),
        Segment::Index(index) => format!("/{index}"),
    };
    at.iter().map(segment).collect()
}

/// Calls `see` with every string of a value, and the key of the mapping that holds it directly.
fn strings(node: &mut Json, see: &mut impl FnMut(&str, &mut String)) {
    fn walk(key: &str, node: &mut Json, see: &mut impl FnMut(&str, &mut String)) {
        match node {
            Json::String(text) => see(key, text),
            Json::Array(items) => items.iter_mut().for_each(|item| walk("", item, see)),
            Json::Object(entries) => entries.iter_mut().for_each(|(key, node)| walk(key, node, see)),
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }
    walk("", node, see);
}

/// A text without the users and queries of its URLs (RFC 3986, 3.2.1 and 3.4), where keys and passwords stand, if one has
/// them. A list of URLs is a text with several. One of `ends` is behind the host; `mask` writes what stands in place of what
/// is removed.
fn without_credentials(text: &str, ends: &[char], mask: impl Fn(&str) -> String) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut is_changed = false;
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let authority = after.split(ends).next().unwrap_or_default();
        // Where the next URL begins without a blank, its scheme stands behind the host: what follows the user is read again.
        let token = if is_host(authority) { authority } else { after.split(ENDS_OF_WORDS).next().unwrap_or_default() };
        let user = token.rfind('@').and_then(|at| token.get(..at)).unwrap_or_default();
        rest = after.get(user.len()..).unwrap_or_default();
        if !user.is_empty() {
            out.push_str(&mask(user));
            is_changed = true;
        }
        let path = rest.find(|c| c == '?' || ENDS_OF_QUERIES.contains(&c)).unwrap_or(rest.len());
        let is_query = rest.get(path..).is_some_and(|query| query.starts_with('?'));
        let next_url = rest.find("://").is_some_and(|next| next < path);
        if is_query && !next_url {
            let (path, behind) = rest.split_at(path + 1);
            let query = behind.split(ENDS_OF_QUERIES).next().unwrap_or_default();
            out.push_str(path);
            rest = behind.get(query.len()..).unwrap_or_default();
            if !query.is_empty() {
                out.push_str(&mask(query));
                is_changed = true;
            }
        }
    }
    out.push_str(rest);
    is_changed.then_some(out)
}

/// True if a text may be the host and port of a URL, with or without a user. A password with `/`, `?` or `#` in it makes the
/// beginning look like a host with a port that is no number.
fn is_host(authority: &str) -> bool {
    authority.contains('@')
        || authority.ends_with(']')
        || authority
            .rsplit_once(':')
            .is_none_or(|(host, port)| !host.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit()))
}

/// A line in which the passwords of addresses without a scheme (`USER:PASSWORD@HOST`) are replaced too.
fn without_logins(line: &str, mask: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(line.len());
    for word in line.split_inclusive(ENDS_OF_WORDS) {
        let place = word.rfind('@').and_then(|at| Some((word.get(..at)?.find(':')? + 1, at)));
        match place.and_then(|(from, to)| Some((word.get(..from)?, word.get(from..to)?, word.get(to..)?))) {
            Some((before, login, after)) if !word.contains("://") => {
                out.push_str(before);
                out.push_str(&mask(login));
                out.push_str(after);
            }
            _ => out.push_str(word),
        }
    }
    out
}

/// Text in place of a user or query of a URL. References to variables are shown as they are written.
fn withheld(part: &str) -> String {
    if part.contains("${") { part.to_owned() } else { "***".to_owned() }
}

/// A line of the file as messages show it: `*` in place of each character of a credential, so that a caret under the line
/// stays in its place.
pub(crate) fn shown_line(line: &str, origins: &Origins) -> String {
    let line = crate::literal::masked(line, origins.literals());
    let stars = |part: &str| if part.contains("${") { part.to_owned() } else { "*".repeat(part.chars().count()) };
    let line = without_credentials(&line, &ENDS_OF_HOSTS, stars).unwrap_or(line);
    without_logins(&line, stars)
}

/// Replaces every run of characters that `value` also has by `…`, if it is long enough.
fn without_parts(text: &str, value: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8());
        let run = ends.take_while(|end| rest.get(..*end).is_some_and(|run| value.contains(run))).last().unwrap_or(0);
        let taken = if run >= LEAST_PART {
            out.push('…');
            run
        } else {
            out.push(next);
            next.len_utf8()
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins() -> Origins {
        let mut origins = Origins::default();
        let parts = vec![("${KEY}".to_owned(), "s3cr3t-value".to_owned())];
        origins.add(
            &["filters".into(), 0_usize.into(), "cel".into(), "deny".into()],
            "x == '${KEY}'",
            "x == 's3cr3t-value'",
            parts,
        );
        origins.add(&["name".into()], "${A}", "a", vec![("${A}".to_owned(), "a".to_owned())]);
        origins
    }

    #[test]
    fn messages_show_the_reference_and_not_the_value() {
        let origins = origins();
        for (message, shown) in [
            ("there is no backend `s3cr3t-value`", "there is no backend `${KEY}`"),
            ("in x == 's3cr3t-value' at 3", "in x == '${KEY}' at 3"),
            ("there is no model `a`, there are `b`", "there is no model `${A}`, there are `b`"),
            ("a message", "a message"),
        ] {
            assert_eq!(origins.redact(message), shown);
        }
        assert_eq!(origins.redact_at("filters[0].cel", "unexpected `s3cr3t-v`"), "unexpected `…`");
        assert_eq!(origins.redact_at("routes", "unexpected `s3cr3t-v`"), "unexpected `s3cr3t-v`");
    }

    #[test]
    fn values_are_found_by_their_place() {
        let origins = origins();
        for (place, found) in [
            ("filters[0].cel", &["s3cr3t-value"][..]),
            ("filters[0].cel.deny", &["s3cr3t-value"]),
            ("filters[0].ce", &[]),
            ("filters", &["s3cr3t-value"]),
            ("name", &["a"]),
            ("filters[00]", &[]),
        ] {
            assert_eq!(origins.values_at(place).collect::<Vec<_>>(), found, "{place}");
        }
    }

    #[test]
    fn a_short_value_is_replaced_as_a_whole_word_only() {
        let mut origins = Origins::default();
        for (name, value) in [("LOG", "info"), ("PIN", "12-ab"), ("SEVEN", "sevenly"), ("EIGHT", "eightfol")] {
            let written = format!("${{{name}}}");
            origins.add(&["name".into()], &written, value, vec![(written.clone(), value.to_owned())]);
        }
        for (message, shown) in [
            ("information", "information"),
            ("more info", "more ${LOG}"),
            ("info: `info`", "${LOG}: `${LOG}`"),
            ("level=info,x", "level=${LOG},x"),
            ("`debuginfo`", "`debuginfo`"),
            ("éinfo infoé", "éinfo infoé"),
            ("a12-ab 12-ab7 x-12-ab", "a12-ab 12-ab7 x-${PIN}"),
            ("sevenly unsevenly", "${SEVEN} unsevenly"),
            ("eightfold", "${EIGHT}d"),
        ] {
            assert_eq!(origins.redact(message), shown);
        }
    }

    #[test]
    fn every_url_of_a_text_loses_its_user_and_its_query() {
        for (text, shown) in [
            ("redis://u:p@host:1/0", Some("redis://***@host:1/0")),
            ("redis://u:p@a,redis://v:q@b", Some("redis://***@a,redis://***@b")),
            ("http://a/x http://u:p@b/y?z", Some("http://a/x http://***@b/y?***")),
            ("http://a,http://u:p@b", Some("http://a,http://***@b")),
            ("http://a?to=http://u:p@b#c", Some("http://a?***#c")),
            ("http://u:p@x@a", Some("http://***@a")),
            ("redis://:a/b@host:1/0", Some("redis://***@host:1/0")),
            ("redis://u:a#b@host", Some("redis://***@host")),
            ("redis://:12/b@host", Some("redis://***@host")),
            ("http://[::1]/b@c", None),
            ("http://host:80/b@c", None),
            ("http://a/b@c", None),
            ("a@b", None),
        ] {
            let without = without_credentials(text, &['/', '?', '#'], withheld);
            assert_eq!(without.as_deref(), shown, "{text}");
        }
    }

    #[test]
    fn a_configuration_shows_what_the_file_has() {
        let mut shown = serde_json::json!({
            "name": "a",
            "other": "a",
            "filters": [{"cel": {"deny": "x == 's3cr3t-value'"}}, {"requestHeaders": {"set": {"Authorization": "Bearer x"}}}],
            "state": {"url": "redis://user:pass@host:1/0", "plain": "http://host/a@b"},
        });
        origins().redact_config(&mut shown);
        assert_eq!(
            shown,
            serde_json::json!({
                "name": "${A}",
                "other": "a",
                "filters": [{"cel": {"deny": "x == '${KEY}'"}}, {"requestHeaders": {"set": {"Authorization": "(withheld)"}}}],
                "state": {"url": "redis://***@host:1/0", "plain": "http://host/a@b"},
            })
        );
        // Where the place is another one, what holds the value is found around it.
        let mut shown = serde_json::json!({"filters": [{"compiled": ["s3cr3t-value", "kept"]}]});
        origins().redact_config(&mut shown);
        assert_eq!(shown, serde_json::json!({"filters": [{"compiled": ["x == '${KEY}'", "kept"]}]}));
    }

    #[test]
    fn nothing_of_the_values_is_printed_for_debugging() {
        assert_eq!(format!("{:?}", origins()), "Origins(2 values)");
    }
}
