//! Whole pages of memory for secrets: the only file of this crate with `unsafe` in it.
//!
//! Layout of one mapping: a guard page without access, the pages of the secret, a guard page. The middle is
//! * left out of core dumps (`MADV_DONTDUMP`, Linux 3.4): without it the allocation fails;
//! * zero in every child of fork (`MADV_WIPEONFORK`, Linux 4.14): without it the allocation fails;
//! * locked into memory (`mlock`) where `RLIMIT_MEMLOCK` allows it: [`Pages::is_locked`] says so;
//! * overwritten with zeros, through volatile writes, before it is unmapped.
//!
//! Source: madvise(2), mlock(2). `memfd_secret` is not used: its pages cannot be passed to system calls.

use crate::SecretError;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};
use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use zeroize::Zeroize;

/// Owned, protected pages; zero at first.
pub(crate) struct Pages {
    /// First byte of the whole mapping, its leading guard page.
    mapping: NonNull<u8>,
    /// Bytes between the two guard pages, a multiple of the page size, never zero.
    usable_bytes: usize,
    page_bytes: usize,
    /// Whether the middle may be touched.
    accessible: bool,
    locked: bool,
}

// SAFETY: `Pages` owns its mapping alone, as a `Box<[u8]>` would; nothing in it is tied to a thread.
unsafe impl Send for Pages {}
// SAFETY: shared access only reads the bytes; writing needs `&mut`.
unsafe impl Sync for Pages {}

impl Pages {
    /// At least `len_bytes` zero bytes (one page for zero).
    pub(crate) fn new(len_bytes: usize) -> Result<Pages, SecretError> {
        let page_bytes = rustix::param::page_size();
        let too_large = || SecretError::Allocation { len_bytes };
        let usable_bytes = len_bytes.max(1).checked_next_multiple_of(page_bytes).ok_or_else(too_large)?;
        let mapped_bytes = usable_bytes.checked_add(2 * page_bytes).ok_or_else(too_large)?;
        // SAFETY: a fresh anonymous private mapping at an address of the kernel's choice aliases nothing.
        let mapped = unsafe {
            mm::mmap_anonymous(
                ptr::null_mut(),
                mapped_bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        };
        let mapped = mapped.map_err(|_| too_large())?;
        let mapping = NonNull::new(mapped.cast::<u8>()).ok_or_else(too_large)?;
        // From here on `Drop` unmaps it.
        let mut pages = Pages { mapping, usable_bytes, page_bytes, accessible: false, locked: false };
        pages.protect()?;
        Ok(pages)
    }

    fn protect(&mut self) -> Result<(), SecretError> {
        let (start, len_bytes) = (self.start().cast::<c_void>(), self.usable_bytes);
        let failed =
            |what| move |errno: rustix::io::Errno| SecretError::Protect { what, len_bytes, source: errno.into() };
        // SAFETY: the range is the middle of our own mapping; nobody holds a reference into it yet.
        unsafe { mm::mprotect(start, len_bytes, MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(|_| SecretError::Allocation { len_bytes })?;
        self.accessible = true;
        // SAFETY: as above; these advices leave the content of this process alone.
        unsafe { mm::madvise(start, len_bytes, Advice::LinuxDontDump) }.map_err(failed("MADV_DONTDUMP"))?;
        // SAFETY: as above.
        unsafe { mm::madvise(start, len_bytes, Advice::LinuxWipeOnFork) }.map_err(failed("MADV_WIPEONFORK"))?;
        // SAFETY: as above; locking changes no content.
        self.locked = unsafe { mm::mlock(start, len_bytes) }.is_ok();
        Ok(())
    }

    /// Whether the pages cannot be swapped out.
    pub(crate) fn is_locked(&self) -> bool {
        self.locked
    }

    /// Bytes between the guard pages.
    pub(crate) fn usable_bytes(&self) -> usize {
        self.usable_bytes
    }

    /// All bytes between the guard pages.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `new` returns only pages that `protect` made readable and writable, `mmap` zeroed them, they stay mapped for
        // as long as `self` lives, and `&self` keeps `bytes_mut` away.
        unsafe { std::slice::from_raw_parts(self.start(), self.usable_bytes) }
    }

    /// All bytes between the guard pages.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes the access the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.usable_bytes) }
    }

    /// Overwrites every byte with zero in a way the compiler cannot leave out.
    pub(crate) fn wipe(&mut self) {
        self.bytes_mut().zeroize();
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the mapping is two guard pages longer than `usable_bytes`: its second page lies inside it.
        unsafe { self.mapping.as_ptr().add(self.page_bytes) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.accessible {
            self.wipe();
            #[cfg(test)]
            WIPED_ON_DROP.with(|wiped| wiped.set(Some(self.bytes().iter().all(|&byte| byte == 0))));
        }
        // SAFETY: the mapping is ours, of exactly this length, and no reference into it outlives `self`. Unmapping also
        // unlocks. An error cannot be acted on: the bytes are zero already.
        let _ = unsafe { mm::munmap(self.mapping.as_ptr().cast::<c_void>(), self.usable_bytes + 2 * self.page_bytes) };
    }
}

/// One `T` in pages of its own: dropped first, then the pages are wiped.
///
/// For key schedules and other computed secrets. The value is built by a closure inside [`crate::scrubbed`], so that the
/// copies it leaves on the stack are overwritten. A child of fork sees zeros.
pub struct Locked<T> {
    pages: Pages,
    holds: PhantomData<T>,
}

impl<T> Locked<T> {
    /// Runs `f` and keeps what it returns.
    ///
    /// # Errors
    /// [`SecretError`] when there is no memory, or when `T` must be aligned to more than a page.
    pub fn new_with(f: impl FnOnce() -> T) -> Result<Locked<T>, SecretError> {
        let mut pages = Pages::new(size_of::<T>())?;
        if align_of::<T>() > pages.page_bytes {
            return Err(SecretError::Allocation { len_bytes: size_of::<T>() });
        }
        let slot: &mut MaybeUninit<T> = {
            // SAFETY: the pages hold at least `size_of::<T>()` bytes at a page boundary, which the check above makes enough
            // alignment; uninitialised content is what `MaybeUninit` allows; `pages` is borrowed for as long.
            unsafe { &mut *pages.bytes_mut().as_mut_ptr().cast::<MaybeUninit<T>>() }
        };
        crate::scrubbed(|| {
            slot.write(f());
        });
        Ok(Locked { pages, holds: PhantomData })
    }

    /// Whether the pages cannot be swapped out.
    pub fn is_locked(&self) -> bool {
        self.pages.is_locked()
    }

    fn value(&self) -> *mut T {
        self.pages.start().cast::<T>()
    }
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new_with` wrote a valid `T` here, aligned; it stays until `drop`, and `&self` keeps `deref_mut` away.
        unsafe { &*self.value() }
    }
}

impl<T> DerefMut for Locked<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes the access the only one.
        unsafe { &mut *self.value() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        // SAFETY: the value is valid and is not used again: only `pages` is, as bytes, when it wipes itself after this.
        unsafe { ptr::drop_in_place(self.value()) }
    }
}

/// What [`shelter`] did to a range, so that [`unshelter`] can undo it.
#[derive(Clone, Copy)]
pub(crate) struct Shelter {
    start_address: usize,
    len_bytes: usize,
    locked: bool,
}

impl Shelter {
    /// Whether the pages cannot be swapped out.
    pub(crate) fn is_locked(&self) -> bool {
        self.locked
    }
}

/// Keeps the whole pages inside `memory` out of core dumps and, where allowed, out of swap; asks for huge pages. Nothing
/// of it is an error.
pub(crate) fn shelter<T>(memory: &mut [MaybeUninit<T>]) -> Shelter {
    let (start_address, len_bytes) = whole_pages(memory);
    if len_bytes == 0 {
        return Shelter { start_address, len_bytes, locked: false };
    }
    let start = ptr::without_provenance_mut::<c_void>(start_address);
    // SAFETY: the range lies inside `memory`, which is borrowed; these advices and the lock change no content, and the
    // kernel takes an address, not a pointer with provenance.
    let locked = unsafe {
        let _ = mm::madvise(start, len_bytes, Advice::LinuxHugepage);
        let _ = mm::madvise(start, len_bytes, Advice::LinuxDontDump);
        mm::mlock(start, len_bytes).is_ok()
    };
    Shelter { start_address, len_bytes, locked }
}

/// Gives the pages back as ordinary ones. The memory must still be allocated: `memory` proves it.
pub(crate) fn unshelter<T>(memory: &mut [MaybeUninit<T>], shelter: Shelter) {
    if shelter.len_bytes == 0 || whole_pages(memory) != (shelter.start_address, shelter.len_bytes) {
        return;
    }
    let start = ptr::without_provenance_mut::<c_void>(shelter.start_address);
    // SAFETY: as in `shelter`.
    unsafe {
        if shelter.locked {
            let _ = mm::munlock(start, shelter.len_bytes);
        }
        let _ = mm::madvise(start, shelter.len_bytes, Advice::LinuxDoDump);
    }
}

/// Address and length of the whole pages inside a slice.
fn whole_pages<T>(memory: &mut [MaybeUninit<T>]) -> (usize, usize) {
    let page_bytes = rustix::param::page_size();
    let begin = memory.as_mut_ptr().addr();
    let end = begin + size_of_val(memory);
    let first = begin.next_multiple_of(page_bytes);
    let last = end - end % page_bytes;
    (first, last.saturating_sub(first))
}

#[cfg(test)]
thread_local! {
    /// What the last dropped `Pages` of this thread held just before it was unmapped: only zeros?
    pub(crate) static WIPED_ON_DROP: std::cell::Cell<Option<bool>> = const { std::cell::Cell::new(None) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn pages_are_wiped_before_they_are_unmapped() {
        let mut pages = Pages::new(10_000).unwrap();
        assert_eq!(pages.bytes().len(), 12288);
        pages.bytes_mut().fill(0xa5);
        WIPED_ON_DROP.set(None);
        drop(pages);
        assert_eq!(WIPED_ON_DROP.get(), Some(true));
    }

    #[test]
    fn an_impossible_length_is_an_error() {
        assert!(matches!(Pages::new(usize::MAX - 4096), Err(SecretError::Allocation { .. })));
        assert!(matches!(Pages::new(1 << 62), Err(SecretError::Allocation { .. })));
    }

    #[test]
    fn a_locked_value_is_dropped_then_wiped() {
        struct Loud<'a>(&'a Cell<u32>, [u8; 64]);
        impl Drop for Loud<'_> {
            fn drop(&mut self) {
                assert_eq!(self.1, [0x5a; 64]);
                self.0.set(self.0.get() + 1);
            }
        }
        let drops = Cell::new(0);
        let locked = Locked::new_with(|| Loud(&drops, [0x5a; 64])).unwrap();
        assert_eq!(locked.1[63], 0x5a);
        WIPED_ON_DROP.set(None);
        drop(locked);
        assert_eq!((drops.get(), WIPED_ON_DROP.get()), (1, Some(true)));
    }

    #[test]
    fn a_panic_while_building_drops_no_value() {
        let attempt = std::panic::catch_unwind(|| Locked::<String>::new_with(|| panic!("no value")).map(|_| ()));
        assert!(attempt.is_err());
    }
}
