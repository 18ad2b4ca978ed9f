//! `signals`: facts about the conversation of a request, by which `matches[].when` chooses a route.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::catalog::{SignalKind, SignalName};
use crate::schema::Config;
use crate::values::{Duration, Size};

/// Fact about the conversation of a request, which expressions read as `signals.NAME`: exactly one of `keywords`, `examples` and
/// `classifier`. It is worked out once for a request, and only where a match that may take the request reads it. It is absent
/// where there is no text to read, where that text is longer than `maxText`, and where a model has not answered in time or failed:
/// a part of a text is never judged in its place.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Signal {
    /// Words and phrases of which at least `atLeast` must occur: as whole words, whatever their case. The value is true or false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keywords: Option<Vec<String>>,
    /// Number of different keywords that must occur; one when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_least: Option<NonZeroU32>,
    /// Texts of the kind that is looked for: a list, or lists by label. The value is the greatest cosine similarity of the text to
    /// one of them, at most 1; `signals.NAME.LABEL` is that to the examples of one label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<Examples>,
    /// Name in `models` of the built-in model for embeddings that compares `examples`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Built-in model that classifies the text. The value is the probability of its `labels` together, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classifier: Option<SignalClassifier>,
    /// Text that is read.
    pub reads: SignalText,
    /// Longest wait for the model, at most a minute; 1s when left out. No effect on `keywords`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Most bytes of the text that is read; of a longer one the signal is absent. From 1KiB to 1MiB; 32KiB when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_text: Option<Size>,
}

/// Texts of a kind: a list, or lists by label.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Examples {
    /// Texts.
    List(Vec<String>),
    /// Texts by label. A label has letters, digits and `_`, the first no digit.
    Labelled(BTreeMap<String, Vec<String>>),
}

impl Examples {
    /// Texts, each with its label.
    pub fn texts(&self) -> impl Iterator<Item = (Option<&str>, &str)> {
        let (list, labelled) = match self {
            Self::List(texts) => (Some(texts), None),
            Self::Labelled(labels) => (None, Some(labels)),
        };
        let plain = list.into_iter().flatten().map(|text| (None, text.as_str()));
        let labelled = labelled.into_iter().flatten();
        plain.chain(labelled.flat_map(|(label, texts)| texts.iter().map(|text| (Some(label.as_str()), text.as_str()))))
    }

    /// Labels, in order; none of a list.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        let labelled = match self {
            Self::List(_) => None,
            Self::Labelled(labels) => Some(labels),
        };
        labelled.into_iter().flat_map(BTreeMap::keys).map(String::as_str)
    }
}

/// Classifier of a signal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignalClassifier {
    /// Name in `models` of a built-in model that classifies texts.
    pub model: String,
    /// Labels of the model (`id2label`) whose probabilities are added.
    pub labels: Vec<String>,
}

/// Text of a conversation that a signal reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SignalText {
    /// Last text of the user. It stays the same while a model calls tools and gets their results, so that all calls of such a loop
    /// take one route.
    #[default]
    LastUser,
    /// All texts of the user.
    User,
    /// All texts: instructions, those of the user and of the model, and results of tools.
    Conversation,
}

impl Signal {
    /// Keywords that must occur where the file does not say.
    pub const DEFAULT_AT_LEAST: NonZeroU32 = NonZeroU32::MIN;
    /// Longest wait for a model where the file does not say.
    pub const DEFAULT_TIMEOUT: Duration = Duration::seconds(1);
    /// Most bytes of a text where the file does not say: some six thousand words.
    pub const DEFAULT_MAX_TEXT: Size = Size::kib(32);

    /// Name of the built-in model that the signal uses.
    pub fn used_model(&self) -> Option<&str> {
        self.model.as_deref().or_else(|| self.classifier.as_ref().map(|classifier| classifier.model.as_str()))
    }
}

impl Config {
    /// Names below `signals` that expressions may read, in an order that is the same for the same configuration.
    pub fn signal_names(&self) -> Vec<SignalName> {
        let names = self.signals.iter().flat_map(|(name, signal)| {
            let kind = if signal.keywords.is_some() { SignalKind::Bool } else { SignalKind::Double };
            let labels = signal.examples.iter().flat_map(Examples::labels);
            let labelled =
                labels.map(move |label| SignalName { name: format!("{name}.{label}"), kind: SignalKind::Double });
            std::iter::once(SignalName { name: name.clone(), kind }).chain(labelled)
        });
        names.collect()
    }
}
