//! Live tail of requests as an event stream (`text/event-stream`, HTML Living Standard, 9.2).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::lasting::LastingAnswer;
use crate::telemetry::{Tail, TailFilter, TailReader};

/// Time between two looks at what was missed.
const LOOK: Duration = Duration::from_secs(1);
/// Looks without an event after which a comment shows that the stream is alive: less than the idle time of most proxies.
const SILENT_LOOKS: u32 = 15;
/// Longest stream; its reader comes again. A page that was left open holds nothing for longer.
const LONGEST: Duration = Duration::from_secs(600);

/// State of one stream.
struct Watching {
    reader: TailReader,
    looks: Interval,
    silent: u32,
    ends: Instant,
    /// True before the first part, which lets the reader know that the stream has begun.
    is_new: bool,
    _lasting: LastingAnswer,
}

/// Streams the requests that a filter takes; `None` if as many watch as may.
pub(super) fn stream(tail: &Arc<Tail>, filter: TailFilter, lasting: LastingAnswer) -> Option<Response> {
    let now = Instant::now();
    let mut looks = interval_at(now + LOOK, LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let reader = tail.watch(filter)?;
    let watching = Watching { reader, looks, silent: 0, ends: now + LONGEST, is_new: true, _lasting: lasting };
    let parts = stream::unfold(watching, |mut watching: Watching| async move {
        let part = watching.next().await?;
        Some((Ok::<_, std::convert::Infallible>(part), watching))
    });
    let mut answer = Response::new(Body::from_stream(parts));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Some(answer)
}

impl Watching {
    /// Next part of the stream; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        if std::mem::take(&mut self.is_new) {
            return Some(Bytes::from_static(b": live\n\n"));
        }
        loop {
            tokio::select! {
                line = self.reader.next() => {
                    self.silent = 0;
                    return Some([b"event: request\ndata: ".as_slice(), &*line, b"\n\n"].concat().into());
                }
                now = self.looks.tick() => {
                    if now >= self.ends {
                        return None;
                    }
                    let missed = self.reader.take_missed();
                    if missed > 0 {
                        self.silent = 0;
                        return Some(format!("event: missed\ndata: {{\"missed\":{missed}}}\n\n").into());
                    }
                    self.silent += 1;
                    if self.silent >= SILENT_LOOKS {
                        self.silent = 0;
                        return Some(Bytes::from_static(b":\n\n"));
                    }
                }
            }
        }
    }
}
