//! Layout of weights in device memory. Types are repacked at load into a few packings, so that kernels are written
//! for a packing and not for a type; none takes more than a bit a weight more than its file.
//!
//! Neighbouring invocations, each with a weight row of its own, read neighbouring words. Rows lie in groups of 64: in
//! each unit of values the first word of every row, then the second, and so on. A unit of quantised weights is a
//! [`QuantBlock`]: a word of two f16 scales (or scale and minimum), then low halves of four bytes each, then the bits
//! above four.

use half::f16;

use crate::artifact::{BLOCK, QuantBlock, Tensor, TensorType};

/// Weight rows that lie side by side.
pub(super) const GROUP: usize = 64;
/// Values of a unit of floats.
const FLOATS: usize = 4;

/// Packing of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Packed {
    /// Floats, a word each.
    F32,
    /// IEEE halves, two to a word.
    F16,
    /// Upper halves of floats, two to a word.
    BF16,
    /// 4 bits with scale and minimum: `Q4_0`, `Q4_1`, `Q4_K`.
    W4,
    /// 5 bits with scale and minimum: `Q5_0`, `Q5_1`, `Q5_K`.
    W5,
    /// 6 bits with two scales: `Q6_K`.
    W6,
    /// 8 bits with a scale: `Q8_0`.
    W8,
}

impl Packed {
    pub(super) fn of(kind: TensorType) -> Self {
        match kind {
            TensorType::F32 => Self::F32,
            TensorType::F16 => Self::F16,
            TensorType::BF16 => Self::BF16,
            TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q4_K => Self::W4,
            TensorType::Q5_0 | TensorType::Q5_1 | TensorType::Q5_K => Self::W5,
            TensorType::Q6_K => Self::W6,
            TensorType::Q8_0 => Self::W8,
        }
    }

    /// True if activations are rounded to 8 bits for this packing.
    pub(super) fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::BF16)
    }

    /// Values and words of a unit.
    pub(super) const fn unit(self) -> (usize, usize) {
        match self {
            Self::F32 => (FLOATS, 4),
            Self::F16 | Self::BF16 => (FLOATS, 2),
            Self::W4 => (BLOCK, 5),
            Self::W5 => (BLOCK, 6),
            Self::W6 => (BLOCK, 7),
            Self::W8 => (BLOCK, 9),
        }
    }

    /// Bytes of a group of rows.
    pub(super) fn group_bytes(self, columns: usize) -> usize {
        let (values, words) = self.unit();
        columns / values * words * GROUP * 4
    }

    /// Words of a block; only as many as [`Self::unit`] says are used.
    fn words(self, block: &QuantBlock) -> [u32; 9] {
        let [first, second] = match self {
            Self::W4 | Self::W5 => [block.scales[0], block.min],
            _ => block.scales,
        }
        .map(|scale| u32::from(f16::from_f32(scale).to_bits()));
        let offset = if self == Self::W6 { 32 } else { 0 };
        let mut bytes = [0u32; 8];
        for (word, values) in bytes.iter_mut().zip(block.values.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(values.map(|value| value.wrapping_add(offset).cast_unsigned()));
        }
        let [a, b, c, d, e, f, g, h] = bytes;
        let low = |low: u32, high: u32| low & 0x0f0f_0f0f | (high & 0x0f0f_0f0f) << 4;
        let [l0, l1, l2, l3] = [low(a, e), low(b, f), low(c, g), low(d, h)];
        let scales = first | second << 16;
        // Bits above four: `bits` of each byte, words of four side by side.
        let high = |words: &[u32], mask: u32, bits: usize| {
            words.iter().enumerate().fold(0, |all, (n, word)| all | (word >> 4 & mask) << (n * bits))
        };
        match self {
            Self::W4 => [scales, l0, l1, l2, l3, 0, 0, 0, 0],
            Self::W5 => [scales, l0, l1, l2, l3, high(&bytes, 0x0101_0101, 1), 0, 0, 0],
            Self::W6 => {
                let (first, second) = (high(&[a, b, c, d], 0x0303_0303, 2), high(&[e, f, g, h], 0x0303_0303, 2));
                [scales, l0, l1, l2, l3, first, second, 0, 0]
            }
            _ => [scales, a, b, c, d, e, f, g, h],
        }
    }

    /// Packs the data of one row into lane `lane` of its group, which begins at `out`.
    pub(super) fn pack_row(self, kind: TensorType, data: &[u8], lane: usize, out: &mut [u32]) {
        let (_, words) = self.unit();
        if self.is_quantized() {
            let mut units = out.chunks_exact_mut(words * GROUP);
            kind.quant_blocks(data, |block| {
                let places = units.next().into_iter().flat_map(|unit| unit.iter_mut().skip(lane).step_by(GROUP));
                places.zip(self.words(block)).for_each(|(place, word)| *place = word);
            });
        } else {
            let words = data.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
            out.iter_mut().skip(lane).step_by(GROUP).zip(words).for_each(|(place, word)| *place = word);
        }
    }
}

/// Rows of several tensors, one below the other, as bytes.
pub(super) fn rows<'a>(parts: &'a [Tensor<'a>]) -> impl Iterator<Item = (TensorType, &'a [u8])> {
    parts.iter().flat_map(|part| {
        let (values, bytes) = part.kind.block();
        part.data.chunks_exact((part.columns / values * bytes).max(1)).map(|row| (part.kind, row))
    })
}
