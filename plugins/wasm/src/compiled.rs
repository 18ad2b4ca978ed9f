//! A compiled module: its version of the ABI, its imports and the hooks that it has, all checked when it is loaded.

use wasmtime::{ExternType, FuncType, InstancePre, Module, Val, ValType};

use crate::abi::wasi;
use crate::failure::{StartError, text_of};
use crate::host::Host;
use crate::state::State;

/// Prefix of the export that names the version of the ABI.
const VERSION: &str = "proxy_abi_version_";
/// Versions that there are.
const VERSIONS: [&str; 2] = ["0_2_0", "0_2_1"];
/// Most bytes of a module.
pub(crate) const MAX_MODULE: u64 = 64 << 20;

/// Module that can be instantiated.
pub(crate) struct Compiled {
    pre: InstancePre<State>,
    digest: [u8; 32],
    hooks: Hooks,
}

/// Hooks of which the gateway must know before a request comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hooks {
    pub(crate) request_body: bool,
    pub(crate) response_headers: bool,
    pub(crate) response_body: bool,
    /// One of `proxy_on_done`, `proxy_on_log` and `proxy_on_delete`.
    pub(crate) end: bool,
}

impl Compiled {
    /// Compiles and checks a module.
    pub(crate) fn new(host: &Host, bytes: &[u8], digest: [u8; 32]) -> Result<Self, StartError> {
        let wrong = |message: String| StartError::Module(message);
        if !bytes.starts_with(b"\0asm") {
            return Err(wrong("found a file that is no WebAssembly; expected a module in its binary form".to_owned()));
        }
        let module = Module::from_binary(host.engine(), bytes)
            .map_err(|e| wrong(format!("cannot be compiled: {}", text_of(&e))))?;
        check_version(&module)?;
        check_exports(&module)?;
        let mut linker = host.linker().clone();
        // A module may import a function twice.
        linker.allow_shadowing(true);
        for import in module.imports() {
            let ExternType::Func(kind) = import.ty() else {
                let message = format!(
                    "it imports `{}.{}`, which is no function; expected functions of proxy-wasm and WASI alone",
                    import.module(),
                    import.name()
                );
                return Err(wrong(message));
            };
            if import.module() == wasi::MODULE && wasi::is_stub(import.name()) {
                let name = import.name();
                let stub = stub(wasi::errno_of(name));
                linker
                    .func_new(wasi::MODULE, name, kind.clone(), stub)
                    .map_err(|e| wrong(format!("cannot import `{name}`: {}", text_of(&e))))?;
            } else if !crate::abi::is_known(import.module(), import.name()) {
                let message = format!(
                    "it imports `{}.{}`, which is no function of proxy-wasm 0.2.1 or WASI preview 1: build the module for \
                     `wasm32-wasip1` with an SDK of this ABI",
                    import.module(),
                    import.name()
                );
                return Err(wrong(message));
            }
        }
        let pre = linker.instantiate_pre(&module).map_err(|e| wrong(format!("cannot be linked: {}", text_of(&e))))?;
        let has = |name: &str| module.get_export(name).is_some();
        let hooks = Hooks {
            request_body: has("proxy_on_request_body"),
            response_headers: has("proxy_on_response_headers"),
            response_body: has("proxy_on_response_body"),
            end: has("proxy_on_done") || has("proxy_on_log") || has("proxy_on_delete"),
        };
        Ok(Self { pre, digest, hooks })
    }

    pub(crate) fn pre(&self) -> &InstancePre<State> {
        &self.pre
    }

    /// SHA-256 of the module's bytes.
    pub(crate) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    pub(crate) fn hooks(&self) -> Hooks {
        self.hooks
    }
}

/// Function of WASI that says that there is nothing of its kind here.
fn stub(
    errno: i32,
) -> impl Fn(wasmtime::Caller<'_, State>, &[Val], &mut [Val]) -> wasmtime::Result<()> + Send + Sync + 'static {
    move |_, _, results| {
        for result in results {
            *result = Val::I32(errno);
        }
        Ok(())
    }
}

fn check_version(module: &Module) -> Result<(), StartError> {
    let versions = || module.exports().filter_map(|export| export.name().strip_prefix(VERSION));
    if versions().any(|version| VERSIONS.contains(&version)) {
        return Ok(());
    }
    let found = versions().next().map_or_else(
        || format!("no export `{VERSION}*`, so it is no proxy-wasm module"),
        |version| format!("proxy-wasm ABI {}", version.replace('_', ".")),
    );
    Err(StartError::Module(format!("found {found}; expected a module of proxy-wasm ABI 0.2.0 or 0.2.1")))
}

/// Hooks and what each takes and returns.
const SIGNATURES: [(&str, usize, usize); 17] = [
    ("proxy_on_memory_allocate", 1, 1),
    ("proxy_on_context_create", 2, 0),
    ("proxy_on_vm_start", 2, 1),
    ("proxy_on_configure", 2, 1),
    ("proxy_on_request_headers", 3, 1),
    ("proxy_on_request_body", 3, 1),
    ("proxy_on_response_headers", 3, 1),
    ("proxy_on_response_body", 3, 1),
    ("proxy_on_http_call_response", 5, 0),
    ("proxy_on_done", 1, 1),
    ("proxy_on_log", 1, 0),
    ("proxy_on_delete", 1, 0),
    ("malloc", 1, 1),
    ("_initialize", 0, 0),
    ("_start", 0, 0),
    ("proxy_on_request_trailers", 2, 1),
    ("proxy_on_response_trailers", 2, 1),
];

fn check_exports(module: &Module) -> Result<(), StartError> {
    let wrong = |message: String| Err(StartError::Module(message));
    if !matches!(module.get_export("memory"), Some(ExternType::Memory(memory)) if !memory.is_64() && !memory.is_shared())
    {
        return wrong("it exports no memory of 32 bits named `memory`".to_owned());
    }
    for (name, parameters, results) in SIGNATURES {
        let is_right = |kind: &FuncType| {
            let all_i32 = kind.params().chain(kind.results()).all(|value| matches!(value, ValType::I32));
            all_i32 && kind.params().len() == parameters && kind.results().len() == results
        };
        match module.get_export(name) {
            None => {}
            Some(ExternType::Func(kind)) if is_right(&kind) => {}
            Some(_) => {
                return wrong(format!(
                    "its `{name}` is not that of proxy-wasm 0.2.1: expected a function of {parameters} parameters and \
                     {results} results, all i32"
                ));
            }
        }
    }
    if module.get_export("proxy_on_memory_allocate").is_none() && module.get_export("malloc").is_none() {
        return wrong(
            "it exports neither `proxy_on_memory_allocate` nor `malloc`, without which it can be given nothing"
                .to_owned(),
        );
    }
    Ok(())
}
