//! The source text of the workspace as the reference reads it: calls with their arguments, literals, constants, functions.
//! Tests and comments are left out. Nothing here knows what a page says.

use std::path::Path;

use crate::repository;

/// Source file without its tests.
#[derive(Debug)]
pub(super) struct File {
    /// Path from the root of the repository.
    pub(super) path: String,
    /// Text with its comments.
    pub(super) text: String,
    /// Text without the lines that are comments.
    pub(super) code: String,
}

/// A call: where it is in the code, and its arguments as they are written.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) at: usize,
    pub(super) arguments: Vec<String>,
}

/// A function: its name, and the patterns of its parameters without `self`.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: String,
    pub(super) parameters: Vec<String>,
    /// True if it takes `self`.
    pub(super) is_method: bool,
    /// Offset of the first byte of its body.
    pub(super) body: usize,
}

/// Every file of the program below some folders, in the order of their paths.
pub(super) fn files(folders: &[&str]) -> Vec<File> {
    let mut found = Vec::new();
    for folder in folders {
        read(&repository().join(folder), &mut found);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// The file of a module, such as `admin/backends`.
pub(super) fn module<'f>(files: &'f [File], name: &str) -> &'f File {
    let ends = [format!("/{name}.rs"), format!("/{name}/mod.rs")];
    let found = files.iter().find(|file| ends.iter().any(|end| file.path.ends_with(end)));
    found.unwrap_or_else(|| panic!("the sources have no module {name}: name it anew in tests/src/reference"))
}

fn read(path: &Path, found: &mut Vec<File>) {
    let name = path.file_name().unwrap().to_str().unwrap();
    const OTHERS: [&str; 8] =
        ["tests", "tests.rs", "testing", "testing.rs", "readers.rs", "benches", "fuzz", "examples"];
    if OTHERS.contains(&name) {
        return;
    }
    if path.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| read(&entry.unwrap().path(), found));
    } else if path.extension().is_some_and(|kind| kind == "rs") {
        let text = std::fs::read_to_string(path).unwrap();
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let path = path.strip_prefix(repository()).unwrap().to_str().unwrap().to_owned();
        found.push(File { path, code: code.join("\n"), text });
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Length of the string, character or lifetime with which `text` begins; 0 where it begins with none.
fn quoted(text: &str) -> usize {
    let raw = text.strip_prefix('r').map(|rest| rest.len() - rest.trim_start_matches('#').len());
    if let Some(hashes) = raw
        && text[1 + hashes..].starts_with('"')
    {
        let end = format!("\"{}", "#".repeat(hashes));
        let from = 2 + hashes;
        return from + text[from..].find(&end).unwrap() + end.len();
    }
    let mark = if text.starts_with('"') {
        '"'
    } else if text.starts_with('\'') {
        let mut letters = text.chars().skip(1);
        let (first, second) = (letters.next(), letters.next());
        if first != Some('\\') && second != Some('\'') {
            return 1;
        }
        '\''
    } else {
        return 0;
    };
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == mark => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Parts between the bracket at `open` and the one that closes it, split at commas, and the offset behind that.
pub(super) fn parts(code: &str, open: usize) -> (Vec<String>, usize) {
    let mut parts = Vec::new();
    let mut depth = 0;
    let mut start = open + 1;
    let mut at = open;
    let part = |from: usize, to: usize| code[from..to].split_whitespace().collect::<Vec<_>>().join(" ");
    while at < code.len() {
        let before = code[..at].chars().next_back();
        let quote = if before.is_some_and(is_word) && code[at..].starts_with('r') { 0 } else { quoted(&code[at..]) };
        if quote > 0 {
            at += quote;
            continue;
        }
        let c = code[at..].chars().next().unwrap();
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth -= 1;
                if depth == 0 {
                    parts.push(part(start, at));
                    break;
                }
            }
            ',' if depth == 1 => {
                parts.push(part(start, at));
                start = at + 1;
            }
            _ => {}
        }
        at += c.len_utf8();
    }
    parts.retain(|part| !part.is_empty());
    (parts, at + 1)
}

/// Calls of `name`, such as `Refusal::new`; not its definition.
pub(super) fn calls(code: &str, name: &str) -> Vec<Call> {
    let opened = format!("{name}(");
    let found = code.match_indices(&opened).filter(|(at, _)| {
        let before = &code[..*at];
        (name.starts_with('.') || !before.ends_with(is_word)) && !before.ends_with("fn ")
    });
    found.map(|(at, _)| Call { at, arguments: parts(code, at + opened.len() - 1).0 }).collect()
}

/// The value of a string literal; `None` of any other expression. That of `format!` is its text.
pub(super) fn literal(expression: &str) -> Option<String> {
    let mut text = expression.trim();
    while let Some(rest) = text.strip_prefix('&') {
        text = rest;
    }
    if let Some(rest) = text.strip_prefix("format!(") {
        text = rest;
    }
    for suffix in [".to_owned()", ".into()", ".to_string()"] {
        text = text.strip_suffix(suffix).unwrap_or(text);
    }
    if !text.starts_with('"') {
        return None;
    }
    let inner = &text[1..quoted(text) - 1];
    let mut value = String::new();
    let mut letters = inner.chars().peekable();
    while let Some(c) = letters.next() {
        if c != '\\' {
            value.push(c);
            continue;
        }
        match letters.next() {
            Some('n') => value.push('\n'),
            // The line goes on; blanks were made one by `parts`.
            Some(c) if c.is_whitespace() => while letters.next_if(|c| c.is_whitespace()).is_some() {},
            Some(c) => value.push(c),
            None => {}
        }
    }
    Some(value)
}

/// String literals of a text, in their order.
pub(super) fn literals(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let length = quoted(&text[at..]);
        if length > 1 && text[at..].starts_with('"') {
            found.extend(literal(&text[at..at + length]));
        }
        at += if length > 0 { length } else { text[at..].chars().next().unwrap().len_utf8() };
    }
    found
}

/// The expression that a constant or static of this name has in any of the files, first of all in that number `near`.
pub(super) fn constant(files: &[File], near: usize, name: &str) -> Option<String> {
    let name = name.rsplit("::").next().unwrap();
    files.get(near).into_iter().chain(files).find_map(|file| {
        ["const ", "static "].iter().find_map(|keyword| {
            let from = file.code.find(&format!("{keyword}{name}: "))?;
            let (_, value) = file.code[from..].split_once('=')?;
            Some(statement(value).to_owned())
        })
    })
}

/// The beginning of a text up to the semicolon that ends its statement.
fn statement(text: &str) -> &str {
    let (mut at, mut depth) = (0, 0);
    while at < text.len() {
        let length = quoted(&text[at..]);
        if length > 0 {
            at += length;
            continue;
        }
        let c = text[at..].chars().next().unwrap();
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ';' if depth <= 0 => return text[..at].trim(),
            _ => {}
        }
        if depth < 0 {
            return text[..at].trim();
        }
        at += c.len_utf8();
    }
    text.trim()
}

/// The function in whose body an offset is: the innermost one with a name.
pub(super) fn function_around(code: &str, at: usize) -> Option<Function> {
    code[..at].rmatch_indices("fn ").find_map(|(from, _)| {
        if code[..from].ends_with(is_word) {
            return None;
        }
        let name: String = code[from + 3..].chars().take_while(|c| is_word(*c)).collect();
        let open = from + 3 + code[from + 3..].find(['(', '<']).filter(|_| !name.is_empty())?;
        let open = if code[open..].starts_with('<') { open + code[open..].find(">(")? + 1 } else { open };
        let (parameters, behind) = parts(code, open);
        let body = behind + code.get(behind..)?.find(['{', ';']).filter(|n| code[behind + n..].starts_with('{'))?;
        let (_, end) = parts(code, body);
        let pattern = |parameter: &String| {
            let pattern = match parameter.strip_prefix('(') {
                Some(_) => parameter[..=parameter.find(')')?].to_owned(),
                None => parameter.split_once(':')?.0.trim().trim_start_matches("mut ").to_owned(),
            };
            (!pattern.ends_with("self")).then_some(pattern)
        };
        let is_method = parameters.first().is_some_and(|first| first.ends_with("self"));
        let parameters = parameters.iter().filter_map(pattern).collect();
        (body < at && at < end).then_some(Function { name, parameters, is_method, body })
    })
}

/// Expression that the last `let NAME = ...;` before an offset binds; NAME may be part of a pair.
pub(super) fn local<'c>(code: &'c str, function: &Function, at: usize, name: &str) -> Option<&'c str> {
    let before = &code[function.body..at];
    let names = [format!("let {name} = "), format!("let ({name}, "), format!(", {name}) = "), format!("let {name}: ")];
    let from = names.iter().filter_map(|pattern| before.rfind(pattern.as_str())).max()?;
    let (_, value) = code[function.body + from..].split_once(" = ")?;
    Some(statement(value))
}

/// Keys of the line that a file writes field by field, in their order.
pub(super) fn written_keys(file: &File) -> Vec<String> {
    let writes = ["line.text(\"", "line.value(\"", "line.object(\"", "line.scalars(\"", "(&mut line, \""];
    let mut found: Vec<(usize, &str)> = Vec::new();
    for write in writes {
        let key = |(at, _): (usize, &str)| Some((at, file.code.get(at + write.len()..)?.split('"').next()?));
        found.extend(file.code.match_indices(write).filter_map(key));
    }
    found.sort_unstable();
    found.into_iter().map(|(_, key)| key.to_owned()).collect()
}

/// Fields of a struct that is written as JSON, in the case of JSON: of the struct number `nth` in the file.
pub(super) fn json_fields(file: &File, nth: usize) -> Vec<String> {
    let marked = file.code.split("#[serde(rename_all = \"camelCase\")]").nth(nth + 1).unwrap();
    let body = marked.split_once("struct ").unwrap().1.split_once("{\n").unwrap().1.split("\n}").next().unwrap();
    let name = |line: &str| {
        let name = line.trim().trim_start_matches("pub ").split_once(": ")?.0.to_owned();
        name.chars().all(|c| c.is_ascii_lowercase() || c == '_').then_some(name)
    };
    let camel = |name: String| {
        let mut words = name.split('_');
        let first = words.next().unwrap().to_owned();
        words.fold(first, |text, word| text + &word[..1].to_ascii_uppercase() + &word[1..])
    };
    body.lines().filter_map(name).map(camel).collect()
}
