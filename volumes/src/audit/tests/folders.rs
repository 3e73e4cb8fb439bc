//! Real folders: permissions, several writers at once, alarms, attributes, and the verification that needs none of this code.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use super::*;
use crate::config::Audit;

fn settings(folder: &Path) -> Audit {
    Audit {
        enabled: true,
        folder: folder.join("log"),
        seed: folder.join("audit.seed"),
        retention_days: 365,
        immutable: false,
        environment: "test".to_owned(),
        alert_command: Vec::new(),
    }
}

fn verified(settings: &Audit, heads: &[Head]) -> Report {
    let snapshot = Snapshot::read(&settings.folder).unwrap();
    super::super::verify::verify(&snapshot, &read_seed(&settings.seed).unwrap(), heads).unwrap()
}

fn at(seconds: i64) -> Moment {
    Moment::from_unix(1_795_422_463 + seconds)
}

/// Remembers what was announced.
#[derive(Clone, Default)]
struct Remembering(Arc<Mutex<Vec<(String, String, bool)>>>);

impl Journal for Remembering {
    fn announce(&self, announcement: &Announcement<'_>) {
        let head = format!("{}:{}", announcement.count, announcement.head);
        self.0.lock().unwrap().push((announcement.chain.to_owned(), head, announcement.is_high));
    }
}

#[test]
fn a_log_begins_by_itself_and_nobody_else_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let journal = Remembering::default();
    let log = AuditLog::new(&settings, Box::new(journal.clone()));
    for n in 0..3 {
        assert_eq!(log.record(&event(n), at(0)).unwrap().count, n + 1);
    }
    for name in ["log/audit-2026-11.jsonl", "log/audit.state", "audit.seed"] {
        let mode = folder.path().join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let report = verified(&settings, &[]);
    assert_eq!((report.records, report.faults.len()), (3, 0));
    let announced = journal.0.lock().unwrap();
    assert_eq!(announced.last().unwrap(), &(report.chain.clone(), report.head.unwrap(), false));
    // No key of a record that is written is anywhere in the folder.
    let mut key = ChainKey::of(read_seed(&settings.seed).unwrap().expose()).unwrap();
    let state = std::fs::read(folder.path().join("log/audit.state")).unwrap();
    for n in 0..4 {
        let is_there = state.windows(64).any(|window| window == hex(key.bytes()).as_bytes());
        assert_eq!(is_there, n == 3, "key {n}");
        key.advance();
    }
}

#[test]
fn a_log_without_its_state_does_not_begin_again() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let log = AuditLog::new(&settings, Box::new(NoJournal));
    log.record(&event(0), at(0)).unwrap();
    std::fs::write(settings.folder.join("audit.state"), b"").unwrap();
    let error = log.record(&event(1), at(0)).unwrap_err().to_string();
    assert!(error.contains("state of the audit log is gone"), "{error}");
    std::fs::set_permissions(&settings.seed, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(read_seed(&settings.seed).unwrap_err().to_string().contains("chmod 600"));
    std::fs::set_permissions(&settings.folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(log.record(&event(1), at(0)).unwrap_err().to_string().contains("others may write"));
}

/// The body of a process that [`four_processes_write_one_chain`] starts; alone it does nothing.
#[test]
fn one_of_four_processes() {
    let Some(folder) = std::env::var_os("VOLUMES_TEST_WRITER") else { return };
    let log = AuditLog::new(&settings(Path::new(&folder)), Box::new(NoJournal));
    for n in 0..50 {
        log.record(&event(n), at(i64::try_from(n).unwrap())).unwrap();
    }
}

#[test]
fn four_processes_write_one_chain() {
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "audit::tests::folders::one_of_four_processes"])
            .env("VOLUMES_TEST_WRITER", folder.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let processes: Vec<_> = (0..4).map(|_| start()).collect();
    for mut process in processes {
        assert!(process.wait().unwrap().success());
    }
    let report = verified(&settings(folder.path()), &[]);
    assert_eq!((report.records, report.faults.len(), report.notes.len()), (200, 0, 0), "{:?}", report.faults);
}

#[test]
fn more_than_five_failures_in_five_minutes_raise_an_alarm_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path());
    let told = folder.path().join("told");
    let script = folder.path().join("alert");
    let text = format!(
        "#!/bin/sh\necho \"$LUKSCTL_ALERT_VOLUME $LUKSCTL_ALERT_LEVEL $1 ${{HOME-none}}\" >> {}\n",
        told.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    settings.alert_command = vec![script.display().to_string(), "a b; c".to_owned()];
    let journal = Remembering::default();
    let log = AuditLog::new(&settings, Box::new(journal.clone()));
    let highs = || journal.0.lock().unwrap().iter().filter(|(_, _, is_high)| *is_high).count();
    for n in 0..5 {
        log.unlock_failed("data", "no key", at(n)).unwrap();
        log.unlock_failed("logs", "no key", at(n)).unwrap();
    }
    assert_eq!(highs(), 0);
    // Five minutes later the first ones no longer count.
    log.unlock_failed("logs", "no key", at(305)).unwrap();
    assert_eq!(highs(), 0);
    log.unlock_failed("data", "no key", at(200)).unwrap();
    assert_eq!(highs(), 1);
    assert_eq!(std::fs::read_to_string(&told).unwrap(), "data HIGH a b; c none\n");
    log.unlock_failed("data", "no key", at(201)).unwrap();
    assert_eq!(highs(), 1, "it is raised already");
    for n in 0..6 {
        log.unlock_failed("data", "no key", at(900 + n)).unwrap();
    }
    assert_eq!(highs(), 2);
    let mut other = Actor::this_process();
    other.uid = 4242;
    let log = AuditLog::new(&settings, Box::new(journal.clone())).acting(other);
    log.unlock_failed("data", "no key", at(906)).unwrap();
    assert_eq!(highs(), 2, "another user counts alone");
    assert_eq!(verified(&settings, &[]).faults, []);
}

#[test]
fn attributes_are_set_or_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Audit { immutable: true, ..settings(folder.path()) };
    let log = AuditLog::new(&settings, Box::new(NoJournal));
    match log.record(&event(0), at(0)) {
        Ok(_) => {
            let file = settings.folder.join("audit-2026-11.jsonl");
            let taken_back = std::fs::write(&file, b"x");
            log.record(&event(1), at(40 * 86_400)).unwrap();
            let closed = std::fs::File::options().append(true).open(&file);
            for name in ["audit-2026-11.jsonl", "audit-2027-01.jsonl"] {
                let opened = std::fs::File::open(settings.folder.join(name)).unwrap();
                rustix::fs::ioctl_setflags(&opened, rustix::fs::IFlags::empty()).unwrap();
            }
            assert!(taken_back.is_err() && closed.is_err());
        }
        Err(error) => {
            assert!(error.to_string().contains("audit.immutable needs root"), "{error}");
            assert!(!settings.folder.join("audit-2026-11.jsonl").exists(), "an empty file stayed");
        }
    }
    assert_eq!(verified(&settings, &[]).faults, []);
}

/// The program of the document, run on a log; it needs nothing of ours.
#[test]
fn the_documented_program_verifies_without_us() {
    let document = include_str!("../../../../docs/audit.md");
    let program = document.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(program.lines().count() <= 20, "{} lines", program.lines().count());
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let log = AuditLog::new(&settings, Box::new(NoJournal));
    for n in 0..20_i64 {
        let target = format!("größe \u{1f600} {n}");
        log.record(&Event::new(Category::Key, "rotate", target), at(n * 86_400)).unwrap();
    }
    let run = || {
        std::process::Command::new("python3").arg("-c").arg(program).arg(&settings.folder).arg(&settings.seed).output()
    };
    let Ok(good) = run() else { return eprintln!("SKIPPED volumes: the_documented_program: no python3") };
    let text = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(good.status.success(), "{text} {}", String::from_utf8_lossy(&good.stderr));
    assert_eq!(text.trim(), format!("good: {}", verified(&settings, &[]).head.unwrap()));
    let file = settings.folder.join("audit-2026-12.jsonl");
    let changed = std::fs::read_to_string(&file).unwrap().replacen("\"outcome\":\"done\"", "\"outcome\":\"fail\"", 1);
    std::fs::write(&file, changed).unwrap();
    let bad = run().unwrap();
    assert!(!bad.status.success());
    assert!(
        String::from_utf8_lossy(&bad.stdout).contains("audit-2026-12.jsonl:1"),
        "{}",
        String::from_utf8_lossy(&bad.stdout)
    );
}
