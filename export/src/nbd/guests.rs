//! Who is connected: counted, named, let in, and sent away at the end.
//!
//! * A client counts as a user from the moment that it is promised an export until its last thread is done. Who still haggles,
//!   or has hung up, does not keep the export from closing.
//! * Between "nobody uses it" and the end nobody can slip in: the door is shut in the same step ([`Guests::shut_if_unused`]).

#[cfg(feature = "tls")]
mod strangers;

use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::socket::Socket;
use super::{ConnectionError, NbdClient};
#[cfg(feature = "tls")]
use strangers::Complaints;

/// Threads beside the first ones of the connections, over all of them.
const EXTRA_THREADS_MAX: usize = 128;

struct Guest {
    socket: Arc<Socket>,
    origin: Origin,
    /// The export that it was promised.
    uses: Option<String>,
}

/// Where a client comes from.
#[derive(Clone)]
pub(super) enum Origin {
    /// A process on this machine that the kernel has named, or one end of a pair of our own.
    Local(Option<i32>),
    /// Somebody on the network, who has shown no certificate yet.
    #[cfg(feature = "tls")]
    Stranger { address: SocketAddr, since: std::time::Instant, config: Arc<rustls::ServerConfig> },
    /// A stranger who had to leave, and whose thread does not know yet.
    #[cfg(feature = "tls")]
    CutOff(SocketAddr),
    /// Somebody on the network with a certificate.
    #[cfg(feature = "tls")]
    Known(SocketAddr),
}

impl Origin {
    fn pid(&self) -> Option<i32> {
        match self {
            Origin::Local(pid) => *pid,
            #[cfg(feature = "tls")]
            _ => None,
        }
    }

    fn address(&self) -> Option<SocketAddr> {
        match self {
            Origin::Local(_) => None,
            #[cfg(feature = "tls")]
            Origin::Stranger { address, .. } | Origin::CutOff(address) | Origin::Known(address) => Some(*address),
        }
    }
}

#[derive(Default)]
struct List {
    guests: BTreeMap<u64, Guest>,
    next: u64,
    shut: bool,
}

/// The list of connections.
#[derive(Default)]
pub(super) struct Guests {
    list: Mutex<List>,
    changed: Condvar,
    over: AtomicBool,
    extra_threads: AtomicUsize,
    #[cfg(feature = "tls")]
    complaints: Complaints,
}

/// One connection's entry, taken off the list on drop.
pub(super) struct Place {
    guests: Arc<Guests>,
    id: u64,
    socket: Arc<Socket>,
    origin: Origin,
}

impl Guests {
    fn list(&self) -> MutexGuard<'_, List> {
        // Every critical section leaves the list whole.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until fewer than `max` of this machine are there; false at the end.
    pub(super) fn wait_for_room(&self, max: usize) -> bool {
        let local = |list: &List| list.guests.values().filter(|guest| guest.origin.address().is_none()).count();
        let mut list = self.list();
        while local(&list) >= max && !self.is_over() {
            list = self.changed.wait(list).unwrap_or_else(PoisonError::into_inner);
        }
        !self.is_over()
    }

    pub(super) fn arrive(self: &Arc<Guests>, socket: Socket, origin: Origin) -> Place {
        let socket = Arc::new(socket);
        let mut list = self.list();
        let id = list.next;
        list.next += 1;
        list.guests.insert(id, Guest { socket: Arc::clone(&socket), origin: origin.clone(), uses: None });
        Place { guests: Arc::clone(self), id, socket, origin }
    }

    /// Who uses an export now.
    pub(super) fn users(&self) -> Vec<NbdClient> {
        users(&self.list())
    }

    /// Lets nobody in any more if nobody uses an export, else says who does.
    pub(super) fn shut_if_unused(&self) -> Vec<NbdClient> {
        let mut list = self.list();
        let users = users(&list);
        list.shut |= users.is_empty();
        users
    }

    /// Lets clients in again.
    pub(super) fn open(&self) {
        self.list().shut = false;
    }

    /// Whether the end has begun.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Begins the end: nobody is let in, and every connection is cut.
    pub(super) fn send_away(&self) {
        self.over.store(true, Ordering::Release);
        let mut list = self.list();
        list.shut = true;
        for guest in list.guests.values() {
            // Fails if the client is gone, which is as well.
            let _ = guest.socket.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    /// Waits until every connection is done.
    pub(super) fn wait_until_gone(&self) {
        let mut list = self.list();
        while !list.guests.is_empty() {
            list = self.changed.wait(list).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// One more thread beside the first ones, if there may be one.
    pub(super) fn take_thread(&self) -> bool {
        let more = |count| (count < EXTRA_THREADS_MAX).then_some(count + 1);
        self.extra_threads.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    pub(super) fn give_thread(&self) {
        self.extra_threads.fetch_sub(1, Ordering::Relaxed);
    }
}

fn users(list: &List) -> Vec<NbdClient> {
    let here = list.guests.values().filter(|guest| !has_hung_up(&guest.socket));
    let client = |guest: &Guest| {
        let (pid, address) = (guest.origin.pid(), guest.origin.address());
        Some(NbdClient { pid, address, export: guest.uses.clone()? })
    };
    here.filter_map(client).collect()
}

fn has_hung_up(socket: &Socket) -> bool {
    let mut ready = [PollFd::new(socket, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    matches!(poll(&mut ready, Some(&now)), Ok(count) if count > 0) && ready[0].revents().intersects(gone)
}

impl Place {
    pub(super) fn socket(&self) -> &Arc<Socket> {
        &self.socket
    }

    /// What TLS a stranger has to come through; `None` of anybody else.
    #[cfg(feature = "tls")]
    pub(super) fn config(&self) -> Option<Arc<rustls::ServerConfig>> {
        match &self.origin {
            Origin::Stranger { config, .. } => Some(Arc::clone(config)),
            _ => None,
        }
    }

    /// Notes why its connection was closed.
    pub(super) fn complain(&self, error: &ConnectionError) {
        #[cfg(feature = "tls")]
        if matches!(self.origin, Origin::Stranger { .. }) {
            return self.guests.complain(format_args!("the connection of {} was closed: {error}", self.who()));
        }
        log::warn!("the connection of {} was closed: {error}", self.who());
    }

    pub(super) fn guests(&self) -> &Arc<Guests> {
        &self.guests
    }

    /// The client, in words.
    pub(super) fn who(&self) -> String {
        match (self.origin.pid(), self.origin.address()) {
            (Some(pid), _) => format!("process {pid}"),
            (None, Some(address)) => address.to_string(),
            (None, None) => "a client".to_owned(),
        }
    }

    /// Makes it a user of `export`; false if nobody is let in any more.
    pub(super) fn admit(&self, export: &str) -> bool {
        let mut list = self.guests.list();
        if list.shut {
            return false;
        }
        if let Some(guest) = list.guests.get_mut(&self.id) {
            guest.uses = Some(export.to_owned());
        }
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut list = self.guests.list();
        // Here and not later: who waits for the end of the list may take away what the threads used.
        list.guests.remove(&self.id);
        self.guests.changed.notify_all();
    }
}
