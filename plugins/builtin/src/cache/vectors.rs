//! Vectors of kept answers, and the search for the nearest one. The scan is exact: a short first part of each vector, in bytes,
//! bounds the similarity from above, and only vectors whose bound reaches the threshold are compared in full. The bound is that of
//! Cauchy and Schwarz for the rest, with the error of the rounding added, so that no vector is passed over.

use std::collections::HashMap;

use super::key::Key;

/// Most vectors of one group. A scan stays below a millisecond; further answers are found by the exact key alone.
const MAX_ROWS: usize = 100_000;
/// Multiple of the bytes of a first part: a loop over these has no remainder.
const LANES: usize = 16;
/// Rows whose products of first parts are computed at a time.
const BLOCK: usize = 64;
/// Added to each bound: rounding of the sums.
const SLACK: f32 = 1e-4;

/// Vectors by group and by key.
#[derive(Default)]
pub(super) struct Vectors {
    groups: HashMap<Key, Group>,
    places: HashMap<Key, Place>,
}

/// Place of a vector.
#[derive(Clone, Copy)]
struct Place {
    group: Key,
    row: usize,
}

/// Vectors of the requests that differ in one text alone.
#[derive(Default)]
struct Group {
    keys: Vec<Key>,
    /// First parts, rounded to bytes.
    heads: Vec<i8>,
    bounds: Vec<Bound>,
    /// Whole vectors.
    values: Vec<f32>,
    /// Values of a vector.
    width: usize,
}

/// Figures of a vector by which a first part bounds the similarity.
#[derive(Debug, Clone, Copy)]
struct Bound {
    /// Value of one step of the bytes.
    step: f32,
    /// Length of the first part as rounded.
    head: f32,
    /// Length of the difference that the rounding made.
    error: f32,
    /// Length of the rest.
    rest: f32,
}

fn length(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().map(|value| value * value).sum::<f32>().sqrt()
}

/// Values of the first part of a vector: a sixth bounds unrelated vectors well below the thresholds that are sensible.
fn head_of(width: usize) -> usize {
    (width / 6).next_multiple_of(LANES).min(width / LANES * LANES)
}

/// First part in bytes, and the figures of its bound.
#[allow(clippy::cast_possible_truncation, reason = "a rounded value is between -127 and 127")]
fn rounded(vector: &[f32]) -> (Vec<i8>, Bound) {
    let (head, rest) = vector.split_at_checked(head_of(vector.len())).unwrap_or((vector, &[]));
    let step = head.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0;
    let byte = |value: &f32| if step > 0.0 { (value / step).round() as i8 } else { 0 };
    let bytes: Vec<i8> = head.iter().map(byte).collect();
    let again = || bytes.iter().map(|byte| f32::from(*byte) * step);
    let error = length(head.iter().zip(again()).map(|(value, again)| value - again));
    let bound = Bound { step, head: length(again()), error, rest: length(rest.iter().copied()) };
    (bytes, bound)
}

/// Products of a first part with those of rows, one behind the other, of the same length: a multiple of [`LANES`]. A scan takes most
/// of its time here, so that this is compiled for the vector units of several processors.
#[multiversion::multiversion(targets("x86_64+avx+avx2+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx+avx2"))]
fn products_of_bytes(head: &[i16], rows: &[i8], products: &mut [i32]) {
    for (product, row) in products.iter_mut().zip(rows.chunks_exact(head.len().max(1))) {
        let mut sums = [0_i32; LANES];
        for (a, b) in head.chunks_exact(LANES).zip(row.chunks_exact(LANES)) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum += i32::from(*a) * i32::from(*b);
            }
        }
        *product = sums.iter().sum();
    }
}

/// Product of two vectors of the same length.
fn product(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

impl Group {
    /// Key of the nearest vector whose similarity is at least `threshold`, and that similarity.
    #[allow(clippy::cast_precision_loss, reason = "a product of bytes is far below 2^24")]
    fn nearest(&self, vector: &[f32], threshold: f32) -> Option<(Key, f32)> {
        if vector.len() != self.width {
            return None;
        }
        let (bytes, own) = rounded(vector);
        let head: Vec<i16> = bytes.iter().map(|byte| i16::from(*byte)).collect();
        let own_head = own.head + own.error;
        let (mut found, mut least) = (None, threshold);
        let mut products = [0; BLOCK];
        let blocks = self.heads.chunks(BLOCK * head.len().max(1)).zip(self.bounds.chunks(BLOCK)).enumerate();
        for (block, (bytes, bounds)) in blocks {
            products_of_bytes(&head, bytes, &mut products);
            for (n, (bound, of_bytes)) in bounds.iter().zip(products).enumerate() {
                let of_heads = of_bytes as f32 * own.step * bound.step;
                let most = of_heads + own.error * bound.head + own_head * bound.error + own.rest * bound.rest + SLACK;
                if most < least {
                    continue;
                }
                let row = block * BLOCK + n;
                let values = self.values.get(row * self.width..(row + 1) * self.width).unwrap_or_default();
                let similarity = product(vector, values);
                if similarity >= least {
                    (found, least) = (Some(row), similarity);
                }
            }
        }
        let key = self.keys.get(found?)?;
        Some((*key, least.min(1.0)))
    }

    fn push(&mut self, key: Key, vector: &[f32]) {
        let (bytes, bound) = rounded(vector);
        self.keys.push(key);
        self.heads.extend(bytes);
        self.bounds.push(bound);
        self.values.extend_from_slice(vector);
    }

    /// Removes a row; the last one takes its place. Returns the key of that one.
    fn remove(&mut self, row: usize) -> Option<Key> {
        let last = self.keys.len().checked_sub(1).filter(|last| row <= *last)?;
        let head = head_of(self.width);
        self.keys.swap_remove(row);
        self.bounds.swap_remove(row);
        self.heads.copy_within(last * head..(last + 1) * head, row * head);
        self.heads.truncate(last * head);
        self.values.copy_within(last * self.width..(last + 1) * self.width, row * self.width);
        self.values.truncate(last * self.width);
        self.keys.get(row).copied()
    }
}

/// Memory of a vector of so many values, bytes.
pub(super) fn memory(width: usize) -> usize {
    width * size_of::<f32>() + head_of(width) + size_of::<Bound>() + 3 * size_of::<Key>() + size_of::<Place>()
}

impl Vectors {
    /// Key of the answer whose text is nearest, of the group alone, and the similarity.
    pub(super) fn nearest(&self, group: &Key, vector: &[f32], threshold: f32) -> Option<(Key, f32)> {
        self.groups.get(group)?.nearest(vector, threshold)
    }

    /// Adds the vector of a text, or replaces that of its key. False where there is no room in the group, or its vectors have
    /// another width.
    pub(super) fn insert(&mut self, group: Key, key: Key, vector: &[f32]) -> bool {
        self.remove(&key);
        let rows = self.groups.entry(group).or_insert_with(|| Group { width: vector.len(), ..Group::default() });
        if rows.keys.len() >= MAX_ROWS || rows.width != vector.len() || head_of(rows.width) == 0 {
            if rows.keys.is_empty() {
                self.groups.remove(&group);
            }
            return false;
        }
        self.places.insert(key, Place { group, row: rows.keys.len() });
        rows.push(key, vector);
        true
    }

    /// Removes the vector of a key, if there is one.
    pub(super) fn remove(&mut self, key: &Key) {
        let Some(place) = self.places.remove(key) else { return };
        let Some(rows) = self.groups.get_mut(&place.group) else { return };
        if let Some(moved) = rows.remove(place.row) {
            self.places.insert(moved, place);
        }
        if rows.keys.is_empty() {
            self.groups.remove(&place.group);
        }
    }

    /// Number of vectors.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u32) -> Key {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        key
    }

    fn normal(mut vector: Vec<f32>) -> Vec<f32> {
        let length = length(vector.iter().copied()).max(f32::MIN_POSITIVE);
        vector.iter_mut().for_each(|value| *value /= length);
        vector
    }

    fn vector() -> impl Strategy<Value = Vec<f32>> {
        proptest::collection::vec(-1.0_f32..1.0, 50).prop_map(normal)
    }

    proptest! {
        #[test]
        fn the_scan_finds_what_a_plain_one_finds(
            kept in proptest::collection::vec((vector(), 0_u32..3), 1..40),
            removed in proptest::collection::vec(0_u32..40, 0..20),
            near in 0_usize..40,
            noise in vector(),
            share in 0.0_f32..1.0,
            threshold in -0.5_f32..1.0,
        ) {
            let mut vectors = Vectors::default();
            for (n, (vector, group)) in kept.iter().enumerate() {
                prop_assert!(vectors.insert(key(1000 + group), key(n as u32), vector));
            }
            for n in &removed {
                vectors.remove(&key(*n));
            }
            let (near, _) = &kept[near % kept.len()];
            let asked = normal(near.iter().zip(&noise).map(|(a, b)| a + share * b).collect());
            for group in 0..3 {
                let left = kept.iter().enumerate().filter(|(n, (_, of))| *of == group && !removed.contains(&(*n as u32)));
                let all = left.map(|(n, (vector, _))| (n as u32, product(&asked, vector)));
                let best = all.max_by(|a, b| a.1.total_cmp(&b.1)).filter(|(_, similarity)| *similarity >= threshold);
                let found = vectors.nearest(&key(1000 + group), &asked, threshold);
                // Two that are the same may stand for each other.
                prop_assert_eq!(found.map(|(_, similarity)| similarity), best.map(|(_, similarity)| similarity.min(1.0)));
            }
        }
    }

    #[test]
    fn a_vector_of_another_width_is_no_neighbour() {
        let mut vectors = Vectors::default();
        let wide = normal(vec![1.0; 32]);
        assert!(vectors.insert(key(1), key(2), &wide));
        assert!(!vectors.insert(key(1), key(3), &normal(vec![1.0; 48])));
        assert_eq!(vectors.nearest(&key(1), &normal(vec![1.0; 48]), 0.5), None);
        assert_eq!(vectors.nearest(&key(9), &wide, 0.5), None);
        assert_eq!(vectors.nearest(&key(1), &wide, 0.99).map(|(key, _)| key), Some(key(2)));
        assert!(!vectors.insert(key(4), key(5), &[1.0]), "too short to have a first part");
        vectors.remove(&key(2));
        assert!(vectors.len() == 0 && vectors.groups.is_empty());
    }
}
