//! Whether a mapping of the kernel writes to an image now. No lock of ours tells: the kernel holds none.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::loops_on;
use crate::SessionError;

/// Checks that no writable device of the kernel is stacked on the file or block device `path`, or on a loop device of it:
/// a copy would be of many moments. Servers of ours hold the use lock, which the caller takes.
///
/// # Errors
/// [`SessionError::ImageInUse`] naming the device.
pub fn check_not_written(path: &Path) -> Result<(), SessionError> {
    let metadata = fs::metadata(path).map_err(SessionError::io("look at", path))?;
    let mut devices = loops_on(&metadata)?;
    if metadata.file_type().is_block_device() {
        devices.push(path.to_path_buf());
    }
    for device in devices {
        if let Some(holder) = writing_holder(&device) {
            let how = format!("{holder} is stacked on {} and may write to it", device.display());
            return Err(SessionError::ImageInUse { image: path.to_path_buf(), how });
        }
    }
    Ok(())
}

fn writing_holder(device: &Path) -> Option<String> {
    let number = fs::metadata(device).ok()?.rdev();
    let folder: PathBuf =
        format!("/sys/dev/block/{}:{}/holders", rustix::fs::major(number), rustix::fs::minor(number)).into();
    let mut holders = fs::read_dir(folder).ok()?.flatten();
    let writes = |holder: &fs::DirEntry| {
        fs::read_to_string(holder.path().join("ro")).map_or(true, |read_only| read_only.trim() != "1")
    };
    holders.find(writes).map(|holder| format!("/dev/{}", holder.file_name().to_string_lossy()))
}
