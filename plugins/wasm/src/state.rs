//! State of an instance, which functions of the host read and change: its memory, its contexts, and what it may use.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{Memory, StoreLimits, StoreLimitsBuilder, TypedFunc};

use crate::context::{CallAnswer, Context};
use crate::failure::bounded;
use crate::shared::Shared;

/// Context of the filter itself; the contexts of streams come after it.
pub(crate) const ROOT: u32 = 1;
/// Most contexts of streams in an instance: each holds the headers of an exchange.
pub(crate) const MAX_CONTEXTS: usize = 10_000;
/// Longest message of a log, in bytes; the rest is cut off.
pub(crate) const MAX_MESSAGE: usize = 4 << 10;
/// Most messages of an instance in a second; others are counted.
const MAX_MESSAGES: u32 = 100;
/// Most tables and their elements: a module has a table of its functions.
const MAX_TABLES: usize = 4;
const MAX_ELEMENTS: usize = 100_000;

/// Facts of a filter, the same in all its instances.
pub(crate) struct Facts {
    /// Name in logs and of the property `plugin_name`: the file of the module.
    pub(crate) name: String,
    pub(crate) root_id: String,
    pub(crate) route: String,
    pub(crate) config: Vec<u8>,
    /// URLs of the servers that the module may call, by their names.
    pub(crate) calls: BTreeMap<String, String>,
    pub(crate) memory: usize,
    pub(crate) time: Duration,
    pub(crate) wait: Duration,
    pub(crate) shared: Arc<Shared>,
}

/// State of an instance.
pub(crate) struct State {
    pub(crate) facts: Arc<Facts>,
    pub(crate) limits: StoreLimits,
    pub(crate) memory: Option<Memory>,
    pub(crate) allocate: Option<TypedFunc<u32, u32>>,
    /// True while the module allocates for the host: nothing may then be allocated again.
    pub(crate) is_allocating: bool,
    pub(crate) contexts: HashMap<u32, Box<Context>>,
    /// Context on which functions of the host act.
    pub(crate) current: u32,
    /// Function that the module asked for and that there is not.
    pub(crate) refused: Option<&'static str>,
    pub(crate) logs: Logs,
    /// Beginnings of lines that were written to standard output and error.
    pub(crate) lines: [Vec<u8>; 2],
    /// Answer of a server, while the module is told of it.
    pub(crate) answer: Option<CallAnswer>,
    /// Number of the last call to a server.
    pub(crate) last_call: u32,
    next: u32,
}

impl State {
    pub(crate) fn new(facts: Arc<Facts>) -> Self {
        let limits = StoreLimitsBuilder::new().memory_size(facts.memory).memories(1).instances(1);
        let limits = limits.tables(MAX_TABLES).table_elements(MAX_ELEMENTS).build();
        Self {
            facts,
            limits,
            memory: None,
            allocate: None,
            is_allocating: false,
            contexts: HashMap::new(),
            current: ROOT,
            refused: None,
            logs: Logs::default(),
            lines: [Vec::new(), Vec::new()],
            answer: None,
            last_call: 0,
            next: ROOT + 1,
        }
    }

    /// Adds the context of a stream, and returns its number; `None` if there are too many.
    pub(crate) fn add(&mut self, context: Context) -> Option<u32> {
        if self.contexts.len() >= MAX_CONTEXTS {
            return None;
        }
        while self.next <= ROOT || self.contexts.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1).max(ROOT + 1);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.contexts.insert(id, Box::new(context));
        Some(id)
    }

    /// Context on which functions of the host act, if it is that of a stream.
    pub(crate) fn stream(&mut self) -> Option<&mut Context> {
        self.contexts.get_mut(&self.current).map(|context| &mut **context)
    }

    /// Writes a message of the module to the log of the gateway.
    pub(crate) fn log(&mut self, level: Level, message: &[u8]) {
        let Some(dropped) = self.logs.admit() else { return };
        let text = String::from_utf8_lossy(message.get(..MAX_MESSAGE.min(message.len())).unwrap_or_default());
        let text = bounded(&text, MAX_MESSAGE);
        let (route, module) = (self.facts.route.as_str(), self.facts.name.as_str());
        match level {
            Level::Trace => tracing::trace!(event = "wasm_log", route, module, dropped, text),
            Level::Debug => tracing::debug!(event = "wasm_log", route, module, dropped, text),
            Level::Info => tracing::info!(event = "wasm_log", route, module, dropped, text),
            Level::Warn => tracing::warn!(event = "wasm_log", route, module, dropped, text),
            Level::Error => tracing::error!(event = "wasm_log", route, module, dropped, text),
        }
    }
}

/// Level of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    /// Level of this number.
    pub(crate) fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Trace,
            1 => Self::Debug,
            2 => Self::Info,
            3 => Self::Warn,
            4 | 5 => Self::Error,
            _ => return None,
        })
    }
}

/// Rate of the messages of an instance.
#[derive(Default)]
pub(crate) struct Logs {
    second: Option<Instant>,
    count: u32,
    dropped: u64,
}

impl Logs {
    /// Admits a message, and returns the number of those that were dropped before it; `None` if it is dropped.
    fn admit(&mut self) -> Option<u64> {
        let now = Instant::now();
        if self.second.is_none_or(|second| now.duration_since(second) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.count = 0;
        }
        if self.count >= MAX_MESSAGES {
            self.dropped += 1;
            return None;
        }
        self.count += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}
