//! Client of a Redis or Valkey server, as the configuration describes it: for the limits, the answers and the state that
//! several gateways share. Makes no connection; owners of clients connect.

use std::time::Duration;

use redis::{Client, IntoConnectionInfo, TlsCertificates};
use spillway_config::schema::{CacheRedis, RedisState};
use spillway_config::values::{FilePath, Secret, ValueError};

use crate::tls::TlsError;

/// Longest wait of a connection for a server to connect or to answer: as long as any `timeout` of the configuration may be, so that
/// a request waits for that and no shorter.
pub(crate) const LONGEST_ANSWER: Duration = Duration::from_secs(2);

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

/// Server as a part of the configuration names it.
#[derive(Clone, Copy)]
pub(crate) struct RedisServer<'c> {
    url: &'c str,
    ca_file: Option<&'c FilePath>,
    password: Option<&'c Secret>,
}

impl<'c> From<&'c RedisState> for RedisServer<'c> {
    fn from(written: &'c RedisState) -> Self {
        Self { url: &written.url, ca_file: written.ca_file.as_ref(), password: written.password.as_ref() }
    }
}

impl<'c> From<&'c CacheRedis> for RedisServer<'c> {
    fn from(written: &'c CacheRedis) -> Self {
        Self { url: &written.url, ca_file: written.ca_file.as_ref(), password: written.password.as_ref() }
    }
}

/// Reads the authorities (PEM) that are trusted for a server; `None` where those of the system are.
pub(crate) fn authorities<'c>(server: impl Into<RedisServer<'c>>) -> Result<Option<Vec<u8>>, ClientError> {
    Ok(server.into().ca_file.map(|file| crate::tls::read_authorities(file)).transpose()?)
}

/// Makes a client that is not connected. With TLS, `authorities` (PEM) are trusted in place of the system's.
pub(crate) fn client<'c>(
    server: impl Into<RedisServer<'c>>,
    authorities: Option<Vec<u8>>,
) -> Result<Client, ClientError> {
    let server = server.into();
    let mut info = server.url.into_connection_info()?;
    if let Some(password) = server.password {
        let password = crate::credentials::secret(password)?;
        let settings = info.redis_settings().clone().set_password(password);
        info = info.set_redis_settings(settings);
    }
    Ok(match authorities {
        None => Client::open(info),
        Some(pem) => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(pem) }),
    }?)
}
