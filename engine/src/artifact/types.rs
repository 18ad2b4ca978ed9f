//! Types of tensors: block sizes as in ggml, and the values they stand for.

use half::f16;

/// A type that this engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// Blocks of 32: scale and minimum in f16, sixteen bytes of two 4-bit values.
    Q4_1,
    /// Blocks of 32: scale in f16, thirty-two signed bytes.
    Q8_0,
}

impl TensorType {
    /// By ggml's number.
    pub fn from_ggml(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::F32),
            3 => Some(Self::Q4_1),
            8 => Some(Self::Q8_0),
            _ => None,
        }
    }

    /// Values and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::Q4_1 => (32, 20),
            Self::Q8_0 => (32, 34),
        }
    }

    /// The values of one row, in f32.
    pub fn dequantize(self, row: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => {
                out.extend(row.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            Self::Q4_1 => {
                for [d0, d1, m0, m1, quants @ ..] in row.as_chunks::<20>().0 {
                    let d = f16::from_le_bytes([*d0, *d1]).to_f32();
                    let m = f16::from_le_bytes([*m0, *m1]).to_f32();
                    out.extend(quants.iter().map(|q| f32::from(q & 15) * d + m));
                    out.extend(quants.iter().map(|q| f32::from(q >> 4) * d + m));
                }
            }
            Self::Q8_0 => {
                for [d0, d1, quants @ ..] in row.as_chunks::<34>().0 {
                    let d = f16::from_le_bytes([*d0, *d1]).to_f32();
                    out.extend(quants.iter().map(|q| f32::from(q.cast_signed()) * d));
                }
            }
        }
    }
}

/// Name and block (values, bytes) of every type of ggml, to check and name what this engine does not run.
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
        _ => return None,
    })
}
