//! Signals: facts about the conversation of a request by which expressions of matches choose a route. The room reads bodies that are
//! held, and asks built-in models for embeddings and classifications; it knows no route, holds no body and refuses nothing. A value
//! that cannot be worked out whole and in time is absent. Inputs are the `signals` of the configuration.

mod conversation;
mod examples;
mod keywords;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use opentelemetry::Key;
use spillway_cel::{Asked, Expression, Fact, Prompt, Scalar, SignalValue};
use spillway_config::schema::{Signal as WrittenSignal, SignalText};
use spillway_filter::{
    Classifier, Classifiers, Embedder, Embedders, NotClassified, NotEmbedded, SharedStates, Vectors as TextVectors,
};

use self::conversation::{Conversation, Kept, NoText, Wants, has_conversation};
use self::examples::{Book, ExampleSet, similarities};
use self::keywords::Keywords;
use crate::commit_steps::CommitSteps;
use crate::off_loop::{BUILDS_VALUES, OffLoop};
use crate::protocol::Operation;
use crate::quality::says_again;
use crate::telemetry::{Metrics, SignalMetrics, SignalOutcome, Span, names};

/// Longest text whose language is detected, and longest text of the user that is compared with earlier ones, in bytes: some
/// milliseconds.
const MOST_COMPARED: usize = 16 << 10;

/// Signals of a configuration.
#[derive(Default)]
pub struct PromptSignals {
    signals: Box<[Signal]>,
    /// Index of the signal of each name, in the order of [`spillway_config::schema::Config::signal_names`].
    owners: Box<[usize]>,
    calls: Box<[Call]>,
    /// Keeps vectors over reloads.
    _book: Option<Arc<Book>>,
}

/// Signal of the configuration.
struct Signal {
    kind: Kind,
    reads: SignalText,
    most: usize,
    /// Place of its value; those of its labels follow.
    at: usize,
    metrics: Arc<SignalMetrics>,
    /// Attribute of spans with its value.
    attribute: Key,
    /// Attribute of spans with the label of the nearest example.
    label_attribute: Option<Key>,
}

enum Kind {
    Keywords(Keywords),
    /// Examples with their labels, compared by the answer of a call.
    Examples {
        set: Arc<ExampleSet>,
        labels: Box<[Box<str>]>,
        call: usize,
    },
    /// Labels of a classifier, by their indices in the answer of a call.
    Classifier {
        labels: Box<[usize]>,
        call: usize,
    },
}

/// Call of a model with a text, which several signals may share.
struct Call {
    model: Model,
    key: CallKey,
}

enum Model {
    Embedder(Arc<dyn Embedder>),
    Classifier(Arc<dyn Classifier>),
}

/// Identity of a call: equal where one answer serves both.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CallKey {
    model: Box<str>,
    is_classifier: bool,
    reads: SignalText,
    most: usize,
    timeout: Duration,
}

/// Answer of a model.
enum Answer {
    Vectors(Vec<Vec<f32>>),
    Probabilities(Vec<f32>),
}

/// Call of a model that has ended.
struct AskedModel {
    /// Index of the call.
    call: usize,
    answer: Result<Answer, SignalOutcome>,
    took: Duration,
}

/// Facts that the conditions of a request's candidates read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    facts: Asked,
    /// Indices of signals, each once.
    signals: Vec<usize>,
}

/// Request whose conversation is judged.
#[derive(Debug, Clone, Copy)]
pub struct JudgedRequest<'a> {
    /// Operation.
    pub operation: Operation,
    /// Body without its coding; `None` where there is none.
    pub body: Option<&'a [u8]>,
    /// Tokens of the prompt as limits estimate them.
    pub tokens: Option<u64>,
}

/// Facts of one request that were worked out.
#[derive(Debug, Default)]
pub struct JudgedPrompt {
    prompt: Prompt,
    known: Wanted,
    /// Indices of the labels of the nearest examples, with those of their signals.
    nearest: Vec<(usize, usize)>,
}

impl JudgedPrompt {
    /// Facts as expressions read them.
    pub fn prompt(&self) -> &Prompt {
        &self.prompt
    }
}

impl Wanted {
    fn is_empty(&self) -> bool {
        self.signals.is_empty() && self.facts == Asked::default()
    }

    /// Facts that are not known yet.
    fn beyond(&self, known: &Self) -> Self {
        let signals = self.signals.iter().copied().filter(|signal| !known.signals.contains(signal)).collect();
        Self { facts: self.facts.without(known.facts), signals }
    }

    fn add(&mut self, other: Self) {
        self.facts = self.facts.and(other.facts);
        self.signals.extend(other.signals);
    }
}

impl PromptSignals {
    /// Compiles the signals of a configuration. Vectors of examples are made when `commit_steps` run.
    ///
    /// # Errors
    /// Every signal whose model cannot do what it is named for, one a line.
    pub fn new<M: Embedders + Classifiers>(
        written: &BTreeMap<String, WrittenSignal>,
        models: &M,
        states: &SharedStates,
        metrics: &Metrics,
        commit_steps: &CommitSteps,
    ) -> Result<Self, Vec<String>> {
        if written.is_empty() {
            return Ok(Self::default());
        }
        let book = states.get_or_insert("signals", Book::default);
        let mut compiler = SignalCompiler { models, metrics, book: &book, calls: Vec::new(), at: 0 };
        let (mut signals, mut owners, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (name, written) in written {
            match compiler.signal(name, written) {
                Ok(signal) => {
                    if let Kind::Examples { set, .. } = &signal.kind {
                        let set = set.clone();
                        commit_steps.add(move || set.make());
                    }
                    owners.resize(compiler.at, signals.len());
                    signals.push(signal);
                }
                Err(why) => errors.push(format!("signals.{name}.{why}")),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let calls = compiler.calls.into();
        Ok(Self { signals: signals.into(), owners: owners.into(), calls, _book: Some(book) })
    }

    /// True if requests of the operation have a conversation.
    pub fn has_conversation(operation: Operation) -> bool {
        has_conversation(operation)
    }

    /// Facts that these expressions read.
    pub fn wanted<'e>(&self, expressions: impl Iterator<Item = &'e Expression>) -> Wanted {
        let mut wanted = Wanted::default();
        for expression in expressions {
            wanted.facts = wanted.facts.and(expression.asked().of_prompt());
            for at in expression.signals() {
                if let Some(signal) = self.owners.get(at).filter(|signal| !wanted.signals.contains(signal)) {
                    wanted.signals.push(*signal);
                }
            }
        }
        wanted
    }

    /// Works out the facts that are wanted and not known yet.
    pub async fn judge(
        &self,
        wanted: &Wanted,
        request: JudgedRequest<'_>,
        off_loop: &OffLoop,
        judged: &mut JudgedPrompt,
    ) {
        let wanted = wanted.beyond(&judged.known);
        if wanted.is_empty() {
            return;
        }
        if judged.prompt.signals.len() != self.owners.len() {
            judged.prompt.signals = vec![None; self.owners.len()].into();
        }
        let wants = self.wants(&wanted);
        let conversation = match request.body.filter(|body| !body.is_empty()) {
            Some(body) => {
                let read = off_loop.run(body.len(), || Conversation::read(request.operation, body, wants)).await;
                read.ok().flatten()
            }
            None => None,
        };
        let kept = Kept::default();
        if let Some(conversation) = &conversation {
            self.facts(&wanted, conversation, request.tokens, off_loop, &mut judged.prompt).await;
        }
        let text = |reads: SignalText| match (&conversation, reads) {
            (None, _) => &kept,
            (Some(conversation), SignalText::LastUser) => &conversation.last,
            (Some(conversation), SignalText::User) => &conversation.user,
            (Some(conversation), SignalText::Conversation) => &conversation.all,
        };
        let answers = self.ask(&wanted, text).await;
        for index in &wanted.signals {
            let Some(signal) = self.signals.get(*index) else { continue };
            let (outcome, took) = match signal.kind.call() {
                None => (signal.search(text(signal.reads), off_loop, &mut judged.prompt).await, None),
                Some(call) => {
                    let Some(asked) = answers.iter().find(|asked| asked.call == call) else { continue };
                    let answered = Instant::now();
                    let outcome = match &asked.answer {
                        Ok(answer) => {
                            let left = self.timeout(call).saturating_sub(asked.took);
                            let (outcome, label) = signal.conclude(answer, left, &mut judged.prompt).await;
                            judged.nearest.extend(label.map(|label| (*index, label)));
                            outcome
                        }
                        Err(outcome) => *outcome,
                    };
                    (outcome, Some(asked.took + answered.elapsed()))
                }
            };
            let is_asked = !matches!(outcome, SignalOutcome::NoText | SignalOutcome::TooLong);
            signal.metrics.count(outcome, took.filter(|_| is_asked));
        }
        judged.known.add(wanted);
    }

    /// Texts that the wanted facts read.
    fn wants(&self, wanted: &Wanted) -> Wants {
        let mut wants = Wants::default();
        if wanted.facts.reads(Fact::Language) {
            wants.last = MOST_COMPARED;
        }
        if wanted.facts.reads(Fact::Reasked) {
            wants.earlier = MOST_COMPARED;
        }
        for signal in wanted.signals.iter().filter_map(|signal| self.signals.get(*signal)) {
            let most = match signal.reads {
                SignalText::LastUser => &mut wants.last,
                SignalText::User => &mut wants.user,
                SignalText::Conversation => &mut wants.all,
            };
            *most = signal.most.max(*most);
        }
        wants
    }

    /// Works out the facts that need no signal.
    async fn facts(
        &self,
        wanted: &Wanted,
        conversation: &Conversation,
        tokens: Option<u64>,
        off_loop: &OffLoop,
        prompt: &mut Prompt,
    ) {
        let reads = |fact: Fact| wanted.facts.reads(fact);
        if reads(Fact::Characters) {
            prompt.characters = Some(conversation.characters);
        }
        if reads(Fact::EstimatedTokens) {
            prompt.tokens = tokens;
        }
        if reads(Fact::Turns) {
            prompt.turns = Some(conversation.turns);
        }
        if reads(Fact::ToolLoop) {
            prompt.tool_loop = Some(conversation.is_tool_loop);
        }
        if reads(Fact::Language) {
            let length = MOST_COMPARED.saturating_mul(BUILDS_VALUES);
            prompt.language = off_loop.run(length, || language(conversation)).await.ok().flatten();
        }
        if reads(Fact::Reasked) {
            let length = conversation.earlier.len().saturating_add(1).saturating_mul(MOST_COMPARED);
            prompt.reasked = off_loop.run(length, || reasked(conversation)).await.ok().flatten();
        }
    }

    /// Asks the models of the wanted signals side by side.
    async fn ask<'t>(&self, wanted: &Wanted, text: impl Fn(SignalText) -> &'t Kept) -> Vec<AskedModel> {
        let mut wanted: Vec<usize> =
            wanted.signals.iter().filter_map(|signal| self.signals.get(*signal)?.kind.call()).collect();
        if wanted.is_empty() {
            return Vec::new();
        }
        wanted.sort_unstable();
        wanted.dedup();
        let asked = wanted.into_iter().filter_map(|index| Some((index, self.calls.get(index)?)));
        join_all(asked.map(|(index, call)| {
            let text = text(call.key.reads).read(call.key.most).map(Cow::into_owned);
            async move {
                let began = Instant::now();
                let answer = match text {
                    Ok(text) => call.ask(text).await,
                    Err(NoText::Absent) => Err(SignalOutcome::NoText),
                    Err(NoText::TooLong) => Err(SignalOutcome::TooLong),
                };
                AskedModel { call: index, answer, took: began.elapsed() }
            }
        }))
        .await
    }

    fn timeout(&self, call: usize) -> Duration {
        self.calls.get(call).map(|call| call.key.timeout).unwrap_or_default()
    }

    /// Shows the facts of a request on its span: numbers and labels, never a text.
    pub fn show(&self, judged: &JudgedPrompt, span: &mut Span) {
        if !span.is_recording() {
            return;
        }
        let prompt = &judged.prompt;
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        if let Some(language) = prompt.language {
            span.set(names::SPILLWAY_PROMPT_LANGUAGE, language);
        }
        let numbers = [
            (names::SPILLWAY_PROMPT_CHARACTERS, prompt.characters),
            (names::SPILLWAY_PROMPT_TOKENS, prompt.tokens),
            (names::SPILLWAY_PROMPT_TURNS, prompt.turns),
        ];
        for (name, value) in numbers {
            if let Some(value) = value {
                span.set(name, number(value));
            }
        }
        for (name, value) in
            [(names::SPILLWAY_PROMPT_REASKED, prompt.reasked), (names::SPILLWAY_PROMPT_TOOL_LOOP, prompt.tool_loop)]
        {
            if let Some(value) = value {
                span.set(name, value);
            }
        }
        let mut fields = Vec::new();
        for index in &judged.known.signals {
            let Some(signal) = self.signals.get(*index) else { continue };
            let Some(Some(value)) = prompt.signals.get(signal.at) else { continue };
            let value = match value {
                SignalValue::Bool(holds) => Scalar::Bool(*holds),
                SignalValue::Double(n) => Scalar::Double(*n),
            };
            fields.push((&signal.attribute, value));
            let nearest = judged.nearest.iter().find(|(of, _)| of == index);
            if let (Some((_, label)), Some(attribute), Kind::Examples { labels, .. }) =
                (nearest, &signal.label_attribute, &signal.kind)
                && let Some(label) = labels.get(*label)
            {
                fields.push((attribute, Scalar::Text(label.to_string())));
            }
        }
        if !fields.is_empty() {
            span.set_fields(fields);
        }
    }
}

/// Language of the last text of the user, where it is clear.
fn language(conversation: &Conversation) -> Option<&'static str> {
    let text = conversation.last.read(MOST_COMPARED).ok()?;
    let found = whatlang::detect(&text).filter(whatlang::Info::is_reliable);
    found.map(|info| info.lang().code())
}

/// All facts of a request but its signals; for tools, which have no other request to serve.
pub fn read_prompt(request: JudgedRequest<'_>) -> Prompt {
    let wants = Wants { last: MOST_COMPARED, earlier: MOST_COMPARED, ..Wants::default() };
    let body = request.body.unwrap_or_default();
    let Some(conversation) = Conversation::read(request.operation, body, wants) else { return Prompt::default() };
    Prompt {
        language: language(&conversation),
        characters: Some(conversation.characters),
        tokens: request.tokens,
        turns: Some(conversation.turns),
        reasked: reasked(&conversation),
        tool_loop: Some(conversation.is_tool_loop),
        signals: Box::default(),
    }
}

/// True if the last text of the user says what an earlier one said; `None` where a text is too long to be compared.
fn reasked(conversation: &Conversation) -> Option<bool> {
    let last = match conversation.last.read(MOST_COMPARED) {
        Ok(last) => last,
        Err(NoText::Absent) => return Some(false),
        Err(NoText::TooLong) => return None,
    };
    let mut is_known = true;
    for earlier in &conversation.earlier {
        match earlier.read(MOST_COMPARED) {
            Ok(earlier) if says_again(&last, &earlier) => return Some(true),
            Err(NoText::TooLong) => is_known = false,
            Ok(_) | Err(NoText::Absent) => {}
        }
    }
    is_known.then_some(false)
}

impl Kind {
    /// Index of the call of a model that the signal needs.
    fn call(&self) -> Option<usize> {
        match self {
            Self::Keywords(_) => None,
            Self::Examples { call, .. } | Self::Classifier { call, .. } => Some(*call),
        }
    }
}

impl Signal {
    fn set(&self, prompt: &mut Prompt, offset: usize, value: SignalValue) {
        if let Some(place) = prompt.signals.get_mut(self.at + offset) {
            *place = Some(value);
        }
    }

    /// Looks for keywords in a text.
    async fn search(&self, text: &Kept, off_loop: &OffLoop, prompt: &mut Prompt) -> SignalOutcome {
        let Kind::Keywords(keywords) = &self.kind else { return SignalOutcome::Failed };
        let text = match text.parts(self.most) {
            Ok(text) => text,
            Err(NoText::Absent) => return SignalOutcome::NoText,
            Err(NoText::TooLong) => return SignalOutcome::TooLong,
        };
        match off_loop.run(text.len().saturating_mul(BUILDS_VALUES), || keywords.occur_in(text)).await {
            Ok(holds) => {
                self.set(prompt, 0, SignalValue::Bool(holds));
                SignalOutcome::Computed
            }
            Err(_) => SignalOutcome::Late,
        }
    }

    /// Sets the value that follows from the answer of a model; the vectors of the examples may still be made for so long. Returns
    /// the index of the label of the nearest example too.
    async fn conclude(&self, answer: &Answer, left: Duration, prompt: &mut Prompt) -> (SignalOutcome, Option<usize>) {
        match (&self.kind, answer) {
            (Kind::Examples { set, labels, .. }, Answer::Vectors(vectors)) => {
                let examples = match tokio::time::timeout(left, set.vectors()).await {
                    Ok(Some(examples)) => examples,
                    Ok(None) => return (SignalOutcome::Failed, None),
                    Err(_) => return (SignalOutcome::Late, None),
                };
                let found = similarities(vectors, &examples, labels.len().max(1));
                let known = (0..).zip(&found).filter_map(|(label, value)| Some((label, (*value)?)));
                let Some((nearest, greatest)) = known.max_by(|a, b| a.1.total_cmp(&b.1)) else {
                    return (SignalOutcome::Failed, None);
                };
                self.set(prompt, 0, SignalValue::Double(greatest));
                if labels.is_empty() {
                    return (SignalOutcome::Computed, None);
                }
                for (label, value) in (1..).zip(found) {
                    if let Some(value) = value {
                        self.set(prompt, label, SignalValue::Double(value));
                    }
                }
                (SignalOutcome::Computed, Some(nearest))
            }
            (Kind::Classifier { labels, .. }, Answer::Probabilities(probabilities)) => {
                let of = |label: &usize| probabilities.get(*label).map(|p| f64::from(*p));
                match labels.iter().map(of).sum::<Option<f64>>() {
                    Some(sum) => {
                        self.set(prompt, 0, SignalValue::Double(sum.min(1.0)));
                        (SignalOutcome::Computed, None)
                    }
                    None => (SignalOutcome::Failed, None),
                }
            }
            _ => (SignalOutcome::Failed, None),
        }
    }
}

impl Call {
    async fn ask(&self, text: String) -> Result<Answer, SignalOutcome> {
        match &self.model {
            Model::Embedder(embedder) => {
                let vectors: TextVectors = embedder.embed_whole(text, self.key.timeout).await;
                vectors.map(Answer::Vectors).map_err(|why| match why {
                    NotEmbedded::TooLate => SignalOutcome::Late,
                    NotEmbedded::Failed => SignalOutcome::Failed,
                })
            }
            Model::Classifier(classifier) => {
                let judged = classifier.classify(vec![text], self.key.timeout).await;
                judged.map(Answer::Probabilities).map_err(|why| match why {
                    NotClassified::TooLate => SignalOutcome::Late,
                    NotClassified::TooMany | NotClassified::Failed => SignalOutcome::Failed,
                })
            }
        }
    }
}

/// Compiler of signals, in the order of their names.
struct SignalCompiler<'c, M> {
    models: &'c M,
    metrics: &'c Metrics,
    book: &'c Arc<Book>,
    calls: Vec<Call>,
    /// Places of values that are taken.
    at: usize,
}

impl<M: Embedders + Classifiers> SignalCompiler<'_, M> {
    fn signal(&mut self, name: &str, written: &WrittenSignal) -> Result<Signal, String> {
        let most = written.max_text.unwrap_or(WrittenSignal::DEFAULT_MAX_TEXT).0;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let metrics = self.metrics.signal(name);
        let at = self.at;
        let key = |model: &str, is_classifier: bool| CallKey {
            model: model.into(),
            is_classifier,
            reads: written.reads,
            most,
            timeout: written.timeout.unwrap_or(WrittenSignal::DEFAULT_TIMEOUT).0,
        };
        let mut labels = 0;
        let kind = if let Some(keywords) = &written.keywords {
            let least = written.at_least.unwrap_or(WrittenSignal::DEFAULT_AT_LEAST).get();
            let keywords = Keywords::new(keywords, usize::try_from(least).unwrap_or(usize::MAX));
            Kind::Keywords(keywords.map_err(|e| format!("keywords: {e}"))?)
        } else if let Some(examples) = &written.examples {
            let model = written.model.as_deref().unwrap_or_default();
            let embedder = self.models.embedder(model).map_err(|why| format!("model: {why}"))?;
            let names: Box<[Box<str>]> = examples.labels().map(Box::from).collect();
            labels = names.len();
            let place = |label: Option<&str>| names.iter().position(|name| Some(&**name) == label).unwrap_or(0);
            let texts = examples.texts().map(|(label, text)| (place(label), text));
            let set = ExampleSet::new(name, embedder.clone(), texts, self.book.clone(), metrics.clone());
            let call = self.call(key(model, false), Model::Embedder(embedder));
            Kind::Examples { set: Arc::new(set), labels: names, call }
        } else if let Some(written) = &written.classifier {
            let classifier =
                self.models.classifier(&written.model).map_err(|why| format!("classifier.model: {why}"))?;
            let known = classifier.labels();
            let place = |label: &String| {
                let shown = || known.iter().take(16).map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
                known.iter().position(|known| known == label).ok_or_else(|| {
                    let model = &written.model;
                    format!("classifier.labels: `{model}` has no label `{label}`; expected some of {}", shown())
                })
            };
            let labels = written.labels.iter().map(place).collect::<Result<_, _>>()?;
            let call = self.call(key(&written.model, true), Model::Classifier(classifier));
            Kind::Classifier { labels, call }
        } else {
            return Err("keywords: expected one of `keywords`, `examples` and `classifier`".to_owned());
        };
        self.at += 1 + labels;
        let attribute = |pattern: &str| Key::from(pattern.replace("NAME", name));
        Ok(Signal {
            kind,
            reads: written.reads,
            most,
            at,
            metrics,
            attribute: attribute(names::SPILLWAY_SIGNAL),
            label_attribute: (labels > 0).then(|| attribute(names::SPILLWAY_SIGNAL_LABEL)),
        })
    }

    /// Index of a call, which signals of the same key share.
    fn call(&mut self, key: CallKey, model: Model) -> usize {
        if let Some(known) = self.calls.iter().position(|call| call.key == key) {
            return known;
        }
        self.calls.push(Call { model, key });
        self.calls.len() - 1
    }
}
