//! Operations compiled for each vector unit. The executor uses the set of the unit that it runs on.

use std::ops::Range;

use half::f16;

use super::attention::{self, Attention, Cache};
use super::matmul::{self, Product};
use super::pack::Layout;
use super::unit::{CpuUnit, Unit, portable::Portable};
use super::{quantize, rows};
use crate::exec::Function;

/// Packing of activations for matrices of floats that `takes` accepts.
#[derive(Clone, Copy)]
pub(super) struct Split {
    pub(super) takes: fn(&Layout) -> bool,
    pub(super) split: unsafe fn(*const f32, usize, usize, &Layout, *mut u8),
}

/// Operations on one unit. Calling one is safe if the processor has that unit and the operation's own conditions
/// hold.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    /// Rows of weights side by side.
    pub(super) lanes: usize,
    /// Most rows of activations of a tile, for weights that are floats and for those that are quantised.
    pub(super) tile: usize,
    pub(super) quantized_tile: usize,
    /// Most queries of a tile of attention.
    pub(super) queries: usize,
    /// True if 8-bit weights are stored unchanged.
    pub(super) signed: bool,
    /// Takes scratch of [`matmul::scratch`] bytes.
    pub(super) matmul: unsafe fn(&Product, Range<usize>, *mut u8),
    pub(super) quantize: unsafe fn(*const f32, usize, usize, &Layout, *mut u8),
    pub(super) transpose: unsafe fn(*const f32, usize, usize, &Layout, *mut f32),
    /// Replaces `transpose` for the matrices that it accepts: packs up to 16 rows as if they were 16.
    pub(super) split: Option<Split>,
    pub(super) rms_norm: unsafe fn(*const f32, *const f32, usize, f32, *mut f32),
    pub(super) layer_norm: unsafe fn(*const f32, *const f32, *const f32, usize, f32, *mut f32),
    pub(super) add: unsafe fn(*const f32, f32, usize, *mut f32),
    pub(super) apply: unsafe fn(Function, *const f32, *const f32, usize, *mut f32),
    pub(super) rotate_neighbours: unsafe fn(*mut f32, *const f32, usize),
    pub(super) rotate_halves: unsafe fn(*mut f32, *const f32, usize),
    pub(super) store: unsafe fn(&Cache<f16>, u32, usize, usize, *const f32, *const f32),
    pub(super) attention: unsafe fn(&Attention<f16>, &attention::QueryTile, *mut f32),
    /// [`Self::store`] and [`Self::attention`] for keys and values of one operation only.
    pub(super) store_f32: unsafe fn(&Cache<f32>, u32, usize, usize, *const f32, *const f32),
    pub(super) attention_f32: unsafe fn(&Attention<f32>, &attention::QueryTile, *mut f32),
}

macro_rules! compiled {
    ($module:ident, $unit:ty $(, #[$attribute:meta])?) => {
        mod $module {
            use super::*;
            type U = $unit;

            pub(super) static KERNELS: Kernels = Kernels {
                lanes: U::ROWS,
                tile: U::TILE,
                quantized_tile: U::TILE,
                queries: U::QUERIES,
                signed: U::SIGNED,
                matmul,
                quantize,
                transpose,
                split: None,
                rms_norm,
                layer_norm,
                add,
                apply,
                rotate_neighbours,
                rotate_halves,
                store,
                attention,
                store_f32,
                attention_f32,
            };

            $(#[$attribute])?
            unsafe fn matmul(p: &Product, groups: Range<usize>, _: *mut u8) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { matmul::matmul::<U>(p, groups) }
            }

            $(#[$attribute])?
            unsafe fn quantize(x: *const f32, width: usize, rows: usize, layout: &Layout, out: *mut u8) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { quantize::quantize::<U>(x, width, rows, layout, out) }
            }

            $(#[$attribute])?
            unsafe fn transpose(x: *const f32, width: usize, rows: usize, layout: &Layout, out: *mut f32) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { quantize::transpose(x, width, rows, layout, out) }
            }

            $(#[$attribute])?
            unsafe fn rms_norm(x: *const f32, weight: *const f32, n: usize, eps: f32, out: *mut f32) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { rows::rms_norm::<U>(x, weight, n, eps, out) }
            }

            $(#[$attribute])?
            unsafe fn layer_norm(x: *const f32, weight: *const f32, bias: *const f32, n: usize, eps: f32, out: *mut f32) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { rows::layer_norm::<U>(x, weight, bias, n, eps, out) }
            }

            $(#[$attribute])?
            unsafe fn add(x: *const f32, scale: f32, n: usize, out: *mut f32) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { rows::add::<U>(x, scale, n, out) }
            }

            $(#[$attribute])?
            unsafe fn apply(f: Function, x: *const f32, by: *const f32, n: usize, out: *mut f32) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { rows::apply::<U>(f, x, by, n, out) }
            }

            $(#[$attribute])?
            unsafe fn rotate_neighbours(head: *mut f32, table: *const f32, pairs: usize) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { rows::rotate_neighbours(head, table, pairs) }
            }

            $(#[$attribute])?
            unsafe fn rotate_halves(head: *mut f32, table: *const f32, pairs: usize) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { rows::rotate_halves(head, table, pairs) }
            }

            $(#[$attribute])?
            unsafe fn store(cache: &Cache<f16>, page: u32, place: usize, head: usize, key: *const f32, value: *const f32) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { cache.store::<U>(page, place, head, key, value) }
            }

            $(#[$attribute])?
            unsafe fn attention(a: &Attention<f16>, tile: &attention::QueryTile, scratch: *mut f32) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { attention::attention::<U, f16>(a, tile, scratch) }
            }

            $(#[$attribute])?
            unsafe fn store_f32(cache: &Cache<f32>, page: u32, place: usize, head: usize, key: *const f32, value: *const f32) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { cache.store::<U>(page, place, head, key, value) }
            }

            $(#[$attribute])?
            unsafe fn attention_f32(a: &Attention<f32>, tile: &attention::QueryTile, scratch: *mut f32) {
                // SAFETY: as for the operation; the unit is there, as `Kernels` says.
                unsafe { attention::attention::<U, f32>(a, tile, scratch) }
            }
        }
    };
}

compiled!(portable, Portable);
#[cfg(target_arch = "x86_64")]
compiled!(avx2, super::super::unit::avx2::Avx2<false>, #[target_feature(enable = "avx2,fma,f16c")]);
#[cfg(target_arch = "x86_64")]
compiled!(avx_vnni, super::super::unit::avx2::Avx2<true>, #[target_feature(enable = "avx2,fma,f16c,avxvnni")]);
#[cfg(target_arch = "x86_64")]
compiled!(
    avx512_vnni,
    super::super::unit::avx512::Avx512,
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
);
/// Operations of AVX-512, and products by tiles of AMX.
#[cfg(target_arch = "x86_64")]
mod amx_int8 {
    use super::super::{amx, amx_floats};
    use super::*;

    pub(super) static KERNELS: Kernels = Kernels {
        quantized_tile: amx::ROWS,
        matmul,
        split: Some(Split { takes: amx_floats::takes, split }),
        ..avx512_vnni::KERNELS
    };

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn split(x: *const f32, width: usize, rows: usize, layout: &Layout, out: *mut u8) {
        // SAFETY: as for the operation; the unit is there, as `Kernels` says.
        unsafe { amx_floats::split(x, width, rows, layout, out) }
    }

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn matmul(p: &Product, groups: Range<usize>, scratch: *mut u8) {
        // SAFETY: as for the operation; the unit is there, as `Kernels` says.
        unsafe { amx::matmul(p, groups, scratch) }
    }
}
#[cfg(target_arch = "aarch64")]
compiled!(neon, super::super::unit::neon::Neon<false>, #[target_feature(enable = "neon")]);
#[cfg(target_arch = "aarch64")]
compiled!(neon_dot, super::super::unit::neon::Neon<true>, #[target_feature(enable = "neon,dotprod")]);

impl Kernels {
    /// Operations of a unit, whose presence the caller has checked.
    pub(super) fn of(unit: CpuUnit) -> &'static Self {
        match unit {
            #[cfg(target_arch = "x86_64")]
            CpuUnit::Amx => &amx_int8::KERNELS,
            #[cfg(target_arch = "x86_64")]
            CpuUnit::Avx512Vnni => &avx512_vnni::KERNELS,
            #[cfg(target_arch = "x86_64")]
            CpuUnit::AvxVnni => &avx_vnni::KERNELS,
            #[cfg(target_arch = "x86_64")]
            CpuUnit::Avx2 => &avx2::KERNELS,
            #[cfg(target_arch = "aarch64")]
            CpuUnit::NeonDot => &neon_dot::KERNELS,
            #[cfg(target_arch = "aarch64")]
            CpuUnit::Neon => &neon::KERNELS,
            _ => &portable::KERNELS,
        }
    }
}
