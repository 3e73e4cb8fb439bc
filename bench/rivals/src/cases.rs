//! What is measured: sector sizes, buffers, directions, threads, and single sectors.

use dmcrypt::SectorSize;
use luksbench::contender::Direction;
use luksbench::rounds::Case;

const BUFFERS_BYTES: [usize; 4] = [4 << 10, 64 << 10, 1 << 20, 64 << 20];

/// Single sectors are taken in turn from that many, so that no call waits for the bytes of the one before.
const SINGLE_BUFFERS: usize = 8;

/// All cases, or the quick ones, whose names have all of `wanted` in them.
pub(crate) fn chosen(quick: bool, wanted: &[String]) -> Vec<Case> {
    let fits = |case: &Case| {
        let name = name(case);
        wanted.iter().all(|text| name.contains(text.as_str())) && !(quick && case.call_bytes > 1 << 20)
    };
    all().into_iter().filter(fits).collect()
}

fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for threads in [1, 2] {
        for sector_size in [SectorSize::S4096, SectorSize::S512] {
            for call_bytes in BUFFERS_BYTES {
                for direction in Direction::ALL {
                    cases.push(Case { sector_size, call_bytes, buffers: 1, direction, threads });
                }
            }
        }
    }
    for sector_size in [SectorSize::S4096, SectorSize::S512] {
        for direction in Direction::ALL {
            let call_bytes = sector_size.bytes() as usize;
            cases.push(Case { sector_size, call_bytes, buffers: SINGLE_BUFFERS, direction, threads: 1 });
        }
    }
    cases
}

/// Whether it is the latency of one sector that counts.
pub(crate) fn is_single(case: &Case) -> bool {
    case.buffers > 1
}

/// As in `512 B sectors, 64 KiB, encrypt, 1 thread`.
pub(crate) fn name(case: &Case) -> String {
    let sector_bytes = case.sector_size.bytes();
    let direction = case.direction.name();
    if is_single(case) {
        return format!("one single sector of {sector_bytes} B, {direction}");
    }
    let (size, unit) =
        if case.call_bytes < 1 << 20 { (case.call_bytes >> 10, "KiB") } else { (case.call_bytes >> 20, "MiB") };
    let threads = if case.threads == 1 { "1 thread".into() } else { format!("{} threads", case.threads) };
    format!("{sector_bytes} B sectors, {size} {unit}, {direction}, {threads}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_filter() {
        let names: std::collections::HashSet<String> = all().iter().map(name).collect();
        assert_eq!((names.len(), all().len()), (36, 36));
        let of =
            |quick, wanted: &[&str]| chosen(quick, &wanted.iter().map(ToString::to_string).collect::<Vec<_>>()).len();
        assert_eq!(of(true, &[]), 28);
        assert_eq!(of(false, &["512 B sectors", "64 KiB", "1 thread"]), 2);
        assert_eq!(of(false, &["single"]), 4);
        assert_eq!(of(true, &["64 MiB"]), 0);
    }
}
