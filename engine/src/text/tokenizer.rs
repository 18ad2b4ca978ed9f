//! The tokenizer of a GGUF file: GPT-2's byte-level BPE with the pre-tokenizers that are known for certain. Merging is
//! the `tokenizers` crate's; what the file adds (control tokens, end of turn) is kept here.

use std::collections::HashMap;

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{PreTokenizerWrapper, TokenizerImpl};

use crate::LoadError;
use crate::artifact::{MetaValue, ModelFile};

type Bpe = TokenizerImpl<
    BPE,
    tokenizers::NormalizerWrapper,
    PreTokenizerWrapper,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

/// `tokenizer.ggml.token_type` of tokens that are never part of a text.
const CONTROL: f64 = 3.0;

/// Turns text into tokens and tokens into bytes.
pub struct Tokenizer {
    bpe: Bpe,
    /// Bytes of each token; empty for control tokens.
    bytes: Vec<Box<[u8]>>,
    /// Control tokens by their text, longest first.
    control: Vec<(String, u32)>,
    ends: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
}

impl Tokenizer {
    /// Takes the tokenizer of a file.
    pub fn new(file: &ModelFile) -> Result<Self, LoadError> {
        let text = |key: &str| match file.meta(key) {
            Some(MetaValue::String(value)) => Ok(value.as_str()),
            _ => Err(file.corrupt(format!("`{key}` is missing"))),
        };
        let strings = |key: &str| match file.meta(key) {
            Some(MetaValue::Strings(values)) => Ok(values.as_slice()),
            _ => Err(file.corrupt(format!("`{key}` is missing"))),
        };
        let model = text("tokenizer.ggml.model")?;
        if model != "gpt2" {
            return Err(
                file.unsupported(format!("its tokenizer is `{model}`: this version knows `gpt2` (byte-level BPE)"))
            );
        }
        let pre = text("tokenizer.ggml.pre").unwrap_or("default");
        let pre_tokenizer: PreTokenizerWrapper = match pre {
            // llama.cpp (llama-vocab.cpp) splits off single digits, then as GPT-2 does.
            "smollm" => Sequence::new(vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()]).into(),
            "gpt-2" => ByteLevel::new(false, true, true).into(),
            other => {
                return Err(file
                    .unsupported(format!("its pre-tokenizer is `{other}`: this version knows `smollm` and `gpt-2`")));
            }
        };
        let tokens = strings("tokenizer.ggml.tokens")?;
        let kinds: &[f64] = match file.meta("tokenizer.ggml.token_type") {
            Some(MetaValue::Numbers(kinds)) if kinds.len() == tokens.len() => kinds,
            None => &[],
            _ => return Err(file.corrupt("`tokenizer.ggml.token_type` has not one entry for each token")),
        };
        let vocabulary: HashMap<String, u32> = tokens
            .iter()
            .enumerate()
            .filter_map(|(id, token)| Some((token.clone(), u32::try_from(id).ok()?)))
            .collect();
        let merges = strings("tokenizer.ggml.merges")?
            .iter()
            .map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| file.corrupt("a merge of its tokenizer is not a pair"))?;
        let bpe = BPE::builder()
            .vocab_and_merges(vocabulary.into_iter().collect::<ahash::AHashMap<_, _>>(), merges)
            .build()
            .map_err(|e| file.corrupt(format!("its tokenizer cannot be built: {e}")))?;
        let mut bpe = Bpe::new(bpe);
        bpe.with_pre_tokenizer(Some(pre_tokenizer));

        let unmap = byte_of_char();
        let is_control = |id: usize| kinds.get(id) == Some(&CONTROL);
        let bytes = tokens
            .iter()
            .enumerate()
            .map(|(id, token)| {
                if is_control(id) {
                    return Box::default();
                }
                // A character that stands for no byte is one of a user-defined token and stands for itself.
                let mut bytes = Vec::with_capacity(token.len());
                for c in token.chars() {
                    match unmap.get(&c) {
                        Some(byte) => bytes.push(*byte),
                        None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
                bytes.into()
            })
            .collect();
        let mut control: Vec<(String, u32)> = tokens
            .iter()
            .enumerate()
            .filter(|(id, token)| is_control(*id) && !token.is_empty())
            .filter_map(|(id, token)| Some((token.clone(), u32::try_from(id).ok()?)))
            .collect();
        control.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
        let id = |key: &str| {
            let id = file.meta(key).and_then(MetaValue::as_u64).and_then(|id| u32::try_from(id).ok());
            id.filter(|id| usize::try_from(*id).is_ok_and(|id| id < tokens.len()))
        };
        let (bos, eos) = (id("tokenizer.ggml.bos_token_id"), id("tokenizer.ggml.eos_token_id"));
        let mut ends: Vec<u32> = [eos, id("tokenizer.ggml.eot_token_id"), id("tokenizer.ggml.eom_token_id")]
            .into_iter()
            .flatten()
            .chain(
                // What ends a turn in the common templates, whether or not the file says so.
                control
                    .iter()
                    .filter(|(token, _)| {
                        matches!(token.as_str(), "<|im_end|>" | "<|eot_id|>" | "<|endoftext|>" | "</s>" | "<|end|>")
                    })
                    .map(|(_, id)| *id),
            )
            .collect();
        ends.sort_unstable();
        ends.dedup();
        // BPE files say explicitly whether the first token is added; without a word it is not.
        let add_bos = file.meta("tokenizer.ggml.add_bos_token").and_then(MetaValue::as_bool).unwrap_or(false);
        Ok(Self { bpe, bytes, control, ends, bos, eos, add_bos })
    }

    /// Tokens that it knows.
    pub fn vocabulary(&self) -> usize {
        self.bytes.len()
    }
    /// The token that begins a text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }
    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }
    /// Whether every text begins with [`Self::bos`].
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }
    /// Whether a token ends an answer.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.binary_search(&token).is_ok()
    }

    /// The text of a control token.
    pub fn control_text(&self, token: u32) -> Option<&str> {
        self.control.iter().find(|(_, id)| *id == token).map(|(text, _)| text.as_str())
    }

    /// Splits at the first control token: what stands before it, the token, what follows.
    pub fn split_control<'t>(&self, text: &'t str) -> Option<(&'t str, u32, &'t str)> {
        let first = self.control.iter().filter_map(|(token, id)| Some((text.find(token.as_str())?, token, *id)));
        // At one place the longest wins: `control` is sorted so.
        let (at, token, id) = first.min_by_key(|(at, token, _)| (*at, std::cmp::Reverse(token.len())))?;
        let (before, rest) = text.split_at_checked(at)?;
        Some((before, id, rest.get(token.len()..)?))
    }

    /// Appends the tokens of a text. Control tokens in it are text.
    pub fn encode(&self, text: &str, tokens: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        // Byte-level BPE knows every byte: encoding does not fail.
        if let Ok(encoding) = self.bpe.encode_fast(text, false) {
            tokens.extend_from_slice(encoding.get_ids());
        }
    }

    /// The bytes that a token stands for; none for a control token.
    pub fn bytes_of(&self, token: u32) -> &[u8] {
        usize::try_from(token).ok().and_then(|id| self.bytes.get(id)).map_or(&[], AsRef::as_ref)
    }
}

/// GPT-2's printable characters for bytes (openai/gpt-2, encoder.py, `bytes_to_unicode`), the other way round.
fn byte_of_char() -> HashMap<char, u8> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 256u32;
    (0..=255u8)
        .filter_map(|byte| {
            let code = if printable(byte) {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            Some((char::from_u32(code)?, byte))
        })
        .collect()
}
