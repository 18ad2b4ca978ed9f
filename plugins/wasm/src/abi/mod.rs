//! Functions of the host that modules import. Each checks every address that it is given, copies at most a bounded number of
//! bytes, and answers by a status of the ABI; none waits and none panics.

mod data;
mod headers;
mod memory;
mod requests;
pub(crate) mod wasi;

use wasmtime::{Caller, Engine, Linker};

use crate::state::{Level, ROOT, State};
use memory::{read, write_u32, write_u64};

/// Module of the functions of proxy-wasm.
const MODULE: &str = "env";

/// Status of a call of the host (ABI 0.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    /// Done.
    Ok = 0,
    /// No such entry.
    NotFound = 1,
    /// An argument means nothing here.
    BadArgument = 2,
    /// A map cannot be read.
    SerializationFailure = 3,
    /// An address is not that of the module's memory.
    InvalidMemoryAccess = 6,
    /// The queue is empty.
    Empty = 7,
    /// Another number of change was expected.
    CasMismatch = 8,
    /// The module gave no memory, or a bound is reached.
    InternalFailure = 10,
    /// There is no such function here.
    Unimplemented = 12,
}

/// Result of a function of the host.
type Done = Result<(), Status>;
type Host<'c> = Caller<'c, State>;

fn status(done: Done) -> u32 {
    match done {
        Ok(()) => Status::Ok as u32,
        Err(status) => status as u32,
    }
}

/// Names of all functions of proxy-wasm.
const NAMES: [&str; 39] = [
    "proxy_log",
    "proxy_get_log_level",
    "proxy_get_current_time_nanoseconds",
    "proxy_set_tick_period_milliseconds",
    "proxy_get_property",
    "proxy_set_property",
    "proxy_get_buffer_bytes",
    "proxy_get_buffer_status",
    "proxy_set_buffer_bytes",
    "proxy_get_header_map_size",
    "proxy_get_header_map_pairs",
    "proxy_set_header_map_pairs",
    "proxy_get_header_map_value",
    "proxy_add_header_map_value",
    "proxy_replace_header_map_value",
    "proxy_remove_header_map_value",
    "proxy_continue_stream",
    "proxy_close_stream",
    "proxy_send_local_response",
    "proxy_http_call",
    "proxy_grpc_call",
    "proxy_grpc_stream",
    "proxy_grpc_send",
    "proxy_grpc_cancel",
    "proxy_grpc_close",
    "proxy_get_status",
    "proxy_get_shared_data",
    "proxy_set_shared_data",
    "proxy_register_shared_queue",
    "proxy_resolve_shared_queue",
    "proxy_enqueue_shared_queue",
    "proxy_dequeue_shared_queue",
    "proxy_define_metric",
    "proxy_record_metric",
    "proxy_increment_metric",
    "proxy_get_metric",
    "proxy_call_foreign_function",
    "proxy_set_effective_context",
    "proxy_done",
];

/// True for a function that modules may import.
pub(crate) fn is_known(module: &str, name: &str) -> bool {
    match module {
        MODULE => NAMES.contains(&name),
        wasi::MODULE => wasi::is_there(name),
        _ => false,
    }
}

/// Linker with all functions of the host but WASI's stubs.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasi::add(&mut linker)?;
    headers::add(&mut linker)?;
    data::add(&mut linker)?;
    requests::add(&mut linker)?;
    linker.func_wrap(MODULE, "proxy_log", |mut host: Host<'_>, level: u32, at: u32, size: u32| {
        status(log(&mut host, level, at, size))
    })?;
    linker.func_wrap(MODULE, "proxy_get_log_level", |mut host: Host<'_>, to: u32| {
        status(write_u32(&mut host, to, log_level()))
    })?;
    linker.func_wrap(MODULE, "proxy_get_current_time_nanoseconds", |mut host: Host<'_>, to: u32| {
        status(write_u64(&mut host, to, wasi::now()))
    })?;
    linker.func_wrap(MODULE, "proxy_set_effective_context", |mut host: Host<'_>, id: u32| {
        let state = host.data_mut();
        let is_known = id == ROOT || state.contexts.contains_key(&id);
        if is_known {
            state.current = id;
        }
        status(if is_known { Ok(()) } else { Err(Status::BadArgument) })
    })?;
    // A context ends with its exchange, whether the module waits for more or not.
    linker.func_wrap(MODULE, "proxy_done", |_: Host<'_>| status(Ok(())))?;
    absent(&mut linker)?;
    Ok(linker)
}

fn log(host: &mut Host<'_>, level: u32, at: u32, size: u32) -> Done {
    let level = Level::of(level).ok_or(Status::BadArgument)?;
    // What is cut off need not be copied, but must be the module's.
    let message = read(host, at, size)?;
    let message = message.get(..crate::state::MAX_MESSAGE.min(message.len())).unwrap_or_default().to_vec();
    host.data_mut().log(level, &message);
    Ok(())
}

/// Least level that is logged.
fn log_level() -> u32 {
    use tracing::Level;
    let levels = [Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN];
    let enabled = [
        tracing::enabled!(Level::TRACE),
        tracing::enabled!(Level::DEBUG),
        tracing::enabled!(Level::INFO),
        tracing::enabled!(Level::WARN),
    ];
    let first = levels.iter().zip(enabled).position(|(_, is_enabled)| is_enabled);
    first.and_then(|at| u32::try_from(at).ok()).unwrap_or(4)
}

/// Notes a function that there is not, which the failure that may come of it names.
fn unimplemented(mut host: Host<'_>, name: &'static str) -> u32 {
    host.data_mut().refused = Some(name);
    Status::Unimplemented as u32
}

/// Functions that the ABI has and the gateway has not.
fn absent(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    type A = u32;
    linker.func_wrap(MODULE, "proxy_set_tick_period_milliseconds", |host: Host<'_>, period: A| {
        // No ticks are what there is.
        if period == 0 { status(Ok(())) } else { unimplemented(host, "proxy_set_tick_period_milliseconds") }
    })?;
    linker.func_wrap(MODULE, "proxy_close_stream", |host: Host<'_>, _: A| unimplemented(host, "proxy_close_stream"))?;
    linker.func_wrap(
        MODULE,
        "proxy_grpc_call",
        |host: Host<'_>, _: A, _: A, _: A, _: A, _: A, _: A, _: A, _: A, _: A, _: A, _: A, _: A| {
            unimplemented(host, "proxy_grpc_call")
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_grpc_stream",
        |host: Host<'_>, _: A, _: A, _: A, _: A, _: A, _: A, _: A, _: A, _: A| unimplemented(host, "proxy_grpc_stream"),
    )?;
    linker.func_wrap(MODULE, "proxy_grpc_send", |host: Host<'_>, _: A, _: A, _: A, _: A| {
        unimplemented(host, "proxy_grpc_send")
    })?;
    linker.func_wrap(MODULE, "proxy_grpc_cancel", |host: Host<'_>, _: A| unimplemented(host, "proxy_grpc_cancel"))?;
    linker.func_wrap(MODULE, "proxy_grpc_close", |host: Host<'_>, _: A| unimplemented(host, "proxy_grpc_close"))?;
    linker.func_wrap(MODULE, "proxy_call_foreign_function", |host: Host<'_>, _: A, _: A, _: A, _: A, _: A, _: A| {
        unimplemented(host, "proxy_call_foreign_function")
    })?;
    Ok(())
}
