//! Makes API keys, for `spillway key new` and for keys that are made at run time. The module prints and stores nothing: a key is
//! shown once, and only its digest is kept.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};

/// First characters of generated keys, by which logs and secret scanners recognise them.
pub const KEY_PREFIX: &str = "sk-spillway-";

/// New API key with the digest that a configuration stores.
pub struct NewKey {
    /// The key, for the caller.
    pub key: String,
    /// SHA-256 of the key in hexadecimal, for `consumers[].keys[].sha256`.
    pub digest: String,
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// Failure to make a key.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no random bytes for a key: {0}")]
pub struct KeyError(String);

impl NewKey {
    /// Makes a key of 256 random bits from the operating system.
    pub fn generate() -> Result<Self, KeyError> {
        let mut secret = [0u8; 32];
        SysRng.try_fill_bytes(&mut secret).map_err(|error| KeyError(error.to_string()))?;
        let key = format!("{KEY_PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
        let digest = hex::encode(Sha256::digest(key.as_bytes()));
        Ok(Self { key, digest })
    }
}
