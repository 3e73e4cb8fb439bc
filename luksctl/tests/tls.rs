//! The real `luksctl` with the feature `tls`: a volume that clients on the network use, libnbd's here, with certificates made as
//! `docs/nbd.md` says.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, dead_code)] // a helper of a test is a test

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

#[path = "cli/desk.rs"]
mod desk;

use desk::{Desk, Done, skip};

fn needs_programs(test: &str, programs: &[&str]) -> bool {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let missing = programs.iter().find(|name| !folders.iter().any(|folder| Path::new(folder).join(name).exists()));
    missing.inspect(|name| skip(test, &format!("needs {name}"))).is_none()
}

/// A program of the system. Debian's own Python has libnbd, whichever comes first on the PATH.
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    command
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// The recipes of the document, in the order in which they stand there.
fn recipes() -> Vec<String> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nbd.md");
    let text = fs::read_to_string(document).unwrap();
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.filter(|block| block.contains("openssl ")).map(str::to_owned).collect()
}

fn follow(recipe: &str, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let environment = [("HOST", "localhost"), ("IP", "127.0.0.1")];
    succeed(program("sh").args(["-euc", recipe]).envs(environment).current_dir(folder));
}

/// An image, an authority's folders `server` and `client`, and those of somebody else below `other`.
fn desk() -> Desk {
    let desk = Desk::with_image();
    let recipes = recipes();
    assert_eq!(recipes.len(), 2, "one that makes certificates and one that takes them back");
    follow(&recipes[0], &desk.path("."));
    follow(&recipes[0], &desk.path("other"));
    desk
}

/// An open volume, closed at the end whatever happens.
struct Volume<'a> {
    desk: &'a Desk,
    uri: String,
    address: String,
}

impl Drop for Volume<'_> {
    fn drop(&mut self) {
        let Done { code, stderr, .. } = self.desk.run(&["close", "disk"]);
        if code != Some(0) && code != Some(4) {
            eprintln!("could not close: {stderr}");
        }
    }
}

impl Volume<'_> {
    fn open(desk: &Desk) -> Volume<'_> {
        let mut open = vec!["open", "-q", "-d", "key", "image", "disk"];
        open.extend(["--listen", "localhost:0", "--tls-certificates", "server"]);
        let opened = desk.run(&open).ends(0);
        let uri = opened.stdout.lines().find(|line| line.starts_with("nbds://localhost:")).unwrap().to_owned();
        assert!(opened.stdout.starts_with("nbd+unix:///?socket="), "{opened:?}");
        let address = uri.strip_prefix("nbds://").unwrap().strip_suffix("/disk").unwrap().to_owned();
        Volume { desk, uri, address }
    }

    fn uri(&self, client: &str) -> String {
        format!("{}?tls-certificates={}", self.uri, self.desk.path(client).display())
    }

    fn admits(&self, client: &str) -> bool {
        let info = program("nbdinfo").arg("--size").arg(self.uri(client)).output().unwrap();
        info.status.success()
    }

    /// A client that has done this, says so, and waits to be ended.
    fn client(&self, python: &str) -> Child {
        let connect = format!("h.set_uri_allow_local_file(True)\nh.connect_uri('{}')", self.uri("client"));
        let told = "print('asks', flush=True)";
        let code = format!("{connect}\n{told}\n{python}\nprint('done', flush=True)\nimport time\ntime.sleep(60)");
        let mut child = program("nbdsh").args(["-c", &code]).stdout(Stdio::piped()).spawn().unwrap();
        hear(&mut child, "asks\n");
        child
    }

    fn log(&self) -> String {
        fs::read_to_string(self.desk.path("run/disk/log")).unwrap()
    }
}

fn hear(child: &mut Child, word: &str) {
    let mut line = vec![0; word.len()];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(line, word.as_bytes());
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < until, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const PROGRAMS: [&str; 4] = ["openssl", "nbdinfo", "nbdcopy", "nbdsh"];

#[test]
fn a_volume_is_used_over_the_network_and_by_nobody_without_a_certificate() {
    if !needs_programs("a_volume_is_used_over_the_network", &PROGRAMS) {
        return;
    }
    let desk = desk();
    let volume = Volume::open(&desk);
    let status = desk.run(&["status", "--json", "disk"]).ends(0).json();
    assert_eq!((status["tls_uri"].as_str(), status["backend"].as_str()), (Some(volume.uri.as_str()), Some("nbd")));
    assert!(desk.run(&["status", "disk"]).stdout.contains(&format!("TLS URI     {}", volume.uri)));
    let bytes: Vec<u8> = (0..1_u32 << 20).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(desk.path("plain"), &bytes[..3 << 20]).unwrap();
    let uri = volume.uri("client");
    succeed(program("nbdcopy").args(["--flush", "--connections=4"]).arg(desk.path("plain")).arg(&uri));
    succeed(program("nbdcopy").arg(&uri).arg(desk.path("back")));
    assert!(fs::read(desk.path("back")).unwrap()[..3 << 20] == bytes[..3 << 20]);

    // It knows our server, but our server does not know it.
    fs::copy(desk.path("client/ca-cert.pem"), desk.path("other/client/ca-cert.pem")).unwrap();
    assert!(!volume.admits("other/client"));
    eventually("a reason in the log", || volume.log().contains("invalid peer certificate"));
    // Whoever was let in is named by address, and keeps it open.
    let mut sitting = volume.client("h.pread(512, 0)");
    hear(&mut sitting, "done\n");
    let refused = desk.run(&["close", "disk"]).fails(5, "connected from ");
    assert!(refused.stderr.contains("127.0.0.1") || refused.stderr.contains("::1"), "{refused:?}");
    end(sitting);

    desk.run(&["suspend", "disk"]).ends(0);
    let mut waiting = volume.client("h.pread(512, 0)");
    std::thread::sleep(Duration::from_millis(300));
    desk.run(&["resume", "-d", "key", "disk"]).ends(0);
    hear(&mut waiting, "done\n");
    end(waiting);

    assert!(volume.admits("client"));
    follow(&recipes()[1], &desk.path("."));
    assert!(!volume.admits("client"), "it is revoked");
    eventually("a reason in the log", || volume.log().contains("Revoked"));
    let key = fs::read_to_string(desk.path("server/server-key.pem")).unwrap();
    let lines: Vec<&str> = key.lines().filter(|line| !line.starts_with("-----")).collect();
    assert!(!lines.is_empty() && lines.iter().all(|line| !volume.log().contains(line)));
    desk.run(&["close", "disk"]).ends(0);
    assert!(TcpStream::connect(&volume.address).is_err(), "nobody listens any more");
    desk.run(&["copy-out", "-q", "-d", "key", "image", "out"]).ends(0);
    assert!(fs::read(desk.path("out")).unwrap()[..3 << 20] == bytes[..3 << 20]);
}

#[test]
fn strangers_keep_no_volume_open_and_do_not_fill_its_log() {
    if !needs_programs("strangers_keep_no_volume_open", &PROGRAMS) {
        return;
    }
    let desk = desk();
    let volume = Volume::open(&desk);
    let before = volume.log().lines().count();
    let mut crowd = Vec::new();
    for _ in 0..150 {
        let mut stream = TcpStream::connect(&volume.address).unwrap();
        // It may have been closed already.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
        crowd.push(stream);
    }
    eventually("the last of them", || volume.log().contains("left out for a minute"));
    let lines = volume.log().lines().count() - before;
    assert!(lines <= 12, "{lines} lines:\n{}", volume.log());
    let silent: Vec<TcpStream> = (0..10).map(|_| TcpStream::connect(&volume.address).unwrap()).collect();
    eventually("a client's turn", || volume.admits("client"));
    desk.run(&["close", "disk"]).ends(0);
    drop((crowd, silent));
}

#[test]
fn what_cannot_be_listened_with_is_refused_before_anything_is_asked() {
    if !needs_programs("what_cannot_be_listened_with", &["openssl"]) {
        return;
    }
    let desk = desk();
    // No key is given: who were asked for one would fail in another way.
    let open = |listen: &str, folder: &str, more: &[&str]| {
        let fixed = ["open", "-q", "image", "disk", "--listen", listen, "--tls-certificates", folder];
        desk.run(&[&fixed[..], more].concat())
    };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    open(&taken, "server", &[]).fails(1, &format!("cannot listen on {taken}: Address already in use"));
    for address in ["nowhere", "127.0.0.1", "127.0.0.1:-1", "192.0.2.1:0"] {
        open(address, "server", &[]).fails(1, &format!("cannot listen on {address}: "));
    }
    open("localhost:0", "nowhere", &[]).fails(4, "nowhere");
    open("localhost:0", "client", &[]).fails(1, "server-cert.pem: No such file");
    for backend in ["dm", "fuse", "ublk"] {
        open("localhost:0", "server", &["--backend", backend]).fails(1, "--listen");
    }
    open("localhost:0", "server", &["--no-loop"]).fails(1, "--no-loop");
    let key = desk.path("server/server-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    open("localhost:0", "server", &[]).fails(1, "chmod 600");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::copy(desk.path("client/client-key.pem"), &key).unwrap();
    open("localhost:0", "server", &[]).fails(1, "server-cert.pem: it does not fit server-key.pem");
    let alone = desk.run(&["open", "image", "disk", "--listen", "localhost:0"]).ends(1);
    assert!(alone.stderr.contains("--tls-certificates"), "{alone:?}");
    let mount = ["mount", "-q", "image", "other", "--listen", "localhost:0", "--tls-certificates", "server"];
    desk.run(&mount).fails(1, "cannot be mounted");
    assert!(desk.run(&["list"]).ends(0).stdout.lines().all(|line| !line.contains("disk")));
}
