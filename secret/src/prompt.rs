//! [`Prompt`]: asks for a passphrase on the terminal, without echo.
//!
//! Invariants: the answer goes from the terminal into a [`Secret`] and nowhere else; the terminal's echo is back after an
//! answer, an error, a panic, and before SIGINT, SIGTERM, SIGHUP, SIGQUIT or SIGTSTP take effect. For the signals this
//! thread blocks them while it asks and reads them from a signalfd; a process with other threads must block them there too.
//!
//! Sources: termios(3), signalfd(2); limit of 512 bytes as cryptsetup's.

use crate::{KeyProvider, KeyRequest, KeySourceError, Purpose, Secret};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::{self, LocalModes, OptionalActions, QueueSelector, Termios};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The longest passphrase that can be typed.
pub const TYPED_LIMIT_BYTES: usize = 512;

/// The signals that must not leave a terminal without echo.
const SIGNALS: [Signal; 5] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP];

/// Asks on the controlling terminal.
#[derive(Clone, Debug)]
pub struct Prompt {
    device: PathBuf,
    timeout: Option<Duration>,
    ask_new_twice: bool,
}

impl Default for Prompt {
    fn default() -> Prompt {
        Prompt::new()
    }
}

/// How one wait for an answer ended.
enum Answer {
    Typed(Secret),
    Signal(Signal),
}

impl Prompt {
    /// Asks on `/dev/tty`, waits without end, and asks twice for a new passphrase.
    pub fn new() -> Prompt {
        Prompt::on("/dev/tty".into())
    }

    /// Asks on another terminal.
    pub fn on(device: PathBuf) -> Prompt {
        Prompt { device, timeout: None, ask_new_twice: true }
    }

    /// Gives up after `timeout`.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Prompt {
        self.timeout = Some(timeout);
        self
    }

    /// Asks once for a new passphrase too.
    #[must_use]
    pub fn asking_once(mut self) -> Prompt {
        self.ask_new_twice = false;
        self
    }

    /// Asks one question and reads one line.
    ///
    /// # Errors
    /// [`KeySourceError`]: no terminal, no answer in time, a signal, or more than 512 bytes.
    pub fn ask(&self, question: &str) -> Result<Secret, KeySourceError> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let terminal = rustix::fs::open(&self.device, flags, Mode::empty())
            .map_err(|errno| KeySourceError::NoTerminal { source: errno.into() })?;
        let began = Instant::now();
        loop {
            let signals = BlockedSignals::block()?;
            let quiet = Quiet::silence(&terminal)?;
            write_all(&terminal, question.as_bytes())?;
            let answer = self.wait_for_line(&terminal, &signals, began);
            // The end of the line was not echoed.
            let _ = write_all(&terminal, b"\n");
            drop(quiet);
            drop(signals);
            match answer? {
                Answer::Typed(secret) => return Ok(secret),
                Answer::Signal(signal) => {
                    // With the echo back and the signal let through: it ends, stops, or is handled by the program.
                    let _ = raise(signal);
                    if signal != Signal::SIGTSTP {
                        return Err(KeySourceError::Interrupted);
                    }
                }
            }
        }
    }

    fn wait_for_line(
        &self,
        terminal: &OwnedFd,
        signals: &BlockedSignals,
        began: Instant,
    ) -> Result<Answer, KeySourceError> {
        // One byte more than the limit, and the newline.
        let mut typed = Secret::zeroed(TYPED_LIMIT_BYTES + 2)?;
        let mut filled = 0;
        loop {
            let mut ready = [PollFd::new(terminal, PollFlags::IN), PollFd::new(&signals.descriptor, PollFlags::IN)];
            let left = self.timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
            match poll(&mut ready, left.map(timespec).as_ref()) {
                Ok(0) => return Err(self.timed_out()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno)),
            }
            if let Ok(Some(info)) = signals.descriptor.read_signal() {
                let number = i32::try_from(info.ssi_signo).unwrap_or(0);
                return Ok(Answer::Signal(Signal::try_from(number).unwrap_or(Signal::SIGINT)));
            }
            if ready[0].revents().is_empty() {
                continue;
            }
            let count = match rustix::io::read(terminal, &mut typed.expose_mut()[filled..]) {
                Ok(count) => count,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(errno) => return Err(self.failed(errno)),
            };
            let newline = typed.expose()[filled..filled + count].iter().position(|&byte| byte == b'\n');
            let end = newline.map(|at| filled + at);
            filled += count;
            match end {
                None if count == 0 && filled == 0 => return Err(KeySourceError::Nothing),
                // Ctrl-D after some bytes ends the line as Enter does.
                None if count == 0 => return Ok(Answer::Typed(typed.truncated(filled))),
                Some(end) if end <= TYPED_LIMIT_BYTES => return Ok(Answer::Typed(typed.truncated(end))),
                None if filled <= TYPED_LIMIT_BYTES => {}
                _ => {
                    // The rest of the line must not become the next answer.
                    let _ = termios::tcflush(terminal, QueueSelector::IFlush);
                    return Err(KeySourceError::TooLongTyped { limit_bytes: TYPED_LIMIT_BYTES });
                }
            }
        }
    }

    fn timed_out(&self) -> KeySourceError {
        KeySourceError::TimedOut { timeout_s: self.timeout.unwrap_or_default().as_secs() }
    }

    fn failed(&self, errno: Errno) -> KeySourceError {
        KeySourceError::Io { what: self.device.display().to_string(), source: errno.into() }
    }
}

impl KeyProvider for Prompt {
    fn key_for(&mut self, request: &KeyRequest<'_>) -> Result<Option<Secret>, KeySourceError> {
        let volume = printable(request.volume);
        let question = match request.purpose {
            Purpose::Unlock => format!("Passphrase for {volume}: "),
            Purpose::ExistingPassphrase => format!("Any existing passphrase for {volume}: "),
            Purpose::RemainingPassphrase => format!("Passphrase of a keyslot of {volume} that stays: "),
            Purpose::NewPassphrase => format!("New passphrase for {volume}: "),
            Purpose::PassphraseToRemove => format!("Passphrase to remove from {volume}: "),
        };
        let answer = self.ask(&question)?;
        if request.purpose == Purpose::NewPassphrase && self.ask_new_twice {
            let again = self.ask("The same passphrase again: ")?;
            if !answer.ct_eq(again.expose()) {
                return Err(KeySourceError::Mismatch);
            }
        }
        Ok(Some(answer))
    }
}

/// A name without the control characters that could rewrite the terminal.
fn printable(name: &str) -> String {
    name.chars().map(|symbol| if symbol.is_control() { '?' } else { symbol }).collect()
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn write_all(terminal: &OwnedFd, mut text: &[u8]) -> Result<(), KeySourceError> {
    while !text.is_empty() {
        match rustix::io::write(terminal, text) {
            Ok(count) => text = &text[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(KeySourceError::NoTerminal { source: errno.into() }),
        }
    }
    Ok(())
}

/// A terminal without echo, until this is dropped.
struct Quiet<'a> {
    terminal: &'a OwnedFd,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn silence(terminal: &'a OwnedFd) -> Result<Quiet<'a>, KeySourceError> {
        let no_terminal = |errno: Errno| KeySourceError::NoTerminal { source: errno.into() };
        let before = termios::tcgetattr(terminal).map_err(no_terminal)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL);
        silent.local_modes.insert(LocalModes::ICANON | LocalModes::ISIG);
        termios::tcsetattr(terminal, OptionalActions::Drain, &silent).map_err(no_terminal)?;
        Ok(Quiet { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // There is nobody to tell: the terminal is gone if this fails.
        let _ = termios::tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

/// [`SIGNALS`] blocked in this thread and readable from a descriptor, until this is dropped.
struct BlockedSignals {
    descriptor: SignalFd,
    before: SigSet,
}

impl BlockedSignals {
    fn block() -> Result<BlockedSignals, KeySourceError> {
        let failed = |errno: nix::errno::Errno| KeySourceError::Io { what: "signals".into(), source: errno.into() };
        let mut set = SigSet::empty();
        SIGNALS.iter().for_each(|&signal| set.add(signal));
        let descriptor = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)?;
        let before = set.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(failed)?;
        Ok(BlockedSignals { descriptor, before })
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // Setting a mask that the kernel gave us cannot fail.
        let _ = self.before.thread_set_mask();
    }
}

#[cfg(test)]
mod tests;
