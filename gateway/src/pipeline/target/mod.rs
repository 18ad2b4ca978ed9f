//! Step 1, before anything is judged: the target of a request gets one reading. Spellings that a backend could read
//! otherwise are put into one form or refused here, so that the route, the filters and the backend see the same host, path and
//! length. What depends on the route is judged when its candidates are known. It owns no state; its input is a header as
//! it came.

use std::borrow::Cow;
use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use spillway_config::path;
use spillway_config::schema::EncodedSlashes;
use spillway_config::spelling::{self, Spelling};
use spillway_filter::{ErrorKind, Refusal};

use super::{answers, rewritten};
use crate::message::RequestHead;
use crate::protocol::{ModelPlace, ResolvedOperation};
use crate::routing::{Candidates, MAX_HOST};
use crate::topology::Route;

/// Puts target, host and framing of a head into one form, or refuses them. Returns the ways in which other servers could
/// read the path.
pub(super) fn settle(head: &mut RequestHead) -> Result<Spelling, Box<Refusal>> {
    origin_form(head)?;
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let is_settled = hosts.next().is_some_and(|host| is_in_form(host.as_bytes())) && hosts.next().is_none();
    if !is_settled {
        if head.headers.get_all(header::HOST).iter().any(|host| !is_host(host.as_bytes())) {
            return Err(wrong("bad_host", "the Host of the request is no name or address, with or without a port"));
        }
        one_host(head)?;
    }
    let spelling = one_path(head)?;
    one_length(head)?;
    one_type(head)?;
    Ok(spelling)
}

fn wrong(code: &'static str, message: &'static str) -> Box<Refusal> {
    Box::new(Refusal::invalid(code, message))
}

/// A target with scheme and host says which host is meant, whatever `Host` says (RFC 9112, 3.2.2); any other begins with
/// a slash, but for `OPTIONS *`.
fn origin_form(head: &mut RequestHead) -> Result<(), Box<Refusal>> {
    if head.raw_path().first() == Some(&b'/') || (head.method == Method::OPTIONS && head.raw_path() == b"*") {
        return Ok(());
    }
    let bad = || wrong("bad_target", "the target of the request is neither a path nor an http or https URL");
    // The head keeps such a target as it came, and its `uri` is only the path.
    let target = std::str::from_utf8(head.raw_path()).ok().and_then(|raw| raw.parse::<Uri>().ok()).ok_or_else(bad)?;
    let is_http = matches!(target.scheme_str(), Some("http" | "https"));
    let authority =
        target.authority().filter(|authority| is_http && !authority.as_str().contains('@')).ok_or_else(bad)?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad())?;
    // `http://host?query` has no path of its own.
    let path = target.path_and_query().filter(|path| path.as_str().starts_with('/')).cloned().ok_or_else(bad)?;
    head.insert_header(header::HOST, host).map_err(|_| bad())?;
    head.set_uri(Uri::from(path));
    Ok(())
}

/// True for a host that [`is_host`] accepts and [`one_host`] leaves as it is, as almost all are.
fn is_in_form(host: &[u8]) -> bool {
    let mut begins_label = true;
    for (n, byte) in host.iter().enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => begins_label = false,
            b'.' if !begins_label => begins_label = true,
            b':' => {
                let port = host.get(n + 1..).unwrap_or_default();
                return !begins_label && n <= MAX_HOST && port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
            }
            _ => return false,
        }
    }
    !begins_label && host.len() <= MAX_HOST
}

/// True for a host as of RFC 9110, 7.2: a name or address, perhaps with a port; empty where the request has none.
fn is_host(host: &[u8]) -> bool {
    let is_port = |port: &[u8]| port.len() <= 5 && port.iter().all(u8::is_ascii_digit);
    match host.strip_prefix(b"[") {
        Some(rest) => {
            let mut parts = rest.splitn(2, |b| *b == b']');
            let (address, after) = (parts.next().unwrap_or_default(), parts.next());
            let is_address = !address.is_empty() && address.iter().all(|b| b.is_ascii_hexdigit() || b":.".contains(b));
            is_address && after.is_some_and(|after| after.is_empty() || after.strip_prefix(b":").is_some_and(is_port))
        }
        None => {
            let mut parts = host.splitn(2, |b| *b == b':');
            let name = parts.next().unwrap_or_default();
            // Labels between the dots, and perhaps the dot of the root: `a..test` and `a.test..` are other names to some.
            let labels = name.strip_suffix(b".").unwrap_or(name);
            let is_name = name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(b))
                && labels.len() <= MAX_HOST
                && (name.is_empty() || labels.split(|b| *b == b'.').all(|label| !label.is_empty()));
            is_name && parts.next().is_none_or(is_port)
        }
    }
}

/// Writes the host in small letters and without the dot of the root, as routes read it (RFC 9110, 4.2.3; RFC 1034, 3.1):
/// an expression, a limit or a server that compares it letter by letter is passed by no other spelling.
fn one_host(head: &mut RequestHead) -> Result<(), Box<Refusal>> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next().map(HeaderValue::as_bytes) else { return Ok(()) };
    if hosts.next().is_some() {
        return Err(wrong("bad_host", "the request has more than one Host"));
    }
    let end = host.iter().position(|byte| *byte == b':').filter(|_| !host.starts_with(b"[")).unwrap_or(host.len());
    let (name, port) = host.split_at_checked(end).unwrap_or((host, b""));
    let plain = name.strip_suffix(b".").unwrap_or(name);
    if plain.len() == name.len() && !host.iter().any(u8::is_ascii_uppercase) {
        return Ok(());
    }
    let written = [plain, port].concat().to_ascii_lowercase();
    let bad = || wrong("bad_host", "the Host of the request is no name or address, with or without a port");
    let host = HeaderValue::from_bytes(&written).map_err(|_| bad())?;
    head.insert_header(header::HOST, host).map_err(|_| bad())
}

/// Puts the path into its normal form (RFC 3986, 6.2.2), with slashes written once, and says what other servers could
/// read in it. The query stays as it came.
fn one_path(head: &mut RequestHead) -> Result<Spelling, Box<Refusal>> {
    // Bytes that are no UTF-8 would pass as they came, while rules see a path in which they are replaced.
    let path_as_it_came = || head.raw_path().split(|b| *b == b'?').next().unwrap_or_default();
    if !head.raw_path_is_utf8() && std::str::from_utf8(path_as_it_came()).is_err() {
        return Err(wrong("bad_target", "the path of the request is no UTF-8"));
    }
    let (path, spelling) = spelling::read(head.uri.path())
        .map_err(|e| Box::new(Refusal::invalid("ambiguous_path", format!("{e}: write the path that is meant"))))?;
    if let Cow::Owned(path) = path {
        let whole = match head.uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let uri = whole.parse::<Uri>().map_err(|_| wrong("bad_target", "the path of the request cannot be read"))?;
        head.set_uri(uri);
    }
    Ok(spelling)
}

/// Host that a request is for.
pub(super) fn host_of(head: &RequestHead) -> Option<&str> {
    head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).or_else(|| head.uri.host())
}

/// Path of a request by which its route is found.
pub(super) fn route_key(head: &RequestHead) -> Cow<'_, str> {
    path::key(head.uri.path())
}

/// Judges a path with second readings, once its candidate routes are known and before anything else happens to it. It
/// passes if each reading leads to the same rules as the path itself; encoded slashes pass only where all candidates pass
/// them. A model's id is decoded by the gateway itself, and no other server reads it.
pub(super) fn judge_spelling<'t>(
    spelling: Spelling,
    head: &RequestHead,
    listener: EncodedSlashes,
    candidates: &Candidates<'_>,
    others: impl Fn(&str) -> Candidates<'t>,
) -> Result<(), Box<Refusal>> {
    // What no route takes gets the answer for that.
    if spelling.is_one() || candidates.is_empty() {
        return Ok(());
    }
    // A server that is asked whether the caller may make the request reads the id too.
    let judges_path = candidates.judge_path();
    let (method, path) = (&head.method, head.uri.path());
    let target = head.uri.path_and_query();
    let resolved = rewritten::operation(method, target, candidates.routes());
    let is_id = target.is_some_and(|target| {
        answers::is_model_by_id(resolved, method, target, candidates.routes())
            || answers::is_built_in_by_path(resolved, method, target, candidates.routes())
    });
    if is_id && !(judges_path && spelling.is_hidden()) {
        return Ok(());
    }
    if spelling.is_hidden() {
        return Err(wrong(
            "ambiguous_path",
            "the path of the request has control characters, bytes that are no UTF-8, a second encoding, or blanks, dots \
             or nothing between two delimiters: write the path that is meant",
        ));
    }
    let passes = |route: &Arc<Route>| route.encoded_slashes.unwrap_or(listener) == EncodedSlashes::Pass;
    if spelling.has_slash() && !candidates.routes().all(passes) {
        return Err(wrong(
            "ambiguous_path",
            "the path of the request has an encoded slash or backslash (%2F, %5C), which is not passed on here \
             (`encodedSlashes`): write the path that is meant",
        ));
    }
    let is_evaded = (judges_path && spelling.evades_expressions())
        || spelling.readings(path).any(|reading| {
            // An operation of a model API has its own limits and checks, whatever the route.
            let target = reading.parse::<PathAndQuery>().ok();
            rewritten::operation(method, target.as_ref(), candidates.routes()).dialect != resolved.dialect
                || names_another_model(resolved, method, head, target.as_ref(), candidates)
                || !candidates.rule_like(&others(&reading))
        });
    if is_evaded {
        return Err(wrong(
            "ambiguous_path",
            "the path of the request has a second reading (`;`, an escaped slash or delimiter, or a dot at the end of a \
             name) to which other rules apply: write the path that is meant",
        ));
    }
    Ok(())
}

/// True if a path names another model in this reading of its target.
fn names_another_model(
    resolved: ResolvedOperation,
    method: &Method,
    head: &RequestHead,
    reading: Option<&PathAndQuery>,
    candidates: &Candidates<'_>,
) -> bool {
    resolved.model_place == ModelPlace::Path
        && candidates.routes().any(|route| {
            let model = |target: Option<&PathAndQuery>| rewritten::model(route, resolved, method, target?);
            model(head.uri.path_and_query()) != model(reading)
        })
}

/// A body has one length, said once, or is chunked and nothing else (RFC 9112, 6).
fn one_length(head: &mut RequestHead) -> Result<(), Box<Refusal>> {
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(Box::new(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            ErrorKind::InvalidRequest,
            "unsupported_transfer_coding",
            "the only transfer coding that is accepted is `chunked`",
        )));
    }
    let mut lengths = head.headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next().cloned() else { return Ok(()) };
    let mut repeated = false;
    let same = lengths.all(|other| {
        repeated = true;
        other == length
    });
    if length.is_empty() || !length.as_bytes().iter().all(u8::is_ascii_digit) || !same {
        return Err(wrong("ambiguous_framing", "the request has no single Content-Length"));
    }
    if repeated {
        head.insert_header(header::CONTENT_LENGTH, length)
            .map_err(|_| wrong("ambiguous_framing", "the request has no single Content-Length"))?;
    }
    Ok(())
}

/// A body has one type: servers differ on which of two they read it by.
fn one_type(head: &RequestHead) -> Result<(), Box<Refusal>> {
    match head.headers.get_all(header::CONTENT_TYPE).iter().nth(1) {
        Some(_) => Err(wrong("ambiguous_content_type", "the request has more than one Content-Type: send one")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod readers;
#[cfg(test)]
mod tests;
