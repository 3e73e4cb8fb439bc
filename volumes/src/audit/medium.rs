//! [`Medium`]: the few things that the log asks of a folder. The tests have one that is cut off at every call.

use std::io;

/// Where the files of records and the state are. Names are those of files of records.
pub(crate) trait Medium {
    /// The files of records, by month.
    fn names(&mut self) -> io::Result<Vec<String>>;
    /// How long a file is; 0 if it is not there.
    fn len(&mut self, name: &str) -> io::Result<u64>;
    /// Up to `most` bytes from a place in a file.
    fn read(&mut self, name: &str, from: u64, most: usize) -> io::Result<Vec<u8>>;
    /// Adds to the end of a file, which is made if it is not there.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Takes back what an append that failed left behind.
    fn truncate(&mut self, name: &str, len: u64) -> io::Result<()>;
    /// Makes a file's bytes durable.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Makes the names durable.
    fn sync_folder(&mut self) -> io::Result<()>;
    /// Forbids changes to a file that no more records come to.
    fn close(&mut self, name: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// The state's bytes; zeros where there are none.
    fn read_state(&mut self, into: &mut [u8]) -> io::Result<()>;
    /// Overwrites part of the state.
    fn write_state(&mut self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the state durable.
    fn sync_state(&mut self) -> io::Result<()>;
}
