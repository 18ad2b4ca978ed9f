//! ACME certificates: obtained, stored and renewed without downtime. The authority is Pebble, which checks the
//! protocol as Let's Encrypt does.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use spillway_tests::{Gateway, Pebble, Secure, Upstream, eventually, free_port, whole_answer};

struct Place {
    http: u16,
    tls: u16,
}

impl Place {
    fn new() -> Self {
        Self { http: free_port(), tls: free_port() }
    }

    fn secure(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.tls))
    }

    /// Two listeners; the one with TLS has a certificate for other.test in a file and obtains one for a.test and
    /// b.test.
    fn yaml(&self, pebble: &Pebble, upstream: &Upstream, acme: &str, further: &str) -> String {
        format!(
            "listeners:
  - {{name: plain, address: \"127.0.0.1:{}\"}}
  - name: secure
    address: \"127.0.0.1:{}\"
    protocol: https
    tls:
      certificates: [{{certFile: other.pem, keyFile: other.key}}]
      acme:
        directory: \"{}\"
        caFile: ca.pem
        domains: [a.test, b.test]
        email: ops@a.test
        storage: certificates
        retry: {{base: 300ms, max: 2s}}
{acme}
backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: x}}]}}]
{further}",
            self.http,
            self.tls,
            pebble.directory,
            upstream.url()
        )
    }
}

fn folder(pebble: &Pebble) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    pebble.authority.write(folder.path());
    pebble.authority.server(&["other.test"]).write(folder.path(), "other");
    folder
}

async fn issued(gateway: &Gateway, count: usize) {
    eventually("a certificate is issued", || async {
        (gateway.events("certificate_issued").len() >= count).then_some(())
    })
    .await;
}

/// Files of a storage, once it holds the account and a certificate.
async fn stored(folder: &std::path::Path) -> Vec<std::fs::DirEntry> {
    eventually("account and certificate are stored, and nothing half-written is left", || async {
        let files: Vec<_> = std::fs::read_dir(folder).ok()?.map(|file| file.unwrap()).collect();
        let ends = |end: &str| files.iter().filter(|file| file.path().extension().unwrap() == end).count();
        (files.len() == 2 && ends("json") == 1 && ends("pem") == 1).then_some(files)
    })
    .await
}

#[tokio::test]
async fn a_certificate_is_obtained_stored_and_renewed_and_no_connection_feels_it() {
    let place = Place::new();
    // Renewed after a third of its lifetime.
    let mut pebble = Pebble::new(place.http, place.tls, 24, None);
    pebble.run().await;
    let upstream = Upstream::fixed(200, "served").await;
    let yaml = place.yaml(&pebble, &upstream, "        renewBefore: 16s", "");
    let gateway = Gateway::start_in(folder(&pebble), &yaml).await;
    let other = Secure::new(place.secure(), &pebble.authority);
    assert_eq!(other.get("other.test", "other.test", "/").await.unwrap().text(), "served");
    issued(&gateway, 1).await;

    let client = Secure::believing(place.secure(), &pebble.root().await);
    let stream = client.open("b.test", &["http/1.1"]).await.unwrap();
    let first = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let (mut kept, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let request = Request::get("/").header("host", "a.test").body(Full::<Bytes>::default()).unwrap();
        kept.ready().await.unwrap();
        whole_answer(kept.send_request(request).await.unwrap()).await.text()
    };
    assert_eq!(ask().await, "served");

    issued(&gateway, 2).await;
    assert_eq!(ask().await, "served", "the connection that was open goes on");
    let stream = client.open("a.test", &["http/1.1"]).await.unwrap();
    assert_ne!(stream.get_ref().1.peer_certificates().unwrap()[0], first);
    assert_eq!(other.get("other.test", "other.test", "/").await.unwrap().text(), "served");

    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    for name in ["a.test", "other.test"] {
        let series = format!("spillway_tls_certificate_expiry_seconds{{listener=\"secure\",certificate=\"{name}\"}}");
        let ends = gateway.metric(&series).await;
        assert!(ends > now - 60.0, "{name} ends at {ends}");
    }
    let stored = stored(&gateway.folder().join("certificates")).await;
    assert!(stored.iter().all(|file| file.metadata().unwrap().permissions().mode() & 0o777 == 0o600));

    // A stored certificate is used from the start of the next process, and the account is the same.
    let gateway = gateway.crash_and_restart_in(&yaml).await;
    assert_eq!(client.get("a.test", "a.test", "/").await.unwrap().text(), "served");
    issued(&gateway, 1).await;
    assert!(gateway.events("acme_account_created").is_empty());
}

#[tokio::test]
async fn an_authority_that_is_away_is_asked_again_and_sees_the_challenge_before_any_route() {
    let place = Place::new();
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let mut pebble = Pebble::new(place.http, place.tls, 3600, Some(("customer", key)));
    let upstream = Upstream::fixed(200, "served").await;
    let acme = "        challenge: http-01\n        externalAccount: {keyId: customer, hmacKey: {file: customer.key}}";
    // Every request needs a key; the authority has none.
    let further = format!("consumers: [{{name: c, keys: [{{sha256: \"{}\"}}]}}]", "0".repeat(64));
    let folder = folder(&pebble);
    std::fs::write(folder.path().join("customer.key"), key).unwrap();
    let gateway = Gateway::start_in(folder, &place.yaml(&pebble, &upstream, acme, &further)).await;
    let other = Secure::new(place.secure(), &pebble.authority);
    assert_eq!(other.get("other.test", "other.test", "/").await.unwrap().status, 401, "other names are served");
    eventually("the first order fails", || async { gateway.events("acme_failed").first().cloned() }).await;
    gateway.metric_becomes("spillway_acme_orders_total{result=\"ok\"}", 0.0).await;

    pebble.run().await;
    issued(&gateway, 1).await;
    let client = Secure::believing(place.secure(), &pebble.root().await);
    assert_eq!(client.get("a.test", "b.test", "/").await.unwrap().status, 401);
    let plain = spillway_tests::Client::new(SocketAddr::from(([127, 0, 0, 1], place.http)));
    assert_eq!(plain.get("/.well-known/acme-challenge/none").await.status, 401, "what is no challenge is a request");
    gateway.metric_becomes("spillway_acme_orders_total{result=\"ok\"}", 1.0).await;
}

#[tokio::test]
async fn a_certificate_that_cannot_be_stored_is_served_and_stored_when_that_is_mended() {
    let place = Place::new();
    let mut pebble = Pebble::new(place.http, place.tls, 3600, None);
    pebble.run().await;
    let upstream = Upstream::fixed(200, "served").await;
    let folder = folder(&pebble);
    // A file in place of the folder.
    std::fs::write(folder.path().join("certificates"), "").unwrap();
    let gateway = Gateway::start_in(folder, &place.yaml(&pebble, &upstream, "", "")).await;
    issued(&gateway, 1).await;
    let client = Secure::believing(place.secure(), &pebble.root().await);
    assert_eq!(client.get("a.test", "a.test", "/").await.unwrap().text(), "served");
    for event in ["acme_account_not_stored", "certificate_not_stored"] {
        let told = eventually(event, || async { gateway.events(event).first().cloned() }).await;
        let reason = told["reason"].as_str().unwrap();
        assert!(reason.contains("certificates/") && reason.contains("acme.storage"), "{reason}");
    }
    eventually("it is counted", || async {
        (gateway.metric("spillway_acme_storage_failures_total").await >= 1.0).then_some(())
    })
    .await;

    std::fs::remove_file(gateway.folder().join("certificates")).unwrap();
    eventually("it is stored", || async { gateway.events("certificate_stored").first().cloned() }).await;
    let kept: Vec<_> = std::fs::read_dir(gateway.folder().join("certificates")).unwrap().collect();
    assert_eq!(kept.len(), 1, "the certificate; the account comes with the next order");
    assert_eq!(gateway.events("certificate_issued").len(), 1, "and nothing was asked for twice");
}
