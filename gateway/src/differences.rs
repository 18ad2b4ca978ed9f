//! Differences of two configurations: one walk, linear in the size of both, that tells every value that differs with its path.
//! Entries of a list are told by their names, so that one that is added moves no other. Owns no form of output; its callers,
//! the kept edits and `spillway diff`, write what it finds. Inputs are configurations as they are shown, without secrets.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Display};
use std::ops::ControlFlow;

use serde_json::{Map, Value};

/// Members that name an entry of a list, the first that an entry has.
const NAMES: [&str; 4] = ["name", "model", "url", "issuer"];
/// Entries of a list that is not there.
const NONE: &[Value] = &[];

/// Part of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'v> {
    /// Member of an object.
    Member(&'v str),
    /// Entry of a list whose entries all have names of their own.
    Entry(&'v str),
    /// Entry of another list.
    Place(usize),
}

/// Path written as in `routes[chat].backendRefs[0].weight`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path<'a>(pub(crate) &'a [Part<'a>]);

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, part) in self.0.iter().enumerate() {
            match part {
                Part::Member(name) if place == 0 => f.write_str(name)?,
                Part::Member(name) => write!(f, ".{name}")?,
                Part::Entry(name) => write!(f, "[{name}]")?,
                Part::Place(number) => write!(f, "[{number}]")?,
            }
        }
        Ok(())
    }
}

/// Difference at a path.
#[derive(Debug)]
pub(crate) enum Difference<'v> {
    /// Values that differ. A value that is not there is `None`, as is `null`: a key without a value is not there.
    Values(Option<&'v Value>, Option<&'v Value>),
    /// Lists that differ, at least one of which has plain values.
    Lists(&'v [Value], &'v [Value]),
    /// Names of the entries that both lists have, in the order of each.
    Order(Vec<&'v str>, Vec<&'v str>),
}

/// Calls `found` for each difference from `before` to `after`, in the order of paths, until it breaks.
///
/// Objects are compared by their members, and lists whose entries all have names of their own by these names. Other lists of
/// objects are compared place by place. Lists of plain values are compared as a whole.
pub(crate) fn between<'v>(
    before: &'v Value,
    after: &'v Value,
    found: impl FnMut(Path<'_>, Difference<'v>) -> ControlFlow<()>,
) {
    let mut walk = Walk { path: Vec::new(), found };
    // Broken only by `found`, which knows that it has broken.
    let _ = walk.values(Some(before), Some(after));
}

/// Places of the entries of a list by their names, if each has one of its own.
pub(crate) fn named(entries: &[Value]) -> Option<HashMap<&str, usize>> {
    let names = entries.iter().enumerate().map(|(place, entry)| Some((name_of(entry)?, place)));
    let names: HashMap<&str, usize> = names.collect::<Option<_>>()?;
    (names.len() == entries.len()).then_some(names)
}

/// Name of an entry of a list.
pub(crate) fn name_of(entry: &Value) -> Option<&str> {
    NAMES.into_iter().find_map(|key| entry.get(key)?.as_str())
}

struct Walk<'v, F> {
    path: Vec<Part<'v>>,
    found: F,
}

impl<'v, F: FnMut(Path<'_>, Difference<'v>) -> ControlFlow<()>> Walk<'v, F> {
    fn values(&mut self, before: Option<&'v Value>, after: Option<&'v Value>) -> ControlFlow<()> {
        let [before, after] = [before, after].map(|value| value.filter(|value| !value.is_null()));
        // Not compared whole here: with a comparison at each level, the walk would be quadratic in the depth.
        match (before, after) {
            (None, None) => ControlFlow::Continue(()),
            (Some(Value::Object(before)), Some(Value::Object(after))) => self.objects(before, after),
            (Some(Value::Array(old)), Some(Value::Array(new))) => self.lists(old, new),
            // A list that comes or goes as a whole is told by its entries, where these have names.
            (None, Some(Value::Array(new))) if names_entries(new) => self.lists(NONE, new),
            (Some(Value::Array(old)), None) if names_entries(old) => self.lists(old, NONE),
            _ if before == after => ControlFlow::Continue(()),
            _ => (self.found)(Path(&self.path), Difference::Values(before, after)),
        }
    }

    fn objects(&mut self, before: &'v Map<String, Value>, after: &'v Map<String, Value>) -> ControlFlow<()> {
        let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        keys.into_iter().try_for_each(|key| self.within(Part::Member(key), before.get(key), after.get(key)))
    }

    fn lists(&mut self, before: &'v [Value], after: &'v [Value]) -> ControlFlow<()> {
        if let (Some(old), Some(new)) = (named(before), named(after)) {
            return self.entries(before, after, &old, &new);
        }
        if before.iter().chain(after).all(Value::is_object) {
            let mut places = 0..before.len().max(after.len());
            return places.try_for_each(|place| self.within(Part::Place(place), before.get(place), after.get(place)));
        }
        if before == after {
            return ControlFlow::Continue(());
        }
        (self.found)(Path(&self.path), Difference::Lists(before, after))
    }

    fn entries(
        &mut self,
        before: &'v [Value],
        after: &'v [Value],
        old: &HashMap<&'v str, usize>,
        new: &HashMap<&'v str, usize>,
    ) -> ControlFlow<()> {
        let made = after.iter().filter_map(name_of).filter(|name| !old.contains_key(name));
        for name in before.iter().filter_map(name_of).chain(made) {
            let entry = |list: &'v [Value], places: &HashMap<&str, usize>| list.get(*places.get(name)?);
            self.within(Part::Entry(name), entry(before, old), entry(after, new))?;
        }
        let common = |list: &'v [Value], other: &HashMap<&str, usize>| -> Vec<&'v str> {
            list.iter().filter_map(name_of).filter(|name| other.contains_key(name)).collect()
        };
        let (was, is) = (common(before, new), common(after, old));
        if was == is {
            return ControlFlow::Continue(());
        }
        (self.found)(Path(&self.path), Difference::Order(was, is))
    }

    fn within(&mut self, part: Part<'v>, before: Option<&'v Value>, after: Option<&'v Value>) -> ControlFlow<()> {
        self.path.push(part);
        let flow = self.values(before, after);
        self.path.pop();
        flow
    }
}

/// True for a list that has entries, each with a name of its own.
fn names_entries(list: &[Value]) -> bool {
    !list.is_empty() && named(list).is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(before: &Value, after: &Value) -> Vec<String> {
        let mut all = Vec::new();
        between(before, after, |path, difference| {
            all.push(format!("{path} {difference:?}"));
            ControlFlow::Continue(())
        });
        all
    }

    #[test]
    fn every_value_that_differs_is_told_once_by_its_path() {
        let before = json!({"a": {"b": 1, "same": [1]}, "list": [{"url": "u", "w": 1}], "plain": ["x"], "gone": null});
        let after = json!({"a": {"b": 2, "same": [1]}, "list": [{"url": "u", "w": 2}], "plain": ["x", "y"]});
        let all = found(&before, &after);
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(all[0].starts_with("a.b Values(") && all[1].starts_with("list[u].w Values("), "{all:?}");
        assert!(all[2].starts_with("plain Lists("), "{all:?}");
        assert!(found(&before, &before).is_empty());
    }

    #[test]
    fn a_list_that_comes_or_goes_is_told_by_its_entries() {
        let list = json!({"routes": [{"name": "a"}, {"name": "b"}]});
        for none in [json!({}), json!({"routes": null}), json!({"routes": []})] {
            let paths = |all: Vec<String>| -> Vec<String> {
                all.iter().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
            };
            assert_eq!(paths(found(&none, &list)), ["routes[a]", "routes[b]"], "{none}");
            assert_eq!(paths(found(&list, &none)), ["routes[a]", "routes[b]"], "{none}");
        }
    }

    #[test]
    fn the_walk_ends_where_it_is_told_to() {
        let (before, after) = (json!({"a": 1, "b": 1}), json!({"a": 2, "b": 2}));
        let mut times = 0;
        between(&before, &after, |_, _| {
            times += 1;
            ControlFlow::Break(())
        });
        assert_eq!(times, 1);
    }

    #[test]
    fn long_lists_are_compared_in_one_pass() {
        // Two hundred thousand entries in reversed order: each looked for among all others would take minutes.
        let list = |numbers: &mut dyn Iterator<Item = u32>| -> Value {
            numbers.map(|number| json!({"name": format!("r{number}"), "v": 1})).collect()
        };
        let (before, after) = (list(&mut (0..200_000)), list(&mut (0..200_000).rev()));
        assert_eq!(found(&before, &after).len(), 1);
    }
}
