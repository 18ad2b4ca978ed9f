//! Sketches of the requests of one stretch of time at one target, in bounded memory, and their distances from others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use spillway_statistics::compact::Compact;
use spillway_statistics::drift::categories::{Categories, NAME_BYTES};
use spillway_statistics::drift::distance::{binned, jensen_shannon, kolmogorov_smirnov, psi, wasserstein};
use spillway_statistics::drift::embedding::Centroid;

use super::feature::{Feature, Recipe};

/// Categories of a feature that are counted by name; further ones count together.
pub(super) const CATEGORIES: usize = 24;
/// Buckets of words by their hash.
pub(super) const WORD_BUCKETS: usize = 256;
/// Requests that each side of a comparison needs: with 300 on both sides, chance alone moves a distribution function by 0.2
/// once in 80,000 comparisons (Massart 1990).
pub(super) const LEAST_ROWS: u64 = 300;
/// Observations for each category that each side of a comparison of shares needs, so that chance alone stays near 0.1.
const LEAST_PER_CATEGORY: u64 = 25;

/// Counts in numbered buckets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buckets(Vec<u32>);

impl Buckets {
    /// Empty buckets.
    pub fn new(number: usize) -> Self {
        Self(vec![0; number])
    }

    /// Counts one in a bucket.
    pub fn add(&mut self, bucket: usize) {
        if let Some(count) = self.0.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
    }

    fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (ours, theirs) in self.0.iter_mut().zip(&other.0) {
            *ours = ours.saturating_add(*theirs);
        }
    }

    /// Counts of all buckets.
    pub fn counts(&self) -> &[u32] {
        &self.0
    }

    fn total(&self) -> u64 {
        self.0.iter().map(|count| u64::from(*count)).sum()
    }
}

/// Sketch of one feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Values {
    /// Numbers.
    Numbers(Compact),
    /// Shares of categories.
    Shares(Categories),
    /// Shares of numbered buckets.
    Buckets(Buckets),
    /// Mean of vectors.
    Centre(Centroid),
}

/// Numbers by the names of the categories that they were counted as; `None` where one is no number, or some have no name.
fn numbers_of(shares: &Categories) -> Option<Compact> {
    let mut numbers = Compact::default();
    for (name, count) in shares.counts() {
        numbers.add_many(name.parse().ok()?, u32::try_from(count).unwrap_or(u32::MAX));
    }
    (shares.rest() == 0).then_some(numbers)
}

impl Values {
    fn merge(&mut self, other: &Self) {
        // Whole numbers are numbers as soon as one stretch has too many for categories, or both together have.
        if let (Self::Shares(ours), Self::Numbers(_)) = (&*self, other)
            && let Some(numbers) = numbers_of(ours)
        {
            *self = Self::Numbers(numbers);
        }
        if let (Self::Shares(ours), Self::Shares(theirs)) = (&*self, other) {
            let more = theirs.counts().filter(|(name, _)| !ours.counts().any(|(known, _)| known == *name));
            if ours.counts().count() + more.count() > CATEGORIES
                && let Some(mut numbers) = numbers_of(ours)
                && let Some(others) = numbers_of(theirs)
            {
                numbers.merge(&others);
                *self = Self::Numbers(numbers);
                return;
            }
        }
        match (self, other) {
            (Self::Numbers(ours), Self::Numbers(theirs)) => ours.merge(theirs),
            (Self::Numbers(ours), Self::Shares(theirs)) if numbers_of(theirs).is_some() => {
                if let Some(theirs) = numbers_of(theirs) {
                    ours.merge(&theirs);
                }
            }
            (Self::Shares(ours), Self::Shares(theirs)) => ours.merge(theirs),
            (Self::Buckets(ours), Self::Buckets(theirs)) => ours.merge(theirs),
            (Self::Centre(ours), Self::Centre(theirs)) => {
                // Of another embedder: the newer vectors count.
                if ours.merge(theirs).is_err() {
                    *ours = theirs.clone();
                }
            }
            // Numbers in one stretch and texts in another: the newer kind counts.
            (ours, theirs) => *ours = theirs.clone(),
        }
    }

    /// Observations.
    pub fn count(&self) -> u64 {
        match self {
            Self::Numbers(numbers) => numbers.count(),
            Self::Shares(shares) => shares.total(),
            Self::Buckets(buckets) => buckets.total(),
            Self::Centre(centre) => centre.count(),
        }
    }

    fn bytes(&self) -> usize {
        let beside = match self {
            Self::Numbers(numbers) => numbers.bytes() - size_of::<Compact>(),
            Self::Shares(shares) => shares.counts().map(|(name, _)| name.len() + CATEGORY_BYTES).sum(),
            Self::Buckets(buckets) => buckets.0.capacity() * size_of::<u32>(),
            Self::Centre(centre) => centre.dimension() * size_of::<f64>(),
        };
        size_of::<Self>() + beside
    }

    fn is_consistent(&self) -> bool {
        match self {
            Self::Numbers(numbers) => numbers.is_consistent(),
            Self::Shares(shares) => {
                let counted = shares.counts().map(|(_, count)| count).sum::<u64>();
                shares.room() <= CATEGORIES
                    && shares.counts().count() <= CATEGORIES
                    && shares.counts().all(|(_, count)| count > 0)
                    && counted <= shares.total()
                    && shares.counts().all(|(name, _)| name.len() <= NAME_BYTES)
            }
            Self::Buckets(buckets) => buckets.0.len() <= WORD_BUCKETS,
            Self::Centre(centre) => centre.dimension() <= super::MAX_DIMENSION,
        }
    }
}

/// Bytes of a category in its map beside its name: the string's header, its count, and its part of a node.
const CATEGORY_BYTES: usize = 48;
/// Bytes of a feature in the map of a pane beside its values: its part of a node.
const FEATURE_BYTES: usize = 48;

/// Distances of a window from a reference in one feature.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Distances {
    /// Recipe that is judged.
    pub recipe: Recipe,
    /// Distance by that recipe.
    pub judged: f64,
    /// True if both sides have enough observations for the distance to mean something.
    pub is_enough: bool,
    /// Population stability index.
    pub psi: Option<f64>,
    /// Jensen-Shannon distance.
    pub jensen_shannon: Option<f64>,
    /// Kolmogorov-Smirnov distance.
    pub kolmogorov_smirnov: Option<f64>,
    /// Wasserstein distance over the reference's deviation.
    pub wasserstein: Option<f64>,
}

fn of_shares(pairs: &[(f64, f64)], counts: (u64, u64)) -> Option<Distances> {
    let judged = jensen_shannon(pairs)?;
    let kinds = pairs.iter().filter(|pair| pair.0 + pair.1 > 0.0).count();
    let least = u64::try_from(kinds).unwrap_or(u64::MAX).saturating_mul(LEAST_PER_CATEGORY);
    Some(Distances {
        recipe: Recipe::JensenShannon,
        judged,
        is_enough: counts.0 >= least && counts.1 >= least,
        psi: psi(pairs),
        jensen_shannon: Some(judged),
        kolmogorov_smirnov: None,
        wasserstein: None,
    })
}

/// Distances of a window from a reference; `None` where one has nothing, or the two are of different kinds.
pub(super) fn distances(reference: &Values, window: &Values) -> Option<Distances> {
    let counts = (reference.count(), window.count());
    match (reference, window) {
        (Values::Numbers(reference), Values::Numbers(window)) => {
            let (reference, window) = reference.sketches(window);
            let judged = kolmogorov_smirnov(&reference, &window)?.statistic;
            let pairs = binned(&reference, &window);
            Some(Distances {
                recipe: Recipe::KolmogorovSmirnov,
                judged,
                is_enough: true,
                psi: psi(&pairs),
                jensen_shannon: jensen_shannon(&pairs),
                kolmogorov_smirnov: Some(judged),
                wasserstein: wasserstein(&reference, &window),
            })
        }
        (Values::Shares(reference), Values::Shares(window)) => of_shares(&reference.paired(window), counts),
        (Values::Numbers(_), Values::Shares(shares)) => distances(reference, &Values::Numbers(numbers_of(shares)?)),
        (Values::Shares(shares), Values::Numbers(_)) => distances(&Values::Numbers(numbers_of(shares)?), window),
        (Values::Buckets(reference), Values::Buckets(window)) => {
            let pairs: Vec<_> =
                reference.0.iter().zip(&window.0).map(|(a, b)| (f64::from(*a), f64::from(*b))).collect();
            of_shares(&pairs, counts)
        }
        (Values::Centre(reference), Values::Centre(window)) => Some(Distances {
            recipe: Recipe::Cosine,
            judged: reference.distance(window)?,
            is_enough: true,
            psi: None,
            jensen_shannon: None,
            kolmogorov_smirnov: None,
            wasserstein: None,
        }),
        _ => None,
    }
}

/// Sketches of the requests of one stretch of time at one target.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pane {
    /// Begin in Unix seconds.
    pub began: f64,
    /// Requests that were looked at.
    pub rows: u64,
    /// Sketches.
    pub features: BTreeMap<Feature, Values>,
}

impl Pane {
    /// Empty pane.
    pub fn new(began: f64) -> Self {
        Self { began, ..Self::default() }
    }

    /// Adds a number.
    pub fn number(&mut self, feature: Feature, value: f64) {
        let fresh = || Values::Numbers(Compact::default());
        match self.features.entry(feature).or_insert_with(fresh) {
            Values::Numbers(numbers) => numbers.add(value),
            other => {
                let mut numbers = Compact::default();
                numbers.add(value);
                *other = Values::Numbers(numbers);
            }
        }
    }

    /// Counts a category.
    pub fn category(&mut self, feature: Feature, name: &str) {
        let fresh = || Values::Shares(Categories::new(CATEGORIES));
        match self.features.entry(feature).or_insert_with(fresh) {
            Values::Shares(shares) => shares.add(name),
            other => {
                let mut shares = Categories::new(CATEGORIES);
                shares.add(name);
                *other = Values::Shares(shares);
            }
        }
    }

    /// Counts a whole number or a truth value: as a category, and as a number once there are more than [`CATEGORIES`] of them.
    pub fn whole(&mut self, feature: Feature, name: &str) {
        match self.features.get_mut(&feature) {
            Some(Values::Numbers(numbers)) => {
                if let Ok(value) = name.parse() {
                    numbers.add(value);
                }
                return;
            }
            Some(values @ Values::Shares(_)) => {
                let Values::Shares(shares) = &*values else { return };
                let is_new = !shares.counts().any(|(known, _)| known == name);
                if is_new
                    && shares.counts().count() >= CATEGORIES
                    && let (Ok(value), Some(mut numbers)) = (name.parse(), numbers_of(shares))
                {
                    numbers.add(value);
                    *values = Values::Numbers(numbers);
                    return;
                }
            }
            _ => {}
        }
        self.category(feature, name);
    }

    /// Counts one in a bucket of `number`.
    pub fn bucket(&mut self, feature: Feature, bucket: usize, number: usize) {
        if let Values::Buckets(buckets) =
            self.features.entry(feature).or_insert_with(|| Values::Buckets(Buckets::new(number)))
        {
            buckets.add(bucket);
        }
    }

    /// Adds a vector. One without a direction is left out.
    pub fn vector(&mut self, feature: Feature, vector: &[f32]) {
        let fresh = || Values::Centre(Centroid::new(vector.len()));
        if let Values::Centre(centre) = self.features.entry(feature).or_insert_with(fresh)
            && centre.add(vector).is_err()
        {
            let mut other = Centroid::new(vector.len());
            if other.add(vector).is_ok() {
                *centre = other;
            }
        }
    }

    /// Adds the requests of another pane.
    pub fn merge(&mut self, other: &Self) {
        self.rows += other.rows;
        if other.began > 0.0 {
            self.began = if self.began > 0.0 { self.began.min(other.began) } else { other.began };
        }
        for (feature, values) in &other.features {
            match self.features.get_mut(feature) {
                Some(ours) => ours.merge(values),
                None => {
                    self.features.insert(feature.clone(), values.clone());
                }
            }
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        let features = self.features.iter();
        let each =
            features.map(|(feature, values)| values.bytes() + FEATURE_BYTES + feature.tensor().map_or(0, str::len));
        size_of::<Self>() + each.sum::<usize>()
    }

    /// True if no reader can be misled: of a pane that was read from a file.
    pub fn is_consistent(&self) -> bool {
        self.features.len() <= super::MAX_FEATURES
            && self.began.is_finite()
            && self.features.iter().all(|(feature, values)| {
                values.is_consistent() && feature.tensor().is_none_or(|name| name.len() <= super::MAX_NAME)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_categories_while_they_are_few_and_numbers_then() {
        let feature = || Feature::Input("x".into());
        let pane = |values: &[i64]| {
            let mut pane = Pane::new(1.0);
            values.iter().for_each(|value| pane.whole(feature(), &value.to_string()));
            pane
        };
        let values = |pane: &Pane| pane.features[&feature()].clone();
        let few: Vec<i64> = (0..24).chain(0..24).collect();
        assert!(matches!(values(&pane(&few)), Values::Shares(_)));
        let all: Vec<i64> = few.iter().copied().chain(100..130).collect();
        let Values::Numbers(numbers) = values(&pane(&all)) else { panic!("24 are too few for 54") };
        assert_eq!((numbers.count(), numbers.range(), numbers.missing()), (78, Some((0.0, 129.0)), 0));
        assert!((numbers.mean().unwrap() - all.iter().sum::<i64>() as f64 / 78.0).abs() < 1e-9);
        // Stretches of both kinds are one, in any order, and are compared.
        let more: Vec<i64> = (100..130).collect();
        for (one, other) in [(&few, &more), (&more, &few), (&few[..20].to_vec(), &more[..20].to_vec())] {
            let mut merged = pane(one);
            merged.merge(&pane(other));
            let Values::Numbers(both) = values(&merged) else { panic!("{one:?} {other:?}") };
            assert_eq!(both.count(), (one.len() + other.len()) as u64);
        }
        assert!(distances(&values(&pane(&few)), &values(&pane(&more))).unwrap().judged > 0.999);
        assert_eq!(distances(&values(&pane(&more)), &values(&pane(&few))).unwrap().recipe, Recipe::KolmogorovSmirnov);
        let mut truth = pane(&more);
        truth.whole(Feature::Output("y".into()), "true");
        assert!(matches!(truth.features[&Feature::Output("y".into())], Values::Shares(_)));
    }

    #[test]
    fn merged_panes_are_the_pane_of_both_and_kinds_do_not_mix() {
        let (mut one, mut other, mut both) = (Pane::new(1.0), Pane::new(2.0), Pane::new(1.0));
        for (n, pane) in [(0, true), (1, false), (2, true)] {
            let add = |pane: &mut Pane| {
                pane.rows += 1;
                pane.number(Feature::PromptLength, f64::from(n));
                pane.category(Feature::Language, if n == 0 { "deu" } else { "eng" });
                pane.bucket(Feature::Words, n as usize, WORD_BUCKETS);
                pane.vector(Feature::Embedding, &[1.0, n as f32]);
            };
            add(&mut both);
            add(if pane { &mut one } else { &mut other });
        }
        one.merge(&other);
        for (feature, values) in &both.features {
            if let (Values::Centre(one), Values::Centre(both)) = (&one.features[feature], values) {
                assert!(one.distance(both).unwrap() < 1e-12 && one.count() == 3);
            } else {
                assert_eq!(one.features[feature].count(), values.count());
            }
        }
        one.category(Feature::PromptLength, "x");
        assert_eq!(one.features[&Feature::PromptLength].count(), 1);
        let text = serde_json::to_string(&one).unwrap();
        let read: Pane = serde_json::from_str(&text).unwrap();
        assert!(read == one && read.is_consistent());
    }
}
