//! A fleet in simulated time: servers with some slots and a speed of their own, each first come first served; prompts with
//! a heavy tail; gateways that each pick by their own observations. Every random number comes from a seed, so that each run
//! is the same. The module above brings the balancing room into scope.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spillway_config::schema::{OutlierDetection, PolicyName};

use super::*;

/// A simulated server.
#[derive(Clone, Copy)]
pub(crate) struct Server {
    /// Requests that run at a time.
    pub(crate) places: usize,
    /// Work on each of them in a millisecond.
    pub(crate) speed: f64,
}

/// A simulated fleet and its load.
#[derive(Clone)]
pub(crate) struct Fleet {
    pub(crate) servers: Vec<Server>,
    pub(crate) gateways: usize,
    pub(crate) requests: usize,
    /// Share of the work that the servers can do together.
    pub(crate) load: f64,
    /// Milliseconds between two readings of a server's queue, for the policy `queueDepth`.
    pub(crate) scraped_every: f64,
    pub(crate) seed: u64,
}

impl Fleet {
    /// Fleet in which a third of the servers is twice, and a tenth eight times as slow as the others.
    pub(crate) fn mixed(count: usize, requests: usize) -> Self {
        let speed = |n: usize| match n % 30 {
            0..3 => 0.125,
            3..13 => 0.5,
            _ => 1.0,
        };
        let servers = (0..count).map(|n| Server { places: 2, speed: speed(n) }).collect();
        Self { servers, gateways: 1, requests, load: 0.7, scraped_every: 1_000.0, seed: 1 }
    }
}

/// Way to pick servers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Picker {
    Policy(PolicyName),
    /// Knows the queue and speed of every server and the length of every request; picks the server with the earliest end.
    Oracle,
}

impl Picker {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Policy(name) => name.as_str(),
            Self::Oracle => "oracle",
        }
    }
}

pub(crate) const PICKERS: [Picker; 6] = [
    Picker::Policy(PolicyName::RoundRobin),
    Picker::Policy(PolicyName::LeastRequest),
    Picker::Policy(PolicyName::PeakEwma),
    Picker::Policy(PolicyName::QueueDepth),
    Picker::Policy(PolicyName::Hash),
    Picker::Oracle,
];

/// Result of a run.
pub(crate) struct Quality {
    /// Times from arrival to end, milliseconds, sorted.
    times: Vec<f64>,
    /// Requests by server.
    pub(crate) taken: Vec<u32>,
}

impl Quality {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a place")]
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        self.times[((self.times.len() - 1) as f64 * share) as usize]
    }
}

/// New endpoints of one gateway, without limits.
pub(crate) fn endpoints_of(servers: &[Server]) -> Vec<Arc<Endpoint>> {
    let siblings = Arc::new(Siblings::default());
    let endpoint = |n: usize| {
        let [_, b, c, d] = u32::try_from(n).unwrap().to_be_bytes();
        let socket = SocketAddr::from(([10, b, c, d], 8_000));
        let url: spillway_config::values::ServerUrl = format!("http://{socket}").parse().unwrap();
        let key = EndpointKey { backend: "simulated".into(), url: url.clone(), address: socket };
        Arc::new(Endpoint {
            backend: "x".into(),
            address: url.to_string(),
            socket,
            weight: 1,
            priority: 0,
            signals: Vec::new().into(),
            slow_start: 0,
            state: Arc::new(EndpointState::new(Arc::new(EndpointMetrics::default()), true, siblings.clone())),
            peer: peer(&key),
            url,
        })
    };
    (0..servers.len()).map(endpoint).collect()
}

pub(crate) fn balancer_for(endpoints: Vec<Arc<Endpoint>>, policy: PolicyName, seed: u64) -> Balancer {
    let set = EndpointSet::new(endpoints, policy, seed, 3_000);
    Balancer::new(Arc::new(ArcSwap::from_pointee(set)), Detector::new(&OutlierDetection::default()))
}

/// A time, ordered for the heap.
#[derive(PartialEq)]
struct Time(f64);
impl Eq for Time {}
impl PartialOrd for Time {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Time {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// A request that runs.
struct SimulatedRequest {
    gateway: usize,
    server: usize,
    began: f64,
    at_start: u32,
    _slot: Option<Slot>,
}

/// Time as the balancing room reads it: never zero.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "milliseconds of a simulation")]
pub(crate) fn clock(time: f64) -> u64 {
    time as u64 + 1
}

/// Runs a fleet. `each` sees every pick as (time in milliseconds, server) and may change the gateways.
pub(crate) fn run(fleet: &Fleet, picker: Picker, mut each: impl FnMut(f64, &[Balancer], Option<usize>)) -> Quality {
    let mut rng = ChaCha8Rng::seed_from_u64(fleet.seed);
    let policy = if let Picker::Policy(name) = picker { name } else { PolicyName::RoundRobin };
    let gateways: Vec<Balancer> =
        (0..fleet.gateways).map(|_| balancer_for(endpoints_of(&fleet.servers), policy, rng.random())).collect();
    let place_of = |socket: SocketAddr| match socket {
        SocketAddr::V4(v4) => (u32::from(*v4.ip()) & 0x00ff_ffff) as usize,
        SocketAddr::V6(_) => 0,
    };
    // Time at which each slot of a server is free: first come first served, so an end is known when a request is sent.
    let mut free: Vec<Vec<f64>> = fleet.servers.iter().map(|s| vec![0.0; s.places]).collect();
    let mut at_server = vec![0usize; fleet.servers.len()];
    let mut running: BinaryHeap<Reverse<(Time, usize)>> = BinaryHeap::new();
    let mut requests: Vec<Option<SimulatedRequest>> = Vec::new();
    let mut quality = Quality { times: Vec::new(), taken: vec![0; fleet.servers.len()] };

    // Pareto with shape 1.5, from 20 to 20,000: one request in thirty thousand is a thousand times the least.
    let work = |u: f64| (20.0 / (1.0 - u * (1.0 - 1e-3f64.powf(1.5))).powf(1.0 / 1.5)).min(20_000.0);
    let mean_work = 57.0;
    let power: f64 = fleet.servers.iter().map(|s| s.speed * s.places as f64).sum();
    let gap = mean_work / (power * fleet.load);
    let mut now = 0.0;
    let mut scrape_at = 0.0;
    for n in 0..fleet.requests {
        now += -gap * (1.0 - rng.random::<f64>()).ln();
        let work = work(rng.random::<f64>());
        let gateway = rng.random_range(0..fleet.gateways);
        let (seed, key) = (rng.random::<u64>(), rng.random_range(0..fleet.servers.len() as u64 * 20));
        while running.peek().is_some_and(|Reverse((end, _))| end.0 <= now) {
            let Reverse((end, id)) = running.pop().unwrap();
            let done = requests[id].take().unwrap();
            at_server[done.server] -= 1;
            let took = Duration::from_secs_f64((end.0 - done.began) / 1e3);
            let set = gateways[done.gateway].endpoints();
            let endpoint = &set.all()[done.server];
            endpoint.answered_in(Class::Head, took, done.at_start, clock(end.0));
            gateways[done.gateway].good_sign(endpoint, clock(done.began), clock(end.0));
            gateways[done.gateway].ended(endpoint, Verdict::Good, 0, clock(done.began), clock(end.0));
        }
        if policy == PolicyName::QueueDepth && now >= scrape_at {
            scrape_at = now + fleet.scraped_every;
            for gateway in &gateways {
                for (place, endpoint) in gateway.endpoints().all().iter().enumerate() {
                    let waiting = at_server[place].saturating_sub(fleet.servers[place].places);
                    let waiting = Some(u32::try_from(waiting).unwrap());
                    endpoint.reported(&LoadReport { waiting, kv_cache: None }, clock(now));
                }
            }
        }
        let (server, slot) = if picker == Picker::Oracle {
            let end = |server: usize| {
                let first = free[server].iter().copied().fold(f64::INFINITY, f64::min);
                first.max(now) + work / fleet.servers[server].speed
            };
            let best = (0..free.len()).min_by(|a, b| end(*a).total_cmp(&end(*b))).unwrap();
            (best, None)
        } else {
            let key = Some(hash_key(&key.to_le_bytes()));
            each(now, &gateways, None);
            let taken = gateways[gateway]
                .take(&PickInputs { now: clock(now), random: seed, key, tried: &[], only: None })
                .unwrap();
            (place_of(taken.endpoint.socket), Some(taken.slot))
        };
        let first = free[server].iter_mut().min_by(|a, b| a.total_cmp(b)).unwrap();
        let end = first.max(now) + work / fleet.servers[server].speed;
        *first = end;
        at_server[server] += 1;
        quality.taken[server] += 1;
        quality.times.push(end - now);
        each(now, &gateways, Some(server));
        let at_start = slot.as_ref().map_or(0, Slot::in_flight_at_start);
        requests.push(Some(SimulatedRequest { gateway, server, began: now, at_start, _slot: slot }));
        running.push(Reverse((Time(end), n)));
    }
    quality.times.sort_by(f64::total_cmp);
    quality
}
