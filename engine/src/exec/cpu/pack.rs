//! Layout of weights in memory: a few families into which every type of the files is repacked at load. Rows lie side
//! by side in groups of as many as a register has lanes, so that a product needs no sum over lanes. A group holds
//! first the quants of all its blocks, then their scales, so that both are read from end to end.

use std::ops::Range;

use half::{bf16, f16};

use super::unit::BLOCK;
use crate::artifact::{Tensor, TensorType};

/// Family of packed weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Family {
    /// `d * q + m`, `q` from 0 to 15; `d` and `m` in f16 for each block of 32.
    Nibbles,
    /// `d * q`, `q` from -128 to 127; `d` in f16 for each block of 32.
    Bytes,
    /// `d * q + m`, `q` from 0 to 31; `d` and `m` in f16 for each block of 32.
    Fives,
    /// `d * q`, `q` from -32 to 31, stored with 32 added; `d` in f16 for each half of a block of 32.
    Sixes,
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Upper halves of 32-bit floats.
    Bf16,
}

impl Family {
    /// Family of a type.
    pub(super) fn of(kind: TensorType) -> Self {
        match kind {
            TensorType::F32 => Self::F32,
            TensorType::F16 => Self::F16,
            TensorType::BF16 => Self::Bf16,
            TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q4_K => Self::Nibbles,
            TensorType::Q5_0 | TensorType::Q5_1 | TensorType::Q5_K => Self::Fives,
            TensorType::Q6_K => Self::Sixes,
            TensorType::Q8_0 => Self::Bytes,
        }
    }

    /// True if products round activations to 8 bits.
    pub(super) fn is_quantized(self) -> bool {
        !matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// Bytes of the quants of a block of one row, and its scales.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::Nibbles => (BLOCK / 2, 2),
            Self::Fives => (BLOCK / 2 + BLOCK / 8, 2),
            Self::Sixes => (BLOCK / 2 + BLOCK / 4, 2),
            Self::Bytes => (BLOCK, 1),
            Self::F32 => (BLOCK * 4, 0),
            Self::F16 | Self::Bf16 => (BLOCK * 2, 0),
        }
    }
}

/// Shape of a packed matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) family: Family,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Rows of a group.
    pub(super) lanes: usize,
    /// True if bytes are stored unchanged; else with 128 added.
    pub(super) signed: bool,
}

impl Layout {
    pub(super) fn groups(&self) -> usize {
        self.rows.div_ceil(self.lanes)
    }
    /// Blocks of a row; the columns of quantised weights are whole blocks.
    pub(super) fn blocks(&self) -> usize {
        self.columns / BLOCK
    }
    /// Bytes of the quants of a group.
    pub(super) fn quants(&self) -> usize {
        match self.family {
            Family::F32 => self.columns * 4 * self.lanes,
            Family::F16 | Family::Bf16 => self.columns * 2 * self.lanes,
            family => self.blocks() * family.block().0 * self.lanes,
        }
    }
    /// Bytes of a group: whole cache lines.
    pub(super) fn group(&self) -> usize {
        let scales =
            if self.family.is_quantized() { self.blocks() * self.family.block().1 * 2 * self.lanes } else { 0 };
        (self.quants() + scales).next_multiple_of(64)
    }
    /// Bytes of the matrix.
    pub(super) fn bytes(&self) -> usize {
        self.groups() * self.group()
    }
    /// Bits that are flipped in a byte of weights.
    fn flip(&self) -> u8 {
        if self.signed { 0 } else { 0x80 }
    }
}

/// Repacks groups of rows of `parts`, which lie one below the other, into `out`, which begins with the first of the
/// groups and is zero.
pub(super) fn repack(layout: &Layout, parts: &[Tensor<'_>], groups: Range<usize>, out: &mut [u8]) {
    let first = groups.start * layout.lanes;
    let wanted = first..(groups.end * layout.lanes).min(layout.rows);
    let mut start = 0;
    for part in parts {
        let (values, bytes) = part.kind.block();
        let row_bytes = layout.columns / values * bytes;
        let from = wanted.start.clamp(start, start + part.rows) - start;
        let to = wanted.end.clamp(start, start + part.rows) - start;
        for row in from..to {
            let data = part.data.get(row * row_bytes..(row + 1) * row_bytes).unwrap_or_default();
            let at = start + row - first;
            let group = out.get_mut(at / layout.lanes * layout.group()..).unwrap_or_default();
            put(layout, part.kind, data, at % layout.lanes, group);
        }
        start += part.rows;
    }
}

/// Words and scales of one row of a group.
struct Lane<'a> {
    words: &'a mut [[u8; 4]],
    scales: &'a mut [[u8; 2]],
    lanes: usize,
    lane: usize,
}

impl Lane<'_> {
    fn word(&mut self, n: usize, value: [u8; 4]) {
        if let Some(to) = self.words.get_mut(n * self.lanes + self.lane) {
            *to = value;
        }
    }
    fn scale(&mut self, n: usize, value: [u8; 2]) {
        if let Some(to) = self.scales.get_mut(n * self.lanes + self.lane) {
            *to = value;
        }
    }
}

/// Packs one row into its lane of a group.
fn put(layout: &Layout, kind: TensorType, data: &[u8], lane: usize, group: &mut [u8]) {
    let (quants, scales) = group.split_at_mut_checked(layout.quants()).unwrap_or_default();
    if matches!(kind, TensorType::F16 | TensorType::BF16) {
        let (halves, _) = quants.as_chunks_mut::<2>();
        for (from, to) in data.as_chunks::<2>().0.iter().zip(halves.iter_mut().skip(lane).step_by(layout.lanes)) {
            *to = *from;
        }
        return;
    }
    let (words, scales) = (quants.as_chunks_mut().0, scales.as_chunks_mut().0);
    let mut to = Lane { words, scales, lanes: layout.lanes, lane };
    match kind {
        TensorType::F32 => {
            for (n, value) in data.as_chunks::<4>().0.iter().enumerate() {
                to.word(n, *value);
            }
        }
        // Copied unchanged: the most frequent types should load as fast as a copy.
        TensorType::Q4_1 => {
            for (block, [d0, d1, m0, m1, quants @ ..]) in data.as_chunks::<20>().0.iter().enumerate() {
                to.scale(2 * block, [*d0, *d1]);
                to.scale(2 * block + 1, [*m0, *m1]);
                for (n, bytes) in quants.as_chunks::<4>().0.iter().enumerate() {
                    to.word(4 * block + n, *bytes);
                }
            }
        }
        TensorType::Q8_0 => {
            for (block, [d0, d1, quants @ ..]) in data.as_chunks::<34>().0.iter().enumerate() {
                to.scale(block, [*d0, *d1]);
                for (n, bytes) in quants.as_chunks::<4>().0.iter().enumerate() {
                    to.word(8 * block + n, bytes.map(|byte| byte ^ layout.flip()));
                }
            }
        }
        _ => {
            let each = layout.family.block().0 / 4;
            let mut block = 0;
            kind.quant_blocks(data, |from| {
                let half = |x: f32| f16::from_f32(x).to_le_bytes();
                let sixes = layout.family == Family::Sixes;
                to.scale(2 * block, half(from.scales[0]));
                to.scale(2 * block + 1, half(if sixes { from.scales[1] } else { from.min }));
                let values = from.values.map(|q| q.cast_unsigned().wrapping_add(if sixes { 32 } else { 0 }));
                for (n, word) in words_of(&values, each).into_iter().take(each).enumerate() {
                    to.word(each * block + n, word);
                }
                block += 1;
            });
        }
    }
}

/// Packs a block of 4-bit weights into four words, of 5-bit into five, of 6-bit into six, in the order that units
/// read.
fn words_of(values: &[u8; BLOCK], words: usize) -> [[u8; 4]; 6] {
    let mut out = [[0u8; 4]; 6];
    let (lower, upper) = out.split_at_mut(4);
    for (at, value) in values.iter().enumerate() {
        // Half of the block, word of the half, byte of the word.
        let (half, chunk, byte) = (at / 16, at % 16 / 4, at % 4);
        lower[chunk][byte] |= (value & 15) << (4 * half);
        match words {
            5 => upper[0][byte] |= (value >> 4) << (4 * half + chunk),
            6 => upper[chunk / 2][byte] |= (value >> 4) << (4 * half + chunk % 2 * 2),
            _ => {}
        }
    }
    out
}

/// Inverse of [`words_of`].
fn values_of(word: impl Fn(usize) -> [u8; 4], words: usize) -> [u8; BLOCK] {
    let mut out = [0u8; BLOCK];
    for (at, value) in out.iter_mut().enumerate() {
        let (half, chunk, byte) = (at / 16, at % 16 / 4, at % 4);
        *value = word(chunk)[byte] >> (4 * half) & 15;
        match words {
            5 => *value |= (word(4)[byte] >> (4 * half + chunk) & 1) << 4,
            6 => *value |= (word(4 + chunk / 2)[byte] >> (4 * half + chunk % 2 * 2) & 3) << 4,
            _ => {}
        }
    }
    out
}

/// Unpacks one row to values, for tables in which rows are looked up.
pub(super) fn unpack(layout: &Layout, group: &[u8], lane: usize, out: &mut [f32]) {
    let lanes = layout.lanes;
    let (quants, scales) = group.split_at_checked(layout.quants()).unwrap_or_default();
    let (words, scales, halves) = (quants.as_chunks::<4>().0, scales.as_chunks::<2>().0, quants.as_chunks::<2>().0);
    let word = |n: usize| words.get(n * lanes + lane).copied().unwrap_or_default();
    let half = |n: usize| halves.get(n * lanes + lane).copied().unwrap_or_default();
    let scale = |n: usize| f16::from_le_bytes(scales.get(n * lanes + lane).copied().unwrap_or_default()).to_f32();
    match layout.family {
        Family::F32 => out.iter_mut().enumerate().for_each(|(n, to)| *to = f32::from_le_bytes(word(n))),
        Family::F16 => out.iter_mut().enumerate().for_each(|(n, to)| *to = f16::from_le_bytes(half(n)).to_f32()),
        Family::Bf16 => out.iter_mut().enumerate().for_each(|(n, to)| *to = bf16::from_le_bytes(half(n)).to_f32()),
        Family::Bytes => {
            for (block, to) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                let d = scale(block);
                for (n, to) in to.chunks_mut(4).enumerate() {
                    for (byte, to) in word(8 * block + n).into_iter().zip(to) {
                        *to = f32::from((byte ^ layout.flip()).cast_signed()) * d;
                    }
                }
            }
        }
        Family::Nibbles | Family::Fives | Family::Sixes => {
            let each = layout.family.block().0 / 4;
            for (block, to) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                let scales = [scale(2 * block), scale(2 * block + 1)];
                let sixes = layout.family == Family::Sixes;
                let values = values_of(|n| word(each * block + n), each);
                for (at, (value, to)) in values.into_iter().zip(to).enumerate() {
                    *to = if sixes {
                        (f32::from(value) - 32.0) * scales[at / 16]
                    } else {
                        f32::from(value) * scales[0] + scales[1]
                    };
                }
            }
        }
    }
}
