//! Lock files, in a folder of the test.

use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

fn lock(folder: &Path, shared: bool) -> Result<LockFile, &'static str> {
    LockFile::try_lock(folder, "L_7:3", shared).map_err(|refusal| match refusal {
        Refusal::Taken(_) => "taken",
        Refusal::Failed(_) => "failed",
    })
}

#[test]
fn the_folder_is_private_and_the_last_user_unlinks_the_file() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("cryptsetup");
    let (first, second) = (lock(&folder, true).unwrap(), lock(&folder, true).unwrap());
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(lock(&folder, false).map(|_| ()), Err("taken"));
    drop(first);
    assert!(folder.join("L_7:3").exists(), "somebody still uses it");
    drop(second);
    assert!(!folder.join("L_7:3").exists());
    let writer = lock(&folder, false).unwrap();
    assert_eq!(lock(&folder, true).map(|_| ()), Err("taken"));
    drop(writer);
    drop(lock(&folder, true).unwrap());
}

#[test]
fn a_lock_on_an_unlinked_file_is_no_lock_and_leaves_its_successor_alone() {
    let folder = tempfile::tempdir().unwrap();
    let stale = lock(folder.path(), false).unwrap();
    std::fs::remove_file(folder.path().join("L_7:3")).unwrap();
    assert!(!stale.is_named());
    let fresh = lock(folder.path(), false).unwrap();
    assert!(fresh.is_named() && !stale.is_named());
    let inode = std::fs::metadata(folder.path().join("L_7:3")).unwrap().ino();
    drop(stale);
    assert_eq!(std::fs::metadata(folder.path().join("L_7:3")).unwrap().ino(), inode);
    assert_eq!(lock(folder.path(), false).map(|_| ()), Err("taken"));
}

#[test]
fn a_file_that_its_last_user_unlinked_before_our_lock_is_no_lock() {
    let folder = tempfile::tempdir().unwrap();
    let last_user = lock(folder.path(), false).unwrap();
    let ours = OpenLockFile::open(folder.path(), "L_7:3").unwrap();
    drop(last_user);
    let result = ours.try_lock(false, folder.path().join("L_7:3"));
    assert!(matches!(result, Err(Refusal::Taken(_))));
}

#[test]
fn threads_that_fight_for_a_lock_file_never_hold_it_together() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let folder = tempfile::tempdir().unwrap();
    let (holders, rounds) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while rounds.load(Ordering::SeqCst) < 400 {
                    let Ok(held) = lock(folder.path(), false) else { continue };
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                    rounds.fetch_add(1, Ordering::SeqCst);
                    holders.fetch_sub(1, Ordering::SeqCst);
                    drop(held);
                }
            });
        }
    });
}

#[test]
fn a_symlink_in_the_place_of_the_folder_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("cryptsetup");
    std::os::unix::fs::symlink(parent.path(), &folder).unwrap();
    assert_eq!(lock(&folder, false).map(|_| ()), Err("failed"));
}

/// A process that another thread starts has a copy of every descriptor until its `exec`.
#[test]
fn a_lock_ends_with_its_guard_though_a_copy_of_its_descriptor_lives_on() {
    let folder = tempfile::tempdir().unwrap();
    let locked = lock(folder.path(), false).unwrap();
    let _copy = locked.fd.0.try_clone().unwrap();
    // A hard link keeps the inode in reach after the last user has unlinked the file.
    let kept = folder.path().join("kept");
    std::fs::hard_link(folder.path().join("L_7:3"), &kept).unwrap();
    drop(locked);
    let file = std::fs::File::open(&kept).unwrap();
    assert!(fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());

    let image = folder.path().join("image");
    std::fs::write(&image, [0; 512]).unwrap();
    let open = || OwnedFd::from(std::fs::File::open(&image).unwrap());
    let Ok(locked) = Flocked::try_lock(open(), false, &image) else { panic!("nobody else has it") };
    let _copy = locked.0.try_clone().unwrap();
    assert!(matches!(Flocked::try_lock(open(), true, &image), Err(Refusal::Taken(_))));
    drop(locked);
    assert!(Flocked::try_lock(open(), true, &image).is_ok());
}
