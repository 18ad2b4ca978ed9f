//! Types of tensors: block sizes as in ggml, and decoding of values. Layouts are those of ggml's ggml-common.h.

use half::{bf16, f16};

/// Supported type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names of ggml")]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// IEEE 16-bit floats.
    F16,
    /// The upper halves of 32-bit floats.
    BF16,
    /// Blocks of 32: scale in f16, sixteen bytes of two 4-bit values that stand for -8 to 7.
    Q4_0,
    /// Blocks of 32: scale and minimum in f16, sixteen bytes of two 4-bit values.
    Q4_1,
    /// Blocks of 32: scale in f16, four bytes of fifth bits, sixteen bytes of two 4-bit values, -16 to 15 in all.
    Q5_0,
    /// Blocks of 32: scale and minimum in f16, four bytes of fifth bits, sixteen bytes of two 4-bit values.
    Q5_1,
    /// Blocks of 32: scale in f16, thirty-two signed bytes.
    Q8_0,
    /// Blocks of 256: two f16 that scale eight 6-bit scales and eight 6-bit minima, 4-bit values.
    Q4_K,
    /// As [`Self::Q4_K`] with fifth bits.
    Q5_K,
    /// Blocks of 256: 6-bit values from -32 to 31 in groups of 16 with 8-bit scales, an f16 that scales those.
    Q6_K,
}

/// Values of a [`QuantBlock`].
pub const BLOCK: usize = 32;

/// Thirty-two quantised values, whatever type they were stored in: value `i` is `values[i] * scales[i / 16] + min`.
/// Both scales are the same but for [`TensorType::Q6_K`], whose `min` is 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantBlock {
    /// 0 to 15 for 4-bit types, 0 to 31 for 5-bit types, -32 to 31 for [`TensorType::Q6_K`], any for [`TensorType::Q8_0`].
    pub values: [i8; BLOCK],
    /// Scales of the first and the second sixteen.
    pub scales: [f32; 2],
    /// Summand of every value.
    pub min: f32,
}

impl TensorType {
    /// All types, in the order of ggml's numbers.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::BF16,
    ];

    /// Type of ggml's number.
    pub fn from_ggml(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.ggml() == number)
    }

    /// Number of the type in ggml.
    pub fn ggml(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
            Self::BF16 => 30,
        }
    }

    /// Values and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// True if values are small integers with scales, not floats.
    pub fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Calls `take` with every [`QuantBlock`] of data in whole blocks; never for floats.
    pub fn quant_blocks(self, data: &[u8], mut take: impl FnMut(&QuantBlock)) {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => {}
            Self::Q4_0 => {
                for [d0, d1, quants @ ..] in data.as_chunks::<18>().0 {
                    let d = half(*d0, *d1);
                    take(&QuantBlock { values: nibbles(quants), scales: [d; 2], min: -8.0 * d });
                }
            }
            Self::Q4_1 => {
                for [d0, d1, m0, m1, quants @ ..] in data.as_chunks::<20>().0 {
                    take(&QuantBlock { values: nibbles(quants), scales: [half(*d0, *d1); 2], min: half(*m0, *m1) });
                }
            }
            Self::Q5_0 => {
                for [d0, d1, h0, h1, h2, h3, quants @ ..] in data.as_chunks::<22>().0 {
                    let d = half(*d0, *d1);
                    let mut values = nibbles(quants);
                    fifth_bits(&mut values, u32::from_le_bytes([*h0, *h1, *h2, *h3]));
                    take(&QuantBlock { values, scales: [d; 2], min: -16.0 * d });
                }
            }
            Self::Q5_1 => {
                for [d0, d1, m0, m1, h0, h1, h2, h3, quants @ ..] in data.as_chunks::<24>().0 {
                    let mut values = nibbles(quants);
                    fifth_bits(&mut values, u32::from_le_bytes([*h0, *h1, *h2, *h3]));
                    take(&QuantBlock { values, scales: [half(*d0, *d1); 2], min: half(*m0, *m1) });
                }
            }
            Self::Q8_0 => {
                for [d0, d1, quants @ ..] in data.as_chunks::<34>().0 {
                    let quants: &[u8; 32] = quants;
                    take(&QuantBlock { values: quants.map(u8::cast_signed), scales: [half(*d0, *d1); 2], min: 0.0 });
                }
            }
            Self::Q4_K => {
                for [d0, d1, m0, m1, rest @ ..] in data.as_chunks::<144>().0 {
                    let rest: &[u8; 140] = rest;
                    let (scales, quants) = rest.split_at(12);
                    k_blocks([half(*d0, *d1), half(*m0, *m1)], scales, None, quants, &mut take);
                }
            }
            Self::Q5_K => {
                for [d0, d1, m0, m1, rest @ ..] in data.as_chunks::<176>().0 {
                    let rest: &[u8; 172] = rest;
                    let (scales, rest) = rest.split_at(12);
                    let (high, quants) = rest.split_at(32);
                    k_blocks([half(*d0, *d1), half(*m0, *m1)], scales, Some(high), quants, &mut take);
                }
            }
            Self::Q6_K => data.as_chunks::<210>().0.iter().for_each(|block| q6_blocks(block, &mut take)),
        }
    }

    /// Decodes data in whole blocks to f32.
    pub fn dequantize(self, data: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => out.extend(data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes))),
            Self::F16 => out.extend(data.as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32())),
            Self::BF16 => out.extend(data.as_chunks::<2>().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32())),
            _ => self.quant_blocks(data, |block| {
                let [low, high] = block.scales;
                let (first, second) = block.values.split_at(BLOCK / 2);
                out.extend(first.iter().map(|q| f32::from(*q) * low + block.min));
                out.extend(second.iter().map(|q| f32::from(*q) * high + block.min));
            }),
        }
    }
}

/// Rounds values in whole blocks to [`TensorType::Q8_0`], each block by the largest of its magnitudes, and appends them to
/// `out`. Values behind the last whole block are left out.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within -127 and 127")]
pub(crate) fn round_to_bytes(values: &[f32], out: &mut Vec<u8>) {
    for values in values.as_chunks::<BLOCK>().0 {
        let most = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        // Weights beyond the largest scale are cut to it; no model has them.
        let scale = f16::from_f32((most / 127.0).min(f16::MAX.to_f32()));
        let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
        out.extend(scale.to_le_bytes());
        // Truncation of a number above zero rounds down, in one instruction where `round` calls a function.
        let rounded = values.map(|value| (((value * inverse).clamp(-127.0, 127.0) + 128.5) as u8).wrapping_sub(128));
        out.extend(rounded);
    }
}

fn half(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

/// Low halves of sixteen bytes, then high halves.
fn nibbles(quants: &[u8; 16]) -> [i8; BLOCK] {
    let mut values = [0; BLOCK];
    let (low, high) = values.split_at_mut(BLOCK / 2);
    for ((low, high), q) in low.iter_mut().zip(high).zip(quants) {
        (*low, *high) = ((q & 15).cast_signed(), (q >> 4).cast_signed());
    }
    values
}

/// Adds bit `i` of `bits` to value `i` as its fifth.
fn fifth_bits(values: &mut [i8; BLOCK], bits: u32) {
    for (i, value) in values.iter_mut().enumerate() {
        *value |= i8::from(bits >> i & 1 == 1) << 4;
    }
}

/// Scale and minimum `n` of eight, which twelve bytes hold in 6 bits each.
fn six_bits(scales: &[u8], n: usize) -> (u8, u8) {
    let at = |i: usize| scales.get(i).copied().unwrap_or(0);
    if n < 4 {
        (at(n) & 63, at(n + 4) & 63)
    } else {
        (at(n + 4) & 15 | at(n - 4) >> 6 << 4, at(n + 4) >> 4 | at(n) >> 6 << 4)
    }
}

/// The eight blocks of a `Q4_K` or `Q5_K` block: 32 bytes hold two of them, one in their low and one in their high halves;
/// bit `n` of the 32 bytes `high` is the fifth of block `n`.
fn k_blocks(
    [d, dmin]: [f32; 2],
    scales: &[u8],
    high: Option<&[u8]>,
    quants: &[u8],
    take: &mut impl FnMut(&QuantBlock),
) {
    for (pair, quants) in quants.chunks_exact(BLOCK).enumerate() {
        for (n, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
            let (scale, min) = six_bits(scales, n);
            let mut values = [0i8; BLOCK];
            for (i, (value, q)) in values.iter_mut().zip(quants).enumerate() {
                let fifth = high.and_then(|high| high.get(i)).map_or(0, |bits| (bits >> n & 1) << 4);
                *value = (q >> shift & 15 | fifth).cast_signed();
            }
            take(&QuantBlock { values, scales: [d * f32::from(scale); 2], min: -(dmin * f32::from(min)) });
        }
    }
}

/// The eight blocks of a `Q6_K` block: each half of 128 values has 64 bytes of low and 32 bytes of high bits.
fn q6_blocks(block: &[u8; 210], take: &mut impl FnMut(&QuantBlock)) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = match d {
        [a, b] => half(*a, *b),
        _ => 0.0,
    };
    let mut scales = scales.as_chunks::<2>().0.iter();
    for (low, high) in low.chunks_exact(64).zip(high.chunks_exact(32)) {
        for quarter in 0..4 {
            let mut values = [0i8; BLOCK];
            // Quarters 0 and 2 share the first 32 bytes, 1 and 3 the second.
            let low = low.get(quarter % 2 * 32..).unwrap_or_default();
            for ((value, low), high) in values.iter_mut().zip(low).zip(high) {
                let four = low >> (quarter / 2 * 4) & 15;
                *value = (four | (high >> (2 * quarter) & 3) << 4).cast_signed() - 32;
            }
            let scales = scales.next().map_or([0.0; 2], |pair| pair.map(|scale| d * f32::from(scale.cast_signed())));
            take(&QuantBlock { values, scales, min: 0.0 });
        }
    }
}

/// Name and block (values, bytes) of every type of ggml, to check and name unsupported tensors.
pub(super) fn any_type(number: u32) -> Option<(&'static str, usize, usize)> {
    Some(match number {
        0 => ("F32", 1, 4),
        1 => ("F16", 1, 2),
        2 => ("Q4_0", 32, 18),
        3 => ("Q4_1", 32, 20),
        6 => ("Q5_0", 32, 22),
        7 => ("Q5_1", 32, 24),
        8 => ("Q8_0", 32, 34),
        9 => ("Q8_1", 32, 36),
        10 => ("Q2_K", 256, 84),
        11 => ("Q3_K", 256, 110),
        12 => ("Q4_K", 256, 144),
        13 => ("Q5_K", 256, 176),
        14 => ("Q6_K", 256, 210),
        15 => ("Q8_K", 256, 292),
        16 => ("IQ2_XXS", 256, 66),
        17 => ("IQ2_XS", 256, 74),
        18 => ("IQ3_XXS", 256, 98),
        19 => ("IQ1_S", 256, 50),
        20 => ("IQ4_NL", 32, 18),
        21 => ("IQ3_S", 256, 110),
        22 => ("IQ2_S", 256, 82),
        23 => ("IQ4_XS", 256, 136),
        24 => ("I8", 1, 1),
        25 => ("I16", 1, 2),
        26 => ("I32", 1, 4),
        27 => ("I64", 1, 8),
        28 => ("F64", 1, 8),
        29 => ("IQ1_M", 256, 56),
        30 => ("BF16", 1, 2),
        34 => ("TQ1_0", 256, 54),
        35 => ("TQ2_0", 256, 66),
        39 => ("MXFP4", 32, 17),
        40 => ("NVFP4", 64, 36),
        41 => ("Q1_0", 128, 18),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The value at `i` of a block, decoded from ggml's structures field by field and bit by bit, without any of the
    /// code above.
    fn expected(kind: TensorType, b: &[u8], i: usize) -> f32 {
        let h = |at: usize| f16::from_le_bytes([b[at], b[at + 1]]).to_f32();
        let bit = |at: usize, n: usize| b[at + n / 8] >> (n % 8) & 1;
        let nibble = |at: usize| if i < 16 { b[at + i] & 15 } else { b[at + i - 16] >> 4 };
        match kind {
            TensorType::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            TensorType::F16 => h(0),
            TensorType::BF16 => f32::from_bits(u32::from(b[0]) << 16 | u32::from(b[1]) << 24),
            TensorType::Q4_0 => h(0) * (f32::from(nibble(2)) - 8.0),
            TensorType::Q4_1 => h(0) * f32::from(nibble(4)) + h(2),
            TensorType::Q5_0 => h(0) * (f32::from(nibble(6) + 16 * bit(2, i)) - 16.0),
            TensorType::Q5_1 => h(0) * f32::from(nibble(8) + 16 * bit(4, i)) + h(2),
            TensorType::Q8_0 => h(0) * f32::from(b[2 + i].cast_signed()),
            TensorType::Q4_K | TensorType::Q5_K => {
                let sub = i / 32;
                let (scale, min) = if sub < 4 {
                    (b[4 + sub] % 64, b[8 + sub] % 64)
                } else {
                    (b[8 + sub] % 16 + b[sub] / 64 * 16, b[8 + sub] / 16 + b[4 + sub] / 64 * 16)
                };
                let five = kind == TensorType::Q5_K;
                let byte = b[if five { 48 } else { 16 } + i / 64 * 32 + i % 32];
                let four = if sub.is_multiple_of(2) { byte % 16 } else { byte / 16 };
                let fifth = if five { b[16 + i % 32] >> sub & 1 } else { 0 };
                h(0) * f32::from(scale) * f32::from(four + 16 * fifth) - h(2) * f32::from(min)
            }
            TensorType::Q6_K => {
                let (half, rest) = (i / 128, i % 128);
                let byte = b[half * 64 + rest % 64];
                let four = if rest < 64 { byte % 16 } else { byte / 16 };
                let two = b[128 + half * 32 + rest % 32] >> (rest / 32 * 2) & 3;
                let scale = b[192 + i / 16].cast_signed();
                h(208) * f32::from(scale) * (f32::from(four + 16 * two) - 32.0)
            }
        }
    }

    #[test]
    fn every_type_has_the_values_of_its_documented_layout() {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        for kind in TensorType::ALL {
            let (values, bytes) = kind.block();
            assert_eq!(TensorType::from_ggml(kind.ggml()), Some(kind));
            assert_eq!(any_type(kind.ggml()).map(|(_, v, b)| (v, b)), Some((values, bytes)));
            let data = crate::testing::random(kind, values * 5, &mut rng);
            let mut out = Vec::new();
            kind.dequantize(&data, &mut out);
            assert_eq!(out.len(), values * 5, "{kind:?}");
            for (block, out) in data.chunks(bytes).zip(out.chunks(values)) {
                for (i, value) in out.iter().enumerate() {
                    let want = expected(kind, block, i);
                    assert!((value - want).abs() <= want.abs() * 1e-6 + 1e-7, "{kind:?}[{i}]: {value}, not {want}");
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_dequantize_to_whole_blocks_and_never_panic(data in proptest::collection::vec(proptest::num::u8::ANY, 0..700)) {
            for kind in TensorType::ALL {
                let mut out = Vec::new();
                kind.dequantize(&data, &mut out);
                let (values, bytes) = kind.block();
                assert_eq!(out.len(), data.len() / bytes * values);
            }
        }
    }

    #[test]
    fn a_block_worked_by_hand() {
        // d = 0.5, quants 0x21 everywhere: sixteen times 1 - 8, sixteen times 2 - 8.
        let mut block = vec![0x00, 0x38];
        block.extend([0x21; 16]);
        let mut out = Vec::new();
        TensorType::Q4_0.dequantize(&block, &mut out);
        assert_eq!(out, [[-3.5f32; 16], [-3.0; 16]].concat());
        assert_eq!(TensorType::from_ggml(10), None);
    }
}
