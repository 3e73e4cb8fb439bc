//! NBD over TCP: with TLS and a certificate on both sides, and in no other way. The clients are libnbd's and qemu's programs, the
//! certificates are made here by openssl; where a client would never do such a thing, a socket of our own does it.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::cast_possible_truncation)]

#[path = "nbd_tls/authority.rs"]
mod authority;

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use authority::{Authority, EXPIRED};
use block::{Bytes, MemDisk};
use export::nbd::{Certificates, NbdDisk, NbdExport, NbdOptions, TlsListener, serve_with_tls, uri};
use rustix::fs::{FileType, Mode};
use rustix::net::{AddressFamily, SocketType};

const SIZE_BYTES: usize = 8 << 20;
const STARTTLS: u32 = 5;
const LIST: u32 = 3;
const EXPORT_NAME: u32 = 1;
const ACK: u32 = 1;
const ERR_TLS_REQD: u32 = (1 << 31) + 5;

/// Held for reading while a server is there, and for writing by a test that counts the threads of the whole process.
static SERVERS: RwLock<()> = RwLock::new(());

struct Served {
    _server: Option<RwLockReadGuard<'static, ()>>,
    folder: tempfile::TempDir,
    export: NbdExport,
    ours: Authority,
    server: PathBuf,
    client: PathBuf,
    stranger: PathBuf,
}

fn served() -> Served {
    served_with(Duration::from_secs(20))
}

fn served_with(haggle_time: Duration) -> Served {
    Served { _server: Some(SERVERS.read().unwrap_or_else(PoisonError::into_inner)), ..served_unguarded(haggle_time) }
}

fn served_unguarded(haggle_time: Duration) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let ours = Authority::make(&folder.path().join("ours"));
    let theirs = Authority::make(&folder.path().join("theirs"));
    let server = ours.certify("server", &folder.path().join("server"));
    let client = ours.certify("client", &folder.path().join("client"));
    let stranger = theirs.certify("client", &folder.path().join("stranger"));
    // It knows our server, but our server does not know it.
    fs::copy(ours.certificate(), stranger.join("ca-cert.pem")).unwrap();
    let certificates = Certificates::load(&server).unwrap();
    let tls = TlsListener::bind("127.0.0.1:0", certificates).unwrap();
    let disk = Arc::new(MemDisk::new(Bytes(SIZE_BYTES as u64)));
    let disk = NbdDisk { name: "disk".to_owned(), description: "a test".to_owned(), disk, read_only: false };
    let options = NbdOptions { haggle_time, ..NbdOptions::default() };
    let export = serve_with_tls(vec![disk], &folder.path().join("nbd"), &options, tls).unwrap();
    Served { _server: None, folder, export, ours, server, client, stranger }
}

impl Served {
    /// Whether nbdinfo gets in with these.
    fn admits(&self, certificates: &Path) -> bool {
        run(program("nbdinfo").arg("--size").arg(self.uri(certificates))).status.success()
    }

    fn uri(&self, certificates: &Path) -> String {
        let uri = self.export.tls_uri().unwrap();
        format!("{uri}?tls-certificates={}", certificates.display())
    }

    /// A connection of our own from one of the addresses that this machine has all to itself.
    fn connect_from(&self, address: [u8; 4]) -> TcpStream {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from((address, 0))).unwrap();
        rustix::net::connect(&socket, &self.export.tls_address().unwrap()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// The same, its greeting taken.
    fn connect(&self) -> TcpStream {
        let mut stream = self.connect_from([127, 0, 0, 1]);
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&3_u32.to_be_bytes()).unwrap();
        stream
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn succeed(command: &mut Command) -> Output {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// Whether all of these can be run; if not, the skip is recorded where `tests/run` counts it.
fn needs_programs(test: &str, programs: &[&str]) -> bool {
    let there =
        |name: &str| ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|path| Path::new(path).join(name).exists());
    let Some(missing) = programs.iter().find(|name| !there(name)) else {
        return true;
    };
    eprintln!("skipped {test}: needs {missing}");
    if let Some(path) = std::env::var_os("LUKS_TEST_SKIPS") {
        let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: needs {missing}").unwrap();
    }
    false
}

fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    command
}

fn option(number: u32) -> Vec<u8> {
    [&b"IHAVEOPT"[..], &number.to_be_bytes(), &[0; 4]].concat()
}

/// The type of the next option reply.
fn answer(stream: &mut TcpStream) -> u32 {
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    let words = u32::from_be_bytes(head[16..].try_into().unwrap());
    stream.read_exact(&mut vec![0; words as usize]).unwrap();
    u32::from_be_bytes(head[12..16].try_into().unwrap())
}

#[test]
fn libnbd_and_qemu_come_in_with_a_certificate_and_nobody_else_does() {
    let test = "nbd_tls: libnbd_and_qemu_come_in_with_a_certificate_and_nobody_else_does";
    if !needs_programs(test, &["openssl", "nbdinfo", "nbdcopy", "qemu-img"]) {
        return;
    }
    let mut served = served();
    let uri = served.uri(&served.client);
    let info = succeed(program("nbdinfo").args(["--no-content", "--json", &uri]));
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!((info["TLS"].as_bool(), info["structured"].as_bool()), (Some(true), Some(true)), "{info}");
    let bytes: Vec<u8> =
        (0..SIZE_BYTES / 4).flat_map(|at| (at as u32).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let (plain, back) = (served.folder.path().join("plain"), served.folder.path().join("back"));
    fs::write(&plain, &bytes).unwrap();
    succeed(program("nbdcopy").args(["--flush", "--connections=4"]).arg(&plain).arg(&uri));
    succeed(program("nbdcopy").args(["--connections=4"]).arg(&uri).arg(&back));
    assert!(fs::read(&back).unwrap() == bytes);
    // The same disk by the socket, which asks for no certificate.
    succeed(program("nbdcopy").arg(uri_of_socket(&served)).arg(&back));
    assert!(fs::read(&back).unwrap() == bytes);
    let qcow = served.folder.path().join("qcow");
    let address = served.export.tls_address().unwrap();
    let object = format!("tls-creds-x509,id=tls,endpoint=client,dir={}", served.client.display());
    let source = format!(
        "driver=raw,file.driver=nbd,file.host={},file.port={},file.export=disk,file.tls-creds=tls",
        address.ip(),
        address.port()
    );
    succeed(
        program("qemu-img").args(["convert", "--object", &object, "--image-opts", &source, "-O", "qcow2"]).arg(&qcow),
    );
    let converted = served.folder.path().join("converted");
    succeed(program("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).arg(&qcow).arg(&converted));
    assert!(fs::read(&converted).unwrap() == bytes);

    let nobody = served.folder.path().join("nobody");
    fs::create_dir(&nobody).unwrap();
    fs::copy(served.client.join("ca-cert.pem"), nobody.join("ca-cert.pem")).unwrap();
    let refused = |output: &Output, what: &str| assert!(!output.status.success(), "{what}: {output:?}");
    for (certificates, what) in [(&served.stranger, "another authority"), (&nobody, "no certificate")] {
        refused(&run(program("nbdinfo").arg(served.uri(certificates))), what);
    }
    let clear = served.uri(&served.client).replacen("nbds://", "nbd://", 1);
    refused(&run(program("nbdinfo").arg(clear)), "without TLS");
    assert!(served.export.clients().is_empty());
    succeed(program("nbdinfo").arg(&uri));
    served.export.stop().unwrap();
    refused(&run(program("nbdinfo").arg(&uri)), "stopped");
}

fn uri_of_socket(served: &Served) -> String {
    uri(served.export.socket())
}

#[test]
fn before_tls_nothing_is_told_and_what_follows_it_in_the_clear_is_no_request() {
    if !needs_programs("nbd_tls: before_tls_nothing_is_told", &["openssl"]) {
        return;
    }
    let mut served = served();
    let mut stream = served.connect();
    for number in [LIST, 6, 7, 8, 9, 10, 99] {
        stream.write_all(&option(number)).unwrap();
        assert_eq!(answer(&mut stream), ERR_TLS_REQD, "option {number}");
    }
    let mut rest = Vec::new();
    stream.write_all(&option(EXPORT_NAME)).unwrap();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "closed without a word");
    // Sent along with the wish for TLS: what a man in the middle would put in.
    let mut stream = served.connect();
    stream.write_all(&[option(STARTTLS), option(LIST)].concat()).unwrap();
    assert_eq!(answer(&mut stream), ACK);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(!rest.windows(4).any(|bytes| bytes == b"disk"), "{rest:?}");
    served.export.stop().unwrap();
}

#[test]
fn a_key_that_others_may_read_and_files_that_do_not_fit_are_refused() {
    if !needs_programs("nbd_tls: a_key_that_others_may_read", &["openssl"]) {
        return;
    }
    let mut served = served();
    let refusal = |folder: &Path| Certificates::load(folder).err().map(|error| error.to_string()).unwrap_or_default();
    let key = served.server.join("server-key.pem");
    for mode in [0o640, 0o604, 0o644] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        assert!(refusal(&served.server).contains("others may read this key"), "{mode:o}");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(refusal(&served.server), "");
    fs::copy(served.client.join("client-key.pem"), &key).unwrap();
    assert!(refusal(&served.server).contains("server-cert.pem"), "a key of another certificate");
    fs::write(&key, "no key").unwrap();
    assert!(refusal(&served.server).contains("server-key.pem: it holds no private key"));
    fs::write(served.server.join("ca-crl.pem"), "no list").unwrap();
    assert!(refusal(&served.server).contains("ca-crl.pem: it holds no revocation list"));
    let broken = "-----BEGIN X509 CRL-----\nMAAwAA==\n-----END X509 CRL-----\n";
    fs::write(served.server.join("ca-crl.pem"), broken).unwrap();
    served.ours.certify("server", &served.server);
    assert!(refusal(&served.server).contains("ca-crl.pem"), "a list that is none");
    fs::remove_file(served.server.join("ca-cert.pem")).unwrap();
    assert!(refusal(&served.server).contains("ca-cert.pem: No such file"));
    // Whoever opened it would wait for somebody who writes.
    rustix::fs::mknodat(rustix::fs::CWD, served.server.join("ca-cert.pem"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert!(refusal(&served.server).contains("ca-cert.pem: it is no file"));
    served.export.stop().unwrap();
}

#[test]
fn expired_revoked_and_other_certificates_are_refused_and_new_files_count_at_once() {
    if !needs_programs("nbd_tls: expired_revoked_and_other_certificates", &["openssl", "nbdinfo"]) {
        return;
    }
    let mut served = served();
    let folder = |name: &str| served.folder.path().join(name);
    let expired = served.ours.certify_for("client", &folder("expired"), EXPIRED);
    assert!(served.admits(&served.client) && !served.admits(&expired));
    // What a server shows is no client's.
    let posing = served.ours.certify("server", &folder("posing"));
    for what in ["cert", "key"] {
        fs::rename(posing.join(format!("server-{what}.pem")), posing.join(format!("client-{what}.pem"))).unwrap();
    }
    assert!(!served.admits(&posing));
    let leaver = served.ours.certify("client", &folder("leaver"));
    assert!(served.admits(&leaver));
    served.ours.revoke(&leaver, &served.server);
    assert!(!served.admits(&leaver) && served.admits(&served.client));
    // Half an installation lets nobody in, and the whole one everybody.
    let certificate = fs::read(served.server.join("server-cert.pem")).unwrap();
    fs::write(served.server.join("server-cert.pem"), "").unwrap();
    assert!(!served.admits(&served.client));
    fs::write(served.server.join("server-cert.pem"), certificate).unwrap();
    assert!(served.admits(&served.client) && !served.admits(&leaver));
    served.export.stop().unwrap();
}

#[test]
fn what_cannot_be_listened_at_is_said() {
    if !needs_programs("nbd_tls: what_cannot_be_listened_at_is_said", &["openssl"]) {
        return;
    }
    let mut served = served();
    let certificates = Certificates::load(&served.server).unwrap();
    let refusal = |address: &str| TlsListener::bind(address, certificates.clone()).unwrap_err().to_string();
    let taken = served.export.tls_address().unwrap().to_string();
    assert_eq!(refusal(&taken), format!("cannot listen on {taken}: Address already in use (os error 98)"));
    for address in ["", "localhost", "127.0.0.1:99999", "192.0.2.1:0", "no.such.host.invalid:1"] {
        assert!(refusal(address).contains(&format!("cannot listen on {address}: ")), "{address}");
    }
    served.export.stop().unwrap();
}

/// Nothing more comes, whichever way it ended.
fn has_ended(stream: &mut TcpStream) {
    let _ =
        stream.read_to_end(&mut Vec::new()).map_err(|error| assert!(error.kind() != ErrorKind::WouldBlock, "{error}"));
}

#[test]
fn who_hangs_or_talks_garbage_is_cut_off_in_time_and_keeps_nobody_waiting() {
    if !needs_programs("nbd_tls: who_hangs_or_talks_garbage", &["openssl", "nbdinfo"]) {
        return;
    }
    let mut served = served_with(Duration::from_secs(3));
    // One for each point where it can stop: before its flags, before STARTTLS, before and inside of a hello.
    let mut silent = vec![served.connect_from([127, 0, 0, 1]), served.connect()];
    for hello in [&[][..], &[22, 3, 1, 2, 0, 1, 0, 1][..]] {
        let mut stream = served.connect();
        stream.write_all(&option(STARTTLS)).unwrap();
        assert_eq!(answer(&mut stream), ACK);
        stream.write_all(hello).unwrap();
        silent.push(stream);
    }
    // And one who never ends a record, byte by byte.
    let mut dripping = served.connect();
    dripping.write_all(&[option(STARTTLS), vec![22, 3, 1, 0x40, 0]].concat()).unwrap();
    assert_eq!(answer(&mut dripping), ACK);
    assert!(served.admits(&served.client));
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[22, 3, 3, 0xff, 0xff, 1], &[0; 64]] {
        let mut stream = served.connect();
        stream.write_all(&option(STARTTLS)).unwrap();
        assert_eq!(answer(&mut stream), ACK);
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        has_ended(&mut stream);
    }
    let mut endless = served.connect();
    for _ in 0..100 {
        if endless.write_all(&option(LIST)).is_err() {
            break;
        }
    }
    has_ended(&mut endless);
    let until = Instant::now() + Duration::from_secs(20);
    while dripping.write_all(&[1]).is_ok() {
        assert!(Instant::now() < until, "a drop at a time keeps it for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
    silent.iter_mut().for_each(has_ended);
    assert!(served.admits(&served.client));
    served.export.stop().unwrap();
}

/// Threads of this process that serve connections or are about to.
fn serving_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks.filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "nbd")).count()
}

#[test]
fn two_hundred_strangers_cost_what_they_may_and_keep_nobody_out() {
    if !needs_programs("nbd_tls: two_hundred_strangers", &["openssl", "nbdinfo", "nbdcopy"]) {
        return;
    }
    let _alone = SERVERS.write().unwrap_or_else(PoisonError::into_inner);
    let mut served = served_unguarded(Duration::from_secs(20));
    let crowd: Vec<TcpStream> = (0..200).map(|_| served.connect_from([127, 0, 0, 9])).collect();
    // Another network's gets in however many are there; one of theirs as soon as somebody has dawdled.
    assert!(served.admits(&served.client));
    let threads = serving_threads();
    // Strangers, and as many who were cut off and do not know it yet.
    assert!(threads <= 64, "{threads} threads");
    // Those of this machine have places of their own.
    succeed(program("nbdinfo").arg("--size").arg(uri_of_socket(&served)));
    let late: Vec<TcpStream> = (0..40).map(|_| served.connect_from([127, 0, 0, 1])).collect();
    let until = Instant::now() + Duration::from_secs(20);
    while !served.admits(&served.client) {
        assert!(Instant::now() < until, "a crowd keeps its own neighbour out");
    }
    drop((crowd, late));
    // Two hundred who have a certificate: each is served or closed.
    let uri = served.uri(&served.client);
    let clients: Vec<Child> = (0..50)
        .map(|_| {
            let mut nbdcopy = program("nbdcopy");
            nbdcopy.args(["--connections=4", &uri, "null:"]).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let done = clients.into_iter().map(|mut client| client.wait().unwrap()).filter(|status| status.success()).count();
    assert!(done >= 1, "nobody was served");
    assert!(served.admits(&served.client));
    served.export.stop().unwrap();
}
