//! Fields of a head, as a list in the order in which they came. A request is asked for some sixty names, of which it has a few: a
//! set of bits answers for most of the others, and a list as short as those of real heads is searched, copied and extended
//! faster than a map. A head has 256 fields at most, so that no search is long.

use std::hash::{Hash, Hasher};

use http::header::{HeaderMap, HeaderName, HeaderValue};

type Field = (HeaderName, HeaderValue);

/// Fields of a head.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    list: Vec<Field>,
    /// Marks of the names that were ever added.
    marks: u64,
}

/// Name by which fields are looked up.
pub trait FieldName: Clone {
    /// Bit of the name; all of them for a text, whose letters may be of either case.
    fn mark(&self) -> u64;
    /// True for this name.
    fn is(&self, name: &HeaderName) -> bool;
}

/// Bit of a name. A standard name gives its number in the crate `http` to a hasher, which is cheaper to get than its text; any
/// other gives its text, of which the length and three letters count.
#[inline]
fn mark(name: &HeaderName) -> u64 {
    let mut hasher = MarkHasher(0);
    name.hash(&mut hasher);
    1 << (hasher.0 % 64)
}

struct MarkHasher(u64);

impl Hasher for MarkHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let letter = |at: usize| bytes.get(at).copied().map_or(0, u64::from);
        let (middle, last) = (bytes.len() / 2, bytes.len().saturating_sub(1));
        self.0 = self.0.wrapping_add(bytes.len() as u64) + letter(0) * 3 + letter(middle) * 5 + letter(last) * 7;
    }
    #[inline]
    fn write_isize(&mut self, number: isize) {
        self.0 = self.0.wrapping_add(number.unsigned_abs() as u64);
    }
    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

impl FieldName for HeaderName {
    #[inline]
    fn mark(&self) -> u64 {
        mark(self)
    }
    #[inline]
    fn is(&self, name: &HeaderName) -> bool {
        self == name
    }
}

impl FieldName for &HeaderName {
    #[inline]
    fn mark(&self) -> u64 {
        mark(self)
    }
    #[inline]
    fn is(&self, name: &HeaderName) -> bool {
        *self == name
    }
}

impl FieldName for &str {
    #[inline]
    fn mark(&self) -> u64 {
        u64::MAX
    }
    #[inline]
    fn is(&self, name: &HeaderName) -> bool {
        name == self
    }
}

impl Fields {
    /// No fields, with room for some.
    pub fn with_capacity(fields: usize) -> Self {
        Self { list: Vec::with_capacity(fields), marks: 0 }
    }

    #[inline]
    fn may_have(&self, name: &impl FieldName) -> bool {
        self.marks & name.mark() != 0
    }

    /// Number of fields.
    #[inline]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// True without fields.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// First value of a name.
    #[inline]
    pub fn get(&self, name: impl FieldName) -> Option<&HeaderValue> {
        self.get_all(name).iter().next()
    }

    /// All values of a name, in their order.
    #[inline]
    pub fn get_all<N: FieldName>(&self, name: N) -> Values<'_, N> {
        let list: &[_] = if self.may_have(&name) { &self.list } else { &[] };
        Values { list: list.iter(), name }
    }

    /// True if there is a field of this name.
    #[inline]
    pub fn contains_key(&self, name: impl FieldName) -> bool {
        self.get(name).is_some()
    }

    /// All fields, in their order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&HeaderName, &HeaderValue)> + Clone {
        self.list.iter().map(|(name, value)| (name, value))
    }

    /// Names of all fields, each as often as it is there.
    pub fn keys(&self) -> impl Iterator<Item = &HeaderName> {
        self.list.iter().map(|(name, _)| name)
    }

    /// True if a field may be of one of these names; false if none is.
    pub fn may_have_any(&self, names: &NameSet) -> bool {
        self.marks & names.marks != 0
    }

    /// Sets a field in place of all of its name.
    pub fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        let mark = mark(&name);
        if self.marks & mark == 0 {
            self.marks |= mark;
            return self.list.push((name, value));
        }
        let mut value = Some(value);
        self.list.retain_mut(|(other, old)| match (*other == name, value.take()) {
            (true, Some(new)) => {
                *old = new;
                true
            }
            (true, None) => false,
            (false, kept) => {
                value = kept;
                true
            }
        });
        if let Some(value) = value {
            self.append(name, value);
        }
    }

    /// Adds a field to those of its name.
    #[inline]
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.marks |= mark(&name);
        self.list.push((name, value));
    }

    /// Removes all fields of a name, and returns the first value.
    pub fn remove(&mut self, name: impl FieldName) -> Option<HeaderValue> {
        let first = self.get(name.clone()).cloned()?;
        self.list.retain(|(other, _)| !name.is(other));
        Some(first)
    }
}

/// Names, of which most that are asked for are none: their marks answer for these.
#[derive(Debug, Clone, Default)]
pub struct NameSet {
    names: Vec<HeaderName>,
    marks: u64,
}

impl NameSet {
    /// True if the name is one of these.
    #[inline]
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.marks & mark(name) != 0 && self.names.contains(name)
    }
}

impl FromIterator<HeaderName> for NameSet {
    fn from_iter<I: IntoIterator<Item = HeaderName>>(names: I) -> Self {
        let names: Vec<HeaderName> = names.into_iter().collect();
        let marks = names.iter().fold(0, |marks, name| marks | mark(name));
        Self { names, marks }
    }
}

/// Values of a name.
#[derive(Debug, Clone)]
pub struct Values<'f, N> {
    list: std::slice::Iter<'f, Field>,
    name: N,
}

impl<N: FieldName> Values<'_, N> {
    /// The values, in their order.
    #[must_use]
    pub fn iter(&self) -> Self {
        self.clone()
    }
}

impl<'f, N: FieldName> Iterator for Values<'f, N> {
    type Item = &'f HeaderValue;
    #[inline]
    fn next(&mut self) -> Option<&'f HeaderValue> {
        let name = &self.name;
        self.list.find(|(other, _)| name.is(other)).map(|(_, value)| value)
    }
}

impl<N: FieldName> DoubleEndedIterator for Values<'_, N> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let name = &self.name;
        self.list.rfind(|(other, _)| name.is(other)).map(|(_, value)| value)
    }
}

impl<N: FieldName> std::ops::Index<N> for Fields {
    type Output = HeaderValue;
    /// First value of a name; an empty one without a field of the name.
    fn index(&self, name: N) -> &HeaderValue {
        static EMPTY: HeaderValue = HeaderValue::from_static("");
        self.get(name).unwrap_or(&EMPTY)
    }
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        let mut fields = Self::with_capacity(map.len());
        let mut last = None;
        for (name, value) in map {
            // Further values of a name come without it.
            last = name.or(last);
            if let Some(name) = &last {
                fields.append(name.clone(), value);
            }
        }
        fields
    }
}

impl From<Fields> for HeaderMap {
    fn from(fields: Fields) -> Self {
        let mut map = Self::with_capacity(fields.len());
        for (name, value) in fields.list {
            map.append(name, value);
        }
        map
    }
}

impl FromIterator<Field> for Fields {
    fn from_iter<I: IntoIterator<Item = Field>>(all: I) -> Self {
        let mut fields = Self::default();
        all.into_iter().for_each(|(name, value)| fields.append(name, value));
        fields
    }
}

impl<'f> IntoIterator for &'f Fields {
    type Item = (&'f HeaderName, &'f HeaderValue);
    type IntoIter = std::iter::Map<std::slice::Iter<'f, Field>, fn(&'f Field) -> Self::Item>;
    fn into_iter(self) -> Self::IntoIter {
        self.list.iter().map(|(name, value)| (name, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> impl Strategy<Value = HeaderName> {
        let known = ["host", "te", "via", "content-length", "x-a", "x-b", "authorization", "x-request-id"];
        prop_oneof![
            proptest::sample::select(known.to_vec()).prop_map(HeaderName::from_static),
            "[a-z][a-z0-9-]{0,12}".prop_map(|name| HeaderName::from_bytes(name.as_bytes()).unwrap()),
        ]
    }

    proptest! {
        #[test]
        fn fields_are_found_as_in_a_map(
            steps in proptest::collection::vec((0..3, names()), 0..30),
            asked in proptest::collection::vec(names(), 0..10),
        ) {
            let (mut fields, mut map) = (Fields::default(), HeaderMap::new());
            for (n, (step, name)) in steps.iter().enumerate() {
                let value = HeaderValue::from(n);
                match step {
                    0 => { fields.insert(name.clone(), value.clone()); map.insert(name, value); }
                    1 => { fields.append(name.clone(), value.clone()); map.append(name, value); }
                    _ => prop_assert_eq!(fields.remove(name), map.remove(name)),
                }
            }
            for name in steps.iter().map(|(_, name)| name).chain(&asked) {
                prop_assert_eq!(fields.get(name), map.get(name));
                prop_assert_eq!(fields.get(name.as_str()), map.get(name));
                prop_assert_eq!(fields.contains_key(name), map.contains_key(name));
                prop_assert!(fields.get_all(name).iter().eq(map.get_all(name)));
                prop_assert!(Fields::from(map.clone()).get_all(name).iter().eq(map.get_all(name)));
                prop_assert!(HeaderMap::from(fields.clone()).get_all(name).iter().eq(map.get_all(name)));
            }
            let set: NameSet = asked.iter().cloned().collect();
            for name in steps.iter().map(|(_, name)| name).chain(&asked) {
                prop_assert_eq!(set.contains(name), asked.contains(name));
            }
            prop_assert!(fields.may_have_any(&set) || !asked.iter().any(|name| fields.contains_key(name)));
        }
    }
}
