//! Matrix unit of AMX: products of 16 rows of activations with 16 rows of weights, a block of 32 columns at a time.
//! Written as assembly, since the intrinsics are not stable. Used together with AVX-512, which runs everything else.

use std::arch::asm;
use std::sync::OnceLock;

/// Rows of activations, and of weights.
pub(crate) const ROWS: usize = 16;

/// Shapes of the tile registers: palette 1; bytes of a row from byte 16 on, rows from byte 48 on. Registers 0 and 1
/// are sums; 2 is 32 columns of activations, 3 of weights, 4 columns in a row of them. Registers 4 and 5 are the same
/// of 16 columns.
#[repr(C, align(64))]
struct Shapes([u8; 64]);

static SHAPES: Shapes = shapes([(64, 16), (64, 16), (32, 16), (64, 8), (16, 16), (64, 4), (0, 0), (0, 0)]);
/// Shapes with 16 rows of 32 16-bit floats, or of 16 sums.
static FLOATS: Shapes = shapes([(64, 16); 8]);

const fn shapes(all: [(u8, u8); 8]) -> Shapes {
    let mut shapes = [0; 64];
    shapes[0] = 1;
    let mut n = 0;
    while n < all.len() {
        (shapes[16 + 2 * n], shapes[48 + n]) = all[n];
        n += 1;
    }
    Shapes(shapes)
}

/// True if the processor has the unit and the system lets this process use its registers, which must be requested
/// once.
pub(super) fn is_here() -> bool {
    static HERE: OnceLock<bool> = OnceLock::new();
    *HERE.get_or_init(|| {
        /// Bits of CPUID's leaf 7: products of 16-bit floats, tiles, products of bytes.
        const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        let has = std::arch::x86_64::__cpuid(0).eax >= 7 && std::arch::x86_64::__cpuid_count(7, 0).edx & TILES == TILES;
        has && is_allowed()
    })
}

/// Requests the tile registers from the system (Linux, Documentation/arch/x86/xstate.rst).
#[cfg(target_os = "linux")]
fn is_allowed() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: changes only the permissions of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_allowed() -> bool {
    false
}

/// Sets the registers' shapes, for this thread until [`leave`].
///
/// # Safety
/// The processor has the unit.
#[inline(always)]
pub(crate) unsafe fn enter() {
    // SAFETY: the shapes are valid and of 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) SHAPES.0.as_ptr(), options(nostack, preserves_flags, readonly)) };
}

/// As [`enter`], for [`floats`].
///
/// # Safety
/// The processor has the unit.
#[inline(always)]
pub(crate) unsafe fn enter_floats() {
    // SAFETY: the shapes are valid and of 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) FLOATS.0.as_ptr(), options(nostack, preserves_flags, readonly)) };
}

/// Releases the registers.
///
/// # Safety
/// The processor has the unit.
#[inline(always)]
pub(crate) unsafe fn leave() {
    // SAFETY: the registers hold nothing that is needed later.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// Products of a block: `out` receives 16 sums for each row of activations. `weights` are unsigned bytes, eight
/// chunks of four columns of each row.
///
/// # Safety
/// After [`enter`]; the pointers lead to 512 bytes each, and `out` to 256 numbers.
#[inline(always)]
pub(crate) unsafe fn block(weights: *const u8, x: *const i8, out: *mut i32) {
    // SAFETY: the shapes are those that `enter` sets.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tileloadd tmm2, [{x} + {row}]",
            "tileloadd tmm3, [{weights} + {line}]",
            "tdpbsud tmm0, tmm2, tmm3",
            "tilestored [{out} + {line}], tmm0",
            x = in(reg) x,
            weights = in(reg) weights,
            out = in(reg) out,
            row = in(reg) 32usize,
            line = in(reg) 64usize,
            options(nostack, preserves_flags)
        );
    }
}

/// Products of the two halves of a block: `out` receives those of the first, then those of the second.
///
/// # Safety
/// As for [`block`], with 512 numbers in `out`.
#[inline(always)]
pub(crate) unsafe fn halves(weights: *const u8, x: *const i8, out: *mut i32) {
    // SAFETY: the shapes are those that `enter` sets.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tileloadd tmm4, [{x} + {row}]",
            "tileloadd tmm5, [{weights} + {line}]",
            "tdpbsud tmm0, tmm4, tmm5",
            "tileloadd tmm4, [{x} + {row} + 16]",
            "tileloadd tmm5, [{weights} + {line} + 256]",
            "tdpbsud tmm1, tmm4, tmm5",
            "tilestored [{out} + {line}], tmm0",
            "tilestored [{out} + {line} + 1024], tmm1",
            x = in(reg) x,
            weights = in(reg) weights,
            out = in(reg) out,
            row = in(reg) 32usize,
            line = in(reg) 64usize,
            options(nostack, preserves_flags)
        );
    }
}

/// Products of this many blocks of 32 columns of 16-bit floats in two parts, each of 1024 bytes. `out` receives three
/// groups of sums: first parts with first parts, first parts of activations with second parts of weights, and second
/// parts with first parts.
///
/// # Safety
/// After [`enter_floats`]; the pointers lead to as many blocks, and `out` to three times 256 numbers.
#[inline(always)]
pub(crate) unsafe fn floats(weights: *const u8, x: *const u8, blocks: usize, out: *mut f32) {
    // SAFETY: the shapes are those that `enter_floats` sets; nothing else uses the registers meanwhile.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", options(nomem, nostack, preserves_flags));
        for block in 0..blocks {
            asm!(
                "tileloadd tmm3, [{x} + {line}]",
                "tileloadd tmm4, [{weights} + {line}]",
                "tdpbf16ps tmm0, tmm3, tmm4",
                "tileloadd tmm5, [{weights} + {line} + 1024]",
                "tdpbf16ps tmm1, tmm3, tmm5",
                "tileloadd tmm6, [{x} + {line} + 1024]",
                "tdpbf16ps tmm2, tmm6, tmm4",
                x = in(reg) x.add(block * 2048),
                weights = in(reg) weights.add(block * 2048),
                line = in(reg) 64usize,
                options(nostack, preserves_flags, readonly)
            );
        }
        asm!(
            "tilestored [{out} + {line}], tmm0",
            "tilestored [{out} + {line} + 1024], tmm1",
            "tilestored [{out} + {line} + 2048], tmm2",
            out = in(reg) out,
            line = in(reg) 64usize,
            options(nostack, preserves_flags)
        );
    }
}
