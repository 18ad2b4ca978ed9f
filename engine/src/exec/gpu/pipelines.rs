//! Kernels, compiled when they are first needed, and the buffers that each binds.

use super::packed::Packed;
use super::{Dispatch, Gpu, MAX_SEGMENTS, narrow, shared, source};
use crate::exec::Function;

/// Kernel of a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    Embed(Packed),
    Add,
    AddBias,
    RmsNorm,
    LayerNorm,
    HeadNorm,
    Quantize,
    Matmul(Packed, ProductKernel),
    RopeStore,
    /// Attention over all visible positions, or over each stretch of them apart.
    Attention {
        apart: bool,
    },
    AttentionMerge,
    AttentionBothWays,
    Activate(Function),
    Gate(Function),
    Pick,
    PickMean,
}

/// Distribution of a product's sums over invocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ProductKernel {
    /// One invocation for each weight row, for `rows` rows of activations.
    Lane { rows: usize },
    /// Several invocations for each weight row, for `rows` rows of activations.
    Shared { rows: usize },
    /// One workgroup for a tile of weight rows and rows of activations.
    Tile,
}

/// Key of a bind group: a kernel with the indexes of its buffers.
pub(super) type Binding = (Kernel, [usize; 4]);

impl Gpu {
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
            // Passing activations between lanes pays where several rows share the weights. On software Vulkan 8 rows
            // together run 1.5 times as fast with it, one row alone 0.7 times.
            Kernel::Matmul(packed, ProductKernel::Lane { rows }) => {
                source::matmul(s, packed, rows, self.subgroups && rows > 1)
            }
            Kernel::Matmul(packed, ProductKernel::Shared { rows }) => shared::matmul(s, packed, rows),
            Kernel::Matmul(packed, ProductKernel::Tile) => shared::tile(s, packed),
            Kernel::RopeStore => source::with_sizes(s, include_str!("rope_store.wgsl")),
            Kernel::Attention { apart } => source::attention(s, include_str!("attention_stored.wgsl"), apart),
            Kernel::AttentionMerge => source::attention_merge(s),
            Kernel::AttentionBothWays => source::attention(s, include_str!("attention_both_ways.wgsl"), false),
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

    pub(super) fn compile(&mut self, kernel: Kernel) {
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
            // SAFETY: every index in the kernels is below a size that was checked when the model was loaded. The
            // scheduler makes rows, pages and picks within `Sizes`, and tokens are below the vocabulary (`begin`
            // checks both); loops are bounded by those. The tests run every kernel with the checks on as well.
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

    /// Records a dispatch; its pipeline and bind group are made the first time.
    pub(super) fn dispatch(&mut self, binding: Binding, params: [usize; 5], groups: (usize, usize)) {
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
        let place = |id: usize| self.activations.get(id).map(|place| &place.buffer);
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
            Kernel::AttentionMerge => vec![self.gathered.as_ref()?, &self.rows, place(a)?],
            Kernel::RopeStore => {
                let rope = &self.ropes.get(c)?.table;
                vec![place(a)?, &self.rows, &self.pages, rope, self.keys.get(b)?, self.values.get(b)?]
            }
            Kernel::Attention { apart } => {
                let out = if apart { self.gathered.as_ref() } else { place(c) };
                vec![place(a)?, out?, &self.rows, &self.pages, self.keys.get(b)?, self.values.get(b)?]
            }
            Kernel::AttentionBothWays => vec![place(a)?, place(b)?, &self.spans],
            Kernel::Activate(_) => vec![place(a)?],
            Kernel::Pick => vec![place(a)?, &self.picks, place(b)?],
            Kernel::PickMean => vec![place(a)?, &self.picks, &self.spans, place(b)?],
        };
        self.group(kernel, buffers)
    }

    /// Binds buffers to a compiled kernel.
    pub(super) fn group<'a>(
        &self,
        kernel: Kernel,
        buffers: impl IntoIterator<Item = &'a wgpu::Buffer>,
    ) -> Option<wgpu::BindGroup> {
        let entries: Vec<_> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let layout = self.pipelines.get(&kernel)?.get_bind_group_layout(0);
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
        Some(self.device.create_bind_group(&descriptor))
    }
}
