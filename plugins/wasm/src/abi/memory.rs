//! Memory of a module, as functions of the host read and write it: every address and length is checked.

use super::{Host, Status};

/// Bytes at an address.
pub(super) fn read<'h>(host: &'h Host<'_>, at: u32, size: u32) -> Result<&'h [u8], Status> {
    let memory = host.data().memory.ok_or(Status::InvalidMemoryAccess)?;
    slice(memory.data(host), at, size)
}

/// Bytes at an address, and the state of the instance.
pub(super) fn read_with_state<'h>(
    host: &'h mut Host<'_>,
    at: u32,
    size: u32,
) -> Result<(&'h [u8], &'h mut crate::state::State), Status> {
    let memory = host.data().memory.ok_or(Status::InvalidMemoryAccess)?;
    let (bytes, state) = memory.data_and_store_mut(host);
    Ok((slice(bytes, at, size)?, state))
}

/// Two texts at two addresses, and the state of the instance.
pub(super) fn read_two<'h>(
    host: &'h mut Host<'_>,
    first: (u32, u32),
    second: (u32, u32),
) -> Result<(&'h [u8], &'h [u8], &'h mut crate::state::State), Status> {
    let memory = host.data().memory.ok_or(Status::InvalidMemoryAccess)?;
    let (bytes, state) = memory.data_and_store_mut(host);
    let bytes: &[u8] = bytes;
    Ok((slice(bytes, first.0, first.1)?, slice(bytes, second.0, second.1)?, state))
}

pub(super) fn slice(bytes: &[u8], at: u32, size: u32) -> Result<&[u8], Status> {
    let (at, size) = (usize::try_from(at), usize::try_from(size));
    let (Ok(at), Ok(size)) = (at, size) else { return Err(Status::InvalidMemoryAccess) };
    at.checked_add(size).and_then(|end| bytes.get(at..end)).ok_or(Status::InvalidMemoryAccess)
}

/// Writes bytes at an address.
pub(super) fn write(host: &mut Host<'_>, at: u32, bytes: &[u8]) -> Result<(), Status> {
    let memory = host.data().memory.ok_or(Status::InvalidMemoryAccess)?;
    let at = usize::try_from(at).map_err(|_| Status::InvalidMemoryAccess)?;
    memory.write(host, at, bytes).map_err(|_| Status::InvalidMemoryAccess)
}

/// Writes a number of 32 bits.
pub(super) fn write_u32(host: &mut Host<'_>, at: u32, value: u32) -> Result<(), Status> {
    write(host, at, &value.to_le_bytes())
}

/// Writes a number of 64 bits.
pub(super) fn write_u64(host: &mut Host<'_>, at: u32, value: u64) -> Result<(), Status> {
    write(host, at, &value.to_le_bytes())
}

/// Gives bytes to the module, in memory that it allocates for them, and writes their address and length. Nothing is allocated
/// for no bytes.
pub(super) fn give(host: &mut Host<'_>, bytes: &[u8], to: u32, to_size: u32) -> Result<(), Status> {
    let size = u32::try_from(bytes.len()).map_err(|_| Status::InternalFailure)?;
    // Both places are the module's before anything is allocated.
    write_u32(host, to, 0)?;
    write_u32(host, to_size, 0)?;
    if size == 0 {
        return Ok(());
    }
    let state = host.data_mut();
    // An allocator that asks the host for what it must allocate would go round for ever.
    let allocate = state.allocate.clone().filter(|_| !state.is_allocating).ok_or(Status::InternalFailure)?;
    state.is_allocating = true;
    let allocated = allocate.call(&mut *host, size);
    host.data_mut().is_allocating = false;
    let at = match allocated {
        Ok(0) => return Err(Status::InternalFailure),
        Ok(at) => at,
        Err(error) => {
            // A trap in the allocator, or the end of the module's time. It ends the call that asked, too: its deadline has
            // passed, or its memory cannot be relied on.
            host.data_mut().allocate = None;
            tracing::debug!(event = "wasm_allocation_failed", reason = %crate::failure::text_of(&error));
            return Err(Status::InternalFailure);
        }
    };
    write(host, at, bytes)?;
    write_u32(host, to, at)?;
    write_u32(host, to_size, size)
}
