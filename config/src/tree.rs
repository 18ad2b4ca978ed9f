//! YAML text as a tree of nodes with positions. Scalars are resolved as in YAML 1.2's core schema (`no` and `on` are
//! strings), and anchors are expanded within a bound. Of YAML 1.1 the merge key `<<` is kept, which files with anchors need.
//! Text with two readings is refused: duplicate keys, tags.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};

/// Deepest nesting.
const MAX_DEPTH: usize = 64;
/// Most nodes, those of expanded anchors included.
pub(crate) const MAX_NODES: usize = 200_000;
const TOO_MANY: &str =
    "the document, its anchors expanded, has more than 200,000 values; expected fewer: split it, or use fewer aliases";

/// Key whose mappings are merged into the one around it (YAML 1.1, type `merge`).
const MERGE: &str = "<<";

/// Position in a file: line and column from 1, a width in characters, and the number of the file among those of the
/// configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
    pub(crate) width: usize,
    pub(crate) file: usize,
}

impl Place {
    fn of(span: Span) -> Self {
        let width = if span.start.line() == span.end.line() { span.len() } else { 1 };
        Self { line: span.start.line(), column: span.start.col() + 1, width, file: 0 }
    }
}

/// Value with its position.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// Value of a node.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

/// Key of a mapping, with its position.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) place: Place,
}

/// Fault of a text as YAML.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) place: Place,
    pub(crate) message: String,
}

impl Node {
    /// Description of the value for messages.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Null => "nothing".into(),
            Value::Bool(b) => format!("`{b}`"),
            Value::Int(n) => format!("the number {n}"),
            Value::Float(n) => format!("the number {n}"),
            Value::String(s) if s.chars().count() <= 40 => format!("`{s}`"),
            Value::String(_) => "a string".into(),
            Value::Sequence(_) => "a list".into(),
            Value::Mapping(_) => "a mapping".into(),
        }
    }

    /// Child under `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// Entry at `index`.
    pub(crate) fn at(&self, index: usize) -> Option<&Node> {
        match &self.value {
            Value::Sequence(items) => items.get(index),
            _ => None,
        }
    }

    /// Sets the number of the file in the node and all nodes in it.
    pub(crate) fn set_file(&mut self, file: usize) {
        self.place.file = file;
        match &mut self.value {
            Value::Sequence(items) => items.iter_mut().for_each(|item| item.set_file(file)),
            Value::Mapping(entries) => {
                for (key, node) in entries {
                    key.place.file = file;
                    node.set_file(file);
                }
            }
            _ => {}
        }
    }

    /// Removes the keys of the mapping that begin with `x-`: they hold anchors, which were expanded.
    pub(crate) fn remove_extensions(&mut self) {
        if let Value::Mapping(entries) = &mut self.value {
            entries.retain(|(key, _)| !key.name.starts_with("x-"));
        }
    }

    /// Converts to JSON, for decoding.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(b) => (*b).into(),
            Value::Int(n) => (*n).into(),
            Value::Float(n) => (*n).into(),
            Value::String(s) => s.as_str().into(),
            Value::Sequence(items) => items.iter().map(Node::to_json).collect(),
            Value::Mapping(entries) => entries
                .iter()
                .map(|(key, node)| (key.name.clone(), node.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}

/// Sequence or mapping whose end was not read yet.
struct Open {
    node: Node,
    anchor: usize,
    key: Option<Key>,
}

struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    root: Option<Node>,
}

fn wrong<T>(place: Place, message: impl Into<String>) -> Result<T, SyntaxError> {
    Err(SyntaxError { place, message: message.into() })
}

/// Refuses a tag. Types come from the schema: a tag would ask for another one and have no effect.
fn refuse_tag(place: Place, span: Span, tag: Option<&Tag>) -> Result<(), SyntaxError> {
    let Some(tag) = tag else { return Ok(()) };
    let place = span.tag_span().map_or(place, Place::of);
    let message = format!(
        "unexpected YAML tag `{}`; expected a value without a tag: remove it, and put text that looks like a number in \
         quotes",
        tag.original()
    );
    wrong(place, message)
}

/// Parses one document.
pub(crate) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let mut builder = Builder { open: Vec::new(), anchors: HashMap::new(), nodes: 0, root: None };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| SyntaxError {
            place: Place { line: e.marker().line(), column: e.marker().col() + 1, width: 1, file: 0 },
            message: format!("invalid YAML: {}; expected one document of YAML 1.2", e.info()),
        })?;
        let place = Place::of(span);
        refuse_tag(place, span, event.tag())?;
        match event {
            Event::DocumentStart(..) if builder.root.is_some() => {
                return wrong(place, "`---` begins a second document; expected one: remove it, or split the file");
            }
            Event::Scalar(text, style, anchor, _) => {
                let node = Node { place, value: scalar(&text, style) };
                builder.add(node, anchor)?;
            }
            Event::SequenceStart(_, anchor, _) => {
                builder.begin(Node { place, value: Value::Sequence(Vec::new()) }, anchor)?
            }
            Event::MappingStart(_, anchor, _) => {
                builder.begin(Node { place, value: Value::Mapping(Vec::new()) }, anchor)?
            }
            Event::SequenceEnd | Event::MappingEnd => builder.end()?,
            Event::UnresolvedAlias(name) => {
                return wrong(
                    place,
                    format!("unknown anchor `{name}`; expected one that is defined before: `&{name}`"),
                );
            }
            Event::Alias(anchor) => {
                let Some(node) = builder.anchors.get(&anchor) else {
                    return wrong(
                        place,
                        "alias inside of its own anchor; expected one that ends before: write the value out",
                    );
                };
                // The values of an alias are counted before they are copied: ten lines of anchors can name a billion.
                builder.nodes = builder.nodes.saturating_add(size(node));
                if builder.nodes > MAX_NODES {
                    return wrong(place, TOO_MANY);
                }
                let mut node = node.clone();
                node.place = place;
                builder.add(node, 0)?;
            }
            _ => {}
        }
    }
    Ok(builder.root.unwrap_or(Node { place: Place { line: 1, column: 1, width: 1, file: 0 }, value: Value::Null }))
}

impl Builder {
    fn begin(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        if self.open.len() >= MAX_DEPTH {
            return wrong(node.place, format!("nested deeper than {MAX_DEPTH} levels; expected at most {MAX_DEPTH}"));
        }
        self.open.push(Open { node, anchor, key: None });
        Ok(())
    }

    fn end(&mut self) -> Result<(), SyntaxError> {
        match self.open.pop() {
            Some(open) => self.add(merged(open.node)?, open.anchor),
            None => Ok(()),
        }
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        self.nodes = self.nodes.saturating_add(1);
        if self.nodes > MAX_NODES {
            return wrong(node.place, TOO_MANY);
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut parent.node.value, parent.key.take()) {
            (Value::Sequence(items), _) => items.push(node),
            (Value::Mapping(entries), Some(key)) => entries.push((key, node)),
            (Value::Mapping(entries), None) => {
                let name = match &node.value {
                    Value::String(name) => name.clone(),
                    Value::Bool(b) => b.to_string(),
                    Value::Int(n) => n.to_string(),
                    _ => {
                        let found = node.describe();
                        return wrong(node.place, format!("found {found} as a key; expected a word: put it in quotes"));
                    }
                };
                if let Some((first, _)) = entries.iter().find(|(key, _)| key.name == name) {
                    let line = first.place.line;
                    return wrong(
                        node.place,
                        format!("duplicate key `{name}`, first on line {line}: keep one of them"),
                    );
                }
                parent.key = Some(Key { name, place: node.place });
            }
            _ => {}
        }
        Ok(())
    }
}

/// Puts the keys of `<<` into the mapping that has it. The mapping's own keys win, then those of the first of several
/// mappings. Nothing is copied: the aliases were counted and expanded before.
fn merged(mut node: Node) -> Result<Node, SyntaxError> {
    let Value::Mapping(entries) = &mut node.value else { return Ok(node) };
    let Some(at) = entries.iter().position(|(key, _)| key.name == MERGE) else { return Ok(node) };
    let (_, merge) = entries.remove(at);
    let parts = match merge.value {
        Value::Sequence(items) => items,
        value => vec![Node { value, ..merge }],
    };
    let mut known: HashSet<String> = entries.iter().map(|(key, _)| key.name.clone()).collect();
    for part in parts {
        let found = part.describe();
        let Value::Mapping(more) = part.value else {
            let message = format!("found {found} for the merge key `<<`; expected a mapping, or a list of mappings");
            return wrong(part.place, message);
        };
        entries.extend(more.into_iter().filter(|(key, _)| known.insert(key.name.clone())));
    }
    Ok(node)
}

/// Number of values in a node. Its depth is at most `MAX_DEPTH` times its anchors, which were counted before.
pub(crate) fn size(node: &Node) -> usize {
    match &node.value {
        Value::Sequence(items) => items.iter().map(size).sum::<usize>() + 1,
        Value::Mapping(entries) => entries.iter().map(|(_, node)| size(node)).sum::<usize>() + 1,
        _ => 1,
    }
}

/// YAML 1.2.2, section 10.3.2.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.bytes().all(|b| b.is_ascii_digit())
        && let Ok(n) = text.strip_prefix('+').unwrap_or(text).parse()
    {
        return Value::Int(n);
    }
    let looks_like_a_float = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'));
    match text.parse::<f64>() {
        Ok(n) if looks_like_a_float && n.is_finite() => Value::Float(n),
        _ => Value::String(text.to_owned()),
    }
}
