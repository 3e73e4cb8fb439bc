//! Ctrl-C at a moment that hurts: nothing half-made stays, and the words say what was done.

use std::io::Write as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::desk::Desk;

fn stop(child: Child, signal: Signal) -> (Option<i32>, String) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_broken_off_format_leaves_no_file() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let desk = Desk::new();
        let slow = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000000000", "--size", "20M"];
        let mut command = desk.command(&[&["format", "-q", "-d", "key", "image"][..], &slow].concat());
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        wait_for("the file", || desk.path("image").exists());
        let (ended, stderr) = stop(child, signal);
        assert_eq!(ended, Some(code), "{stderr}");
        assert!(!desk.path("image").exists(), "the half-made file stayed: {stderr}");
    }
}

#[test]
fn a_broken_off_copy_in_says_how_far_it_came() {
    let desk = Desk::with_image();
    let mut command = desk.command(&["copy-in", "image", "-", "-d", "key"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&vec![7; 2 << 20]).unwrap();
    // The pipe is empty once both chunks are taken; the second is written before more is asked for.
    std::thread::sleep(Duration::from_millis(1500));
    let (code, stderr) = stop(child, Signal::SIGINT);
    drop(input);
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.contains("the first 2 MiB (2097152 bytes) are written"), "{stderr}");
    assert!(stderr.contains("\nhint: "), "{stderr}");
    desk.run(&["copy-out", "-q", "image", "out", "-d", "key", "--length", "2M"]).ends(0);
    assert!(std::fs::read(desk.path("out")).unwrap() == vec![7; 2 << 20]);
}

#[test]
fn a_part_that_a_killed_copy_out_left_is_replaced() {
    let desk = Desk::with_image();
    std::fs::write(desk.path("out.part"), "left over").unwrap();
    desk.run(&["copy-out", "-q", "image", "out", "-d", "key"]).ends(0);
    assert!(!desk.path("out.part").exists());
    assert_eq!(desk.path("out").metadata().unwrap().len(), 4 << 20);
}
