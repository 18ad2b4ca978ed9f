//! Files and batches as they are stored, and as callers read them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::identity::{CallerProof, Token};
use crate::telemetry::Label;
use crate::tls::ClientCertificate;

pub use crate::telemetry::BatchStatus as Status;

/// File of a consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Id, by which the bytes are found too.
    pub id: String,
    /// Name of the consumer.
    pub owner: String,
    /// Name that the caller gave.
    pub filename: String,
    /// Purpose: `batch` for input, `batch_output` for results.
    pub purpose: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of its making, Unix seconds.
    pub created_at: u64,
    /// Time at which it is deleted, Unix seconds.
    pub expires_at: u64,
}

impl FileRecord {
    /// File object of OpenAI's API.
    pub fn shown(&self) -> Value {
        json!({
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": null,
        })
    }
}

impl Status {
    /// True if nothing more happens to the batch.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

/// Proof by which the caller of a batch was identified, as it is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredProof {
    /// Number of an API key, which reveals nothing of it.
    Key(u64),
    /// Names of a client certificate.
    Certificate(ClientCertificate),
    /// Claims of a token, without the token.
    Token(Token),
}

impl StoredProof {
    /// The proof for a request of the batch.
    pub fn restored(&self) -> CallerProof {
        match self {
            Self::Key(key) => CallerProof::Key(*key),
            Self::Certificate(certificate) => CallerProof::Certificate(certificate.clone().into()),
            Self::Token(token) => CallerProof::Token(token.clone().into()),
        }
    }
}

impl From<&CallerProof> for StoredProof {
    fn from(proof: &CallerProof) -> Self {
        match proof {
            CallerProof::Key(key) => Self::Key(*key),
            CallerProof::Certificate(certificate) => Self::Certificate((**certificate).clone()),
            CallerProof::Token(token) => Self::Token((**token).clone()),
        }
    }
}

/// Origin of a batch: its lines come from there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchOrigin {
    /// Name of the listener.
    pub listener: String,
    /// Host that the caller asked.
    pub host: String,
    /// Address of the caller.
    pub client: IpAddr,
    /// Credential of the caller, kept apart from the caller's other ones by limits.
    pub credential: Option<u64>,
    /// Proof of who the caller was.
    pub proof: StoredProof,
}

/// Mistake in the input of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFault {
    /// Code for programs.
    pub code: String,
    /// Mistake in words.
    pub message: String,
    /// Member at fault.
    pub param: Option<String>,
    /// Line, from 1.
    pub line: Option<u64>,
}

/// Tokens that the answers of a batch have reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchUsage {
    /// Tokens of prompts.
    pub input: u64,
    /// Tokens of prompts that servers had in a cache.
    pub cached: u64,
    /// Tokens written.
    pub output: u64,
}

/// Batch of a consumer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchRecord {
    /// Id.
    pub id: String,
    /// Name of the consumer.
    pub owner: String,
    /// Where its lines come from.
    pub origin: BatchOrigin,
    /// Path of every line.
    pub endpoint: String,
    /// File of the lines.
    pub input_file: String,
    /// Time that the caller asked for, as it was written.
    pub window: String,
    /// State.
    pub status: Status,
    /// Times, Unix seconds.
    pub created_at: u64,
    /// End of `window`, Unix seconds.
    pub expires_at: u64,
    /// Begin of the first line, Unix seconds.
    pub in_progress_at: Option<u64>,
    /// End of the last line, Unix seconds.
    pub finalizing_at: Option<u64>,
    /// Time at which the state of that name began, Unix seconds.
    pub completed_at: Option<u64>,
    /// As `completed_at`.
    pub failed_at: Option<u64>,
    /// As `completed_at`.
    pub expired_at: Option<u64>,
    /// As `completed_at`.
    pub cancelling_at: Option<u64>,
    /// As `completed_at`.
    pub cancelled_at: Option<u64>,
    /// Mistakes in the input.
    pub errors: Vec<InputFault>,
    /// Lines.
    pub total: u64,
    /// Lines that were answered with success.
    pub completed: u64,
    /// Lines that ended in another way.
    pub failed: u64,
    /// Pairs of the caller's own.
    pub metadata: Option<Map<String, Value>>,
    /// Model of the first line.
    pub model: Option<String>,
    /// Tokens of the lines that have ended.
    pub usage: BatchUsage,
    /// File of the answers.
    pub output_file: Option<String>,
    /// File of the failures.
    pub error_file: Option<String>,
}

impl BatchRecord {
    /// Batch object of OpenAI's API.
    pub fn shown(&self) -> Value {
        let faults = |fault: &InputFault| json!({"code": fault.code, "message": fault.message, "param": fault.param, "line": fault.line});
        let errors = (!self.errors.is_empty())
            .then(|| json!({"object": "list", "data": self.errors.iter().map(faults).collect::<Vec<_>>()}));
        let BatchUsage { input, cached, output } = self.usage;
        json!({
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": errors,
            "input_file_id": self.input_file,
            "completion_window": self.window,
            "status": self.status.as_str(),
            "output_file_id": self.output_file,
            "error_file_id": self.error_file,
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "completed_at": self.completed_at,
            "failed_at": self.failed_at,
            "expired_at": self.expired_at,
            "cancelling_at": self.cancelling_at,
            "cancelled_at": self.cancelled_at,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": {
                "input_tokens": input,
                "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": output,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": input.saturating_add(output),
            },
            "metadata": self.metadata,
        })
    }
}
