//! Header changes of filters: an interface over the proxy's header types, and a compiled edit. Names and values are
//! checked when the configuration is built, so that applying an edit cannot fail.

use http::{HeaderName, HeaderValue};

use crate::{Fields, Variables};

/// Headers that a filter can change.
pub trait Headers {
    /// Returns the first value of `name`.
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue>;
    /// Returns all values of `name`.
    fn get_all(&self, name: &HeaderName) -> Vec<&HeaderValue>;
    /// Replaces all values of `name`.
    fn set(&mut self, name: &HeaderName, value: HeaderValue);
    /// Adds a value of `name`.
    fn append(&mut self, name: &HeaderName, value: HeaderValue);
    /// Removes all values of `name`.
    fn remove(&mut self, name: &HeaderName);
    /// Calls `each` with every field, in their order.
    fn for_each(&self, each: &mut dyn FnMut(&HeaderName, &HeaderValue));
}

/// Change of a header of one request: all values of its name are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderChange {
    /// Name.
    pub name: HeaderName,
    /// Values from now on, in their order; none removes the header.
    pub values: Vec<HeaderValue>,
}

impl HeaderChange {
    /// Applies the change.
    pub fn apply(&self, headers: &mut dyn Headers) {
        headers.remove(&self.name);
        for value in &self.values {
            headers.append(&self.name, value.clone());
        }
    }
}

impl Headers for Fields {
    fn get(&self, name: &HeaderName) -> Option<&HeaderValue> {
        Fields::get(self, name)
    }
    fn get_all(&self, name: &HeaderName) -> Vec<&HeaderValue> {
        Fields::get_all(self, name).collect()
    }
    fn set(&mut self, name: &HeaderName, value: HeaderValue) {
        self.insert(name.clone(), value);
    }
    fn append(&mut self, name: &HeaderName, value: HeaderValue) {
        Fields::append(self, name.clone(), value);
    }
    fn remove(&mut self, name: &HeaderName) {
        Fields::remove(self, name);
    }
    fn for_each(&self, each: &mut dyn FnMut(&HeaderName, &HeaderValue)) {
        self.iter().for_each(|(name, value)| each(name, value));
    }
}

/// Compiled change of a header.
#[derive(Debug, Clone)]
pub enum HeaderEdit {
    /// Replaces all values.
    Set(HeaderName, Template),
    /// Adds a value.
    Add(HeaderName, Template),
    /// Removes all values.
    Remove(HeaderName),
}

impl HeaderEdit {
    /// Applies the change.
    pub fn apply(&self, headers: &mut dyn Headers, variables: &Variables<'_>) {
        match self {
            Self::Set(name, template) => {
                if let Some(value) = template.render(variables) {
                    headers.set(name, value);
                }
            }
            Self::Add(name, template) => {
                if let Some(value) = template.render(variables) {
                    headers.append(name, value);
                }
            }
            Self::Remove(name) => headers.remove(name),
        }
    }
}

/// Header value with the variables `{backend}`, `{route}` and `{requestId}`; a constant value costs a reference
/// count.
#[derive(Debug, Clone)]
pub struct Template(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Constant(HeaderValue),
    Parts(Vec<Part>),
}

#[derive(Debug, Clone)]
enum Part {
    Text(String),
    Backend,
    Route,
    RequestId,
}

impl Template {
    /// Compiles a value; the error names the mistake.
    pub fn compile(text: &str) -> Result<Self, String> {
        let constant = HeaderValue::from_str(text).map_err(|_| {
            "invalid header value; expected visible ASCII without control characters or line breaks".to_owned()
        })?;
        if !text.contains('{') {
            return Ok(Self(Kind::Constant(constant)));
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            if let Some(tail) = after.strip_prefix('{') {
                parts.push(Part::Text("{".to_owned()));
                rest = tail;
                continue;
            }
            let (name, tail) = after.split_once('}').ok_or_else(|| "`{` without `}`".to_owned())?;
            parts.push(match name {
                "backend" => Part::Backend,
                "route" => Part::Route,
                "requestId" => Part::RequestId,
                _ => {
                    return Err(format!(
                        "unknown variable `{{{name}}}`; expected {{backend}}, {{route}} or {{requestId}}"
                    ));
                }
            });
            rest = tail;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(Kind::Parts(parts)))
    }

    /// Renders the value; `None` if a variable holds bytes that no header may have. A request id is checked before.
    fn render(&self, variables: &Variables<'_>) -> Option<HeaderValue> {
        match &self.0 {
            Kind::Constant(value) => Some(value.clone()),
            Kind::Parts(parts) => {
                let text: String = parts
                    .iter()
                    .map(|part| match part {
                        Part::Text(text) => text.as_str(),
                        Part::Backend => variables.backend,
                        Part::Route => variables.route,
                        Part::RequestId => variables.request_id,
                    })
                    .collect();
                HeaderValue::from_str(&text).ok()
            }
        }
    }
}
