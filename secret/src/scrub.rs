//! [`scrubbed`]: run a computation over secrets and overwrite the stack it used.
//!
//! A key schedule, a hash state or a KDF leaves copies of the key in frames that are dead after the return, where the next
//! core dump or swapped stack page finds them. No wiping type can reach those copies: the compiler made them.
//!
//! Invariant: when `scrubbed` returns, the [`SCRUB_BYTES`] of stack below its own frame hold zeros, as long as `f` used no
//! more than that. Values that `f` keeps on purpose (its result, its captures) are the caller's.

use std::hint::black_box;
use zeroize::Zeroize;

/// How much of the dead stack is overwritten: 64 KiB, more than any cipher, hash or KDF of this workspace uses.
pub const SCRUB_BYTES: usize = 64 << 10;

/// Runs `f`, then overwrites the stack below this call. If `f` panics, the stack is overwritten while unwinding.
#[inline(never)]
pub fn scrubbed<R>(f: impl FnOnce() -> R) -> R {
    struct OnLeave;
    impl Drop for OnLeave {
        fn drop(&mut self) {
            overwrite_dead_stack();
        }
    }
    let _leave = OnLeave;
    in_own_frame(f)
}

/// Keeps the frames of `f` below the frame of [`scrubbed`], where they can be overwritten.
#[inline(never)]
fn in_own_frame<R>(f: impl FnOnce() -> R) -> R {
    black_box(f())
}

/// Overwrites with zeros what lies where `in_own_frame` ran. The array starts out as zeros, is shown to the optimiser, and
/// is written again with volatile writes, so neither pass can be left out.
#[inline(never)]
#[allow(clippy::large_stack_arrays)] // The stack is what it is for.
fn overwrite_dead_stack() {
    let mut dead = [0_u8; SCRUB_BYTES];
    black_box(&mut dead);
    dead.zeroize();
    black_box(&dead);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    const MARKER: [u8; 16] = *b"\x93marker of test\x93";
    const COPIES: usize = 1024;

    /// Fills 16 KiB of its frame with the marker and says where.
    #[inline(never)]
    fn leave_markers() -> (usize, usize) {
        let mut frame = [[0_u8; 16]; COPIES];
        frame.fill(black_box(MARKER));
        let frame = black_box(&mut frame);
        (frame.as_ptr().addr(), size_of_val(frame))
    }

    /// Counts the markers in this process's own memory without touching the stack there.
    fn markers_at((address, len_bytes): (usize, usize)) -> usize {
        let memory = File::open("/proc/self/mem").unwrap();
        let mut seen = vec![0_u8; len_bytes];
        memory.read_exact_at(&mut seen, address as u64).unwrap();
        seen.chunks(16).filter(|chunk| **chunk == MARKER).count()
    }

    #[test]
    fn the_dead_stack_holds_no_marker_after_scrubbed() {
        let bare = leave_markers();
        assert!(markers_at(bare) > COPIES / 2, "the control must see what an ordinary return leaves behind");
        let scrubbed_range = scrubbed(leave_markers);
        assert_eq!(markers_at(scrubbed_range), 0);
    }

    #[test]
    fn a_panic_is_scrubbed_too() {
        let mut range = (0, 0);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            scrubbed(|| {
                range = leave_markers();
                std::panic::resume_unwind(Box::new(()));
            });
        }));
        assert!(caught.is_err());
        assert_eq!(markers_at(range), 0);
    }
}
