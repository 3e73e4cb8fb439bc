//! A System V semaphore as device-mapper's udev protocol uses it: one counter, found by its key.
//!
//! Invariant: the semaphore that [`Semaphore::create`] made is removed when the value is dropped. Source: semget(2),
//! semop(2), semctl(2).

use std::io;
use std::time::Duration;

/// One counter that other processes find by its key.
#[derive(Debug)]
pub(crate) struct Semaphore {
    id: libc::c_int,
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Semaphore {
    /// A new semaphore for the processes of this user, its counter zero; EEXIST when `key` is taken.
    pub(crate) fn create(key: u32) -> io::Result<Semaphore> {
        // The key is a bit pattern; the kernel's type for it is signed.
        let key = libc::key_t::from_ne_bytes(key.to_ne_bytes());
        // SAFETY: semget takes three integers and touches no memory of ours.
        let id = checked(unsafe { libc::semget(key, 1, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) })?;
        Ok(Semaphore { id })
    }

    /// Adds to the counter; with -1 waits until there is something to take.
    pub(crate) fn add(&self, change: i16, patience: Duration) -> io::Result<()> {
        self.operate(change, patience)
    }

    /// Waits until the counter is zero; EAGAIN after `patience`.
    pub(crate) fn wait_for_zero(&self, patience: Duration) -> io::Result<()> {
        self.operate(0, patience)
    }

    fn operate(&self, change: i16, patience: Duration) -> io::Result<()> {
        let mut operation = libc::sembuf { sem_num: 0, sem_op: change, sem_flg: 0 };
        let limit = libc::timespec {
            tv_sec: libc::time_t::try_from(patience.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        loop {
            // SAFETY: semtimedop reads one `sembuf` (the count says so) and one `timespec`; both live on this stack
            // frame for the whole call.
            let result =
                unsafe { libc::syscall(libc::SYS_semtimedop, self.id, &raw mut operation, 1_usize, &raw const limit) };
            if result >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl Drop for Semaphore {
    fn drop(&mut self) {
        // SAFETY: IPC_RMID takes no fourth argument and touches no memory of ours. If somebody removed the semaphore
        // before us there is nothing left to do.
        let _ = unsafe { libc::semctl(self.id, 0, libc::IPC_RMID) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn counts_waits_and_disappears() {
        let key = 0x4d4d_0000 | (std::process::id() & 0xffff);
        let Ok(semaphore) = Semaphore::create(key) else {
            eprintln!("SKIPPED dmsetup counts_waits_and_disappears: no System V semaphores here");
            return;
        };
        assert_eq!(Semaphore::create(key).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        semaphore.wait_for_zero(SHORT).unwrap();
        semaphore.add(2, SHORT).unwrap();
        assert_eq!(semaphore.wait_for_zero(SHORT).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        semaphore.add(-1, SHORT).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| semaphore.wait_for_zero(Duration::from_secs(60)).unwrap());
            semaphore.add(-1, SHORT).unwrap();
        });
        drop(semaphore);
        drop(Semaphore::create(key).unwrap());
    }
}
