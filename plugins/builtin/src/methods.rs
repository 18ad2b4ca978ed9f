//! `methods`: the procedures that callers may use, for servers that name them in the body of a request.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use spillway_filter::{Answer, FieldError, Filter, FilterFactory, Flow, RequestView, Waited, define_compiled};

use crate::json_edit::folded;

/// Most messages of a batch: each refused one costs an error in the answer.
const MAX_BATCH: usize = 100;
/// Most names of a list, which is searched for each message.
const MAX_NAMES: usize = 1000;
/// Method that calls a tool of a Model Context Protocol server.
const CALL_TOOL: &str = "tools/call";

/// JSON-RPC 2.0, "Error object": the body is no JSON.
const PARSE_ERROR: i32 = -32700;
/// JSON-RPC 2.0: the JSON is no message.
const INVALID_REQUEST: i32 = -32600;
/// JSON-RPC 2.0: the method does not exist or is not available.
const METHOD_NOT_FOUND: i32 = -32601;
/// JSON-RPC 2.0: the parameters are wrong, such as an unknown tool in the Model Context Protocol.
const INVALID_PARAMS: i32 = -32602;
/// JSON-RPC 2.0, of the range for servers: the message is allowed, and another one of its batch is not.
const NOT_SENT: i32 = -32000;

/// Lets only named procedures pass. A request with a body must be what the filter knows; requests without one, such as `GET`
/// of an event stream, pass.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Methods {
    /// Methods of JSON-RPC 2.0, which the Model Context Protocol speaks.
    json_rpc: JsonRpc,
}

/// Allowed methods of JSON-RPC.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JsonRpc {
    /// Names of methods, at most 1000. A `*` at the end stands for any rest, as in `notifications/*`. A client of the Model
    /// Context Protocol begins with `initialize` and `notifications/initialized`.
    allow: Vec<String>,
    /// Names of the tools that `tools/call` may call, at most 1000, with `*` at the end as in `allow`. All when left out.
    #[serde(default)]
    tools: Option<Vec<String>>,
}

/// Names, each whole or up to its `*`.
#[derive(Debug, Default)]
struct Names {
    exact: Vec<String>,
    prefixes: Vec<String>,
}

impl Names {
    fn compile(key: &str, written: &[String], errors: &mut Vec<FieldError>) -> Self {
        let mut names = Self::default();
        if written.is_empty() || written.len() > MAX_NAMES {
            let why = format!("found {} names; expected 1 to {MAX_NAMES}", written.len());
            errors.push(FieldError::at(["jsonRpc", key], why));
        }
        for (n, name) in written.iter().enumerate() {
            let (prefix, is_prefix) = name.strip_suffix('*').map_or((name.as_str(), false), |prefix| (prefix, true));
            if name.is_empty() || prefix.contains('*') {
                let why = format!("found `{name}`; expected a name, with `*` only at its end");
                errors.push(FieldError::at(["jsonRpc", key, &n.to_string()], why));
            }
            let list = if is_prefix { &mut names.prefixes } else { &mut names.exact };
            list.push(prefix.to_owned());
        }
        names
    }

    fn contain(&self, name: &str) -> bool {
        self.exact.iter().any(|exact| exact == name) || self.prefixes.iter().any(|prefix| name.starts_with(prefix))
    }
}

fn compile(written: &Methods) -> Result<Allowed, Vec<FieldError>> {
    let mut errors = Vec::new();
    let methods = Names::compile("allow", &written.json_rpc.allow, &mut errors);
    let tools = written.json_rpc.tools.as_ref().map(|tools| Names::compile("tools", tools, &mut errors));
    if errors.is_empty() && tools.is_some() && !methods.contain(CALL_TOOL) {
        let why = format!("no effect: `allow` lets no `{CALL_TOOL}` pass; add it, or remove `tools`");
        errors.push(FieldError::at(["jsonRpc", "tools"], why));
    }
    if errors.is_empty() { Ok(Allowed { methods, tools }) } else { Err(errors) }
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define_compiled("methods", compile)
}

/// Filter with its names.
#[derive(Debug)]
struct Allowed {
    methods: Names,
    tools: Option<Names>,
}

/// Reason why a message does not pass.
struct Fault {
    code: i32,
    message: Cow<'static, str>,
}

impl Fault {
    fn new(code: i32, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }
    fn invalid(message: &'static str) -> Self {
        Self::new(INVALID_REQUEST, message)
    }
}

impl Allowed {
    /// Answer in place of the server's; `None` where the whole body passes.
    fn refusal(&self, body: &[u8]) -> Option<Answer> {
        let broken = || Fault::new(PARSE_ERROR, "the body is not JSON; this route takes JSON-RPC 2.0");
        let Ok(text) = std::str::from_utf8(body) else { return Some(malformed(&broken())) };
        let is_batch = text.trim_start().starts_with('[');
        let messages: Result<Vec<&RawValue>, _> =
            if is_batch { serde_json::from_str(text) } else { serde_json::from_str(text).map(|message| vec![message]) };
        let Ok(messages) = messages else { return Some(malformed(&broken())) };
        if messages.is_empty() || messages.len() > MAX_BATCH {
            let why = format!("a batch of {} messages; expected 1 to {MAX_BATCH}", messages.len());
            return Some(malformed(&Fault::new(INVALID_REQUEST, why)));
        }
        let mut judged = Vec::with_capacity(messages.len());
        for message in messages {
            match Message::read(message.get()) {
                Ok(message) => judged.push((message.id, self.judge(&message).err())),
                Err(fault) => return Some(malformed(&fault)),
            }
        }
        judged.iter().any(|(_, fault)| fault.is_some()).then(|| refused(&judged, is_batch))
    }

    fn judge(&self, message: &Message<'_>) -> Result<(), Fault> {
        let Some(method) = &message.method else { return Ok(()) };
        if !self.methods.contain(method) {
            return Err(Fault::new(METHOD_NOT_FOUND, "this route does not let this method pass"));
        }
        let Some(tools) = self.tools.as_ref().filter(|_| method == CALL_TOOL) else { return Ok(()) };
        let tool = message.params.and_then(|params| serde_json::from_str::<Members<'_>>(params.get()).ok());
        let tool = tool.and_then(|members| members.name).and_then(|name| text_of(name).ok());
        match tool {
            Some(tool) if tools.contain(&tool) => Ok(()),
            Some(_) => Err(Fault::new(INVALID_PARAMS, "this route does not let calls of this tool pass")),
            None => Err(Fault::new(INVALID_PARAMS, "`params` names no tool, or not once; expected `params.name`")),
        }
    }
}

impl Filter for Allowed {
    fn needs_body(&self) -> bool {
        true
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        let body = x.body.unwrap_or_default();
        if body.is_empty() && *x.method != http::Method::POST {
            return Flow::Continue;
        }
        match self.refusal(body) {
            None => Flow::Continue,
            // Waited for, so that it counts as a refusal of this filter, and not as its answer.
            Some(answer) => {
                let waited = Waited { answer: Some(Box::new(answer)), ..Waited::default() };
                Flow::Wait(Box::pin(std::future::ready(waited)))
            }
        }
    }
}

/// A message as far as it is judged.
struct Message<'a> {
    /// Name of the method; `None` for an answer to a request of the server.
    method: Option<Cow<'a, str>>,
    /// Id as it was written; `None` for a notification and for an answer.
    id: Option<&'a str>,
    params: Option<&'a RawValue>,
}

impl<'a> Message<'a> {
    fn read(text: &'a str) -> Result<Self, Fault> {
        let members: Members<'a> = serde_json::from_str(text).map_err(|_| {
            Fault::invalid("a message is no object, or has a member twice or in other letters; expected JSON-RPC 2.0")
        })?;
        if members.version.and_then(|version| text_of(version).ok()).as_deref() != Some("2.0") {
            return Err(Fault::invalid("a message without `\"jsonrpc\": \"2.0\"`"));
        }
        let id = members.id.map(RawValue::get);
        if id.is_some_and(|id| id.starts_with(['{', '[', 't', 'f'])) {
            return Err(Fault::invalid("an `id` that is neither text nor a number"));
        }
        match members.method {
            Some(method) => {
                let method = text_of(method).map_err(|_| Fault::invalid("a `method` that is no text"))?;
                Ok(Self { method: Some(method), id, params: members.params })
            }
            None if id.is_some() && members.is_answer => Ok(Self { method: None, id: None, params: None }),
            None => Err(Fault::invalid("a message without `method`")),
        }
    }
}

fn text_of(value: &RawValue) -> Result<Cow<'_, str>, serde_json::Error> {
    serde_json::from_str::<String>(value.get()).map(Cow::Owned)
}

/// Members of an object that decide. One that is there twice is an error: servers differ in which one they read.
#[derive(Default)]
struct Members<'a> {
    version: Option<&'a RawValue>,
    method: Option<&'a RawValue>,
    params: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    name: Option<&'a RawValue>,
    is_answer: bool,
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Members::default();
                while let Some(key) = map.next_key::<String>()? {
                    let name: String = folded(&key).collect();
                    let member = match name.as_str() {
                        "jsonrpc" => &mut members.version,
                        "method" => &mut members.method,
                        "params" => &mut members.params,
                        "id" => &mut members.id,
                        "name" => &mut members.name,
                        other => {
                            members.is_answer |= matches!(other, "result" | "error");
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    if name != key || member.is_some() {
                        return Err(A::Error::custom("a member twice, or in other letters"));
                    }
                    *member = Some(map.next_value()?);
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// JSON of an error for the message with this id.
fn error(id: &str, fault: &Fault) -> String {
    let error = serde_json::json!({"code": fault.code, "message": fault.message});
    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
}

fn answer(status: StatusCode, body: String) -> Answer {
    let headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Answer { status, headers, body: Bytes::from(body) }
}

/// Answer to a body that holds no messages.
fn malformed(fault: &Fault) -> Answer {
    answer(StatusCode::BAD_REQUEST, error("null", fault))
}

/// Answer to messages of which one does not pass. Clients read the error of a call only with a status of success (the Model
/// Context Protocol's break off at others); notifications have no answer but their status.
fn refused(judged: &[(Option<&str>, Option<Fault>)], is_batch: bool) -> Answer {
    let other = Fault::new(NOT_SENT, "not sent: this route does not let another message of the batch pass");
    let calls = judged.iter().filter_map(|(id, fault)| Some(error(id.as_ref()?, fault.as_ref().unwrap_or(&other))));
    let calls: Vec<String> = calls.collect();
    if calls.is_empty() {
        let fault = judged.iter().find_map(|(_, fault)| fault.as_ref()).unwrap_or(&other);
        return answer(StatusCode::FORBIDDEN, error("null", fault));
    }
    let body = calls.join(",");
    answer(StatusCode::OK, if is_batch { format!("[{body}]") } else { body })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};
    use spillway_filter::testing::{FilterBuilder, TestRequest, wait};

    use super::*;

    fn filter() -> Arc<dyn Filter> {
        let config = json!({"jsonRpc": {"allow": ["tools/list", "tools/call", "notifications/*"], "tools": ["search", "read_*"]}});
        FilterBuilder::new().build(&*factory(), &config)
    }

    /// Status and JSON of the refusal; `None` for a body that passes.
    fn judged(body: &str) -> Option<(u16, Value)> {
        match TestRequest::post("/mcp", body.to_owned()).decide(&*filter()) {
            Flow::Continue => None,
            flow => {
                let answer = wait(flow).answer.unwrap();
                Some((answer.status.as_u16(), serde_json::from_slice(&answer.body).unwrap()))
            }
        }
    }

    fn code(body: &str) -> Option<(u16, i64)> {
        judged(body).map(|(status, json)| (status, json["error"]["code"].as_i64().unwrap()))
    }

    #[test]
    fn allowed_messages_pass() {
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#,
            r#" {"method":"tools\/list","id":"a","jsonrpc":"2.0","params":{"cursor":"x"}} "#,
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
            r#"{"params":{"name":"search","arguments":{"name":"x","Name":1}},"jsonrpc":"2.0","id":1,"method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read_file"}}"#,
            r#"{"jsonrpc":"2.0","id":7,"result":{"method":"x"}}"#,
            r#"{"jsonrpc":"2.0","id":7,"error":{"code":1,"message":"m"}}"#,
            r#"[{"jsonrpc":"2.0","id":1,"method":"tools/list"},{"jsonrpc":"2.0","method":"notifications/x"}]"#,
        ] {
            assert_eq!(judged(body), None, "{body}");
        }
        assert!(matches!(TestRequest::get("/mcp").decide(&*filter()), Flow::Continue));
    }

    #[test]
    fn a_call_of_another_method_gets_an_error_with_its_id() {
        for id in ["1", "\"a\\\"b\"", "null", "12345678901234567890123", "-1.5"] {
            let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"resources/read"}}"#);
            let (status, json) = judged(&body).unwrap();
            assert_eq!((status, &json["error"]["code"]), (200, &json!(-32601)), "{id}");
            assert_eq!(json["id"], serde_json::from_str::<Value>(id).unwrap());
        }
        assert_eq!(code(r#"{"jsonrpc":"2.0","method":"resources/read"}"#), Some((403, -32601)));
        // Names are compared as they are.
        assert_eq!(code(r#"{"jsonrpc":"2.0","id":1,"method":"Tools/list"}"#), Some((200, -32601)));
        assert_eq!(code(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list2"}"#), Some((200, -32601)));
    }

    #[test]
    fn other_tools_are_refused() {
        for params in [
            r#","params":{"name":"delete"}"#,
            r#","params":{"name":"searching"}"#,
            "",
            r#","params":["search"]"#,
            r#","params":{"name":1}"#,
        ] {
            let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call"{params}}}"#);
            assert_eq!(code(&body), Some((200, -32602)), "{body}");
        }
        for params in [r#"{"name":"search","name":"delete"}"#, r#"{"name":"search","Name":"delete"}"#] {
            let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
            assert_eq!(code(&body), Some((200, -32602)), "{body}");
        }
    }

    #[test]
    fn a_batch_passes_whole_or_not_at_all() {
        let body = r#"[{"jsonrpc":"2.0","id":1,"method":"tools/list"},{"jsonrpc":"2.0","id":2,"method":"x"},
            {"jsonrpc":"2.0","method":"notifications/x"}]"#;
        let (status, json) = judged(body).unwrap();
        let codes: Vec<_> =
            json.as_array().unwrap().iter().map(|e| (e["id"].clone(), e["error"]["code"].clone())).collect();
        assert_eq!((status, codes), (200, vec![(json!(1), json!(-32000)), (json!(2), json!(-32601))]));
        let notifications = r#"[{"jsonrpc":"2.0","method":"notifications/x"},{"jsonrpc":"2.0","method":"x"}]"#;
        assert_eq!(code(notifications), Some((403, -32601)));
        assert_eq!(code("[]"), Some((400, -32600)));
        let many = format!("[{}]", vec![r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#; MAX_BATCH + 1].join(","));
        assert_eq!(code(&many), Some((400, -32600)));
    }

    #[test]
    fn a_body_that_can_be_read_in_two_ways_is_refused() {
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","Method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","m\u0065thod":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"search"},"paramſ":{"name":"x"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"tools/list"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"tools/list"}"#,
            r#"{"jsonrpc":"2.0","id":true,"method":"tools/list"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":["tools/list"]}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"tools/list"}"#,
            r#"{"id":1,"method":"tools/list"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","result":{}}"#,
            r#"[[{"jsonrpc":"2.0","id":1,"method":"tools/list"}]]"#,
            "7",
        ] {
            assert_eq!(code(body), Some((400, -32600)), "{body}");
        }
        for body in ["", "hello", "{\"jsonrpc\":\"2.0\"", "{} {}", "\u{feff}{}", "method=x"] {
            assert_eq!(code(body), Some((400, -32700)), "{body}");
        }
        let bytes = TestRequest::post("/mcp", &b"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\",\"method\":\"tools/list\"}"[..]);
        assert_eq!(wait(bytes.decide(&*filter())).answer.unwrap().status, 400);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (json, path) in [
            (json!({"allow": []}), vec!["jsonRpc", "allow"]),
            (json!({"allow": ["a", "b*c"]}), vec!["jsonRpc", "allow", "1"]),
            (json!({"allow": [""]}), vec!["jsonRpc", "allow", "0"]),
            (json!({"allow": ["tools/list"], "tools": ["x"]}), vec!["jsonRpc", "tools"]),
            (json!({"allow": ["tools/*"], "tools": []}), vec!["jsonRpc", "tools"]),
        ] {
            let errors = factory().check(&json!({"jsonRpc": json}));
            assert_eq!((errors.len(), &errors[0].path), (1, &path.iter().map(|&p| p.to_owned()).collect()), "{json}");
        }
    }
}
