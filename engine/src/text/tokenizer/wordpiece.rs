//! WordPiece of BERT (arXiv:1810.04805), from a GGUF file. GGUF marks the tokens that begin a word; the original
//! vocabulary marks those that continue one.

use tokenizers::TokenizerImpl;
use tokenizers::models::wordpiece::WordPiece as Model;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

use super::{Vocabulary, spm};
use crate::LoadError;
use crate::artifact::ModelFile;

type WordPieceTokenizer = TokenizerImpl<
    Model,
    BertNormalizer,
    BertPreTokenizer,
    tokenizers::PostProcessorWrapper,
    tokenizers::DecoderWrapper,
>;

/// Matches the longest known prefix of the rest of a word.
pub(super) struct WordPiece {
    model: WordPieceTokenizer,
    pub(super) cls: Option<u32>,
    pub(super) sep: Option<u32>,
}

impl WordPiece {
    pub(super) fn new(file: &ModelFile, vocabulary: &Vocabulary<'_>) -> Result<Self, LoadError> {
        let special = |id: u32| usize::try_from(id).is_ok_and(|id| vocabulary.is_control(id));
        let original = |id: u32, token: &str| match token.strip_prefix(spm::SPACE) {
            Some(word) => word.to_owned(),
            None if special(id) || token.starts_with("[") && token.ends_with("]") => token.to_owned(),
            None => format!("##{token}"),
        };
        let model = Model::builder()
            .vocab(vocabulary.iter().map(|(id, token)| (original(id, token), id)).collect::<ahash::AHashMap<_, _>>())
            .unk_token("[UNK]".to_owned())
            .build()
            .map_err(|e| file.corrupt(format!("the tokenizer cannot be built: {e}")))?;
        let mut model = WordPieceTokenizer::new(model);
        // As llama.cpp: drops control characters, splits CJK, strips accents, lower-cases.
        model
            .with_normalizer(Some(BertNormalizer::new(true, true, Some(true), true)))
            .map_err(|e| file.corrupt(format!("the tokenizer cannot be built: {e}")))?;
        model.with_pre_tokenizer(Some(BertPreTokenizer));
        let find = |name: &str| vocabulary.iter().find(|(_, token)| *token == name).map(|(id, _)| id);
        Ok(Self { model, cls: find("[CLS]"), sep: find("[SEP]") })
    }

    pub(super) fn encode(&self, text: &str, tokens: &mut Vec<u32>) -> tokenizers::Result<()> {
        tokens.extend_from_slice(self.model.encode_fast(text, false)?.get_ids());
        Ok(())
    }
}
