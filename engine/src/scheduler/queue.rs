//! Waiting requests, and the order of admission: the tenant that was served least, in tokens over weight, is next
//! (virtual token counter, arXiv:2401.00588). A tenant that returns after a pause starts level with the others, so
//! that nobody saves up turns.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::Job;

/// Cost of a decoded token, in prompt tokens.
const DECODE_COST: u64 = 2;
/// Unit of the counters: a token of a tenant of weight 1.
const UNIT: u64 = 1 << 16;

/// Tenant of a request, if it names one.
pub(super) type TenantKey = Option<Arc<str>>;

#[derive(Default)]
struct Tenant {
    waiting: VecDeque<Job>,
    /// Requests that have slots.
    running: usize,
    given: u64,
    weight: u64,
}

/// Waiting requests by tenant. Only tenants with waiting or running requests are kept.
#[derive(Default)]
pub(super) struct Queue {
    tenants: HashMap<TenantKey, Tenant>,
    /// Counter of the last tenant that was served, at that time.
    level: u64,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.tenants.values().all(|tenant| tenant.waiting.is_empty())
    }

    /// Appends a request to those of its tenant.
    pub(super) fn push(&mut self, job: Job) {
        let level = self.level;
        let tenant = self
            .tenants
            .entry(job.request.tenant.clone())
            .or_insert_with(|| Tenant { given: level, ..Tenant::default() });
        tenant.weight = u64::from(job.request.weight.get());
        tenant.waiting.push_back(job);
    }

    /// Keeps the waiting requests for which `keep` returns true.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Job) -> bool) {
        for tenant in self.tenants.values_mut() {
            tenant.waiting.retain(&mut keep);
        }
        self.forget();
    }

    fn forget(&mut self) {
        self.tenants.retain(|_, tenant| tenant.running > 0 || !tenant.waiting.is_empty());
    }

    /// Next tenant: of those served equally little, the one that has waited longest.
    fn next_tenant(&self) -> Option<&TenantKey> {
        let first = |tenant: &Tenant| tenant.waiting.front().map(|job| (tenant.given, job.submitted));
        let heads = self.tenants.iter().filter_map(|(key, tenant)| Some((first(tenant)?, key)));
        heads.min_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, key)| key)
    }

    /// Next request.
    pub(super) fn front(&self) -> Option<&Job> {
        self.tenants.get(self.next_tenant()?)?.waiting.front()
    }

    /// Removes the next request and charges its prompt to the tenant. [`Self::left`] must follow when the request has
    /// ended.
    pub(super) fn pop(&mut self) -> Option<Job> {
        let key = self.next_tenant()?.clone();
        let tenant = self.tenants.get_mut(&key)?;
        let job = tenant.waiting.pop_front()?;
        self.level = self.level.max(tenant.given);
        tenant.running += 1;
        tenant.charge(u64::try_from(job.request.prompt.len()).unwrap_or(u64::MAX));
        Some(job)
    }

    /// Charges decoded tokens to a tenant.
    pub(super) fn wrote(&mut self, key: &TenantKey, tokens: u64) {
        if let Some(tenant) = self.tenants.get_mut(key) {
            tenant.charge(tokens.saturating_mul(DECODE_COST));
        }
    }

    /// Records the end of a request that had slots.
    pub(super) fn left(&mut self, key: &TenantKey) {
        if let Some(tenant) = self.tenants.get_mut(key) {
            tenant.running = tenant.running.saturating_sub(1);
        }
        self.forget();
    }

    /// Removes all waiting requests.
    pub(super) fn drain(&mut self) -> Vec<Job> {
        let waiting = self.tenants.values_mut().flat_map(|tenant| tenant.waiting.drain(..)).collect();
        self.forget();
        waiting
    }
}

impl Tenant {
    fn charge(&mut self, tokens: u64) {
        self.given = self.given.saturating_add(tokens.saturating_mul(UNIT) / self.weight.max(1));
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Instant;

    use super::*;
    use crate::{Generate, Prompt};

    fn job(tenant: &str, weight: u32, prompt: usize) -> Job {
        let (events, _) = async_channel::bounded(1);
        let prompt = Prompt { tokens: vec![0; prompt] };
        let request =
            Generate { tenant: Some(tenant.into()), weight: NonZeroU32::new(weight).unwrap(), ..Generate::new(prompt) };
        Job { request, events, submitted: Instant::now() }
    }

    fn order(queue: &mut Queue, answer: u64, count: usize) -> String {
        let mut order = String::new();
        for _ in 0..count {
            let Some(job) = queue.pop() else { break };
            order.push_str(job.request.tenant.as_deref().unwrap());
            queue.wrote(&job.request.tenant, answer);
            queue.left(&job.request.tenant);
        }
        order
    }

    #[test]
    fn a_tenant_with_many_requests_does_not_hold_up_one_with_few() {
        let mut queue = Queue::default();
        (0..6).for_each(|_| queue.push(job("a", 1, 10)));
        (0..2).for_each(|_| queue.push(job("b", 1, 10)));
        assert_eq!(order(&mut queue, 20, 9), "ababaaaa");
        assert!(queue.is_empty() && queue.tenants.is_empty());
    }

    #[test]
    fn tokens_count_and_not_requests() {
        let mut queue = Queue::default();
        (0..2).for_each(|_| queue.push(job("a", 1, 1000)));
        (0..12).for_each(|_| queue.push(job("b", 1, 100)));
        assert_eq!(order(&mut queue, 0, 13), "abbbbbbbbbbab", "ten short ones for a long one");
    }

    #[test]
    fn a_weight_is_a_share() {
        let mut queue = Queue::default();
        (0..9).for_each(|_| queue.push(job("a", 3, 10)));
        (0..9).for_each(|_| queue.push(job("b", 1, 10)));
        let first: String = order(&mut queue, 10, 12);
        assert_eq!(first.matches('a').count(), 9, "{first}");
    }

    #[test]
    fn a_pause_saves_up_no_turns() {
        let mut queue = Queue::default();
        (0..20).for_each(|_| queue.push(job("a", 1, 10)));
        assert_eq!(order(&mut queue, 10, 10), "aaaaaaaaaa");
        (0..4).for_each(|_| queue.push(job("b", 1, 10)));
        let then = order(&mut queue, 10, 8);
        assert_eq!(then.matches('b').count(), 4, "{then}");
        assert!(then.starts_with("ba") || then.starts_with("ab"), "{then}");
    }
}
