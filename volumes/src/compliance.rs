//! What a profile demands of the set, demand by demand: the state, and the evidence that it is read from: the headers on
//! the disks, the configuration, the key store's metadata, the audit log and its files.
//!
//! * Nothing is written, and the master secret is not asked for: the key store's metadata is believed as it lies there, as
//!   `luksctl key report` believes it. What cannot be read is not met and not unmet; it is [`Verdict::Unknown`], with why.
//! * A demand of several parts has the worst verdict of its parts.
//! * The checklist is document 000's fifteen points; what no program on this machine can see is [`Verdict::Outside`].

mod checklist;
mod demands;
mod headers;
mod log;

use keystore::{Metadata, Timestamp};
use serde::Serialize;

use crate::config::{Config, Profile};

/// How a demand stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is not for this program.
    Outside,
    /// It is so.
    Met,
    /// It cannot be told.
    Unknown,
    /// It is not so.
    NotMet,
}

impl Verdict {
    /// The verdict in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Outside => "outside of luksctl",
            Verdict::Met => "met",
            Verdict::Unknown => "cannot be told",
            Verdict::NotMet => "not met",
        }
    }
}

/// One demand, how it stands and why that is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Demand {
    /// Its name.
    pub name: &'static str,
    /// What is demanded.
    pub demand: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was read, and where.
    pub evidence: Vec<String>,
}

/// A report on the whole set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whose demands they are.
    pub profile: Profile,
    /// When it was made.
    pub time: String,
    /// The profile's demands.
    pub demands: Vec<Demand>,
    /// The fifteen points.
    pub checklist: Vec<Demand>,
}

impl Report {
    /// How many of the profile's demands stand so.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.demands.iter().filter(|demand| demand.verdict == verdict).count()
    }
}

/// A demand while its evidence is gathered.
struct Gathering {
    name: &'static str,
    demand: String,
    found: Vec<(Verdict, String)>,
}

impl Gathering {
    fn new(name: &'static str, demand: impl Into<String>) -> Gathering {
        Gathering { name, demand: demand.into(), found: Vec::new() }
    }

    fn add(&mut self, verdict: Verdict, evidence: impl Into<String>) {
        self.found.push((verdict, evidence.into()));
    }

    fn hold(&mut self, is_so: bool, evidence: impl Into<String>) {
        self.add(if is_so { Verdict::Met } else { Verdict::NotMet }, evidence);
    }

    /// Nothing found is nothing known.
    fn done(self) -> Demand {
        let verdict = self.found.iter().map(|(verdict, _)| *verdict).max().unwrap_or(Verdict::Unknown);
        let evidence = self.found.into_iter().map(|(verdict, what)| match verdict {
            Verdict::Met | Verdict::Outside => what,
            _ => format!("{what}: {}", verdict.words()),
        });
        Demand { name: self.name, demand: self.demand, verdict, evidence: evidence.collect() }
    }
}

/// What the evidence is read from.
struct Sources<'a> {
    config: &'a Config,
    /// The key store's metadata, or why there is none.
    keys: Result<&'a Metadata, &'a str>,
    now: Timestamp,
}

/// The report on the set that `config` describes against `profile`. `keys` is what the key store says of itself, or why it
/// says nothing.
#[must_use]
pub fn report(config: &Config, profile: Profile, keys: Result<&Metadata, &str>, now: Timestamp) -> Report {
    let sources = Sources { config, keys, now };
    let demands = demands::of(&sources, profile);
    let checklist = checklist::of(&sources, &demands);
    Report { profile, time: now.to_string(), demands, checklist }
}

#[cfg(test)]
mod tests;
