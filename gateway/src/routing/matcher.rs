//! Compiled match of a route: its path, its conditions on the rest of a head, its model, and its precedence. The file owns
//! no table; its input is a match of the configuration.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};
use regex::bytes::{Regex, RegexBuilder};
use spillway_cel::{EvaluationError, Expression, Fact, Prompt, Scope, Seen, Served};
use spillway_config::path;
use spillway_config::schema::{HeaderMatch, Match, PathMatch, QueryMatch};
use spillway_filter::{Fields, SignalName};
use url::form_urlencoded;

/// Largest compiled regular expression in bytes, which also bounds its cost per character.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// Error of a match that cannot be compiled. Validation reports the same fault with its position.
#[derive(Debug, thiserror::Error)]
#[error("route `{route}`: {fault}")]
pub struct CompileError {
    /// Name of the route.
    pub route: String,
    /// Fault of the match.
    pub fault: MatchFault,
}

/// Fault of a match.
#[derive(Debug, thiserror::Error)]
pub enum MatchFault {
    /// A regular expression does not compile, or compiles to more than 1 MiB.
    #[error(transparent)]
    Regex(#[from] regex::Error),
    /// The method is no token.
    #[error("`{0}` is not a method")]
    Method(String),
    /// The name of a header is no token.
    #[error("`{0}` is not a header name")]
    HeaderName(String),
    /// The value of the header of this name has bytes that are not allowed.
    #[error("the value of header `{0}` has characters that no header may have")]
    HeaderValue(String),
    /// The header or parameter of this name has no way of comparison, or two.
    #[error("`{0}` has both or none of `exact` and `regex`")]
    Comparison(String),
    /// The expression does not compile, or has no boolean value.
    #[error("{0}")]
    Expression(String),
}

/// Path of a match, as the table indexes it. A regular expression stands among the conditions.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum PathKey {
    Exact(Box<str>),
    /// Prefix with a final slash; matches the path before that slash and every path that continues behind it.
    Prefix(Box<str>),
    /// Any path, or those of a regular expression.
    Other,
}

/// Conditions on a head that no index covers. All must hold.
#[derive(Debug, Clone)]
pub(super) struct Conditions {
    method: Option<Method>,
    headers: Box<[(HeaderName, HeaderValue)]>,
    rare: Option<Arc<RareConditions>>,
}

/// Conditions that few matches have, apart from the others so that these stay small.
#[derive(Debug)]
struct RareConditions {
    path: Option<Regex>,
    /// Headers by patterns; one value of each name must match.
    headers: Box<[(HeaderName, Regex)]>,
    query: Box<[(Box<str>, Pattern)]>,
    when: Option<Expression>,
}

/// Value of a parameter.
#[derive(Debug)]
enum Pattern {
    Exact(Box<str>),
    Regex(Regex),
}

impl Pattern {
    fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *value,
            Self::Regex(regex) => regex.is_match(value.as_bytes()),
        }
    }
}

/// Identity of conditions: equal where the same heads meet them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ConditionsKey {
    method: Option<Method>,
    headers: Box<[(HeaderName, HeaderValue)]>,
    /// Headers that are compared by patterns.
    patterns: Box<[HeaderMatch]>,
    query: Box<[QueryMatch]>,
    regex: Option<Box<str>>,
    when: Option<Box<str>>,
}

/// Precedence among several matches of a host, the smallest first: exact path, longest prefix, regex, any; then a method, more
/// headers, more parameters of the query, a model, an expression.
pub(super) type Rank = (u8, Reverse<usize>, bool, Reverse<usize>, Reverse<usize>, bool, bool);

/// Compiled match.
#[derive(Debug, Clone)]
pub(super) struct Matcher {
    pub(super) path: PathKey,
    pub(super) conditions: Conditions,
    /// Model that the body must name; `*` in it matches any characters.
    pub(super) model: Option<Box<str>>,
    pub(super) rank: Rank,
}

/// Facts of a request that an expression sees besides path, method and headers.
#[derive(Debug, Clone, Copy)]
pub struct HeadContext<'a> {
    /// Query, without `?`.
    pub query: &'a str,
    /// Address of the client.
    pub client: IpAddr,
}

/// Head of a request, as matches see it.
#[derive(Clone, Copy)]
pub struct HeadView<'a> {
    /// Path in the form in which paths are compared.
    pub path: &'a str,
    /// Method.
    pub method: &'a Method,
    /// Headers.
    pub headers: &'a Fields,
    /// Query and client.
    pub context: HeadContext<'a>,
}

/// Condition of a match that reads the conversation of a request.
#[derive(Debug, Clone, Copy)]
pub struct Condition<'a>(&'a Expression);

impl<'a> Condition<'a> {
    /// The expression.
    pub fn expression(self) -> &'a Expression {
        self.0
    }

    /// True if the condition holds for a head and its conversation. One without a value, as of an absent signal, does not hold.
    pub fn holds(self, head: &HeadView<'_>, prompt: &Prompt) -> bool {
        value(self.0, head, Some(prompt)).unwrap_or(false)
    }
}

/// Answer of conditions for a head.
pub(super) enum Met<'a> {
    No,
    Yes,
    /// All but one are met, which reads the conversation.
    Asks(Condition<'a>),
}

/// Head of a request of whose headers and query only some facts are known.
#[derive(Clone, Copy)]
pub struct PartialHead<'a> {
    /// Path in the form in which paths are compared.
    pub path: &'a str,
    /// Method.
    pub method: &'a Method,
    /// Address of the client.
    pub client: IpAddr,
    /// True or false where it is known whether the head has a header of this value.
    pub known: &'a dyn Fn(&HeaderName, &HeaderValue) -> Option<bool>,
}

/// Part of a match that facts do not decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undecided {
    /// A header.
    Header(HeaderName),
    /// The query.
    Query,
    /// The expression of the route of this name.
    Expression(String),
}

/// Truth of conditions for a head of which only some facts are known.
pub(super) enum Truth {
    Holds,
    Fails,
    Unknown(Unknown),
}

/// Part of a head that is not known, and decides.
pub(super) enum Unknown {
    Header(HeaderName),
    Query,
    Expression,
}

impl Matcher {
    /// Compiles a match of the route `route`, whose expression may read these signals.
    pub(super) fn compile(route: &str, written: &Match, signals: &[SignalName]) -> Result<Self, CompileError> {
        Self::parse(written, signals).map_err(|fault| CompileError { route: route.to_owned(), fault })
    }

    fn parse(written: &Match, signals: &[SignalName]) -> Result<Self, MatchFault> {
        let (kind, path) = match &written.path {
            Some(PathMatch::Exact(path)) => (0, PathKey::Exact(comparable(path).into())),
            Some(PathMatch::Prefix(path)) => match comparable(path).trim_end_matches('/') {
                "" => (3, PathKey::Other),
                path => (1, PathKey::Prefix(format!("{path}/").into())),
            },
            Some(PathMatch::Regex(_)) => (2, PathKey::Other),
            None => (3, PathKey::Other),
        };
        let length = match &path {
            PathKey::Exact(path) | PathKey::Prefix(path) => path.len(),
            PathKey::Other => 0,
        };
        let conditions = Conditions::parse(written, signals)?;
        let rank = (
            kind,
            Reverse(length),
            conditions.method.is_none(),
            Reverse(written.headers.len()),
            Reverse(written.query_params.len()),
            written.model.is_none(),
            written.when.is_none(),
        );
        Ok(Self { path, conditions, model: written.model.as_deref().map(Into::into), rank })
    }
}

impl Conditions {
    fn parse(written: &Match, signals: &[SignalName]) -> Result<Self, MatchFault> {
        let regex = match &written.path {
            Some(PathMatch::Regex(pattern)) => Some(whole(pattern)?),
            _ => None,
        };
        let method = match &written.method {
            None => None,
            Some(method) => {
                Some(Method::from_bytes(method.as_bytes()).map_err(|_| MatchFault::Method(method.clone()))?)
            }
        };
        let (mut headers, mut patterns, mut query) = (Vec::new(), Vec::new(), Vec::new());
        for header in &written.headers {
            let name = HeaderName::from_bytes(header.name.as_bytes())
                .map_err(|_| MatchFault::HeaderName(header.name.clone()))?;
            match (&header.exact, &header.regex) {
                (Some(exact), None) => {
                    let value =
                        HeaderValue::from_str(exact).map_err(|_| MatchFault::HeaderValue(header.name.clone()))?;
                    headers.push((name, value));
                }
                (None, Some(pattern)) => patterns.push((name, whole(pattern)?)),
                _ => return Err(MatchFault::Comparison(header.name.clone())),
            }
        }
        for parameter in &written.query_params {
            let pattern = match (&parameter.exact, &parameter.regex) {
                (Some(exact), None) => Pattern::Exact(exact.as_str().into()),
                (None, Some(pattern)) => Pattern::Regex(whole(pattern)?),
                _ => return Err(MatchFault::Comparison(parameter.name.clone())),
            };
            query.push((parameter.name.as_str().into(), pattern));
        }
        let compile = |text: &String| Expression::condition_with(text, Scope::Head, signals);
        let when = written.when.as_ref().map(compile).transpose();
        let when = when.map_err(|error| MatchFault::Expression(error.to_string()))?;
        let has_rare = regex.is_some() || when.is_some() || !patterns.is_empty() || !query.is_empty();
        let rare = has_rare
            .then(|| Arc::new(RareConditions { path: regex, headers: patterns.into(), query: query.into(), when }));
        Ok(Self { method, headers: headers.into(), rare })
    }

    /// Identity of the conditions, with the texts of the match from which they were compiled.
    pub(super) fn key(&self, written: &Match) -> ConditionsKey {
        let regex = match &written.path {
            Some(PathMatch::Regex(pattern)) => Some(pattern.as_str().into()),
            _ => None,
        };
        ConditionsKey {
            method: self.method.clone(),
            headers: self.headers.clone(),
            patterns: written.headers.iter().filter(|header| header.regex.is_some()).cloned().collect(),
            query: written.query_params.iter().cloned().collect(),
            regex,
            when: written.when.as_deref().map(Into::into),
        }
    }

    /// Headers that a head must have with these values.
    pub(super) fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// Truth of the conditions for a head of which only some facts are known.
    pub(super) fn truth(&self, head: &PartialHead<'_>) -> Truth {
        let known = |(name, value): &(HeaderName, HeaderValue)| (head.known)(name, value);
        let (path, method) = (head.path, head.method);
        let regex = self.rare.as_ref().and_then(|rare| rare.path.as_ref());
        if self.method.as_ref().is_some_and(|own| own != method)
            || self.headers.iter().any(|header| known(header) == Some(false))
            || regex.is_some_and(|regex| !regex.is_match(path.as_bytes()))
        {
            return Truth::Fails;
        }
        if let Some(when) = self.rare.as_ref().and_then(|rare| rare.when.as_ref()) {
            let asked = when.asked();
            if asked.reads_prompt() || asked.reads(Fact::Headers) || asked.reads(Fact::Host) || asked.reads(Fact::Query)
            {
                return Truth::Unknown(Unknown::Expression);
            }
            let context = HeadContext { query: "", client: head.client };
            let head = HeadView { path, method, headers: &Fields::default(), context };
            if !value(when, &head, None).unwrap_or(false) {
                return Truth::Fails;
            }
        }
        let exact = self.headers.iter().find(|header| known(header).is_none()).map(|(name, _)| name);
        let pattern = || self.rare.as_ref().and_then(|rare| rare.headers.first()).map(|(name, _)| name);
        if let Some(name) = exact.or_else(pattern) {
            return Truth::Unknown(Unknown::Header(name.clone()));
        }
        match &self.rare {
            Some(rare) if !rare.query.is_empty() => Truth::Unknown(Unknown::Query),
            _ => Truth::Holds,
        }
    }

    /// True if an expression among the conditions reads the conversation.
    pub(super) fn read_prompt(&self) -> bool {
        self.rare.as_ref().and_then(|rare| rare.when.as_ref()).is_some_and(|when| when.asked().reads_prompt())
    }

    /// Judges the conditions for a head.
    pub(super) fn judge(&self, head: &HeadView<'_>) -> Met<'_> {
        let is_met = self.method.as_ref().is_none_or(|method| method == head.method)
            && self.headers.iter().all(|(name, value)| head.headers.get_all(name).iter().any(|found| found == value));
        match &self.rare {
            _ if !is_met => Met::No,
            None => Met::Yes,
            Some(rare) => rare.judge(head),
        }
    }
}

impl RareConditions {
    fn judge(&self, head: &HeadView<'_>) -> Met<'_> {
        let has = |(name, pattern): &(HeaderName, Regex)| {
            head.headers.get_all(name).iter().any(|value| pattern.is_match(value.as_bytes()))
        };
        let is_met = self.path.as_ref().is_none_or(|regex| regex.is_match(head.path.as_bytes()))
            && self.headers.iter().all(has)
            && self.query.iter().all(|(name, pattern)| {
                let mut all = form_urlencoded::parse(head.context.query.as_bytes());
                all.find(|(found, _)| **found == **name).is_some_and(|(_, value)| pattern.matches(&value))
            });
        let Some(when) = self.when.as_ref().filter(|_| is_met) else { return if is_met { Met::Yes } else { Met::No } };
        let asked = when.asked();
        if asked.reads_prompt() && asked.reads_only_prompt() {
            return Met::Asks(Condition(when));
        }
        match value(when, head, None) {
            Ok(true) => Met::Yes,
            // It has no value before the conversation is known.
            Err(_) if asked.reads_prompt() => Met::Asks(Condition(when)),
            Ok(false) | Err(_) => Met::No,
        }
    }
}

/// Regular expression over the whole of a text.
fn whole(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(REGEX_SIZE_LIMIT).build()
}

/// Converts a path of the configuration to the form in which paths of requests are compared. A path that no request can
/// have is returned as it is.
pub fn comparable(path: &str) -> String {
    match path::normal(path) {
        Ok(normal) => path::key(&normal).into_owned(),
        Err(_) => path.to_owned(),
    }
}

/// Value of an expression for a head, and for a conversation where that is known.
fn value(when: &Expression, head: &HeadView<'_>, prompt: Option<&Prompt>) -> Result<bool, EvaluationError> {
    when.holds(&Seen {
        method: head.method.as_str(),
        path: head.path,
        query: head.context.query,
        headers: head.headers,
        client: head.context.client,
        route: "",
        model: None,
        body: None,
        caller: None,
        secure: false,
        now: None,
        served: Served::default(),
        prompt,
        hides: None,
    })
}
