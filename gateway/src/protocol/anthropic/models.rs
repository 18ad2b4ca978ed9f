//! The list of models, and one of them (`anthropic` 2.14, `types/model_info.py`).

use bytes::Bytes;
use serde::Serialize;

use crate::protocol::dialect::ModelCard;
use crate::protocol::json;

#[derive(Serialize)]
struct CardBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    display_name: &'a str,
    created_at: String,
    lifecycle: &'static str,
}

impl<'a> From<ModelCard<'a>> for CardBody<'a> {
    fn from(card: ModelCard<'a>) -> Self {
        let created_at = super::rfc3339(card.created);
        Self { kind: "model", id: card.id, display_name: card.id, created_at, lifecycle: "active" }
    }
}

#[derive(Serialize)]
struct List<'a> {
    data: Vec<CardBody<'a>>,
    has_more: bool,
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
}

/// Answer to `GET /v1/models`. All models are on the first page.
pub(super) fn list(models: &[ModelCard<'_>]) -> Bytes {
    json(&List {
        data: models.iter().map(|card| CardBody::from(*card)).collect(),
        has_more: false,
        first_id: models.first().map(|card| card.id),
        last_id: models.last().map(|card| card.id),
    })
}

/// Answer to `GET /v1/models/ID`.
pub(super) fn one(model: ModelCard<'_>) -> Bytes {
    json(&CardBody::from(model))
}
