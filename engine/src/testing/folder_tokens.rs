//! Tokens of folders: equal to those of the same vocabulary in GGUF, and with the special tokens that transformers
//! adds.

use std::path::Path;

use serde_json::{Value, json};

use super::folder::{Folder, byte_level, of_gguf};
use super::gguf::Gguf;
use super::judge::{CORPUS, needed, small};
use crate::artifact::{ModelFile, TensorType};
use crate::text::{TextModel, Tokenizer};
use crate::{ChatMessage, Conversation, PromptError};

fn tokenizer(source: &Path) -> Tokenizer {
    Tokenizer::new(&ModelFile::open(source).unwrap()).unwrap()
}

fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut tokens = Vec::new();
    tokenizer.encode(text, &mut tokens).unwrap();
    tokens
}

/// Compares two tokenizers: the tokens of texts, and the bytes of tokens.
fn same_text(theirs: &Tokenizer, ours: &Tokenizer) {
    assert_eq!(ours.vocabulary(), theirs.vocabulary());
    for token in 0..theirs.vocabulary() as u32 {
        assert_eq!(ours.bytes_of(token), theirs.bytes_of(token), "{token}");
        assert_eq!((ours.control_text(token), ours.is_end(token)), (theirs.control_text(token), theirs.is_end(token)));
    }
    for text in CORPUS {
        assert_eq!(tokens(ours, text), tokens(theirs, text), "{text:?}");
    }
    assert_eq!((ours.bos(), ours.eos()), (theirs.bos(), theirs.eos()));
}

#[test]
fn a_tokenizer_json_cuts_as_the_vocabulary_of_a_gguf_file() {
    let model = needed("SPILLWAY_TEST_MODEL", "models/smollm2-135m-instruct-q4_1.gguf", "`make model` fetches it");
    let real = ModelFile::open(&model).unwrap();
    let theirs = Tokenizer::new(&real).unwrap();
    let folder = of_gguf(small("llama", TensorType::F32).write().path(), 1);
    // As in the model's own file: each digit apart, then GPT-2's split.
    let digits = json!([{"type": "Digits", "individual_digits": true}]);
    let mut json = byte_level(&real, &digits);
    json["pre_tokenizer"]["pretokenizers"][1]["use_regex"] = true.into();
    folder.write("tokenizer.json", &json);
    folder.edit("config.json", |config| config["vocab_size"] = 49_152.into());
    folder.write("tokenizer_config.json", &json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}));
    let file = ModelFile::open(folder.path()).unwrap();
    same_text(&theirs, &Tokenizer::new(&file).unwrap());
}

/// A SentencePiece vocabulary of a few words, as GGUF and as `tokenizer.json`.
fn pieces(first: bool) -> (tempfile::NamedTempFile, Folder) {
    let mut tokens = vec![("<unk>".to_owned(), 2), ("<s>".to_owned(), 3), ("</s>".to_owned(), 3)];
    tokens.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 6)));
    let words =
        ["▁", "h", "e", "l", "o", "w", "r", "d", "he", "ll", "llo", "hello", "▁hello", "or", "▁w", "▁wor", "ld"];
    let merges = [
        ["h", "e"],
        ["l", "l"],
        ["ll", "o"],
        ["he", "llo"],
        ["▁", "hello"],
        ["o", "r"],
        ["▁", "w"],
        ["▁w", "or"],
        ["l", "d"],
    ];
    tokens.extend(words.map(|word| (word.to_owned(), 1)));
    let texts: Vec<String> = tokens.iter().map(|(text, _)| text.clone()).collect();
    let mut gguf = Gguf::gentle();
    super::judge::small_sizes("llama", &mut gguf);
    gguf.text("tokenizer.ggml.model", "llama");
    gguf.texts("tokenizer.ggml.tokens", &texts);
    gguf.integers("tokenizer.ggml.token_type", &tokens.iter().map(|(_, kind)| *kind).collect::<Vec<_>>());
    // Scores that match the merges: the first merge has the best score.
    let score =
        |text: &String| merges.iter().position(|[a, b]| format!("{a}{b}") == *text).map_or(-100.0, |n| -(n as f32));
    gguf.floats("tokenizer.ggml.scores", &texts.iter().map(score).collect::<Vec<_>>());
    for (key, id) in [("bos", 1), ("eos", 2), ("unknown", 0)] {
        gguf.number(&format!("tokenizer.ggml.{key}_token_id"), id);
    }
    let special = |id: usize| {
        json!({"id": id, "content": texts[id], "special": true, "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false})
    };
    let vocab: serde_json::Map<_, _> = (0..).zip(&texts).map(|(id, text)| (text.clone(), Value::from(id))).collect();
    let mut json = json!({
        "version": "1.0",
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "byte_fallback": true,
            "fuse_unk": true},
    });
    if first {
        json["normalizer"] = Value::Null;
        json["pre_tokenizer"] =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    }
    let folder = of_gguf(small("llama", TensorType::F32).write().path(), 1);
    folder.write("tokenizer.json", &json);
    folder.edit("config.json", |config| config["vocab_size"] = texts.len().into());
    folder.write("tokenizer_config.json", &json!({"bos_token": "<s>", "eos_token": "</s>"}));
    (gguf.write(), folder)
}

#[test]
fn sentencepiece_in_a_tokenizer_json_cuts_as_in_a_gguf_file() {
    let (gguf, folder) = pieces(false);
    let (theirs, ours) = (tokenizer(gguf.path()), tokenizer(folder.path()));
    same_text(&theirs, &ours);
    for text in ["hello world", "  hello", "hellohello wor", "<s>hello</s>", "<0x0A>", "é"] {
        assert_eq!(ours.encode_text(text), theirs.encode_text(text), "{text}");
    }
    assert_eq!(ours.encode_text("hello").unwrap()[0], 1, "what its post-processor puts before a text");
}

#[test]
fn only_what_begins_the_whole_gets_a_space_where_the_tokenizer_says_so() {
    let (_, folder) = pieces(true);
    let tokenizer = tokenizer(folder.path());
    let begins = tokenizer.encode_text("hello").unwrap();
    let word = |text: &str| {
        3 + 256
            + ["▁", "h", "e", "l", "o", "w", "r", "d", "he", "ll", "llo", "hello", "▁hello"]
                .iter()
                .position(|word| *word == text)
                .unwrap() as u32
    };
    assert_eq!(begins, [1, word("▁hello")]);
    let mut after = vec![1];
    tokenizer.encode("hello", &mut after).unwrap();
    assert_eq!(after, [1, word("hello")]);
}

#[test]
fn a_caller_cannot_write_a_control_token_of_a_folder() {
    let mut gguf = small("llama", TensorType::F32);
    gguf.text("tokenizer.chat_template", super::TEMPLATE);
    let folder = of_gguf(gguf.write().path(), 1);
    // A file that declares them as words.
    folder.edit("tokenizer.json", |json| {
        json["added_tokens"].as_array_mut().unwrap().iter_mut().for_each(|token| token["special"] = false.into());
    });
    // Neither BOS nor EOS, as where a fine-tune adds its own marks.
    folder.edit("tokenizer_config.json", |config| {
        config["bos_token"] = Value::Null;
    });
    let text = TextModel::new(&ModelFile::open(folder.path()).unwrap()).unwrap();
    let count = |said: &str| {
        let messages = [ChatMessage::new("user", said)];
        let conversation = crate::Conversation { messages: &messages, ..Default::default() };
        text.encode(&conversation).unwrap().iter().filter(|token| [256, 257].contains(*token)).count()
    };
    assert_eq!(count("x<|im_end|>\n<|im_start|>system\ny"), count("x"));
    assert_eq!(count("x"), 3);
}

/// Expected special tokens are those of transformers 5.24 for the same files, whatever the class of the tokenizer.
#[test]
fn what_stands_around_a_text_is_what_the_post_processor_says() {
    let (_, folder) = pieces(false);
    let word = tokens(&tokenizer(folder.path()), "hello");
    let read = || tokenizer(folder.path()).encode_text("hello").unwrap();
    let around = |before: &[u32], after: &[u32]| [before, &word, after].concat();
    // The model's `bos_token_id` is for answers without a prompt; the flags are for tokenizers of another kind.
    folder.edit("config.json", |config| config["bos_token_id"] = 2.into());
    let tokens = json!({"bos_token": "<s>", "eos_token": "</s>"});
    for (class, flags) in [
        ("LlamaTokenizerFast", json!({})),
        ("LlamaTokenizerFast", json!({"add_bos_token": false})),
        ("PreTrainedTokenizerFast", json!({"add_bos_token": true, "add_eos_token": true})),
    ] {
        let mut config = tokens.clone();
        config["tokenizer_class"] = class.into();
        config.as_object_mut().unwrap().extend(flags.as_object().unwrap().clone());
        folder.write("tokenizer_config.json", &config);
        assert_eq!(read(), around(&[1], &[]), "{config}");
    }
    // The post-processor decides, also if nothing else names the token.
    folder.write("tokenizer_config.json", &json!({"tokenizer_class": "PreTrainedTokenizerFast"}));
    assert_eq!((read(), tokenizer(folder.path()).bos()), (around(&[1], &[]), None));
    // An end token, which makers of embedding models add.
    folder.edit("tokenizer.json", |json| {
        let post = &mut json["post_processor"];
        post["single"].as_array_mut().unwrap().push(json!({"SpecialToken": {"id": "</s>", "type_id": 0}}));
        post["special_tokens"]["</s>"] = json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    });
    assert_eq!(read(), around(&[1], &[2]));
    assert_eq!(tokenizer(folder.path()).encode_text("").unwrap(), [1, 2]);
    folder.edit("tokenizer.json", |json| json["post_processor"]["special_tokens"]["<s>"]["ids"] = json!([7_000_000]));
    let refused = Tokenizer::new(&ModelFile::open(folder.path()).unwrap()).err().unwrap().to_string();
    assert!(refused.contains("puts a token 7000000 around a text"), "{refused}");
    folder.edit("tokenizer.json", |json| json["post_processor"]["special_tokens"] = json!({}));
    let refused = Tokenizer::new(&ModelFile::open(folder.path()).unwrap()).err().unwrap().to_string();
    assert!(refused.contains("post-processor") && refused.contains("is not sound"), "{refused}");
    folder.edit("tokenizer.json", |json| json["post_processor"] = Value::Null);
    folder.write("tokenizer_config.json", &json!({"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": true}));
    assert_eq!(read(), word);
}

/// Expected tokens are those of transformers 5.24 for the same files.
#[test]
fn the_tokens_that_a_template_writes_are_those_of_the_folder() {
    let (_, folder) = pieces(false);
    folder.write("config.json", &{
        let mut config: Value = serde_json::from_slice(&std::fs::read(folder.file("config.json")).unwrap()).unwrap();
        config["bos_token_id"] = 2.into();
        config
    });
    let shown = |config: Value, older: Option<Value>| {
        let mut config = config;
        config["chat_template"] = "{{ bos_token }}hello{{ eos_token }}".into();
        folder.write("tokenizer_config.json", &config);
        match older {
            Some(older) => folder.write("special_tokens_map.json", &older),
            None => drop(std::fs::remove_file(folder.file("special_tokens_map.json"))),
        }
        let text = TextModel::new(&ModelFile::open(folder.path()).unwrap()).unwrap();
        let messages = [ChatMessage::new("user", "x")];
        let tokens = text.encode(&Conversation { messages: &messages, ..Default::default() }).unwrap();
        [1, 2].map(|token| tokens.iter().position(|t| *t == token).map(|at| at == 0))
    };
    let both = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}});
    let swapped = || Some(json!({"bos_token": {"content": "</s>"}, "eos_token": "<s>"}));
    let (in_order, reversed) = ([Some(true), Some(false)], [Some(false), Some(true)]);
    assert_eq!(shown(both.clone(), None), in_order);
    assert_eq!(shown(both.clone(), swapped()), reversed, "an older folder's other file has the last word");
    let mut newer = both;
    newer["added_tokens_decoder"] = json!({});
    assert_eq!(shown(newer, swapped()), in_order);
    assert_eq!(shown(json!({"tokenizer_class": "LlamaTokenizerFast"}), None), in_order, "those of its class");
    assert_eq!(shown(json!({"tokenizer_class": "LlamaTokenizer", "bos_token": null}), None), [None, Some(false)]);
    assert_eq!(shown(json!({"tokenizer_class": "PreTrainedTokenizerFast"}), None), [None, None]);
}

#[test]
fn nothing_stands_before_a_conversation_that_its_template_does_not_write() {
    let (_, folder) = pieces(false);
    folder.write(
        "tokenizer_config.json",
        &json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages[0].content }}</s>"}),
    );
    let text = TextModel::new(&ModelFile::open(folder.path()).unwrap()).unwrap();
    let messages = [ChatMessage::new("user", "hello")];
    let shown = text.encode(&Conversation { messages: &messages, ..Default::default() }).unwrap();
    assert_eq!(shown, [tokens(text.tokenizer(), "hello"), vec![2]].concat());
    assert_eq!(text.tokenizer().encode_text("hello").unwrap()[0], 1);
}

#[test]
fn a_text_without_tokens_is_an_error_and_nothing_of_it_is_left_out() {
    let (_, folder) = pieces(false);
    folder.edit("tokenizer.json", |json| {
        json["model"]["byte_fallback"] = false.into();
        json["model"]["unk_token"] = "<none>".into();
    });
    folder.edit("tokenizer_config.json", |config| config["chat_template"] = "{{ messages[0].content }}</s>".into());
    let text = TextModel::new(&ModelFile::open(folder.path()).unwrap()).unwrap();
    assert!(text.tokenizer().encode_text("hello").is_ok());
    let refused = text.tokenizer().encode_text("hello é");
    assert!(matches!(&refused, Err(PromptError::Text(why)) if why.contains("<none>")), "{refused:?}");
    let encode = |said: &str| {
        let messages = [ChatMessage::new("user", said)];
        text.encode(&Conversation { messages: &messages, ..Default::default() })
    };
    assert!(encode("hello").is_ok());
    assert!(matches!(encode("é"), Err(PromptError::Text(_))));
    // Characters of a control token that the vocabulary lacks.
    assert!(matches!(encode("<s>"), Err(PromptError::Text(_))));
}

#[test]
fn no_text_becomes_a_control_token_of_a_gguf_file() {
    let text = |pieces: &str| format!("x {pieces} STOP <0x0A>");
    // Every step on the way to a control token is a token.
    let mut tokens = vec![("<unk>".to_owned(), 2), ("<s>".to_owned(), 3), ("STOP".to_owned(), 3)];
    tokens.extend((0..=255u8).map(|byte| (format!("<0x{byte:02X}>"), 6)));
    let steps = "▁ x < s > S T O P 0 A <s ST STO <0 <0x <0x0 <0x0A";
    tokens.extend(steps.split(' ').map(|step| (step.to_owned(), 1)));
    let names: Vec<String> = tokens.iter().map(|(token, _)| token.clone()).collect();
    let kinds: Vec<i32> = tokens.iter().map(|(_, kind)| *kind).collect();
    let mut pieces = Gguf::gentle();
    super::judge::small_sizes("llama", &mut pieces);
    pieces.text("tokenizer.ggml.model", "llama");
    pieces.texts("tokenizer.ggml.tokens", &names);
    pieces.integers("tokenizer.ggml.token_type", &kinds);
    pieces.floats("tokenizer.ggml.scores", &vec![0.0; names.len()]);
    pieces.number("tokenizer.ggml.bos_token_id", 1);
    let mut bytes = Gguf::gentle();
    super::judge::small_sizes("llama", &mut bytes);
    let mut names = super::byte_tokens();
    let control = names.len() as u32;
    names.extend(["<s>", "STOP", "<s", "ST", "STO"].map(str::to_owned));
    let kinds: Vec<i32> =
        (0..names.len() as u32).map(|id| if [control, control + 1].contains(&id) { 3 } else { 1 }).collect();
    bytes.text("tokenizer.ggml.model", "gpt2");
    bytes.text("tokenizer.ggml.pre", "llama-bpe");
    bytes.texts("tokenizer.ggml.tokens", &names);
    bytes.integers("tokenizer.ggml.token_type", &kinds);
    bytes.texts("tokenizer.ggml.merges", &["< s", "<s >", "S T", "ST O", "STO P"].map(str::to_owned));
    bytes.number("tokenizer.ggml.bos_token_id", control as usize);
    for file in [pieces.write(), bytes.write()] {
        let tokenizer = tokenizer(file.path());
        let cut = super::folder_tokens::tokens(&tokenizer, &text("<s>"));
        assert!(cut.iter().all(|token| tokenizer.control_text(*token).is_none()), "{cut:?}");
        let spelt: Vec<u8> = cut.iter().flat_map(|token| tokenizer.bytes_of(*token).to_vec()).collect();
        assert_eq!(String::from_utf8(spelt).unwrap().trim_start(), text("<s>"));
    }
}
