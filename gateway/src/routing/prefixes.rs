//! Texts that other texts begin with: finds every prefix of a text among many, the longest first, by one search in a sorted
//! list and a walk over the prefixes that match. A file of its own because paths and model names are both looked up so.

/// Values by prefix.
#[derive(Debug)]
pub(super) struct Prefixes<T> {
    /// In the order of their bytes.
    entries: Box<[Entry<T>]>,
}

#[derive(Debug)]
struct Entry<T> {
    prefix: Box<str>,
    /// Index of the longest other prefix that this one begins with.
    parent: Option<u32>,
    value: T,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { entries: Box::default() }
    }
}

/// Prefixes of one text, the longest first.
pub(super) struct Matching<'p, T> {
    prefixes: &'p Prefixes<T>,
    next: Option<&'p Entry<T>>,
}

impl<T> Prefixes<T> {
    /// Builds the list from distinct prefixes.
    pub(super) fn new(values: impl IntoIterator<Item = (Box<str>, T)>) -> Self {
        let mut values: Vec<(Box<str>, T)> = values.into_iter().collect();
        values.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut entries: Vec<Entry<T>> = Vec::with_capacity(values.len());
        // The prefixes that the last entry begins with follow each other by their parents.
        let mut last: Option<u32> = None;
        for (prefix, value) in values {
            while let Some(entry) = at(&entries, last)
                && !prefix.starts_with(entry.prefix.as_ref())
            {
                last = entry.parent;
            }
            let index = u32::try_from(entries.len()).ok();
            entries.push(Entry { prefix, parent: last, value });
            last = index;
        }
        Self { entries: entries.into() }
    }

    /// Values of all prefixes of `text` followed by `end`, the longest prefix first.
    pub(super) fn of<'p>(&'p self, text: &str, end: &'static str) -> Matching<'p, T> {
        let (text, end) = (text.as_bytes(), end.as_bytes());
        // A prefix is never greater than what begins with it, and everything in between begins with it too.
        let above = self.entries.partition_point(|entry| {
            let prefix = entry.prefix.as_bytes();
            match prefix.split_at_checked(text.len()) {
                None => prefix <= text,
                Some((head, tail)) => head.cmp(text).then_with(|| tail.cmp(end)).is_le(),
            }
        });
        let mut next = above.checked_sub(1).and_then(|last| self.entries.get(last));
        if let Some(nearest) = next {
            let common =
                nearest.prefix.as_bytes().iter().zip(text.iter().chain(end)).take_while(|(a, b)| a == b).count();
            while let Some(entry) = next
                && entry.prefix.len() > common
            {
                next = at(&self.entries, entry.parent);
            }
        }
        Matching { prefixes: self, next }
    }
}

fn at<T>(entries: &[Entry<T>], index: Option<u32>) -> Option<&Entry<T>> {
    entries.get(usize::try_from(index?).ok()?)
}

impl<'p, T> Iterator for Matching<'p, T> {
    type Item = &'p T;

    fn next(&mut self) -> Option<&'p T> {
        let entry = self.next?;
        self.next = at(&self.prefixes.entries, entry.parent);
        Some(&entry.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn every_prefix_is_found_the_longest_first(
            prefixes in prop::collection::btree_set("[ab/]{0,6}", 0..20),
            text in "[ab/]{0,7}",
            end in prop::sample::select(&["", "/"][..]),
        ) {
            let whole = format!("{text}{end}");
            let mut expected: Vec<&String> = prefixes.iter().filter(|prefix| whole.starts_with(*prefix)).collect();
            expected.sort_by_key(|prefix| std::cmp::Reverse(prefix.len()));
            let table = Prefixes::new(prefixes.iter().map(|prefix| (prefix.as_str().into(), prefix)));
            prop_assert_eq!(table.of(&text, end).copied().collect::<Vec<_>>(), expected);
        }
    }
}
