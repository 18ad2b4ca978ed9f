//! API server of Kubernetes: a real one with its etcd, or a scripted one that lists, watches, and keeps versions as that does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::programs::needed;
use crate::{Answer, Authority, Client, Reply, Secure, Seen, Upstream, eventually, free_port, reply, streamed};

const JSON: (&str, &str) = ("content-type", "application/json");
/// Token of an operator, who may do everything.
const OPERATOR: &str = "token-of-the-operator";
/// Token of the gateway, which may do what its role says.
const GATEWAY: &str = "token-of-the-gateway";
/// User that the token of the gateway stands for: the service account of the chart.
const GATEWAY_USER: &str = "system:serviceaccount:inference:spillway";

/// API server.
pub struct Cluster(Server);

enum Server {
    Scripted { server: Upstream, state: Arc<State> },
    Real { api: SocketAddr, authority: Box<Authority>, folder: tempfile::TempDir, children: Vec<Child> },
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Server::Real { children, .. } = &mut self.0 {
            for child in children {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// Address of this machine that is not loopback: the API server takes no loopback for an endpoint.
pub fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: the system only chooses the address.
    let chosen = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    chosen.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

/// Path of an object's kind, and of the object, as the API has it.
pub(crate) fn paths(object: &Value) -> (String, String) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (version, kind) = (text("/apiVersion").unwrap(), text("/kind").unwrap().to_lowercase());
    let plural = match kind.strip_suffix("cy") {
        Some(stem) => format!("{stem}cies"),
        None if kind.ends_with('s') => format!("{kind}es"),
        None => format!("{kind}s"),
    };
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let namespace = text("/metadata/namespace").map(|one| format!("/namespaces/{one}")).unwrap_or_default();
    let kind = format!("{root}{namespace}/{plural}");
    let object = format!("{kind}/{}", text("/metadata/name").unwrap());
    (kind, object)
}

impl Cluster {
    /// Scripted server. It does not know the kinds `absent`, by their plurals, as where their definitions are not installed.
    pub async fn scripted(absent: &[&str]) -> Self {
        let state = Arc::new(State {
            store: Mutex::default(),
            changed: watch::Sender::new(0),
            absent: absent.iter().map(|name| (*name).to_owned()).collect(),
        });
        let answering = state.clone();
        let server = Upstream::start(move |seen| {
            let state = answering.clone();
            async move { Some(state.answer(&seen)) }
        });
        Self(Server::Scripted { server: server.await, state })
    }

    /// Starts etcd and an API server that asks for roles.
    pub async fn real() -> Self {
        let how = "`make test-kubernetes` builds it";
        let (etcd, server) = (
            needed("SPILLWAY_TEST_ETCD", ".cache/bin/etcd", how),
            needed("SPILLWAY_TEST_KUBE_APISERVER", ".cache/bin/kube-apiserver", how),
        );
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let authority = Authority::default();
        authority.write(folder.path());
        authority.server(&["127.0.0.1"]).write(folder.path(), "server");
        authority.server(&["tokens"]).write(folder.path(), "tokens");
        let tokens = format!("{OPERATOR},operator,1,system:masters\n{GATEWAY},{GATEWAY_USER},2\n");
        std::fs::write(folder.path().join("tokens.csv"), tokens).unwrap();
        let (client, peer, port) = (free_port(), free_port(), free_port());
        let store = format!("http://127.0.0.1:{client}");
        let peers = format!("http://127.0.0.1:{peer}");
        let quiet = |command: &mut Command, log: &str| {
            let log = std::fs::File::create(folder.path().join(log)).unwrap();
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
        };
        let mut etcd = Command::new(etcd);
        etcd.args(["--name", "default", "--data-dir", &at("etcd"), "--unsafe-no-fsync"]);
        etcd.args(["--listen-client-urls", &store, "--advertise-client-urls", &store]);
        etcd.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        etcd.args(["--initial-cluster", &format!("default={peers}")]);
        let mut api = Command::new(server);
        api.args(["--etcd-servers", &store, "--bind-address", "127.0.0.1", "--secure-port", &port.to_string()]);
        api.args(["--tls-cert-file", &at("server.pem"), "--tls-private-key-file", &at("server.key")]);
        api.args(["--token-auth-file", &at("tokens.csv"), "--authorization-mode", "RBAC"]);
        api.args(["--service-account-issuer", "https://kubernetes.default.svc"]);
        api.args([
            "--service-account-key-file",
            &at("tokens.pem"),
            "--service-account-signing-key-file",
            &at("tokens.key"),
        ]);
        api.args(["--service-cluster-ip-range", "10.96.0.0/24", "--disable-admission-plugins", "ServiceAccount"]);
        api.args(["--endpoint-reconciler-type", "none"]);
        let children = vec![quiet(&mut etcd, "etcd.log"), quiet(&mut api, "api.log")];
        let cluster = Self(Server::Real {
            api: SocketAddr::from(([127, 0, 0, 1], port)),
            authority: Box::new(authority),
            folder,
            children,
        });
        eventually("the API server is ready", || async {
            cluster.try_ask("GET", "/readyz", "", String::new()).await.filter(|answer| answer.status == 200)
        })
        .await;
        cluster
    }

    /// Writes the file with address and credentials of the gateway into a folder.
    pub fn kubeconfig(&self, folder: &Path) -> PathBuf {
        let file = folder.join("kubeconfig.yaml");
        let (server, authority, user) = match &self.0 {
            Server::Scripted { server, .. } => (server.url(), None, json!({})),
            Server::Real { api, folder, .. } => {
                (format!("https://{api}"), Some(folder.path().join("ca.pem")), json!({"token": GATEWAY}))
            }
        };
        let mut cluster = json!({"server": server});
        if let Some(authority) = authority {
            cluster["certificate-authority"] = authority.to_str().unwrap().into();
        }
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "inference"}}],
        });
        std::fs::write(&file, config.to_string()).unwrap();
        file
    }

    async fn try_ask(&self, method: &str, path: &str, content_type: &str, body: String) -> Option<Answer> {
        match &self.0 {
            Server::Scripted { server, .. } => {
                let client = Client::new(server.address);
                client.try_send(client.request(method, path, &[("content-type", content_type)], body)).await.ok()
            }
            Server::Real { api, authority, .. } => {
                let request = Request::builder()
                    .method(method)
                    .uri(path)
                    .header("host", api.to_string())
                    .header("authorization", format!("Bearer {OPERATOR}"))
                    .header("content-type", if content_type.is_empty() { "application/json" } else { content_type })
                    .body(Full::new(Bytes::from(body)))
                    .unwrap();
                Secure::new(*api, authority).send("127.0.0.1", request).await.ok()
            }
        }
    }

    async fn ask(&self, method: &str, path: &str, body: String) -> Answer {
        self.try_ask(method, path, JSON.1, body).await.expect("the API server answers")
    }

    /// Creates what a manifest says, in the form of the API server's own clients.
    pub async fn create_yaml(&self, path: &str, yaml: &str) {
        let answer = self.try_ask("POST", path, "application/yaml", yaml.to_owned()).await.expect("an answer");
        assert!(answer.status == 201 || answer.status == 409, "{path}: {} {}", answer.status, answer.text());
    }

    /// Creates an object, or puts it in the place of the one that is there.
    pub async fn apply(&self, object: &Value) {
        let (kind, path) = paths(object);
        eventually(&format!("{path} is taken"), || {
            let (kind, path) = (kind.clone(), path.clone());
            async move {
                let known = self.ask("GET", &path, String::new()).await;
                let answer = if known.status == 404 {
                    self.ask("POST", &kind, object.to_string()).await
                } else {
                    let mut object = object.clone();
                    object["metadata"]["resourceVersion"] = known.json()["metadata"]["resourceVersion"].clone();
                    if let Some(status) = known.json().get("status") {
                        object["status"] = status.clone();
                    }
                    self.ask("PUT", &path, object.to_string()).await
                };
                // A kind that is being installed, or a status that was written meanwhile.
                if [404, 409, 429].contains(&answer.status.as_u16()) {
                    return None;
                }
                assert!(answer.status.is_success(), "{path}: {} {}", answer.status, answer.text());
                Some(())
            }
        })
        .await;
    }

    /// Writes the status of an object, as the cluster's own controllers do.
    pub async fn set_status(&self, object: &Value, status: &Value) {
        let (_, path) = paths(object);
        let body = json!({"status": status}).to_string();
        let path = format!("{path}/status");
        let answer = self.try_ask("PATCH", &path, "application/merge-patch+json", body).await.expect("an answer");
        assert!(answer.status.is_success(), "{path}: {}", answer.text());
    }

    /// Object as the server has it.
    pub async fn get(&self, object: &Value) -> Option<Value> {
        let answer = self.ask("GET", &paths(object).1, String::new()).await;
        (answer.status == 200).then(|| answer.json())
    }

    /// Deletes an object.
    pub async fn delete(&self, object: &Value) {
        let (_, path) = paths(object);
        let answer = self.ask("DELETE", &path, String::new()).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text());
    }

    /// Ends all watches, as an API server does that is restarted; the scripted one alone.
    pub fn end_watches(&self) {
        if let Server::Scripted { state, .. } = &self.0 {
            state.store.lock().unwrap().epoch += 1;
            state.changed.send_modify(|n| *n += 1);
        }
    }
}

/// State of the scripted server.
struct State {
    store: Mutex<Store>,
    changed: watch::Sender<u64>,
    absent: BTreeSet<String>,
}

#[derive(Default)]
struct Store {
    version: u64,
    /// Number of the times at which all watches ended.
    epoch: u64,
    objects: BTreeMap<Place, Value>,
    /// All changes, with their versions.
    log: Vec<(u64, Place, &'static str, Value)>,
}

/// Place of a kind or an object: group with version, plural, namespace, name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    group: String,
    plural: String,
    namespace: Option<String>,
    name: Option<String>,
    part: Option<String>,
}

impl Place {
    fn parse(path: &str) -> Self {
        let mut parts = path.trim_matches('/').split('/').map(str::to_owned);
        let root = parts.next().unwrap_or_default();
        let depth = if root == "api" { 1 } else { 2 };
        let group = std::iter::once(root).chain(parts.by_ref().take(depth)).collect::<Vec<_>>().join("/");
        let mut rest: Vec<String> = parts.collect();
        let is_within = rest.first().is_some_and(|one| one == "namespaces") && rest.len() > 2;
        let namespace = is_within.then(|| rest.drain(..2).nth(1).unwrap());
        let mut rest = rest.into_iter();
        Self { group, namespace, plural: rest.next().unwrap_or_default(), name: rest.next(), part: rest.next() }
    }

    /// True if the object at `object` is one of those at this place of a kind.
    fn holds(&self, object: &Self) -> bool {
        self.group == object.group
            && self.plural == object.plural
            && self.namespace.as_ref().is_none_or(|one| object.namespace.as_ref() == Some(one))
    }
}

fn failure(status: u16, reason: &str) -> Reply {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": status, "message": reason});
    reply(status, &[JSON], body.to_string())
}

/// Merges a patch as of RFC 7396.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}

impl State {
    fn answer(self: &Arc<Self>, seen: &Seen) -> Reply {
        let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
        let place = Place::parse(path);
        if self.absent.contains(&place.plural) {
            return failure(404, "NotFound");
        }
        let asked = |key: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(name, _)| *name == key).map(|(_, value)| value.replace("%3D", "=")).next()
        };
        let selector = asked("fieldSelector");
        match (seen.method.as_str(), place.name.is_some()) {
            ("GET", false) if asked("watch").is_some() => {
                let since = asked("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
                self.watch(place, selector, since)
            }
            ("GET", false) => {
                let store = self.store.lock().unwrap();
                let found = store
                    .objects
                    .iter()
                    .filter(|(at, object)| place.holds(at) && selected(object, selector.as_deref()));
                let items: Vec<&Value> = found.map(|(_, object)| object).collect();
                let list = json!({
                    "kind": "List", "apiVersion": "v1", "items": items,
                    "metadata": {"resourceVersion": store.version.to_string()},
                });
                reply(200, &[JSON], list.to_string())
            }
            ("GET", true) => match self.store.lock().unwrap().objects.get(&place) {
                Some(object) => reply(200, &[JSON], object.to_string()),
                None => failure(404, "NotFound"),
            },
            ("POST", false) => {
                let mut object: Value = serde_json::from_slice(&seen.body).unwrap();
                object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
                object["metadata"]["generation"] = 1.into();
                let at = Place { name: object["metadata"]["name"].as_str().map(str::to_owned), ..place };
                self.put(at, object, "ADDED")
            }
            ("PUT" | "PATCH", true) => self.change(place, seen),
            ("DELETE", true) => {
                let mut store = self.store.lock().unwrap();
                let Some(object) = store.objects.remove(&place) else { return failure(404, "NotFound") };
                store.add(place, object, "DELETED");
                drop(store);
                self.changed.send_modify(|n| *n += 1);
                reply(200, &[JSON], json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}).to_string())
            }
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    fn change(&self, place: Place, seen: &Seen) -> Reply {
        let at = Place { part: None, ..place.clone() };
        let known = self.store.lock().unwrap().objects.get(&at).cloned();
        let Some(known) = known else { return failure(404, "NotFound") };
        let written: Value = serde_json::from_slice(&seen.body).unwrap();
        let version = written.pointer("/metadata/resourceVersion").filter(|version| !version.is_null());
        if version.is_some_and(|version| *version != known["metadata"]["resourceVersion"]) {
            return failure(409, "Conflict");
        }
        let mut object = known.clone();
        if seen.method == "PATCH" {
            merge(&mut object, &written);
        } else {
            object = written;
            object["metadata"]["creationTimestamp"] = known["metadata"]["creationTimestamp"].clone();
        }
        let generation = known["metadata"]["generation"].as_u64().unwrap_or(1);
        let is_other = object.get("spec") != known.get("spec");
        object["metadata"]["generation"] = (generation + u64::from(is_other)).into();
        self.put(at, object, "MODIFIED")
    }

    fn put(&self, at: Place, object: Value, kind: &'static str) -> Reply {
        let object = self.store.lock().unwrap().add(at, object, kind);
        self.changed.send_modify(|n| *n += 1);
        reply(if kind == "ADDED" { 201 } else { 200 }, &[JSON], object.to_string())
    }

    fn watch(self: &Arc<Self>, place: Place, selector: Option<String>, since: u64) -> Reply {
        let (parts, receiver) = tokio::sync::mpsc::channel(16);
        let (state, mut changed, mut since) = (self.clone(), self.changed.subscribe(), since);
        let epoch = self.store.lock().unwrap().epoch;
        tokio::spawn(async move {
            loop {
                let (lines, is_over) = {
                    let store = state.store.lock().unwrap();
                    let new = store.log.iter().filter(|(version, at, _, object)| {
                        *version > since && place.holds(at) && selected(object, selector.as_deref())
                    });
                    let lines: Vec<String> = new
                        .map(|(_, _, kind, object)| format!("{}\n", json!({"type": kind, "object": object})))
                        .collect();
                    since = store.version;
                    (lines, store.epoch != epoch)
                };
                for line in lines {
                    if parts.send(Ok(Bytes::from(line))).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = changed.changed() => if changed.is_err() { return },
                    () = parts.closed() => return,
                }
                if is_over {
                    return;
                }
            }
        });
        streamed(&[JSON], receiver)
    }
}

impl Store {
    fn add(&mut self, at: Place, mut object: Value, kind: &'static str) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if kind != "DELETED" {
            self.objects.insert(at.clone(), object.clone());
        }
        self.log.push((self.version, at, kind, object.clone()));
        object
    }
}

fn selected(object: &Value, selector: Option<&str>) -> bool {
    let Some((field, value)) = selector.and_then(|selector| selector.split_once('=')) else { return true };
    object.pointer(&format!("/{}", field.replace('.', "/"))).and_then(Value::as_str) == Some(value)
}
