//! Handshakes and frames of WebSocket that are no good: what each of them gets, and that no request and no tunnel is
//! smuggled by one.

use std::time::Duration;

use spillway_tests::{Gateway, KEY, RawSocket, SocketServer, TEXT, Upstream, opening, socket_frame, switching};
use tokio::io::AsyncReadExt;

async fn start(url: &str) -> Gateway {
    Gateway::start(&format!(
        "backends: [{{name: up, outlierDetection: {{consecutiveErrors: 1000}}, endpoints: [{{url: \"{url}\"}}]}}]
routes:
  - {{name: none, matches: [{{path: {{prefix: /none}}}}], upgrades: [], backendRefs: [{{name: up}}]}}
  - {{name: own, matches: [{{path: {{prefix: /own}}}}], upgrades: [x-own], backendRefs: [{{name: up}}]}}
  - name: judged
    matches: [{{path: {{prefix: /judged}}}}]
    filters: [{{cel: {{deny: \"has(request.body.bad)\", status: 422, message: bad}}}}]
    backendRefs: [{{name: up}}]
  - {{name: r, backendRefs: [{{name: up}}], retry: {{attempts: 0}}}}
"
    ))
    .await
}

/// Status of the first answer to these bytes, and all that came.
async fn told(gateway: &Gateway, bytes: &str) -> (u16, String) {
    let mut socket = RawSocket::send_to(gateway.address, bytes.as_bytes()).await;
    let head = socket.head().await;
    let status = head.split(' ').nth(1).unwrap_or_else(|| panic!("an answer to {bytes}")).parse().unwrap();
    (status, head)
}

#[tokio::test]
async fn only_a_good_handshake_reaches_a_server_as_an_upgrade() {
    let upstream = Upstream::fixed(200, "plain").await;
    let gateway = start(&upstream.url()).await;
    let good = opening("/", "");
    for (request, status) in [
        (good.replace("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"), 426),
        (good.replace("Sec-WebSocket-Version: 13\r\n", ""), 426),
        (good.replace(KEY, "c2hvcnQ="), 400),
        (good.replace(&format!("Sec-WebSocket-Key: {KEY}\r\n"), ""), 400),
        (opening("/", &format!("Sec-WebSocket-Key: {KEY}\r\n")), 400),
        (good.replace("GET", "POST"), 400),
        (opening("/", "Content-Length: 5\r\n") + "hello", 400),
        (opening("/", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n", 400),
        (opening("/judged", ""), 403),
    ] {
        let (found, head) = told(&gateway, &request).await;
        assert_eq!(found, status, "{request}\n{head}");
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        assert_eq!(head.contains("\r\nsec-websocket-version: 13\r\n"), status == 426, "{head}");
    }
    assert_eq!(upstream.count(), 0);
    // Requests without an upgrade, as the route or HTTP has it: they are served, and the server sees no upgrade.
    for request in [
        opening("/none", ""),
        opening("/own", ""),
        good.replace("Upgrade: websocket", "Upgrade: h2c"),
        good.replace("Upgrade: websocket", "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
        good.replace("Connection: Upgrade\r\n", "Connection: keep-alive\r\n"),
        good.replace("Connection: Upgrade\r\n", ""),
        good.replace("HTTP/1.1", "HTTP/1.0"),
    ] {
        let (found, head) = told(&gateway, &request).await;
        assert_eq!(found, 200, "{request}\n{head}");
        let seen = upstream.last().headers;
        assert!(!seen.contains_key("upgrade") && !seen.contains_key("http2-settings"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_server_that_switches_to_what_nobody_asked_for_is_at_fault() {
    let server = SocketServer::start().await;
    let gateway = start(&server.url()).await;
    let ws = opening("/", "");
    let plain = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned();
    let other_key = switching(&opening("/", "").replace(KEY, "AAAAAAAAAAAAAAAAAAAAAA=="));
    let good = switching(&ws);
    for (request, answer) in [
        (&ws, other_key),
        (&ws, good.replace("upgrade: websocket", "upgrade: h2c")),
        (&ws, good.replace("upgrade: websocket", "upgrade: websocket, h2c")),
        (&ws, good.replace("upgrade: websocket\r\n", "")),
        (&ws, good.replace("connection: Upgrade\r\n", "")),
        (&ws, good.replace("\r\n\r\n", "\r\nsec-websocket-protocol: admin\r\n\r\n")),
        (&ws, good.replace("\r\n\r\n", "\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n")),
        (&plain, good.clone()),
    ] {
        let ((status, head), ()) = tokio::join!(told(&gateway, request), async {
            let (mut far, _) = server.accept().await;
            far.send(answer.as_bytes()).await;
            // The connection carries nothing else.
            assert!(far.rest().await.is_empty(), "{answer}");
        });
        // Every attempt failed, and no other server is left.
        assert_eq!(status, 503, "{answer}\n{head}");
    }
}

#[tokio::test]
async fn what_a_client_sends_ahead_is_no_request_and_reaches_no_server_before_the_101() {
    let server = SocketServer::start().await;
    let gateway = start(&server.url()).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";
    // The server refuses: its answer passes, the connection ends, and the rest is dropped.
    let mut client = RawSocket::send_to(gateway.address, (opening("/", "") + smuggled).as_bytes()).await;
    let (mut far, head) = server.accept().await;
    assert!(!head.contains("smuggled"));
    far.send(b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n").await;
    let answer = String::from_utf8(client.rest().await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 426 ") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
    // Nor does another request of the gateway follow on that connection: it gets one of its own.
    let plain = RawSocket::send_to(gateway.address, b"GET /next HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let (next, head) = server.accept().await;
    assert!(head.starts_with("GET /next ") && far.rest().await.is_empty(), "{head}");
    drop((plain, next));
    assert!(!gateway.log().contains("/smuggled"));

    // The server accepts: it gets those bytes first, and only now.
    let early = socket_frame(0x81, &[b'e'; 3000], Some([1, 2, 3, 4]));
    let bytes = [opening("/", "").into_bytes(), early.clone()].concat();
    let mut client = RawSocket::send_to(gateway.address, &bytes).await;
    let (mut far, head) = server.accept().await;
    let before = tokio::time::timeout(Duration::from_millis(300), far.stream.read_u8()).await;
    assert!(before.is_err(), "a byte of the tunnel went out before its 101");
    // Bytes that the server sends with its 101 are of the tunnel too.
    let answer = [switching(&head).into_bytes(), socket_frame(0x81, b"with the head", None)].concat();
    far.send(&answer).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(client.frame().await.unwrap().payload, b"with the head");
    assert_eq!(far.frame().await.unwrap().payload, [b'e'; 3000]);
    // In the tunnel, a request is nothing but bytes that break its framing.
    client.send(smuggled.as_bytes()).await;
    assert_eq!(client.frame().await.unwrap().code(), 1002);
    assert!(far.rest().await.is_empty());
    assert!(!gateway.log().contains("/smuggled"));
}

#[tokio::test]
async fn frames_without_sure_boundaries_end_the_socket_on_both_sides() {
    let server = SocketServer::start().await;
    let gateway = start(&server.url()).await;
    for (from_client, bytes) in [
        (true, socket_frame(0x81, b"unmasked", None)),
        (true, vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]),
        (true, vec![0x09, 0x80, 1, 2, 3, 4]),
        (false, socket_frame(0x81, b"masked", Some([1, 2, 3, 4]))),
        (false, socket_frame(0x88, &[0; 126], None)),
    ] {
        let (mut client, mut far) = server.through(gateway.address, "/").await;
        let (bad, good) = if from_client { (&mut client, &mut far) } else { (&mut far, &mut client) };
        bad.send(&bytes).await;
        assert_eq!(bad.frame().await.unwrap().code(), 1002, "{bytes:x?}");
        assert!(good.rest().await.is_empty(), "{bytes:x?}");
    }
    gateway.metric_becomes("spillway_sockets_total{http_route=\"r\",end=\"client_malformed\"}", 3.0).await;
    gateway.metric_becomes("spillway_sockets_total{http_route=\"r\",end=\"server_malformed\"}", 2.0).await;
}

#[tokio::test]
async fn bytes_pass_wherever_they_are_cut_and_a_tunnel_of_another_protocol_as_they_are() {
    let server = SocketServer::start().await;
    let gateway = start(&server.url()).await;
    let (mut client, mut far) = server.through(gateway.address, "/").await;
    let message = [socket_frame(0x01, b"frag", Some([1, 2, 3, 4])), socket_frame(0x89, b"ping", Some([5, 6, 7, 8]))];
    for byte in message.concat() {
        client.send(&[byte]).await;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(far.frame().await.unwrap().payload, b"frag");
    assert_eq!(far.frame().await.unwrap().first, 0x89);
    far.send_frame(TEXT, b"whole").await;
    assert_eq!(client.frame().await.unwrap().payload, b"whole");

    let asked = "GET /own HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket, X-Own\r\n\r\n";
    let mut client = RawSocket::send_to(gateway.address, asked.as_bytes()).await;
    let (mut far, head) = server.accept().await;
    assert!(head.contains("\r\nupgrade: x-own\r\n"), "{head}");
    far.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x-own\r\n\r\n\xff\x00").await;
    assert!(client.head().await.contains("\r\nupgrade: x-own\r\n"));
    assert_eq!((client.stream.read_u8().await.unwrap(), client.stream.read_u8().await.unwrap()), (0xff, 0));
    client.send(b"any bytes").await;
    let mut bytes = [0; 9];
    far.stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"any bytes");
    drop(client);
    assert!(far.rest().await.is_empty());
}

#[tokio::test]
async fn a_key_in_the_subprotocols_does_not_reach_a_server_that_may_not_see_it() {
    let server = SocketServer::start().await;
    let gateway = start(&server.url()).await;
    let offered =
        "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-secret\r\nAuthorization: Bearer sk-2\r\n";
    let mut client = RawSocket::send_to(gateway.address, opening("/", offered).as_bytes()).await;
    let (mut far, head) = server.accept().await;
    assert!(head.contains("\r\nsec-websocket-protocol: realtime\r\n") && !head.contains("sk-"), "{head}");
    far.send(switching(&head).replace("\r\n\r\n", "\r\nsec-websocket-protocol: realtime\r\n\r\n").as_bytes()).await;
    assert!(client.head().await.contains("\r\nsec-websocket-protocol: realtime\r\n"));
}
