//! Simulated rollouts with known truth: what callers send, what versions answer, what the judge says. Used by the tests
//! in their quick form and by `examples/rollouts.rs` in full.
#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing, missing_docs, unreachable_pub)]

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, Pareto, StandardNormal};
use spillway_statistics::distance::edges_of;
use spillway_statistics::sketch::Sketch;
use spillway_statistics::{Kind, Metric, Plan, Rollout, Version};

/// Callers that send requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Callers {
    /// Every request from a caller of its own.
    Independent,
    /// So many callers, the loudest sending many times what the quietest does, each with habits of its own.
    Repeating(usize),
}

/// Values of one metric at one version.
#[derive(Clone, Copy, Debug)]
pub enum Values {
    /// 1 with this probability, else 0.
    Bernoulli(f64),
    /// Median and standard deviation of the logarithm.
    LogNormal(f64, f64),
    /// Exponential with this mean.
    Exponential(f64),
    /// Normal with mean and deviation, not below 0.
    Normal(f64, f64),
    /// Pareto of this scale and shape: infinite variance below shape 2.
    Pareto(f64, f64),
}

impl Values {
    /// One value, for a caller whose habit is `habit` (standard normal, 0 for independent requests).
    fn draw(self, rng: &mut ChaCha8Rng, habit: f64) -> f64 {
        let normal = |rng: &mut ChaCha8Rng| -> f64 { StandardNormal.sample(rng) };
        match self {
            // Callers differ in their log odds; the mean over callers is about the share.
            Self::Bernoulli(share) => {
                let odds =
                    share / (1.0 - share) * (1.2 * habit - 0.5 * 1.2 * 1.2 * f64::from(u8::from(habit != 0.0))).exp();
                f64::from(u8::from(rng.random::<f64>() < odds / (1.0 + odds)))
            }
            Self::LogNormal(median, deviation) => {
                median * (deviation * (0.5 * habit + mixed(habit) * normal(rng))).exp()
            }
            Self::Exponential(mean) => {
                let one: f64 = Exp1.sample(rng);
                mean * one * (0.5 * habit).exp()
            }
            Self::Normal(mean, deviation) => (mean + deviation * (0.5 * habit + mixed(habit) * normal(rng))).max(0.0),
            Self::Pareto(scale, shape) => Pareto::new(scale, shape).unwrap().sample(rng) * (0.3 * habit).exp(),
        }
    }
}

/// Weight of a request's own part beside half a habit, so that the variance is 1.
fn mixed(habit: f64) -> f64 {
    if habit == 0.0 { 1.0 } else { 0.75_f64.sqrt() }
}

/// One metric with the truth at both versions.
#[derive(Clone, Debug)]
pub struct Truth {
    pub metric: Metric,
    pub stable: Values,
    pub candidate: Values,
    /// Share of requests that have a value at all, as labels have not.
    pub present: f64,
}

pub fn truth(name: &str, kind: Kind, threshold: &str, stable: Values, candidate: Values) -> Truth {
    let metric = Metric { name: name.to_owned(), kind, threshold: threshold.parse().unwrap() };
    Truth { metric, stable, candidate, present: 1.0 }
}

/// A world of rollouts.
#[derive(Clone, Debug)]
pub struct World {
    pub truths: Vec<Truth>,
    pub callers: Callers,
    /// Candidate's share of requests.
    pub split: f64,
    pub false_alarm: f64,
}

/// End of a rollout: the candidate's requests at which it was aborted, if it was.
pub type End = Option<u64>;

impl World {
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::new(self.truths.iter().map(|truth| truth.metric.clone()).collect());
        plan.false_alarm = self.false_alarm;
        plan
    }

    /// Rollout number `seed`, looked at after each request, until aborted or the candidate has had `most` requests.
    pub fn rollout(&self, seed: u64, most: u64) -> End {
        let mut judge = Rollout::new(self.plan(), self.split).unwrap();
        let mut requests = self.requests(seed);
        let mut served = 0;
        while served < most {
            let request = requests.next(self.split);
            served += u64::from(request.version == Version::Candidate);
            for (place, value) in request.values {
                judge.observe(place, request.version, request.unit, value);
            }
            // Stable's requests change little: a look after each of the candidate's finds what there is to find.
            if request.version == Version::Candidate && judge.is_worse() {
                return Some(served);
            }
        }
        None
    }

    /// Requests of rollout number `seed`.
    pub fn requests(&self, seed: u64) -> Requests<'_> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let callers = self.callers(&mut rng);
        Requests { world: self, rng, callers, asked: 0 }
    }

    fn callers(&self, rng: &mut ChaCha8Rng) -> Option<Vec<Caller>> {
        let Callers::Repeating(number) = self.callers else { return None };
        let mut until = 0.0;
        let mut callers: Vec<Caller> = (0..number)
            .map(|_| {
                let (loudness, habit): (f64, f64) = (StandardNormal.sample(rng), StandardNormal.sample(rng));
                until += loudness.exp();
                let place = rng.random::<f64>();
                Caller { unit: rng.next_u64(), habit, until, place }
            })
            .collect();
        // At least one caller at the candidate, or the rollout would wait for ever.
        callers[0].place = 0.0;
        callers.iter_mut().for_each(|caller| caller.until /= until);
        Some(callers)
    }

    /// Ends of `rollouts` rollouts on the machine's processors.
    pub fn rollouts(&self, rollouts: u64, most: u64) -> Vec<End> {
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
        std::thread::scope(|scope| {
            let parts: Vec<_> = (0..threads)
                .map(|thread| {
                    scope.spawn(move || {
                        let seeds = (0..rollouts).filter(|seed| seed % threads == thread);
                        seeds.map(|seed| self.rollout(seed, most)).collect::<Vec<End>>()
                    })
                })
                .collect();
            parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
        })
    }
}

struct Caller {
    unit: u64,
    habit: f64,
    until: f64,
    /// Least share of the candidate at which this caller is at it.
    place: f64,
}

/// Requests that come one after another.
pub struct Requests<'w> {
    world: &'w World,
    rng: ChaCha8Rng,
    callers: Option<Vec<Caller>>,
    asked: u64,
}

/// Request, its version and what it was seen to do, each value with the place of its metric.
pub struct Request {
    pub unit: u64,
    pub version: Version,
    pub values: Vec<(usize, f64)>,
}

impl Requests<'_> {
    /// Next request, while the candidate gets `share` of them. Callers that repeat never leave the candidate while it grows.
    pub fn next(&mut self, share: f64) -> Request {
        self.asked += 1;
        let rng = &mut self.rng;
        let at = rng.random::<f64>();
        let (unit, habit, place) = match &self.callers {
            None => (self.asked, 0.0, at),
            Some(callers) => {
                let place = callers.partition_point(|caller| caller.until < at).min(callers.len() - 1);
                (callers[place].unit, callers[place].habit, callers[place].place)
            }
        };
        let version = if place < share { Version::Candidate } else { Version::Stable };
        let mut values = Vec::with_capacity(self.world.truths.len());
        for (place, truth) in self.world.truths.iter().enumerate() {
            if truth.present < 1.0 && rng.random::<f64>() >= truth.present {
                continue;
            }
            let drawn = if version == Version::Stable { truth.stable } else { truth.candidate };
            values.push((place, drawn.draw(rng, habit)));
        }
        Request { unit, version, values }
    }
}

/// Metrics of `abortWhen` with equal versions. `edge` puts each threshold where equal versions lie, so that the null holds with
/// nothing to spare; else the thresholds are those of the documentation.
pub fn equal(edge: bool, callers: Callers, split: f64, heavy: bool) -> World {
    let threshold = |usual: &'static str, edge_of: &'static str| if edge { edge_of } else { usual };
    let latency = if heavy { Values::Pareto(0.5, 1.6) } else { Values::LogNormal(0.8, 0.6) };
    let cost = if heavy { Values::Pareto(0.01, 1.6) } else { Values::LogNormal(0.01, 0.8) };
    // 99.5th percentiles of these distributions.
    let cap = if heavy { 0.01 * 0.005_f64.powf(-1.0 / 1.6) } else { 0.01 * (2.576_f64 * 0.8).exp() };
    let same = |name: &str, kind, threshold, values| truth(name, kind, threshold, values, values);
    let mut truths = vec![
        same("errorRate", Kind::Share, threshold("+0.02", "+0"), Values::Bernoulli(0.01)),
        same("firstTokenP95", Kind::Quantile { level: 0.95 }, threshold("1.3x", "+0"), Values::LogNormal(0.2, 0.5)),
        same("latencyP95", Kind::Quantile { level: 0.95 }, threshold("1.3x", "+0"), latency),
        same("tokensPerSecond", Kind::Mean { cap: None }, threshold("0.8x", "-0"), Values::Normal(40.0, 12.0)),
        same("costPerRequest", Kind::Mean { cap: Some(cap) }, threshold("1.5x", "+0"), cost),
        same("feedback", Kind::Mean { cap: None }, threshold("-0.05", "-0"), Values::Bernoulli(0.8)),
        same("refusals", Kind::Share, threshold("+0.02", "+0"), Values::Bernoulli(0.02)),
    ];
    truths[5].present = 0.2;
    World { truths, callers, split, false_alarm: 0.01 }
}

/// Lengths of answers in tokens, each drawn so many times longer than stable's.
fn lengths(longer: f64) -> Values {
    Values::LogNormal(250.0 * longer, 0.8)
}

/// Distance of stable's lengths with edges from two hundred of its answers before the rollout.
fn output_drift() -> Kind {
    let (mut before, mut rng) = (Sketch::default(), ChaCha8Rng::seed_from_u64(7));
    (0..200).for_each(|_| before.add(lengths(1.0).draw(&mut rng, 0.0)));
    Kind::Distance { edges: edges_of(&before).unwrap() }
}

/// Versions whose lengths differ by a factor of 1.5, which is a distance of 0.2: the limit.
pub fn drift_at_its_limit(callers: Callers, split: f64) -> World {
    let truths = vec![truth("outputDrift", output_drift(), "0.2", lengths(1.0), lengths(1.4998))];
    World { truths, callers, split, false_alarm: 0.01 }
}

/// Fault of a candidate, with the requests of the candidate that a fixed-sample test would need.
pub struct Fault {
    pub says: &'static str,
    pub world: World,
    pub fixed: f64,
}

/// `z` of 80 % power.
const POWER: f64 = 0.8416;

/// Faults that must be stopped, each judged by one metric at the level that it has among seven.
pub fn faults(split: f64) -> Vec<Fault> {
    let level = 0.01 / 7.0;
    let z = 2.9830 + POWER;
    let odds = split / (1.0 - split);
    let one = |says, truth: Truth, excess: f64, candidate: f64, stable: f64| Fault {
        says,
        world: World { truths: vec![truth], callers: Callers::Independent, split, false_alarm: level },
        fixed: z * z * (candidate + odds * stable) / (excess * excess),
    };
    let bernoulli = |share: f64| share * (1.0 - share);
    let share = |says, threshold: &str, stable: f64, candidate: f64, margin: f64| {
        let truth = truth(says, Kind::Share, threshold, Values::Bernoulli(stable), Values::Bernoulli(candidate));
        let mut fault = one(says, truth, candidate - stable - margin, bernoulli(candidate), bernoulli(stable));
        // Score test: the variance under the nearest null decides, that at the truth only the power.
        let null = (stable + odds * (candidate - margin)) / (1.0 + odds);
        let under_null = bernoulli(null + margin) + odds * bernoulli(null);
        let at_truth = bernoulli(candidate) + odds * bernoulli(stable);
        fault.fixed =
            ((z - POWER) * under_null.sqrt() + POWER * at_truth.sqrt()).powi(2) / (candidate - stable - margin).powi(2);
        fault
    };
    // Textbook test of a difference of logarithms of quantiles with known densities: variance q(1-q)/(n f^2).
    let quantile = |says, threshold: &str, deviation: f64, slower: f64, margin: f64| {
        let stable = Values::LogNormal(1.0, deviation);
        let truth =
            truth(says, Kind::Quantile { level: 0.95 }, threshold, stable, Values::LogNormal(slower, deviation));
        let density = (-0.5 * 1.6449_f64.powi(2)).exp() / (2.0 * std::f64::consts::PI).sqrt() / deviation;
        let variance = bernoulli(0.05) / (density * density);
        one(says, truth, (slower / margin).ln(), variance, variance)
    };
    let mean = |says, threshold: &str, stable: (Values, f64, f64), candidate: (Values, f64, f64), ratio: f64, cap| {
        let truth = truth(says, Kind::Mean { cap }, threshold, stable.0, candidate.0);
        one(says, truth, candidate.1 - ratio * stable.1, candidate.2.powi(2), (ratio * stable.2).powi(2))
    };
    let exponential = |value: f64| (Values::Exponential(value), value, value);
    let normal = |value: f64, deviation: f64| (Values::Normal(value, deviation), value, deviation);
    let labels = |share: f64| (Values::Bernoulli(share), share, bernoulli(share).sqrt());
    let mut faults = vec![
        share("10 % errors instead of 0.5 %, `+0.02`", "+0.02", 0.005, 0.10, 0.02),
        share("1 % errors instead of 0.2 %, `+0.002`", "+0.002", 0.002, 0.01, 0.002),
        quantile("latency p95 x1.5, `1.3x`", "1.3x", 0.6, 1.5, 1.3),
        quantile("first token p95 x2, `1.3x`", "1.3x", 0.5, 2.0, 1.3),
        mean("answers of 150 tokens instead of 250, `0.8x`", "0.8x", exponential(250.0), exponential(150.0), 0.8, None),
        mean("28 tokens per second instead of 40, `0.8x`", "0.8x", normal(40.0, 12.0), normal(28.0, 12.0), 0.8, None),
        mean("labels 0.65 instead of 0.8, `-0.05`", "-0.05", labels(0.8), labels(0.65), 1.0, None),
        share("5 % refusals instead of 1 %, `+0.01`", "+0.01", 0.01, 0.05, 0.01),
        // Shifted by 1.05 deviations: the shares above the middle are 0.3 and 0.7.
        share("answers 2.3 times as long (a distance of 0.4), `0.2`", "+0.2", 0.3, 0.7, 0.2),
    ];
    faults[8].world.truths = vec![truth("outputDrift", output_drift(), "0.2", lengths(1.0), lengths(2.314))];
    // A difference has a margin where a ratio has a factor.
    let (ours, theirs) = (bernoulli(0.65), bernoulli(0.8));
    faults[6].fixed = z * z * (ours + odds * theirs) / (0.10 * 0.10);
    faults
}

/// Sorted requests at the end of each rollout; those never stopped count as infinite.
pub fn requests(ends: &[End]) -> Vec<f64> {
    let mut requests: Vec<f64> = ends.iter().map(|end| end.map_or(f64::INFINITY, |at| at as f64)).collect();
    requests.sort_by(f64::total_cmp);
    requests
}

/// Value at a share of a sorted list.
pub fn at_share(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1]
}
