//! Promise: luksctl ends whatever another process does. One that is in the middle of an exec and waits there for a disk that
//! is stopped makes everybody wait who looks at what it has open; luksctl leaves it out.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use promises::Rig;
use promises::leftovers;
use promises::rig::{refused, run, succeed};
use promises::skip::{needs_fuse, needs_programs};

const NAME: &str = "stuck";
/// Longest time a command may take here: what it has to wait for is never there.
const DEADLINE_S: &str = "60";
const BUSY: i32 = 5;
/// Holds the disk open for writing, says so, and with the next line of input starts a process that has a copy until its exec.
const HOLDER: &str = r#"
    open(my $disk, "+<", $ARGV[0]) or die;
    syswrite($disk, "x" x 4096) == 4096 or die;
    $| = 1;
    print "open\n";
    <STDIN>;
    my $child = fork();
    if ($child == 0) { exec("sleep", "0"); }
    print "$child\n";
    waitpid($child, 0);
    print "done\n";
    <STDIN>;
"#;

struct Holder {
    process: Child,
    says: BufReader<std::process::ChildStdout>,
}

impl Holder {
    fn new(disk: &std::path::Path) -> Holder {
        let mut command = Command::new("perl");
        command.args(["-e", HOLDER]).arg(disk).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().unwrap();
        let says = BufReader::new(process.stdout.take().unwrap());
        Holder { process, says }
    }

    fn tell(&mut self) {
        self.process.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line
    }
}

/// Whether whoever looks at what `pid` has open waits.
fn holds_up(pid: u32) -> bool {
    let mut look = Command::new("timeout");
    look.args(["--signal=KILL", "1", "ls", "-l"]).arg(format!("/proc/{pid}/fd"));
    run(&mut look).status.code().is_none_or(|code| code > 2)
}

#[test]
fn a_process_that_is_stuck_in_its_exec_holds_up_no_command() {
    let test = "a_process_that_is_stuck_in_its_exec_holds_up_no_command";
    if !needs_fuse(test) || !needs_programs(test, &["perl", "timeout"]) {
        return;
    }
    let rig = Rig::new("stuck");
    let image = rig.path("image");
    rig.format_cheap(&image, "24M", &[]);
    let mut open = rig.luksctl(&["open", "-q", "--backend", "fuse", "--no-loop", "--key-file"]);
    succeed(open.arg(rig.key()).arg(&image).arg(NAME));
    let mut holder = Holder::new(&rig.run_dir().join(NAME).join("device").canonicalize().unwrap());
    assert_eq!(holder.hear(), "open\n");
    succeed(&mut rig.luksctl(&["suspend", NAME]));
    holder.tell();
    let child = holder.hear().trim().parse().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while !holds_up(child) {
        assert!(Instant::now() < until, "the closing of a writer did not wait for its suspended disk");
        std::thread::sleep(Duration::from_millis(10));
    }

    let within_time = |arguments: &[&str]| {
        let plain = rig.luksctl(arguments);
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", DEADLINE_S]).arg(plain.get_program()).args(plain.get_args());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        run(&mut command)
    };
    assert_eq!(within_time(&["status", NAME]).status.code(), Some(0));
    refused(&within_time(&["close", NAME]), BUSY, &["in use", "perl"]);

    let mut resume = rig.luksctl(&["resume", "-q", "--key-file"]);
    succeed(resume.arg(rig.key()).arg(NAME));
    assert_eq!(holder.hear(), "done\n");
    holder.tell();
    assert!(holder.process.wait().unwrap().success());
    rig.close(NAME);
    leftovers::demand_none(&rig, "a stuck process");
}
