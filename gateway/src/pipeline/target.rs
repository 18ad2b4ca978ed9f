//! Step 1, before anything is judged: what a request is for gets one reading. What a backend could read otherwise than we
//! did is put into one form or refused here, so that the route, the filters and the backend see the same host, path and
//! length. It owns no state; its input is a header as it came.

use std::borrow::Cow;

use http::{HeaderValue, Method, StatusCode, Uri, header};
use pingora::http::RequestHeader;
use spillway_filter::{ErrorKind, Refusal};

/// Puts target, host and framing of a header into one form, or says why it cannot be served.
pub(super) fn settle(head: &mut RequestHeader) -> Result<(), Box<Refusal>> {
    origin_form(head)?;
    if head.headers.get_all(header::HOST).iter().any(|host| !is_host(host.as_bytes())) {
        return Err(wrong("bad_host", "the Host of the request is no name or address, with or without a port"));
    }
    one_host(head)?;
    one_path(head)?;
    one_length(head)
}

fn wrong(code: &'static str, message: &'static str) -> Box<Refusal> {
    Box::new(Refusal::invalid(code, message))
}

/// A target with scheme and host says which host is meant, whatever `Host` says (RFC 9112, 3.2.2); any other begins with
/// a slash, but for `OPTIONS *`.
fn origin_form(head: &mut RequestHeader) -> Result<(), Box<Refusal>> {
    if head.raw_path().first() == Some(&b'/') || (head.method == Method::OPTIONS && head.raw_path() == b"*") {
        return Ok(());
    }
    let bad = || wrong("bad_target", "the target of the request is neither a path nor an http or https URL");
    // Pingora keeps such a target as it came and gives only its path.
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

/// Whether this is a host as RFC 9110, 7.2 has it: a name or address, and perhaps a port. Empty where there is none.
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
            let is_name = name.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(b));
            is_name && parts.next().is_none_or(is_port)
        }
    }
}

/// Writes the host in small letters and without the dot of the root, as routes read it (RFC 9110, 4.2.3; RFC 1034, 3.1):
/// an expression, a limit or a server that compares it letter by letter is passed by no other spelling.
fn one_host(head: &mut RequestHeader) -> Result<(), Box<Refusal>> {
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

/// Unreserved characters are written plainly (RFC 3986, 6.2.2.2) and slashes once; dots that would climb are refused, as
/// are backslashes, which some servers take for slashes.
fn one_path(head: &mut RequestHeader) -> Result<(), Box<Refusal>> {
    let path = head.uri.path();
    let plain = plain(path);
    let climbs = plain.split('/').any(|segment| matches!(segment, "." | ".."));
    if climbs || plain.contains('\\') || plain.to_ascii_lowercase().contains("%5c") {
        return Err(wrong(
            "ambiguous_path",
            "the path of the request has `.`, `..` or a backslash: write the path that is meant",
        ));
    }
    if let Cow::Owned(plain) = plain {
        let whole = match head.uri.query() {
            Some(query) => format!("{plain}?{query}"),
            None => plain,
        };
        let uri = whole.parse::<Uri>().map_err(|_| wrong("bad_target", "the path of the request cannot be read"))?;
        head.set_uri(uri);
    }
    Ok(())
}

/// The path with unreserved characters decoded and slashes merged; borrowed where nothing is to be done.
fn plain(path: &str) -> Cow<'_, str> {
    if !path.contains('%') && !path.contains("//") {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(c) = rest.chars().next() {
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        let decoded = if c == '%' { rest.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) } else { None };
        match decoded.filter(|b| b.is_ascii_alphanumeric() || b"-._~".contains(b)) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = rest.get(2..).unwrap_or_default();
            }
            None if c == '/' && out.ends_with('/') => {}
            None => out.push(c),
        }
    }
    if out == path { Cow::Borrowed(path) } else { Cow::Owned(out) }
}

/// A body has one length, said once, or is chunked and nothing else (RFC 9112, 6).
fn one_length(head: &mut RequestHeader) -> Result<(), Box<Refusal>> {
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(Box::new(Refusal::new(
            StatusCode::NOT_IMPLEMENTED,
            ErrorKind::InvalidRequest,
            "unsupported_transfer_coding",
            "the only transfer coding that is taken is `chunked`",
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

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(target: &[u8], headers: &[(&'static str, &[u8])]) -> Result<RequestHeader, &'static str> {
        let mut head = RequestHeader::build(Method::GET, target, None).unwrap();
        for (name, value) in headers {
            head.append_header(*name, HeaderValue::from_bytes(value).unwrap()).unwrap();
        }
        settle(&mut head).map(|()| head).map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_path_has_one_reading() {
        for (written, read) in [
            ("/v1/chat", "/v1/chat"),
            ("/%61dmin?a=%62", "/admin?a=%62"),
            ("//admin///x", "/admin/x"),
            ("/models/org%2Fname", "/models/org%2Fname"),
            ("/a..b/.c", "/a..b/.c"),
            ("/%", "/%"),
        ] {
            let head = settled(written.as_bytes(), &[]).unwrap();
            assert_eq!(head.uri.path_and_query().unwrap().as_str(), read, "{written}");
            assert_eq!(head.raw_path(), read.as_bytes(), "{written}");
        }
        for written in ["/x/../admin", "/x/%2e%2E/admin", "/./x", "/x/.%2e", "/x\\..\\y", "/x%5Cy"] {
            assert_eq!(settled(written.as_bytes(), &[]).err(), Some("ambiguous_path"), "{written}");
        }
    }

    #[test]
    fn a_target_is_a_path_or_says_its_host() {
        let head = settled(b"http://secret.test/x?y", &[("host", b"other.test")]).unwrap();
        assert_eq!(
            (head.raw_path(), head.headers.get("host").unwrap().as_bytes()),
            (&b"/x?y"[..], &b"secret.test"[..])
        );
        for written in [&b"admin"[..], b"foo:/admin", b"@127.0.0.1:1/x", b"ftp://a/b", b"http://u@a/b"] {
            assert!(settled(written, &[]).is_err(), "{}", String::from_utf8_lossy(written));
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for host in [&b"a.test"[..], b"a.test.", b"a.test:80", b"127.0.0.1:1", b"[::1]", b"[::1]:443", b""] {
            assert!(settled(b"/", &[("host", host)]).is_ok(), "{}", String::from_utf8_lossy(host));
        }
        for host in [&b"a.test:abc"[..], b"a, b", b"a\xff", b"a\t:80", b"[::1]evil.test", b"u@a", b"[]", b"a:80:90"] {
            assert_eq!(settled(b"/", &[("host", host)]).err(), Some("bad_host"), "{}", String::from_utf8_lossy(host));
        }
    }

    #[test]
    fn a_host_has_one_spelling() {
        for (written, read) in [
            ("a.test", "a.test"),
            ("A.Test:8080", "a.test:8080"),
            ("a.test.", "a.test"),
            ("A.test.:80", "a.test:80"),
            ("[2001:DB8::1]:80", "[2001:db8::1]:80"),
            ("", ""),
        ] {
            let head = settled(b"/", &[("host", written.as_bytes())]).unwrap();
            assert_eq!(head.headers["host"], read, "{written}");
        }
        let head = settled(b"http://A.test./x", &[]).unwrap();
        assert_eq!(head.headers["host"], "a.test");
        assert_eq!(settled(b"/", &[("host", b"a.test"), ("host", b"b.test")]).err(), Some("bad_host"));
    }

    #[test]
    fn a_body_has_one_length() {
        let head = settled(b"/", &[("content-length", b"3"), ("content-length", b"3")]).unwrap();
        assert_eq!(head.headers.get_all("content-length").iter().count(), 1);
        for lengths in [&[&b"3, 3"[..]][..], &[b"3", b"4"], &[b"+3"], &[b""]] {
            let headers: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
            assert_eq!(settled(b"/", &headers).err(), Some("ambiguous_framing"), "{lengths:?}");
        }
        assert!(settled(b"/", &[("transfer-encoding", b"Chunked")]).is_ok());
        for codings in [&[&b"gzip, chunked"[..]][..], &[b"identity", b"chunked"], &[b"gzip"]] {
            let headers: Vec<_> = codings.iter().map(|coding| ("transfer-encoding", *coding)).collect();
            assert_eq!(settled(b"/", &headers).err(), Some("unsupported_transfer_coding"), "{codings:?}");
        }
    }
}
