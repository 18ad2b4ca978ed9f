//! The executor on wgpu: each operation is one dispatch, or two where activations are rounded first. It owns the
//! device, all weights and the KV cache; a step is one command buffer and one read of its logits.

mod cache;
mod source;

use std::collections::HashMap;
use std::time::Duration;

use wgpu::util::align_to;

use super::{ActId, Batch, Executor, MatrixId, Row, Sizes, VectorId};
use crate::artifact::{Tensor, TensorType};
use crate::device::{Faults, Opened};
use crate::{DeviceInfo, EngineError, LoadError};
use source::GROUP;

/// Activation rows that share an unpacked block of weights, where a step has more than one.
const TILE: usize = 4;
/// Longest time that a step may take: beyond it the device hangs.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// What a dispatch runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kernel {
    Embed(TensorType),
    RmsNorm,
    Quantize,
    Matmul(TensorType, bool),
    RopeStore,
    Attention,
    SiluMul,
    Pick,
}

struct Segment {
    kind: TensorType,
    columns: usize,
    rows: usize,
    words: wgpu::Buffer,
}

struct Place {
    width: usize,
    buffer: wgpu::Buffer,
}

/// Key of a bind group: a kernel with the buffers that it was last bound to, by number.
type Binding = (Kernel, usize, usize, usize);

/// Runs operations on a wgpu device.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: DeviceInfo,
    faults: Faults,
    identity: String,
    subgroups: bool,
    checked: bool,
    sizes: Sizes,
    cache_dir: Option<std::path::PathBuf>,
    pipeline_cache: Option<wgpu::PipelineCache>,
    pipelines: HashMap<Kernel, wgpu::ComputePipeline>,
    bindings: HashMap<Binding, wgpu::BindGroup>,
    matrices: Vec<Vec<Segment>>,
    vectors: Vec<wgpu::Buffer>,
    places: Vec<Place>,
    keys: Vec<wgpu::Buffer>,
    values: Vec<wgpu::Buffer>,
    rope: wgpu::Buffer,
    rows: wgpu::Buffer,
    pages: wgpu::Buffer,
    picks: wgpu::Buffer,
    /// Rounded activations of the operation at hand.
    quants: Option<(wgpu::Buffer, wgpu::Buffer)>,
    readback: Option<wgpu::Buffer>,
    memory: u64,
    step: Option<Recording>,
}

/// The dispatches of a step.
struct Recording {
    dispatches: Vec<Dispatch>,
    rows: u32,
    picks: u32,
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
            return Err(refused(format!("heads of {} values are not supported (even, at most 256)", sizes.head_dim)));
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
                return Err(refused(format!("{label} needs {} MiB in one binding, more than it allows", size >> 20)));
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
            (0..sizes.layers).map(|_| make("the KV cache of a layer", layer, storage)).collect::<Result<Vec<_>, _>>()
        };
        let (keys, values) = (cache(&mut make)?, cache(&mut make)?);
        let table = sizes.rope_table();
        let rope = make("the rotation table", table.len() * 4, storage)?;
        queue.write_buffer(&rope, 0, bytemuck::cast_slice(&table));
        let rows = make("rows", sizes.max_rows * 16, storage)?;
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
            bindings: HashMap::new(),
            matrices: Vec::new(),
            vectors: Vec::new(),
            places: Vec::new(),
            keys,
            values,
            rope,
            rows,
            pages,
            picks,
            quants: None,
            readback: None,
            memory,
            step: None,
        })
    }

    /// Where it runs.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn storage(&mut self, label: &str, bytes: usize, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer, LoadError> {
        let size = align_to(wide(bytes).max(16), 16);
        let limits = self.device.limits();
        if size > limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) {
            return Err(LoadError::Device {
                device: self.info.name.clone(),
                reason: format!("{label} needs {} MiB in one binding, more than it allows", size >> 20),
            });
        }
        self.memory += size;
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        Ok(self.device.create_buffer(&descriptor))
    }

    /// A buffer that is filled before the device sees it.
    fn filled(&mut self, label: &str, bytes: usize, fill: impl FnOnce(&mut [u8])) -> Result<wgpu::Buffer, LoadError> {
        let size = align_to(wide(bytes).max(16), 16);
        let limits = self.device.limits();
        let refused = |reason: String| LoadError::Device { device: self.info.name.clone(), reason };
        if size > limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) {
            return Err(refused(format!(
                "tensor `{label}` needs {} MiB in one binding and it allows {} MiB",
                size >> 20,
                limits.max_storage_buffer_binding_size >> 20
            )));
        }
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage: wgpu::BufferUsages::STORAGE,
            mapped_at_creation: true,
        });
        let mut data = vec![0u8; bytes];
        fill(&mut data);
        match buffer.slice(..wide(bytes)).get_mapped_range_mut() {
            Ok(mut view) => view.slice(..).copy_from_slice(&data),
            Err(e) => return Err(refused(format!("tensor `{label}` cannot be uploaded: {e}"))),
        }
        buffer.unmap();
        self.memory += size;
        Ok(buffer)
    }

    fn source(&self, kernel: Kernel) -> String {
        let s = &self.sizes;
        match kernel {
            Kernel::Embed(kind) => source::embed(s, kind),
            Kernel::RmsNorm => source::with_sizes(s, include_str!("rms_norm.wgsl")),
            Kernel::Quantize => source::with_sizes(s, include_str!("quantize.wgsl")),
            Kernel::Matmul(TensorType::F32, _) => source::with_sizes(s, include_str!("matmul_f32.wgsl")),
            // Handing activations round pays where several rows share the weights: on software Vulkan 8 rows together
            // give 1.5 times as much with it, one row alone 0.7 times.
            Kernel::Matmul(kind, true) => source::matmul(s, kind, TILE, self.subgroups),
            Kernel::Matmul(kind, false) => source::matmul(s, kind, 1, false),
            Kernel::RopeStore => source::with_sizes(s, include_str!("rope_store.wgsl")),
            Kernel::Attention => source::with_sizes(s, include_str!("attention.wgsl")),
            Kernel::SiluMul => source::with_sizes(s, include_str!("silu_mul.wgsl")),
            Kernel::Pick => source::with_sizes(s, include_str!("pick.wgsl")),
        }
    }

    fn compile(&mut self, kernel: Kernel) {
        if self.pipelines.contains_key(&kernel) {
            return;
        }
        let label = format!("{kernel:?}");
        let code = self.source(kernel);
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(&label), source: wgpu::ShaderSource::Wgsl(code.into()) };
        let module = if self.checked {
            self.device.create_shader_module(descriptor)
        } else {
            // SAFETY: every index in the kernels is below a size that was checked when the model was loaded: rows,
            // pages and picks are made by the scheduler within `Sizes`, tokens are below the vocabulary (`begin`
            // checks both), and loops are bounded by those. The tests run every kernel with the checks on as well.
            unsafe { self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: None,
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..wgpu::PipelineCompilationOptions::default()
            },
            cache: self.pipeline_cache.as_ref(),
        });
        self.pipelines.insert(kernel, pipeline);
    }

    /// Notes a dispatch; its pipeline and bind group are made the first time.
    fn dispatch(&mut self, binding: Binding, params: [usize; 5], groups: (usize, usize)) {
        let kernel = binding.0;
        self.compile(kernel);
        if !self.bindings.contains_key(&binding)
            && let Some(group) = self.bind(binding)
        {
            self.bindings.insert(binding, group);
        }
        if let Some(step) = &mut self.step {
            let [a, b, c, d, e] = params.map(narrow);
            let params = [step.rows, a, b, c, d, e];
            step.dispatches.push(Dispatch { kernel, binding, params, groups: (narrow(groups.0), narrow(groups.1)) });
        }
    }

    fn bind(&self, (kernel, a, b, c): Binding) -> Option<wgpu::BindGroup> {
        let place = |id: usize| self.places.get(id).map(|place| &place.buffer);
        let (quants, scales) = self.quants.as_ref().map_or((None, None), |(q, s)| (Some(q), Some(s)));
        // The words of segment `s` of matrix `m` are known as `m * 16 + s`.
        let words = |id: usize| self.matrices.get(id / 16)?.get(id % 16).map(|segment| &segment.words);
        let buffers = match kernel {
            Kernel::Embed(_) => vec![words(a)?, &self.rows, place(b)?],
            Kernel::RmsNorm => vec![place(a)?, self.vectors.get(b)?, place(c)?],
            Kernel::Quantize => vec![place(a)?, quants?, scales?],
            Kernel::Matmul(TensorType::F32, _) => vec![words(a)?, place(b)?, place(c)?],
            Kernel::Matmul(..) => vec![words(a)?, quants?, scales?, place(b)?],
            Kernel::RopeStore => {
                vec![place(a)?, &self.rows, &self.pages, &self.rope, self.keys.get(b)?, self.values.get(b)?]
            }
            Kernel::Attention => {
                vec![place(a)?, &self.rows, &self.pages, self.keys.get(b)?, self.values.get(b)?, place(c)?]
            }
            Kernel::SiluMul => vec![place(a)?, place(b)?],
            Kernel::Pick => vec![place(a)?, &self.picks, place(b)?],
        };
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let layout = self.pipelines.get(&kernel)?.get_bind_group_layout(0);
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
        Some(self.device.create_bind_group(&descriptor))
    }

    fn width(&self, id: ActId) -> usize {
        self.places.get(id.0).map_or(0, |place| place.width)
    }

    fn step_rows(&self) -> usize {
        self.step.as_ref().map_or(0, |step| usize::try_from(step.rows).unwrap_or(0))
    }

    /// The first fault since the last step.
    fn fault(&self) -> Result<(), EngineError> {
        self.faults.take().map_or(Ok(()), |fault| Err(EngineError::Device(fault)))
    }

    /// Reads a place, for tests.
    #[cfg(test)]
    pub(crate) fn read(&mut self, id: ActId) -> Vec<f32> {
        self.finish(id).unwrap()
    }

    /// Fills a place, for tests.
    #[cfg(test)]
    pub(crate) fn write(&mut self, id: ActId, values: &[f32]) {
        self.queue.write_buffer(&self.places[id.0].buffer, 0, bytemuck::cast_slice(values));
    }
}

/// Transposes quantised rows into groups, as the kernels read them, from row `start` on. Rows past the end are zero.
fn repack(tensor: &Tensor<'_>, start: usize, out: &mut [u8]) {
    let (_, block_bytes) = tensor.kind.block();
    let words = source::block_words(tensor.kind);
    let blocks = tensor.columns / 32;
    let out: &mut [[u8; 4]] = bytemuck::cast_slice_mut(out);
    for (row, data) in tensor.data.chunks_exact(blocks * block_bytes).enumerate() {
        let row = start + row;
        let base = row / GROUP * blocks * words * GROUP + row % GROUP;
        for (block, bytes) in data.chunks_exact(block_bytes).enumerate() {
            let (scales, quants) = match tensor.kind {
                TensorType::Q8_0 => bytes.split_at_checked(2),
                _ => bytes.split_at_checked(4),
            }
            .unwrap_or((bytes, &[]));
            let mut scale = [0u8; 4];
            for (to, from) in scale.iter_mut().zip(scales) {
                *to = *from;
            }
            let at = base + block * words * GROUP;
            let parts = std::iter::once(scale).chain(quants.as_chunks::<4>().0.iter().copied());
            for (word, part) in parts.enumerate() {
                if let Some(to) = out.get_mut(at + word * GROUP) {
                    *to = part;
                }
            }
        }
    }
}

impl Executor for Gpu {
    fn matrix(&mut self, parts: &[Tensor<'_>]) -> Result<MatrixId, LoadError> {
        let mut segments: Vec<Segment> = Vec::new();
        // Neighbours of one type become one matrix: one dispatch instead of several.
        for group in parts.chunk_by(|a, b| a.kind == b.kind && a.columns == b.columns) {
            let Some(first) = group.first() else { continue };
            let rows = group.iter().map(|part| part.rows).sum::<usize>();
            let bytes = match first.kind {
                TensorType::F32 => rows * first.columns * 4,
                kind => rows.next_multiple_of(GROUP) * (first.columns / 32) * source::block_words(kind) * 4,
            };
            let words = self.filled(first.name, bytes, |out| {
                let mut row = 0;
                for part in group {
                    if part.kind == TensorType::F32 {
                        let from = row * part.columns * 4;
                        if let Some(out) = out.get_mut(from..from + part.data.len()) {
                            out.copy_from_slice(part.data);
                        }
                    } else {
                        repack(part, row, out);
                    }
                    row += part.rows;
                }
            })?;
            segments.push(Segment { kind: first.kind, columns: first.columns, rows, words });
        }
        self.matrices.push(segments);
        Ok(MatrixId(self.matrices.len() - 1))
    }

    fn vector(&mut self, values: &[f32]) -> Result<VectorId, LoadError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = self.filled("a vector", bytes.len(), |out| out.copy_from_slice(bytes))?;
        self.vectors.push(buffer);
        Ok(VectorId(self.vectors.len() - 1))
    }

    fn activation(&mut self, width: usize) -> Result<ActId, LoadError> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = self.storage("activations", self.sizes.max_rows * width * 4, usage)?;
        self.places.push(Place { width, buffer });
        Ok(ActId(self.places.len() - 1))
    }

    fn ready(&mut self) -> Result<(), LoadError> {
        let widest = self.places.iter().map(|place| place.width).max().unwrap_or(0).next_multiple_of(32);
        let values = widest * self.sizes.max_rows;
        let storage = wgpu::BufferUsages::STORAGE;
        self.quants =
            Some((self.storage("rounded activations", values, storage)?, self.storage("scales", values / 4, storage)?));
        let kinds: std::collections::HashSet<TensorType> =
            self.matrices.iter().flatten().map(|segment| segment.kind).collect();
        for kind in kinds {
            self.compile(Kernel::Matmul(kind, false));
            self.compile(Kernel::Matmul(kind, true));
        }
        let head = self.matrices.first().and_then(|m| m.first()).map(|segment| segment.kind);
        let others =
            [Kernel::RmsNorm, Kernel::Quantize, Kernel::RopeStore, Kernel::Attention, Kernel::SiluMul, Kernel::Pick];
        for kernel in others.into_iter().chain(head.map(Kernel::Embed)) {
            self.compile(kernel);
        }
        if let Some(cache) = &self.pipeline_cache {
            cache::store(cache, self.cache_dir.as_deref(), &self.identity);
        }
        match self.faults.take() {
            None => Ok(()),
            Some(reason) => Err(LoadError::Device { device: self.info.name.clone(), reason }),
        }
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), EngineError> {
        self.fault()?;
        let s = &self.sizes;
        let vocabulary = self.matrices.first().and_then(|m| m.first()).map_or(0, |table| table.rows);
        let fits = |row: &Row| {
            (row.slot as usize) < s.slots && (row.position as usize) < s.context && (row.token as usize) < vocabulary
        };
        let sound = batch.rows.len() <= s.max_rows
            && batch.picks.len() <= s.max_picks
            && batch.pages.len() == s.slots * s.pages_per_slot()
            && batch.rows.iter().all(fits)
            && batch.picks.iter().all(|pick| (*pick as usize) < batch.rows.len())
            && batch.pages.iter().all(|page| (*page as usize) < s.pages);
        if !sound {
            return Err(EngineError::Device("a step outside of the model's sizes was refused".into()));
        }
        let rows: Vec<[u32; 4]> = batch.rows.iter().map(|row| [row.token, row.position, row.slot, 0]).collect();
        self.queue.write_buffer(&self.rows, 0, bytemuck::cast_slice(&rows));
        self.queue.write_buffer(&self.pages, 0, bytemuck::cast_slice(&batch.pages));
        self.queue.write_buffer(&self.picks, 0, bytemuck::cast_slice(&batch.picks));
        let (rows, picks) = (narrow(batch.rows.len()), narrow(batch.picks.len()));
        self.step = Some(Recording { dispatches: Vec::with_capacity(512), rows, picks });
        Ok(())
    }

    fn embed(&mut self, table: MatrixId, out: ActId) {
        let Some(kind) = self.matrices.get(table.0).and_then(|m| m.first()).map(|segment| segment.kind) else { return };
        let (width, rows) = (self.width(out), self.step_rows());
        self.dispatch((Kernel::Embed(kind), table.0 * 16, out.0, 0), [width, 0, 0, 0, 0], (width.div_ceil(64), rows));
    }

    fn rms_norm(&mut self, x: ActId, weight: VectorId, eps: f32, out: ActId) {
        let (width, rows) = (self.width(x), self.step_rows());
        let eps = eps.to_bits() as usize;
        self.dispatch((Kernel::RmsNorm, x.0, weight.0, out.0), [width, eps, 0, 0, 0], (rows, 1));
    }

    fn matmul(&mut self, matrix: MatrixId, x: ActId, out: ActId, add: bool) {
        let (rows, width) = (self.step_rows(), self.width(out));
        let shapes: Vec<_> = self
            .matrices
            .get(matrix.0)
            .map(|m| m.iter().map(|s| (s.kind, s.columns, s.rows)).collect())
            .unwrap_or_default();
        if let Some((_, columns, _)) = shapes.iter().find(|(kind, ..)| *kind != TensorType::F32) {
            let blocks = columns / 32;
            self.dispatch((Kernel::Quantize, x.0, 0, 0), [blocks, 0, 0, 0, 0], ((rows * blocks).div_ceil(64), 1));
        }
        let mut offset = 0;
        for (place, (kind, columns, weights)) in shapes.into_iter().enumerate() {
            let add = usize::from(add);
            let id = matrix.0 * 16 + place;
            if kind == TensorType::F32 {
                let binding = (Kernel::Matmul(kind, false), id, x.0, out.0);
                self.dispatch(binding, [columns, weights, width, offset, add], (weights.div_ceil(64), rows));
            } else {
                let tiled = rows > 1;
                let groups = (weights.div_ceil(GROUP), if tiled { rows.div_ceil(TILE) } else { 1 });
                let binding = (Kernel::Matmul(kind, tiled), id, out.0, 0);
                self.dispatch(binding, [columns / 32, weights, width, offset, add], groups);
            }
            offset += weights;
        }
    }

    fn rope_store(&mut self, qkv: ActId, layer: usize) {
        let (pairs, rows) = (self.sizes.qkv_width() / 2, self.step_rows());
        self.dispatch((Kernel::RopeStore, qkv.0, layer, 0), [0; 5], (pairs.div_ceil(64), rows));
    }

    fn attention(&mut self, qkv: ActId, layer: usize, out: ActId) {
        let (heads, rows) = (self.sizes.heads, self.step_rows());
        self.dispatch((Kernel::Attention, qkv.0, layer, out.0), [0; 5], (heads, rows));
    }

    fn silu_mul(&mut self, x: ActId, out: ActId) {
        let (width, rows) = (self.width(out), self.step_rows());
        self.dispatch((Kernel::SiluMul, x.0, out.0, 0), [width, 0, 0, 0, 0], (width.div_ceil(64), rows));
    }

    fn pick(&mut self, x: ActId, out: ActId) {
        let width = self.width(x);
        let Some(step) = &mut self.step else { return };
        step.rows = step.picks;
        let picks = self.step_rows();
        self.dispatch((Kernel::Pick, x.0, out.0, 0), [width, 0, 0, 0, 0], (width.div_ceil(64), picks));
    }

    fn finish(&mut self, logits: ActId) -> Result<Vec<f32>, EngineError> {
        let Some(step) = self.step.take() else { return Err(EngineError::Device("a step was ended twice".into())) };
        let bytes = wide(usize::try_from(step.rows).unwrap_or(0) * self.width(logits) * 4);
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            let mut last = None;
            for dispatch in &step.dispatches {
                let pipeline = self.pipelines.get(&dispatch.kernel);
                let (Some(pipeline), Some(group)) = (pipeline, self.bindings.get(&dispatch.binding)) else {
                    return Err(EngineError::Device(format!("{:?} could not be bound", dispatch.kernel)));
                };
                if last != Some(dispatch.kernel) {
                    pass.set_pipeline(pipeline);
                    last = Some(dispatch.kernel);
                }
                pass.set_bind_group(0, group, &[]);
                pass.set_immediates(0, bytemuck::cast_slice(&dispatch.params));
                let (x, y) = dispatch.groups;
                if x > 0 && y > 0 {
                    pass.dispatch_workgroups(x, y, 1);
                }
            }
        }
        if self.readback.as_ref().is_none_or(|buffer| buffer.size() < bytes) {
            self.readback = Some(self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("logits"),
                size: bytes.max(16),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }));
        }
        let (Some(readback), Some(place)) = (&self.readback, self.places.get(logits.0)) else {
            return Err(EngineError::Device("there is no place for the logits".into()));
        };
        if bytes > 0 {
            encoder.copy_buffer_to_buffer(&place.buffer, 0, readback, 0, bytes);
        }
        self.queue.submit([encoder.finish()]);
        if bytes > 0 {
            let failed = self.faults.clone();
            readback.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| {
                if let Err(e) = result {
                    failed.heard(&e.to_string());
                }
            });
        }
        let waited = self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(STEP_TIMEOUT) });
        self.fault()?;
        waited.map_err(|e| EngineError::Device(format!("a step did not end: {e}")))?;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let view = readback.slice(..bytes).get_mapped_range().map_err(|e| EngineError::Device(e.to_string()))?;
        let values = bytemuck::pod_collect_to_vec(&view);
        drop(view);
        readback.unmap();
        Ok(values)
    }

    fn memory(&self) -> u64 {
        self.memory
    }
}

#[cfg(test)]
mod tests;
