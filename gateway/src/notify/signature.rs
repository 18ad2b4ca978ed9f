//! Signatures as Standard Webhooks 1.0.0 describes them
//! (<https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>): HMAC-SHA256 over
//! `id.timestamp.body`.

use base64::Engine as _;
use base64::alphabet::STANDARD as ALPHABET;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::hmac;

/// Mark of a key in base64.
const PREFIX: &str = "whsec_";
/// Fewest bytes of a key, by the specification.
const MIN_KEY: usize = 24;
/// Base64 with or without padding, as libraries of receivers take it.
const ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
    &ALPHABET,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Reason why a secret is no key. No variant holds a part of the secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not base64 behind `whsec_`.
    #[error(
        "the secret is not base64 behind `whsec_`; expected 24 bytes or more as `openssl rand -base64 32` prints them"
    )]
    Base64,
    /// Too few bytes.
    #[error(
        "the secret has {0} bytes; expected {MIN_KEY} or more: write `whsec_` and what `openssl rand -base64 32` prints"
    )]
    Short(usize),
}

/// Key of the signatures for one receiver.
#[derive(Clone)]
pub(super) struct SigningKey(hmac::Key);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey")
    }
}

impl SigningKey {
    /// Key of a secret: what is behind `whsec_` in base64, or the bytes of the text itself.
    ///
    /// # Errors
    /// The secret is not base64, or has less than 24 bytes.
    pub(super) fn parse(secret: &str) -> Result<Self, KeyError> {
        let key = match secret.strip_prefix(PREFIX) {
            Some(text) => ANY_PADDING.decode(text.trim()).map_err(|_| KeyError::Base64)?,
            None => secret.as_bytes().to_vec(),
        };
        if key.len() < MIN_KEY {
            return Err(KeyError::Short(key.len()));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// Value of `webhook-signature` for a body that is sent at `timestamp`, in Unix seconds.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut content = hmac::Context::with_key(&self.0);
        content.update(format!("{id}.{timestamp}.").as_bytes());
        content.update(body);
        format!("v1,{}", STANDARD.encode(content.sign()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vector of the reference implementation (`libraries/javascript` and `libraries/python`, tests of the signature).
    #[test]
    fn a_signature_is_that_of_the_reference_implementation() {
        let key = SigningKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_key_is_base64_with_or_without_padding_or_plain_text() {
        let sign = |secret: &str| SigningKey::parse(secret).map(|key| key.sign("a", 1, b"b"));
        let bytes = [7u8; 31];
        let padded = format!("whsec_{}", STANDARD.encode(bytes));
        assert_eq!(sign(&padded), sign(padded.trim_end_matches('=')));
        assert_eq!(sign("0123456789abcdefghijklmn"), sign("whsec_MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1u"));
        assert_eq!(sign("whsec_no base64 at all, but long enough"), Err(KeyError::Base64));
        assert_eq!(sign("whsec_MDEyMzQ1"), Err(KeyError::Short(6)));
        assert_eq!(sign("hunter2"), Err(KeyError::Short(7)));
    }
}
