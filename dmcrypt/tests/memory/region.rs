//! Memory of the test's own between two pages without access, and threads that have it as their stack: the only file of
//! these tests with `unsafe` in it.
//!
//! Source: mmap(2), pthread_attr_setstack(3).

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;

/// Whole pages, zero at first; the page before them and the page behind fault on any access.
pub(crate) struct Region {
    /// The leading guard page.
    mapping: NonNull<u8>,
    page_bytes: usize,
    len_bytes: usize,
}

/// What a thread runs, and how that ended.
struct Errand<'a> {
    work: Option<Box<dyn FnOnce() + Send + 'a>>,
    succeeded: bool,
}

/// `errand` is an `Errand` that outlives the thread.
extern "C" fn entry(errand: *mut c_void) -> *mut c_void {
    // SAFETY: `Region::run_on_it` passes an `Errand` that nothing else touches until it has joined this thread.
    let errand = unsafe { &mut *errand.cast::<Errand<'_>>() };
    if let Some(work) = errand.work.take() {
        errand.succeeded = catch_unwind(AssertUnwindSafe(work)).is_ok();
    }
    std::ptr::null_mut()
}

impl Region {
    /// `len_bytes` rounded up to whole pages.
    pub(crate) fn new(len_bytes: usize) -> Region {
        // SAFETY: asks for a number.
        let page_bytes = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap();
        let len_bytes = len_bytes.next_multiple_of(page_bytes);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let mapping =
            unsafe { libc::mmap(std::ptr::null_mut(), len_bytes + 2 * page_bytes, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(mapping, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        let mapping = NonNull::new(mapping.cast::<u8>()).unwrap();
        let region = Region { mapping, page_bytes, len_bytes };
        // SAFETY: the middle of the mapping, which nothing refers to yet.
        let made = unsafe { libc::mprotect(region.first().cast(), len_bytes, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(made, 0, "mprotect: {}", std::io::Error::last_os_error());
        region
    }

    fn first(&self) -> *mut u8 {
        self.mapping.as_ptr().wrapping_add(self.page_bytes)
    }

    /// All of it.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: readable, writable, initialised by the kernel, and borrowed alone for as long as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.first(), self.len_bytes) }
    }

    /// Reads the byte at `offset_bytes` from the first one, which may lie in a guard page and fault then.
    pub(crate) fn read_at(&self, offset_bytes: isize) -> u8 {
        // SAFETY: a single volatile read of memory that belongs to this mapping. In a guard page it ends the process,
        // which is what the caller wants to see.
        unsafe { self.first().wrapping_offset(offset_bytes).read_volatile() }
    }

    /// Runs `work` on a thread whose stack is this memory, and waits for its end. Panics if `work` did.
    pub(crate) fn run_on_it<'a>(&mut self, work: impl FnOnce() + Send + 'a) {
        let mut errand = Errand { work: Some(Box::new(work)), succeeded: false };
        let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
        let mut thread = MaybeUninit::<libc::pthread_t>::uninit();
        // SAFETY: the attributes are initialised before use; stack and errand stay alive and untouched until the thread
        // is joined, below, on every path on which it was created.
        let results = unsafe {
            [
                libc::pthread_attr_init(attributes.as_mut_ptr()),
                libc::pthread_attr_setstack(attributes.as_mut_ptr(), self.first().cast(), self.len_bytes),
                libc::pthread_create(
                    thread.as_mut_ptr(),
                    attributes.as_ptr(),
                    entry,
                    (&raw mut errand).cast::<c_void>(),
                ),
            ]
        };
        assert_eq!(results, [0; 3], "a thread on the test's own stack");
        // SAFETY: the thread was created just now and is joined once.
        let ended = unsafe {
            libc::pthread_attr_destroy(attributes.as_mut_ptr());
            libc::pthread_join(thread.assume_init(), std::ptr::null_mut())
        };
        assert_eq!(ended, 0, "pthread_join");
        assert!(errand.succeeded, "the thread panicked");
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, which nobody else knows.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.len_bytes + 2 * self.page_bytes) };
    }
}
