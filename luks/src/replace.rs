//! Replacing a whole header region: what `restore` and `convert` have in common.
//!
//! The format has no way to make this atomic, so the present bytes are kept aside first ([`Recovery`]), and the new ones are
//! written in stages, each behind a flush, in an order that the caller chooses. Invariants: nothing is written before
//! [`Recovery::save`] has succeeded; what already stands there is not written again; at the end everything is read back.

use std::ops::Range;

use block::{BlockIo, ByteView, Bytes};

use crate::backup::read_region;
use crate::error::Error;

/// Compared in pieces of this size, so that an equal one is left alone.
const PIECE_BYTES: usize = 4096;
/// The longest single write, and one piece more.
const RUN_BYTES: usize = 1 << 20;

/// Keeps the present header aside while it is replaced.
pub trait Recovery {
    /// Makes `region` durable outside of the device, before a byte of the device changes. It is the content of a header
    /// backup, if the device holds a valid header: restoring it takes the change back.
    ///
    /// # Errors
    /// In words; nothing is changed then.
    fn save(&mut self, region: &[u8]) -> Result<(), String>;
}

impl<F: FnMut(&[u8]) -> Result<(), String>> Recovery for F {
    fn save(&mut self, region: &[u8]) -> Result<(), String> {
        self(region)
    }
}

/// Keeps nothing: a crash before the end may cost the header, unless the caller has a backup of it.
#[derive(Debug, Clone, Copy)]
pub struct NoRecovery;

impl Recovery for NoRecovery {
    fn save(&mut self, _region: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// Keeps the first `size` bytes of `disk` aside: the length of a backup of what stands there.
///
/// # Errors
/// [`Error::Recovery`]: nothing was changed.
pub(crate) fn keep_aside<D: BlockIo + ?Sized>(disk: &D, size: Bytes, recovery: &mut dyn Recovery) -> Result<(), Error> {
    let region = read_region(disk, size)?;
    recovery.save(&region).map_err(|reason| Error::Recovery { reason })
}

/// A region of a disk on its way from old to new bytes.
pub(crate) struct Replacement<'a, D: BlockIo + ?Sized> {
    disk: &'a D,
    /// What the disk holds.
    now: Vec<u8>,
    /// What it shall hold.
    new: &'a [u8],
}

impl<'a, D: BlockIo + ?Sized> Replacement<'a, D> {
    /// Reads what `new` will replace. Writes nothing.
    ///
    /// # Errors
    /// [`Error::DeviceTooSmall`], errors of the disk.
    pub(crate) fn of(disk: &'a D, new: &'a [u8]) -> Result<Replacement<'a, D>, Error> {
        let (size, needed) = (disk.geometry().size, Bytes::from_len(new.len()));
        if size < needed {
            return Err(Error::DeviceTooSmall { device: "device", size, needed });
        }
        Ok(Replacement { disk, now: read_region(disk, needed)?, new })
    }

    /// What stands there now.
    pub(crate) fn now(&self) -> &[u8] {
        &self.now
    }

    /// Writes what differs in this range, and flushes.
    ///
    /// # Errors
    /// Those of the disk: part of it may be written.
    pub(crate) fn put(&mut self, range: Range<usize>) -> Result<(), Error> {
        self.put_all(std::iter::once(range))
    }

    /// Writes what differs in these ranges, and flushes. Errors as [`put`](Self::put).
    pub(crate) fn put_all(&mut self, ranges: impl IntoIterator<Item = Range<usize>>) -> Result<(), Error> {
        let view = ByteView::new(self.disk);
        let mut written = false;
        for range in ranges {
            let mut start = range.start;
            while let Some(run) = self.next_difference(start..range.end) {
                view.write(Bytes::from_len(run.start), &self.new[run.clone()], false)?;
                self.now[run.clone()].copy_from_slice(&self.new[run.clone()]);
                written = true;
                start = run.end;
            }
        }
        if written {
            self.disk.flush()?;
        }
        Ok(())
    }

    /// The first run of pieces that differ, at most [`RUN_BYTES`] long. Pieces end at multiples of their size, whatever
    /// the range.
    fn next_difference(&self, range: Range<usize>) -> Option<Range<usize>> {
        let last = range.end.min(self.new.len());
        let mut run: Option<Range<usize>> = None;
        let mut start = range.start;
        while start < last {
            let end = ((start / PIECE_BYTES + 1) * PIECE_BYTES).min(last);
            let differs = self.now[start..end] != self.new[start..end];
            run = match run {
                None if differs => Some(start..end),
                Some(run) if differs && run.len() < RUN_BYTES => Some(run.start..end),
                None => None,
                done => return done,
            };
            start = end;
        }
        run
    }

    /// Everything is there, as the disk reads it back.
    ///
    /// # Errors
    /// [`Error::ReadBack`].
    pub(crate) fn check(self) -> Result<(), Error> {
        let found = read_region(self.disk, Bytes::from_len(self.new.len()))?;
        match found.iter().zip(self.new).position(|(found, new)| found != new) {
            None if found.len() == self.new.len() => Ok(()),
            at => Err(Error::ReadBack { offset: Bytes::from_len(at.unwrap_or(found.len())) }),
        }
    }
}
