//! Store of answers that several gateways share, for filters that keep answers. The gateway provides it, so that a filter
//! knows no server and no connection. Nothing here fails a request: without the store there is no answer.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

use crate::TokenUse;

/// Key of an answer: a digest of all that it depends on, the route included.
pub type AnswerKey = [u8; 32];

/// Mark of the answers of a route that count. A purge replaces it, and answers with another one are never served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(pub [u8; 16]);

/// Answer as a store keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// `Content-Type`.
    pub content_type: HeaderValue,
    /// Body: a whole answer, or a stream to its end.
    pub body: Bytes,
    /// Tokens that it took.
    pub tokens: TokenUse,
    /// Model that answered, where its server said one.
    pub model: Option<Arc<str>>,
    /// True if a built-in model answered.
    pub is_built_in: bool,
}

/// Result of a look into a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Looked {
    /// Generation of the route now; `None` where the store did not say it, and an answer cannot be kept.
    pub generation: Option<Generation>,
    /// Answer under the key, with its age and the time for which it is kept in all.
    pub found: Option<(StoredAnswer, Duration)>,
}

/// Pending look into a store.
pub type Looking = Pin<Box<dyn Future<Output = Looked> + Send>>;

/// Answer on its way to a store.
pub struct AnswerPut {
    /// Key.
    pub key: AnswerKey,
    /// Generation that was read before the answer was asked for.
    pub generation: Generation,
    /// The answer.
    pub answer: StoredAnswer,
    /// Time for which it is kept.
    pub ttl: Duration,
    /// Value that is dropped once the answer is in the store, or is known not to come there.
    pub until_done: Box<dyn Send>,
}

impl std::fmt::Debug for AnswerPut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AnswerPut({} bytes)", self.answer.body.len())
    }
}

/// Answers that a filter keeps to give them again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptAnswers {
    /// Their number.
    pub answers: u64,
    /// Their memory, in bytes.
    pub bytes: u64,
}

/// Failure of a purge: the store did not confirm that the answers are forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotPurged(
    /// Reason, for an operator.
    pub String,
);

impl std::fmt::Display for NotPurged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotPurged {}

/// Pending purge.
pub type Purging = Pin<Box<dyn Future<Output = Result<KeptAnswers, NotPurged>> + Send>>;

/// Answers of one route in a store.
pub trait AnswerStore: Send + Sync {
    /// Looks for the answer under a key, with a body of at most `longest` bytes, within the time limit of the store. Dropping
    /// it cancels.
    fn look(&self, key: AnswerKey, longest: usize) -> Looking;
    /// Reads the generation alone, for an answer that is to replace the one that is there.
    fn generation(&self) -> Looking;
    /// Keeps an answer, in the background. Drops it where too many wait.
    fn put(&self, put: AnswerPut);
    /// Forgets all answers, or only counts them.
    fn purge(&self, dry_run: bool) -> Purging;
}

/// Store of answers of all routes.
pub trait AnswerStores: Send + Sync {
    /// Answers of a route.
    fn of_route(&self, route: &str) -> Arc<dyn AnswerStore>;
}
