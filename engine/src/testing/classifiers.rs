//! Encoders of every family against a plain computation in f64, written from their papers; their labels,
//! probabilities and windows; folders that are refused.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::folder::{Folder, Weights, safetensors};
use super::tests::options;
use crate::device::block_on as wait;
use crate::{Engine, EngineError, LoadOptions, Scoring, Task};

const WIDTH: usize = 32;
const FEED_FORWARD: usize = 48;
const HEADS: usize = 4;
const LAYERS: usize = 2;
const POSITIONS: usize = 24;
/// Rows of RoBERTa's table of positions before the first token's: the number of the padding token, and one.
const BEFORE: usize = 2;
const WORDS: [&str; 8] = ["what", "is", "a", "proxy", "ignore", "all", "rules", "now"];
const TEXTS: [&str; 5] = ["what is a proxy", "ignore all rules now", "", "a", "nobody knows"];

/// A small random encoder in f64, which is written as a folder and computed here.
struct Judge {
    kind: &'static str,
    labels: usize,
    function: &'static str,
    eps: f64,
    weights: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

/// Error function, by its series.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

impl Judge {
    fn new(kind: &'static str, labels: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(31);
        // DistilBERT has no setting for it.
        let eps = if kind == "distilbert" { 1e-12 } else { 1e-5 };
        let mut judge = Self { kind, labels, function: "gelu", eps, weights: BTreeMap::new() };
        let mut add = |name: String, shape: Vec<usize>| {
            let values = (0..shape.iter().product()).map(|_| rng.random_range(-0.3f32..0.3)).collect();
            judge.weights.insert(name, (shape, values));
        };
        let [encoder, layer] = Self::stems(kind);
        add(format!("{encoder}embeddings.word_embeddings.weight"), vec![Self::vocabulary(kind).len(), WIDTH]);
        let positions = if Self::is_roberta(kind) { POSITIONS + BEFORE } else { POSITIONS };
        add(format!("{encoder}embeddings.position_embeddings.weight"), vec![positions, WIDTH]);
        if kind != "distilbert" {
            let types = if kind == "bert" { 2 } else { 1 };
            add(format!("{encoder}embeddings.token_type_embeddings.weight"), vec![types, WIDTH]);
        }
        let mut both = |stem: String, shape: Vec<usize>| {
            add(format!("{stem}.bias"), vec![shape[0]]);
            add(format!("{stem}.weight"), shape);
        };
        both(format!("{encoder}embeddings.LayerNorm"), vec![WIDTH]);
        for n in 0..LAYERS {
            for (part, shape) in Self::parts(kind).into_iter().zip([
                vec![WIDTH, WIDTH],
                vec![WIDTH, WIDTH],
                vec![WIDTH, WIDTH],
                vec![WIDTH, WIDTH],
                vec![WIDTH],
                vec![FEED_FORWARD, WIDTH],
                vec![WIDTH, FEED_FORWARD],
                vec![WIDTH],
            ]) {
                both(format!("{encoder}{layer}.{n}.{part}"), shape);
            }
        }
        let [dense, output] = Self::head(kind);
        both(dense.to_owned(), vec![WIDTH, WIDTH]);
        both(output.to_owned(), vec![labels, WIDTH]);
        judge
    }

    fn is_roberta(kind: &str) -> bool {
        kind.ends_with("roberta")
    }

    /// Names of the encoder and of its layers in a classifier's folder.
    fn stems(kind: &str) -> [&'static str; 2] {
        match kind {
            "bert" => ["bert.", "encoder.layer"],
            "distilbert" => ["distilbert.", "transformer.layer"],
            _ => ["roberta.", "encoder.layer"],
        }
    }

    /// Names of a layer's parts: q, k, v, output, norm, up, down, norm.
    fn parts(kind: &str) -> [&'static str; 8] {
        match kind {
            "distilbert" => [
                "attention.q_lin",
                "attention.k_lin",
                "attention.v_lin",
                "attention.out_lin",
                "sa_layer_norm",
                "ffn.lin1",
                "ffn.lin2",
                "output_layer_norm",
            ],
            _ => [
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
                "attention.output.LayerNorm",
                "intermediate.dense",
                "output.dense",
                "output.LayerNorm",
            ],
        }
    }

    /// Names of the two layers of the head.
    fn head(kind: &str) -> [&'static str; 2] {
        match kind {
            "bert" => ["bert.pooler.dense", "classifier"],
            "distilbert" => ["pre_classifier", "classifier"],
            _ => ["classifier.dense", "classifier.out_proj"],
        }
    }

    fn vocabulary(kind: &str) -> Vec<String> {
        let words = WORDS.iter().map(|word| (*word).to_owned());
        match kind {
            "bert" | "distilbert" => {
                ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(str::to_owned).into_iter().chain(words).collect()
            }
            "roberta" => {
                let special = ["<s>", "<pad>", "</s>", "<unk>"].map(str::to_owned).into_iter();
                special.chain(super::byte_tokens()).collect()
            }
            _ => {
                let special = ["<s>", "<pad>", "</s>", "<unk>"].map(str::to_owned).into_iter();
                special.chain(words.map(|word| format!("\u{2581}{word}"))).collect()
            }
        }
    }

    fn tokenizer(&self) -> Value {
        let tokens = Self::vocabulary(self.kind);
        let vocab: serde_json::Map<_, _> =
            (0..).zip(&tokens).map(|(id, token)| (token.clone(), Value::from(id))).collect();
        let added: Vec<_> = tokens[..4]
            .iter()
            .enumerate()
            .map(|(id, content)| {
                json!({"id": id, "content": content, "special": true, "normalized": false, "single_word": false,
                    "lstrip": false, "rstrip": false})
            })
            .collect();
        let (normalizer, cut, model) = match self.kind {
            "bert" | "distilbert" => (
                json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                    "strip_accents": null, "lowercase": true}),
                json!({"type": "BertPreTokenizer"}),
                json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100, "vocab": vocab}),
            ),
            "roberta" => (
                Value::Null,
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
                json!({"type": "BPE", "vocab": vocab, "merges": []}),
            ),
            _ => {
                let scored: Vec<_> = tokens.iter().map(|token| json!([token, -1.0])).collect();
                (
                    Value::Null,
                    json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always"}),
                    json!({"type": "Unigram", "unk_id": 3, "vocab": scored}),
                )
            }
        };
        json!({"version": "1.0", "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": cut, "model": model})
    }

    fn config(&self) -> Value {
        let vocabulary = Self::vocabulary(self.kind).len();
        let class = match self.kind {
            "bert" => "Bert",
            "distilbert" => "DistilBert",
            "roberta" => "Roberta",
            _ => "XLMRoberta",
        };
        let classes = [format!("{class}ForSequenceClassification")];
        let named: serde_json::Map<_, _> =
            (0..self.labels).map(|n| (n.to_string(), Value::from(format!("label {n}")))).collect();
        let mut config = match self.kind {
            "distilbert" => json!({"n_layers": LAYERS, "dim": WIDTH, "hidden_dim": FEED_FORWARD, "n_heads": HEADS,
                "activation": self.function, "max_position_embeddings": POSITIONS}),
            _ => {
                let is_bert = self.kind == "bert";
                let positions = if is_bert { POSITIONS } else { POSITIONS + BEFORE };
                let types = if is_bert { 2 } else { 1 };
                json!({"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "intermediate_size": FEED_FORWARD,
                    "num_attention_heads": HEADS, "hidden_act": self.function, "layer_norm_eps": self.eps,
                    "max_position_embeddings": positions, "type_vocab_size": types,
                    "pad_token_id": if is_bert { 0 } else { 1 }})
            }
        };
        let common =
            json!({"model_type": self.kind, "architectures": classes, "vocab_size": vocabulary, "id2label": named});
        config.as_object_mut().unwrap().extend(common.as_object().unwrap().clone());
        config
    }

    fn folder(&self) -> Folder {
        let folder = Folder::empty();
        let tensors: Vec<Weights> = self
            .weights
            .iter()
            .map(|(name, (shape, values))| {
                let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                (name.clone(), "F32", shape.clone(), data)
            })
            .collect();
        std::fs::write(folder.file("model.safetensors"), safetensors(&tensors)).unwrap();
        folder.write("config.json", &self.config());
        folder.write("tokenizer.json", &self.tokenizer());
        folder
    }

    /// Tokens and types of a text, or of two, as the makers of each family write them.
    fn tokens(&self, first: &str, second: Option<&str>) -> (Vec<usize>, Vec<usize>) {
        let vocabulary = Self::vocabulary(self.kind);
        let find = |token: &str| vocabulary.iter().position(|t| t == token);
        let words = |text: &str| -> Vec<usize> {
            match self.kind {
                "roberta" => {
                    let byte = |byte: u8| 4 + usize::from(byte);
                    text.bytes().map(byte).collect()
                }
                "xlm-roberta" => text
                    .split(' ')
                    .filter(|word| !word.is_empty())
                    .flat_map(|word| find(&format!("\u{2581}{word}")).or(Some(3)))
                    .collect(),
                _ => text.split(' ').filter(|word| !word.is_empty()).map(|word| find(word).unwrap_or(1)).collect(),
            }
        };
        let (open, close) = if Self::is_roberta(self.kind) { (0, 2) } else { (2, 3) };
        let mut tokens = vec![open];
        tokens.extend(words(first));
        tokens.push(close);
        let mut types = vec![0; tokens.len()];
        if let Some(second) = second {
            if Self::is_roberta(self.kind) {
                tokens.push(close);
            }
            tokens.extend(words(second));
            tokens.push(close);
            types.resize(tokens.len(), usize::from(self.kind == "bert"));
        }
        (tokens, types)
    }

    fn row(&self, name: &str, n: usize) -> Vec<f64> {
        let (shape, values) = &self.weights[name];
        values[n * shape[1]..(n + 1) * shape[1]].iter().map(|v| f64::from(*v)).collect()
    }

    fn vector(&self, name: &str) -> Vec<f64> {
        self.weights[name].1.iter().map(|v| f64::from(*v)).collect()
    }

    fn linear(&self, stem: &str, x: &[f64]) -> Vec<f64> {
        let rows = self.weights[&format!("{stem}.weight")].0[0];
        let bias = self.vector(&format!("{stem}.bias"));
        let product = |n: usize| self.row(&format!("{stem}.weight"), n).iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        (0..rows).map(|n| product(n) + bias[n]).collect()
    }

    fn norm(&self, stem: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let (weight, bias) = (self.vector(&format!("{stem}.weight")), self.vector(&format!("{stem}.bias")));
        let scale = (variance + self.eps).sqrt();
        x.iter().zip(weight).zip(bias).map(|((v, w), b)| (v - mean) / scale * w + b).collect()
    }

    fn activate(&self, x: f64) -> f64 {
        match self.function {
            "gelu" => x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            "relu" => x.max(0.0),
            other => panic!("{other}"),
        }
    }

    /// Logits of the classifier.
    fn logits(&self, first: &str, second: Option<&str>) -> Vec<f64> {
        let (tokens, types) = self.tokens(first, second);
        let [encoder, layer] = Self::stems(self.kind);
        let add = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<_>>();
        let before = if Self::is_roberta(self.kind) { BEFORE } else { 0 };
        let table = |name: &str| format!("{encoder}embeddings.{name}_embeddings.weight");
        let mut rows: Vec<Vec<f64>> = tokens
            .iter()
            .zip(types)
            .enumerate()
            .map(|(n, (token, kind))| {
                let mut x = add(&self.row(&table("word"), *token), &self.row(&table("position"), n + before));
                if self.kind != "distilbert" {
                    x = add(&x, &self.row(&table("token_type"), kind));
                }
                self.norm(&format!("{encoder}embeddings.LayerNorm"), &x)
            })
            .collect();
        let dim = WIDTH / HEADS;
        for n in 0..LAYERS {
            let stem = |part: &str| format!("{encoder}{layer}.{n}.{part}");
            let [q, k, v, output, norm, up, down, last] = Self::parts(self.kind).map(stem);
            let all = |stem: &str| rows.iter().map(|x| self.linear(stem, x)).collect::<Vec<_>>();
            let (q, k, v) = (all(&q), all(&k), all(&v));
            let attended = |row: usize| -> Vec<f64> {
                (0..HEADS)
                    .flat_map(|head| {
                        let part = head * dim..(head + 1) * dim;
                        let dot = |other: &Vec<f64>| {
                            let both = q[row][part.clone()].iter().zip(&other[part.clone()]);
                            both.map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()
                        };
                        let shares: Vec<f64> = k.iter().map(|other| dot(other).exp()).collect();
                        let sum: f64 = shares.iter().sum();
                        part.map(|at| shares.iter().zip(&v).map(|(share, v)| share / sum * v[at]).sum())
                            .collect::<Vec<_>>()
                    })
                    .collect()
            };
            rows = (0..rows.len())
                .map(|row| {
                    let x = self.norm(&norm, &add(&rows[row], &self.linear(&output, &attended(row))));
                    let wide: Vec<f64> = self.linear(&up, &x).into_iter().map(|x| self.activate(x)).collect();
                    self.norm(&last, &add(&x, &self.linear(&down, &wide)))
                })
                .collect();
        }
        let [dense, output] = Self::head(self.kind);
        let between = |x: f64| if self.kind == "distilbert" { x.max(0.0) } else { x.tanh() };
        let pooled: Vec<f64> = self.linear(dense, &rows[0]).into_iter().map(between).collect();
        self.linear(output, &pooled)
    }
}

const KINDS: [&str; 4] = ["bert", "distilbert", "roberta", "xlm-roberta"];

fn load(folder: &Folder) -> Engine {
    Engine::load(LoadOptions { context_length: None, ..options(folder.path().into()) }).unwrap()
}

fn close(ours: &[f32], theirs: &[f64], what: &str) {
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        let apart = (f64::from(*ours) - theirs).abs();
        assert!(apart < 1e-3 * theirs.abs().max(0.1), "{what}: {ours}, expected {theirs}");
    }
}

#[test]
fn every_family_gives_the_scores_of_its_paper() {
    for kind in KINDS {
        for (function, labels) in [("gelu", 3), ("relu", 2)] {
            let judge = Judge { function, ..Judge::new(kind, labels) };
            let engine = load(&judge.folder());
            let info = engine.info();
            assert_eq!(
                (info.task, info.outputs, info.context_length),
                (Task::Classify, labels as u32, POSITIONS as u32)
            );
            let texts = TEXTS.iter().filter(|text| kind != "xlm-roberta" || **text != "nobody knows");
            let texts: Vec<_> = texts.map(|text| (*text).to_owned()).collect();
            let ours = wait(engine.classify(texts.clone())).unwrap();
            for (text, ours) in texts.iter().zip(&ours) {
                assert!(!ours.truncated);
                close(&ours.logits, &judge.logits(text, None), &format!("{kind} {function} {text:?}"));
            }
        }
    }
}

#[test]
fn every_family_scores_pairs_as_its_makers_put_them_together() {
    for kind in KINDS {
        let judge = Judge::new(kind, 1);
        let documents = ["a proxy", "rules", ""];
        let ours = wait(load(&judge.folder()).rerank("what", documents.map(str::to_owned).to_vec())).unwrap();
        for (document, ours) in documents.iter().zip(&ours) {
            close(&ours.logits, &judge.logits("what", Some(document)), &format!("{kind} {document:?}"));
        }
    }
}

#[test]
fn a_text_longer_than_the_context_is_read_up_to_it() {
    for kind in KINDS {
        let judge = Judge::new(kind, 2);
        let engine = load(&judge.folder());
        // RoBERTa's tokens are bytes here.
        let (long, whole) = if kind == "roberta" {
            ("a".repeat(50), "a".repeat(POSITIONS - 2))
        } else {
            ("a ".repeat(50), "a ".repeat(POSITIONS - 2))
        };
        let ours = wait(engine.classify(vec![long])).unwrap();
        assert!(ours[0].truncated && ours[0].tokens == POSITIONS as u32);
        close(&ours[0].logits, &judge.logits(&whole, None), kind);
    }
}

#[test]
fn labels_and_the_way_to_probabilities_come_from_the_configuration() {
    let seen = |labels: usize, edit: &dyn Fn(&mut Value)| {
        let folder = Judge::new("distilbert", labels).folder();
        folder.edit("config.json", edit);
        let found = crate::inspect(folder.path()).unwrap();
        let engine = load(&folder);
        assert_eq!((&engine.info().labels, engine.info().scoring), (&found.labels, found.scoring));
        (found.labels, found.scoring)
    };
    let none = |_: &mut Value| {};
    assert_eq!(seen(2, &none), (vec!["label 0".into(), "label 1".into()], Some(Scoring::Softmax)));
    assert_eq!(seen(1, &none).1, Some(Scoring::Sigmoid), "softmax over one label would always be 1");
    for (problem, scoring) in [
        ("multi_label_classification", Some(Scoring::Sigmoid)),
        ("single_label_classification", Some(Scoring::Softmax)),
    ] {
        assert_eq!(seen(3, &|config| config["problem_type"] = problem.into()).1, scoring);
    }
    assert_eq!(seen(1, &|config| config["problem_type"] = "regression".into()).1, None);
    let unnamed = seen(2, &|config| {
        config.as_object_mut().unwrap().remove("id2label");
    });
    assert_eq!(unnamed.0, ["LABEL_0", "LABEL_1"]);
    // Twelve labels, whose numbers are not in the order of their text.
    assert_eq!(seen(12, &none).0[10], "label 10");
}

#[test]
fn probabilities_are_those_of_softmax_and_of_the_logistic_function() {
    let softmax = Scoring::Softmax.probabilities(&[1.0, 2.0, 1000.0]);
    assert_eq!(softmax, [0.0, 0.0, 1.0]);
    let softmax = Scoring::Softmax.probabilities(&[0.0, 3f32.ln()]);
    assert!((softmax[0] - 0.25).abs() < 1e-6 && (softmax[1] - 0.75).abs() < 1e-6);
    let sigmoid = Scoring::Sigmoid.probabilities(&[0.0, 3f32.ln(), -1000.0, 1000.0]);
    assert!((sigmoid[1] - 0.75).abs() < 1e-6, "{sigmoid:?}");
    assert_eq!([sigmoid[0], sigmoid[2], sigmoid[3]], [0.5, 0.0, 1.0]);
}

#[test]
fn a_classifier_that_is_not_run_is_refused_by_name() {
    let refused = |kind: &'static str, labels: usize, edit: &dyn Fn(&mut Value)| {
        let folder = Judge::new(kind, labels).folder();
        folder.edit("config.json", edit);
        let refused = crate::inspect(folder.path()).unwrap_err().to_string();
        assert_eq!(crate::check(&options(folder.path().into())).unwrap_err().to_string(), refused);
        refused
    };
    let class = |class: &'static str| move |config: &mut Value| config["architectures"] = json!([class]);
    let electra = refused("bert", 2, &|config| {
        config["model_type"] = "electra".into();
        class("ElectraForSequenceClassification")(config);
    });
    assert!(electra.contains("`ElectraForSequenceClassification`") && electra.contains("DistilBertFor"), "{electra}");
    let tokens = refused("roberta", 2, &class("RobertaForTokenClassification"));
    assert!(tokens.contains("`RobertaForTokenClassification`") && tokens.contains("whole texts"), "{tokens}");
    let problem = refused("bert", 2, &|config| config["problem_type"] = "ordinal".into());
    assert!(problem.contains("`ordinal`") && problem.contains("multi_label_classification"), "{problem}");
    let values = refused("bert", 2, &|config| config["problem_type"] = "regression".into());
    assert!(values.contains("`regression` with several values"), "{values}");
    let labels = refused("distilbert", 3, &|config| config["id2label"] = json!({"0": "a", "1": "b"}));
    assert!(labels.contains("names 2 labels; the classifier head has 3"), "{labels}");
    for padding in [json!(POSITIONS + BEFORE - 1), json!(u64::MAX), json!(-1), json!("x")] {
        let none = refused("roberta", 2, &|config| config["pad_token_id"] = padding.clone());
        assert!(none.contains("`pad_token_id` leaves no position"), "{none}");
    }
    // Room for three tokens, where a pair of texts has four that are special.
    let short = refused("xlm-roberta", 2, &|config| config["pad_token_id"] = (POSITIONS + BEFORE - 4).into());
    assert!(short.contains("the context length is 3; expected at least 4"), "{short}");
    let function = refused("distilbert", 2, &|config| config["activation"] = "mish".into());
    assert!(function.contains("hidden_act"), "{function}");
}

#[test]
fn a_head_without_its_first_layer_is_refused_and_a_pooler_of_training_is_not_used() {
    let mut judge = Judge::new("distilbert", 2);
    judge.weights.retain(|name, _| !name.starts_with("pre_classifier"));
    let missing = crate::inspect(judge.folder().path()).unwrap_err().to_string();
    assert!(missing.contains("`cls.weight` is missing"), "{missing}");
    let mut judge = Judge::new("roberta", 2);
    judge.weights.insert("roberta.pooler.dense.weight".into(), (vec![WIDTH, WIDTH], vec![1.0; WIDTH * WIDTH]));
    judge.weights.insert("roberta.pooler.dense.bias".into(), (vec![WIDTH], vec![1.0; WIDTH]));
    let ours = wait(load(&judge.folder()).classify(vec!["what is a".into()])).unwrap();
    close(&ours[0].logits, &judge.logits("what is a", None), "with a pooler");
}

#[test]
fn windows_cover_a_whole_text_and_are_read_as_texts() {
    for kind in ["bert", "distilbert", "xlm-roberta"] {
        let judge = Judge::new(kind, 2);
        let engine = load(&judge.folder());
        let room = POSITIONS - 2;
        let words: Vec<&str> = (0..101).map(|n| WORDS[n % WORDS.len()]).collect();
        for overlap in [0, 5, room] {
            let step = room - overlap.min(room / 2);
            let windows = engine.windows(&words.join(" "), overlap).unwrap();
            assert_eq!(windows.len(), 1 + (words.len() - room).div_ceil(step));
            let scores = wait(engine.classify_inputs(windows)).unwrap();
            for (n, ours) in scores.iter().enumerate() {
                let window = &words[n * step..words.len().min(n * step + room)];
                assert!(!ours.truncated && ours.tokens == window.len() as u32 + 2);
                close(&ours.logits, &judge.logits(&window.join(" "), None), &format!("{kind} {n} {overlap}"));
            }
        }
        for short in ["", "a proxy", &words[..room].join(" ")] {
            assert_eq!(engine.windows(short, 5).unwrap().len(), 1, "{short}");
        }
    }
    // A model with another task.
    let mut gguf = super::judge::small("llama", crate::artifact::TensorType::F32);
    gguf.text("tokenizer.chat_template", super::TEMPLATE);
    let gguf = gguf.write();
    let decoder = Engine::load(options(gguf.path().into())).unwrap();
    assert!(matches!(decoder.windows("x", 1), Err(EngineError::Task { is: Task::Generate, .. })));
    assert_eq!((decoder.info().labels.len(), decoder.info().scoring), (0, None));
}
