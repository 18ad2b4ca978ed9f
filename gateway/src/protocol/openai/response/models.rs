//! The list of models, and one of them.

use bytes::Bytes;
use serde::Serialize;

use crate::protocol::json;

/// A model in the list.
#[derive(Debug, Serialize)]
pub struct ModelCard<'a> {
    /// Its name.
    pub id: &'a str,
    /// Unix seconds.
    pub created: u64,
    /// Whose it is.
    pub owned_by: &'a str,
}

#[derive(Serialize)]
struct Card<'a, 'b> {
    object: &'static str,
    #[serde(flatten)]
    card: &'b ModelCard<'a>,
}

#[derive(Serialize)]
struct List<T> {
    object: &'static str,
    data: Vec<T>,
}

/// The answer to `GET /v1/models`.
pub fn models_list<'a>(cards: impl IntoIterator<Item = ModelCard<'a>>) -> Bytes {
    let cards: Vec<_> = cards.into_iter().collect();
    json(&List { object: "list", data: cards.iter().map(|card| Card { object: "model", card }).collect() })
}

/// The answer to `GET /v1/models/ID`.
pub fn model(card: &ModelCard<'_>) -> Bytes {
    json(&Card { object: "model", card })
}
