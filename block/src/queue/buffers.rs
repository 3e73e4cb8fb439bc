//! [`IoBuf`]: the memory of one queued operation, and the store that keeps such buffers between operations.
//!
//! Two sizes are kept, [`SMALL_BUFFER_BYTES`] and [`LARGE_BUFFER_BYTES`]; a longer buffer is made for its one request.
//! Small ones may be registered with a ring, for there pinning pages costs as much as the transfer; they are also what fits
//! into little lockable memory.
//!
//! Invariants: a buffer's memory never moves; its length is at most its capacity; a store keeps a bounded number of buffers.

use crate::AlignedBuf;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};

/// Capacity of a small buffer.
pub const SMALL_BUFFER_BYTES: usize = 64 << 10;
/// Capacity of a large buffer: the largest request of most clients.
pub const LARGE_BUFFER_BYTES: usize = 1 << 20;

/// Memory for one operation: aligned to a page, owned by whoever holds it, and by the queue while the operation is in flight.
///
/// As a slice it is its *window*, at first all of it.
pub struct IoBuf {
    memory: AlignedBuf,
    window: Range<usize>,
    /// The ring that has it registered, and its number there.
    registered: Option<(u64, u16)>,
}

impl IoBuf {
    /// A zeroed buffer of `len_bytes` that belongs to no store.
    pub fn zeroed(len_bytes: usize) -> IoBuf {
        IoBuf { memory: AlignedBuf::zeroed(len_bytes), window: 0..len_bytes, registered: None }
    }

    /// The same, with every page there already: none must be had while the system is short of memory and waits for this very buffer.
    pub fn resident(len_bytes: usize) -> IoBuf {
        let mut buf = IoBuf::zeroed(len_bytes);
        // Fresh memory is known to be zero, and so the writing might be left out.
        std::hint::black_box(&mut buf).fill(0);
        buf
    }

    /// A buffer that holds `bytes`.
    pub fn copy_of(bytes: &[u8]) -> IoBuf {
        let mut buf = IoBuf::zeroed(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// How many bytes the window may cover.
    pub fn capacity_bytes(&self) -> usize {
        self.memory.len()
    }

    /// Narrows the window to `window`, counted from the first byte of the memory, not of the present window; what lies behind
    /// the capacity is cut off. Operations are aligned only if the window begins at a multiple of the memory alignment.
    pub fn set_window(&mut self, window: Range<usize>) {
        let end = window.end.min(self.memory.len());
        self.window = window.start.min(end)..end;
    }

    /// All of the memory.
    pub(super) fn whole(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    pub(super) fn set_registered(&mut self, ring: u64, number: u16) {
        self.registered = Some((ring, number));
    }

    pub(super) fn is_registered(&self) -> bool {
        self.registered.is_some()
    }

    /// Its number among the registered buffers of `ring`.
    pub(super) fn registered_with(&self, ring: u64) -> Option<u16> {
        self.registered.filter(|(registered_by, _)| *registered_by == ring).map(|(_, number)| number)
    }

    /// The window as it is.
    pub fn window(&self) -> Range<usize> {
        self.window.clone()
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.window.clone()]
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.window.clone()]
    }
}

/// The content may be somebody's plaintext: only the length is shown.
impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes)", self.window.len())
    }
}

/// The idle buffers of one queue.
pub(super) struct BufferStore {
    small: Vec<IoBuf>,
    large: Vec<IoBuf>,
}

impl BufferStore {
    /// A store that keeps at most `kept` buffers of each size. None is allocated yet.
    pub(super) fn new(kept: usize) -> BufferStore {
        BufferStore { small: Vec::with_capacity(kept), large: Vec::with_capacity(kept) }
    }

    pub(super) fn take(&mut self, len_bytes: usize) -> IoBuf {
        let (kept, capacity_bytes) = if len_bytes <= SMALL_BUFFER_BYTES {
            (&mut self.small, SMALL_BUFFER_BYTES)
        } else if len_bytes <= LARGE_BUFFER_BYTES {
            (&mut self.large, LARGE_BUFFER_BYTES)
        } else {
            return IoBuf::zeroed(len_bytes);
        };
        let mut buf = kept.pop().unwrap_or_else(|| IoBuf::zeroed(capacity_bytes));
        buf.set_window(0..len_bytes);
        buf
    }

    pub(super) fn give_back(&mut self, buf: IoBuf) {
        let kept = match buf.capacity_bytes() {
            SMALL_BUFFER_BYTES => &mut self.small,
            LARGE_BUFFER_BYTES => &mut self.large,
            _ => return,
        };
        if kept.len() < kept.capacity() {
            kept.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_lends_the_same_memory_again_and_keeps_a_bounded_number() {
        let mut store = BufferStore::new(2);
        let first = store.take(512);
        let address = first.as_ptr().addr();
        assert_eq!((first.len(), first.capacity_bytes(), address % 4096), (512, SMALL_BUFFER_BYTES, 0));
        store.give_back(first);
        let again = store.take(SMALL_BUFFER_BYTES);
        assert_eq!((again.as_ptr().addr(), again.len()), (address, SMALL_BUFFER_BYTES));
        for len_bytes in [1, 2, 3, SMALL_BUFFER_BYTES + 1, LARGE_BUFFER_BYTES, LARGE_BUFFER_BYTES + 1] {
            let buf = store.take(len_bytes);
            assert_eq!(buf.len(), len_bytes);
        }
        for _ in 0..5 {
            store.give_back(IoBuf::zeroed(SMALL_BUFFER_BYTES));
            store.give_back(IoBuf::zeroed(LARGE_BUFFER_BYTES + 1));
        }
        assert!((2..5).contains(&store.small.len()) && store.large.is_empty());
    }

    #[test]
    fn a_window_stays_inside_the_memory() {
        let mut buf = IoBuf::copy_of(&[1, 2, 3, 4]);
        buf.set_window(1..3);
        assert_eq!(&buf[..], [2, 3]);
        buf.set_window(3..9);
        assert_eq!(&buf[..], [4]);
        buf.set_window(7..9);
        assert!(buf.is_empty() && format!("{buf:?}") == "IoBuf(0 bytes)");
        buf.set_window(0..4);
        assert_eq!(&buf[..], [1, 2, 3, 4]);
    }
}
