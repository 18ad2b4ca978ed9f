//! Counts by column of a value and by bucket of units: shares above a column, and their variance between units.

use serde::{Deserialize, Serialize};

use crate::units::{Bucket, Spread, bucket, clustered};

/// Buckets of units, fewer than for means since each has a row of columns.
const BUCKETS: usize = 64;
const BUCKET_BITS: u32 = BUCKETS.trailing_zeros();

/// Counts of one version. 256 bytes for each column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Grid {
    columns: usize,
    cells: Vec<u32>,
}

impl Grid {
    pub(crate) fn new(columns: usize) -> Self {
        Self { columns, cells: vec![0; BUCKETS * columns] }
    }

    pub(crate) fn observe(&mut self, unit: u64, column: usize) {
        if let Some(cell) = self.cells.get_mut(bucket(unit, BUCKET_BITS) * self.columns + column) {
            *cell = cell.saturating_add(1);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (cell, added) in self.cells.iter_mut().zip(&other.cells) {
            *cell = cell.saturating_add(*added);
        }
    }

    /// True if it has this many columns in every row, as a deserialised value may not.
    pub(crate) fn is_consistent(&self, columns: usize) -> bool {
        self.columns == columns && self.cells.len() == BUCKETS * columns
    }

    fn rows(&self) -> impl Iterator<Item = &[u32]> {
        self.cells.chunks(self.columns.max(1))
    }

    /// Number of values.
    pub(crate) fn count(&self) -> f64 {
        self.cells.iter().map(|cell| f64::from(*cell)).sum()
    }

    /// Values in each column or a higher one.
    pub(crate) fn above(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns];
        for row in self.rows() {
            for (sum, cell) in sums.iter_mut().zip(row) {
                *sum += f64::from(*cell);
            }
        }
        let mut above = 0.0;
        for sum in sums.iter_mut().rev() {
            above += *sum;
            *sum = above;
        }
        sums
    }

    /// Variance of the share in a column or a higher one.
    pub(crate) fn spread(&self, column: usize) -> Spread {
        let rows = self.rows().map(|row| {
            let hits = row.iter().skip(column).map(|cell| f64::from(*cell)).sum();
            Bucket { count: row.iter().map(|cell| f64::from(*cell)).sum(), sum: hits }
        });
        let rows: Vec<Bucket> = rows.collect();
        let (total, hits) = rows.iter().fold((0.0, 0.0), |sums, row| (sums.0 + row.count, sums.1 + row.sum));
        let share = if total > 0.0 { hits / total } else { 0.0 };
        let (clustered, freedom) = clustered(rows.iter().copied(), share);
        Spread { independent: share * (1.0 - share) / total.max(1.0), clustered, freedom }
    }

    /// Effective number of buckets less one.
    pub(crate) fn freedom(&self) -> f64 {
        self.spread(0).freedom
    }
}
