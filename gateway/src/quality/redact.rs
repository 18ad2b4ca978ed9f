//! Redaction of texts that are kept: each thing that looks like a card number, an account, an address of a person or machine, or
//! a credential is replaced by its kind in brackets. Pure. Patterns find what has a form of its own; names and streets have none.

use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Digits of card numbers (ISO/IEC 7812).
const CARD: RangeInclusive<usize> = 13..=19;
/// Digits of telephone numbers (E.164 has up to 15).
const PHONE: RangeInclusive<usize> = 7..=15;
/// Letters and digits of an IBAN.
const IBAN: RangeInclusive<usize> = 15..=34;
/// Remainder of an IBAN by which its check digits are right (ISO 13616).
const IBAN_REMAINDER: u32 = 1;

/// Finds what is to be replaced in a text of a form.
type Find = fn(&str) -> Option<Range<usize>>;

/// Kind of what is replaced, with the form that is looked for and what of it is of the kind.
struct Pattern {
    kind: &'static str,
    form: Regex,
    find: Find,
}

/// Patterns in the order in which they are applied: a token before the addresses that it may hold.
static PATTERNS: LazyLock<Vec<Pattern>> = LazyLock::new(|| {
    let all: [(&str, &str, Find); 10] = [
        ("jwt", r"\beyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*", whole),
        (
            "apiKey",
            r"\b(?:(?:sk|pk|rk|hf|npm|pypi|whsec|SG)[-_.]|gh[opsur]_|github_pat_|glpat-|xox[abeoprs]-|dop_v1_|AKIA|ASIA|AIza|ya29\.)[A-Za-z0-9_.+/=-]{16,}",
            whole,
        ),
        (
            "apiKey",
            r#"(?i)\b(?:api[ _-]?key|access[ _-]?key|secret(?:[ _-]?key)?|token|password|passwd|bearer|authorization)\b["']?\s*(?:is|:|=)?\s*["']?(?:bearer\s+)?[A-Za-z0-9_.+/=~-]{12,}"#,
            with_digit,
        ),
        ("email", r"(?i)[\p{L}\p{N}._%+'-]+@[\p{L}\p{N}-]+(?:\.[\p{L}\p{N}-]+)+", whole),
        ("iban", r"(?i)\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}", iban),
        ("card", r"\b\d(?:[ -]?\d){12,60}\b", card),
        ("ipAddress", r"(?i)(?:[0-9a-f]{0,4}:){2,7}(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9a-f]{0,4})", address),
        ("ipAddress", r"\b(?:\d{1,3}\.){3}\d{1,3}\b", address),
        ("phone", r"\+\d(?:[ ()./-]{0,3}\d){6,14}\b", phone),
        ("phone", r"(?:\(\d{2,5}\)[ ./-]{0,2}|\b\d{2,5}[ ./-]{1,2})\d{2,5}(?:[ ./-]\d{2,5}){1,4}\b", phone),
    ];
    // The forms are constant, and a test counts those that compile.
    let compiled =
        all.into_iter().filter_map(|(kind, form, find)| Some(Pattern { kind, form: Regex::new(form).ok()?, find }));
    compiled.collect()
});

fn whole(text: &str) -> Option<Range<usize>> {
    (!text.is_empty()).then_some(0..text.len())
}

fn with_digit(text: &str) -> Option<Range<usize>> {
    whole(text).filter(|_| has_digit(text))
}

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}

fn has_digit(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit())
}

/// True for digits whose last one is right by Luhn's formula (ISO/IEC 7812-1, annex B).
fn is_card(digits: &[u32]) -> bool {
    let value = |(n, digit): (usize, &u32)| match n % 2 {
        0 => *digit,
        _ => digit * 2 - if *digit > 4 { 9 } else { 0 },
    };
    CARD.contains(&digits.len()) && digits.iter().rev().enumerate().map(value).sum::<u32>().is_multiple_of(10)
}

/// Longest card number in groups of digits: other groups may stand before and behind it.
fn card(text: &str) -> Option<Range<usize>> {
    let is_digit = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let starts = (0..text.len()).filter(|at| is_digit(*at) && (*at == 0 || !is_digit(at - 1)));
    let ends: Vec<usize> = (1..=text.len()).filter(|at| is_digit(at - 1) && !is_digit(*at)).collect();
    let runs = starts.flat_map(|start| ends.iter().filter(move |end| **end > start).map(move |end| start..*end));
    let cards = runs.filter(|run| text.get(run.clone()).is_some_and(|run| is_card(&digits(run))));
    cards.max_by_key(|run| (run.len(), std::cmp::Reverse(run.start)))
}

/// True for an account number whose check digits are right.
fn is_iban(text: &str) -> bool {
    let text: Vec<char> = text.chars().filter(char::is_ascii_alphanumeric).collect();
    let Some((head, rest)) = text.split_at_checked(4) else { return false };
    let remainder = rest.iter().chain(head).try_fold(0_u32, |sum, c| {
        let value = c.to_digit(36)?;
        Some(if value < 10 { sum * 10 + value } else { sum * 100 + value } % 97)
    });
    IBAN.contains(&text.len()) && remainder == Some(IBAN_REMAINDER)
}

/// Longest account number at the beginning: words may stand behind it.
fn iban(text: &str) -> Option<Range<usize>> {
    let is_end = |end: &usize| {
        let next = text.as_bytes().get(*end);
        next.is_none_or(|byte| !byte.is_ascii_alphanumeric()) && text.get(..*end).is_some_and(is_iban)
    };
    (1..=text.len()).rev().find(is_end).map(|end| 0..end)
}

fn address(text: &str) -> Option<Range<usize>> {
    // `a::b` is code more often than an address.
    with_digit(text).filter(|_| text.parse::<IpAddr>().is_ok())
}

/// The whole text, if it has as many digits as a telephone number and is no date.
fn phone(text: &str) -> Option<Range<usize>> {
    let mut groups: Vec<usize> =
        text.split(|c: char| !c.is_ascii_digit()).map(str::len).filter(|length| *length > 0).collect();
    groups.sort_unstable();
    let is_date = matches!(groups.as_slice(), [1 | 2, 1 | 2, 4]) && !text.starts_with('+');
    whole(text).filter(|_| PHONE.contains(&digits(text).len()) && !is_date)
}

/// Text without what looks like a card, an account, an address or a credential.
pub(super) fn redacted(text: &str) -> String {
    PATTERNS.iter().fold(text.to_owned(), |text, Pattern { kind, form, find }| {
        let replace = |found: &Captures<'_>| {
            let (mut out, mut rest) = (String::new(), found.get(0).map_or("", |found| found.as_str()));
            while let Some(range) = find(rest) {
                out.push_str(rest.get(..range.start).unwrap_or_default());
                out.extend(["[", kind, "]"]);
                rest = rest.get(range.end..).unwrap_or_default();
            }
            out + rest
        };
        form.replace_all(&text, replace).into_owned()
    })
}

/// Beginning of a text that was cut, without a last part that may be the beginning of something whose form needs its end.
pub(super) fn without_cut_end(text: &str) -> &str {
    let end = text.rfind(char::is_whitespace).unwrap_or(0);
    let kept = text.get(..end).unwrap_or_default();
    // Groups of digits, and of an account number, are one thing.
    let mut kept = kept.trim_end();
    while let Some(at) = kept.rfind(char::is_whitespace) {
        let last = kept.get(at..).unwrap_or_default();
        if !has_digit(last) {
            break;
        }
        kept = kept.get(..at).unwrap_or_default().trim_end();
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Kind, and texts of the kind.
    const PLANTED: &[(&str, &[&str])] = &[
        ("card", &["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"]),
        ("iban", &["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "fr1420041010050500013m02606"]),
        ("email", &["jane.o'neill+x@mail.example.com", "jörg@müller.example"]),
        ("phone", &["+49 30 1234567", "+1 (555) 010-9999", "(030) 123 45 67", "555-010-9999", "030/1234-567"]),
        ("ipAddress", &["192.0.2.17", "2001:db8::1", "fe80::1:2:3:4", "::ffff:192.0.2.1"]),
        (
            "apiKey",
            &[
                "sk-proj-abcdefghijklmnop1234",
                "ghp_abcdefghijklmnopqrstuv0123",
                "AKIAIOSFODNN7EXAMPLE",
                "password: hunter2hunter2x",
                "Authorization: Bearer abcdef0123456789",
            ],
        ),
        ("jwt", &["eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhY21lIn0.c2lnbmF0dXJl"]),
    ];

    #[test]
    fn each_kind_is_found_by_its_form_and_checksum() {
        assert_eq!(PATTERNS.len(), 10);
        for (kind, texts) in PLANTED {
            for text in *texts {
                assert_eq!(
                    redacted(&format!("Mine is {text}, thanks.")),
                    format!("Mine is [{kind}], thanks."),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn what_only_looks_alike_stays() {
        for text in [
            "Version 1.2.3, section 4.5.6, 12:30:15, 2026-12-01 and 01.12.2026",
            "The token bucket algorithm has a password policy",
            "order 4111 of 1112, pi is 3.14159265358979",
            "std::vec::Vec and a::b",
            "see @home or me@ work",
            "12 of 34 in 2026",
        ] {
            assert_eq!(redacted(text), text);
        }
        for text in ["4111 1111 1111 1112 is no card", "DE88 3704 0044 0532 0130 00 is no account"] {
            assert!(!redacted(text).contains("[card]") && !redacted(text).contains("[iban]"), "{text}");
        }
        assert_eq!(
            redacted("4111 1111 1111 1111 12/29, DE89 3704 0044 0532 0130 00 at home"),
            "[card] 12/29, [iban] at home"
        );
    }

    #[test]
    fn a_cut_text_ends_before_what_may_be_half_of_something() {
        assert_eq!(without_cut_end("my card is 4111 1111 11"), "my card is");
        assert_eq!(without_cut_end("write to jane@exam"), "write to");
        assert_eq!(without_cut_end("eyJhbGciOiJI"), "");
        assert_eq!(without_cut_end("one two three"), "one two");
    }

    proptest! {
        #[test]
        fn what_is_planted_is_not_kept(
            before in "[a-zäß ,.!?\n]{0,60}", after in "[a-zäß ,.!?\n]{0,60}", kind in 0..PLANTED.len(), which in 0usize..8,
        ) {
            let (_, texts) = PLANTED[kind];
            let planted = texts[which % texts.len()];
            let text = redacted(&format!("{before} {planted} {after}"));
            prop_assert!(!text.contains(planted), "{text}");
        }

        #[test]
        fn any_text_is_redacted_and_cut(text in "\\PC{0,300}") {
            let text = redacted(&text);
            prop_assert!(text.starts_with(without_cut_end(&text)));
        }

        #[test]
        fn any_card_is_found(mut digits in proptest::collection::vec(0u32..10, 12..18), gap in "[ -]?") {
            let check = (0..10).find(|check| is_card(&digits.iter().copied().chain([*check]).collect::<Vec<_>>()));
            digits.extend(check);
            let card = digits.iter().map(ToString::to_string).collect::<Vec<_>>().join(&gap);
            let text = redacted(&format!("pay by {card} today"));
            prop_assert!(!text.contains(&card), "{text}");
        }
    }
}
