//! YAML text as a tree of nodes with positions. Scalars are resolved as in YAML 1.2's core schema (`no` and `on` are
//! strings), and anchors are expanded within a bound. Of YAML 1.1 the merge key `<<` is kept, which files with anchors need.
//! Text with two readings is refused: duplicate keys, tags.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};

/// Deepest nesting.
const MAX_DEPTH: usize = 64;
/// Most memory of the values of a configuration in bytes: half a million consumers, each with a key and limits.
pub(crate) const MAX_MEMORY: usize = 512 << 20;
/// Memory of values that aliases may copy in any document, in bytes. Ten lines of anchors can name a billion values: what
/// they copy is bounded well below what a document may hold, so that such a document costs no time either.
const FREE_COPIES: usize = 16 << 20;
/// Bytes that aliases may copy beyond that for each byte of text: defaults of some kilobytes for each line of a long list.
const COPIES_PER_BYTE: usize = 64;
/// Number of keys of a mapping above which they are looked up and not compared one after another.
const FEW_KEYS: usize = 16;

/// Key whose mappings are merged into the one around it (YAML 1.1, type `merge`).
const MERGE: &str = "<<";

/// Position in a file: line and column from 1, a width in characters, and the number of the file among those of the
/// configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) width: u32,
    pub(crate) file: u32,
}

/// Number of a position; texts that are read are shorter than 4 GiB.
fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Place {
    fn of(span: Span) -> Self {
        let width = if span.start.line() == span.end.line() { span.len() } else { 1 };
        Self { line: number(span.start.line()), column: number(span.start.col() + 1), width: number(width), file: 0 }
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
    /// Name, shared by the same keys of a document.
    pub(crate) name: Arc<str>,
    pub(crate) place: Place,
}

/// Fault of a text as YAML.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) place: Place,
    pub(crate) message: String,
}

impl Value {
    /// Type of a scalar in the words of JSON Schema.
    pub(crate) fn json_type(&self) -> Option<&'static str> {
        match self {
            Self::Bool(_) => Some("boolean"),
            Self::Int(_) | Self::Float(_) => Some("number"),
            Self::String(_) => Some("string"),
            _ => None,
        }
    }
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
            Value::Mapping(entries) => entries.iter().find(|(key, _)| *key.name == *name).map(|(_, node)| node),
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
    pub(crate) fn set_file(&mut self, file: u32) {
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
                .map(|(key, node)| (key.name.to_string(), node.to_json()))
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
    /// Keys so far, with their lines, once they are many.
    keys: HashMap<Arc<str>, u32>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    /// Names of keys so far.
    names: HashSet<Arc<str>>,
    /// Memory of the values so far, those that aliases copied included.
    memory: usize,
    /// Memory of the values that anchors and aliases copied so far.
    copied: usize,
    most_copied: usize,
    root: Option<Node>,
}

/// Value of an anchor.
struct Anchored {
    node: Node,
    size: Size,
}

/// Extent of a value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Memory in bytes.
    pub(crate) memory: usize,
    /// Levels of lists and mappings.
    depth: usize,
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
    let most_copied = FREE_COPIES.saturating_add(text.len().saturating_mul(COPIES_PER_BYTE));
    let mut builder = Builder { most_copied, ..Builder::default() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| SyntaxError {
            place: Place { line: number(e.marker().line()), column: number(e.marker().col() + 1), width: 1, file: 0 },
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
                let node = builder.copy(anchor, place)?;
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
            return too_deep(node.place);
        }
        self.open.push(Open { node, anchor, key: None, keys: HashMap::new() });
        Ok(())
    }

    fn end(&mut self) -> Result<(), SyntaxError> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let mut node = merged(open.node)?;
        match &mut node.value {
            Value::Sequence(items) => items.shrink_to_fit(),
            Value::Mapping(entries) => entries.shrink_to_fit(),
            _ => {}
        }
        self.add(node, open.anchor)
    }

    /// Copies the value of an anchor for an alias. It is counted before it is copied.
    fn copy(&mut self, anchor: usize, place: Place) -> Result<Node, SyntaxError> {
        let Some(Anchored { size, .. }) = self.anchors.get(&anchor) else {
            return wrong(place, "alias inside of its own anchor; expected one that ends before: write the value out");
        };
        let Size { memory, depth } = *size;
        if self.open.len().saturating_add(depth) > MAX_DEPTH {
            return too_deep(place);
        }
        self.count(memory, place)?;
        self.count_copy(memory, place)?;
        let node = self.anchors.get(&anchor).map(|anchored| anchored.node.clone());
        Ok(Node { place, ..node.unwrap_or(Node { place, value: Value::Null }) })
    }

    /// Counts memory of values.
    fn count(&mut self, memory: usize, place: Place) -> Result<(), SyntaxError> {
        self.memory = self.memory.saturating_add(memory);
        if self.memory > MAX_MEMORY {
            let most = MAX_MEMORY >> 20;
            return wrong(
                place,
                format!("the values of the document take more than {most} MiB; expected fewer: split it"),
            );
        }
        Ok(())
    }

    /// Counts memory of values that an anchor or alias copies.
    fn count_copy(&mut self, memory: usize, place: Place) -> Result<(), SyntaxError> {
        self.copied = self.copied.saturating_add(memory);
        if self.copied > self.most_copied {
            let most = self.most_copied >> 20;
            return wrong(
                place,
                format!(
                    "the aliases of the document copy more than {most} MiB of values; expected fewer: write some out"
                ),
            );
        }
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        self.count(own_memory(&node), node.place)?;
        if anchor > 0 {
            let size = size(&node);
            self.count_copy(size.memory, node.place)?;
            self.count(size.memory, node.place)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), size });
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut parent.node.value, parent.key.take()) {
            (Value::Sequence(items), _) => items.push(node),
            (Value::Mapping(entries), Some(key)) => entries.push((key, node)),
            (Value::Mapping(entries), None) => {
                let name: Cow<'_, str> = match &node.value {
                    Value::String(name) => name.into(),
                    Value::Bool(b) => b.to_string().into(),
                    Value::Int(n) => n.to_string().into(),
                    _ => {
                        let found = node.describe();
                        return wrong(node.place, format!("found {found} as a key; expected a word: put it in quotes"));
                    }
                };
                if entries.len() == FEW_KEYS {
                    parent.keys = entries.iter().map(|(key, _)| (key.name.clone(), key.place.line)).collect();
                }
                let known = if entries.len() < FEW_KEYS {
                    entries.iter().find(|(key, _)| *key.name == *name).map(|(key, _)| key.place.line)
                } else {
                    parent.keys.get(&*name).copied()
                };
                if let Some(line) = known {
                    return wrong(
                        node.place,
                        format!("duplicate key `{name}`, first on line {line}: keep one of them"),
                    );
                }
                let name = match self.names.get(&*name) {
                    Some(name) => name.clone(),
                    None => {
                        let name: Arc<str> = name.into();
                        self.names.insert(name.clone());
                        name
                    }
                };
                if entries.len() >= FEW_KEYS {
                    parent.keys.insert(name.clone(), node.place.line);
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
    let Some(at) = entries.iter().position(|(key, _)| *key.name == *MERGE) else { return Ok(node) };
    let (_, merge) = entries.remove(at);
    let parts = match merge.value {
        Value::Sequence(items) => items,
        value => vec![Node { value, ..merge }],
    };
    let mut known: HashSet<Arc<str>> = entries.iter().map(|(key, _)| key.name.clone()).collect();
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

fn too_deep<T>(place: Place) -> Result<T, SyntaxError> {
    wrong(place, format!("nested deeper than {MAX_DEPTH} levels; expected at most {MAX_DEPTH}"))
}

/// Memory of a node without those in it, in bytes: the node, its key, and its text.
fn own_memory(node: &Node) -> usize {
    let text = if let Value::String(text) = &node.value { text.len() } else { 0 };
    std::mem::size_of::<(Key, Node)>().saturating_add(text)
}

/// Extent of a node with those in it.
pub(crate) fn size(node: &Node) -> Size {
    let inner = |nodes: &mut dyn Iterator<Item = &Node>| {
        let none = Size { memory: own_memory(node), depth: 1 };
        nodes.map(size).fold(none, |all, one| Size {
            memory: all.memory.saturating_add(one.memory),
            depth: all.depth.max(one.depth.saturating_add(1)),
        })
    };
    match &node.value {
        Value::Sequence(items) => inner(&mut items.iter()),
        Value::Mapping(entries) => inner(&mut entries.iter().map(|(_, node)| node)),
        _ => Size { memory: own_memory(node), depth: 0 },
    }
}

/// YAML 1.2.2, section 10.3.2, but for numbers with a plus sign, which stay text.
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
    let digits = text.strip_prefix('-').unwrap_or(text);
    // `+0.02` is a difference, and would be read as the limit 0.02. No number of the language needs the sign.
    if text.starts_with('+') {
        return Value::String(text.to_owned());
    }
    if digits.bytes().all(|b| b.is_ascii_digit())
        && let Ok(n) = text.parse()
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
