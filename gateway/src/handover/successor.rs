//! New process that this one hands over to.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::time::Duration;

use socket2::Socket;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use super::{BEGIN, FAILED, MAX_MESSAGE, Place, Program, READY, SERVING, VARIABLE, VERSION};

/// Longest wait for a new process to take connections once it was told to begin: nothing is left to be loaded then.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for a new process to end after SIGTERM; then it is killed. One that serves already has this time to drain.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Reason why a process was not handed over. It goes on as before.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The program cannot be started.
    #[error("{path}: {source} (the program is started by the path that this process was started by)", path = program.display())]
    Start {
        /// Program.
        program: std::path::PathBuf,
        /// Reason.
        source: std::io::Error,
    },
    /// Sockets cannot be passed.
    #[error("sockets cannot be passed: {0}")]
    Sockets(std::io::Error),
    /// The new process said why it ends.
    #[error("the new process failed: {0}")]
    Failed(String),
    /// The new process ended without a reason.
    #[error("the new process ended before it was ready ({0}); its log says why")]
    Ended(ExitStatus),
    /// The new process was not ready in time.
    #[error("the new process was not ready within {} s (shutdown.handOver.startTimeout)", .0.as_secs_f64())]
    TooSlow(Duration),
    /// The new process did not begin in time.
    #[error("the new process was ready and did not begin within {} s", BEGIN_TIMEOUT.as_secs())]
    NotBegun,
    /// The new process speaks of something else.
    #[error("the new process sent an unknown message: {0}")]
    Unknown(String),
    /// This process was told to end.
    #[error("{0} ends both processes")]
    Stopped(&'static str),
}

/// New process, from its start on. Dropped, it loses its predecessor and ends, unless it serves already.
#[derive(Debug)]
pub struct Successor {
    process: Child,
    messages: BufReader<tokio::net::UnixStream>,
}

impl Successor {
    /// Starts the program anew with copies of these sockets.
    ///
    /// # Errors
    ///
    /// [`HandOverError::Start`] and [`HandOverError::Sockets`].
    pub fn start(program: &Program, sockets: &[(Place, Socket)]) -> Result<Self, HandOverError> {
        let (own, its) = UnixStream::pair().map_err(HandOverError::Sockets)?;
        own.set_nonblocking(true).map_err(HandOverError::Sockets)?;
        let own = tokio::net::UnixStream::from_std(own).map_err(HandOverError::Sockets)?;
        let its = File::from(OwnedFd::from(its));
        let inode = its.metadata().map_err(HandOverError::Sockets)?.ino();
        let its = Socket::from(OwnedFd::from(its));
        let mut text = format!("{VERSION};{inode};{}", its.as_raw_fd());
        for (place, socket) in sockets {
            text += &format!(";{}={place}", socket.as_raw_fd());
        }
        for passed in sockets.iter().map(|(_, socket)| socket).chain([&its]) {
            passed.set_cloexec(false).map_err(HandOverError::Sockets)?;
        }
        let mut command = Command::new(&program.path);
        command.arg0(&program.name).args(&program.arguments).env(VARIABLE, text);
        for of_systemd in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            command.env_remove(of_systemd);
        }
        let failed = |source| HandOverError::Start { program: program.path.clone(), source };
        let process = command.spawn().map_err(failed)?;
        Ok(Self { process, messages: BufReader::new(own) })
    }

    /// Number of the process; `None` once it has ended.
    pub fn id(&self) -> Option<u32> {
        self.process.id()
    }

    /// Waits until the process is ready.
    ///
    /// # Errors
    ///
    /// [`HandOverError`] where it is not, within `limit`.
    pub async fn ready(&mut self, limit: Duration) -> Result<(), HandOverError> {
        match tokio::time::timeout(limit, self.expect(READY)).await {
            Ok(ready) => ready,
            Err(_) => Err(HandOverError::TooSlow(limit)),
        }
    }

    /// Lets the process begin, and waits until it takes connections.
    ///
    /// # Errors
    ///
    /// [`HandOverError`] where it does not.
    pub async fn begin(&mut self) -> Result<(), HandOverError> {
        let begun = async {
            // A process that has ended says why, or is asked for its status.
            let _ = self.messages.get_mut().write_all(format!("{BEGIN}\n").as_bytes()).await;
            self.expect(SERVING).await
        };
        tokio::time::timeout(BEGIN_TIMEOUT, begun).await.unwrap_or(Err(HandOverError::NotBegun))
    }

    /// Ends the process: by SIGTERM, and where that takes too long by SIGKILL.
    pub async fn end(mut self) {
        let Some(id) = self.process.id().and_then(|id| libc::pid_t::try_from(id).ok()) else { return };
        // SAFETY: the call takes two numbers. The process was not waited for yet, so the number is still its own.
        unsafe { libc::kill(id, libc::SIGTERM) };
        if tokio::time::timeout(END_TIMEOUT, self.process.wait()).await.is_err() {
            // Fails for a process that has ended.
            let _ = self.process.kill().await;
        }
    }

    async fn expect(&mut self, expected: &str) -> Result<(), HandOverError> {
        let mut message = String::new();
        let most = u64::try_from(MAX_MESSAGE).unwrap_or(u64::MAX);
        // Broken text is no message, as is the end.
        let _ = (&mut self.messages).take(most).read_line(&mut message).await;
        let message = message.trim_end();
        if message == expected {
            return Ok(());
        }
        if let Some(reason) = message.strip_prefix(FAILED) {
            let reason = serde_json::from_str(reason).unwrap_or_else(|_| reason.to_owned());
            return Err(HandOverError::Failed(reason));
        }
        if !message.is_empty() {
            return Err(HandOverError::Unknown(message.chars().take(80).collect()));
        }
        match tokio::time::timeout(END_TIMEOUT, self.process.wait()).await {
            Ok(Ok(status)) => Err(HandOverError::Ended(status)),
            Ok(Err(e)) => Err(HandOverError::Failed(e.to_string())),
            Err(_) => Err(HandOverError::Unknown("it closed the stream of messages".to_owned())),
        }
    }
}
