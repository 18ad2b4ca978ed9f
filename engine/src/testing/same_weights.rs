//! The same weights in GGUF and in safetensors: the same probabilities, tokens and answers; and refused folders.

use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::folder::of_gguf;
use super::judge::{log_probabilities, small};
use super::tests::options;
use crate::artifact::{ModelFile, TensorType};
use crate::text::TextModel;
use crate::{ChatMessage, Engine, Event, Generate, Sampling};

const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "gemma3"];

#[test]
fn every_architecture_gives_the_probabilities_of_the_same_weights_in_gguf() {
    let tokens: Vec<u32> = (0..36u32).map(|n| (n * 37 + 11) % 256).collect();
    for architecture in ARCHITECTURES {
        for (kind, parts) in [(TensorType::F32, 1), (TensorType::F16, 3), (TensorType::BF16, 2)] {
            let gguf = small(architecture, kind).write();
            let folder = of_gguf(gguf.path(), parts);
            let (theirs, ours) =
                (log_probabilities(gguf.path(), &tokens, 6), log_probabilities(folder.path(), &tokens, 6));
            let apart = ours.iter().flatten().zip(theirs.iter().flatten()).map(|(a, b)| (a - b).abs());
            let worst = apart.fold(0.0f64, f64::max);
            // The values of heads have another order, and so do the sums.
            assert!(worst < 1e-3, "{architecture} {kind:?}: {worst}");
            let theirs = crate::inspect(gguf.path()).unwrap();
            let ours = crate::inspect(folder.path()).unwrap();
            assert_eq!((&ours.architecture, ours.parameters), (&theirs.architecture, theirs.parameters));
            assert_eq!((ours.quantization, ours.tensors), (theirs.quantization, theirs.tensors));
        }
    }
}

/// A greedy answer to a conversation.
fn answer(source: &Path, said: &str) -> String {
    let engine = Engine::load(options(source.into())).unwrap();
    let prompt = engine.encode_chat(&[ChatMessage::new("user", said)]).unwrap();
    let request = Generate { max_tokens: Some(24), sampling: Sampling::greedy(), ..Generate::new(prompt) };
    let mut stream = engine.submit(request).unwrap();
    let mut text = String::new();
    while let Some(event) = stream.blocking_next() {
        match event {
            Event::Text { text: more, .. } => text.push_str(&more),
            Event::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
    text
}

#[test]
fn a_folder_answers_as_the_gguf_file_of_its_weights() {
    for architecture in ARCHITECTURES {
        let mut gguf = small(architecture, TensorType::F32);
        gguf.text("tokenizer.chat_template", super::TEMPLATE);
        let gguf = gguf.write();
        let (whole, parts) = (of_gguf(gguf.path(), 1), of_gguf(gguf.path(), 2));
        let theirs = answer(gguf.path(), "What now?");
        assert!(!theirs.is_empty());
        for source in
            [whole.path(), &whole.file("model.safetensors"), parts.path(), &parts.file("model.safetensors.index.json")]
        {
            assert_eq!(answer(source, "What now?"), theirs, "{architecture} {}", source.display());
        }
    }
}

#[test]
fn a_folder_of_what_is_not_run_is_refused_by_name() {
    let gguf = small("llama", TensorType::F32).write();
    let gemma = small("gemma3", TensorType::F32).write();
    let refused = |source: &Path, edit: &dyn Fn(&mut Value)| {
        let folder = of_gguf(source, 1);
        folder.edit("config.json", edit);
        crate::inspect(folder.path()).unwrap_err().to_string()
    };
    let set = |key: &'static str, value: Value| move |config: &mut Value| config[key] = value.clone();
    for (edit, says) in [
        (set("model_type", json!("mixtral")), "`mixtral`"),
        (set("quantization_config", json!({"quant_method": "gptq"})), "`gptq`"),
        (set("hidden_act", json!("gelu")), "`gelu`"),
        (set("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})), "`yarn`"),
        (set("rope_parameters", json!({"rope_type": "dynamic"})), "`dynamic`"),
        (set("rope_scaling", json!({"type": "linear"})), "`factor`"),
        (
            set(
                "rope_scaling",
                json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
            "high_freq_factor": 1.0, "original_max_position_embeddings": 64}),
            ),
            "`high_freq_factor`",
        ),
        (set("partial_rotary_factor", json!(0.5)), "`partial_rotary_factor`"),
        (
            set("rope_parameters", json!({"rope_type": "default", "partial_rotary_factor": 0.5})),
            "`partial_rotary_factor`",
        ),
        (set("num_hidden_layers", json!(null)), "`num_hidden_layers`"),
        (set("num_hidden_layers", json!(3)), "blk.2."),
        (set("num_hidden_layers", json!(1)), "blk.1."),
        (set("num_attention_heads", json!(0)), "head_count"),
        (set("tie_word_embeddings", json!(false)), "lm_head.weight"),
        (set("vocab_size", json!(u64::MAX)), "vocab_size"),
        (set("head_dim", json!(6)), "heads of 6"),
    ] {
        let told = refused(gguf.path(), &edit);
        assert!(told.contains(says), "{told}");
    }
    for (edit, says) in [
        (set("layer_types", json!(["full_attention", "full_attention", "sliding_attention"])), "`layer_types`"),
        (set("final_logit_softcapping", json!(30.0)), "`final_logit_softcapping`"),
        (set("use_bidirectional_attention", json!(true)), "`use_bidirectional_attention`"),
        (set("query_pre_attn_scalar", json!(0)), "attention.scale"),
    ] {
        let told = refused(gemma.path(), &edit);
        assert!(told.contains(says), "{told}");
    }
    let folder = of_gguf(gguf.path(), 1);
    std::fs::remove_file(folder.file("model.safetensors")).unwrap();
    let told = crate::inspect(folder.path()).unwrap_err().to_string();
    assert!(told.contains("model.safetensors.index.json"), "{told}");
    std::fs::remove_file(folder.file("tokenizer.json")).unwrap();
    let folder = of_gguf(gguf.path(), 1);
    std::fs::remove_file(folder.file("tokenizer.json")).unwrap();
    let told = Engine::load(options(folder.path().into())).err().unwrap().to_string();
    assert!(told.contains("`tokenizer.json`"), "{told}");
}

#[test]
fn parts_lie_beside_their_index_and_hold_what_it_says() {
    let gguf = small("llama", TensorType::F32).write();
    let refused = |edit: &dyn Fn(&mut Value)| {
        let folder = of_gguf(gguf.path(), 2);
        folder.edit("model.safetensors.index.json", edit);
        crate::inspect(folder.path()).unwrap_err().to_string()
    };
    for name in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "config.json"] {
        let told = refused(&|index| index["weight_map"]["model.norm.weight"] = name.into());
        assert!(told.contains("no name of a part"), "{name}: {told}");
    }
    let told = refused(&|index| index["weight_map"]["model.norm.weight"] = "model-00009-of-00002.safetensors".into());
    assert!(told.contains("model-00009"), "{told}");
    let told = refused(&|index| index["weight_map"]["model.more.weight"] = "model-00001-of-00002.safetensors".into());
    assert!(told.contains("model.more.weight"), "{told}");
    assert!(refused(&|index| index["weight_map"] = json!({})).contains("no tensor"));
    assert!(refused(&|index| index["weight_map"] = json!([1])).contains("no tensor"));
    let many = |index: &mut Value| {
        index["weight_map"] = (0..2000).map(|n| (n.to_string(), json!(format!("{n}.safetensors")))).collect();
    };
    assert!(refused(&many).contains("more than 1024"));
    // The same tensor in two parts.
    let folder = of_gguf(gguf.path(), 2);
    folder.edit("model.safetensors.index.json", |index| {
        let part = index["weight_map"]["model.embed_tokens.weight"].as_str().unwrap();
        std::fs::copy(folder.file(part), folder.file("again.safetensors")).unwrap();
        index["weight_map"]["model.embed_tokens.weight"] = "again.safetensors".into();
    });
    let told = crate::inspect(folder.path()).unwrap_err().to_string();
    assert!(told.contains("duplicate tensor `token_embd.weight`"), "{told}");
}

#[test]
fn a_damaged_folder_is_refused_or_taken_and_harms_nothing() {
    let gguf = small("llama", TensorType::F32).write();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let folder = of_gguf(gguf.path(), 2);
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
    ] {
        let whole = std::fs::read(folder.file(name)).unwrap();
        for _ in 0..200 {
            let mut bytes = whole.clone();
            for _ in 0..rng.random_range(1..4) {
                let reach = bytes.len().min(6000);
                match rng.random_range(0..3) {
                    0 => bytes[rng.random_range(0..reach)] = rng.random(),
                    // Another digit or one more: numbers do the most harm.
                    1 => bytes[rng.random_range(0..reach)] = rng.random_range(b'0'..=b'9'),
                    _ => bytes.truncate(bytes.len() - rng.random_range(0..reach / 8)),
                }
            }
            std::fs::write(folder.file(name), &bytes).unwrap();
            if let Ok(file) = ModelFile::open(folder.path())
                && crate::model::check(&file).is_ok()
            {
                let _ = TextModel::new(&file).map(|text| text.tokenizer().encode_text("hello, 1 world"));
            }
        }
        std::fs::write(folder.file(name), whole).unwrap();
    }
    assert!(crate::inspect(folder.path()).is_ok());
}

#[test]
fn a_stretched_context_leaves_short_waves_and_stretches_long_ones() {
    let gguf = small("llama", TensorType::F32).write();
    let folder = of_gguf(gguf.path(), 1);
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256});
    folder.edit("config.json", |config| config["rope_scaling"] = scaling.clone());
    let file = ModelFile::open(folder.path()).unwrap();
    let Some(crate::artifact::MetaValue::Numbers(factors)) = file.meta("llama.rope.freq_factors") else { panic!() };
    // Heads of 32 at a base of 5e4: waves of 2 pi 5e4^(pair/16), short below 64 tokens, long above 256.
    let wave = |pair: usize| std::f64::consts::TAU * 5e4f64.powf(pair as f64 / 16.0);
    for (pair, factor) in factors.iter().enumerate() {
        match wave(pair) {
            wave if wave < 64.0 => assert_eq!(*factor, 1.0),
            wave if wave > 256.0 => assert_eq!(*factor, 8.0),
            _ => assert!(*factor > 1.0 && *factor < 8.0),
        }
    }
    assert!(factors.windows(2).all(|pair| pair[0] <= pair[1]) && factors.iter().any(|f| *f > 1.0 && *f < 8.0));
    // The same in the keys of newer files, which contain the base.
    let newer = of_gguf(gguf.path(), 1);
    newer.edit("config.json", |config| {
        config["rope_parameters"] = scaling.clone();
        config["rope_parameters"]["rope_theta"] = config["rope_theta"].take();
    });
    let tokens: Vec<u32> = (0..20).collect();
    assert_eq!(log_probabilities(folder.path(), &tokens, 2), log_probabilities(newer.path(), &tokens, 2));
    assert_ne!(log_probabilities(folder.path(), &tokens, 2), log_probabilities(gguf.path(), &tokens, 2));
}

#[test]
fn a_model_that_looks_at_a_window_is_given_no_longer_context() {
    let folder = of_gguf(small("llama", TensorType::F32).write().path(), 1);
    assert_eq!(crate::inspect(folder.path()).unwrap().context_length, 128);
    folder.edit("config.json", |config| {
        config["model_type"] = "mistral".into();
        config["sliding_window"] = 48.into();
    });
    assert_eq!(crate::inspect(folder.path()).unwrap().context_length, 48);
}

#[test]
fn a_window_that_is_not_told_is_that_of_the_class_and_one_that_is_null_is_none() {
    let folder = of_gguf(small("llama", TensorType::F32).write().path(), 1);
    let context = |edit: &dyn Fn(&mut Value)| {
        folder.edit("config.json", edit);
        crate::inspect(folder.path()).unwrap().context_length
    };
    // The default of Mistral's class in transformers is 4096.
    let mistral = |config: &mut Value| {
        config["model_type"] = "mistral".into();
        config["max_position_embeddings"] = 32_768.into();
    };
    assert_eq!(context(&mistral), 4096);
    assert_eq!(context(&|config| config["sliding_window"] = Value::Null), 32_768);
    assert_eq!(context(&|config| config["sliding_window"] = 512.into()), 512);
    let llama = context(&|config| config["model_type"] = "llama".into());
    assert_eq!(llama, 32_768, "llama has none");
    // Qwen has a window only if its use is switched on.
    let folder = of_gguf(small("qwen3", TensorType::F32).write().path(), 1);
    let context = |edit: &dyn Fn(&mut Value)| {
        folder.edit("config.json", edit);
        crate::inspect(folder.path()).unwrap().context_length
    };
    assert_eq!(context(&|config| config["max_position_embeddings"] = 32_768.into()), 32_768);
    assert_eq!(context(&|config| config["use_sliding_window"] = true.into()), 4096);
}

#[test]
fn heads_of_keys_that_are_null_are_as_many_as_heads() {
    let folder = of_gguf(small("llama", TensorType::F32).write().path(), 1);
    folder.edit("config.json", |config| config["num_key_value_heads"] = Value::Null);
    // The weights are of two heads.
    let told = crate::inspect(folder.path()).unwrap_err().to_string();
    assert!(told.contains("blk.0.attn_k.weight` is 256 x 64; the model expects 256 x 128"), "{told}");
}

/// Layout of the multimodal model: its text within `text_config`, its weights among those of another part.
#[test]
fn the_text_of_a_model_that_sees_is_the_same_model() {
    let gguf = small("gemma3", TensorType::F32).write();
    let (alone, whole) = (of_gguf(gguf.path(), 1), of_gguf(gguf.path(), 1));
    whole.edit("config.json", |config| {
        config["model_type"] = "gemma3_text".into();
        *config = json!({"model_type": "gemma3", "vision_config": {"hidden_size": 8}, "text_config": config.take()});
    });
    let tokens: Vec<u32> = (0..20).collect();
    let expected = log_probabilities(alone.path(), &tokens, 2);
    for (heads, of_images) in [
        ("language_model.model.", "vision_tower.encoder.weight"),
        ("model.language_model.", "model.vision_tower.encoder.weight"),
    ] {
        super::folder::rename(&alone.file("model.safetensors"), &whole.file("model.safetensors"), |name| {
            let inner = name.strip_prefix("model.").unwrap();
            // One of the names stands for those of the image part.
            if inner == "norm.weight" {
                vec![format!("{heads}{inner}"), of_images.into()]
            } else {
                vec![format!("{heads}{inner}")]
            }
        });
        assert_eq!(log_probabilities(whole.path(), &tokens, 2), expected, "{heads}");
    }
}

#[test]
fn a_head_that_judges_no_whole_text_is_not_taken_for_one_that_does() {
    let folder = super::folder::of_gguf(small("llama", TensorType::F32).write().path(), 1);
    for (class, is_refused) in [("BertForTokenClassification", true), ("BertForSequenceClassification", false)] {
        folder.write(
            "config.json",
            &json!({"model_type": "bert", "architectures": [class], "max_position_embeddings": 8}),
        );
        let told = crate::inspect(folder.path()).unwrap_err().to_string();
        assert_eq!(told.contains("`BertForTokenClassification`"), is_refused, "{told}");
    }
}
