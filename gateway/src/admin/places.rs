//! Connections that the admin address holds: few, and from one address only some of them. A new one always gets a place,
//! so that nobody keeps the health checks out: where all are taken, the one that is least in use is closed for it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::limits::network;

/// Part of all places that one address, or /64 of IPv6, may have: one in four. Processes of this machine are not told
/// apart, so loopback may have all.
const PART_OF_ONE: usize = 4;

/// Open connections, by the order in which they came.
#[derive(Clone)]
pub(super) struct Places(Arc<Taken>);

struct Taken {
    /// `admin.maxConnections`.
    most: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    connections: BTreeMap<u64, Connection>,
}

struct Connection {
    /// Address of the client, or its /64 of IPv6: a household or server has all of that.
    client: [u8; 9],
    /// When the last request came, in the order of all that happened; `None` before the first.
    asked: Option<u64>,
    close: Arc<Notify>,
}

/// One open connection.
pub(super) struct Place {
    places: Places,
    id: u64,
    close: Arc<Notify>,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Taken { most: most.max(1), open: Mutex::default() }))
    }

    /// Takes a place; the number of connections that are closed for it.
    pub(super) fn take(&self, client: IpAddr) -> (Place, usize) {
        let mut open = self.0.open.lock();
        let mut closed = 0;
        let is_local = client.is_loopback();
        let client = network(client);
        let most_of_one = if is_local { self.0.most } else { (self.0.most / PART_OF_ONE).max(1) };
        let of_client = open.connections.values().filter(|connection| connection.client == client).count();
        if of_client >= most_of_one {
            closed += usize::from(open.close_least_used(|connection| connection.client == client));
        } else if open.connections.len() >= self.0.most {
            closed += usize::from(open.close_least_used(|_| true));
        }
        let id = open.tick();
        let close = Arc::new(Notify::new());
        open.connections.insert(id, Connection { client, asked: None, close: close.clone() });
        (Place { places: self.clone(), id, close }, closed)
    }

    /// Closes the connection that is least in use; false when there is none.
    pub(super) fn close_one(&self) -> bool {
        self.0.open.lock().close_least_used(|_| true)
    }
}

impl Open {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Closes the oldest of those that have never asked anything, else the one that asked the longest ago.
    fn close_least_used(&mut self, which: impl Fn(&Connection) -> bool) -> bool {
        let candidates = self.connections.iter().filter(|(_, connection)| which(connection));
        let least = candidates.min_by_key(|(id, connection)| (connection.asked, **id)).map(|(id, _)| *id);
        let Some(connection) = least.and_then(|id| self.connections.remove(&id)) else { return false };
        connection.close.notify_one();
        true
    }
}

impl Place {
    /// Notes that a request has come.
    pub(super) fn asked(&self) {
        let mut open = self.places.0.open.lock();
        let now = open.tick();
        if let Some(connection) = open.connections.get_mut(&self.id) {
            connection.asked = Some(now);
        }
    }

    /// Waits until the connection must close for another.
    pub(super) async fn must_close(&self) {
        self.close.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.0.open.lock().connections.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn closed(place: &Place) -> bool {
        place.must_close().now_or_never().is_some()
    }

    #[test]
    fn a_new_connection_takes_the_place_of_the_one_that_is_least_in_use() {
        let places = Places::new(4);
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        let held: Vec<Place> = (0..4).map(|_| places.take(local).0).collect();
        held[0].asked();
        let (new, dropped) = places.take(local);
        assert_eq!(dropped, 1);
        let gone: Vec<bool> = held.iter().map(closed).collect();
        assert_eq!(gone, [false, true, false, false], "the oldest that has never asked");
        new.asked();
        for place in &held[2..] {
            place.asked();
        }
        let (_, dropped) = places.take(local);
        assert!(dropped == 1 && closed(&held[0]), "the one that asked the longest ago");
        drop((held, new));
        assert!(places.0.open.lock().connections.is_empty());
    }

    #[test]
    fn one_address_takes_the_places_of_its_own_connections_only() {
        let places = Places::new(64);
        let [greedy, probe]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|a| a.parse().unwrap());
        let probing = places.take(probe).0;
        let held: Vec<Place> = (0..200).map(|_| places.take(greedy).0).collect();
        assert_eq!(held.iter().filter(|place| !closed(place)).count(), 16);
        assert!(!closed(&probing));
        assert!(places.close_one());
        assert!(closed(&probing), "the oldest of all");
    }

    #[test]
    fn addresses_of_one_network_have_the_places_of_one() {
        for (first, second, are_one) in [
            ("2001:db8::1", "2001:db8::2", true),
            ("2001:db8::1", "2001:db8::ffff:0:0:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("127.0.0.1", "127.0.0.1", false),
        ] {
            let places = Places::new(4);
            let held = places.take(first.parse().unwrap()).0;
            let (_new, dropped) = places.take(second.parse().unwrap());
            assert_eq!((dropped, closed(&held)), (usize::from(are_one), are_one), "{first} {second}");
        }
    }
}
