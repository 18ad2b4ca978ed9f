//! Watches of the API server, one for each kind and namespace. What fails is tried again, ever more seldom; what the server does
//! not know (a kind whose definition is not installed) counts as empty until it does.

use std::sync::Arc;

use futures::StreamExt;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::mpsc;

use super::objects::{Kind, ObjectKey, key_of, trimmed};

/// Objects of one answer of a list.
const PAGE: u32 = 500;
/// ConfigMaps of one answer of a list: each may have 1 MiB, of which little is kept.
const PAGE_OF_MAPS: u32 = 50;

/// Change of the objects of a watch.
pub(super) enum Change {
    /// All objects, in the places of those that were there.
    All(Vec<Value>),
    /// Object that was made or has changed.
    One(Box<Value>),
    /// An object is gone.
    Gone(ObjectKey),
    /// The watch failed, and goes on.
    Failed(String),
}

/// Change with the watch that it comes from.
pub(super) struct Event {
    /// Kind of the objects.
    pub(super) kind: Kind,
    /// Namespace of the watch; `None` for all.
    pub(super) namespace: Option<Arc<str>>,
    /// Change.
    pub(super) change: Change,
}

/// API of a kind, in one namespace or in all.
pub(super) fn api(client: &Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    let (group, version, name, plural) = kind.resource();
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, name), plural);
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// Watches a kind until the receiver is gone. At most `most` objects of it are held while they are listed.
pub(super) async fn watch(
    client: Client,
    kind: Kind,
    namespace: Option<Arc<str>>,
    class: Arc<str>,
    most: usize,
    events: mpsc::Sender<Event>,
) {
    let mut config = watcher::Config::default().page_size(PAGE);
    match kind {
        Kind::GatewayClass => config = config.fields(&format!("metadata.name={class}")),
        Kind::Secret => config = config.fields("type=kubernetes.io/tls"),
        Kind::ConfigMap => config = config.page_size(PAGE_OF_MAPS),
        _ => {}
    }
    let api = api(&client, kind, namespace.as_deref());
    let mut stream = watcher(api, config).default_backoff().boxed();
    let mut listed: Vec<Value> = Vec::new();
    while let Some(event) = stream.next().await {
        let json = |object: DynamicObject| trimmed(kind, serde_json::to_value(object).unwrap_or_default());
        let change = match event {
            Ok(watcher::Event::Init) => {
                listed = Vec::new();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                // One more than the most shows that there are too many.
                if listed.len() <= most {
                    listed.push(json(object));
                }
                continue;
            }
            Ok(watcher::Event::InitDone) => Change::All(std::mem::take(&mut listed)),
            Ok(watcher::Event::Apply(object)) => Change::One(Box::new(json(object))),
            Ok(watcher::Event::Delete(object)) => match key_of(&json(object)) {
                Some(key) => Change::Gone(key),
                None => continue,
            },
            Err(e) if is_unknown(&e) => Change::All(Vec::new()),
            Err(e) => Change::Failed(e.to_string()),
        };
        if events.send(Event { kind, namespace: namespace.clone(), change }).await.is_err() {
            return;
        }
    }
}

/// True if the server does not know the kind.
fn is_unknown(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}
