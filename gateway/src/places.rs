//! Names that callers bring, such as those of tensors and labels, in a bounded number of places. Places are shared fairly: a caller
//! that brings many names loses some to callers that bring few, and none of these loses one to it. A name that two callers use counts
//! half for each, so that two that agree on their names hold no more than two that do not. Pure: time is given.

use serde::{Deserialize, Serialize};

/// Use of a name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    /// Number of the caller. Callers that cannot be told apart are one.
    pub caller: u64,
    /// Time in seconds.
    pub now: u64,
    /// Seconds without use after which a place is free for others.
    pub idle: u64,
}

/// Number of a caller by that of its consumer or address.
pub(crate) fn caller(number: u128) -> u64 {
    let [a, b, c, d, e, f, g, h, rest @ ..] = number.to_be_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h]) ^ u64::from_be_bytes(rest)
}

/// Place of a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Place {
    name: Box<str>,
    /// Number of the caller that brought the name. Not stored, since it may be an address: after a restart all names are of one caller.
    #[serde(skip)]
    holder: u64,
    /// True once another caller has used it too.
    is_shared: bool,
    /// Number of the first other caller that used it; without meaning unless it is shared. Not stored, as that of the holder.
    #[serde(skip)]
    other: u64,
    /// True for a name that no caller brought, and which stays.
    is_fixed: bool,
    uses: u64,
    /// Time of the last use, in seconds.
    used: u64,
    /// Number of names that had the place before.
    generation: u32,
}

/// Place that a name has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Index of the place.
    pub index: usize,
    /// Names that had the place before, which tells apart the names of one index.
    pub generation: u32,
    /// Name that has lost the place.
    pub displaced: Option<Box<str>>,
}

impl Place {
    /// Halves of the place that are this caller's.
    fn halves(&self, caller: u64) -> usize {
        match (self.is_shared, self.holder == caller, self.other == caller) {
            (false, true, _) | (true, true, true) => 2,
            (true, true, _) | (true, _, true) => 1,
            _ => 0,
        }
    }
}

/// Names in their places.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Places(Vec<Place>);

impl Places {
    /// Takes a place for a name, or finds the one that it has; `None` where none of `most` places may be taken from another name.
    /// A new name gets a free place; one of a name that is unused or that `is_free` tells; or the least used one of the caller that
    /// holds the most, if that is more than the newcomer's caller would hold with it. Of its names, one that nobody else uses goes first,
    /// then one that it shares with the caller that holds the most besides.
    pub(crate) fn take(&mut self, name: &str, by: Use, most: usize, is_free: impl Fn(usize) -> bool) -> Option<Taken> {
        let is_idle = |place: &Place| by.now.saturating_sub(place.used) > by.idle;
        if let Some(index) = self.index(name) {
            let place = self.0.get_mut(index)?;
            if is_idle(place) && !place.is_fixed {
                (place.holder, place.is_shared, place.uses) = (by.caller, false, 0);
            }
            if !place.is_shared && place.holder != by.caller {
                (place.is_shared, place.other) = (true, by.caller);
            }
            (place.uses, place.used) = (place.uses.saturating_add(1), by.now);
            return Some(Taken { index, generation: place.generation, displaced: None });
        }
        let fresh = |generation| Place {
            name: name.into(),
            holder: by.caller,
            is_shared: false,
            other: 0,
            is_fixed: false,
            uses: 1,
            used: by.now,
            generation,
        };
        if self.0.len() < most {
            self.0.push(fresh(0));
            return Some(Taken { index: self.0.len() - 1, generation: 0, displaced: None });
        }
        let open = || self.0.iter().enumerate().filter(|(_, place)| !place.is_fixed);
        let unused = open().filter(|(index, place)| is_idle(place) || is_free(*index));
        let index = match unused.min_by_key(|(_, place)| place.used) {
            Some((index, _)) => index,
            None => {
                let held = |caller: u64| open().map(|(_, place)| place.halves(caller)).sum::<usize>();
                let holders = open()
                    .flat_map(|(_, place)| [place.holder, if place.is_shared { place.other } else { place.holder }]);
                let greatest = holders.max_by_key(|holder| held(*holder))?;
                if held(greatest) <= held(by.caller) + 2 {
                    return None;
                }
                let its = open().filter(|(_, place)| place.halves(greatest) > 0);
                its.min_by_key(|(_, place)| {
                    let partner = if place.holder == greatest { place.other } else { place.holder };
                    let partners = if place.halves(greatest) == 2 { usize::MAX } else { held(partner) };
                    (std::cmp::Reverse(partners), place.uses, place.used)
                })?
                .0
            }
        };
        let place = self.0.get_mut(index)?;
        let generation = place.generation.wrapping_add(1);
        let displaced = std::mem::replace(place, fresh(generation)).name;
        Some(Taken { index, generation, displaced: Some(displaced) })
    }

    /// Makes these names, at most `most`, the ones that stay; the others keep places where there are any left.
    pub(crate) fn fix(&mut self, fixed: &[Box<str>], most: usize) {
        for place in &mut self.0 {
            place.is_fixed = fixed.contains(&place.name);
        }
        for name in fixed.iter().filter(|name| self.index(name).is_none()).cloned().collect::<Vec<_>>() {
            let (holder, is_shared, other, is_fixed) = (0, false, 0, true);
            self.0.push(Place { name, holder, is_shared, other, is_fixed, uses: 0, used: 0, generation: 0 });
        }
        self.0.sort_by_key(|place| !place.is_fixed);
        self.0.truncate(most);
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|place| *place.name == *name)
    }

    /// True if the name has a place.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.index(name).is_some()
    }

    /// Name at a place.
    pub(crate) fn name(&self, index: usize) -> Option<&str> {
        self.0.get(index).map(|place| &*place.name)
    }

    /// True if the name that took the place at this index is the `generation`-th there.
    pub(crate) fn is_at(&self, index: usize, generation: u32) -> bool {
        self.0.get(index).is_some_and(|place| place.generation == generation)
    }

    /// Names, by their places.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|place| &*place.name)
    }

    /// Number of names.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Place>() + self.names().map(str::len).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400;

    fn by(caller: u64, now: u64) -> Use {
        Use { caller, now, idle: DAY }
    }

    fn take(places: &mut Places, name: &str, by: Use) -> Option<Taken> {
        places.take(name, by, 8, |_| false)
    }

    #[test]
    fn a_caller_with_many_names_gives_places_to_one_with_few_and_takes_none_back() {
        let mut places = Places::default();
        for n in 0..100 {
            assert_eq!(take(&mut places, &format!("a{n}"), by(1, 0)).is_some(), n < 8, "{n}");
        }
        take(&mut places, "a0", by(1, 0));
        let displaced: Vec<_> =
            (0..8).filter_map(|n| take(&mut places, &format!("b{n}"), by(2, 1))?.displaced).collect();
        assert_eq!(displaced.len(), 4, "half each: {displaced:?}");
        assert!(places.contains("a0"), "the least used ones go");
        for n in 100..200 {
            assert_eq!(take(&mut places, &format!("a{n}"), by(1, 2)), None);
        }
        assert!((0..4).all(|n| places.contains(&format!("b{n}"))));
    }

    #[test]
    fn names_of_two_callers_and_fixed_ones_stay_while_they_are_used() {
        let mut places = Places::default();
        places.fix(&["fixed".into()], 8);
        for (n, caller) in (0..7).flat_map(|n| [(n, 1), (n, 2)]) {
            take(&mut places, &format!("both{n}"), by(caller, 0));
        }
        assert_eq!(take(&mut places, "own", by(1, DAY)), None);
        let freed = places.take("free", by(1, DAY), 8, |index| index == 4).unwrap();
        assert_eq!((freed.index, freed.displaced.as_deref()), (4, Some("both3")));
        take(&mut places, "both0", by(2, DAY));
        let taken = take(&mut places, "own", by(1, DAY + 1)).unwrap();
        assert_eq!((taken.generation, taken.displaced.as_deref()), (1, Some("both1")), "not used for a day");
        assert!(places.is_at(taken.index, 1) && !places.is_at(taken.index, 0));
        assert!(places.contains("fixed"));
        places.fix(&["new".into()], 3);
        assert_eq!((places.len(), places.name(0)), (3, Some("new")));
    }

    #[test]
    fn two_callers_that_use_the_same_names_do_not_keep_a_third_out() {
        let mut places = Places::default();
        for (n, caller) in (0..7).flat_map(|n| [(n, 1), (n, 2)]) {
            take(&mut places, &format!("both{n}"), by(caller, 0));
        }
        take(&mut places, "of two", by(1, 0));
        take(&mut places, "of two", by(3, 0));
        let displaced: Vec<_> =
            (0..8).filter_map(|n| take(&mut places, &format!("d{n}"), by(4, 0))?.displaced).collect();
        assert!(displaced.len() >= 2, "{displaced:?}");
        assert!(places.contains("of two"), "those of callers with many go first: {displaced:?}");
    }

    proptest! {
        /// Whatever callers bring in whatever order, a caller that alone holds at most its share of the places loses none.
        #[test]
        fn who_holds_a_fair_share_keeps_it(uses in prop::collection::vec((1u64..5, 0u32..12), 1..300)) {
            let mut places = Places::default();
            for (caller, name) in uses {
                let before = places.clone();
                let taken = take(&mut places, &format!("{caller}-{name}"), by(caller, 0));
                prop_assert!(places.len() <= 8);
                if let Some(displaced) = taken.and_then(|taken| taken.displaced) {
                    let lost = before.0.iter().find(|place| place.name == displaced).unwrap();
                    let held = before.0.iter().filter(|place| place.holder == lost.holder).count();
                    prop_assert!(lost.holder != caller && held > 2, "{held} of 8 places among four");
                }
            }
        }
    }
}
