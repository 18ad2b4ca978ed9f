//! A classifier for tests: a DistilBERT in safetensors whose weights make known words toxic, so that every probability is near
//! 0 or 1.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::encoder_folder::write_encoder;

const WIDTH: usize = 8;
const HIDDEN: usize = 8;
/// Tokens of a window, the two special ones included.
const POSITIONS: usize = 64;
const WORDS: [&str; 7] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ignore", "rules", "poison"];

/// Writes the model as Hugging Face's libraries do. Its labels are `injection`, for a window with both `ignore` and `rules`, and
/// `toxic`, for one with `poison`, and `threat`, for none. Other words mean nothing to it.
pub fn word_classifier(folder: &Path) {
    // Each word is a direction of its own: the layer norms keep it, however many other words are in a window, since those are
    // zero. All words have the same weight in the first row, because queries and keys are zero.
    let mut words = vec![0.0; WORDS.len() * WIDTH];
    for (word, at, minus) in [(4, 0, 2), (5, 1, 3), (6, 4, 5)] {
        words[word * WIDTH + at] = 1.0;
        words[word * WIDTH + minus] = -1.0;
    }
    let identity: Vec<f32> = (0..WIDTH * WIDTH).map(|at| f32::from(u8::from(at % (WIDTH + 1) == 0))).collect();
    // Two words that stand together are longer in sum than one: 2.83 instead of 2.
    let mut first = vec![0.0; WIDTH * WIDTH];
    (first[0], first[1], first[WIDTH + 4]) = (1.0, 1.0, 1.0);
    let mut first_bias = vec![0.0; WIDTH];
    (first_bias[0], first_bias[1]) = (-2.4, -0.5);
    let mut output = vec![0.0; 3 * WIDTH];
    (output[0], output[WIDTH + 1]) = (40.0, 10.0);
    let zeros = |n: usize| vec![0.0_f32; n];
    let (embeddings, layer) = ("distilbert.embeddings", "distilbert.transformer.layer.0");
    let mut tensors = vec![
        (format!("{embeddings}.word_embeddings.weight"), vec![WORDS.len(), WIDTH], words),
        (format!("{embeddings}.position_embeddings.weight"), vec![POSITIONS, WIDTH], zeros(POSITIONS * WIDTH)),
        ("pre_classifier.weight".to_owned(), vec![WIDTH, WIDTH], first),
        ("pre_classifier.bias".to_owned(), vec![WIDTH], first_bias),
        ("classifier.weight".to_owned(), vec![3, WIDTH], output),
        ("classifier.bias".to_owned(), vec![3], vec![-4.0; 3]),
    ];
    for norm in
        [format!("{embeddings}.LayerNorm"), format!("{layer}.sa_layer_norm"), format!("{layer}.output_layer_norm")]
    {
        tensors.push((format!("{norm}.weight"), vec![WIDTH], vec![1.0; WIDTH]));
        tensors.push((format!("{norm}.bias"), vec![WIDTH], zeros(WIDTH)));
    }
    for (part, shape, values) in [
        ("attention.q_lin", vec![WIDTH, WIDTH], zeros(WIDTH * WIDTH)),
        ("attention.k_lin", vec![WIDTH, WIDTH], zeros(WIDTH * WIDTH)),
        ("attention.v_lin", vec![WIDTH, WIDTH], identity.clone()),
        ("attention.out_lin", vec![WIDTH, WIDTH], identity),
        ("ffn.lin1", vec![HIDDEN, WIDTH], zeros(HIDDEN * WIDTH)),
        ("ffn.lin2", vec![WIDTH, HIDDEN], zeros(WIDTH * HIDDEN)),
    ] {
        tensors.push((format!("{layer}.{part}.bias"), vec![shape[0]], zeros(shape[0])));
        tensors.push((format!("{layer}.{part}.weight"), shape, values));
    }
    let config = json!({"model_type": "distilbert", "architectures": ["DistilBertForSequenceClassification"], "n_layers": 1,
        "dim": WIDTH, "hidden_dim": HIDDEN, "n_heads": 1, "activation": "gelu", "vocab_size": WORDS.len(),
        "max_position_embeddings": POSITIONS, "problem_type": "multi_label_classification",
        "id2label": {"0": "injection", "1": "toxic", "2": "threat"}});
    let tensors: BTreeMap<_, _> = tensors.into_iter().map(|(name, shape, values)| (name, (shape, values))).collect();
    write_encoder(folder, &tensors, &config, &WORDS);
}
