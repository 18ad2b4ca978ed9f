//! The table of routes against a plain walk: matches sorted by their precedence and judged one after another.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};
use proptest::prelude::*;
use spillway_config::ModelPattern;
use spillway_config::schema::{HeaderMatch, Match, PathMatch};
use spillway_filter::Fields;

use super::*;
use crate::topology::Route;

const REST: HeadContext<'_> = HeadContext { query: "", client: IpAddr::V4(Ipv4Addr::LOCALHOST) };

fn table(yaml: &[(&str, &[&str], &str)]) -> RouteTable {
    let mut builder = TableBuilder::default();
    for (name, hosts, matches) in yaml {
        let route = Arc::new(Route::for_tests(name));
        let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        builder.add(&route, &hosts, &serde_json::from_str::<Vec<_>>(matches).unwrap()).unwrap();
    }
    builder.build()
}

fn names(table: &RouteTable, host: &str, path: &str) -> Vec<String> {
    let found = table.candidates(Some(host), path, &Method::POST, &Fields::default(), REST);
    found.routes().map(|route| route.name.clone()).collect()
}

#[test]
fn precedence_is_that_of_the_gateway_api_whatever_the_order_in_the_file() {
    let table = table(&[
        ("any", &[], "[]"),
        ("regex", &[], r#"[{"path":{"regex":"/v1/.*"}}]"#),
        ("short", &[], r#"[{"path":{"prefix":"/v1"}}]"#),
        ("long", &[], r#"[{"path":{"prefix":"/v1/chat"}}]"#),
        ("long-post", &[], r#"[{"path":{"prefix":"/v1/chat"},"method":"POST"}]"#),
        ("exact", &[], r#"[{"path":{"exact":"/v1/chat"}}]"#),
        ("wild", &["*.example.com"], "[]"),
        ("host", &["api.example.com"], r#"[{"path":{"prefix":"/only"}}]"#),
    ]);
    assert_eq!(names(&table, "x", "/v1/chat"), ["exact"]);
    assert_eq!(names(&table, "x", "/v1/chat/y"), ["long-post"]);
    assert_eq!(names(&table, "x", "/v1/z"), ["short"]);
    assert_eq!(names(&table, "x", "/"), ["any"]);
    assert_eq!(names(&table, "API.example.com:8080", "/only/this"), ["host"]);
    assert_eq!(names(&table, "api.example.com", "/v1/chat"), ["wild"]);
    assert_eq!(names(&table, "example.com", "/"), ["any"]);
    assert_eq!(names(&table, "[::1]:80", "/"), ["any"]);
}

#[test]
fn an_expression_is_undecided_where_it_reads_what_is_not_known() {
    for (when, is_decided) in [
        ("request.host == 'a.test'", false),
        ("request.headers['x-beta'] == '1'", false),
        ("request.query == 'on'", false),
        ("request.method == 'POST' && request.path == '/v1'", true),
    ] {
        let matches = format!(r#"[{{"when":"{when}"}}]"#);
        let table = table(&[("r", &[], &matches)]);
        let (method, client) = (Method::POST, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let head = PartialHead { path: "/v1", method: &method, client, known: &|_, _| None };
        let undecided = (!is_decided).then(|| Undecided::Expression("r".to_owned()));
        assert_eq!(table.undecided(Some("a.test"), &head), undecided, "{when}");
    }
}

#[test]
fn a_prefix_matches_whole_elements_only() {
    for written in ["/v1", "/v1/"] {
        let table = table(&[("r", &[], &format!(r#"[{{"path":{{"prefix":"{written}"}}}}]"#))]);
        let is_matched = |path: &str| !names(&table, "x", path).is_empty();
        assert!(is_matched("/v1") && is_matched("/v1/") && is_matched("/v1/chat"));
        assert!(!is_matched("/v10") && !is_matched("/") && !is_matched("/V1"));
    }
    assert_eq!(names(&table(&[("r", &[], r#"[{"path":{"prefix":"/"}}]"#)]), "x", "/anything"), ["r"]);
}

#[test]
fn a_regex_covers_the_whole_path() {
    let table = table(&[("r", &[], r#"[{"path":{"regex":"/v[0-9]+/x|/y"}}]"#)]);
    let is_matched = |path: &str| !names(&table, "x", path).is_empty();
    assert!(is_matched("/v12/x") && is_matched("/y"));
    assert!(!is_matched("/v12/x/more") && !is_matched("/a/y"));
}

#[test]
fn a_header_and_a_parameter_are_matched_by_value_or_whole_by_a_regex() {
    let takes = |written: &str, headers: &[(&'static str, &'static [u8])], query: &str| {
        let table = table(&[("r", &[], &format!("[{written}]"))]);
        let mut fields = Fields::default();
        for (name, value) in headers {
            fields.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        }
        let context = HeadContext { query, ..REST };
        !table.candidates(Some("x"), "/", &Method::GET, &fields, context).is_empty()
    };
    let regex = r#"{"headers":[{"name":"X-A","regex":"v[0-9]+|none"}]}"#;
    for (value, expected) in [(&b"v12"[..], true), (b"none", true), (b"v12x", false), (b"xv1", false), (b"\xff", false)]
    {
        assert_eq!(takes(regex, &[("x-a", Box::leak(value.into()))], ""), expected, "{value:?}");
    }
    assert!(takes(regex, &[("x-a", b"other"), ("x-a", b"v1")], ""), "one of several is enough");
    assert!(!takes(regex, &[("x-b", b"v1")], "") && !takes(regex, &[], ""));
    let both = r#"{"headers":[{"name":"x-a","exact":"1"},{"name":"x-b","regex":"2.?"}]}"#;
    assert!(takes(both, &[("x-a", b"1"), ("x-b", b"23")], "") && !takes(both, &[("x-a", b"2"), ("x-b", b"2")], ""));
    for (condition, query, expected) in [
        (r#""exact":"b c""#, "a=b+c", true),
        (r#""exact":"b c""#, "x&a=b%20c&a=d", true),
        (r#""exact":"b c""#, "a=d&a=b+c", false),
        (r#""exact":"b c""#, "A=b+c", false),
        (r#""exact":"b c""#, "%61=b+c", true),
        (r#""exact":"""#, "a", true),
        (r#""exact":"""#, "", false),
        (r#""exact":"\u00e9""#, "a=%C3%A9", true),
        (r#""regex":"[0-9]+""#, "a=12", true),
        (r#""regex":"[0-9]+""#, "a=12x", false),
        (r#""regex":"[0-9]+""#, "a=%FF", false),
    ] {
        let written = format!(r#"{{"queryParams":[{{"name":"a",{condition}}}]}}"#);
        assert_eq!(takes(&written, &[], query), expected, "{condition} {query}");
    }
}

#[test]
fn more_headers_come_before_more_parameters_and_both_before_a_model() {
    let table = table(&[
        ("model", &[], r#"[{"model":"*"}]"#),
        ("one", &[], r#"[{"queryParams":[{"name":"a","regex":".*"}]}]"#),
        ("two", &[], r#"[{"queryParams":[{"name":"a","regex":".*"},{"name":"b","exact":"1"}]}]"#),
        ("header", &[], r#"[{"headers":[{"name":"x-a","regex":".*"}]}]"#),
    ]);
    let first = |headers: &[(&'static str, &'static str)], query: &str| {
        let mut fields = Fields::default();
        for (name, value) in headers {
            fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let found = table.candidates(Some("x"), "/", &Method::GET, &fields, HeadContext { query, ..REST });
        found.routes().next().map(|route| route.name.clone()).unwrap()
    };
    assert_eq!(first(&[("x-a", "1")], "a=1&b=1"), "header");
    assert_eq!(first(&[], "a=1&b=1"), "two");
    assert_eq!(first(&[], "b=2&a=1"), "one");
    assert_eq!(first(&[], "c"), "model");
}

#[test]
fn a_pattern_is_undecided_where_the_head_is_not_known() {
    for (written, expected) in [
        (r#"{"headers":[{"name":"x-a","regex":".*"}]}"#, Undecided::Header(HeaderName::from_static("x-a"))),
        (r#"{"queryParams":[{"name":"a","exact":"1"}]}"#, Undecided::Query),
    ] {
        let table = table(&[("r", &[], &format!("[{written}]"))]);
        let (method, client) = (Method::POST, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let head = PartialHead { path: "/", method: &method, client, known: &|_, _| None };
        assert_eq!(table.undecided(Some("x"), &head), Some(expected));
    }
}

#[test]
fn a_host_is_matched_whole_in_every_spelling_and_a_star_stands_for_labels() {
    let table = table(&[
        ("any", &[], "[]"),
        ("wild", &["*.Secret.test"], "[]"),
        ("exact", &["api.secret.test"], "[]"),
        ("address", &["2001:DB8::0:1"], "[]"),
        ("ipv4", &["10.0.0.1"], "[]"),
    ]);
    for (host, route) in [
        ("api.secret.test", "exact"),
        ("API.SECRET.TEST.:443", "exact"),
        ("x.secret.test", "wild"),
        ("y.X.secret.TEST:8080", "wild"),
        ("secret.test", "any"),
        (".secret.test", "any"),
        ("xsecret.test", "any"),
        ("api.secret.test.evil.test", "any"),
        ("x.secret.test.evil.test:80", "any"),
        ("x.secret.testevil", "any"),
        ("[2001:db8::1]", "address"),
        ("[2001:0db8:0:0::0001]:443", "address"),
        ("[2001:db8::2]", "any"),
        ("10.0.0.1:80", "ipv4"),
        ("10.0.0.11", "any"),
        ("110.0.0.1", "any"),
    ] {
        assert_eq!(names(&table, host, "/"), [route], "{host}");
    }
}

#[test]
fn a_model_is_looked_for_in_the_body_only_where_a_match_asks_for_it() {
    let table = table(&[
        ("gpt", &[], r#"[{"path":{"prefix":"/v1"},"model":"gpt-*"}]"#),
        ("claude", &[], r#"[{"path":{"prefix":"/v1"},"model":"claude-*"}]"#),
        ("rest", &[], r#"[{"path":{"prefix":"/v1"}}]"#),
    ]);
    let headers = Fields::default();
    let candidates = table.candidates(None, "/v1/x", &Method::POST, &headers, REST);
    assert!(candidates.only().is_none());
    assert_eq!(candidates.by_model(Some("claude-3")).unwrap().name, "claude");
    assert_eq!(candidates.by_model(Some("llama")).unwrap().name, "rest");
    assert_eq!(candidates.by_model(None).unwrap().name, "rest");
}

/// Route of a generated table.
#[derive(Debug, Clone)]
struct Written {
    hosts: Vec<String>,
    matches: Vec<Match>,
}

/// Head of a generated request.
#[derive(Debug, Clone)]
struct Asked {
    host: String,
    path: String,
    method: Method,
    headers: Vec<(&'static str, &'static str)>,
}

fn path() -> impl Strategy<Value = String> {
    let names = prop::collection::vec(prop::sample::select(&["/a", "/b", "/ab", "/v1"][..]), 0..4);
    (names, prop::sample::select(&["", "", "/"][..])).prop_map(|(names, end)| {
        let path = names.concat() + end;
        if path.is_empty() { "/".to_owned() } else { path }
    })
}

fn written_match() -> impl Strategy<Value = Match> {
    let path = prop_oneof![
        Just(None),
        path().prop_map(|path| Some(PathMatch::Exact(path))),
        path().prop_map(|path| Some(PathMatch::Prefix(path))),
        path().prop_map(|path| Some(PathMatch::Prefix(path))),
        prop::sample::select(&["/a.*", "/.+", "/(a|b)/v1"][..])
            .prop_map(|regex| Some(PathMatch::Regex(regex.to_owned()))),
    ];
    let header = prop::sample::select(&[("x-a", "1"), ("x-a", "2"), ("X-B", "1")][..])
        .prop_map(|(name, value)| HeaderMatch { name: name.to_owned(), exact: Some(value.to_owned()), regex: None });
    let models = ["m", "n", "m*", "*", "*x", "m-*x", "mm"].map(str::to_owned);
    let conditions = ["request.headers['x-a'] == '1'", "request.method == 'POST'"].map(str::to_owned);
    (
        path,
        prop::option::weighted(0.3, prop::sample::select(&["GET", "POST"][..]).prop_map(str::to_owned)),
        prop::collection::vec(header, 0..3).prop_map(|headers| headers.into_iter().take(2).collect()),
        prop::option::of(prop::sample::select(models.to_vec())),
        prop::option::weighted(0.2, prop::sample::select(conditions.to_vec())),
    )
        .prop_map(|(path, method, headers, model, when)| Match {
            path,
            method,
            headers,
            model,
            when,
            ..Match::default()
        })
}

fn written_route() -> impl Strategy<Value = Written> {
    let hosts = ["a.test", "*.test", "*.b.test", "x.b.test"].map(str::to_owned);
    let hosts = prop::collection::vec(prop::sample::select(hosts.to_vec()), 0..3);
    (hosts, prop::collection::vec(written_match(), 0..4)).prop_map(|(hosts, matches)| Written { hosts, matches })
}

/// Few routes, or so many that those with one path are indexed by their headers.
fn written() -> impl Strategy<Value = Vec<Written>> {
    let count = prop_oneof![3 => 1_usize..24, 1 => 60_usize..90];
    count.prop_flat_map(|count| prop::collection::vec(written_route(), count))
}

fn asked() -> impl Strategy<Value = Asked> {
    let header = prop::sample::select(&[("x-a", "1"), ("x-a", "2"), ("x-b", "1")][..]);
    (
        prop::sample::select(&["a.test", "x.b.test", "y.x.b.test:80", "b.test", "c", ""][..]).prop_map(str::to_owned),
        path(),
        prop::sample::select(&[Method::GET, Method::POST][..]),
        prop::collection::vec(header, 0..3),
    )
        .prop_map(|(host, path, method, headers)| Asked { host, path, method, headers })
}

/// Match with its route, as a walk sees it.
struct Step<'w> {
    route: usize,
    written: &'w Match,
}

impl Step<'_> {
    fn precedence(&self) -> impl Ord + use<> {
        let written = self.written;
        let (kind, length) = match &written.path {
            Some(PathMatch::Exact(path)) => (0, path.len()),
            Some(PathMatch::Prefix(path)) if path.trim_end_matches('/').is_empty() => (3, 0),
            Some(PathMatch::Prefix(path)) => (1, path.trim_end_matches('/').len()),
            Some(PathMatch::Regex(_)) => (2, 0),
            None => (3, 0),
        };
        let headers = Reverse(written.headers.len());
        (kind, Reverse(length), written.method.is_none(), headers, written.model.is_none(), written.when.is_none())
    }

    fn takes(&self, asked: &Asked) -> bool {
        let has =
            |name: &str, value: &str| asked.headers.iter().any(|(n, v)| n.eq_ignore_ascii_case(name) && *v == value);
        let Match { path, method, headers, when, .. } = self.written;
        let path = match path {
            None => true,
            Some(PathMatch::Exact(exact)) => asked.path == *exact,
            Some(PathMatch::Prefix(prefix)) => {
                let prefix = prefix.trim_end_matches('/');
                asked.path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Some(PathMatch::Regex(regex)) => {
                regex::Regex::new(&format!("^(?:{regex})$")).unwrap().is_match(&asked.path)
            }
        };
        let when = match when.as_deref() {
            None => true,
            Some("request.method == 'POST'") => asked.method == Method::POST,
            // An expression sees all values of a header, joined.
            Some(_) => {
                let values: Vec<_> = asked.headers.iter().filter(|(name, _)| *name == "x-a").collect();
                matches!(values.as_slice(), [(_, "1")])
            }
        };
        path && when
            && method.as_ref().is_none_or(|method| method == asked.method.as_str())
            && headers.iter().all(|header| has(&header.name, header.exact.as_deref().unwrap()))
    }
}

/// Matches for a host, in order of precedence.
fn steps<'w>(routes: &'w [Written], host: &str) -> Vec<Step<'w>> {
    let everything: &'static [Match] = Box::leak(Box::new([Match::default()]));
    let host = host.trim_end_matches(":80");
    let suffixes = ["*.b.test", "*.test"].into_iter().filter(|suffix| host.ends_with(suffix.trim_start_matches('*')));
    let lists = [host].into_iter().filter(|host| !host.is_empty()).chain(suffixes).map(Some).chain([None]);
    let mut all = Vec::new();
    for list in lists {
        let mut own = Vec::new();
        for (route, Written { hosts, matches }) in routes.iter().enumerate() {
            let times = match list {
                None => usize::from(hosts.is_empty()),
                Some(list) => hosts.iter().filter(|host| *host == list).count(),
            };
            let matches = if matches.is_empty() { everything } else { matches };
            for _ in 0..times {
                own.extend(matches.iter().map(|written| Step { route, written }));
            }
        }
        own.sort_by_key(Step::precedence);
        all.extend(own);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn the_table_finds_what_a_walk_finds(routes in written(), requests in prop::collection::vec(asked(), 8)) {
        let mut builder = TableBuilder::default();
        for (n, written) in routes.iter().enumerate() {
            builder.add(&Arc::new(Route::for_tests(&n.to_string())), &written.hosts, &written.matches).unwrap();
        }
        let table = builder.build();
        let number = |route: &Arc<Route>| route.name.parse::<usize>().unwrap();
        for asked in requests {
            let walk = steps(&routes, &asked.host);
            let mut headers = Fields::default();
            for (name, value) in &asked.headers {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            let mut expected = Vec::new();
            for step in walk.iter().filter(|step| step.takes(&asked)) {
                expected.push(step);
                if step.written.model.is_none() {
                    break;
                }
            }
            let found = table.candidates(Some(&asked.host), &asked.path, &asked.method, &headers, REST);
            let order: Vec<usize> = expected.iter().map(|step| step.route).collect();
            prop_assert_eq!(found.routes().map(number).collect::<Vec<_>>(), order.clone(), "{:?}", asked);
            let only = match expected.as_slice() {
                [step] if step.written.model.is_none() => Some(step.route),
                _ => None,
            };
            prop_assert_eq!(found.only().map(number), only);
            for model in [None, Some("m"), Some("mm"), Some("m-1x"), Some("nx"), Some("n"), Some("")] {
                let takes = |step: &&&Step<'_>| match (step.written.model.as_deref(), model) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some(pattern), Some(model)) => ModelPattern::new(pattern).matches(model),
                };
                let expected = expected.iter().find(takes).map(|step| step.route);
                prop_assert_eq!(found.by_model(model).map(number), expected, "{:?} {:?}", asked, model);
            }
            let mut seen = BTreeSet::new();
            let of_host: Vec<usize> = walk.iter().map(|step| step.route).filter(|route| seen.insert(*route)).collect();
            prop_assert_eq!(table.of_host(Some(&asked.host)).into_iter().map(number).collect::<Vec<_>>(), of_host);
        }
    }
}
