//! The tasks that look after endpoints: checks, readings, names that are resolved again. It owns them all, starts and ends
//! them with the configuration and with the addresses of names, and leaves alone what did not change.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::blueprint::{Addresses, Blueprint};
use super::health::{Server, scrape, watch};
use super::resolve::{Resolve, follow};
use super::watch::{Watch, Work};
use super::{EndpointSet, EndpointState};
use crate::clock::now_millis;
use crate::connect::EndpointKey;

/// What is to be looked after of one backend.
pub struct BackgroundTasks {
    /// How its endpoints are made.
    pub blueprint: Arc<Blueprint>,
    /// Where they stand.
    pub set: Arc<ArcSwap<EndpointSet>>,
    /// The addresses that they were made from.
    pub addresses: Addresses,
    /// What is asked of them.
    pub watches: Vec<Watch>,
    /// Who is asked for their names.
    pub resolver: Arc<dyn Resolve>,
}

/// Looks after the endpoints of the running configuration.
#[derive(Default)]
pub struct Supervisor {
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    /// Of the configuration that is looked after; a task of an earlier one changes nothing any more.
    generation: u64,
    followers: Vec<AbortHandle>,
    /// By backend.
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
    fn start(watch_this: Watch) -> Self {
        let Watch { key, server, work, state } = watch_this;
        let state = Arc::downgrade(&state);
        let handle = match work.clone() {
            Work::Check(plan) => tokio::spawn(watch(key.clone(), plan, server.clone(), state.clone())).abort_handle(),
            Work::Scrape(plan) => tokio::spawn(scrape(key.clone(), plan, server.clone(), state.clone())).abort_handle(),
        };
        Self { key, server, work, state, handle }
    }

    fn is(&self, watch: &Watch) -> bool {
        self.key == watch.key
            && self.server == watch.server
            && self.work == watch.work
            && self.state.upgrade().is_some_and(|state| Arc::ptr_eq(&state, &watch.state))
    }
}

impl Supervisor {
    /// Looks after a new configuration: starts what is new, ends what is gone or changed, leaves the rest alone.
    pub fn apply(self: &Arc<Self>, cares: Vec<BackgroundTasks>) {
        let mut running = self.running.lock();
        running.generation += 1;
        let generation = running.generation;
        for follower in running.followers.drain(..) {
            follower.abort();
        }
        let mut before = std::mem::take(&mut running.tasks);
        let sets = std::mem::take(&mut running.sets);
        for care in cares {
            let name = care.blueprint.backend().to_owned();
            let tasks = take_over(before.remove(&name).unwrap_or_default(), care.watches);
            running.tasks.insert(name, tasks);
            // Requests of the earlier configuration that wait for room there find the new endpoints, and the new limits.
            for (_, set) in sets.iter().filter(|(blueprint, _)| care.blueprint.takes_requests_of(blueprint)) {
                set.store(care.set.load_full());
            }
            care.blueprint.may_have_room();
            running.sets.push((care.blueprint.clone(), care.set.clone()));
            if super::resolve::has_names(&care.blueprint) {
                let work =
                    follow(Arc::downgrade(self), generation, care.blueprint, care.set, care.addresses, care.resolver);
                running.followers.push(tokio::spawn(work).abort_handle());
            }
        }
        for tasks in before.into_values() {
            let _ = take_over(tasks, Vec::new());
        }
    }

    /// The endpoints of a backend have changed. False when the configuration has changed too, and the caller is of an
    /// earlier one. `install` is called before anybody can change it again.
    pub(super) fn replace(&self, generation: u64, backend: &str, watches: Vec<Watch>, install: impl FnOnce()) -> bool {
        let mut running = self.running.lock();
        if running.generation != generation {
            return false;
        }
        let tasks = take_over(running.tasks.remove(backend).unwrap_or_default(), watches);
        running.tasks.insert(backend.to_owned(), tasks);
        install();
        true
    }

    /// Ends all of it.
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

/// The tasks for `watches`: those that run already, and new ones.
fn take_over(mut before: Vec<Task>, watches: Vec<Watch>) -> Vec<Task> {
    let tasks: Vec<Task> = watches
        .into_iter()
        .map(|watch| match before.iter().position(|task| task.is(&watch)) {
            Some(place) => before.swap_remove(place),
            None => Task::start(watch),
        })
        .collect();
    let checked = |key: &EndpointKey| tasks.iter().any(|t| t.key == *key && matches!(t.work, Work::Check(_)));
    for gone in before {
        if matches!(gone.work, Work::Check(_))
            && !checked(&gone.key)
            && let Some(state) = gone.state.upgrade()
        {
            // An endpoint that is no longer checked counts as healthy again.
            state.set_healthy(true, now_millis());
        }
    }
    tasks
}
