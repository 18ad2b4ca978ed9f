//! `routes[].rollout`: a new version that gets a growing share of a route's requests while it is judged against the others.

use std::num::{NonZeroU32, NonZeroU64};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{DailyHours, Duration, Pause, Size, Threshold};

/// Rollout of a new version of a route's servers or model. It begins by itself when the file becomes active, and owns the
/// weights of the route while it runs. Until it begins, and after an abort, the candidate gets nothing; after its promotion
/// the candidate gets all. An edit of this or of the candidate ends a rollout that runs, and the new one begins.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollout {
    /// Candidate: one of the route's `backendRefs`. The others are the stable version.
    pub to: String,
    /// Order in which the candidate takes over.
    #[serde(default)]
    pub strategy: RolloutStrategy,
    /// Steps, in their order. After the last one the candidate is promoted.
    pub steps: Vec<RolloutStep>,
    /// Hours in which the rollout may begin and go a step up; at any time when left out. It is judged and aborted at
    /// every hour.
    #[serde(default)]
    pub within: Option<RolloutHours>,
    /// Thresholds past which the candidate is aborted, against the stable version over the same requests. Without one
    /// nothing is judged, and each step ends with its hold.
    #[serde(default)]
    pub abort_when: AbortWhen,
    /// Highest probability that a candidate which is not worse is aborted, over the whole rollout: all metrics, looks and
    /// steps together.
    #[serde(default = "Rollout::default_false_alarm")]
    #[schemars(range(min = 0.0001, max = 0.2))]
    pub false_alarm: f64,
    /// Action at the end of a hold where the requests so far neither show the candidate to be worse nor to be fine.
    #[serde(default)]
    pub on_inconclusive: OnInconclusive,
    /// Time after a switch (`strategy: blueGreen`) in which the stable version is ready to take all requests back; 10m when
    /// left out.
    #[serde(default)]
    pub keep_warm: Option<Duration>,
    /// Longest answer of which `toolCallErrors`, `structuredOutputErrors` and `shadowDifference` are judged, in bytes; 256KiB
    /// when left out. A longer one passes unchanged, and says nothing of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_answer: Option<Size>,
    /// Bounds of the copies that the candidate of a `shadow` gets, and the rules by which its answers are compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
}

impl Rollout {
    /// Time after a switch before the promotion, where the file names none.
    pub const DEFAULT_KEEP_WARM: Duration = Duration::seconds(600);
    /// Longest answer that is read, where the file names none: some 800 events of a stream, or a long structured answer.
    pub const DEFAULT_MAX_ANSWER: Size = Size(256 << 10);
    /// Greatest `maxAnswer`: this much of each request of the route may be held.
    pub const MOST_MAX_ANSWER: Size = Size(4 << 20);
    /// Most steps of a rollout: each takes a part of the evidence, and of the memory.
    pub const MOST_STEPS: usize = 32;

    fn default_false_alarm() -> f64 {
        0.01
    }
}

/// Order in which a candidate takes over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RolloutStrategy {
    /// The candidate's share grows step by step.
    #[default]
    Canary,
    /// The candidate gets everything at once; the stable version stays ready for `keepWarm`.
    BlueGreen,
    /// The candidate gets copies of requests, and its answers reach no caller; they are compared with those of the stable
    /// version to the same requests. `weight` is the percentage of the requests that are copied. Its end moves no traffic.
    Shadow,
}

/// Copies of requests for the candidate of `strategy: shadow`. A copy never delays, changes or fails the request itself, carries
/// no credentials of the caller, counts against no limit of its, and is skipped where a bound is reached.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Shadow {
    /// Most copies at the same time; further requests are not copied.
    #[schemars(range(min = 1, max = 10_000))]
    pub max_in_flight: NonZeroU32,
    /// Longest body of a copied request; requests with a longer one are not copied.
    pub max_body: Size,
    /// Longest time of a copy, to the last byte of its answer. One that takes longer counts as an error of the candidate.
    pub timeout: Duration,
    /// Greatest difference of two numbers of an answer that are the same to `shadowDifference`, in parts of the greater one: for
    /// tensors of the Open Inference Protocol, and for the numbers of JSON.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub tolerance: f64,
    /// Built-in model for embeddings by which texts that differ are compared; without it texts are the same if their words are.
    pub embedding: Option<String>,
    /// Least cosine of the embeddings of two texts that are the same to `shadowDifference`. Needs `embedding`.
    #[schemars(range(min = -1.0, max = 1.0))]
    pub min_similarity: Option<f64>,
    /// Also copies requests to plain HTTP servers whose method may change something, such as POST. Each is then carried out
    /// twice.
    pub writes: bool,
}

impl Default for Shadow {
    fn default() -> Self {
        Self {
            max_in_flight: NonZeroU32::MIN.saturating_add(15),
            max_body: Size(256 << 10),
            timeout: Duration::seconds(60),
            tolerance: 0.001,
            embedding: None,
            min_similarity: None,
            writes: false,
        }
    }
}

impl Shadow {
    /// Least cosine where the file names an `embedding` alone.
    pub const DEFAULT_MIN_SIMILARITY: f64 = 0.9;
}

/// Step of a rollout: one of `weight`, `pause` and `gate`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RolloutStep {
    /// Share of the requests that the candidate gets, in percent. It rises from step to step; 100 promotes.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub weight: Option<f64>,
    /// Least time and requests of a step with a `weight` below 100.
    pub hold: Option<RolloutHold>,
    /// Waits for a person (`true`: `spillway rollout resume`) or for a time.
    pub pause: Option<Pause>,
    /// Waits for a server to agree.
    pub gate: Option<RolloutGate>,
}

/// Least time and requests of a step; where both are given, both must be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RolloutHold {
    /// Time from the beginning of the step.
    #[serde(rename = "for")]
    pub time: Option<Duration>,
    /// Requests at the candidate that have ended in the step.
    pub requests: Option<NonZeroU64>,
}

/// Server that must agree before a rollout goes on, as the gates of Flagger. It gets a POST with the state of the rollout in
/// JSON, every 10 seconds until it answers 2xx; any other answer means "not yet".
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RolloutGate {
    /// Address of the server: http or https, with a path.
    pub url: String,
    /// Longest time for one answer; 10s when left out.
    #[serde(default)]
    pub timeout: Option<Duration>,
}

/// Hours of the week in a time zone.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RolloutHours {
    /// Hours of a day, in the time zone; all when left out. `22:00-06:00` reaches into the next day, and counts to the day
    /// on which it begins.
    pub hours: Option<DailyHours>,
    /// Days; all when left out.
    pub days: Option<Vec<Weekday>>,
    /// Time zone by its name in the IANA database, such as `Europe/Berlin`; UTC when left out.
    pub time_zone: Option<String>,
}

/// Day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Weekday {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

/// Action at the end of a hold without a clear finding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnInconclusive {
    /// The share stays as it is; further requests decide, or a person.
    #[default]
    Pause,
    /// The next step follows.
    Promote,
    /// The candidate is aborted.
    Abort,
}

/// Defines [`AbortWhen`] and [`RolloutMetric`] from one list. Metrics of later versions are not written where they are left out:
/// the identity of a rollout is a hash of its content, and an upgrade of the program is no edit.
macro_rules! metrics {
    ($($(#[$doc:meta])* $([$field_only:meta])? $field:ident $variant:ident $name:literal,)*) => {
        /// Thresholds of a rollout: `+0.02` (higher by more than 0.02), `-0.05` (lower), `1.3x` (more than 1.3 times),
        /// `0.8x` (less than 0.8 times), each against the stable version, or `0.2` for the candidate alone.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct AbortWhen {
            $($(#[$doc])* $(#[$field_only])? #[serde(rename = $name)] pub $field: Option<Threshold>,)*
        }

        /// Metric by which a candidate is judged.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum RolloutMetric {
            $($(#[$doc])* $variant,)*
        }

        impl RolloutMetric {
            /// Name in the configuration.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }

        impl AbortWhen {
            /// Thresholds that are written, each with its metric, in one order.
            pub fn iter(&self) -> impl Iterator<Item = (RolloutMetric, Threshold)> {
                [$((RolloutMetric::$variant, self.$field)),*]
                    .into_iter()
                    .filter_map(|(metric, threshold)| Some((metric, threshold?)))
            }
        }
    };
}

metrics! {
    /// Share of requests whose attempt failed, was answered 5xx, broke, or told an error in an answer of success.
    error_rate ErrorRate "errorRate",
    /// Median time to the last byte of a good answer, in seconds.
    latency_p50 LatencyP50 "latencyP50",
    /// 95th percentile of it.
    latency_p95 LatencyP95 "latencyP95",
    /// 99th percentile of it.
    latency_p99 LatencyP99 "latencyP99",
    /// Mean of it.
    latency_mean LatencyMean "latencyMean",
    /// Median time to the first content of a good streamed answer, in seconds.
    first_token_p50 FirstTokenP50 "firstTokenP50",
    /// 95th percentile of it.
    first_token_p95 FirstTokenP95 "firstTokenP95",
    /// 99th percentile of it.
    first_token_p99 FirstTokenP99 "firstTokenP99",
    /// Mean of it.
    first_token_mean FirstTokenMean "firstTokenMean",
    /// Mean of the tokens that an answer writes in a second, after its first content.
    tokens_per_second TokensPerSecond "tokensPerSecond",
    /// Mean cost of an answer in US dollars, by `prices`.
    cost_per_request CostPerRequest "costPerRequest",
    /// Share of requests that spilled.
    spill_rate SpillRate "spillRate",
    /// Share of answers that the model refused to give, or a filter of the server kept back.
    refusal_rate RefusalRate "refusalRate",
    /// Mean number of tokens of an answer.
    output_tokens OutputTokens "outputTokens",
    /// Share of answers that ended for want of tokens.
    truncation_rate TruncationRate "truncationRate",
    /// Mean score of the callers' feedback.
    feedback Feedback "feedback",
    /// Distance between the lengths of answers of both versions in tokens: the greatest difference of the shares of answers
    /// above one of 15 lengths, which are spread evenly over the stable version's answers before the first step. A limit
    /// between 0 and 1, such as 0.2.
    output_drift OutputDrift "outputDrift",
    /// Share of the answers with tool calls of which one names a tool that the request did not declare, or has arguments that are
    /// no JSON or do not hold to the schema of the tool.
    [serde(skip_serializing_if = "Option::is_none")] tool_call_errors ToolCallErrors "toolCallErrors",
    /// Share of the answers to requests for JSON, with a schema or without, that are not the JSON which was asked for.
    [serde(skip_serializing_if = "Option::is_none")]
    structured_output_errors StructuredOutputErrors "structuredOutputErrors",
    /// Share of the pairs of answers of a `shadow` that differ. A limit between 0 and 1, such as 0.05.
    [serde(skip_serializing_if = "Option::is_none")] shadow_difference ShadowDifference "shadowDifference",
}

impl RolloutMetric {
    /// True for metrics of any HTTP server; the others are of calls of models.
    pub fn is_of_any_server(self) -> bool {
        matches!(self, Self::ErrorRate | Self::LatencyP50 | Self::LatencyP95 | Self::LatencyP99 | Self::LatencyMean)
    }

    /// True for metrics for which the texts of answers are read.
    pub fn reads_answers(self) -> bool {
        matches!(self, Self::ToolCallErrors | Self::StructuredOutputErrors | Self::ShadowDifference)
    }

    /// True where more is better.
    pub fn is_better_above(self) -> bool {
        matches!(self, Self::TokensPerSecond | Self::Feedback)
    }

    /// True where neither more nor less is better.
    pub fn is_two_sided(self) -> bool {
        matches!(self, Self::OutputTokens)
    }

    /// True for a distance between the versions, from 0 to 1.
    pub fn is_distance(self) -> bool {
        matches!(self, Self::OutputDrift)
    }

    /// True for a share of requests, from 0 to 1.
    pub fn is_share(self) -> bool {
        matches!(
            self,
            Self::ErrorRate
                | Self::SpillRate
                | Self::RefusalRate
                | Self::TruncationRate
                | Self::ToolCallErrors
                | Self::StructuredOutputErrors
                | Self::ShadowDifference
        )
    }

    /// Level of a quantile, from 0 to 1.
    pub fn quantile(self) -> Option<f64> {
        match self {
            Self::LatencyP50 | Self::FirstTokenP50 => Some(0.5),
            Self::LatencyP95 | Self::FirstTokenP95 => Some(0.95),
            Self::LatencyP99 | Self::FirstTokenP99 => Some(0.99),
            _ => None,
        }
    }
}
