//! A reranker for tests: a cross-encoder in safetensors whose scores are known.

#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "small numbers")]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::encoder_folder::write_encoder;

const WIDTH: usize = 32;
const HEADS: usize = 2;
const LAYERS: usize = 2;
const HIDDEN: usize = 64;
const POSITIONS: usize = 24;
const WORDS: [&str; 14] =
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "a", "proxy", "server", "cat", "sits", "on", "mat", "##s"];

/// Tensor: rows of values.
type Tensor = (Vec<usize>, Vec<f32>);

/// Small random cross-encoder, with a plain forward pass over its weights, written from the paper (arXiv:1810.04805).
pub struct CrossEncoder(BTreeMap<String, Tensor>);

impl Default for CrossEncoder {
    fn default() -> Self {
        Self::new()
    }
}

impl CrossEncoder {
    /// Makes the same weights each time.
    pub fn new() -> Self {
        let mut state = 5u64;
        // Numerical Recipes' generator; any would do.
        let mut value = |scale: f32| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * scale
        };
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: Vec<usize>, base: f32, scale: f32| {
            let values = (0..shape.iter().product()).map(|_| base + value(scale)).collect();
            tensors.insert(name, (shape, values));
        };
        for (name, rows) in [("word", WORDS.len()), ("position", POSITIONS), ("token_type", 2)] {
            add(format!("bert.embeddings.{name}_embeddings.weight"), vec![rows, WIDTH], 0.0, 2.0);
        }
        let mut norms = vec!["bert.embeddings.LayerNorm".to_owned()];
        let mut linears = vec![("bert.pooler.dense".to_owned(), WIDTH, WIDTH), ("classifier".to_owned(), WIDTH, 1)];
        for n in 0..LAYERS {
            let layer = format!("bert.encoder.layer.{n}");
            for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
            {
                linears.push((format!("{layer}.{part}"), WIDTH, WIDTH));
            }
            linears.push((format!("{layer}.intermediate.dense"), WIDTH, HIDDEN));
            linears.push((format!("{layer}.output.dense"), HIDDEN, WIDTH));
            norms.extend(["attention.output", "output"].map(|part| format!("{layer}.{part}.LayerNorm")));
        }
        for (name, columns, rows) in linears {
            add(format!("{name}.weight"), vec![rows, columns], 0.0, 0.6);
            add(format!("{name}.bias"), vec![rows], 0.0, 0.6);
        }
        for name in norms {
            add(format!("{name}.weight"), vec![WIDTH], 1.0, 0.4);
            add(format!("{name}.bias"), vec![WIDTH], 0.0, 0.4);
        }
        Self(tensors)
    }

    /// Tokens of a text of its words.
    pub fn tokens(text: &str) -> Vec<usize> {
        text.split(' ').map(|word| WORDS.iter().position(|known| *known == word).unwrap_or(1)).collect()
    }

    /// Writes the model as Hugging Face's libraries do.
    pub fn write(&self, folder: &Path) {
        let config = json!({"model_type": "bert", "num_hidden_layers": LAYERS, "hidden_size": WIDTH,
            "intermediate_size": HIDDEN, "num_attention_heads": HEADS, "vocab_size": WORDS.len(), "type_vocab_size": 2,
            "hidden_act": "gelu", "max_position_embeddings": POSITIONS, "layer_norm_eps": 1e-12,
            "id2label": {"0": "LABEL_0"}});
        write_encoder(folder, &self.0, &config, &WORDS);
    }

    fn get(&self, name: &str) -> &[f32] {
        &self.0[name].1
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (weight, bias) = (self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")));
        let rows = weight.chunks(x.len()).zip(bias);
        rows.map(|(row, bias)| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(*bias))
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let parts = self.get(&format!("{name}.weight")).iter().zip(self.get(&format!("{name}.bias")));
        x.iter().zip(parts).map(|(x, (w, b))| (x - mean) / variance.sqrt() * f64::from(*w) + f64::from(*b)).collect()
    }

    /// Probability that a document answers a query.
    pub fn score(&self, query: &[usize], document: &[usize]) -> f64 {
        let first: Vec<_> = [&[2], query, &[3]].concat();
        let tokens: Vec<_> = [&first[..], document, &[3]].concat();
        let row = |name: &str, n: usize| {
            &self.get(&format!("bert.embeddings.{name}_embeddings.weight"))[n * WIDTH..][..WIDTH]
        };
        let embed = |(at, token): (usize, &usize)| {
            let kind = usize::from(at >= first.len());
            let parts = row("word", *token).iter().zip(row("position", at)).zip(row("token_type", kind));
            let sum: Vec<f64> = parts.map(|((a, b), c)| f64::from(*a) + f64::from(*b) + f64::from(*c)).collect();
            self.norm("bert.embeddings.LayerNorm", &sum)
        };
        let mut x: Vec<Vec<f64>> = tokens.iter().enumerate().map(embed).collect();
        for n in 0..LAYERS {
            let layer = format!("bert.encoder.layer.{n}");
            let all =
                |part: &str| x.iter().map(|x| self.linear(&format!("{layer}.attention.self.{part}"), x)).collect();
            let (q, k, v): (Vec<_>, Vec<_>, Vec<_>) = (all("query"), all("key"), all("value"));
            let attended: Vec<Vec<f64>> = q.iter().map(|q| attend(q, &k, &v)).collect();
            let add = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
            for (x, attended) in x.iter_mut().zip(&attended) {
                let out = self.linear(&format!("{layer}.attention.output.dense"), attended);
                *x = self.norm(&format!("{layer}.attention.output.LayerNorm"), &add(x, &out));
                let inner: Vec<f64> =
                    self.linear(&format!("{layer}.intermediate.dense"), x).into_iter().map(gelu).collect();
                let out = self.linear(&format!("{layer}.output.dense"), &inner);
                *x = self.norm(&format!("{layer}.output.LayerNorm"), &add(x, &out));
            }
        }
        let pooled: Vec<f64> = self.linear("bert.pooler.dense", &x[0]).into_iter().map(f64::tanh).collect();
        1.0 / (1.0 + (-self.linear("classifier", &pooled)[0]).exp())
    }
}

fn attend(q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let width = WIDTH / HEADS;
    let head = |n: usize| {
        let part = n * width..(n + 1) * width;
        let dot = |k: &Vec<f64>| k[part.clone()].iter().zip(&q[part.clone()]).map(|(a, b)| a * b).sum::<f64>();
        let weights: Vec<f64> = keys.iter().map(|k| (dot(k) / (width as f64).sqrt()).exp()).collect();
        let total: f64 = weights.iter().sum();
        let value = move |at: usize| values.iter().zip(&weights).map(|(v, w)| v[at] * w / total).sum::<f64>();
        part.clone().map(value).collect::<Vec<_>>()
    };
    (0..HEADS).flat_map(head).collect()
}

/// GELU by the series of the error function.
fn gelu(x: f64) -> f64 {
    let z = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..60 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    let erf = if z.abs() > 4.0 { z.signum() } else { sum * std::f64::consts::FRAC_2_SQRT_PI };
    0.5 * x * (1.0 + erf)
}
