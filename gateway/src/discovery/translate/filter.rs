//! Filters of routes as filters of the configuration. Texts of headers are taken as they are: a brace is no variable there.

use serde_json::{Map, Value, json};
use spillway_config::schema::FilterEntry;

use super::matching::Unsupported;

/// Filters of a rule. `mirror` names the backend of a copy.
pub(super) fn all(
    written: &[Value],
    mut mirror: impl FnMut(&Value) -> Result<Option<String>, Unsupported>,
) -> Result<Vec<FilterEntry>, Unsupported> {
    let mut out = Vec::new();
    for filter in written {
        let kind = filter.get("type").and_then(Value::as_str).unwrap_or_default();
        let content = |key: &str| {
            filter.get(key).filter(|value| value.is_object()).ok_or_else(|| format!("{kind} without `{key}`"))
        };
        let (name, config) = match kind {
            "RequestHeaderModifier" => ("requestHeaders", headers(content("requestHeaderModifier")?)?),
            "ResponseHeaderModifier" => ("responseHeaders", headers(content("responseHeaderModifier")?)?),
            "RequestRedirect" => ("redirect", redirect(content("requestRedirect")?)?),
            "URLRewrite" => ("urlRewrite", rewrite(content("urlRewrite")?)?),
            "CORS" => ("cors", cors(content("cors")?)?),
            "RequestMirror" => {
                let content = content("requestMirror")?;
                let Some(backend) = mirror(content.get("backendRef").unwrap_or(&Value::Null))? else { continue };
                let percent = share(content)?;
                if percent == 0.0 {
                    continue;
                }
                ("mirror", json!({"backend": backend, "percent": percent}))
            }
            other => return Err(format!("filters of the type {other} are not supported")),
        };
        out.push(FilterEntry { name: name.to_owned(), config });
    }
    Ok(out)
}

/// Filters of one target: those that change headers.
pub(super) fn of_target(written: &[Value]) -> Result<Vec<FilterEntry>, Unsupported> {
    let kind = |filter: &Value| filter.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let is_served = |kind: &String| matches!(kind.as_str(), "RequestHeaderModifier" | "ResponseHeaderModifier");
    if let Some(other) = written.iter().map(kind).find(|kind| !is_served(kind)) {
        return Err(format!(
            "filters of a backendRef of the type {other} are not supported; expected RequestHeaderModifier or \
             ResponseHeaderModifier, and others under the filters of the rule"
        ));
    }
    all(written, |_| Ok(None))
}

fn text<'v>(value: &'v Value, key: &str) -> Option<&'v str> {
    value.get(key).and_then(Value::as_str)
}

fn list<'v>(value: &'v Value, key: &str) -> impl Iterator<Item = &'v Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// Changes of headers.
fn headers(content: &Value) -> Result<Value, Unsupported> {
    let mut out = Map::new();
    for key in ["set", "add"] {
        let mut values = Map::new();
        for one in list(content, key) {
            let (name, value) = (text(one, "name").unwrap_or_default(), text(one, "value").unwrap_or_default());
            let name = name.to_ascii_lowercase();
            if values.insert(name.clone(), value.replace('{', "{{").into()).is_some() {
                return Err(format!("the header {name} is in `{key}` twice"));
            }
        }
        if !values.is_empty() {
            out.insert(key.to_owned(), values.into());
        }
    }
    let removed: Vec<Value> = list(content, "remove").cloned().collect();
    if !removed.is_empty() {
        out.insert("remove".to_owned(), removed.into());
    }
    Ok(out.into())
}

/// Path of a redirect or a rewrite.
fn path(content: &Value, out: &mut Map<String, Value>) -> Result<(), Unsupported> {
    let Some(path) = content.get("path").filter(|path| !path.is_null()) else { return Ok(()) };
    let (key, value) = match text(path, "type").unwrap_or_default() {
        "ReplaceFullPath" => ("path", text(path, "replaceFullPath")),
        "ReplacePrefixMatch" => ("replacePrefix", text(path, "replacePrefixMatch")),
        other => return Err(format!("paths of the type {other} are not supported")),
    };
    // An empty prefix is that of the root.
    let value = value.filter(|value| !value.is_empty()).unwrap_or("/");
    out.insert(key.to_owned(), value.into());
    Ok(())
}

fn redirect(content: &Value) -> Result<Value, Unsupported> {
    let mut out = Map::new();
    for key in ["scheme", "hostname", "port"] {
        out.extend(content.get(key).filter(|value| !value.is_null()).map(|value| (key.to_owned(), value.clone())));
    }
    path(content, &mut out)?;
    let status = content.get("statusCode").filter(|value| !value.is_null()).cloned();
    out.insert("status".to_owned(), status.unwrap_or_else(|| 302.into()));
    Ok(out.into())
}

fn rewrite(content: &Value) -> Result<Value, Unsupported> {
    let mut out = Map::new();
    out.extend(text(content, "hostname").map(|host| ("hostname".to_owned(), host.into())));
    path(content, &mut out)?;
    Ok(out.into())
}

fn cors(content: &Value) -> Result<Value, Unsupported> {
    let mut out = Map::new();
    for key in ["allowOrigins", "allowMethods", "allowHeaders", "exposeHeaders", "allowCredentials"] {
        out.extend(content.get(key).filter(|value| !value.is_null()).map(|value| (key.to_owned(), value.clone())));
    }
    if let Some(seconds) = content.get("maxAge").and_then(Value::as_u64) {
        out.insert("maxAge".to_owned(), format!("{seconds}s").into());
    }
    Ok(out.into())
}

/// Percentage of requests that are copied.
fn share(content: &Value) -> Result<f64, Unsupported> {
    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
    let percent = match (number(content.get("percent")), content.get("fraction").filter(|value| !value.is_null())) {
        (Some(percent), _) => percent,
        (None, Some(fraction)) => {
            let of = number(fraction.get("denominator")).unwrap_or(100.0);
            number(fraction.get("numerator")).unwrap_or(0.0) / of * 100.0
        }
        (None, None) => 100.0,
    };
    if (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err("a mirror copies from 0 to 100 percent".to_owned()) }
}
