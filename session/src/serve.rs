//! The server process: hardened first, then listening, then, once it has a passphrase, serving its volume until `stop`.
//!
//! * One thread per connection, at most [`CONNECTIONS_MAX`]; a slow or hostile one delays nobody and is cut off in time.
//! * The connection that sends `unlock` owns the server until the volume is open: when it ends before that, the server
//!   cleans up and ends, so a client that dies leaves nothing half done.
//! * SIGHUP and SIGINT are ignored, SIGTERM is obeyed only while nobody uses the volume.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use luks::Policy;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::socket_path;
use crate::opener::Opener;
use crate::protocol::{Reply, Request, UnlockOrder, Wire, WireError};
use crate::registry::{RegistryLock, claim};
use crate::run_dir::{Entry, RunDir};
use crate::ublk_recovery::{WATCH_WORD, watch};
use crate::volume_server::{VolumeServer, still_registered};
use crate::{Failure, FailureKind, OpenReport, SessionError, cpu, harden, inherited, log_file};

/// The hidden verb of a program that can be a server: `PROGRAM __serve RUN NAME`.
pub const SERVE_VERB: &str = "__serve";

/// Connections served at a time; more are closed at once.
const CONNECTIONS_MAX: usize = 16;
/// How often the main thread looks around: in service, and before that, while its client may end without a word.
const TICK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
const TICK_BEFORE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// A client asks for its unlock as soon as it can.
const CLIENT_WAIT: Duration = Duration::from_secs(60);
/// Before another try to take a connection when there is nothing left to take it with.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// A person between two tries.
const TYPING_WAIT: Duration = Duration::from_secs(900);
/// A connection that asks for nothing.
const IDLE_WAIT: Duration = Duration::from_secs(30);
/// How often an unlock looks whether its client still waits.
const WATCH_EVERY: Duration = Duration::from_millis(100);
const REPLY_WAIT: Duration = Duration::from_secs(10);

/// The body of the server process. `arguments` are the run directory and the name, as [`crate::open`] passes them.
///
/// Returns when the volume is closed. To be called first thing in the process, before it opens a file or starts a thread.
pub fn serve(arguments: &[OsString]) -> ExitCode {
    let inherited = inherited::close_all_but_standard();
    let [run, name] = arguments else {
        return ExitCode::FAILURE;
    };
    // Already the leader of a session under systemd.
    let _ = rustix::process::setsid();
    if run == WATCH_WORD {
        return watch(name);
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Executed as /proc/self/exe, it would be called "exe" in ps and top.
    let _ = rustix::thread::set_name(c"luksctl");
    let mut denied = harden::harden();
    if let Err(error) = inherited {
        denied.push(format!("closing inherited files: {error}"));
    }
    let ended = std::env::set_current_dir("/")
        .map_err(SessionError::io("enter", Path::new("/")))
        .and_then(|()| run_server(Path::new(run), &name.to_string_lossy(), denied));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run_server(run: &Path, name: &str, denied: Vec<String>) -> Result<(), SessionError> {
    let run = RunDir::at(run)?;
    let entry = run.entry(&name.parse()?);
    log_file::install(&entry.log())?;
    // The command that started this server obeyed the same name, so a failure is worth a word, not a volume.
    if let Err(error) = cpu::obey_cpu_variable() {
        log::warn!("{error}");
    }
    let signals = block_signals(&entry)?;
    let opener = Opener::of_environment();
    let lock = claim(&entry)?;
    if opener.is_gone() {
        // Until the claim this was a leftover like any other; whoever holds the registry lock may be using the name now.
        if !RegistryLock::is_taken(&run)? {
            entry.remove()?;
        }
        return Ok(());
    }
    for line in &denied {
        log::warn!("denied: {line}");
    }
    let listener = listen(&entry)?;
    let server = Arc::new(VolumeServer::new(entry, denied)?);
    main_loop(&server, &listener, &signals, &lock, &opener)
}

/// Takes the signals off every thread that will be, for the main loop to read.
fn block_signals(entry: &Entry) -> Result<SignalFd, SessionError> {
    let failed = |errno: nix::errno::Errno| SessionError::io("block signals for", &entry.folder)(errno.into());
    let mut set = SigSet::empty();
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        set.add(signal);
    }
    set.thread_block().map_err(failed)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}

fn listen(entry: &Entry) -> Result<UnixListener, SessionError> {
    let path = entry.folder.join("control");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(SessionError::io("remove", &path)(error)),
        _ => {}
    }
    let (_folder, short) = socket_path(&entry.folder)?;
    let listener = UnixListener::bind(&short).map_err(SessionError::io("listen on", &path))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(SessionError::io("protect", &path))?;
    listener.set_nonblocking(true).map_err(SessionError::io("listen on", &path))?;
    Ok(listener)
}

fn main_loop(
    server: &Arc<VolumeServer>,
    listener: &UnixListener,
    signals: &SignalFd,
    lock: &File,
    opener: &Opener,
) -> Result<(), SessionError> {
    let connections = Arc::new(AtomicUsize::new(0));
    let asked_until = Instant::now() + CLIENT_WAIT;
    while !server.is_over() {
        let mut ready = [listener.as_fd(), signals.as_fd(), server.end_event()]
            .map(|event| PollFd::from_borrowed_fd(event, PollFlags::IN));
        let tick = if server.was_asked() { TICK } else { TICK_BEFORE };
        match poll(&mut ready, Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(SessionError::errno("wait on", &server.entry.folder)(errno)),
        }
        match listener.accept() {
            Ok((stream, _)) => attend(server, &connections, stream),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            // Out of descriptors, most likely: the connection stays in the queue, so poll would return at once for ever.
            Err(error) => {
                log::warn!("a connection cannot be taken: {error}");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            on_signal(server, signal.ssi_signo);
        }
        if !server.was_asked() && (opener.is_gone() || Instant::now() >= asked_until) {
            // It died before it asked for anything: the name must not stay taken.
            server.end_if_unused("the lack of a client");
        }
        server.look_after();
        if server.is_in_service() && !server.is_over() && !still_registered(&server.entry.folder, lock) {
            log::warn!("the run directory is gone");
            server.end_if_unused("the loss of the run directory");
        }
    }
    wait_for_replies(&connections);
    Ok(())
}

/// Lets the threads that are in the middle of an answer finish it.
fn wait_for_replies(connections: &AtomicUsize) {
    let until = Instant::now() + Duration::from_millis(500);
    while connections.load(Ordering::Acquire) > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn on_signal(server: &Arc<VolumeServer>, number: u32) {
    if i32::try_from(number) != Ok(Signal::SIGTERM as i32) {
        log::info!("signal {number} is ignored");
        return;
    }
    let server = Arc::clone(server);
    // Closing waits for the disk; the main loop must not.
    let spawned = std::thread::Builder::new().name("sigterm".to_owned()).spawn(move || server.end_if_unused("SIGTERM"));
    if let Err(error) = spawned {
        log::error!("cannot start a thread: {error}");
    }
}

/// Serves one connection on a thread of its own.
fn attend(server: &Arc<VolumeServer>, connections: &Arc<AtomicUsize>, stream: UnixStream) {
    if connections.fetch_add(1, Ordering::AcqRel) >= CONNECTIONS_MAX {
        connections.fetch_sub(1, Ordering::AcqRel);
        log::warn!("a connection was closed: {CONNECTIONS_MAX} are open already");
        return;
    }
    let (server, counter) = (Arc::clone(server), Arc::clone(connections));
    let serve = move || {
        let place = Place(counter);
        if let Err(error) = check_peer(&stream).and_then(|()| converse(&server, &mut Wire::new(stream))) {
            log::warn!("a connection was closed: {error}");
        }
        drop(place);
    };
    if let Err(error) = std::thread::Builder::new().name("control".to_owned()).spawn(serve) {
        connections.fetch_sub(1, Ordering::AcqRel);
        log::error!("cannot start a thread: {error}");
    }
}

/// One of the connections, given back on drop, also when its thread panics.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Only the same user and root may speak here, whatever the permissions of the folder have become.
fn check_peer(stream: &UnixStream) -> Result<(), WireError> {
    stream.set_nonblocking(false)?;
    let peer = rustix::net::sockopt::socket_peercred(stream).map_err(std::io::Error::from)?;
    if peer.uid.is_root() || peer.uid == rustix::process::geteuid() {
        return Ok(());
    }
    Err(WireError::Garbage(format!("user {} may not use this volume", peer.uid.as_raw())))
}

/// Takes requests until the other side has had enough. The owner of an unlock that came to nothing takes the server along.
fn converse(server: &VolumeServer, wire: &mut Wire) -> Result<(), WireError> {
    let mut owner = false;
    let ended = requests(server, wire, &mut owner);
    if owner && !server.is_over() {
        server.give_up();
    }
    ended
}

fn requests(server: &VolumeServer, wire: &mut Wire, owner: &mut bool) -> Result<(), WireError> {
    while !server.is_over() {
        let wait = if *owner && !server.is_in_service() { TYPING_WAIT } else { IDLE_WAIT };
        let (request, secret) = match wire.receive::<Request>(wait) {
            Ok(message) => message,
            Err(WireError::Closed) => return Ok(()),
            Err(error) => {
                let failure = Failure::new(FailureKind::Protocol, error.to_string());
                // The other side may not listen; the first error is the one to keep.
                let _ = wire.send(Reply::Failed(failure), None, REPLY_WAIT);
                return Err(error);
            }
        };
        let opens = matches!(request, Request::Unlock(_));
        *owner |= opens;
        let reply = answer(server, wire, request, secret);
        let opened = matches!(reply, Reply::Opened(_));
        let sent = wire.send(reply, None, REPLY_WAIT);
        if let (Err(_), true) = (&sent, opened) {
            // Nobody knows that the volume is open.
            server.end_if_unused("the loss of the client");
        }
        sent?;
    }
    Ok(())
}

/// Unlocks, and watches meanwhile whether the client still waits for it.
fn unlock(
    server: &VolumeServer,
    wire: &Wire,
    order: &UnlockOrder,
    secret: secret::Secret,
) -> Result<OpenReport, Failure> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = || {
            while !done.load(Ordering::Acquire) {
                if wire.peer_is_gone() && server.abandon_derivation() {
                    break;
                }
                std::thread::park_timeout(WATCH_EVERY);
            }
        };
        let watcher = std::thread::Builder::new().name("watch".to_owned()).spawn_scoped(scope, watch);
        let result = server.unlock(order, secret, || wire.peer_is_gone());
        done.store(true, Ordering::Release);
        match watcher {
            Ok(watcher) => watcher.thread().unpark(),
            // The client's death is noticed after the derivation then.
            Err(error) => log::warn!("cannot start a thread: {error}"),
        }
        result
    })
}

fn answer(server: &VolumeServer, wire: &Wire, request: Request, secret: Option<secret::Secret>) -> Reply {
    let needs_secret = || Failure::new(FailureKind::Protocol, "this verb needs a passphrase, and none followed");
    let result = match (request, secret) {
        (Request::Status, _) => Ok(Reply::Status(Box::new(server.status()))),
        (Request::Unlock(order), Some(secret)) => {
            unlock(server, wire, &order, secret).map(|report| Reply::Opened(Box::new(report)))
        }
        (Request::Resume, Some(secret)) => server.resume(secret, None).map(|()| Reply::Done),
        (Request::ResumeUnder { policy }, Some(secret)) => {
            server.resume(secret, Some(&Policy::from(&*policy))).map(|()| Reply::Done)
        }
        (Request::Unlock(_) | Request::Resume | Request::ResumeUnder { .. }, None) => Err(needs_secret()),
        (Request::Resize(order), _) => {
            server.resize(&order).map(|(size_bytes, was_bytes)| Reply::Resized { size_bytes, was_bytes })
        }
        (Request::Suspend, _) => server.suspend().map(|()| Reply::Done),
        (Request::Stop, _) => server.stop().map(|lost| Reply::Stopped { lost }),
    };
    result.unwrap_or_else(|failure| {
        log::warn!("refused: {failure}");
        Reply::Failed(failure)
    })
}
