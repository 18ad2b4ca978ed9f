//! Credentials of the configuration, read from the environment or from files.

use http::{HeaderName, HeaderValue, header};
use spillway_config::schema;
use spillway_config::values::{Secret, ValueError};

/// Error of a credential that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The secret cannot be read.
    #[error(transparent)]
    Secret(#[from] ValueError),
    /// The token has characters that no header may have.
    #[error("its bearer token has characters that no header may have")]
    NotAHeader,
    /// Neither `bearer` nor `header` with `secret` is given.
    #[error("it has neither `bearer` nor `header` with `secret`")]
    NoForm,
}

/// Credential that a server gets: a header, whose value is marked as sensitive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Name of the header.
    pub name: HeaderName,
    /// Value of the header.
    pub value: HeaderValue,
}

/// Reads the text of a secret.
///
/// # Errors
/// The environment variable or file that holds it cannot be read.
pub fn secret(secret: &Secret) -> Result<String, ValueError> {
    secret.resolve(&|name| std::env::var(name).ok())
}

/// Reads the credential that a backend gets.
///
/// # Errors
/// The secret cannot be read, or has characters that no header may have.
pub fn credential(written: &schema::Credentials) -> Result<Credential, CredentialsError> {
    let (name, text) = match (&written.bearer, &written.header, &written.secret) {
        (Some(bearer), ..) => (header::AUTHORIZATION, format!("Bearer {}", secret(bearer)?)),
        (None, Some(name), Some(text)) => {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| CredentialsError::NotAHeader)?;
            (name, secret(text)?)
        }
        _ => return Err(CredentialsError::NoForm),
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| CredentialsError::NotAHeader)?;
    value.set_sensitive(true);
    Ok(Credential { name, value })
}
