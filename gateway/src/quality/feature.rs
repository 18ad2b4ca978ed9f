//! Features that are followed, and the recipe by which each is judged.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Side of a request that a feature belongs to, which has a limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Requests of callers.
    Inputs,
    /// Answers of targets.
    Outputs,
}

impl Side {
    /// Name, as in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inputs => "inputs",
            Self::Outputs => "outputs",
        }
    }
}

/// Distance that is compared with a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recipe {
    /// Greatest difference of the distribution functions of two samples of numbers, 0 to 1. No single value, however large,
    /// can hide or make a shift.
    KolmogorovSmirnov,
    /// Jensen-Shannon distance of shares, with the natural logarithm: 0 to 0.83.
    JensenShannon,
    /// Cosine distance of two mean vectors, 0 to 2.
    Cosine,
}

impl Recipe {
    /// Name in reports.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::KolmogorovSmirnov => "kolmogorovSmirnov",
            Self::JensenShannon => "jensenShannon",
            Self::Cosine => "cosine",
        }
    }
}

/// Feature of requests or answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Characters of the whole prompt.
    PromptLength,
    /// Tokens of the prompt, as the target counts them.
    PromptTokens,
    /// Language of the last message of the user.
    Language,
    /// Words of that message, by their hash.
    Words,
    /// Centre of the embeddings of that message.
    Embedding,
    /// Topics of that message: clusters of embeddings.
    Topics,
    /// Signs of a conversation that goes badly.
    Signals,
    /// Characters of the answer.
    AnswerLength,
    /// Tokens of the answer, as the target counts them.
    AnswerTokens,
    /// Reason for which the answer ended.
    FinishReason,
    /// Refused or answered.
    Refusal,
    /// Mean log probability of the tokens of an answer.
    Logprob,
    /// Values of an input tensor, or of a column of it.
    Input(Box<str>),
    /// Presence of an input tensor and all its values.
    InputMissing(Box<str>),
    /// Values of an output tensor, or of a column of it.
    Output(Box<str>),
    /// Presence of an output tensor and all its values.
    OutputMissing(Box<str>),
    /// Place of the greatest value in each row of an output tensor.
    OutputClass(Box<str>),
}

/// Names of the features without a tensor.
const FIXED: [(&str, Feature); 12] = [
    ("promptLength", Feature::PromptLength),
    ("promptTokens", Feature::PromptTokens),
    ("language", Feature::Language),
    ("words", Feature::Words),
    ("embedding", Feature::Embedding),
    ("topics", Feature::Topics),
    ("signals", Feature::Signals),
    ("answerLength", Feature::AnswerLength),
    ("answerTokens", Feature::AnswerTokens),
    ("finishReason", Feature::FinishReason),
    ("refusal", Feature::Refusal),
    ("logprob", Feature::Logprob),
];

impl Feature {
    /// Side that the feature belongs to.
    pub fn side(&self) -> Side {
        match self {
            Self::PromptLength
            | Self::PromptTokens
            | Self::Language
            | Self::Words
            | Self::Embedding
            | Self::Topics
            | Self::Input(_)
            | Self::InputMissing(_) => Side::Inputs,
            Self::Signals
            | Self::AnswerLength
            | Self::AnswerTokens
            | Self::FinishReason
            | Self::Refusal
            | Self::Logprob
            | Self::Output(_)
            | Self::OutputMissing(_)
            | Self::OutputClass(_) => Side::Outputs,
        }
    }

    /// Name of the tensor, for the features of tensors.
    pub fn tensor(&self) -> Option<&str> {
        match self {
            Self::Input(name)
            | Self::InputMissing(name)
            | Self::Output(name)
            | Self::OutputMissing(name)
            | Self::OutputClass(name) => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match self {
            Self::Input(name) => ("input", name),
            Self::InputMissing(name) => ("inputMissing", name),
            Self::Output(name) => ("output", name),
            Self::OutputMissing(name) => ("outputMissing", name),
            Self::OutputClass(name) => ("outputClass", name),
            fixed => {
                let name = FIXED.iter().find(|(_, feature)| feature == fixed).map_or("", |(name, _)| name);
                return f.write_str(name);
            }
        };
        write!(f, "{kind}:{name}")
    }
}

/// Text that names no feature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown feature `{0}`")]
pub struct UnknownFeature(String);

impl FromStr for Feature {
    type Err = UnknownFeature;

    fn from_str(text: &str) -> Result<Self, UnknownFeature> {
        if let Some((_, feature)) = FIXED.iter().find(|(name, _)| *name == text) {
            return Ok(feature.clone());
        }
        let unknown = || UnknownFeature(text.chars().take(100).collect());
        let (kind, name) = text.split_once(':').ok_or_else(unknown)?;
        match kind {
            "input" => Ok(Self::Input(name.into())),
            "inputMissing" => Ok(Self::InputMissing(name.into())),
            "output" => Ok(Self::Output(name.into())),
            "outputMissing" => Ok(Self::OutputMissing(name.into())),
            "outputClass" => Ok(Self::OutputClass(name.into())),
            _ => Err(unknown()),
        }
    }
}

impl Serialize for Feature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Feature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_is_read_as_it_is_written() {
        let name = || "a:b".into();
        let of_tensors = [
            Feature::Input(name()),
            Feature::InputMissing(name()),
            Feature::Output(name()),
            Feature::OutputMissing(name()),
            Feature::OutputClass(name()),
        ];
        for feature in FIXED.into_iter().map(|(_, feature)| feature).chain(of_tensors) {
            assert_eq!(feature.to_string().parse(), Ok(feature));
        }
        assert!("words:a".parse::<Feature>().is_err() && "".parse::<Feature>().is_err());
    }
}
