//! Comparison of encoders with llama.cpp: embeddings, scores of a classifier.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::gguf::{Gguf, small_reranker};
use super::judge::{CORPUS, ask, needed, same_tokens_in};
use crate::artifact::{ModelFile, TensorType};
use crate::device::block_on as wait;
use crate::text::Tokenizer;
use crate::{Engine, LoadOptions, WeightPrecision};

fn minilm() -> PathBuf {
    needed("SPILLWAY_TEST_MINILM", "models/all-minilm-l6-v2/model.safetensors", "`scripts/test-models.sh` fetches it")
}

/// Converts the weights to a GGUF file.
fn minilm_as_gguf(path: &Path) -> tempfile::NamedTempFile {
    let real = ModelFile::open(path).unwrap();
    let mut file = Gguf::default();
    file.text("general.architecture", "bert");
    for (key, value) in [
        ("context_length", 512),
        ("embedding_length", 384),
        ("block_count", 6),
        ("feed_forward_length", 1536),
        ("attention.head_count", 12),
        ("pooling_type", 1),
    ] {
        file.number(&format!("bert.{key}"), value);
    }
    file.float("bert.attention.layer_norm_epsilon", 1e-12);
    file.flag("bert.attention.causal", false);
    let words = std::fs::read_to_string(path.with_file_name("vocab.txt")).unwrap();
    let special = |word: &str| word.starts_with('[') && word.ends_with(']');
    // As llama.cpp's conversion: words begin with a mark, parts of words have none.
    let tokens: Vec<String> = words
        .lines()
        .map(|word| match word.strip_prefix("##") {
            _ if special(word) => word.to_owned(),
            Some(part) => part.to_owned(),
            None => format!("\u{2581}{word}"),
        })
        .collect();
    file.text("tokenizer.ggml.model", "bert");
    file.text("tokenizer.ggml.pre", "jina-v2-en");
    file.integers(
        "tokenizer.ggml.token_type",
        &words.lines().map(|word| if special(word) { 3 } else { 1 }).collect::<Vec<_>>(),
    );
    let find = |word: &str| tokens.iter().position(|token| token == word).unwrap();
    for (key, word) in
        [("bos", "[CLS]"), ("cls", "[CLS]"), ("eos", "[SEP]"), ("seperator", "[SEP]"), ("unknown", "[UNK]")]
    {
        file.number(&format!("tokenizer.ggml.{key}_token_id"), find(word));
    }
    file.number("tokenizer.ggml.token_type_count", 2);
    file.texts("tokenizer.ggml.tokens", &tokens);
    for name in real.names().filter(|name| !name.starts_with("cls.")) {
        let entry = real.entry(name).unwrap();
        let (columns, rows) = entry.shape();
        let data = real.tensor(name, columns, rows).unwrap().data;
        let dimensions =
            if rows == 1 && !name.starts_with("token_types") { vec![columns] } else { vec![columns, rows] };
        file.tensor(name, TensorType::F32, &dimensions, data);
    }
    file.write()
}

fn encoder(source: &Path) -> Engine {
    let options = LoadOptions { context_length: None, ..super::tests::options(source.into()) };
    Engine::load(options).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn embeddings_are_those_of_llama_cpp_from_safetensors_and_from_gguf() {
    let path = minilm();
    let gguf = minilm_as_gguf(&path);
    let order = json!({"model": gguf.path(), "context": 512, "embedding": true, "pooling": "mean"});
    // llama.cpp loses the vowels of decomposed Hangul syllables; the tokenizer of the model's makers does not.
    let apart = CORPUS.iter().copied().filter(|text| text.contains('の')).collect::<Vec<_>>();
    assert_eq!(apart.len(), 1);
    same_tokens_in(gguf.path(), false, order, &apart);
    let [of_folder, of_gguf] = [path.as_path(), gguf.path()].map(|path| {
        let tokenizer = Tokenizer::new(&ModelFile::open(path).unwrap()).unwrap();
        CORPUS.map(|text| tokenizer.encode_text(text).unwrap())
    });
    assert_eq!(of_folder, of_gguf);
    let calls: Vec<_> = of_folder.iter().map(|tokens| json!(["/embedding", {"content": tokens}])).collect();
    let order = json!({"model": gguf.path(), "context": 512, "embedding": true, "pooling": "mean", "calls": calls});
    let theirs: Vec<Vec<f32>> =
        ask(&order).iter().map(|answer| serde_json::from_value(answer[0]["embedding"][0].clone()).unwrap()).collect();
    for source in [path.as_path(), gguf.path()] {
        let engine = encoder(source);
        assert_eq!((engine.info().task, engine.info().outputs), (crate::Task::Embed, 384));
        let texts: Vec<String> = CORPUS.iter().map(|text| (*text).to_owned()).collect();
        let ours = wait(engine.embed(texts.clone())).unwrap();
        let mut least = 1.0f64;
        for ((text, ours), theirs) in CORPUS.iter().zip(&ours).zip(&theirs) {
            let cosine = cosine(&ours.values, theirs);
            least = least.min(cosine);
            assert!(cosine >= 0.999, "{text:?}: {cosine}");
            let length: f32 = ours.values.iter().map(|v| v * v).sum();
            assert!((length - 1.0).abs() < 1e-4 && !ours.truncated);
        }
        println!("{}: cosine of at least {least:.6}", source.display());
        // Alone as in company.
        let alone = wait(engine.embed(texts[..1].to_vec())).unwrap();
        assert_eq!(alone[0].values, ours[0].values);
        // A text beyond the context is cut and marked.
        let long = wait(engine.embed(vec!["word ".repeat(700)])).unwrap();
        assert!(long[0].truncated && long[0].tokens == engine.info().context_length);
        assert!(matches!(wait(engine.rerank("q", vec!["d".into()])), Err(crate::EngineError::Task { .. })));
        assert_eq!(engine.encode_text("x"), Err(crate::PromptError::NotGenerating));
    }
}

/// Weights in 8 bits keep the direction of embeddings, and how alike two texts are.
#[test]
fn weights_in_8_bits_keep_the_embeddings() {
    let path = minilm();
    let of = |weights| {
        let options = LoadOptions { context_length: None, weights, ..super::tests::options(path.clone()) };
        let engine = Engine::load(options).unwrap();
        let texts = CORPUS.iter().map(|text| (*text).to_owned()).collect();
        let values: Vec<Vec<f32>> = wait(engine.embed(texts)).unwrap().into_iter().map(|one| one.values).collect();
        (values, engine.placement().memory_bytes)
    };
    let ((exact, whole), (rounded, less)) = (of(WeightPrecision::File), of(WeightPrecision::Int8));
    assert!(less < whole / 2, "{less} bytes in 8 bits, {whole} in 32");
    let mut least = 1.0f64;
    for ((text, exact), rounded) in CORPUS.iter().zip(&exact).zip(&rounded) {
        let cosine = cosine(exact, rounded);
        least = least.min(cosine);
        assert!(cosine >= 0.998, "{text:?}: {cosine}");
    }
    // How alike two texts are, which searches and caches decide by.
    let mut most = 0.0f64;
    for a in 0..exact.len() {
        for b in 0..a {
            most = most.max((cosine(&exact[a], &exact[b]) - cosine(&rounded[a], &rounded[b])).abs());
        }
    }
    assert!(most < 0.02, "the similarity of two texts moves by {most}");
    println!("8 bits: cosine of at least {least:.6}, similarities within {most:.6}, {less} of {whole} bytes");
}

/// The score of a whole text; llama.cpp does not report the order of several.
#[test]
fn a_classifier_gives_the_scores_of_llama_cpp() {
    let file = small_reranker();
    let tokenizer = Tokenizer::new(&ModelFile::open(file.path()).unwrap()).unwrap();
    let texts = ["what is a proxy", "proxys", "", "nobody knows what a proxy is"];
    let calls = texts.map(|text| {
        let tokens = tokenizer.encode_text(text).unwrap();
        json!(["/embedding", {"content": tokens, "embd_normalize": -1}])
    });
    let order = json!({"model": file.path(), "context": 32, "embedding": true, "pooling": "rank", "calls": calls});
    let theirs = ask(&order).into_iter().map(|answer| answer[0]["embedding"][0][0].as_f64().unwrap());
    let ours = wait(encoder(file.path()).classify(texts.map(str::to_owned).to_vec())).unwrap();
    for ((text, ours), theirs) in texts.iter().zip(&ours).zip(theirs) {
        let apart = (f64::from(ours.logits[0]) - theirs).abs();
        assert!(apart < 1e-3 * theirs.abs().max(0.1), "{text:?}: {}, llama.cpp {theirs}", ours.logits[0]);
    }
}

#[test]
fn a_reranker_scores_pairs_alone_as_in_company() {
    let file = small_reranker();
    let engine = encoder(file.path());
    assert_eq!((engine.info().task, engine.info().outputs), (crate::Task::Classify, 1));
    let documents = [
        "a proxy",
        "proxys is what",
        "",
        "unknown words what is a proxy and what is a proxy and what is a proxy and what is a proxy and so on and on",
    ];
    let documents = documents.map(str::to_owned).to_vec();
    let together = wait(engine.rerank("what is a proxy", documents.clone())).unwrap();
    assert_eq!(together.iter().map(|score| score.truncated).collect::<Vec<_>>(), [false, false, false, true]);
    // [CLS] what is a proxy [SEP] a proxy [SEP]
    assert_eq!(together[0].tokens, 9);
    for (document, score) in documents.iter().zip(&together) {
        assert_eq!(wait(engine.rerank("what is a proxy", vec![document.clone()])).unwrap()[0], *score);
    }
    let logits: Vec<f32> = together.iter().map(|score| score.logits[0]).collect();
    assert!(logits.iter().all(|logit| logit.is_finite()) && logits[0] != logits[1]);
    // The two halves of a pair differ by type, not only by their words.
    let swapped = wait(engine.rerank("a proxy", vec!["what is a proxy".into()])).unwrap();
    assert_ne!(swapped[0].logits, together[0].logits);
    assert_ne!(wait(engine.classify(vec!["a proxy".into()])).unwrap()[0].logits, together[0].logits);
    let dropped = engine.rerank("what is a proxy", documents);
    drop(dropped);
    engine.shutdown();
    let refused = wait(engine.classify(vec!["a".into()]));
    assert!(matches!(refused, Err(crate::EngineError::Busy(_) | crate::EngineError::Shutdown)), "{refused:?}");
}
