//! Credentials that somebody wrote into the file itself, where a reference to a variable or a file belongs. They make the
//! file wrong or unwise, and messages about it must not spread them: not what they quote, nor the line that they show.
//! Found by the keys that hold them: in a document, and in a text that is none yet.

use std::sync::LazyLock;

use regex::Regex;

use crate::tree::{Node, Value};

/// Keys of the language whose values are secrets, and names under which other programs keep theirs.
const SECRET_KEYS: [&str; 6] = ["bearer", "clientsecret", "hmackey", "password", "secret", "token"];
/// Headers whose values are credentials.
const CREDENTIAL_HEADERS: [&str; 5] = ["authorization", "x-api-key", "api-key", "cookie", "proxy-authorization"];
/// Words of names with a hyphen, as headers have it, whose values are credentials: `x-auth-token`. Without the hyphen they
/// are words of the language, such as `maxTokens`.
const CREDENTIAL_WORDS: [&str; 6] = ["token", "secret", "password", "api-key", "credential", "cookie"];
/// Keys of a secret that name where it is, and hold none.
const REFERENCES: [&str; 2] = ["env", "file"];
/// Shortest literal that is masked in a line, bytes: less would take words of the language with it.
const LEAST: usize = 4;

/// A key that may hold a secret and what stands behind it in one line, plain or in quotes. The words that such a key has are
/// looked for first, because a configuration of half a million consumers is read by it too.
#[allow(clippy::unwrap_used, reason = "a fixed expression, which every test runs")]
static ENTRY: LazyLock<Regex> = LazyLock::new(|| {
    let key = r"(?i)([\w-]*(?:bearer|hmackey|password|secret|token|authorization|api-key|credential|cookie)[\w-]*)";
    let value = r#"("(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|[^\s"'{\[#][^,}\]#\n]*)"#;
    Regex::new(&format!(r#"{key}["']?[ \t]*:[ \t]*{value}"#)).unwrap()
});

/// True for the name of a header whose value is a credential.
pub(crate) fn is_credential_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    CREDENTIAL_HEADERS.contains(&name.as_str())
        || (name.contains('-') && CREDENTIAL_WORDS.iter().any(|word| name.contains(word)))
}

/// True for a key whose value is a secret or a credential.
fn is_secret(key: &str) -> bool {
    // `hashOn: {cookie: NAME}` names a cookie.
    let is_header = !key.eq_ignore_ascii_case("cookie") && is_credential_header(key);
    is_header || SECRET_KEYS.iter().any(|secret| secret.eq_ignore_ascii_case(key))
}

/// True for a value that somebody may not read. References to variables are shown as they are written.
fn counts(value: &str) -> bool {
    value.len() >= LEAST && !value.contains("${")
}

/// Calls `see` with every literal of a document that stands under a key for secrets.
pub(crate) fn of_document(root: &Node, see: &mut impl FnMut(&str)) {
    fn walk(node: &Node, under_secret: bool, see: &mut impl FnMut(&str)) {
        match &node.value {
            Value::String(text) if under_secret && counts(text) => see(text),
            Value::Sequence(items) => items.iter().for_each(|item| walk(item, under_secret, see)),
            Value::Mapping(entries) => {
                for (key, child) in entries {
                    let is_reference = under_secret && REFERENCES.contains(&&*key.name);
                    walk(child, !is_reference && (under_secret || is_secret(&key.name)), see);
                }
            }
            _ => {}
        }
    }
    walk(root, false, see);
}

/// Calls `see` with every literal that stands behind a key for secrets in the same line of a text.
pub(crate) fn of_text(text: &str, see: &mut impl FnMut(&str)) {
    for entry in ENTRY.captures_iter(text) {
        let group = |n| entry.get(n).map_or("", |group| group.as_str());
        let value = group(2).trim_end().trim_matches(['"', '\'']);
        if is_secret(group(1)) && counts(value) {
            see(value);
        }
    }
}

/// A line of the file with `*` in place of the characters of each literal, so that a caret under it stays in its place.
pub(crate) fn masked<'l>(line: &str, literals: impl Iterator<Item = &'l str>) -> String {
    let stars = |text: &str| "*".repeat(text.chars().count());
    literals.fold(line.to_owned(), |line, literal| line.replace(literal, &stars(literal)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree;

    fn found(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        of_text(text, &mut |literal| found.push(literal.to_owned()));
        found
    }

    #[test]
    fn literals_are_found_in_texts_that_are_no_documents() {
        for (text, literals) in [
            ("bearer: sk-one", &["sk-one"][..]),
            ("  \"password\": \"ab cd\", port: 1", &["ab cd"]),
            ("{token: 'long, one', x: y}", &["long, one"]),
            ("credentials: {bearer: sk-one}, name: x", &["sk-one"]),
            ("x-auth-token: abcdef # why", &["abcdef"]),
            ("Authorization: \"Bearer abc\nname: \"x\"", &["Bearer abc"]),
            ("password: first\nx-api-key: 'second\ntoken:\n  third: x", &["first", "second"]),
            ("bearer: {env: CHAT_KEY}", &[]),
            ("hashOn: {cookie: session}, apiKey: {headers: [authorization]}", &[]),
            ("password: ${PASSWORD}", &[]),
            ("maxTokens: 10000\ntokens: 1000/min\nfirstToken: 5s", &[]),
        ] {
            assert_eq!(found(text), literals, "{text}");
        }
    }

    #[test]
    fn literals_are_found_in_documents_at_any_depth() {
        let text =
            "admin: {token: {value: literal-1}}\nx: [{set: {x-own-secret: literal-2}}]\ny: {bearer: {env: NAME}}\n";
        let mut found = Vec::new();
        of_document(&tree::parse(text).unwrap(), &mut |literal| found.push(literal.to_owned()));
        assert_eq!(found, ["literal-1", "literal-2"]);
    }

    #[test]
    fn every_key_of_a_secret_is_known() {
        let schema = crate::json_schema(&crate::NoFilters).to_string();
        let named = Regex::new(r#""(\w+)":\{(?:"anyOf":\[)?\{?[^{}]*"\$ref":"\#/\$defs/Secret""#).unwrap();
        let keys: Vec<&str> = named.captures_iter(&schema).map(|key| key.get(1).unwrap().as_str()).collect();
        assert!(keys.len() >= 4, "{keys:?}");
        let unknown: Vec<&&str> = keys.iter().filter(|key| !is_secret(key)).collect();
        assert!(unknown.is_empty(), "add these to SECRET_KEYS: {unknown:?}");
    }

    #[test]
    fn a_line_keeps_its_width() {
        assert_eq!(masked("key: päss, x: päss", ["päss"].into_iter()), "key: ****, x: ****");
    }
}
