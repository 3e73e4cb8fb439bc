//! The real `luksctl`, from outside: exit codes, bad input, aliases, JSON, what it never changes and never shows.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // a helper of a test is a test

#[path = "cli/aliases.rs"]
mod aliases;
#[path = "cli/audit.rs"]
mod audit;
#[path = "cli/bad_input.rs"]
mod bad_input;
#[path = "cli/codes.rs"]
mod codes;
#[path = "cli/compliance.rs"]
mod compliance;
#[path = "cli/cpu.rs"]
mod cpu;
#[path = "cli/desk.rs"]
mod desk;
#[path = "cli/formatting.rs"]
mod formatting;
#[path = "cli/keyslots.rs"]
mod keyslots;
#[path = "cli/reports.rs"]
mod reports;
#[path = "cli/signals.rs"]
mod signals;
#[path = "cli/switching.rs"]
mod switching;
#[path = "cli/texts.rs"]
mod texts;
#[path = "cli/volume_compose.rs"]
mod volume_compose;
#[path = "cli/volume_config.rs"]
mod volume_config;
#[path = "cli/volume_units.rs"]
mod volume_units;
