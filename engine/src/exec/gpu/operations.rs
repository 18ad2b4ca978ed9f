//! Operations: the dispatches and buffers of each, and the readback of a step's logits.

use super::family::KernelFamily;
use super::packed::{self, GROUP, Packed};
use super::shared::SHARED_ROWS;
use super::{
    BUSY_HEADS, CHUNK, Gpu, GpuActivation, GpuSegment, Kernel, MAX_GATHERED, MAX_SEGMENTS, Recording, RotationTable,
    STRETCH, cache, narrow, wide,
};
use crate::artifact::Tensor;
use crate::exec::{ActId, Batch, Executor, Function, Index, MatrixId, PAGE, Pairing, Rope, RopeId, VectorId};
use crate::{EngineError, LoadError};

impl Executor for Gpu {
    fn matrix(&mut self, parts: &[Tensor<'_>]) -> Result<MatrixId, LoadError> {
        let mut segments: Vec<GpuSegment> = Vec::new();
        // Neighbours of one packing become one matrix: one dispatch instead of several.
        let alike = |a: &Tensor<'_>, b: &Tensor<'_>| Packed::of(a.kind) == Packed::of(b.kind) && a.columns == b.columns;
        for group in parts.chunk_by(alike) {
            let Some(first) = group.first() else { continue };
            let (packed, columns) = (Packed::of(first.kind), first.columns);
            let group_bytes = packed.group_bytes(columns);
            let fitting = usize::try_from(self.largest()).unwrap_or(usize::MAX) / group_bytes.max(1);
            let fitting = fitting.min(self.most_workgroups() * SHARED_ROWS / GROUP);
            let mut left = group.iter().map(|part| part.rows).sum::<usize>();
            let mut data = packed::rows(group);
            while left > 0 {
                let rows = left.min(fitting.max(1) * GROUP);
                let words = self.filled(first.name, rows.div_ceil(GROUP) * group_bytes, |put| {
                    let mut chunk = vec![0u32; group_bytes / 4 * (CHUNK / group_bytes.max(1)).max(1)];
                    let at_once = chunk.len() / (group_bytes / 4).max(1) * GROUP;
                    let mut done = 0;
                    while done < rows {
                        let count = at_once.min(rows - done);
                        chunk.fill(0);
                        for (n, (kind, row)) in data.by_ref().take(count).enumerate() {
                            let from = n / GROUP * (group_bytes / 4);
                            packed.pack_row(kind, row, n % GROUP, chunk.get_mut(from..).unwrap_or_default());
                        }
                        put(bytemuck::cast_slice(&chunk));
                        done += count;
                    }
                })?;
                segments.push(GpuSegment { packed, columns, rows, words });
                left -= rows;
            }
        }
        if segments.len() > MAX_SEGMENTS {
            let reason = format!("a matrix needs {} bindings; expected at most {MAX_SEGMENTS}", segments.len());
            return Err(LoadError::Device { device: self.info.name.clone(), reason });
        }
        self.matrices.push(segments);
        Ok(MatrixId(self.matrices.len() - 1))
    }

    fn vector(&mut self, values: &[f32]) -> Result<VectorId, LoadError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = self.filled("a vector", bytes.len(), |put| put(bytes))?;
        self.vectors.push(buffer);
        Ok(VectorId(self.vectors.len() - 1))
    }

    fn rope(&mut self, rope: &Rope) -> Result<RopeId, LoadError> {
        let halves = rope.pairing == Pairing::Halves;
        if halves && !rope.dim.is_multiple_of(4) {
            let reason = format!("rotated halves of {} values; this executor runs an even number of pairs", rope.dim);
            return Err(LoadError::Device { device: self.info.name.clone(), reason });
        }
        let table = rope.table(self.sizes.context);
        let bytes: &[u8] = bytemuck::cast_slice(&table);
        let table = self.filled("a table of rotations", bytes.len(), |put| put(bytes))?;
        self.ropes.push(RotationTable { pairs: rope.dim / 2, halves, table });
        Ok(RopeId(self.ropes.len() - 1))
    }

    fn activation(&mut self, width: usize, rows: usize) -> Result<ActId, LoadError> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = self.storage("activations", rows * width * 4, usage)?;
        self.activations.push(GpuActivation { width, buffer });
        Ok(ActId(self.activations.len() - 1))
    }

    fn ready(&mut self) -> Result<(), LoadError> {
        let quantized = self.matrices.iter().flatten().filter(|segment| segment.packed.is_quantized());
        let values = quantized.map(|segment| segment.columns).max().unwrap_or(0) * self.sizes.max_rows;
        let storage = wgpu::BufferUsages::STORAGE;
        self.quants =
            Some((self.storage("rounded activations", values, storage)?, self.storage("scales", values / 4, storage)?));
        let stretches = self.sizes.context.div_ceil(STRETCH);
        let heads = (self.sizes.max_rows * self.sizes.heads).min(BUSY_HEADS);
        let gathered = if self.sizes.layers > 0 && stretches > 1 { self.gathered_bytes(heads, stretches) } else { 0 };
        let gathered = gathered.min(MAX_GATHERED);
        self.gathered = Some(self.storage("what attention gathers", gathered, storage)?);
        match self.faults.take() {
            None => Ok(()),
            Some(reason) => Err(LoadError::Device { device: self.info.name.clone(), reason }),
        }
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), EngineError> {
        self.fault()?;
        if !self.sizes.hold(batch) {
            return Err(EngineError::Device("a step exceeds the sizes of the executor".into()));
        }
        self.choose_family()?;
        let types = batch.types.iter().copied().chain(std::iter::repeat(0));
        let rows: Vec<[u32; 4]> =
            batch.rows.iter().zip(types).map(|(row, kind)| [row.token, row.position, row.slot, kind]).collect();
        self.queue.write_buffer(&self.rows, 0, bytemuck::cast_slice(&rows));
        self.queue.write_buffer(&self.spans, 0, bytemuck::cast_slice(&batch.spans()));
        self.queue.write_buffer(&self.pages, 0, bytemuck::cast_slice(&batch.pages));
        self.queue.write_buffer(&self.picks, 0, bytemuck::cast_slice(&batch.picks));
        let (rows, picks) = (narrow(batch.rows.len()), narrow(batch.picks.len()));
        let farthest = batch.rows.iter().map(|row| row.position as usize).max().unwrap_or(0);
        self.step = Some(Recording { dispatches: Vec::with_capacity(512), rows, picks, farthest });
        Ok(())
    }

    fn embed(&mut self, table: MatrixId, index: Index, scale: f32, out: ActId, add: bool) {
        let (width, rows) = (self.width(out), self.step_rows());
        let place = match index {
            Index::Token => 0,
            Index::Position => 1,
            Index::Type => 3,
        };
        let mut first = 0;
        for (n, packed, _, count) in self.segments(table) {
            let binding = (Kernel::Embed(packed), [table.0 * MAX_SEGMENTS + n, out.0, 0, 0]);
            let params = [width, 2 * place + usize::from(add), scale.to_bits() as usize, first, count];
            self.dispatch(binding, params, (width.div_ceil(64), rows));
            first += count;
        }
    }

    fn add(&mut self, x: ActId, out: ActId) {
        self.by_value(Kernel::Add, [x.0, out.0, 0, 0], self.width(out));
    }

    fn add_bias(&mut self, bias: VectorId, out: ActId) {
        self.by_value(Kernel::AddBias, [bias.0, out.0, 0, 0], self.width(out));
    }

    fn rms_norm(&mut self, x: ActId, weight: VectorId, eps: f32, out: ActId) {
        let (width, rows) = (self.width(x), self.step_rows());
        let eps = eps.to_bits() as usize;
        self.dispatch((Kernel::RmsNorm, [x.0, weight.0, out.0, 0]), [width, eps, 0, 0, 0], (rows, 1));
    }

    fn layer_norm(&mut self, x: ActId, weight: VectorId, bias: VectorId, eps: f32, out: ActId) {
        let (width, rows) = (self.width(x), self.step_rows());
        let eps = eps.to_bits() as usize;
        self.dispatch((Kernel::LayerNorm, [x.0, weight.0, bias.0, out.0]), [width, eps, 0, 0, 0], (rows, 1));
    }

    fn head_norm(&mut self, qkv: ActId, query: VectorId, key: VectorId, eps: f32) {
        let (heads, rows) = (self.sizes.heads + self.sizes.kv_heads, self.step_rows());
        let eps = eps.to_bits() as usize;
        self.dispatch((Kernel::HeadNorm, [qkv.0, query.0, key.0, 0]), [eps, 0, 0, 0, 0], (heads, rows));
    }

    fn matmul(&mut self, matrix: MatrixId, x: ActId, out: ActId, add: bool) {
        let (rows, width) = (self.step_rows(), self.width(out));
        let segments = self.segments(matrix);
        if let Some((_, _, columns, _)) = segments.iter().find(|(_, packed, ..)| packed.is_quantized()) {
            let blocks = columns / 32;
            self.dispatch((Kernel::Quantize, [x.0, 0, 0, 0]), [blocks, 0, 0, 0, 0], ((rows * blocks).div_ceil(64), 1));
        }
        // Chosen when the step began.
        let family = self.family.unwrap_or(KernelFamily::Lanes);
        let mut offset = 0;
        for (n, packed, columns, weights) in segments {
            let id = matrix.0 * MAX_SEGMENTS + n;
            let (product, groups) = family.product(rows, weights);
            let places = if packed.is_quantized() { [id, out.0, 0, 0] } else { [id, x.0, out.0, 0] };
            let params = [columns / packed.unit().0, weights, width, offset, usize::from(add)];
            self.dispatch((Kernel::Matmul(packed, product), places), params, groups);
            offset += weights;
        }
    }

    fn rope_store(&mut self, qkv: ActId, rope: Option<RopeId>, layer: usize) {
        let rope = rope.map_or(0, |rope| rope.0);
        let Some((pairs, halves)) = self.ropes.get(rope).map(|turns| (turns.pairs, turns.halves)) else { return };
        let s = &self.sizes;
        let couples = (s.heads + 2 * s.kv_heads) * (s.head_dim / 2).div_ceil(2);
        let groups = (couples.div_ceil(64), self.step_rows());
        self.dispatch((Kernel::RopeStore, [qkv.0, layer, rope, 0]), [pairs, usize::from(halves), 0, 0, 0], groups);
    }

    fn attention(&mut self, qkv: ActId, layer: usize, scale: f32, window: Option<u32>, out: ActId) {
        let (heads, rows) = (self.sizes.heads, self.step_rows());
        let window = window.unwrap_or(u32::MAX).max(1) as usize;
        let stretches = self.stretches_apart(window);
        let apart = stretches > 1;
        let params = [scale.to_bits() as usize, window, stretches, 0, 0];
        self.dispatch((Kernel::Attention { apart }, [qkv.0, layer, out.0, 0]), params, (heads * stretches, rows));
        if apart {
            self.dispatch((Kernel::AttentionMerge, [out.0, 0, 0, 0]), params, (heads, rows));
        }
    }

    fn attention_both_ways(&mut self, qkv: ActId, scale: f32, out: ActId) {
        let (heads, rows) = (self.sizes.heads, self.step_rows());
        let params = [scale.to_bits() as usize, 0, 1, 0, 0];
        self.dispatch((Kernel::AttentionBothWays, [qkv.0, out.0, 0, 0]), params, (heads, rows));
    }

    fn activate(&mut self, function: Function, x: ActId) {
        self.by_value(Kernel::Activate(function), [x.0, 0, 0, 0], self.width(x));
    }

    fn gate(&mut self, function: Function, x: ActId, out: ActId) {
        self.by_value(Kernel::Gate(function), [x.0, out.0, 0, 0], self.width(out));
    }

    fn pick(&mut self, x: ActId, out: ActId) {
        self.picked();
        self.by_value(Kernel::Pick, [x.0, out.0, 0, 0], self.width(x));
    }

    fn pick_mean(&mut self, x: ActId, out: ActId) {
        self.picked();
        self.by_value(Kernel::PickMean, [x.0, out.0, 0, 0], self.width(x));
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
        let (Some(readback), Some(place)) = (&self.readback, self.activations.get(logits.0)) else {
            return Err(EngineError::Device("the buffer of the logits is missing".into()));
        };
        if bytes > 0 {
            encoder.copy_buffer_to_buffer(&place.buffer, 0, readback, 0, bytes);
        }
        self.queue.submit([encoder.finish()]);
        if bytes > 0 {
            let failed = self.faults.clone();
            readback.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| {
                if let Err(e) = result {
                    failed.record(&e.to_string());
                }
            });
        }
        self.wait()?;
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let view = readback.slice(..bytes).get_mapped_range().map_err(|e| EngineError::Device(e.to_string()))?;
        let values = bytemuck::pod_collect_to_vec(&view);
        drop(view);
        readback.unmap();
        // Pipelines are compiled by the first steps that need them.
        if self.pipelines.len() > self.cached_pipelines {
            self.cached_pipelines = self.pipelines.len();
            if let Some(cache) = &self.pipeline_cache {
                cache::store(cache, self.cache_dir.as_deref(), &self.identity);
            }
        }
        Ok(values)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> bool {
        let size = wide(PAGE * self.sizes.kv_heads * self.sizes.head_dim * 2);
        // A buffer cannot be copied within itself, hence the intermediate one.
        let between = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("a page on its way"),
            size,
            usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for cache in self.keys.iter().chain(&self.values) {
            encoder.copy_buffer_to_buffer(cache, u64::from(from) * size, &between, 0, size);
            encoder.copy_buffer_to_buffer(&between, 0, cache, u64::from(to) * size, size);
        }
        self.queue.submit([encoder.finish()]);
        true
    }

    fn memory(&self) -> u64 {
        self.memory
    }
}
