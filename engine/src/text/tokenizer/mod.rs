//! Tokenizer of a model: text to tokens by the file's own algorithm, tokens to bytes. Shared by all algorithms:
//! control tokens, which no text contains; user-defined tokens, at which a text is split first; and the ends of an
//! answer.

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

/// Values of `tokenizer.ggml.token_type`: no text, no text, split first, one byte.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const BYTE: f64 = 6.0;

/// Most tokens of a tokenizer.
const MAX_TOKENS: usize = 1 << 22;

/// Tokens that end a turn in the common templates, whether or not the file says so.
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

/// Tokens that begin a turn, or a part of one, and have another form than `<|…|>`.
const BEGINS: [&str; 4] = ["<start_of_turn>", "[INST]", "[/INST]", "<bos>"];

/// True if templates mark turns with a token of this text. The type in the file is not trusted: fine-tunes add some
/// as words.
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
    /// A `tokenizer.json`, which is complete in itself.
    Json(Box<Json>),
}

/// Search for tokens of some kind by their text: from left to right, the longest at one position.
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
        let finder = finder.map_err(|e| file.unsupported(format!("special tokens cannot be searched for: {e}")))?;
        Ok(Some(Self { finder, tokens }))
    }

    /// Splits at the first token found: text before it, the token, text after it.
    fn split<'t>(&self, text: &'t str) -> Option<(&'t str, u32, &'t str)> {
        let found = self.finder.find(text)?;
        let token = *self.tokens.get(found.pattern().as_usize())?;
        Some((text.get(..found.start())?, token, text.get(found.end()..)?))
    }
}

/// Tokenizer of a model.
pub struct Tokenizer {
    algorithm: Algorithm,
    /// Bytes of all tokens, one after the other, and the end of each; control tokens have none.
    bytes: Vec<u8>,
    bounds: Vec<usize>,
    control: Option<Marks>,
    /// Control tokens by number.
    control_texts: Vec<(u32, String)>,
    user_defined: Option<Marks>,
    ends: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Special tokens before and after a text.
    before: Vec<u32>,
    after: Vec<u32>,
}

/// Tokens of a GGUF file, and their types.
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
            _ => return Err(file.corrupt("`tokenizer.ggml.token_type` does not have one entry for each token")),
        };
        Ok(Self { tokens, kinds })
    }

    fn kind(&self, id: usize) -> f64 {
        self.kinds.get(id).copied().unwrap_or(1.0)
    }

    /// True if a token is no text. A token that ends a turn never is, whatever the file says.
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
    /// Reads the tokenizer of a file.
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
        // Default of whether a text begins with the BOS token, for files that do not say.
        let (algorithm, begins) = match model {
            "gpt2" => {
                let (bpe, begins) = Bpe::new(file, &vocabulary)?;
                (Algorithm::Bpe(Box::new(bpe)), begins)
            }
            "llama" => (Algorithm::SentencePiece(Box::new(SentencePiece::new(file, &vocabulary)?)), true),
            "bert" => (Algorithm::WordPiece(Box::new(WordPiece::new(file, &vocabulary)?)), true),
            other => {
                return Err(file.unsupported(format!(
                    "the tokenizer is `{}`; this version knows `gpt2` (byte-level BPE), `llama` (SentencePiece) and \
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

    /// Number of tokens.
    pub fn vocabulary(&self) -> usize {
        self.bounds.len()
    }
    /// Token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }
    /// Token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }
    /// Special tokens before a conversation. None for a `tokenizer.json`: its template writes them, and transformers
    /// adds none.
    pub(super) fn before_conversation(&self) -> &[u32] {
        match self.algorithm {
            Algorithm::Json(_) => &[],
            _ => &self.before,
        }
    }
    /// True if a token ends an answer.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.binary_search(&token).is_ok()
    }

    /// Text of a control token.
    pub fn control_text(&self, token: u32) -> Option<&str> {
        let at = self.control_texts.binary_search_by_key(&token, |(id, _)| *id).ok()?;
        self.control_texts.get(at).map(|(_, text)| text.as_str())
    }

    /// Texts of all control tokens.
    pub(super) fn control_tokens(&self) -> impl Iterator<Item = &str> {
        self.control_texts.iter().map(|(_, text)| text.as_str())
    }

    /// Splits at the first control token: text before it, the token, text after it.
    pub fn split_control<'t>(&self, text: &'t str) -> Option<(&'t str, u32, &'t str)> {
        self.control.as_ref()?.split(text)
    }

    /// Appends the tokens of a text; the text is the beginning of the whole if there are no tokens yet. Control
    /// tokens in it are read as text.
    ///
    /// # Errors
    /// [`PromptError::Text`] if the file's own algorithm has no tokens for the text.
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

    /// Tokenises a whole text with the special tokens around it. Errors as [`Self::encode`].
    pub fn encode_text(&self, text: &str) -> Result<Vec<u32>, PromptError> {
        // The text first: it is the beginning of the whole, although a special token precedes it.
        let mut tokens = Vec::new();
        self.encode(text, &mut tokens)?;
        tokens.splice(0..0, self.before.iter().copied());
        tokens.extend_from_slice(&self.after);
        Ok(tokens)
    }

    /// Bytes of a token; none for a control token.
    pub fn bytes_of(&self, token: u32) -> &[u8] {
        let Ok(id) = usize::try_from(token) else { return &[] };
        let start = id.checked_sub(1).and_then(|before| self.bounds.get(before)).copied().unwrap_or(0);
        self.bounds.get(id).and_then(|end| self.bytes.get(start..*end)).unwrap_or_default()
    }
}
