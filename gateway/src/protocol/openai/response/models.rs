//! The list of models, and one of them.

use bytes::Bytes;
use serde::Serialize;

use crate::protocol::dialect::ModelCard;
use crate::protocol::json;

#[derive(Serialize)]
struct CardBody<'a> {
    object: &'static str,
    id: &'a str,
    created: u64,
    owned_by: &'static str,
}

impl<'a> From<ModelCard<'a>> for CardBody<'a> {
    fn from(card: ModelCard<'a>) -> Self {
        Self { object: "model", id: card.id, created: card.created, owned_by: "spillway" }
    }
}

#[derive(Serialize)]
struct List<T> {
    object: &'static str,
    data: Vec<T>,
}

/// Answer to `GET /v1/models`.
pub(in crate::protocol::openai) fn model_list(models: &[ModelCard<'_>]) -> Bytes {
    json(&List { object: "list", data: models.iter().map(|card| CardBody::from(*card)).collect() })
}

/// Answer to `GET /v1/models/ID`.
pub(in crate::protocol::openai) fn model(model: ModelCard<'_>) -> Bytes {
    json(&CardBody::from(model))
}
