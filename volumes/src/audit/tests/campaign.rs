//! Ten thousand records over three months: change, delete, swap, insert, cut, and log plus state restored from an older copy
//! are each found and located, hundreds of times.

use std::collections::BTreeSet;

use super::*;

const RECORDS: u64 = 10_000;
/// Rounds with several mutations each.
const ROUNDS: u64 = 40;
/// Mutations of one round, far enough from each other that each is a fault of its own.
const PER_ROUND: u64 = 8;

/// Ten thousand records from September on, and copies of the disk on the way.
fn ten_thousand(copies: &[u64]) -> (Disk, Vec<Disk>) {
    let mut disk = new_chain();
    let mut kept = Vec::new();
    let actor = actor();
    let mut state = State::read(&mut disk).unwrap().unwrap();
    for n in 0..RECORDS {
        if copies.contains(&n) {
            kept.push(disk.clone());
        }
        let now = Moment::from_unix(1_788_220_800 + i64::try_from(n).unwrap() * 700);
        let stamp = Stamp { actor: &actor, environment: "production", now };
        append(&mut disk, &mut state, &event(n), &stamp).unwrap();
    }
    (disk, kept)
}

/// The lines of all files, each with its file.
fn lines_of(disk: &Disk) -> Vec<(String, Vec<u8>)> {
    let of = |(name, bytes): (&String, &Vec<u8>)| {
        bytes.split_inclusive(|byte| *byte == b'\n').map(|line| (name.clone(), line.to_vec())).collect::<Vec<_>>()
    };
    disk.cached.iter().flat_map(of).collect()
}

fn with_lines(disk: &Disk, lines: &[(String, Vec<u8>)]) -> Disk {
    let mut changed = Disk { cached: BTreeMap::new(), ..disk.clone() };
    for (name, line) in lines {
        changed.cached.entry(name.clone()).or_default().extend_from_slice(line);
    }
    changed
}

/// Which of all lines a fault names.
fn index(lines: &[(String, Vec<u8>)], fault: &Fault) -> usize {
    let first = lines.iter().position(|(name, _)| *name == fault.file).unwrap();
    first + usize::try_from(fault.line).unwrap() - 1
}

/// The number that a line claims.
fn number(line: &[u8]) -> Option<u64> {
    super::super::line::Claim::of(line.strip_suffix(b"\n")?).map(|claim| claim.n)
}

/// What a mutation has to be found as: kind and record.
fn mutate(lines: &mut Vec<(String, Vec<u8>)>, record: u64, dice: &mut Dice) -> (Kind, BTreeSet<u64>) {
    let at = lines.iter().position(|(_, line)| number(line) == Some(record)).unwrap();
    let one = |kind| (kind, BTreeSet::from([record]));
    match dice.roll(8) {
        // One bit of one byte anywhere in the line but its newline.
        0 | 1 => {
            let line = &mut lines[at].1;
            let byte = usize::try_from(dice.roll(line.len() as u64 - 1)).unwrap();
            line[byte] ^= 1 << dice.roll(7);
            // A newline in the middle is two lines; then it is no single change.
            if line[byte] == b'\n' {
                line[byte] = b'~';
            }
            one(Kind::Changed)
        }
        // A value, as one would.
        2 => {
            let text = String::from_utf8(lines[at].1.clone()).unwrap();
            lines[at].1 = text.replace("\"uid\":0", "\"uid\":1").into_bytes();
            one(Kind::Changed)
        }
        3 => {
            lines.remove(at);
            one(Kind::Deleted)
        }
        4 => {
            let other = at + 1 + usize::try_from(dice.roll(5)).unwrap();
            let (a, b) = (lines[at].1.clone(), lines[other].1.clone());
            let records = BTreeSet::from([number(&a).unwrap(), number(&b).unwrap()]);
            (lines[at].1, lines[other].1) = (b, a);
            (Kind::Swapped, records)
        }
        // A copy of a record from elsewhere.
        5 => {
            let from = usize::try_from(dice.roll(lines.len() as u64)).unwrap();
            let copy = (lines[at].0.clone(), lines[from].1.clone());
            let record = number(&copy.1).map_or(record, |n| n);
            lines.insert(at, copy);
            (Kind::Inserted, BTreeSet::from([record]))
        }
        // A made-up record, well-formed.
        6 => {
            let text = String::from_utf8(lines[at].1.clone()).unwrap();
            let made_up = text.replace("\"action\":\"test\"", "\"action\":\"made-up\"");
            lines.insert(at, (lines[at].0.clone(), made_up.into_bytes()));
            one(Kind::Inserted)
        }
        _ => {
            lines.insert(at, (lines[at].0.clone(), b"no record at all\n".to_vec()));
            one(Kind::Inserted)
        }
    }
}

#[test]
fn each_mutation_of_ten_thousand_records_is_found_and_located() {
    let (disk, _) = ten_thousand(&[]);
    let good = report(&disk, &[]);
    assert_eq!((good.records, good.faults.len(), good.notes.len()), (RECORDS, 0, 0), "{:?}", good.faults);
    assert!(disk.cached.len() >= 3, "records of three months");
    let lines = lines_of(&disk);
    let mut kinds = BTreeSet::new();
    for round in 0..ROUNDS {
        let seed = 0x0a0d_1700 + round;
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut mutated = lines.clone();
        let mut expected = Vec::new();
        for part in 0..PER_ROUND {
            let span = RECORDS / PER_ROUND;
            let record = part * span + 20 + dice.roll(span - 60);
            let (kind, records) = mutate(&mut mutated, record, &mut dice);
            expected.push((kind, records, record));
        }
        let found = report(&with_lines(&disk, &mutated), &[]);
        let what = || {
            format!("seed {seed}: {:?}\n{expected:?}", found.faults.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        for (kind, records, record) in &expected {
            kinds.insert(*kind);
            let hit = found.faults.iter().find(|fault| fault.kind == *kind && records.contains(&fault.first));
            let Some(hit) = hit else { panic!("{kind:?} of {records:?} is not found: {}", what()) };
            // The line that is named is at the place that was touched.
            let at = index(&mutated, hit);
            let near = |at: usize| {
                mutated.get(at).and_then(|(_, line)| number(line)).is_some_and(|n| n.abs_diff(*record) <= 6)
            };
            assert!((at.saturating_sub(1)..=at + 1).any(near), "{hit} is not at record {record}: {}", what());
        }
        // A swap is named at one or both of its records; everything else once.
        let swaps = expected.iter().filter(|(kind, ..)| *kind == Kind::Swapped).count();
        let most = expected.len() + swaps;
        assert!((expected.len()..=most).contains(&found.faults.len()), "{}", what());
    }
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [Kind::Changed, Kind::Deleted, Kind::Swapped, Kind::Inserted]);
}

#[test]
fn cuts_and_older_copies_of_ten_thousand_records_are_found_and_located() {
    let copies = [1, 5000, 9998, 9999];
    let (disk, kept) = ten_thousand(&copies);
    let lines = lines_of(&disk);
    let remembered: Head = report(&disk, &[]).head.unwrap().parse().unwrap();
    let kinds = |report: &Report| report.faults.iter().map(|fault| fault.kind).collect::<Vec<_>>();

    // The end is cut: by lines, and in the middle of a line.
    for lost in [1, 2, 100, 6000] {
        let left = usize::try_from(RECORDS - lost).unwrap();
        let found = report(&with_lines(&disk, &lines[..left]), &[]);
        assert_eq!(kinds(&found), [Kind::Cut], "{lost}");
        assert_eq!((found.faults[0].first, found.faults[0].last), (RECORDS - lost, RECORDS - 1));
        let mut half = lines[..=left.min(lines.len() - 1)].to_vec();
        let last = half.last_mut().unwrap();
        last.1.truncate(last.1.len() / 2);
        let found = report(&with_lines(&disk, &half), &[]);
        assert_eq!(kinds(&found), [Kind::Cut], "{lost} and a half");
    }
    // A whole month goes.
    let mut without = disk.clone();
    without.cached.remove("audit-2026-10.jsonl").unwrap();
    let found = report(&without, &[]);
    assert_eq!(kinds(&found), [Kind::Deleted]);
    assert_eq!((found.faults[0].file.as_str(), found.faults[0].line), ("audit-2026-11.jsonl", 1));

    for (copy, count) in kept.iter().zip(copies) {
        // Log and state from an older copy: good in itself, and found by what is remembered outside.
        assert_eq!(kinds(&report(copy, &[])), [], "{count}");
        let found = report(copy, &[remembered]);
        assert_eq!(kinds(&found), [Kind::RolledBack], "{count}");
        assert_eq!((found.faults[0].first, found.faults[0].last), (count, RECORDS - 1));
        // … and written on: the numbers are there again, the MACs are not the same.
        let mut forked = copy.clone();
        for n in 0..40 {
            write(&mut forked, &event(n + 3), Moment::from_unix(1_795_300_000)).unwrap();
        }
        assert_eq!(kinds(&report(&forked, &[])), [], "{count}");
        let heads: Vec<Head> = (count..RECORDS.min(count + 20)).map(|n| head_at(&lines, n)).collect();
        let found = report(&forked, &heads);
        assert!(kinds(&found).iter().all(|kind| *kind == Kind::RolledBack) && !found.faults.is_empty(), "{count}");
        let first = found.faults.iter().map(|fault| fault.first).min();
        assert_eq!(first, Some(count), "located where the copies part");
        // The log alone from an older copy, and the state alone.
        let log = Disk { cached: copy.cached.clone(), ..disk.clone() };
        assert_eq!(kinds(&report(&log, &[])), [Kind::Cut], "{count}");
        let state = Disk { cached_state: copy.cached_state.clone(), ..disk.clone() };
        let found = report(&state, &[]);
        if RECORDS - count > 1 {
            assert_eq!(kinds(&found), [Kind::RolledBack], "{count}");
            assert_eq!(found.faults[0].first, count);
        }
    }
    // A state of another chain, and none.
    let other = Disk { cached_state: Disk::default().cached_state, ..disk.clone() };
    assert_eq!(kinds(&report(&other, &[])), [Kind::RolledBack]);
    let wrong_seed = Secret::copy_of(&[8; KEY_BYTES]).unwrap();
    let found = super::super::verify::verify(&disk.snapshot(), &wrong_seed, &[]).unwrap();
    assert!(found.records == 0 && !found.faults.is_empty());
}

/// The head after record n.
fn head_at(lines: &[(String, Vec<u8>)], n: u64) -> Head {
    let line = &lines[usize::try_from(n).unwrap()].1;
    let claim = super::super::line::Claim::of(line.strip_suffix(b"\n").unwrap()).unwrap();
    Head { count: n + 1, mac: claim.mac }
}
