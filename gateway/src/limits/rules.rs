//! Rules as they are kept: what the configuration says of one unit, compiled with its levels and series.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use http::HeaderValue;
use spillway_config::schema::{Budget, ConsumerLimits, OnExceeded, Period, RedisState};
use spillway_config::values::Rate;
use spillway_filter::{LimitBy, LimitSpec, Quota, SharedStates};

use super::budgets::{Account, BudgetError, Budgets};
use super::keys::number;
use super::levels::{Levels, Limit};
use super::running::Running;
use super::shared::Shared;
use crate::adoptions::Adoptions;
use crate::clock::unix_now;
use crate::telemetry::{BudgetSample, LimitMetrics, Metrics};

/// A shared store and what it was made from.
struct Store {
    written: RedisState,
    /// What its file of authorities held.
    authorities: Option<Vec<u8>>,
    shared: Arc<Shared>,
}

/// What the rules of one snapshot are made with: the levels and budgets of the process, and the snapshot's shared store.
/// Clones are of the same.
#[derive(Clone)]
pub struct Limits {
    states: Arc<SharedStates>,
    budgets: Arc<Budgets>,
    keys: usize,
    metrics: Arc<Metrics>,
    store: Option<Arc<Store>>,
}

/// What a rule counts, and how much of it there is.
pub(super) enum Kind {
    Rate { unit: Unit, levels: Arc<Levels>, limit: Limit },
    Concurrency { running: Arc<Running>, most: NonZeroU32 },
    Budget { whose: Box<str>, account: Arc<Account>, period: Period, tokens: Option<u64>, nanos: Option<u64> },
}

/// What comes in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Requests,
    Tokens,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// A compiled rule.
pub struct Rule {
    /// Its number in a shared store.
    pub(super) number: u128,
    pub(super) kind: Kind,
    pub(super) by: LimitBy,
    /// What a refusal says.
    pub(super) message: String,
    pub(super) on_exceeded: OnExceeded,
    /// `RateLimit-Policy`.
    pub(super) policy: Option<HeaderValue>,
    pub(super) shared: Option<Arc<Shared>>,
    pub(super) metrics: Arc<LimitMetrics>,
}

/// Rules that stand at one place.
pub type Rules = Vec<Arc<Rule>>;

/// The budgets among rules, each once.
#[derive(Default)]
pub struct BudgetRules(Rules);

impl std::fmt::Debug for BudgetRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BudgetRules({})", self.0.len())
    }
}

impl BudgetRules {
    /// Those among these.
    pub fn of<'r>(rules: impl Iterator<Item = &'r Arc<Rule>>) -> Self {
        let mut budgets: Rules = rules.filter(|rule| matches!(rule.kind, Kind::Budget { .. })).cloned().collect();
        budgets.sort_by_key(|rule| rule.number);
        budgets.dedup_by_key(|rule| rule.number);
        Self(budgets)
    }

    /// What is spent of each now.
    pub fn samples(&self) -> Vec<BudgetSample> {
        self.0.iter().filter_map(|rule| rule.sample()).collect()
    }
}

impl Limits {
    /// The limits of a new process, with levels of `keys` callers for each rule.
    pub fn new(keys: u32, metrics: Arc<Metrics>) -> Self {
        let keys = usize::try_from(keys).unwrap_or(usize::MAX);
        Self {
            states: Arc::default(),
            budgets: Arc::new(Budgets::new(keys, metrics.process.budget_write_failures.clone())),
            keys,
            metrics,
            store: None,
        }
    }

    /// Opens the file of budgets, if that was not done; what it holds counts when the snapshot is adopted.
    pub async fn open_budgets(&self, path: &Path, adoptions: &Adoptions) -> Result<(), BudgetError> {
        let (opening, file) = (self.budgets.clone(), path.to_owned());
        let opened = tokio::task::spawn_blocking(move || opening.open(&file)).await;
        let opened = opened.map_err(|e| BudgetError { path: path.to_owned(), reason: e.to_string() })??;
        let Some(opened) = opened else { return Ok(()) };
        let budgets = self.budgets.clone();
        adoptions.add(move || budgets.install(opened));
        Ok(())
    }

    /// Judges the file of budgets as [`Self::open_budgets`] does, without making or changing anything.
    pub async fn judge_budgets(&self, path: &Path) -> Result<(), BudgetError> {
        let file = path.to_owned();
        let judged = tokio::task::spawn_blocking(move || Budgets::judge(&file)).await;
        judged.map_err(|e| BudgetError { path: path.to_owned(), reason: e.to_string() })?
    }

    /// The same levels and budgets with the store of a new snapshot: the one that `previous` has, where it is written the
    /// same. It need not be there, and is not asked before the snapshot is adopted.
    pub fn sharing(
        &self,
        written: Option<&RedisState>,
        previous: Option<&Self>,
        adoptions: &Adoptions,
    ) -> Result<Self, String> {
        let previous = previous.and_then(|limits| limits.store.clone());
        let file = written.and_then(|written| written.ca_file.as_ref());
        let authorities = file.map(|file| crate::tls::read_authorities(file)).transpose();
        let authorities = authorities.map_err(|e| format!("state.limits.redis: {e}"))?;
        let store = match (written, previous) {
            (None, _) => None,
            (Some(written), Some(store)) if store.written == *written && store.authorities == authorities => {
                Some(store)
            }
            (Some(written), previous) => {
                let gateways = previous.map_or(1, |store| store.shared.gateways().get());
                let shared = Shared::new(written, authorities.clone(), gateways, &self.metrics);
                let shared = shared.map_err(|e| format!("state.limits.redis: {e}"))?;
                let held = shared.clone();
                adoptions.add(move || held.begin());
                Some(Arc::new(Store { written: written.clone(), authorities, shared }))
            }
        };
        Ok(Self { store, ..self.clone() })
    }

    /// Whether the shared store was reached, and how many gateways it knows of; zero without one.
    pub fn store_seen(&self) -> (bool, u32) {
        self.store.as_ref().map_or((false, 0), |store| store.shared.seen())
    }

    /// Writes budgets to their file, for a bounded time.
    pub fn close(&self) {
        self.budgets.close();
    }

    /// The rules of a `rateLimit` filter: those that need no caller and no body, and the others.
    pub fn of_filter(&self, route: &str, spec: &LimitSpec, adoptions: &Adoptions) -> Result<(Rules, Rules), String> {
        let label = format!("{route}/{}", spec.subject);
        let by = &spec.by;
        let early = matches!(by, LimitBy::ClientAddress);
        let (mut guards, mut filters) = (Rules::new(), Rules::new());
        let this = format!("this {}", spec.subject);
        for (unit, quota) in [(Unit::Requests, spec.requests), (Unit::Tokens, spec.tokens)] {
            let Some(quota) = quota else { continue };
            let rule = self.rate(&label, &this, by.clone(), unit, quota, spec.on_exceeded)?;
            rule.adopted_by(adoptions);
            if early && unit == Unit::Requests { guards.push(rule) } else { filters.push(rule) }
        }
        if let Some(most) = spec.concurrency {
            let rule = self.concurrency(&label, &this, by.clone(), most, spec.on_exceeded);
            if early { guards.push(rule) } else { filters.push(rule) }
        }
        Ok((guards, filters))
    }

    /// The rules that all consumers of one kind have, each with levels of its own; budgets come with `budget`.
    pub fn of_consumers(&self, label: &str, limits: &ConsumerLimits, adoptions: &Adoptions) -> Result<Rules, String> {
        self.of_callers(label, "this consumer", &LimitBy::Consumer, limits, adoptions)
    }

    /// The rules that all consumers of a tenant share; its budget comes with `budget`.
    pub fn of_tenant(&self, label: &str, limits: &ConsumerLimits, adoptions: &Adoptions) -> Result<Rules, String> {
        self.of_callers(label, "this tenant", &LimitBy::Tenant, limits, adoptions)
    }

    fn of_callers(
        &self,
        label: &str,
        this: &str,
        by: &LimitBy,
        limits: &ConsumerLimits,
        adoptions: &Adoptions,
    ) -> Result<Rules, String> {
        let mut rules = Rules::new();
        let units =
            [(Unit::Requests, limits.requests, limits.burst), (Unit::Tokens, limits.tokens, limits.token_burst)];
        for (unit, rate, burst) in units {
            let Some(rate) = rate else { continue };
            let quota = Quota { rate, burst: burst.unwrap_or(rate.count) };
            let rule = self.rate(label, this, by.clone(), unit, quota, limits.on_exceeded)?;
            rule.adopted_by(adoptions);
            rules.push(rule);
        }
        if let Some(most) = limits.concurrency {
            rules.push(self.concurrency(label, this, by.clone(), most, limits.on_exceeded));
        }
        Ok(rules)
    }

    /// The rule of one budget: of `this` consumer or tenant. `account` is its name among all budgets.
    pub fn budget(&self, label: &str, this: &str, account: &str, budget: &Budget) -> Arc<Rule> {
        let per = if budget.per == Period::Day { "day" } else { "month" };
        let name = format!("{label}/budget/{per}");
        Arc::new(Rule {
            number: number("budget", format!("{account}/{per}").as_bytes()),
            kind: Kind::Budget {
                whose: label.into(),
                account: self.budgets.account(account, budget.per),
                period: budget.per,
                tokens: budget.tokens,
                nanos: budget.usd.map(nanos),
            },
            by: LimitBy::Consumer,
            message: format!("the budget of {this} for this {per} is spent"),
            on_exceeded: budget.on_exceeded,
            policy: None,
            shared: self.shared(),
            metrics: self.metrics.limit(&name),
        })
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        self.store.as_ref().map(|store| store.shared.clone())
    }

    fn rate(
        &self,
        label: &str,
        this: &str,
        by: LimitBy,
        unit: Unit,
        quota: Quota,
        on_exceeded: OnExceeded,
    ) -> Result<Arc<Rule>, String> {
        let Quota { rate, burst } = quota;
        let limit = Limit::new(rate.period / rate.count.get(), burst)
            .ok_or_else(|| format!("{label}: {rate} is too high a rate to be kept"))?;
        // The period is part of the name, so that two rules of one kind (10/s and 1000/h) do not share a level.
        let name = format!("{label}/{}/{}", unit.name(), rate.period.as_secs());
        let levels = self
            .states
            .get_or_insert(&name, || Levels::new(limit, self.keys, self.metrics.process.limit_keys_forgotten.clone()));
        Ok(Arc::new(Rule {
            number: number("rate", name.as_bytes()),
            message: format!("the limit of {rate} {} for {this} is reached", unit.name()),
            policy: policy(unit, rate),
            metrics: self.metrics.limit(&name),
            kind: Kind::Rate { unit, levels, limit },
            shared: self.shared(),
            on_exceeded,
            by,
        }))
    }

    fn concurrency(
        &self,
        label: &str,
        this: &str,
        by: LimitBy,
        most: NonZeroU32,
        on_exceeded: OnExceeded,
    ) -> Arc<Rule> {
        let name = format!("{label}/concurrency");
        Arc::new(Rule {
            number: number("concurrency", name.as_bytes()),
            kind: Kind::Concurrency { running: self.states.get_or_insert(&name, Running::default), most },
            message: format!("the limit of {most} requests at the same time for {this} is reached"),
            policy: None,
            shared: self.shared(),
            metrics: self.metrics.limit(&name),
            on_exceeded,
            by,
        })
    }
}

/// Billionths of a dollar.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked to be above zero; a cast saturates"
)]
fn nanos(usd: f64) -> u64 {
    (usd * 1e9).round() as u64
}

fn policy(unit: Unit, rate: Rate) -> Option<HeaderValue> {
    let text = format!("\"{}\";q={};w={}", unit.name(), rate.count, rate.period.as_secs());
    HeaderValue::from_str(&text).ok()
}

impl Rule {
    pub(super) fn on_exceeded(&self) -> OnExceeded {
        self.on_exceeded
    }

    /// Brings the levels of a rate to its limit once the snapshot that it is made for is adopted.
    fn adopted_by(self: &Arc<Self>, adoptions: &Adoptions) {
        let Kind::Rate { levels, limit, .. } = &self.kind else { return };
        let (levels, limit) = (levels.clone(), *limit);
        adoptions.add(move || levels.adopt(limit));
    }

    /// What is spent of it, where it is a budget. With a shared store it is what went through this gateway.
    fn sample(&self) -> Option<BudgetSample> {
        let Kind::Budget { whose, account, period, tokens, nanos } = &self.kind else { return None };
        let spent = account.spent(unix_now());
        let per = if *period == Period::Day { "day" } else { "month" };
        let used = |unit, spent, most: &Option<u64>| most.map(|most| (unit, spent, most));
        let units = [used("tokens", spent.tokens, tokens), used("nanodollars", spent.nanos, nanos)];
        Some(BudgetSample { whose: whose.to_string(), per, units: units.into_iter().flatten().collect() })
    }

    /// Whether the head of a request and its caller say whose level it takes from: then it can be judged before a byte of
    /// the body is read. A computed value may look at the body.
    pub fn needs_no_body(&self) -> bool {
        !matches!(self.by, LimitBy::Model | LimitBy::Value(_))
    }

    /// True if the model that the body names says whose level it takes from.
    pub fn is_by_model(&self) -> bool {
        matches!(self.by, LimitBy::Model)
    }

    /// True if all that it takes of a request is known by the head as well.
    pub fn is_known_by_head(&self) -> bool {
        self.needs_no_body() && !self.counts_tokens()
    }

    /// Whether it counts tokens or what they cost.
    pub fn counts_tokens(&self) -> bool {
        matches!(self.kind, Kind::Rate { unit: Unit::Tokens, .. } | Kind::Budget { .. })
    }
}
