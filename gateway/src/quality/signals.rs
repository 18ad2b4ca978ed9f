//! Signs, in the messages of a conversation alone, that it goes badly; and signs of a refusal in an answer. Both are rules of
//! thumb: their share over many requests says something, a single one does not.

use std::collections::HashSet;

use super::texts::{Prompt, Said};

/// Share of the words of two messages that both have from which one is a rephrasing of the other.
const ALIKE: f64 = 0.6;
/// Words below which a message has too few of them to tell a rephrasing.
const LEAST_WORDS: usize = 4;
/// Most words of a follow-up that counts as very short.
const SHORT: usize = 2;
/// Characters at the beginning of an answer in which a refusal is looked for.
const BEGINNING: usize = 200;

/// Beginnings of refusals, in small letters with plain apostrophes.
const REFUSALS: &[&str] = &[
    "i can't assist",
    "i can't help",
    "i can't provide",
    "i cannot assist",
    "i cannot help",
    "i cannot provide",
    "i cannot fulfill",
    "i can't fulfill",
    "i can't comply",
    "i cannot comply",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "i won't be able to",
    "i must decline",
    "as an ai language model, i cannot",
    "as an ai language model, i can't",
    "ich kann dir dabei nicht",
    "ich kann ihnen dabei nicht",
    "dabei kann ich nicht helfen",
    "je ne peux pas vous aider",
    "je ne peux pas répondre",
    "no puedo ayudar",
    "lo siento, pero no puedo",
];

/// Words of somebody who gives up.
const GIVING_UP: &[&str] = &[
    "never mind",
    "nevermind",
    "forget it",
    "i give up",
    "this is useless",
    "you are useless",
    "you're useless",
    "vergiss es",
    "schon gut",
    "ich gebe auf",
    "laisse tomber",
    "laissez tomber",
    "olvídalo",
    "déjalo",
];

/// Sign in a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// None.
    None,
    /// The user says the same again.
    Repeated,
    /// The user says nearly the same again.
    Rephrased,
    /// The user gives up.
    GaveUp,
    /// The user answers in a word or two.
    Short,
}

impl Signal {
    /// Name in metrics, spans and reports.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Repeated => "repeated",
            Self::Rephrased => "rephrased",
            Self::GaveUp => "gave_up",
            Self::Short => "short_follow_up",
        }
    }

    /// Sign in the last message of a conversation; `None` where no answer came before it.
    pub(super) fn of(prompt: &Prompt) -> Option<Self> {
        let before = prompt.before.as_ref().filter(|_| prompt.is_answered)?;
        let last = plain(&prompt.last.start);
        if GIVING_UP.iter().any(|words| last.contains(words)) {
            return Some(Self::GaveUp);
        }
        if let Some(again) = again(&last, &plain(&before.start)) {
            return Some(again);
        }
        Some(if last.split_whitespace().count() <= SHORT { Self::Short } else { Self::None })
    }
}

/// True if a text of the user repeats or rephrases another one.
pub fn says_again(last: &str, before: &str) -> bool {
    again(&plain(last), &plain(before)).is_some()
}

/// Way in which a text says what another one says, both in their plain form.
fn again(last: &str, before: &str) -> Option<Signal> {
    if last == before {
        return Some(Signal::Repeated);
    }
    let (one, other): (HashSet<_>, HashSet<_>) =
        (last.split_whitespace().collect(), before.split_whitespace().collect());
    if one.len().min(other.len()) < LEAST_WORDS {
        return None;
    }
    let both = one.intersection(&other).count();
    let all = one.len() + other.len() - both;
    #[allow(clippy::cast_precision_loss, reason = "some thousands of words")]
    let is_alike = both as f64 >= ALIKE * all as f64;
    is_alike.then_some(Signal::Rephrased)
}

/// Text in small letters without punctuation around its words.
fn plain(text: &str) -> String {
    let lower = text.to_lowercase();
    let words = lower.split_whitespace().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()));
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// True for an answer that refuses: by its form, by its finish reason, or by its first words.
pub(super) fn is_refusal(said: &Said, finish: Option<&str>) -> bool {
    if said.is_refusal || matches!(finish, Some("content_filter" | "refusal")) {
        return true;
    }
    let beginning: String = said.text.start.chars().take(BEGINNING).collect();
    let beginning = beginning.to_lowercase().replace('\u{2019}', "'");
    REFUSALS.iter().any(|words| beginning.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(before: &str, last: &str) -> Option<Signal> {
        let messages = serde_json::json!({"messages": [
            {"role": "user", "content": before}, {"role": "assistant", "content": "a"}, {"role": "user", "content": last},
        ]});
        Signal::of(&Prompt::read(messages.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn signs_are_seen_in_the_last_two_messages() {
        let asked = "How do I bake bread without yeast at home?";
        for (last, expected) in [
            ("how do i bake bread without yeast, at home", Signal::Repeated),
            ("How can I bake bread without yeast at home?", Signal::Rephrased),
            ("Never mind, I will ask somebody.", Signal::GaveUp),
            ("no", Signal::Short),
            ("Thank you. Which flour is best for that, and how long does it take?", Signal::None),
        ] {
            assert_eq!(signal(asked, last), Some(expected), "{last}");
        }
        let single = Prompt::read(br#"{"messages":[{"role":"user","content":"no"}]}"#).unwrap();
        assert_eq!(Signal::of(&single), None);
    }

    #[test]
    fn refusals_are_seen_by_form_reason_and_words() {
        let said = |text: &str| {
            let mut said = Said::default();
            said.text.push(text);
            said
        };
        assert!(is_refusal(&said("I\u{2019}m sorry, but I can\u{2019}t help with that."), None));
        assert!(is_refusal(&said(""), Some("content_filter")));
        assert!(!is_refusal(&said("Of course."), Some("stop")));
    }
}
