//! The body of a request: passed through as it arrives, or held whole where something must read it or send it again. A held
//! body is counted, as it arrives, against a budget of the whole process and of its caller. In the end it is one `Bytes`,
//! which a retry sends again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{StatusCode, Version};
use spillway_filter::{ErrorKind, Refusal};
use tokio::time::sleep_until;

use super::End;
use super::body_budget::{BodyBudget, BodyShare, too_large};
use crate::clock;
use crate::coding::{ACCEPTED, Coding, Decoder, GRPC_ACCEPTED};
use crate::downstream::{ClientSession, violation_of};
use crate::framing::Violation;
use crate::off_loop::{INLINE, OffLoop};
use crate::protocol::oip::grpc::FRAME;

/// Largest part of a body that is still arriving, in bytes. Parts are joined when all have arrived, so that growing copies at
/// most one part.
const PART: usize = 1 << 20;

/// Least growth of a part in bytes where doubling it does not fit the budget: with less, a body of many small chunks would
/// be copied with each of them.
const STEP: usize = PART / 16;

/// Initial capacity of a part in bytes, where more than that is to come.
const LEAST: usize = 1 << 10;

/// Interval at which the growth of a body is checked while memory is short.
const PACE: Duration = Duration::from_secs(5);

/// Divisor of the bytes held: while memory is short, a body must have grown by that share in each interval. At an even rate a
/// body grows by more until 16 intervals have passed, which is beyond the default `bodyTimeout`.
const LEAST_GROWTH: u64 = 16;

/// Body in memory, with its share of the budget.
#[derive(Default)]
pub struct HeldBody {
    /// Whole body.
    pub bytes: Bytes,
    /// Trailers behind it, as they came; boxed, because few requests have some.
    pub trailers: Option<Box<HeaderMap>>,
    /// Share of the budget, released with the last holder of the body; `None` for an empty body.
    pub share: Option<Arc<BodyShare>>,
}

impl HeldBody {
    /// Counts the body for another caller. Only possible while the body has one holder.
    pub fn belongs_to(&mut self, caller: u128) -> Result<(), End> {
        self.share.as_mut().and_then(Arc::get_mut).map_or(Ok(()), |share| share.belongs_to(caller))
    }

    /// Puts other bytes in the body's place, `limit` of them at most, and returns those before. `None` where the body is empty or
    /// has another holder.
    pub fn replace(&mut self, bytes: Bytes, limit: u64) -> Result<Option<Bytes>, End> {
        let Some(share) = self.share.as_mut().and_then(Arc::get_mut) else { return Ok(None) };
        let length = len(bytes.len());
        if length > limit {
            return Err(too_large(limit, "this route accepts, as its filters have changed it"));
        }
        let more = length.saturating_sub(len(self.bytes.len()));
        share.grow(more, more, length)?;
        share.shrink(length);
        // They describe the bytes that came.
        self.trailers = None;
        Ok(Some(std::mem::replace(&mut self.bytes, bytes)))
    }

    /// Replaces a body in a coding, which `layer` names, by its decoded bytes, `limit` of them at most, which are counted as they
    /// are written. Only possible while the body has one holder.
    pub async fn decode(
        &mut self,
        coding: Coding,
        layer: CodingLayer,
        off_loop: &OffLoop,
        limit: u64,
    ) -> Result<(), End> {
        let Some(share) = self.share.as_mut().and_then(Arc::get_mut) else { return Ok(()) };
        let mut decoder = Decoder::new(coding).ok_or_else(|| layer.unsupported())?;
        let (mut parts, encoded) = (BodyParts::default(), &self.bytes);
        // More comes out than one pass beside other requests may write, however little goes in.
        off_loop.run(INLINE + 1, || decode_all(&mut decoder, layer, encoded, &mut parts, share, limit)).await??;
        let length = parts.length;
        let bytes = if parts.list.len() > 1 { off_loop.run(length, || parts.join()).await? } else { parts.join() };
        self.bytes = bytes;
        share.shrink(len(length));
        Ok(())
    }
}

/// Part of a body that a coding is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodingLayer {
    /// The whole body, by `Content-Encoding`.
    Body,
    /// The one message in a frame of gRPC, by `grpc-encoding`.
    Message,
}

impl CodingLayer {
    /// Bytes before what is in the coding.
    fn frame(self) -> usize {
        match self {
            Self::Body => 0,
            Self::Message => FRAME,
        }
    }

    /// Header that names the coding.
    fn header(self) -> &'static str {
        match self {
            Self::Body => "Content-Encoding",
            Self::Message => "grpc-encoding",
        }
    }

    /// Refusal of a coding that the gateway does not read.
    fn unsupported(self) -> End {
        End::refuse(match self {
            Self::Body => Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                ErrorKind::InvalidRequest,
                "unsupported_content_encoding",
                "the body is in a Content-Encoding, or in several, that the gateway cannot read, and a rule or an API depends on \
                 what it says: send it in gzip, deflate, br or zstd, or without Content-Encoding",
            )
            .accept_encoding(ACCEPTED),
            // Servers of gRPC say `UNIMPLEMENTED` ("Compression", PROTOCOL-HTTP2.md).
            Self::Message => Refusal::new(
                StatusCode::NOT_IMPLEMENTED,
                ErrorKind::InvalidRequest,
                "unsupported_content_encoding",
                "the message is in a `grpc-encoding` that the gateway cannot read, and a rule or an API depends on what it says: \
                 send it in gzip or deflate, or as it is",
            )
            .accept_encoding(GRPC_ACCEPTED),
        })
    }

    /// Refusal of bytes that are not in the coding that the header names.
    fn malformed(self) -> End {
        let message = format!(
            "the body is not in the coding that its {0} names, or is cut: send it whole in that coding, or without {0}",
            self.header()
        );
        End::refuse(Refusal::invalid("invalid_content_encoding", message))
    }
}

/// Decodes a whole body into parts.
fn decode_all(
    decoder: &mut Decoder,
    layer: CodingLayer,
    encoded: &[u8],
    parts: &mut BodyParts,
    share: &mut BodyShare,
    limit: u64,
) -> Result<(), End> {
    let frame = layer.frame();
    parts.push([0; FRAME].get(..frame).unwrap_or_default(), limit, share)?;
    let mut pushed = Ok(());
    let decoded = decoder.decode(encoded.get(frame..).unwrap_or_default(), |plain| {
        pushed = if len(parts.length).saturating_add(len(plain.len())) > limit {
            Err(too_large(limit, &format!("this route accepts, decoded from its {}", layer.header())))
        } else {
            parts.push(plain, limit, share)
        };
        pushed.is_ok()
    });
    pushed?;
    if decoded.is_err() || !decoder.is_at_end {
        return Err(layer.malformed());
    }
    if let Some(begin) = parts.list.first_mut().and_then(|part| part.get_mut(1..frame)) {
        // A message is no longer than its route accepts.
        let length = u32::try_from(parts.length - frame).unwrap_or(u32::MAX);
        begin.copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

/// State of the body of a request.
pub enum RequestBody {
    /// No byte was read.
    Unread,
    /// Read whole and held.
    Held(HeldBody),
}

impl RequestBody {
    /// True if the whole body is there: it is held, or has no byte.
    pub fn is_at_hand(&self, session: &ClientSession) -> bool {
        let is_empty = || session.is_body_empty() || (session.is_body_done() && session.body_bytes() == 0);
        matches!(self, Self::Held(_)) || is_empty()
    }

    /// True if the whole body can be sent to another server: it is held, or no byte of it was read yet.
    pub fn can_resend(&self, session: &ClientSession) -> bool {
        matches!(self, Self::Held(_)) || session.body_bytes() == 0
    }
}

/// Bounds of a body that is read to its end.
#[derive(Debug, Clone, Copy)]
pub struct Hold {
    /// Number of the caller, by which its share is found.
    pub caller: u128,
    /// Most bytes that the route accepts.
    pub limit: u64,
    /// Longest time until the last byte.
    pub within: Duration,
}

/// Reads the body of a request to its end, within `bounds`.
pub async fn hold(
    session: &mut ClientSession,
    budget: &Arc<BodyBudget>,
    off_loop: &OffLoop,
    bounds: Hold,
) -> Result<HeldBody, End> {
    let Hold { caller, limit, within } = bounds;
    let declared = content_length(session);
    if declared.is_some_and(|length| length > limit) {
        return Err(too_large(limit, "this route accepts"));
    }
    if session.is_body_empty() {
        return Ok(HeldBody::default());
    }
    let mut share = BodyShare::new(budget, caller);
    share.announced(declared.unwrap_or(1))?;
    if expects_continue(session) {
        session.write_continue_response().await.map_err(|_| End::ClientGone)?;
    }
    // The session ends a body at its announced length.
    let most = declared.unwrap_or(limit).min(limit);
    let mut parts = BodyParts::default();
    let read = async {
        let mut pace = Pace { at: 0 };
        let look = sleep_until(clock::now() + PACE);
        tokio::pin!(look);
        loop {
            let chunk = {
                let read = session.read_request_body();
                tokio::pin!(read);
                loop {
                    // The same read is polled again, so that bytes of a chunk that it has read are not lost.
                    tokio::select! {
                        biased;
                        chunk = &mut read => break chunk,
                        () = &mut look => {
                            if pace.has_fallen_behind(len(parts.length)) && share.budget().is_scarce() {
                                return Err(share.budget().refuse_slow());
                            }
                            look.as_mut().reset(clock::now() + PACE);
                        }
                    }
                }
            };
            let Some(chunk) = chunk.map_err(|e| unread(session, &e))? else { return Ok(()) };
            if len(parts.length).saturating_add(len(chunk.len())) > limit {
                return Err(too_large(limit, "this route accepts"));
            }
            parts.push(&chunk, most, &mut share)?;
        }
    };
    clock::within(within, read).await.map_err(|_| too_slow())??;
    let length = parts.length;
    let bytes = if parts.list.len() > 1 { off_loop.run(length, || parts.join()).await? } else { parts.join() };
    share.shrink(len(length));
    let trailers = session.trailers().map(Box::new);
    Ok(HeldBody { bytes, trailers, share: Some(Arc::new(share)) })
}

/// Body that is arriving. Its memory grows with the bytes: to at most twice their number, and to at most a part more.
#[derive(Default)]
struct BodyParts {
    list: Vec<Vec<u8>>,
    length: usize,
}

impl BodyParts {
    /// Appends a chunk. `most` is the largest length that the body can reach.
    fn push(&mut self, mut chunk: &[u8], most: u64, share: &mut BodyShare) -> Result<(), End> {
        while !chunk.is_empty() {
            if self.list.last().is_none_or(|part| part.len() >= PART) {
                self.list.push(Vec::new());
            }
            let Some(part) = self.list.last_mut() else { break };
            let now = chunk.len().min(PART - part.len());
            let needed = part.len() + now;
            if needed > part.capacity() {
                // No more than the rest of the body needs.
                let rest = usize::try_from(most).unwrap_or(usize::MAX).saturating_sub(self.length);
                let wanted = (part.capacity() * 2).max(LEAST).min(part.len().saturating_add(rest));
                let best = wanted.clamp(needed, PART.max(needed));
                let least = needed.max(part.capacity() + STEP).min(best) - part.capacity();
                let best = best - part.capacity();
                let taken = share.grow(len(best), len(least), len(self.length + now))?;
                let capacity = part.capacity() + usize::try_from(taken).unwrap_or(least);
                part.reserve_exact(capacity - part.len());
            }
            let (head, tail) = chunk.split_at_checked(now).unwrap_or((chunk, &[]));
            part.extend_from_slice(head);
            self.length += head.len();
            chunk = tail;
        }
        Ok(())
    }

    /// Joins the parts to one. Each part is freed once it is copied.
    fn join(mut self) -> Bytes {
        if self.list.len() <= 1 {
            let mut only = self.list.pop().unwrap_or_default();
            // The share that stays counted is that of the bytes alone.
            only.shrink_to_fit();
            return only.into();
        }
        let mut whole = Vec::with_capacity(self.length);
        for part in self.list {
            whole.extend_from_slice(&part);
        }
        whole.into()
    }
}

/// Length of a body at the last check of its growth.
struct Pace {
    at: u64,
}

impl Pace {
    /// True if the body has grown by too little since the last check.
    fn has_fallen_behind(&mut self, length: u64) -> bool {
        let before = std::mem::replace(&mut self.at, length);
        length.saturating_sub(before) < length / LEAST_GROWTH
    }
}

fn len(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn content_length(session: &ClientSession) -> Option<u64> {
    session.get_header(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// True if the client waits for `100 Continue` before it sends its body.
pub fn expects_continue(session: &ClientSession) -> bool {
    // HTTP/1.0 knows no early answers (RFC 9110, 10.1.1).
    session.req_header().version != Version::HTTP_10
        && session.get_header(header::EXPECT).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// End of a request whose body cannot be read.
fn unread(session: &mut ClientSession, e: &pingora::Error) -> End {
    violation_of(e).map_or(End::ClientGone, |violation| malformed(session, violation))
}

/// Ends a request whose body breaks the framing, and closes its connection: no byte behind the body can be trusted.
pub fn malformed(session: &mut ClientSession, violation: Violation) -> End {
    session.close_after();
    End::refuse(malformed_refusal(violation))
}

/// Refusal of a request that breaks the framing of HTTP/1.
pub fn malformed_refusal(violation: Violation) -> Refusal {
    Refusal::new(violation.status(), ErrorKind::InvalidRequest, violation.code(), violation.to_string())
}

/// Refusal of a body that did not arrive in time.
pub fn too_slow() -> End {
    End::refuse(Refusal::new(
        StatusCode::REQUEST_TIMEOUT,
        ErrorKind::Timeout,
        "body_timeout",
        "the body of the request did not arrive in time",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    fn held(chunks: &[usize], most: u64) -> (Bytes, u64, u64) {
        let budget = Arc::new(BodyBudget::new(u64::MAX, u64::MAX, &Metrics::new()));
        let mut share = BodyShare::new(&budget, 1);
        let mut parts = BodyParts::default();
        let mut peak = 0;
        for (n, chunk) in chunks.iter().enumerate() {
            parts.push(&vec![n as u8; *chunk], most, &mut share).unwrap();
            let there: usize = parts.list.iter().map(Vec::capacity).sum();
            assert_eq!(budget.used(), len(there), "what is counted is what is there");
            peak = budget.used();
        }
        let length = len(parts.length);
        (parts.join(), peak, length)
    }

    #[test]
    fn memory_of_a_body_follows_what_has_arrived() {
        let (bytes, taken, _) = held(&[300], 300);
        assert_eq!((bytes.len(), taken), (300, 300), "a short body takes what it needs, at once");
        let (_, taken, _) = held(&[1], 20 << 20);
        assert_eq!(taken, 1 << 10, "what is only announced takes nothing");
        let budget = Arc::new(BodyBudget::new(u64::MAX, 700 << 10, &Metrics::new()));
        let (mut share, mut parts) = (BodyShare::new(&budget, 1), BodyParts::default());
        for _ in 0..600 {
            parts.push(&[7; 1 << 10], 20 << 20, &mut share).unwrap();
        }
        assert_eq!(budget.used(), 640 << 10, "where twice as much does not fit, it grows in steps");
        for chunks in [vec![1; 5000], vec![64 << 10; 50], vec![PART + 1, 1, PART], vec![3 << 20, 7]] {
            let (bytes, taken, length) = held(&chunks, 20 << 20);
            let expected: Vec<u8> = chunks.iter().enumerate().flat_map(|(n, len)| vec![n as u8; *len]).collect();
            assert!(bytes == expected, "the bytes of {length}");
            assert!(taken <= (2 * length).max(1 << 10).min(length + len(PART)), "{taken} for {length}");
        }
    }

    #[test]
    fn a_body_that_holds_much_must_go_on() {
        let mut pace = Pace { at: 0 };
        let lengths = [0, 100, 200, 201, 201, 15, 15];
        let behind: Vec<bool> = lengths.iter().map(|length| pace.has_fallen_behind(*length)).collect();
        assert_eq!(behind, [false, false, false, true, true, false, false]);
    }
}
