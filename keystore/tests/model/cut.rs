//! When the power goes: a count of changes that disk and volume share; and the randomness of what is left then.

use std::cell::Cell;
use std::rc::Rc;

/// Changes that are left; `None` is a power supply that never fails.
#[derive(Clone, Default)]
pub(crate) struct Power {
    left: Rc<Cell<Option<u32>>>,
    refusal: Rc<Cell<Option<u32>>>,
}

impl Power {
    /// Fails after `changes` more changes.
    pub(crate) fn cut_after(&self, changes: u32) {
        self.left.set(Some(changes));
    }

    /// Refuses one change, after `changes` more, as a full disk does; later ones are done.
    pub(crate) fn refuse_after(&self, changes: u32) {
        self.refusal.set(Some(changes));
    }

    /// Whether a refusal is still to come.
    pub(crate) fn will_refuse(&self) -> bool {
        self.refusal.get().is_some()
    }

    pub(crate) fn restore(&self) {
        self.left.set(None);
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.left.get() == Some(0)
    }

    /// One change; false if there is no power for it.
    pub(crate) fn change(&self) -> bool {
        match self.refusal.get() {
            Some(0) => {
                self.refusal.set(None);
                return false;
            }
            Some(left) => self.refusal.set(Some(left - 1)),
            None => {}
        }
        match self.left.get() {
            Some(0) => return false,
            Some(left) => self.left.set(Some(left - 1)),
            None => {}
        }
        true
    }
}

/// xorshift64*: the same seed gives the same case. Seed 0 always says no, seed 1 always yes.
pub(crate) struct Dice {
    seed: u64,
    state: u64,
}

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice { seed, state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    pub(crate) fn yes(&mut self) -> bool {
        match self.seed {
            0 => false,
            1 => true,
            _ => self.below(2) == 1,
        }
    }
}
