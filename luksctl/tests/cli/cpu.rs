//! `LUKSCTL_CPU`: every AES kernel gives the same container, what cannot run is refused before anything is touched, and
//! the server of an open volume takes the kernel of the command that opened it.

use std::path::Path;

use crate::desk::{Desk, Done, skip};

const NAMES: [&str; 4] = ["portable", "aesni", "vaes256", "vaes512"];

fn run_on(desk: &Desk, kernel: &str, arguments: &[&str]) -> Done {
    let output = desk.command(arguments).env("LUKSCTL_CPU", kernel).output().unwrap();
    Done {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The kernels of this machine; the others are refused by name.
fn available(desk: &Desk) -> Vec<&'static str> {
    let runs = |kernel: &&str| {
        let done = run_on(desk, kernel, &["dump", "image"]);
        done.code == Some(0) || {
            assert!(*kernel != "portable" && done.code == Some(1), "{done:?}");
            assert!(done.stderr.contains("cannot run here: this machine lacks "), "{done:?}");
            false
        }
    };
    NAMES.into_iter().filter(runs).collect()
}

#[test]
fn one_kernel_reads_what_another_wrote() {
    let desk = Desk::with_image();
    let kernels = available(&desk);
    std::fs::write(desk.path("plain"), (0..3 << 20).map(|at: u32| at.to_le_bytes()[1]).collect::<Vec<_>>()).unwrap();
    for writer in &kernels {
        run_on(&desk, writer, &["copy-in", "-q", "--key-file", "key", "image", "plain"]).ends(0);
        for reader in &kernels {
            let out = format!("{writer}-{reader}");
            run_on(&desk, reader, &["copy-out", "-q", "--key-file", "key", "image", &out]).ends(0);
            let read = std::fs::read(desk.path(&out)).unwrap();
            assert!(read.starts_with(&std::fs::read(desk.path("plain")).unwrap()), "{writer} to {reader}");
            std::fs::remove_file(desk.path(&out)).unwrap();
        }
    }
}

#[test]
fn a_name_that_does_not_exist_is_refused_before_anything_happens() {
    let desk = Desk::new();
    for name in ["", "avx", "AESNI", "vaes512 "] {
        let arguments = ["format", "-q", "--key-file", "key", "--size", "20M", "image"];
        let done = run_on(&desk, name, &arguments).ends(1);
        assert!(done.stderr.starts_with("luksctl: LUKSCTL_CPU: "), "{done:?}");
        assert!(done.stderr.contains("portable, aesni, vaes256 or vaes512"), "{done:?}");
        assert!(!desk.path("image").exists());
    }
}

#[test]
fn the_server_takes_the_kernel_of_its_command_and_status_says_so() {
    let test = "the_server_takes_the_kernel_of_its_command_and_status_says_so";
    if std::fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return skip(test, "needs /dev/fuse");
    }
    let desk = Desk::with_image();
    for kernel in available(&desk) {
        run_on(&desk, kernel, &["open", "--no-loop", "--key-file", "key", "image", "volume"]).ends(0);
        let status = desk.run(&["status", "--json", "volume"]).json();
        let engine = status["engine"].as_str().unwrap().to_owned();
        desk.run(&["close", "volume"]).ends(0);
        assert!(engine.starts_with(&format!("{kernel} (")) && engine.contains("as was asked for"), "{engine}");
    }
    assert!(!Path::new(&desk.path("run/volume")).exists());
}
