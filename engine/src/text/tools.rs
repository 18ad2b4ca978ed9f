//! Tools: the chat template presents them to the model; this module finds the model's calls in the growing text of
//! its answer. Two syntaxes are supported. Hermes and Qwen write JSON between `<tool_call>` and `</tool_call>`; Llama
//! 3 writes an answer that is JSON as a whole.

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use serde_json::{Map, Value, json};

use super::Tokenizer;
use crate::CallSyntax;

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// Name of the function.
    pub name: String,
    /// JSON text of an object with `name`, and optionally `description` and the JSON Schema of the `parameters`.
    pub function: String,
    /// True if the arguments of a call must follow the schema, also where the model is free to call.
    pub is_strict: bool,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Identifier to which the result refers.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// Arguments as JSON text of an object.
    pub arguments: String,
}

/// Tool-call syntax of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolStyle {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` for each call, after any text.
    Hermes,
    /// `{"name": ..., "parameters": {...}}` and nothing else; several calls are separated by semicolons.
    Llama,
}

/// Text, then calls with text between them. A lazy lexeme ends where it first may, so no mark of a call passes as text.
const HERMES_CALLS: &str = r#"start: (before call)* rest
before[lazy]: /(.|\n)*<tool_call>/
call: BLANKS? json BLANKS? "</tool_call>"
json: %json SCHEMA
rest: /(.|\n)*/
BLANKS: /[ \n]{1,4}/
"#;
/// Calls and nothing else, or a text that does not begin like one.
const LLAMA_CALLS: &str = r#"start: BLANKS? json (BLANKS? ";" BLANKS? json)* | rest
json: %json SCHEMA
rest: /([ \n\t]*[^{ \n\t](.|\n)*)?/
BLANKS: /[ \n]{1,4}/
"#;

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";

impl ToolStyle {
    /// Detects the syntax that a template teaches.
    pub(super) fn of_template(source: &str, tokenizer: &Tokenizer) -> Option<Self> {
        if !source.contains("tools") {
            return None;
        }
        // A control token never appears in an answer's text.
        if source.contains(BEGIN) {
            return tokenizer.split_control(BEGIN).is_none().then_some(Self::Hermes);
        }
        source.contains("\"parameters\": dictionary").then_some(Self::Llama)
    }

    fn arguments(self) -> &'static str {
        match self {
            Self::Hermes => "arguments",
            Self::Llama => "parameters",
        }
    }

    /// Beginning of an answer that must be a call.
    pub(crate) fn opening(self) -> &'static str {
        match self {
            Self::Hermes => "<tool_call>\n",
            Self::Llama => "",
        }
    }

    /// JSON Schema, as JSON text, of an answer that must be a call of one of these tools, after its opening.
    pub fn schema(self, tools: &[Tool]) -> String {
        self.schema_of(tools, |_| true)
    }

    /// Syntax of an answer that is free to call these tools, where one of them is strict: once a call begins, it is one of
    /// these, and the arguments of strict tools follow their schemas. `None` if no tool is strict.
    pub fn calls(self, tools: &[Tool]) -> Option<CallSyntax> {
        let lark = match self {
            Self::Hermes => HERMES_CALLS,
            Self::Llama => LLAMA_CALLS,
        };
        let is_strict = tools.iter().any(|tool| tool.is_strict);
        is_strict.then(|| CallSyntax { lark, schema: self.schema_of(tools, |tool| tool.is_strict) })
    }

    /// Schema of a call; arguments follow the schema of their tool where `is_held` says so, and are any object elsewhere.
    fn schema_of(self, tools: &[Tool], is_held: impl Fn(&Tool) -> bool) -> String {
        let (mut calls, mut definitions) = (Vec::new(), Map::new());
        for (n, tool) in tools.iter().enumerate() {
            let function: Value = serde_json::from_str(&tool.function).unwrap_or_default();
            let mut parameters =
                function.get("parameters").filter(|schema| is_held(tool) && !schema.is_null()).cloned();
            let parameters = parameters.get_or_insert_with(|| json!({"type": "object"}));
            // A reference within a tool's schema points into that schema.
            point_into(parameters, &format!("#/$defs/tool{n}"));
            definitions.insert(format!("tool{n}"), parameters.take());
            calls.push(json!({
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    (self.arguments()): {"$ref": format!("#/$defs/tool{n}")},
                },
                "required": ["name", self.arguments()],
                "additionalProperties": false,
            }));
        }
        json!({"anyOf": calls, "$defs": definitions}).to_string()
    }
}

/// Prefixes all references in a schema with `root`.
fn point_into(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(target) if name == "$ref" => {
                        if let Some(path) = target.strip_prefix('#') {
                            *target = format!("{root}{path}");
                        }
                    }
                    field => point_into(field, root),
                }
            }
        }
        Value::Array(entries) => entries.iter_mut().for_each(|entry| point_into(entry, root)),
        _ => {}
    }
}

/// Part of an answer that may call tools.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Text.
    Text(String),
    /// A complete call.
    Call {
        /// Name of the tool.
        name: String,
        /// Arguments as JSON text.
        arguments: String,
    },
}

/// Finds the calls in a growing answer. Text that may become a call is held back, and released if it does not. Memory
/// is bounded by the answer.
#[derive(Debug)]
pub struct ToolReader {
    style: ToolStyle,
    /// Names of the tools; a call of another tool is text.
    names: Vec<String>,
    /// Calls still allowed.
    left: usize,
    held: String,
    /// Bytes of `held` that were searched for the end of a call.
    searched: usize,
    state: CallState,
    /// Text before the current call: whitespace and the opening mark, which are part of the answer if no call
    /// follows.
    before: String,
    /// True if there was a call.
    called: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallState {
    /// Only whitespace so far.
    Begin,
    Text,
    /// After the opening mark of a call.
    Call,
}

impl ToolReader {
    /// Reads an answer that may call these tools, at most `most` times. With `must_call` the answer begins inside a
    /// call.
    pub fn new(style: ToolStyle, tools: &[Tool], most: usize, must_call: bool) -> Self {
        let names = tools.iter().map(|tool| tool.name.clone()).collect();
        let state = if must_call { CallState::Call } else { CallState::Begin };
        Self { style, names, left: most, held: String::new(), searched: 0, state, before: String::new(), called: false }
    }

    /// Appends a piece of the answer.
    pub fn push(&mut self, piece: &str, out: &mut Vec<Said>) {
        self.held.push_str(piece);
        match self.style {
            ToolStyle::Hermes => while self.hermes(out) {},
            ToolStyle::Llama => self.llama(out),
        }
    }

    /// Ends the answer: a call without its closing mark counts as a call.
    pub fn finish(&mut self, out: &mut Vec<Said>) {
        let held = std::mem::take(&mut self.held);
        let calls = if self.state == CallState::Call { self.calls(&held) } else { None };
        let before = std::mem::take(&mut self.before);
        self.state = CallState::Text;
        match calls {
            Some(calls) => self.take(calls, out),
            // Whitespace after a call belongs to it.
            None if self.called && before.is_empty() && held.trim().is_empty() => {}
            None => text(before + &held, out),
        }
    }

    /// Runs one step; returns true if there may be another.
    fn hermes(&mut self, out: &mut Vec<Said>) -> bool {
        if self.state == CallState::Call {
            // Arguments may be long, so no part is searched twice.
            let from = self.held.floor_char_boundary(self.searched.saturating_sub(END.len()));
            let Some(at) = self.held.get(from..).and_then(|new| new.find(END)).map(|at| from + at) else {
                self.searched = self.held.len();
                return false;
            };
            self.searched = 0;
            let (inside, after) = (self.held.get(..at).unwrap_or_default(), self.held.get(at + END.len()..));
            let after = after.unwrap_or_default();
            let calls = self.calls(inside);
            let (whole, after) = (format!("{}{inside}{END}", self.before), after.to_owned());
            match calls {
                Some(calls) => self.take(calls, out),
                None => text(whole, out),
            }
            self.before.clear();
            self.held = after;
            self.state = CallState::Text;
            return true;
        }
        if let Some((before, after)) = self.held.split_once(BEGIN) {
            // Whitespace before a call belongs to it.
            let (said, blanks) = before.split_at(before.trim_end().len());
            text(said.to_owned(), out);
            self.before = format!("{blanks}{BEGIN}");
            self.held = after.to_owned();
            self.state = CallState::Call;
            return true;
        }
        // Whitespace that may precede a call, and a partial opening mark, are held back.
        let settled = self.held.len() - partial_opening(&self.held);
        let settled = self.held.get(..settled).map_or(0, |text| text.trim_end().len());
        let rest = self.held.split_off(settled);
        text(std::mem::replace(&mut self.held, rest), out);
        false
    }

    fn llama(&mut self, out: &mut Vec<Said>) {
        if self.state == CallState::Begin {
            match self.held.trim_start().chars().next() {
                None => return,
                Some('{') => self.state = CallState::Call,
                Some(_) => self.state = CallState::Text,
            }
        }
        if self.state == CallState::Text {
            text(std::mem::take(&mut self.held), out);
        }
    }

    fn take(&mut self, calls: Vec<Said>, out: &mut Vec<Said>) {
        let taken = calls.len().min(self.left);
        self.left -= taken;
        self.called = true;
        out.extend(calls.into_iter().take(taken));
    }

    /// Parses a text as calls; `None` if it is anything else.
    fn calls(&self, written: &str) -> Option<Vec<Said>> {
        let mut calls = Vec::new();
        let mut rest = written.trim();
        while !rest.is_empty() {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            let mut call = values.next()?.ok()?;
            let at = values.byte_offset();
            let name = call.get("name")?.as_str()?.to_owned();
            let key = if call.get(self.style.arguments()).is_some() { self.style.arguments() } else { "arguments" };
            let arguments = match call.get_mut(key).map(Value::take) {
                None | Some(Value::Null) => "{}".to_owned(),
                Some(Value::String(text)) => text,
                Some(arguments) => arguments.to_string(),
            };
            if !self.names.contains(&name) {
                return None;
            }
            calls.push(Said::Call { name, arguments });
            rest = rest.get(at..)?.trim_start().trim_start_matches(';').trim_start();
        }
        (!calls.is_empty()).then_some(calls)
    }
}

fn text(text: String, out: &mut Vec<Said>) {
    if !text.is_empty() {
        out.push(Said::Text(text));
    }
}

/// Bytes at the end of a text that may become an opening mark.
fn partial_opening(text: &str) -> usize {
    (1..BEGIN.len()).rev().find(|n| BEGIN.get(..*n).is_some_and(|begun| text.ends_with(begun))).unwrap_or(0)
}

/// Writes JSON like Python's `json.dumps(ensure_ascii=False)`.
pub(super) fn python_json(value: &impl Serialize, indent: Option<usize>) -> serde_json::Result<String> {
    struct Spaced;
    impl Formatter for Spaced {
        fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, to: &mut W, first: bool) -> std::io::Result<()> {
            if first { Ok(()) } else { to.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, to: &mut W, first: bool) -> std::io::Result<()> {
            if first { Ok(()) } else { to.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, to: &mut W) -> std::io::Result<()> {
            to.write_all(b": ")
        }
    }
    let mut out = Vec::new();
    match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced))?,
        Some(indent) => {
            let indent = vec![b' '; indent];
            let pretty = PrettyFormatter::with_indent(&indent);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty))?;
        }
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tool(name: &str, parameters: &str) -> Tool {
        Tool {
            name: name.into(),
            function: format!(r#"{{"name":"{name}","parameters":{parameters}}}"#),
            is_strict: false,
        }
    }

    fn tools() -> [Tool; 2] {
        [tool("time", "{}"), tool("weather", "{}")]
    }

    /// Result of an answer that arrives in these pieces; adjacent texts are joined.
    fn read<'a>(style: ToolStyle, most: usize, must: bool, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Said> {
        let mut reader = ToolReader::new(style, &tools(), most, must);
        let mut out = Vec::new();
        pieces.into_iter().for_each(|piece| reader.push(piece, &mut out));
        reader.finish(&mut out);
        let mut joined: Vec<Said> = Vec::new();
        for said in out {
            match (joined.last_mut(), said) {
                (Some(Said::Text(before)), Said::Text(text)) => before.push_str(&text),
                (_, said) => joined.push(said),
            }
        }
        joined
    }

    fn call(name: &str, arguments: &str) -> Said {
        Said::Call { name: name.into(), arguments: arguments.into() }
    }

    fn said(text: &str) -> Said {
        Said::Text(text.into())
    }

    #[test]
    fn calls_are_found_wherever_an_answer_is_cut() {
        let hermes = "Let me see.\n\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>\n\
            <tool_call>{\"name\": \"time\", \"arguments\": {}}</tool_call>";
        let expected = [said("Let me see."), call("weather", r#"{"city":"Köln"}"#), call("time", "{}")];
        let llama =
            " {\"name\": \"weather\", \"parameters\": {\"city\": \"Köln\"}}; {\"name\": \"time\", \"parameters\": {}}";
        for at in (0..hermes.len()).filter(|at| hermes.is_char_boundary(*at)) {
            let (a, b) = hermes.split_at(at);
            assert_eq!(read(ToolStyle::Hermes, 9, false, [a, b]), expected, "{at}");
        }
        for at in (0..llama.len()).filter(|at| llama.is_char_boundary(*at)) {
            let (a, b) = llama.split_at(at);
            assert_eq!(read(ToolStyle::Llama, 9, false, [a, b]), expected[1..], "{at}");
        }
        assert_eq!(read(ToolStyle::Hermes, 1, false, [hermes]), expected[..2], "no more than may be");
        assert_eq!(read(ToolStyle::Llama, 1, false, [llama]), expected[1..2]);
    }

    #[test]
    fn what_is_no_call_is_text_to_the_last_letter() {
        for text in [
            "plain",
            "a < b and <tool> is no <tool_cal",
            "<tool_call>not JSON</tool_call> after",
            "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": \"time\", ",
            "blanks at the end \n",
            "",
        ] {
            let expected: Vec<_> = (!text.is_empty()).then(|| said(text)).into_iter().collect();
            assert_eq!(read(ToolStyle::Hermes, 9, false, [text]), expected, "{text:?}");
        }
        for text in ["plain", "{\"answer\": 5}", "{ and no more", "{\"name\": \"other\", \"parameters\": {}}"] {
            assert_eq!(read(ToolStyle::Llama, 9, false, [text]), [said(text)], "{text:?}");
        }
    }

    #[test]
    fn a_call_whose_end_was_left_out_is_one() {
        let open = "<tool_call>\n{\"name\": \"time\", \"arguments\": {\"zone\": \"UTC\"}}";
        assert_eq!(read(ToolStyle::Hermes, 9, false, [open]), [call("time", r#"{"zone":"UTC"}"#)]);
        let inside = "{\"name\": \"time\", \"arguments\": {\"zone\": \"UTC\"}}";
        assert_eq!(read(ToolStyle::Hermes, 1, true, [inside]), [call("time", r#"{"zone":"UTC"}"#)]);
    }

    #[test]
    fn a_forced_call_has_a_schema_whose_references_hold() {
        let parameters = r##"{"type":"object","properties":{"a":{"$ref":"#/$defs/b"},"self":{"$ref":"#"}},"$defs":{"b":{"type":"integer"}}}"##;
        let schema: Value = serde_json::from_str(&ToolStyle::Hermes.schema(&[tool("f", parameters)])).unwrap();
        assert_eq!(schema["anyOf"][0]["properties"]["arguments"]["$ref"], "#/$defs/tool0");
        assert_eq!(schema["$defs"]["tool0"]["properties"]["a"]["$ref"], "#/$defs/tool0/$defs/b");
        assert_eq!(schema["$defs"]["tool0"]["properties"]["self"]["$ref"], "#/$defs/tool0");
        let schema =
            ToolStyle::Llama.schema(&[Tool { name: "g".into(), function: r#"{"name":"g"}"#.into(), is_strict: false }]);
        assert!(
            schema.contains(r#""parameters":{"$ref""#) && schema.contains(r#""tool0":{"type":"object"}"#),
            "{schema}"
        );
    }

    #[test]
    fn json_is_written_as_models_were_taught() {
        let value: Value = serde_json::from_str(r#"{"b":[1,"<é>"],"a":{}}"#).unwrap();
        assert_eq!(python_json(&value, None).unwrap(), r#"{"b": [1, "<é>"], "a": {}}"#);
        assert_eq!(python_json(&value, Some(2)).unwrap(), "{\n  \"b\": [\n    1,\n    \"<é>\"\n  ],\n  \"a\": {}\n}");
    }

    proptest! {
        /// Pieces of any size give the same result, and without calls no text is lost.
        #[test]
        fn cuts_change_nothing(pieces in proptest::collection::vec(prop_oneof![
            Just("<tool_call>"), Just("</tool_call>"), Just("<tool"), Just("_call>"), Just("{\"name\": \"time\"}"),
            Just(" "), Just("x"), Just("<"), Just("{"), Just("\n"),
        ], 0..12)) {
            let whole = pieces.concat();
            for style in [ToolStyle::Hermes, ToolStyle::Llama] {
                let read_whole = read(style, 99, false, [whole.as_str()]);
                prop_assert_eq!(&read(style, 99, false, pieces.iter().copied()), &read_whole);
                if let [Said::Text(text)] = &read_whole[..] {
                    prop_assert_eq!(text, &whole);
                }
            }
        }
    }
}
