//! The tokenizer of a model: text to tokens by the file's own algorithm, tokens to bytes. What all algorithms share is
//! here: control tokens, which no text contains; user-defined tokens, which a text is cut at before anything else; where
//! an answer ends.

mod bpe;
mod json;
mod spm;
mod wordpiece;

use aho_corasick::{AhoCorasick, MatchKind};

use crate::artifact::{MetaValue, ModelFile};
use bpe::Bpe;
use json::Json;
use spm::SentencePiece;
use wordpiece::WordPiece;

use crate::{LoadError, PromptError, Task};

/// `tokenizer.ggml.token_type`: what stands for no text, what a text is cut at, what stands for one byte.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const BYTE: f64 = 6.0;

/// Most tokens of a tokenizer.
const MAX_TOKENS: usize = 1 << 22;

/// What ends a turn in the common templates, whether or not the file says so.
const ENDS: [&str; 9] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<|end|>",
    "<end_of_turn>",
    "<eos>",
];

/// What begins a turn, or a part of one, and has another form than `<|…|>`.
const BEGINS: [&str; 4] = ["<start_of_turn>", "[INST]", "[/INST]", "<bos>"];

/// Whether a token by this text is one that templates mark turns with, whatever its file says: fine-tunes add some as words.
fn marks_turns(token: &str) -> bool {
    let within = |open: &str, close: &str| {
        token.len() > open.len() + close.len() && token.starts_with(open) && token.ends_with(close)
    };
    ENDS.contains(&token) || BEGINS.contains(&token) || within("<|", "|>") || within("<｜", "｜>")
}

enum Algorithm {
    Bpe(Box<Bpe>),
    SentencePiece(Box<SentencePiece>),
    WordPiece(Box<WordPiece>),
    /// A `tokenizer.json`, which says everything itself.
    Json(Box<Json>),
}

/// Tokens of some kind by their text, found from left to right, the longest at one place.
struct Marks {
    finder: AhoCorasick,
    tokens: Vec<u32>,
}

impl Marks {
    fn new(file: &ModelFile, marks: Vec<(&str, u32)>) -> Result<Option<Self>, LoadError> {
        let marks: Vec<_> = marks.into_iter().filter(|(text, _)| !text.is_empty()).collect();
        if marks.is_empty() {
            return Ok(None);
        }
        let (texts, tokens): (Vec<_>, Vec<_>) = marks.into_iter().unzip();
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
        let finder = finder.map_err(|e| file.unsupported(format!("its special tokens cannot be searched for: {e}")))?;
        Ok(Some(Self { finder, tokens }))
    }

    /// What stands before the first, it, what follows.
    fn split<'t>(&self, text: &'t str) -> Option<(&'t str, u32, &'t str)> {
        let found = self.finder.find(text)?;
        let token = *self.tokens.get(found.pattern().as_usize())?;
        Some((text.get(..found.start())?, token, text.get(found.end()..)?))
    }
}

/// Turns text into tokens and tokens into bytes.
pub struct Tokenizer {
    algorithm: Algorithm,
    /// Bytes of all tokens, one after the other, and where each ends; control tokens have none.
    bytes: Vec<u8>,
    bounds: Vec<usize>,
    control: Option<Marks>,
    /// Control tokens by number.
    control_texts: Vec<(u32, String)>,
    user_defined: Option<Marks>,
    ends: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// What the model wants before and after a text.
    before: Vec<u32>,
    after: Vec<u32>,
}

/// What a file says of its tokens.
struct Vocabulary<'f> {
    tokens: &'f [String],
    kinds: &'f [f64],
}

impl<'f> Vocabulary<'f> {
    fn of(file: &'f ModelFile) -> Result<Self, LoadError> {
        let tokens = strings(file, "tokenizer.ggml.tokens")?;
        let kinds = match file.meta("tokenizer.ggml.token_type") {
            Some(MetaValue::Numbers(kinds)) if kinds.len() == tokens.len() => kinds.as_slice(),
            None => &[],
            _ => return Err(file.corrupt("`tokenizer.ggml.token_type` has not one entry for each token")),
        };
        Ok(Self { tokens, kinds })
    }

    fn kind(&self, id: usize) -> f64 {
        self.kinds.get(id).copied().unwrap_or(1.0)
    }

    /// Whether it stands for no text. What ends a turn never does, whatever the file says.
    fn is_control(&self, id: usize) -> bool {
        matches!(self.kind(id), UNKNOWN | CONTROL)
            || (self.kind(id) != BYTE && self.tokens.get(id).is_some_and(|token| marks_turns(token)))
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &'f str)> {
        (0..).zip(self.tokens.iter().map(String::as_str))
    }
}

fn strings<'f>(file: &'f ModelFile, key: &str) -> Result<&'f [String], LoadError> {
    match file.meta(key) {
        Some(MetaValue::Strings(values)) => Ok(values.as_slice()),
        _ => Err(file.corrupt(format!("`{key}` is missing"))),
    }
}

fn text<'f>(file: &'f ModelFile, key: &str) -> Option<&'f str> {
    match file.meta(key) {
        Some(MetaValue::String(value)) => Some(value.as_str()),
        _ => None,
    }
}

fn flag(file: &ModelFile, key: &str) -> Option<bool> {
    file.meta(key).and_then(MetaValue::as_bool)
}

impl Tokenizer {
    /// Takes the tokenizer of a file.
    pub fn new(file: &ModelFile) -> Result<Self, LoadError> {
        if let Some(json) = file.tokenizer_json()? {
            let rows = crate::model::vocabulary(file)?;
            return match crate::model::task(file) {
                Task::Generate => json::of_decoder(file, &json, rows),
                Task::Embed | Task::Classify => json::of_encoder(file, &json, rows),
            };
        }
        let vocabulary = Vocabulary::of(file)?;
        let model =
            text(file, "tokenizer.ggml.model").ok_or_else(|| file.corrupt("`tokenizer.ggml.model` is missing"))?;
        // Whether a text begins with the first token, where the file does not say.
        let (algorithm, begins) = match model {
            "gpt2" => {
                let (bpe, begins) = Bpe::new(file, &vocabulary)?;
                (Algorithm::Bpe(Box::new(bpe)), begins)
            }
            "llama" => (Algorithm::SentencePiece(Box::new(SentencePiece::new(file, &vocabulary)?)), true),
            "bert" => (Algorithm::WordPiece(Box::new(WordPiece::new(file, &vocabulary)?)), true),
            other => {
                return Err(file.unsupported(format!(
                    "its tokenizer is `{}`: this version knows `gpt2` (byte-level BPE), `llama` (SentencePiece) and \
                     `bert` (WordPiece)",
                    other.chars().take(40).flat_map(char::escape_debug).collect::<String>()
                )));
            }
        };
        let (mut bytes, mut bounds) = (Vec::new(), Vec::with_capacity(vocabulary.tokens.len()));
        for (id, token) in vocabulary.tokens.iter().enumerate() {
            match &algorithm {
                _ if vocabulary.is_control(id) => {}
                _ if vocabulary.kind(id) == USER_DEFINED => bytes.extend_from_slice(token.as_bytes()),
                Algorithm::Bpe(bpe) => bpe.bytes_of(token, &mut bytes),
                Algorithm::SentencePiece(_) if vocabulary.kind(id) == BYTE => bytes.extend(spm::byte(token)),
                Algorithm::SentencePiece(_) => bytes.extend_from_slice(token.replace(spm::SPACE, " ").as_bytes()),
                Algorithm::WordPiece(_) | Algorithm::Json(_) => {
                    bytes.extend_from_slice(token.replace(spm::SPACE, " ").as_bytes());
                }
            }
            bounds.push(bytes.len());
        }
        let place = |id: u32| usize::try_from(id).unwrap_or(usize::MAX);
        let control: Vec<_> = vocabulary.iter().filter(|(id, _)| vocabulary.is_control(place(*id))).collect();
        let user_defined = vocabulary
            .iter()
            .filter(|(id, _)| vocabulary.kind(place(*id)) == USER_DEFINED && !vocabulary.is_control(place(*id)));
        let id = |key: &str| {
            let id = file.meta(&format!("tokenizer.ggml.{key}_token_id")).and_then(MetaValue::as_u64);
            id.and_then(|id| u32::try_from(id).ok()).filter(|id| place(*id) < vocabulary.tokens.len())
        };
        let mut ends: Vec<u32> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
        ends.extend(control.iter().filter(|(_, token)| ENDS.contains(token)).map(|(id, _)| *id));
        ends.sort_unstable();
        ends.dedup();
        let add = |key: &str| flag(file, &format!("tokenizer.ggml.{key}"));
        // An encoder's text begins with its own first token and ends with its separator.
        let (bos, eos) = match &algorithm {
            Algorithm::WordPiece(pieces) => (id("cls").or(id("bos")).or(pieces.cls), id("seperator").or(pieces.sep)),
            _ => (id("bos"), id("eos")),
        };
        let encoder = matches!(algorithm, Algorithm::WordPiece(_));
        let add_bos = encoder || add("add_bos_token").unwrap_or(begins);
        let add_eos = encoder || add("add_eos_token").unwrap_or(false);
        Ok(Self {
            bytes,
            bounds,
            control: Marks::new(file, control.iter().map(|(id, token)| (*token, *id)).collect())?,
            control_texts: control.into_iter().map(|(id, token)| (id, token.to_owned())).collect(),
            user_defined: Marks::new(file, user_defined.map(|(id, token)| (token, id)).collect())?,
            ends,
            bos,
            eos,
            before: bos.filter(|_| add_bos).into_iter().collect(),
            after: eos.filter(|_| add_eos).into_iter().collect(),
            algorithm,
        })
    }

    /// Tokens that it knows.
    pub fn vocabulary(&self) -> usize {
        self.bounds.len()
    }
    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }
    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }
    /// What the model wants before a conversation. Of a `tokenizer.json` that is nothing: its template writes what it
    /// wants, and transformers adds nothing to that.
    pub(super) fn before_conversation(&self) -> &[u32] {
        match self.algorithm {
            Algorithm::Json(_) => &[],
            _ => &self.before,
        }
    }
    /// Whether a token ends an answer.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.binary_search(&token).is_ok()
    }

    /// The text of a control token.
    pub fn control_text(&self, token: u32) -> Option<&str> {
        let at = self.control_texts.binary_search_by_key(&token, |(id, _)| *id).ok()?;
        self.control_texts.get(at).map(|(_, text)| text.as_str())
    }

    /// Splits at the first control token: what stands before it, the token, what follows.
    pub fn split_control<'t>(&self, text: &'t str) -> Option<(&'t str, u32, &'t str)> {
        self.control.as_ref()?.split(text)
    }

    /// Appends the tokens of a text, which begins the whole where there are none yet. Control tokens in it are text.
    ///
    /// # Errors
    /// [`PromptError::Text`] for a text that the file's own algorithm has no tokens for.
    pub fn encode(&self, text: &str, tokens: &mut Vec<u32>) -> Result<(), PromptError> {
        let mut rest = text;
        while let Some((before, token, after)) = self.user_defined.as_ref().and_then(|marks| marks.split(rest)) {
            self.encode_plain(before, tokens)?;
            tokens.push(token);
            rest = after;
        }
        self.encode_plain(rest, tokens)
    }

    fn encode_plain(&self, text: &str, tokens: &mut Vec<u32>) -> Result<(), PromptError> {
        if text.is_empty() {
            return Ok(());
        }
        let cut = match &self.algorithm {
            Algorithm::Bpe(bpe) => bpe.encode(text, tokens),
            Algorithm::SentencePiece(pieces) => {
                pieces.encode(text, tokens);
                Ok(())
            }
            Algorithm::WordPiece(pieces) => pieces.encode(text, tokens),
            Algorithm::Json(json) => json.encode(text, tokens.is_empty(), tokens),
        };
        cut.map_err(|e| PromptError::Text(e.to_string()))
    }

    /// A whole text with the tokens that the model wants around it. Errors as [`Self::encode`].
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        // The text first: it begins the whole though a token stands before it.
        let mut tokens = Vec::new();
        self.encode(text, &mut tokens)?;
        tokens.splice(0..0, self.before.iter().copied());
        tokens.extend_from_slice(&self.after);
        Ok(tokens)
    }

    /// The bytes that a token stands for; none for a control token.
    pub fn bytes_of(&self, token: u32) -> &[u8] {
        let Ok(id) = usize::try_from(token) else { return &[] };
        let start = id.checked_sub(1).and_then(|before| self.bounds.get(before)).copied().unwrap_or(0);
        self.bounds.get(id).and_then(|end| self.bytes.get(start..*end)).unwrap_or_default()
    }
}
