//! The one task that reads answers, on a thread of its own, whose schemas it keeps compiled.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde_json::Value;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::difference::{AnswerKind, Body, Finding, compare, cosine};
use super::expected::{Expected, Form};
use super::given::{Arguments, Call, Choice, Given};
use super::pair::{Side, WholePair};
use super::schema::Schemas;
use super::{Held, Judged, TappedAnswer};
use crate::builtin::{LoadedModel, idle_vector};
use crate::rollout::observation::Observation;

/// Answers that wait to be read.
const MOST_JOBS: usize = 1024;

/// Longest part of a text that is turned into an embedding, in bytes: most of an answer, and less than models take.
const MOST_EMBEDDED: usize = 2 << 10;
/// Longest time for one embedding.
const EMBED_TIMEOUT: Duration = Duration::from_secs(10);

/// Work that waits.
struct Job {
    live: Arc<dyn Judged>,
    work: Work,
}

enum Work {
    /// Answer of one version.
    One(Box<One>),
    /// Answers of both to the same request.
    Two(Box<WholePair>),
}

struct One {
    /// Observation to which the findings are added.
    observation: Observation,
    request: Bytes,
    answer: TappedAnswer,
    /// Bytes of the request, which may live on for this alone.
    _held: Held,
}

/// Reader of answers.
#[derive(Debug)]
pub(in crate::rollout) struct AnswerChecker {
    queue: mpsc::Sender<Job>,
    /// Queue of the task that has not begun: it does when a rollout needs it.
    waiting: Mutex<Option<mpsc::Receiver<Job>>>,
    held: Arc<AtomicUsize>,
    unread: Counter,
}

impl AnswerChecker {
    /// Reader that has not begun. `unread` counts answers that were too long or found no room.
    pub(in crate::rollout) fn new(unread: Counter) -> Self {
        let (queue, waiting) = mpsc::channel(MOST_JOBS);
        Self { queue, waiting: Mutex::new(Some(waiting)), held: Arc::default(), unread }
    }

    /// Starts the task. Further calls do nothing.
    pub(in crate::rollout) fn start(&self) {
        let Some(jobs) = self.waiting.lock().take() else { return };
        let unread = self.unread.clone();
        let started = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .and_then(|runtime| crate::idle_thread::spawn("answers", move || runtime.block_on(run(jobs, unread))));
        if let Err(e) = started {
            tracing::error!(event = "rollout_answers_unread", reason = %e, "their metrics stay undecided");
        }
    }

    pub(super) fn held(&self) -> &Arc<AtomicUsize> {
        &self.held
    }

    pub(super) fn unread(&self) -> &Counter {
        &self.unread
    }

    /// Hands an answer over. Never waits.
    pub(super) fn check(&self, live: Arc<dyn Judged>, observation: Observation, request: Bytes, answer: TappedAnswer) {
        let mut held = Held::none(&self.held);
        let has_room = held.add(request.len());
        let one = One { observation, request, answer, _held: held };
        if !has_room || self.queue.try_send(Job { live, work: Work::One(Box::new(one)) }).is_err() {
            self.unread.inc();
        }
    }

    /// Hands the answers of a pair over, whose bytes the bounds of copies hold. Never waits: without room, its other figures
    /// count.
    pub(super) fn compare(&self, live: Arc<dyn Judged>, pair: WholePair) {
        let refused = match self.queue.try_send(Job { live, work: Work::Two(Box::new(pair)) }) {
            Ok(()) => return,
            Err(TrySendError::Full(job) | TrySendError::Closed(job)) => job,
        };
        self.unread.inc();
        if let Job { live, work: Work::Two(pair) } = refused {
            pair.observe(&*live);
        }
    }
}

async fn run(mut jobs: mpsc::Receiver<Job>, unread: Counter) {
    let mut reader = Reader { schemas: Schemas::default(), embedding: Arc::default(), unread };
    while let Some(Job { live, work }) = jobs.recv().await {
        match work {
            Work::One(one) => reader.one(&*live, *one),
            Work::Two(pair) => reader.two(&live, *pair),
        }
    }
}

/// State of the task.
struct Reader {
    schemas: Schemas,
    /// True while the texts of a pair are turned into embeddings, of one pair at a time.
    embedding: Arc<AtomicBool>,
    unread: Counter,
}

impl Reader {
    fn one(&mut self, live: &dyn Judged, one: One) {
        let One { mut observation, request, answer, .. } = one;
        let Some(expected) = Expected::read(&request) else { return };
        let body = answer.decoded();
        if body.is_none() {
            self.unread.inc();
        }
        let Some(given) = body.and_then(|body| Given::read(&body)) else { return };
        self.judge(live, &expected, &given, &mut observation);
        if observation.broken_call.is_some() || observation.broken_form.is_some() {
            live.observe(observation);
        }
    }

    fn judge(&mut self, live: &dyn Judged, expected: &Expected, given: &Given, observation: &mut Observation) {
        let Some(reading) = live.reading() else { return };
        if reading.calls {
            observation.broken_call = is_call_broken(expected, given, &mut self.schemas);
        }
        if reading.forms {
            observation.broken_form = is_form_broken(expected, given, &mut self.schemas);
        }
    }

    fn two(&mut self, live: &Arc<dyn Judged>, mut pair: WholePair) {
        let body = |side: &Side| side.answer.as_ref().and_then(TappedAnswer::decoded).map(Cow::into_owned);
        let (stable, candidate) = (body(&pair.stable), body(&pair.candidate));
        let given = |body: &Option<Vec<u8>>| match pair.kind {
            AnswerKind::Text => Given::read(body.as_deref()?),
            AnswerKind::Tensors | AnswerKind::Values | AnswerKind::Plain => None,
        };
        let givens = (given(&stable), given(&candidate));
        if pair.kind == AnswerKind::Text
            && let Some(expected) = Expected::read(&pair.request)
        {
            for (given, side) in [(&givens.0, &mut pair.stable), (&givens.1, &mut pair.candidate)] {
                // What failed is an error, and no answer.
                if let Some(given) = given.as_ref().filter(|_| !side.observation.is_error) {
                    self.judge(&**live, &expected, given, &mut side.observation);
                }
            }
        }
        if live.reading().is_some_and(|reading| reading.differences) {
            let bodies = [(&stable, &givens.0), (&candidate, &givens.1)];
            self.differ(live, &mut pair, bodies);
        }
        pair.observe(&**live);
    }

    /// Notes whether the answers of a pair differ. While the texts of another pair are looked at, nothing is noted, whatever this
    /// one says.
    fn differ(&self, live: &Arc<dyn Judged>, pair: &mut WholePair, bodies: [(&Option<Vec<u8>>, &Option<Given>); 2]) {
        let embedder = pair.rules.embedder.clone().filter(|_| pair.kind == AnswerKind::Text);
        if embedder.is_some() && self.embedding.load(Ordering::Acquire) {
            self.unread.inc();
            return;
        }
        let Some(finding) = difference(pair, bodies) else {
            self.unread.inc();
            return;
        };
        let of = &mut pair.candidate.observation;
        match (embedder, finding) {
            (Some((model, least)), Finding::Words(one, other)) => self.embed(live, of, model, least, (one, other)),
            (Some((model, least)), Finding::Same) => {
                let text = bodies[0].1.as_ref().map(Given::text).unwrap_or_default();
                self.embed(live, of, model, least, (text.clone(), text));
            }
            (_, finding) => of.differs = Some(finding != Finding::Same),
        }
    }

    /// Compares two texts by their embeddings. Whether that succeeds depends on the model alone and not on what they say: the first
    /// text is embedded even where both are the same, or pairs that differ would be missed more often.
    fn embed(
        &self,
        live: &Arc<dyn Judged>,
        of: &Observation,
        model: Arc<LoadedModel>,
        least: f64,
        (one, other): (String, String),
    ) {
        self.embedding.store(true, Ordering::Release);
        let observation = Observation { is_later: true, ..Observation::new(of.version, of.epoch, of.unit) };
        let (live, busy, unread) = (live.clone(), self.embedding.clone(), self.unread.clone());
        tokio::spawn(async move {
            match is_other(&model, &one, &other, least).await {
                Some(differs) => live.observe(Observation { differs: Some(differs), ..observation }),
                None => {
                    unread.inc();
                }
            }
            busy.store(false, Ordering::Release);
        });
    }
}

/// True for texts whose embeddings are further apart than `least`; `None` where the model is not loaded or has other work.
async fn is_other(model: &Arc<LoadedModel>, one: &str, other: &str, least: f64) -> Option<bool> {
    // Nothing is like itself, and no other text.
    if one.trim().is_empty() || other.trim().is_empty() {
        return Some(one.trim() != other.trim());
    }
    let first = vector(model, one).await?;
    if one == other {
        return Some(false);
    }
    Some(cosine(&first, &vector(model, other).await?) < least)
}

/// Embedding of the beginning of a text.
async fn vector(model: &Arc<LoadedModel>, text: &str) -> Option<Vec<f32>> {
    let start = text.get(..text.floor_char_boundary(MOST_EMBEDDED)).unwrap_or_default().to_owned();
    idle_vector(model, start, Instant::now() + EMBED_TIMEOUT).await
}

/// Finding about a pair; `None` where an answer was not read.
fn difference(pair: &WholePair, bodies: [(&Option<Vec<u8>>, &Option<Given>); 2]) -> Option<Finding> {
    let (stable, candidate) = (&pair.stable, &pair.candidate);
    match (stable.observation.is_error, candidate.observation.is_error) {
        // Neither has answered.
        (true, true) => return None,
        (true, false) | (false, true) => return Some(Finding::Different),
        (false, false) => {}
    }
    if stable.status != candidate.status {
        return Some(Finding::Different);
    }
    if !(200..300).contains(&stable.status) {
        return Some(Finding::Same);
    }
    let json = |side: &'_ Side| side.answer.as_ref().and_then(|answer| answer.json.clone());
    let (stable_json, candidate_json) = (json(stable), json(candidate));
    let [one, other] = bodies;
    let stable = Body { bytes: one.0.as_deref()?, given: one.1.as_ref(), json: stable_json.as_ref() };
    let candidate = Body { bytes: other.0.as_deref()?, given: other.1.as_ref(), json: candidate_json.as_ref() };
    Some(compare(pair.kind, &stable, &candidate, pair.rules.tolerance))
}

/// Fault among several findings: one is enough, and without one all must be known.
fn any(findings: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let mut all = None;
    let mut is_unknown = false;
    for finding in findings {
        match finding {
            Some(true) => return Some(true),
            Some(false) => all = Some(false),
            None => is_unknown = true,
        }
    }
    all.filter(|_| !is_unknown)
}

/// True if a tool call of the answer cannot be carried out; `None` for an answer without one, and where that cannot be told.
fn is_call_broken(expected: &Expected, given: &Given, schemas: &mut Schemas) -> Option<bool> {
    any(given.0.values().flat_map(|choice| choice.calls.values()).map(|call| is_broken(expected, call, schemas)))
}

fn is_broken(expected: &Expected, call: &Call, schemas: &mut Schemas) -> Option<bool> {
    let declared = expected.tools.get(&call.name);
    if declared.is_none() && !expected.may_have_more {
        return Some(true);
    }
    let parsed;
    let arguments = match &call.arguments {
        Arguments::Free(_) => return Some(false),
        Arguments::Value(value) => value,
        Arguments::Text(text) => {
            let Ok(value) = serde_json::from_str::<Value>(text) else { return Some(true) };
            parsed = value;
            &parsed
        }
    };
    match declared.and_then(Option::as_ref) {
        Some(schema) => schemas.holds(schema, arguments).map(|holds| !holds),
        None => Some(!arguments.is_object()),
    }
}

/// True if the answer is not the JSON that was asked for; `None` where none was, for a refusal, for one that calls tools instead,
/// and where the schema says nothing.
fn is_form_broken(expected: &Expected, given: &Given, schemas: &mut Schemas) -> Option<bool> {
    if expected.form == Form::Text {
        return None;
    }
    let texts = given.0.values().filter(|choice| choice.calls.is_empty() && !choice.is_refusal);
    any(texts.map(|choice| is_not(&expected.form, choice, schemas)))
}

fn is_not(form: &Form, choice: &Choice, schemas: &mut Schemas) -> Option<bool> {
    let Ok(value) = serde_json::from_str::<Value>(&choice.text) else { return Some(true) };
    match form {
        Form::Text | Form::Json => Some(false),
        Form::Object => Some(!value.is_object()),
        Form::Schema(schema) => schemas.holds(schema, &value).map(|holds| !holds),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn expected() -> Expected {
        let schema = json!({"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}});
        let body = json!({
            "tools": [{"function": {"name": "weather", "parameters": schema}}, {"function": {"name": "now"}}],
            "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}
        });
        Expected::read(body.to_string().as_bytes()).unwrap()
    }

    fn calling(calls: &[(&str, &str)]) -> Given {
        let calls: Vec<Value> =
            calls.iter().map(|(name, arguments)| json!({"function": {"name": name, "arguments": arguments}})).collect();
        Given::read(json!({"choices": [{"message": {"tool_calls": calls}}]}).to_string().as_bytes()).unwrap()
    }

    fn saying(text: &str) -> Given {
        Given::read(json!({"choices": [{"message": {"content": text}}]}).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn broken_calls_are_found() {
        let (expected, mut schemas) = (expected(), Schemas::default());
        for (calls, broken) in [
            (&[][..], None),
            (&[("weather", "{\"city\": \"Bonn\"}")], Some(false)),
            (&[("weather", "{\"city\": 5}")], Some(true)),
            (&[("weather", "{}")], Some(true)),
            (&[("weather", "{\"city\": \"Bo")], Some(true)),
            (&[("weather", "")], Some(true)),
            (&[("wether", "{\"city\": \"Bonn\"}")], Some(true)),
            (&[("now", "{}")], Some(false)),
            (&[("now", "5")], Some(true)),
            (&[("now", "{}"), ("weather", "{}")], Some(true)),
        ] {
            assert_eq!(is_call_broken(&expected, &calling(calls), &mut schemas), broken, "{calls:?}");
        }
        let unknown = Expected::read(
            json!({"tools": [{"function": {"name": "f", "parameters": {"$ref": "https://a/b"}}}]})
                .to_string()
                .as_bytes(),
        )
        .unwrap();
        assert_eq!(is_call_broken(&unknown, &calling(&[("f", "{}")]), &mut schemas), None);
        assert_eq!(is_call_broken(&unknown, &calling(&[("f", "{")]), &mut schemas), Some(true));
        assert_eq!(is_call_broken(&unknown, &calling(&[("f", "{}"), ("g", "{}")]), &mut schemas), Some(true));
        let stored = Expected::read(br#"{"prompt": {"id": "p"}}"#).unwrap();
        assert_eq!(is_call_broken(&stored, &calling(&[("any", "{}")]), &mut schemas), Some(false));
    }

    #[test]
    fn broken_forms_are_found() {
        let (expected, mut schemas) = (expected(), Schemas::default());
        for (given, broken) in [
            (saying("{\"city\": \"Bonn\"}"), Some(false)),
            (saying(" {\"city\": \"Bonn\"}\n"), Some(false)),
            (saying("{\"city\": 5}"), Some(true)),
            (saying("{\"city\": \"Bo"), Some(true)),
            (saying("```json\n{\"city\": \"Bonn\"}\n```"), Some(true)),
            (saying(""), Some(true)),
            (calling(&[("now", "{}")]), None),
            (Given::read(br#"{"choices": [{"message": {"refusal": "No."}}]}"#).unwrap(), None),
        ] {
            assert_eq!(is_form_broken(&expected, &given, &mut schemas), broken, "{given:?}");
        }
        for (format, text, broken) in [
            (json!({"type": "json_object"}), "{}", Some(false)),
            (json!({"type": "json_object"}), "[]", Some(true)),
            (json!({"type": "text"}), "[", None),
        ] {
            let expected = Expected::read(json!({"response_format": format}).to_string().as_bytes()).unwrap();
            assert_eq!(is_form_broken(&expected, &saying(text), &mut schemas), broken, "{format} {text}");
        }
    }
}
