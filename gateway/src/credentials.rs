//! Credentials of the configuration, read from the environment or from files.

use http::HeaderValue;
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
}

/// Reads the text of a secret.
///
/// # Errors
/// The environment variable or file that holds it cannot be read.
pub fn secret(secret: &Secret) -> Result<String, ValueError> {
    secret.resolve(&|name| std::env::var(name).ok())
}

/// Reads the value of the `Authorization` header that a backend gets, marked as sensitive.
///
/// # Errors
/// The token cannot be read, or has characters that no header may have.
pub fn bearer(credentials: &schema::Credentials) -> Result<HeaderValue, CredentialsError> {
    let text = format!("Bearer {}", secret(&credentials.bearer)?);
    let mut value = HeaderValue::from_str(&text).map_err(|_| CredentialsError::NotAHeader)?;
    value.set_sensitive(true);
    Ok(value)
}
