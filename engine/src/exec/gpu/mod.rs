//! The executor on wgpu: each operation is one dispatch, or two where activations are rounded first. It owns the
//! device, all weights and the KV cache; a step is one command buffer and one read of its logits.

mod cache;
mod operations;
mod packed;
mod source;

use std::collections::HashMap;
use std::time::Duration;

use wgpu::util::align_to;

use super::{ActId, Function, MatrixId, Sizes};
use crate::device::{Faults, Opened};
use crate::{DeviceInfo, EngineError, LoadError};
use packed::Packed;

/// Activation rows that share an unpacked block of weights, where a step has more than one.
const TILE: usize = 4;
/// Longest time that a step may take: beyond it the device hangs.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// Most parts of a matrix; it is split where it is larger than one binding may be.
const MAX_SEGMENTS: usize = 64;
/// Bytes of weights that are repacked at once.
const CHUNK: usize = 4 << 20;

/// What a dispatch runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kernel {
    Embed(Packed),
    Add,
    AddBias,
    RmsNorm,
    LayerNorm,
    HeadNorm,
    Quantize,
    Matmul(Packed, bool),
    RopeStore,
    Attention,
    AttentionBothWays,
    Activate(Function),
    Gate(Function),
    Pick,
    PickMean,
}

struct Segment {
    packed: Packed,
    columns: usize,
    rows: usize,
    words: wgpu::Buffer,
}

/// A table of rotations.
struct Turns {
    pairs: usize,
    halves: bool,
    table: wgpu::Buffer,
}

struct Place {
    width: usize,
    buffer: wgpu::Buffer,
}

/// Key of a bind group: a kernel with the buffers that it is bound to, by number.
type Binding = (Kernel, [usize; 4]);

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
    /// How many of them the cache on disk has.
    kept: usize,
    bindings: HashMap<Binding, wgpu::BindGroup>,
    matrices: Vec<Vec<Segment>>,
    vectors: Vec<wgpu::Buffer>,
    places: Vec<Place>,
    keys: Vec<wgpu::Buffer>,
    values: Vec<wgpu::Buffer>,
    ropes: Vec<Turns>,
    rows: wgpu::Buffer,
    spans: wgpu::Buffer,
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
            kept: 0,
            bindings: HashMap::new(),
            matrices: Vec::new(),
            vectors: Vec::new(),
            places: Vec::new(),
            keys,
            values,
            // The first is for models that rotate nothing.
            ropes: vec![Turns { pairs: 0, halves: false, table: rope }],
            rows,
            spans,
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

    /// A buffer of `bytes` that is filled piece by piece before the device sees it: `fill` gives them in their order.
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
            return Err(refused(format!("`{label}` needs {needs} MiB in one binding and it allows {allows} MiB")));
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

    /// Bytes of the largest buffer that a kernel may be given.
    fn largest(&self) -> u64 {
        let limits = self.device.limits();
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
    }

    fn source(&self, kernel: Kernel) -> String {
        let s = &self.sizes;
        let sum = include_str!("sum.wgsl");
        match kernel {
            Kernel::Embed(packed) => source::embed(s, packed),
            Kernel::Add => source::with_sizes(s, include_str!("add.wgsl")),
            Kernel::AddBias => source::with_sizes(s, include_str!("add_bias.wgsl")),
            Kernel::RmsNorm => source::with_sizes(s, &[sum, include_str!("rms_norm.wgsl")].concat()),
            Kernel::LayerNorm => source::with_sizes(s, &[sum, include_str!("layer_norm.wgsl")].concat()),
            Kernel::HeadNorm => source::with_sizes(s, &[sum, include_str!("head_norm.wgsl")].concat()),
            Kernel::Quantize => source::with_sizes(s, include_str!("quantize.wgsl")),
            // Handing activations round pays where several rows share the weights: on software Vulkan 8 rows together
            // give 1.5 times as much with it, one row alone 0.7 times.
            Kernel::Matmul(packed, true) => source::matmul(s, packed, TILE, self.subgroups),
            Kernel::Matmul(packed, false) => source::matmul(s, packed, 1, false),
            Kernel::RopeStore => source::with_sizes(s, include_str!("rope_store.wgsl")),
            Kernel::Attention => {
                source::with_sizes(s, &[include_str!("attention_stored.wgsl"), include_str!("attention.wgsl")].concat())
            }
            Kernel::AttentionBothWays => source::with_sizes(
                s,
                &[include_str!("attention_both_ways.wgsl"), include_str!("attention.wgsl")].concat(),
            ),
            Kernel::Activate(function) => {
                source::with_sizes(s, &[source::function(function), include_str!("activate.wgsl")].concat())
            }
            Kernel::Gate(function) => {
                source::with_sizes(s, &[source::function(function), include_str!("gate.wgsl")].concat())
            }
            Kernel::Pick => source::with_sizes(s, include_str!("pick.wgsl")),
            Kernel::PickMean => source::with_sizes(s, include_str!("pick_mean.wgsl")),
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
        let (kernel, _) = binding;
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

    fn bind(&self, (kernel, [a, b, c, d]): Binding) -> Option<wgpu::BindGroup> {
        let place = |id: usize| self.places.get(id).map(|place| &place.buffer);
        let (quants, scales) = self.quants.as_ref().map_or((None, None), |(q, s)| (Some(q), Some(s)));
        let words =
            |id: usize| self.matrices.get(id / MAX_SEGMENTS)?.get(id % MAX_SEGMENTS).map(|segment| &segment.words);
        let buffers = match kernel {
            Kernel::Embed(_) => vec![words(a)?, &self.rows, place(b)?],
            Kernel::Add | Kernel::Gate(_) => vec![place(a)?, place(b)?],
            Kernel::AddBias => vec![self.vectors.get(a)?, place(b)?],
            Kernel::RmsNorm => vec![place(a)?, self.vectors.get(b)?, place(c)?],
            Kernel::LayerNorm => vec![place(a)?, self.vectors.get(b)?, self.vectors.get(c)?, place(d)?],
            Kernel::HeadNorm => vec![place(a)?, self.vectors.get(b)?, self.vectors.get(c)?],
            Kernel::Quantize => vec![place(a)?, quants?, scales?],
            Kernel::Matmul(packed, _) if packed.is_quantized() => vec![words(a)?, quants?, scales?, place(b)?],
            Kernel::Matmul(..) => vec![words(a)?, place(b)?, place(c)?],
            Kernel::RopeStore => {
                let rope = &self.ropes.get(c)?.table;
                vec![place(a)?, &self.rows, &self.pages, rope, self.keys.get(b)?, self.values.get(b)?]
            }
            Kernel::Attention => {
                vec![place(a)?, place(c)?, &self.rows, &self.pages, self.keys.get(b)?, self.values.get(b)?]
            }
            Kernel::AttentionBothWays => vec![place(a)?, place(b)?, &self.spans],
            Kernel::Activate(_) => vec![place(a)?],
            Kernel::Pick => vec![place(a)?, &self.picks, place(b)?],
            Kernel::PickMean => vec![place(a)?, &self.picks, &self.spans, place(b)?],
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

    /// A dispatch of one invocation for each of the step's values in a place of `width`.
    fn by_value(&mut self, kernel: Kernel, places: [usize; 4], width: usize) {
        let groups = (width.div_ceil(64), self.step_rows());
        self.dispatch((kernel, places), [width, 0, 0, 0, 0], groups);
    }

    /// From here on the step has its picked rows only.
    fn picked(&mut self) {
        if let Some(step) = &mut self.step {
            step.rows = step.picks;
        }
    }

    /// The parts of a matrix: place, family, columns, rows.
    fn segments(&self, matrix: MatrixId) -> Vec<(usize, Packed, usize, usize)> {
        let segments = self.matrices.get(matrix.0).map(Vec::as_slice).unwrap_or_default();
        segments.iter().enumerate().map(|(n, s)| (n, s.packed, s.columns, s.rows)).collect()
    }

    /// The first fault since the last step.
    fn fault(&self) -> Result<(), EngineError> {
        self.faults.take().map_or(Ok(()), |fault| Err(EngineError::Device(fault)))
    }
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;
