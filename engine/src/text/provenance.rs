//! Provenance of each character of a rendered template: the template's own, or a caller's.
//!
//! A template sees the callers' text as it is, and is rendered a second time with every character of theirs replaced by a
//! twin from a private plane of Unicode. Where both renderings say the same, the second one tells whose each character is,
//! whatever the template did with the text: it may cut it, join it, or change its case. The functions by which templates
//! take strings apart treat a twin as the character that it stands for; operators cannot.

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::tools::python_json;

/// First characters of the two private planes. A character of the first 65,536 has its twin in the first plane, and a
/// character of the first plane in the second.
const TWINS: u32 = 0xF_0000;
const SECOND_TWINS: u32 = 0x10_0000;

/// Twin of a character; `None` where it has none: emoji and rare letters, which occur in no control token.
pub(super) fn twin(c: char) -> Option<char> {
    match u32::from(c) {
        code @ 0..=0xFFFF => char::from_u32(TWINS + code),
        code @ TWINS..SECOND_TWINS => char::from_u32(SECOND_TWINS + (code - TWINS)),
        _ => None,
    }
}

/// Character that a twin stands for; `None` for a character that is no twin.
pub(super) fn twin_of(c: char) -> Option<char> {
    match u32::from(c) {
        code @ TWINS..SECOND_TWINS => char::from_u32(code - TWINS),
        code @ SECOND_TWINS.. => char::from_u32(TWINS + (code - SECOND_TWINS)),
        _ => None,
    }
}

fn plain(c: char) -> char {
    twin_of(c).unwrap_or(c)
}

/// Text with the characters that its twins stand for.
pub(super) fn plain_text(text: &str) -> String {
    text.chars().map(plain).collect()
}

/// Text that a template may see: characters of the second private plane, which would pass for twins, are replaced.
pub(super) fn shown(text: &str) -> String {
    text.chars().map(|c| if u32::from(c) >= SECOND_TWINS { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Adds the methods, filters and tests of strings that templates use, such that twins pass for what they stand for.
pub(super) fn follow_strings(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(|state: &mut State, value: &Value, method: &str, args: &[Value]| {
        let followed = match value.as_str() {
            Some(text) => follow(state, text, method, args)?,
            None => None,
        };
        followed.map_or_else(|| unknown_method_callback(state, value, method, args), Ok)
    });
    for (filter, method) in
        [("lower", "lower"), ("upper", "upper"), ("replace", "replace"), ("trim", "strip"), ("split", "split")]
    {
        environment.add_filter(filter, move |state: &mut State, value: Value, args: minijinja::value::Rest<Value>| {
            // A filter reads every value as text.
            let value = if value.as_str().is_some() { value } else { Value::from(value.to_string()) };
            let text = value.as_str().unwrap_or_default();
            match follow(state, text, method, &args)? {
                Some(followed) => Ok(followed),
                None => unknown_method_callback(state, &value, method, &args),
            }
        });
    }
    environment.add_test("startingwith", |text: &str, other: &str| plain_text(text).starts_with(&plain_text(other)));
    environment.add_test("endingwith", |text: &str, other: &str| plain_text(text).ends_with(&plain_text(other)));
    environment.add_filter("tojson", to_json);
}

/// Calls a method of a text in which twins are; `None` where the method does the same without care.
fn follow(state: &mut State, text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let has_twins = |text: &str| text.chars().any(|c| twin_of(c).is_some());
    if !has_twins(text) && !args.iter().filter_map(Value::as_str).any(has_twins) {
        return Ok(None);
    }
    let chars: Vec<char> = text.chars().collect();
    let arg = |n: usize| args.get(n).and_then(Value::as_str);
    let count = |n: usize| args.get(n).and_then(Value::as_i64).and_then(|count| usize::try_from(count).ok());
    Ok(match method {
        "lower" => Some(Value::from(mapped(&chars, |c| c.to_lowercase().collect()))),
        "upper" => Some(Value::from(mapped(&chars, |c| c.to_uppercase().collect()))),
        "replace" => match (arg(0), arg(1)) {
            (Some(old), Some(new)) if !old.is_empty() => {
                let parts = split(&chars, &plain_text(old), count(2).unwrap_or(usize::MAX));
                // As the library does: longer texts are paid for before they are made.
                let grown = parts.len().saturating_mul(new.len()).saturating_add(text.len());
                state.consume_fuel(u64::try_from(grown / 64).unwrap_or(u64::MAX))?;
                Some(Value::from(parts.join(new)))
            }
            _ => None,
        },
        "split" => arg(0).filter(|separator| !separator.is_empty()).map(|separator| {
            let parts = split(&chars, &plain_text(separator), count(1).unwrap_or(usize::MAX));
            parts.into_iter().map(Value::from).collect()
        }),
        "strip" | "lstrip" | "rstrip" => arg(0).map(|set| {
            let set: Vec<char> = plain_text(set).chars().collect();
            let is_out = |c: char| set.contains(&plain(c));
            Value::from(match method {
                "strip" => text.trim_matches(is_out),
                "lstrip" => text.trim_start_matches(is_out),
                _ => text.trim_end_matches(is_out),
            })
        }),
        // Questions, whose answer has no text of the caller.
        "startswith" | "endswith" | "find" | "rfind" | "count" | "islower" | "isupper" | "isspace" | "isdigit"
        | "isnumeric" | "isalnum" | "isalpha" | "isascii" => {
            let args: Vec<Value> =
                args.iter().map(|arg| arg.as_str().map_or_else(|| arg.clone(), |s| plain_text(s).into())).collect();
            Some(unknown_method_callback(state, &Value::from(plain_text(text)), method, &args)?)
        }
        _ => None,
    })
}

/// Text with the case of each character changed; a twin becomes a twin.
fn mapped(chars: &[char], change: impl Fn(char) -> Vec<char>) -> String {
    let mut text = String::new();
    for c in chars {
        match twin_of(*c) {
            Some(original) => text.extend(change(original).into_iter().map(|c| twin(c).unwrap_or(c))),
            None => text.extend(change(*c)),
        }
    }
    text
}

/// Parts of a text between separators, of which at most `most` are looked for.
fn split(chars: &[char], separator: &str, most: usize) -> Vec<String> {
    let separator: Vec<char> = separator.chars().collect();
    let (mut parts, mut part, mut rest) = (Vec::new(), String::new(), chars);
    while let Some((first, behind)) = rest.split_first() {
        let begun = rest.get(..separator.len());
        let is_separator = begun.is_some_and(|begun| begun.iter().map(|c| plain(*c)).eq(separator.iter().copied()));
        if is_separator && parts.len() < most {
            parts.push(std::mem::take(&mut part));
            rest = rest.get(separator.len()..).unwrap_or_default();
        } else {
            part.push(*first);
            rest = behind;
        }
    }
    parts.push(part);
    parts
}

/// Python's `json.dumps(ensure_ascii=False)`, with which models were trained: with blanks between entries, and
/// without the HTML escapes of minijinja's own filter.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let json = python_json(value, indent.map(|indent| indent.min(16)))
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    if !json.chars().any(|c| twin_of(c).is_some()) {
        return Ok(json);
    }
    // Twins of characters that JSON escapes.
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match twin_of(c) {
            Some(original @ ('"' | '\\')) => {
                escaped.extend(twin('\\'));
                escaped.extend(twin(original));
            }
            Some(original) if original < ' ' => {
                let text = serde_json::Value::from(original.to_string()).to_string();
                escaped.extend(text.trim_matches('"').chars().filter_map(twin));
            }
            _ => escaped.push(c),
        }
    }
    Ok(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twins(text: &str) -> String {
        text.chars().map(|c| twin(c).filter(|_| !c.is_whitespace()).unwrap_or(c)).collect()
    }

    #[test]
    fn twins_stand_for_every_character_and_for_no_other() {
        for c in ['\0', 'a', '<', 'é', '｜', '\u{FFFD}', '\u{F0041}', '\u{FFFFD}'] {
            assert_eq!(twin(c).and_then(twin_of), Some(c));
            assert_eq!(plain_text(&twins(&c.to_string())), c.to_string());
        }
        assert_eq!((twin('🙂'), twin_of('🙂'), twin_of('a')), (None, None, None));
        assert_eq!(shown("a\u{F0041}\u{100041}"), "a\u{F0041}\u{FFFD}");
    }

    #[test]
    fn strings_are_followed_through_methods_and_filters() {
        let mut environment = Environment::new();
        follow_strings(&mut environment);
        let text = "Hello <b>World</b>, \"Hello\"\t1";
        for expression in [
            "x.lower()",
            "x | upper",
            "x.replace('Hello', 'Bye')",
            "x | replace('l', '')",
            "x.replace('l', 'L', 1)",
            "x.split('<b>')[1].split('</b>')[0]",
            "x.split(',', 1) | join('|')",
            "x.split() | join('|')",
            "x.strip('H1')",
            "x.lstrip('eH') ~ x.rstrip('1')",
            "(' ' ~ x ~ ' ') | trim",
            "x[1:4] ~ x[::-1] ~ x | length",
            "x.startswith('Hello') ~ x.endswith(('2', '1')) ~ x.find('<b>') ~ x.count('Hello')",
            "x is startingwith 'Hello'",
            "x | tojson",
            "{'k': [x, 1]} | tojson(indent=2)",
            "' '.join([x, x])",
            "x.split(' ') | join('-')",
        ] {
            let compiled = environment.compile_expression(expression).unwrap();
            let said = |x: &str| compiled.eval(minijinja::context! { x }).unwrap().to_string();
            assert_eq!(plain_text(&said(&twins(text))), said(text), "{expression}");
        }
    }
}
