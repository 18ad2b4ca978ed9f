//! Compiled rules: one unit of a limit of the configuration, with its levels and metrics.

use std::borrow::Cow;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;
use spillway_config::schema::{Budget, ConsumerLimits, OnExceeded, Period, RedisState};
use spillway_config::values::Rate;
use spillway_filter::{LimitBy, LimitCost, LimitSpec, Quota, SharedStates};

use super::budgets::{Account, BudgetError, Budgets};
use super::concurrency::ConcurrencyCounts;
use super::costs::Costs;
use super::keys::number;
use super::levels::{Levels, Limit};
use super::shared::{SharedStore, StoreError};
use crate::clock::unix_now;
use crate::commit_steps::CommitSteps;
use crate::redis_client;
use crate::telemetry::{BudgetSample, LimitMetrics, Metrics};

/// Name in metrics of all keys that are made at run time: their number is no bound of a scrape.
const KEYS_IN_METRICS: &str = "keys";

/// Shared store with the configuration and file that it was made from.
struct ConfiguredStore {
    written: RedisState,
    /// Content of the file of authorities.
    authorities: Option<Vec<u8>>,
    store: Arc<SharedStore>,
}

/// Rate whose interval is below a nanosecond, the unit of levels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{label}: {rate} is too high a rate to be kept; expected at most one in a nanosecond")]
pub struct RateTooHigh {
    /// Owner of the rule.
    pub label: String,
    /// Configured rate.
    pub rate: Rate,
}

/// Compiles the rules of one snapshot: holds the levels and budgets of the process, and the snapshot's shared store. A
/// clone shares all of them.
#[derive(Clone)]
pub struct Limits {
    states: Arc<SharedStates>,
    budgets: Arc<Budgets>,
    keys: usize,
    metrics: Arc<Metrics>,
    store: Option<Arc<ConfiguredStore>>,
    policies: Arc<Mutex<Policies>>,
    costs: Arc<Costs>,
}

/// Values of `RateLimit-Policy` by unit, count and period.
type Policies = HashMap<(Unit, NonZeroU32, Duration), Option<HeaderValue>>;

/// Unit that a rule counts, with its limit and levels.
pub(super) enum RuleKind {
    Rate { unit: Unit, rate: Rate, levels: Arc<Levels>, limit: Limit },
    Concurrency { running: Arc<ConcurrencyCounts>, most: NonZeroU32 },
    Budget { whose: Box<str>, account: Arc<Account>, period: Period, tokens: Option<u64>, nanos: Option<u64> },
}

/// Unit of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Unit {
    Requests,
    Tokens,
}

impl Unit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// Compiled rule.
pub struct Rule {
    /// Number of the rule in a shared store.
    pub(super) number: u128,
    pub(super) kind: RuleKind,
    pub(super) by: LimitBy,
    /// Amount that a request takes; 1 where there is none.
    pub(super) cost: Option<Arc<dyn LimitCost>>,
    /// Name of the owner in a refusal.
    this: Cow<'static, str>,
    pub(super) on_exceeded: OnExceeded,
    /// Value of `RateLimit-Policy`.
    pub(super) policy: Option<HeaderValue>,
    pub(super) store: Option<Arc<SharedStore>>,
    pub(super) metrics: Arc<LimitMetrics>,
}

/// Callers that one limit of the configuration counts.
#[derive(Clone, Copy)]
struct Counted<'a> {
    /// Owner of the limit, unique among all.
    label: &'a str,
    /// Name of the owner in a refusal.
    this: &'a Cow<'static, str>,
    by: &'a LimitBy,
    /// Amount that a request takes of a rate of requests.
    cost: Option<&'a Arc<dyn LimitCost>>,
    /// Most levels that a rate of the limit keeps.
    keys: usize,
    /// Name of the owner in metrics: the label, or one that many owners share.
    metrics: &'a str,
}

/// Rules of one filter, consumer or tenant.
pub type Rules = Vec<Arc<Rule>>;

/// Budgets of a snapshot, each once.
#[derive(Default)]
pub struct BudgetRules(Rules);

impl std::fmt::Debug for BudgetRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BudgetRules({})", self.0.len())
    }
}

impl BudgetRules {
    /// Collects the budgets among rules.
    pub fn of<'r>(rules: impl Iterator<Item = &'r Arc<Rule>>) -> Self {
        let mut budgets: Rules = rules.filter(|rule| matches!(rule.kind, RuleKind::Budget { .. })).cloned().collect();
        budgets.sort_by_key(|rule| rule.number);
        budgets.dedup_by_key(|rule| rule.number);
        Self(budgets)
    }

    /// Reads what is spent of each budget now.
    pub fn samples(&self) -> Vec<BudgetSample> {
        self.0.iter().filter_map(|rule| rule.sample()).collect()
    }
}

impl Limits {
    /// Makes the limits of a new process, with levels of `keys` callers at most for each rule.
    pub fn new(keys: u32, metrics: Arc<Metrics>) -> Self {
        let keys = usize::try_from(keys).unwrap_or(usize::MAX);
        Self {
            states: Arc::default(),
            budgets: Arc::new(Budgets::new(keys, metrics.process.budget_write_failures.clone())),
            keys,
            metrics,
            store: None,
            policies: Arc::default(),
            costs: Arc::default(),
        }
    }

    /// Opens the file of budgets unless it is open; its content counts once the snapshot is adopted.
    pub async fn open_budgets(&self, path: &Path, commit_steps: &CommitSteps) -> Result<(), BudgetError> {
        let (opening, file) = (self.budgets.clone(), path.to_owned());
        let opened = tokio::task::spawn_blocking(move || opening.open(&file)).await;
        let opened = opened.map_err(|e| BudgetError { path: path.to_owned(), reason: e.to_string() })??;
        let Some(opened) = opened else { return Ok(()) };
        let budgets = self.budgets.clone();
        commit_steps.add(move || budgets.install(opened));
        Ok(())
    }

    /// Validates the file of budgets as [`Self::open_budgets`] does, without making or changing anything.
    pub async fn judge_budgets(&self, path: &Path) -> Result<(), BudgetError> {
        let file = path.to_owned();
        let judged = tokio::task::spawn_blocking(move || Budgets::judge(&file)).await;
        judged.map_err(|e| BudgetError { path: path.to_owned(), reason: e.to_string() })?
    }

    /// Returns the same levels and budgets with the store of a new snapshot: that of `previous` if its configuration is
    /// the same. The store need not be reachable, and is not contacted before the snapshot is adopted.
    pub fn sharing(
        &self,
        written: Option<&RedisState>,
        previous: Option<&Self>,
        commit_steps: &CommitSteps,
    ) -> Result<Self, StoreError> {
        let previous = previous.and_then(|limits| limits.store.clone());
        let authorities = written.map(redis_client::authorities).transpose()?.flatten();
        let store = match (written, previous) {
            (None, _) => None,
            (Some(written), Some(store)) if store.written == *written && store.authorities == authorities => {
                Some(store)
            }
            (Some(written), previous) => {
                let gateways = previous.map_or(1, |store| store.store.gateways().get());
                let store = SharedStore::new(written, authorities.clone(), gateways, &self.metrics)?;
                let begun = store.clone();
                commit_steps.add(move || begun.begin());
                Some(Arc::new(ConfiguredStore { written: written.clone(), authorities, store }))
            }
        };
        Ok(Self { store, policies: Arc::default(), ..self.clone() })
    }

    /// Costs of answers since the process began.
    pub fn costs(&self) -> &Costs {
        &self.costs
    }

    /// True if the shared store is connected, and how many gateways share it; zero without a store.
    pub fn store_seen(&self) -> (bool, u32) {
        self.store.as_ref().map_or((false, 0), |store| store.store.seen())
    }

    /// Writes budgets to their file and reads what another process has spent of them, for a bounded time; false where that
    /// failed. Blocks.
    pub fn exchange(&self) -> bool {
        self.budgets.exchange()
    }

    /// Writes budgets to their file, for a bounded time.
    pub fn close(&self) {
        self.budgets.close();
    }

    /// Compiles the rules of a `rateLimit` filter: those that need neither caller nor body, and the others.
    pub fn of_filter(
        &self,
        route: &str,
        spec: &LimitSpec,
        commit_steps: &CommitSteps,
    ) -> Result<(Rules, Rules), RateTooHigh> {
        let label = format!("{route}/{}", spec.subject);
        let by = &spec.by;
        // An amount may depend on the caller and the body.
        let early = matches!(by, LimitBy::ClientAddress);
        let early_rate = early && spec.cost.is_none();
        let (mut guards, mut filters) = (Rules::new(), Rules::new());
        let counted = Counted {
            label: &label,
            this: &format!("this {}", spec.subject).into(),
            by,
            cost: spec.cost.as_ref(),
            keys: self.keys,
            metrics: &label,
        };
        for (unit, quota) in [(Unit::Requests, spec.requests), (Unit::Tokens, spec.tokens)] {
            let Some(quota) = quota else { continue };
            let rule = self.rate(counted, unit, quota, spec.on_exceeded)?;
            rule.adopted_by(commit_steps);
            if early_rate && unit == Unit::Requests { guards.push(rule) } else { filters.push(rule) }
        }
        if let Some(most) = spec.concurrency {
            let rule = self.concurrency(counted, most, spec.on_exceeded);
            if early { guards.push(rule) } else { filters.push(rule) }
        }
        Ok((guards, filters))
    }

    /// Compiles the rules of one consumer; the budget comes from [`Self::budget`].
    pub fn of_consumer(
        &self,
        label: &str,
        limits: &ConsumerLimits,
        commit_steps: &CommitSteps,
    ) -> Result<Rules, RateTooHigh> {
        let counted = Counted {
            label,
            this: &Cow::Borrowed("this consumer"),
            by: &LimitBy::Consumer,
            cost: None,
            keys: 1,
            metrics: label,
        };
        self.of_callers(counted, limits, commit_steps)
    }

    /// Compiles rules under which each consumer has levels of its own; budgets come from [`Self::budget`].
    pub fn of_consumers(
        &self,
        label: &str,
        limits: &ConsumerLimits,
        commit_steps: &CommitSteps,
    ) -> Result<Rules, RateTooHigh> {
        let counted = Counted {
            label,
            this: &Cow::Borrowed("this consumer"),
            by: &LimitBy::Consumer,
            cost: None,
            keys: self.keys,
            metrics: label,
        };
        self.of_callers(counted, limits, commit_steps)
    }

    /// Compiles rules whose levels all consumers of a tenant share; the budget comes from [`Self::budget`].
    pub fn of_tenant(
        &self,
        label: &str,
        limits: &ConsumerLimits,
        commit_steps: &CommitSteps,
    ) -> Result<Rules, RateTooHigh> {
        let counted = Counted {
            label,
            this: &Cow::Borrowed("this tenant"),
            by: &LimitBy::Tenant,
            cost: None,
            keys: 1,
            metrics: label,
        };
        self.of_callers(counted, limits, commit_steps)
    }

    /// Compiles the rules of one key that was made at run time, its budget included. All such keys share their series.
    pub fn of_key(&self, id: &str, limits: &ConsumerLimits) -> Result<Rules, RateTooHigh> {
        // The label has a blank, and no name of a consumer has: levels and account are the key's alone.
        let (label, this) = (format!("key {id}"), "this API key");
        let counted = Counted {
            label: &label,
            this: &Cow::Borrowed(this),
            by: &LimitBy::Consumer,
            cost: None,
            keys: 1,
            metrics: KEYS_IN_METRICS,
        };
        // The limits of a key never change, so no level has to move to another.
        let mut rules = self.of_callers(counted, limits, &CommitSteps::default())?;
        if let Some(budget) = &limits.budget {
            rules.push(self.budget_of(&label, KEYS_IN_METRICS, this, &label, budget));
        }
        Ok(rules)
    }

    fn of_callers(
        &self,
        counted: Counted<'_>,
        limits: &ConsumerLimits,
        commit_steps: &CommitSteps,
    ) -> Result<Rules, RateTooHigh> {
        let mut rules = Rules::new();
        let units =
            [(Unit::Requests, limits.requests, limits.burst), (Unit::Tokens, limits.tokens, limits.token_burst)];
        for (unit, rate, burst) in units {
            let Some(rate) = rate else { continue };
            let quota = Quota { rate, burst: burst.unwrap_or(rate.count) };
            let rule = self.rate(counted, unit, quota, limits.on_exceeded)?;
            rule.adopted_by(commit_steps);
            rules.push(rule);
        }
        if let Some(most) = limits.concurrency {
            rules.push(self.concurrency(counted, most, limits.on_exceeded));
        }
        Ok(rules)
    }

    /// Compiles the budget of `this` consumer or tenant. `account` is its name among all budgets.
    pub fn budget(&self, label: &str, this: &'static str, account: &str, budget: &Budget) -> Arc<Rule> {
        self.budget_of(label, label, this, account, budget)
    }

    fn budget_of(&self, label: &str, metrics: &str, this: &'static str, account: &str, budget: &Budget) -> Arc<Rule> {
        let per = if budget.per == Period::Day { "day" } else { "month" };
        let name = format!("{metrics}/budget/{per}");
        Arc::new(Rule {
            number: number("budget", format!("{account}/{per}").as_bytes()),
            kind: RuleKind::Budget {
                whose: label.into(),
                account: self.budgets.account(account, budget.per),
                period: budget.per,
                tokens: budget.tokens,
                nanos: budget.usd.map(nanos),
            },
            by: LimitBy::Consumer,
            cost: None,
            this: this.into(),
            on_exceeded: budget.on_exceeded,
            policy: None,
            store: self.shared_store(),
            metrics: self.metrics.limit(&name),
        })
    }

    /// Value of `RateLimit-Policy`, of which rules of one rate share the text.
    fn policy(&self, unit: Unit, rate: Rate) -> Option<HeaderValue> {
        let make = || {
            let text = format!("\"{}\";q={};w={}", unit.name(), rate.count, rate.period.as_secs());
            HeaderValue::from_str(&text).ok()
        };
        self.policies.lock().entry((unit, rate.count, rate.period)).or_insert_with(make).clone()
    }

    fn shared_store(&self) -> Option<Arc<SharedStore>> {
        self.store.as_ref().map(|configured| configured.store.clone())
    }

    fn rate(
        &self,
        Counted { label, this, by, cost, keys, metrics }: Counted<'_>,
        unit: Unit,
        Quota { rate, burst }: Quota,
        on_exceeded: OnExceeded,
    ) -> Result<Arc<Rule>, RateTooHigh> {
        let limit = Limit::new(rate.period / rate.count.get(), burst)
            .ok_or_else(|| RateTooHigh { label: label.to_owned(), rate })?;
        // The period is part of the name, so that two rules of one kind (10/s and 1000/h) do not share a level.
        let rule = format!("{}/{}", unit.name(), rate.period.as_secs());
        let name = format!("{label}/{rule}");
        let levels = self
            .states
            .get_or_insert(&name, || Levels::new(limit, keys, self.metrics.process.limit_keys_forgotten.clone()));
        Ok(Arc::new(Rule {
            number: number("rate", name.as_bytes()),
            this: this.clone(),
            policy: self.policy(unit, rate),
            metrics: self.metrics.limit(&format!("{metrics}/{rule}")),
            kind: RuleKind::Rate { unit, rate, levels, limit },
            store: self.shared_store(),
            on_exceeded,
            by: by.clone(),
            cost: cost.filter(|_| unit == Unit::Requests).cloned(),
        }))
    }

    fn concurrency(
        &self,
        Counted { label, this, by, metrics, .. }: Counted<'_>,
        most: NonZeroU32,
        on_exceeded: OnExceeded,
    ) -> Arc<Rule> {
        let name = format!("{label}/concurrency");
        Arc::new(Rule {
            number: number("concurrency", name.as_bytes()),
            kind: RuleKind::Concurrency { running: self.states.get_or_insert(&name, ConcurrencyCounts::default), most },
            this: this.clone(),
            policy: None,
            store: self.shared_store(),
            metrics: self.metrics.limit(&format!("{metrics}/concurrency")),
            on_exceeded,
            by: by.clone(),
            cost: None,
        })
    }
}

/// Converts US dollars to billionths of them.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be above zero; a cast saturates"
)]
fn nanos(usd: f64) -> u64 {
    (usd * 1e9).round() as u64
}

impl Rule {
    /// Moves the levels of a rate to its limit once the snapshot of the rule is adopted.
    fn adopted_by(self: &Arc<Self>, commit_steps: &CommitSteps) {
        let RuleKind::Rate { levels, limit, .. } = &self.kind else { return };
        let (levels, limit) = (levels.clone(), *limit);
        commit_steps.add(move || levels.adopt(limit));
    }

    /// Message of a refusal.
    pub(super) fn message(&self) -> String {
        let this = &self.this;
        match &self.kind {
            RuleKind::Rate { unit, rate, .. } => format!("the limit of {rate} {} for {this} is reached", unit.name()),
            RuleKind::Concurrency { most, .. } => {
                format!("the limit of {most} requests at the same time for {this} is reached")
            }
            RuleKind::Budget { period, .. } => {
                let per = if *period == Period::Day { "day" } else { "month" };
                format!("the budget of {this} for this {per} is spent")
            }
        }
    }

    /// Reads what is spent of a budget; with a shared store, what went through this gateway.
    fn sample(&self) -> Option<BudgetSample> {
        let RuleKind::Budget { whose, account, period, tokens, nanos } = &self.kind else { return None };
        let spent = account.spent(unix_now());
        let per = if *period == Period::Day { "day" } else { "month" };
        let used = |unit, spent, most: &Option<u64>| most.map(|most| (unit, spent, most));
        let units = [used("tokens", spent.tokens, tokens), used("nanodollars", spent.nanos, nanos)];
        Some(BudgetSample { whose: whose.to_string(), per, units: units.into_iter().flatten().collect() })
    }

    /// True if the head of a request and its caller determine the level. Then the rule can be judged before a byte of
    /// the body is read. A computed value may depend on the body.
    pub fn needs_no_body(&self) -> bool {
        !matches!(self.by, LimitBy::Model | LimitBy::Value(_)) && self.cost.is_none()
    }

    /// True if the model that the body names determines the level.
    pub fn is_by_model(&self) -> bool {
        matches!(self.by, LimitBy::Model)
    }

    /// True if the head determines the level and the amount.
    pub fn is_known_by_head(&self) -> bool {
        self.needs_no_body() && !self.counts_tokens()
    }

    /// True for a rule of tokens or of their cost.
    pub fn counts_tokens(&self) -> bool {
        matches!(self.kind, RuleKind::Rate { unit: Unit::Tokens, .. } | RuleKind::Budget { .. })
    }
}
