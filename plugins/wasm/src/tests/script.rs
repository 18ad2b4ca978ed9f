//! Modules of tests, written as lists of calls of the host. Each call adds its status to an output, a digit for each (`:` is 10,
//! `<` is 12), and may add the bytes that it was given; an answer shows the output.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use spillway_filter::Filter;
use spillway_filter::testing::FilterBuilder;

/// Address of the place to which the host writes an address or number, and of that of a length.
pub(super) const TO: u32 = 16;
pub(super) const TO_SIZE: u32 = 24;
/// Address of the output's length, and of the output.
const OUT_LENGTH: u32 = 32;
const OUT: u32 = 32_768;
/// Address of the first text.
const TEXTS: u32 = 1_024;

/// Argument of a call.
#[derive(Clone, Copy)]
pub(super) enum Arg<'a> {
    /// A number.
    N(i64),
    /// A number of 64 bits.
    L(i64),
    /// Address and length of a text.
    S(&'a [u8]),
    /// Places for an address and its length.
    To,
}
pub(super) use Arg::{L, N, S, To};

/// Module in the making.
#[derive(Default)]
pub(super) struct Script {
    imports: BTreeMap<String, String>,
    data: String,
    next: u32,
    functions: String,
    body: String,
}

impl Script {
    pub(super) fn new() -> Self {
        Self { next: TEXTS, ..Self::default() }
    }

    fn text(&mut self, text: &[u8]) -> u32 {
        let at = self.next;
        let escaped: String = text.iter().fold(String::new(), |mut all, byte| {
            let _ = write!(all, "\\{byte:02x}");
            all
        });
        let _ = writeln!(self.data, "(data (i32.const {at}) \"{escaped}\")");
        self.next += u32::try_from(text.len()).unwrap() + 1;
        at
    }

    fn operands(&mut self, args: &[Arg<'_>]) -> (String, String) {
        let (mut operands, mut types) = (String::new(), String::new());
        for arg in args {
            match arg {
                N(number) => {
                    let _ = write!(operands, "(i32.const {number})");
                    types.push_str(" i32");
                }
                L(number) => {
                    let _ = write!(operands, "(i64.const {number})");
                    types.push_str(" i64");
                }
                S(text) => {
                    let at = self.text(text);
                    let _ = write!(operands, "(i32.const {at})(i32.const {})", text.len());
                    types.push_str(" i32 i32");
                }
                To => {
                    let _ = write!(operands, "(i32.const {TO})(i32.const {TO_SIZE})");
                    types.push_str(" i32 i32");
                }
            }
        }
        (operands, types)
    }

    /// Calls a function of the host, and adds its status to the output.
    pub(super) fn call(mut self, name: &str, args: &[Arg<'_>]) -> Self {
        let (operands, types) = self.operands(args);
        let module = if name.starts_with("proxy_") { "env" } else { "wasi_snapshot_preview1" };
        let import = format!("(import \"{module}\" \"{name}\" (func ${name} (param {types}) (result i32)))\n");
        self.imports.insert(name.to_owned(), import);
        let _ = writeln!(self.body, "(call $status (call ${name} {operands}))");
        self
    }

    /// Adds the bytes that the last call gave.
    pub(super) fn given(self) -> Self {
        self.raw(&format!("(call $out (i32.load (i32.const {TO})) (i32.load (i32.const {TO_SIZE})))"))
    }

    /// Adds a number at `TO`, of one digit.
    pub(super) fn number(self) -> Self {
        self.raw(&format!("(call $status (i32.load (i32.const {TO})))"))
    }

    /// Instructions of a hook.
    pub(super) fn raw(mut self, text: &str) -> Self {
        self.body.push_str(text);
        self.body.push('\n');
        self
    }

    /// Ends a hook of `parameters` numbers; it returns `result`, if it returns something.
    pub(super) fn hook(mut self, name: &str, parameters: usize, result: Option<u32>) -> Self {
        let body = std::mem::take(&mut self.body);
        let types = " i32".repeat(parameters);
        let (kind, value) =
            result.map_or_else(Default::default, |n| ("(result i32)".to_owned(), format!("(i32.const {n})")));
        let _ = writeln!(self.functions, "(func (export \"{name}\") (param {types}) {kind} {body} {value})");
        self
    }

    /// Answers with the output as body.
    pub(super) fn answer(mut self, status: i64) -> Self {
        let import = "(import \"env\" \"proxy_send_local_response\" (func $proxy_send_local_response \
                      (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))\n";
        self.imports.insert("proxy_send_local_response".to_owned(), import.to_owned());
        self.raw(&format!(
            "(drop (call $proxy_send_local_response (i32.const {status}) (i32.const 0) (i32.const 0) (i32.const {OUT}) \
             (i32.load (i32.const {OUT_LENGTH})) (i32.const 0) (i32.const 0) (i32.const -1)))"
        ))
    }

    /// Other definitions of the module.
    pub(super) fn define(mut self, text: &str) -> Self {
        self.functions.push_str(text);
        self
    }

    /// Text of the module, with an allocator.
    pub(super) fn text_of(&self) -> String {
        self.with(
            "(func (export \"proxy_on_memory_allocate\") (param i32) (result i32) (global.get $heap) \
             (global.set $heap (i32.add (global.get $heap) (local.get 0))))",
        )
    }

    /// Text of the module, with this allocator.
    pub(super) fn with(&self, allocator: &str) -> String {
        let imports: String = self.imports.values().map(String::as_str).collect();
        let (data, functions) = (&self.data, &self.functions);
        format!(
            "(module {imports}
            (memory (export \"memory\") 2)
            (global $heap (mut i32) (i32.const 65536))
            (func (export \"proxy_abi_version_0_2_1\"))
            {allocator}
            (func $out (param $at i32) (param $size i32)
              (memory.copy (i32.add (i32.const {OUT}) (i32.load (i32.const {OUT_LENGTH}))) (local.get $at) (local.get $size))
              (i32.store (i32.const {OUT_LENGTH}) (i32.add (i32.load (i32.const {OUT_LENGTH})) (local.get $size))))
            (func $status (param $status i32)
              (i32.store8 (i32.const 40) (i32.add (local.get $status) (i32.const 48)))
              (call $out (i32.const 40) (i32.const 1)))
            {data} {functions})"
        )
    }
}

/// A module in a file.
pub(super) struct File {
    _folder: tempfile::TempDir,
    pub(super) path: PathBuf,
}

impl File {
    pub(super) fn of(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.wasm");
        std::fs::write(&path, wat::parse_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))).unwrap();
        Self { _folder: folder, path }
    }

    /// Configuration of a filter with this module; `more` is added.
    pub(super) fn config(&self, more: &serde_json::Value) -> serde_json::Value {
        // What is not about time has enough of it on a busy machine.
        let mut config = serde_json::json!({"module": self.path, "instances": 1, "limits": {"time": "1s"}});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    }

    pub(super) fn filter(&self, more: &serde_json::Value) -> Arc<dyn Filter> {
        FilterBuilder::new().build(&*crate::factory::factory(), &self.config(more))
    }
}

/// Filter of a module.
pub(super) fn filter(script: &Script) -> Arc<dyn Filter> {
    File::of(&script.text_of()).filter(&serde_json::json!({}))
}
