//! Executor on wgpu: one dispatch for each operation, or two where activations are rounded first. Owns the device,
//! all weights and the KV cache. A step is one command buffer and one read of its logits.

mod cache;
mod family;
mod operations;
mod packed;
mod pipelines;
mod shared;
mod source;

use std::collections::HashMap;
use std::time::Duration;

use wgpu::util::align_to;

use super::{ActId, MatrixId, Sizes};
use crate::device::{DeviceFaults, Opened};
use crate::{DeviceInfo, EngineError, LoadError};
use family::KernelFamily;
use packed::Packed;
use pipelines::{Binding, Kernel};

/// Longest time of a step; beyond it the device hangs.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// Positions whose softmax attention computes separately.
const STRETCH: usize = 256;
/// Most bytes of partial results of workgroups that share a head of a row.
const MAX_GATHERED: usize = 8 << 20;
/// Heads of rows that keep a device busy without sharing them.
const BUSY_HEADS: usize = 1024;
/// Most parts of a matrix; a matrix is split if it is larger than one binding may be.
const MAX_SEGMENTS: usize = 64;
/// Bytes of weights that are repacked at once.
const CHUNK: usize = 4 << 20;

struct GpuSegment {
    packed: Packed,
    columns: usize,
    rows: usize,
    words: wgpu::Buffer,
}

/// Table of rotations.
struct RotationTable {
    pairs: usize,
    halves: bool,
    table: wgpu::Buffer,
}

struct GpuActivation {
    width: usize,
    buffer: wgpu::Buffer,
}

/// Runs operations on a wgpu device.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: DeviceInfo,
    faults: DeviceFaults,
    identity: String,
    subgroups: bool,
    checked: bool,
    sizes: Sizes,
    cache_dir: Option<std::path::PathBuf>,
    pipeline_cache: Option<wgpu::PipelineCache>,
    pipelines: HashMap<Kernel, wgpu::ComputePipeline>,
    /// Number of pipelines in the cache on disk.
    cached_pipelines: usize,
    bindings: HashMap<Binding, wgpu::BindGroup>,
    /// Kernels of products, once chosen.
    family: Option<KernelFamily>,
    matrices: Vec<Vec<GpuSegment>>,
    vectors: Vec<wgpu::Buffer>,
    activations: Vec<GpuActivation>,
    keys: Vec<wgpu::Buffer>,
    values: Vec<wgpu::Buffer>,
    ropes: Vec<RotationTable>,
    rows: wgpu::Buffer,
    spans: wgpu::Buffer,
    pages: wgpu::Buffer,
    picks: wgpu::Buffer,
    /// Rounded activations of the current operation.
    quants: Option<(wgpu::Buffer, wgpu::Buffer)>,
    /// Partial results of attention for each stretch of positions.
    gathered: Option<wgpu::Buffer>,
    readback: Option<wgpu::Buffer>,
    memory: u64,
    step: Option<Recording>,
}

/// Dispatches of a step.
struct Recording {
    dispatches: Vec<Dispatch>,
    rows: u32,
    picks: u32,
    /// Highest position of any row.
    farthest: usize,
}

struct Dispatch {
    kernel: Kernel,
    binding: Binding,
    params: [u32; 6],
    groups: (u32, u32),
}

fn narrow(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

impl Gpu {
    /// An executor on an open device. `checked` keeps wgpu's bounds checks in the kernels, for tests.
    pub(crate) fn new(
        opened: Opened,
        sizes: Sizes,
        cache_dir: Option<std::path::PathBuf>,
        checked: bool,
    ) -> Result<Self, LoadError> {
        let Opened { device, queue, info, faults, subgroups, identity } = opened;
        let limits = device.limits();
        let refused = |reason: String| LoadError::Device { device: info.name.clone(), reason };
        if sizes.head_dim > 256 || !sizes.head_dim.is_multiple_of(2) {
            return Err(refused(format!("heads of {} values; expected an even number of at most 256", sizes.head_dim)));
        }
        if limits.max_immediate_size < 24 || limits.max_compute_invocations_per_workgroup < 64 {
            return Err(refused(
                "its limits are below what the kernels need; choose another adapter with `device`".into(),
            ));
        }
        let mut memory = 0;
        let mut make = |label: &str, bytes: usize, usage: wgpu::BufferUsages| {
            let size = align_to(wide(bytes).max(16), 16);
            if size > limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) {
                let needed = size >> 20;
                return Err(refused(format!("{label} needs {needed} MiB in one binding, more than the device allows")));
            }
            memory += size;
            Ok(device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size,
                usage,
                mapped_at_creation: false,
            }))
        };
        let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let layer = sizes.pages * super::PAGE * sizes.kv_heads * sizes.head_dim * 2;
        let cache = |make: &mut dyn FnMut(&str, usize, wgpu::BufferUsages) -> Result<wgpu::Buffer, LoadError>| {
            let usage = storage | wgpu::BufferUsages::COPY_SRC;
            (0..sizes.layers).map(|_| make("the KV cache of a layer", layer, usage)).collect::<Result<Vec<_>, _>>()
        };
        let (keys, values) = (cache(&mut make)?, cache(&mut make)?);
        let rope = make("a table of no rotations", 0, storage)?;
        let rows = make("rows", sizes.max_rows * 16, storage)?;
        let spans = make("spans", sizes.max_rows * 8, storage)?;
        let pages = make("pages", sizes.slots * sizes.pages_per_slot() * 4, storage)?;
        let picks = make("picks", sizes.max_picks * 4, storage)?;
        let pipeline_cache = cache::load(&device, cache_dir.as_deref(), &identity);
        Ok(Self {
            device,
            queue,
            info,
            faults,
            identity,
            subgroups,
            checked,
            sizes,
            cache_dir,
            pipeline_cache,
            pipelines: HashMap::new(),
            cached_pipelines: 0,
            bindings: HashMap::new(),
            family: None,
            matrices: Vec::new(),
            vectors: Vec::new(),
            activations: Vec::new(),
            keys,
            values,
            // The first entry is for models without rotary embedding.
            ropes: vec![RotationTable { pairs: 0, halves: false, table: rope }],
            rows,
            spans,
            pages,
            picks,
            quants: None,
            gathered: None,
            readback: None,
            memory,
            step: None,
        })
    }

    /// Device of the executor.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn storage(&mut self, label: &str, bytes: usize, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer, LoadError> {
        let size = align_to(wide(bytes).max(16), 16);
        let limits = self.device.limits();
        if size > limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) {
            return Err(LoadError::Device {
                device: self.info.name.clone(),
                reason: format!("{label} needs {} MiB in one binding, more than the device allows", size >> 20),
            });
        }
        self.memory += size;
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        Ok(self.device.create_buffer(&descriptor))
    }

    /// Makes a buffer of `bytes` that is filled before the device uses it: `fill` provides the pieces in order.
    fn filled(
        &mut self,
        label: &str,
        bytes: usize,
        fill: impl FnOnce(&mut dyn FnMut(&[u8])),
    ) -> Result<wgpu::Buffer, LoadError> {
        let size = align_to(wide(bytes).max(16), 16);
        let allowed = self.largest();
        let refused = |reason: String| LoadError::Device { device: self.info.name.clone(), reason };
        if size > allowed {
            let (needs, allows) = (size >> 20, allowed >> 20);
            return Err(refused(format!("`{label}` needs {needs} MiB in one binding; the device allows {allows} MiB")));
        }
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: true,
        });
        match buffer.slice(..).get_mapped_range_mut() {
            Ok(mut view) => {
                let mut at = 0;
                fill(&mut |piece| {
                    let end = (at + piece.len()).min(bytes);
                    if let Some(piece) = piece.get(..end - at) {
                        view.slice(at..end).copy_from_slice(piece);
                    }
                    at = end;
                });
            }
            Err(e) => return Err(refused(format!("`{label}` cannot be uploaded: {e}"))),
        }
        buffer.unmap();
        self.memory += size;
        Ok(buffer)
    }

    /// Most workgroups of a dispatch in one dimension.
    fn most_workgroups(&self) -> usize {
        usize::try_from(self.device.limits().max_compute_workgroups_per_dimension).unwrap_or(usize::MAX)
    }

    /// Bytes of the largest buffer that a kernel can bind.
    fn largest(&self) -> u64 {
        let limits = self.device.limits();
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
    }

    fn width(&self, id: ActId) -> usize {
        self.activations.get(id.0).map_or(0, |place| place.width)
    }

    fn step_rows(&self) -> usize {
        self.step.as_ref().map_or(0, |step| usize::try_from(step.rows).unwrap_or(0))
    }

    /// Dispatches one invocation for each of the step's values in an activation of `width`.
    fn by_value(&mut self, kernel: Kernel, places: [usize; 4], width: usize) {
        let groups = (width.div_ceil(64), self.step_rows());
        self.dispatch((kernel, places), [width, 0, 0, 0, 0], groups);
    }

    /// Bytes of the partial results of this many stretches and heads of rows: an answer, its maximum and its sum.
    fn gathered_bytes(&self, heads: usize, stretches: usize) -> usize {
        heads * stretches * (self.sizes.head_dim + 2) * 4
    }

    /// Number of workgroups that share a head of a row. One for each stretch of positions if the device would not be
    /// busy otherwise, else one for all.
    fn stretches_apart(&self, window: usize) -> usize {
        let Some(step) = &self.step else { return 1 };
        let heads = self.step_rows() * self.sizes.heads;
        let stretches = (step.farthest + 1).min(window).div_ceil(STRETCH);
        let fits = self.gathered_bytes(heads, stretches) <= MAX_GATHERED
            && self.sizes.heads * stretches <= self.most_workgroups();
        let shared = self.family == Some(KernelFamily::Shared) && heads < BUSY_HEADS && fits;
        if shared { stretches } else { 1 }
    }

    /// Restricts the rest of the step to its picked rows.
    fn picked(&mut self) {
        if let Some(step) = &mut self.step {
            step.rows = step.picks;
        }
    }

    /// Parts of a matrix: index, packing, columns, rows.
    fn segments(&self, matrix: MatrixId) -> Vec<(usize, Packed, usize, usize)> {
        let segments = self.matrices.get(matrix.0).map(Vec::as_slice).unwrap_or_default();
        segments.iter().enumerate().map(|(n, s)| (n, s.packed, s.columns, s.rows)).collect()
    }

    /// Waits until the device has finished all submitted work.
    fn wait(&self) -> Result<(), EngineError> {
        let waited = self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(STEP_TIMEOUT) });
        self.fault()?;
        waited.map(|_| ()).map_err(|e| EngineError::Device(format!("a step did not end: {e}")))
    }

    /// Returns the first fault since the last step as an error.
    fn fault(&self) -> Result<(), EngineError> {
        self.faults.take().map_or(Ok(()), |fault| Err(EngineError::Device(fault)))
    }
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;
