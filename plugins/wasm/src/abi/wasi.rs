//! The part of WASI preview 1 that modules of proxy-wasm use: output to the log, clocks, random numbers, no environment, no
//! arguments. Everything else answers that there is none.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use wasmtime::{Caller, Linker};

use super::memory::{slice, write, write_u32, write_u64};
use super::{Host, Status};
use crate::state::{Level, MAX_MESSAGE, State};

/// Module of the functions of WASI.
pub(crate) const MODULE: &str = "wasi_snapshot_preview1";

const SUCCESS: u32 = 0;
const BAD_FILE: i32 = 8;
const FAULT: u32 = 21;
const INVALID: u32 = 28;
const NOT_THERE: i32 = 52;
/// Most parts of a text that is written at once, and most random bytes at once.
const MAX_PARTS: u32 = 1_024;
const MAX_RANDOM: u32 = 64 << 10;

/// Functions that do something.
const THERE: [&str; 9] = [
    "fd_write",
    "clock_time_get",
    "random_get",
    "environ_sizes_get",
    "environ_get",
    "args_sizes_get",
    "args_get",
    "proc_exit",
    "sched_yield",
];

/// Functions that answer by an error.
const STUBS: [&str; 37] = [
    "clock_res_get",
    "fd_advise",
    "fd_allocate",
    "fd_close",
    "fd_datasync",
    "fd_fdstat_get",
    "fd_fdstat_set_flags",
    "fd_fdstat_set_rights",
    "fd_filestat_get",
    "fd_filestat_set_size",
    "fd_filestat_set_times",
    "fd_pread",
    "fd_prestat_dir_name",
    "fd_prestat_get",
    "fd_pwrite",
    "fd_read",
    "fd_readdir",
    "fd_renumber",
    "fd_seek",
    "fd_sync",
    "fd_tell",
    "path_create_directory",
    "path_filestat_get",
    "path_filestat_set_times",
    "path_link",
    "path_open",
    "path_readlink",
    "path_remove_directory",
    "path_rename",
    "path_symlink",
    "path_unlink_file",
    "poll_oneoff",
    "proc_raise",
    "sock_accept",
    "sock_recv",
    "sock_send",
    "sock_shutdown",
];

/// True for a function that does something.
pub(crate) fn is_there(name: &str) -> bool {
    THERE.contains(&name)
}

/// True for a function that only answers by an error.
pub(crate) fn is_stub(name: &str) -> bool {
    STUBS.contains(&name)
}

/// Error by which a stub answers.
pub(crate) fn errno_of(name: &str) -> i32 {
    // Programs look for the files that they were given until this error.
    if name.starts_with("fd_") { BAD_FILE } else { NOT_THERE }
}

/// The module has ended itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it ended itself by `proc_exit({0})`")]
pub(crate) struct Exit(pub(crate) u32);

/// Nanoseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn monotonic() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let since = START.get_or_init(Instant::now).elapsed();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn errno(done: Result<(), Status>) -> u32 {
    match done {
        Ok(()) => SUCCESS,
        Err(Status::BadArgument) => INVALID,
        Err(_) => FAULT,
    }
}

/// Adds the functions that do something.
pub(super) fn add(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "fd_write", |mut host: Host<'_>, fd: u32, parts: u32, count: u32, to: u32| match fd {
        1 | 2 => errno(print(&mut host, fd, parts, count, to)),
        _ => BAD_FILE.unsigned_abs(),
    })?;
    linker.func_wrap(MODULE, "clock_time_get", |mut host: Host<'_>, clock: u32, _: u64, to: u32| match clock {
        0 => errno(write_u64(&mut host, to, now())),
        1 => errno(write_u64(&mut host, to, monotonic())),
        _ => INVALID,
    })?;
    linker
        .func_wrap(MODULE, "random_get", |mut host: Host<'_>, at: u32, size: u32| errno(random(&mut host, at, size)))?;
    for name in ["environ_sizes_get", "args_sizes_get"] {
        linker.func_wrap(MODULE, name, |mut host: Host<'_>, count: u32, size: u32| {
            errno(write_u32(&mut host, count, 0).and_then(|()| write_u32(&mut host, size, 0)))
        })?;
    }
    for name in ["environ_get", "args_get"] {
        linker.func_wrap(MODULE, name, |_: Host<'_>, _: u32, _: u32| SUCCESS)?;
    }
    linker.func_wrap(MODULE, "sched_yield", |_: Host<'_>| SUCCESS)?;
    linker.func_wrap(MODULE, "proc_exit", |_: Caller<'_, State>, code: u32| -> wasmtime::Result<()> {
        Err(wasmtime::Error::new(Exit(code)))
    })?;
    Ok(())
}

fn random(host: &mut Host<'_>, at: u32, size: u32) -> Result<(), Status> {
    if size > MAX_RANDOM {
        return Err(Status::BadArgument);
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Status::BadArgument)?];
    rand::fill(bytes.as_mut_slice());
    write(host, at, &bytes)
}

/// Logs whole lines, and keeps the beginning of the next.
fn print(host: &mut Host<'_>, fd: u32, parts: u32, count: u32, to: u32) -> Result<(), Status> {
    if count > MAX_PARTS {
        return Err(Status::BadArgument);
    }
    let (level, line) = if fd == 1 { (Level::Info, 0) } else { (Level::Warn, 1) };
    let memory = host.data().memory.ok_or(Status::InvalidMemoryAccess)?;
    let (bytes, state) = memory.data_and_store_mut(&mut *host);
    let bytes: &[u8] = bytes;
    let mut written = 0_u32;
    for n in 0..count {
        let entry = slice(bytes, parts.saturating_add(n * 8), 8)?;
        let (at, size) = entry.split_at(4);
        let number = |half: &[u8]| half.try_into().map_or(0, u32::from_le_bytes);
        let text = slice(bytes, number(at), number(size))?;
        written = written.saturating_add(number(size));
        let mut lines = text.split(|byte| *byte == b'\n');
        let last = lines.next_back().unwrap_or_default();
        for part in lines {
            let mut whole = state.lines.get_mut(line).map(std::mem::take).unwrap_or_default();
            push(&mut whole, part);
            state.log(level, &whole);
        }
        if let Some(begun) = state.lines.get_mut(line) {
            push(begun, last);
        }
    }
    write_u32(host, to, written)
}

/// Adds to a line, of which the beginning is kept.
fn push(line: &mut Vec<u8>, part: &[u8]) {
    let room = MAX_MESSAGE.saturating_sub(line.len()).min(part.len());
    line.extend_from_slice(part.get(..room).unwrap_or_default());
}
