//! SentencePiece BPE of llama and gemma (arXiv:1808.06226). Neighbouring pieces are merged, the pair with the best
//! score first, the leftmost among equals. A remaining piece that is no token is spelt in bytes.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::{BYTE, Vocabulary, flag};
use crate::LoadError;
use crate::artifact::{MetaValue, ModelFile};

/// Character that represents a space.
pub(super) const SPACE: char = '\u{2581}';

/// Byte of a token such as `<0x0A>`.
pub(super) fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// Merges characters by score.
pub(super) struct SentencePiece {
    tokens: ahash::AHashMap<String, u32>,
    scores: Vec<f32>,
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
    /// True if a space is put before the text.
    space_first: bool,
}

/// Stretch of the text on its way to a token, with the indexes of its neighbours.
struct Symbol<'t> {
    text: &'t str,
    before: Option<usize>,
    after: Option<usize>,
}

/// Two neighbours that form a token.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both when the pair was found: another length later means that one of them has been merged since.
    length: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Pair {}

impl SentencePiece {
    #[allow(clippy::cast_possible_truncation, reason = "scores are f32 in the file")]
    pub(super) fn new(file: &ModelFile, vocabulary: &Vocabulary<'_>) -> Result<Self, LoadError> {
        let scores = match file.meta("tokenizer.ggml.scores") {
            Some(MetaValue::Numbers(scores)) if scores.len() == vocabulary.tokens.len() => scores,
            _ => return Err(file.corrupt("`tokenizer.ggml.scores` does not have one entry for each token")),
        };
        let mut bytes = [None; 256];
        for (id, token) in vocabulary.iter() {
            let is_byte = usize::try_from(id).is_ok_and(|id| vocabulary.kind(id) == BYTE);
            if let Some(place) = byte(token).filter(|_| is_byte).and_then(|byte| bytes.get_mut(usize::from(byte))) {
                *place = Some(id);
            }
        }
        let unknown = file.meta("tokenizer.ggml.unknown_token_id").and_then(MetaValue::as_u64);
        Ok(Self {
            // Control tokens come of no text, and a byte token of no text but its own byte.
            tokens: vocabulary
                .iter()
                .filter(|(id, _)| {
                    usize::try_from(*id).is_ok_and(|id| !vocabulary.is_control(id) && vocabulary.kind(id) != BYTE)
                })
                .map(|(id, token)| (token.to_owned(), id))
                .collect(),
            scores: scores.iter().map(|score| *score as f32).collect(),
            bytes,
            unknown: unknown
                .and_then(|id| u32::try_from(id).ok())
                .filter(|id| usize::try_from(*id).is_ok_and(|id| id < vocabulary.tokens.len())),
            space_first: flag(file, "tokenizer.ggml.add_space_prefix").unwrap_or(true),
        })
    }

    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) {
        let mut escaped = String::with_capacity(text.len() + 16);
        if self.space_first {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        for symbol in self.merged(&escaped) {
            match self.tokens.get(symbol) {
                Some(token) => tokens.push(*token),
                None => {
                    let spelt = symbol.bytes().map(|byte| self.bytes.get(usize::from(byte)).copied().flatten());
                    // A model without the byte has one unknown token for the whole character.
                    match spelt.collect::<Option<Vec<_>>>() {
                        Some(spelt) => tokens.extend(spelt),
                        None => tokens.extend(self.unknown),
                    }
                }
            }
        }
    }

    /// Stretches that remain when no more pair can be merged.
    fn merged<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut symbols: Vec<Symbol<'t>> = Vec::with_capacity(text.len());
        // Start of each symbol; symbols that are merged away have no length.
        let mut starts = Vec::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            let n = symbols.len();
            starts.push(at);
            symbols.push(Symbol {
                text: text.get(at..at + c.len_utf8()).unwrap_or_default(),
                before: n.checked_sub(1),
                after: Some(n + 1),
            });
        }
        if let Some(last) = symbols.last_mut() {
            last.after = None;
        }
        let joined = |symbols: &[Symbol<'t>], left: usize, right: usize| {
            let (a, b) = (symbols.get(left)?, symbols.get(right)?);
            let start = *starts.get(left)?;
            text.get(start..start + a.text.len() + b.text.len())
        };
        let pair = |symbols: &[Symbol<'t>], left: usize, right: usize| {
            let both = joined(symbols, left, right)?;
            let token = usize::try_from(*self.tokens.get(both)?).ok()?;
            Some(Pair { score: *self.scores.get(token)?, left, right, length: both.len() })
        };
        let mut pairs: BinaryHeap<Pair> =
            (1..symbols.len()).filter_map(|right| pair(&symbols, right - 1, right)).collect();
        while let Some(Pair { left, right, length, .. }) = pairs.pop() {
            let (Some(a), Some(b)) = (symbols.get(left), symbols.get(right)) else { continue };
            if a.text.is_empty() || b.text.is_empty() || a.text.len() + b.text.len() != length {
                continue;
            }
            let Some(both) = joined(&symbols, left, right) else { continue };
            let (before, after) = (a.before, b.after);
            if let Some(a) = symbols.get_mut(left) {
                (a.text, a.after) = (both, after);
            }
            if let Some(b) = symbols.get_mut(right) {
                b.text = "";
            }
            if let Some(next) = after.and_then(|after| symbols.get_mut(after)) {
                next.before = Some(left);
            }
            pairs.extend(before.and_then(|before| pair(&symbols, before, left)));
            pairs.extend(after.and_then(|after| pair(&symbols, left, after)));
        }
        symbols.into_iter().map(|symbol| symbol.text).filter(|text| !text.is_empty()).collect()
    }
}
