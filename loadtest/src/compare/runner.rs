//! Starts the peers for a workload, has each answer once as it must, and loads them in turn in every round.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Options;
use super::load::{self, Done, Run};
use super::machine::Watch;
use super::origin::Origin;
use super::peer::{self, Kind, Peer, Site};
use super::report::{Group, Measured, Presence, Row};
use super::workload::{Ask, Load, Workload};
use crate::process::{Process, free_port};

/// Name of the row in which the origin is driven without a peer.
const ORIGIN: &str = "origin alone";
/// Time for a peer to start and to give its first right answer; interpreters take their time.
const START: Duration = Duration::from_secs(180);

/// A run of the comparison.
pub(super) struct Runner<'a> {
    peers: Vec<(Box<dyn Peer>, Option<String>)>,
    origin: Origin,
    pem: PathBuf,
    folder: &'a Path,
    options: &'a Options,
    rounds: usize,
    seconds: u32,
}

/// A peer under a workload.
struct Contestant<'a> {
    /// None for the origin alone.
    peer: Option<&'a dyn Peer>,
    site: Site<'a>,
    ask: Ask,
    process: Option<Process>,
    row: Row,
}

impl<'a> Runner<'a> {
    /// Starts the servers behind the peers.
    pub(super) fn new(options: &'a Options, rounds: usize, seconds: u32, folder: &'a Path, pem: PathBuf) -> Self {
        let all = peer::all();
        for name in &options.peers {
            let is_known = all.iter().any(|peer| peer.name().eq_ignore_ascii_case(name));
            assert!(is_known, "no peer is called {name}");
        }
        let is_wanted = |peer: &dyn Peer| {
            let is_base = peer.name() == all[0].name();
            is_base
                || options.peers.is_empty()
                || options.peers.iter().any(|name| peer.name().eq_ignore_ascii_case(name))
        };
        let wanted: Vec<bool> = all.iter().map(|peer| is_wanted(peer.as_ref())).collect();
        let peers = all.into_iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(peer, _)| {
            let version = peer.version();
            if version.is_none() {
                eprintln!("{} is not installed and is left out ({})", peer.name(), peer.source());
            }
            (peer, version)
        });
        let origin = Origin::start(folder, options.workers);
        Self { peers: peers.collect(), origin, pem, folder, options, rounds, seconds }
    }

    /// Peers with their versions, and those that are left out.
    pub(super) fn peers(&self) -> Vec<Presence> {
        let presence = |(peer, version): &(Box<dyn Peer>, Option<String>)| Presence {
            name: peer.name(),
            version: version.clone(),
            source: peer.source(),
        };
        self.peers.iter().map(presence).collect()
    }

    /// Measures a workload in every round.
    pub(super) fn measure(&self, workload: &'static Workload) -> Group {
        eprintln!("{}", workload.title);
        let mut contestants = self.contestants(workload);
        for contestant in &mut contestants {
            self.start(contestant);
        }
        for contestant in &mut contestants {
            await_answer(contestant, workload);
        }
        let most = match (workload.load, contestants.first()) {
            (Load::Open { .. }, Some(base)) => load::closed_rate(&self.run_of(base, 1, 0.0)),
            _ => 0.0,
        };
        if !workload.is_fresh() {
            for contestant in contestants.iter().filter(|contestant| contestant.row.failure.is_none()) {
                self.run_of(contestant, 1, most).drive(workload.load);
            }
        }
        let watch = Watch::start();
        for round in 0..self.rounds {
            for contestant in &mut contestants {
                if workload.is_fresh() && round > 0 {
                    contestant.process = None;
                    self.start(contestant);
                    await_answer(contestant, workload);
                }
                self.round(contestant, workload, most);
            }
        }
        let others = watch.others().programs;
        Group { workload, others, rows: contestants.into_iter().map(|contestant| contestant.row).collect() }
    }

    /// Peers that can do this work, and the origin alone where a client can ask it the same.
    fn contestants(&self, workload: &'static Workload) -> Vec<Contestant<'_>> {
        let able = self.peers.iter().filter(|(peer, version)| version.is_some() && peer.serves(workload.kind));
        let mut contestants: Vec<_> = able.map(|(peer, _)| self.contestant(Some(peer.as_ref()), workload)).collect();
        if matches!(workload.kind, Kind::Bare | Kind::Chat) && !workload.is_fresh() {
            contestants.push(self.contestant(None, workload));
        }
        contestants
    }

    fn contestant<'b>(&'b self, peer: Option<&'b dyn Peer>, workload: &Workload) -> Contestant<'b> {
        let upstream = if workload.is_own_origin() { self.origin.own } else { self.origin.quick };
        let name = peer.map_or(ORIGIN, Peer::name);
        let folder = self.folder.join(workload.name).join(name.replace(' ', "-"));
        std::fs::create_dir_all(&folder).unwrap();
        let site = Site {
            kind: workload.kind,
            workers: self.options.workers,
            port: if peer.is_some() { free_port() } else { upstream },
            upstream,
            upstream_h2: self.origin.quick_h2,
            collector: self.origin.collector,
            folder,
            pem: &self.pem,
        };
        let ask = workload.ask(peer.map(|peer| peer.headers(&site)).unwrap_or_default(), self.seconds);
        let difference = peer.and_then(|peer| peer.difference(workload.kind));
        Contestant { peer, site, ask, process: None, row: Row { name, difference, failure: None, runs: Vec::new() } }
    }

    fn start(&self, contestant: &mut Contestant<'_>) {
        contestant.process = contestant.peer.map(|peer| peer.start(&contestant.site));
    }

    fn run_of<'b>(&'b self, contestant: &'b Contestant<'_>, seconds: u32, most: f64) -> Run<'b> {
        Run {
            ask: &contestant.ask,
            port: contestant.site.port,
            tls: contestant.site.has_tls(),
            seconds,
            most,
            folder: self.folder,
            process: contestant.process.as_ref(),
        }
    }

    /// Loads one peer once and keeps the outcome.
    fn round(&self, contestant: &mut Contestant<'_>, workload: &Workload, most: f64) {
        if contestant.row.failure.is_some() {
            return;
        }
        let cpu = || contestant.process.as_ref().map(Process::cpu);
        let before = cpu();
        let done = self.run_of(contestant, self.seconds, most).drive(workload.load);
        let used = cpu().zip(before).map(|(after, before)| after - before);
        let measured = measured(&done, used, contestant.process.as_ref().map(Process::peak));
        eprintln!(
            "  {:14} {:>12.1} a second, {:>9.1} us each, {} errors",
            contestant.row.name,
            measured.rate,
            measured.cpu.unwrap_or(0.0),
            measured.errors
        );
        contestant.row.runs.push(measured);
    }
}

fn measured(done: &Done, cpu: Option<f64>, memory: Option<f64>) -> Measured {
    let quantiles = |latency: &hdrhistogram::Histogram<u64>| {
        [0.5, 0.99, 0.999].map(|share| latency.value_at_quantile(share) as f64 / 1e3)
    };
    Measured {
        rate: done.amount / done.seconds,
        cpu: cpu.map(|seconds| seconds * 1e6 / done.amount),
        latency: done.latency.as_ref().map(quantiles),
        memory,
        held: done.held.map(|bytes| bytes / 1024.0),
        errors: done.errors,
    }
}

/// Waits until a peer answers as it must; notes in its row if it does not.
fn await_answer(contestant: &mut Contestant<'_>, workload: &Workload) {
    let (port, tls) = (contestant.site.port, contestant.site.has_tls());
    let began = Instant::now();
    let answer = loop {
        if let Some(answer) = load::answers(&contestant.ask, port, tls) {
            break answer;
        }
        if contestant.process.as_mut().is_some_and(Process::has_ended) {
            return contestant.row.fail("its program ended by itself");
        }
        if began.elapsed() > START {
            return contestant.row.fail("gave no right answer");
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if let Some(reason) = shirked(contestant, workload, &answer) {
        contestant.row.fail(reason);
    }
}

/// Part of the work that a peer does not do, told from its answer and from a request that it must refuse.
fn shirked(contestant: &Contestant<'_>, workload: &Workload, answer: &str) -> Option<&'static str> {
    let ask = &contestant.ask;
    let is_answered = |headers: &[String], body: String| {
        let other = Ask { headers: headers.to_vec(), body, ..*ask };
        load::answers(&other, contestant.site.port, contestant.site.has_tls()).is_some()
    };
    match workload.kind {
        Kind::Full if !answer.to_ascii_lowercase().contains("\r\nx-backend: ") => Some("sets no header"),
        Kind::Full if is_answered(&[], String::new()) => Some("answers without the key"),
        Kind::Chat if contestant.peer.is_some() && contestant.row.difference.is_none() => {
            let unserved = ask.body.replace("\"large\"", "\"small\"");
            is_answered(&ask.headers, unserved).then_some("answers for a model whose server is down")
        }
        _ => None,
    }
}
