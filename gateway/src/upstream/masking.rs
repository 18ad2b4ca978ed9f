//! Masking of the gateway's own credentials in answers. A server that refuses a credential may repeat it in its error, which
//! goes to a caller that must not know it. Inputs are the credentials in a request, and the answer as it passes; at most the
//! length of the longest credential is held back.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::message::ResponseHead;
use crate::protocol::GRPC_STATUS;

/// Shortest credential that is searched for, bytes. A shorter one is no secret, and would be found in innocent text.
const LEAST: usize = 8;

/// Schemes before credentials in headers other than `authorization` too.
const SCHEMES: [&[u8]; 4] = [b"bearer", b"basic", b"token", b"apikey"];

/// Base64 as gRPC writes binary headers: with padding or without.
const BINARY: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Credentials that the gateway, and not its caller, put on a request.
#[derive(Debug, Clone, Default)]
pub(super) struct SentCredentials {
    /// Header values, with their secret ranges.
    values: SmallVec<[(HeaderValue, Range<usize>); 2]>,
    /// Values of the environment in headers that filters set.
    environment: Option<Arc<[Box<[u8]>]>>,
}

impl SentCredentials {
    /// Credentials of a request on a route whose filters set headers to these values of the environment.
    pub(super) fn on_route(environment: Option<&Arc<[Box<[u8]>]>>) -> Self {
        Self { values: SmallVec::new(), environment: environment.cloned() }
    }

    /// Adds the credentials in a header that the gateway set.
    pub(super) fn add(&mut self, name: &HeaderName, value: &HeaderValue) {
        for range in secrets(name, value.as_bytes()) {
            self.add_range(value.clone(), range);
        }
        // A server that decodes `Basic` may repeat the password alone.
        let basic = value.as_bytes().get(..6).filter(|scheme| scheme.eq_ignore_ascii_case(b"basic "));
        let pair = basic.and_then(|_| BINARY.decode(value.as_bytes().get(6..)?.trim_ascii()).ok());
        if let Some(pair) = pair.and_then(|pair| HeaderValue::from_bytes(&pair).ok()) {
            let password = memchr::memchr(b':', pair.as_bytes()).map_or(0, |colon| colon + 1);
            let end = pair.len();
            self.add_range(pair, password..end);
        }
    }

    fn add_range(&mut self, value: HeaderValue, range: Range<usize>) {
        let is_known = |text: &[u8]| self.texts(false).any(|known| known == text);
        if value.as_bytes().get(range.clone()).is_some_and(|text| text.len() >= LEAST && !is_known(text)) {
            self.values.push((value, range));
        }
    }

    /// All texts, or only those that are credentials by the name of their header.
    fn texts(&self, with_environment: bool) -> impl Iterator<Item = &[u8]> {
        let values = self.values.iter().filter_map(|(value, range)| value.as_bytes().get(range.clone()));
        let environment = self.environment.iter().filter(move |_| with_environment);
        values.chain(environment.flat_map(|values| values.iter().map(AsRef::as_ref)))
    }

    /// True without credentials to mask.
    pub(super) fn is_empty(&self) -> bool {
        self.texts(true).next().is_none()
    }

    /// True if a header or trailer repeats a credential: as it is, percent-encoded (`grpc-message`, URLs), or in Base64
    /// where the name says so (`-bin`, such as `grpc-status-details-bin`).
    fn is_in_field(&self, name: &HeaderName, value: &[u8], with_environment: bool) -> bool {
        let is_in = |text: &[u8]| is_in(text, self.texts(with_environment));
        let is_binary = || {
            let pieces = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            pieces.filter_map(|piece| BINARY.decode(piece).ok()).any(|piece| is_in(&piece))
        };
        self.is_in_text(value, with_environment) || (name.as_str().ends_with("-bin") && is_binary())
    }

    /// True if a text repeats a credential, as it is or percent-encoded.
    fn is_in_text(&self, text: &[u8], with_environment: bool) -> bool {
        is_in(text, self.texts(with_environment))
            || matches!(percent_decoded(text), Cow::Owned(decoded) if is_in(&decoded, self.texts(with_environment)))
    }

    /// Names of headers that repeat a credential.
    fn repeating<'f>(
        &self,
        headers: impl IntoIterator<Item = (&'f HeaderName, &'f HeaderValue)>,
        with_environment: bool,
    ) -> Vec<HeaderName> {
        if self.texts(with_environment).next().is_none() {
            return Vec::new();
        }
        let repeats =
            |(name, value): &(&HeaderName, &HeaderValue)| self.is_in_field(name, value.as_bytes(), with_environment);
        headers.into_iter().filter(repeats).map(|(name, _)| name.clone()).collect()
    }

    /// Removes from a server's head the headers that repeat a credential, and a reason phrase that does. A value of
    /// the environment stays in the head of a good answer: the server may use it itself, such as the name of a region.
    pub(super) fn strip(&self, head: &mut ResponseHead) {
        if self.is_empty() {
            return;
        }
        let is_good = head.status.is_success() || head.status.is_redirection();
        let with_environment = !is_good || head.headers.contains_key(&GRPC_STATUS);
        for name in self.repeating(&head.headers, with_environment) {
            head.remove_header(&name);
        }
        if self.is_in_text(head.reason().as_bytes(), with_environment) {
            // The standard phrase of the status is written instead.
            head.set_reason(None);
        }
    }

    /// Removes trailers that repeat a credential: a server of gRPC puts the text of its error there.
    pub(super) fn strip_trailers(&self, trailers: &mut HeaderMap) {
        for name in self.repeating(&*trailers, true) {
            trailers.remove(&name);
        }
    }

    /// A mask for bodies of errors; `None` where there is nothing to mask.
    pub(super) fn mask(&self) -> Option<Mask> {
        self.mask_of(true)
    }

    /// A mask for bodies of answers, which may have values of the environment: a model may speak of the region that a header
    /// names. `None` where there is nothing to mask.
    pub(super) fn mask_of_answer(&self) -> Option<Mask> {
        self.mask_of(false)
    }

    fn mask_of(&self, with_environment: bool) -> Option<Mask> {
        let mut texts: Vec<Box<[u8]>> = Vec::new();
        for spelling in self.texts(with_environment).flat_map(spellings) {
            if !texts.contains(&spelling) {
                texts.push(spelling);
            }
        }
        (!texts.is_empty()).then(|| Mask { texts, held: BytesMut::new(), covered: 0 })
    }
}

/// True if a text repeats one of these.
fn is_in<'s>(text: &[u8], mut secrets: impl Iterator<Item = &'s [u8]>) -> bool {
    secrets.any(|secret| text.len() >= secret.len() && memchr::memmem::find(text, secret).is_some())
}

/// Secret ranges of a header's value: the text after the name of a scheme, the values of cookies, else all of it.
fn secrets(name: &HeaderName, value: &[u8]) -> SmallVec<[Range<usize>; 1]> {
    let mut found = SmallVec::new();
    if *name == header::COOKIE {
        let mut from = 0;
        for pair in value.split(|byte| *byte == b';') {
            let at = memchr::memchr(b'=', pair).map_or(0, |equals| equals + 1);
            let spare = pair.len() - pair.trim_ascii_end().len();
            found.push(from + at..from + pair.len() - spare.min(pair.len() - at));
            from += pair.len() + 1;
        }
        return found;
    }
    let is_scheme = |text: &[u8]| {
        let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        SCHEMES.iter().any(|scheme| text.eq_ignore_ascii_case(scheme))
            || ([header::AUTHORIZATION, header::PROXY_AUTHORIZATION].contains(name) && text.iter().all(is_name))
    };
    let scheme = memchr::memchr(b' ', value).filter(|space| value.get(..*space).is_some_and(is_scheme));
    let after = scheme.map_or(0, |space| space + 1);
    let rest = value.get(after..).unwrap_or_default();
    let start = after + rest.len() - rest.trim_ascii_start().len();
    found.push(start..start + rest.trim_ascii().len());
    found
}

/// Bytes with `%XX` decoded; borrowed where there is none. Other text stays as it is.
fn percent_decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'%', text).is_none() {
        return Cow::Borrowed(text);
    }
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let escaped = (*byte == b'%').then(|| Some(digit(at + 1)? * 16 + digit(at + 2)?)).flatten();
        match escaped.and_then(|byte| u8::try_from(byte).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    Cow::Owned(out)
}

/// A credential as bodies write it: as it is, percent-encoded, and as JSON writers escape it (`\/` of PHP and others,
/// `\u002B` of .NET).
fn spellings(secret: &[u8]) -> impl Iterator<Item = Box<[u8]>> {
    let escaped = |escape: &dyn Fn(u8) -> Option<String>| {
        let bytes = secret.iter().flat_map(|byte| escape(*byte).map_or_else(|| vec![*byte], String::into_bytes));
        bytes.collect::<Box<[u8]>>()
    };
    let is_unreserved = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    // Most keys have one spelling: nobody escapes a byte of theirs.
    let others = (!secret.iter().all(|byte| is_unreserved(*byte))).then(|| {
        [
            escaped(&|byte| (!is_unreserved(byte)).then(|| format!("%{byte:02X}"))),
            escaped(&|byte| (byte == b'/').then(|| "\\/".to_owned())),
            escaped(&|byte| b"+&<>'\"".contains(&byte).then(|| format!("\\u{byte:04X}"))),
            escaped(&|byte| b"&<>".contains(&byte).then(|| format!("\\u{byte:04x}"))),
        ]
    });
    std::iter::once(secret.into()).chain(others.into_iter().flatten())
}

/// Mask that replaces credentials in a body by `*`, however the body is split. The length stays the same.
pub(super) struct Mask {
    texts: Vec<Box<[u8]>>,
    /// Bytes that may begin a credential, as the server wrote them.
    held: BytesMut,
    /// Bytes at the beginning of `held` that belong to a credential already.
    covered: usize,
}

impl Mask {
    /// Masks a part; returns the bytes that can go on.
    pub(super) fn pass(&mut self, part: Bytes) -> Bytes {
        let is_clean = |part: &[u8]| {
            self.texts.iter().all(|text| memchr::memmem::find(part, text).is_none())
                && self.begins_at(part) == part.len()
        };
        if self.held.is_empty() && is_clean(&part) {
            return part;
        }
        self.held.extend_from_slice(&part);
        let at = self.begins_at(&self.held);
        self.give(at)
    }

    /// Returns the held bytes at the end of the body.
    pub(super) fn rest(&mut self) -> Bytes {
        self.give(self.held.len())
    }

    /// Masks a whole text.
    pub(super) fn text(&mut self, text: &mut String) {
        let begun = self.pass(std::mem::take(text).into_bytes().into());
        let masked = [begun, self.rest()].concat();
        *text = String::from_utf8(masked).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned());
    }

    /// Masks a whole body.
    pub(super) fn whole(mut self, body: Bytes) -> Bytes {
        let begun = self.pass(body);
        let rest = self.rest();
        if rest.is_empty() { begun } else { [begun, rest].concat().into() }
    }

    /// Returns the held bytes before `at`, masked. The rest of a credential behind them is remembered as covered, so that a
    /// longer credential that begins with a shorter one is still found.
    fn give(&mut self, at: usize) -> Bytes {
        let mut found: SmallVec<[Range<usize>; 4]> = SmallVec::new();
        found.push(0..self.covered);
        for text in &self.texts {
            let starts = memchr::memmem::find_iter(&self.held, text).take_while(|start| *start < at);
            found.extend(starts.map(|start| start..start + text.len()));
        }
        self.covered = found.iter().map(|range| range.end).max().unwrap_or(0).saturating_sub(at);
        let mut out = self.held.split_to(at);
        for range in found {
            let end = range.end.min(at);
            if let Some(secret) = out.get_mut(range.start.min(end)..end) {
                secret.fill(b'*');
            }
        }
        out.freeze()
    }

    /// Start of a credential that the end of a part may begin; the length of the part without one.
    fn begins_at(&self, part: &[u8]) -> usize {
        let begin = |text: &[u8]| {
            let first = part.len().saturating_sub(text.len().saturating_sub(1));
            (first..part.len()).find(|at| part.get(*at..).is_some_and(|end| text.starts_with(end)))
        };
        self.texts.iter().filter_map(|text| begin(text)).min().unwrap_or(part.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(headers: &[(&'static str, &str)]) -> SentCredentials {
        let mut shown = SentCredentials::default();
        for (name, value) in headers {
            shown.add(&HeaderName::from_static(name), &HeaderValue::from_str(value).unwrap());
        }
        shown
    }

    fn masked(shown: &SentCredentials, parts: &[&str]) -> String {
        let mut mask = shown.mask().unwrap();
        let mut out = Vec::new();
        for part in parts {
            out.extend_from_slice(&mask.pass(Bytes::copy_from_slice(part.as_bytes())));
        }
        out.extend_from_slice(&mask.rest());
        String::from_utf8(out).unwrap()
    }

    /// Asserts what becomes of a text, cut in three in every way.
    fn assert_masked(shown: &SentCredentials, text: &str, wanted: &str) {
        for first in 0..=text.len() {
            for second in first..=text.len() {
                let parts = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(masked(shown, &parts), wanted, "{first} {second}");
            }
        }
    }

    #[test]
    fn a_credential_is_masked_however_the_body_is_cut() {
        let bearer = shown(&[("authorization", "Bearer abc-abd-secret")]);
        let text = "key abc-abd-secret, abc-abc-abd-secret; abc-abd-secre";
        assert_masked(&bearer, text, "key **************, abc-**************; abc-abd-secre");
        assert_eq!(masked(&bearer, &["nothing", " of it"]), "nothing of it");
    }

    #[test]
    fn several_credentials_are_masked_also_where_one_is_a_part_of_another() {
        let both = shown(&[("x-api-key", "abcdefgh"), ("authorization", "Token 12abcdefghij")]);
        assert_masked(&both, "12abcdefghij abcdefghij 12abcdefgh", "************ ********ij 12********");
        let begins = shown(&[("x-api-key", "abcdefgh"), ("api-key", "abcdefghij"), ("authorization", "ghijklmn")]);
        assert_masked(&begins, "abcdefghij abcdefghijklmn.", "********** **************.");
    }

    #[test]
    fn a_short_credential_is_not_looked_for() {
        let short = shown(&[("authorization", "Bearer a"), ("x-api-key", "seven-7"), ("cookie", "session=short")]);
        assert!(short.is_empty() && short.mask().is_none());
    }

    #[test]
    fn what_is_secret_of_a_header_is_known_by_its_form() {
        for (name, value, text, wanted) in [
            ("authorization", "Bearer  secret-token ", "a secret-token", "a ************"),
            ("authorization", "secret-token", "a secret-token", "a ************"),
            ("authorization", "AWS4-HMAC-SHA256 Signature=abc", "Signature=abc", "*************"),
            ("x-api-key", "with a space", "a with a space", "a ************"),
            ("x-token", "Bearer secret-token", "secret-token", "************"),
            ("cookie", "a=first-one; b=second-one ", "first-one second-one", "********* **********"),
            (
                "authorization",
                "Basic dXNlcjpzZWNyZXQtdG9rZW4=",
                "secret-token dXNlcjpzZWNyZXQtdG9rZW4=",
                "************ ************************",
            ),
        ] {
            assert_eq!(masked(&shown(&[(name, value)]), &[text]), wanted, "{value}");
        }
    }

    #[test]
    fn a_credential_is_masked_as_bodies_escape_it() {
        let odd = shown(&[("authorization", "Bearer ab/cd+ef==&gh")]);
        for text in [
            "ab/cd+ef==&gh",
            "ab%2Fcd%2Bef%3D%3D%26gh",
            "ab\\/cd+ef==&gh",
            "ab/cd\\u002Bef==\\u0026gh",
            "ab/cd+ef==\\u0026gh",
        ] {
            assert_eq!(masked(&odd, &["a ", text, "."]), format!("a {}.", "*".repeat(text.len())), "{text}");
        }
    }

    #[test]
    fn headers_that_hold_it_are_named_however_they_are_encoded() {
        // A status with the message and, in its details, the same again (google.rpc.Status).
        let status = b"\x08\x10\x12\x1aincorrect abc/abd~secret \xc3\xa9";
        for (name, value, is_held) in [
            ("www-authenticate", "Bearer realm=\"abc/abd~secret\"", true),
            ("grpc-message", "incorrect key abc/abd~secret", true),
            ("grpc-message", "incorrect%20key%20abc%2Fabd%7Esecret", true),
            ("grpc-message", "%61%62%63/abd~sec%72et %C3%A9 100%", true),
            ("grpc-message", "100% abc%2", false),
            ("location", "https://a.test/?key=abc%2fabd~secret", true),
            ("grpc-status-details-bin", &BINARY.encode(status), true),
            ("grpc-status-details-bin", BINARY.encode(status).trim_end_matches('='), true),
            ("x-two-bin", &format!("aGVsbG8=, {}", BINARY.encode(status)), true),
            ("x-kept", &BINARY.encode(status), false),
            ("grpc-status-details-bin", "aGVsbG8", false),
            ("x-kept", "abc/abd", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
            let found = shown(&[("authorization", "Bearer abc/abd~secret")]).repeating(&headers, true);
            assert_eq!(found.len(), usize::from(is_held), "{name}: {value}");
        }
    }

    #[test]
    fn a_head_loses_what_repeats_it_and_keeps_the_rest() {
        let mut head = ResponseHead::new(http::StatusCode::UNAUTHORIZED, 0);
        head.set_reason(Some("abc-abd-secret is wrong"));
        head.insert_header("x-kept", "kept").unwrap();
        head.insert_header("x-key", "abc-abd-secret").unwrap();
        shown(&[("authorization", "Bearer abc-abd-secret")]).strip(&mut head);
        assert_eq!(head.reason(), "Unauthorized");
        assert_eq!(head.headers.keys().collect::<Vec<_>>(), ["x-kept"]);
    }

    #[test]
    fn values_of_the_environment_are_masked_too() {
        let values: Arc<[Box<[u8]>]> = vec![b"of-the-environment".to_vec().into_boxed_slice()].into();
        let shown = SentCredentials::on_route(Some(&values));
        assert_eq!(masked(&shown, &["vendor of-the-envi", "ronment."]), "vendor ******************.");
        assert!(shown.mask_of_answer().is_none(), "an answer may have them");
        let kept = |status: u16, more: &[(&'static str, &str)]| {
            let mut head = ResponseHead::new(http::StatusCode::from_u16(status).unwrap(), 0);
            for (name, value) in [("x-vendor", "of-the-environment")].iter().chain(more) {
                head.insert_header(*name, *value).unwrap();
            }
            shown.strip(&mut head);
            head.headers.contains_key("x-vendor")
        };
        assert!(kept(200, &[]) && kept(302, &[]));
        assert!(!kept(401, &[]) && !kept(500, &[]) && !kept(103, &[]) && !kept(200, &[("grpc-status", "16")]));
    }
}
