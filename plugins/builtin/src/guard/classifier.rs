//! Judgement of texts by a classifier, a built-in model: its settings, what it costs and what is counted of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use spillway_config::values::{Duration, Size};
use spillway_filter::{
    BuildContext, Classifier, Counter, CounterSpec, ErrorKind, FieldError, Judgement, NotClassified, Refusal,
};

use super::texts::Texts;
use super::{FINDINGS, SHADOW_FINDINGS, Side, refused};

/// Code of a refusal of what cannot be judged.
const UNAVAILABLE: &str = "guard_unavailable";
/// Code of a refusal of a text that is longer than what is judged.
const TOO_LONG: &str = "guard_text_too_long";
/// Delay after which a request that could not be judged may be sent again.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);
/// Longest `timeout`.
const MAX_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);
/// Bounds of `maxText`, in bytes.
const MAX_TEXT: std::ops::RangeInclusive<u64> = 1024..=4 << 20;
/// Most labels of a guard.
const MAX_LABELS: usize = 64;
/// Longest label, in bytes: one value of a metric has it and the name of the model.
const MAX_LABEL: usize = 64;

/// Texts that a classifier has judged.
const JUDGEMENTS: CounterSpec = CounterSpec {
    name: "spillway_filter_guard_judgements",
    help: "Prompts, answers and windows of streams that a guard gave to its classifier",
    labels: &["model", "at", "action", "outcome"],
};

/// Classifier that judges prompts and answers.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WrittenClassifier {
    /// Name in `models` of a built-in model that classifies texts.
    model: String,
    /// Labels for which a text is refused (400 `content_filter`), each with the probability from which on it is: more than 0, at
    /// most 1. Names are those of the model's `id2label`; other labels refuse nothing.
    labels: BTreeMap<String, f32>,
    /// Longest wait for a judgement: of a prompt, of an answer, or of a window of a stream. At most a minute.
    #[serde(default = "timeout")]
    timeout: Duration,
    /// True passes what is not judged in time, or because the model is not loaded or fails; false refuses it (503
    /// `guard_unavailable`). A stream of which a window was passed is not judged further.
    #[serde(default)]
    fail_open: bool,
    /// Most bytes of the texts of a request, and of an answer that is no stream; longer ones are refused (400
    /// `guard_text_too_long`), also with `failOpen`. From 1 KiB to 4 MiB.
    #[serde(default = "max_text")]
    max_text: Size,
}

fn timeout() -> Duration {
    Duration(std::time::Duration::from_secs(5))
}

fn max_text() -> Size {
    Size(32 << 10)
}

impl WrittenClassifier {
    /// Mistakes that the schema cannot express.
    pub(super) fn check(&self, errors: &mut Vec<FieldError>) {
        let mut fault = |key: &str, why: String| errors.push(FieldError::at(["classifier", key], why));
        if self.labels.is_empty() || self.labels.len() > MAX_LABELS {
            fault("labels", format!("found {} labels; expected 1 to {MAX_LABELS}", self.labels.len()));
        }
        for (label, threshold) in &self.labels {
            if label.is_empty() || label.len() > MAX_LABEL || label.chars().any(char::is_control) {
                fault("labels", format!("found `{}`; expected 1 to {MAX_LABEL} bytes", label.escape_debug()));
            }
            if !(*threshold > 0.0 && *threshold <= 1.0) {
                fault("labels", format!("found {threshold} for `{label}`; expected more than 0 and at most 1"));
            }
        }
        if self.timeout.0.is_zero() || self.timeout.0 > MAX_TIMEOUT {
            fault("timeout", format!("found {:?}; expected more than 0s and at most 1m", self.timeout.0));
        }
        if !MAX_TEXT.contains(&self.max_text.0) {
            let (least, most) = (MAX_TEXT.start(), MAX_TEXT.end());
            fault("maxText", format!("found {} bytes; expected {least} to {most}", self.max_text.0));
        }
    }
}

/// Label for which texts are refused.
struct Label {
    name: String,
    /// Place among the probabilities.
    at: usize,
    threshold: f32,
    in_prompts: Tally,
    in_answers: Tally,
}

/// Findings of a label on one side.
#[derive(Default)]
struct Tally {
    found: Counter,
    /// True once a guard in shadow mode has logged one.
    is_logged: AtomicBool,
}

/// Counts of one side by outcome.
#[derive(Default)]
struct Outcomes {
    passed: Counter,
    found: Counter,
    unavailable: Counter,
    too_long: Counter,
}

/// Classifier of a guard.
pub(super) struct Judge {
    model: String,
    classifier: Arc<dyn Classifier>,
    labels: Vec<Label>,
    timeout: std::time::Duration,
    fail_open: bool,
    max_text: usize,
    prompts: Outcomes,
    answers: Outcomes,
    /// Route of a guard in shadow mode.
    shadow: Option<Box<str>>,
}

/// Result of a judgement.
pub(super) enum Judged {
    /// The text passes.
    Passed,
    /// The text passes because it could not be judged.
    Unjudged(NotClassified),
    /// The text is refused; with the failure where that is why.
    Refused(Box<Refusal>, Option<NotClassified>),
}

impl Judge {
    pub(super) fn new(
        written: &WrittenClassifier,
        sides: [bool; 2],
        is_shadow: bool,
        cx: &BuildContext<'_>,
    ) -> Result<Self, FieldError> {
        let at = |key: &str, why: String| FieldError::at(["classifier", key], why);
        let classifier = cx.classifiers.classifier(&written.model).map_err(|why| at("model", why))?;
        let (action, spec) = if is_shadow { ("shadow", SHADOW_FINDINGS) } else { ("refuse", FINDINGS) };
        let [prompts, answers] = sides;
        let tally = |label: &str, side: Side, is_on: bool| {
            let name = format!("{}:{label}", written.model);
            let found = is_on.then(|| cx.counter(spec, &[&name, side.as_str(), "refuse"])).transpose()?;
            Ok::<_, FieldError>(Tally { found: found.unwrap_or_default(), is_logged: AtomicBool::new(false) })
        };
        let outcomes = |side: Side, is_on: bool| {
            if !is_on {
                return Ok(Outcomes::default());
            }
            let counter = |outcome: &str| cx.counter(JUDGEMENTS, &[&written.model, side.as_str(), action, outcome]);
            Ok::<_, FieldError>(Outcomes {
                passed: counter("passed")?,
                found: counter("found")?,
                unavailable: counter("unavailable")?,
                too_long: counter("too_long")?,
            })
        };
        let label = |(name, threshold): (&String, &f32)| {
            let known = classifier.labels();
            let Some(at_label) = known.iter().position(|label| label == name) else {
                let some: Vec<_> = known.iter().take(16).map(|label| format!("`{label}`")).collect();
                let (model, some) = (&written.model, some.join(", "));
                return Err(at("labels", format!("`{model}` has no label `{name}`; expected some of {some}")));
            };
            Ok(Label {
                name: name.clone(),
                at: at_label,
                threshold: *threshold,
                in_prompts: tally(name, Side::Prompt, prompts)?,
                in_answers: tally(name, Side::Answer, answers)?,
            })
        };
        Ok(Self {
            model: written.model.clone(),
            labels: written.labels.iter().map(label).collect::<Result<_, _>>()?,
            timeout: written.timeout.0,
            fail_open: written.fail_open,
            max_text: usize::try_from(written.max_text.0).unwrap_or(usize::MAX),
            prompts: outcomes(Side::Prompt, prompts)?,
            answers: outcomes(Side::Answer, answers)?,
            shadow: is_shadow.then(|| cx.route.into()),
            classifier,
        })
    }

    /// Most bytes of the texts of a body.
    pub(super) fn max_text(&self) -> usize {
        self.max_text
    }

    /// Judges the texts of a whole body.
    pub(super) async fn whole(&self, texts: Texts, side: Side) -> Judged {
        if texts.length() > self.max_text {
            self.outcomes(side).too_long.inc();
            return Judged::Refused(too_long(side, self.max_text), None);
        }
        self.judge(texts.judged(), side).await
    }

    /// Judges these texts.
    pub(super) async fn judge(&self, texts: Vec<String>, side: Side) -> Judged {
        if texts.is_empty() {
            return Judged::Passed;
        }
        match self.classifier.classify(texts, self.timeout).await {
            Ok(probabilities) => match self.count(&probabilities, side) {
                None => Judged::Passed,
                Some(label) => Judged::Refused(refused(&label.name, side.place()), None),
            },
            Err(why) => {
                self.outcomes(side).unavailable.inc();
                if self.fail_open { Judged::Unjudged(why) } else { Judged::Refused(unavailable(side), Some(why)) }
            }
        }
    }

    /// Counts what the texts of a body have, in the background.
    pub(super) fn look(self: &Arc<Self>, texts: Texts, side: Side) {
        if texts.length() > self.max_text {
            self.outcomes(side).too_long.inc();
            return;
        }
        let texts = texts.judged();
        if texts.is_empty() {
            return;
        }
        let judge = self.clone();
        let done = move |judgement: Judgement| match judgement {
            Ok(probabilities) => {
                judge.count(&probabilities, side);
            }
            Err(_) => judge.outcomes(side).unavailable.inc(),
        };
        self.classifier.classify_later(texts, self.timeout, Box::new(done));
    }

    fn outcomes(&self, side: Side) -> &Outcomes {
        match side {
            Side::Prompt => &self.prompts,
            Side::Answer => &self.answers,
        }
    }

    /// Counts a judgement, and returns the first label for which the text is refused.
    fn count(&self, probabilities: &[f32], side: Side) -> Option<&Label> {
        let is_found = |label: &&Label| probabilities.get(label.at).is_none_or(|p| *p >= label.threshold);
        let mut first = None;
        for label in self.labels.iter().filter(is_found) {
            let tally = match side {
                Side::Prompt => &label.in_prompts,
                Side::Answer => &label.in_answers,
            };
            tally.found.inc();
            if let Some(route) = &self.shadow
                && !tally.is_logged.swap(true, Ordering::Relaxed)
            {
                let (pattern, at) = (format!("{}:{}", self.model, label.name), side.as_str());
                tracing::info!(event = "guard_shadow_finding", %route, pattern, at);
            }
            first = first.or(Some(label));
        }
        let outcomes = self.outcomes(side);
        if first.is_some() {
            outcomes.found.inc()
        } else {
            outcomes.passed.inc()
        }
        first
    }
}

fn unavailable(side: Side) -> Box<Refusal> {
    let message = format!("a guard of this route cannot judge the {} at the moment; try again", side.place());
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Overloaded, UNAVAILABLE, message);
    Box::new(refusal.retry_after(RETRY_AFTER))
}

fn too_long(side: Side, most: usize) -> Box<Refusal> {
    let message = format!(
        "the texts of the {} are longer than the {most} bytes that a guard of this route judges; send or ask for less at a \
         time",
        side.place()
    );
    Box::new(Refusal::invalid(TOO_LONG, message))
}
