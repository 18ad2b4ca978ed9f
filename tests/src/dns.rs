//! Scripted DNS server: answers over UDP as a test configures it, and counts its questions (RFC 1035, 4).

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;

/// Scripted answer for a name.
#[derive(Debug, Clone)]
pub enum Says {
    /// Addresses, and their time to live in seconds.
    Addresses(Vec<Ipv4Addr>, u32),
    /// Server failure (SERVFAIL).
    Failure,
    /// Unknown name (NXDOMAIN).
    NoName,
    /// No answer.
    Silence,
}

/// DNS server on loopback.
pub struct Dns {
    pub address: SocketAddr,
    names: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Dns {
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let names: Arc<Mutex<HashMap<String, Says>>> = Arc::default();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (known, log) = (names.clone(), asked.clone());
        let task = tokio::spawn(async move {
            let mut buffer = [0u8; 1500];
            while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let Some((name, kind, end)) = question(&buffer[..length]) else { continue };
                log.lock().unwrap().push(name.clone());
                let says = known.lock().unwrap().get(&name).cloned().unwrap_or(Says::NoName);
                if let Some(answer) = answer(&buffer[..end], kind, &says) {
                    let _ = socket.send_to(&answer, client).await;
                }
            }
        });
        Self { address, names, asked, task }
    }

    /// Sets the answer for a name.
    pub fn tell(&self, name: &str, says: Says) {
        self.names.lock().unwrap().insert(name.to_owned(), says);
    }

    /// Number of questions for a name.
    pub fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == name).count()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Name and type of the question, and its end in the packet.
fn question(packet: &[u8]) -> Option<(String, u16, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(packet.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes(packet.get(at..at + 2)?.try_into().ok()?);
    Some((labels.join("."), kind, at + 4))
}

fn answer(asked: &[u8], kind: u16, says: &Says) -> Option<Vec<u8>> {
    const A: u16 = 1;
    let (code, addresses, ttl) = match says {
        Says::Silence => return None,
        Says::Failure => (2, &[][..], 0),
        Says::NoName => (3, &[][..], 0),
        Says::Addresses(addresses, ttl) => (0, if kind == A { &addresses[..] } else { &[][..] }, *ttl),
    };
    let mut packet = asked.to_vec();
    // A response, recursion desired and available, with its code; one question, the answers, nothing else.
    packet[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, u8::try_from(addresses.len()).unwrap(), 0, 0, 0, 0]);
    for address in addresses {
        // Pointer to the name of the question, an address of class IN.
        packet.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        packet.extend_from_slice(&ttl.to_be_bytes());
        packet.extend_from_slice(&[0, 4]);
        packet.extend_from_slice(&address.octets());
    }
    Some(packet)
}
