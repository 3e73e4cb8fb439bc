//! Work for a database: writers whose commits go into a [`Ledger`], and pgbench beside them, whose four tables must always add
//! up and whose log is a ledger too: it counts transactions that were committed.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::Cluster;
use super::bookkeeping::{Acknowledged, Ledger};
use super::wire::{Connection, WireError};

/// Every B-tree of the database, each entry and each row compared; every table's tuples.
const CONSISTENCY: [&str; 2] = [
    "SELECT count(bt_index_check(i.indexrelid, i.indrelid::regclass::text !~ '^pg_')) FROM pg_index i \
     JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam \
     WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid",
    "SELECT coalesce(string_agg(c.relname || ': ' || v.msg, '; '), '') FROM pg_class c, \
     LATERAL verify_heapam(c.oid) v WHERE c.relkind = 'r' AND c.relpersistence = 'p'",
];
/// pgbench's tables agree with its history.
const ADDS_UP: &str = "\
SELECT (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
AND (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";

/// What was committed when the power went.
#[derive(Debug, Clone, Default)]
pub struct Committed {
    /// By our own writers.
    pub acknowledged: Acknowledged,
    /// At least so many rows of pgbench's history.
    pub history: u64,
}

/// A running load.
pub struct Load {
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<Result<(), WireError>>>,
    pgbench: Child,
    log: PathBuf,
    history: u64,
}

impl Load {
    /// Starts all writers of the ledger, and pgbench, which logs in `beside`, a folder that the server's user may write.
    /// `history` rows are there already.
    ///
    /// # Errors
    /// As the server says.
    ///
    /// # Panics
    /// If pgbench cannot be started.
    pub fn start(cluster: &Cluster, ledger: &Arc<Ledger>, beside: &Path, history: u64) -> Result<Load, WireError> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for writer in 0..ledger.writers() {
            let (connection, ledger, stop) = (cluster.connect()?, Arc::clone(ledger), Arc::clone(&stop));
            writers.push(std::thread::spawn(move || write_on(connection, &ledger, writer, &stop)));
        }
        for entry in fs::read_dir(beside).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("pgbench_log") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        let said = File::create(beside.join("pgbench")).unwrap();
        let mut pgbench = cluster.pgbench();
        pgbench.args(["-n", "-c", "2", "-T", "3600", "-l", "--log-prefix"]).arg(beside.join("pgbench_log"));
        let pgbench = pgbench.stdout(Stdio::null()).stderr(said).spawn().unwrap();
        let log = beside.join(format!("pgbench_log.{}", pgbench.id()));
        Ok(Load { ledger: Arc::clone(ledger), stop, writers, pgbench, log, history })
    }

    /// Taken before a cut: all that it lists had been committed by then.
    #[must_use]
    pub fn committed(&self) -> Committed {
        // The last line may be half written.
        let lines = fs::read(&self.log).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count();
        Committed { acknowledged: self.ledger.acknowledged(), history: self.history + lines as u64 }
    }

    /// Ends it; what the writers met.
    ///
    /// # Panics
    /// If a writer panicked.
    pub fn end(mut self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.pgbench.kill());
        drop(self.pgbench.wait());
        let ends = self.writers.drain(..).map(|writer| writer.join().unwrap());
        ends.filter_map(|end| Some(end.err()?.to_string())).collect()
    }

    /// Whether every writer has stopped of itself.
    #[must_use]
    pub fn has_broken_off(&self) -> bool {
        self.writers.iter().all(JoinHandle::is_finished)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.pgbench.kill());
        drop(self.pgbench.wait());
    }
}

fn write_on(mut connection: Connection, ledger: &Ledger, writer: usize, stop: &AtomicBool) -> Result<(), WireError> {
    while !stop.load(Ordering::Relaxed) {
        ledger.write_next(&mut connection, writer)?;
    }
    Ok(())
}

/// Holds the whole database against what was committed. Returns the rows of pgbench's history, and a line for everything that
/// is not as it must be.
pub fn check(connection: &mut Connection, ledger: &Ledger, committed: &Committed) -> (u64, Vec<String>) {
    let mut findings = ledger.check(connection, &committed.acknowledged);
    let history = match connection.value("SELECT count(*) FROM pgbench_history") {
        Ok(count) => count.parse().unwrap(),
        Err(error) => {
            findings.push(format!("pgbench_history: {error}"));
            0
        }
    };
    if history < committed.history {
        findings.push(format!("lost: pgbench_history has {history} rows, {} were committed", committed.history));
    }
    match connection.value(ADDS_UP) {
        Ok(value) if value == "t" => {}
        other => findings.push(format!("pgbench's tables do not add up: {other:?}")),
    }
    match connection.value(CONSISTENCY[0]) {
        Ok(_) => {}
        Err(error) => findings.push(format!("an index: {error}")),
    }
    match connection.value(CONSISTENCY[1]) {
        Ok(words) if words.is_empty() => {}
        other => findings.push(format!("a table: {other:?}")),
    }
    (history, findings)
}
