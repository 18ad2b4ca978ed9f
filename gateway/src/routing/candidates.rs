//! Routes that a request may take by its head. Usually there is one; routes that only the model in the body tells apart
//! stay together in their groups, and no list of them is made for a request. A group, or a route of its own, may have a condition
//! on the conversation.

use std::sync::Arc;

use smallvec::SmallVec;

use super::matcher::Condition;
use super::models::{Facts, ModelEntry, ModelGroup};
use crate::topology::Route;

/// Group of candidates, with the place of its host list among those of the request: an exact host name comes first.
#[derive(Clone, Copy)]
struct Group<'a> {
    list: u32,
    takes: Grouped<'a>,
    /// Condition on the conversation.
    asks: Option<Condition<'a>>,
}

/// Routes of a group.
#[derive(Clone, Copy)]
enum Grouped<'a> {
    Models(&'a ModelGroup),
    /// One, whatever the model.
    Route(&'a ModelEntry),
}

impl<'a> Grouped<'a> {
    fn entries(self) -> &'a [ModelEntry] {
        match self {
            Self::Models(group) => group.entries(),
            Self::Route(entry) => std::slice::from_ref(entry),
        }
    }

    fn facts(self) -> Option<Facts> {
        match self {
            Self::Models(group) => group.facts(),
            Self::Route(entry) => Some(Facts::of(&entry.route)),
        }
    }

    /// First entry for a body that names `model`.
    fn find(self, model: Option<&str>) -> Option<&'a ModelEntry> {
        match self {
            Self::Models(group) => group.find(model?),
            Self::Route(entry) => Some(entry),
        }
    }
}

/// Route for a model, with the condition that it has on the conversation.
struct Found<'a> {
    list: u32,
    entry: &'a ModelEntry,
    asks: Option<Condition<'a>>,
}

/// Routes that a request may take, in order of precedence: each but the last asks for a model in the body or has a condition on the
/// conversation.
#[derive(Default)]
pub struct Candidates<'a> {
    groups: SmallVec<[Group<'a>; 2]>,
    /// Route that takes the request whatever model its body names.
    last: Option<&'a Arc<Route>>,
}

impl<'a> Candidates<'a> {
    /// Single route, which takes the request whatever its body says.
    pub fn of(route: &'a Arc<Route>) -> Self {
        Self { groups: SmallVec::new(), last: Some(route) }
    }

    /// Adds the routes of a group.
    pub(super) fn add_group(&mut self, list: u32, models: &'a ModelGroup, asks: Option<Condition<'a>>) {
        self.groups.push(Group { list, takes: Grouped::Models(models), asks });
    }

    /// Adds a route with a condition on the conversation.
    pub(super) fn add_route(&mut self, list: u32, entry: &'a ModelEntry, asks: Condition<'a>) {
        self.groups.push(Group { list, takes: Grouped::Route(entry), asks: Some(asks) });
    }

    /// Ends the candidates with a route that asks for nothing in the body.
    pub(super) fn end_with(&mut self, route: &'a Arc<Route>) {
        self.last = Some(route);
    }

    /// Every candidate route, in order.
    pub fn routes(&self) -> Routes<'a> {
        let rest = self.groups.iter().map(|group| (group.list, group.takes.entries())).collect();
        Routes { rest, last: self.last }
    }

    /// Route, where the head alone decides it.
    pub fn only(&self) -> Option<&'a Arc<Route>> {
        if self.groups.is_empty() { self.last } else { None }
    }

    /// Narrows the candidates of an announced request to the first whose filters answer the preflight, if one does.
    pub fn answering_preflight(self) -> Option<Self> {
        self.facts().filter(|facts| facts.answer_preflight)?;
        self.routes().find(|route| route.answers_preflight).map(Self::of)
    }

    /// Narrows the candidates of a request for the list of models, or for the state of a server, to one that calls models,
    /// where all ask for a model: such a request names none.
    pub fn listing_models(self) -> Self {
        if self.last.is_some() {
            return self;
        }
        self.routes().find(|route| route.calls_models).map_or(self, Self::of)
    }

    /// True if a request gets the same rules (access, limits, models) by these candidates as by the others.
    pub fn rule_like(&self, other: &Candidates<'_>) -> bool {
        let (Some(own), Some(others)) = (self.facts(), other.facts()) else {
            return self.is_empty() && other.is_empty();
        };
        if own.rules.is_some() && own.rules == others.rules {
            return true;
        }
        self.len() == other.len() && self.routes().zip(other.routes()).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// True if no route matches.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.last.is_none()
    }

    fn len(&self) -> usize {
        self.groups.iter().map(|group| group.takes.entries().len()).sum::<usize>() + usize::from(self.last.is_some())
    }

    /// Candidates for a body that names `model`, in order of precedence, up to the first that has no condition on the conversation.
    fn found(&self, model: Option<&str>) -> SmallVec<[Found<'a>; 4]> {
        let find = |group: &Group<'a>| {
            group.takes.find(model).map(|entry| Found { list: group.list, entry, asks: group.asks })
        };
        let mut found: SmallVec<[Found<'a>; 4]> = self.groups.iter().filter_map(find).collect();
        found.sort_unstable_by_key(|found| (found.list, found.entry.position));
        let end = found.iter().position(|found| found.asks.is_none()).map_or(found.len(), |first| first + 1);
        found.truncate(end);
        found
    }

    /// Route for a body that names `model`, and a conversation for which `holds` tells the conditions.
    pub fn by_body(&self, model: Option<&str>, holds: impl Fn(Condition<'a>) -> bool) -> Option<&'a Arc<Route>> {
        let found = self.found(model).into_iter().find(|found| found.asks.is_none_or(&holds));
        found.map(|found| &found.entry.route).or(self.last)
    }

    /// Route for a body that names `model` and meets no condition on its conversation.
    pub fn by_model(&self, model: Option<&str>) -> Option<&'a Arc<Route>> {
        self.by_body(model, |_| false)
    }

    /// Conditions on the conversation that decide for a body that names `model`.
    pub fn conditions(&self, model: Option<&str>) -> impl Iterator<Item = Condition<'a>> + use<'a> {
        let found = if self.ask_for_prompt() { self.found(model) } else { SmallVec::new() };
        found.into_iter().filter_map(|found| found.asks)
    }

    /// True if a candidate has a condition on the conversation.
    pub fn ask_for_prompt(&self) -> bool {
        self.groups.iter().any(|group| group.asks.is_some())
    }

    /// Candidates of a request without a conversation, for which `holds` tells the conditions.
    pub fn without_prompt(self, holds: impl Fn(Condition<'a>) -> bool) -> Self {
        if !self.ask_for_prompt() {
            return self;
        }
        let mut left = Self { groups: SmallVec::new(), last: self.last };
        for group in self.groups {
            match group.takes {
                _ if group.asks.is_some_and(|asks| !holds(asks)) => {}
                Grouped::Models(_) => left.groups.push(Group { asks: None, ..group }),
                // Nothing of lesser precedence is asked.
                Grouped::Route(entry) => {
                    left.last = Some(&entry.route);
                    break;
                }
            }
        }
        left
    }

    /// True if every candidate refuses callers that are not known.
    pub fn all_require_caller(&self) -> bool {
        self.facts().is_none_or(|facts| facts.require_caller)
    }

    /// True if every candidate calls models.
    pub fn all_call_models(&self) -> bool {
        self.facts().is_none_or(|facts| facts.call_models)
    }

    /// True if a filter of one of the candidates decides by the path of the request.
    pub fn judge_path(&self) -> bool {
        self.facts().is_some_and(|facts| facts.judge_path)
    }

    /// Most bytes of a body that any of the candidates accepts.
    pub fn max_body(&self) -> u64 {
        self.facts().map_or(0, |facts| facts.max_body)
    }

    fn facts(&self) -> Option<Facts> {
        let of_groups = self.groups.iter().filter_map(|group| group.takes.facts());
        of_groups.chain(self.last.map(|route| Facts::of(route))).reduce(Facts::and)
    }
}

/// Candidate routes in order of precedence.
pub struct Routes<'a> {
    /// Rest of each group, with the place of its host list.
    rest: SmallVec<[(u32, &'a [ModelEntry]); 2]>,
    last: Option<&'a Arc<Route>>,
}

impl<'a> Iterator for Routes<'a> {
    type Item = &'a Arc<Route>;

    fn next(&mut self) -> Option<&'a Arc<Route>> {
        let position = |rest: &(u32, &[ModelEntry])| rest.1.first().map(|entry| (rest.0, entry.position));
        let nearest = self.rest.iter_mut().filter(|rest| !rest.1.is_empty()).min_by_key(|rest| position(rest));
        match nearest {
            Some((_, entries)) => {
                let (entry, others) = entries.split_first()?;
                *entries = others;
                Some(&entry.route)
            }
            None => self.last.take(),
        }
    }
}
