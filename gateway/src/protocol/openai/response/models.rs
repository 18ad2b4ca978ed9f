//! The list of models, and one of them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::protocol::dialect::{ListPage, ModelCard};
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

/// Model in a server's list. Servers write more members, and some none but the id.
#[derive(Deserialize)]
struct Served {
    id: String,
    #[serde(default)]
    created: serde_json::Value,
}

#[derive(Deserialize)]
struct ServedList {
    data: Vec<Served>,
}

/// Reads the answer of a server to `GET /v1/models`.
pub(in crate::protocol::openai) fn read_list(body: &[u8]) -> Option<ListPage> {
    let list: ServedList = serde_json::from_slice(body).ok()?;
    let models = list.data.into_iter().map(|model| (model.id, model.created.as_u64().unwrap_or_default()));
    Some(ListPage { models: models.collect(), next: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_servers_are_read() {
        let body = br#"{"object":"list","data":[{"id":"a","object":"model","created":7,"owned_by":"x"},{"id":"b/c","created":1.5}],"x":1}"#;
        let page = read_list(body).unwrap();
        assert_eq!(page, ListPage { models: vec![("a".into(), 7), ("b/c".into(), 0)], next: None });
        for body in ["", "{}", "[]", r#"{"data":[{"name":"a"}]}"#, r#"{"error":{"message":"no"}}"#] {
            assert!(read_list(body.as_bytes()).is_none(), "{body}");
        }
    }
}
