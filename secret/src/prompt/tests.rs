//! [`super::Prompt`] on a pseudo-terminal. Signals are tested in `tests/prompt_signals.rs`, in a process of one thread.

use super::*;
use nix::pty::openpty;
use std::io::{Read, Write};

/// A person at a pseudo-terminal.
struct Person {
    master: std::fs::File,
    /// Kept open, so that the terminal lives between two prompts.
    slave: OwnedFd,
    path: PathBuf,
}

impl Person {
    fn sits_down() -> Person {
        let pty = openpty(None, None).unwrap();
        let path =
            std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pty.slave))).unwrap();
        Person { master: pty.master.into(), slave: pty.slave, path }
    }

    /// Waits until `text` is on the screen; everything seen since the last call.
    fn sees(&mut self, text: &str) -> String {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(text) {
            self.master.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        String::from_utf8(seen).unwrap()
    }

    fn types(&mut self, text: &[u8]) {
        self.master.write_all(text).unwrap();
    }

    fn has_echo(&self) -> bool {
        termios::tcgetattr(&self.slave).unwrap().local_modes.contains(LocalModes::ECHO)
    }
}

fn answer(person: &mut Person, purpose: Purpose, lines: &[(&str, &[u8])]) -> Result<Option<Secret>, KeySourceError> {
    let mut prompt = Prompt::on(person.path.clone());
    let asked =
        std::thread::spawn(move || prompt.key_for(&KeyRequest { volume: "a\x1b[2Jb.img", purpose, attempt: 1 }));
    for (question, line) in lines {
        person.sees(question);
        assert!(!person.has_echo());
        person.types(line);
    }
    let result = asked.join().unwrap();
    assert!(person.has_echo(), "the echo must be back");
    result
}

#[test]
fn an_answer_is_read_without_echo_and_the_question_is_harmless() {
    let mut person = Person::sits_down();
    let secret =
        answer(&mut person, Purpose::Unlock, &[("Passphrase for a?[2Jb.img: ", b"hunter2\n")]).unwrap().unwrap();
    assert_eq!(secret.expose(), b"hunter2");
    person.types(b"end\n");
    let screen = person.sees("end");
    assert!(!screen.contains("hunter2"), "{screen:?}");
}

#[test]
fn a_new_passphrase_is_asked_for_twice() {
    let mut person = Person::sits_down();
    let same: [(&str, &[u8]); 2] = [("New passphrase", b"new one\n"), ("again: ", b"new one\n")];
    assert_eq!(answer(&mut person, Purpose::NewPassphrase, &same).unwrap().unwrap().expose(), b"new one");
    let other: [(&str, &[u8]); 2] = [("New passphrase", b"new one\n"), ("again: ", b"new onE\n")];
    let error = answer(&mut person, Purpose::NewPassphrase, &other).unwrap_err();
    assert_eq!(error.to_string(), "Passphrases do not match.");
}

#[test]
fn the_limit_is_512_bytes_and_the_rest_is_thrown_away() {
    let mut person = Person::sits_down();
    let line = |len: usize| [vec![b'p'; len], vec![b'\n']].concat();
    let longest = answer(&mut person, Purpose::Unlock, &[("Passphrase", &line(512))]).unwrap().unwrap();
    assert_eq!(longest.len(), 512);
    for len in [513, 514, 2000] {
        let error = answer(&mut person, Purpose::Unlock, &[("Passphrase", &line(len))]).unwrap_err();
        assert!(matches!(error, KeySourceError::TooLongTyped { limit_bytes: 512 }), "{len}: {error}");
    }
    let next = answer(&mut person, Purpose::Unlock, &[("Passphrase", b"next\n")]).unwrap().unwrap();
    assert_eq!(next.expose(), b"next");
}

#[test]
fn ctrl_d_alone_is_nothing_and_enter_alone_is_empty() {
    let mut person = Person::sits_down();
    let error = answer(&mut person, Purpose::Unlock, &[("Passphrase", b"\x04")]).unwrap_err();
    assert!(matches!(error, KeySourceError::Nothing), "{error}");
    assert!(answer(&mut person, Purpose::Unlock, &[("Passphrase", b"\n")]).unwrap().unwrap().is_empty());
}

#[test]
fn nobody_there_times_out_with_the_echo_back() {
    let person = Person::sits_down();
    let prompt = Prompt::on(person.path.clone()).with_timeout(Duration::from_millis(30));
    assert!(matches!(prompt.ask("? "), Err(KeySourceError::TimedOut { timeout_s: 0 })));
    assert!(person.has_echo());
}

#[test]
fn a_file_is_no_terminal() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Prompt::on(file.path().to_owned()).ask("? ").unwrap_err();
    assert!(matches!(error, KeySourceError::NoTerminal { .. }), "{error}");
}
