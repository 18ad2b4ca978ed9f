//! Open loop: requests at a steady rate, whatever the answers do. Latency counts from when a request was due, not from when
//! a connection was free to send it, so that a proxy that stalls cannot hide the requests that had to wait (coordinated
//! omission).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Done, Run, histogram, record, wire};

/// Connections; a request that is due while all are busy waits for one.
const CONNECTIONS: usize = 64;

/// Requests that are due, under way and answered, in time since the start. Knows no socket and no clock.
struct Schedule {
    between: Duration,
    length: Duration,
    /// Requests sent so far; also the number of the next one.
    sent: u32,
    answered: u64,
    free: VecDeque<usize>,
    /// When the request under way on each connection was due.
    due: Vec<Option<Duration>>,
    latency: Histogram<u64>,
}

impl Schedule {
    fn new(rate: f64, length: Duration, connections: usize) -> Self {
        Self {
            between: Duration::from_secs_f64(1.0 / rate),
            length,
            sent: 0,
            answered: 0,
            free: (0..connections).collect(),
            due: vec![None; connections],
            latency: histogram(),
        }
    }

    /// When the next request is due; none after the last one.
    fn next(&self) -> Option<Duration> {
        let due = self.between * self.sent;
        (due < self.length).then_some(due)
    }

    /// Connection to send a request on, if one is due and a connection is free.
    fn send(&mut self, now: Duration) -> Option<usize> {
        let due = self.next().filter(|due| *due <= now)?;
        let connection = self.free.pop_front()?;
        self.due[connection] = Some(due);
        self.sent += 1;
        Some(connection)
    }

    /// Counts the answer of a connection.
    fn answer(&mut self, connection: usize, now: Duration) {
        // None where the peer closed a connection without a request.
        let Some(due) = self.due[connection].take() else { return };
        record(&mut self.latency, now.saturating_sub(due));
        self.answered += u64::from(now <= self.length);
        self.free.push_back(connection);
    }

    fn is_done(&self) -> bool {
        self.next().is_none() && self.free.len() == self.due.len()
    }

    /// Counts what is unanswered at the end with the time that it has waited until then.
    fn close(mut self, now: Duration) -> (u64, Histogram<u64>) {
        for due in self.due.iter().flatten() {
            record(&mut self.latency, now.saturating_sub(*due));
        }
        while let Some(due) = self.next() {
            record(&mut self.latency, now.saturating_sub(due));
            self.sent += 1;
        }
        (self.answered, self.latency)
    }
}

struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self { stream, read: Vec::with_capacity(4096) }
    }

    /// Reads what has come: none as long as the answer is not complete, else true if it is the right one. An error means that
    /// the peer closed the connection.
    fn receive(&mut self) -> std::io::Result<Option<bool>> {
        let mut part = [0; 4096];
        match (&self.stream).read(&mut part) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => self.read.extend_from_slice(&part[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
        let whole = wire::answer(&self.read).filter(|answer| self.read.len() >= answer.head + answer.body);
        if whole.is_some() {
            self.read.clear();
        }
        Ok(whole.map(|answer| answer.is_ok))
    }
}

/// Sends `rate` requests a second for `length` and waits as long again for answers that are late.
pub(super) fn drive(run: &Run<'_>, rate: f64, length: Duration) -> Done {
    let request = wire::head(run.ask, 0);
    let mut connections: Vec<Connection> = (0..CONNECTIONS).map(|_| Connection::open(run.port)).collect();
    let mut schedule = Schedule::new(rate, length, CONNECTIONS);
    let mut errors = 0;
    let began = Instant::now();
    while !schedule.is_done() && began.elapsed() < length * 2 {
        while let Some(connection) = schedule.send(began.elapsed()) {
            // A request of some hundred bytes always fits into the buffer of a connection without another. Of a closed
            // connection the next read tells.
            let _ = (&connections[connection].stream).write_all(&request);
        }
        for n in ready(&connections, wait(&schedule, began.elapsed())) {
            let is_ok = match connections[n].receive() {
                Ok(None) => continue,
                Ok(Some(is_ok)) => is_ok,
                Err(_) => {
                    connections[n] = Connection::open(run.port);
                    false
                }
            };
            errors += u64::from(!is_ok);
            schedule.answer(n, began.elapsed());
        }
    }
    let (answered, latency) = schedule.close(began.elapsed());
    Done { amount: answered as f64, seconds: length.as_secs_f64(), errors, latency: Some(latency), held: None }
}

/// Time until the next request can be sent, a tenth of a second at most.
fn wait(schedule: &Schedule, now: Duration) -> Duration {
    let most = Duration::from_millis(100);
    match schedule.next() {
        Some(due) if !schedule.free.is_empty() => due.saturating_sub(now).min(most),
        _ => most,
    }
}

/// Connections with something to read, after at most so long. The wait is exact to some microseconds.
fn ready(connections: &[Connection], wait: Duration) -> Vec<usize> {
    let mut waited: Vec<PollFd<'_>> = connections.iter().map(|c| PollFd::new(&c.stream, PollFlags::IN)).collect();
    poll(&mut waited, Some(&Timespec::try_from(wait).unwrap())).unwrap();
    let came = |(n, polled): (usize, &PollFd<'_>)| (!polled.revents().is_empty()).then_some(n);
    waited.iter().enumerate().filter_map(came).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Drives a schedule of 1,000 requests/s for a second over one connection, in steps of a tenth of a millisecond, before
    /// a server that takes no time but for a stall.
    fn simulate(stall: std::ops::Range<Duration>, end: Duration) -> (u64, Histogram<u64>) {
        let mut schedule = Schedule::new(1000.0, MS * 1000, 1);
        let mut under_way = None;
        let mut now = Duration::ZERO;
        while now < end && !schedule.is_done() {
            under_way = under_way.or_else(|| schedule.send(now));
            if let Some(connection) = under_way.filter(|_| !stall.contains(&now)) {
                schedule.answer(connection, now);
                under_way = None;
            }
            now += MS / 10;
        }
        schedule.close(now)
    }

    #[test]
    fn requests_that_had_to_wait_for_a_stall_count_from_when_they_were_due() {
        let (answered, latency) = simulate(MS * 100..MS * 600, MS * 3000);
        assert_eq!((answered, latency.len()), (1000, 1000));
        // Half a second of a second was stalled: the requests due in it waited 250 ms on average. Counted from when each was
        // sent, a single one of a thousand would be slow.
        let waited = latency.len() - latency.count_between(0, 1000);
        assert!((500..620).contains(&waited), "{waited}");
        let p99 = latency.value_at_quantile(0.99);
        assert!((480_000..500_500).contains(&p99), "{p99}");
    }

    #[test]
    fn requests_that_are_never_answered_count_with_their_wait() {
        let (answered, latency) = simulate(MS * 500..MS * 10_000, MS * 2000);
        assert_eq!((answered, latency.len()), (500, 1000));
        assert!((1_490_000..1_501_000).contains(&latency.max()), "{}", latency.max());
    }

    #[test]
    fn a_server_that_keeps_up_has_no_latency() {
        let (answered, latency) = simulate(Duration::ZERO..Duration::ZERO, MS * 3000);
        assert_eq!((answered, latency.max()), (1000, 1));
    }
}
