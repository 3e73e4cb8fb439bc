//! The shape that the 128-bit and the 256-bit kernel share: eight vectors in flight, 16 registers, so the masks lie in
//! memory.

/// Writes the kernel's functions for one vector type. The file that calls it defines, with the same features, `load`,
/// `store`, `xor`, `broadcast`, `round`, `last_round` and a type `Tweaks`: what the tweaks of the next group come from.
/// `Tweaks::first(&Block)` starts a sector; `prepare::<STEP, FRESH>` with steps 1 to 9 in turn writes the masks of a
/// group and moves on, at the end to the start of the sector whose encrypted IV is given if `FRESH`.
macro_rules! narrow_kernel {
    ($features:literal, $Witness:ident, $V:ty, $register:ident, $vector_bytes:literal, $Group:ty, $stack_bytes:literal) => {
        /// Vectors in flight.
        const VECTORS: usize = 8;

        impl Instructions for $Witness {
            fn schedules(self, data: &[u8], tweak: &[u8]) -> [Schedule; 3] {
                // SAFETY: `self` is a witness of these instructions.
                unsafe { [Schedule::encrypting(data), Schedule::decrypting(data), Schedule::encrypting(tweak)] }
            }

            fn ecb(self, schedule: &Schedule, blocks: &mut [Block]) {
                // SAFETY: `self` is a witness of these instructions.
                unsafe {
                    match schedule.rounds() {
                        14 => ecb::<true>(schedule, blocks),
                        _ => ecb::<false>(schedule, blocks),
                    }
                }
            }

            fn run<const ENCRYPT: bool>(
                self,
                schedule: &Schedule,
                tweaks: &[Block],
                sector_bytes: usize,
                io: InOutBuf<'_, '_, u8>,
            ) {
                // SAFETY: `self` is a witness of these instructions.
                unsafe {
                    match schedule.rounds() {
                        14 => run::<ENCRYPT, true>(schedule, tweaks, sector_bytes, io),
                        _ => run::<ENCRYPT, false>(schedule, tweaks, sector_bytes, io),
                    }
                }
            }

            fn wipe_stack(self) {
                // SAFETY: `self` is a witness of these instructions.
                unsafe { wipe_stack() }
            }
        }

        /// The states pass through: what follows in the source cannot move above, what precedes cannot move below.
        macro_rules! pin {
            ($s:expr) => {
                // SAFETY: no instruction is executed.
                unsafe {
                    std::arch::asm!(
                        "/* {0} {1} {2} {3} {4} {5} {6} {7} */",
                        inout($register) $s[0], inout($register) $s[1], inout($register) $s[2],
                        inout($register) $s[3], inout($register) $s[4], inout($register) $s[5],
                        inout($register) $s[6], inout($register) $s[7],
                        options(pure, nomem, nostack, preserves_flags)
                    );
                }
            };
        }

        /// T ^ (last round key) for each block of a group.
        type Masks = [$V; VECTORS];

        /// One group under `masks`, while `next` becomes the masks of the following one.
        #[inline]
        #[target_feature(enable = $features)]
        fn group<const ENCRYPT: bool, const LONG: bool, const FRESH: bool>(
            keys: &[Quad; 15],
            masks: &Masks,
            next: &mut Masks,
            tweaks: &mut Tweaks,
            sector: &Block,
            mut io: InOut<'_, '_, Array<u8, $Group>>,
        ) {
            let keys = opaque(keys);
            let ahead = io.get_in().as_ptr().wrapping_add(PREFETCH_BYTES);
            let source = io.get_in().as_slice().as_chunks::<$vector_bytes>().0;
            let last_key = broadcast(keys[if LONG { 14 } else { 10 }].block());
            let whitening = xor(last_key, broadcast(keys[0].block()));
            let mut states = [whitening; VECTORS];
            for i in 0..VECTORS {
                states[i] = xor(xor(load(&source[i]), whitening), masks[i]);
            }
            macro_rules! step {
                ($number:literal) => {
                    let key = broadcast(keys[$number].block());
                    if 64 * $number <= $vector_bytes * VECTORS {
                        prefetch(ahead.wrapping_add(64 * ($number - 1)));
                    }
                    for state in &mut states {
                        *state = round::<ENCRYPT>(*state, key);
                    }
                    pin!(states);
                    if $number <= 9 {
                        tweaks.prepare::<$number, FRESH>(sector, next, keys[if LONG { 14 } else { 10 }].block());
                    }
                };
            }
            for_each!(step: 1 2 3 4 5 6 7 8 9);
            if LONG {
                for_each!(step: 10 11 12 13);
            }
            // Read once more rather than kept since the whitening, for which there are no registers.
            let masks = opaque(masks);
            let target = io.get_out().as_mut_slice().as_chunks_mut::<$vector_bytes>().0;
            for i in 0..VECTORS {
                store(&mut target[i], last_round::<ENCRYPT>(states[i], masks[i]));
            }
        }

        /// All sectors of `io` under their encrypted IVs. `sectors` has a block more than there are sectors.
        #[target_feature(enable = $features)]
        fn run<const ENCRYPT: bool, const LONG: bool>(
            schedule: &Schedule,
            sectors: &[Block],
            sector_bytes: usize,
            io: InOutBuf<'_, '_, u8>,
        ) {
            let keys = schedule.keys();
            let last_key = keys[if LONG { 14 } else { 10 }].block();
            let groups_per_sector = sector_bytes / ($vector_bytes * VECTORS);
            let mut masks = [[broadcast(last_key); VECTORS]; 2];
            let [present, next] = &mut masks;
            let (mut present, mut next) = (present, next);
            let mut sectors = sectors.iter();
            let Some(mut sector) = sectors.next() else { return };
            let mut tweaks = Tweaks::first(sector);
            macro_rules! prepare {
                ($step:literal) => {
                    tweaks.prepare::<$step, false>(sector, present, last_key)
                };
            }
            for_each!(prepare: 1 2 3 4 5 6 7 8 9);
            // Groups until the bases are those of another sector: the masks run one group ahead, the bases two.
            let mut until_fresh = groups_per_sector - 1;
            for io in io.into_chunks::<$Group>().0 {
                until_fresh -= 1;
                if until_fresh == 0 {
                    until_fresh = groups_per_sector;
                    // Behind the last sector there is none, and no data either.
                    sector = sectors.next().unwrap_or(sector);
                    group::<ENCRYPT, LONG, true>(keys, present, next, &mut tweaks, sector, io);
                } else {
                    group::<ENCRYPT, LONG, false>(keys, present, next, &mut tweaks, sector, io);
                }
                std::mem::swap(&mut present, &mut next);
            }
        }

        /// Larger than the frames of `run` and `ecb`.
        #[inline(never)]
        #[target_feature(enable = $features)]
        fn wipe_stack() {
            let zero = broadcast(&[0; 16]);
            let mut area = [const { MaybeUninit::<$V>::uninit() }; $stack_bytes / $vector_bytes];
            for vector in &mut area {
                // SAFETY: a valid, aligned place of this type.
                unsafe { vector.as_mut_ptr().write_volatile(zero) };
            }
        }

        /// blocks\[i\] = AES(blocks\[i\]).
        #[target_feature(enable = $features)]
        fn ecb<const LONG: bool>(schedule: &Schedule, blocks: &mut [Block]) {
            let vectors = blocks.as_flattened_mut().as_chunks_mut::<$vector_bytes>().0;
            let (groups, rest) = vectors.as_chunks_mut::<VECTORS>();
            for group in groups {
                ecb_group::<VECTORS, LONG>(schedule, group);
            }
            for vector in rest {
                ecb_group::<1, LONG>(schedule, std::array::from_mut(vector));
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn ecb_group<const N: usize, const LONG: bool>(schedule: &Schedule, vectors: &mut [[u8; $vector_bytes]; N]) {
            let keys = opaque(schedule.keys());
            let mut states = [broadcast(keys[0].block()); N];
            for (state, bytes) in states.iter_mut().zip(&*vectors) {
                *state = xor(*state, load(bytes));
            }
            let rounds = if LONG { 14 } else { 10 };
            for key in &keys[1..rounds] {
                let key = broadcast(key.block());
                for state in &mut states {
                    *state = round::<true>(*state, key);
                }
            }
            let last_key = broadcast(keys[rounds].block());
            for (state, bytes) in states.iter().zip(vectors) {
                store(bytes, last_round::<true>(*state, last_key));
            }
        }
    };
}

/// Calls a macro once for each number.
macro_rules! for_each {
    ($step:ident: $($number:literal)*) => {
        $($step!($number);)*
    };
}
