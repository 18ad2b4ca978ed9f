//! `tokenizer.json`, a complete description of a tokenizer, run by the `tokenizers` crate. Added here: a caller's
//! text never yields a control token, and each token has its own bytes.

use std::panic::AssertUnwindSafe;

use tokenizers::{AddedToken, Encoding, PreTokenizerWrapper, Token};

use super::{ENDS, MAX_TOKENS, Marks, Tokenizer, bpe, marks_turns, spm, text};
use crate::LoadError;
use crate::artifact::{MetaValue, ModelFile};

/// Spellings of the unknown token.
const UNKNOWN: [&str; 4] = ["<unk>", "[UNK]", "<UNK>", "<|unk|>"];

/// Tokenizer of a `tokenizer.json`.
pub(super) struct Json {
    tokenizer: tokenizers::Tokenizer,
    /// Tokenizer for text after the beginning, where the first word is split in another way.
    inner: Option<tokenizers::Tokenizer>,
    /// Control tokens by number.
    control: Vec<(u32, String)>,
}

/// Encoding of bytes in the characters of a token.
enum Spelling {
    /// GPT-2's, one character for each byte.
    Bytes,
    /// SentencePiece's: the character itself, a space, or a byte in hexadecimal digits.
    Pieces,
}

impl Json {
    fn read(file: &ModelFile, json: &[u8]) -> Result<tokenizers::Tokenizer, LoadError> {
        let broken = |e: tokenizers::Error| file.unsupported(format!("`tokenizer.json` cannot be read: {e}"));
        // The crate panics on some damaged files.
        let read = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json));
        let read = read.map_err(|_| file.corrupt("`tokenizer.json` cannot be read"))?;
        let mut tokenizer = read.map_err(broken)?;
        // Padding and truncation are settings of training.
        tokenizer.with_padding(None).with_truncation(None).map_err(broken)?;
        // Callers' text is text, also where it looks like a control token.
        tokenizer.set_encode_special_tokens(true);
        Ok(tokenizer)
    }

    pub(super) fn encode(&self, text: &str, begins: bool, tokens: &mut Vec<u32>) -> tokenizers::Result<()> {
        let tokenizer = self.inner.as_ref().filter(|_| !begins).unwrap_or(&self.tokenizer);
        for token in cut(tokenizer, text)?.get_ids() {
            match self.control.binary_search_by_key(token, |(id, _)| *id).ok().and_then(|at| self.control.get(at)) {
                // A control token spelt out by a caller, or produced by normalising: tokenised character by
                // character. The unknown token is kept unless the caller wrote it.
                Some((_, control)) if !UNKNOWN.contains(&control.as_str()) || text.contains(control.as_str()) => {
                    for c in control.chars() {
                        tokens.extend_from_slice(cut(tokenizer, c.encode_utf8(&mut [0; 4]))?.get_ids());
                    }
                }
                _ => tokens.push(*token),
            }
        }
        Ok(())
    }
}

/// Tokenises a text with the crate, which may panic on a damaged file.
fn cut(tokenizer: &tokenizers::Tokenizer, text: &str) -> tokenizers::Result<Encoding> {
    std::panic::catch_unwind(AssertUnwindSafe(|| tokenizer.encode_fast(text, false)))
        .unwrap_or_else(|_| Err("`tokenizer.json` is not sound".into()))
}

/// Tokens that the post-processor puts before and after a text.
fn around(file: &ModelFile, tokenizer: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>), LoadError> {
    let text = Encoding::from_tokens(vec![Token::new(0, "a".into(), (0, 1))], 0);
    // The crate panics if a template names a token that the file does not define.
    let processed = AssertUnwindSafe(|| tokenizer.post_process(text, None, true));
    let whole = std::panic::catch_unwind(processed)
        .map_err(|_| file.corrupt("the post-processor of `tokenizer.json` is not sound"))?
        .map_err(|e| file.unsupported(format!("the post-processor of `tokenizer.json` fails: {e}")))?;
    let is_special = |(_, special): &(u32, u32)| *special != 0;
    let tokens = || whole.get_ids().iter().copied().zip(whole.get_special_tokens_mask().iter().copied());
    let before: Vec<u32> = tokens().take_while(is_special).map(|(token, _)| token).collect();
    let after = tokens().skip(before.len() + 1).map(|(token, _)| token).collect();
    Ok((before, after))
}

/// Number of tokens: one more than the largest index, since indexes may have gaps.
fn count(tokenizer: &tokenizers::Tokenizer) -> usize {
    let tokens = tokenizer.get_vocab(true).into_values().max().map_or(0, |last| last.saturating_add(1));
    usize::try_from(tokens).unwrap_or(usize::MAX)
}

/// Reads the tokenizer of an encoder whose token table has `rows` rows. Special tokens around a text are added by
/// [`Tokenizer::encode_text`].
pub(super) fn of_encoder(file: &ModelFile, json: &[u8], rows: usize) -> Result<Tokenizer, LoadError> {
    let tokenizer = Json::read(file, json)?;
    let tokens = count(&tokenizer);
    if tokens > rows.min(MAX_TOKENS) {
        let most = format!("expected at most {rows}, the rows of the token table");
        return Err(file.corrupt(format!("`tokenizer.json` numbers {tokens} tokens; {most}")));
    }
    let find = |name: &str, other: &str| {
        let found = tokenizer.token_to_id(name).or_else(|| tokenizer.token_to_id(other));
        found.ok_or_else(|| file.unsupported(format!("`tokenizer.json` has neither `{name}` nor `{other}`")))
    };
    let (bos, eos) = (find("[CLS]", "<s>")?, find("[SEP]", "</s>")?);
    Ok(Tokenizer {
        bytes: Vec::new(),
        bounds: vec![0; tokens],
        control: None,
        control_texts: Vec::new(),
        user_defined: None,
        ends: Vec::new(),
        bos: Some(bos),
        eos: Some(eos),
        before: vec![bos],
        after: vec![eos],
        algorithm: super::Algorithm::Json(Box::new(Json { tokenizer, inner: None, control: Vec::new() })),
    })
}

/// Reads the tokenizer of a decoder whose token table has `rows` rows: tables are padded, and tokens of images lie
/// beyond them.
pub(super) fn of_decoder(file: &ModelFile, json: &[u8], rows: usize) -> Result<Tokenizer, LoadError> {
    let mut tokenizer = Json::read(file, json)?;
    if rows > MAX_TOKENS {
        return Err(file.corrupt(format!("the token table has {rows} rows; expected at most {MAX_TOKENS}")));
    }
    let spelling = spelling(file, &tokenizer)?;
    let place = |id: u32| usize::try_from(id).unwrap_or(usize::MAX);
    let added = tokenizer.get_added_tokens_decoder();
    let special = |id: u32| added.get(&id).is_some_and(|token| token.special);
    let mut all: Vec<(u32, String)> = tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
    all.sort_unstable();
    if let Some((id, _)) = all.iter().find(|(id, _)| place(*id) >= rows && !special(*id)) {
        let less = format!("expected less than {rows}, the rows of the token table");
        return Err(file.corrupt(format!("`tokenizer.json` has a token {id}; {less}")));
    }
    all.retain(|(id, _)| place(*id) < rows);
    let find = |key: &str| {
        let text = text(file, key)?;
        tokenizer.token_to_id(text).filter(|id| place(*id) < rows)
    };
    let (bos, eos) = (find("tokenizer.bos"), find("tokenizer.eos"));
    let mut ends: Vec<u32> = match file.meta("tokenizer.ends") {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number below the rows")]
        Some(MetaValue::Numbers(ends)) => ends
            .iter()
            .filter(|end| **end >= 0.0 && end.fract() == 0.0 && **end < f64::from(u32::MAX))
            .map(|end| *end as u32)
            .filter(|end| place(*end) < rows)
            .collect(),
        _ => Vec::new(),
    };
    ends.extend(eos);
    let (before, after) = around(file, &tokenizer)?;
    if let Some(id) = before.iter().chain(&after).find(|id| place(**id) >= rows) {
        return Err(
            file.corrupt(format!("`tokenizer.json` puts a token {id} around a text; the token table has {rows} rows"))
        );
    }
    // Tokens that begin or end something are no text, whatever the file says.
    let is_control = |id: u32, token: &str| {
        special(id)
            || marks_turns(token)
            || [&ends, &before, &after].iter().any(|marks| marks.contains(&id))
            || bos == Some(id)
    };
    let control: Vec<_> = all.iter().filter(|(id, token)| is_control(*id, token)).cloned().collect();
    ends.extend(control.iter().filter(|(_, token)| ENDS.contains(&token.as_str())).map(|(id, _)| *id));
    ends.sort_unstable();
    ends.dedup();
    let broken = |e: tokenizers::Error| file.unsupported(format!("the control tokens cannot be added: {e}"));
    let told = control.iter().map(|(_, token)| AddedToken::from(token.clone(), true).normalized(false));
    tokenizer.add_special_tokens(told.collect::<Vec<_>>()).map_err(broken)?;

    let (mut bytes, mut bounds) = (Vec::new(), Vec::with_capacity(rows));
    let mut next = all.iter().peekable();
    let byte_of = bpe::byte_of_char();
    for row in 0..rows {
        // Two texts of one index: the first counts.
        while let Some((id, token)) = next.next_if(|(id, _)| place(*id) <= row) {
            if place(*id) < row || control.binary_search_by_key(id, |(id, _)| *id).is_ok() {
                continue;
            }
            match spelling {
                _ if added.contains_key(id) => bytes.extend_from_slice(token.as_bytes()),
                Spelling::Bytes => bpe::spell(&byte_of, token, &mut bytes),
                Spelling::Pieces => match spm::byte(token) {
                    Some(byte) => bytes.push(byte),
                    None => bytes.extend_from_slice(token.replace(spm::SPACE, " ").as_bytes()),
                },
            }
            break;
        }
        bounds.push(bytes.len());
    }
    let inner = inner(file, &tokenizer)?;
    let marks = control.iter().map(|(id, token)| (token.as_str(), *id)).collect();
    Ok(Tokenizer {
        bytes,
        bounds,
        control: Marks::new(file, marks)?,
        control_texts: control.clone(),
        user_defined: None,
        ends,
        bos,
        eos,
        before,
        after,
        algorithm: super::Algorithm::Json(Box::new(Json { tokenizer, inner, control })),
    })
}

/// Detects the spelling by the file's decoder.
fn spelling(file: &ModelFile, tokenizer: &tokenizers::Tokenizer) -> Result<Spelling, LoadError> {
    let decoder = serde_json::to_string(&tokenizer.get_decoder()).unwrap_or_default();
    let has = |kind: &str| decoder.contains(&format!("\"type\":\"{kind}\""));
    if has("ByteLevel") {
        Ok(Spelling::Bytes)
    } else if has("Metaspace") || has("ByteFallback") || (has("Replace") && decoder.contains(spm::SPACE)) {
        Ok(Spelling::Pieces)
    } else {
        Err(file.unsupported(
            "its `tokenizer.json` spells tokens neither as byte-level BPE nor as SentencePiece does: convert the model to \
             GGUF with llama.cpp's convert_hf_to_gguf.py",
        ))
    }
}

/// Tokenizer for text after the beginning, if only the first word of a text gets a space before it.
fn inner(file: &ModelFile, tokenizer: &tokenizers::Tokenizer) -> Result<Option<tokenizers::Tokenizer>, LoadError> {
    let broken = |e: serde_json::Error| file.unsupported(format!("`tokenizer.json` cannot be read: {e}"));
    let mut steps = serde_json::to_value(tokenizer.get_pre_tokenizer()).map_err(broken)?;
    if !never_first(&mut steps) {
        return Ok(None);
    }
    let steps: PreTokenizerWrapper = serde_json::from_value(steps).map_err(broken)?;
    let mut inner = tokenizer.clone();
    inner.with_pre_tokenizer(Some(steps));
    Ok(Some(inner))
}

/// Changes `prepend_scheme` from `first` to `never` everywhere. Returns true if there was any.
fn never_first(value: &mut serde_json::Value) -> bool {
    match value {
        serde_json::Value::Object(fields) => {
            let mut found = false;
            for (name, field) in fields {
                if name == "prepend_scheme" && field == "first" {
                    *field = "never".into();
                    found = true;
                } else {
                    found |= never_first(field);
                }
            }
            found
        }
        serde_json::Value::Array(entries) => entries.iter_mut().fold(false, |found, entry| never_first(entry) | found),
        _ => false,
    }
}
