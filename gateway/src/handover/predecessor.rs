//! Process that hands over to this one, as this one sees it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use tokio::io::Interest;

use super::{BEGIN, FAILED, MAX_MESSAGE, READY, SERVING};

/// The process that was to hand over is gone, or wants this one to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process that was to hand over has ended, or has given up")]
pub struct Gone;

/// Process that hands over to this one.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

impl Predecessor {
    pub(super) fn new(messages: UnixStream) -> Self {
        Self(messages)
    }

    /// Says that this process is ready, and waits until it may begin.
    ///
    /// # Errors
    ///
    /// [`Gone`] where it may not.
    pub async fn ready(&self) -> Result<(), Gone> {
        self.say(READY).map_err(|_| Gone)?;
        self.begin().await
    }

    /// Waits until the process is gone. To be dropped before [`Self::ready`].
    pub async fn gone(&self) -> Gone {
        match self.begin().await {
            // There is nothing to begin before this process is ready.
            Ok(()) | Err(Gone) => Gone,
        }
    }

    /// Says that this process takes connections.
    pub fn serving(&self) {
        if let Err(e) = self.say(SERVING) {
            tracing::warn!(event = "predecessor_not_told", reason = %e);
        }
    }

    /// Says why this process ends. A predecessor that is gone need not know.
    pub fn failed(&self, reason: &str) {
        let mut text = String::from(FAILED);
        let end = reason.floor_char_boundary(reason.len().min(MAX_MESSAGE / 8));
        text += &serde_json::Value::from(reason.get(..end).unwrap_or_default()).to_string();
        let _ = self.say(&text);
    }

    /// Sends a message. The few that there are fit into the buffer of the system.
    fn say(&self, message: &str) -> std::io::Result<()> {
        (&self.0).write_all(format!("{message}\n").as_bytes())
    }

    async fn begin(&self) -> Result<(), Gone> {
        let stream = self.0.try_clone().map_err(|_| Gone)?;
        stream.set_nonblocking(true).map_err(|_| Gone)?;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(|_| Gone)?;
        let expected = format!("{BEGIN}\n");
        let mut message = vec![0; expected.len()];
        let mut filled = 0;
        while let Some(free) = message.get_mut(filled..).filter(|free| !free.is_empty()) {
            match stream.async_io(Interest::READABLE, || (&self.0).read(&mut *free)).await {
                Ok(0) | Err(_) => return Err(Gone),
                Ok(read) => filled += read,
            }
        }
        if message == expected.as_bytes() { Ok(()) } else { Err(Gone) }
    }
}
