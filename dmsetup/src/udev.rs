//! Waiting for udev: the cookie protocol of libdevmapper, where somebody takes part in it.
//!
//! A resume or a removal hands the kernel a cookie. The kernel puts it into the event, and the last of udev's rules for
//! the event (`95-dm-notify.rules`) runs `dmsetup udevcomplete COOKIE`, which takes one from the semaphore whose key the
//! cookie is. At zero `/dev/mapper/NAME` is there, or gone, and udev has closed the device.
//!
//! * libdevmapper takes `/run/udev/control` for a running udevd. A socket that its daemon left behind, or one that came
//!   into a container from outside, would then be waited for without end; so we ask whether a process of ours listens,
//!   whether the rule is installed, and wait at most [`PATIENCE`].
//! * Whoever cannot or need not wait goes on; the node is checked afterwards in any case.
//! * The semaphore of a process that was killed stays; the next that begins, or [`remove_orphaned_cookies`], removes it.
//!
//! Source: dmsetup(8) (udevcomplete, udevcookies), `/lib/udev/rules.d/55-dm.rules` and `95-dm-notify.rules`.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket;

use crate::semaphore::{Semaphore, remove_orphans};

const CONTROL: &str = "/run/udev/control";
const RULE: &str = "95-dm-notify.rules";
const RULE_FOLDERS: [&str; 4] =
    ["/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"];
/// udevd kills a rule after three minutes; by then the device is better made by us.
const PATIENCE: Duration = Duration::from_secs(60);
/// `DM_COOKIE_MAGIC`: the upper half of a cookie's key.
const MAGIC: u16 = 0x0D4D;
/// `DM_UDEV_PRIMARY_SOURCE_FLAG`: this event, unlike one of udev's own, changed the device.
const PRIMARY_SOURCE: u32 = 0x0040;
/// Keys that may be taken by others before we go on without waiting.
const ATTEMPTS: u32 = 16;

/// Whether a udevd of ours runs that takes part in the cookie protocol.
pub(crate) fn is_running() -> bool {
    RULE_FOLDERS.iter().any(|folder| Path::new(folder).join(RULE).exists()) && is_served(Path::new(CONTROL))
}

/// Whether a process that we can see listens on the socket. One from outside of our process namespace has number 0.
fn is_served(control: &Path) -> bool {
    let connect = || -> nix::Result<bool> {
        let socket = socket::socket(
            socket::AddressFamily::Unix,
            socket::SockType::SeqPacket,
            socket::SockFlag::SOCK_CLOEXEC | socket::SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        match socket::connect(socket.as_raw_fd(), &socket::UnixAddr::new(control)?) {
            Ok(()) => Ok(socket::getsockopt(&socket, socket::sockopt::PeerCredentials)?.pid() != 0),
            // Its queue, one long, still holds our last look or somebody else's: there is a listener.
            Err(nix::errno::Errno::EAGAIN) => Ok(true),
            Err(error) => Err(error),
        }
    };
    connect().unwrap_or(false)
}

/// Removes the semaphores that processes of this crate left when they were killed while they waited for udev. Those of
/// living processes, of other users and of other tools stay. Without any, or without a right to look, it does nothing.
pub fn remove_orphaned_cookies() {
    remove_orphans(MAGIC);
}

/// One transaction with udev.
#[derive(Debug)]
pub(crate) struct Cookie {
    semaphore: Semaphore,
    key: u32,
}

impl Cookie {
    /// A transaction, if udev takes part in it here and now.
    pub(crate) fn begin() -> Option<Cookie> {
        if !is_running() {
            return None;
        }
        remove_orphaned_cookies();
        let first = std::process::id().wrapping_mul(0x9e37_79b1) >> 16;
        (0..ATTEMPTS).find_map(|attempt| {
            let base = first.wrapping_add(attempt.wrapping_mul(0x3d1)) & 0xffff;
            let key = (u32::from(MAGIC) << 16) | base.max(1);
            // One for the event, one for us until the event is known to be on its way.
            let semaphore = Semaphore::create(key, 2, PATIENCE).ok()?;
            Some(Cookie { semaphore, key })
        })
    }

    /// What goes into `event_nr` of the ioctl.
    pub(crate) fn event_number(&self) -> u32 {
        (PRIMARY_SOURCE << 16) | (self.key & 0xffff)
    }

    /// Waits until udev has worked off the event, if one was sent.
    pub(crate) fn settle(self, event_sent: bool) {
        // Neither the taking of our own part nor that of an event that will not come can block.
        let own = if event_sent { -1 } else { -2 };
        if self.semaphore.add(own, PATIENCE).is_ok() {
            // A udevd that is gone or stuck: its part is done by `node`, which looks whether it has to be.
            let _ = self.semaphore.wait_for_zero(PATIENCE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_without_a_listener_is_no_udevd() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        assert!(!is_served(&path));
        let listener =
            socket::socket(socket::AddressFamily::Unix, socket::SockType::SeqPacket, socket::SockFlag::empty(), None)
                .unwrap();
        socket::bind(listener.as_raw_fd(), &socket::UnixAddr::new(&path).unwrap()).unwrap();
        assert!(!is_served(&path));
        socket::listen(&listener, socket::Backlog::new(1).unwrap()).unwrap();
        for _ in 0..9 {
            assert!(is_served(&path), "nobody takes the calls, the queue fills up");
        }
        drop(listener);
        assert!(path.exists() && !is_served(&path), "a socket that its daemon left behind");
    }
}
