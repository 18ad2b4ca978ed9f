//! Facts of one request, looked up by name when the interpreter meets them. Nothing is converted that is not read, text is borrowed,
//! and what is costly to convert is converted once. Owns the count of steps of one evaluation ([`crate::MAX_STEPS`]).

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use cel::common::traits::Indexer;
use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use http::{HeaderName, HeaderValue};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use spillway_filter::Fields;

use crate::schema::{Asked, Fact, NAMES, Name, SIGNALS};
use crate::values::{self, REDACTED, Seen, SignalValue};
use crate::{Expression, MAX_BODY, MAX_STEPS};

/// Prefix of a root whose value is counted where it is read. No name that can be written begins with it.
pub(crate) const COUNTED: &str = "@";
/// Prefix of the name that counts the steps of one turn of a loop; the number follows. Its value is true.
pub(crate) const STEP: &str = "@step:";
/// Prefix of the name that is true if the exchange has a fact; the number of the fact follows.
pub(crate) const HAS: &str = "@has:";
/// Prefix of the name that is true if the request has a signal; its name follows.
pub(crate) const HAS_SIGNAL: &str = "@has.";
/// Bytes of text that cost as much as one step.
const BYTES_OF_STEP: usize = 512;

type Boxed<'a> = Box<dyn Val + 'a>;

/// Signal that an expression reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadSignal {
    /// Name below `signals`.
    pub(crate) name: Box<str>,
    /// Place among the names with which the expression was compiled.
    pub(crate) at: usize,
}

/// Facts of one request for one evaluation.
pub(crate) struct Facts<'a> {
    seen: &'a Seen<'a>,
    asked: Asked,
    names: &'a [HeaderName],
    all_headers: bool,
    signals: &'a [ReadSignal],
    now: OnceLock<i64>,
    headers: OnceLock<Boxed<'a>>,
    answer_headers: OnceLock<Boxed<'a>>,
    body: OnceLock<Option<Boxed<'a>>>,
    claims: OnceLock<Boxed<'a>>,
    /// Steps left.
    steps: AtomicUsize,
    exhausted: AtomicBool,
    /// True if a longer form of the name that is asked for next was counted.
    counted: AtomicBool,
}

impl<'a> Facts<'a> {
    pub(crate) fn new(seen: &'a Seen<'a>, expression: &'a Expression) -> Self {
        Self {
            seen,
            asked: expression.asked,
            names: &expression.headers,
            all_headers: expression.all_headers,
            signals: &expression.signals,
            now: OnceLock::new(),
            headers: OnceLock::new(),
            answer_headers: OnceLock::new(),
            body: OnceLock::new(),
            claims: OnceLock::new(),
            steps: AtomicUsize::new(MAX_STEPS),
            exhausted: AtomicBool::new(false),
            counted: AtomicBool::new(false),
        }
    }

    /// True if the expression takes more than [`MAX_STEPS`].
    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed)
    }

    /// Takes steps; false if there are not as many left.
    fn take(&self, steps: usize) -> bool {
        // One thread evaluates: nobody takes in between.
        match self.steps.load(Ordering::Relaxed).checked_sub(steps) {
            Some(left) if !self.is_exhausted() => {
                self.steps.store(left, Ordering::Relaxed);
                true
            }
            _ => {
                self.exhausted.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    /// Time of the evaluation, the same for all that is read of it: hour and minute belong together.
    fn now(&self) -> i64 {
        *self.now.get_or_init(|| {
            let now = self.seen.now.unwrap_or_else(SystemTime::now);
            let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            i64::try_from(seconds).unwrap_or(i64::MAX)
        })
    }

    fn body(&self) -> Option<&(dyn Val + 'a)> {
        let body = self.body.get_or_init(|| {
            let bytes = self.seen.body.filter(|bytes| !bytes.is_empty() && bytes.len() <= MAX_BODY)?;
            // serde_json refuses nesting deeper than 128.
            serde_json::from_slice::<Json<'a>>(bytes).ok().map(|json| json.0)
        });
        body.as_deref()
    }

    /// Value of a fact; `None` if the request has none.
    fn value(&self, fact: Fact) -> Option<CowVal<'_, 'a>> {
        let x = self.seen;
        if let Some(found) = text_of(x, fact) {
            return Some(match found {
                Cow::Borrowed(text) => CowVal::owned(CelString::from(text)),
                Cow::Owned(text) => CowVal::owned(CelString::from(text)),
            });
        }
        let number = |n: i64| CowVal::owned(CelInt::from(n));
        let tokens = |n: Option<u64>| n.map(|n| number(i64::try_from(n).unwrap_or(i64::MAX)));
        Some(match fact {
            Fact::Headers => {
                let headers = self.headers.get_or_init(|| {
                    let hides = |name: &HeaderName| x.hides.is_some_and(|hides| hides(name));
                    if self.all_headers {
                        headers(x.headers, hides)
                    } else {
                        named_headers(x.headers, self.names, hides)
                    }
                });
                CowVal::Borrowed(headers.as_ref())
            }
            Fact::Body => CowVal::Borrowed(self.body()?),
            Fact::Scopes => {
                let scopes = x.caller.map_or(&[][..], |caller| caller.scopes);
                let scopes: Vec<Boxed<'a>> = scopes.iter().map(|scope| string(scope)).collect();
                CowVal::owned(CelList::from(scopes))
            }
            Fact::ConsumerClaims | Fact::Claims => {
                let claims = self.claims.get_or_init(|| match x.caller.map(|caller| caller.claims) {
                    Some(claims @ serde_json::Value::Object(_)) => json(claims),
                    _ => Box::new(CelMap::from(HashMap::new())),
                });
                CowVal::Borrowed(claims.as_ref())
            }
            Fact::TlsUsed => CowVal::owned(CelBool::from(x.secure)),
            Fact::EpochSeconds => number(self.now()),
            Fact::Minute => number(self.now() / 60 % 60),
            Fact::Hour => number(self.now() / 3_600 % 24),
            // The first day of 1970 was a Thursday.
            Fact::Weekday => number((self.now() / 86_400 + 4) % 7),
            Fact::ResponseStatus => number(x.served.status.into()),
            Fact::ResponseHeaders => {
                let headers = self.answer_headers.get_or_init(|| match x.served.headers {
                    Some(fields) => headers(fields, |_| false),
                    None => Box::new(CelMap::from(HashMap::new())),
                });
                CowVal::Borrowed(headers.as_ref())
            }
            Fact::PromptTokens => tokens(x.served.prompt_tokens)?,
            Fact::CachedTokens => tokens(x.served.cached_tokens)?,
            Fact::CompletionTokens => tokens(x.served.completion_tokens)?,
            Fact::Characters => tokens(x.prompt?.characters)?,
            Fact::EstimatedTokens => tokens(x.prompt?.tokens)?,
            Fact::Turns => tokens(x.prompt?.turns)?,
            Fact::Reasked => CowVal::owned(CelBool::from(x.prompt?.reasked?)),
            Fact::ToolLoop => CowVal::owned(CelBool::from(x.prompt?.tool_loop?)),
            // Read by their own names.
            Fact::Signals => return None,
            // Texts.
            Fact::Method
            | Fact::Path
            | Fact::Query
            | Fact::Host
            | Fact::ClientAddress
            | Fact::Model
            | Fact::ConsumerName
            | Fact::Tenant
            | Fact::Route
            | Fact::Backend
            | Fact::RolloutVersion
            | Fact::AnsweringModel
            | Fact::Language => return None,
        })
    }

    /// Value of a signal by its name below `signals`.
    fn signal(&self, name: &str) -> Option<SignalValue> {
        let known = self.signals.iter().find(|known| *known.name == *name)?;
        self.seen.prompt?.signals.get(known.at).copied().flatten()
    }

    /// Value of a fact, of a name whose fields are facts, or `None` where `name` is longer or is not known.
    fn named(&self, name: &str) -> Option<CowVal<'_, 'a>> {
        let is_asked = |known: &&Name| self.asked.reads(known.fact);
        let (root, field) = match name.split_once('.') {
            Some((root, field)) => (root, Some(field)),
            None => (name, None),
        };
        if let Some(known) = NAMES.iter().filter(is_asked).find(|known| known.root == root && known.field == field) {
            return self.value(known.fact);
        }
        if let Some(field) = field {
            return if root == SIGNALS { self.signal(field).map(signal_value) } else { None };
        }
        let is_unknown = self.seen.prompt.is_none();
        if is_unknown && NAMES.iter().any(|known| known.root == root && known.fact.is_of_prompt()) {
            return None;
        }
        let mut fields = HashMap::new();
        // A root of which all facts are absent is an empty map.
        let mut is_root = false;
        for known in NAMES.iter().filter(is_asked).filter(|known| known.root == root) {
            is_root = true;
            let Some(field) = known.field else { continue };
            if let Some(value) = self.value(known.fact) {
                fields.insert(CelMapKey::from(field), value.into_owned());
            }
        }
        is_root.then(|| CowVal::owned(CelMap::from(fields)))
    }

    /// Value of a name, after taking the steps that its size costs. The interpreter asks for `a.b.c`, then `a.b`, then `a`: the first
    /// that begins with a known name is counted, with what there is of it.
    fn counted(&self, name: &str) -> Option<CowVal<'_, 'a>> {
        let left = self.steps.load(Ordering::Relaxed);
        if let Some(value) = self.named(name) {
            if !self.counted.swap(false, Ordering::Relaxed) && !self.take(weight(value.as_ref(), left)) {
                return None;
            }
            return Some(value);
        }
        if self.counted.load(Ordering::Relaxed) {
            return None;
        }
        let ends = name.char_indices().rev().filter(|(_, c)| *c == '.').map(|(at, _)| at);
        let (end, value) = ends.filter_map(|end| Some((end, self.named(name.get(..end)?)?))).next()?;
        let mut found = value.as_ref();
        let mut within;
        for field in name.get(end + 1..).unwrap_or_default().split('.') {
            within = match found.downcast_ref::<CelMap<'_>>().map(|map| map.get(&CelString::from(field))) {
                Some(Ok(CowVal::Borrowed(value))) => value,
                _ => break,
            };
            found = within;
        }
        let weight = weight(found, left);
        if self.take(weight) {
            self.counted.store(true, Ordering::Relaxed);
        }
        None
    }
}

fn signal_value<'c, 'v>(value: SignalValue) -> CowVal<'c, 'v> {
    match value {
        SignalValue::Bool(holds) => CowVal::owned(CelBool::from(holds)),
        SignalValue::Double(n) => CowVal::owned(CelDouble::from(n)),
    }
}

/// Value of a fact that is a text; `None` for other facts.
pub(crate) fn text_of<'a>(x: &Seen<'a>, fact: Fact) -> Option<Cow<'a, str>> {
    Some(Cow::Borrowed(match fact {
        Fact::Method => x.method,
        Fact::Path => return Some(values::path(x.path)),
        Fact::Query => x.query,
        Fact::Host => {
            let host = x.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            return Some(Cow::Owned(values::host_name(host)));
        }
        Fact::ClientAddress => return Some(Cow::Owned(x.client.to_canonical().to_string())),
        Fact::Model => x.model.unwrap_or_default(),
        Fact::ConsumerName => x.caller.map_or("", |caller| caller.consumer),
        Fact::Tenant => x.caller.map_or("", |caller| caller.tenant),
        Fact::Route => x.route,
        Fact::Backend => x.served.backend,
        Fact::RolloutVersion => x.served.version,
        Fact::AnsweringModel => x.served.model,
        Fact::Language => x.prompt?.language?,
        _ => return None,
    }))
}

/// Value of a header of the request; `None` if it has none of this name.
pub(crate) fn header_of<'a>(x: &Seen<'a>, name: &HeaderName) -> Option<Cow<'a, str>> {
    let value = joined_text(x.headers, name)?;
    Some(if x.hides.is_some_and(|hides| hides(name)) { Cow::Borrowed(REDACTED) } else { value })
}

impl VariableResolver for Facts<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        if !name.starts_with(COUNTED) {
            return self.named(name);
        }
        if let Some(steps) = name.strip_prefix(STEP) {
            return self.take(steps.parse().unwrap_or(MAX_STEPS)).then(|| CowVal::owned(CelBool::from(true)));
        }
        if let Some(number) = name.strip_prefix(HAS) {
            let fact = NAMES.iter().map(|known| known.fact).find(|fact| number.parse() == Ok(*fact as u8))?;
            // It is not known yet whether there is one.
            if fact.is_of_prompt() {
                self.seen.prompt?;
            }
            return Some(CowVal::owned(CelBool::from(self.value(fact).is_some())));
        }
        if let Some(name) = name.strip_prefix(HAS_SIGNAL) {
            self.seen.prompt?;
            return Some(CowVal::owned(CelBool::from(self.signal(name).is_some())));
        }
        if self.is_exhausted() {
            return None;
        }
        self.counted(name.strip_prefix(COUNTED)?)
    }
}

/// Steps that reading a value to its end costs, counted up to more than `most`.
fn weight(value: &dyn Val, most: usize) -> usize {
    let mut steps: usize = 1;
    if let Some(text) = value.downcast_ref::<CelString<'_>>() {
        return steps + text.inner().len() / BYTES_OF_STEP;
    }
    if let Some(list) = value.downcast_ref::<CelList<'_>>() {
        for element in list.inner() {
            if steps > most {
                break;
            }
            steps += weight(element.as_ref(), most - steps);
        }
    } else if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
        for (key, element) in map.inner() {
            if steps > most {
                break;
            }
            steps += weight(key.inner(), most);
            steps += weight(element.as_ref(), most.saturating_sub(steps));
        }
    }
    steps
}

fn string<'a>(text: &'a str) -> Boxed<'a> {
    Box::new(CelString::from(text))
}

/// Value of a header as text. Bytes beyond ASCII become replacement characters.
fn header(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

fn text(text: Cow<'_, str>) -> CelString<'_> {
    match text {
        Cow::Borrowed(text) => CelString::from(text),
        Cow::Owned(text) => CelString::from(text),
    }
}

/// Values of one header, joined as in RFC 9110, 5.3.
fn joined_text<'a>(headers: &'a Fields, name: &HeaderName) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter();
    let mut all = header(values.next()?);
    for value in values {
        let all = all.to_mut();
        all.push_str(", ");
        all.push_str(&header(value));
    }
    Some(all)
}

fn joined<'a>(headers: &'a Fields, name: &HeaderName) -> Option<Boxed<'a>> {
    Some(Box::new(text(joined_text(headers, name)?)))
}

/// Headers by lower-case name.
fn headers(headers: &Fields, hides: impl Fn(&HeaderName) -> bool) -> Boxed<'_> {
    let mut map: HashMap<CelMapKey<'_>, Boxed<'_>> = HashMap::with_capacity(headers.len());
    for name in headers.keys() {
        if let Some(value) = joined(headers, name) {
            let value = if hides(name) { string(REDACTED) } else { value };
            map.insert(CelMapKey::from(name.as_str()), value);
        }
    }
    Box::new(CelMap::from(map))
}

/// Headers of these names that a request has.
fn named_headers<'a>(headers: &'a Fields, names: &'a [HeaderName], hides: impl Fn(&HeaderName) -> bool) -> Boxed<'a> {
    let mut map = HashMap::with_capacity(names.len());
    for name in names {
        if let Some(value) = joined(headers, name) {
            let value = if hides(name) { string(REDACTED) } else { value };
            map.insert(CelMapKey::from(name.as_str()), value);
        }
    }
    Box::new(CelMap::from(map))
}

/// Converts JSON; whole numbers become integers.
fn json(value: &serde_json::Value) -> Boxed<'_> {
    match value {
        serde_json::Value::Null => Box::new(CelNull),
        serde_json::Value::Bool(b) => Box::new(CelBool::from(*b)),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Box::new(CelInt::from(n)),
            (None, Some(n)) => Box::new(CelUInt::from(n)),
            (None, None) => Box::new(CelDouble::from(n.as_f64().unwrap_or(f64::NAN))),
        },
        serde_json::Value::String(text) => string(text),
        serde_json::Value::Array(items) => Box::new(CelList::from(items.iter().map(json).collect::<Vec<_>>())),
        serde_json::Value::Object(entries) => {
            let map = entries.iter().map(|(name, value)| (CelMapKey::from(name.as_str()), json(value)));
            Box::new(CelMap::from(map.collect::<HashMap<_, _>>()))
        }
    }
}

/// Value read from JSON without a tree in between; text without escapes is borrowed.
struct Json<'de>(Boxed<'de>);

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor).map(Json)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Boxed<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Box::new(CelNull))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(Box::new(CelBool::from(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(Box::new(CelInt::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(match i64::try_from(value) {
            Ok(value) => Box::new(CelInt::from(value)),
            Err(_) => Box::new(CelUInt::from(value)),
        })
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(Box::new(CelDouble::from(value)))
    }

    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Self::Value, E> {
        Ok(string(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(Box::new(CelString::from(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut list: Vec<Boxed<'de>> = Vec::new();
        while let Some(Json(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Box::new(CelList::from(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map: HashMap<CelMapKey<'de>, Boxed<'de>> = HashMap::new();
        while let Some(MemberName(name)) = entries.next_key()? {
            let Json(value) = entries.next_value()?;
            map.insert(CelMapKey::String(text(name)), value);
        }
        Ok(Box::new(CelMap::from(map)))
    }
}

/// Name of a member; borrowed if it has no escapes.
struct MemberName<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for MemberName<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Cow<'de, str>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a member")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(name))
            }

            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(name.to_owned()))
            }
        }
        deserializer.deserialize_str(NameVisitor).map(MemberName)
    }
}
