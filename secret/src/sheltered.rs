//! [`Sheltered`]: the large working memory of a memory-hard KDF.
//!
//! It may be gigabytes, more than can be locked for an ordinary user, so everything but the allocation is best effort: huge
//! pages, no core dump, `mlock`. It is wiped on drop like every other secret.
//!
//! Invariant: the length never changes, so the memory never moves.

use crate::SecretError;
use crate::pages::{Shelter, shelter, unshelter};
use std::ops::{Deref, DerefMut};
use zeroize::Zeroize;

/// `count` elements of secret working memory; wiped on drop.
pub struct Sheltered<T: Zeroize> {
    elements: Vec<T>,
    shelter: Shelter,
}

impl<T: Zeroize + Default + Clone> Sheltered<T> {
    /// `count` default elements.
    ///
    /// # Errors
    /// [`SecretError::Allocation`] when the memory cannot be had. A failed lock is no error: see
    /// [`Sheltered::is_locked`].
    pub fn new(count: usize) -> Result<Sheltered<T>, SecretError> {
        let mut elements = Vec::new();
        elements
            .try_reserve_exact(count)
            .map_err(|_| SecretError::Allocation { len_bytes: count.saturating_mul(size_of::<T>()) })?;
        // Before the first touch, so that the pages come huge.
        let shelter = shelter(elements.spare_capacity_mut());
        elements.resize(count, T::default());
        Ok(Sheltered { elements, shelter })
    }

    /// Whether all whole pages inside cannot be swapped out.
    pub fn is_locked(&self) -> bool {
        self.shelter.is_locked()
    }
}

impl<T: Zeroize> Deref for Sheltered<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.elements
    }
}

impl<T: Zeroize> DerefMut for Sheltered<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.elements
    }
}

impl<T: Zeroize> Drop for Sheltered<T> {
    fn drop(&mut self) {
        // Not `Vec::zeroize`: that goes over the capacity a second time, byte by byte, which takes a second per 2 GiB.
        self.elements.iter_mut().for_each(Zeroize::zeroize);
        self.elements.clear();
        unshelter(self.elements.spare_capacity_mut(), self.shelter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_start_as_default_and_can_be_written() {
        let mut memory = Sheltered::<u64>::new(4096).unwrap();
        assert!(memory.iter().all(|&element| element == 0));
        memory[4095] = 7;
        assert_eq!((memory.len(), memory[4095], memory.is_locked()), (4096, 7, true));
    }

    #[test]
    fn every_element_is_wiped_on_drop() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static WIPED: AtomicUsize = AtomicUsize::new(0);
        #[derive(Clone, Default)]
        struct Seen(u64);
        impl Zeroize for Seen {
            fn zeroize(&mut self) {
                self.0 = 0;
                WIPED.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(Sheltered::<Seen>::new(1000).unwrap());
        assert_eq!(WIPED.load(Ordering::Relaxed), 1000);
    }

    #[test]
    fn too_much_is_an_error_not_an_abort() {
        assert!(matches!(Sheltered::<u64>::new(usize::MAX / 16), Err(SecretError::Allocation { .. })));
    }
}
