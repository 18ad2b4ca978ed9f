//! Choice of the kernels for matrix products. Two families suit two kinds of devices: software Vulkan has a few wide
//! cores, a GPU runs tens of thousands of invocations that must all be busy. A short measurement decides, not the
//! name of the adapter; the result is stored beside the compiled pipelines.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::packed::{GROUP, Packed};
use super::pipelines::{Kernel, ProductKernel};
use super::shared::{INVOCATIONS, MEMORY, SHARED_ROWS, TILE_ROWS};
use super::{Gpu, GpuSegment, STRETCH, cache, narrow, wide};
use crate::EngineError;

/// Rows of activations that share an unpacked block of weights in an invocation's registers.
const LANE_ROWS: usize = 4;
/// Rows of activations of a kernel with shared weight rows, for few rows and for more; beyond `MOST` rows tiles are
/// faster.
const FEW: usize = 4;
const MORE: usize = 8;
const MOST: usize = 16;
/// Products of the first run, which is not counted and includes the compilation. Counted runs have as many products
/// as take about `RUN`, at most `MOST_PRODUCTS`, so that the cost of a submission is negligible.
const PRODUCTS: u32 = 4;
const MOST_PRODUCTS: u32 = 512;
const RUN: Duration = Duration::from_millis(4);
/// Counted runs; the fastest is the result.
const RUNS: usize = 2;
/// Rows of activations in a run with many, unless the output exceeds `QUICK_BYTES` bytes.
const MANY: usize = 64;
/// Bytes of a matrix that any device reads in well under a second.
const QUICK_BYTES: u64 = 4 << 20;
/// Factor by which a family must be slower for one row to be excluded from the measurement of many.
const FAR_SLOWER: u32 = 2;

/// Family of kernels for products. All kernels of a family sum a row in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KernelFamily {
    /// One invocation for each weight row.
    Lanes,
    /// Several invocations for each weight row, or one workgroup for a tile.
    Shared,
}

impl KernelFamily {
    pub(super) const ALL: [Self; 2] = [Self::Lanes, Self::Shared];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lanes => "lanes",
            Self::Shared => "shared",
        }
    }

    /// Kernels of the family.
    fn products(self) -> &'static [ProductKernel] {
        match self {
            Self::Lanes => &[ProductKernel::Lane { rows: 1 }, ProductKernel::Lane { rows: LANE_ROWS }],
            Self::Shared => &[
                ProductKernel::Shared { rows: 1 },
                ProductKernel::Shared { rows: FEW },
                ProductKernel::Shared { rows: MORE },
                ProductKernel::Tile,
            ],
        }
    }

    /// Kernel for `rows` rows of activations, and its workgroups for `weights` weight rows.
    pub(super) fn product(self, rows: usize, weights: usize) -> (ProductKernel, (usize, usize)) {
        let shared = |rows_at_once| {
            (ProductKernel::Shared { rows: rows_at_once }, (weights.div_ceil(SHARED_ROWS), rows.div_ceil(rows_at_once)))
        };
        match (self, rows) {
            (Self::Lanes, 0..=1) => (ProductKernel::Lane { rows: 1 }, (weights.div_ceil(GROUP), rows)),
            (Self::Lanes, _) => {
                (ProductKernel::Lane { rows: LANE_ROWS }, (weights.div_ceil(GROUP), rows.div_ceil(LANE_ROWS)))
            }
            (Self::Shared, 0..=1) => shared(1),
            (Self::Shared, 2..=FEW) => shared(FEW),
            (Self::Shared, ..=MOST) => shared(MORE),
            (Self::Shared, _) => (ProductKernel::Tile, (weights.div_ceil(GROUP), rows.div_ceil(TILE_ROWS))),
        }
    }
}

impl Gpu {
    /// Chooses the family of products, once. Runs on the device, so it must be part of a watched step.
    pub(super) fn choose_family(&mut self) -> Result<(), EngineError> {
        if self.family.is_some() {
            return Ok(());
        }
        let (family, why) = if !self.may_share() {
            (KernelFamily::Lanes, "its limits")
        } else if let Some(family) = self.measured_before() {
            (family, "measured before")
        } else {
            (self.measure()?, "measured")
        };
        self.compile_all(family);
        let refused = if family == KernelFamily::Shared { self.faults.take() } else { None };
        let family = refused.map_or(family, |reason| self.without_shared(&reason));
        tracing::info!(event = "products_chosen", device = %self.info.name, family = family.name(), why);
        self.family = Some(family);
        Ok(())
    }

    /// True if the device's limits allow shared products.
    fn may_share(&self) -> bool {
        let limits = self.device.limits();
        narrow(INVOCATIONS) <= limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x)
            && narrow(MEMORY) <= limits.max_compute_workgroup_storage_size
    }

    /// Falls back to the other family on a device that cannot run shared products, and logs the reason.
    fn without_shared(&self, reason: &str) -> KernelFamily {
        tracing::warn!(event = "products_refused", device = %self.info.name, family = KernelFamily::Shared.name(), reason);
        KernelFamily::Lanes
    }

    /// Compiles kernels that the first step does not need but later ones may, so that no request waits for them.
    fn compile_all(&mut self, family: KernelFamily) {
        let all: HashSet<_> = self.matrices.iter().flatten().map(|segment| segment.packed).collect();
        for packed in all {
            family.products().iter().for_each(|product| self.compile(Kernel::Matmul(packed, *product)));
        }
        if family == KernelFamily::Shared && self.sizes.layers > 0 && self.sizes.context > STRETCH {
            self.compile(Kernel::Attention { apart: true });
            self.compile(Kernel::AttentionMerge);
        }
    }

    /// Measures both families on a matrix of the most frequent packing. If the device cannot run one of them, the
    /// other is chosen.
    fn measure(&mut self) -> Result<KernelFamily, EngineError> {
        let Some((packed, at)) = self.typical() else { return Ok(KernelFamily::Lanes) };
        let lanes = self.time(KernelFamily::Lanes, packed, at, 1)?;
        let shared = match self.time(KernelFamily::Shared, packed, at, 1) {
            Ok(shared) => shared,
            Err(e) => return Ok(self.without_shared(&e.to_string())),
        };
        let family = if shared > lanes * FAR_SLOWER {
            KernelFamily::Lanes
        } else if lanes > shared * FAR_SLOWER {
            KernelFamily::Shared
        } else {
            let many_lanes = self.time(KernelFamily::Lanes, packed, at, MANY)?.as_secs_f64();
            let many_shared = match self.time(KernelFamily::Shared, packed, at, MANY) {
                Ok(shared) => shared.as_secs_f64(),
                Err(e) => return Ok(self.without_shared(&e.to_string())),
            };
            // Decoding and prefill count alike, each in proportion.
            match shared.as_secs_f64() * many_shared < lanes.as_secs_f64() * many_lanes {
                true => KernelFamily::Shared,
                false => KernelFamily::Lanes,
            }
        };
        let (lanes_us, shared_us) = (lanes.as_micros(), shared.as_micros());
        tracing::debug!(event = "products_measured", device = %self.info.name, lanes_us, shared_us);
        if let Some(path) = self.result_path() {
            cache::replace(&path, family.name().as_bytes());
        }
        Ok(family)
    }

    /// Result of an earlier process.
    fn measured_before(&self) -> Option<KernelFamily> {
        let told = std::fs::read(self.result_path()?).ok()?;
        KernelFamily::ALL.into_iter().find(|family| family.name().as_bytes() == told)
    }

    /// Path of the stored result for a matrix of this packing and about this size.
    pub(super) fn result_path(&self) -> Option<PathBuf> {
        let (packed, (matrix, segment)) = self.typical()?;
        let bytes = self.matrices.get(matrix)?.get(segment)?.words.size();
        let identity = format!("{}|products|{packed:?}|{}", self.identity, bytes.max(1).ilog2());
        Some(cache::path(self.cache_dir.as_deref()?, "products", &identity))
    }

    /// Packing of most weights, and one of its matrices: the largest within `QUICK_BYTES` bytes.
    fn typical(&self) -> Option<(Packed, (usize, usize))> {
        let all = || {
            let places = self.matrices.iter().enumerate();
            places.flat_map(|(m, segments)| segments.iter().enumerate().map(move |(n, segment)| ((m, n), segment)))
        };
        let bytes_of = |packed| all().filter(|(_, s)| s.packed == packed).map(|(_, s)| s.words.size()).sum::<u64>();
        let packed = all().map(|(_, s)| s.packed).max_by_key(|packed| bytes_of(*packed))?;
        let fits = |s: &GpuSegment| s.words.size() <= QUICK_BYTES;
        let (at, _) = all().filter(|(_, s)| s.packed == packed).max_by_key(|(_, s)| match fits(s) {
            true => (1, s.words.size()),
            false => (0, u64::MAX - s.words.size()),
        })?;
        Some((packed, at))
    }

    /// Duration of a product of one matrix with `rows` rows of activations.
    fn time(
        &mut self,
        family: KernelFamily,
        packed: Packed,
        (matrix, segment): (usize, usize),
        rows: usize,
    ) -> Result<Duration, EngineError> {
        let gone = || EngineError::Device("a product could not be measured".into());
        let segment = self.matrices.get(matrix).and_then(|segments| segments.get(segment)).ok_or_else(gone)?;
        let (columns, weights, words) = (segment.columns, segment.rows, segment.words.clone());
        let fitting = usize::try_from(QUICK_BYTES).unwrap_or(usize::MAX) / (weights * 4).max(1);
        let rows = rows.min(self.sizes.max_rows).min(fitting.max(1));
        let (product, (x, y)) = family.product(rows, weights);
        let kernel = Kernel::Matmul(packed, product);
        self.compile(kernel);
        let buffer = |bytes: usize| {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("a product that is measured"),
                size: wide(bytes).next_multiple_of(16).max(16),
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        };
        let out = buffer(rows * weights * 4);
        let activations = match packed.is_quantized() {
            true => vec![buffer(rows * columns), buffer(rows * columns / 4)],
            false => vec![buffer(rows * columns * 4)],
        };
        let pipeline = self.pipelines.get(&kernel).ok_or_else(gone)?;
        let bound = std::iter::once(&words).chain(&activations).chain(std::iter::once(&out));
        let group = self.group(kernel, bound).ok_or_else(gone)?;
        let params = [rows, columns / packed.unit().0, weights, weights, 0, 0].map(narrow);
        let run = |products: u32| {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, &group, &[]);
                pass.set_immediates(0, bytemuck::cast_slice(&params));
                for _ in 0..products {
                    pass.dispatch_workgroups(narrow(x), narrow(y), 1);
                }
            }
            let began = Instant::now();
            self.queue.submit([encoder.finish()]);
            self.wait()?;
            Ok::<_, EngineError>(began.elapsed() / products)
        };
        run(PRODUCTS)?;
        let about = run(PRODUCTS)?.as_nanos().max(1);
        let products = u32::try_from(RUN.as_nanos() / about).unwrap_or(u32::MAX).clamp(PRODUCTS, MOST_PRODUCTS);
        let mut quickest = Duration::MAX;
        for _ in 0..RUNS {
            quickest = quickest.min(run(products)?);
        }
        Ok(quickest)
    }
}
