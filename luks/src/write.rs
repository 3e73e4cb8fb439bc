//! Writing the header: both copies, one after the other, so that at every moment one of them is whole.
//!
//! Source: format notes 1.6. Order: drop digests without members, check every rule, serialise; compare the disk with
//! what was read; raise the sequence number once; then for the primary and after it the secondary: binary header with a
//! zero checksum, JSON area, binary header with its checksum, flush. A copy whose write was cut short has a wrong
//! checksum. The caller holds the exclusive metadata lock from the reading of the header to the end of the commit.

use block::{BlockIo, Bytes};

use crate::binary::{self, BinaryHeader, Position, SALT_LEN};
use crate::copy::{FirstLook, Flaw};
use crate::env::Rng;
use crate::error::Error;
use crate::hash::HashAlg;
use crate::header::{CopyState, Header, Health};
use crate::limits::{BINARY_HEADER, BINARY_HEADER_USED};
use crate::metadata::Metadata;
use crate::rule::{Rule, Violation};

/// The sequence number of a header that was never written; the first write makes it 2.
const FIRST_SEQID: u64 = 1;
/// The checksum's hash in new headers, the only one cryptsetup writes.
const CSUM_ALG: &[u8] = b"sha256";

impl Header {
    /// A header that is not on any disk yet; [`commit`] writes it and overwrites whatever stands there.
    ///
    /// # Errors
    /// [`Error::Invalid`] if `metadata` breaks a rule, [`Error::Env`] without random bytes for the salts.
    pub(crate) fn create(metadata: Metadata, rng: &dyn Rng) -> Result<Header, Error> {
        let hdr_size = metadata.config.metadata_size();
        let metadata = Metadata::parse(&metadata.to_text(), hdr_size)?;
        let mut salts = [[0; SALT_LEN]; 2];
        for salt in &mut salts {
            rng.fill(salt)?;
        }
        let binary = BinaryHeader {
            position: Position::Primary,
            hdr_size,
            seqid: FIRST_SEQID,
            label: Vec::new(),
            csum_alg: CSUM_ALG.to_vec(),
            salt: salts[0],
            uuid: Vec::new(),
            subsystem: Vec::new(),
            hdr_offset: Bytes(0),
            csum: [0; binary::CSUM_LEN],
        };
        let health = Health { primary: CopyState::Ok, secondary: CopyState::Ok, ignored_members: Vec::new() };
        let (salts, seen, json_area) = (salts.map(Some), [None, None], Vec::new());
        Ok(Header { binary, metadata, health, salts, seen, json_area, poisoned: false })
    }
}

/// Write `header` over both copies on `disk`.
///
/// # Errors
/// [`Error::Invalid`] if the metadata breaks a rule or does not fit, [`Error::ConcurrentUpdate`] if the disk changed since
/// it was read, [`Error::SeqidExhausted`], [`Error::Poisoned`] after an earlier failure: nothing was written. An error of the disk: it is unknown how
/// much was written, and the header refuses further commits.
pub(crate) fn commit<D: BlockIo + ?Sized>(disk: &D, header: &mut Header) -> Result<(), Error> {
    if header.poisoned {
        return Err(Error::Poisoned);
    }
    let size = header.metadata_size();
    let mut metadata = header.metadata.clone();
    metadata.digests.retain(|_, digest| !digest.keyslots.is_empty() || !digest.segments.is_empty());
    let text = metadata.to_text();
    let metadata = Metadata::parse(&text, size)?;
    let json_area = json_area_of(&text, header.binary.json_size())?;
    check_unchanged(disk, header)?;
    let seqid = header.binary.seqid.checked_add(1).ok_or(Error::SeqidExhausted)?;

    header.poisoned = true;
    let mut written = Vec::with_capacity(2);
    for (position, offset) in order_of(header, size) {
        let salt = salt_for(header, position)?;
        let binary = BinaryHeader { position, seqid, salt, hdr_offset: offset, ..header.binary.clone() };
        written.push(write_copy(disk, binary, &json_area)?);
    }
    header.poisoned = false;

    header.metadata = metadata;
    header.health = Health { primary: CopyState::Ok, secondary: CopyState::Ok, ignored_members: Vec::new() };
    for binary in written {
        let at = usize::from(binary.position == Position::Secondary);
        header.salts[at] = Some(binary.salt);
        header.seen[at] = Some(used(&binary.to_bytes()));
        if binary.position == Position::Primary {
            header.binary = binary;
        }
    }
    header.json_area = json_area;
    Ok(())
}

/// The primary first, unless it is the only good copy: then the other must be whole before this one is touched.
fn order_of(header: &Header, size: Bytes) -> [(Position, Bytes); 2] {
    let mut order = [(Position::Primary, Bytes(0)), (Position::Secondary, size)];
    if header.health.secondary != CopyState::Ok {
        order.reverse();
    }
    order
}

/// The JSON area: the text and zeros, at least one.
pub(crate) fn json_area_of(text: &str, json_size: Bytes) -> Result<Vec<u8>, Violation> {
    let len_bytes = json_size.to_usize().unwrap_or(0);
    if text.len() >= len_bytes {
        let value = format_args!("{} bytes in an area of {len_bytes} bytes", text.len());
        return Err(Violation::new(Rule::JsonFits, "", value));
    }
    let mut area = text.as_bytes().to_vec();
    area.resize(len_bytes, 0);
    Ok(area)
}

/// Both copies on disk still begin as they did when the header was read. A copy that could not be read then is not
/// compared.
fn check_unchanged<D: BlockIo + ?Sized>(disk: &D, header: &Header) -> Result<(), Error> {
    let places = [(Position::Primary, Bytes(0)), (Position::Secondary, header.metadata_size())];
    for ((position, offset), seen) in places.into_iter().zip(&header.seen) {
        let Some(seen) = seen else { continue };
        match FirstLook::read(disk, position, offset) {
            Ok(look) if look.used() == *seen => {}
            Ok(_) => return Err(Error::ConcurrentUpdate { seqid: header.seqid() }),
            Err(Flaw::Broken(violation)) => return Err(violation.into()),
            Err(Flaw::Unreadable(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The salt of a copy. A copy that was broken has none that is known: it gets one that differs from the other's, made
/// from it, since the salt has no cryptographic use.
fn salt_for(header: &Header, position: Position) -> Result<[u8; SALT_LEN], Error> {
    let at = match position {
        Position::Primary => 0,
        Position::Secondary => 1,
    };
    if let Some(salt) = header.salts[at] {
        return Ok(salt);
    }
    let mut salt = [0; SALT_LEN];
    HashAlg::Sha512.digest(&[position.to_string().as_bytes(), &header.binary.salt], &mut salt);
    Ok(salt)
}

/// Write one copy and make it durable. Hands back its header with the checksum it got.
pub(crate) fn write_copy<D: BlockIo + ?Sized>(
    disk: &D,
    mut header: BinaryHeader,
    json_area: &[u8],
) -> Result<BinaryHeader, Error> {
    let alg = header.hash()?;
    let offset = header.hdr_offset;
    let json_offset = Bytes(offset.0.saturating_add(BINARY_HEADER as u64));
    header.csum = [0; binary::CSUM_LEN];
    let unfinished = header.to_bytes();
    disk.write_at(offset, &unfinished, false)?;
    disk.write_at(json_offset, json_area, false)?;
    header.csum = binary::checksum(alg, &unfinished, json_area);
    disk.write_at(offset, &header.to_bytes(), false)?;
    disk.flush()?;
    Ok(header)
}

fn used(bytes: &[u8; BINARY_HEADER]) -> [u8; BINARY_HEADER_USED] {
    let mut used = [0; BINARY_HEADER_USED];
    used.copy_from_slice(&bytes[..BINARY_HEADER_USED]);
    used
}

#[cfg(test)]
mod tests;
