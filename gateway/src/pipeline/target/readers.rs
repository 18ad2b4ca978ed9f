//! Servers as readers of a path, each a pure function, and the property that none of them reads a path that passes the
//! gateway as a path with other rules than those that the gateway applied. Real servers are asked by the end-to-end tests.

use proptest::prelude::*;
use spillway_config::schema::Match;
use spillway_filter::Fields;

use super::*;
use crate::routing::{HeadContext, RouteTable, TableBuilder};

/// Rules of the closed prefix `/admin`, of the operation `/v1/chat/completions`, of all else.
const ADMIN: usize = 1;
const CHAT: usize = 2;
const OPEN: usize = 0;

fn table(encoded_slashes: Option<EncodedSlashes>) -> RouteTable {
    let mut builder = TableBuilder::default();
    for (name, rules, matches) in [
        ("admin", ADMIN, r#"[{"path": {"prefix": "/admin"}}]"#),
        ("chat", CHAT, r#"[{"path": {"exact": "/v1/chat/completions"}}]"#),
        ("open", OPEN, "[]"),
    ] {
        let mut route = Route::for_tests(name);
        (route.rules, route.encoded_slashes) = (rules, encoded_slashes);
        let matches: Vec<Match> = serde_json::from_str(matches).unwrap();
        builder.add(&Arc::new(route), &[], &matches).unwrap();
    }
    builder.build()
}

/// Path that a server gets for a target, and the rules that were applied; `None` where the gateway refuses.
fn passed(table: &RouteTable, target: &str) -> Option<(String, usize)> {
    let mut head = RequestHead::with_target(Method::GET, target.as_bytes(), Fields::default()).ok()?;
    let spelling = settle(&mut head).ok()?;
    let headers = Fields::default();
    let client = std::net::IpAddr::from([127, 0, 0, 1]);
    let by_path = |path: &str| table.candidates(None, path, &Method::GET, &headers, HeadContext { query: "", client });
    let found = by_path(&route_key(&head));
    judge_spelling(spelling, &head, EncodedSlashes::Refuse, &found, by_path).ok()?;
    let rules = found.only()?.rules;
    Some((String::from_utf8(head.raw_path().to_vec()).unwrap(), rules))
}

/// Rules that a resource of a server has, by the path under which the server knows it.
fn rules_of(resource: &[u8]) -> usize {
    let below = |prefix: &[u8]| resource.strip_prefix(prefix).is_some_and(|rest| matches!(rest, [] | [b'/', ..]));
    match resource {
        b"/v1/chat/completions" => CHAT,
        _ if below(b"/admin") => ADMIN,
        _ => OPEN,
    }
}

fn percent(path: &[u8]) -> Vec<u8> {
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
    let (mut out, mut n) = (Vec::new(), 0);
    while let Some(b) = path.get(n) {
        match (*b, digit(path.get(n + 1)), digit(path.get(n + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap());
                n += 3;
            }
            (b, _, _) => {
                out.push(b);
                n += 1;
            }
        }
    }
    out
}

/// Dot segments resolved, slashes merged; a slash at the end stays.
fn resolved(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in path.split(|b| *b == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let end: &[u8] = if path.ends_with(b"/") && !segments.is_empty() { b"/" } else { b"" };
    [b"/", segments.join(&b'/').as_slice(), end].concat()
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let cut = |segment: &[u8]| segment.split(|b| *b == b';').next().unwrap().to_vec();
    path.split(|b| *b == b'/').map(cut).collect::<Vec<_>>().join(&b'/')
}

fn before_query(path: &[u8]) -> Vec<u8> {
    path.split(|b| matches!(b, b'?' | b'#')).next().unwrap().to_vec()
}

/// UTF-8 without the checks: overlong forms and wrong continuation bytes are taken, as old decoders did.
fn lenient_utf8(path: &[u8]) -> Vec<u8> {
    let (mut out, mut n) = (Vec::new(), 0);
    while let Some(b) = path.get(n) {
        let (length, first) = match b {
            0xC0..=0xDF => (2, u32::from(b & 0x1F)),
            0xE0..=0xEF => (3, u32::from(b & 0x0F)),
            0xF0..=0xF7 => (4, u32::from(b & 0x07)),
            _ => (1, u32::from(*b)),
        };
        let rest = path.get(n + 1..n + length).unwrap_or_default();
        let value = rest.iter().fold(first, |value, b| value << 6 | u32::from(b & 0x3F));
        match u8::try_from(value) {
            Ok(byte) if byte < 0x80 && rest.len() + 1 == length => {
                out.push(byte);
                n += length;
            }
            _ => {
                out.push(*b);
                n += 1;
            }
        }
    }
    out
}

/// `%uXXXX` of IIS.
fn wide_escapes(path: &[u8]) -> Vec<u8> {
    let (mut out, mut n) = (Vec::new(), 0);
    while let Some(b) = path.get(n) {
        let digits = path.get(n + 2..n + 6).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(char::from_u32);
        match (path.get(n..n + 2), value) {
            (Some(b"%u" | b"%U"), Some(c)) => {
                out.extend_from_slice(c.to_string().as_bytes());
                n += 6;
            }
            _ => {
                out.push(*b);
                n += 1;
            }
        }
    }
    out
}

/// Names as Windows opens them: backslashes separate, dots and blanks at the end do not count, a name ends at a null.
fn windows(path: &[u8]) -> Vec<u8> {
    let path: Vec<u8> = path.iter().map(|b| if *b == b'\\' { b'/' } else { *b }).collect();
    let path = path.split(|b| *b == 0).next().unwrap();
    let trim = |segment: &[u8]| {
        let is_end = |b: &u8| !matches!(b, b'.' | b' ' | b'\t');
        let end = segment.iter().rposition(is_end).map_or(0, |last| last + 1);
        if matches!(segment, b"." | b"..") { segment.to_vec() } else { segment[..end].to_vec() }
    };
    path.split(|b| *b == b'/').map(trim).collect::<Vec<_>>().join(&b'/')
}

type Reader = fn(&[u8]) -> Vec<u8>;

const READERS: [(&str, Reader); 14] = [
    ("as it is", |path| path.to_vec()),
    ("asgi", percent),
    ("asgi that merges slashes", |path| resolved(&percent(path))),
    ("nginx", |path| resolved(&percent(path))),
    ("apache with AllowEncodedSlashes", |path| resolved(&percent(&resolved(path)))),
    ("url parsers", |path| before_query(&percent(path))),
    ("node that normalises", |path| resolved(&before_query(&percent(path)))),
    ("servlet", |path| resolved(&percent(&without_parameters(path)))),
    ("servlet behind a decoding proxy", |path| resolved(&percent(&without_parameters(&percent(path))))),
    ("blanks stripped", |path| {
        resolved(&percent(path).split(|b| *b == b'/').map(<[u8]>::trim_ascii).collect::<Vec<_>>().join(&b'/'))
    }),
    ("twice decoded", |path| resolved(&percent(&percent(path)))),
    ("iis", |path| resolved(&windows(&lenient_utf8(&percent(&wide_escapes(path)))))),
    ("iis that decodes twice", |path| {
        resolved(&windows(&lenient_utf8(&percent(&wide_escapes(&percent(&wide_escapes(path)))))))
    }),
    ("all at once", |path| {
        resolved(&windows(&lenient_utf8(&without_parameters(&before_query(&percent(&percent(&wide_escapes(path))))))))
    }),
];

const PARTS: [&str; 66] = [
    "admin",
    "adm",
    "in",
    "keys",
    "x",
    "v1",
    "chat",
    "completions",
    "a",
    "d",
    "m",
    "/",
    "//",
    "%2f",
    "%2F",
    "%5c",
    "%5C",
    "\\",
    ";",
    ";a=b",
    "%3b",
    "%3B",
    ".",
    "..",
    "...",
    "%2e",
    "%2E",
    "%2e%2e",
    "..;",
    "%252f",
    "%252e",
    "%255c",
    "%25",
    "%2",
    "25",
    "5c",
    "2f",
    "%u002f",
    "%u0061",
    "u0061",
    "%61",
    "%2561",
    "%41",
    "%c0%af",
    "%c0%ae",
    "%c1%a1",
    "%e0%80%af",
    "%c0o",
    "%f0%80%80%af",
    "%00",
    "%0a",
    "%0d",
    "%09",
    "%7f",
    "%20",
    "+",
    "%2b",
    "%3f",
    "%23",
    "#",
    ":",
    "%3a",
    "%a0",
    "%c2%a0",
    "%c3%a9",
    "é",
];

/// Fails where a reader reads a path that passed as one with other rules.
fn judge(table: &RouteTable, target: &str) -> Result<(), String> {
    let Some((sent, rules)) = passed(table, target) else { return Ok(()) };
    let path = sent.split('?').next().unwrap();
    for (reader, read) in READERS {
        let resource = read(path.as_bytes());
        if rules_of(&resource) != rules {
            let resource = String::from_utf8_lossy(&resource).into_owned();
            return Err(format!("`{target}` is sent as `{sent}` under rules {rules}; {reader} reads `{resource}`"));
        }
    }
    Ok(())
}

#[test]
fn no_reader_reads_another_rule_between_the_names_of_a_closed_path() {
    let tables = [table(None), table(Some(EncodedSlashes::Pass))];
    let mut refused = 0;
    for before in PARTS {
        for between in PARTS {
            for after in ["", ";x", ".", "%20", "%3fx", "%2f"] {
                for target in [
                    format!("/{before}admin{between}keys{after}"),
                    format!("/x{before}{between}/admin{after}"),
                    format!("/v1{before}chat{between}completions{after}"),
                ] {
                    for table in &tables {
                        judge(table, &target).unwrap();
                    }
                    refused += usize::from(passed(&tables[0], &target).is_none());
                }
            }
        }
    }
    assert!(refused > 5 * PARTS.len().pow(2), "{refused} were refused");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_reader_reads_another_rule_in_any_spelling(parts in prop::collection::vec(prop::sample::select(&PARTS[..]), 1..9)) {
        let target = format!("/{}", parts.concat());
        for table in [table(None), table(Some(EncodedSlashes::Pass))] {
            prop_assert_eq!(judge(&table, &target), Ok(()));
        }
    }
}

#[test]
fn honest_paths_pass_as_they_came() {
    let table = table(None);
    for path in [
        "/",
        "/v1/chat/completions",
        "/admin/keys",
        "/files/my%20report%20(1).txt",
        "/caf%C3%A9/%E6%97%A5",
        "/users/a%40b.test",
        "/users/a@b.test:8080/+,=!$&'*",
        "/wiki/C%23/What%3F",
        "/page;jsessionid=1/x;v=1.1",
        "/wiki/Inc./x",
        "/.well-known/acme",
        "/100%25",
        "/a..b/...c",
        "/trailing/",
    ] {
        assert_eq!(passed(&table, path).map(|(sent, _)| sent).as_deref(), Some(path), "{path}");
    }
    assert_eq!(passed(&table, "/x?a=%2f..%5c%00").map(|(sent, _)| sent).as_deref(), Some("/x?a=%2f..%5c%00"));
}

#[test]
fn encoded_slashes_pass_where_the_route_says_so_and_never_round_another_route() {
    let passing = table(Some(EncodedSlashes::Pass));
    for path in ["/projects/group%2Fname", "/projects/group%2fname%5cx", "/@scope%2Fname", "/admin/a%2Fb"] {
        assert_eq!(passed(&table(None), path), None, "{path}");
        assert_eq!(passed(&passing, path).map(|(sent, _)| sent).as_deref(), Some(path), "{path}");
    }
    for path in ["/admin%2fkeys", "/v1/chat%2Fcompletions", "/x%2f..%2fadmin", "/x/%2fadmin", "/x%2f%2fy", "/%2fx"] {
        assert_eq!(passed(&passing, path), None, "{path}");
    }
}
