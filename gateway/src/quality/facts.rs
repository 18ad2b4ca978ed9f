//! Facts of one request and its answer, read from their bytes: what is counted. The texts are dropped here.

use std::borrow::Cow;

use super::feature::{Feature, Side};
use super::pane::{Pane, WORD_BUCKETS};
use super::sampled::{AnswerBytes, Sampled};
use super::signals::{Signal, is_refusal};
use super::texts::{Prompt, Said, Text};
use crate::coding::Coding;
use crate::places::Places;
use crate::protocol::oip::{TensorElements, TensorValues, length_field, read_values};
use crate::protocol::{InferenceCall, Operation};

/// Bytes that a compressed answer may decode to.
const MOST_DECODED: usize = 1 << 20;
/// Columns of a tensor of rows that are followed one by one.
const MOST_COLUMNS: i64 = 16;
/// Classes of a row of scores.
const MOST_CLASSES: i64 = 1_000;
/// Elements of a tensor that are counted of one request, at even distances: a request with a large tensor says no more than
/// another one.
const MOST_COUNTED: usize = 16;
/// Longest label of a class in an answer, in bytes; longer texts are counted by their hash.
const LABEL: usize = 32;
/// Words of a text that are counted.
const MOST_WORDS: usize = 256;

/// Facts of one request and its answer.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Numbers.
    pub numbers: Vec<(Feature, f64)>,
    /// Categories.
    pub categories: Vec<(Feature, String)>,
    /// Buckets of the words of the prompt, each once.
    pub words: Vec<usize>,
    /// Last text of the user.
    pub last: Text,
    /// Text of the answer.
    pub said: Text,
    /// Text whose embedding belongs to the request.
    pub text: Option<String>,
    /// Tensors of the call and of the answer; `None` where they were not read.
    pub inputs: Option<Vec<TensorValues>>,
    /// Tensors of the answer.
    pub outputs: Option<Vec<TensorValues>>,
    /// Language.
    pub language: Option<&'static str>,
    /// Sign of a conversation that goes badly.
    pub signal: Option<Signal>,
    /// True for a refusal.
    pub is_refusal: bool,
    /// True for a call of a model. Lists of models and the like say nothing of prompts or answers.
    pub(super) is_call: bool,
    /// True if the body of the request or of the answer could not be read.
    pub is_unreadable: bool,
}

/// Keys of the hash of texts: the same in every process, so that sketches can be compared.
const KEYS: (u64, u64) = (0x5350_494c_4c57_4159, 0x7465_7874_735f_3031);

/// SipHash of the bytes of a text.
fn hash(text: &str) -> u64 {
    siphasher::sip::SipHasher13::new_with_keys(KEYS.0, KEYS.1).hash(text.as_bytes())
}

/// Bucket of a word.
fn bucket(word: &str) -> usize {
    usize::try_from(hash(word) % u64::try_from(WORD_BUCKETS).unwrap_or(1)).unwrap_or(0)
}

/// True for letters of scripts that put no blanks between words.
fn stands_alone(letter: char) -> bool {
    matches!(letter, '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}')
}

/// Buckets of the words of a text, each once: of one that is said over and over the others are not drowned.
fn words(text: &str) -> Vec<usize> {
    let lower = text.to_lowercase();
    let mut found = Vec::new();
    for run in lower.split(|c: char| !c.is_alphanumeric()).filter(|run| !run.is_empty()).take(MOST_WORDS) {
        if run.chars().next().is_some_and(stands_alone) {
            let mut letter = [0; 4];
            found.extend(run.chars().take(MOST_WORDS).map(|c| bucket(c.encode_utf8(&mut letter))));
        } else {
            found.push(bucket(run));
        }
        if found.len() >= MOST_WORDS {
            break;
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[allow(clippy::cast_precision_loss, reason = "lengths are far below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

/// True of calls that are answered by text, those of unknown paths included.
fn asks_for_text(operation: Operation) -> bool {
    operation.asks_for_text() || operation == Operation::Other
}

/// Name of a text in place of it, which is kept nowhere.
fn hashed(text: &str) -> String {
    format!("text {:016x}", hash(text))
}

/// True for a text that is a label, as servers name classes.
fn is_label(text: &str) -> bool {
    text.len() <= LABEL && !text.contains(char::is_whitespace)
}

/// Body of an answer without its coding, or its beginning where not all of it is there; `None` where it cannot be decoded.
/// `is_whole` is true for an answer that has reached its end.
pub(super) fn decoded(answer: &AnswerBytes, is_whole: bool) -> Option<Cow<'_, [u8]>> {
    if answer.coding == Coding::Identity {
        return Some(Cow::Borrowed(&answer.bytes));
    }
    let is_all = is_whole && !answer.is_cut;
    let plain = match answer.coding.decode(&answer.bytes, MOST_DECODED) {
        Err(_) if !is_all => answer.coding.decode_beginning(&answer.bytes, MOST_DECODED),
        plain => plain.ok(),
    };
    plain.map(Cow::from)
}

impl Facts {
    /// Reads a request and its answer.
    pub(super) fn of(sampled: &Sampled) -> Self {
        let is_call = match sampled.operation {
            Operation::Inference(call) => call == InferenceCall::Infer,
            Operation::Embeddings | Operation::Rerank => true,
            operation => operation.asks_for_text(),
        };
        let mut facts = Self { is_call, ..Self::default() };
        // Paths that only the server knows may be calls of a known form.
        if facts.is_call || sampled.operation == Operation::Other {
            facts.request(sampled);
        }
        if facts.is_call {
            facts.answer(sampled);
        }
        facts
    }

    fn request(&mut self, sampled: &Sampled) {
        let length = |tokens: Option<u64>| tokens.filter(|tokens| *tokens > 0).map(float);
        if let Some(tokens) = length(sampled.prompt_tokens) {
            self.numbers.push((Feature::PromptTokens, tokens));
        }
        if let Operation::Inference(InferenceCall::Infer) = sampled.operation {
            let Some(body) = &sampled.body else { return };
            let headers = length_field(sampled.request_json.as_ref());
            self.inputs = read_values(sampled.is_grpc, false, &headers, body);
            self.is_unreadable = self.inputs.is_none();
            return;
        }
        let Some(body) = &sampled.body else {
            if !self.is_call {
                return;
            }
            // Of a body that is too long to be looked at, the bytes are about its characters.
            self.numbers.push((Feature::PromptLength, float(sampled.body_bytes)));
            return;
        };
        let Some(prompt) = Prompt::read(body) else {
            self.is_unreadable = self.is_call;
            return;
        };
        self.is_call |= prompt.characters > 0;
        if prompt.characters > 0 {
            self.numbers.push((Feature::PromptLength, float(prompt.characters)));
        }
        if !prompt.last.is_empty() {
            let text = &prompt.last.start;
            let detected = whatlang::detect(text).filter(whatlang::Info::is_reliable);
            let language = detected.map_or("undetermined", |info| info.lang().code());
            self.categories.push((Feature::Language, language.to_owned()));
            self.language = Some(language);
            self.words = words(text);
            self.text = Some(text.clone());
        }
        self.last = prompt.last.clone();
        if asks_for_text(sampled.operation) {
            self.signal = Signal::of(&prompt);
        }
        if let Some(signal) = self.signal {
            self.categories.push((Feature::Signals, signal.as_str().to_owned()));
        }
    }

    fn answer(&mut self, sampled: &Sampled) {
        if let Some(tokens) = sampled.completion_tokens.filter(|_| sampled.is_whole) {
            self.numbers.push((Feature::AnswerTokens, float(tokens)));
        }
        let Some(plain) = decoded(&sampled.answer, sampled.is_whole) else {
            self.is_unreadable = true;
            return;
        };
        let body: &[u8] = &plain;
        if let Operation::Inference(InferenceCall::Infer) = sampled.operation {
            if sampled.is_whole && !sampled.answer.is_cut {
                let headers = length_field(sampled.answer.json.as_ref());
                self.outputs = read_values(sampled.is_grpc, true, &headers, body);
                self.is_unreadable |= self.outputs.is_none();
            }
            return;
        }
        if !asks_for_text(sampled.operation) {
            return;
        }
        let said = Said::read(body);
        let finish = if sampled.is_whole { sampled.finish.as_deref().or(said.finish.as_deref()) } else { Some("left") };
        if let Some(finish) = finish {
            self.categories.push((Feature::FinishReason, finish.to_owned()));
        }
        if sampled.is_whole && !sampled.answer.is_cut && said.text.characters > 0 {
            self.numbers.push((Feature::AnswerLength, float(said.text.characters)));
        }
        if said.text.characters > 0 || finish.is_some() {
            self.is_refusal = is_refusal(&said, finish);
            self.categories.push((Feature::Refusal, if self.is_refusal { "refused" } else { "answered" }.to_owned()));
        }
        if said.tokens > 0 {
            self.numbers.push((Feature::Logprob, said.logprobs / float(said.tokens)));
        }
        self.said = said.text;
    }

    /// Adds the facts to a pane. Of tensors those are counted whose names are `known`.
    pub(super) fn count(&self, pane: &mut Pane, known: &Known<'_>) {
        pane.rows += 1;
        for (feature, value) in &self.numbers {
            pane.number(feature.clone(), *value);
        }
        for (feature, name) in &self.categories {
            pane.category(feature.clone(), name);
        }
        for bucket in &self.words {
            pane.bucket(Feature::Words, *bucket, WORD_BUCKETS);
        }
        if let Some(tensors) = &self.inputs {
            tensors_of(tensors, known.inputs, pane, Side::Inputs);
        }
        if let Some(tensors) = &self.outputs {
            tensors_of(tensors, known.outputs, pane, Side::Outputs);
            for tensor in tensors.iter().filter(|tensor| tensor.is_whole) {
                classes(tensor, known.outputs, pane);
            }
        }
    }

    /// Names of tensors, and of their columns where those are followed, in their order.
    pub(super) fn names(tensors: Option<&Vec<TensorValues>>) -> Vec<Box<str>> {
        tensors.into_iter().flatten().flat_map(|tensor| columns(tensor).map(|(name, _, _)| name)).collect()
    }
}

/// Names of tensors that a route follows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'k> {
    /// Of calls.
    pub inputs: &'k Places,
    /// Of answers.
    pub outputs: &'k Places,
}

/// Streams of a tensor: name, first element, and step from one to the next. A tensor of rows with few columns has one for each.
fn columns(tensor: &TensorValues) -> impl Iterator<Item = (Box<str>, usize, usize)> {
    let number = match tensor.shape.as_slice() {
        [rows, columns] if *rows >= 1 && (2..=MOST_COLUMNS).contains(columns) && tensor.is_whole => *columns,
        _ => 1,
    };
    let mut base = tensor.name.clone();
    base.truncate(base.floor_char_boundary(super::MAX_NAME - 8));
    let step = usize::try_from(number).unwrap_or(1);
    (0..step).map(move |column| {
        let name = if step > 1 { format!("{base}[{column}]") } else { base.clone() };
        (name.into_boxed_str(), column, step)
    })
}

/// Counts the values of tensors. Texts of callers are counted by their hash, as are those of answers that are no labels.
fn tensors_of(tensors: &[TensorValues], known: &Places, pane: &mut Pane, side: Side) {
    let values = |name: &str| match side {
        Side::Inputs => Feature::Input(name.into()),
        Side::Outputs => Feature::Output(name.into()),
    };
    let mut seen: Vec<(Box<str>, bool)> = Vec::new();
    for tensor in tensors {
        for (name, first, step) in columns(tensor) {
            if !known.contains(&name) {
                continue;
            }
            let length = match &tensor.elements {
                TensorElements::Numbers(numbers) => numbers.len(),
                TensorElements::Names(names) | TensorElements::Texts(names) => names.len(),
            };
            let stride = step * (length / step.max(1)).div_ceil(MOST_COUNTED).max(1);
            let mut is_present = length > 0;
            match &tensor.elements {
                TensorElements::Numbers(numbers) => {
                    for value in numbers.iter().skip(first).step_by(stride) {
                        is_present &= value.is_finite();
                        pane.number(values(&name), *value);
                    }
                }
                TensorElements::Names(names) => {
                    for value in names.iter().skip(first).step_by(stride) {
                        pane.whole(values(&name), value);
                    }
                }
                TensorElements::Texts(texts) => {
                    for text in texts.iter().skip(first).step_by(stride) {
                        if side == Side::Outputs && is_label(text) {
                            pane.category(values(&name), text);
                        } else {
                            pane.category(values(&name), &hashed(text));
                        }
                    }
                }
            }
            seen.push((name, is_present));
        }
    }
    for name in known.names() {
        let is_present = seen.iter().any(|(seen, present)| **seen == *name && *present);
        let feature = match side {
            Side::Inputs => Feature::InputMissing(name.into()),
            Side::Outputs => Feature::OutputMissing(name.into()),
        };
        pane.category(feature, if is_present { "present" } else { "missing" });
    }
}

/// Counts the places of the greatest values of the rows of a tensor of scores.
fn classes(tensor: &TensorValues, known: &Places, pane: &mut Pane) {
    let TensorElements::Numbers(numbers) = &tensor.elements else { return };
    let [_, width @ 2..=MOST_CLASSES] = tensor.shape.as_slice() else { return };
    let is_known = columns(tensor).next().is_some_and(|(name, _, _)| known.contains(&name));
    let Some(width) = usize::try_from(*width).ok().filter(|_| is_known) else { return };
    let mut name = tensor.name.clone();
    name.truncate(name.floor_char_boundary(super::MAX_NAME - 8));
    for row in numbers.chunks_exact(width).take(MOST_COUNTED) {
        let greatest = row.iter().enumerate().filter(|(_, value)| value.is_finite()).max_by(|a, b| a.1.total_cmp(b.1));
        if let Some((place, _)) = greatest {
            pane.category(Feature::OutputClass(name.clone().into_boxed_str()), &place.to_string());
        }
    }
}
