//! Routes that one head leads to and only the model in the body tells apart: found by the name of the model, however many
//! they are. The file owns the index of one such group; its inputs are the matches of a host in order of precedence.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use spillway_config::ModelPattern;
use spillway_config::schema::RouteAuthentication;

use super::prefixes::Prefixes;
use crate::topology::Route;

/// Facts of several routes together, which steps before the final route ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    /// True if all routes refuse callers that are not known.
    pub(super) require_caller: bool,
    /// True if all routes call models.
    pub(super) call_models: bool,
    /// True if one of the routes answers preflight requests.
    pub(super) answer_preflight: bool,
    /// True if a filter of one of the routes decides by the path.
    pub(super) judge_path: bool,
    /// Most bytes of a body on any of the routes.
    pub(super) max_body: u64,
    /// Number of the rules for callers; `None` where the routes have different ones.
    pub(super) rules: Option<usize>,
}

impl Facts {
    /// Facts of one route.
    pub(super) fn of(route: &Route) -> Self {
        Self {
            require_caller: route.authentication == RouteAuthentication::Required,
            call_models: route.calls_models,
            answer_preflight: route.answers_preflight,
            judge_path: route.judges_path,
            max_body: route.max_body,
            rules: Some(route.rules),
        }
    }

    /// Facts of these routes and of others.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            require_caller: self.require_caller && other.require_caller,
            call_models: self.call_models && other.call_models,
            answer_preflight: self.answer_preflight || other.answer_preflight,
            judge_path: self.judge_path || other.judge_path,
            max_body: self.max_body.max(other.max_body),
            rules: self.rules.filter(|_| self.rules == other.rules),
        }
    }
}

/// Route for a model, with its position among the matches of its host.
#[derive(Clone)]
pub(super) struct ModelEntry {
    pub(super) position: u32,
    pub(super) route: Arc<Route>,
}

/// Routes that the same heads lead to, by the model that a body must name.
pub(super) struct ModelGroup {
    /// In order of precedence.
    entries: Box<[ModelEntry]>,
    /// Index of the first entry for each name without a wildcard.
    exact: HashMap<Box<str>, u32, RandomState>,
    /// Patterns with the indices of their entries, by the text before the first wildcard.
    patterns: Prefixes<Vec<(u32, ModelPattern)>>,
    facts: Option<Facts>,
}

impl ModelGroup {
    /// Builds a group from models with their routes, in order of precedence.
    pub(super) fn new(models: Vec<(Box<str>, ModelEntry)>) -> Self {
        let mut exact = HashMap::default();
        let mut patterns: HashMap<Box<str>, Vec<(u32, ModelPattern)>> = HashMap::new();
        let mut entries = Vec::with_capacity(models.len());
        let mut facts: Option<Facts> = None;
        for (index, (model, entry)) in (0..).zip(models) {
            match model.split_once('*') {
                None => {
                    exact.entry(model).or_insert(index);
                }
                Some((before, _)) => {
                    patterns.entry(before.into()).or_default().push((index, ModelPattern::new(&model)));
                }
            }
            let own = Facts::of(&entry.route);
            facts = Some(facts.map_or(own, |facts| facts.and(own)));
            entries.push(entry);
        }
        exact.shrink_to_fit();
        Self { entries: entries.into(), exact, patterns: Prefixes::new(patterns), facts }
    }

    /// Entries in order of precedence.
    pub(super) fn entries(&self) -> &[ModelEntry] {
        &self.entries
    }

    /// Facts of all routes together; `None` where there is no route.
    pub(super) fn facts(&self) -> Option<Facts> {
        self.facts
    }

    /// First entry whose match accepts a model of this name.
    pub(super) fn find(&self, model: &str) -> Option<&ModelEntry> {
        let mut first = self.exact.get(model).copied();
        for patterns in self.patterns.of(model, "") {
            let earlier = patterns.iter().take_while(|(index, _)| first.is_none_or(|first| *index < first));
            let found = earlier.filter(|(_, pattern)| pattern.matches(model)).map(|(index, _)| *index).next();
            first = found.or(first);
        }
        self.entries.get(usize::try_from(first?).ok()?)
    }
}
