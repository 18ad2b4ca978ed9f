//! Rules in the shared store: the arguments of a reservation, its answer, and the settlement of budgets.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use smallvec::SmallVec;
use spillway_config::schema::OnExceeded;

use super::budgets::{Amount, until_next_window, window};
use super::reservation::{ReservationOutcome, ReservationRequest};
use super::rules::{Rule, RuleKind};
use super::shared::{Settlement, SharedStore, micros};
use crate::clock::unix_now;

/// Longest life of a concurrency permit that its gateway does not release: the default of `timeouts.request`, ten
/// minutes, and half a minute more. A request that runs longer counts no more.
const LEASE: Duration = Duration::from_secs(630);
/// Time for which a budget is kept after its day or month, seconds: a day, for gateways whose clocks are behind.
const BUDGET_AFTER: u64 = 86_400;

impl SharedStore {
    /// Makes the reservations, or none if a rule with `onExceeded: reject` refuses. Returns their outcomes and the
    /// number of the request's leases. `None` if the server does not answer: then this process judges the request.
    pub(super) async fn reserve(
        &self,
        wanted: &[ReservationRequest<'_>],
    ) -> Option<(SmallVec<[ReservationOutcome; 8]>, u64)> {
        let connection = self.connection.load_full();
        let Some(connection) = connection else {
            self.metrics.process.limit_store_fallbacks.inc();
            return None;
        };
        let lease = self.leases.fetch_add(1, Ordering::Relaxed);
        let mut script = self.reserve.key(format!("{}:gateways", self.prefix));
        script.arg(lease);
        for request in wanted {
            self.add(&mut script, request);
        }
        let mut connection = (*connection).clone();
        let asked = tokio::time::timeout(self.timeout, script.invoke_async::<Vec<i64>>(&mut connection)).await;
        match asked {
            Ok(Ok(said)) if said.len() == wanted.len() * 4 => Some((outcomes(wanted, &said), lease)),
            wrong => {
                let reason = match &wrong {
                    Err(_) => "no answer within `timeout`".to_owned(),
                    Ok(Err(e)) => e.to_string(),
                    Ok(Ok(_)) => "an answer of the wrong length".to_owned(),
                };
                self.give_up(&reason);
                self.metrics.process.limit_store_fallbacks.inc();
                None
            }
        }
    }

    fn add(&self, script: &mut redis::ScriptInvocation<'_>, request: &ReservationRequest<'_>) {
        let rule = request.rule;
        let strict = u8::from(rule.on_exceeded == OnExceeded::Reject);
        match &rule.kind {
            RuleKind::Rate { limit, .. } => {
                script.key(self.key(rule.number ^ request.key)).arg("r").arg(strict);
                script.arg(request.amount).arg(micros(limit.every)).arg(limit.burst.get());
            }
            RuleKind::Concurrency { most, .. } => {
                script.key(self.key(rule.number ^ request.key)).arg("c").arg(strict);
                script.arg(most.get()).arg(LEASE.as_secs());
            }
            RuleKind::Budget { account, period, tokens, nanos, .. } => {
                let now = unix_now();
                let (window, next) = window(*period, now);
                let bound = |most: &Option<u64>| most.map_or(-1, |most| i64::try_from(most).unwrap_or(i64::MAX));
                let own = account.spent(now);
                script.key(self.budget_key(rule, window)).arg("b").arg(strict);
                script.arg(request.amount).arg(request.nanos).arg(bound(tokens)).arg(bound(nanos));
                script.arg(next.saturating_sub(now).saturating_add(BUDGET_AFTER)).arg(own.tokens).arg(own.nanos);
            }
        }
    }

    pub(super) fn spend(&self, rule: &Rule, at: u64, taken: Amount, used: Amount) {
        let RuleKind::Budget { period, .. } = &rule.kind else { return };
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let (tokens, nanos) = (signed(used.tokens) - signed(taken.tokens), signed(used.nanos) - signed(taken.nanos));
        if tokens != 0 || nanos != 0 {
            self.send(Settlement::Spend { key: self.budget_key(rule, window(*period, at).0), tokens, nanos });
        }
    }

    fn budget_key(&self, rule: &Rule, window: u64) -> String {
        let mut key = self.key(rule.number);
        let _ = write!(key, ":{window}");
        key
    }
}

/// Outcomes in the answer of the script, four numbers for each reservation.
fn outcomes(wanted: &[ReservationRequest<'_>], said: &[i64]) -> SmallVec<[ReservationOutcome; 8]> {
    let micros = |n: i64| Duration::from_micros(u64::try_from(n).unwrap_or(0));
    wanted
        .iter()
        .zip(said.chunks_exact(4))
        .map(|(request, said)| {
            let [ok, remaining, reset, wait] = said.try_into().unwrap_or([0; 4]);
            let (remaining, reset) = (u64::try_from(remaining).unwrap_or(0), micros(reset));
            let never = match &request.rule.kind {
                RuleKind::Rate { limit, .. } => request.amount > u64::from(limit.burst.get()),
                _ => false,
            };
            let wait = match &request.rule.kind {
                RuleKind::Budget { period, .. } => until_next_window(*period, unix_now()),
                _ => micros(wait),
            };
            if ok == 1 {
                ReservationOutcome::Granted { remaining, reset }
            } else if never {
                ReservationOutcome::TooMuch
            } else {
                ReservationOutcome::Refused { wait, remaining, reset }
            }
        })
        .collect()
}
