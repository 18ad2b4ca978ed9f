//! The list of models, and one of them (`anthropic` 2.14, `types/model_info.py`).

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::protocol::dialect::{ListPage, ModelCard};
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

#[derive(Deserialize)]
struct Served {
    id: String,
}

#[derive(Deserialize)]
struct Page {
    data: Vec<Served>,
    #[serde(default)]
    has_more: bool,
    #[serde(default)]
    last_id: Option<String>,
}

/// Query for a page of a server's list, which has at most 1000 models.
pub(super) fn list_query(after: Option<&str>) -> String {
    match after {
        None => "?limit=1000".to_owned(),
        Some(after) => {
            let after: String = url::form_urlencoded::byte_serialize(after.as_bytes()).collect();
            format!("?limit=1000&after_id={after}")
        }
    }
}

/// Reads a page of a server's list. The models have the time of no unit that other APIs have.
pub(super) fn read_list(body: &[u8]) -> Option<ListPage> {
    let page: Page = serde_json::from_slice(body).ok()?;
    let next = page.last_id.filter(|_| page.has_more);
    Some(ListPage { models: page.data.into_iter().map(|model| (model.id, 0)).collect(), next })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_servers_are_read() {
        let page = |body: &str| read_list(body.as_bytes());
        let first = page(
            r#"{"data":[{"type":"model","id":"a b","created_at":"x"}],"has_more":true,"first_id":"a b","last_id":"a b"}"#,
        );
        assert_eq!(first, Some(ListPage { models: vec![("a b".into(), 0)], next: Some("a b".into()) }));
        assert_eq!(list_query(Some("a b&c")), "?limit=1000&after_id=a+b%26c");
        let last = page(r#"{"data":[],"has_more":false,"last_id":"z"}"#);
        assert_eq!(last, Some(ListPage::default()));
        assert_eq!(page(r#"{"type":"error"}"#), None);
    }
}
