//! Measuring AES-256-XTS on this machine: implementations side by side, interleaved in rounds, against the limit that
//! the processor's own AES instructions set.
//!
//! Machines are shared and GB/s move by a third. So nothing here is compared across time: each piece of work runs next
//! to a piece of pure AES rounds, ratios are taken inside one round, and medians over rounds are reported.
#![deny(unsafe_code)]

pub mod baseline;
pub mod compare;
pub mod contender;
pub mod lane;
pub mod latency;
#[allow(unsafe_code)]
pub mod limit;
pub mod report;
pub mod rounds;
pub mod run;
pub mod saved;
pub mod stats;
pub mod targets;
