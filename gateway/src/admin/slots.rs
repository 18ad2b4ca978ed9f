//! Connections of the admin address: a limited number, of which one client address gets only a part. A new connection always
//! gets a slot, so that no client keeps health checks out: if none is free, the least used connection is closed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::limits::network;

/// Part of all slots for one address, or /64 of IPv6: one in four. Processes of this machine cannot be told apart, so
/// loopback may have all slots.
const PART_OF_ONE: usize = 4;

/// Slots for connections; clones share them.
#[derive(Clone)]
pub(super) struct ConnectionSlots(Arc<SlotTable>);

/// Slots with their limit.
struct SlotTable {
    /// `admin.maxConnections`.
    most: usize,
    open: Mutex<OpenConnections>,
}

/// Open connections, in the order in which they came.
#[derive(Default)]
struct OpenConnections {
    next: u64,
    connections: BTreeMap<u64, HeldConnection>,
}

/// Open connection with its last use.
struct HeldConnection {
    /// Address of the client, or its /64 of IPv6: a household or server has all of that.
    client: [u8; 9],
    /// Number of the last request among all events; `None` before the first.
    asked: Option<u64>,
    close: Arc<Notify>,
}

/// Slot of one open connection, released when dropped.
pub(super) struct ConnectionSlot {
    slots: ConnectionSlots,
    id: u64,
    close: Arc<Notify>,
}

impl ConnectionSlots {
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(SlotTable { most: most.max(1), open: Mutex::default() }))
    }

    /// Acquires a slot; returns the number of connections closed for it.
    pub(super) fn acquire(&self, client: IpAddr) -> (ConnectionSlot, usize) {
        let mut open = self.0.open.lock();
        let mut closed = 0;
        let is_local = client.is_loopback();
        let client = network(client);
        let most_of_one = if is_local { self.0.most } else { (self.0.most / PART_OF_ONE).max(1) };
        let of_client = open.connections.values().filter(|connection| connection.client == client).count();
        if of_client >= most_of_one {
            closed += usize::from(open.close_least_used_of(|connection| connection.client == client));
        } else if open.connections.len() >= self.0.most {
            closed += usize::from(open.close_least_used_of(|_| true));
        }
        let id = open.tick();
        let close = Arc::new(Notify::new());
        open.connections.insert(id, HeldConnection { client, asked: None, close: close.clone() });
        (ConnectionSlot { slots: self.clone(), id, close }, closed)
    }

    /// Closes the least used connection; false if there is none.
    pub(super) fn close_least_used(&self) -> bool {
        self.0.open.lock().close_least_used_of(|_| true)
    }
}

impl OpenConnections {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Closes the oldest matching connection without a request, else the one with the oldest last request.
    fn close_least_used_of(&mut self, which: impl Fn(&HeldConnection) -> bool) -> bool {
        let candidates = self.connections.iter().filter(|(_, connection)| which(connection));
        let least = candidates.min_by_key(|(id, connection)| (connection.asked, **id)).map(|(id, _)| *id);
        let Some(connection) = least.and_then(|id| self.connections.remove(&id)) else { return false };
        connection.close.notify_one();
        true
    }
}

impl ConnectionSlot {
    /// Records a request.
    pub(super) fn record_request(&self) {
        let mut open = self.slots.0.open.lock();
        let now = open.tick();
        if let Some(connection) = open.connections.get_mut(&self.id) {
            connection.asked = Some(now);
        }
    }

    /// Waits until the connection must close for another one.
    pub(super) async fn must_close(&self) {
        self.close.notified().await;
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.slots.0.open.lock().connections.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn closed(slot: &ConnectionSlot) -> bool {
        slot.must_close().now_or_never().is_some()
    }

    #[test]
    fn a_new_connection_takes_the_place_of_the_one_that_is_least_in_use() {
        let slots = ConnectionSlots::new(4);
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        let held: Vec<ConnectionSlot> = (0..4).map(|_| slots.acquire(local).0).collect();
        held[0].record_request();
        let (new, dropped) = slots.acquire(local);
        assert_eq!(dropped, 1);
        let gone: Vec<bool> = held.iter().map(closed).collect();
        assert_eq!(gone, [false, true, false, false], "the oldest that has never asked");
        new.record_request();
        for slot in &held[2..] {
            slot.record_request();
        }
        let (_, dropped) = slots.acquire(local);
        assert!(dropped == 1 && closed(&held[0]), "the one that asked the longest ago");
        drop((held, new));
        assert!(slots.0.open.lock().connections.is_empty());
    }

    #[test]
    fn one_address_takes_the_places_of_its_own_connections_only() {
        let slots = ConnectionSlots::new(64);
        let [greedy, probe]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|a| a.parse().unwrap());
        let probing = slots.acquire(probe).0;
        let held: Vec<ConnectionSlot> = (0..200).map(|_| slots.acquire(greedy).0).collect();
        assert_eq!(held.iter().filter(|slot| !closed(slot)).count(), 16);
        assert!(!closed(&probing));
        assert!(slots.close_least_used());
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
            let slots = ConnectionSlots::new(4);
            let held = slots.acquire(first.parse().unwrap()).0;
            let (_new, dropped) = slots.acquire(second.parse().unwrap());
            assert_eq!((dropped, closed(&held)), (usize::from(are_one), are_one), "{first} {second}");
        }
    }
}
