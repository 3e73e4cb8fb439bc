//! What a database must hold after it lost its power: an account of every transaction, kept on another disk, and the comparison.
//!
//! Each writer's transactions are numbered and follow from the seed. Number T inserts 1 to 4 rows, deletes those of T − 200
//! and before, and moves the writer's counter to T; one of eight is rolled back. So the rows of a writer are a function of the
//! last transaction that was committed, and every state between two transactions is a finding. A transaction is
//! acknowledged after COMMIT has returned. After a cut the last one is no older than the last acknowledged and no newer
//! than the last begun.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use block::fault::SplitMix64;
use sha2::{Digest as _, Sha256};

use super::wire::{Connection, WireError};

/// A row lives for so many transactions.
const KEPT: u64 = 200;
/// Bytes of a row's text: a page holds many of the first, the last is stored out of line.
const LENGTHS: [u64; 8] = [16, 60, 60, 200, 200, 900, 2500, 12_000];

/// The tables of the writers.
const TABLES: &str = "\
CREATE EXTENSION amcheck;
CREATE TABLE parts (writer int, txn bigint, part int, parts int, body text, PRIMARY KEY (writer, txn, part));
CREATE INDEX parts_body ON parts (md5(body));
CREATE TABLE counters (writer int PRIMARY KEY, txn bigint);";

/// One writer's numbers.
#[derive(Debug, Default)]
struct Account {
    begun: AtomicU64,
    acknowledged: AtomicU64,
}

/// All writers' numbers, with a copy of each line in a file.
#[derive(Debug)]
pub struct Ledger {
    seed: u64,
    accounts: Vec<Account>,
    file: Mutex<File>,
    commits: AtomicU64,
}

/// What the ledger says of each writer at one moment: its last acknowledged transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acknowledged(Vec<u64>);

impl Ledger {
    /// An empty one, written to `file`.
    ///
    /// # Panics
    /// If the file cannot be made.
    #[must_use]
    pub fn new(seed: u64, writers: usize, file: &Path) -> Ledger {
        Ledger {
            seed,
            accounts: std::iter::repeat_with(Account::default).take(writers).collect(),
            file: Mutex::new(File::create(file).unwrap()),
            commits: AtomicU64::new(0),
        }
    }

    /// How many writers there are.
    #[must_use]
    pub fn writers(&self) -> usize {
        self.accounts.len()
    }

    /// Transactions whose COMMIT has returned.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Taken before a cut: all that it lists had been committed by then.
    #[must_use]
    pub fn acknowledged(&self) -> Acknowledged {
        Acknowledged(self.accounts.iter().map(|account| account.acknowledged.load(Ordering::SeqCst)).collect())
    }

    /// Makes the tables.
    ///
    /// # Errors
    /// As the server says.
    pub fn make_tables(connection: &mut Connection) -> Result<(), WireError> {
        connection.run(TABLES).map(drop)
    }

    /// Carries out the writer's next transaction, statement by statement.
    ///
    /// # Errors
    /// As the server says; then nobody knows what became of it.
    ///
    /// # Panics
    /// If the ledger's file cannot be written.
    pub fn write_next(&self, connection: &mut Connection, writer: usize) -> Result<(), WireError> {
        let account = &self.accounts[writer];
        let txn = account.begun.fetch_add(1, Ordering::SeqCst) + 1;
        connection.run("BEGIN")?;
        let bodies = bodies(self.seed, writer, txn);
        for (part, body) in bodies.iter().enumerate() {
            let parts = bodies.len();
            connection.run(&format!("INSERT INTO parts VALUES ({writer}, {txn}, {part}, {parts}, '{body}')"))?;
        }
        if let Some(old) = txn.checked_sub(KEPT) {
            connection.run(&format!("DELETE FROM parts WHERE writer = {writer} AND txn <= {old}"))?;
        }
        connection.run(&format!(
            "INSERT INTO counters VALUES ({writer}, {txn}) ON CONFLICT (writer) DO UPDATE SET txn = {txn}"
        ))?;
        if is_rolled_back(self.seed, writer, txn) {
            connection.run("ROLLBACK")?;
        } else {
            let ended = connection.run("COMMIT")?;
            if ended.tag != "COMMIT" {
                return Err(WireError::Garbage(format!("COMMIT was answered with {}", ended.tag)));
            }
            self.commits.fetch_add(1, Ordering::Relaxed);
            writeln!(self.file.lock().unwrap(), "writer {writer} committed {txn}").unwrap();
        }
        account.acknowledged.store(txn, Ordering::SeqCst);
        Ok(())
    }

    /// Holds the database against the ledger: a line for everything that is lost, half there or too much. Afterwards the
    /// writers go on where the database is.
    #[must_use]
    pub fn check(&self, connection: &mut Connection, acknowledged: &Acknowledged) -> Vec<String> {
        let mut findings = Vec::new();
        for (writer, account) in self.accounts.iter().enumerate() {
            let durable = acknowledged.0.get(writer).copied().unwrap_or(0);
            let begun = account.begun.load(Ordering::SeqCst);
            match self.check_writer(connection, writer, durable, begun) {
                Ok(last) => {
                    let next = last.max(durable);
                    account.begun.store(next, Ordering::SeqCst);
                    account.acknowledged.store(next, Ordering::SeqCst);
                }
                Err(finding) => {
                    findings.push(format!("writer {writer}, committed {durable}, begun {begun}: {finding}"))
                }
            }
        }
        findings
    }

    /// The last transaction that is there, if all is as it must be.
    fn check_writer(
        &self,
        connection: &mut Connection,
        writer: usize,
        durable: u64,
        begun: u64,
    ) -> Result<u64, String> {
        let mut ask = |sql: &str| connection.run(sql).map_err(|error| format!("{sql}: {error}"));
        let counter = ask(&format!("SELECT txn FROM counters WHERE writer = {writer}"))?.rows;
        let last = counter.first().and_then(|row| row.first()?.as_ref()?.parse().ok()).unwrap_or(0);
        let oldest = (0..=durable).rev().find(|txn| *txn == 0 || !is_rolled_back(self.seed, writer, *txn)).unwrap_or(0);
        if last < oldest {
            return Err(format!("lost: the database is at {last}"));
        }
        if last > begun || last > 0 && is_rolled_back(self.seed, writer, last) {
            return Err(format!("the database is at {last}, which was never committed"));
        }
        let rows = ask(&format!(
            "SELECT txn, part, parts, encode(sha256(convert_to(body, 'UTF8')), 'hex') FROM parts WHERE writer = {writer} \
             ORDER BY txn, part"
        ))?;
        let there: Vec<String> = rows
            .rows
            .iter()
            .map(|row| row.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" "))
            .collect();
        let expected = rows_at(self.seed, writer, last);
        let missing: Vec<_> = expected.iter().filter(|row| !there.contains(row)).take(5).collect();
        let too_much: Vec<_> = there.iter().filter(|row| !expected.contains(row)).take(5).collect();
        if missing.is_empty() && too_much.is_empty() && there.len() == expected.len() {
            return Ok(last);
        }
        let (found, all) = (there.len(), expected.len());
        Err(format!("at {last}, {found} rows instead of {all}; missing {missing:?}; too much {too_much:?}"))
    }
}

/// The rows of a writer whose last committed transaction is `last`: transaction, part, parts, SHA-256 of the text.
fn rows_at(seed: u64, writer: usize, last: u64) -> Vec<String> {
    let mut rows = Vec::new();
    for txn in (last.saturating_sub(KEPT) + 1..=last).filter(|txn| !is_rolled_back(seed, writer, *txn)) {
        let bodies = bodies(seed, writer, txn);
        for (part, body) in bodies.iter().enumerate() {
            let digest: String = Sha256::digest(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
            rows.push(format!("{txn} {part} {} {digest}", bodies.len()));
        }
    }
    rows
}

fn random_of(seed: u64, writer: usize, txn: u64) -> SplitMix64 {
    let mut mixed = SplitMix64::new(seed ^ (writer as u64 + 1).wrapping_mul(0xD1B5_4A32_D192_ED03));
    SplitMix64::new(mixed.next_u64() ^ txn)
}

fn is_rolled_back(seed: u64, writer: usize, txn: u64) -> bool {
    random_of(seed, writer, txn).below(8) == 0
}

fn bodies(seed: u64, writer: usize, txn: u64) -> Vec<String> {
    let mut random = random_of(seed, writer, txn);
    // The first number is the one of `is_rolled_back`.
    random.next_u64();
    let parts = 1 + random.below(4);
    (0..parts)
        .map(|_| {
            let index = usize::try_from(random.below(LENGTHS.len() as u64)).unwrap();
            let words = LENGTHS[index].div_ceil(16);
            (0..words).map(|_| format!("{:016x}", random.next_u64())).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_from_the_last_transaction() {
        let committed: Vec<u64> = (1..=1000).filter(|txn| !is_rolled_back(7, 1, *txn)).collect();
        assert!((800..950).contains(&committed.len()), "{}", committed.len());
        let last = *committed.last().unwrap();
        let rows = rows_at(7, 1, last);
        assert!(rows.len() > 200 && rows[0].split(' ').next().unwrap().parse::<u64>().unwrap() > last - KEPT);
        assert_ne!(rows, rows_at(7, 0, last));
        assert_ne!(rows, rows_at(8, 1, last));
        assert_eq!(rows_at(7, 1, 0), Vec::<String>::new());
    }
}
