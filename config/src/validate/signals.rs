//! Checks of `signals`.

use std::collections::HashSet;

use super::{Context, Segment, at};
use crate::schema::{Examples, Signal};

/// Most signals of a configuration: each has series of its own.
const MOST_SIGNALS: usize = 64;
/// Longest name of a signal or label, in bytes.
const MOST_NAME: usize = 64;
/// Most keywords of a signal.
const MOST_KEYWORDS: usize = 1_000;
/// Longest keyword, in bytes.
const MOST_KEYWORD: usize = 128;
/// Most examples of a signal: each is compared with every text.
const MOST_EXAMPLES: usize = 256;
/// Longest example, in bytes.
const MOST_EXAMPLE: usize = 4 << 10;
/// Most labels of a signal.
const MOST_LABELS: usize = 64;
/// Longest `timeout`, in seconds.
const MOST_TIMEOUT: u64 = 60;
/// Words that CEL keeps for itself.
const RESERVED: [&str; 21] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "var",
    "void",
    "while",
];

pub(super) fn all(cx: &mut Context<'_>) {
    let config = cx.config;
    if config.signals.len() > MOST_SIGNALS {
        let message = format!("found {} signals; expected at most {MOST_SIGNALS}", config.signals.len());
        cx.error(at!["signals"], message);
        return;
    }
    for (name, signal) in &config.signals {
        identifier(cx, at!["signals", name.as_str()], name);
        kind(cx, name, signal);
        texts(cx, name, signal);
        models(cx, name, signal);
        bounds(cx, name, signal);
        let conditions = || config.routes.iter().flat_map(|route| &route.matches).filter_map(|one| one.when.as_deref());
        if !conditions().any(|when| names(when, name)) {
            let message = format!("no effect: no `matches[].when` reads `signals.{name}`");
            cx.warn(at!["signals", name.as_str()], message);
        }
    }
}

/// True if an expression may read the signal.
fn names(when: &str, name: &str) -> bool {
    let read = format!("signals.{name}");
    when.match_indices(&read).any(|(at, _)| {
        let rest = when.get(at + read.len()..).unwrap_or_default();
        !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
    })
}

/// Checks that an expression can read a name behind a dot.
fn identifier(cx: &mut Context<'_>, at: Vec<Segment>, name: &str) {
    let is_sound = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.len() <= MOST_NAME;
    if !is_sound {
        let message = format!(
            "expressions cannot read the name `{name}`; expected 1 to {MOST_NAME} letters, digits and `_`, the first no digit"
        );
        cx.error(at, message);
    } else if RESERVED.contains(&name) {
        cx.error(at, format!("`{name}` is a word of the language of expressions: choose another name"));
    }
}

/// Checks that a signal is of one kind, and has no key of another.
fn kind(cx: &mut Context<'_>, name: &str, signal: &Signal) {
    let kinds = [
        ("keywords", signal.keywords.is_some()),
        ("examples", signal.examples.is_some()),
        ("classifier", signal.classifier.is_some()),
    ];
    let given: Vec<&str> = kinds.iter().filter(|(_, is_given)| *is_given).map(|(key, _)| *key).collect();
    match given.as_slice() {
        [] => cx.error(at!["signals", name], "expected one of `keywords`, `examples` and `classifier`: add it"),
        [_] => {}
        [first, second, ..] => {
            let message = format!("a signal with `{first}` cannot have this too; make two signals");
            cx.error(at!["signals", name, *second], message);
        }
    }
    if signal.at_least.is_some() && signal.keywords.is_none() {
        cx.error(at!["signals", name, "atLeast"], "no effect without `keywords`: remove it");
    }
    if signal.model.is_some() && signal.examples.is_none() {
        let message = "no effect without `examples`: remove it, or write it in `classifier`";
        cx.error(at!["signals", name, "model"], message);
    }
    if signal.timeout.is_some() && signal.keywords.is_some() {
        cx.error(at!["signals", name, "timeout"], "no effect with `keywords`, which wait for no model: remove it");
    }
}

/// Checks keywords, examples and labels.
fn texts(cx: &mut Context<'_>, name: &str, signal: &Signal) {
    if let Some(keywords) = &signal.keywords {
        if keywords.is_empty() || keywords.len() > MOST_KEYWORDS {
            let message = format!("found {} keywords; expected 1 to {MOST_KEYWORDS}", keywords.len());
            cx.error(at!["signals", name, "keywords"], message);
        }
        let mut known = HashSet::new();
        for (n, keyword) in keywords.iter().enumerate().take(MOST_KEYWORDS) {
            let at = at!["signals", name, "keywords", n];
            let plain = keyword.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
            if plain.is_empty() || keyword.len() > MOST_KEYWORD {
                cx.error(at, format!("found a keyword of {} bytes; expected 1 to {MOST_KEYWORD}", keyword.len()));
            } else if !known.insert(plain) {
                cx.error(at, format!("`{keyword}` is in the list already, perhaps in another case: remove it"));
            }
        }
        let least = signal.at_least.unwrap_or(Signal::DEFAULT_AT_LEAST);
        if usize::try_from(least.get()).is_ok_and(|least| least > keywords.len()) {
            let message = format!("{least} of {} keywords never occur; expected as many at most", keywords.len());
            cx.error(at!["signals", name, "atLeast"], message);
        }
    }
    let Some(examples) = &signal.examples else { return };
    let number = examples.texts().count();
    if number == 0 || number > MOST_EXAMPLES {
        let message = format!("found {number} examples; expected 1 to {MOST_EXAMPLES}");
        cx.error(at!["signals", name, "examples"], message);
        return;
    }
    let length = |cx: &mut Context<'_>, at: Vec<Segment>, text: &str| {
        if text.trim().is_empty() || text.len() > MOST_EXAMPLE {
            cx.error(at, format!("found an example of {} bytes; expected 1 to {MOST_EXAMPLE}", text.len()));
        }
    };
    match examples {
        Examples::List(texts) => {
            for (n, text) in texts.iter().enumerate() {
                length(cx, at!["signals", name, "examples", n], text);
            }
        }
        Examples::Labelled(labels) => {
            if labels.len() > MOST_LABELS {
                let message = format!("found {} labels; expected at most {MOST_LABELS}", labels.len());
                cx.error(at!["signals", name, "examples"], message);
                return;
            }
            for (label, texts) in labels {
                identifier(cx, at!["signals", name, "examples", label.as_str()], label);
                if texts.is_empty() {
                    let message = "a label without examples is like no text; expected at least one";
                    cx.error(at!["signals", name, "examples", label.as_str()], message);
                }
                for (n, text) in texts.iter().enumerate() {
                    length(cx, at!["signals", name, "examples", label.as_str(), n], text);
                }
            }
        }
    }
}

/// Checks the names of models and of their labels.
fn models(cx: &mut Context<'_>, name: &str, signal: &Signal) {
    let place = match (&signal.examples, &signal.classifier) {
        (Some(_), _) => at!["signals", name, "model"],
        (None, Some(_)) => at!["signals", name, "classifier", "model"],
        (None, None) => return,
    };
    match signal.used_model() {
        None => {
            let message =
                "`model` is missing, which compares the examples; expected the name of a built-in model for embeddings";
            cx.error(at!["signals", name], message);
        }
        Some(model) if !cx.index.models.contains(model) => {
            let mut known: Vec<&str> = cx.index.models.iter().copied().collect();
            known.sort_unstable();
            cx.unknown(place, "built-in model", model, &known);
        }
        Some(_) => {}
    }
    let Some(classifier) = &signal.classifier else { return };
    if classifier.labels.is_empty() || classifier.labels.len() > MOST_LABELS {
        let message = format!("found {} labels; expected 1 to {MOST_LABELS}", classifier.labels.len());
        cx.error(at!["signals", name, "classifier", "labels"], message);
    }
    for (n, label) in classifier.labels.iter().enumerate() {
        if classifier.labels.iter().take(n).any(|before| before == label) {
            let message = format!("`{label}` is in the list already: remove it");
            cx.error(at!["signals", name, "classifier", "labels", n], message);
        }
    }
}

fn bounds(cx: &mut Context<'_>, name: &str, signal: &Signal) {
    if let Some(timeout) = signal.timeout
        && (timeout.0.is_zero() || timeout.0 > std::time::Duration::from_secs(MOST_TIMEOUT))
    {
        cx.error(at!["signals", name, "timeout"], format!("found {timeout}; expected more than 0s and at most 1m"));
    }
    if let Some(most) = signal.max_text
        && !(1 << 10..=1 << 20).contains(&most.0)
    {
        cx.error(at!["signals", name, "maxText"], format!("found {most}; expected 1KiB to 1MiB"));
    }
}
