//! Secrets that a test plants, and the search for them in everything that a program wrote: as they are, and in the forms in
//! which programs write bytes.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Bytes by which a needle is found first; every needle is longer.
const KEY: usize = 8;

/// A secret and the place that it was planted in.
#[derive(Debug, Clone)]
pub struct Secret {
    pub place: String,
    pub value: String,
}

/// Secrets that were planted so far.
#[derive(Debug, Clone, Default)]
pub struct Planted {
    secrets: Vec<Secret>,
}

/// Bytes to look for.
struct Needle<'p> {
    bytes: Vec<u8>,
    place: &'p str,
    form: &'static str,
}

/// A form of a secret that was found in an output.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sighting {
    /// Place that the secret was planted in.
    pub place: String,
    /// Name of the output.
    pub output: String,
    /// Form of the secret.
    pub form: &'static str,
    /// Text around the find.
    pub around: String,
}

impl Planted {
    /// Makes a secret for a place. `+` and `=` are in it, which escapes change and which headers, URLs, CEL and YAML take.
    pub fn plant(&mut self, place: &str) -> String {
        let n = self.secrets.len();
        let value = format!("Pl{n:03}+{}={}", word(n, place), word(n + 1000, place));
        self.add(place, &value);
        value
    }

    /// Adds a secret that the test did not make, such as a generated key.
    pub fn add(&mut self, place: &str, value: &str) {
        assert!(value.len() >= 4 * KEY, "{place}: too short to be found in parts");
        self.secrets.push(Secret { place: place.to_owned(), value: value.to_owned() });
    }

    /// All secrets.
    pub fn all(&self) -> &[Secret] {
        &self.secrets
    }

    /// Places with a secret.
    pub fn places(&self) -> impl Iterator<Item = &str> {
        self.secrets.iter().map(|secret| secret.place.as_str())
    }

    /// True if a text holds a planted secret as it is.
    pub fn is_in(&self, text: &str) -> bool {
        self.secrets.iter().any(|secret| text.contains(&secret.value))
    }

    /// Searches outputs (name and bytes) for the halves of every secret in every form. One sighting for each place, output
    /// and form.
    pub fn search(&self, outputs: &[(String, Vec<u8>)]) -> Vec<Sighting> {
        let mut needles: HashMap<[u8; KEY], Vec<Needle>> = HashMap::new();
        for secret in &self.secrets {
            let (one, other) = secret.value.as_bytes().split_at(secret.value.len() / 2);
            for (form, needle) in forms(one).into_iter().chain(forms(other)) {
                let key = needle[..KEY].try_into().unwrap();
                needles.entry(key).or_default().push(Needle { bytes: needle, place: &secret.place, form });
            }
        }
        let mut found = std::collections::BTreeMap::new();
        for (output, bytes) in outputs {
            for (at, window) in bytes.windows(KEY).enumerate() {
                let Some(starting) = needles.get(window) else { continue };
                for Needle { place, form, .. } in starting.iter().filter(|n| bytes[at..].starts_with(&n.bytes)) {
                    let around = &bytes[at.saturating_sub(60)..bytes.len().min(at + 100)];
                    let around = String::from_utf8_lossy(around).into_owned();
                    found.entry((*place, output.as_str(), *form)).or_insert(around);
                }
            }
        }
        let sighting = |((place, output, form), around): ((&str, &str, _), _)| Sighting {
            place: place.to_owned(),
            output: output.to_owned(),
            form,
            around,
        };
        found.into_iter().map(sighting).collect()
    }
}

/// Sixteen hexadecimal digits that differ from place to place.
fn word(n: usize, place: &str) -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("{:016x}", RandomState::new().hash_one((n, place)))
}

/// Forms of some bytes as programs write them. Of base64 the characters that do not depend on what stands before and behind.
fn forms(part: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let percent = |keeps: &dyn Fn(u8) -> bool| -> Vec<u8> {
        let written = part.iter().map(|b| if keeps(*b) { char::from(*b).to_string() } else { format!("%{b:02X}") });
        written.collect::<String>().into_bytes()
    };
    let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
    let numbers: Vec<String> = part.iter().map(u8::to_string).collect();
    let mut forms = vec![
        ("plain", part.to_vec()),
        ("percent-encoded", percent(&|byte| byte.is_ascii_alphanumeric())),
        ("percent-encoded", percent(&|_| false)),
        ("hexadecimal", hex.to_uppercase().into_bytes()),
        ("hexadecimal", hex.into_bytes()),
        // As `Debug` prints bytes.
        ("numbers", numbers.join(", ").into_bytes()),
    ];
    for before in 0..3usize {
        let mut shifted = vec![0; before];
        shifted.extend_from_slice(part);
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let encoded = engine.encode(&shifted);
            // Characters with bits of what stands before; and the last, which may have bits of what stands behind.
            let first = (before * 8).div_ceil(6);
            forms.push(("base64", encoded.as_bytes()[first..encoded.len() - 1].to_vec()));
        }
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_in_every_form_and_in_halves() {
        let mut planted = Planted::default();
        let value = planted.plant("here");
        planted.plant("elsewhere");
        let half = &value[..value.len() / 2];
        let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        let percent = |text: &str| text.replace('+', "%2B").replace('=', "%3D");
        for (text, form) in [
            (format!("…{value}…"), "plain"),
            (format!("a{half}b"), "plain"),
            (format!("?key={}", percent(&value)), "percent-encoded"),
            (format!("x{}", hex(&value)), "hexadecimal"),
            (hex(&value).to_uppercase(), "hexadecimal"),
            (format!("{:?}", value.as_bytes()), "numbers"),
            (STANDARD_NO_PAD.encode(&value), "base64"),
            (STANDARD_NO_PAD.encode(format!("user:{value}")), "base64"),
            (URL_SAFE_NO_PAD.encode(format!("a:{value}:b")), "base64"),
            (URL_SAFE_NO_PAD.encode(format!("{{}}{half}::")), "base64"),
        ] {
            let found = planted.search(&[("out".to_owned(), text.clone().into_bytes())]);
            assert!(found.iter().any(|s| s.place == "here" && s.form == form), "{form} in {text}: {found:?}");
            assert!(found.iter().all(|s| s.place == "here"), "{found:?}");
        }
        assert_eq!(planted.search(&[("out".to_owned(), b"nothing of it".to_vec())]), []);
    }
}
