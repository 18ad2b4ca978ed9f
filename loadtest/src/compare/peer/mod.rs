//! The proxies that are compared. A peer writes its own configuration for each kind of work and starts its program; the
//! runner knows nothing else about it.

mod envoy;
mod haproxy;
mod litellm;
mod nginx;
mod pingora;
mod portkey;
mod router;
mod spillway;

use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use pingora::BarePingora;

use crate::process::Process;

/// Work that a peer is configured for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// HTTP/1.1 passed as it is: no log, no limit, bodies not held.
    Bare,
    /// A key, a limit for each address and each key, headers set and removed on both ways, an access log, and where the
    /// peer can, a trace of one request in a hundred.
    Full,
    /// OpenAI's chat, passed to a server by the model that the body names.
    Chat,
    /// `Bare` with TLS 1.3 towards the client.
    Tls,
    /// `Bare` with HTTP/2 over TLS towards the client, and HTTP/2 without TLS towards the server where the peer can.
    Http2,
}

/// Key that requests of `Full` carry, and its SHA-256.
pub(super) const KEY: &str = "test";
const KEY_SHA256: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
/// Limit of `Full`, in requests a second: high enough to refuse nothing.
const LIMIT: u32 = 1_000_000;
/// Connections from clients that a peer may hold open. HAProxy insists on twice as many open files.
const CONNECTIONS: u32 = 8192;

/// Addresses and files of one start.
pub(super) struct Site<'a> {
    /// Kind of work.
    pub(super) kind: Kind,
    /// Threads or processes that carry requests.
    pub(super) workers: usize,
    /// Port to listen on.
    pub(super) port: u16,
    /// Port of the server, for HTTP/1.1.
    pub(super) upstream: u16,
    /// Port of the same server for HTTP/2 without TLS.
    pub(super) upstream_h2: u16,
    /// Port of the OTLP collector (gRPC).
    pub(super) collector: u16,
    /// Folder for the peer's files, its own.
    pub(super) folder: PathBuf,
    /// Certificate and key in PEM, one after the other.
    pub(super) pem: &'a Path,
}

impl Site<'_> {
    /// Writes a file into the folder.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// True if clients speak TLS.
    pub(super) fn has_tls(&self) -> bool {
        matches!(self.kind, Kind::Tls | Kind::Http2)
    }
}

/// A proxy to compare.
pub(super) trait Peer {
    /// Name in tables and on the command line.
    fn name(&self) -> &'static str;
    /// Version that is installed; none where the peer is not.
    fn version(&self) -> Option<String>;
    /// Way to install the peer.
    fn source(&self) -> &'static str;
    /// True if the peer can do this kind of work.
    fn serves(&self, kind: Kind) -> bool;
    /// Difference of what the peer does in this kind of work, if there is one.
    fn difference(&self, _kind: Kind) -> Option<&'static str> {
        None
    }
    /// Headers that clients must send beside those of the workload, as `Name: value`.
    fn headers(&self, _site: &Site<'_>) -> Vec<String> {
        Vec::new()
    }
    /// Starts the program. It may take a while until it listens.
    fn start(&self, site: &Site<'_>) -> Process;
}

/// Every peer, the one that others are compared with first.
pub(super) fn all() -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(nginx::Nginx),
        Box::new(haproxy::Haproxy),
        Box::new(envoy::Envoy),
        Box::new(pingora::Pingora),
        Box::new(spillway::Spillway),
        Box::new(router::Router::VLLM),
        Box::new(router::Router::SGLANG),
        Box::new(litellm::LiteLlm),
        Box::new(portkey::Portkey),
    ]
}

/// Program of the peers' own Python environment or npm folder, which `scripts/test-tools.sh peers` fills.
fn installed(path: &str) -> PathBuf {
    Path::new(".cache/peers").join(path)
}

/// First line that the program prints, on either output; none if it cannot be run.
fn printed(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Option<String> {
    let out = Command::new(program).args(arguments).output().ok()?;
    let text = [out.stdout, out.stderr].concat();
    String::from_utf8_lossy(&text).lines().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}

/// First word of the text that is a version, such as 1.2.3.
fn version_in(text: &str) -> Option<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '.'))
        .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
        .map(|word| word.trim_end_matches('.').to_owned())
}

/// Version of a package of the peers' Python environment, by the name of its folder of metadata.
fn python_version(package: &str) -> Option<String> {
    let libraries = std::fs::read_dir(installed("venv/lib")).ok()?.flatten();
    libraries
        .flat_map(|python| std::fs::read_dir(python.path().join("site-packages")).into_iter().flatten().flatten())
        .find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some(name.strip_prefix(package)?.strip_prefix('-')?.strip_suffix(".dist-info")?.to_owned())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_programs_print() {
        for (printed, version) in [
            ("nginx version: nginx/1.22.1", "1.22.1"),
            ("HAProxy version 2.6.12-1+deb12u4 2025/11/11 - https://haproxy.org/", "2.6.12"),
            ("envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL", "1.40.0"),
        ] {
            assert_eq!(version_in(printed).as_deref(), Some(version), "{printed}");
        }
        assert_eq!(version_in("no such program"), None);
    }
}
