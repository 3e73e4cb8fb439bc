//! AES-XTS kernels for x86-64 in their own instructions, and which of them a process uses.
//!
//! A kernel type ([`Xmm`], [`Ymm`], [`Zmm`]) is a witness: a value of it exists only where the processor and the
//! operating system were found to have what it needs, so calling it is safe. What all kernels do:
//!
//! * They take a run of many sectors; the IVs of up to 128 are encrypted together, 8 vectors side by side.
//! * Each block's tweak is kept as T ^ (last round key), so that the last AES round also undoes the whitening; the
//!   first xor is data ^ that ^ (first ^ last round key).
//! * The tweaks of the next group of blocks are computed between the AES rounds of the present one, where the
//!   processor has idle units. Empty `asm!` blocks that take the cipher states in and out keep the compiler from
//!   sorting the two apart.
//!
//! Source: FIPS 197; IEEE 1619-2018; the intrinsics' documentation.

mod prefetch;
mod schedule;
mod xts;

#[macro_use]
mod narrow;
mod xmm;
mod ymm;
mod zmm;

pub(crate) use xmm::Xmm;
pub(crate) use xts::Xts;
pub(crate) use ymm::Ymm;
pub(crate) use zmm::Zmm;
