//! Judges all rules that a step of the request meets together, so that either each rule reserves what the request
//! needs, or none reserves anything. Inputs are the reservations that the request asks for.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use smallvec::SmallVec;
use spillway_config::schema::OnExceeded;
use spillway_filter::{ErrorKind, Refusal};

use super::budgets::{Amount, until_next_window};
use super::keys::{self, Subject};
use super::ledger::{Ledger, RateStatus};
use super::levels::LevelOutcome;
use super::reservation::{ReservationOutcome, ReservationRequest, ReservedIn, amount_here};
use super::rules::{Rule, RuleKind};
use crate::clock::unix_now;

/// `Retry-After` of a request that found too many others running. Their end cannot be foreseen; one second is the
/// shortest time that the header can express.
const CONCURRENCY_WAIT: Duration = Duration::from_secs(1);

impl ReservationRequest<'_> {
    /// Reserves in this process. `gateways` share the limit while their store is away.
    fn reserve_here(&self, gateways: NonZeroU32) -> ReservationOutcome {
        match &self.rule.kind {
            RuleKind::Rate { levels, limit, .. } => {
                let burst = u64::from(limit.burst.get());
                if self.amount > burst {
                    return ReservationOutcome::TooMuch;
                }
                match levels.take(self.key, amount_here(self.amount, gateways, limit.burst)) {
                    LevelOutcome::Granted { remaining, reset } => {
                        ReservationOutcome::Granted { remaining: remaining.into(), reset }
                    }
                    LevelOutcome::Refused { wait, reset } => {
                        let used = reset.as_nanos().div_ceil(limit.every.as_nanos().max(1));
                        let remaining = burst.saturating_sub(u64::try_from(used).unwrap_or(u64::MAX));
                        ReservationOutcome::Refused { wait, remaining, reset }
                    }
                    LevelOutcome::TooMuch => ReservationOutcome::TooMuch,
                }
            }
            RuleKind::Concurrency { running, most } => {
                match running.enter(self.key, most.get().div_ceil(gateways.get())) {
                    Some(_) => ReservationOutcome::Granted { remaining: 0, reset: Duration::ZERO },
                    None => ReservationOutcome::Refused { wait: CONCURRENCY_WAIT, remaining: 0, reset: Duration::ZERO },
                }
            }
            RuleKind::Budget { account, period, tokens, nanos, .. } => {
                let now = unix_now();
                let amount = Amount { tokens: self.amount, nanos: self.nanos };
                if account.take(amount, (*tokens, *nanos), now) {
                    ReservationOutcome::Granted { remaining: 0, reset: Duration::ZERO }
                } else {
                    let wait = until_next_window(*period, now);
                    ReservationOutcome::Refused { wait, remaining: 0, reset: Duration::ZERO }
                }
            }
        }
    }

    /// True for a budget that counts use beyond its end: a shadow rule is there to measure that, and a spilled answer
    /// costs money as well.
    fn is_counted_beyond(&self) -> bool {
        matches!(self.rule.kind, RuleKind::Budget { .. }) && self.rule.on_exceeded != OnExceeded::Reject
    }

    /// Counts here what the shared store has granted, so that this process can judge while the store is away.
    fn count_here(&self) {
        match &self.rule.kind {
            RuleKind::Rate { levels, .. } => levels.settle(self.key, i64::try_from(self.amount).unwrap_or(i64::MAX)),
            RuleKind::Concurrency { running, .. } => {
                running.enter(self.key, u32::MAX);
            }
            RuleKind::Budget { account, .. } => {
                let amount = Amount { tokens: self.amount, nanos: self.nanos };
                account.take(amount, (None, None), unix_now());
            }
        }
    }
}

/// Reserves everything that is `wanted`, or refuses. A refused request uses nothing of any rule, and its earlier
/// reservations are released. Waits for a shared store and for the file of budgets, each for a bounded time.
pub async fn reserve(wanted: &[ReservationRequest<'_>], ledger: &mut Ledger) -> Result<(), Box<Refusal>> {
    if wanted.is_empty() {
        return Ok(());
    }
    for request in wanted {
        if let RuleKind::Budget { account, .. } = &request.rule.kind {
            account.known().await;
        }
    }
    let store = wanted.iter().find_map(|request| request.rule.store.as_ref());
    if let Some(store) = store
        && let Some((outcomes, lease)) = store.reserve(wanted).await
    {
        let over = wanted.iter().zip(&outcomes).any(|(request, outcome)| is_over(request, *outcome));
        if !over {
            for (request, outcome) in wanted.iter().zip(&outcomes) {
                if matches!(outcome, ReservationOutcome::Granted { .. }) || request.is_counted_beyond() {
                    request.count_here();
                    ledger.add(request, ReservedIn::Store { lease });
                }
            }
        }
        return conclude(wanted, &outcomes, ledger);
    }
    let gateways = store.map_or(NonZeroU32::MIN, |store| store.gateways());
    let outcomes: SmallVec<[ReservationOutcome; 8]> =
        wanted.iter().map(|request| request.reserve_here(gateways)).collect();
    for (request, outcome) in wanted.iter().zip(&outcomes) {
        if matches!(outcome, ReservationOutcome::Granted { .. }) {
            ledger.add(request, ReservedIn::Process { gateways });
        } else if request.is_counted_beyond() {
            request.count_here();
            ledger.add(request, ReservedIn::Process { gateways });
        }
    }
    conclude(wanted, &outcomes, ledger)
}

/// Rule that would refuse a request whatever its body says.
pub struct Exhausted<'r> {
    rule: &'r Arc<Rule>,
    key: u128,
    wait: Duration,
}

impl Exhausted<'_> {
    /// Counts and returns the refusal, with the caller's level under the rule.
    pub fn refuse(self) -> (Box<Refusal>, Option<RateStatus>) {
        let Self { rule, key, wait } = self;
        rule.metrics.refused.inc();
        let status = match &rule.kind {
            RuleKind::Rate { levels, .. } => RateStatus::of(rule, 0, levels.reset(key)),
            _ => None,
        };
        (Box::new(refuse(rule, wait)), status)
    }
}

/// Finds the rule with the longest wait among those that would refuse a request of which only the head is known. Rates
/// of requests and concurrency are judged, and for a request that `calls_model`, tokens and budgets of which nothing is
/// left. Nothing is reserved, and no shared store is asked: this gateway counts at most what is used there.
pub async fn exhausted<'r>(
    rules: impl Iterator<Item = &'r Arc<Rule>>,
    subject: Subject<'_, '_>,
    calls_model: bool,
) -> Option<Exhausted<'r>> {
    let mut longest: Option<Exhausted<'r>> = None;
    for rule in rules {
        let is_judged =
            rule.on_exceeded == OnExceeded::Reject && rule.needs_no_body() && (calls_model || !rule.counts_tokens());
        if !is_judged {
            continue;
        }
        let key = keys::of(&rule.by, subject);
        let wait = match &rule.kind {
            RuleKind::Rate { levels, .. } => levels.wait(key),
            RuleKind::Concurrency { running, most } => (running.count(key) >= most.get()).then_some(CONCURRENCY_WAIT),
            RuleKind::Budget { account, period, tokens, nanos, .. } => {
                account.known().await;
                let now = unix_now();
                let spent = account.spent(now);
                let is_spent = |spent: u64, most: &Option<u64>| most.is_some_and(|most| spent >= most);
                (is_spent(spent.tokens, tokens) || is_spent(spent.nanos, nanos))
                    .then(|| until_next_window(*period, now))
            }
        };
        if let Some(wait) = wait
            && longest.as_ref().is_none_or(|longest| longest.wait < wait)
        {
            longest = Some(Exhausted { rule, key, wait });
        }
    }
    longest
}

fn is_over(request: &ReservationRequest<'_>, outcome: ReservationOutcome) -> bool {
    request.rule.on_exceeded == OnExceeded::Reject && !matches!(outcome, ReservationOutcome::Granted { .. })
}

/// Notes the caller's levels; refuses with the longest wait among the rules that refuse.
fn conclude(
    wanted: &[ReservationRequest<'_>],
    outcomes: &[ReservationOutcome],
    ledger: &mut Ledger,
) -> Result<(), Box<Refusal>> {
    let mut refusal: Option<Refusal> = None;
    for (request, outcome) in wanted.iter().zip(outcomes) {
        let rule = request.rule;
        let mut show = |remaining, reset| {
            if let Some(status) = RateStatus::of(rule, remaining, reset) {
                ledger.show(status);
            }
        };
        match outcome {
            ReservationOutcome::Granted { remaining, reset } => show(*remaining, *reset),
            ReservationOutcome::Refused { .. } | ReservationOutcome::TooMuch
                if rule.on_exceeded == OnExceeded::Shadow =>
            {
                rule.metrics.shadow.inc();
            }
            // The request goes on to the spill; its reservations of other rules stay.
            ReservationOutcome::Refused { wait, remaining, reset } if rule.on_exceeded == OnExceeded::Spill => {
                rule.metrics.refused.inc();
                show(*remaining, *reset);
                ledger.exceeded(refuse(rule, *wait));
            }
            ReservationOutcome::TooMuch if rule.on_exceeded == OnExceeded::Spill => {
                rule.metrics.refused.inc();
                ledger.exceeded(too_much(request));
            }
            ReservationOutcome::Refused { wait, remaining, reset } => {
                rule.metrics.refused.inc();
                show(*remaining, *reset);
                let longer = refusal.as_ref().is_none_or(|r| r.retry_after.is_some_and(|other| other < *wait));
                if longer {
                    refusal = Some(refuse(rule, *wait));
                }
            }
            ReservationOutcome::TooMuch => {
                rule.metrics.refused.inc();
                refusal = Some(too_much(request));
            }
        }
    }
    match refusal {
        Some(refusal) => {
            ledger.release();
            Err(Box::new(refusal))
        }
        None => Ok(()),
    }
}

fn refuse(rule: &Rule, wait: Duration) -> Refusal {
    let code = match &rule.kind {
        RuleKind::Budget { .. } => "insufficient_quota",
        _ => "rate_limit_exceeded",
    };
    Refusal::new(StatusCode::TOO_MANY_REQUESTS, ErrorKind::RateLimited, code, rule.message()).retry_after(wait)
}

fn too_much(request: &ReservationRequest<'_>) -> Refusal {
    let most = match &request.rule.kind {
        RuleKind::Rate { limit, .. } => limit.burst.get(),
        _ => 0,
    };
    Refusal::invalid(
        "tokens_exceed_limit",
        format!(
            "this request may use {} tokens, and at most {most} can ever be used at once here: shorten the prompt or \
             lower `max_tokens`",
            request.amount
        ),
    )
}
