//! An allocator that counts what each thread asks of it. The one `unsafe` of these tests.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

static ALL: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counted.
pub(crate) struct Counting;

/// How often the calling thread has allocated, or made an allocation longer.
#[allow(dead_code, reason = "not every test that counts has only one thread")]
pub(crate) fn of_this_thread() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// How often all threads of the process have.
#[allow(dead_code, reason = "not every test that counts has threads")]
pub(crate) fn of_all_threads() -> u64 {
    ALL.load(Ordering::SeqCst)
}

fn count() {
    ALL.fetch_add(1, Ordering::SeqCst);
    // A thread that is ending has no counter any more.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call goes to the system's allocator with the arguments it came with; the counter allocates nothing, for it is
// const-initialised and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `memory` came from the same allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}
