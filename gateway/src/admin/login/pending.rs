//! Logins under way. Each is in a cookie of its browser, sealed by a key of this process, and not in a table: whoever begins many
//! logins takes no place from others.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use rand::rngs::SysRng;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

/// Longest cookie that is opened, bytes: three random texts and a time, sealed.
const MAX_SEALED: usize = 512;

/// Failure of the operating system to give random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no random bytes: {0}")]
pub struct RandomError(String);

fn fill(bytes: &mut [u8]) -> Result<(), RandomError> {
    SysRng.try_fill_bytes(bytes).map_err(|e| RandomError(e.to_string()))
}

/// Text of 256 random bits.
pub(super) fn random_text() -> Result<String, RandomError> {
    let mut bytes = [0; 32];
    fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Login under way.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    /// Text that comes back with the browser: an answer without it is of another login.
    pub(super) state: String,
    /// Text that comes back in the id token.
    pub(super) nonce: String,
    /// Secret of PKCE (RFC 7636), whose digest the issuer saw first.
    pub(super) verifier: String,
    /// Begin, Unix seconds.
    pub(super) at: u64,
}

impl Pending {
    pub(super) fn begin(now: u64) -> Result<Self, RandomError> {
        Ok(Self { state: random_text()?, nonce: random_text()?, verifier: random_text()?, at: now })
    }
}

/// Key of this process, which seals logins.
pub(super) struct Seal(LessSafeKey);

impl Seal {
    pub(super) fn new() -> Result<Self, RandomError> {
        let mut key = [0; 32];
        fill(&mut key)?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key).map_err(|e| RandomError(e.to_string()))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Seals a login, as a value for a cookie.
    pub(super) fn close(&self, pending: &Pending) -> Result<String, RandomError> {
        let mut nonce = [0; NONCE_LEN];
        fill(&mut nonce)?;
        let mut text = serde_json::to_vec(pending).map_err(|e| RandomError(e.to_string()))?;
        let sealed = self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut text);
        sealed.map_err(|e| RandomError(e.to_string()))?;
        Ok(URL_SAFE_NO_PAD.encode([&nonce[..], &text].concat()))
    }

    /// Opens what this process has sealed; `None` for anything else.
    pub(super) fn open(&self, value: &str) -> Option<Pending> {
        if value.len() > MAX_SEALED {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(value).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let text = self.0.open_in_place(nonce, Aad::empty(), &mut sealed).ok()?;
        serde_json::from_slice(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_process_sealed_is_opened() {
        let (seal, other) = (Seal::new().unwrap(), Seal::new().unwrap());
        let pending = Pending::begin(7).unwrap();
        assert!(pending.state != pending.nonce && pending.nonce != pending.verifier);
        let value = seal.close(&pending).unwrap();
        assert!(value.len() <= MAX_SEALED && !value.contains(&pending.verifier));
        assert_eq!(seal.open(&value), Some(pending));
        assert_eq!(other.open(&value), None);
        for wrong in ["", "AAAA", &value[1..], &format!("{value}A"), &"A".repeat(MAX_SEALED + 1)] {
            assert_eq!(seal.open(wrong), None, "{wrong}");
        }
    }
}
