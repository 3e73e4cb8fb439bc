//! A System V semaphore as device-mapper's udev protocol uses it: a counter, found by its key; and beside it one that tells
//! whether its maker lives.
//!
//! * The set that [`Semaphore::create`] made is removed when the value is dropped.
//! * Its maker may be killed before that. The second counter is one while the maker lives: the kernel takes that one back
//!   (`SEM_UNDO`) when the process ends, however it ends. [`remove_orphans`] removes the sets that have none.
//! * Other tools' semaphores have one counter and are left alone, and so are those of other users.
//!
//! Source: semget(2), semop(2), semctl(2), proc(5) (`/proc/sysvipc/sem`).

use std::fs;
use std::io;
use std::thread::sleep;
use std::time::Duration;

/// What the kernel says about every set of semaphores.
const LISTED: &str = "/proc/sysvipc/sem";
/// The counter that other processes know.
const COUNTER: u16 = 0;
/// The one that is zero when the maker is gone.
const ALIVE: u16 = 1;
const COUNTERS: libc::c_int = 2;

/// A counter that other processes find by its key.
#[derive(Debug)]
pub(crate) struct Semaphore {
    id: libc::c_int,
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Long after its maker got hold of a set, it has touched it.
const MAKING: Duration = Duration::from_millis(20);
/// `SEM_UNDO`: taken back when the process ends.
const UNDO: i16 = 0x1000;

impl Semaphore {
    /// A new semaphore for the processes of this user, its counter at `value`; EEXIST when `key` is taken. Until it has
    /// its value it looks orphaned, and somebody may remove it: that is EIDRM or EINVAL.
    pub(crate) fn create(key: u32, value: i16, patience: Duration) -> io::Result<Semaphore> {
        // The key is a bit pattern; the kernel's type for it is signed.
        let key = libc::key_t::from_ne_bytes(key.to_ne_bytes());
        // SAFETY: semget takes three integers and touches no memory of ours.
        let id = checked(unsafe { libc::semget(key, COUNTERS, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) })?;
        let semaphore = Semaphore { id };
        semaphore.operate(ALIVE, 1, UNDO, patience)?;
        semaphore.operate(COUNTER, value, 0, patience)?;
        Ok(semaphore)
    }

    /// Adds to the counter; with -1 waits until there is something to take.
    pub(crate) fn add(&self, change: i16, patience: Duration) -> io::Result<()> {
        self.operate(COUNTER, change, 0, patience)
    }

    /// Waits until the counter is zero; EAGAIN after `patience`.
    pub(crate) fn wait_for_zero(&self, patience: Duration) -> io::Result<()> {
        self.operate(COUNTER, 0, 0, patience)
    }

    fn operate(&self, which: u16, change: i16, flags: i16, patience: Duration) -> io::Result<()> {
        let mut operation = libc::sembuf { sem_num: which, sem_op: change, sem_flg: flags };
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
        // If somebody removed the semaphore before us there is nothing left to do.
        let _ = remove(self.id);
    }
}

fn remove(id: libc::c_int) -> io::Result<()> {
    // SAFETY: IPC_RMID takes no fourth argument and touches no memory of ours.
    checked(unsafe { libc::semctl(id, 0, libc::IPC_RMID) }).map(drop)
}

/// Removes the semaphores of this user whose maker was killed and whose keys have `prefix` as upper half. How many.
pub(crate) fn remove_orphans(prefix: u16) -> usize {
    let listed = fs::read_to_string(LISTED).unwrap_or_default();
    let own = rustix::process::geteuid().as_raw();
    let candidates = listed.lines().filter_map(|line| made_here(line, prefix, own));
    candidates.filter(|id| is_orphan(*id) && remove(*id).is_ok()).count()
}

fn is_orphan(id: libc::c_int) -> bool {
    // SAFETY: neither GETVAL nor GETPID takes a fourth argument; they touch no memory of ours.
    let ask = |what| checked(unsafe { libc::semctl(id, libc::c_int::from(ALIVE), what) });
    let has_no_maker = || ask(libc::GETVAL).is_ok_and(|value| value == 0);
    if has_no_maker() && ask(libc::GETPID).is_ok_and(|pid| pid == 0) {
        // Nobody touched it yet: it is just being made, or its maker was killed over it.
        sleep(MAKING);
    }
    has_no_maker()
}

/// The id in a line of [`LISTED`] (key, semid, perms, nsems, uid, gid, cuid, cgid, ...) if [`Semaphore::create`] made it
/// for the user `own`.
fn made_here(line: &str, prefix: u16, own: u32) -> Option<libc::c_int> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<i64>().ok();
    let key = i32::try_from(number(0)?).ok()?.cast_unsigned();
    let is_ours = key >> 16 == u32::from(prefix)
        && number(3)? == i64::from(COUNTERS)
        && number(4)? == i64::from(own)
        && number(6)? == i64::from(own);
    is_ours.then(|| number(1)?.try_into().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    /// A prefix that no other test and no tool uses.
    fn prefix() -> u16 {
        0x4000 | u16::try_from(std::process::id() & 0x0fff).unwrap()
    }

    fn create(key: u32, value: i16) -> io::Result<Semaphore> {
        Semaphore::create(key, value, SHORT)
    }

    #[test]
    fn counts_waits_and_disappears() {
        let key = 0x4d4d_0000 | (std::process::id() & 0xffff);
        let Ok(semaphore) = create(key, 0) else {
            eprintln!("SKIPPED dmsetup counts_waits_and_disappears: no System V semaphores here");
            return;
        };
        assert_eq!(create(key, 0).unwrap_err().raw_os_error(), Some(libc::EEXIST));
        semaphore.wait_for_zero(SHORT).unwrap();
        semaphore.add(2, SHORT).unwrap();
        assert_eq!(semaphore.wait_for_zero(SHORT).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        semaphore.add(-1, SHORT).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| semaphore.wait_for_zero(Duration::from_secs(60)).unwrap());
            semaphore.add(-1, SHORT).unwrap();
        });
        drop(semaphore);
        drop(create(key, 0).unwrap());
    }

    /// The child makes one and ends without removing it, as if it had been killed.
    #[test]
    fn only_what_a_dead_process_of_this_user_made_is_removed() {
        let (prefix, name) = (prefix(), "only_what_a_dead_process_of_this_user_made_is_removed");
        if let Ok(key) = std::env::var("LUKS_TEST_ORPHAN_KEY") {
            std::mem::forget(create(key.parse().unwrap(), 2).unwrap());
            return;
        }
        let key = |low: u32| u32::from(prefix) << 16 | low;
        let Ok(alive) = create(key(1), 2) else {
            eprintln!("SKIPPED dmsetup {name}: no System V semaphores here");
            return;
        };
        // SAFETY: as in `create`. With one counter, as other tools make them.
        let theirs = Semaphore { id: unsafe { libc::semget(key(2).cast_signed(), 1, libc::IPC_CREAT | 0o600) } };
        let other_prefix = create((u32::from(prefix) ^ 0x1000) << 16 | 3, 0).unwrap();
        let orphan = key(4);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", &format!("semaphore::tests::{name}")]).env("LUKS_TEST_ORPHAN_KEY", orphan.to_string());
        assert!(child.output().unwrap().status.success());
        assert_eq!(create(orphan, 0).unwrap_err().raw_os_error(), Some(libc::EEXIST), "the child left none");
        assert_eq!(remove_orphans(prefix), 1);
        drop(create(orphan, 0).unwrap());
        for untouched in [&alive, &theirs, &other_prefix] {
            untouched.add(1, SHORT).unwrap();
        }
        assert_eq!(remove_orphans(prefix), 0);
    }

    #[test]
    fn a_line_of_the_kernel_is_believed_only_if_all_of_it_fits() {
        let line = |key: i64, counters: u32, uid: u32, cuid: u32| {
            format!("{key:>10} {:>10}  600 {counters:>10} {uid:>5}     0 {cuid:>5}     0 1700000000 1700000000", 7)
        };
        let key = 0x0d4d_1234;
        assert_eq!(made_here(&line(key, 2, 0, 0), 0x0d4d, 0), Some(7));
        for other in [line(key, 1, 0, 0), line(key, 2, 1, 0), line(key, 2, 0, 1), line(-5, 2, 0, 0), String::new()] {
            assert_eq!(made_here(&other, 0x0d4d, 0), None, "{other}");
        }
        assert_eq!(made_here("       key      semid perms      nsems   uid   gid  cuid  cgid", 0x0d4d, 0), None);
    }
}
