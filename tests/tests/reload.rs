//! Reload: an edit is applied as a whole or rejected as a whole, and no request is disturbed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use spillway_tests::{Dns, Gateway, Says, Upstream, eventually};

fn yaml(url: &str) -> String {
    format!("backends: [{{name: x, endpoints: [{{url: \"{url}\"}}]}}]\nroutes: [{{backendRefs: [{{name: x}}]}}]\n")
}

fn whole(yaml: &str) -> String {
    // Port 0 is the same listener as before: it keeps its port.
    format!("listeners: [{{address: \"127.0.0.1:0\"}}]\nadmin: {{address: \"127.0.0.1:0\"}}\n{yaml}")
}

#[tokio::test]
async fn edits_are_taken_as_editors_write_them_and_bad_ones_are_kept_out() {
    let (a, b) = (Upstream::fixed(200, "a").await, Upstream::fixed(200, "b").await);
    let gateway = Gateway::start(&yaml(&a.url())).await;
    let client = gateway.client();
    let file = gateway.config();
    assert_eq!(client.get("/").await.text(), "a");

    // An editor that writes a new file and renames it over the old one.
    let new = gateway.folder().join(".spillway.yaml.swp");
    std::fs::write(&new, whole(&yaml(&b.url()))).unwrap();
    std::fs::rename(&new, &file).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    assert_eq!(client.get("/").await.text(), "b");

    // An editor that writes in place.
    std::fs::write(&file, whole(&yaml(&a.url()))).unwrap();
    assert_eq!(gateway.reloads(1).await["event"], "config_reloaded");
    assert_eq!(client.get("/").await.text(), "a");

    // A bad edit changes nothing and is reported with the places of all its errors.
    let bad = whole(&yaml(&b.url()).replace("backendRefs", "backendRef").replace("endpoints", "endpoint"));
    std::fs::write(&file, bad).unwrap();
    let told = gateway.reloads(2).await;
    assert_eq!(told["event"], "config_rejected");
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("did you mean `backendRefs`?") && reason.contains("did you mean `endpoints`?"), "{reason}");
    assert_eq!(client.get("/").await.text(), "a");
    gateway.metric_becomes("spillway_config_reloads_total{result=\"failed\"}", 1.0).await;
    let shown: serde_json::Value = serde_json::from_str(&gateway.shown("/api/config").await).unwrap();
    assert_eq!(shown["lastEdit"]["result"], "failed");
    assert!(shown["lastEdit"]["diagnostics"].as_array().unwrap().len() >= 2);

    // SIGHUP reads again, and the edit that follows is good.
    std::fs::write(&file, whole(&yaml(&b.url()))).unwrap();
    gateway.signal("HUP");
    eventually("the good edit is taken", || async { (client.get("/").await.text() == "b").then_some(()) }).await;
}

/// Archives and package stores give all files one time, and Kubernetes swaps the folder behind a link.
#[tokio::test]
async fn edits_that_keep_length_and_time_of_a_file_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let time = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let write = |version: &str, text: &str| {
        let versions = folder.path().join("routes.d").join(version);
        std::fs::create_dir_all(&versions).unwrap();
        let file = versions.join("route.yaml");
        std::fs::write(&file, format!("routes: [{{filters: [{{respond: {{body: {text}}}}}]}}]\n")).unwrap();
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
    };
    let link = |version: &str| {
        let routes = folder.path().join("routes.d");
        std::os::unix::fs::symlink(version, routes.join("..new")).unwrap();
        std::fs::rename(routes.join("..new"), routes.join("..data")).unwrap();
    };
    for (version, text) in [("..1", "one"), ("..2", "two"), ("..3", "six")] {
        write(version, text);
    }
    link("..1");
    std::os::unix::fs::symlink("..data/route.yaml", folder.path().join("routes.d/route.yaml")).unwrap();
    let routes = folder.path().join("routes.d");
    let yaml = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\ninclude: [\"{}/*.yaml\"]\n", routes.display());
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let client = gateway.client();
    let becomes = async |text: &str| {
        let what = format!("{text} is answered");
        eventually(&what, || async { (client.get("/").await.text() == text).then_some(()) }).await;
    };
    becomes("one").await;
    // Another folder behind the link, another file of the name, another text in the file.
    link("..2");
    becomes("two").await;
    std::fs::rename(routes.join("..3/route.yaml"), routes.join("..2/route.yaml")).unwrap();
    becomes("six").await;
    write("..2", "ten");
    becomes("ten").await;
}

#[tokio::test]
async fn no_request_is_lost_or_mixed_while_the_file_changes_under_load() {
    let (a, b) = (Upstream::fixed(200, "a").await, Upstream::fixed(200, "b").await);
    // Both versions name the header after the backend: an answer from one with the header of the other is mixed.
    let version = |url: &str, name: &str| {
        format!(
            "backends: [{{name: {name}, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{filters: [{{responseHeaders: {{set: {{x-version: {name}}}}}}}], backendRefs: [{{name: {name}}}]}}]
"
        )
    };
    let gateway = Gateway::start(&version(&a.url(), "a")).await;
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (client, stop, asked) = (gateway.client(), stop.clone(), asked.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.get("/").await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    assert_eq!(answer.header("x-version"), answer.text());
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for edit in 0..6 {
        let (url, name) = if edit % 2 == 0 { (b.url(), "b") } else { (a.url(), "a") };
        std::fs::write(gateway.config(), whole(&version(&url, name))).unwrap();
        assert_eq!(gateway.reloads(edit).await["event"], "config_reloaded");
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
    assert!(asked.load(Ordering::Relaxed) > 50 && a.count() > 0 && b.count() > 0);
}

#[tokio::test]
async fn listeners_come_and_go_and_a_port_that_is_taken_keeps_the_edit_out() {
    let a = Upstream::fixed(200, "a").await;
    let gateway = Gateway::start(&yaml(&a.url())).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (taken_address, free_address) = (taken.local_addr().unwrap(), free.local_addr().unwrap());
    drop(free);
    let with = |address: std::net::SocketAddr| {
        whole(&yaml(&a.url())).replace(
            "listeners: [{address: \"127.0.0.1:0\"}]",
            &format!("listeners: [{{address: \"127.0.0.1:0\"}}, {{address: \"{address}\"}}]"),
        )
    };
    std::fs::write(gateway.config(), with(taken_address)).unwrap();
    let told = gateway.reloads(0).await;
    assert_eq!(told["event"], "config_rejected");
    assert!(told["reason"].as_str().unwrap().contains("another process has the port"), "{told}");
    std::fs::write(gateway.config(), with(free_address)).unwrap();
    assert_eq!(gateway.reloads(1).await["event"], "config_reloaded");
    assert_eq!(spillway_tests::Client::new(free_address).get("/").await.text(), "a");
    std::fs::write(gateway.config(), whole(&yaml(&a.url()))).unwrap();
    assert_eq!(gateway.reloads(2).await["event"], "config_reloaded");
    assert!(tokio::net::TcpStream::connect(free_address).await.is_err(), "the listener that is gone is closed");
    assert_eq!(gateway.client().get("/").await.text(), "a", "the one that stayed was never closed");
}

#[tokio::test]
async fn a_listener_that_is_renamed_counts_under_its_new_name() {
    let upstream = Upstream::fixed(200, "a").await;
    let named = |name: &str| {
        let listeners = format!("listeners: [{{name: {name}, address: \"127.0.0.1:0\"}}]\n");
        format!("{listeners}admin: {{address: \"127.0.0.1:0\"}}\n{}", yaml(&upstream.url()))
    };
    let gateway = Gateway::start(&yaml(&upstream.url())).await;
    for name in ["one", "two"] {
        let before = gateway.events("config_reloaded").len();
        std::fs::write(gateway.config(), named(name)).unwrap();
        assert_eq!(gateway.reloads(before).await["event"], "config_reloaded");
        let stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        gateway.metric_becomes(&format!("spillway_connections{{listener=\"{name}\"}}"), 1.0).await;
        drop(stream);
    }
}

#[tokio::test]
async fn what_did_not_change_keeps_its_state() {
    let a = Upstream::fixed(200, "a").await;
    let limited = |burst: u32| {
        format!(
            "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, filters: [{{rateLimit: {{by: clientAddress, requests: 1/h, burst: {burst}}}}}], backendRefs: [{{name: x}}]}}]
",
            a.url()
        )
    };
    let gateway = Gateway::start(&limited(2)).await;
    let client = gateway.client();
    assert_eq!(client.get("/").await.header("x-ratelimit-remaining-requests"), "1");
    std::fs::write(gateway.config(), whole(&limited(2)) + "\n# a comment\n").unwrap();
    gateway.reloads(0).await;
    assert_eq!(client.get("/").await.header("x-ratelimit-remaining-requests"), "0");
    assert_eq!(client.get("/").await.status, 429);
}

async fn as_caller(client: &spillway_tests::Client, key: &str) -> spillway_tests::Answer {
    client.send(client.request("GET", "/", &[("x-api-key", key)], "")).await
}

#[tokio::test]
async fn an_edit_that_is_kept_out_late_has_changed_no_limit_and_asked_no_store() {
    let upstream = Upstream::fixed(200, "a").await;
    let store = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (key, digest) = spillway_tests::new_key();
    let limited = |limits: &str, state: &str| {
        format!(
            "consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}], limits: {{requests: 1/h, {limits}}}}}]\n{state}{}",
            yaml(&upstream.url())
        )
    };
    let gateway = Gateway::start(&limited("burst: 2", "")).await;
    let client = gateway.client();
    assert_eq!(as_caller(&client, &key).await.header("x-ratelimit-remaining-requests"), "1");

    // Valid as a file, but it cannot be run: the budgets' folder is a file.
    let redis = format!("limits: {{redis: {{url: \"redis://{}\"}}}}", store.local_addr().unwrap());
    let bad = format!("state: {{budgets: {{sqlite: spillway.yaml/budgets.db}}, {redis}}}\n");
    std::fs::write(gateway.config(), whole(&limited("burst: 100, budget: {tokens: 5, per: day}", &bad))).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_rejected");
    let last = as_caller(&client, &key).await;
    assert_eq!(last.header("x-ratelimit-remaining-requests"), "0");
    assert_eq!(as_caller(&client, &key).await.status, 429, "the limit that is in force is the old one");
    let asked = tokio::time::timeout(std::time::Duration::from_millis(500), store.accept()).await;
    assert!(asked.is_err(), "the store of an edit that is not in force was asked");

    let good = format!("state: {{{redis}}}\n");
    std::fs::write(gateway.config(), whole(&limited("burst: 4", &good))).unwrap();
    assert_eq!(gateway.reloads(1).await["event"], "config_reloaded");
    tokio::time::timeout(spillway_tests::PATIENCE, store.accept()).await.unwrap().unwrap();
    // A caller that had used up the old limit has used up the new one.
    assert_eq!(as_caller(&client, &key).await.status, 429);
}

#[tokio::test]
async fn a_mistake_in_a_file_that_only_the_edit_names_is_noticed_when_it_is_mended() {
    let upstream = Upstream::fixed(200, "a").await;
    let (key, digest) = spillway_tests::new_key();
    let gateway = Gateway::start(&yaml(&upstream.url())).await;
    let client = gateway.client();
    let keys = gateway.folder().join("further").join("acme.keys");
    std::fs::create_dir(keys.parent().unwrap()).unwrap();
    std::fs::write(&keys, "nonsense\n").unwrap();
    let named = format!("consumers: [{{name: acme, keysFile: further/acme.keys}}]\n{}", yaml(&upstream.url()));
    std::fs::write(gateway.config(), whole(&named)).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_rejected");
    assert_eq!(client.get("/").await.status, 200, "nobody has to show a key yet");
    std::fs::write(&keys, format!("{digest}\n")).unwrap();
    assert_eq!(gateway.reloads(1).await["event"], "config_reloaded");
    assert_eq!(client.get("/").await.status, 401);
    assert_eq!(as_caller(&client, &key).await.status, 200);
}

#[tokio::test]
async fn an_edit_made_while_the_gateway_starts_is_taken() {
    let (dns, upstream) = (Dns::start().await, Upstream::fixed(200, "edited").await);
    dns.tell("chat.test", Says::Silence);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spillway.yaml");
    let asks = format!("dns: {{servers: [\"{}\"], timeout: 3s}}\n{}", dns.address, yaml("http://chat.test:1"));
    let asks = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{asks}");
    let starting = tokio::spawn(async move { Gateway::start_in(folder, &asks).await });
    // The gateway has read the file and waits for what it needs to run it.
    eventually("it asks for the name", || async { (dns.asked("chat.test") > 0).then_some(()) }).await;
    std::fs::write(&file, whole(&yaml(&upstream.url()))).unwrap();
    dns.tell("chat.test", Says::Addresses(vec![std::net::Ipv4Addr::LOCALHOST], 60));
    let gateway = starting.await.unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    assert_eq!(gateway.client().get("/").await.text(), "edited");
}

#[tokio::test]
async fn included_files_that_change_come_and_go_are_noticed() {
    let upstream = Upstream::fixed(200, "x").await;
    let folder = tempfile::tempdir().unwrap();
    let routes = folder.path().join("routes.d");
    std::fs::create_dir(&routes).unwrap();
    let text = |name: &str, body: &str| {
        format!(
            "routes: [{{name: {name}, matches: [{{path: {{prefix: /{name}}}}}], filters: [{{respond: {{body: \"{body}\"}}}}]}}]\n"
        )
    };
    std::fs::write(routes.join("one.yaml"), text("one", "1")).unwrap();
    let url = upstream.url();
    let first = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
include: [routes.d/*.yaml]
backends: [{{name: x, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{name: rest, backendRefs: [{{name: x}}]}}]
"
    );
    let gateway = Gateway::start_in(folder, &first).await;
    let routes = gateway.folder().join("routes.d");
    let client = gateway.client();
    assert_eq!(client.get("/one").await.text(), "1");
    assert_eq!(client.get("/two").await.text(), "x");
    // One that changes, one that comes, one with a mistake, one that goes.
    std::fs::write(routes.join("one.yaml"), text("one", "changed")).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    assert_eq!(client.get("/one").await.text(), "changed");
    std::fs::write(routes.join("two.yaml"), text("two", "2")).unwrap();
    assert_eq!(gateway.reloads(1).await["event"], "config_reloaded");
    assert_eq!(client.get("/two").await.text(), "2");
    std::fs::write(routes.join("three.yaml"), text("two", "3")).unwrap();
    let rejected = gateway.reloads(2).await;
    assert_eq!(rejected["event"], "config_rejected");
    let reason = rejected["reason"].as_str().unwrap();
    assert!(reason.contains("routes.d/two.yaml:1:") && reason.contains("duplicate name `two`"), "{reason}");
    std::fs::write(routes.join("three.yaml"), text("three", "3")).unwrap();
    assert_eq!(gateway.reloads(3).await["event"], "config_reloaded");
    assert_eq!((client.get("/two").await.text(), client.get("/three").await.text()), ("2".into(), "3".into()));
    std::fs::remove_file(routes.join("two.yaml")).unwrap();
    assert_eq!(gateway.reloads(4).await["event"], "config_reloaded");
    assert_eq!(client.get("/two").await.text(), "x");
}
