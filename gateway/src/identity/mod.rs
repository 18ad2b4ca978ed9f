//! Who calls: API keys in headers become a [`Consumer`]. It owns the table of key digests of one snapshot.
//! It never keeps, logs or repeats a key, and never decides what a consumer may do.
//! Its inputs are the configuration's `consumers` and `authentication` and the header of one request.

mod api_key;
mod new_key;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, StatusCode};
use spillway_config::schema;
use spillway_config::schema::RouteAuthentication;
use spillway_filter::{Caller, ErrorKind, Refusal};

use api_key::Keys;
pub use new_key::{KeyError, NewKey};

/// Longest API key that is looked at, in bytes; real ones have some fifty to two hundred.
const MAX_KEY_BYTES: usize = 512;

/// Somebody who may call.
#[derive(Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: Arc<str>,
    /// Whom it belongs to.
    pub tenant: Arc<str>,
    /// Its rank among those who wait for a place: the higher, the sooner.
    pub priority: i32,
}

impl Consumer {
    /// What filters see of it.
    pub fn caller(&self) -> Caller<'_> {
        Caller { consumer: &self.name, tenant: &self.tenant }
    }
}

/// A caller that showed who it is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who it is.
    pub consumer: Arc<Consumer>,
    /// The header that said so, the first one in the configured order.
    pub header: HeaderName,
}

/// Why the identities of a configuration cannot be compiled.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// One key would mean two callers.
    #[error(
        "consumers `{first}` and `{second}` have the same key digest: give each a key of its own (`spillway key new`)"
    )]
    SharedKey {
        /// The consumer that stands first.
        first: String,
        /// The other.
        second: String,
    },
    /// Something that is no header name.
    #[error("`{0}` in authentication.apiKey.headers is not a header name")]
    HeaderName(String),
}

/// Identifies the callers of one snapshot.
#[derive(Debug)]
pub struct Authenticator {
    headers: Vec<HeaderName>,
    keys: Keys,
}

impl Authenticator {
    /// Compiles consumers and the headers that hold their keys.
    pub fn new(authentication: &schema::Authentication, consumers: &[schema::Consumer]) -> Result<Self, IdentityError> {
        let mut headers: Vec<HeaderName> = Vec::new();
        for written in &authentication.api_key.headers {
            let name =
                HeaderName::from_bytes(written.as_bytes()).map_err(|_| IdentityError::HeaderName(written.clone()))?;
            if !headers.contains(&name) {
                headers.push(name);
            }
        }
        Ok(Self { headers, keys: Keys::new(consumers)? })
    }

    /// Says who calls. `None` is an anonymous caller and comes only where `mode` allows one; a credential that is shown
    /// and not known is refused even where none is asked for.
    pub fn identify(&self, headers: &HeaderMap, mode: RouteAuthentication) -> Result<Option<Identity>, Refusal> {
        if mode == RouteAuthentication::None {
            return Ok(None);
        }
        let Some((header, key)) = self.presented(headers)? else {
            return match mode {
                RouteAuthentication::Required => Err(self.missing()),
                RouteAuthentication::Optional | RouteAuthentication::None => Ok(None),
            };
        };
        match self.keys.find(key) {
            Some(consumer) => Ok(Some(Identity { consumer: Arc::clone(consumer), header: header.clone() })),
            None => Err(unauthenticated("The API key is not known here. Check that the whole key was sent.")),
        }
    }

    /// The headers that may hold a key. When a caller was identified, all of them are removed before forwarding: each one
    /// present held the same key, because different ones are refused.
    pub fn headers(&self) -> &[HeaderName] {
        &self.headers
    }

    /// The one key that a request shows, and the first header that holds it.
    fn presented<'h>(&self, headers: &'h HeaderMap) -> Result<Option<(&HeaderName, &'h [u8])>, Refusal> {
        let mut found: Option<(&HeaderName, &[u8])> = None;
        for name in &self.headers {
            for value in headers.get_all(name) {
                let key = if *name == http::header::AUTHORIZATION {
                    bearer(value.as_bytes())?
                } else {
                    value.as_bytes().trim_ascii()
                };
                check_form(key, name)?;
                match found {
                    None => found = Some((name, key)),
                    // Not in constant time: both sides come from the caller.
                    Some((_, first)) if first == key => {}
                    Some(_) => {
                        return Err(unauthenticated(
                            "The request shows several different credentials. Send one, in one header.",
                        ));
                    }
                }
            }
        }
        Ok(found)
    }

    fn missing(&self) -> Refusal {
        let message = match self.headers.first() {
            Some(name) if *name == http::header::AUTHORIZATION => {
                "No API key was sent. Send it as `Authorization: Bearer KEY`.".to_owned()
            }
            Some(name) => format!("No API key was sent. Send it in the header `{name}`."),
            None => "This route asks for a known caller, and no header is configured to hold an API key.".to_owned(),
        };
        unauthenticated(message)
    }
}

/// The token of `Bearer TOKEN`; the scheme is written in any case (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Result<&[u8], Refusal> {
    let value = value.trim_ascii();
    let (scheme, token) = match value.iter().position(|byte| *byte == b' ') {
        Some(end) => value.split_at_checked(end).unwrap_or((value, b"")),
        None => (value, &b""[..]),
    };
    if scheme.eq_ignore_ascii_case(b"bearer") {
        Ok(token.trim_ascii())
    } else {
        Err(unauthenticated("The `Authorization` header must have the form `Bearer KEY`."))
    }
}

/// Refuses what cannot be a key before it is hashed.
fn check_form(key: &[u8], header: &HeaderName) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(unauthenticated(format!("The header `{header}` holds no API key.")));
    }
    if key.len() > MAX_KEY_BYTES {
        return Err(unauthenticated(format!("The API key in `{header}` is longer than {MAX_KEY_BYTES} bytes.")));
    }
    if !key.iter().all(u8::is_ascii_graphic) {
        return Err(unauthenticated(format!(
            "The header `{header}` must hold one API key: visible ASCII characters without spaces."
        )));
    }
    Ok(())
}

fn unauthenticated(message: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, ErrorKind::Authentication, "invalid_api_key", message)
}
