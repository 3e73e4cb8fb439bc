//! Shows what a LUKS2 header says, without a passphrase: `cargo run -p luks --example inspect -- IMAGE`.
//!
//! Opening never writes. A damaged copy is in the header's health, not an error, as long as one copy is good.
#![allow(clippy::print_stdout, reason = "an example talks to a person")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use block::{FileDisk, OpenMode};
use luks::Limits;

type Failure = Box<dyn std::error::Error>;

/// The lines that are printed.
pub(crate) fn inspect(image: &Path) -> Result<String, Failure> {
    let disk = FileDisk::open(image, &OpenMode { read_only: true, ..OpenMode::default() })?;
    let header = luks::load(&disk, &Limits::default())?;
    let metadata = header.metadata();
    let mut out = String::new();
    writeln!(out, "{} {:?}, written {} times", header.uuid(), header.label(), header.seqid())?;
    if let Some(advice) = header.health().advice() {
        writeln!(out, "damage: {advice}")?;
    }
    for (id, segment) in metadata.segments.iter() {
        let cipher = segment.crypt.as_ref().map_or("not encrypted", |crypt| crypt.encryption.as_str());
        writeln!(out, "segment {id}: {} at {}, {cipher}", segment.type_name, segment.offset)?;
    }
    for (id, keyslot) in metadata.keyslots.iter() {
        let kdf = keyslot.luks2().map(|slot| slot.kdf.type_name()).unwrap_or_default();
        writeln!(out, "keyslot {id}: {}, {kdf}, area of {}", keyslot.type_name, keyslot.area.size)?;
    }
    Ok(out)
}

#[allow(dead_code, reason = "the tests include this file and call the function above")]
fn main() -> Result<(), Failure> {
    let image = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: inspect IMAGE")?);
    print!("{}", inspect(&image)?);
    Ok(())
}
