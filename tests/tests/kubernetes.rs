//! Kubernetes as a source: what objects say is served and answered in their statuses, and a wrong one costs itself alone. The
//! scenario runs against a scripted API server here, and against a real one in `make test-kubernetes`.

use std::net::SocketAddr;

use serde_json::{Value, json};
use spillway_tests::{Authority, Client, Cluster, Gateway, PythonServer, Upstream, eventually, free_port, own_address};

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

fn object(version: &str, kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    let mut metadata = json!({"name": name});
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
}

fn class() -> Value {
    object(GATEWAY_API, "GatewayClass", "", "spillway", json!({"controllerName": "spillway.dev/gateway"}))
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn gateway(port: u16) -> Value {
    let listener = json!({
        "name": "http", "port": port, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}},
    });
    object(GATEWAY_API, "Gateway", "infra", "public", json!({"gatewayClassName": "spillway", "listeners": [listener]}))
}

fn service(name: &str) -> Value {
    object("v1", "Service", "models", name, json!({"ports": [{"name": "http", "port": 80, "targetPort": 8000}]}))
}

fn slice(service: &str, servers: &[SocketAddr]) -> Value {
    let port = servers.first().map_or(8000, SocketAddr::port);
    let endpoints: Vec<Value> = servers
        .iter()
        .map(|server| json!({"addresses": [server.ip().to_string()], "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-1"), "namespace": "models", "labels": {"kubernetes.io/service-name": service},
        },
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    })
}

fn route(name: &str, rules: Value) -> Value {
    let spec = json!({
        "parentRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "infra", "name": "public"}],
        "rules": rules,
    });
    object(GATEWAY_API, "HTTPRoute", "models", name, spec)
}

fn weighted(a: u32, b: u32) -> Value {
    json!([{"backendRefs": [{"name": "a", "port": 80, "weight": a}, {"name": "b", "port": 80, "weight": b}]}])
}

/// Answers with a name, on an address that may be an endpoint.
async fn server(name: &'static str) -> Upstream {
    Upstream::fixed_on(SocketAddr::new(own_address(), 0), name).await
}

/// Configuration with a listener and a route of the file, and the objects of the class.
async fn start(cluster: &Cluster, further: &str) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    cluster.kubeconfig(folder.path());
    let yaml = format!(
        "listeners: [{{name: own, address: \"127.0.0.1:0\"}}]
routes: [{{name: own, filters: [{{respond: {{body: file}}}}]}}]
discovery:
  kubernetes:
    gatewayClass: spillway
    kubeconfig: kubeconfig.yaml
    address: 127.0.0.1
    leaderElection: {{duration: 3s}}
    {further}
"
    );
    Gateway::start_in(folder, &yaml).await
}

/// Condition of a list, once it is about the content that the object has.
fn condition(object: &Value, conditions: &Value, kind: &str) -> Option<(bool, String)> {
    let generation = &object["metadata"]["generation"];
    let found =
        conditions.as_array()?.iter().find(|one| one["type"] == kind && one["observedGeneration"] == *generation)?;
    Some((found["status"] == "True", found["reason"].as_str()?.to_owned()))
}

/// Waits until a condition of a route at its Gateway is so.
async fn route_is(cluster: &Cluster, route: &Value, kind: &str, expected: (bool, &str)) {
    let what = format!("{} is {kind} {expected:?}", route["metadata"]["name"]);
    eventually(&what, || async {
        let route = cluster.get(route).await?;
        let found = condition(&route, &route["status"]["parents"][0]["conditions"], kind)?;
        (found == (expected.0, expected.1.to_owned())).then_some(())
    })
    .await;
}

async fn answers(client: &Client, path: &str, expected: &str) {
    let what = format!("{path} is answered with {expected}");
    eventually(&what, || async {
        // A connection is refused while nothing listens.
        tokio::net::TcpStream::connect(client.address()).await.ok()?;
        let answer = client.try_send(client.request("GET", path, &[], "")).await.ok()?;
        (answer.text().trim_end() == expected).then_some(())
    })
    .await;
}

/// Waits until requests get a status.
async fn status_is(client: &Client, path: &str, expected: u16) {
    let what = format!("{path} gets {expected}");
    eventually(&what, || async {
        tokio::net::TcpStream::connect(client.address()).await.ok()?;
        let answer = client.try_send(client.request("GET", path, &[], "")).await.ok()?;
        (answer.status == expected).then_some(())
    })
    .await;
}

/// A gateway on a port, and the services `a` and `b` with a server each.
async fn two_services(cluster: &Cluster, port: u16, [a, b]: [&Upstream; 2]) {
    for one in [
        class(),
        namespace("infra"),
        namespace("models"),
        gateway(port),
        service("a"),
        service("b"),
        slice("a", &[a.address]),
        slice("b", &[b.address]),
    ] {
        cluster.apply(&one).await;
    }
}

/// The way of a route from its creation to its end.
async fn scenario(cluster: &Cluster) {
    let (a, b) = (server("a").await, server("b").await);
    let port = free_port();
    two_services(cluster, port, [&a, &b]).await;
    let running = start(cluster, "publishedAddresses: [203.0.113.7]").await;
    let client = Client::new(SocketAddr::from(([127, 0, 0, 1], port)));

    // Without a route, neither that of the file nor anything else answers.
    status_is(&client, "/", 404).await;
    assert_eq!(running.client().get("/").await.text(), "file");

    cluster.apply(&route("split", weighted(1, 0))).await;
    answers(&client, "/", "a").await;
    route_is(cluster, &route("split", json!([])), "Accepted", (true, "Accepted")).await;
    route_is(cluster, &route("split", json!([])), "ResolvedRefs", (true, "ResolvedRefs")).await;
    eventually("the Gateway is programmed", || async {
        let gateway = cluster.get(&gateway(port)).await?;
        let status = &gateway["status"];
        let listener = &status["listeners"][0];
        let programmed = condition(&gateway, &status["conditions"], "Programmed")?.0;
        let listens = condition(&gateway, &listener["conditions"], "Programmed")?.0;
        (programmed && listens && listener["attachedRoutes"] == 1 && status["addresses"][0]["value"] == "203.0.113.7")
            .then_some(())
    })
    .await;
    eventually("the class is accepted", || async {
        let class = cluster.get(&class()).await?;
        condition(&class, &class["status"]["conditions"], "Accepted").filter(|found| found.0).map(|_| ())
    })
    .await;

    // Weights, then endpoints, are followed.
    cluster.apply(&route("split", weighted(0, 1))).await;
    answers(&client, "/", "b").await;
    let c = server("c").await;
    cluster.apply(&slice("b", &[c.address])).await;
    answers(&client, "/", "c").await;
    cluster.apply(&slice("b", &[])).await;
    status_is(&client, "/", 503).await;
    cluster.apply(&slice("b", &[b.address])).await;
    answers(&client, "/", "b").await;

    // A wrong route costs itself alone, and says why; one without its service too.
    let filter = json!({"type": "ExtensionRef", "extensionRef": {"group": "a.test", "kind": "B", "name": "c"}});
    let wrong = json!([{"filters": [filter], "backendRefs": [{"name": "a", "port": 80}], "matches": [{"path": {"type": "PathPrefix", "value": "/wrong"}}]}]);
    cluster.apply(&route("wrong", wrong)).await;
    route_is(cluster, &route("wrong", json!([])), "Accepted", (false, "UnsupportedValue")).await;
    let lost = json!([{"backendRefs": [{"name": "none", "port": 80}], "matches": [{"path": {"type": "PathPrefix", "value": "/lost"}}]}]);
    cluster.apply(&route("lost", lost)).await;
    route_is(cluster, &route("lost", json!([])), "ResolvedRefs", (false, "BackendNotFound")).await;
    status_is(&client, "/lost", 500).await;
    answers(&client, "/wrong", "b").await;

    // An edit of the file that is wrong changes nothing, and objects are followed all the same.
    let good = std::fs::read_to_string(running.config()).unwrap();
    std::fs::write(running.config(), good.replace("respond", "respnd")).unwrap();
    assert_eq!(running.reloads(0).await["event"], "config_rejected");
    cluster.apply(&route("split", weighted(1, 0))).await;
    answers(&client, "/", "a").await;
    std::fs::write(running.config(), good.replace("body: file", "body: edited")).unwrap();
    assert_eq!(running.reloads(1).await["event"], "config_reloaded");
    assert_eq!(running.client().get("/").await.text(), "edited");
    assert_eq!(client.get("/").await.text(), "a", "an edit of the file keeps what objects say");

    // After a restart of the API server the watches go on.
    cluster.end_watches();
    cluster.apply(&route("split", weighted(0, 1))).await;
    answers(&client, "/", "b").await;

    cluster.delete(&route("split", json!([]))).await;
    status_is(&client, "/", 404).await;
    cluster.delete(&gateway(port)).await;
    eventually("the listener is gone", || async {
        tokio::net::TcpStream::connect(client.address()).await.err().map(|_| ())
    })
    .await;
    eventually("a route without its Gateway has no status of it", || async {
        let route = cluster.get(&route("lost", json!([]))).await?;
        route["status"]["parents"].as_array()?.is_empty().then_some(())
    })
    .await;
    running.metric_becomes("spillway_kubernetes_leader", 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_objects_say_is_served_and_answered_in_their_statuses() {
    // Kinds that are not installed are no fault.
    scenario(&Cluster::scripted(&["grpcroutes", "inferencepools"]).await).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a real API server: make test-kubernetes"]
async fn a_real_api_server_says_the_same() {
    let cluster = Cluster::real().await;
    let folder = std::env::var("SPILLWAY_TEST_GATEWAY_API")
        .expect("the folder of the definitions: make test-kubernetes sets it");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        for document in text.split("\n---\n").filter(|one| one.contains("kind: CustomResourceDefinition")) {
            cluster.create_yaml(definitions, document).await;
        }
    }
    // The rights of the chart, and no others.
    cluster.apply(&namespace("inference")).await;
    let rights = std::env::var("SPILLWAY_TEST_RIGHTS").expect("the roles of the chart: make test-kubernetes sets them");
    let rights = std::fs::read_to_string(rights).unwrap();
    for document in rights.split("\n---\n").filter(|one| one.contains("kind: ")) {
        let kind = document.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap().trim().to_lowercase();
        let namespaced = if kind.starts_with("cluster") { "" } else { "namespaces/inference/" };
        cluster.create_yaml(&format!("/apis/rbac.authorization.k8s.io/v1/{namespaced}{kind}s"), document).await;
    }
    scenario(&cluster).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_is_served_from_its_ready_pods() {
    let cluster = Cluster::scripted(&[]).await;
    let (a, b) = (server("a").await, server("b").await);
    let port = free_port();
    let pod = |name: &str, ready: &str| {
        let mut pod = object("v1", "Pod", "models", name, json!({}));
        pod["metadata"]["labels"] = json!({"app": "vllm"});
        pod["status"] =
            json!({"podIP": a.address.ip().to_string(), "conditions": [{"type": "Ready", "status": ready}]});
        pod
    };
    let pool = |port: u16, picker: Value| {
        let mut spec = json!({"selector": {"matchLabels": {"app": "vllm"}}, "targetPorts": [{"number": port}]});
        if !picker.is_null() {
            spec["endpointPickerRef"] = picker;
        }
        object("inference.networking.k8s.io/v1", "InferencePool", "models", "llama", spec)
    };
    let group = "inference.networking.k8s.io";
    let rules = json!([{"backendRefs": [{"group": group, "kind": "InferencePool", "name": "llama"}]}]);
    for one in [
        class(),
        namespace("infra"),
        namespace("models"),
        gateway(port),
        pod("p", "True"),
        pool(a.address.port(), Value::Null),
        route("chat", rules),
    ] {
        cluster.apply(&one).await;
    }
    let running = start(&cluster, "inferencePools: true").await;
    let client = Client::new(SocketAddr::from(([127, 0, 0, 1], port)));
    answers(&client, "/anything", "a").await;
    eventually("the pool is accepted", || async {
        let pool = cluster.get(&pool(1, Value::Null)).await?;
        condition(&pool, &pool["status"]["parents"][0]["conditions"], "Accepted").filter(|found| found.0).map(|_| ())
    })
    .await;
    cluster.apply(&pool(b.address.port(), Value::Null)).await;
    answers(&client, "/anything", "b").await;
    cluster.apply(&pod("p", "False")).await;
    cluster.set_status(&pod("p", "False"), &pod("p", "False")["status"]).await;
    status_is(&client, "/anything", 503).await;
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_picker_of_a_pool_chooses_the_pod_and_is_told_which_one_has_answered() {
    let cluster = Cluster::scripted(&[]).await;
    let (a, b) = (server("a").await, server("b").await);
    let (port, folder) = (free_port(), tempfile::tempdir().unwrap());
    // No authority that the gateway trusts has signed the picker's certificate.
    Authority::default().server(&["picker.test"]).write(folder.path(), "picker");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let arguments = ["log", "picker.pem", "picker.key"].map(file);
    let picker = PythonServer::start_with("ext_proc_service.py", &arguments.each_ref().map(String::as_str));
    let at: SocketAddr = picker.url.trim_start_matches("http://").parse().unwrap();
    let pool = |mode: &str| {
        let spec = json!({
            "selector": {"matchLabels": {"app": "vllm"}},
            "targetPorts": [{"number": a.address.port()}, {"number": b.address.port()}],
            "endpointPickerRef": {"name": "picker", "port": {"number": 9002}, "failureMode": mode},
        });
        object("inference.networking.k8s.io/v1", "InferencePool", "models", "llama", spec)
    };
    let mut pod = object("v1", "Pod", "models", "p", json!({}));
    pod["metadata"]["labels"] = json!({"app": "vllm"});
    pod["status"] = json!({"podIP": own_address().to_string(), "conditions": [{"type": "Ready", "status": "True"}]});
    let ports = json!({"ports": [{"name": "http", "port": 9002, "appProtocol": "http2"}]});
    let group = "inference.networking.k8s.io";
    let rules = json!([{"backendRefs": [{"group": group, "kind": "InferencePool", "name": "llama"}]}]);
    for one in
        [class(), namespace("infra"), namespace("models"), gateway(port), pod, route("chat", rules), pool("FailClose")]
    {
        cluster.apply(&one).await;
    }
    let _running = start(&cluster, "inferencePools: true").await;
    let client = Client::new(SocketAddr::from(([127, 0, 0, 1], port)));
    let pool_is = async |expected: (bool, &str)| {
        eventually(&format!("the references of the pool are {expected:?}"), || async {
            let pool = cluster.get(&pool("FailClose")).await?;
            let found = condition(&pool, &pool["status"]["parents"][0]["conditions"], "ResolvedRefs")?;
            (found == (expected.0, expected.1.to_owned())).then_some(())
        })
        .await;
    };
    status_is(&client, "/", 500).await;
    pool_is((false, "InvalidExtensionRef")).await;
    route_is(&cluster, &route("chat", json!([])), "ResolvedRefs", (false, "BackendNotFound")).await;

    cluster.apply(&object("v1", "Service", "models", "picker", ports)).await;
    status_is(&client, "/", 503).await;
    pool_is((true, "ResolvedRefs")).await;
    cluster.apply(&slice("picker", &[at])).await;
    status_is(&client, "/", 502).await;
    let same = json!({"duplex": "same"});
    let ask = async |address: SocketAddr| {
        let script = json!({
            "request_headers": {"set": {"x-gateway-destination-endpoint": address.to_string()}},
            "request_body": same, "response_body": same,
        });
        let headers = [("content-type", "application/json"), ("x-script", &script.to_string())];
        let body = json!({"model": "m", "messages": []}).to_string();
        client.send(client.request("POST", "/v1/chat/completions", &headers, body)).await.text()
    };
    for _ in 0..3 {
        assert_eq!((ask(a.address).await.as_str(), ask(b.address).await.as_str()), ("a", "b"));
    }
    eventually("the picker was told which pod has answered", || async {
        let log = std::fs::read_to_string(file("log")).ok()?;
        let last: Value = serde_json::from_str(log.lines().last()?).unwrap();
        let answer = last.as_array()?.iter().find(|one| one["kind"] == "response_headers")?;
        let served = &answer["metadata"]["envoy.lb"]["x-gateway-destination-endpoint-served"];
        (*served == b.address.to_string()).then_some(())
    })
    .await;

    // Without its picker a pool is closed, or served as by the gateway itself.
    drop(picker);
    status_is(&client, "/", 502).await;
    cluster.apply(&pool("FailOpen")).await;
    status_is(&client, "/", 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_match_by_patterns_split_with_headers_of_targets_and_answer_for_lost_ones() {
    let cluster = Cluster::scripted(&[]).await;
    let (a, b) = (server("a").await, server("b").await);
    let port = free_port();
    let header = |value: &str| {
        let set = json!({"set": [{"name": "x-target", "value": value}]});
        json!([{"type": "RequestHeaderModifier", "requestHeaderModifier": set}])
    };
    let rules = json!([
        {
            "matches": [{"headers": [{"name": "x-tier", "type": "RegularExpression", "value": "gold|silver"}]}],
            "backendRefs": [{"name": "a", "port": 80, "filters": header("{a}")}],
        },
        {
            "matches": [{"queryParams": [{"name": "v", "type": "RegularExpression", "value": "[0-9]+"}]}],
            "backendRefs": [{"name": "b", "port": 80}],
        },
        {"backendRefs": [{"name": "a", "port": 80}, {"name": "none", "port": 80}]},
    ]);
    two_services(&cluster, port, [&a, &b]).await;
    cluster.apply(&route("r", rules)).await;
    let running = start(&cluster, "").await;
    let client = Client::new(SocketAddr::from(([127, 0, 0, 1], port)));
    answers(&client, "/?v=12", "b").await;
    let answer = client.send(client.request("GET", "/?v=x", &[("x-tier", "silver")], "")).await;
    assert_eq!((answer.text().as_str(), &a.last().headers["x-target"]), ("a", &"{a}".parse().unwrap()));
    route_is(&cluster, &route("r", json!([])), "ResolvedRefs", (false, "BackendNotFound")).await;
    let mut statuses = std::collections::BTreeMap::new();
    for _ in 0..200 {
        let answer = client.send(client.request("GET", "/", &[("x-tier", "golden")], "")).await;
        *statuses.entry(answer.status).or_insert(0) += 1;
        assert!(answer.status != 200 || !a.last().headers.contains_key("x-target"));
    }
    // Either is missing less often than once in 10^59.
    assert_eq!(statuses.keys().copied().collect::<Vec<_>>(), [200, 500], "{statuses:?}");
    drop(running);
}

/// Condition of a policy at its only Gateway.
async fn policy_is(cluster: &Cluster, policy: &Value, kind: &str, expected: (bool, &str)) {
    eventually(&format!("the policy is {kind} {expected:?}"), || async {
        let policy = cluster.get(policy).await?;
        let found = condition(&policy, &policy["status"]["ancestors"][0]["conditions"], kind)?;
        (found == (expected.0, expected.1.to_owned())).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_a_policy_is_spoken_to_with_tls_or_not_at_all() {
    let cluster = Cluster::scripted(&[]).await;
    let (authority, folder) = (Authority::default(), tempfile::tempdir().unwrap());
    authority.server(&["web.test"]).write(folder.path(), "server");
    let tls = "tls: {certificates: [{certFile: server.pem, keyFile: server.key}]}";
    let yaml = format!(
        "listeners: [{{name: tls, address: \"{}:0\", protocol: https, {tls}}}]
routes: [{{name: r, filters: [{{respond: {{body: safe}}}}]}}]
",
        own_address()
    );
    let secure = Gateway::start_in(folder, &yaml).await;
    let port = free_port();
    let policy = |hostname: &str, validation: Value| {
        let mut validation = validation;
        validation["hostname"] = hostname.into();
        let target = json!({"group": "", "kind": "Service", "name": "a"});
        object(
            GATEWAY_API,
            "BackendTLSPolicy",
            "models",
            "p",
            json!({"targetRefs": [target], "validation": validation}),
        )
    };
    let host = json!({"type": "URLRewrite", "urlRewrite": {"hostname": "web.test"}});
    let by_map = json!({"caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}]});
    let map = |pem: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ca", "namespace": "models"},
            "data": {"ca.crt": pem},
        })
    };
    for one in [
        class(),
        namespace("infra"),
        namespace("models"),
        gateway(port),
        service("a"),
        slice("a", &[secure.listener("tls")]),
        // The server wants requests for the host of its certificate alone.
        route("r", json!([{"filters": [host], "backendRefs": [{"name": "a", "port": 80}]}])),
        policy("web.test", by_map.clone()),
    ] {
        cluster.apply(&one).await;
    }
    let running = start(&cluster, "caConfigMaps: true").await;
    let client = Client::new(SocketAddr::from(([127, 0, 0, 1], port)));
    let any = policy("web.test", by_map.clone());
    status_is(&client, "/", 500).await;
    policy_is(&cluster, &any, "Accepted", (false, "NoValidCACertificate")).await;
    policy_is(&cluster, &any, "ResolvedRefs", (false, "InvalidCACertificateRef")).await;
    cluster.apply(&map(&authority.pem)).await;
    answers(&client, "/", "safe").await;
    policy_is(&cluster, &any, "Accepted", (true, "Accepted")).await;
    policy_is(&cluster, &any, "ResolvedRefs", (true, "ResolvedRefs")).await;
    // The name, and who has signed it, are verified.
    cluster.apply(&policy("other.test", by_map.clone())).await;
    status_is(&client, "/", 503).await;
    cluster.apply(&policy("web.test", by_map)).await;
    answers(&client, "/", "safe").await;
    cluster.apply(&map(&Authority::default().pem)).await;
    status_is(&client, "/", 503).await;
    cluster.apply(&map(&authority.pem)).await;
    answers(&client, "/", "safe").await;
    cluster.apply(&policy("web.test", json!({"wellKnownCACertificates": "System"}))).await;
    status_is(&client, "/", 503).await;
    drop((running, secure));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_writes_statuses_and_another_takes_over() {
    let cluster = Cluster::scripted(&[]).await;
    for one in [class(), namespace("infra"), namespace("models"), service("a")] {
        cluster.apply(&one).await;
    }
    let lease = object("coordination.k8s.io/v1", "Lease", "inference", "spillway", json!({}));
    let first = start(&cluster, "").await;
    first.metric_becomes("spillway_kubernetes_leader", 1.0).await;
    let holder = cluster.get(&lease).await.unwrap()["spec"]["holderIdentity"].clone();
    let second = start(&cluster, "").await;
    // A leader that has ended gives the lease up; one that was killed loses it.
    drop(first);
    second.metric_becomes("spillway_kubernetes_leader", 1.0).await;
    let now = cluster.get(&lease).await.unwrap();
    assert_ne!(now["spec"]["holderIdentity"], holder);
    assert_eq!(now["spec"]["leaseTransitions"], 2);
    cluster.apply(&gateway(free_port())).await;
    eventually("the second writes statuses", || async {
        let gateway = cluster.get(&gateway(1)).await?;
        condition(&gateway, &gateway["status"]["conditions"], "Accepted").map(|_| ())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_costs_its_listener_alone() {
    let cluster = Cluster::scripted(&[]).await;
    let a = server("a").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, blocked) = (free_port(), taken.local_addr().unwrap().port());
    let mut gateway = gateway(port);
    let mut second = gateway["spec"]["listeners"][0].clone();
    second["name"] = "blocked".into();
    second["port"] = blocked.into();
    gateway["spec"]["listeners"].as_array_mut().unwrap().push(second);
    for one in [
        class(),
        namespace("infra"),
        namespace("models"),
        gateway.clone(),
        service("a"),
        slice("a", &[a.address]),
        route("r", json!([{"backendRefs": [{"name": "a", "port": 80}]}])),
    ] {
        cluster.apply(&one).await;
    }
    let running = start(&cluster, "").await;
    answers(&Client::new(SocketAddr::from(([127, 0, 0, 1], port))), "/", "a").await;
    eventually("the other listener says why", || async {
        let gateway = cluster.get(&gateway).await?;
        let found = condition(&gateway, &gateway["status"]["listeners"][1]["conditions"], "Accepted")?;
        (found == (false, "PortUnavailable".to_owned())).then_some(())
    })
    .await;
    running.metric_becomes("spillway_kubernetes_parts_refused", 1.0).await;
}

#[test]
fn a_gateway_that_can_know_no_api_server_ends_before_it_listens() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = "admin: {address: \"127.0.0.1:0\"}
listeners: [{name: own, address: \"127.0.0.1:0\"}]
routes: [{name: own, filters: [{respond: {body: file}}]}]
discovery: {kubernetes: {gatewayClass: spillway, kubeconfig: kubeconfig.yaml}}
";
    std::fs::write(folder.path().join("spillway.yaml"), yaml).unwrap();
    std::fs::write(folder.path().join("kubeconfig.yaml"), "apiVersion: v1\nkind: Config\ncurrent-context: none\n")
        .unwrap();
    let out = std::process::Command::new(spillway_tests::binary())
        .args(["serve", "-c", "spillway.yaml"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(!out.status.success(), "{said}");
    assert!(said.contains("discovery.kubernetes.kubeconfig"), "{said}");
    for event in ["\"ready\"", "listening\""] {
        assert!(!said.contains(event), "{said}");
    }
}
