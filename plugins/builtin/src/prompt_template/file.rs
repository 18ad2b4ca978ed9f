//! Files of prompts: versions of a text, each behind a front matter that names it, with placeholders in double braces.

use std::collections::BTreeMap;

/// Longest text of a version, in bytes, as for other texts that are added to system prompts.
const MAX_TEXT: usize = 64 << 10;
/// Most placeholders of a version: each may stand for a value of 1 KiB.
const MAX_PLACEHOLDERS: usize = 256;
/// Line around a front matter.
const FENCE: &str = "---";
/// Key of a front matter.
const KEY: &str = "version:";

/// Part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// Text as it is.
    Text(String),
    /// Name of a variable.
    Variable(String),
}

/// Versions of a file, each in parts.
pub(super) type Versions = BTreeMap<u32, Vec<Part>>;

/// Reads the versions of a file.
///
/// # Errors
///
/// The first mistake, with its line.
pub(super) fn read(text: &str) -> Result<Versions, String> {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    // Lines of front matters: `---`, `version: 3`, `---`. A `---` before anything else is a rule of Markdown.
    let begins = |at: usize| {
        lines.get(at).is_some_and(|line| *line == FENCE) && lines.get(at + 1).is_some_and(|line| line.starts_with(KEY))
    };
    let starts: Vec<usize> = (0..lines.len()).filter(|at| begins(*at)).collect();
    let first = lines.iter().position(|line| !line.is_empty());
    if first.is_none_or(|first| starts.first() != Some(&first)) {
        let line = first.map_or(1, |first| first + 1);
        return Err(format!(
            "line {line}: expected `---`, `version: 1` and `---` on lines of their own before the text"
        ));
    }
    let mut versions = Versions::new();
    for (n, at) in starts.iter().enumerate() {
        let written = lines.get(at + 1).and_then(|line| line.strip_prefix(KEY)).unwrap_or_default().trim();
        let version = written.parse::<u32>().ok().filter(|version| *version > 0);
        let version = version.ok_or_else(|| {
            format!("line {}: found version `{written}`; expected a whole number from 1, such as 3", at + 2)
        })?;
        if lines.get(at + 2).is_none_or(|line| *line != FENCE) {
            return Err(format!(
                "line {}: expected `---`, the end of the front matter; it has `version` alone",
                at + 3
            ));
        }
        let end = starts.get(n + 1).copied().unwrap_or(lines.len());
        let body = lines.get(at + 3..end).unwrap_or_default();
        let parts = parts(body, at + 4)?;
        if versions.insert(version, parts).is_some() {
            return Err(format!("line {}: version {version} is there already; expected another number", at + 2));
        }
    }
    Ok(versions)
}

/// Parts of the lines of a version; `line` is the number of the first one. Empty lines around the text are left out.
fn parts(lines: &[&str], line: usize) -> Result<Vec<Part>, String> {
    let first = lines.iter().position(|line| !line.is_empty());
    let last = lines.iter().rposition(|line| !line.is_empty());
    let (Some(first), Some(last)) = (first, last) else {
        return Err(format!("line {}: the version has no text; expected a prompt", line.saturating_sub(1)));
    };
    let text = lines.get(first..=last).unwrap_or_default().join("\n");
    let line = line + first;
    if text.len() > MAX_TEXT {
        return Err(format!("line {line}: the text has {} bytes; expected at most {MAX_TEXT}", text.len()));
    }
    let (mut parts, mut literal, mut rest) = (Vec::new(), String::new(), text.as_str());
    while let Some((before, after)) = rest.split_once("{{") {
        if let Some(before) = before.strip_suffix('\\') {
            literal.push_str(before);
            literal.push_str("{{");
            rest = after;
            continue;
        }
        literal.push_str(before);
        let at = line + text.get(..text.len() - after.len()).unwrap_or_default().matches('\n').count();
        let (name, behind) = after.split_once("}}").map_or((after, None), |(name, behind)| (name, Some(behind)));
        let name = name.trim();
        let Some(behind) = behind.filter(|_| is_name(name)) else {
            let shown: String = name.chars().take_while(|letter| *letter != '\n').take(40).collect();
            return Err(format!(
                "line {at}: found `{{{{{shown}`; expected a name of letters, digits and `_` between `{{{{` and `}}}}`, or `\\{{{{` \
                 for braces"
            ));
        };
        if !literal.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut literal)));
        }
        parts.push(Part::Variable(name.to_owned()));
        rest = behind;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        parts.push(Part::Text(literal));
    }
    let placeholders = parts.iter().filter(|part| matches!(part, Part::Variable(_))).count();
    if placeholders > MAX_PLACEHOLDERS {
        return Err(format!(
            "line {line}: the text has {placeholders} placeholders; expected at most {MAX_PLACEHOLDERS}"
        ));
    }
    Ok(parts)
}

/// True for a name of a variable.
pub(super) fn is_name(name: &str) -> bool {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    !name.is_empty() && name.len() <= 64 && name.chars().all(is_letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    fn variable(name: &str) -> Part {
        Part::Variable(name.to_owned())
    }

    #[test]
    fn versions_stand_behind_their_front_matter() {
        let file = "\n---\r\nversion: 2\r\n---\r\n\r\n# Support\n\n---\n\nBe {{ tone }}, \\{{not}} {{tone}}.\n\n---\nversion: 10\n---\n{{a_1}}\n";
        let versions = read(file).unwrap();
        let two =
            vec![text("# Support\n\n---\n\nBe "), variable("tone"), text(", {{not}} "), variable("tone"), text(".")];
        assert_eq!(versions, Versions::from([(2, two), (10, vec![variable("a_1")])]));
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        let head = "---\nversion: 1\n---\n";
        for (file, message) in [
            (String::new(), "line 1: expected `---`"),
            ("\nHello".to_owned(), "line 2: expected `---`"),
            ("---\ntitle: x\n---\n".to_owned(), "line 1: expected `---`"),
            ("---\nversion: 0\n---\nx".to_owned(), "line 2: found version `0`"),
            ("---\nversion: latest\n---\nx".to_owned(), "line 2: found version `latest`"),
            ("---\nversion: 1\ntitle: x\n---\nx".to_owned(), "line 3: expected `---`"),
            (format!("{head}x\n{head}y"), "line 6: version 1 is there already"),
            (format!("{head}\n\n"), "line 3: the version has no text"),
            (format!("{head}a\n\nb {{{{c d}}}}"), "line 6: found `{{c d`"),
            (format!("{head}a {{{{b"), "line 4: found `{{b`"),
            (format!("{head}a {{{{}}}}"), "line 4: found `{{`"),
            (format!("{head}{}", "x".repeat(MAX_TEXT + 1)), "line 4: the text has 65537 bytes"),
            (format!("{head}{}", "{{x}}".repeat(MAX_PLACEHOLDERS + 1)), "line 4: the text has 257 placeholders"),
        ] {
            let found = read(&file).unwrap_err();
            assert!(found.starts_with(message), "{file:.80}: {found}");
        }
    }
}
