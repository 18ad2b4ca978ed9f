//! How many connections the admin address holds: few, and from one address only some of them, so that nobody without a
//! token keeps the health checks out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// Open connections; operators and scrapers are few.
const MAX: usize = 64;
/// Those of one address. Processes of this machine are not told apart, so loopback may have all.
const MAX_OF_ONE: usize = 16;

/// Counts open connections by address.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One open connection.
pub(super) struct Place {
    places: Places,
    client: IpAddr,
}

impl Places {
    /// A place, or `None` when all are taken.
    pub(super) fn take(&self, client: IpAddr) -> Option<Place> {
        let mut taken = self.0.lock();
        let held = taken.by_address.get(&client).copied().unwrap_or(0);
        if taken.all >= MAX || (held >= MAX_OF_ONE && !client.is_loopback()) {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(client, held + 1);
        Some(Place { places: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(held) = taken.by_address.get_mut(&self.client) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                taken.by_address.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_all_places() {
        let places = Places::default();
        let [greedy, probe, local]: [IpAddr; 3] = ["10.0.0.1", "10.0.0.2", "127.0.0.1"].map(|a| a.parse().unwrap());
        let held: Vec<_> = std::iter::from_fn(|| places.take(greedy)).collect();
        assert_eq!(held.len(), MAX_OF_ONE);
        assert!(places.take(probe).is_some());
        let local: Vec<_> = std::iter::from_fn(|| places.take(local)).collect();
        assert_eq!(local.len(), MAX - MAX_OF_ONE);
        assert!(places.take(probe).is_none());
        drop((held, local));
        assert!(places.take(greedy).is_some());
        assert!(places.0.lock().by_address.is_empty() && places.0.lock().all == 0);
    }
}
