//! The file that holds the present header while a verb replaces all of it: what the format cannot make atomic is finished or
//! taken back with it. It has the content of a header backup.
//!
//! Made with O_EXCL and mode 0600, written and synced with its folder before the device changes; overwritten and removed when
//! the new header is known to stand. A crash leaves it.

use std::fs::{File, OpenOptions};
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use luks::Recovery;

use crate::failure::Failure;
use crate::output;
use crate::part_file::sync_folder;

/// Added to the name of the image.
const SUFFIX: &str = "luks-recovery";
/// Names that are tried: files of earlier runs that were cut short are kept.
const NAMES: u32 = 10;

/// Where the present header is kept.
#[derive(Debug, Clone, Args)]
pub(crate) struct RecoveryArgs {
    /// Keep the present header in this new file until all is done [default: next to the image]
    #[arg(long, value_name = "FILE", conflicts_with = "no_recovery_file")]
    recovery_file: Option<PathBuf>,
    /// Keep it nowhere: a crash in the middle may cost the header
    #[arg(long)]
    no_recovery_file: bool,
}

/// The file, before and after it is made.
pub(crate) struct RecoveryFile {
    /// Names to try; none if nothing is to be kept.
    names: Vec<PathBuf>,
    made: Option<(File, PathBuf)>,
}

impl RecoveryFile {
    /// Chooses the name; makes nothing yet. `header` is where the header lies.
    pub(crate) fn choose(args: &RecoveryArgs, header: &block::FileDisk) -> Result<RecoveryFile, Failure> {
        let names = match &args.recovery_file {
            _ if args.no_recovery_file => Vec::new(),
            Some(file) => vec![file.clone()],
            None if header.is_block_device() => {
                // What lies in /dev is gone after a power cut.
                return Err(Failure::wrong(format!(
                    "{}: next to a device no file survives a power cut; nothing was changed",
                    header.path().display()
                ))
                .with_hint("name a file for its present header: --recovery-file FILE"));
            }
            None => (0..NAMES).map(|number| beside(header.path(), number)).collect(),
        };
        Ok(RecoveryFile { names, made: None })
    }

    /// Where the present header is kept, once it is.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.made.as_ref().map(|(_, path)| path.as_path())
    }

    /// The new header stands: the file is overwritten, for it may hold a passphrase's keyslot that is no more, and removed.
    pub(crate) fn remove(self) {
        let Some((mut file, path)) = self.made else { return };
        let removed = overwrite(&mut file).and_then(|()| std::fs::remove_file(&path)).and_then(|()| sync_folder(&path));
        if let Err(error) = removed {
            output::words(&format!(
                "luksctl: warning: {} is no longer needed, but could not be removed: {error}",
                path.display()
            ));
        }
    }

    fn make(&mut self, region: &[u8]) -> std::io::Result<()> {
        let mut result = Ok(());
        for path in std::mem::take(&mut self.names) {
            match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => {
                    let written = write(&file, region, &path);
                    if written.is_err() {
                        let removed = std::fs::remove_file(&path);
                        drop(removed);
                    } else {
                        output::words(&format!("The present header is kept in {} until this is done.", path.display()));
                        self.made = Some((file, path));
                    }
                    return written;
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    let words = format!("{} exists: of a run that was cut short?", path.display());
                    output::words(&format!("luksctl: warning: {words}"));
                    result = Err(std::io::Error::new(error.kind(), words));
                }
                Err(error) => {
                    let words = format!("{}: {error}", path.display());
                    return Err(std::io::Error::new(error.kind(), words));
                }
            }
        }
        result
    }
}

impl Recovery for RecoveryFile {
    fn save(&mut self, region: &[u8]) -> Result<(), String> {
        self.make(region).map_err(|error| error.to_string())
    }
}

fn beside(image: &Path, number: u32) -> PathBuf {
    let mut name = image.as_os_str().to_owned();
    name.push(match number {
        0 => format!(".{SUFFIX}"),
        number => format!(".{SUFFIX}.{number}"),
    });
    PathBuf::from(name)
}

fn write(mut file: &File, region: &[u8], path: &Path) -> std::io::Result<()> {
    let written = file.write_all(region).and_then(|()| file.sync_all()).and_then(|()| sync_folder(path));
    written.map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn overwrite(file: &mut File) -> std::io::Result<()> {
    let mut left = file.metadata()?.len();
    file.rewind()?;
    let zeros = vec![0; 1 << 20];
    while left > 0 {
        let len_bytes = usize::try_from(left).unwrap_or(zeros.len()).min(zeros.len());
        file.write_all(&zeros[..len_bytes])?;
        left -= len_bytes as u64;
    }
    file.sync_all()
}
