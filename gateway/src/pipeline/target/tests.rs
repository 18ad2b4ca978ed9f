//! Targets, hosts and framing of heads, as they come and as they are passed on.

use super::*;

fn settled(target: &[u8], headers: &[(&'static str, &[u8])]) -> Result<RequestHead, &'static str> {
    let mut head = RequestHead::with_target(Method::GET, target, header::HeaderMap::new()).unwrap();
    for (name, value) in headers {
        head.append_header(*name, HeaderValue::from_bytes(value).unwrap()).unwrap();
    }
    settle(&mut head).map(|_| head).map_err(|refusal| refusal.code)
}

#[test]
fn a_path_has_one_reading() {
    for (written, read) in [
        ("/v1/chat", "/v1/chat"),
        ("/%61dmin?a=%62", "/admin?a=%62"),
        ("//admin///x", "/admin/x"),
        ("/models/org%2Fname?b=%2f..%5c%zz", "/models/org%2Fname?b=%2f..%5c%zz"),
        ("/a..b/.c", "/a..b/.c"),
        ("/caf\u{e9}|?%c3%a9|", "/caf%C3%A9%7C?%c3%a9|"),
        ("/x#/../admin", "/x"),
    ] {
        let head = settled(written.as_bytes(), &[]).unwrap();
        assert_eq!(head.uri.path_and_query().unwrap().as_str(), read, "{written}");
        assert_eq!(head.raw_path(), read.as_bytes(), "{written}");
    }
    for written in ["/x/../admin", "/x/%2e%2E/admin", "/./x", "/x/.%2e", "/x\\..\\y", "/%", "/%u002fx"] {
        assert_eq!(settled(written.as_bytes(), &[]).err(), Some("ambiguous_path"), "{written}");
    }
    assert_eq!(settled(b"/admin\xff", &[]).err(), Some("bad_target"));
    assert_eq!(settled(b"/x?y=\xff", &[]).unwrap().uri.path(), "/x");
}

#[test]
fn a_target_is_a_path_or_says_its_host() {
    let head = settled(b"http://secret.test/x?y", &[("host", b"other.test")]).unwrap();
    assert_eq!((head.raw_path(), head.headers.get("host").unwrap().as_bytes()), (&b"/x?y"[..], &b"secret.test"[..]));
    for written in [&b"admin"[..], b"foo:/admin", b"@127.0.0.1:1/x", b"ftp://a/b", b"http://u@a/b"] {
        assert!(settled(written, &[]).is_err(), "{}", String::from_utf8_lossy(written));
    }
}

#[test]
fn a_host_is_a_name_or_an_address() {
    for host in [&b"a.test"[..], b"a.test.", b"a.test:80", b"127.0.0.1:1", b"[::1]", b"[::1]:443", b""] {
        assert!(settled(b"/", &[("host", host)]).is_ok(), "{}", String::from_utf8_lossy(host));
    }
    let long = [b"a.".repeat(127).as_slice(), b"test"].concat();
    assert_eq!(settled(b"/", &[("host", &long)]).err(), Some("bad_host"), "a name has 253 bytes");
    for host in [
        &b"a.test:abc"[..],
        b"a, b",
        b"a\xff",
        b"a\t:80",
        b"[::1]evil.test",
        b"u@a",
        b"[]",
        b"a:80:90",
        b"a..test",
        b".a.test",
        b"a.test..",
        b".",
    ] {
        assert_eq!(settled(b"/", &[("host", host)]).err(), Some("bad_host"), "{}", String::from_utf8_lossy(host));
    }
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

#[test]
fn a_body_has_one_type() {
    let (json, form) = (("content-type", &b"application/json"[..]), ("content-type", &b"multipart/form-data"[..]));
    assert!(settled(b"/", &[json]).is_ok());
    for types in [[json, json], [json, form]] {
        assert_eq!(settled(b"/", &types).err(), Some("ambiguous_content_type"), "{types:?}");
    }
}

proptest::proptest! {
    /// Hosts that the short way accepts are accepted by the long way and left as they are.
    #[test]
    fn a_host_in_form_is_a_host_that_nothing_changes(host in "[a-zA.:0\\-_~\\[ ]{0,9}(\\.|:[0-9]{0,6})?") {
        if is_in_form(host.as_bytes()) {
            let mut head = RequestHead::with_target(Method::GET, b"/", header::HeaderMap::new()).unwrap();
            head.append_header(header::HOST, HeaderValue::from_str(&host).unwrap()).unwrap();
            proptest::prop_assert!(is_host(host.as_bytes()) && one_host(&mut head).is_ok(), "{host}");
            proptest::prop_assert_eq!(head.headers[header::HOST].as_bytes(), host.as_bytes());
        }
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
