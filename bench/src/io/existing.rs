//! A LUKS2 image or device that is there already: its ciphertext is read, and decrypted under a key of our own, which costs as much as the right
//! one. So no passphrase is asked for, nothing readable comes out of it, and nothing is written: only reading jobs are possible.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use block::{BlockIo as _, Bytes, FileDisk, OpenMode};
use luks::{Container, KeyslotKind, Limits, SegmentSize};
use tempfile::TempDir;

use crate::image;

/// Requests and servers have blocks of this size.
const BLOCK_BYTES: u64 = 1 << 20;

/// What is measured of it.
pub(super) struct ExistingImage {
    path: PathBuf,
    data_offset: Bytes,
    data_size: Bytes,
    sector_bytes: u32,
    header: PathBuf,
    _folder: TempDir,
}

impl ExistingImage {
    /// The image at `path`, if there is one.
    ///
    /// # Errors
    /// It has a LUKS2 header, and cannot be measured.
    pub(super) fn find(path: &Path) -> Result<Option<ExistingImage>> {
        let Ok(disk) = FileDisk::open(path, &OpenMode { read_only: true, ..OpenMode::default() }) else {
            return Ok(None);
        };
        let Ok(container) = Container::open(disk.clone(), disk, Limits::default()) else { return Ok(None) };
        Self::of(path, &container).with_context(|| path.display().to_string()).map(Some)
    }

    fn of(path: &Path, container: &Container<FileDisk, FileDisk>) -> Result<ExistingImage> {
        let metadata = container.header().metadata();
        let mut segments = metadata.segments.iter();
        let (Some((_, segment)), None) = (segments.next(), segments.next()) else {
            bail!("it is being re-encrypted: finish that first");
        };
        let Some(crypt) = segment.crypt.as_ref().filter(|crypt| crypt.integrity.is_none()) else {
            bail!(
                "a segment of type {}, or one with integrity, is nothing that luksbench can decrypt",
                segment.type_name
            );
        };
        let there = container.data().geometry().size.0.saturating_sub(segment.offset.0);
        let size = match segment.size {
            SegmentSize::Dynamic => there,
            SegmentSize::Fixed(size) => size.0.min(there),
        };
        let folder = tempfile::Builder::new().prefix("luksbench-").tempdir()?;
        let header = folder.path().join("header");
        let passphrase_slot = |kind: &KeyslotKind| matches!(kind, KeyslotKind::Luks2(_));
        let key_bytes =
            metadata.keyslots.iter().find(|(_, slot)| passphrase_slot(&slot.kind)).map(|(_, slot)| slot.key_size_bytes);
        image::format_detached(
            &header,
            container.data(),
            &image::LikeThis {
                cipher: &crypt.encryption,
                key_size_bits: key_bytes.map(|bytes| bytes * 8),
                sector_bytes: crypt.sector_size,
                data_offset: segment.offset,
            },
        )?;
        Ok(ExistingImage {
            path: std::fs::canonicalize(path)?,
            data_offset: segment.offset,
            data_size: Bytes(size - size % BLOCK_BYTES),
            sector_bytes: crypt.sector_size,
            header,
            _folder: folder,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where its data begins.
    pub(super) fn data_offset(&self) -> Bytes {
        self.data_offset
    }

    /// A header for its data, with a key that is not the right one.
    pub(super) fn header(&self) -> &Path {
        &self.header
    }

    pub(super) fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    /// How much of its data is read: `wanted`, or as much as there is, up to `most`.
    pub(super) fn size(&self, wanted: Option<u64>, most: u64) -> Result<u64> {
        let there = self.data_size.0;
        match wanted {
            Some(wanted) => {
                ensure!(
                    wanted <= there,
                    "{} holds {there} bytes of data, and --size says {wanted}",
                    self.path.display()
                );
                Ok(wanted)
            }
            None => Ok(there.min(most)),
        }
    }
}
