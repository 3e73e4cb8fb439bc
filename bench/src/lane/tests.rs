//! The lanes on a file, and the driver on lanes that fail or count.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::*;

const BLOCK: u32 = 4096;
const BLOCKS: u64 = 64;

fn task(pattern: Pattern) -> Task {
    Task {
        pattern,
        block_bytes: BLOCK,
        depth: 4,
        threads: 2,
        size_bytes: BLOCKS * u64::from(BLOCK),
        warm_up: Duration::from_millis(5),
        piece: Duration::from_millis(30),
        seed: 1,
    }
}

fn file() -> (tempfile::NamedTempFile, Arc<File>) {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len((BLOCKS + 1) * u64::from(BLOCK)).unwrap();
    let file = Arc::new(File::options().read(true).write(true).open(named.path()).unwrap());
    (named, file)
}

#[test]
fn both_lanes_write_the_whole_file_behind_their_start_and_no_zeros() {
    for ring in [Some(Manner::Library), Some(Manner::Fio), None] {
        if ring.is_some() && RingLane::probe().is_err() {
            println!("without io_uring");
            continue;
        }
        let (_named, file) = file();
        let open = || -> Result<Box<dyn Lane>> {
            let start = u64::from(BLOCK);
            Ok(match ring {
                Some(manner) => Box::new(RingLane::new(Arc::clone(&file), start, BLOCK, 4, manner)?),
                None => Box::new(BlockingLane::new(Arc::clone(&file), start, BLOCK, 4)),
            })
        };
        let mut bounds = 0;
        let done = run(&task(Pattern::SequentialWrite), &open, || {
            bounds += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!((bounds, done.latencies.count()), (2, done.requests));
        assert!(done.requests > BLOCKS && done.elapsed > Duration::ZERO);
        let mut block = vec![0; BLOCK as usize];
        for number in 0..=BLOCKS {
            file.read_exact_at(&mut block, number * u64::from(BLOCK)).unwrap();
            let zeros = block.iter().filter(|byte| **byte == 0).count();
            assert!(if number == 0 { zeros == block.len() } else { zeros < 100 }, "block {number}: {zeros} zeros");
        }
        for pattern in [Pattern::RandomRead, Pattern::RandomMixed, Pattern::RandomWrite, Pattern::SequentialRead] {
            assert!(run(&task(pattern), &open, || Ok(())).unwrap().requests > 0);
        }
        assert_eq!(file.metadata().unwrap().len(), (BLOCKS + 1) * u64::from(BLOCK), "nothing made the file longer");
    }
}

#[test]
fn a_read_behind_the_end_fails_and_says_where() {
    let (_named, file) = file();
    let small = Task { size_bytes: 1 << 30, ..task(Pattern::RandomRead) };
    let blocking = || -> Result<Box<dyn Lane>> { Ok(Box::new(BlockingLane::new(Arc::clone(&file), 0, BLOCK, 4))) };
    assert!(run(&small, &blocking, || Ok(())).is_err());
    if RingLane::probe().is_ok() {
        for manner in [Manner::Library, Manner::Fio] {
            let ring =
                || -> Result<Box<dyn Lane>> { Ok(Box::new(RingLane::new(Arc::clone(&file), 0, BLOCK, 4, manner)?)) };
            let words = format!("{:#}", run(&small, &ring, || Ok(())).unwrap_err());
            assert!(words.contains("read at byte") && words.contains("the file ended"), "{words}");
        }
    }
}

/// Takes what is submitted, ends it at once, and counts.
struct Counting<'a> {
    writes: &'a AtomicU64,
    reads: &'a AtomicU64,
    in_flight: Vec<usize>,
    buffer: Vec<u8>,
}

impl Lane for Counting<'_> {
    fn buffer(&mut self, _: usize) -> &mut [u8] {
        &mut self.buffer
    }
    fn submit(&mut self, slot: usize, write: bool, offset_bytes: u64) -> Result<()> {
        assert!(offset_bytes < BLOCKS * u64::from(BLOCK) && offset_bytes.is_multiple_of(u64::from(BLOCK)));
        let counter = if write { self.writes } else { self.reads };
        counter.fetch_add(1, Ordering::Relaxed);
        self.in_flight.push(slot);
        Ok(())
    }
    fn wait(&mut self, ended: &mut Vec<usize>) -> Result<()> {
        ended.append(&mut self.in_flight);
        Ok(())
    }
}

#[test]
fn seven_of_ten_requests_of_the_mixed_job_are_reads() {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    static READS: AtomicU64 = AtomicU64::new(0);
    let open = || -> Result<Box<dyn Lane>> {
        Ok(Box::new(Counting { writes: &WRITES, reads: &READS, in_flight: Vec::new(), buffer: vec![0; 512] }))
    };
    run(&task(Pattern::RandomMixed), &open, || Ok(())).unwrap();
    #[allow(clippy::cast_precision_loss)] // a share
    let share = |of: &AtomicU64| of.load(Ordering::Relaxed) as f64;
    let reads = share(&READS) / (share(&READS) + share(&WRITES));
    assert!((0.65..0.75).contains(&reads), "{reads}");
}

#[test]
fn a_lane_that_does_not_open_ends_all_threads() {
    let open = || -> Result<Box<dyn Lane>> { Err(anyhow!("no way")) };
    let long = Task { piece: Duration::from_secs(600), warm_up: Duration::from_secs(600), ..task(Pattern::RandomRead) };
    assert_eq!(run(&long, &open, || Ok(())).unwrap_err().to_string(), "no way");
}

#[test]
fn data_is_random_and_fresh_in_every_sector() {
    let mut random = Random(7);
    let mut bytes = vec![0; 4096];
    random.fill(&mut bytes);
    let before = bytes.clone();
    random.freshen(&mut bytes);
    assert!(bytes.chunks(512).zip(before.chunks(512)).all(|(new, old)| new[..8] != old[..8] && new[8..] == old[8..]));
    let different = bytes.iter().collect::<std::collections::HashSet<_>>().len();
    assert!(different > 250, "{different}");
}
