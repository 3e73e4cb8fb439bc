//! Asking for data ahead of its use. Buffers larger than the caches would otherwise wait for memory at every page: the
//! processor's own prefetching stops at the end of one.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// How far ahead of the present group: two pages.
pub(super) const PREFETCH_BYTES: usize = 8192;

/// Asks for the line at `at`, which may be anywhere: nothing is read that the program could see.
#[inline(always)]
#[allow(unused_unsafe)] // safe to call in newer compilers
pub(super) fn prefetch(at: *const u8) {
    // SAFETY: the instruction neither faults nor changes a value.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
}
