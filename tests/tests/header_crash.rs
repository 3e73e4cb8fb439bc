//! The crash campaign: see `promises::crash`. `make test` runs the quick form, `make test-crash` the whole.
#![allow(clippy::print_stderr)]

use promises::crash::agreement::compare;
use promises::crash::campaign::{Effort, Recorded, Tally};
use promises::crash::errors::WAYS;
use promises::crash::operation::operations;
use promises::crash::{seed, whole};
use promises::skip::needs_programs;

/// Flushes whose loss nothing can show, and why.
const NOTHING_TO_LOSE: [(&str, usize, &str); 1] =
    [("format an empty disk", 0, "it is there for the magic of an old header; on an empty disk there is none")];

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
fn without_any_one_flush_the_campaign_finds_a_loss() {
    let (mut hidden, mut flushes) = (Vec::new(), 0);
    for operation in operations() {
        let mut recorded = Recorded::of(operation, seed());
        for flush in 0..recorded.recording.flushes() {
            let found = !recorded.cut_everywhere(effort(), Some(flush)).losses.is_empty();
            let nothing = NOTHING_TO_LOSE.iter().any(|(name, at, _)| (*name, *at) == (operation.name, flush));
            flushes += 1;
            if found == nothing {
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
