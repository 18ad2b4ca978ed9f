//! Compiled pipelines on disk, so that a second start need not compile them. A damaged file, or one of another
//! adapter, driver or version, is discarded.

use std::path::{Path, PathBuf};

/// FNV-1a checksum, 64 bits: detects damage, not forgery.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Path of a cache file for an adapter, driver and version.
pub(super) fn path(folder: &Path, what: &str, identity: &str) -> PathBuf {
    folder.join(format!("{what}-{:016x}.bin", checksum(identity.as_bytes())))
}

/// Loads the cache of a device; `None` if the device supports none.
pub(super) fn load(device: &wgpu::Device, folder: Option<&Path>, identity: &str) -> Option<wgpu::PipelineCache> {
    if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
        return None;
    }
    let file = folder.map(|folder| path(folder, "pipelines", identity)).and_then(|path| std::fs::read(path).ok());
    let data = file.as_deref().and_then(|file| {
        let (sum, data) = file.split_at_checked(8)?;
        (u64::from_le_bytes(sum.try_into().ok()?) == checksum(data)).then_some(data)
    });
    let descriptor = wgpu::PipelineCacheDescriptor { label: None, data, fallback: true };
    // SAFETY: the data is what `get_data` gave for the same adapter, driver and version, in a file whose checksum holds
    // and whose folder only this user may write.
    Some(unsafe { device.create_pipeline_cache(&descriptor) })
}

/// Stores the cache. If the folder is not writable, the next start takes some seconds longer.
pub(super) fn store(cache: &wgpu::PipelineCache, folder: Option<&Path>, identity: &str) {
    let (Some(folder), Some(data)) = (folder, cache.get_data()) else { return };
    let path = path(folder, "pipelines", identity);
    let mut file = checksum(&data).to_le_bytes().to_vec();
    file.extend_from_slice(&data);
    replace(&path, &file);
}

/// Replaces a file atomically, or leaves it unchanged.
pub(super) fn replace(path: &Path, file: &[u8]) {
    if std::fs::read(path).is_ok_and(|old| old == file) {
        return;
    }
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&temporary, file))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(e) = written {
        tracing::debug!(event = "pipeline_cache_not_kept", path = %path.display(), error = %e);
    }
}
