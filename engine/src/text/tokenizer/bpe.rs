//! Byte-level BPE (GPT-2) with the pre-tokenizers that GGUF names. The `tokenizers` crate merges and splits; the
//! patterns are those of llama.cpp (llama-vocab.cpp), which defines the names.

use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior, TokenizerImpl};

use super::{Vocabulary, strings, text};
use crate::LoadError;
use crate::artifact::ModelFile;

type BpeTokenizer = TokenizerImpl<
    BPE,
    tokenizers::NormalizerWrapper,
    PreTokenizerWrapper,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Pattern of Mistral's later models.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Pre-tokenizer: splits text before merging.
struct Cuts {
    /// Patterns applied in turn; each splits what the earlier ones left.
    patterns: &'static [&'static str],
    /// True if a piece that is itself a token is not merged from its parts.
    whole_first: bool,
    /// Default of whether a text begins with the BOS token, for files that do not say.
    begins: bool,
}

/// Pre-tokenizer by the value of `tokenizer.ggml.pre`.
fn cuts(name: &str) -> Option<Cuts> {
    let (patterns, whole_first, begins): (&[&str], _, _) = match name {
        "gpt-2" => (&[GPT_2], false, false),
        "smollm" => (&[r"\p{N}", GPT_2], false, false),
        "default" => (&[r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", r"[0-9][0-9][0-9]"], false, false),
        "llama-bpe" | "llama-v3" | "llama3" => (&[LLAMA_3], true, true),
        "tekken" => (&[TEKKEN], true, true),
        "qwen2" | "deepseek-r1-qwen" => (&[QWEN_2], false, false),
        _ => return None,
    };
    Some(Cuts { patterns, whole_first, begins })
}

/// Merges bytes by rank.
pub(super) struct Bpe {
    model: BpeTokenizer,
    byte_of: HashMap<char, u8>,
}

impl Bpe {
    /// Reads the tokenizer of a file. Also returns whether texts begin with the BOS token by default.
    pub(super) fn new(file: &ModelFile, vocabulary: &Vocabulary<'_>) -> Result<(Self, bool), LoadError> {
        let name = text(file, "tokenizer.ggml.pre").unwrap_or("default");
        let cuts = cuts(name).ok_or_else(|| {
            let shown: String = name.chars().take(40).flat_map(char::escape_debug).collect();
            file.unsupported(format!(
                "the pre-tokenizer is `{shown}`; this version knows `llama-bpe`, `tekken`, `qwen2`, `deepseek-r1-qwen`, \
                 `smollm`, `gpt-2`, `default`"
            ))
        })?;
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        for pattern in cuts.patterns {
            let pattern = SplitPattern::Regex((*pattern).to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
            steps.push(split.map_err(|e| file.unsupported(e.to_string()))?.into());
        }
        steps.push(ByteLevel::new(false, true, false).into());
        let mut merges = strings(file, "tokenizer.ggml.merges")?
            .iter()
            .map(|merge| merge.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| file.corrupt("a merge of the tokenizer is not a pair"))?;
        // Control tokens are no text and must not come of a merge.
        let is_control = |id: u32| usize::try_from(id).is_ok_and(|id| vocabulary.is_control(id));
        let (control, text): (Vec<_>, Vec<_>) = vocabulary.iter().partition(|(id, _)| is_control(*id));
        let control: HashSet<&str> = control.into_iter().map(|(_, token)| token).collect();
        let makes_control = |(a, b): &(String, String)| {
            control.contains(a.as_str()) || control.contains(b.as_str()) || control.contains(format!("{a}{b}").as_str())
        };
        merges.retain(|merge| control.is_empty() || !makes_control(merge));
        let model = BPE::builder()
            .vocab_and_merges(
                text.into_iter().map(|(id, token)| (token.to_owned(), id)).collect::<ahash::AHashMap<_, _>>(),
                merges,
            )
            .ignore_merges(cuts.whole_first)
            .build()
            .map_err(|e| file.corrupt(format!("the tokenizer cannot be built: {e}")))?;
        let mut model = BpeTokenizer::new(model);
        model.with_pre_tokenizer(Some(Sequence::new(steps)));
        Ok((Self { model, byte_of: byte_of_char() }, cuts.begins))
    }

    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) -> tokenizers::Result<()> {
        tokens.extend_from_slice(self.model.encode_fast(text, false)?.get_ids());
        Ok(())
    }

    /// Appends the bytes of a token.
    pub(super) fn bytes_of(&self, token: &str, bytes: &mut Vec<u8>) {
        spell(&self.byte_of, token, bytes);
    }
}

/// Appends the bytes of a token. A character outside the byte table is appended as UTF-8.
pub(super) fn spell(byte_of: &HashMap<char, u8>, token: &str, bytes: &mut Vec<u8>) {
    for c in token.chars() {
        match byte_of.get(&c) {
            Some(byte) => bytes.push(*byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Inverse of GPT-2's printable characters for bytes (openai/gpt-2, encoder.py, `bytes_to_unicode`).
pub(super) fn byte_of_char() -> HashMap<char, u8> {
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
