//! Guarantees of the crate: mistakes are reported when an expression is compiled, and the value depends on the
//! request.

use std::net::IpAddr;

use super::*;

fn with<T>(body: &[u8], pairs: &[(&'static str, &'static str)], ask: impl FnOnce(&Seen<'_>) -> T) -> T {
    let mut headers = http::HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, http::HeaderValue::from_static(value));
    }
    let scopes = ["chat.write".to_owned()];
    let claims = serde_json::json!({"org": {"id": 7}});
    let caller = spillway_filter::Caller { consumer: "acme", tenant: "north", scopes: &scopes, claims: &claims };
    ask(&Seen {
        method: "POST",
        path: "/v1/chat/completions",
        query: "debug=1",
        headers: &headers.into(),
        client: IpAddr::from([10, 0, 0, 7]),
        route: "chat",
        model: Some("gpt-4o"),
        body: Some(body),
        caller: Some(caller),
        secure: true,
        // A Wednesday.
        now: Some(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_796_194_865)),
    })
}

fn holds(text: &str, body: &[u8]) -> Result<bool, EvaluationError> {
    let expression = Expression::condition(text, Scope::All).unwrap_or_else(|e| panic!("{text}: {e}"));
    with(body, &[("x-beta", "1"), ("x-many", "a"), ("x-many", "b")], |x| expression.holds(x))
}

#[test]
fn requests_decide() {
    let body = br#"{"messages":[{"content":"hi"},{"content":"secret"}],"n":2}"#;
    for (text, expected) in [
        ("consumer.tenant == 'north' && request.model.startsWith('gpt-')", true),
        ("request.headers['x-beta'] == '1'", true),
        ("request.headers['x-many'] == 'a, b'", true),
        ("'x-none' in request.headers", false),
        ("size(request.body.messages) > 1", true),
        ("request.body.messages.exists(m, m.content.contains('secret'))", true),
        ("request.body.messages.all(m, m.content.matches('^[a-z]+$'))", true),
        ("request.path.matches('^/v2/')", false),
        ("consumer.claims.org.id == 7", true),
        ("'chat.write' in consumer.scopes", true),
        ("has(request.body.tools)", false),
        ("claims.org.id == 7 && tls.used", true),
        ("time.weekday == 3 && time.hour == 7 && time.minute == 1 && time.epochSeconds > 1796194864", true),
        ("size(request.headers) == 2 && request.headers.exists(name, name == 'x-beta')", true),
        ("has(request.headers.nothing)", false),
        ("request.body.messages.map(m, size(m.content)).exists(n, n > 5)", true),
        ("request.clientAddress == '10.0.0.7' && request.query == 'debug=1' && route == 'chat'", true),
    ] {
        assert_eq!(holds(text, body), Ok(expected), "{text}");
    }
}

#[test]
fn a_host_reads_the_same_in_every_spelling() {
    let expression = Expression::condition("request.host == 'inside.test'", Scope::Head).unwrap();
    for host in ["inside.test", "INSIDE.test", "inside.test:8080", "inside.test.", "Inside.Test.:80"] {
        assert_eq!(with(b"", &[("host", host)], |x| expression.holds(x)), Ok(true), "{host}");
    }
    let expression = Expression::condition("request.host == '[::1]'", Scope::Head).unwrap();
    assert_eq!(with(b"", &[("host", "[::1]:80")], |x| expression.holds(x)), Ok(true));
}

#[test]
fn what_is_missing_or_does_not_fit_has_no_value() {
    assert!(matches!(holds("request.headers['x-none'] == '1'", b"{}"), Err(EvaluationError::Missing(_))));
    assert!(matches!(holds("size(request.body.messages) > 1", b"{}"), Err(EvaluationError::Missing(_))));
    assert!(matches!(holds("size(request.body.messages) > 1", b"{\"messages\":7}"), Err(EvaluationError::Failed(_))));
    assert!(matches!(holds("size(request.body) > 1", b"no json"), Err(EvaluationError::Failed(_))));
    let long = format!("\"{}\"", "x".repeat(MAX_BODY));
    assert!(matches!(holds("size(request.body) > 1", long.as_bytes()), Err(EvaluationError::Failed(_))));
}

#[test]
fn mistakes_are_told_before_a_request_comes() {
    for (text, part) in [
        ("request.headers['a'] ==", "invalid CEL expression"),
        ("requests.path == ''", "unknown name `requests`"),
        ("request.paths == ''", "has no `paths`"),
        ("consumer.id == ''", "has no `id`"),
        ("request.path", "expected true or false"),
        ("request.path > 1", "column 14: `>` does not go with string and int"),
        ("request.method == 'GET' ||\n  request.path == 1", "line 2, column 16: `==` does not go with string and int"),
        ("request.headers['a'] > 1 || true", "`>` does not go with string and int"),
        ("request.headers['X-Beta'] == '1'", "write `x-beta`"),
        ("request.path.name == 'a'", "of type string has no field `name`"),
        ("1 in consumer.scopes", "`in` does not go with int and list of string"),
        ("consumer.scopes.exists(s, s == 1)", "`==` does not go with string and int"),
        ("request.method && tls.used", "`&&` does not go with string and bool"),
        ("tls.version == '1.3'", "column 4: `tls` has no `version`; expected `used`"),
        ("size(request.model)", "of type int; expected true or false"),
        ("frobnicate(request.path)", "frobnicate"),
        ("request.path.matches(request.query)", "expected a string in quotes"),
        ("request.path.matches('(')", "not a regular expression"),
        ("request.body.a.exists(x, request.body.a.exists(y, x == y))", "square"),
    ] {
        let error = Expression::condition(text, Scope::All).err().unwrap_or_else(|| panic!("{text} compiles"));
        assert!(error.contains(part), "{text}: {error}");
    }
    assert!(Expression::condition(&" ".repeat(MAX_EXPRESSION + 1), Scope::All).is_err());
    assert!(check_head("tls.used").unwrap_err().contains("not known yet"));
    assert!(check_head("request.method == 'POST'").is_ok());
    assert!(check_head("consumer.name == 'a'").unwrap_err().contains("authorize"));
    assert!(check_head("request.body.a == 1").unwrap_err().contains("not read yet"));
    assert!(Expression::value("request.headers['x-user']", Scope::All).is_ok());
    assert!(Expression::value("request.headers", Scope::All).is_err());
}

#[test]
fn what_an_expression_reads_of_a_request_is_known() {
    for (text, model, body) in [
        ("request.model == 'x'", true, false),
        ("request.body.model == 'x'", false, true),
        ("request['model'] == 'x'", true, true),
        ("request.path == '/x'", false, false),
    ] {
        let asked = Expression::condition(text, Scope::All).unwrap().asked();
        assert_eq!(
            (asked.reads(Fact::Model), asked.reads(Fact::Body), asked.needs_body()),
            (model, body, model || body),
            "{text}"
        );
    }
}

#[test]
fn values_become_text() {
    let text = |text: &str| {
        let expression = Expression::value(text, Scope::All).unwrap();
        with(b"{\"user\":\"u\",\"n\":3}", &[("x-user", "me")], |x| expression.text(x))
    };
    assert_eq!(text("request.headers['x-user'] + '/' + consumer.name").as_deref(), Some("me/acme"));
    assert_eq!(text("request.body.n").as_deref(), Some("3"));
    assert_eq!(text("request.body.none"), None);
}

#[test]
fn hosts_and_paths_have_one_spelling_in_expressions() {
    for (host, name) in [
        ("a.test", "a.test"),
        ("A.Test:8080", "a.test"),
        ("a.test.", "a.test"),
        ("a.test.:80", "a.test"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("", ""),
    ] {
        assert_eq!(crate::values::host_name(host), name, "{host}");
    }
    for (path, shown) in
        [("/v1:predict", "/v1:predict"), ("/v1%3Apredict", "/v1:predict"), ("/a%40b%20c%2Fd%25", "/a@b%20c%2Fd%25")]
    {
        assert_eq!(crate::values::path(path), shown, "{path}");
    }
}

#[test]
fn names_have_their_declared_types() {
    for name in NAMES {
        let written = name.written();
        let expression = Expression::any(&written, Scope::All).unwrap_or_else(|e| panic!("{written}: {e}"));
        let value = with(b"{}", &[], |x| expression.json(x)).unwrap_or_else(|e| panic!("{written}: {e}"));
        let declared = match name.kind {
            Type::Any => continue,
            Type::List(_) => "list".to_owned(),
            Type::Map(_) => "map".to_owned(),
            kind => kind.to_string(),
        };
        assert_eq!(value.1, declared, "{written}");
        assert_eq!(Expression::any(&written, Scope::Head).is_ok(), name.scope == Scope::Head, "{written}");
    }
}

/// Table of the names, as `docs/extend/expressions.md` has it.
fn table() -> String {
    let mut table =
        "| name | type | in `when` | where a request has none | meaning |\n|---|---|---|---|---|\n".to_owned();
    for name in NAMES {
        let when = if name.scope == Scope::Head { "yes" } else { "no" };
        let row = format!("| `{}` | {} | {when} | {} | {} |\n", name.written(), name.kind, name.absent, name.doc);
        table.push_str(&row);
    }
    table
}

#[test]
fn the_page_has_the_table_of_names() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/extend/expressions.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let begin = text.find("| name |").unwrap();
    let end = begin + text[begin..].find("\n\n").unwrap() + 1;
    if std::env::var_os("SPILLWAY_UPDATE_DOCS").is_some() {
        std::fs::write(&page, format!("{}{}{}", &text[..begin], table(), &text[end..])).unwrap();
        return;
    }
    assert!(text[begin..end] == table(), "{} is out of date: run with SPILLWAY_UPDATE_DOCS=1", page.display());
}
