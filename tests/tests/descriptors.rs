//! Many silent connections, and exhausted file descriptors: health is reported all the same, clients with a
//! connection are served, and others are turned away at once.

use std::net::SocketAddr;
use std::time::Duration;

use spillway_tests::{Gateway, PATIENCE, Upstream, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends a request over a connection of its own; returns the answer, or `None` without one.
async fn ask(address: SocketAddr, path: &str) -> Option<String> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text).filter(|text| text.starts_with("HTTP/1.1 200") || text.starts_with("HTTP/1.0 200"))
    };
    tokio::time::timeout(PATIENCE, asked).await.ok()?
}

async fn silent(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    held
}

fn plain(url: &str) -> String {
    format!(
        "listeners: [{{name: public, address: \"127.0.0.1:0\"}}]
backends: [{{name: x, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{backendRefs: [{{name: x}}]}}]
"
    )
}

#[tokio::test]
async fn probes_are_answered_beside_any_number_of_silent_connections() {
    let upstream = Upstream::fixed(200, "ok").await;
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &plain(&upstream.url())).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        held.extend(silent(gateway.admin, 80).await);
        for path in ["/healthz", "/readyz", "/metrics"] {
            let answer = ask(gateway.admin, path).await;
            assert!(answer.is_some_and(|answer| !answer.is_empty()), "{path} beside {} connections", held.len());
        }
    }
    let dropped = gateway.metric("spillway_admin_connections_dropped_total").await;
    assert!(dropped >= 200.0, "{dropped}");
}

#[tokio::test]
async fn probes_are_answered_while_clients_have_taken_all_descriptors_they_can_get() {
    let upstream = Upstream::fixed(200, "ok").await;
    let gateway = Gateway::start_with_files(160, tempfile::tempdir().unwrap(), &plain(&upstream.url())).await;
    let client = gateway.client();
    // One client was connected before the flood.
    let mut early = TcpStream::connect(gateway.address).await.unwrap();
    early.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    early.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let held = silent(gateway.address, 400).await;
    let refused = "spillway_connections_refused_total{listener=\"public\",reason=\"descriptors\"}";
    eventually("clients are turned away", || async { (gateway.metric(refused).await > 100.0).then_some(()) }).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert!(ask(gateway.admin, path).await.is_some(), "{path}");
    }
    assert!(gateway.metric("spillway_descriptor_shortages_total{side=\"clients\"}").await > 100.0);
    let logged = || async { (!gateway.events("descriptors_spent").is_empty()).then_some(()) };
    eventually("it is logged", logged).await;
    assert_eq!(gateway.events("descriptors_spent").len(), 1, "one line for all of them");
    // Descriptors remain for the server of this client.
    early.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut rest = vec![0; 4096];
    let second = async {
        let mut text = String::new();
        while text.matches("HTTP/1.1 200").count() < 1 {
            let read = early.read(&mut rest).await.unwrap();
            assert!(read > 0, "its connection is kept: {text}");
            text.push_str(&String::from_utf8_lossy(&rest[..read]));
        }
    };
    tokio::time::timeout(PATIENCE, second).await.expect("an answer");
    drop(held);
    eventually("new clients are served again", || async {
        let answer = client.try_send(client.request("GET", "/", &[], "")).await;
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn probes_are_answered_and_clients_turned_away_when_no_descriptor_is_left_at_all() {
    let upstream = Upstream::fixed(200, "ok").await;
    // The smallest reserve, because the spare descriptors are tested here.
    let yaml = plain(&upstream.url()) + "limits: {reservedDescriptors: 1}\n";
    let gateway = Gateway::start_with_files(96, tempfile::tempdir().unwrap(), &yaml).await;
    // Connections of the admin address do not count against the reserve.
    let mut held = silent(gateway.address, 200).await;
    held.extend(silent(gateway.admin, 200).await);
    let refused = "spillway_connections_refused_total{listener=\"public\",reason=\"descriptors\"}";
    for _ in 0..20 {
        assert!(ask(gateway.admin, "/healthz").await.is_some());
        held.extend(silent(gateway.address, 5).await);
        held.extend(silent(gateway.admin, 5).await);
    }
    assert!(gateway.metric(refused).await > 50.0);
    assert!(gateway.metric("spillway_descriptor_shortages_total{side=\"admin\"}").await > 0.0, "it did run out");
    let shown = gateway.events("admin_descriptors_spent").len();
    assert!(shown <= 1, "{shown} lines");
    drop(held);
    eventually("new clients are served again", || async {
        ask(gateway.address, "/").await.filter(|answer| answer.contains(" 200 "))
    })
    .await;
}

/// A connection of the admin address that asks for more than its sockets hold, and reads nothing.
async fn deaf(admin: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    // It may be closed for another one meanwhile.
    let _ = stream.write_all(&b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(1000)).await;
    stream
}

#[tokio::test]
async fn a_client_is_turned_away_at_once_while_every_descriptor_is_taken_for_long() {
    let upstream = Upstream::fixed(200, "ok").await;
    let patient = plain(&upstream.url()).replace("0\"}", "0\", limits: {headerTimeout: 10m}}");
    let yaml = patient + "limits: {reservedDescriptors: 1}\n";
    let gateway = Gateway::start_with_files(96, tempfile::tempdir().unwrap(), &yaml).await;
    let mut held = silent(gateway.address, 96).await;
    eventually("each of them is kept or turned away", || async {
        let shown = ask(gateway.admin, "/metrics").await?;
        let value = |series: &str| shown.lines().find_map(|line| line.strip_prefix(series)?.trim().parse::<f64>().ok());
        let kept = value("spillway_connections{listener=\"public\"}")?;
        let refused = value("spillway_connections_refused_total{listener=\"public\",reason=\"descriptors\"}")?;
        (kept + refused >= 96.0).then_some(())
    })
    .await;
    // Twice the reserve is left, once the last question has ended: for two of the admin address.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..2 {
        held.push(deaf(gateway.admin).await);
        tokio::time::timeout(PATIENCE, held.last().unwrap().readable()).await.expect("an answer begins").unwrap();
    }
    // The admin address may have given up its spare one, and a client has it now. No further one waits for somebody to
    // leave: closed or reset, it is told at once.
    let (mut waiting, mut told) = (Vec::new(), 0);
    while told < 5 {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        let mut rest = Vec::new();
        match tokio::time::timeout(Duration::from_secs(3), client.read_to_end(&mut rest)).await {
            Ok(_) => told += 1,
            Err(_) => waiting.push(client),
        }
        assert!(waiting.len() < 5, "clients wait that nobody turns away");
    }
}

#[tokio::test]
async fn probes_are_answered_while_others_of_the_admin_address_hold_every_descriptor_for_long() {
    let upstream = Upstream::fixed(200, "ok").await;
    let gateway = Gateway::start_with_files(72, tempfile::tempdir().unwrap(), &plain(&upstream.url())).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        for _ in 0..60 {
            held.push(deaf(gateway.admin).await);
        }
        assert!(ask(gateway.admin, "/healthz").await.is_some(), "a probe is answered at the first time");
    }
}

#[tokio::test]
async fn an_endpoint_is_not_blamed_for_connections_that_had_no_descriptor() {
    let release = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let held = release.clone();
    let upstream = Upstream::start(move |_| {
        let held = held.clone();
        async move {
            let _permit = held.acquire().await;
            Some(spillway_tests::reply(200, &[], "ok"))
        }
    })
    .await;
    let gateway = Gateway::start_with_files(160, tempfile::tempdir().unwrap(), &plain(&upstream.url())).await;
    // Half of them clients, half of them servers: together more than there are descriptors. All clients are there before
    // the first asks, or the last of them would be turned away and leave room for the servers.
    let mut clients = silent(gateway.address, 65).await;
    gateway.metric_becomes("spillway_connections{listener=\"public\"}", 65.0).await;
    for client in &mut clients {
        client.write_all(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n").await.unwrap();
    }
    let short = "spillway_descriptor_shortages_total{side=\"servers\"}";
    eventually("a server's connection has no descriptor", || async {
        (gateway.metric(short).await > 0.0).then_some(())
    })
    .await;
    release.add_permits(1000);
    let mut statuses = Vec::new();
    for client in &mut clients {
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        statuses.push(answer.split(' ').nth(1).unwrap_or_default().to_owned());
    }
    assert!(statuses.iter().all(|status| matches!(status.as_str(), "200" | "503")), "{statuses:?}");
    assert!(statuses.iter().any(|status| status == "200"), "{statuses:?}");
    let endpoint = gateway.endpoint(&upstream.url()).await;
    assert_eq!((&endpoint["ejected"], &endpoint["ejections"]), (&false.into(), &0.into()), "{endpoint}");
    eventually("it is served again", || async {
        ask(gateway.address, "/").await.filter(|answer| answer.contains(" 200 "))
    })
    .await;
}

#[tokio::test]
async fn a_limit_of_open_files_below_what_listeners_may_take_is_said_at_the_start() {
    let upstream = Upstream::fixed(200, "ok").await;
    let listeners = |first: u32, second: u32| {
        let one = |most: u32| format!("{{address: \"127.0.0.1:0\", limits: {{maxConnections: {most}}}}}");
        plain(&upstream.url()).replace(
            "[{name: public, address: \"127.0.0.1:0\"}]",
            &format!("[{}, {}]", one(first).replacen('{', "{name: a, ", 1), one(second).replacen('{', "{name: b, ", 1)),
        )
    };
    // The reserve of 160 descriptors is 20, and twice that is kept from clients.
    let gateway = Gateway::start_with_files(160, tempfile::tempdir().unwrap(), &listeners(60, 61)).await;
    let said = gateway.events("descriptors_limited");
    assert_eq!(said.len(), 1, "{said:?}");
    for (field, figure) in [("limit", 160), ("clients", 120), ("wanted", 121)] {
        assert_eq!(said[0][field], figure, "{field}: {}", said[0]);
    }
    assert_eq!(said[0]["level"], "WARN");
    let gateway = Gateway::start_with_files(160, tempfile::tempdir().unwrap(), &listeners(60, 60)).await;
    assert!(gateway.events("descriptors_limited").is_empty());
}
