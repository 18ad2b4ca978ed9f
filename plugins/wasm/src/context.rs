//! Context of a stream: what a module may read and change of one exchange. Holds copies, so that a hook borrows nothing of the
//! gateway's; changes are read from it when the hook has returned.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use spillway_filter::{Answer, Fields, HeaderChange, Headers, RequestView};

/// Most fields of a map after a change.
pub(crate) const MAX_FIELDS: usize = 256;
/// Most bytes that one change may add to a map.
pub(crate) const MAX_ADDED: usize = 64 << 10;
/// Most bytes of a body that has grown by changes.
pub(crate) const MAX_BUFFER: usize = 16 << 20;
/// Most properties that a module sets on a stream, and bytes of each with its name.
const MAX_PROPERTIES: usize = 64;
const MAX_PROPERTY: usize = 4 << 10;
/// Most calls of a stream.
pub(crate) const MAX_CALLS: usize = 16;

/// Headers that only the gateway sets: those of the connection, and its own names. A module may change them, because many
/// remove the length of a body that they change; nothing comes of it.
fn is_protected(name: &HeaderName) -> bool {
    const PROTECTED: [&str; 9] = [
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    PROTECTED.contains(&name.as_str()) || name.as_str().starts_with("x-spillway-")
}

/// Headers as a module sees them, pseudo-headers first.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) pseudo: Vec<(&'static str, String)>,
    pub(crate) pairs: Vec<(HeaderName, HeaderValue)>,
    touched: Vec<HeaderName>,
    /// True when a change would have no effect any more.
    pub(crate) is_settled: bool,
}

/// Reason for which a map is not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoChange;

impl Table {
    fn of(headers: &Fields, pseudo: Vec<(&'static str, String)>) -> Self {
        let pairs = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        Self { pseudo, pairs, touched: Vec::new(), is_settled: false }
    }

    /// Number of fields, with pseudo-headers.
    pub(crate) fn len(&self) -> usize {
        self.pseudo.len() + self.pairs.len()
    }

    /// All fields.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let pseudo = self.pseudo.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        pseudo.chain(self.pairs.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())))
    }

    /// Value of a name; several are joined by commas.
    pub(crate) fn get(&self, name: &[u8]) -> Option<Vec<u8>> {
        if name.starts_with(b":") {
            let found = self.pseudo.iter().find(|(known, _)| known.as_bytes() == name);
            return found.map(|(_, value)| value.clone().into_bytes());
        }
        let name = HeaderName::from_bytes(name).ok()?;
        let mut values = self.pairs.iter().filter(|(known, _)| *known == name).map(|(_, value)| value.as_bytes());
        let mut joined = values.next()?.to_vec();
        for value in values {
            joined.extend_from_slice(b", ");
            joined.extend_from_slice(value);
        }
        Some(joined)
    }

    fn touch(&mut self, name: &HeaderName) {
        if !self.touched.contains(name) {
            self.touched.push(name.clone());
        }
    }

    /// True for a pseudo-header that keeps its value, which is no change.
    fn keeps(&self, name: &[u8], value: Option<&[u8]>) -> bool {
        let found = self.pseudo.iter().find(|(known, _)| known.as_bytes() == name);
        found.is_some_and(|(_, known)| value == Some(known.as_bytes()))
    }

    fn parse(name: &[u8], value: &[u8]) -> Result<(HeaderName, HeaderValue), NoChange> {
        if name.len() + value.len() > MAX_ADDED {
            return Err(NoChange);
        }
        let name = HeaderName::from_bytes(name).map_err(|_| NoChange)?;
        Ok((name, HeaderValue::from_bytes(value).map_err(|_| NoChange)?))
    }

    /// Adds a value.
    pub(crate) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), NoChange> {
        let (name, value) = Self::parse(name, value)?;
        if self.is_settled || self.pairs.len() >= MAX_FIELDS {
            return Err(NoChange);
        }
        self.touch(&name);
        self.pairs.push((name, value));
        Ok(())
    }

    /// Replaces all values.
    pub(crate) fn replace(&mut self, name: &[u8], value: &[u8]) -> Result<(), NoChange> {
        if self.keeps(name, Some(value)) {
            return Ok(());
        }
        let (name, value) = Self::parse(name, value)?;
        if self.is_settled || self.pairs.len() >= MAX_FIELDS {
            return Err(NoChange);
        }
        self.touch(&name);
        match self.pairs.iter().position(|(known, _)| *known == name) {
            Some(first) => {
                let mut at = 0;
                self.pairs.retain(|(known, _)| {
                    at += 1;
                    at - 1 <= first || *known != name
                });
                if let Some(pair) = self.pairs.get_mut(first) {
                    pair.1 = value;
                }
            }
            None => self.pairs.push((name, value)),
        }
        Ok(())
    }

    /// Removes all values.
    pub(crate) fn remove(&mut self, name: &[u8]) -> Result<(), NoChange> {
        let name = HeaderName::from_bytes(name).map_err(|_| NoChange)?;
        if self.is_settled {
            return Err(NoChange);
        }
        if self.pairs.iter().any(|(known, _)| *known == name) {
            self.touch(&name);
            self.pairs.retain(|(known, _)| *known != name);
        }
        Ok(())
    }

    /// Replaces all fields. Pseudo-headers must keep their values.
    pub(crate) fn set_all(&mut self, pairs: &[(&[u8], &[u8])]) -> Result<(), NoChange> {
        if self.is_settled || pairs.len() > MAX_FIELDS + self.pseudo.len() {
            return Err(NoChange);
        }
        let mut new = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            if name.starts_with(b":") {
                if !self.keeps(name, Some(value)) {
                    return Err(NoChange);
                }
                continue;
            }
            new.push(Self::parse(name, value)?);
        }
        let names: Vec<HeaderName> = self.pairs.iter().chain(&new).map(|(name, _)| name.clone()).collect();
        names.iter().for_each(|name| self.touch(name));
        self.pairs = new;
        Ok(())
    }

    /// Changes so far that the gateway makes; they are not returned again.
    pub(crate) fn take_changes(&mut self) -> Vec<HeaderChange> {
        let touched = std::mem::take(&mut self.touched);
        let changes = touched.into_iter().filter(|name| !is_protected(name)).map(|name| {
            let values = self.pairs.iter().filter(|(known, _)| *known == name).map(|(_, value)| value.clone());
            HeaderChange { values: values.collect(), name }
        });
        changes.collect()
    }
}

/// Body of a message, or of a part of it.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Bytes,
    is_changed: bool,
}

impl Buffer {
    pub(crate) fn of(bytes: Bytes) -> Self {
        Self { bytes, is_changed: false }
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Puts `new` in place of `size` bytes from `offset` on; both are cut to the length.
    pub(crate) fn set(&mut self, offset: usize, size: usize, new: &[u8]) -> Result<(), NoChange> {
        let start = offset.min(self.bytes.len());
        let end = offset.saturating_add(size).min(self.bytes.len());
        let length = self.bytes.len() - (end - start) + new.len();
        if length > MAX_BUFFER && length > self.bytes.len() {
            return Err(NoChange);
        }
        let (before, behind) = (self.bytes.get(..start), self.bytes.get(end..));
        self.bytes = [before.unwrap_or_default(), new, behind.unwrap_or_default()].concat().into();
        self.is_changed = true;
        Ok(())
    }

    /// The bytes, if they were changed since they were last taken.
    pub(crate) fn take_changed(&mut self) -> Option<Bytes> {
        std::mem::take(&mut self.is_changed).then(|| self.bytes.clone())
    }
}

/// Call to a server that a module has asked for.
pub(crate) struct CallAsked {
    pub(crate) id: u32,
    pub(crate) request: http::Request<Bytes>,
    pub(crate) timeout: Duration,
}

/// Answer to a call, while the module is told of it.
#[derive(Default)]
pub(crate) struct CallAnswer {
    pub(crate) headers: Table,
    pub(crate) body: Buffer,
}

impl CallAnswer {
    pub(crate) fn of(answer: http::Response<Bytes>) -> Self {
        let (head, body) = answer.into_parts();
        let pseudo = vec![(":status", head.status.as_str().to_owned())];
        let mut headers = Table::of(&head.headers.into(), pseudo);
        headers.is_settled = true;
        Self { headers, body: Buffer::of(body) }
    }
}

/// Facts of a request that a module may know beside its headers.
#[derive(Debug, Default)]
pub(crate) struct RequestFacts {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) host: String,
    pub(crate) scheme: &'static str,
    pub(crate) client: Option<IpAddr>,
    pub(crate) consumer: Option<String>,
    pub(crate) tenant: Option<String>,
    pub(crate) model: Option<String>,
}

impl RequestFacts {
    /// Path with query.
    pub(crate) fn target(&self) -> String {
        if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) }
    }
}

/// Context of a stream.
#[derive(Default)]
pub(crate) struct Context {
    pub(crate) facts: RequestFacts,
    pub(crate) request: Table,
    pub(crate) request_body: Buffer,
    /// Head of the answer; `None` before there is one.
    pub(crate) response: Option<Table>,
    pub(crate) response_body: Buffer,
    pub(crate) status: Option<u16>,
    /// Answer that the module gives itself.
    pub(crate) local: Option<Answer>,
    /// True if a local answer can still be given.
    pub(crate) may_answer: bool,
    /// True if the module has paused the request.
    pub(crate) is_paused: bool,
    /// Calls that were asked for and not begun.
    pub(crate) asked: Vec<CallAsked>,
    pub(crate) calls: u32,
    properties: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Context {
    /// Context of a request.
    pub(crate) fn of(view: &RequestView<'_>) -> Self {
        let facts = RequestFacts {
            method: view.method.as_str().to_owned(),
            path: view.path.to_owned(),
            query: view.query.to_owned(),
            host: view.host.unwrap_or_default().to_owned(),
            scheme: if view.secure { "https" } else { "http" },
            client: Some(view.client),
            consumer: view.caller.map(|caller| caller.consumer.to_owned()),
            tenant: view.caller.map(|caller| caller.tenant.to_owned()),
            model: view.model.map(str::to_owned),
        };
        let pseudo = vec![
            (":method", facts.method.clone()),
            (":path", facts.target()),
            (":authority", facts.host.clone()),
            (":scheme", facts.scheme.to_owned()),
        ];
        let request = Table::of(view.headers, pseudo);
        Self { facts, request, may_answer: true, ..Self::default() }
    }

    /// Sets the head of the answer.
    pub(crate) fn answered(&mut self, status: StatusCode, headers: &dyn Headers) {
        let mut pairs = Vec::new();
        headers.for_each(&mut |name, value| pairs.push((name.clone(), value.clone())));
        let pseudo = vec![(":status", status.as_str().to_owned())];
        self.status = Some(status.as_u16());
        self.response = Some(Table { pseudo, pairs, ..Table::default() });
    }

    /// Property that the module has set.
    pub(crate) fn own_property(&self, path: &[u8]) -> Option<&[u8]> {
        self.properties.iter().find(|(known, _)| known == path).map(|(_, value)| value.as_slice())
    }

    /// Sets a property of the module's own.
    pub(crate) fn set_property(&mut self, path: &[u8], value: &[u8]) -> Result<(), NoChange> {
        if path.len() + value.len() > MAX_PROPERTY {
            return Err(NoChange);
        }
        if let Some((_, known)) = self.properties.iter_mut().find(|(known, _)| known == path) {
            *known = value.to_vec();
        } else if self.properties.len() < MAX_PROPERTIES {
            self.properties.push((path.to_vec(), value.to_vec()));
        } else {
            return Err(NoChange);
        }
        Ok(())
    }
}
