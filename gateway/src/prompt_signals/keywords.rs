//! Search for whole words and phrases in a text, whatever their case and the blanks between words.

use aho_corasick::{AhoCorasick, AhoCorasickKind, BuildError, MatchKind};

use super::conversation::SEAM;

/// Words and phrases, of which several must occur.
#[derive(Debug)]
pub(super) struct Keywords {
    search: AhoCorasick,
    number: usize,
    least: usize,
}

impl Keywords {
    pub(super) fn new(keywords: &[String], least: usize) -> Result<Self, BuildError> {
        let plain: Vec<String> = keywords.iter().map(|keyword| plain(keyword)).collect();
        // Of a contiguous automaton the memory is bounded by the length of the keywords.
        let search = AhoCorasick::builder()
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .match_kind(MatchKind::Standard)
            .build(&plain)?;
        Ok(Self { search, number: plain.len(), least })
    }

    /// True if enough of the keywords occur in a text. A keyword may go over the seam of two parts, and may end there.
    pub(super) fn occur_in(&self, text: &str) -> bool {
        let mut found = Found { keywords: vec![false; self.number], number: 0 };
        if !text.contains(SEAM) {
            return self.look(&plain(text), &mut found);
        }
        self.look(&plain(&text.replace(SEAM, "\n")), &mut found)
            || self.look(&plain(&text.replace(SEAM, "")), &mut found)
    }

    /// Looks for keywords that were not found yet; true once they are enough.
    fn look(&self, text: &str, found: &mut Found) -> bool {
        for hit in self.search.find_overlapping_iter(text) {
            let Some(known) = found.keywords.get_mut(hit.pattern().as_usize()) else { continue };
            if !*known && is_whole(text, hit.start(), hit.end()) {
                *known = true;
                found.number += 1;
                if found.number >= self.least {
                    return true;
                }
            }
        }
        false
    }
}

/// Keywords that were found.
struct Found {
    keywords: Vec<bool>,
    number: usize,
}

/// Text in small letters with one blank between words.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !plain.is_empty() {
            plain.push(' ');
        }
        // Sigma has another form at the end of a word.
        plain.extend(word.chars().flat_map(char::to_lowercase).map(|c| if c == 'ς' { 'σ' } else { c }));
    }
    plain
}

/// True if a range of a text begins and ends where a word does.
fn is_whole(text: &str, start: usize, end: usize) -> bool {
    let last = |text: &str| text.chars().next_back();
    let first = |text: &str| text.chars().next();
    let (before, found, after) = (text.get(..start), text.get(start..end), text.get(end..));
    let (Some(before), Some(found), Some(after)) = (before, found, after) else { return false };
    is_boundary(last(before), first(found)) && is_boundary(last(found), first(after))
}

/// True if no word goes on between two characters. Scripts that put no blanks between words have no boundaries to look for.
fn is_boundary(left: Option<char>, right: Option<char>) -> bool {
    let (Some(left), Some(right)) = (left, right) else { return true };
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    !(is_part(left) && is_part(right)) || stands_alone(left) || stands_alone(right)
}

/// True for letters of scripts that put no blanks between words.
fn stands_alone(letter: char) -> bool {
    matches!(letter, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occur(keywords: &[&str], least: usize, text: &str) -> bool {
        let keywords: Vec<String> = keywords.iter().map(|keyword| (*keyword).to_owned()).collect();
        Keywords::new(&keywords, least).unwrap().occur_in(text)
    }

    #[test]
    fn whole_words_are_found_whatever_their_case() {
        for (keyword, text, expected) in [
            ("secret", "It is SECRET.", true),
            ("Secret", "top-secret", true),
            ("secret", "secrets", false),
            ("secret", "my_secret", false),
            ("secret", "secret2", false),
            ("internal only", "this is INTERNAL\n\t only!", true),
            ("internal only", "internal, only", false),
            ("größe", "GRÖSSE", false),
            ("größe", "Die GRÖßE zählt", true),
            ("οδος", "ΟΔΟΣ", true),
            ("ΟΔΟΣ", "οδος", true),
            ("c++", "I write C++.", true),
            ("c++", "I write c+++", true),
            (".net", "asp.net", true),
            ("密码", "我的密码是", true),
            ("ü", "ünder", false),
            ("a", "", false),
            ("poison", "poi\u{1f}son", true),
            ("poison", "poison\u{1f}ed", true),
            ("poison", "poi son", false),
        ] {
            assert_eq!(occur(&[keyword], 1, text), expected, "{keyword} in {text}");
        }
    }

    #[test]
    fn different_keywords_are_counted_also_where_they_overlap() {
        let keywords = ["new york", "york", "city"];
        assert!(occur(&keywords, 2, "New York"));
        assert!(!occur(&keywords, 2, "york, york and york"));
        assert!(occur(&keywords, 3, "the city of New York"));
        assert!(!occur(&keywords, 3, "New Yorker cities"));
    }
}
