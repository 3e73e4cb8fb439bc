//! [`RangeLock`]: who may touch which bytes while a block is read, changed and written back.
//!
//! Two kinds of claims: *shared* for reads and for writes of whole blocks, *exclusive* for a block of which only a part
//! changes. Shared claims never exclude each other.
//!
//! Invariants: a request takes all its claims at once, or waits with none; a request waits only for earlier requests that
//! conflict with it, so nobody starves and nothing deadlocks as long as a holder makes no second request.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// One claim: bytes `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    start: u64,
    end: u64,
    exclusive: bool,
}

impl Claim {
    pub(crate) fn shared(start: u64, end: u64) -> Claim {
        Claim { start, end, exclusive: false }
    }

    pub(crate) fn exclusive(start: u64, end: u64) -> Claim {
        Claim { start, end, exclusive: true }
    }

    fn conflicts(&self, other: &Claim) -> bool {
        (self.exclusive || other.exclusive) && self.start < other.end && other.start < self.end
    }
}

/// The claims of one request: the partial head, the whole middle, the partial tail.
pub(crate) type Claims = [Option<Claim>; 3];

/// The claims of a write of `start..end` over blocks of `block_bytes`: the blocks it changes in part, exclusively, and the
/// ones it writes whole, shared.
pub(crate) fn write_claims(start: u64, end: u64, block_bytes: u64) -> Claims {
    let (first, last) = (start - start % block_bytes, end.next_multiple_of(block_bytes));
    let (head, tail) = (start != first, end != last);
    if (head || tail) && last - first <= 2 * block_bytes {
        return [Some(Claim::exclusive(first, last)), None, None];
    }
    let (middle_start, middle_end) =
        (if head { first + block_bytes } else { first }, if tail { last - block_bytes } else { last });
    [
        head.then(|| Claim::exclusive(first, middle_start)),
        Some(Claim::shared(middle_start, middle_end)),
        tail.then(|| Claim::exclusive(middle_end, last)),
    ]
}

struct Request {
    ticket: u64,
    claims: Claims,
}

#[derive(Default)]
struct Queue {
    /// Every request that holds or waits, in order of arrival.
    requests: Vec<Request>,
    next_ticket: u64,
    waiting: usize,
}

impl Queue {
    /// Whether an earlier request stands in the way of `ticket`.
    fn must_wait(&self, ticket: u64, claims: &Claims) -> bool {
        self.requests.iter().take_while(|request| request.ticket < ticket).any(|earlier| {
            let mut pairs = earlier.claims.iter().flatten().flat_map(|a| claims.iter().flatten().map(move |b| (a, b)));
            pairs.any(|(a, b)| a.conflicts(b))
        })
    }
}

/// Claims on byte ranges.
#[derive(Default)]
pub(crate) struct RangeLock {
    queue: Mutex<Queue>,
    released: Condvar,
}

impl RangeLock {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody earlier conflicts; the claims are held until the guard is dropped.
    pub(crate) fn acquire(&self, claims: Claims) -> RangeGuard<'_> {
        let mut queue = self.queue();
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        queue.requests.push(Request { ticket, claims });
        while queue.must_wait(ticket, &claims) {
            queue.waiting += 1;
            queue = self.released.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.waiting -= 1;
        }
        RangeGuard { lock: self, ticket }
    }
}

/// Held claims.
pub(crate) struct RangeGuard<'a> {
    lock: &'a RangeLock,
    ticket: u64,
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut queue = self.lock.queue();
        queue.requests.retain(|request| request.ticket != self.ticket);
        if queue.waiting > 0 {
            self.lock.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn only_partly_written_blocks_are_claimed_exclusively() {
        assert_eq!(write_claims(0, 8192, 4096), [None, Some(Claim::shared(0, 8192)), None]);
        assert_eq!(write_claims(1, 2, 4096), [Some(Claim::exclusive(0, 4096)), None, None]);
        assert_eq!(write_claims(4095, 4097, 4096), [Some(Claim::exclusive(0, 8192)), None, None]);
        assert_eq!(
            write_claims(1, 12289, 4096),
            [Some(Claim::exclusive(0, 4096)), Some(Claim::shared(4096, 12288)), Some(Claim::exclusive(12288, 16384))]
        );
    }

    #[test]
    fn shared_claims_overlap_and_exclusive_ones_wait() {
        let lock = RangeLock::default();
        let order = AtomicUsize::new(0);
        let first = lock.acquire([Some(Claim::shared(0, 100)), None, None]);
        let second = lock.acquire([Some(Claim::shared(50, 150)), None, None]);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let _held = lock.acquire([Some(Claim::exclusive(90, 91)), None, None]);
                order.fetch_add(1, Ordering::SeqCst)
            });
            drop(lock.acquire([Some(Claim::exclusive(200, 300)), None, None]));
            std::thread::sleep(Duration::from_millis(30));
            assert_eq!(order.fetch_add(1, Ordering::SeqCst), 0, "the writer must still wait");
            drop(first);
            drop(second);
            assert_eq!(writer.join().unwrap(), 1);
        });
    }

    #[test]
    fn a_waiting_writer_is_not_overtaken_by_later_readers() {
        let lock = RangeLock::default();
        let reader = lock.acquire([Some(Claim::shared(0, 10)), None, None]);
        let log = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _held = lock.acquire([Some(Claim::exclusive(0, 10)), None, None]);
                log.lock().unwrap().push("writer");
            });
            while lock.queue().waiting == 0 {
                std::thread::yield_now();
            }
            scope.spawn(|| {
                let _held = lock.acquire([Some(Claim::shared(0, 10)), None, None]);
                log.lock().unwrap().push("late reader");
            });
            while lock.queue().waiting < 2 {
                std::thread::yield_now();
            }
            drop(reader);
        });
        assert_eq!(*log.lock().unwrap(), ["writer", "late reader"]);
    }
}
