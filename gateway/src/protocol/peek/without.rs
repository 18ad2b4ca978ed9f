//! Bodies without fields that a server refuses. What is left keeps its bytes.

use std::ops::Range;

use super::scan::{Scan, ValueKind, Wrong};
use crate::protocol::chat::Ignored;
use crate::protocol::refusals::shown;

/// Removes fields from a body that is a JSON object, and returns the rest with the names of what was removed. `listed` are
/// names of fields, with dots between those of objects within each other. `None` where the body has none of them or is
/// anything else.
pub fn without(body: &[u8], listed: &[String]) -> Option<(Vec<u8>, Ignored)> {
    let paths: Vec<&str> = listed.iter().map(String::as_str).collect();
    let mut found = Found::default();
    found.object(body, 0, "", &paths).ok()?;
    let Found { cuts, names } = found;
    if cuts.is_empty() {
        return None;
    }
    let (mut rest, mut at) = (Vec::with_capacity(body.len()), 0);
    for cut in cuts {
        rest.extend_from_slice(body.get(at..cut.start)?);
        at = cut.end;
    }
    rest.extend_from_slice(body.get(at..)?);
    Some((rest, names))
}

#[derive(Default)]
struct Found {
    /// Ranges to remove, in order.
    cuts: Vec<Range<usize>>,
    names: Ignored,
}

impl Found {
    /// Finds the fields of an object, which begins at `offset` of the body and has the name `at`. Anything else has none.
    fn object(&mut self, text: &[u8], offset: usize, at: &str, paths: &[&str]) -> Result<(), Wrong> {
        let mut scan = Scan::new(text)?;
        if scan.next() != Some(b'{') {
            return Ok(());
        }
        scan.enter()?;
        // End of the last member that stays, and members behind it that do not.
        let (mut kept, mut run): (Option<usize>, Option<Range<usize>>) = (None, None);
        let mut is_first = true;
        while let Some((name, has_escapes)) = scan.name(is_first)? {
            is_first = false;
            let start = name.start.saturating_sub(1);
            let name = decoded(scan.slice(start..name.end.saturating_add(1)), has_escapes);
            scan.next();
            let value = scan.at();
            let kind = scan.skip()?;
            let end = scan.at();
            if paths.contains(&name.as_str()) {
                self.names.push(shown(&named(at, &name)));
                run.get_or_insert(start..end).end = end;
                continue;
            }
            if let Some(run) = run.take() {
                // With the comma behind it.
                self.cuts.push(run.start.saturating_add(offset)..start.saturating_add(offset));
            }
            kept = Some(end);
            if kind == ValueKind::Object {
                let inner: Vec<&str> =
                    paths.iter().filter_map(|path| path.strip_prefix(name.as_str())?.strip_prefix('.')).collect();
                if !inner.is_empty() {
                    self.object(scan.slice(value..end), value.saturating_add(offset), &named(at, &name), &inner)?;
                }
            }
        }
        if let Some(run) = run {
            // With the comma before it.
            let from = kept.unwrap_or(run.start);
            self.cuts.push(from.saturating_add(offset)..run.end.saturating_add(offset));
        }
        scan.end()
    }
}

/// Name in quotes, decoded.
fn decoded(quoted: &[u8], has_escapes: bool) -> String {
    if has_escapes && let Ok(name) = serde_json::from_slice(quoted) {
        return name;
    }
    let name = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

fn named(at: &str, name: &str) -> String {
    if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn rest(body: &str, listed: &[&str]) -> Option<(String, String)> {
        let listed: Vec<String> = listed.iter().map(|name| (*name).to_owned()).collect();
        let (rest, names) = without(body.as_bytes(), &listed)?;
        Some((String::from_utf8(rest).unwrap(), names.header().unwrap().to_str().unwrap().to_owned()))
    }

    #[test]
    fn listed_fields_go_with_their_commas_and_nothing_else_changes() {
        for (body, listed, expected) in [
            (r#"{"a":1,"b":2,"c":3}"#, &["a"][..], Some((r#"{"b":2,"c":3}"#, "a"))),
            (r#"{"a":1,"b":2,"c":3}"#, &["b"], Some((r#"{"a":1,"c":3}"#, "b"))),
            (r#"{"a":1,"b":2,"c":3}"#, &["c"], Some((r#"{"a":1,"b":2}"#, "c"))),
            (r#"{"a":1,"b":2,"c":3}"#, &["c", "b"], Some((r#"{"a":1}"#, "b, c"))),
            (r#"{"a":1,"b":2,"c":3}"#, &["a", "b", "c"], Some(("{}", "a, b, c"))),
            ("{ \"a\" : [1, {\"b\": 2}] ,\n \"b\" : \"x,}\" }", &["b"], Some(("{ \"a\" : [1, {\"b\": 2}] }", "b"))),
            (r#"{"\u0061":1,"b":2,"a":null}"#, &["a"], Some((r#"{"b":2}"#, "a"))),
            (r#"{"o":{"s":1,"t":{"u":2}},"s":3}"#, &["o.s", "o.t.u"], Some((r#"{"o":{"t":{}},"s":3}"#, "o.s, o.t.u"))),
            (r#"{"o":{"s":1},"s":3}"#, &["o", "o.s"], Some((r#"{"s":3}"#, "o"))),
            (r#"{"o":[{"s":1}]}"#, &["o.s"], None),
            (r#"{"A":1}"#, &["a"], None),
            (r#"["a"]"#, &["a"], None),
            (r#"{"a":1"#, &["a"], None),
            (r#"{"a":1} x"#, &["a"], None),
            ("", &["a"], None),
        ] {
            let expected = expected.map(|(rest, names)| (rest.to_owned(), names.to_owned()));
            assert_eq!(rest(body, listed), expected, "{body} {listed:?}");
        }
    }

    proptest! {
        #[test]
        fn the_rest_is_the_same_value_without_the_fields(
            fields in proptest::collection::btree_map("[abo]", prop_oneof![Just(json!(1)), Just(json!({"a": 1, "b": [2]})), Just(json!("}"))], 0..4),
            listed in proptest::collection::vec("[abo](\\.[ab])?", 0..4),
            is_pretty in any::<bool>(),
        ) {
            let value = json!(fields);
            let text = if is_pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
            let mut expected = value.clone();
            for path in &listed {
                let (object, name) = match path.split_once('.') {
                    Some((outer, name)) => (expected.get_mut(outer), name),
                    None => (Some(&mut expected), path.as_str()),
                };
                if let Some(Value::Object(object)) = object {
                    object.shift_remove(name);
                }
            }
            match without(text.as_bytes(), &listed) {
                Some((rest, _)) => prop_assert_eq!(serde_json::from_slice::<Value>(&rest).unwrap(), expected),
                None => prop_assert_eq!(value, expected),
            }
        }
    }
}
