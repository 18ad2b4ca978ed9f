//! Matches of routes as matches of the configuration. A match that cannot be served is refused with the reason; none is widened.

use spillway_config::schema::{HeaderMatch, Match, PathMatch};

use crate::discovery::objects::{GrpcMatch, HttpMatch, NamedValue};

/// Reason why a route cannot be served.
pub(super) type Unsupported = String;

/// Match of an `HTTPRoute`.
pub(super) fn http(written: &HttpMatch) -> Result<Match, Unsupported> {
    let path = match &written.path {
        None => None,
        Some(path) => {
            let value = path.value.clone().unwrap_or_else(|| "/".to_owned());
            Some(match path.kind.as_deref().unwrap_or("PathPrefix") {
                "Exact" => PathMatch::Exact(value),
                "PathPrefix" => PathMatch::Prefix(value),
                "RegularExpression" => PathMatch::Regex(value),
                other => return Err(format!("path matches of the type {other} are not supported")),
            })
        }
    };
    Ok(Match {
        path,
        method: written.method.clone(),
        headers: headers(&written.headers)?,
        model: None,
        when: query(&written.query_params)?,
    })
}

/// Match of a `GRPCRoute`: service and method are the two elements of the path, and the method is POST.
pub(super) fn grpc(written: &GrpcMatch) -> Result<Match, Unsupported> {
    let path = match &written.method {
        None => None,
        Some(method) => {
            if method.kind.as_deref().unwrap_or("Exact") != "Exact" {
                return Err("method matches of the type RegularExpression are not supported".to_owned());
            }
            match (&method.service, &method.method) {
                (Some(service), Some(method)) => Some(PathMatch::Exact(format!("/{service}/{method}"))),
                (Some(service), None) => Some(PathMatch::Prefix(format!("/{service}"))),
                (None, Some(method)) => Some(PathMatch::Regex(format!("/[^/]+/{}", regex::escape(method)))),
                (None, None) => None,
            }
        }
    };
    Ok(Match { path, headers: headers(&written.headers)?, ..Match::default() })
}

/// Headers; of several with one name the first counts, as the API says.
fn headers(written: &[NamedValue]) -> Result<Vec<HeaderMatch>, Unsupported> {
    let mut out: Vec<HeaderMatch> = Vec::new();
    for one in written {
        exact(one, "header")?;
        if !out.iter().any(|known| known.name.eq_ignore_ascii_case(&one.name)) {
            out.push(HeaderMatch { name: one.name.clone(), exact: one.value.clone() });
        }
    }
    Ok(out)
}

fn exact(one: &NamedValue, what: &str) -> Result<(), Unsupported> {
    match one.kind.as_deref().unwrap_or("Exact") {
        "Exact" => Ok(()),
        other => Err(format!("{what} matches of the type {other} are not supported")),
    }
}

/// Expression over the parameters of a query; `None` without any.
fn query(written: &[NamedValue]) -> Result<Option<String>, Unsupported> {
    let mut conditions: Vec<(&str, String)> = Vec::new();
    for one in written {
        exact(one, "query parameter")?;
        if !conditions.iter().any(|(known, _)| *known == one.name) {
            let pattern = format!("(^|&){}={}(&|$)", spellings(&one.name), spellings(&one.value));
            conditions.push((&one.name, format!("request.query.matches('{pattern}')")));
        }
    }
    let conditions: Vec<String> = conditions.into_iter().map(|(_, condition)| condition).collect();
    Ok((!conditions.is_empty()).then(|| conditions.join(" && ")))
}

/// Pattern of all spellings of a text in a query: as it is, and percent-encoded. Nothing of the text is left that a pattern or
/// an expression would read otherwise.
fn spellings(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let encoded = format!("%{}", hex_of(byte));
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push_str(&format!("({}|{encoded})", char::from(byte))),
            b' ' => out.push_str(&format!("([+]|{encoded})")),
            // Characters of a query that end no parameter (RFC 3986, 3.4), each as a class of its own.
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'(' | b')' | b'*' | b',' | b';' | b':' | b'@' | b'/' | b'?'
            | b'=' => {
                out.push_str(&format!("([{}]|{encoded})", char::from(byte)));
            }
            _ => out.push_str(&encoded),
        }
    }
    out
}

/// Pattern of the two digits of an encoded byte, in either case.
fn hex_of(byte: u8) -> String {
    let digit = |digit: char| match digit {
        'a'..='f' => format!("[{digit}{}]", digit.to_ascii_uppercase()),
        other => other.to_string(),
    };
    format!("{byte:02x}").chars().map(digit).collect()
}
