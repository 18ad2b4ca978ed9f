//! Form of an answer in the shared store, as bytes. What is read is foreign: every length is checked, and an answer that is
//! not exactly the one that was asked for is none.

use std::time::Duration;

use bytes::{Bytes, TryGetError};
use http::HeaderValue;
use spillway_filter::{AnswerKey, AnswerPut, Generation, StoredAnswer, TokenUse};

/// Form of the values that this version writes and reads.
const VERSION: u8 = 1;
/// Bytes in front of the names and the body.
const HEAD: usize = 1 + 16 + 32 + 8 + 5 * 8 + 1 + 2 + 2 + 4;
/// Longest name of a model, and longest content type, in bytes.
const MAX_NAME: usize = 256;
/// Bytes beside the body of the longest value.
pub(super) const MOST_BESIDE: usize = HEAD + 2 * MAX_NAME;
/// Flag of an answer by a built-in model.
const BUILT_IN: u8 = 1;
/// Flag of an answer whose server named its model.
const NAMED: u8 = 2;

/// Reason why a value is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Answers of before a purge.
    Forgotten,
    /// Bytes that no gateway of this version writes under this key, or too many.
    Malformed,
}

impl From<TryGetError> for NoAnswer {
    fn from(_: TryGetError) -> Self {
        Self::Malformed
    }
}

/// Bytes of an answer; `None` for one that cannot be written, because its content type is too long.
pub(super) fn encode(put: &AnswerPut) -> Option<Vec<u8>> {
    let AnswerPut { key, generation, answer, ttl, .. } = put;
    let kind = answer.content_type.as_bytes();
    // A name that is too long costs the price of the answer, not the answer.
    let model = answer.model.as_deref().filter(|name| name.len() <= MAX_NAME);
    let flags = if answer.is_built_in { BUILT_IN } else { 0 } | if model.is_some() { NAMED } else { 0 };
    let model = model.unwrap_or_default().as_bytes();
    if kind.len() > MAX_NAME {
        return None;
    }
    let mut bytes = Vec::with_capacity(HEAD + model.len() + kind.len() + answer.body.len());
    bytes.push(VERSION);
    bytes.extend_from_slice(&generation.0);
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&u64::try_from(ttl.as_millis()).ok()?.to_be_bytes());
    let TokenUse { input, cached, cache_written, cache_written_1h, output } = answer.tokens;
    for tokens in [input, cached, cache_written, cache_written_1h, output] {
        bytes.extend_from_slice(&tokens.to_be_bytes());
    }
    bytes.push(flags);
    bytes.extend_from_slice(&u16::try_from(model.len()).ok()?.to_be_bytes());
    bytes.extend_from_slice(&u16::try_from(kind.len()).ok()?.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(answer.body.len()).ok()?.to_be_bytes());
    bytes.extend_from_slice(model);
    bytes.extend_from_slice(kind);
    bytes.extend_from_slice(&answer.body);
    Some(bytes)
}

/// Answer in `value`, with its age. `left` is the time after which the store forgets it, in milliseconds.
pub(super) fn decode(
    value: Vec<u8>,
    (key, generation): (&AnswerKey, Generation),
    left: i64,
    longest: usize,
) -> Result<(StoredAnswer, Duration), NoAnswer> {
    use bytes::Buf;

    let mut value = Bytes::from(value);
    if value.try_get_u8()? != VERSION {
        return Err(NoAnswer::Malformed);
    }
    let mut of = Generation([0; 16]);
    value.try_copy_to_slice(&mut of.0)?;
    let mut under: AnswerKey = [0; 32];
    value.try_copy_to_slice(&mut under)?;
    if under != *key {
        return Err(NoAnswer::Malformed);
    }
    if of != generation {
        return Err(NoAnswer::Forgotten);
    }
    // A value that is kept for ever, or for longer than it says, was written by something else.
    let (ttl, left) = (value.try_get_u64()?, u64::try_from(left).map_err(|_| NoAnswer::Malformed)?);
    let age = Duration::from_millis(ttl.checked_sub(left).ok_or(NoAnswer::Malformed)?);
    let tokens = TokenUse {
        input: value.try_get_u64()?,
        cached: value.try_get_u64()?,
        cache_written: value.try_get_u64()?,
        cache_written_1h: value.try_get_u64()?,
        output: value.try_get_u64()?,
    };
    let flags = value.try_get_u8()?;
    let (model, kind) = (usize::from(value.try_get_u16()?), usize::from(value.try_get_u16()?));
    let body = usize::try_from(value.try_get_u32()?).map_err(|_| NoAnswer::Malformed)?;
    let is_whole = model.checked_add(kind).and_then(|names| names.checked_add(body)) == Some(value.len());
    if model > MAX_NAME || kind > MAX_NAME || body > longest || !is_whole {
        return Err(NoAnswer::Malformed);
    }
    let name = value.split_to(model);
    let name = std::str::from_utf8(&name).map_err(|_| NoAnswer::Malformed)?;
    let content_type = HeaderValue::from_bytes(&value.split_to(kind)).map_err(|_| NoAnswer::Malformed)?;
    let model = (flags & NAMED != 0).then(|| name.into());
    let answer = StoredAnswer { content_type, body: value, tokens, model, is_built_in: flags & BUILT_IN != 0 };
    Ok((answer, age))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: AnswerKey = [7; 32];
    const GENERATION: Generation = Generation([9; 16]);

    fn put(body: &[u8], kind: &str, model: Option<&str>, numbers: [u64; 5]) -> AnswerPut {
        let [input, cached, cache_written, cache_written_1h, output] = numbers;
        AnswerPut {
            key: KEY,
            generation: GENERATION,
            answer: StoredAnswer {
                content_type: HeaderValue::from_str(kind).unwrap(),
                body: Bytes::copy_from_slice(body),
                tokens: TokenUse { input, cached, cache_written, cache_written_1h, output },
                model: model.map(Into::into),
                is_built_in: output % 2 == 1,
            },
            ttl: Duration::from_secs(600),
            until_done: Box::new(()),
        }
    }

    fn read(value: Vec<u8>, left: i64, longest: usize) -> Result<(StoredAnswer, Duration), NoAnswer> {
        decode(value, (&KEY, GENERATION), left, longest)
    }

    #[test]
    fn only_the_value_that_was_asked_for_is_an_answer() {
        let written = put(b"{}", "application/json", Some("m"), [1, 2, 3, 4, 5]);
        let value = encode(&written).unwrap();
        let (answer, age) = read(value.clone(), 590_000, 2).unwrap();
        assert_eq!((answer, age), (written.answer, Duration::from_secs(10)));
        for (value, key, generation, left, longest, expected) in [
            (Vec::new(), KEY, GENERATION, 1, 2, NoAnswer::Malformed),
            (value.clone(), [8; 32], GENERATION, 1, 2, NoAnswer::Malformed),
            (value.clone(), KEY, Generation([8; 16]), 1, 2, NoAnswer::Forgotten),
            (value.clone(), KEY, GENERATION, -1, 2, NoAnswer::Malformed),
            (value.clone(), KEY, GENERATION, 600_001, 2, NoAnswer::Malformed),
            (value.clone(), KEY, GENERATION, 1, 1, NoAnswer::Malformed),
            ([value.clone(), vec![0]].concat(), KEY, GENERATION, 1, 9, NoAnswer::Malformed),
            ([vec![2], value[1..].to_vec()].concat(), KEY, GENERATION, 1, 2, NoAnswer::Malformed),
        ] {
            assert_eq!(decode(value, (&key, generation), left, longest), Err(expected), "{left} {longest}");
        }
        let long = "a".repeat(MAX_NAME + 1);
        assert!(encode(&put(b"", &long, None, [0; 5])).is_none());
        let unnamed = encode(&put(b"", "a/b", Some(&long), [0; 5])).unwrap();
        assert_eq!(read(unnamed, 0, 0).unwrap().0.model, None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_what_is_cut_or_changed_breaks_nothing(
            body in proptest::collection::vec(any::<u8>(), 0..200),
            model in proptest::option::of("[a-z0-9:/.-]{0,40}"),
            numbers in any::<[u64; 5]>(),
            cut in any::<proptest::sample::Index>(),
            at in any::<proptest::sample::Index>(),
            byte in any::<u8>(),
            longest in 0_usize..300,
        ) {
            let written = put(&body, "text/event-stream", model.as_deref(), numbers);
            let value = encode(&written).unwrap();
            prop_assert!(value.len() <= body.len() + MOST_BESIDE);
            let found = read(value.clone(), 0, body.len()).unwrap();
            prop_assert_eq!(&found.0, &written.answer);
            let shorter = value[..cut.index(value.len())].to_vec();
            prop_assert_eq!(read(shorter, 0, body.len()), Err(NoAnswer::Malformed));
            let mut other = value.clone();
            let at = at.index(other.len());
            other[at] = byte;
            if let Ok((answer, _)) = read(other, 0, longest) {
                prop_assert!(answer.body.len() <= longest);
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(value in proptest::collection::vec(any::<u8>(), 0..400), left in any::<i64>()) {
            let mut with_head = encode(&put(b"", "a/b", None, [0; 5])).unwrap();
            with_head.truncate(49);
            with_head.extend_from_slice(&value);
            for value in [value, with_head] {
                if let Ok((answer, age)) = read(value, left, 100) {
                    prop_assert!(answer.body.len() <= 100 && age.as_millis() <= u128::from(u64::MAX));
                }
            }
        }
    }
}
