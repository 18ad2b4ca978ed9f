//! Sockets that listen already when the process starts: those of the process that hands over to it, and those of systemd
//! (`sd_listen_fds(3)`).

use std::fmt;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::str::FromStr;

use parking_lot::Mutex;
use socket2::{SockRef, Socket, Type};

use super::{Predecessor, VARIABLE, VERSION};

/// First descriptor that systemd passes (`SD_LISTEN_FDS_START`).
const FIRST_OF_SYSTEMD: RawFd = 3;
/// Most sockets that are taken from systemd: more than any configuration has listeners.
const MOST_OF_SYSTEMD: RawFd = 1024;

/// Reason why sockets that were passed cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// A variable that this program did not write.
    #[error(
        "{VARIABLE}: found `{0}`; the gateway sets this variable itself, for the process that it hands over to: unset it"
    )]
    Variable(String),
    /// A descriptor that is no socket that listens.
    #[error(
        "{origin}: descriptor {descriptor} is no TCP socket that listens; expected `ListenStream=IP:PORT` with `Accept=no` of a socket unit"
    )]
    Socket {
        /// Variable that names it.
        origin: &'static str,
        /// Number of the descriptor.
        descriptor: RawFd,
    },
    /// The system refused.
    #[error("{origin}: descriptor {descriptor}: {source}")]
    System {
        /// Variable that names it.
        origin: &'static str,
        /// Number of the descriptor.
        descriptor: RawFd,
        /// Reason.
        source: std::io::Error,
    },
}

/// Place of a socket in the configuration. An address may ask for any free port; the socket keeps the one that it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Place {
    /// Listener: its address and, of several with the same one, its index among those.
    Listener(SocketAddr, usize),
    /// Admin address.
    Admin(SocketAddr),
    /// Address of the metrics.
    Metrics(SocketAddr),
}

impl Place {
    fn address(self) -> SocketAddr {
        match self {
            Self::Listener(address, _) | Self::Admin(address) | Self::Metrics(address) => address,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(address, index) => write!(f, "listener,{address},{index}"),
            Self::Admin(address) => write!(f, "admin,{address}"),
            Self::Metrics(address) => write!(f, "metrics,{address}"),
        }
    }
}

impl FromStr for Place {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split(',');
        let (kind, address) = (parts.next(), parts.next().and_then(|address| address.parse().ok()).ok_or(())?);
        let index = parts.next().map(str::parse).transpose().map_err(|_| ())?;
        match (kind, index, parts.next()) {
            (Some("listener"), Some(index), None) => Ok(Self::Listener(address, index)),
            (Some("admin"), None, None) => Ok(Self::Admin(address)),
            (Some("metrics"), None, None) => Ok(Self::Metrics(address)),
            _ => Err(()),
        }
    }
}

#[derive(Debug)]
struct InheritedSocket {
    socket: TcpListener,
    /// Place at the process that hands over; `None` for a socket of systemd, which is found by its address.
    place: Option<Place>,
    local: SocketAddr,
}

impl InheritedSocket {
    fn is_for(&self, wanted: Place) -> bool {
        match self.place {
            Some(place) => place == wanted,
            None => is_at(self.local, wanted.address()),
        }
    }
}

/// True if a socket of systemd is that of a configured address. `ListenStream=PORT` opens one for IPv6 that takes IPv4 too.
fn is_at(local: SocketAddr, wanted: SocketAddr) -> bool {
    let is_any = local.ip().is_unspecified() && wanted.ip().is_unspecified();
    local == wanted || (is_any && local.port() == wanted.port() && local.is_ipv6())
}

/// Sockets that were passed to the process and are not used yet.
#[derive(Debug, Default)]
pub struct Inherited(Mutex<Vec<InheritedSocket>>);

impl Inherited {
    /// Takes the socket of a place, if it was passed.
    pub fn take(&self, place: Place) -> Option<TcpListener> {
        let mut sockets = self.0.lock();
        let found = sockets.iter().position(|socket| socket.is_for(place))?;
        Some(sockets.swap_remove(found).socket)
    }

    /// Closes the sockets that the configuration has no place for.
    pub fn close_rest(&self) {
        for InheritedSocket { place, local, .. } in self.0.lock().drain(..) {
            if place.is_some() {
                tracing::info!(event = "socket_not_taken", address = %local, "the configuration has no such listener any more");
            } else {
                tracing::warn!(event = "socket_not_taken", address = %local, "no listener has the address of this socket of systemd, on which clients wait in vain: give it to a listener, or remove it from the socket unit");
            }
        }
    }
}

/// Takes what was passed to this process: its predecessor, if it has one, and sockets. To be called once, before any descriptor
/// is opened by number.
///
/// # Errors
///
/// [`InheritError`] where something else was passed than expected.
pub fn inherit() -> Result<(Inherited, Option<Predecessor>), InheritError> {
    if let Some(text) = std::env::var_os(VARIABLE)
        && let Some((sockets, messages)) = of_predecessor(&text.to_string_lossy())?
    {
        return Ok((Inherited(Mutex::new(sockets)), Some(Predecessor::new(messages))));
    }
    Ok((Inherited(Mutex::new(of_systemd()?)), None))
}

/// Sockets and the stream of messages of a predecessor; `None` where the variable is of another process.
fn of_predecessor(text: &str) -> Result<Option<(Vec<InheritedSocket>, UnixStream)>, InheritError> {
    let wrong = || InheritError::Variable(text.to_owned());
    let mut parts = text.split(';');
    if parts.next() != Some(VERSION) {
        return Err(wrong());
    }
    let mut number = || parts.next().and_then(|part| part.parse::<u64>().ok()).ok_or_else(wrong);
    let (inode, messages) = (number()?, number()?);
    let messages = RawFd::try_from(messages).map_err(|_| wrong())?;
    // A variable that was left in the environment names a descriptor that is not open, or something else.
    let Some(messages) = adopt(messages) else { return Ok(None) };
    let messages = File::from(messages);
    if !messages.metadata().is_ok_and(|found| found.ino() == inode) {
        // Another owner has it.
        let _ = messages.into_raw_fd();
        return Ok(None);
    }
    let messages = Socket::from(OwnedFd::from(messages));
    let failed = |source| InheritError::System { origin: VARIABLE, descriptor: messages.as_raw_fd(), source };
    messages.set_cloexec(true).map_err(failed)?;
    let mut sockets = Vec::new();
    for part in parts {
        let (descriptor, place) = part.split_once('=').ok_or_else(wrong)?;
        let descriptor = descriptor.parse().map_err(|_| wrong())?;
        let place: Place = place.parse().map_err(|()| wrong())?;
        sockets.push(listening(VARIABLE, descriptor, Some(place))?);
    }
    Ok(Some((sockets, UnixStream::from(OwnedFd::from(messages)))))
}

/// Sockets of a socket unit.
fn of_systemd() -> Result<Vec<InheritedSocket>, InheritError> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or(0).min(MOST_OF_SYSTEMD);
    (FIRST_OF_SYSTEMD..FIRST_OF_SYSTEMD + count).map(|descriptor| listening("LISTEN_FDS", descriptor, None)).collect()
}

/// Socket that listens under a number.
fn listening(origin: &'static str, descriptor: RawFd, place: Option<Place>) -> Result<InheritedSocket, InheritError> {
    let wrong = || InheritError::Socket { origin, descriptor };
    let socket = Socket::from(adopt(descriptor).ok_or_else(wrong)?);
    let is_tcp = socket.r#type().is_ok_and(|kind| kind == Type::STREAM);
    if !is_tcp || !SockRef::from(&socket.as_fd()).is_listener().unwrap_or(false) {
        return Err(wrong());
    }
    let local = socket.local_addr().ok().and_then(|local| local.as_socket()).ok_or_else(wrong)?;
    let failed = |source| InheritError::System { origin, descriptor, source };
    socket.set_nonblocking(true).map_err(failed)?;
    socket.set_cloexec(true).map_err(failed)?;
    Ok(InheritedSocket { socket: socket.into(), place, local })
}

/// Owner of an open descriptor; `None` where the number is not open.
fn adopt(descriptor: RawFd) -> Option<OwnedFd> {
    // SAFETY: the call takes a number and no pointer.
    let is_open = descriptor > 2 && unsafe { libc::fcntl(descriptor, libc::F_GETFD) } != -1;
    // SAFETY: the descriptor is open, and was passed to this process for this use: a variable names it. The process has not
    // given it another owner, because this runs before anything takes descriptors by their numbers, and once.
    is_open.then(|| unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for text in ["listener,127.0.0.1:0,3", "listener,[fe80::1%2]:80,0", "admin,[::]:9901", "metrics,10.0.0.1:9"] {
            assert_eq!(text.parse::<Place>().unwrap().to_string(), text);
        }
        for text in ["", "listener", "listener,127.0.0.1:0", "admin,127.0.0.1:0,1", "admin,a:1", "other,127.0.0.1:1"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_variable_of_another_process_is_left_alone_and_another_text_refused() {
        let file = tempfile::tempfile().unwrap();
        let inode = file.metadata().unwrap().ino();
        let number = file.as_raw_fd();
        assert!(of_predecessor(&format!("1;{};{number}", inode + 1)).unwrap().is_none());
        assert!(file.metadata().is_ok(), "its owner has it still");
        assert!(of_predecessor("1;1;987654").unwrap().is_none());
        for text in ["", "2;1;3", "1;x;3", "1;1"] {
            assert!(of_predecessor(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_socket_of_systemd_is_found_by_its_address() {
        let at = |local: &str, wanted: &str| is_at(local.parse().unwrap(), wanted.parse().unwrap());
        assert!(at("127.0.0.1:80", "127.0.0.1:80"));
        assert!(at("[::]:80", "0.0.0.0:80") && at("[::]:80", "[::]:80"));
        assert!(!at("0.0.0.0:80", "[::]:80"), "it takes no IPv6");
        assert!(!at("127.0.0.1:80", "127.0.0.1:81") && !at("[::]:80", "127.0.0.1:80"));
    }
}
