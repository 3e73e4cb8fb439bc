//! An NBD server in steady state allocates nothing per request: a real encrypted volume, a Unix socket, every size up to 1 MiB,
//! simple and structured replies, several connections. Every thread of this process is counted, the client's own too.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use block::{BlockIo, Direct, FileDisk, OpenMode};
use export::nbd::{NbdDisk, NbdOptions, serve};
use luks::{Container, Limits, UnlockRequest};
use promises::Rig;
use secret::Secret;
use session::SystemEnv;

#[path = "../../luks/tests/hot_path/counting.rs"]
mod counting;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// Threads of one connection, and requests on their way in it: more, so that every thread is needed.
const THREADS: usize = 4;
const DEPTH: u64 = 12;
const CONNECTIONS: usize = 2;
/// Rounds of [`DEPTH`] requests on each connection: some thousands of requests.
const ROUNDS: u64 = 150;
const WARM_ROUNDS: u64 = 40;
const LARGEST_BYTES: usize = 1 << 20;
/// Longer ones go one at a time: this client does not read while it writes, so the replies must fit into the socket.
const SHORT_BYTES: usize = 8 << 10;
const SLOT_BYTES: u64 = 1 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const WRITE_ZEROES: u16 = 6;
const STRUCTURED_REPLY: u32 = 8;
const EXPORT_NAME: u32 = 1;

/// A client whose memory was allocated beforehand.
struct Client {
    stream: UnixStream,
    structured: bool,
    out: Vec<u8>,
    taken: Vec<u8>,
}

impl Client {
    fn connect(socket: &Path, structured: bool) -> Client {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&3_u32.to_be_bytes()).unwrap();
        let option = |number: u32| [&b"IHAVEOPT"[..], &number.to_be_bytes(), &[0; 4]].concat();
        if structured {
            stream.write_all(&option(STRUCTURED_REPLY)).unwrap();
            stream.read_exact(&mut [0; 20]).unwrap();
        }
        stream.write_all(&option(EXPORT_NAME)).unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        let out = Vec::with_capacity(LARGEST_BYTES + 28);
        Client { stream, structured, out, taken: vec![0; LARGEST_BYTES + 28] }
    }

    fn ask(&mut self, command: u16, cookie: u64, offset: u64, len_bytes: usize) {
        self.out.clear();
        self.out.extend_from_slice(&0x2560_9513_u32.to_be_bytes());
        self.out.extend_from_slice(&[0, 0]);
        self.out.extend_from_slice(&command.to_be_bytes());
        self.out.extend_from_slice(&cookie.to_be_bytes());
        self.out.extend_from_slice(&offset.to_be_bytes());
        self.out.extend_from_slice(&(len_bytes as u32).to_be_bytes());
        if command == WRITE {
            self.out.resize(28 + len_bytes, cookie as u8);
        }
        self.stream.write_all(&self.out).unwrap();
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.taken[at..at + 4].try_into().unwrap())
    }

    /// Takes one reply; `len_bytes` tells what was read by the request of a cookie.
    fn take(&mut self, len_bytes: impl Fn(u64) -> usize) {
        self.stream.read_exact(&mut self.taken[..16]).unwrap();
        if self.word(0) == 0x668e_33ef {
            self.stream.read_exact(&mut self.taken[16..20]).unwrap();
            assert_eq!(u16::from_be_bytes([self.taken[6], self.taken[7]]), 1, "data, not an error");
            let told = self.word(16) as usize;
            return self.stream.read_exact(&mut self.taken[..told]).unwrap();
        }
        assert_eq!((self.word(0), self.word(4)), (0x6744_6698, 0), "a simple reply, and success");
        let cookie = u64::from_be_bytes(self.taken[8..16].try_into().unwrap());
        self.stream.read_exact(&mut self.taken[..len_bytes(cookie)]).unwrap();
    }

    /// [`DEPTH`] requests, the short ones at once, each in a slot of its own, at any byte.
    fn round(&mut self, round: u64, first_slot: u64) {
        let command = |number: u64| match (number + round) % 8 {
            0..=2 => READ,
            3..=5 => WRITE,
            6 => WRITE_ZEROES,
            _ if round.is_multiple_of(64) => FLUSH,
            _ => READ,
        };
        let len = |number: u64| match command(number) {
            FLUSH => 0,
            _ if number == 5 => 777,
            _ if round.is_multiple_of(4) => LARGEST_BYTES >> ((number + round / 4) % 12),
            _ => SHORT_BYTES >> (number % 5),
        };
        let structured = self.structured;
        let data = |cookie| if command(cookie) == READ && !structured { len(cookie) } else { 0 };
        let mut on_their_way = 0;
        for number in 0..DEPTH {
            let inside = if len(number) == 777 { 100 } else { 0 };
            let offset = if len(number) == 0 { 0 } else { (first_slot + number) * SLOT_BYTES + inside };
            self.ask(command(number), number, offset, len(number));
            on_their_way += 1;
            if len(number) > SHORT_BYTES {
                (0..on_their_way).for_each(|_| self.take(data));
                on_their_way = 0;
            }
        }
        (0..on_their_way).for_each(|_| self.take(data));
    }
}

/// Threads of this process that serve connections.
fn serving_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "nbd"))
        .count()
}

#[test]
fn thousands_of_requests_in_steady_state_allocate_nothing() {
    let rig = Rig::new("nbd-hot");
    let image = rig.path("image");
    rig.format_cheap(&image, "48M", &["--sector-size", "4096"]);
    let key = Secret::copy_of(&std::fs::read(rig.key()).unwrap()).unwrap();
    for direct in [Direct::Never, Direct::IfPossible] {
        let disk = FileDisk::open(&image, &OpenMode { direct, ..OpenMode::default() }).unwrap();
        let container = Container::open(disk.clone(), disk, Limits::default()).unwrap();
        let volume_key = container.unlock(&SystemEnv.env(), &UnlockRequest::default(), &key).unwrap();
        let volume = Arc::new(container.into_volume(&volume_key, false).unwrap());
        // As many as there can be writers: a first time that all of them meet may come late.
        volume.allocate_buffers(THREADS * CONNECTIONS);
        volume.disk().reserve_buffers(THREADS * CONNECTIONS);
        let disk = Arc::clone(&volume) as Arc<dyn BlockIo>;
        let served = NbdDisk { name: "disk".to_owned(), description: String::new(), disk, read_only: false };
        let options = NbdOptions { threads: THREADS, ..NbdOptions::default() };
        let mut export = serve(vec![served], &rig.path("socket"), &options).unwrap();
        let mut clients = [false, true].map(|structured| Client::connect(export.socket(), structured));
        assert_eq!(clients.len(), CONNECTIONS);
        let mut rounds = |from: u64, count: u64| {
            for round in from..from + count {
                for (slot, client) in clients.iter_mut().enumerate() {
                    client.round(round, slot as u64 * DEPTH);
                }
            }
        };
        rounds(0, WARM_ROUNDS);
        assert_eq!(serving_threads(), THREADS * CONNECTIONS, "every thread that there will be is there");
        let before = counting::of_all_threads();
        rounds(WARM_ROUNDS, ROUNDS);
        let allocations = counting::of_all_threads() - before;
        assert_eq!(allocations, 0, "{direct:?}: in {} requests", ROUNDS * DEPTH * CONNECTIONS as u64);
        drop(clients);
        export.stop().unwrap();
    }
    let before = counting::of_this_thread();
    drop(std::hint::black_box(vec![1_u8; 10]));
    assert_eq!(counting::of_this_thread() - before, 1, "the counter counts");
}
