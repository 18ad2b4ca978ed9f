//! Client of a Redis or Valkey server, as the configuration describes it.

use redis::{Client, IntoConnectionInfo, TlsCertificates};
use spillway_config::schema::RedisState;
use spillway_config::values::ValueError;

use crate::tls::TlsError;

/// Reason why a server cannot be used. Nothing was sent to it.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file of authorities cannot be used.
    #[error(transparent)]
    Authorities(#[from] TlsError),
    /// The password is not in the place that the configuration names.
    #[error(transparent)]
    Password(#[from] ValueError),
    /// The client refuses the URL or the authorities.
    #[error(transparent)]
    Client(#[from] redis::RedisError),
}

/// Makes a client that is not connected. With TLS, `authorities` (PEM) are trusted in place of the system's.
pub(crate) fn client(written: &RedisState, authorities: Option<Vec<u8>>) -> Result<Client, ClientError> {
    let mut info = written.url.as_str().into_connection_info()?;
    if let Some(password) = &written.password {
        let password = crate::credentials::secret(password)?;
        let settings = info.redis_settings().clone().set_password(password);
        info = info.set_redis_settings(settings);
    }
    Ok(match authorities {
        None => Client::open(info),
        Some(pem) => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(pem) }),
    }?)
}
