//! A client of our own, byte by byte: what real programs never send, and what a server owes those that do.
#![allow(clippy::cast_possible_truncation)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, mpsc};

use block::fault::{FaultDisk, Op};
use block::{BlockError, BlockErrorKind, Bytes, Geometry, MemDisk};

use super::codec::{flag, option, reply};
use super::*;

mod client;
mod talk;

use client::{Client, request};

const SIZE_BYTES: u64 = 4 << 20;

fn named(name: &str, disk: Arc<dyn BlockIo>) -> NbdDisk {
    NbdDisk { name: name.to_owned(), description: "a test".to_owned(), disk, read_only: false }
}

fn memory() -> Arc<MemDisk> {
    Arc::new(MemDisk::new(Bytes(SIZE_BYTES)))
}

fn served(disk: Arc<dyn BlockIo>) -> (tempfile::TempDir, NbdExport) {
    served_with(disk, &NbdOptions::default())
}

fn served_with(disk: Arc<dyn BlockIo>, options: &NbdOptions) -> (tempfile::TempDir, NbdExport) {
    let folder = tempfile::tempdir().unwrap();
    let export = serve(vec![named("disk", disk)], &folder.path().join("nbd"), options).unwrap();
    (folder, export)
}

/// Waits for what another thread is about to do.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(std::time::Instant::now() < until, "{what}");
        sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_socket_is_private_and_goes_with_the_server() {
    let (_folder, mut export) = served(memory());
    let path = export.socket().to_path_buf();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(export.is_reachable());
    let again = serve(vec![named("disk", memory())], &path, &NbdOptions::default());
    assert!(matches!(again, Err(ExportError::Socket { .. })), "a socket in use is not taken over");
    export.stop().unwrap();
    assert!(!path.exists() && !export.is_reachable());
    for names in [vec![""], vec!["a", "a"], vec![]] {
        let disks = names.into_iter().map(|name| named(name, memory())).collect();
        assert!(matches!(serve(disks, &path, &NbdOptions::default()), Err(ExportError::ExportName { .. })));
    }
}

#[test]
fn a_uri_says_any_path() {
    assert_eq!(uri(Path::new("/run/luksctl/a b%/nbd")), "nbd+unix:///?socket=/run/luksctl/a%20b%25/nbd");
}

#[test]
fn a_user_keeps_the_door_from_being_shut_and_a_looker_does_not() {
    let (_folder, mut export) = served(memory());
    let mut looker = Client::connect(&export);
    looker.option(option::LIST, &[]);
    let user = Client::transmitting(&export);
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let expected = NbdClient { pid: Some(own), address: None, export: "disk".to_owned() };
    assert_eq!(export.shut_if_unused(), vec![expected]);
    drop(user);
    eventually("a user that hung up is gone", || export.clients().is_empty());
    assert!(export.shut_if_unused().is_empty());
    assert_eq!(looker.go("", &[]), reply::ERR_SHUTDOWN);
    export.reopen();
    assert_eq!(looker.go("", &[]), reply::ACK);
    export.stop().unwrap();
}

#[test]
fn a_pair_is_in_transmission_at_once_and_is_nobodys_client() {
    let (_folder, mut export) = served(memory());
    let (stream, facts) = export.pair().unwrap();
    assert_eq!((facts.size_bytes, facts.block_bytes, facts.read_only), (SIZE_BYTES, 512, false));
    let mut client = Client { stream };
    assert_eq!(client.write(1000, &[5; 3000], flag::FUA), 0);
    assert_eq!(client.read(1000, 3000).unwrap(), [5; 3000]);
    assert!(export.clients().is_empty());
    client.send(&request(2, 0, 0, 0, 0));
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0, "goodbye");
    let (_open, _) = export.pair().unwrap();
    export.stop().unwrap();
}

#[test]
fn a_half_handshake_ends_in_time_and_frees_its_place() {
    let options = NbdOptions { haggle_time: Duration::from_millis(300), ..NbdOptions::default() };
    let (_folder, export) = served_with(memory(), &options);
    let mut slow = UnixStream::connect(export.socket()).unwrap();
    let mut greeting = [0; 18];
    slow.read_exact(&mut greeting).unwrap();
    slow.write_all(&[0, 0]).unwrap();
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "closed without a word");
}

#[test]
fn two_hundred_at_once_are_all_served() {
    let disk = memory();
    let (_folder, mut export) = served(disk);
    std::thread::scope(|scope| {
        for index in 0..200_u64 {
            let export = &export;
            scope.spawn(move || {
                let mut client = Client::transmitting(export);
                let data = [index as u8; 512];
                assert_eq!(client.write(index * 512, &data, flag::FUA), 0);
                assert_eq!(client.read(index * 512, 512).unwrap(), data);
                client.send(&request(2, 0, 0, 0, 0));
            });
        }
    });
    export.stop().unwrap();
}

#[test]
fn a_crowd_that_only_sits_there_does_not_keep_the_server_from_ending() {
    let (_folder, mut export) = served(memory());
    let mut crowd: Vec<UnixStream> = (0..60).map(|_| UnixStream::connect(export.socket()).unwrap()).collect();
    crowd.extend((0..4).map(|_| Client::transmitting(&export).stream));
    let waiting: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(export.socket()).unwrap()).collect();
    export.stop().unwrap();
    drop((crowd, waiting));
}

#[test]
fn a_client_that_stops_reading_stops_nobody_else_and_no_end() {
    let (_folder, mut export) = served(memory());
    let mut deaf = Client::transmitting(&export);
    // Far more replies than a socket holds.
    for cookie in 0..64 {
        deaf.send(&request(0, 0, cookie, 0, 1 << 20));
    }
    let mut other = Client::transmitting(&export);
    assert_eq!(other.write(0, &[3; 512], 0), 0);
    assert_eq!(other.read(0, 512).unwrap(), [3; 512]);
    assert_eq!(export.clients().len(), 2);
    export.stop().unwrap();
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let (_folder, export) = served(memory());
    let mut good = Client::transmitting(&export);
    let mut bad = Client::transmitting(&export);
    bad.send(&[0xaa; 64]);
    let mut rest = Vec::new();
    // Bytes that nobody took make the kernel reset the connection.
    let _ = bad.stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    let mut huge = Client::transmitting(&export);
    huge.send(&request(1, 0, 1, 0, u32::MAX));
    let _ = huge.stream.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert_eq!(good.write(0, &[1; 512], 0), 0);
}

#[test]
fn an_io_error_is_an_answer_and_after_a_lost_flush_nothing_is_promised() {
    let disk = Arc::new(FaultDisk::new(MemDisk::new(Bytes(SIZE_BYTES))));
    let (_folder, export) = served(Arc::clone(&disk) as Arc<dyn BlockIo>);
    let (mut one, mut two) = (Client::transmitting(&export), Client::transmitting(&export));
    disk.fail_once(Op::Read, 1, BlockErrorKind::Io);
    assert_eq!(one.read(0, 4096), Err(5));
    assert_eq!(one.read(0, 4096).unwrap(), [0; 4096]);
    disk.fail_once(Op::Write, 1, BlockErrorKind::NoSpace);
    assert_eq!(one.write(0, &[1; 512], 0), 28);
    assert_eq!(one.write(0, &[1; 512], 0), 0);
    disk.fail_once(Op::Flush, 1, BlockErrorKind::Io);
    assert_eq!(two.flush(), 5);
    assert_eq!((one.flush(), one.write(0, &[2; 512], 0), two.write(0, &[2; 512], flag::FUA)), (5, 5, 5));
    assert_eq!(one.read(0, 512).unwrap(), [1; 512]);
    disk.inner().set_len(Bytes(SIZE_BYTES / 2));
    assert_eq!(one.read(SIZE_BYTES - 512, 512), Err(5), "a disk that shrank is an I/O error, not a bad request");
}

/// A disk whose reads of the first half wait.
struct Slow {
    inner: MemDisk,
    gate: Mutex<mpsc::Receiver<()>>,
}

impl BlockIo for Slow {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn read_at(&self, offset: Bytes, buf: &mut [u8]) -> Result<(), BlockError> {
        if offset.0 < SIZE_BYTES / 2 {
            self.gate.lock().unwrap().recv().unwrap();
        }
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: Bytes, buf: &[u8], fua: bool) -> Result<(), BlockError> {
        self.inner.write_at(offset, buf, fua)
    }
    fn write_zeroes(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.inner.write_zeroes(offset, len)
    }
    fn discard(&self, offset: Bytes, len: Bytes) -> Result<(), BlockError> {
        self.inner.discard(offset, len)
    }
    fn flush(&self) -> Result<(), BlockError> {
        self.inner.flush()
    }
}

#[test]
fn replies_come_as_the_disk_is_done_and_a_leaver_is_still_answered() {
    let (release, gate) = mpsc::channel();
    let slow = Slow { inner: MemDisk::new(Bytes(SIZE_BYTES)), gate: Mutex::new(gate) };
    let (_folder, mut export) = served(Arc::new(slow));
    let mut client = Client::transmitting(&export);
    client.send(&request(0, 0, 100, 0, 512));
    for cookie in 0..3 {
        client.send(&request(0, 0, cookie, SIZE_BYTES / 2, 512));
        assert_eq!(client.simple_reply(), (0, cookie), "overtakes the one that waits");
        client.take(512);
    }
    client.send(&request(2, 0, 0, 0, 0));
    release.send(()).unwrap();
    assert_eq!(client.simple_reply(), (0, 100), "asked before it said goodbye");
    client.take(512);
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    export.stop().unwrap();
}

#[test]
fn what_was_acknowledged_after_a_flush_survives_a_power_cut() {
    let disk = Arc::new(block::fault::PowerCutDisk::new(Bytes(SIZE_BYTES)));
    let (_folder, mut export) = served(Arc::clone(&disk) as Arc<dyn BlockIo>);
    let (mut one, mut two) = (Client::transmitting(&export), Client::transmitting(&export));
    for block in 0..32 {
        assert_eq!(one.write(block * 4096, &[block as u8 + 1; 4096], 0), 0);
    }
    assert_eq!(two.flush(), 0, "a flush on one connection covers what another was told");
    assert_eq!(one.write(32 * 4096, &[33; 4096], flag::FUA), 0);
    assert_eq!(one.write_zeroes(0, 4096, flag::FUA | flag::NO_HOLE), 0);
    assert_eq!(one.write(33 * 4096, &[34; 4096], 0), 0);
    let platter = disk.cut(7);
    let mut there = vec![0; 4096];
    for block in 0..33_u64 {
        platter.read_at(Bytes(block * 4096), &mut there).unwrap();
        let expected = if block == 0 { 0 } else { block as u8 + 1 };
        assert!(there.iter().all(|byte| *byte == expected), "block {block}");
    }
    drop((one, two));
    export.stop().unwrap();
}
