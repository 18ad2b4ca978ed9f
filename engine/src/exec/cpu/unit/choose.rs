//! Choice of the vector unit that the kernels run on.

/// Vector unit of a CPU for which there are kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CpuUnit {
    /// Any processor.
    Portable,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX2 with AVX-VNNI.
    AvxVnni,
    /// AVX-512 with VNNI.
    Avx512Vnni,
    /// AVX-512 with VNNI and the matrix unit of AMX for bytes.
    Amx,
    /// NEON, which every 64-bit ARM processor has.
    Neon,
    /// NEON with the dot product of ARMv8.2.
    NeonDot,
}

impl CpuUnit {
    /// All units, the fastest first.
    pub const ALL: [Self; 7] =
        [Self::Amx, Self::Avx512Vnni, Self::AvxVnni, Self::Avx2, Self::NeonDot, Self::Neon, Self::Portable];

    /// Usual spelling of the name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "AVX2",
            Self::AvxVnni => "AVX-VNNI",
            Self::Avx512Vnni => "AVX-512 VNNI",
            Self::Amx => "AMX",
            Self::Neon => "NEON",
            Self::NeonDot => "NEON dot product",
        }
    }

    /// The unit of this name, ignoring case and any marks between letters and digits.
    pub fn named(name: &str) -> Option<Self> {
        let plain = |name: &str| -> String {
            name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
        };
        Self::ALL.into_iter().find(|unit| plain(unit.name()) == plain(name))
    }

    /// True if this processor has the unit.
    pub fn is_here(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = || {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            };
            let avx512 = || {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            };
            match self {
                Self::Portable => true,
                Self::Avx2 => avx2(),
                Self::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
                Self::Avx512Vnni => avx512(),
                Self::Amx => avx512() && super::amx::is_here(),
                Self::Neon | Self::NeonDot => false,
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected;
            match self {
                Self::Portable => true,
                Self::Neon => is_aarch64_feature_detected!("neon"),
                Self::NeonDot => is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod"),
                Self::Avx2 | Self::AvxVnni | Self::Avx512Vnni | Self::Amx => false,
            }
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            self == Self::Portable
        }
    }

    /// The fastest unit of this processor.
    pub fn best() -> Self {
        Self::ALL.into_iter().find(|unit| unit.is_here()).unwrap_or(Self::Portable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again_and_one_unit_is_always_there() {
        for unit in CpuUnit::ALL {
            assert_eq!(CpuUnit::named(unit.name()), Some(unit));
        }
        assert_eq!(CpuUnit::named("avx512-vnni"), Some(CpuUnit::Avx512Vnni));
        assert_eq!(CpuUnit::named("sse"), None);
        assert!(CpuUnit::best().is_here() && CpuUnit::Portable.is_here());
    }
}
