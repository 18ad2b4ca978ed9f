//! `guard`: what must not be in prompts or answers, by patterns: replaced, masked for the model alone, or refused; and by a
//! classifier, for which they are refused.

mod classifier;
mod judging;
mod search;
mod shadow;
mod strings;
mod texts;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use spillway_config::values::Size;
use spillway_filter::{
    AnswerHead, BuildContext, CounterSpec, EventChange, FieldError, Filter, FilterFactory, Flow, Processor, Refusal,
    RequestView, ResponseEvent, Rewrite, Rewriter, Waited, define,
};
use spillway_patterns::{Detector, Kind};

use crate::condition::Condition;
use crate::deltas::{self, Delta, Ended};
use crate::json_edit::{self, Pointer, quoted};
use classifier::{Judge, Judged, WrittenClassifier};
use judging::Judging;
use search::{Flowing, Masked, Pattern, Patterns, Refused};
use strings::{change_strings, is_json};
use texts::Texts;

/// Code of a refusal by a guard.
const CODE: &str = "content_filter";
/// Most patterns of a guard.
const MAX_PATTERNS: usize = 64;
/// Longest name of a pattern, in bytes.
const MAX_NAME: usize = 32;
/// Bounds of `window`, in bytes.
const WINDOW: std::ops::RangeInclusive<u64> = 64..=65_536;
/// Most texts of one stream at the same time, such as choices and arguments of calls.
const MAX_CHANNELS: usize = 256;
/// Members of a request by which the answer shows its tokens one by one, where no pattern finds anything.
/// With true, 0 asks for nothing.
const TOKEN_MEMBERS: [(&str, bool); 8] = [
    ("logprobs", false),
    ("top_logprobs", true),
    ("prompt_logprobs", false),
    ("n_probs", true),
    ("return_logprob", false),
    ("return_tokens", false),
    ("return_token_ids", false),
    ("return_tokens_as_token_ids", false),
];
/// Members of a request that may hold a text as numbers of tokens, in which nothing is found.
const PROMPT_MEMBERS: [&str; 5] = ["prompt", "input", "context", "input_ids", "prompt_token_ids"];
/// Longest event that is kept to carry the end of its text, in bytes. The text of a longer one is not held back.
const MAX_TEMPLATE: usize = 16 << 10;

/// Things that were found and replaced, or for which a request or answer was refused.
const FINDINGS: CounterSpec = CounterSpec {
    name: "spillway_filter_guard_findings",
    help: "Things that a guard found in prompts and answers",
    labels: &["pattern", "at", "action"],
};
/// Things that were found in shadow mode.
const SHADOW_FINDINGS: CounterSpec = CounterSpec {
    name: "spillway_filter_guard_shadow_findings",
    help: "Things that a guard in shadow mode found in prompts and answers, with the action that it did not take",
    labels: &["pattern", "at", "action"],
};

/// Looks for patterns in the texts of requests and answers, and has a classifier judge them. Every string of a body in JSON is a text, but for the name of the
/// model. A body in another form, such as a form or a message of gRPC, is refused where a pattern finds something in it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Guard {
    /// Patterns to look for, at most 64.
    #[serde(default)]
    patterns: Vec<WrittenPattern>,
    /// Built-in model that judges texts, behind the patterns: for prompt injection, toxicity, topics. It may stand alone.
    #[serde(default)]
    classifier: Option<WrittenClassifier>,
    /// Where: in `prompt`s, in `answer`s, or in both. What is masked in prompts comes back in answers either way.
    #[serde(default = "both")]
    on: BTreeSet<Side>,
    /// Bytes of a streamed text that are held back at most, from 64 to 64 KiB. A thing that is longer is not found in a stream.
    /// Where all patterns are of a `kind`, a text waits for the end of its last word alone. A classifier judges a stream whenever
    /// that much text has come, and at the ends of texts.
    #[serde(default = "window")]
    window: Size,
    /// Finds and counts only: nothing is changed or refused. The first finding of each pattern is logged after each edit, without
    /// the text. An answer that is no stream is searched up to 1 MiB.
    #[serde(default)]
    shadow: bool,
    /// Condition in CEL on the request. Where it is false, neither the request nor its answer is looked at; where it has no value,
    /// both are. A condition on what callers choose is one that they can evade. All requests when left out.
    #[serde(default)]
    when: Option<String>,
}

fn both() -> BTreeSet<Side> {
    BTreeSet::from([Side::Prompt, Side::Answer])
}

fn window() -> Size {
    Size(512)
}

/// Text in which a guard looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Side {
    /// Requests.
    Prompt,
    /// Answers with a status of success.
    Answer,
}

impl Side {
    /// Value of a label.
    fn as_str(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Answer => "answer",
        }
    }

    /// Name in messages.
    fn place(self) -> &'static str {
        match self {
            Self::Prompt => "request",
            Self::Answer => "answer",
        }
    }
}

/// Pattern to look for.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenPattern {
    /// Name in refusals and in brackets in place of what was found: letters, digits, `-` and `_`. That of `kind` when left out.
    #[serde(default)]
    name: Option<String>,
    /// Kind that has a form of its own and, for cards and accounts, check digits.
    #[serde(default)]
    kind: Option<Kind>,
    /// Regular expression in the syntax of RE2 (the crate `regex`), in place of `kind`. It must not find the empty text.
    #[serde(default)]
    regex: Option<String>,
    /// Treatment of what it finds.
    #[serde(default)]
    action: Action,
}

/// Treatment of a thing that was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum Action {
    /// The name of the pattern stands in its place, in brackets.
    #[default]
    Redact,
    /// In a prompt it is replaced by a name, such as `[card-1]`; where the answer has the name, the caller reads the thing
    /// again. In answers as `redact`.
    Mask,
    /// The request, or its answer, is refused (400 `content_filter`).
    Refuse,
}

impl Action {
    /// Value of a label.
    fn as_str(self) -> &'static str {
        match self {
            Self::Redact => "redact",
            Self::Mask => "mask",
            Self::Refuse => "refuse",
        }
    }
}

fn compile(written: &Guard) -> Result<Compiled, Vec<FieldError>> {
    let (mut errors, mut all, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
    let is_useless = written.patterns.is_empty() && written.classifier.is_none();
    if is_useless || written.patterns.len() > MAX_PATTERNS {
        let why = format!("found {} patterns; expected 1 to {MAX_PATTERNS}, or a `classifier`", written.patterns.len());
        errors.push(FieldError::at(["patterns"], why));
    }
    for (n, pattern) in written.patterns.iter().enumerate() {
        let n = n.to_string();
        let mut fault = |key: &str, why: String| errors.push(FieldError::at(["patterns", &n, key], why));
        let detector = match (pattern.kind, &pattern.regex) {
            (Some(kind), None) => Detector::of(kind),
            (None, Some(expression)) => match Detector::of_expression(expression) {
                Ok(detector) => {
                    if regex::Regex::new(expression).is_ok_and(|regex| regex.is_match("")) {
                        fault(
                            "regex",
                            "it finds the empty text, which is everywhere; expected at least one character".into(),
                        );
                    }
                    detector
                }
                Err(why) => {
                    fault("regex", why);
                    continue;
                }
            },
            _ => {
                fault("kind", "expected either `kind` or `regex`".into());
                continue;
            }
        };
        let name = pattern.name.as_deref().or(pattern.kind.map(Kind::name)).unwrap_or_default();
        let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if name.is_empty() || name.len() > MAX_NAME || !is_name(name) {
            let why = format!("found `{name}`; expected 1 to {MAX_NAME} letters, digits, `-` and `_`");
            fault("name", why);
        } else if !names.insert(name.to_owned()) {
            fault("name", format!("found `{name}` again; expected a name of its own"));
        }
        let (in_prompts, in_answers) = Default::default();
        all.push(Pattern { name: name.to_owned(), detector, action: pattern.action, in_prompts, in_answers });
    }
    if let Some(classifier) = &written.classifier {
        classifier.check(&mut errors);
    }
    if written.on.is_empty() {
        errors.push(FieldError::at(["on"], "found nothing; expected `prompt`, `answer` or both"));
    }
    if !WINDOW.contains(&written.window.0) {
        let why = format!("found {} bytes; expected {} to {}", written.window.0, WINDOW.start(), WINDOW.end());
        errors.push(FieldError::at(["window"], why));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let window = usize::try_from(written.window.0).unwrap_or(usize::MAX);
    let on = |side| written.on.contains(&side);
    let patterns = Patterns { all, window, shadow: None };
    Ok(Compiled { patterns, prompts: on(Side::Prompt), answers: on(Side::Answer) })
}

/// Guard without its counters.
struct Compiled {
    patterns: Patterns,
    prompts: bool,
    answers: bool,
}

fn build(written: &Guard, cx: &BuildContext<'_>) -> Result<Guarded, FieldError> {
    let Compiled { mut patterns, prompts, answers } = compile(written).map_err(|mut errors| errors.swap_remove(0))?;
    let spec = if written.shadow { SHADOW_FINDINGS } else { FINDINGS };
    for pattern in &mut patterns.all {
        let counter = |side: Side| cx.counter(spec, &[&pattern.name, side.as_str(), pattern.action.as_str()]);
        // What is masked comes back in answers as it was counted in prompts.
        if prompts {
            pattern.in_prompts.found = counter(Side::Prompt)?;
        }
        if answers {
            pattern.in_answers.found = counter(Side::Answer)?;
        }
        if written.shadow {
            // Findings are dropped, and none ends the search.
            pattern.action = Action::Redact;
        }
    }
    patterns.shadow = written.shadow.then(|| cx.route.into());
    let when = Condition::new(written.when.as_ref())?;
    let judge = written.classifier.as_ref().map(|own| Judge::new(own, [prompts, answers], written.shadow, cx));
    let judge = judge.transpose()?.map(Arc::new);
    Ok(Guarded { patterns: Arc::new(patterns), judge, prompts, answers, when })
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    let check = |written: &Guard| {
        let mut errors = compile(written).err().unwrap_or_default();
        errors.extend(Condition::new(written.when.as_ref()).err());
        errors
    };
    define(
        "guard",
        check,
        |written: Guard, cx: &BuildContext<'_>| Ok(Arc::new(build(&written, cx)?) as Arc<dyn Filter>),
    )
}

/// Filter with its patterns.
struct Guarded {
    patterns: Arc<Patterns>,
    judge: Option<Arc<Judge>>,
    prompts: bool,
    answers: bool,
    when: Condition,
}

/// Refusal that names the pattern and shows nothing of what it found.
fn refused(name: &str, where_: &str) -> Box<Refusal> {
    let message = format!("a guard of this route has found `{name}` in the {where_}");
    Box::new(Refusal::invalid(CODE, message))
}

impl Guarded {
    /// Body of the request as servers read it; `None` where it stays.
    fn request(&self, body: &[u8], masked: &mut Masked) -> Result<Option<Bytes>, Box<Refusal>> {
        let text = String::from_utf8_lossy(body);
        let in_request = |Refused(name): Refused| refused(&name, "request");
        let begins_as_json = text.trim_start_matches('\u{feff}').trim_start().starts_with(['{', '[']);
        if matches!(text, Cow::Borrowed(_)) && begins_as_json && !is_json(&text) {
            // Some servers read what JSON is not, with its escapes.
            let message =
                "a guard of this route reads the body, which begins as JSON and is none: send JSON (RFC 8259)";
            return Err(Box::new(Refusal::invalid("unsupported_body", message)));
        }
        if !matches!(text, Cow::Borrowed(_)) || !is_json(&text) {
            let found = self.patterns.first_in(&text, Side::Prompt);
            return found.map_or(Ok(None), |name| Err(refused(name, "request")));
        }
        let changed = change_strings(&text, |text| self.patterns.of_request(text, masked)).map_err(in_request)?;
        Ok(changed.map(Bytes::from))
    }
}

/// Member of a request by which its answer shows tokens one by one.
fn shows_tokens(body: &[u8]) -> Option<&'static str> {
    let mut asking = None;
    strings::each_member(body, |name, value| {
        let asks = match TOKEN_MEMBERS.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) {
            Some((known, zero_is_none)) => {
                let is_none = matches!(value, "null" | "false") || (zero_is_none && value == "0");
                (!is_none).then_some(known)
            }
            None if name.eq_ignore_ascii_case("include") => value.contains("logprobs").then_some("include"),
            None => (name.eq_ignore_ascii_case("parameters") && value.contains("details")).then_some("parameters"),
        };
        asking = asking.or(asks);
    });
    asking
}

/// Member of a request that holds a text as numbers of tokens.
fn holds_tokens(body: &[u8]) -> Option<&'static str> {
    let mut holding = None;
    strings::each_member(body, |name, value| {
        let known = PROMPT_MEMBERS.into_iter().find(|known| known.eq_ignore_ascii_case(name));
        let first = value.trim_start_matches(|c: char| c == '[' || c.is_whitespace());
        let is_list_of_numbers = value.starts_with('[') && first.starts_with(|c: char| c.is_ascii_digit());
        holding = holding.or(known.filter(|_| is_list_of_numbers));
    });
    holding
}

impl Filter for Guarded {
    fn needs_body(&self) -> bool {
        true
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        if !self.when.holds(x, true) {
            return Flow::Continue;
        }
        let body = x.body.unwrap_or_default();
        if self.patterns.shadow.is_some() {
            return self.look(body);
        }
        if self.answers
            && let Some(member) = shows_tokens(body)
        {
            let message = format!(
                "a guard of this route reads answers, and does not see their tokens one by one: leave out `{member}`"
            );
            return Flow::Refuse(Box::new(Refusal::invalid("unsupported_parameter", message).param(member)));
        }
        if self.prompts
            && let Some(member) = holds_tokens(body)
        {
            let message =
                format!("a guard of this route reads prompts, and finds nothing in tokens: send `{member}` as text");
            return Flow::Refuse(Box::new(Refusal::invalid("unsupported_parameter", message).param(member)));
        }
        let mut masked = Masked::default();
        let changed = if self.prompts && !body.is_empty() { self.request(body, &mut masked) } else { Ok(None) };
        let changed = match changed {
            Ok(changed) => changed,
            Err(refusal) => return Flow::Refuse(refusal),
        };
        let patterns = if self.answers {
            self.patterns.clone()
        } else {
            // Names of masked things come back, and nothing is looked for.
            Arc::new(Patterns { all: Vec::new(), window: self.patterns.window, shadow: None })
        };
        let rewriter = (!patterns.all.is_empty() || !masked.is_empty())
            .then(|| Box::new(AnswerGuard::new(patterns, masked)) as Box<dyn Rewriter>);
        let window = self.patterns.window;
        let processor = self.judge.as_ref().filter(|_| self.answers);
        let processor = processor.map(|judge| Box::new(Judging::new(judge.clone(), window)) as Box<dyn Processor>);
        let judged = self.judge.as_ref().filter(|_| self.prompts && !body.is_empty()).map(|judge| {
            let text = String::from_utf8_lossy(changed.as_deref().unwrap_or(body));
            (judge.clone(), Texts::of(&text, is_json(&text)))
        });
        let rewrite = Rewrite { body: changed, rewriter, processor, ..Rewrite::default() };
        match judged {
            Some((judge, texts)) => Flow::Wait(Box::pin(judged_request(judge, texts, rewrite))),
            None if rewrite.is_empty() => Flow::Continue,
            None => Flow::Rewrite(Box::new(rewrite)),
        }
    }
}

/// Has the classifier judge the texts of a request, which goes on as `rewrite` says where it may.
async fn judged_request(judge: Arc<Judge>, texts: Texts, rewrite: Rewrite) -> Waited {
    let failure = |why: spillway_filter::NotClassified| why.as_str().to_owned();
    match judge.whole(texts, Side::Prompt).await {
        Judged::Passed => Waited { rewrite, ..Waited::default() },
        Judged::Unjudged(why) => Waited { rewrite, failure: Some(failure(why)), ..Waited::default() },
        Judged::Refused(refusal, why) => {
            Waited { refusal: Some(refusal), failure: why.map(failure), ..Waited::default() }
        }
    }
}

/// Guard of one answer.
struct AnswerGuard {
    patterns: Arc<Patterns>,
    masked: Masked,
    /// Texts of a stream, in the order in which they began.
    channels: Vec<Channel>,
}

/// A text of a stream.
struct Channel {
    name: String,
    group: String,
    flowing: Flowing,
    /// Last event with a part of it, which carries what is left at its end.
    template: Bytes,
    is_line: bool,
    pointer: Pointer,
}

impl Channel {
    /// Event with what is held back; `None` where nothing is. Refused is also an event that cannot carry it.
    fn rest(&mut self, patterns: &Patterns, masked: &Masked) -> Result<Option<Bytes>, Refused> {
        if self.flowing.is_empty() {
            return Ok(None);
        }
        let rest = self.flowing.push("", true, patterns, masked)?;
        let event = ResponseEvent { bytes: &self.template, is_whole: true, is_line: self.is_line };
        let data = event.data().unwrap_or_default();
        let set =
            std::str::from_utf8(&data).ok().and_then(|data| json_edit::set(data, &self.pointer, &quoted(&rest)).ok());
        set.map(|data| Some(event.with_data(data.as_bytes()))).ok_or_else(unread)
    }
}

/// Refusal of an event that cannot be read or written, such as one with a name that stands twice.
fn unread() -> Refused {
    Refused("what it cannot read".to_owned())
}

/// True if an answer of this status and type is searched.
fn is_searched(status: StatusCode, content_type: Option<&HeaderValue>) -> bool {
    let kind = content_type.map_or(&b""[..], HeaderValue::as_bytes);
    let begins = |name: &str| kind.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()));
    let is_sound_or_image = ["audio/", "image/", "video/", "font/", "application/grpc"].into_iter().any(begins);
    status.is_success() && !is_sound_or_image
}

impl AnswerGuard {
    fn new(patterns: Arc<Patterns>, masked: Masked) -> Self {
        Self { patterns, masked, channels: Vec::new() }
    }

    /// Writes the ends of texts that have ended.
    fn flush(&mut self, ended: &Ended, out: &mut Vec<u8>) -> Result<(), Refused> {
        let (patterns, masked) = (&self.patterns, &self.masked);
        let mut faults = Ok(());
        self.channels.retain_mut(|channel| {
            if !ended.has(&channel.group) {
                return true;
            }
            match channel.rest(patterns, masked) {
                Ok(rest) => out.extend_from_slice(&rest.unwrap_or_default()),
                Err(refused) => faults = Err(refused),
            }
            false
        });
        faults
    }

    /// Data of an event with what may pass of its texts.
    fn guarded(&mut self, event: &ResponseEvent<'_>, data: &str, out: &mut Vec<u8>) -> Result<String, Refused> {
        let value: Value = serde_json::from_str(data).map_err(|_| unread())?;
        let (deltas, ended) = deltas::read(&value);
        let (mut text, mut read) = (data.to_owned(), Vec::new());
        for delta in &deltas {
            // A text of another kind in the same part of the answer begins behind the one before.
            let others = |channel: &Channel| channel.group == delta.group && channel.name != delta.channel;
            if !delta.text.is_empty() && self.channels.iter().any(others) {
                let (before, own): (Vec<_>, Vec<_>) = std::mem::take(&mut self.channels).into_iter().partition(others);
                self.channels = own;
                for mut channel in before {
                    out.extend_from_slice(&channel.rest(&self.patterns, &self.masked)?.unwrap_or_default());
                }
            }
            let passed = self.pass(event, delta, ended.has(&delta.group))?;
            if passed != delta.text {
                text = json_edit::set(&text, &delta.pointer, &quoted(&passed)).map_err(|_| unread())?;
            }
            read.push(passed);
        }
        // Texts that end with this event, and of which it has no part.
        self.flush(&ended, out)?;
        // Whole texts beside the parts, such as arguments of calls and those that the last events of a response repeat.
        let is_part = |text: &str| read.iter().any(|read| read == text);
        let whole =
            change_strings(
                &text,
                |text| {
                    if is_part(text) { Ok(None) } else { self.patterns.of_answer(text, &self.masked) }
                },
            )?;
        Ok(whole.unwrap_or(text))
    }

    /// Adds a part of a text, and returns what passes of it now.
    fn pass(&mut self, event: &ResponseEvent<'_>, delta: &Delta, is_last: bool) -> Result<String, Refused> {
        let (patterns, masked) = (&self.patterns, &self.masked);
        let known = self.channels.iter().position(|channel| channel.name == delta.channel);
        if is_last || event.bytes.len() > MAX_TEMPLATE {
            let mut flowing = known.map(|at| self.channels.remove(at).flowing).unwrap_or_default();
            return flowing.push(&delta.text, true, patterns, masked);
        }
        if known.is_none() && delta.text.is_empty() {
            return Ok(String::new());
        }
        if known.is_none() && self.channels.len() >= MAX_CHANNELS {
            return Flowing::default().push(&delta.text, true, patterns, masked);
        }
        let at = known.unwrap_or_else(|| {
            self.channels.push(Channel {
                name: delta.channel.clone(),
                group: delta.group.clone(),
                flowing: Flowing::default(),
                template: Bytes::new(),
                is_line: event.is_line,
                pointer: delta.pointer.clone(),
            });
            self.channels.len() - 1
        });
        let Some(channel) = self.channels.get_mut(at) else { return Ok(String::new()) };
        let passed = channel.flowing.push(&delta.text, false, patterns, masked)?;
        if channel.flowing.is_empty() {
            channel.template = Bytes::new();
        } else {
            channel.template = Bytes::copy_from_slice(event.bytes);
            channel.pointer.clone_from(&delta.pointer);
        }
        Ok(passed)
    }
}

impl Rewriter for AnswerGuard {
    fn reads(&self, head: &AnswerHead<'_>) -> bool {
        is_searched(head.status, head.content_type())
    }

    fn whole(&mut self, body: &[u8]) -> Result<Option<Bytes>, Box<Refusal>> {
        let text = String::from_utf8_lossy(body);
        let in_answer = |Refused(name): Refused| refused(&name, "answer");
        let changed = if !matches!(text, Cow::Borrowed(_)) {
            // Neither JSON nor text: it passes as it is, or not at all.
            self.patterns.first_in(&text, Side::Answer).map_or(Ok(None), |name| Err(Refused(name.to_owned())))
        } else if is_json(&text) {
            change_strings(&text, |text| self.patterns.of_answer(text, &self.masked))
        } else {
            self.patterns.of_answer(&text, &self.masked)
        };
        Ok(changed.map_err(in_answer)?.map(Bytes::from))
    }

    fn event(&mut self, event: &ResponseEvent<'_>) -> EventChange {
        if !event.is_whole {
            let message = "a guard of this route reads answers, and an event of this one is too long to be read";
            return EventChange::Refuse(Box::new(Refusal::invalid(CODE, message)));
        }
        let Some(data) = event.data() else { return EventChange::Keep };
        let text = String::from_utf8_lossy(&data);
        let mut out = Vec::new();
        let changed = if is_json(&text) {
            self.guarded(event, &text, &mut out)
        } else {
            // The end of a stream, or a text of its own.
            let flushed = self.flush(&Ended::All, &mut out);
            flushed.and_then(|()| Ok(self.patterns.of_answer(&text, &self.masked)?.unwrap_or_else(|| text.to_string())))
        };
        match changed {
            Err(Refused(name)) => EventChange::Refuse(refused(&name, "answer")),
            Ok(changed) if out.is_empty() && changed == text => EventChange::Keep,
            Ok(changed) => {
                if changed == text {
                    out.extend_from_slice(event.bytes);
                } else {
                    out.extend_from_slice(&event.with_data(changed.as_bytes()));
                }
                EventChange::Replace(out.into())
            }
        }
    }

    fn end(&mut self) -> Result<Bytes, Box<Refusal>> {
        let mut out = Vec::new();
        self.flush(&Ended::All, &mut out).map_err(|Refused(name)| refused(&name, "answer"))?;
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use spillway_filter::testing::{FilterBuilder, TestRequest, split_events};

    use super::*;

    const CARD: &str = "4111 1111 1111 1111";

    /// Event with a part of a text in one API, and the place of the part.
    type Api<'a> = (&'a dyn Fn(&str) -> Value, &'a str);

    fn build(config: &Value) -> Arc<dyn Filter> {
        FilterBuilder::new().build(&*factory(), config)
    }

    fn ask(config: &Value, body: &Value) -> Rewrite {
        match TestRequest::post("/v1/chat/completions", body.to_string()).decide(&*build(config)) {
            Flow::Rewrite(rewrite) => *rewrite,
            Flow::Continue => Rewrite::default(),
            Flow::Refuse(refusal) => panic!("{refusal:?}"),
            _ => panic!("{config}"),
        }
    }

    fn read(rewriter: &mut dyn Rewriter, stream: &str) -> Result<String, &'static str> {
        let (mut passed, mut refused) = (Vec::new(), None);
        split_events(stream, |event| {
            if refused.is_some() {
                return;
            }
            match rewriter.event(event) {
                EventChange::Keep => passed.extend_from_slice(event.bytes),
                EventChange::Replace(bytes) => passed.extend_from_slice(&bytes),
                EventChange::Refuse(refusal) => refused = Some(refusal.code),
                EventChange::Drop => {}
            }
        });
        if let Some(code) = refused {
            return Err(code);
        }
        match rewriter.end() {
            Ok(rest) => passed.extend_from_slice(&rest),
            Err(refusal) => return Err(refusal.code),
        }
        Ok(String::from_utf8(passed).unwrap())
    }

    #[test]
    fn a_request_is_looked_at_unless_the_condition_is_false() {
        let patterns = json!([{"kind": "card", "action": "refuse"}]);
        let filter = build(&json!({"patterns": patterns, "when": "request.headers['x-safe'] != 'yes'"}));
        let body = json!({"messages": [{"content": CARD}]}).to_string();
        for (told, refused) in [(Some("yes"), false), (Some("no"), true), (None, true)] {
            let request = TestRequest::post("/v1/chat/completions", body.clone());
            let request = told.iter().fold(request, |request, value| request.header("x-safe", value));
            assert_eq!(matches!(request.decide(&*filter), Flow::Refuse(_)), refused, "{told:?}");
        }
        assert_eq!(factory().check(&json!({"patterns": [{"kind": "card"}], "when": "1"}))[0].path, ["when"]);
    }

    #[test]
    fn every_string_of_a_prompt_is_read() {
        let config = json!({"patterns": [{"kind": "card"}, {"name": "code", "regex": "A-\\d+"}]});
        let body = json!({
            "model": "A-1",
            "messages": [{"role": "user", "content": [{"type": "text", "text": format!("my {CARD}")}]}],
            "tools": [{"function": {"description": "A-77"}}],
        });
        let changed = ask(&config, &body).body.unwrap();
        let changed: Value = serde_json::from_slice(&changed).unwrap();
        assert_eq!(changed["messages"][0]["content"][0]["text"], "my [card]");
        assert_eq!(
            (&changed["tools"][0]["function"]["description"], &changed["model"]),
            (&json!("[code]"), &json!("A-1"))
        );
        assert!(ask(&config, &json!({"messages": []})).body.is_none());
        let escaped = br#"{"prompt":"\u0034111 1111 1111 1111"}"#;
        let Flow::Rewrite(rewrite) = TestRequest::post("/", &escaped[..]).decide(&*build(&config)) else { panic!() };
        assert_eq!(rewrite.body.unwrap(), r#"{"prompt":"[card]"}"#);
    }

    #[test]
    fn what_cannot_be_changed_is_refused() {
        let config = json!({"patterns": [{"kind": "card"}, {"kind": "email", "action": "refuse"}]});
        for (body, expected) in [
            (format!("--x\r\n\r\n{CARD}\r\n--x--").into_bytes(), Some(CODE)),
            ([b"\xff".to_vec(), CARD.as_bytes().to_vec()].concat(), Some(CODE)),
            (b"--x\r\n\r\nhello\r\n--x--".to_vec(), None),
            (br#"{"prompt":"to jane@example.com"}"#.to_vec(), Some(CODE)),
            (br#"{"prompt":"x","logprobs":true}"#.to_vec(), Some("unsupported_parameter")),
            (br#"{"prompt":"x","logprobs":false,"top_logprobs":0}"#.to_vec(), None),
            (br#"{"prompt":"x","Logprobs":0}"#.to_vec(), Some("unsupported_parameter")),
            (br#"{"prompt":[[1,2]]}"#.to_vec(), Some("unsupported_parameter")),
            (br#"{"prompt":["1"]}"#.to_vec(), None),
            (br#"{"prompt":NaN}"#.to_vec(), Some("unsupported_body")),
            (br#"{"include":["message.output_text.logprobs"]}"#.to_vec(), Some("unsupported_parameter")),
        ] {
            let text = String::from_utf8_lossy(&body).into_owned();
            let code = match TestRequest::post("/", body).decide(&*build(&config)) {
                Flow::Refuse(refusal) => Some(refusal.code),
                _ => None,
            };
            assert_eq!(code, expected, "{text}");
        }
    }

    #[test]
    fn findings_are_counted_by_pattern_place_and_action() {
        let builder = FilterBuilder::new();
        let config = json!({"patterns": [{"kind": "card"}, {"kind": "email", "action": "refuse"}]});
        let filter = builder.build(&*factory(), &config);
        let body = json!({"prompt": [CARD, format!("{CARD} and {CARD}")]});
        let Flow::Rewrite(rewrite) = TestRequest::post("/", body.to_string()).decide(&*filter) else { panic!() };
        let mut rewriter = rewrite.rewriter.unwrap();
        rewriter.whole(json!({"text": CARD}).to_string().as_bytes()).unwrap();
        let event = |part: &str| format!("data: {}\n\n", json!({"choices": [{"index": 0, "text": part}]}));
        read(&mut *rewriter, &(event("4111 1111") + &event(" 1111 1111") + &event(" it is"))).unwrap();
        assert!(read(&mut *rewriter, &(event("jane@ex") + &event("ample.com."))).is_err());
        let refused = TestRequest::post("/", r#"{"prompt":"a@example.com, b@example.com"}"#).decide(&*filter);
        assert!(matches!(refused, Flow::Refuse(_)));
        for (pattern, at, action, count) in [
            ("card", "prompt", "redact", 3),
            ("card", "answer", "redact", 2),
            ("email", "prompt", "refuse", 2),
            ("email", "answer", "refuse", 1),
        ] {
            assert_eq!(
                builder.count("spillway_filter_guard_findings", &[pattern, at, action]),
                count,
                "{pattern} {at}"
            );
        }
        assert_eq!(builder.count("spillway_filter_guard_shadow_findings", &["card", "prompt", "redact"]), 0);
    }

    #[test]
    fn a_masked_thing_is_seen_by_the_caller_alone() {
        let config = json!({"patterns": [{"kind": "card", "action": "mask"}], "on": ["prompt"]});
        let rewrite = ask(&config, &json!({"messages": [{"content": format!("{CARD}?")}]}));
        assert_eq!(rewrite.body.unwrap(), r#"{"messages":[{"content":"[card-1]?"}]}"#);
        let mut rewriter = rewrite.rewriter.unwrap();
        let whole = rewriter.whole(br#"{"choices":[{"message":{"content":"Is [card-1] yours?"}}]}"#).unwrap().unwrap();
        assert_eq!(whole, format!("{{\"choices\":[{{\"message\":{{\"content\":\"Is {CARD} yours?\"}}}}]}}"));
        let stream = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Is [ca\"}}]}\n\n\
            data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"rd-1] yours\"}}]}\n\n\
            data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" [c\"}}]}\n\n\
            data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        let said: String = read(&mut *rewriter, stream)
            .unwrap()
            .split("\n\n")
            .filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok())
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(said, format!("Is {CARD} yours [c"));
        // Without a thing to bring back, answers pass unread.
        assert!(ask(&config, &json!({"prompt": "hi"})).rewriter.is_none());
    }

    #[test]
    fn a_thing_in_parts_of_a_stream_is_found_in_every_api() {
        let config = json!({"patterns": [{"kind": "card"}]});
        let parts = ["Your card 41", "11 1111 11", "11 1111 is", " known."];
        let openai = |part: &str| json!({"choices": [{"index": 0, "delta": {"content": part}}]});
        let anthropic = |part: &str| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": part}});
        let responses = |part: &str| json!({"type": "response.output_text.delta", "item_id": "i", "content_index": 0, "delta": part});
        let ollama = |part: &str| json!({"message": {"role": "assistant", "content": part}, "done": false});
        let ends = [
            json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
            json!({"type": "content_block_stop", "index": 0}),
            json!({"type": "response.output_text.done", "text": parts.concat()}),
            json!({"message": {"role": "assistant", "content": ""}, "done": true}),
        ];
        let apis: [Api<'_>; 4] = [
            (&openai, "/choices/0/delta/content"),
            (&anthropic, "/delta/text"),
            (&responses, "/delta"),
            (&ollama, "/message/content"),
        ];
        for ((event, at), end) in apis.into_iter().zip(ends) {
            let mut rewriter = ask(&config, &json!({"prompt": "x"})).rewriter.unwrap();
            let stream: String =
                parts.iter().map(|part| event(part)).chain([end]).map(|data| format!("data: {data}\n\n")).collect();
            let passed = read(&mut *rewriter, &stream).unwrap();
            let events: Vec<Value> = passed
                .split_terminator("\n\n")
                .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
                .collect();
            let said: String = events.iter().filter_map(|event| event.pointer(at)?.as_str()).collect();
            assert_eq!(said, "Your card [card] is known.", "{passed}");
            assert!(!passed.contains("1111"), "{passed}");
        }
    }

    #[test]
    fn choices_and_reasons_do_not_mix() {
        let config = json!({"patterns": [{"kind": "card"}]});
        let mut rewriter = ask(&config, &json!({"prompt": "x"})).rewriter.unwrap();
        let event = |index: u32, name: &str, part: &str| {
            format!("data: {}\n\n", json!({"choices": [{"index": index, "delta": {name: part}}]}))
        };
        let stream = [
            event(0, "reasoning", "think"),
            event(1, "content", "4111 1111"),
            event(0, "content", "5500"),
            event(1, "content", " 1111 1111"),
            event(0, "content", "0000 zero"),
            "data: [DONE]\n\n".to_owned(),
        ];
        let passed = read(&mut *rewriter, &stream.concat()).unwrap();
        let said = |index: u32, name: &str| -> String {
            let events = passed
                .split("\n\n")
                .filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok());
            events
                .filter(|event| event["choices"][0]["index"] == index)
                .filter_map(|event| event["choices"][0]["delta"][name].as_str().map(str::to_owned))
                .collect()
        };
        assert_eq!(
            (said(0, "reasoning"), said(0, "content"), said(1, "content")),
            ("think".into(), "55000000 zero".into(), "[card]".into())
        );
        assert!(passed.ends_with("data: [DONE]\n\n"));
        assert!(passed.find("think").unwrap() < passed.find("55000000").unwrap(), "{passed}");
    }

    #[test]
    fn a_refused_answer_shows_nothing_of_it() {
        let config =
            json!({"patterns": [{"name": "name", "regex": "(?i)project orca", "action": "refuse"}], "on": ["answer"]});
        let mut rewriter = ask(&config, &json!({"prompt": "project orca"})).rewriter.unwrap();
        let refusal = rewriter.whole(br#"{"choices":[{"text":"It is Project Orca."}]}"#).unwrap_err();
        assert_eq!((refusal.code, &*refusal.message), (CODE, "a guard of this route has found `name` in the answer"));
        let event = |part: &str| format!("data: {}\n\n", json!({"choices": [{"index": 0, "text": part}]}));
        assert_eq!(read(&mut *rewriter, &(event("It is Pro") + &event("ject Orca."))), Err(CODE));
        let mut rewriter = ask(&config, &json!({"prompt": "x"})).rewriter.unwrap();
        let long = ResponseEvent { bytes: b"data: x", is_whole: false, is_line: false };
        assert!(matches!(rewriter.event(&long), EventChange::Refuse(_)));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (config, path) in [
            (json!({"patterns": []}), vec!["patterns"]),
            (json!({"patterns": [{"name": "x"}]}), vec!["patterns", "0", "kind"]),
            (json!({"patterns": [{"kind": "card", "regex": "x"}]}), vec!["patterns", "0", "kind"]),
            (json!({"patterns": [{"name": "x", "regex": "("}]}), vec!["patterns", "0", "regex"]),
            (json!({"patterns": [{"name": "x", "regex": "a*"}]}), vec!["patterns", "0", "regex"]),
            (json!({"patterns": [{"regex": "a"}]}), vec!["patterns", "0", "name"]),
            (json!({"patterns": [{"name": "a b", "regex": "a"}]}), vec!["patterns", "0", "name"]),
            (json!({"patterns": [{"kind": "card"}, {"kind": "card"}]}), vec!["patterns", "1", "name"]),
            (json!({"patterns": [{"kind": "card"}], "on": []}), vec!["on"]),
            (json!({"patterns": [{"kind": "card"}], "window": "16B"}), vec!["window"]),
        ] {
            let errors = factory().check(&config);
            assert_eq!(errors.len(), 1, "{config}: {errors:?}");
            assert_eq!(errors[0].path, path, "{config}");
        }
    }
}
