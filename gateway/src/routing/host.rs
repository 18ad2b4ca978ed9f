//! Routes of one host name, indexed by path. Heads with the same path are told apart by their conditions, in order of
//! precedence. The file owns no host name; its inputs are the compiled matches of the host.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use ahash::RandomState;
use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;
use spillway_filter::Fields;

use super::candidates::Candidates;
use super::matcher::{
    Conditions, ConditionsKey, HeadView, Matcher, Met, PartialHead, PathKey, Truth, Undecided, Unknown,
};
use super::models::{ModelEntry, ModelGroup};
use super::prefixes::Prefixes;
use crate::topology::Route;

/// Routes of a host.
#[derive(Default)]
pub(super) struct HostRoutes {
    exact: HashMap<Box<str>, Heads, RandomState>,
    prefixes: Prefixes<Heads>,
    /// Regular expressions, then matches of any path.
    others: Heads,
    /// Each route once, in order of precedence.
    routes: Box<[Arc<Route>]>,
}

/// Matches with the same path.
#[derive(Default)]
struct Heads {
    /// In order of precedence.
    all: Box<[Head]>,
    /// Index by header; `None` where few matches ask for one.
    by_header: Option<Box<HeaderIndex>>,
}

/// Number of matches with headers above which they are indexed: below it, comparing them one after another is as fast.
const MOST_UNINDEXED: usize = 8;

/// Matches by one of the headers that they ask for, the one that the fewest others ask for. Matches have indices in order of
/// precedence.
struct HeaderIndex {
    by_value: Box<[(HeaderName, ByValue)]>,
    /// Matches without a header.
    others: Box<[u32]>,
}

type ByValue = HashMap<HeaderValue, Vec<u32>, RandomState>;

/// Match of a head, or several that differ in their models.
struct Head {
    conditions: Conditions,
    takes: Takes,
}

/// Routes that take what meets the conditions.
enum Takes {
    /// A route, whatever the model.
    Any(Arc<Route>),
    /// A route, whatever the model, where the conversation meets a condition.
    ByPrompt(ModelEntry),
    /// Routes by the model of the body.
    ByModel(Box<ModelGroup>),
}

/// Match of a route, in the making of the table.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) route: Arc<Route>,
    pub(super) matcher: Matcher,
    /// Identity of the conditions, where the match asks for a model.
    pub(super) key: Option<ConditionsKey>,
}

impl HostRoutes {
    /// Builds the index from matches in the order of the file. Those of equal rank stay in that order.
    pub(super) fn new(mut entries: Vec<Entry>) -> Self {
        entries.sort_by_key(|entry| entry.matcher.rank);
        let mut known = HashSet::new();
        let first = |entry: &&Entry| known.insert(Arc::as_ptr(&entry.route));
        let routes = entries.iter().filter(first).map(|entry| entry.route.clone()).collect();
        let mut paths: HashMap<PathKey, HeadsBuilder> = HashMap::new();
        for (position, entry) in (0..).zip(entries) {
            let Matcher { path, conditions, model, .. } = entry.matcher;
            let heads = paths.entry(path).or_default();
            match model.zip(entry.key) {
                None if conditions.read_prompt() => {
                    heads.heads.push((conditions, Taking::ByPrompt(ModelEntry { position, route: entry.route })));
                }
                None => heads.add(conditions, entry.route),
                Some((model, key)) => {
                    heads.add_model(conditions, key, model, ModelEntry { position, route: entry.route });
                }
            }
        }
        let (mut exact, mut prefixes, mut others) = (HashMap::default(), Vec::new(), Heads::default());
        for (path, heads) in paths {
            match path {
                PathKey::Exact(path) => {
                    exact.insert(path, heads.build());
                }
                PathKey::Prefix(path) => prefixes.push((path, heads.build())),
                PathKey::Other => others = heads.build(),
            }
        }
        exact.shrink_to_fit();
        Self { exact, prefixes: Prefixes::new(prefixes), others, routes }
    }

    /// Adds the routes that a head may take to `found`; `list` is the place of this host among those of the request. True
    /// if one of them takes it whatever its model.
    pub(super) fn find<'t>(&'t self, list: u32, head: &HeadView<'_>, found: &mut Candidates<'t>) -> bool {
        let exact = if self.exact.is_empty() { None } else { self.exact.get(head.path) };
        exact.is_some_and(|heads| heads.find(list, head, found))
            || self.prefixes.of(head.path, "/").any(|heads| heads.find(list, head, found))
            || self.others.find(list, head, found)
    }

    /// Looks for a condition that facts do not decide, in the order of [`HostRoutes::find`]. Breaks with it, or with nothing
    /// where a route takes the head whatever follows.
    pub(super) fn undecided(&self, head: &PartialHead<'_>) -> ControlFlow<Option<Undecided>> {
        let heads = self.exact.get(head.path).into_iter().chain(self.prefixes.of(head.path, "/")).chain([&self.others]);
        heads.flat_map(|heads| &heads.all).try_for_each(|known| match (known.conditions.truth(head), &known.takes) {
            (Truth::Fails, _) | (Truth::Holds, Takes::ByModel(_)) => ControlFlow::Continue(()),
            (Truth::Holds, Takes::Any(_) | Takes::ByPrompt(_)) => ControlFlow::Break(None),
            (Truth::Unknown(Unknown::Header(name)), _) => ControlFlow::Break(Some(Undecided::Header(name))),
            (Truth::Unknown(Unknown::Query), _) => ControlFlow::Break(Some(Undecided::Query)),
            (Truth::Unknown(Unknown::Expression), takes) => {
                let first = match takes {
                    Takes::Any(route) | Takes::ByPrompt(ModelEntry { route, .. }) => Some(route),
                    Takes::ByModel(models) => models.entries().first().map(|entry| &entry.route),
                };
                let name = first.map(|route| route.name.clone()).unwrap_or_default();
                ControlFlow::Break(Some(Undecided::Expression(name)))
            }
        })
    }

    /// Each route once, in order of precedence.
    pub(super) fn routes(&self) -> &[Arc<Route>] {
        &self.routes
    }
}

impl Heads {
    fn find<'t>(&'t self, list: u32, head: &HeadView<'_>, found: &mut Candidates<'t>) -> bool {
        match &self.by_header {
            None => self.all.iter().any(|known| known.find(list, head, found)),
            Some(index) => index.of(head.headers).iter().any(|known| {
                let known = usize::try_from(*known).ok().and_then(|known| self.all.get(known));
                known.is_some_and(|known| known.find(list, head, found))
            }),
        }
    }
}

impl Head {
    /// Adds its routes to `found` where a head meets its conditions. True if one takes the request whatever its model.
    fn find<'t>(&'t self, list: u32, head: &HeadView<'_>, found: &mut Candidates<'t>) -> bool {
        let asks = match self.conditions.judge(head) {
            Met::No => return false,
            Met::Yes => None,
            Met::Asks(condition) => Some(condition),
        };
        match (&self.takes, asks) {
            // Only what reads the conversation asks for it.
            (Takes::Any(route), _) | (Takes::ByPrompt(ModelEntry { route, .. }), None) => {
                found.end_with(route);
                true
            }
            (Takes::ByPrompt(entry), Some(condition)) => {
                found.add_route(list, entry, condition);
                false
            }
            (Takes::ByModel(group), asks) => {
                found.add_group(list, group, asks);
                false
            }
        }
    }
}

impl HeaderIndex {
    fn new(heads: &[Head]) -> Option<Box<Self>> {
        let mut asked: HashMap<&(HeaderName, HeaderValue), usize> = HashMap::new();
        for header in heads.iter().flat_map(|head| head.conditions.headers()) {
            *asked.entry(header).or_default() += 1;
        }
        let (mut by_value, mut others): (HashMap<&HeaderName, ByValue>, Vec<u32>) = (HashMap::new(), Vec::new());
        for (index, head) in (0..).zip(heads) {
            match head.conditions.headers().iter().min_by_key(|header| asked.get(header)) {
                Some((name, value)) => {
                    by_value.entry(name).or_default().entry(value.clone()).or_default().push(index);
                }
                None => others.push(index),
            }
        }
        (heads.len() - others.len() > MOST_UNINDEXED).then(|| {
            let by_value = by_value.into_iter().map(|(name, values)| (name.clone(), values)).collect();
            Box::new(Self { by_value, others: others.into() })
        })
    }

    /// Matches that a request with these headers could meet, in order of precedence.
    fn of(&self, headers: &Fields) -> SmallVec<[u32; 16]> {
        let mut found: SmallVec<[u32; 16]> = self.others.iter().copied().collect();
        for (name, by_value) in &self.by_value {
            let mut values: SmallVec<[&HeaderValue; 4]> = SmallVec::new();
            for value in headers.get_all(name) {
                // A caller may repeat a value, which finds no more than the first time.
                if let Some(matches) = by_value.get(value).filter(|_| !values.contains(&value)) {
                    found.extend_from_slice(matches);
                    values.push(value);
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Matches with the same path, as they are added in order of precedence.
#[derive(Default)]
struct HeadsBuilder {
    heads: Vec<(Conditions, Taking)>,
    /// Index of the head of each group.
    groups: HashMap<ConditionsKey, usize>,
}

/// Routes of a head, as they are added.
enum Taking {
    Any(Arc<Route>),
    ByPrompt(ModelEntry),
    ByModel(Vec<(Box<str>, ModelEntry)>),
}

impl HeadsBuilder {
    fn add(&mut self, conditions: Conditions, route: Arc<Route>) {
        self.heads.push((conditions, Taking::Any(route)));
    }

    /// Adds a match with a model to those with the same conditions. All of them precede every match without a model that
    /// has as many conditions, so that the place of the first one is that of the group.
    fn add_model(&mut self, conditions: Conditions, key: ConditionsKey, model: Box<str>, entry: ModelEntry) {
        let index = *self.groups.entry(key).or_insert(self.heads.len());
        match self.heads.get_mut(index) {
            Some((_, Taking::ByModel(models))) => models.push((model, entry)),
            Some((_, Taking::Any(_) | Taking::ByPrompt(_))) | None => {
                self.heads.push((conditions, Taking::ByModel(vec![(model, entry)])));
            }
        }
    }

    fn build(self) -> Heads {
        let head = |(conditions, taking)| {
            let takes = match taking {
                Taking::Any(route) => Takes::Any(route),
                Taking::ByPrompt(entry) => Takes::ByPrompt(entry),
                Taking::ByModel(models) => Takes::ByModel(Box::new(ModelGroup::new(models))),
            };
            Head { conditions, takes }
        };
        let all: Box<[Head]> = self.heads.into_iter().map(head).collect();
        let by_header = HeaderIndex::new(&all);
        Heads { all, by_header }
    }
}
