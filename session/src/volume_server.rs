//! The one volume of a server process: unlocked, exported, suspended, resumed, closed.
//!
//! * One thing at a time: `work` is held by the verb that changes something; `status` only looks at `view` and never waits.
//! * Keys: the passphrase comes in locked memory; unlocking and key set-up run on a thread of their own whose stack is
//!   overwritten afterwards; the volume key is dropped (and so wiped) as soon as the ciphers are built.
//! * Nothing half: an unlock that fails on the way takes back what it had done, in reverse order.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use block::{BlockIo as _, Bytes, FileDisk};
use luks::{Policy, Volume};
use rustix::event::{EventfdFlags, eventfd};
use secret::Secret;

use crate::backend::{Backend, BackendOptions};
use crate::container::{Opened, Prepared, Proof};
use crate::protocol::{ResizeOrder, UnlockOrder};
use crate::registry::{Info, RegistryLock, identity};
use crate::run_dir::{Entry, replace_link};
use crate::{Failure, FailureKind, OpenReport, SessionError, State, Status};

/// How long a verb waits for the one before it.
const TURN_WAIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// Values of [`VolumeServer::deriving`].
const IDLE: u8 = 0;
const DERIVING: u8 = 1;
const ABANDONED: u8 = 2;

/// The state of the server.
pub(crate) struct VolumeServer {
    pub(crate) entry: Entry,
    work: Mutex<Work>,
    view: Mutex<View>,
    over: AtomicBool,
    /// Whether a client has come so far as to ask for an unlock.
    asked: AtomicBool,
    /// Whether a key is being derived, and for whom.
    deriving: AtomicU8,
    /// Wakes the main loop when it is over.
    wake: OwnedFd,
}

enum Work {
    /// No passphrase has come yet.
    Idle,
    /// The image is open and locked; the passphrase was wrong.
    Prepared(Box<Prepared>),
    Open(Box<Open>),
    /// Closed, or given up.
    Over,
}

struct Open {
    opened: Opened,
    backend: Backend,
    /// How long the device was when it was announced or last resized.
    shown: Bytes,
}

/// What `status` shows without waiting for anybody.
struct View {
    status: Status,
    volume: Weak<Volume<FileDisk>>,
    problem: Option<String>,
}

impl VolumeServer {
    pub(crate) fn new(entry: Entry, denied: Vec<String>) -> Result<VolumeServer, SessionError> {
        let mut status = Status::bare(entry.name.as_str(), State::Opening);
        status.denied = denied;
        status.pid = Some(own_pid());
        let view = Mutex::new(View { status, volume: Weak::new(), problem: None });
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(SessionError::errno("make an event for", &entry.folder))?;
        Ok(VolumeServer {
            entry,
            work: Mutex::new(Work::Idle),
            view,
            over: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            deriving: AtomicU8::new(IDLE),
            wake,
        })
    }

    /// Readable once [`VolumeServer::is_over`].
    pub(crate) fn end_event(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Whether the process has nothing more to do.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Unlocks and exports. `client_is_gone` is asked right before the volume is announced.
    pub(crate) fn unlock(
        &self,
        order: &UnlockOrder,
        passphrase: Secret,
        client_is_gone: impl Fn() -> bool,
    ) -> Result<OpenReport, Failure> {
        self.asked.store(true, Ordering::Release);
        let mut work = self.take_turn()?;
        let prepared = match std::mem::replace(&mut *work, Work::Idle) {
            Work::Idle => Box::new(Prepared::open(order)?),
            Work::Prepared(prepared) => prepared,
            Work::Over => {
                *work = Work::Over;
                return Err(self.over_failure());
            }
            other @ Work::Open(_) => {
                *work = other;
                return Err(Failure::new(FailureKind::State, format!("{} is open already", self.entry.name)));
            }
        };
        self.deriving.store(DERIVING, Ordering::Release);
        let unlocked = prepared.unlock(Proof::of(order), passphrase);
        if self.deriving.swap(IDLE, Ordering::AcqRel) == ABANDONED {
            return Err(self.over_failure());
        }
        let opened = match unlocked {
            Ok(opened) => opened,
            Err((prepared, failure)) => {
                *work = Work::Prepared(prepared);
                return Err(failure);
            }
        };
        let options = BackendOptions {
            served_by: order.served_by,
            read_only: order.read_only,
            threads: order.threads,
            no_loop: order.no_loop,
            recovery: order.recovery.clone().map(|recovery| (recovery, opened.fingerprint())),
            attach: order.attach,
            listen: order.listen.clone(),
        };
        let backend = Backend::start(&self.entry, &opened.volume, &options)?;
        let shown = opened.volume.geometry().size;
        let mut open = Box::new(Open { opened, backend, shown });
        match self.announce(&open, order, &client_is_gone) {
            Ok(report) => {
                *work = Work::Open(open);
                Ok(report)
            }
            Err(failure) => {
                if let Err(error) = open.backend.stop() {
                    log::error!("{error}");
                }
                Err(failure)
            }
        }
    }

    /// Writes down and shows what was opened.
    fn announce(
        &self,
        open: &Open,
        order: &UnlockOrder,
        client_is_gone: &dyn Fn() -> bool,
    ) -> Result<OpenReport, Failure> {
        let system = |error: SessionError| Failure::new(FailureKind::System, error.to_string());
        if client_is_gone() {
            return Err(Failure::new(FailureKind::System, "the client is gone; the volume is closed again"));
        }
        let device = open.backend.device().to_path_buf();
        let opened_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let info = Info {
            image: order.image.clone(),
            header: order.header.clone(),
            identity: identity(&order.image).map_err(system)?,
            uuid: open.opened.facts.uuid.clone(),
            pid: Some(own_pid()),
            device: device.clone(),
            backend: open.backend.name().to_owned(),
            read_only: order.read_only,
            opened_unix_s,
            mapping: None,
        };
        info.write(&self.entry).map_err(system)?;
        replace_link(&self.entry.folder, "device", &device).map_err(system)?;
        self.show(open, &info);
        log::info!("{} is open: {} as {}", self.entry.name, order.image.display(), device.display());
        Ok(OpenReport {
            name: self.entry.name.to_string(),
            link: self.entry.device(),
            backend: info.backend,
            uri: open.backend.uri(),
            tls_uri: open.backend.tls_uri(),
            uuid: info.uuid,
            keyslot: open.opened.facts.keyslot,
            pid: info.pid,
            device,
            not_possible: Vec::new(),
        })
    }

    fn show(&self, open: &Open, info: &Info) {
        let mut view = self.view();
        let facts = &open.opened.facts;
        let status = &mut view.status;
        status.state = State::Open;
        status.image = Some(info.image.clone());
        status.header = info.header.clone();
        status.uuid = Some(info.uuid.clone());
        status.luks_version = Some(facts.version.number());
        status.device = Some(info.device.clone());
        status.backend = Some(info.backend.clone());
        status.uri = open.backend.uri();
        status.tls_uri = open.backend.tls_uri();
        status.cipher = facts.cipher.clone();
        status.engine = Some(dmcrypt::kernel_and_reason());
        status.key_size_bits = Some(facts.key_size_bits);
        status.sector_size_bytes = facts.sector_size_bytes;
        status.size_bytes = Some(open.opened.volume.geometry().size.0);
        status.read_only = info.read_only;
        status.keyslot = facts.keyslot;
        status.opened_unix_s = Some(info.opened_unix_s);
        view.volume = Arc::downgrade(&open.opened.volume);
    }

    /// What `status` answers.
    pub(crate) fn status(&self) -> Status {
        self.look_after();
        let view = self.view();
        let mut status = view.status.clone();
        status.problem = view.problem.clone();
        if let (Some(volume), State::Open) = (view.volume.upgrade(), status.state) {
            status.size_bytes = Some(volume.geometry().size.0);
            if volume.is_suspended() {
                status.state = State::Suspended;
            }
            if volume.is_poisoned() {
                status.problem = Some(format!(
                    "failed: reopen. A write or flush was lost, so every later one is refused; unmount, \
                     `luksctl close {}`, open again",
                    self.entry.name
                ));
            }
        }
        if status.problem.is_some() {
            status.state = State::Failed;
        }
        status
    }

    /// Flushes, ends the I/O inside, wipes the keys.
    pub(crate) fn suspend(&self) -> Result<(), Failure> {
        let work = self.take_turn()?;
        let open = self.open_of(&work)?;
        let volume = &open.opened.volume;
        if volume.is_suspended() {
            return Err(Failure::new(FailureKind::State, format!("{} is suspended already", self.entry.name)));
        }
        if !open.opened.read_only {
            volume.flush().map_err(|error| {
                Failure::new(FailureKind::LostWrites, format!("{} was not suspended: {error}", self.entry.name))
            })?;
        }
        secret::scrubbed(|| volume.suspend());
        log::info!("suspended");
        Ok(())
    }

    /// Unlocks a suspended volume again.
    pub(crate) fn resume(&self, passphrase: Secret, policy: Option<&Policy>) -> Result<(), Failure> {
        let work = self.take_turn()?;
        let open = self.open_of(&work)?;
        if !open.opened.volume.is_suspended() {
            return Err(Failure::new(FailureKind::State, format!("{} is not suspended", self.entry.name)));
        }
        open.opened.resume(passphrase, policy)?;
        log::info!("resumed");
        Ok(())
    }

    /// Makes the device as long as the image has become; tells its size now and before, in bytes.
    pub(crate) fn resize(&self, order: &ResizeOrder) -> Result<(u64, u64), Failure> {
        let mut work = self.take_turn()?;
        self.open_of(&work)?;
        let Work::Open(open) = &mut *work else { return Err(self.over_failure()) };
        let name = &self.entry.name;
        if open.opened.volume.is_suspended() {
            return Err(Failure::new(FailureKind::State, format!("{name} is suspended: resume it first")));
        }
        let named = |kind, what: String| Failure::new(kind, format!("{name}: {what}"));
        let policy = order.policy.as_ref().map(Policy::from);
        let room = open.opened.room(policy.as_ref()).map_err(|failure| named(failure.kind, failure.message))?;
        let was = open.shown;
        if room < was {
            let what = format!("the image shrank under it: it was opened with {was}, there are {room}");
            return Err(named(FailureKind::Image, what));
        }
        match order.size_bytes.map(Bytes) {
            Some(size) if size > room => {
                return Err(named(FailureKind::Image, format!("there is room for {room} below it")));
            }
            Some(size) if size < room => {
                let what = format!("it is served, and so always as long as its image has room for, {room}, not {size}");
                return Err(named(FailureKind::Size, what));
            }
            _ => {}
        }
        open.backend.resized()?;
        open.shown = room;
        log::info!("resized from {was} to {room}");
        Ok((room.0, was.0))
    }

    /// Closes. `Ok(Some)` says which writes were lost. Refused while somebody uses the device; everything goes on then.
    pub(crate) fn stop(&self) -> Result<Option<String>, Failure> {
        let mut work = self.take_turn()?;
        let lost = match &mut *work {
            Work::Idle | Work::Prepared(_) => None,
            Work::Open(open) => self.stop_open(open)?,
            Work::Over => return Err(self.over_failure()),
        };
        // Drops ciphers, image and use lock before the folder goes and the name is free.
        *work = Work::Over;
        self.end();
        Ok(lost)
    }

    fn stop_open(&self, open: &mut Open) -> Result<Option<String>, Failure> {
        let users = open.backend.users();
        if !users.is_empty() {
            return Err(Failure::new(FailureKind::Busy, users.join("; ")));
        }
        let volume = Arc::clone(&open.opened.volume);
        let flushes = !open.opened.read_only && !volume.is_suspended();
        match volume.waiting_writes() {
            0 => {}
            // Whoever sent them may be gone already: the kernel writes back what a program left behind.
            count => {
                open.backend.go_on();
                let how =
                    format!("it is suspended and {count} writes wait; `luksctl resume {}` first", self.entry.name);
                return Err(Failure::new(FailureKind::Busy, how));
            }
        }
        self.view().status.state = State::Closing;
        let early = if flushes { lost(&volume.flush()) } else { None };
        if volume.is_suspended() {
            // Nobody uses the device, so nobody waits for a resume; what the teardown itself asks for must not wait.
            volume.fail_suspended();
        }
        let stopped = open.backend.stop().inspect_err(|_| self.view().status.state = State::Open)?;
        let late = if flushes { lost(&volume.flush()) } else { None };
        secret::scrubbed(|| volume.suspend());
        volume.fail_suspended();
        let refused = volume.has_refused_writes().then(|| "writes came while it was suspended".to_owned());
        let lost = early.or(stopped).or(late).or(refused);
        match &lost {
            None => log::info!("closed"),
            Some(reason) => log::error!("closed, writes were lost: {reason}"),
        }
        Ok(lost)
    }

    /// Ends the process in the middle of a key derivation, which may take minutes and cannot be interrupted. Nothing is
    /// exported yet, and the kernel clears the memory. False if no derivation is under way.
    pub(crate) fn abandon_derivation(&self) -> bool {
        let abandoned =
            self.deriving.compare_exchange(DERIVING, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if abandoned {
            log::warn!("the client is gone in the middle of an unlock");
            self.end();
        }
        abandoned
    }

    fn end(&self) {
        // The lock file goes before its folder does: without the registry lock, somebody could take the name in between
        // and lose the new folder.
        let registry = self.entry.run_dir().and_then(|run| RegistryLock::take(&run));
        if let Err(error) = &registry {
            log::warn!("{error}");
        }
        if let Err(error) = self.entry.remove() {
            log::error!("{error}");
        }
        drop(registry);
        self.over.store(true, Ordering::Release);
        if let Err(errno) = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()) {
            log::warn!("cannot wake the main loop: {errno}");
        }
    }

    /// Gives up a volume that was never announced, because its client is gone.
    pub(crate) fn give_up(&self) {
        let opening = matches!(self.view().status.state, State::Opening);
        if opening && let Err(error) = self.stop() {
            log::warn!("{error}");
        }
    }

    /// A signal asks for the end: obeyed only if nobody uses the volume.
    pub(crate) fn end_if_unused(&self, why: &str) {
        match self.stop() {
            Ok(_) => log::info!("ended by {why}"),
            Err(failure) => log::warn!("{why} is ignored: {failure}"),
        }
    }

    /// Notices what happened behind our back.
    pub(crate) fn look_after(&self) {
        // Whoever holds it is about to find out by himself.
        let Ok(work) = self.work.try_lock() else {
            return;
        };
        let Work::Open(open) = &*work else {
            return;
        };
        let mut view = self.view();
        if view.problem.is_none()
            && let Some(loss) = open.backend.loss()
        {
            log::error!("{loss}");
            view.problem = Some(format!("failed: reopen. {loss}, the device is gone"));
        }
    }

    /// Whether an unlock has succeeded and nothing has been closed since.
    pub(crate) fn is_in_service(&self) -> bool {
        !matches!(self.view().status.state, State::Opening)
    }

    /// Whether anybody has asked for an unlock; who has is watched by its connection.
    pub(crate) fn was_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    fn open_of<'a>(&self, work: &'a Work) -> Result<&'a Open, Failure> {
        match work {
            Work::Open(open) => Ok(open),
            Work::Over => Err(self.over_failure()),
            _ => Err(Failure::new(FailureKind::State, format!("{} is not open yet", self.entry.name))),
        }
    }

    fn over_failure(&self) -> Failure {
        Failure::new(FailureKind::State, format!("{} is closed", self.entry.name))
    }

    fn take_turn(&self) -> Result<MutexGuard<'_, Work>, Failure> {
        let until = Instant::now() + TURN_WAIT;
        loop {
            match self.work.try_lock() {
                Ok(work) => return Ok(work),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                    let what = format!("another operation on {} is not finished", self.entry.name);
                    return Err(Failure::new(FailureKind::State, what));
                }
                Err(TryLockError::WouldBlock) => sleep(POLL),
            }
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        // Every critical section only assigns: a panic elsewhere leaves nothing half done.
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost(result: &Result<(), block::BlockError>) -> Option<String> {
    result.as_ref().err().map(ToString::to_string)
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// Whether `folder` still is the run directory's entry of this server, by the lock that the server holds.
pub(crate) fn still_registered(folder: &Path, lock: &std::fs::File) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let there = std::fs::metadata(folder.join("lock"));
    matches!((there, lock.metadata()), (Ok(there), Ok(held)) if (there.dev(), there.ino()) == (held.dev(), held.ino()))
}
