//! `userAgent`: keeps programs out by how they call themselves.

use aho_corasick::AhoCorasick;
use http::{HeaderValue, StatusCode, header};
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Input, MatchKind};
use regex_syntax::hir::literal::Extractor;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::FilePath;
use spillway_filter::{
    ErrorKind, FieldError, Filter, FilterFactory, Flow, Refusal, RequestView, Stage, define_compiled,
};

use crate::list_file;

/// Most patterns of a list with its files.
const MAX_PATTERNS: usize = 10_000;
/// Most patterns of a list that are more than a text to look for. Each takes a step for each byte of a value.
const MAX_EXPRESSIONS: usize = 256;
/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 1 << 10;
/// Largest automaton of a pattern, in bytes. It is made whole with the configuration, so that no value takes more than one step for each
/// of its bytes.
const MAX_AUTOMATON: usize = 64 << 10;
/// Most memory for making one, in bytes.
const MAX_STATES: usize = 1 << 20;
/// Longest value that is looked at, in bytes: no browser's is as long.
const MAX_VALUE: usize = 512;

/// Refuses requests by `User-Agent`, a header that callers choose freely: it keeps out crawlers that say what they are, and nobody who
/// hides it. Patterns are regular expressions over bytes that look for a part of the value, capital letters or small; `\w` and the
/// like are those of ASCII. A value longer than 512 bytes is refused, and so are several values.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct UserAgent {
    /// Patterns of what is refused.
    deny: Vec<String>,
    /// Files with further patterns of what is refused: one on each line, where lines that begin with `#` or `;` are comments, or a list
    /// in JSON of strings or of objects with a `pattern`.
    deny_files: Vec<FilePath>,
    /// Patterns of what passes all the same.
    except: Vec<String>,
    /// True refuses requests without the header, too.
    deny_missing: bool,
}

/// Entry of a list in JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entry {
    Plain(String),
    /// As in crawler-user-agents.
    Object {
        pattern: String,
    },
}

/// Pattern of a list.
enum Pattern {
    /// Texts of which one is looked for.
    Texts(Vec<Vec<u8>>),
    /// Expression that is more than a text.
    Expression(Box<Expression>),
}

/// Automaton of a pattern, whole.
type Expression = dense::DFA<Vec<u32>>;

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// A message about what is wrong with it.
    fn read(pattern: &str) -> Result<Self, String> {
        if pattern.len() > MAX_PATTERN {
            return Err(format!("found a pattern of {} bytes; expected at most {MAX_PATTERN}", pattern.len()));
        }
        let finds_all =
            || format!("`{pattern}` finds every value, an empty one too; expected a part of the names that are meant");
        match texts(pattern) {
            Some(texts) if texts.iter().any(Vec::is_empty) => Err(finds_all()),
            Some(texts) => Ok(Self::Texts(texts)),
            None => {
                let expression = expression(pattern).map_err(|why| format!("`{pattern}` cannot be used: {why}"))?;
                if finds(&expression, b"") { Err(finds_all()) } else { Ok(Self::Expression(Box::new(expression))) }
            }
        }
    }
}

/// Texts that a pattern stands for, where it looks for nothing else; `None` for other patterns.
fn texts(pattern: &str) -> Option<Vec<Vec<u8>>> {
    // Flags may make capital letters matter.
    let parsed = regex_syntax::parse(pattern).ok().filter(|_| pattern.is_ascii() && !pattern.contains("(?"))?;
    if !parsed.properties().look_set().is_empty() {
        return None;
    }
    let found = Extractor::new().extract(&parsed);
    let literals = found.literals().filter(|_| found.is_exact())?;
    Some(literals.iter().map(|literal| literal.as_bytes().to_vec()).collect())
}

/// Makes the automaton of a pattern. The error is a message.
fn expression(pattern: &str) -> Result<Expression, String> {
    let syntax = syntax::Config::new().case_insensitive(true).unicode(false).utf8(false);
    let states = thompson::Config::new().utf8(false).nfa_size_limit(Some(MAX_STATES));
    let config = dense::Config::new()
        .match_kind(MatchKind::All)
        .start_kind(StartKind::Unanchored)
        .dfa_size_limit(Some(MAX_AUTOMATON))
        .determinize_size_limit(Some(MAX_STATES));
    let built = dense::Builder::new().syntax(syntax).thompson(states).configure(config).build(pattern);
    built.map_err(|why| {
        let reason = std::error::Error::source(&why).map(|source| format!(": {source}"));
        format!("{why}{}", reason.unwrap_or_default())
    })
}

fn finds(expression: &Expression, value: &[u8]) -> bool {
    // The automaton stops at no byte and has a start for every input, without which alone a search fails.
    expression.try_search_fwd(&Input::new(value).earliest(true)).is_ok_and(|end| end.is_some())
}

/// Compiled list. Most patterns of published lists are texts, which are found in one pass however many there are. As one set of
/// regular expressions, thousands took tens of milliseconds in a value that was written for it.
struct Names {
    texts: AhoCorasick,
    expressions: Vec<Expression>,
}

impl Names {
    fn compile(key: &str, patterns: Vec<Pattern>, errors: &mut Vec<FieldError>) -> Option<Self> {
        if patterns.len() > MAX_PATTERNS {
            let why =
                format!("found {} patterns with those of the files; expected at most {MAX_PATTERNS}", patterns.len());
            errors.push(FieldError::at([key], why));
        }
        let (mut texts, mut expressions) = (Vec::new(), Vec::new());
        for pattern in patterns {
            match pattern {
                Pattern::Texts(found) => texts.extend(found),
                Pattern::Expression(expression) => expressions.push(*expression),
            }
        }
        if expressions.len() > MAX_EXPRESSIONS {
            let why = format!(
                "found {} patterns that are more than a text to look for, such as `^curl`; expected at most {MAX_EXPRESSIONS}",
                expressions.len()
            );
            errors.push(FieldError::at([key], why));
        }
        let texts = AhoCorasick::builder().ascii_case_insensitive(true).build(texts);
        let texts = texts.map_err(|why| errors.push(FieldError::at([key], why.to_string()))).ok()?;
        errors.is_empty().then_some(Self { texts, expressions })
    }

    fn find(&self, value: &[u8]) -> bool {
        self.texts.is_match(value) || self.expressions.iter().any(|expression| finds(expression, value))
    }
}

/// Adds a pattern to a list, or tells what is wrong with it.
fn add(pattern: &str, to: &mut Vec<Pattern>) -> Result<(), String> {
    to.push(Pattern::read(pattern)?);
    // What is refused in the end must not take all memory before.
    if to.len() > MAX_PATTERNS + 1 { Err(format!("expected at most {MAX_PATTERNS} patterns")) } else { Ok(()) }
}

/// Patterns of a key that stand in the configuration itself.
fn written(key: &str, patterns: &[String], errors: &mut Vec<FieldError>) -> Vec<Pattern> {
    let mut all = Vec::new();
    for (n, pattern) in patterns.iter().enumerate() {
        errors.extend(add(pattern, &mut all).err().map(|why| FieldError::at([key, &n.to_string()], why)));
    }
    all
}

/// Patterns of files.
fn in_files(key: &str, files: &[FilePath], errors: &mut Vec<FieldError>) -> Vec<Pattern> {
    let mut all = Vec::new();
    for (n, text) in list_file::texts(key, files, errors) {
        let text = text.trim_start_matches('\u{feff}').trim_start();
        if !text.starts_with('[') {
            list_file::read(key, n, text, errors, |pattern| add(pattern, &mut all));
            continue;
        }
        let entries = serde_json::from_str::<Vec<Entry>>(text).map_err(|why| {
            format!("begins as a list in JSON, and is none of strings or of objects with a `pattern`: {why}")
        });
        let wrong = entries.and_then(|entries| {
            let mut patterns = entries.iter().map(|(Entry::Plain(pattern) | Entry::Object { pattern })| pattern);
            patterns.try_for_each(|pattern| add(pattern, &mut all))
        });
        errors.extend(wrong.err().map(|why| FieldError::at([key, &n.to_string()], why)));
    }
    all
}

fn compile(config: &UserAgent) -> Result<Programs, Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut denied = written("deny", &config.deny, &mut errors);
    denied.extend(in_files("denyFiles", &config.deny_files, &mut errors));
    let except = written("except", &config.except, &mut errors);
    if config.deny.is_empty() && config.deny_files.is_empty() && !config.deny_missing {
        let why = "no effect: list patterns under `deny` or files under `denyFiles`, or set `denyMissing`";
        errors.push(FieldError::at([], why));
    }
    let deny = Names::compile("deny", denied, &mut errors);
    let except = Names::compile("except", except, &mut errors);
    match (deny, except) {
        (Some(deny), Some(except)) => Ok(Programs { deny, except, deny_missing: config.deny_missing }),
        _ => Err(errors),
    }
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define_compiled("userAgent", compile)
}

/// Filter with its lists.
struct Programs {
    deny: Names,
    except: Names,
    deny_missing: bool,
}

impl Programs {
    fn passes(&self, value: &HeaderValue) -> bool {
        let value = value.as_bytes();
        if value.is_empty() {
            return !self.deny_missing;
        }
        value.len() <= MAX_VALUE && (!self.deny.find(value) || self.except.find(value))
    }
}

impl Filter for Programs {
    fn stage(&self) -> Stage {
        Stage::Guard
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        let mut values = x.headers.get_all(header::USER_AGENT).iter();
        // There is one (RFC 9110, 10.1.5). Servers differ in which of several they read.
        let passes = match (values.next(), values.next()) {
            (None, _) => !self.deny_missing,
            (Some(value), None) => self.passes(value),
            (Some(_), Some(_)) => false,
        };
        if passes {
            return Flow::Continue;
        }
        Flow::Refuse(Box::new(Refusal::new(
            StatusCode::FORBIDDEN,
            ErrorKind::Permission,
            "user_agent_not_allowed",
            "programs with this `User-Agent` are not allowed here",
        )))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use spillway_filter::testing::{FilterBuilder, TestRequest};

    use super::*;

    const BROWSER: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";

    fn passes(filter: &dyn Filter, values: &[&str]) -> bool {
        let request = values.iter().fold(TestRequest::get("/"), |request, value| request.header("user-agent", value));
        matches!(request.decide(filter), Flow::Continue)
    }

    fn told(config: &Value) -> String {
        factory().check(config).iter().map(|error| format!("{error:?}\n")).collect()
    }

    #[test]
    fn programs_are_refused_by_part_of_their_name_but_for_exceptions() {
        let config = json!({"deny": ["bot\\b", "python-requests/"], "except": ["Googlebot/2"]});
        let filter = FilterBuilder::new().build(&*factory(), &config);
        for (values, wanted) in [
            (vec![], true),
            (vec![""], true),
            (vec![BROWSER], true),
            (vec!["Mozilla/5.0 (compatible; EvilBOT/1.0)"], false),
            (vec!["bottle"], true),
            (vec!["Python-Requests/2.32"], false),
            (vec!["Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"], true),
            (vec![BROWSER, "evil bot"], false),
            (vec![BROWSER, BROWSER], false),
        ] {
            assert_eq!(passes(&*filter, &values), wanted, "{values:?}");
        }
        assert!(passes(&*filter, &["x".repeat(MAX_VALUE).as_str()]));
        assert!(!passes(&*filter, &["x".repeat(MAX_VALUE + 1).as_str()]));
        let named = FilterBuilder::new().build(&*factory(), &json!({"denyMissing": true}));
        assert!(!passes(&*named, &[]) && !passes(&*named, &[""]) && passes(&*named, &["x"]));
    }

    #[test]
    fn texts_are_told_from_expressions() {
        let all = |texts: &[&str]| Some(texts.iter().map(|text| text.as_bytes().to_vec()).collect::<Vec<_>>());
        for (pattern, wanted) in [
            ("Googlebot\\/", all(&["Googlebot/"])),
            ("[wW]get", all(&["Wget", "wget"])),
            ("one|two", all(&["one", "two"])),
            ("^curl", None),
            ("bot\\b", None),
            ("end$", None),
            ("a.b", None),
            ("a+", None),
            ("(?-i)Bot", None),
            ("b\u{f6}t", None),
        ] {
            assert_eq!(texts(pattern), wanted, "{pattern}");
        }
    }

    proptest::proptest! {
        /// A list decides as each of its patterns would as a regular expression.
        #[test]
        fn a_list_decides_as_regular_expressions_do(
            patterns in proptest::collection::vec("(\\^|\\[ab\\]|c\\.|B|a|b|\\(a\\|bc\\)|c\\?x|b\\{2\\}|\\\\b){1,4}", 1..6),
            value in "[abcABCx ]{1,12}",
        ) {
            let read = |pattern: &String| Some((pattern.clone(), Pattern::read(pattern).ok()?));
            let (patterns, compiled): (Vec<_>, Vec<_>) = patterns.iter().filter_map(read).unzip();
            let names = Names::compile("deny", compiled, &mut Vec::new()).unwrap();
            let each = |pattern: &String| {
                regex::RegexBuilder::new(pattern).case_insensitive(true).build().unwrap().is_match(&value)
            };
            proptest::prop_assert_eq!(names.find(value.as_bytes()), patterns.iter().any(each), "{:?} {:?}", patterns, value);
        }
    }

    #[test]
    fn lists_come_from_files_of_lines_or_of_json() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name)
        };
        let lines = file("bots.txt", "# bad\nAhrefsBot\nGo-http-client/\n");
        let json = file(
            "bots.json",
            concat!("\u{feff}", r#"[{"pattern": "Googlebot\\/", "url": "x", "instances": []}, "curl/"]"#),
        );
        let filter = FilterBuilder::new().build(&*factory(), &json!({"denyFiles": [lines, json]}));
        for (value, wanted) in [
            ("ahrefsbot/7", false),
            ("Go-http-client/1.1", false),
            ("Googlebot/2", false),
            ("curl/8", false),
            (BROWSER, true),
        ] {
            assert_eq!(passes(&*filter, &[value]), wanted, "{value}");
        }
        for (text, why) in [
            ("good\n(bad\n", "line 2 of the file: `(bad` cannot be used"),
            ("a*\n", "line 1 of the file: `a*` finds every value"),
            ("[1]", "none of strings or of objects with a `pattern`"),
            ("[\"(\"]", "`(` cannot be used"),
        ] {
            let told = told(&json!({"denyFiles": [file("wrong", text)]}));
            assert!(told.contains(why) && told.contains("denyFiles"), "{text}: {told}");
        }
    }

    #[test]
    fn what_does_nothing_or_too_much_is_told() {
        for (config, why) in [
            (json!({}), "no effect"),
            (json!({"except": ["x"]}), "no effect"),
            (json!({"deny": [""]}), "finds every value"),
            (json!({"deny": ["(?=x)"]}), "cannot be used"),
            (json!({"deny": vec!["x"; MAX_PATTERNS + 1]}), "found 10001 patterns"),
            (
                json!({"deny": vec!["^x"; MAX_EXPRESSIONS + 1]}),
                "found 257 patterns that are more than a text to look for, such as `^curl`",
            ),
            (json!({"deny": ["bo.{1,60}xNz"]}), "cannot be used"),
            (json!({"deny": ["[a-z]{5000}"]}), "cannot be used"),
            (json!({"deny": ["\\pL"]}), "cannot be used"),
            (json!({"deny": ["x".repeat(MAX_PATTERN + 1)]}), "found a pattern of 1025 bytes"),
        ] {
            let told = told(&config);
            assert!(told.contains(why), "{why}: {}", &told[..told.len().min(300)]);
        }
    }
}
