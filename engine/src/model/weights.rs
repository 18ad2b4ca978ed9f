//! Matrices of a file on their way to an executor: as they are, or rounded to 8 bits.

use crate::artifact::{ModelFile, Tensor, TensorType, round_to_bytes};
use crate::exec::{Executor, MatrixId};
use crate::{LoadError, WeightPrecision};

/// Bytes of floats that are rounded at once, so that no whole matrix is held twice in floats; a multiple of a block.
const AT_ONCE: usize = 4 << 20;

/// True if a matrix is kept in 8 bits: it holds floats, and its rows are whole blocks.
fn is_rounded(kind: TensorType, columns: usize, precision: WeightPrecision) -> bool {
    precision == WeightPrecision::Int8 && !kind.is_quantized() && columns.is_multiple_of(TensorType::Q8_0.block().0)
}

/// Gives an executor the matrix whose rows are those of `parts`, each rounded where that is wanted.
pub(super) fn give(
    exec: &mut dyn Executor,
    parts: &[Tensor<'_>],
    precision: WeightPrecision,
) -> Result<MatrixId, LoadError> {
    let rounded: Vec<Option<Vec<u8>>> =
        parts.iter().map(|part| is_rounded(part.kind, part.columns, precision).then(|| round(part))).collect();
    let parts: Vec<Tensor<'_>> = parts
        .iter()
        .zip(&rounded)
        .map(|(part, rounded)| match rounded {
            Some(data) => Tensor { kind: TensorType::Q8_0, data, ..*part },
            None => *part,
        })
        .collect();
    exec.matrix(&parts)
}

/// A matrix of floats in [`TensorType::Q8_0`].
fn round(part: &Tensor<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes_rounded(part.columns, part.rows));
    let mut values = Vec::new();
    for data in part.data.chunks(AT_ONCE) {
        values.clear();
        part.kind.dequantize(data, &mut values);
        round_to_bytes(&values, &mut out);
    }
    out
}

/// Bytes of a matrix in [`TensorType::Q8_0`].
fn bytes_rounded(columns: usize, rows: usize) -> usize {
    let (values, bytes) = TensorType::Q8_0.block();
    columns / values * bytes * rows
}

/// True if [`give`] is what takes the tensor of this name: matrices of layers, the table of tokens and the output of a
/// decoder. An encoder's head and its small tables stay as they are.
fn is_given(name: &str) -> bool {
    name.starts_with("blk.") || matches!(name, "token_embd.weight" | "output.weight")
}

/// Bytes of a file's weights as a device keeps them.
pub(super) fn bytes(file: &ModelFile, precision: WeightPrecision) -> u64 {
    let saved: usize = file
        .names()
        .filter(|name| is_given(name))
        .filter_map(|name| file.entry(name))
        .filter_map(|entry| {
            let (columns, rows) = entry.shape();
            let rounds = rows > 1 && is_rounded(entry.kind?, columns, precision);
            rounds.then(|| entry.range.len().saturating_sub(bytes_rounded(columns, rows)))
        })
        .sum();
    file.bytes().saturating_sub(u64::try_from(saved).unwrap_or(u64::MAX))
}

/// Most frequent type of the matrices as a device keeps them.
pub(crate) fn quantization(file: &ModelFile, precision: WeightPrecision) -> String {
    let own = file.quantization();
    let is_float = ["F32", "F16", "BF16"].contains(&own.as_str());
    if precision == WeightPrecision::Int8 && is_float { format!("{:?}", TensorType::Q8_0) } else { own }
}

#[cfg(test)]
mod tests;
