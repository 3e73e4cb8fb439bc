//! The process that started a server, watched until it has asked for an unlock: a client that is killed before that (Ctrl-C
//! right after Enter) must not leave a server that nobody knows and a name that is taken.
//!
//! The client gives its process id in the server's environment. A pidfd follows that very process: its number may be
//! given away again, and it need not be the parent (systemd is). Source: pidfd_open(2).

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Where a server finds the id of its client.
pub(crate) const VARIABLE: &str = "LUKSCTL_OPENER";

/// The value of [`VARIABLE`] for a server of this process.
pub(crate) fn own_id() -> String {
    rustix::process::getpid().as_raw_nonzero().to_string()
}

/// The client, as far as it can be seen.
#[derive(Debug)]
pub(crate) enum Opener {
    /// Nobody said who it is, or the kernel is older than pidfds (Linux 5.3).
    Unknown,
    Gone,
    Alive(OwnedFd),
}

impl Opener {
    /// The client that the environment names.
    pub(crate) fn of_environment() -> Opener {
        let id = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok()).and_then(Pid::from_raw);
        id.map_or(Opener::Unknown, Opener::watch)
    }

    fn watch(id: Pid) -> Opener {
        match pidfd_open(id, PidfdFlags::empty()) {
            Ok(handle) => Opener::Alive(handle),
            Err(Errno::SRCH) => Opener::Gone,
            Err(_) => Opener::Unknown,
        }
    }

    /// Whether it is known to have ended.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Opener::Unknown => false,
            Opener::Gone => true,
            Opener::Alive(handle) => {
                let mut ended = [PollFd::new(handle, PollFlags::IN)];
                matches!(poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_alive_until_it_ends_and_gone_before_anybody_waited_for_it() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let id = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let opener = Opener::watch(id);
        assert!(matches!(opener, Opener::Alive(_)), "{opener:?}");
        assert!(!opener.is_gone());
        child.kill().unwrap();
        while !opener.is_gone() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.wait().unwrap();
        assert!(Opener::watch(id).is_gone());
        assert!(!Opener::Unknown.is_gone());
    }
}
