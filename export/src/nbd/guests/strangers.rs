//! Those from the network: who has shown no certificate yet is a stranger, has a place for a while only, and may have to leave
//! it to another. No crowd from one network keeps others out.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Shutdown};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Guest, Guests, List, Origin, Place};

/// Strangers at a time.
const STRANGERS_MAX: usize = 32;
/// Connections from the network with a certificate at a time; more are closed.
const KNOWN_MAX: usize = 32;
/// A stranger may take so long before another of his own network takes his place.
const GRACE: Duration = Duration::from_secs(1);
/// Lines about strangers that the log takes in [`COMPLAINTS_TIME`].
const COMPLAINTS_MAX: u32 = 10;
const COMPLAINTS_TIME: Duration = Duration::from_secs(60);

/// An IPv4 address, or what one customer has of IPv6: a /64.
type Network = [u8; 8];

fn network(address: IpAddr) -> Network {
    let mut network = [0; 8];
    match address.to_canonical() {
        IpAddr::V4(address) => network[..4].copy_from_slice(&address.octets()),
        IpAddr::V6(address) => network.copy_from_slice(&address.octets()[..8]),
    }
    network
}

/// Keeps a flood of refusals from flooding the log.
#[derive(Default)]
pub(super) struct Complaints(Mutex<Minute>);

#[derive(Default)]
struct Minute {
    since: Option<Instant>,
    said: u32,
    unsaid: u64,
}

impl Minute {
    /// Whether one more line may be said, and how many were not in the time that has just ended.
    fn ask(&mut self, now: Instant) -> (bool, u64) {
        let mut missed = 0;
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= COMPLAINTS_TIME) {
            missed = self.unsaid;
            *self = Minute { since: Some(now), ..Minute::default() };
        }
        let may = self.said < COMPLAINTS_MAX;
        if may {
            self.said += 1
        } else {
            self.unsaid += 1
        }
        (may, missed)
    }
}

impl List {
    /// The strangers, the one who has been here longest first.
    fn strangers(&self) -> impl Iterator<Item = (u64, Network, Instant)> {
        self.guests.iter().filter_map(|(id, guest)| match &guest.origin {
            Origin::Stranger { address, since, .. } => Some((*id, network(address.ip()), *since)),
            _ => None,
        })
    }

    /// Who has to leave so that somebody of `own` can come.
    fn in_the_way_of(&self, own: Network, now: Instant) -> Option<u64> {
        let mut counts: BTreeMap<Network, usize> = BTreeMap::new();
        self.strangers().for_each(|(_, network, _)| *counts.entry(network).or_default() += 1);
        let most = counts.values().copied().max().unwrap_or(0);
        if most > counts.get(&own).copied().unwrap_or(0) {
            return self.strangers().find(|(_, network, _)| counts.get(network) == Some(&most)).map(|(id, ..)| id);
        }
        let dawdles = |since: Instant| now.saturating_duration_since(since) >= GRACE;
        self.strangers().find(|(_, network, since)| *network == own && dawdles(*since)).map(|(id, ..)| id)
    }
}

impl Guests {
    /// Whether a stranger from `address` may come, where need be in the place of another, who is cut off.
    pub(in super::super) fn make_room_for(&self, address: IpAddr) -> bool {
        let mut list = self.list();
        // Who was cut off still has a thread for a moment.
        let cut_off = list.guests.values().filter(|guest| matches!(guest.origin, Origin::CutOff(_))).count();
        if cut_off >= STRANGERS_MAX {
            return false;
        }
        if list.strangers().count() < STRANGERS_MAX {
            return true;
        }
        let Some(id) = list.in_the_way_of(network(address), Instant::now()) else {
            return false;
        };
        if let Some(Guest { socket, origin, .. }) = list.guests.get_mut(&id)
            && let Some(address) = origin.address()
        {
            *origin = Origin::CutOff(address);
            // Fails if the client is gone, which is as well.
            let _ = socket.shutdown(Shutdown::Both);
        }
        true
    }

    /// A line about somebody who has shown no certificate, if there were not too many.
    pub(in super::super) fn complain(&self, words: fmt::Arguments<'_>) {
        let mut minute = self.complaints.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (may, missed) = minute.ask(Instant::now());
        let last = minute.said == COMPLAINTS_MAX;
        drop(minute);
        if missed > 0 {
            log::warn!("{missed} more connections from the network were closed before");
        }
        if may {
            let rest = if last { "; more such lines are left out for a minute" } else { "" };
            log::warn!("{words}{rest}");
        }
    }
}

impl Place {
    /// Makes a stranger, who has shown a certificate, a guest; false if there is no room, or another has his place.
    pub(in super::super) fn recognise(&mut self) -> bool {
        let mut list = self.guests.list();
        let known = list.guests.values().filter(|guest| matches!(guest.origin, Origin::Known(_))).count();
        let Some(guest) = list.guests.get_mut(&self.id).filter(|_| known < KNOWN_MAX) else {
            return false;
        };
        let Origin::Stranger { address, .. } = guest.origin else {
            return false;
        };
        guest.origin = Origin::Known(address);
        self.origin = Origin::Known(address);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_of_ipv6_is_one_network_and_mapped_addresses_are_ipv4() {
        let of = |address: &str| network(address.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.2"), of("192.0.2.1"));
    }

    #[test]
    fn ten_complaints_a_minute_are_said_and_the_others_counted() {
        let (mut minute, start) = (Minute::default(), Instant::now());
        let said = (0..1000).filter(|_| minute.ask(start).0).count();
        assert_eq!(said, 10);
        assert_eq!(minute.ask(start + COMPLAINTS_TIME), (true, 990));
        assert_eq!(minute.ask(start + COMPLAINTS_TIME), (true, 0));
    }
}
