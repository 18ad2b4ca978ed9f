//! Order of a certificate: account, proofs of the names, key, certificate. The key is made here and leaves the process
//! only for the storage. Proofs are published until the authority has verified them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http_body_util::{BodyExt, Full};
use instant_acme::{
    Account, AuthorizationStatus, BodyWrapper, BytesResponse, ChallengeType, Error, ExternalAccountKey, Identifier,
    NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use spillway_config::schema::AcmeChallenge;
use spillway_filter::HttpClient;

use super::challenges::PublishedChallenge;
use super::storage::{StorageError, StoredAccount};
use super::{Acme, ManagedCertificate};
use crate::tls::{CertificatePair, TlsError};

/// Longest wait for one answer of the authority: half a minute, because authorities are slow under load.
const CALL: Duration = Duration::from_secs(30);
/// Polling of an order's state where the authority sends no `Retry-After`: from half a second on, for four minutes at
/// most.
const POLL: RetryPolicy =
    RetryPolicy::new().initial_delay(Duration::from_millis(500)).timeout(Duration::from_secs(240));

/// Reason why an order has failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    #[error("the authority: {0}")]
    Authority(#[from] Error),
    #[error("the authority does not offer the challenge `{challenge}` for {domain}")]
    NoChallenge { domain: String, challenge: &'static str },
    #[error("the authority could not verify that {domain} leads here: {why}")]
    NotProven { domain: String, why: String },
    #[error("the authority has ended the order as `{0:?}`")]
    Ended(OrderStatus),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the certificate cannot be used: {0}")]
    Certificate(#[from] TlsError),
    #[error("the order was not finished in time")]
    TooSlow,
    #[error("{0}")]
    System(String),
}

impl OrderError {
    /// True if the authority reports too many orders.
    pub(super) fn is_rate_limit(&self) -> bool {
        self.problem() == Some("urn:ietf:params:acme:error:rateLimited")
    }

    fn problem(&self) -> Option<&str> {
        match self {
            Self::Authority(Error::Api(problem)) => problem.r#type.as_deref(),
            _ => None,
        }
    }
}

/// HTTP client of instant-acme, over the client of the gateway.
struct Wire(Arc<dyn HttpClient>);

type Answered = Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>>;

impl instant_acme::HttpClient for Wire {
    fn request(&self, request: http::Request<BodyWrapper<Bytes>>) -> Answered {
        let http = self.0.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            // RFC 8555, 6.1: every URL of the directory must be https.
            if head.uri.scheme() != Some(&Scheme::HTTPS) {
                return Err(Error::Str("https in a URL of the authority"));
            }
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let answer = http.call(http::Request::from_parts(head, body), CALL).await;
            let answer = answer.map_err(|e| Error::Other(Box::new(e)))?;
            Ok(BytesResponse::from(answer.map(Full::new)))
        })
    }
}

/// Obtains a certificate. Storing is left to the caller: the authority has counted the order, so the certificate is
/// used even if it cannot be stored.
pub(super) async fn run(acme: &Acme, managed: &Arc<ManagedCertificate>) -> Result<CertificatePair, OrderError> {
    let account = account(acme, managed).await?;
    let names: Vec<Identifier> =
        managed.domains().iter().map(|name| Identifier::Dns(name.to_ascii_lowercase())).collect();
    let ordered = account.new_order(&NewOrder::new(&names)).await.map_err(OrderError::from);
    if let Err(e) = &ordered
        && e.problem() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
    {
        managed.storage.put_account_aside();
        acme.account.lock().await.remove(managed.storage.account_file());
    }
    let mut order = ordered?;
    let published = prove(acme, managed, &mut order).await?;
    let ready = order.poll_ready(&POLL).await;
    drop(published);
    match ready {
        Ok(OrderStatus::Ready) => {}
        ended => {
            // The authorizations tell more about the failure than the order does.
            unproven(&mut order).await?;
            return Err(ended.map_or_else(OrderError::from, OrderError::Ended));
        }
    }
    let key = order.finalize().await?;
    let chain = order.poll_certificate(&POLL).await?;
    Ok(managed.storage.pair(&chain, &key)?)
}

/// Stores a certificate.
pub(super) async fn store(managed: &Arc<ManagedCertificate>, pair: &Arc<CertificatePair>) -> Result<(), OrderError> {
    let (managed, pair) = (managed.clone(), pair.clone());
    Ok(blocking(move || managed.storage.store_certificate(&pair)).await??)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, OrderError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| OrderError::System(e.to_string()))
}

/// Finds the stored account, or makes a new one. An account that cannot be stored is kept for the next order.
async fn account(acme: &Acme, managed: &Arc<ManagedCertificate>) -> Result<Account, OrderError> {
    let mut unstored = acme.account.lock().await;
    let file = managed.storage.account_file();
    let written = &managed.written;
    let builder = Account::builder_with_http(Box::new(Wire(managed.http.clone())));
    let contact: Vec<String> = written.email.iter().map(|email| format!("mailto:{email}")).collect();
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let (reading, kept) = (managed.clone(), unstored.get(file).cloned());
    let known = blocking(move || reading.storage.account(kept.as_deref())).await?;
    let (account, stored) = match known {
        Some(stored) if stored.email == written.email && !unstored.contains_key(file) => {
            return Ok(builder.from_credentials(stored.credentials).await?);
        }
        Some(stored) => {
            let text = serde_json::to_value(&stored.credentials).map_err(Error::from)?;
            let account = builder.from_credentials(stored.credentials).await?;
            if stored.email != written.email {
                account.update_contacts(&contact).await?;
            }
            (account, serde_json::from_value(text).map_err(Error::from)?)
        }
        None => {
            let asked = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
            let external = written.external_account.as_ref().zip(managed.hmac_key.as_ref());
            let external = external.map(|(account, key)| ExternalAccountKey::new(account.key_id.clone(), key));
            let made = builder.create(&asked, written.directory.clone(), external.as_ref()).await?;
            tracing::info!(event = "acme_account_created", directory = %written.directory, account = made.0.id());
            made
        }
    };
    let stored = StoredAccount { email: written.email.clone(), credentials: stored };
    let text = serde_json::to_string(&stored).map_err(Error::from)?;
    let (storing, writing) = (managed.clone(), text.clone());
    match blocking(move || storing.storage.store_account(writing.as_bytes())).await? {
        Ok(()) => drop(unstored.remove(file)),
        Err(e) => {
            tracing::warn!(event = "acme_account_not_stored", reason = %e, "used, and lost when the process ends");
            unstored.insert(file.to_owned(), text);
        }
    }
    Ok(account)
}

/// Publishes the proofs that the authority requires, and asks it to verify them.
async fn prove(
    acme: &Acme,
    managed: &ManagedCertificate,
    order: &mut Order,
) -> Result<Vec<PublishedChallenge>, OrderError> {
    let (kind, name) = match managed.written.challenge {
        AcmeChallenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
        AcmeChallenge::Http01 => (ChallengeType::Http01, "http-01"),
    };
    let mut published = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Pending => {}
            // Proven for an earlier order.
            AuthorizationStatus::Valid => continue,
            _ => return Err(not_proven(&authorization)),
        }
        let domain = authorization.identifier().to_string();
        let Some(mut challenge) = authorization.challenge(kind.clone()) else {
            return Err(OrderError::NoChallenge { domain, challenge: name });
        };
        let proof = challenge.key_authorization();
        published.push(match managed.written.challenge {
            AcmeChallenge::Http01 => acme.challenges.publish_text(&challenge.token, proof.as_str()),
            AcmeChallenge::TlsAlpn01 => acme.challenges.publish_certificate(&domain, proof.digest().as_ref())?,
        });
        challenge.set_ready().await?;
    }
    Ok(published)
}

/// Fails with the first authorization that is not valid, if there is one.
async fn unproven(order: &mut Order) -> Result<(), OrderError> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        authorization.refresh().await?;
        if authorization.status != AuthorizationStatus::Valid {
            return Err(not_proven(&authorization));
        }
    }
    Ok(())
}

fn not_proven(authorization: &instant_acme::AuthorizationState) -> OrderError {
    let said = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref());
    let why = said.map_or_else(|| format!("the authorization is {:?}", authorization.status), ToString::to_string);
    OrderError::NotProven { domain: authorization.identifier().to_string(), why }
}
