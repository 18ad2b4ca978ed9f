//! Memory for weights, activations and the KV cache: zeroed, aligned to cache lines, in large pages if the system has
//! them, since a step reads all weights once from end to end. Allocations live until the executor ends.

use memmap2::MmapMut;

/// Bytes requested from the system at once; untouched pages cost nothing.
const CHUNK: usize = 64 << 20;
/// Alignment of an allocation: a cache line.
const ALIGN: usize = 64;

/// Growing arena of memory.
#[derive(Default)]
pub(super) struct Memory {
    chunks: Vec<MmapMut>,
    /// Bytes used in the last chunk.
    used: usize,
    taken: usize,
}

/// Values in a [`Memory`]: address and number. Valid for as long as that memory lives; the user must prevent data
/// races.
#[derive(Debug)]
pub(super) struct Allocation<T> {
    at: *mut T,
    len: usize,
}

impl<T> Clone for Allocation<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Allocation<T> {}

// SAFETY: a pointer and a length; the user of the pointer prevents races.
unsafe impl<T: Send> Send for Allocation<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Allocation<T> {}

impl<T> Allocation<T> {
    pub(super) fn at(self) -> *mut T {
        self.at
    }
    pub(super) fn len(self) -> usize {
        self.len
    }
}

impl Memory {
    /// Allocates `len` zeroed values. Fails when the system has no more memory.
    pub(super) fn take<T: bytemuck::Zeroable>(&mut self, len: usize) -> std::io::Result<Allocation<T>> {
        let bytes = len
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_next_multiple_of(ALIGN))
            .ok_or(std::io::ErrorKind::OutOfMemory)?;
        let full = self.chunks.last().is_none_or(|chunk| chunk.len() - self.used < bytes);
        if full {
            let chunk = MmapMut::map_anon(bytes.max(CHUNK))?;
            // A hint: without large pages it is only slower.
            #[cfg(target_os = "linux")]
            let _ = chunk.advise(memmap2::Advice::HugePage);
            self.chunks.push(chunk);
            self.used = 0;
        }
        let chunk = self.chunks.last_mut().ok_or(std::io::ErrorKind::OutOfMemory)?;
        let room = chunk.get_mut(self.used..).ok_or(std::io::ErrorKind::OutOfMemory)?;
        self.used += bytes;
        self.taken += bytes;
        Ok(Allocation { at: room.as_mut_ptr().cast(), len })
    }

    /// Bytes allocated so far.
    pub(super) fn taken(&self) -> usize {
        self.taken
    }
}
