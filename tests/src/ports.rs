//! Ports for programs that must know theirs before they start.

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::sync::Mutex;

/// Range below Linux's ephemeral ports (`net.ipv4.ip_local_port_range` begins at 32768). So no outgoing connection
/// takes one between the choice and the use, or while a server restarts.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port without a listener, by TCP or UDP, that no other test takes while this process lives.
pub fn free_port() -> u16 {
    static HELD: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let (length, start) = (u32::from(PORTS.end - PORTS.start), std::process::id().wrapping_mul(97));
    for n in 0..length {
        let port = PORTS.start + u16::try_from(start.wrapping_add(n) % length).unwrap();
        let path = std::env::temp_dir().join(format!("spillway-test-port-{port}"));
        let Ok(file) = File::options().write(true).create(true).truncate(false).open(path) else { continue };
        // The lock ends with the process, however that ends.
        if file.try_lock().is_ok()
            && TcpListener::bind(("127.0.0.1", port)).is_ok()
            && UdpSocket::bind(("127.0.0.1", port)).is_ok()
        {
            HELD.lock().unwrap().push(file);
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}
