//! Reads the PROXY protocol (haproxy, proxy-protocol.txt, 2020/03/05), versions 1 and 2, in which a proxy names the
//! client before the first byte of a connection. The crate `ppp` parses the header; this module reads exactly its
//! bytes, so that TLS or HTTP begins right behind it.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest line of version 1, bytes, with its end (proxy-protocol.txt, 2.1).
const MAX_LINE: usize = 107;
/// Bytes of the fixed part of version 2.
const FIXED: usize = 16;
/// Longest rest of version 2 that is accepted, bytes: addresses and the extensions that proxies add in practice.
const MAX_REST: usize = 4096;

/// Reason why the header of a connection cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    #[error("the connection ended: {0}")]
    Io(#[from] std::io::Error),
    #[error("the connection does not begin with the PROXY protocol, as connections from this address must")]
    Missing,
    #[error("{0}")]
    Malformed(String),
}

/// Reads the header. `None` means that the proxy itself is the client, as in a health check.
pub(super) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddr>, ProxyError> {
    let prefix = ppp::v2::PROTOCOL_PREFIX;
    let mut head = vec![0; prefix.len()];
    stream.read_exact(&mut head).await?;
    if head == prefix {
        head.resize(FIXED, 0);
        stream.read_exact(head.get_mut(prefix.len()..).unwrap_or_default()).await?;
        let rest = match head.get(FIXED - 2..) {
            Some([high, low]) => usize::from(u16::from_be_bytes([*high, *low])),
            _ => 0,
        };
        if rest > MAX_REST {
            return Err(ProxyError::Malformed(format!(
                "the header has {rest} bytes of addresses and extensions; expected at most {MAX_REST}"
            )));
        }
        head.resize(FIXED + rest, 0);
        stream.read_exact(head.get_mut(FIXED..).unwrap_or_default()).await?;
        return version2(&head);
    }
    if !head.starts_with(b"PROXY ") {
        return Err(ProxyError::Missing);
    }
    // One byte at a time: bytes behind the line belong to the connection.
    while !head.ends_with(b"\r\n") {
        if head.len() == MAX_LINE {
            return Err(ProxyError::Malformed(format!("the line is longer than {MAX_LINE} bytes")));
        }
        head.push(stream.read_u8().await?);
    }
    version1(&head)
}

fn version1(line: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
    use ppp::v1::{Addresses, Header};
    let header = Header::try_from(line).map_err(|e| ProxyError::Malformed(e.to_string()))?;
    Ok(match header.addresses {
        Addresses::Tcp4(a) => Some((a.source_address, a.source_port).into()),
        Addresses::Tcp6(a) => Some((a.source_address, a.source_port).into()),
        Addresses::Unknown => None,
    })
}

fn version2(bytes: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
    use ppp::v2::{Addresses, Command, Header};
    let header = Header::try_from(bytes).map_err(|e| ProxyError::Malformed(e.to_string()))?;
    Ok(match (header.command, header.addresses) {
        (Command::Local, _) | (_, Addresses::Unspecified | Addresses::Unix(_)) => None,
        (Command::Proxy, Addresses::IPv4(a)) => Some((a.source_address, a.source_port).into()),
        (Command::Proxy, Addresses::IPv6(a)) => Some((a.source_address, a.source_port).into()),
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    /// Result of reading these bytes, and their rest.
    fn reading(mut bytes: &[u8]) -> (Result<Option<SocketAddr>, ProxyError>, &[u8]) {
        let read = read(&mut bytes).now_or_never().unwrap();
        (read, bytes)
    }

    fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut bytes = ppp::v2::PROTOCOL_PREFIX.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(addresses.len()).unwrap().to_be_bytes());
        bytes.extend(addresses);
        bytes
    }

    #[test]
    fn both_versions_say_who_the_client_is_and_leave_what_follows() {
        let v4 = [203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x67, 0, 80];
        let mut extended = v4.to_vec();
        extended.extend([0x04, 0, 1, 0xff]);
        for (bytes, client) in [
            (b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 80\r\n".to_vec(), Some("203.0.113.7:4711")),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 80\r\n".to_vec(), Some("[2001:db8::7]:4711")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (binary(0x21, 0x11, &v4), Some("203.0.113.7:4711")),
            (binary(0x21, 0x11, &extended), Some("203.0.113.7:4711")),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x21, 0x00, &[]), None),
        ] {
            let whole = [bytes, b"GET / HTTP/1.1".to_vec()].concat();
            let (client_read, rest) = reading(&whole);
            assert_eq!(client_read.unwrap(), client.map(|c| c.parse().unwrap()), "{whole:?}");
            assert_eq!(rest, b"GET / HTTP/1.1");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for bytes in [
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 10.0.0.1 4711\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.700 10.0.0.1 4711 80\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 80000\r\n".to_vec(),
            b"PROXY UDP4 203.0.113.7 10.0.0.1 4711 80\r\n".to_vec(),
            [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat(),
            binary(0x31, 0x11, &[0; 12]),
            binary(0x22, 0x11, &[0; 12]),
            binary(0x21, 0x11, &[0; 11]),
            binary(0x21, 0x21, &[0; 12]),
            binary(0x21, 0x11, &vec![0; MAX_REST + 1]),
            b"PROXY".to_vec(),
        ] {
            assert!(reading(&bytes).0.is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_wait_for_more_than_there_can_be(
            binary in any::<bool>(),
            rest in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let start = if binary { ppp::v2::PROTOCOL_PREFIX } else { b"PROXY " };
            let _ = reading(&[start, &rest[..]].concat());
        }

        #[test]
        fn what_a_proxy_writes_is_read_back(source: (u32, u16), rest in proptest::collection::vec(any::<u8>(), 0..40)) {
            let address = SocketAddr::from((std::net::Ipv4Addr::from(source.0), source.1));
            let line = format!("PROXY TCP4 {} 10.0.0.1 {} 80\r\n", address.ip(), address.port());
            let whole = [line.as_bytes(), &rest[..]].concat();
            let (client, left) = reading(&whole);
            prop_assert_eq!(client.unwrap(), Some(address));
            prop_assert_eq!(left, &rest[..]);
        }
    }
}
