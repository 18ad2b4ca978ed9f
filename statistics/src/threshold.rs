//! Thresholds of `abortWhen` and the part that each form plays in a comparison.
//!
//! | written | worse means |
//! |---|---|
//! | `+0.02` | candidate above stable by more than 0.02 |
//! | `-0.05` | candidate below stable by more than 0.05 |
//! | `1.3x` | candidate above 1.3 times stable |
//! | `0.8x` | candidate below 0.8 times stable |
//! | `0.2` | candidate above 0.2, whatever stable is; for a distance, the distance between the two above 0.2 |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Threshold between fine and worse, in one of the five forms of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Threshold {
    /// `+0.02`: worse when candidate minus stable exceeds this, which is at least 0.
    Rise(f64),
    /// `-0.05`: worse when stable minus candidate exceeds this, which is at least 0.
    Drop(f64),
    /// `1.3x`: worse when candidate exceeds this many times stable; above 1.
    AtMost(f64),
    /// `0.8x`: worse when candidate is below this many times stable; above 0 and below 1.
    AtLeast(f64),
    /// `0.2`: worse when the candidate's own figure exceeds this.
    Limit(f64),
}

/// Refusal of a threshold, with what was found and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "threshold `{found}` {fault}; expected a difference (`+0.02`, `-0.05`), a ratio (`1.3x`, `0.8x`) or a limit (`0.2`)"
)]
pub struct ThresholdError {
    found: String,
    fault: &'static str,
}

impl FromStr for Threshold {
    type Err = ThresholdError;

    fn from_str(text: &str) -> Result<Self, ThresholdError> {
        let refuse = |fault| ThresholdError { found: text.to_owned(), fault };
        let number = |digits: &str| {
            let plain = digits.starts_with(|first: char| first.is_ascii_digit() || first == '.');
            let value = digits.parse::<f64>().ok().filter(|value| plain && value.is_finite());
            value.ok_or_else(|| refuse("is no number"))
        };
        if let Some(digits) = text.strip_prefix('+') {
            return number(digits).map(Self::Rise);
        }
        if let Some(digits) = text.strip_prefix('-') {
            return number(digits).map(Self::Drop);
        }
        let Some(digits) = text.strip_suffix('x') else { return number(text).map(Self::Limit) };
        match number(digits)? {
            ratio if ratio > 1.0 => Ok(Self::AtMost(ratio)),
            ratio if ratio > 0.0 && ratio < 1.0 => Ok(Self::AtLeast(ratio)),
            0.0 => Err(refuse("has a ratio of 0, below which nothing lies")),
            _ => Err(refuse("does not say which side is worse, as 1.05x or 0.95x would")),
        }
    }
}

impl TryFrom<String> for Threshold {
    type Error = ThresholdError;

    fn try_from(text: String) -> Result<Self, ThresholdError> {
        text.parse()
    }
}

impl From<Threshold> for String {
    fn from(threshold: Threshold) -> Self {
        threshold.to_string()
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rise(value) => write!(formatter, "+{value}"),
            Self::Drop(value) => write!(formatter, "-{value}"),
            Self::AtMost(value) | Self::AtLeast(value) => write!(formatter, "{value}x"),
            Self::Limit(value) => write!(formatter, "{value}"),
        }
    }
}

/// Side of a threshold that evidence is gathered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Candidate above the line.
    Above,
    /// Candidate below the line.
    Below,
}

impl Side {
    pub(crate) fn opposite(self) -> Self {
        match self {
            Self::Above => Self::Below,
            Self::Below => Self::Above,
        }
    }

    /// 1 above, -1 below.
    pub(crate) fn sign(self) -> f64 {
        match self {
            Self::Above => 1.0,
            Self::Below => -1.0,
        }
    }
}

/// Line that separates fine from worse: the figure that the candidate may have, given the stable version's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Line {
    /// Stable plus this.
    Shift(f64),
    /// Stable times this.
    Ratio(f64),
    /// This, whatever stable is.
    Fixed(f64),
}

impl Line {
    /// Figure of the candidate on the line.
    pub(crate) fn at(self, stable: f64) -> f64 {
        match self {
            Self::Shift(shift) => stable + shift,
            Self::Ratio(ratio) => stable * ratio,
            Self::Fixed(value) => value,
        }
    }

    /// Line of the same form with another parameter.
    pub(crate) fn with(self, parameter: f64) -> Self {
        match self {
            Self::Shift(_) => Self::Shift(parameter),
            Self::Ratio(_) => Self::Ratio(parameter),
            Self::Fixed(_) => Self::Fixed(parameter),
        }
    }

    /// Parameter of the line of this form that passes through the two figures: difference, ratio or the candidate's.
    pub(crate) fn through(self, stable: f64, candidate: f64) -> f64 {
        match self {
            Self::Shift(_) => candidate - stable,
            Self::Ratio(_) => candidate / stable,
            Self::Fixed(_) => candidate,
        }
    }
}

impl Threshold {
    /// Line of the threshold.
    pub(crate) fn line(self) -> Line {
        match self {
            Self::Rise(shift) => Line::Shift(shift),
            Self::Drop(shift) => Line::Shift(-shift),
            Self::AtMost(ratio) | Self::AtLeast(ratio) => Line::Ratio(ratio),
            Self::Limit(value) => Line::Fixed(value),
        }
    }

    /// Side of the line on which the candidate is worse.
    pub(crate) fn worse_side(self) -> Side {
        match self {
            Self::Rise(_) | Self::AtMost(_) | Self::Limit(_) => Side::Above,
            Self::Drop(_) | Self::AtLeast(_) => Side::Below,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_the_configuration_are_read_and_written() {
        for (text, threshold) in [
            ("+0.02", Threshold::Rise(0.02)),
            ("-0.05", Threshold::Drop(0.05)),
            ("1.3x", Threshold::AtMost(1.3)),
            ("0.8x", Threshold::AtLeast(0.8)),
            ("0.2", Threshold::Limit(0.2)),
            ("+0", Threshold::Rise(0.0)),
            ("2x", Threshold::AtMost(2.0)),
        ] {
            assert_eq!(text.parse(), Ok(threshold));
            assert_eq!(threshold.to_string(), text);
            let json = serde_json::to_string(&threshold).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<Threshold>(&json).unwrap(), threshold);
        }
    }

    #[test]
    fn thresholds_that_say_nothing_are_refused() {
        for text in [
            "", "x", "1x", "1.0x", "0x", "++1", "+-1", "--1", "-0.5x", "+0.1x", "nan", "inf", "+inf", "1e999", " 1",
            "1 ",
        ] {
            let refused = text.parse::<Threshold>();
            assert!(refused.is_err(), "{text:?} was read as {refused:?}");
            assert!(refused.unwrap_err().to_string().contains("expected a difference"));
        }
    }
}
