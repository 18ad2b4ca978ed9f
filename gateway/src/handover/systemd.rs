//! Messages to systemd (`sd_notify(3)`): the process is ready, another one is the main process, the process ends. Without
//! `NOTIFY_SOCKET` nobody is told.

use std::ffi::OsString;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Variable with the path of the socket.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Says that the process serves.
pub fn ready() {
    notify("READY=1\n");
}

/// Says that another process is the main process of the service from now on.
pub fn main_process(pid: u32) {
    notify(&format!("MAINPID={pid}\n"));
}

/// Says that the process ends.
pub fn stopping() {
    notify("STOPPING=1\n");
}

fn notify(state: &str) {
    let Some(path) = std::env::var_os(SOCKET).filter(|path| !path.is_empty()) else { return };
    if let Err(e) = send(&path, state) {
        tracing::warn!(event = "systemd_not_told", state = state.trim_end(), reason = %e);
    }
}

fn send(path: &OsString, state: &str) -> std::io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold the process up.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address(path)?)?;
    Ok(())
}

/// Address of the socket: a path, or behind `@` a name without a file.
fn address(path: &OsString) -> std::io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = path.as_encoded_bytes().strip_prefix(b"@") {
        use std::os::linux::net::SocketAddrExt;
        return SocketAddr::from_abstract_name(name);
    }
    SocketAddr::from_pathname(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_by_a_path_and_by_a_name_without_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut read = [0; 64];
        send(&path.clone().into_os_string(), "READY=1\n").unwrap();
        let count = socket.recv(&mut read).unwrap();
        assert_eq!(read.get(..count), Some(&b"READY=1\n"[..]));
        let name = OsString::from(format!("@spillway-test-{}", std::process::id()));
        let socket = UnixDatagram::bind_addr(&address(&name).unwrap()).unwrap();
        send(&name, "STOPPING=1\n").unwrap();
        assert_eq!(socket.recv(&mut read).unwrap(), 11);
    }
}
