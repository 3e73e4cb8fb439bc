//! The crash campaign: see `promises::crash`. `make test` runs the quick form, `make test-crash` the whole.
#![allow(clippy::print_stderr)]

use promises::crash::agreement::compare;
use promises::crash::campaign::{Effort, Recorded, Tally, on_each};
use promises::crash::errors::{WAYS, refuses_a_stale_handle};
use promises::crash::mending::Mended;
use promises::crash::operation::{Operation, operations};
use promises::crash::{seed, whole};
use promises::skip::needs_programs;

/// Whether nothing can show the loss of this flush; docs/crash-safety.md says why.
fn nothing_to_lose(operation: &Operation, flush: usize, flushes: usize) -> bool {
    match operation.name {
        // There for the magic of an old header; an empty disk has none.
        "format an empty disk" | "LUKS1: format an empty disk" => flush == 0,
        // The keyslot is at risk from the first write to the last flush.
        "keyslot change in place"
        | "LUKS1: keyslot change in place"
        | "LUKS1: change in place of the keyslot in two sectors" => flush == 0,
        // The mark that it makes durable is there already.
        "repair that finishes a removal" | "LUKS1: repair that finishes a removal" => flush == 0,
        // The flush after it comes before anything points to what it made durable: the second sector of a disabled keyslot,
        // and key material that is not enabled before that sector.
        "LUKS1: change of the keyslot in two sectors" => [5, 6].contains(&flush),
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

/// For the flushes that are taken out: what a loss needs is seen with little, and the rest confirms that nothing is there.
fn effort_per_flush() -> Effort {
    if whole() { Effort { exhaustive_max: 2048, samples: 600 } } else { effort() }
}

/// Prints what was done, and demands that nothing was lost.
fn report(what: &str, sum: &Tally) {
    eprintln!("{what}: LUKS_CRASH_SEED={}, {} states without a usable key or a whole header", seed(), sum.losses.len());
    assert!(sum.losses.is_empty(), "{} losses, the first: {}", sum.losses.len(), sum.losses[0]);
}

#[test]
fn every_cut_of_every_operation_leaves_the_old_state_or_the_new() {
    let of_them = "copies mended | removals finished | recovered | losses";
    eprintln!("| operation | flushes | cut points | exhaustive | platters | {of_them} |");
    let tallies = on_each(|_, operation| {
        let mut recorded = Recorded::of(operation, seed());
        let tally = recorded.cut_everywhere(effort(), None);
        let (name, flushes) = (operation.name, recorded.recording.flushes());
        let Tally { cuts, exhaustive, states, mended, losses } = &tally;
        let Mended { copies, removals, restored } = mended;
        let of_them = format!("{copies} | {removals} | {restored} | {}", losses.len());
        eprintln!("| {name} | {flushes} | {cuts} | {exhaustive} | {states} | {of_them} |");
        tally
    });
    let sum = tallies.into_iter().fold(Tally::default(), Tally::plus);
    let Mended { copies, removals, restored } = sum.mended;
    let what = format!("{} operations, {} cut points, {} platters", operations().len(), sum.cuts, sum.states);
    report(&format!("{what} ({copies} copies mended, {removals} removals finished, {restored} recovered)"), &sum);
    let all = std::env::var_os("LUKS_CRASH_ONLY").is_none();
    assert!(!all || [copies, removals, restored].iter().all(|seen| *seen > 0), "a third state was never seen");
}

#[test]
fn an_error_at_every_operation_of_the_disk_loses_nothing() {
    let tallies = on_each(|number, operation| {
        let mut recorded = Recorded::of(operation, seed());
        // The quick form takes two of the five ways for each operation, in turn.
        let ways = WAYS.into_iter().enumerate().filter(|(way, _)| whole() || (number + way) % WAYS.len() < 2);
        ways.fold(Tally::default(), |sum, (_, way)| sum.plus(recorded.fail_everywhere(way)))
    });
    let sum = tallies.into_iter().fold(Tally::default(), Tally::plus);
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
    let tried = on_each(|_, operation| {
        let mut recorded = Recorded::of(operation, seed());
        let all = recorded.recording.flushes();
        let mut wrong = Vec::new();
        for flush in 0..all {
            let found = !recorded.cut_everywhere(effort_per_flush(), Some(flush)).losses.is_empty();
            // An excuse that is not needed any more hides the next loss.
            if found == nothing_to_lose(&operation, flush, all) {
                wrong.push(format!("{}, flush {flush} of {all}: found {found}", operation.name));
            }
        }
        (all, wrong)
    });
    let flushes: usize = tried.iter().map(|(flushes, _)| flushes).sum();
    let wrong: Vec<String> = tried.into_iter().flat_map(|(_, wrong)| wrong).collect();
    eprintln!("{flushes} flushes taken out, one at a time");
    assert!(wrong.is_empty(), "not needed, not seen by the campaign, or excused though it is seen: {wrong:#?}");
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
