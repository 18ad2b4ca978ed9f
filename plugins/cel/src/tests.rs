//! Guarantees of the crate: mistakes are reported when an expression is compiled, and the value depends on the
//! request.

use std::net::IpAddr;

use proptest::prelude::*;
use spillway_filter::SignalKind;

use super::*;

fn with<T>(body: &[u8], pairs: &[(&'static str, &'static str)], ask: impl FnOnce(&Seen<'_>) -> T) -> T {
    let mut headers = http::HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, http::HeaderValue::from_static(value));
    }
    let answer: http::HeaderMap =
        [(http::header::RETRY_AFTER, http::HeaderValue::from_static("5"))].into_iter().collect();
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
        served: Served {
            backend: "chat-v1",
            version: "stable",
            status: 503,
            headers: Some(&answer.into()),
            model: "gpt-4o-2024",
            prompt_tokens: Some(7),
            cached_tokens: None,
            completion_tokens: Some(3),
        },
        prompt: None,
        hides: Some(&|name| name == "x-secret"),
    })
}

fn holds(text: &str, body: &[u8]) -> Result<bool, EvaluationError> {
    let expression = Expression::condition(text, Scope::Request).unwrap_or_else(|e| panic!("{text}: {e}"));
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
fn an_answer_decides_where_it_is_known() {
    for (text, scope, expected) in [
        (
            "response.status >= 500 && response.headers['retry-after'] == '5' && backend == 'chat-v1'",
            Scope::Answer,
            true,
        ),
        ("'etag' in response.headers || has(response.headers.etag)", Scope::Answer, false),
        ("rollout.version == 'stable' && backend.startsWith('chat-')", Scope::Upstream, true),
        ("model == 'gpt-4o-2024' && usage.promptTokens + usage.completionTokens == 10", Scope::End, true),
        ("has(usage.promptTokens) && !has(usage.cachedTokens)", Scope::End, true),
        ("[1].all(n, has(usage.promptTokens) && !('cachedTokens' in usage))", Scope::End, true),
    ] {
        let expression = Expression::condition(text, scope).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(with(b"", &[], |x| expression.holds(x)), Ok(expected), "{text}");
    }
    for (text, scope, part) in [
        ("response.status == 200", Scope::Request, "`response` is not known in a filter, only in a response header"),
        ("request.body.n == 1", Scope::Answer, "`request.body` is not known in a response header"),
        ("response.headers['ETag'] == ''", Scope::Answer, "write `etag`"),
        ("'body' in request", Scope::End, ""),
    ] {
        match Expression::condition(text, scope) {
            Err(error) => assert!(!part.is_empty() && error.contains(part), "{text}: {error}"),
            Ok(expression) => {
                assert!(part.is_empty(), "{text} compiles");
                assert_eq!(with(b"{}", &[], |x| expression.holds(x)), Ok(false), "{text}");
            }
        }
    }
}

#[test]
fn the_value_of_a_hidden_header_is_not_read() {
    let secret = [("x-secret", "s3cret"), ("x-plain", "p")];
    for text in ["request.headers['x-secret']", "request.headers.map(n, request.headers[n]).filter(v, v != 'p')[0]"] {
        let expression = Expression::value(text, Scope::Request).unwrap();
        assert_eq!(with(b"", &secret, |x| expression.text(x)).as_deref(), Some(REDACTED), "{text}");
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
    assert!(matches!(holds("request.body.n > 'a'", b"{\"n\":1}"), Err(EvaluationError::Failed(_))));
}

#[test]
fn a_body_that_cannot_be_read_is_absent() {
    let long = format!("\"{}\"", "x".repeat(MAX_BODY));
    let deep = "[".repeat(200) + &"]".repeat(200);
    for body in ["", "no json", "{\"cut\": \"sho", &long, &deep] {
        let shown = &body[..body.len().min(20)];
        for (text, expected) in [
            ("has(request.body)", Some(false)),
            ("'body' in request", Some(false)),
            ("has(request.model) && has(request.headers) && has(tls.used)", Some(true)),
            ("has(request.body) && request.body.n == 1", Some(false)),
            ("!has(request.body) || request.body.n == 1", Some(true)),
            ("size(request.body) >= 0", None),
            ("has(request.body.n)", None),
            ("request.body == {}", None),
            ("request['body'] == {}", None),
            ("[1].exists(n, has(request.body))", Some(false)),
            ("[1].all(n, n == request.body)", None),
        ] {
            let found = holds(text, body.as_bytes());
            match expected {
                Some(expected) => assert_eq!(found, Ok(expected), "{text} of {shown}"),
                None => assert!(matches!(found, Err(EvaluationError::Missing(_))), "{text} of {shown}: {found:?}"),
            }
        }
    }
    for body in ["{}", "null", "[]", "7"] {
        assert_eq!(holds("has(request.body) && 'body' in request", body.as_bytes()), Ok(true), "{body}");
    }
}

#[test]
fn loops_end_after_a_bound_of_steps() {
    let numbers = format!("[{}0]", "0,".repeat(MAX_BODY / 2 - 64));
    let body = |list: &str, text: &str| format!("{{\"a\":{list},\"s\":\"{text}\"}}").into_bytes();
    let many = body(&numbers, "");
    let halves = body(&format!("[{}0]", "0,".repeat(2_000)), &"x".repeat(MAX_BODY / 2));
    let nested = body(&format!("[[{}0]]", "0,".repeat(MAX_BODY / 4)), "");
    for (text, body) in [
        ("request.body.a.all(n, n == 0)", &many),
        ("request.body.a.exists(n, n == 1)", &many),
        ("request.body.a.exists(n, n.none == 1)", &many),
        ("request.body.a.exists_one(n, n == 1)", &many),
        ("size(request.body.a.map(n, n)) > 0", &many),
        ("size(request.body.a.map(n, n == 0, n)) > 0", &many),
        ("size(request.body.a.filter(n, n == 0)) > 0", &many),
        ("request.body.a.exists(n, n == 1) || true", &many),
        ("request.body.a.all(n, n in request.body.a)", &many),
        ("request.body.a.all(n, !request.body.s.contains('y'))", &halves),
        ("request.body.a.all(n, !request.body['s'].contains('y'))", &halves),
        ("request.body.a.all(n, !request['body'].s.contains('y'))", &halves),
        ("size(request.body.a.map(n, request.body.s)) > 0", &halves),
        ("size(request.body.a.map(n, request.body)) > 0", &halves),
        ("size(request.body.a.map(n, [request])) > 0", &halves),
        ("request.body.a.all(n, request.body.s.matches('^x*$'))", &halves),
        ("request.body.a.all(x, x.all(y, y == 0))", &nested),
        ("size([request.body, request.body, request.body]) > 0", &many),
        ("size(request.body.a + request.body.a) > 0", &many),
    ] {
        let began = std::time::Instant::now();
        let found = holds(text, body);
        let Err(EvaluationError::Failed(why)) = &found else { panic!("{text}: {found:?}") };
        assert!(why.contains("200000 steps"), "{text}: {why}");
        // Without a bound most of them cost the square of the body. The limit is far above what the bound allows.
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "{text}");
    }
    assert_eq!(holds("size(request.body.a) > 500000 && request.body.a[7] == 0", &many), Ok(true));
    assert_eq!(holds("request.body.a.all(n, n == 0 && size(request.headers) == 2)", &halves), Ok(true));
    assert_eq!(holds("!request.body.s.contains('y') && request.body.s.matches('^x*$')", &halves), Ok(true));
}

#[test]
fn counted_loops_mean_what_loops_mean() {
    let body = br#"{"a":[1,2,3],"b":[{"n":1,"l":[1,2]},{"n":5,"l":[]}],"m":{"k":"v","w":"v"},"s":"1"}"#;
    for (text, expected) in [
        ("request.body.a.all(n, n > 0)", true),
        ("request.body.a.all(n, n > 1)", false),
        ("request.body.a.exists(n, n == 3)", true),
        ("request.body.a.exists_one(n, n > 2)", true),
        ("request.body.a.exists_one(n, n > 1)", false),
        ("request.body.a.map(n, n * 2) == [2, 4, 6]", true),
        ("request.body.a.map(n, n > 1, n * 2) == [4, 6]", true),
        ("request.body.a.filter(n, n != 2) == [1, 3]", true),
        ("request.body.a.filter(n, n > 9) == []", true),
        ("request.body.b.all(b, b.l.all(n, n <= b.n + 0 || true))", true),
        ("request.body.b.exists(b, b.l.exists(n, n == b.n))", true),
        ("request.body.b.exists(b, has(b.n) && b.l.all(n, b.n > n))", true),
        ("request.body.m.all(k, request.body.m[k] == 'v')", true),
        ("request.body.a.exists(request, request == 3)", true),
        ("request.body.a.map(body, body + 1).exists(n, n == 4)", true),
        ("request.body.a.all(n, n in request.body.a && request.body.s == '1')", true),
        ("request.body.a.exists(n, request.body.none == n || n == 3)", true),
        ("request.body.a.all(n, has(request.body) && has(request.body.s) && !has(request.body.t))", true),
        ("consumer.scopes.all(s, claims.org.id == 7 && s == 'chat.write' && tls.used)", true),
        ("[request.body.s, request.method] == ['1', 'POST']", true),
        ("{'a': request.body.a}.a == [1, 2, 3]", true),
        ("request.body.a + [4] == [1, 2, 3, 4] && request.body.s + 'a' == '1a'", true),
    ] {
        match Expression::condition(text, Scope::Request) {
            Ok(_) => assert_eq!(holds(text, body), Ok(expected), "{text}"),
            // The one that computes with a variable of the outer loop.
            Err(e) => assert!(text.contains("b.n + 0") && e.contains("compared"), "{text}: {e}"),
        }
    }
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
        ("request.body.a.all(x, x.all(y, x.all(z, z == y)))", "square"),
        ("request.body.a.all(x, x.l.all(y, x.s.contains(y)))", "column 34: `x` of the outer loop"),
        ("request.body.a.all(x, x.l.all(y, y in x.l))", "`x` of the outer loop"),
        ("request.body.a.all(x, x.l.all(y, x.l == x.m))", "`x` of the outer loop"),
        ("size(request.body.a.map(x, x.l.map(y, x))) > 0", "`x` of the outer loop"),
    ] {
        let error = Expression::condition(text, Scope::Request).err().unwrap_or_else(|| panic!("{text} compiles"));
        assert!(error.contains(part), "{text}: {error}");
    }
    assert!(Expression::condition(&" ".repeat(MAX_EXPRESSION + 1), Scope::Request).is_err());
    assert!(check("tls.used", ExpressionPlace::Match(&[])).unwrap_err().contains("not known yet"));
    assert!(check("request.method == 'POST'", ExpressionPlace::Match(&[])).is_ok());
    assert!(check("consumer.name == 'a'", ExpressionPlace::Match(&[])).unwrap_err().contains("authorize"));
    assert!(check("request.body.a == 1", ExpressionPlace::Match(&[])).unwrap_err().contains("not read yet"));
    assert!(Expression::value("request.headers['x-user']", Scope::Request).is_ok());
    assert!(Expression::value("request.headers", Scope::Request).is_err());
}

#[test]
fn what_an_expression_reads_of_a_request_is_known() {
    for (text, model, body) in [
        ("request.model == 'x'", true, false),
        ("request.body.model == 'x'", false, true),
        ("request['model'] == 'x'", true, true),
        ("request.path == '/x'", false, false),
    ] {
        let asked = Expression::condition(text, Scope::Request).unwrap().asked();
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
        let expression = Expression::value(text, Scope::Request).unwrap();
        with(b"{\"user\":\"u\",\"n\":3}", &[("x-user", "me")], |x| expression.text(x))
    };
    assert_eq!(text("request.headers['x-user'] + '/' + consumer.name").as_deref(), Some("me/acme"));
    assert_eq!(text("request.body.n").as_deref(), Some("3"));
    assert_eq!(text("request.body.none"), None);
}

#[test]
fn fields_have_texts_numbers_and_truths() {
    for (text, expected) in [
        ("consumer.tenant", Some(Scalar::Text("north".to_owned()))),
        ("response.status", Some(Scalar::Int(503))),
        ("uint(7)", Some(Scalar::Int(7))),
        ("double(usage.promptTokens) / 2.0", Some(Scalar::Double(3.5))),
        ("1.0 / (double(usage.promptTokens) - 7.0)", None),
        ("response.status < 500", Some(Scalar::Bool(false))),
        ("usage.cachedTokens", None),
        ("claims.org", None),
    ] {
        let expression = Expression::scalar(text, Scope::End).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(with(b"", &[], |x| expression.scalar_of(x)), expected, "{text}");
    }
    assert!(check("consumer.scopes", ExpressionPlace::Field).unwrap_err().contains("list"));
    assert!(check("response.headers['a']", ExpressionPlace::Field).is_err());
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

/// Text of an expression that needs no interpreter.
fn plain_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        proptest::sample::select(vec![
            "request.method",
            "request.path",
            "request.query",
            "request.host",
            "request.clientAddress",
            "request.model",
            "consumer.name",
            "consumer.tenant",
            "route",
            "backend",
            "rollout.version",
            "model",
            "request.headers['x-beta']",
            "request.headers['x-many']",
            "request.headers['x-none']",
            "request.headers['x-secret']",
            "request.headers.host",
            "'POST'",
            "''",
            "'1'",
            "'north'",
            "'a, b'",
            "'[redacted]'",
            "'gpt-'",
            "'\u{fc}'",
            "'chat.write'",
        ])
        .prop_map(str::to_owned)
    ];
    leaf.prop_recursive(2, 4, 2, |inner| (inner.clone(), inner).prop_map(|(a, b)| format!("({a} + {b})")))
}

/// Condition that needs no interpreter.
fn plain_condition() -> impl Strategy<Value = String> {
    let pair = || (plain_text(), plain_text());
    let leaf = prop_oneof![
        Just("true".to_owned()),
        Just("false".to_owned()),
        Just("tls.used".to_owned()),
        Just("has(request.headers.host)".to_owned()),
        Just("'x-none' in request.headers".to_owned()),
        pair().prop_map(|(a, b)| format!("{a} == {b}")),
        pair().prop_map(|(a, b)| format!("{a} != {b}")),
        pair().prop_map(|(a, b)| format!("{a}.startsWith({b})")),
        pair().prop_map(|(a, b)| format!("{a}.endsWith({b})")),
        pair().prop_map(|(a, b)| format!("{a}.contains({b})")),
        plain_text().prop_map(|a| format!("{a} in ['POST', '1', 'north', '']")),
        plain_text().prop_map(|a| format!("{a} in consumer.scopes")),
        (proptest::sample::select(vec!["==", "!=", "<", "<=", ">", ">="]), 502_i64..505)
            .prop_map(|(operator, n)| format!("response.status {operator} {n}")),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} && {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} || {b})")),
            inner.prop_map(|a| format!("!({a})")),
        ]
    })
}

/// Scope that knows the names of an expression.
fn compiled(make: impl Fn(Scope) -> Result<Expression, String>) -> Expression {
    let compiled = Scope::ALL.into_iter().find_map(|scope| make(scope).ok());
    compiled.unwrap_or_else(|| panic!("{:?}", make(Scope::End)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn plain_conditions_mean_what_the_interpreter_says(text in plain_condition()) {
        let expression = compiled(|scope| Expression::condition(&text, scope));
        let Some(Fast::Bool(_)) = &expression.fast else { panic!("{text} needs the interpreter") };
        for headers in [&[][..], &[("x-beta", "1"), ("x-many", "a"), ("x-many", "b"), ("x-secret", "s"), ("host", "North:1")]] {
            with(b"", headers, |x| {
                let anonymous = Seen { caller: None, model: None, secure: false, method: "GET", ..*x };
                for seen in [x, &anonymous] {
                    assert_eq!(expression.holds(seen), expression.interpreted(seen), "{text}");
                }
            });
        }
    }

    #[test]
    fn plain_texts_are_what_the_interpreter_says(text in plain_text()) {
        let expression = compiled(|scope| Expression::value(&text, scope));
        let Some(Fast::Text(_)) = &expression.fast else { panic!("{text} needs the interpreter") };
        for headers in [&[][..], &[("x-beta", "1"), ("x-many", "a"), ("x-many", "b"), ("x-secret", "s")]] {
            with(b"", headers, |x| assert_eq!(expression.text(x), expression.evaluate(x, as_text).ok().flatten(), "{text}"));
        }
    }
}

#[test]
fn names_have_their_declared_types() {
    for name in NAMES.iter().filter(|name| name.fact != Fact::Signals) {
        let written = name.written();
        for scope in Scope::ALL {
            assert_eq!(Expression::any(&written, scope).is_ok(), name.is_in(scope), "{written} in {}", scope.as_str());
        }
        let expression = Expression::any(&written, name.scopes[0]).unwrap();
        if name.fact.is_of_prompt() {
            let prompt = Prompt {
                language: Some("eng"),
                characters: Some(1),
                tokens: Some(1),
                turns: Some(1),
                reasked: Some(true),
                tool_loop: Some(true),
                signals: Box::default(),
            };
            let value = with(b"{}", &[], |x| expression.json(&Seen { prompt: Some(&prompt), ..*x })).unwrap();
            assert_eq!(value.1, name.kind.to_string(), "{written}");
            assert!(with(b"{}", &[], |x| expression.json(x)).is_err(), "the conversation is not known yet");
            continue;
        }
        if name.fact == Fact::CachedTokens {
            assert!(with(b"{}", &[], |x| expression.json(x)).is_err(), "the answer does not tell it");
            continue;
        }
        let value = with(b"{}", &[], |x| expression.json(x)).unwrap_or_else(|e| panic!("{written}: {e}"));
        let declared = match name.kind {
            Type::Any => continue,
            Type::List(_) => "list".to_owned(),
            Type::Map(_) => "map".to_owned(),
            kind => kind.to_string(),
        };
        assert_eq!(value.1, declared, "{written}");
    }
}

/// Signals of a configuration.
fn signals() -> Vec<SignalName> {
    let name = |name: &str, kind| SignalName { name: name.to_owned(), kind };
    vec![
        name("secret", SignalKind::Bool),
        name("topic", SignalKind::Double),
        name("topic.code", SignalKind::Double),
        name("topic.math", SignalKind::Double),
    ]
}

/// Value of a condition of a match for a conversation; `None` where that is not known yet.
fn judged(text: &str, prompt: Option<&Prompt>) -> Result<bool, EvaluationError> {
    let expression =
        Expression::condition_with(text, Scope::Head, &signals()).unwrap_or_else(|e| panic!("{text}: {e}"));
    with(b"", &[], |x| expression.holds(&Seen { prompt, ..*x }))
}

#[test]
fn signals_and_the_prompt_decide() {
    let prompt = Prompt {
        language: Some("deu"),
        characters: Some(12),
        tokens: Some(3),
        turns: Some(2),
        reasked: Some(false),
        tool_loop: Some(true),
        signals: [
            Some(SignalValue::Bool(true)),
            Some(SignalValue::Double(0.75)),
            None,
            Some(SignalValue::Double(0.75)),
        ]
        .into(),
    };
    for (text, expected) in [
        ("signals.secret", Some(true)),
        ("!signals.secret || signals.topic > 0.5", Some(true)),
        ("signals.topic >= 0.75 && signals.topic.math >= 0.75", Some(true)),
        ("signals.topic < 1", Some(true)),
        ("signals.topic.code > 0.5", None),
        ("signals.topic.code > 0.5 || true", Some(true)),
        ("has(signals.topic.code) || !has(signals.topic.math)", Some(false)),
        ("has(signals.secret) && has(prompt.language)", Some(true)),
        ("[0.5, 0.9].exists(least, signals.topic.math > least)", Some(true)),
        ("prompt.language == 'deu' && prompt.characters == 12 && prompt.tokens == 3", Some(true)),
        ("prompt.turns == 2 && !prompt.reasked && prompt.toolLoop", Some(true)),
        ("prompt.language in ['deu', 'eng'] && request.path.startsWith('/v1')", Some(true)),
    ] {
        let found = judged(text, Some(&prompt));
        match expected {
            Some(expected) => assert_eq!(found, Ok(expected), "{text}"),
            None => assert!(matches!(found, Err(EvaluationError::Missing(_))), "{text}: {found:?}"),
        }
        // Of no conversation nothing but the presence is told.
        let found = judged(text, Some(&Prompt::default()));
        assert_eq!(found.is_ok(), text.starts_with("has") || text.ends_with("true"), "{text}: {found:?}");
    }
}

#[test]
fn before_the_conversation_is_known_only_what_does_not_depend_on_it_has_a_value() {
    for (text, expected) in [
        ("request.method == 'GET' && signals.secret", Some(false)),
        ("request.method == 'POST' || prompt.tokens > 3", Some(true)),
        ("request.method == 'POST' && prompt.tokens > 3", None),
        ("has(signals.secret)", None),
        ("!has(prompt.language)", None),
        ("size(prompt) == 0", None),
        ("'language' in prompt", None),
        ("[1].all(n, has(signals.topic.math) && n == 1)", None),
        ("signals.topic > 0.5", None),
    ] {
        assert_eq!(judged(text, None).ok(), expected, "{text}");
    }
}

#[test]
fn mistakes_with_signals_are_told() {
    for (text, part) in [
        (
            "signals.secrets",
            "column 8: `signals` has no `secrets`; expected `secret` or `topic` (did you mean `secret`?)",
        ),
        (
            "signals.topic.maths > 0.5",
            "`signals.topic` has no `maths`; expected `code` or `math` (did you mean `math`?)",
        ),
        ("signals.secret.math > 0.5", "a value of type bool has no field `math`"),
        ("signals.secret > 0.5", "`>` does not go with bool and double"),
        ("signals.topic == 'math'", "`==` does not go with double and string"),
        ("signals.topic", "of type double; expected true or false"),
        ("size(signals) > 0", "`signals` has no value itself"),
        ("signals['secret']", "`signals` has no value itself"),
        ("prompt.lang == 'deu'", "`prompt` has no `lang`"),
        ("prompt.language == 1", "`==` does not go with string and int"),
    ] {
        let error = Expression::condition_with(text, Scope::Head, &signals()).err();
        let error = error.unwrap_or_else(|| panic!("{text} compiles"));
        assert!(error.contains(part), "{text}: {error}");
    }
    let none = Expression::condition("signals.secret", Scope::Head).unwrap_err();
    assert!(none.contains("unknown signal `secret`; the file defines none"), "{none}");
    for text in ["signals.secret", "prompt.toolLoop"] {
        let elsewhere = Expression::condition_with(text, Scope::Request, &signals()).unwrap_err();
        assert!(elsewhere.contains("is not known in a filter, only in a match"), "{elsewhere}");
    }
    let read =
        Expression::condition_with("signals.topic.math > 0.5 && signals.secret", Scope::Head, &signals()).unwrap();
    assert_eq!(read.signals().collect::<Vec<_>>(), [3, 0]);
    assert!(read.asked().reads_prompt() && read.asked().reads_only_prompt());
    let read = Expression::condition("request.path == '/' && prompt.turns > 1", Scope::Head).unwrap();
    assert!(read.asked().reads_prompt() && !read.asked().reads_only_prompt());
}

/// Table of the names, as `docs/extend/expressions.md` has it.
fn table() -> String {
    let mut table = "| name | type |".to_owned();
    Scope::ALL.iter().for_each(|scope| table.push_str(&format!(" in {} |", scope.as_str())));
    table.push_str(" where there is none | meaning |\n|---|---|---|---|---|---|---|---|---|\n");
    for name in NAMES {
        let known = Scope::ALL.map(|scope| if name.is_in(scope) { "yes" } else { "" }).join(" | ");
        let row = format!("| `{}` | {} | {known} | {} | {} |\n", name.written(), name.kind, name.absent, name.doc);
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
