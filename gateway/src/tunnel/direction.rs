//! A direction of a tunnel: bytes of one side on their way to the other. What the other side does not take at once waits
//! here, at most as much as was read at a time, and nothing more is read until it has gone; a direction without such bytes
//! holds no buffer.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frames::{FrameError, Frames, Rewriter, Stopped};
use super::messages::Messages;
use crate::clock;

/// Most bytes that are read at a time, and so most that wait: 16 KiB, as much as a record of TLS holds.
const READ: usize = 16 << 10;
/// Reads in one poll, after which the other direction has its turn.
const TURNS: usize = 16;

/// Failure of a direction.
#[derive(Debug)]
pub(super) enum Fault {
    /// The side that sends is lost.
    Read,
    /// The side that receives is lost, or has read nothing for too long.
    Write { is_slow: bool },
    /// The side that sends breaks the framing of WebSocket.
    Malformed(FrameError),
    /// The side that sends has begun what it may not.
    Refused,
}

/// Progress of a direction.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// Bytes pass.
    Open,
    /// Bytes pass up to the end of the frame that has begun; this close frame follows it.
    Closing(Vec<u8>),
    /// A close frame went out. What comes is dropped, until the other side closes too.
    Awaiting,
    /// A message must not pass. True where what has passed ends between two frames.
    Refused(bool),
    /// Nothing more is read: what waits goes out, then the end.
    Ending,
    Done,
}

/// Bytes on their way in one direction.
pub(super) struct Direction {
    /// Follower of the frames; `None` for protocols other than WebSocket.
    frames: Option<Frames>,
    /// Writer of frames whose text changes on its way; `None` where bytes pass as they are.
    rewriter: Option<Box<Rewriter>>,
    stage: Stage,
    /// Bytes that wait to be written, behind the first `sent` of them.
    waiting: Vec<u8>,
    sent: usize,
    needs_flush: bool,
    /// Close frame to add at the end of what the sender still has to say.
    last: Option<Vec<u8>>,
    /// Bytes that were read.
    pub(super) bytes: u64,
    /// Bytes that were read and written, to tell progress from a standstill.
    pub(super) moved: u64,
    /// Time since which a write waits.
    pub(super) stalled: Option<Instant>,
    has_ended: bool,
}

impl Direction {
    /// Direction in which frames pass as they are, or `rewrites` their text.
    pub(super) fn new(frames: Option<Frames>, rewrites: bool) -> Self {
        Self {
            rewriter: (rewrites && frames.is_some()).then(Box::default),
            frames,
            stage: Stage::Open,
            waiting: Vec::new(),
            sent: 0,
            needs_flush: false,
            last: None,
            bytes: 0,
            moved: 0,
            stalled: None,
            has_ended: false,
        }
    }

    /// True once nothing more is read or written.
    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// True once the sender has ended its side, or sent a close frame.
    pub(super) fn has_finished(&self) -> bool {
        self.has_ended || self.has_closed()
    }

    /// True once the sender has ended its side without a failure.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// True once the sender has sent a close frame.
    pub(super) fn has_closed(&self) -> bool {
        self.frames.as_ref().is_some_and(Frames::has_closed)
    }

    /// True if what has passed ends between two frames.
    fn is_between(&self, frames: &Frames) -> bool {
        self.rewriter.is_some() || frames.is_between()
    }

    /// Ends the direction with a close frame, at the next boundary between two frames. Another protocol than WebSocket, whose
    /// end is no frame, just ends.
    pub(super) fn close(&mut self, frame: Vec<u8>) {
        if self.stage != Stage::Open {
            return;
        }
        self.stage = match &self.frames {
            None => Stage::Ending,
            // Nothing follows a close frame.
            Some(frames) if frames.has_closed() => Stage::Ending,
            Some(frames) if frames.is_between() => {
                self.waiting.extend_from_slice(&frame);
                Stage::Awaiting
            }
            Some(_) => Stage::Closing(frame),
        };
    }

    /// Ends a direction whose message was refused: with a close frame where one may follow what has passed, else at once.
    pub(super) fn refuse(&mut self, frame: &[u8]) {
        let Stage::Refused(is_between) = self.stage else { return };
        self.stage = Stage::Ending;
        if is_between {
            self.waiting.extend_from_slice(frame);
            self.stage = Stage::Awaiting;
        }
    }

    /// Adds a close frame where the sender ends without one.
    pub(super) fn close_at_end(&mut self, frame: Vec<u8>) {
        self.last = Some(frame);
    }

    /// Reads nothing more: what waits goes out, then the close frame where it may follow, then the end.
    pub(super) fn end(&mut self, frame: Option<Vec<u8>>) {
        if let Some(frame) = frame.or(self.last.take())
            && self.frames.as_ref().is_some_and(|frames| self.is_between(frames) && !frames.has_closed())
            && matches!(self.stage, Stage::Open)
        {
            self.waiting.extend_from_slice(&frame);
        }
        if self.stage != Stage::Done {
            self.stage = Stage::Ending;
        }
    }

    /// Gives up what waits: the receiver is lost.
    pub(super) fn stop(&mut self) {
        self.waiting = Vec::new();
        self.stalled = None;
        self.stage = Stage::Done;
    }

    /// Passes bytes on, until both sides wait. Ready once the direction is done, or has failed.
    pub(super) fn poll_pass<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        mut messages: Option<&mut (dyn Messages + '_)>,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURNS {
            ready!(self.poll_write(cx, writer)).map_err(failed)?;
            match self.stage {
                Stage::Done => return Poll::Ready(Ok(())),
                Stage::Ending => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(failed)?;
                    self.stage = Stage::Done;
                    return Poll::Ready(Ok(()));
                }
                Stage::Awaiting if self.has_closed() => {
                    self.stage = Stage::Ending;
                    continue;
                }
                Stage::Refused(_) => return Poll::Ready(Err(Fault::Refused)),
                Stage::Open | Stage::Closing(_) | Stage::Awaiting => {}
            }
            let mut bytes = [MaybeUninit::uninit(); READ];
            let mut here = ReadBuf::uninit(&mut bytes);
            match Pin::new(&mut *reader).poll_read(cx, &mut here) {
                Poll::Pending => {
                    if self.needs_flush {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(failed)?;
                        self.needs_flush = false;
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Read)),
                Poll::Ready(Ok(())) if here.filled().is_empty() => {
                    self.has_ended = true;
                    self.end(None);
                }
                Poll::Ready(Ok(())) => {
                    let messages = messages.as_mut().map(|messages| &mut **messages as &mut dyn Messages);
                    self.take(here.filled(), cx, writer, messages)?;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes bytes of the sender: writes what the receiver takes at once, and keeps the rest.
    fn take<W: AsyncWrite + Unpin>(
        &mut self,
        bytes: &[u8],
        cx: &mut Context<'_>,
        writer: &mut W,
        messages: Option<&mut dyn Messages>,
    ) -> Result<(), Fault> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.bytes = self.bytes.saturating_add(length);
        self.moved = self.moved.saturating_add(length);
        let (mut passes, mut is_at_boundary) = (bytes.len(), false);
        if let Some(frames) = &mut self.frames {
            let stage = &mut self.stage;
            match stage {
                // The rest is dropped, but may have the close frame of the sender, and messages that count.
                Stage::Closing(_) => {
                    let mut begun = frames.clone();
                    passes = begun.follow_to_boundary(bytes).map_err(Fault::Malformed)?;
                    is_at_boundary = begun.is_between();
                }
                Stage::Awaiting => passes = 0,
                _ => {}
            }
            let stopped = match (messages, &mut self.rewriter) {
                (Some(messages), Some(rewriter)) => {
                    let (passing, dropped) = bytes.split_at_checked(passes).unwrap_or((bytes, &[]));
                    let written = frames.rewrite(passing, messages, rewriter, &mut self.waiting, cx);
                    passes = 0;
                    written.and_then(|all| {
                        let stopped = frames.read(dropped, messages, cx)?;
                        Ok(if all { stopped } else { Some(Stopped { at: 0, is_between: true }) })
                    })
                }
                (Some(messages), None) => frames.read(bytes, messages, cx),
                (None, _) => frames.follow(bytes).map(|()| None),
            };
            if let Some(Stopped { at, is_between }) = stopped.map_err(Fault::Malformed)?
                && *stage == Stage::Open
            {
                passes = at;
                *stage = Stage::Refused(is_between);
            }
        }
        let passing = bytes.get(..passes).unwrap_or_default();
        if !passing.is_empty() {
            let written = match Pin::new(&mut *writer).poll_write(cx, passing) {
                Poll::Ready(written) => written.map_err(failed)?,
                Poll::Pending => 0,
            };
            self.has_written(written);
            self.waiting.extend_from_slice(passing.get(written..).unwrap_or_default());
        }
        if is_at_boundary && let Stage::Closing(frame) = std::mem::replace(&mut self.stage, Stage::Awaiting) {
            self.waiting.extend_from_slice(&frame);
        }
        Ok(())
    }

    /// Writes what waits.
    fn poll_write<W: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, writer: &mut W) -> Poll<io::Result<()>> {
        while let Some(waiting) = self.waiting.get(self.sent..).filter(|waiting| !waiting.is_empty()) {
            match Pin::new(&mut *writer).poll_write(cx, waiting) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.sent += written;
                    self.has_written(written);
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {
                    self.stalled.get_or_insert_with(clock::now);
                    return Poll::Pending;
                }
            }
        }
        if self.sent > 0 {
            (self.waiting, self.sent) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    fn has_written(&mut self, bytes: usize) {
        if bytes > 0 {
            self.moved = self.moved.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
            (self.needs_flush, self.stalled) = (true, None);
        }
    }
}

/// Failure of a write.
fn failed(e: io::Error) -> Fault {
    Fault::Write { is_slow: e.kind() == io::ErrorKind::TimedOut }
}
