//! The crash campaign: see `promises::crash`. `make test` runs the quick form, `make test-crash` the whole.
#![allow(clippy::print_stderr)]

use promises::crash::agreement::compare;
use promises::crash::campaign::{Effort, Recorded, Tally};
use promises::crash::errors::{WAYS, refuses_a_stale_handle};
use promises::crash::operation::{Operation, operations};
use promises::crash::{seed, whole};
use promises::skip::needs_programs;

/// Whether nothing can show the loss of this flush; docs/crash-safety.md says why.
fn nothing_to_lose(operation: &Operation, flush: usize, flushes: usize) -> bool {
    match operation.name {
        // There for the magic of an old header; an empty disk has none.
        "format an empty disk" | "LUKS1: format an empty disk" => flush == 0,
        // The keyslot is at risk from the first write to the last flush.
        "keyslot change in place" => flush == 0,
        // Not seen by the promise, which lets a LUKS1 keyslot pass through another place: a limit of this campaign.
        "LUKS1: keyslot change" => [4, 8].contains(&flush),
        "LUKS1: change of the keyslot in two sectors" => [5, 6, 10].contains(&flush),
        // What follows it touches only bytes that neither copy names, and is flushed too.
        "erase" => flush == 3,
        // The recovery file stands behind every moment before the last flush.
        _ => operation.recovery && flush + 1 < flushes,
    }
}

fn effort() -> Effort {
    if whole() {
        Effort { exhaustive_max: 16_384, samples: 5000 }
    } else {
        Effort { exhaustive_max: 1024, samples: 150 }
    }
}

/// Prints what was done, and demands that nothing was lost.
fn report(what: &str, sum: &Tally) {
    eprintln!("{what}: LUKS_CRASH_SEED={}, {} states without a usable key or a whole header", seed(), sum.losses.len());
    assert!(sum.losses.is_empty(), "{} losses, the first: {}", sum.losses.len(), sum.losses[0]);
}

#[test]
fn every_cut_of_every_operation_leaves_the_old_state_or_the_new() {
    let mut sum = Tally::default();
    eprintln!("| operation | flushes | cut points | exhaustive | platters | losses |");
    for operation in operations() {
        let mut recorded = Recorded::of(operation, seed());
        let tally = recorded.cut_everywhere(effort(), None);
        let (name, flushes) = (operation.name, recorded.recording.flushes());
        let Tally { cuts, exhaustive, states, losses } = &tally;
        eprintln!("| {name} | {flushes} | {cuts} | {exhaustive} | {states} | {} |", losses.len());
        sum = sum.plus(tally);
    }
    let what = format!("{} operations, {} cut points, {} platters", operations().len(), sum.cuts, sum.states);
    report(&what, &sum);
}

#[test]
fn an_error_at_every_operation_of_the_disk_loses_nothing() {
    let mut sum = Tally::default();
    for (number, operation) in operations().into_iter().enumerate() {
        let mut recorded = Recorded::of(operation, seed());
        for (way_number, way) in WAYS.into_iter().enumerate() {
            // The quick form takes two of the five ways for each operation, in turn.
            if whole() || (number + way_number) % WAYS.len() < 2 {
                sum = sum.plus(recorded.fail_everywhere(way));
            }
        }
    }
    report(&format!("{} operations, {} errors, {} platters", operations().len(), sum.cuts, sum.states), &sum);
}

#[test]
fn every_edit_refuses_a_stale_handle() {
    let found: Vec<String> =
        operations().iter().filter_map(|operation| refuses_a_stale_handle(operation, seed()).err()).collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn without_any_one_flush_the_campaign_finds_a_loss() {
    let (mut hidden, mut flushes) = (Vec::new(), 0);
    for operation in operations() {
        let mut recorded = Recorded::of(operation, seed());
        let all = recorded.recording.flushes();
        for flush in 0..all {
            let found = !recorded.cut_everywhere(effort(), Some(flush)).losses.is_empty();
            flushes += 1;
            if !found && !nothing_to_lose(&operation, flush, all) {
                hidden.push(format!("{}, flush {flush}: found {found}", operation.name));
            }
        }
    }
    eprintln!("{flushes} flushes taken out, one at a time");
    assert!(hidden.is_empty(), "a flush that is not needed, or that the campaign does not see: {hidden:#?}");
}

#[test]
fn cryptsetup_opens_the_same_keyslots_of_what_a_cut_leaves() {
    if !needs_programs("cryptsetup_opens_the_same_keyslots_of_what_a_cut_leaves", &["cryptsetup"]) {
        return;
    }
    let agreement = compare(if whole() { 2400 } else { 100 }, seed());
    eprintln!("cryptsetup: {} platters, {} passphrases tried on keyslots", agreement.states, agreement.questions);
    assert!(agreement.differences.is_empty(), "{:#?}", agreement.differences);
}
