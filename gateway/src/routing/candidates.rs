//! Routes that a request may take by its head. Usually there is one; routes that only the model in the body tells apart
//! stay together in their groups, and no list of them is made for a request.

use std::sync::Arc;

use smallvec::SmallVec;

use super::models::{Facts, ModelEntry, ModelGroup};
use crate::topology::Route;

/// Group of candidates, with the place of its host list among those of the request: an exact host name comes first.
#[derive(Clone, Copy)]
struct Group<'a> {
    list: u32,
    models: &'a ModelGroup,
}

/// Routes that a request may take, in order of precedence: each but the last asks for a model in the body.
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
    pub(super) fn add_group(&mut self, list: u32, models: &'a ModelGroup) {
        self.groups.push(Group { list, models });
    }

    /// Ends the candidates with a route that asks for no model.
    pub(super) fn end_with(&mut self, route: &'a Arc<Route>) {
        self.last = Some(route);
    }

    /// Every candidate route, in order.
    pub fn routes(&self) -> Routes<'a> {
        let rest = self.groups.iter().map(|group| (group.list, group.models.entries())).collect();
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
        self.groups.iter().map(|group| group.models.entries().len()).sum::<usize>() + usize::from(self.last.is_some())
    }

    /// Route for a body that names `model`.
    pub fn by_model(&self, model: Option<&str>) -> Option<&'a Arc<Route>> {
        let found = |name: &str| {
            let of_groups =
                self.groups.iter().filter_map(|group| group.models.find(name).map(|entry| (group.list, entry)));
            of_groups.min_by_key(|(list, entry)| (*list, entry.position)).map(|(_, entry)| &entry.route)
        };
        model.and_then(found).or(self.last)
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
        let of_groups = self.groups.iter().filter_map(|group| group.models.facts());
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
