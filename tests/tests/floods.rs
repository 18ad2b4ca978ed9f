//! Floods of HTTP/2 frames that cost a client little: each ends with its connection, reaches no server, and does not
//! disturb other callers.

use std::time::Duration;

use spillway_tests::{Gateway, PATIENCE, Upstream, reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `:method GET`, `:scheme http`, `:path /` from the static table, `:authority a` (RFC 7541, appendix A).
const HEAD: &[u8] = &[0x82, 0x86, 0x84, 0x41, 0x01, b'a'];

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

async fn start(upstream: &Upstream) -> Gateway {
    let yaml = format!(
        "listeners:
  - {{name: plain, address: \"127.0.0.1:0\"}}
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c}}
backends: [{{name: up, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: up}}]}}]
",
        upstream.url()
    );
    Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await
}

/// Sends parts of a flood until the connection ends, or all of them. Returns how many were sent, and the error code
/// of the GOAWAY frame if there was one.
async fn flood(gateway: &Gateway, parts: impl Iterator<Item = Vec<u8>>) -> (usize, Option<u32>) {
    let stream = TcpStream::connect(gateway.listener("h2c")).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut code = None;
        let mut head = [0; 9];
        while read.read_exact(&mut head).await.is_ok() {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; length];
            if read.read_exact(&mut payload).await.is_err() {
                break;
            }
            if head[3] == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        code
    });
    write.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let mut sent = 0;
    for part in parts {
        if write.write_all(&part).await.is_err() {
            break;
        }
        sent += 1;
        if reading.is_finished() {
            break;
        }
    }
    let _ = write.shutdown().await;
    (sent, tokio::time::timeout(PATIENCE, reading).await.expect("the connection ends").unwrap())
}

const ENHANCE_YOUR_CALM: u32 = 0xb;

#[tokio::test]
async fn streams_that_are_opened_to_be_reset_end_the_connection() {
    // CVE-2023-44487.
    let upstream = Upstream::start(|_| async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        Some(reply(200, &[], ""))
    })
    .await;
    let gateway = start(&upstream).await;
    let resets = (0..20_000u32).map(|n| {
        let id = 2 * n + 1;
        [frame(HEADERS, 0x5, id, HEAD), frame(RST_STREAM, 0, id, &8u32.to_be_bytes())].concat()
    });
    let (sent, code) = flood(&gateway, resets).await;
    assert!(sent < 20_000, "the whole flood was taken");
    assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{code:?}");
    assert!(upstream.count() < 500, "{} requests of a flood were passed on", upstream.count());
    assert_eq!(gateway.client().get("/").await.status, 200);
}

#[tokio::test]
async fn streams_that_are_reset_while_they_wait_end_the_connection_too() {
    // One after the other, so that each is accepted before it is reset. Each ends at once, and has asked the authorization server.
    let upstream = Upstream::fixed(200, "").await;
    let slow = Upstream::start(|_| std::future::pending()).await;
    let yaml = format!(
        "listeners:
  - {{name: plain, address: \"127.0.0.1:0\"}}
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c, limits: {{maxStreams: 4}}}}
backends: [{{name: up, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - name: judged
    filters: [{{externalAuthorization: {{url: \"{}\", timeout: 10s}}}}]
    backendRefs: [{{name: up}}]
",
        upstream.url(),
        slow.url()
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let stream = TcpStream::connect(gateway.listener("h2c")).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let reading = tokio::spawn(async move { while let Ok(1..) = read.read(&mut [0; 4096]).await {} });
    write.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    for n in 0..40u32 {
        let id = 2 * n + 1;
        let both = [frame(HEADERS, 0x5, id, HEAD), frame(RST_STREAM, 0, id, &8u32.to_be_bytes())];
        for part in both {
            if write.write_all(&part).await.is_err() {
                break;
            }
            // The stream is accepted before the next part is sent, or the connection has ended.
            let taken = usize::try_from(n + 1).unwrap();
            spillway_tests::eventually("the stream is taken or the connection ends", || async {
                (reading.is_finished() || slow.count() >= taken).then_some(())
            })
            .await;
        }
        if reading.is_finished() {
            break;
        }
    }
    tokio::time::timeout(PATIENCE, reading).await.expect("the connection ends").unwrap();
    assert!(slow.count() <= 8 * 4 + 1, "{} requests of streams that are gone", slow.count());
}

#[tokio::test]
async fn a_head_without_end_ends_the_connection() {
    // CVE-2024-27316 and its kin: CONTINUATION frames that never end the header.
    let upstream = Upstream::fixed(200, "").await;
    let gateway = start(&upstream).await;
    let field: Vec<u8> = [&[0x00, 0x01, b'x', 0x7f, 0xe1, 0x7d][..], &[b'y'; 16_224]].concat();
    let first = [frame(HEADERS, 0x1, 1, HEAD)].into_iter();
    let (sent, _) = flood(&gateway, first.chain((0..4_000).map(|_| frame(CONTINUATION, 0, 1, &field)))).await;
    assert!(sent < 4_000, "64 MB of one header were taken");
    assert_eq!(upstream.count(), 0);
    assert_eq!(gateway.client().get("/").await.status, 200);
}

#[tokio::test]
async fn frames_that_only_ask_for_answers_take_bounded_memory() {
    // CVE-2019-9512 and CVE-2019-9515: a client that reads no answers gets no more of its questions read.
    let upstream = Upstream::fixed(200, "").await;
    let gateway = start(&upstream).await;
    let before = gateway.metric("process_resident_memory_bytes").await;
    for question in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])] {
        let mut stream = TcpStream::connect(gateway.listener("h2c")).await.unwrap();
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
        let many = question.repeat(1000);
        // Ends when nothing more is accepted, or when the connection ends.
        let taken = async {
            for _ in 0..10_000 {
                if stream.write_all(&many).await.is_err() {
                    return;
                }
            }
            panic!("ten million questions were taken from one who reads no answers");
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), taken).await;
        assert_eq!(gateway.client().get("/").await.status, 200);
    }
    let after = gateway.metric("process_resident_memory_bytes").await;
    assert!(after - before < 64e6, "{before} became {after}");
}
