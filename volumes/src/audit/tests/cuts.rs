//! A writer that dies at each of its calls, and a disk that loses its power there: the next writer goes on, nothing that was
//! acknowledged is lost, and verifying never calls a crash tampering.

use super::*;

/// Noon of the last of November; the next one is in December.
fn time(n: u64) -> Moment {
    Moment::from_unix(1_796_039_990 + i64::try_from(n).unwrap() * 3600 * 5)
}

/// Numbers that the details of the good records have: what the callers were told is there.
fn written(disk: &Disk) -> Vec<u64> {
    let lines = disk.cached.values().flat_map(|bytes| bytes.split(|byte| *byte == b'\n'));
    lines
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter_map(|record| record["details"]["n"].as_str().map(|n| n.parse().unwrap()))
        .collect()
}

/// Five records, with the month's end between them, where the call number `cut` is cut in its middle.
fn run(cut: u64, part: usize, append_only: bool) -> (Disk, Vec<u64>, bool) {
    let mut disk = Disk { calls_left: Some(cut), part, append_only, ..new_chain() };
    let mut acknowledged = Vec::new();
    for n in 0..5 {
        match write(&mut disk, &event(n), time(n)) {
            Ok(_) => acknowledged.push(n),
            Err(_) => return (disk, acknowledged, true),
        }
    }
    (disk, acknowledged, false)
}

/// Verifies as it is, then goes on and verifies again.
fn goes_on(mut disk: Disk, acknowledged: &[u64], what: &str) {
    let before = report(&disk, &[]);
    assert_eq!(before.faults, [], "{what}: a crash is called tampering");
    for n in 100..103 {
        write(&mut disk, &event(n), time(5)).unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    let after = report(&disk, &[]);
    assert_eq!(after.faults, [], "{what}: {:?}", after.notes);
    let found = written(&disk);
    for n in acknowledged.iter().chain(&[100, 101, 102]) {
        assert_eq!(found.iter().filter(|found| *found == n).count(), 1, "{what}: record {n} of {found:?}");
    }
    // Whatever was remembered outside still fits.
    let head: Head = before.head.map_or(Head { count: 1, mac: [0; 32] }, |head| head.parse().unwrap());
    if head.mac != [0; 32] {
        assert_eq!(report(&disk, &[head]).faults, [], "{what}");
    }
}

#[test]
fn a_writer_killed_at_every_call_loses_nothing() {
    for append_only in [false, true] {
        let (mut cut, mut cases) = (1, 0);
        loop {
            let mut was_cut = false;
            for part in [0, 1, 40, 90, 200, 10_000] {
                let (disk, acknowledged, is_cut) = run(cut, part, append_only);
                was_cut |= is_cut;
                goes_on(
                    disk.after_kill(),
                    &acknowledged,
                    &format!("call {cut}, part {part}, append-only {append_only}"),
                );
                cases += 1;
            }
            if !was_cut {
                break;
            }
            cut += 1;
        }
        assert!(cases > 200, "only {cases} cases");
    }
}

#[test]
fn a_power_cut_at_every_call_loses_nothing() {
    let mut dice = Dice(0x5eed);
    let mut cut = 1;
    loop {
        let (disk, acknowledged, is_cut) = run(cut, usize::MAX, true);
        for round in 0..12 {
            let left = disk.after_power_cut(&mut dice);
            goes_on(left, &acknowledged, &format!("call {cut}, round {round}"));
        }
        if !is_cut {
            break;
        }
        cut += 1;
    }
    assert!(cut > 30, "only {cut} calls");
}

#[test]
fn the_crash_of_a_crashs_repair_is_mended() {
    for part in [3, 30, 120] {
        for cut in 1..12 {
            let (disk, acknowledged, _) = run(8, part, true);
            let mut disk = Disk { calls_left: Some(cut), part: 50, ..disk.after_kill() };
            let again = write(&mut disk, &event(50), time(4)).is_ok();
            let mut acknowledged = acknowledged;
            acknowledged.extend(again.then_some(50));
            goes_on(disk.after_kill(), &acknowledged, &format!("part {part}, second cut {cut}"));
        }
    }
}

#[test]
fn a_record_that_lacks_only_its_newline_is_taken_over() {
    let mut disk = new_chain();
    (0..3).for_each(|n| assert!(write(&mut disk, &event(n), time(0)).is_ok()));
    let before = disk.cached_state.clone();
    write(&mut disk, &event(3), time(0)).unwrap();
    disk.cached_state = before;
    assert_eq!(disk.cached.values_mut().next().unwrap().pop(), Some(b'\n'));
    goes_on(disk, &[0, 1, 2, 3], "a missing newline");
}

#[test]
fn a_full_disk_is_the_callers_error_and_the_log_stays_good() {
    for append_only in [false, true] {
        for more in [0, 1, 50, 100, 300] {
            let mut disk = Disk { append_only, ..new_chain() };
            (0..3).for_each(|n| assert!(write(&mut disk, &event(n), time(0)).is_ok()));
            let used: usize = disk.cached.values().map(Vec::len).sum();
            disk.room = Some(used + more);
            let error = write(&mut disk, &event(9), time(0)).unwrap_err();
            assert!(matches!(error, VolumesError::Io { what: "write", .. }), "{error}");
            disk.room = None;
            goes_on(disk, &[0, 1, 2], &format!("{more} bytes of room"));
        }
    }
}

#[test]
fn bytes_of_somebody_else_are_no_crash() {
    for junk in ["x\n", "x", "{\"n\":9}\n", "\n\n\n", "{\"n\":3,\"prev\":\"00\n"] {
        let mut disk = new_chain();
        (0..3).for_each(|n| assert!(write(&mut disk, &event(n), time(0)).is_ok()));
        let name = disk.cached.keys().next().unwrap().clone();
        disk.cached.get_mut(&name).unwrap().extend_from_slice(junk.as_bytes());
        if junk.trim() != "" {
            assert_eq!(
                report(&disk, &[]).faults.iter().map(|fault| fault.kind).collect::<Vec<_>>(),
                [Kind::Inserted],
                "{junk:?}"
            );
        }
        write(&mut disk, &event(3), time(0)).unwrap();
        let after = report(&disk, &[]);
        let is_torn = junk.trim().is_empty();
        assert_eq!(after.faults.len(), usize::from(!is_torn), "{junk:?} {:?}", after.faults);
        if !is_torn {
            assert_eq!((after.faults[0].kind, after.faults[0].line), (Kind::Inserted, 4), "{junk:?}");
        }
        assert_eq!(written(&disk), [0, 1, 2, 3]);
    }
}

#[test]
fn a_log_that_lost_its_end_goes_on_and_says_so() {
    for lost in [1, 50, 5000] {
        let mut disk = new_chain();
        (0..3).for_each(|n| assert!(write(&mut disk, &event(n), time(0)).is_ok()));
        let bytes = disk.cached.values_mut().next().unwrap();
        bytes.truncate(bytes.len().saturating_sub(lost));
        assert!(!report(&disk, &[]).faults.is_empty(), "{lost}");
        write(&mut disk, &event(3), time(0)).unwrap();
        let after = report(&disk, &[]);
        // With its newline nothing but the newline was lost.
        assert_eq!(after.faults.is_empty(), lost == 1, "{lost}: {:?}", after.faults);
        assert!(after.faults.iter().all(|fault| fault.last <= 2), "{lost}: {:?}", after.faults);
        let all: Vec<u8> = disk.cached.values().flatten().copied().collect();
        assert!(String::from_utf8_lossy(&all).contains("audit-shortened"));
    }
}

#[test]
fn a_state_that_counts_what_cannot_be_is_named_at_once() {
    let mut disk = new_chain();
    (0..3).for_each(|n| assert!(write(&mut disk, &event(n), time(0)).is_ok()));
    let mut state = State::read(&mut disk).unwrap().unwrap();
    state.count = u64::MAX;
    state.write(&mut disk).unwrap();
    let faults = report(&disk, &[]).faults;
    assert_eq!(
        faults.iter().map(|fault| (fault.kind, fault.first)).collect::<Vec<_>>(),
        [(Kind::Cut, 3)],
        "{faults:?}"
    );
}

#[test]
fn old_months_go_and_the_chain_still_fits() {
    let mut disk = new_chain();
    let day = |n: i64| Moment::from_unix(1_767_225_600 + n * 86_400);
    let actor = actor();
    for n in 0..30_i64 {
        let now = day(n * 15);
        let stamp = Stamp { actor: &actor, environment: "x", now };
        let mut state = State::read(&mut disk).unwrap().unwrap();
        if append(&mut disk, &mut state, &event(n.unsigned_abs()), &stamp).unwrap() {
            super::super::retention::remove_old(&mut disk, &mut state, &stamp, 90).unwrap();
        }
        assert_eq!(report(&disk, &[]).faults, [], "{n}");
    }
    let kept: Vec<String> = disk.cached.keys().cloned().collect();
    assert!(kept.len() <= 5 && kept[0] > file_of("2026-11"), "{kept:?}");
    let good = report(&disk, &[]);
    assert!(good.first > 10, "{good:?}");
    // A file more than retention took is missed.
    disk.cached.remove(&kept[0]);
    let faults = report(&disk, &[]).faults;
    assert_eq!(faults.iter().map(|fault| fault.kind).collect::<Vec<_>>(), [Kind::Deleted], "{faults:?}");
    assert_eq!(faults[0].first, good.first);
}
