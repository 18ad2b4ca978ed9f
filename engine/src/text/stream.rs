//! Growing text of an answer: whole characters only, and nothing that may turn out to be a stop string.

/// Text that a token adds to an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// Text that can be sent.
    pub text: String,
    /// Index of the stop string that was completed: the answer ends before it.
    pub stopped: Option<usize>,
}

/// Collects the bytes of tokens.
#[derive(Debug, Default)]
pub struct TextStream {
    stops: Vec<String>,
    /// Incomplete character; at most three bytes.
    partial: Vec<u8>,
    /// Text that may be the beginning of a stop string; shorter than the longest of them.
    held: String,
}

impl TextStream {
    /// A stream that ends at any of `stops`; empty ones are ignored.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|s| !s.is_empty()).collect(), ..Self::default() }
    }

    /// Adds the bytes of a token.
    pub fn push(&mut self, bytes: &[u8]) -> Added {
        self.partial.extend_from_slice(bytes);
        let partial = std::mem::take(&mut self.partial);
        let mut rest = partial.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, tail) = rest.split_at_checked(e.valid_up_to()).unwrap_or((rest, &[]));
                    self.held.push_str(&String::from_utf8_lossy(valid));
                    rest = tail;
                    // `None`: the bytes may still become a character. `Some`: they never will.
                    let Some(bad) = e.error_len() else { break };
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(bad..).unwrap_or_default();
                }
            }
        }
        self.partial = rest.to_vec();
        self.release()
    }

    fn release(&mut self) -> Added {
        let found = self.stops.iter().enumerate().filter_map(|(n, stop)| Some((self.held.find(stop.as_str())?, n)));
        if let Some((at, stop)) = found.min() {
            self.held.truncate(at);
            return Added { text: std::mem::take(&mut self.held), stopped: Some(stop) };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let tail = self.held.split_off(self.held.len() - keep);
        Added { text: std::mem::replace(&mut self.held, tail), stopped: None }
    }

    /// Ends an answer without a stop string: text held back is part of it.
    pub fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        if !std::mem::take(&mut self.partial).is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text
    }
}

/// Length of the longest suffix of `text` that is a proper prefix of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
    ends.filter(|end| *end < stop.len())
        .find(|end| stop.get(..*end).is_some_and(|head| text.ends_with(head)))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_split_of_a_text_gives_the_text(text in ".{0,40}", cuts in proptest::collection::vec(0usize..160, 0..8)) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(bytes.len())).chain([bytes.len()]).collect();
            cuts.sort_unstable();
            let mut stream = TextStream::new(vec![]);
            let (mut from, mut out) = (0, String::new());
            for cut in cuts {
                let added = stream.push(&bytes[from..cut]);
                let replaced = added.text.contains(char::REPLACEMENT_CHARACTER);
                prop_assert!(!replaced || text.contains(char::REPLACEMENT_CHARACTER));
                out.push_str(&added.text);
                from = cut;
            }
            out.push_str(&stream.finish());
            prop_assert_eq!(out, text);
        }

        #[test]
        fn nothing_of_a_stop_string_is_sent(head in "[abé]{0,12}", stop in "[abé]{1,4}", tail in "[abé]{0,6}", size in 1usize..4) {
            let text = format!("{head}{stop}{tail}");
            let mut stream = TextStream::new(vec![stop.clone()]);
            let mut out = String::new();
            let mut stopped = false;
            for part in text.as_bytes().chunks(size) {
                let added = stream.push(part);
                out.push_str(&added.text);
                if added.stopped.is_some() {
                    stopped = true;
                    break;
                }
            }
            prop_assert!(stopped);
            prop_assert_eq!(out, text[..text.find(&stop).unwrap()].to_owned());
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_and_do_not_stop_the_answer() {
        let mut stream = TextStream::new(vec![]);
        assert_eq!(stream.push(b"a\xffb\xe2\x82").text, "a\u{FFFD}b");
        assert_eq!(stream.push(b"\xac").text, "€");
        assert_eq!(stream.push(b"\xf0\x9f").text, "");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }
}
