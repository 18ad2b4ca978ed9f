//! Rules are judged: all rules that a request meets at one place together, so that either each takes what the request
//! needs, or none takes anything. Its inputs are compiled rules and what a request wants of them.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use smallvec::SmallVec;
use spillway_config::schema::{OnExceeded, Period};
use spillway_filter::{ErrorKind, Refusal};

use super::budgets::{Amount, window};
use super::estimate::Estimate;
use super::keys::{self, Subject};
use super::ledger::{Ledger, Place, Shown};
use super::levels::Verdict;
use super::rules::{Kind, Rule, Unit};
use crate::clock::unix_now;

/// When a request that found too many others running may try again; nobody knows when one of those will end.
const CONCURRENCY_WAIT: Duration = Duration::from_secs(1);

/// What a request wants of a rule.
pub struct Claim<'r> {
    pub(super) rule: &'r Arc<Rule>,
    pub(super) key: u128,
    pub(super) amount: u64,
    pub(super) nanos: u64,
}

/// What became of a claim.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    /// It may take; where the caller stands then.
    Taken { remaining: u64, reset: Duration },
    /// It may not; when it would, and where the caller stands.
    Refused { wait: Duration, remaining: u64, reset: Duration },
    /// It never may.
    TooMuch,
}

impl Rule {
    /// What a request wants of it; `None` for a rule of tokens where the request uses none.
    pub fn claim<'r>(self: &'r Arc<Self>, x: Subject<'_, '_>, expected: Option<(Estimate, u64)>) -> Option<Claim<'r>> {
        let (amount, nanos) = match &self.kind {
            Kind::Rate { unit: Unit::Requests, .. } | Kind::Concurrency { .. } => (1, 0),
            // Who says that it will use nothing is judged all the same, and settled by what it used.
            Kind::Rate { unit: Unit::Tokens, .. } => (expected?.0.total().max(1), 0),
            Kind::Budget { .. } => {
                let (estimate, nanos) = expected?;
                (estimate.total(), nanos)
            }
        };
        let key = match &self.kind {
            Kind::Budget { .. } => 0,
            _ => keys::of(&self.by, x),
        };
        Some(Claim { rule: self, key, amount, nanos })
    }
}

impl Claim<'_> {
    /// Takes from what this process knows. `share` is how many gateways share the limit while their store is away.
    fn take_here(&self, share: NonZeroU32) -> Answer {
        match &self.rule.kind {
            Kind::Rate { levels, limit, .. } => {
                let burst = u64::from(limit.burst.get());
                if self.amount > burst {
                    return Answer::TooMuch;
                }
                match levels.take(self.key, share_of(self.amount, share, limit.burst)) {
                    Verdict::Taken { remaining, reset } => Answer::Taken { remaining: remaining.into(), reset },
                    Verdict::Refused { wait, reset } => {
                        let used = reset.as_nanos().div_ceil(limit.every.as_nanos().max(1));
                        let remaining = burst.saturating_sub(u64::try_from(used).unwrap_or(u64::MAX));
                        Answer::Refused { wait, remaining, reset }
                    }
                    Verdict::TooMuch => Answer::TooMuch,
                }
            }
            Kind::Concurrency { running, most } => match running.enter(self.key, most.get().div_ceil(share.get())) {
                Some(_) => Answer::Taken { remaining: 0, reset: Duration::ZERO },
                None => Answer::Refused { wait: CONCURRENCY_WAIT, remaining: 0, reset: Duration::ZERO },
            },
            Kind::Budget { account, period, tokens, nanos, .. } => {
                let now = unix_now();
                let amount = Amount { tokens: self.amount, nanos: self.nanos };
                if account.take(amount, (*tokens, *nanos), now) {
                    Answer::Taken { remaining: 0, reset: Duration::ZERO }
                } else {
                    Answer::Refused { wait: until_next(*period, now), remaining: 0, reset: Duration::ZERO }
                }
            }
        }
    }

    /// A budget that is spent and lets requests go on counts what they use: what it would have been is what a trial is
    /// for, and what the lesser answers cost is spent as well.
    fn is_counted_beyond(&self) -> bool {
        matches!(self.rule.kind, Kind::Budget { .. }) && self.rule.on_exceeded != OnExceeded::Reject
    }

    /// Notes what a shared store has given, so that this process knows something when that is away.
    fn note_here(&self) {
        match &self.rule.kind {
            Kind::Rate { levels, .. } => levels.settle(self.key, i64::try_from(self.amount).unwrap_or(i64::MAX)),
            Kind::Concurrency { running, .. } => {
                running.enter(self.key, u32::MAX);
            }
            Kind::Budget { account, .. } => {
                let amount = Amount { tokens: self.amount, nanos: self.nanos };
                account.take(amount, (None, None), unix_now());
            }
        }
    }
}

/// What a request takes of a limit that so many gateways share while none knows what the others take: one at least, the
/// burst at most.
pub(super) fn share_of(amount: u64, share: NonZeroU32, burst: NonZeroU32) -> NonZeroU32 {
    let amount = u32::try_from(amount.saturating_mul(share.get().into())).unwrap_or(u32::MAX);
    NonZeroU32::new(amount).unwrap_or(NonZeroU32::MIN).min(burst)
}

pub(super) fn until_next(period: Period, now: u64) -> Duration {
    Duration::from_secs(window(period, now).1.saturating_sub(now).max(1))
}

/// Judges all claims together. A refused request takes nothing from any rule, and gives back what it had taken before. It
/// waits for a shared store, and for what was spent of a budget that has to be read again, each for a bounded time.
pub async fn reserve(claims: &[Claim<'_>], ledger: &mut Ledger) -> Result<(), Box<Refusal>> {
    if claims.is_empty() {
        return Ok(());
    }
    for claim in claims {
        if let Kind::Budget { account, .. } = &claim.rule.kind {
            account.known().await;
        }
    }
    let shared = claims.iter().find_map(|claim| claim.rule.shared.as_ref());
    if let Some(shared) = shared
        && let Some((answers, lease)) = shared.reserve(claims).await
    {
        let over = claims.iter().zip(&answers).any(|(claim, answer)| is_over(claim, *answer));
        if !over {
            for (claim, answer) in claims.iter().zip(&answers) {
                if matches!(answer, Answer::Taken { .. }) || claim.is_counted_beyond() {
                    claim.note_here();
                    ledger.add(claim, Place::Shared(lease));
                }
            }
        }
        return conclude(claims, &answers, ledger);
    }
    let share = shared.map_or(NonZeroU32::MIN, |shared| shared.gateways());
    let answers: SmallVec<[Answer; 8]> = claims.iter().map(|claim| claim.take_here(share)).collect();
    for (claim, answer) in claims.iter().zip(&answers) {
        if matches!(answer, Answer::Taken { .. }) {
            ledger.add(claim, Place::Here { share });
        } else if claim.is_counted_beyond() {
            claim.note_here();
            ledger.add(claim, Place::Here { share });
        }
    }
    conclude(claims, &answers, ledger)
}

/// A rule of which nothing is left for a request, whatever its body says.
pub struct Spent<'r> {
    rule: &'r Arc<Rule>,
    key: u128,
    wait: Duration,
}

impl Spent<'_> {
    /// The refusal, which is counted, and where the caller stands with the rule.
    pub fn refuse(self) -> (Box<Refusal>, Option<Shown>) {
        let Self { rule, key, wait } = self;
        rule.metrics.refused.inc();
        let shown = match &rule.kind {
            Kind::Rate { unit, levels, limit } => Some(Shown {
                is_tokens: *unit == Unit::Tokens,
                limit: limit.burst.get().into(),
                remaining: 0,
                reset: levels.reset(key),
                policy: rule.policy.clone(),
            }),
            _ => None,
        };
        (Box::new(refuse(rule, wait)), shown)
    }
}

/// The rule with the longest wait of those that would refuse a request of which only the head is known: too many requests,
/// too many at a time, and where it `calls_model`, tokens or a budget of which nothing is left. It takes nothing, and asks
/// no shared store: what this gateway knows of one is never more than what is used.
pub async fn spent<'r>(
    rules: impl Iterator<Item = &'r Arc<Rule>>,
    subject: Subject<'_, '_>,
    calls_model: bool,
) -> Option<Spent<'r>> {
    let mut longest: Option<Spent<'r>> = None;
    for rule in rules {
        let is_judged =
            rule.on_exceeded == OnExceeded::Reject && rule.needs_no_body() && (calls_model || !rule.counts_tokens());
        if !is_judged {
            continue;
        }
        let key = keys::of(&rule.by, subject);
        let wait = match &rule.kind {
            Kind::Rate { levels, .. } => levels.wait(key),
            Kind::Concurrency { running, most } => (running.count(key) >= most.get()).then_some(CONCURRENCY_WAIT),
            Kind::Budget { account, period, tokens, nanos, .. } => {
                account.known().await;
                let now = unix_now();
                let spent = account.spent(now);
                let is_spent = |spent: u64, most: &Option<u64>| most.is_some_and(|most| spent >= most);
                (is_spent(spent.tokens, tokens) || is_spent(spent.nanos, nanos)).then(|| until_next(*period, now))
            }
        };
        if let Some(wait) = wait
            && longest.as_ref().is_none_or(|longest| longest.wait < wait)
        {
            longest = Some(Spent { rule, key, wait });
        }
    }
    longest
}

fn is_over(claim: &Claim<'_>, answer: Answer) -> bool {
    claim.rule.on_exceeded == OnExceeded::Reject && !matches!(answer, Answer::Taken { .. })
}

/// Shows where the caller stands; refuses with the longest wait of the rules that refuse.
fn conclude(claims: &[Claim<'_>], answers: &[Answer], ledger: &mut Ledger) -> Result<(), Box<Refusal>> {
    let mut refusal: Option<Refusal> = None;
    for (claim, answer) in claims.iter().zip(answers) {
        let rule = claim.rule;
        let shown = |remaining, reset| match &rule.kind {
            Kind::Rate { unit, limit, .. } => Some(Shown {
                is_tokens: *unit == Unit::Tokens,
                limit: limit.burst.get().into(),
                remaining,
                reset,
                policy: rule.policy.clone(),
            }),
            _ => None,
        };
        match answer {
            Answer::Taken { remaining, reset } => shown(*remaining, *reset).map(|s| ledger.show(s)).unwrap_or_default(),
            Answer::Refused { .. } | Answer::TooMuch if rule.on_exceeded == OnExceeded::Shadow => {
                rule.metrics.shadow.inc();
            }
            // The request goes on, to the lesser answer; what it took from other rules stays taken.
            Answer::Refused { wait, remaining, reset } if rule.on_exceeded == OnExceeded::Spill => {
                rule.metrics.refused.inc();
                if let Some(shown) = shown(*remaining, *reset) {
                    ledger.show(shown);
                }
                ledger.exceeded(refuse(rule, *wait));
            }
            Answer::TooMuch if rule.on_exceeded == OnExceeded::Spill => {
                rule.metrics.refused.inc();
                ledger.exceeded(too_much(claim));
            }
            Answer::Refused { wait, remaining, reset } => {
                rule.metrics.refused.inc();
                if let Some(shown) = shown(*remaining, *reset) {
                    ledger.show(shown);
                }
                let longer = refusal.as_ref().is_none_or(|r| r.retry_after.is_some_and(|other| other < *wait));
                if longer {
                    refusal = Some(refuse(rule, *wait));
                }
            }
            Answer::TooMuch => {
                rule.metrics.refused.inc();
                refusal = Some(too_much(claim));
            }
        }
    }
    match refusal {
        Some(refusal) => {
            ledger.give_back();
            Err(Box::new(refusal))
        }
        None => Ok(()),
    }
}

fn refuse(rule: &Rule, wait: Duration) -> Refusal {
    let code = match &rule.kind {
        Kind::Budget { .. } => "insufficient_quota",
        _ => "rate_limit_exceeded",
    };
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::RateLimited, code, rule.message.clone()).retry_after(wait)
}

fn too_much(claim: &Claim<'_>) -> Refusal {
    let most = match &claim.rule.kind {
        Kind::Rate { limit, .. } => limit.burst.get(),
        _ => 0,
    };
    Refusal::invalid(
        "tokens_exceed_limit",
        format!(
            "this request may use {} tokens, and at most {most} can ever be used at once here: shorten the prompt or \
             lower `max_tokens`",
            claim.amount
        ),
    )
}
