//! The background tasks of endpoints: health checks, scrapes, and names that are resolved again. The [`Supervisor`] owns
//! them, starts and ends them with the configuration and with the addresses of names, and keeps those that did not change.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::blueprint::{Addresses, Blueprint};
use super::health::{Server, list, scrape, watch};
use super::resolve::{Resolve, follow, has_names};
use super::watch::{RecurringCheck, Work};
use super::{EndpointSet, EndpointState};
use crate::clock::now_millis;
use crate::connect::EndpointKey;

/// Background tasks of one backend, to start when its configuration becomes active.
pub struct BackgroundTasks {
    /// Makes the endpoints when addresses change.
    pub blueprint: Arc<Blueprint>,
    /// Endpoints that requests see.
    pub set: Arc<ArcSwap<EndpointSet>>,
    /// Addresses that the endpoints were made from.
    pub addresses: Addresses,
    /// Checks and scrapes of the endpoints.
    pub watches: Vec<RecurringCheck>,
    /// Resolves the names of the endpoints.
    pub resolver: Arc<dyn Resolve>,
}

/// Runs the background tasks of the active configuration.
#[derive(Default)]
pub struct Supervisor {
    running: Mutex<SupervisedTasks>,
}

#[derive(Default)]
struct SupervisedTasks {
    /// Number of the active configuration: a task of an earlier one changes nothing any more.
    generation: u64,
    /// Tasks that resolve names again, one for each backend with names.
    followers: Vec<AbortHandle>,
    /// Checks and scrapes by backend.
    tasks: HashMap<String, Vec<Task>>,
    /// The endpoints of each backend, as the requests of this configuration see them, and how they were made.
    sets: Vec<(Arc<Blueprint>, Arc<ArcSwap<EndpointSet>>)>,
}

struct Task {
    key: EndpointKey,
    server: Server,
    work: Work,
    state: Weak<EndpointState>,
    handle: AbortHandle,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Task {
    fn start(watch_this: RecurringCheck) -> Self {
        let RecurringCheck { key, server, work, state } = watch_this;
        let state = Arc::downgrade(&state);
        let handle = match work.clone() {
            Work::Check(plan) => tokio::spawn(watch(key.clone(), plan, server.clone(), state.clone())).abort_handle(),
            Work::Scrape(plan) => tokio::spawn(scrape(key.clone(), plan, server.clone(), state.clone())).abort_handle(),
            Work::List(plan) => tokio::spawn(list(key.clone(), plan, server.clone(), state.clone())).abort_handle(),
        };
        Self { key, server, work, state, handle }
    }

    fn runs(&self, watch: &RecurringCheck) -> bool {
        self.key == watch.key
            && self.server == watch.server
            && self.work == watch.work
            && self.state.upgrade().is_some_and(|state| Arc::ptr_eq(&state, &watch.state))
    }
}

impl Supervisor {
    /// Makes a configuration the active one: starts tasks that are new, ends those that are gone or changed, and keeps the
    /// others.
    pub fn apply(self: &Arc<Self>, backends: Vec<BackgroundTasks>) {
        let mut running = self.running.lock();
        running.generation += 1;
        let generation = running.generation;
        for follower in running.followers.drain(..) {
            follower.abort();
        }
        let mut before = std::mem::take(&mut running.tasks);
        let sets = std::mem::take(&mut running.sets);
        for backend in backends {
            let BackgroundTasks { blueprint, set, addresses, watches, resolver } = backend;
            let name = blueprint.backend().to_owned();
            let tasks = keep_or_start(before.remove(&name).unwrap_or_default(), watches);
            running.tasks.insert(name.clone(), tasks);
            // Requests of the earlier configuration that wait for a slot find the new endpoints, with their new limits.
            for (_, earlier) in sets.iter().filter(|(earlier, _)| blueprint.takes_requests_of(earlier)) {
                earlier.store(set.load_full());
            }
            blueprint.may_have_room();
            running.sets.push((blueprint.clone(), set.clone()));
            if has_names(&blueprint) {
                let supervisor = Arc::downgrade(self);
                let install = move |endpoints, watches| {
                    let install = || set.store(Arc::new(endpoints));
                    supervisor.upgrade().is_some_and(|it| it.replace(generation, &name, watches, install))
                };
                let work = follow(blueprint, addresses, resolver, install);
                running.followers.push(tokio::spawn(work).abort_handle());
            }
        }
        for tasks in before.into_values() {
            let _ = keep_or_start(tasks, Vec::new());
        }
    }

    /// Replaces the tasks of a backend whose endpoints have changed, and calls `install` under the same lock. Does nothing
    /// and returns false if configuration `generation` is no longer the active one.
    fn replace(&self, generation: u64, backend: &str, watches: Vec<RecurringCheck>, install: impl FnOnce()) -> bool {
        let mut running = self.running.lock();
        if running.generation != generation {
            return false;
        }
        let tasks = keep_or_start(running.tasks.remove(backend).unwrap_or_default(), watches);
        running.tasks.insert(backend.to_owned(), tasks);
        install();
        true
    }

    /// Ends all tasks.
    pub fn stop(&self) {
        let mut running = self.running.lock();
        running.generation += 1;
        running.tasks.clear();
        running.sets.clear();
        for follower in running.followers.drain(..) {
            follower.abort();
        }
    }
}

/// Tasks for `watches`: those that run already, and new ones.
fn keep_or_start(mut before: Vec<Task>, watches: Vec<RecurringCheck>) -> Vec<Task> {
    let tasks: Vec<Task> = watches
        .into_iter()
        .map(|watch| match before.iter().position(|task| task.runs(&watch)) {
            Some(at) => before.swap_remove(at),
            None => Task::start(watch),
        })
        .collect();
    let checked = |key: &EndpointKey| tasks.iter().any(|t| t.key == *key && matches!(t.work, Work::Check(_)));
    for gone in &before {
        if matches!(gone.work, Work::Check(_))
            && !checked(&gone.key)
            && let Some(state) = gone.state.upgrade()
        {
            // An endpoint that is no longer checked counts as healthy again.
            state.set_healthy(true, now_millis());
        }
        if let Work::List(plan) = &gone.work {
            let reads_like = |now: &Work| matches!(now, Work::List(now) if now.reads_like(plan));
            let is_kept = tasks.iter().any(|task| task.key == gone.key && reads_like(&task.work));
            if !is_kept && let Some(state) = gone.state.upgrade() {
                // Nobody keeps the list true any more.
                state.set_models(None);
            }
        }
    }
    tasks
}
