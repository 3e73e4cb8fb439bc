//! What the ciphers beside AES keep of a key: the bytes of their own types, as the crates lay them out.

use camellia::{Camellia128, Camellia192, Camellia256};
use cipher::consts::U16;
use cipher::{BlockCipherEncrypt, BlockSizeUser, KeyInit};
use serpent::Serpent;
use twofish::Twofish;

use super::schedule::Block;

/// All whole blocks of the cipher's state, those of zeros left out.
pub(crate) fn state(cipher: &str, key: &[u8]) -> Vec<Block> {
    match (cipher, key.len()) {
        ("serpent", _) => blocks_of(&Serpent::new_from_slice(key).unwrap()),
        ("twofish", _) => blocks_of(&Twofish::new_from_slice(key).unwrap()),
        ("camellia", 16) => blocks_of(&Camellia128::new_from_slice(key).unwrap()),
        ("camellia", 24) => blocks_of(&Camellia192::new_from_slice(key).unwrap()),
        ("camellia", 32) => blocks_of(&Camellia256::new_from_slice(key).unwrap()),
        other => panic!("{other:?}"),
    }
}

/// One block under the cipher.
pub(crate) fn encrypted_with(cipher: &str, key: &[u8], block: Block) -> Block {
    match (cipher, key.len()) {
        ("serpent", _) => one_block::<Serpent>(key, block),
        ("twofish", _) => one_block::<Twofish>(key, block),
        ("camellia", 16) => one_block::<Camellia128>(key, block),
        ("camellia", 24) => one_block::<Camellia192>(key, block),
        ("camellia", 32) => one_block::<Camellia256>(key, block),
        other => panic!("{other:?}"),
    }
}

fn one_block<C: KeyInit + BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>>(key: &[u8], block: Block) -> Block {
    let mut block = block.into();
    C::new_from_slice(key).unwrap().encrypt_block(&mut block);
    block.into()
}

fn blocks_of<C>(cipher: &C) -> Vec<Block> {
    let len_bytes = size_of::<C>();
    // SAFETY: `cipher` is as long as its type and lives as long as the slice. It is made of integers alone, all of them
    // initialised; Twofish ends in a word that fills its alignment, so that none of these types has padding.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(cipher).cast::<u8>(), len_bytes) };
    bytes.as_chunks::<16>().0.iter().filter(|block| **block != [0; 16]).copied().collect()
}

#[test]
fn the_state_is_made_of_round_keys() {
    // ECB_IVAL.TXT of the Twofish submission, key of 128 zero bits: K0 to K3.
    let twofish = state("twofish", &[0; 16]);
    let first: [u32; 4] = [0x52c5_4dde, 0x11f0_626d, 0x7cac_9d4a, 0x4d1b_4aaa];
    let wanted: Block = first.map(u32::to_le_bytes).as_flattened().try_into().unwrap();
    assert!(twofish.contains(&wanted), "{twofish:02x?}");
    assert_eq!((state("serpent", &[1; 32]).len(), state("camellia", &[1; 16]).len()), (33, 13));
}
