//! Fields of a head. A request is asked for some sixty names, of which it has a few: a set of bits answers for most of the others
//! without a look into the map.

use std::ops::Deref;

use http::header::{AsHeaderName, GetAll, HeaderMap, HeaderName, HeaderValue, ValueIter};

/// Fields of a head, with the marks of their names.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    map: HeaderMap,
    /// Marks of the names that were ever added.
    marks: u64,
}

/// Name of a field that can be looked up.
pub trait FieldName: AsHeaderName {
    /// Bit of the name; several for a text, whose letters may be of either case.
    fn mark(&self) -> u64;
}

/// Bit of a name, by its length and letters of it that differ in names that are asked for.
fn mark(name: &HeaderName) -> u64 {
    let name = name.as_str().as_bytes();
    let letter = |at: usize| name.get(at).copied().map_or(0, usize::from);
    1 << ((name.len() + letter(0) * 3 + letter(name.len() / 2) * 5 + letter(name.len().saturating_sub(1)) * 7) % 64)
}

impl FieldName for HeaderName {
    fn mark(&self) -> u64 {
        mark(self)
    }
}

impl FieldName for &HeaderName {
    fn mark(&self) -> u64 {
        mark(self)
    }
}

impl FieldName for &str {
    fn mark(&self) -> u64 {
        u64::MAX
    }
}

impl Fields {
    /// No fields, with room for some.
    pub fn with_capacity(fields: usize) -> Self {
        Self { map: HeaderMap::with_capacity(fields), marks: 0 }
    }

    fn may_have(&self, name: &impl FieldName) -> bool {
        self.marks & name.mark() != 0
    }

    /// First value of a name.
    pub fn get(&self, name: impl FieldName) -> Option<&HeaderValue> {
        if self.may_have(&name) { self.map.get(name) } else { None }
    }

    /// All values of a name, in their order.
    pub fn get_all(&self, name: impl FieldName) -> Values<'_> {
        Values(self.may_have(&name).then(|| self.map.get_all(name)))
    }

    /// True if there is a field of this name.
    pub fn contains_key(&self, name: impl FieldName) -> bool {
        self.may_have(&name) && self.map.contains_key(name)
    }

    /// Sets a field in place of all of its name.
    pub fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        self.marks |= mark(&name);
        self.map.insert(name, value);
    }

    /// Adds a field to those of its name.
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.marks |= mark(&name);
        self.map.append(name, value);
    }

    /// Removes all fields of a name, and returns the first value.
    pub fn remove(&mut self, name: impl FieldName) -> Option<HeaderValue> {
        if self.may_have(&name) { self.map.remove(name) } else { None }
    }
}

/// Values of a name.
#[derive(Debug)]
pub struct Values<'f>(Option<GetAll<'f, HeaderValue>>);

impl<'f> Values<'f> {
    /// The values, in their order.
    pub fn iter(&self) -> std::iter::Flatten<std::option::IntoIter<ValueIter<'f, HeaderValue>>> {
        self.0.as_ref().map(GetAll::iter).into_iter().flatten()
    }
}

impl<'f> IntoIterator for Values<'f> {
    type Item = &'f HeaderValue;
    type IntoIter = std::iter::Flatten<std::option::IntoIter<ValueIter<'f, HeaderValue>>>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Deref for Fields {
    type Target = HeaderMap;
    fn deref(&self) -> &HeaderMap {
        &self.map
    }
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        let marks = map.keys().fold(0, |marks, name| marks | mark(name));
        Self { map, marks }
    }
}

impl From<Fields> for HeaderMap {
    fn from(fields: Fields) -> Self {
        fields.map
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Fields {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(fields: I) -> Self {
        Self::from(fields.into_iter().collect::<HeaderMap>())
    }
}

impl<'f> IntoIterator for &'f Fields {
    type Item = (&'f HeaderName, &'f HeaderValue);
    type IntoIter = http::header::Iter<'f, HeaderValue>;
    fn into_iter(self) -> Self::IntoIter {
        self.map.iter()
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
            }
        }
    }
}
