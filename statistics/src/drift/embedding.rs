//! Drift of embeddings: centroid and spread by the cosine, and clusters found online in bounded memory.
//!
//! **Centroid.** Vectors are scaled to length 1 and added up. With mean vector `m` of `n` unit vectors, `1 - |m|^2` is their mean
//! squared distance from it (spread, 0 to 1), and the cosine of two means compares their directions. Sums merge exactly.
//!
//! **Clusters.** Sequential k-means on unit vectors (MacQueen 1967) with at most `room` clusters: a vector joins the nearest
//! cluster if their cosine is at least `near`, founds one while there is room, and else joins the nearest whatever the
//! cosine. The result depends on the order of vectors, so the clusters of a window are compared with those of a reference by
//! assigning the window to the reference's clusters ([`Clusters::assign`]) and a distance of [`super::distance`].

use serde::{Deserialize, Serialize};

use crate::units::count;

/// Failure to take a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbeddingError {
    /// Vector of another dimension than those before.
    #[error("a vector of {found} numbers among those of {expected}")]
    Dimension {
        /// Dimension so far.
        expected: usize,
        /// Dimension of the vector.
        found: usize,
    },
    /// Vector without a direction.
    #[error("a vector that is zero or has numbers that are not finite")]
    Direction,
}

/// Vector scaled to length 1.
fn unit(vector: &[f32], dimension: usize) -> Result<Vec<f64>, EmbeddingError> {
    if vector.len() != dimension {
        return Err(EmbeddingError::Dimension { expected: dimension, found: vector.len() });
    }
    let length = vector.iter().map(|part| f64::from(*part).powi(2)).sum::<f64>().sqrt();
    if length.is_finite() && length > 0.0 {
        Ok(vector.iter().map(|part| f64::from(*part) / length).collect())
    } else {
        Err(EmbeddingError::Direction)
    }
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

/// Sum of unit vectors. Takes 8 bytes for each dimension.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Centroid {
    sum: Vec<f64>,
    count: u64,
}

impl Centroid {
    /// Centroid of vectors of a dimension.
    #[must_use]
    pub fn new(dimension: usize) -> Self {
        Self { sum: vec![0.0; dimension], count: 0 }
    }

    /// Adds a vector.
    ///
    /// # Errors
    ///
    /// [`EmbeddingError`] for a vector of another dimension or without direction; nothing is added.
    pub fn add(&mut self, vector: &[f32]) -> Result<(), EmbeddingError> {
        let unit = unit(vector, self.sum.len())?;
        self.sum.iter_mut().zip(unit).for_each(|(sum, part)| *sum += part);
        self.count += 1;
        Ok(())
    }

    /// Adds another centroid.
    ///
    /// # Errors
    ///
    /// [`EmbeddingError::Dimension`] for one of another dimension.
    pub fn merge(&mut self, other: &Self) -> Result<(), EmbeddingError> {
        if other.sum.len() != self.sum.len() {
            return Err(EmbeddingError::Dimension { expected: self.sum.len(), found: other.sum.len() });
        }
        self.sum.iter_mut().zip(&other.sum).for_each(|(sum, part)| *sum += part);
        self.count += other.count;
        Ok(())
    }

    /// Numbers of a vector.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.sum.len()
    }

    /// Vectors so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Mean squared distance of the vectors from their mean, 0 (all alike) to 1; `None` without vectors.
    #[must_use]
    pub fn spread(&self) -> Option<f64> {
        (self.count > 0).then(|| (1.0 - dot(&self.sum, &self.sum) / count(self.count).powi(2)).max(0.0))
    }

    /// Cosine distance (1 less the cosine) of two centroids, 0 to 2; `None` where one has no direction.
    #[must_use]
    pub fn distance(&self, other: &Self) -> Option<f64> {
        let lengths = (dot(&self.sum, &self.sum) * dot(&other.sum, &other.sum)).sqrt();
        (lengths > 0.0 && self.sum.len() == other.sum.len()).then(|| 1.0 - dot(&self.sum, &other.sum) / lengths)
    }
}

/// Clusters found online. Takes `room` times 8 bytes for each dimension.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clusters {
    dimension: usize,
    room: usize,
    near: f64,
    clusters: Vec<Centroid>,
}

impl Clusters {
    /// At most `room` clusters (at least 1) of vectors whose cosine with their cluster is `near` or more while there is room.
    #[must_use]
    pub fn new(dimension: usize, room: usize, near: f64) -> Self {
        Self { dimension, room: room.max(1), near, clusters: Vec::new() }
    }

    /// Adds a vector and returns the place of its cluster.
    ///
    /// # Errors
    ///
    /// [`EmbeddingError`] for a vector of another dimension or without direction.
    pub fn add(&mut self, vector: &[f32]) -> Result<usize, EmbeddingError> {
        let nearest = self.assign(vector)?;
        let place = match nearest {
            Some((place, cosine)) if cosine >= self.near || self.clusters.len() >= self.room => place,
            _ => {
                self.clusters.push(Centroid::new(self.dimension));
                self.clusters.len() - 1
            }
        };
        if let Some(cluster) = self.clusters.get_mut(place) {
            cluster.add(vector)?;
        }
        Ok(place)
    }

    /// Place of the nearest cluster and the cosine with it; `None` while there is none.
    ///
    /// # Errors
    ///
    /// [`EmbeddingError`] for a vector of another dimension or without direction.
    pub fn assign(&self, vector: &[f32]) -> Result<Option<(usize, f64)>, EmbeddingError> {
        let unit = unit(vector, self.dimension)?;
        let cosine = |cluster: &Centroid| {
            let length = dot(&cluster.sum, &cluster.sum).sqrt();
            if length > 0.0 { dot(&cluster.sum, &unit) / length } else { -1.0 }
        };
        Ok(self.clusters.iter().map(cosine).enumerate().max_by(|one, other| one.1.total_cmp(&other.1)))
    }

    /// Numbers of a vector.
    #[must_use]
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Clusters in the order in which they were founded.
    #[must_use]
    pub fn clusters(&self) -> &[Centroid] {
        &self.clusters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centroids_know_direction_and_spread() {
        let (mut alike, mut spread, mut merged) = (Centroid::new(2), Centroid::new(2), Centroid::new(2));
        for _ in 0..3 {
            alike.add(&[0.0, 5.0]).unwrap();
        }
        spread.add(&[1.0, 0.0]).unwrap();
        spread.add(&[-1.0, 0.0]).unwrap();
        assert!(alike.spread().unwrap() < 1e-12 && (spread.spread().unwrap() - 1.0).abs() < 1e-12);
        merged.merge(&alike).unwrap();
        assert_eq!(merged, alike);
        assert!((alike.distance(&merged).unwrap()).abs() < 1e-12);
        assert_eq!(spread.distance(&alike), None);
        assert_eq!(alike.add(&[0.0, 0.0]), Err(EmbeddingError::Direction));
        assert_eq!(alike.add(&[1.0]), Err(EmbeddingError::Dimension { expected: 2, found: 1 }));
    }

    #[test]
    fn clusters_are_found_and_bounded() {
        let mut clusters = Clusters::new(3, 2, 0.9);
        for step in 0..50_u8 {
            let little = f32::from(step % 5) * 0.02;
            assert_eq!(clusters.add(&[1.0, little, 0.0]).unwrap(), 0);
            assert_eq!(clusters.add(&[little, 1.0, 0.0]).unwrap(), 1);
        }
        clusters.add(&[0.0, 0.0, 1.0]).unwrap();
        assert_eq!(clusters.clusters().len(), 2);
        assert_eq!(clusters.clusters().iter().map(Centroid::count).sum::<u64>(), 101);
    }
}
