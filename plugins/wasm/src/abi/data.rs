//! Functions of buffers, shared data, queues and metrics.

use bytes::Bytes;
use wasmtime::Linker;

use super::memory::{give, read, read_two, read_with_state, write_u32, write_u64};
use super::{Done, Host, MODULE, Status, status};
use crate::context::Buffer;
use crate::shared::{MetricKind, SharedError};
use crate::state::State;

impl From<SharedError> for Status {
    fn from(error: SharedError) -> Self {
        match error {
            SharedError::Changed => Self::CasMismatch,
            SharedError::Missing => Self::NotFound,
            SharedError::Full => Self::InternalFailure,
            SharedError::Empty => Self::Empty,
            SharedError::WrongKind => Self::BadArgument,
        }
    }
}

/// Adds the functions.
pub(super) fn add(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_get_buffer_bytes",
        |mut host: Host<'_>, kind: u32, from: u32, most: u32, to: u32, to_size: u32| {
            status(bytes(&mut host, kind, from, most, to, to_size))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_get_buffer_status",
        |mut host: Host<'_>, kind: u32, to_length: u32, to_flags: u32| {
            status(length(&mut host, kind, to_length, to_flags))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_set_buffer_bytes",
        |mut host: Host<'_>, kind: u32, from: u32, size: u32, at: u32, length: u32| {
            status(set(&mut host, kind, from, size, at, length))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_get_shared_data",
        |mut host: Host<'_>, key: u32, size: u32, to: u32, to_size: u32, to_change: u32| {
            status(shared(&mut host, key, size, to, to_size, to_change))
        },
    )?;
    linker.func_wrap(
        MODULE,
        "proxy_set_shared_data",
        |mut host: Host<'_>, key: u32, size: u32, at: u32, length: u32, change: u32| {
            status(
                read_two(&mut host, (key, size), (at, length))
                    .and_then(|(key, value, state)| Ok(state.facts.shared.set(key, value, change)?)),
            )
        },
    )?;
    queues(linker)?;
    metrics(linker)
}

fn queues(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap(MODULE, "proxy_register_shared_queue", |mut host: Host<'_>, name: u32, size: u32, to: u32| {
        let registered = read(&host, name, size).and_then(|name| Ok(host.data().facts.shared.register_queue(name)?));
        status(registered.and_then(|id| write_u32(&mut host, to, id)))
    })?;
    linker.func_wrap(
        MODULE,
        "proxy_resolve_shared_queue",
        |mut host: Host<'_>, _vm: u32, _vm_size: u32, name: u32, size: u32, to: u32| {
            // Modules share nothing with each other: the queues are those of this one, whatever other it names.
            let found = read(&host, name, size)
                .and_then(|name| host.data().facts.shared.find_queue(name).ok_or(Status::NotFound));
            status(found.and_then(|id| write_u32(&mut host, to, id)))
        },
    )?;
    linker.func_wrap(MODULE, "proxy_enqueue_shared_queue", |host: Host<'_>, id: u32, at: u32, size: u32| {
        status(read(&host, at, size).and_then(|entry| Ok(host.data().facts.shared.enqueue(id, entry)?)))
    })?;
    linker.func_wrap(MODULE, "proxy_dequeue_shared_queue", |mut host: Host<'_>, id: u32, to: u32, to_size: u32| {
        let entry = host.data().facts.shared.dequeue(id).map_err(Status::from);
        status(entry.and_then(|entry| give(&mut host, &entry, to, to_size)))
    })?;
    Ok(())
}

fn metrics(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.func_wrap(
        MODULE,
        "proxy_define_metric",
        |mut host: Host<'_>, kind: u32, name: u32, size: u32, to: u32| status(define(&mut host, kind, name, size, to)),
    )?;
    linker.func_wrap(MODULE, "proxy_record_metric", |host: Host<'_>, id: u32, value: u64| {
        status(host.data().facts.shared.record_metric(id, value).map_err(Status::from))
    })?;
    linker.func_wrap(MODULE, "proxy_increment_metric", |host: Host<'_>, id: u32, by: i64| {
        status(host.data().facts.shared.increment_metric(id, by).map_err(Status::from))
    })?;
    linker.func_wrap(MODULE, "proxy_get_metric", |mut host: Host<'_>, id: u32, to: u32| {
        let value = host.data().facts.shared.metric(id).map_err(Status::from);
        status(value.and_then(|value| write_u64(&mut host, to, value)))
    })?;
    Ok(())
}

fn define(host: &mut Host<'_>, kind: u32, name: u32, size: u32, to: u32) -> Done {
    let kind = match kind {
        0 => MetricKind::Counter,
        1 => MetricKind::Gauge,
        2 => MetricKind::Histogram,
        _ => return Err(Status::BadArgument),
    };
    let id = host.data().facts.shared.define_metric(kind, read(host, name, size)?)?;
    write_u32(host, to, id)
}

/// Bytes of a buffer; `None` if there is none now.
fn buffer(state: &mut State, kind: u32) -> Result<Option<Bytes>, Status> {
    match kind {
        0 => Ok(state.stream().map(|stream| stream.request_body.bytes().clone())),
        1 => Ok(state.stream().map(|stream| stream.response_body.bytes().clone())),
        4 => Ok(state.answer.as_ref().map(|answer| answer.body.bytes().clone())),
        7 => Ok(Some(Bytes::copy_from_slice(&state.facts.config))),
        2 | 3 | 5 | 6 | 8 => Ok(None),
        _ => Err(Status::BadArgument),
    }
}

fn bytes(host: &mut Host<'_>, kind: u32, from: u32, most: u32, to: u32, to_size: u32) -> Done {
    let whole = buffer(host.data_mut(), kind)?.ok_or(Status::NotFound)?;
    let from = usize::try_from(from).map_err(|_| Status::BadArgument)?.min(whole.len());
    let most = usize::try_from(most).map_err(|_| Status::BadArgument)?;
    let end = from.saturating_add(most).min(whole.len());
    give(host, whole.get(from..end).unwrap_or_default(), to, to_size)
}

fn length(host: &mut Host<'_>, kind: u32, to_length: u32, to_flags: u32) -> Done {
    let whole = buffer(host.data_mut(), kind)?.ok_or(Status::NotFound)?;
    write_u32(host, to_length, u32::try_from(whole.len()).map_err(|_| Status::InternalFailure)?)?;
    write_u32(host, to_flags, 0)
}

fn set(host: &mut Host<'_>, kind: u32, from: u32, size: u32, at: u32, length: u32) -> Done {
    let (new, state) = read_with_state(host, at, length)?;
    let stream = state.stream().ok_or(Status::BadArgument)?;
    let buffer: &mut Buffer = match kind {
        0 if !stream.request.is_settled => &mut stream.request_body,
        1 => &mut stream.response_body,
        _ => return Err(Status::BadArgument),
    };
    let from = usize::try_from(from).map_err(|_| Status::BadArgument)?;
    let size = usize::try_from(size).map_err(|_| Status::BadArgument)?;
    Ok(buffer.set(from, size, new)?)
}

fn shared(host: &mut Host<'_>, key: u32, size: u32, to: u32, to_size: u32, to_change: u32) -> Done {
    let (value, change) = host.data().facts.shared.get(read(host, key, size)?).ok_or(Status::NotFound)?;
    give(host, &value, to, to_size)?;
    write_u32(host, to_change, change)
}
