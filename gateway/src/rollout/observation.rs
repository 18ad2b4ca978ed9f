//! Observation of one request of a rollout: plain figures, taken at its end.

use spillway_config::schema::RolloutMetric;
use spillway_statistics::Version;

/// Figures of one request, of the version that it was assigned to. Single precision, whose seven digits are more than clocks
/// have; 88 bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Number of the unit that the request belongs to ([`super::LiveRollout::unit`]).
    pub unit: u64,
    /// Number of the weight under which the request was assigned ([`super::Present`]).
    pub epoch: u32,
    /// Version that the draw gave the request to, available or not.
    pub version: Version,
    /// True if the version failed: no answer, 5xx, a broken stream, an error in an answer of success.
    pub is_error: bool,
    /// True if a stand-in or built-in model answered because the version had no room or was not available.
    pub spilled: bool,
    /// True if the model refused, or a filter of the server kept its answer back; `None` without a finish reason.
    pub refused: Option<bool>,
    /// True if the answer ended for want of tokens.
    pub truncated: Option<bool>,
    /// Seconds to the last byte of a good answer.
    pub latency: Option<f32>,
    /// Seconds to the first content of a good streamed answer.
    pub first_token: Option<f32>,
    /// Tokens written in a second.
    pub tokens_per_second: Option<f32>,
    /// Cost in US dollars.
    pub cost: Option<f32>,
    /// Tokens written.
    pub output_tokens: Option<f32>,
    /// True if a tool call of the answer cannot be carried out; `None` without one.
    pub broken_call: Option<bool>,
    /// True if the answer is not the JSON that was asked for; `None` where none was.
    pub broken_form: Option<bool>,
    /// True if the answer differs from that of the stable version to the same request; of a shadow's candidate alone.
    pub differs: Option<bool>,
    /// Score of a caller.
    pub score: Option<f32>,
    /// True for what is found after the request was counted: such an observation is of no further request, and has nothing but a
    /// score or what its answer was read for.
    pub is_later: bool,
    /// True if the request goes on, or was left by its caller: it is not concluded and counts in no share.
    pub is_part: bool,
    /// Seconds after which a caller left without the whole answer.
    pub left_after: Option<f32>,
    /// True if the caller left before the first content of a stream.
    pub left_before_first_token: bool,
}

impl Observation {
    /// Observation without figures.
    pub fn new(version: Version, epoch: u32, unit: u64) -> Self {
        Self {
            unit,
            epoch,
            version,
            is_error: false,
            spilled: false,
            refused: None,
            truncated: None,
            latency: None,
            first_token: None,
            tokens_per_second: None,
            cost: None,
            output_tokens: None,
            broken_call: None,
            broken_form: None,
            differs: None,
            score: None,
            is_later: false,
            is_part: false,
            left_after: None,
            left_before_first_token: false,
        }
    }

    /// Value of a metric; `None` where the request says nothing about it.
    pub fn value(&self, metric: RolloutMetric) -> Option<f64> {
        let share = |is: bool| f64::from(u8::from(is));
        match metric {
            RolloutMetric::Feedback => self.score.map(f64::from),
            RolloutMetric::ToolCallErrors => self.broken_call.map(share),
            RolloutMetric::StructuredOutputErrors => self.broken_form.map(share),
            RolloutMetric::ShadowDifference => self.differs.map(share),
            _ if self.is_later || (self.is_part && metric.is_share()) => None,
            RolloutMetric::ErrorRate => Some(share(self.is_error)),
            RolloutMetric::LatencyP50
            | RolloutMetric::LatencyP95
            | RolloutMetric::LatencyP99
            | RolloutMetric::LatencyMean => self.latency.map(f64::from),
            RolloutMetric::FirstTokenP50
            | RolloutMetric::FirstTokenP95
            | RolloutMetric::FirstTokenP99
            | RolloutMetric::FirstTokenMean => self.first_token.map(f64::from),
            RolloutMetric::TokensPerSecond => self.tokens_per_second.map(f64::from),
            RolloutMetric::CostPerRequest => self.cost.map(f64::from),
            RolloutMetric::SpillRate => Some(share(self.spilled)),
            RolloutMetric::RefusalRate => self.refused.map(share),
            RolloutMetric::OutputTokens | RolloutMetric::OutputDrift => self.output_tokens.map(f64::from),
            RolloutMetric::TruncationRate => self.truncated.map(share),
        }
    }

    /// Least value of a metric that the request would have had; `None` where no caller left it.
    pub fn at_least(&self, metric: RolloutMetric) -> Option<f64> {
        let left = self.left_after?;
        let is_left = match metric {
            RolloutMetric::LatencyP50
            | RolloutMetric::LatencyP95
            | RolloutMetric::LatencyP99
            | RolloutMetric::LatencyMean => true,
            RolloutMetric::FirstTokenP50
            | RolloutMetric::FirstTokenP95
            | RolloutMetric::FirstTokenP99
            | RolloutMetric::FirstTokenMean => self.left_before_first_token,
            _ => false,
        };
        is_left.then(|| f64::from(left))
    }
}
