//! How many connections of peers there are at once. Anybody who reaches the port can open any number, so those
//! whose other end has not shown that it is a member are few. No new connection is refused: an older one makes
//! room for it, of the address that has the most. So whoever opens many shuts out itself: a member has greeted
//! within a round trip, and then it is not counted among them any more.

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::NodeId;

/// The most connections. A member makes two, and one more to exchange greetings while there is no leader.
pub(crate) const CONNECTIONS_MAX: usize = 256;

/// The most of them whose other end has not shown that it is a member.
pub(crate) const UNPROVEN_MAX: usize = 64;

/// The connections of one node's peers.
#[derive(Clone, Default)]
pub(crate) struct Admission(Arc<Mutex<Guests>>);

#[derive(Default)]
struct Guests {
    /// In the order in which they came.
    present: BTreeMap<u64, Guest>,
    next: u64,
    /// How many had to make room.
    put_out: u64,
}

struct Guest {
    from: Option<IpAddr>,
    /// The member at the other end, once it has shown that.
    member: Option<NodeId>,
    end: Arc<Notify>,
}

/// One connection's place; dropping it gives it back.
pub(crate) struct Place {
    number: u64,
    guests: Admission,
    end: Arc<Notify>,
}

impl Admission {
    /// A place for a new connection, whose other end has this address.
    pub(crate) fn admit(&self, from: Option<IpAddr>) -> Place {
        let mut guests = self.0.lock();
        guests.make_room();
        let (number, end) = (guests.next, Arc::<Notify>::default());
        guests.next += 1;
        guests.present.insert(number, Guest { from, member: None, end: end.clone() });
        Place { number, guests: self.clone(), end }
    }

    /// How many connections there are, and how many had to make room for others.
    pub(crate) fn count(&self) -> (usize, u64) {
        let guests = self.0.lock();
        (guests.present.len(), guests.put_out)
    }
}

impl Guests {
    fn make_room(&mut self) {
        let unproven = self.present.values().filter(|guest| guest.member.is_none()).count();
        let is_full = self.present.len() >= CONNECTIONS_MAX;
        let leaves = if unproven >= UNPROVEN_MAX || is_full && unproven > 0 {
            self.first_of_most(|guest| guest.member.is_none().then_some(guest.from))
        } else if is_full {
            self.first_of_most(|guest| guest.member)
        } else {
            None
        };
        if let Some(guest) = leaves.and_then(|number| self.present.remove(&number)) {
            self.put_out += 1;
            guest.end.notify_one();
        }
    }

    /// The oldest connection of whoever has the most of them.
    fn first_of_most<K: Ord>(&self, of: impl Fn(&Guest) -> Option<K>) -> Option<u64> {
        let mut counts: BTreeMap<K, (usize, Reverse<u64>)> = BTreeMap::new();
        for (number, guest) in &self.present {
            if let Some(key) = of(guest) {
                counts.entry(key).or_insert((0, Reverse(*number))).0 += 1;
            }
        }
        counts.into_values().max().map(|(_, Reverse(first))| first)
    }
}

impl Place {
    /// The other end has shown that it is this member.
    pub(crate) fn prove(&self, member: NodeId) {
        if let Some(guest) = self.guests.0.lock().present.get_mut(&self.number) {
            guest.member = Some(member);
        }
    }

    /// Returns when the connection has to make room for another one.
    pub(crate) async fn is_needed(&self) {
        self.end.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.guests.0.lock().present.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures::FutureExt as _;

    use super::{Admission, CONNECTIONS_MAX, Place, UNPROVEN_MAX};

    fn address(number: u8) -> Option<IpAddr> {
        Some([10, 0, 0, number].into())
    }

    fn is_put_out(place: &Place) -> bool {
        place.is_needed().now_or_never().is_some()
    }

    #[test]
    fn whoever_opens_many_puts_out_its_own() {
        let admission = Admission::default();
        let member = admission.admit(address(1));
        let strange: Vec<Place> = (0..UNPROVEN_MAX + 3).map(|_| admission.admit(address(9))).collect();
        assert!(!is_put_out(&member));
        assert_eq!(strange.iter().filter(|place| is_put_out(place)).count(), 4);
        assert!(!is_put_out(strange.last().unwrap()), "the oldest go first");
        let late = admission.admit(address(2));
        assert!(!is_put_out(&late) && !is_put_out(&member));
        assert_eq!(admission.count(), (UNPROVEN_MAX, 5));
    }

    #[test]
    fn who_has_shown_that_it_is_a_member_stays() {
        let admission = Admission::default();
        // All of one address: behind a proxy.
        let member = admission.admit(address(1));
        member.prove(1);
        let strange: Vec<Place> = (0..1000).map(|_| admission.admit(address(1))).collect();
        assert!(!is_put_out(&member));
        assert_eq!(admission.count().0, UNPROVEN_MAX + 1);
        drop(strange);
        assert_eq!(admission.count().0, 1);
    }

    #[test]
    fn members_have_a_limit_too_and_each_puts_out_its_own() {
        let admission = Admission::default();
        let mut other = Vec::new();
        for id in 2..20 {
            other.push(admission.admit(address(2)));
            other.last().unwrap().prove(id);
        }
        let mut many = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            many.push(admission.admit(address(1)));
            many.last().unwrap().prove(1);
        }
        assert!(other.iter().all(|place| !is_put_out(place)));
        assert_eq!(many.iter().filter(|place| is_put_out(place)).count(), 18);
        assert_eq!(admission.count().0, CONNECTIONS_MAX);
    }
}
