//! AES-256-XTS through EVP, the interface that OpenSSL and aws-lc share: one context per direction that gets a new IV per
//! sector. Each library's own file calls the macro with the crate of its bindings.

/// `version` and `build` on the bindings `$ffi`; `$name` is for errors.
macro_rules! evp_contender {
    ($ffi:ident, $name:literal) => {
        use std::ffi::{CStr, c_int};
        use std::ptr;

        use anyhow::{Result, bail, ensure};
        use dmcrypt::SectorSize;
        use luksbench::contender::{Contender, Direction, KEY};
        use $ffi as ffi;

        /// Version, as the library says it.
        pub(crate) fn version() -> String {
            // SAFETY: returns a static string, for any argument.
            unsafe { CStr::from_ptr(ffi::OpenSSL_version(ffi::OPENSSL_VERSION)) }.to_string_lossy().into_owned()
        }

        /// Keyed with [`KEY`].
        pub(crate) fn build(sector_size: SectorSize) -> Result<Box<dyn Contender>> {
            Ok(Box::new(Evp {
                encrypt: Context::new(Direction::Encrypt)?,
                decrypt: Context::new(Direction::Decrypt)?,
                sector_bytes: sector_size.bytes(),
            }))
        }

        struct Evp {
            encrypt: Context,
            decrypt: Context,
            sector_bytes: u32,
        }

        impl Contender for Evp {
            #[inline]
            fn crypt(&mut self, direction: Direction, iv_sector: u64, sectors: &mut [u8]) -> Result<()> {
                let context = match direction {
                    Direction::Encrypt => &mut self.encrypt,
                    Direction::Decrypt => &mut self.decrypt,
                };
                let mut number = iv_sector;
                for sector in sectors.chunks_exact_mut(self.sector_bytes as usize) {
                    context.crypt(number, sector)?;
                    number = number.wrapping_add(u64::from(self.sector_bytes / 512));
                }
                Ok(())
            }
        }

        /// An `EVP_CIPHER_CTX` with cipher, key and direction; never null.
        struct Context(*mut ffi::EVP_CIPHER_CTX);

        // SAFETY: a context belongs to no thread; this is the only pointer to it, and its use takes `&mut`.
        unsafe impl Send for Context {}

        impl Context {
            fn new(direction: Direction) -> Result<Context> {
                // SAFETY: takes nothing; null is seen to below.
                let context = Context(unsafe { ffi::EVP_CIPHER_CTX_new() });
                ensure!(!context.0.is_null(), concat!($name, " gave no cipher context"));
                let encrypt = c_int::from(direction == Direction::Encrypt);
                // SAFETY: the context is alive; the cipher is static; AES-256-XTS takes the 64 bytes of KEY and 16 of IV, and
                // copies both.
                let done = unsafe {
                    ffi::EVP_CipherInit_ex(
                        context.0,
                        ffi::EVP_aes_256_xts(),
                        ptr::null_mut(),
                        KEY.as_ptr(),
                        [0; 16].as_ptr(),
                        encrypt,
                    )
                };
                ensure!(done == 1, concat!($name, " takes no AES-256-XTS key"));
                Ok(context)
            }

            /// One sector in place.
            #[inline]
            fn crypt(&mut self, number: u64, sector: &mut [u8]) -> Result<()> {
                let iv = u128::from(number).to_le_bytes();
                let len_bytes = c_int::try_from(sector.len())?;
                let bytes = sector.as_mut_ptr();
                let mut out_bytes = 0;
                // SAFETY: the context is alive and has cipher and key; -1 keeps its direction; the IV is 16 bytes; the output
                // is the input's own memory (EVP allows that), as long as the input, which is all that XTS writes.
                let done = unsafe {
                    ffi::EVP_CipherInit_ex(self.0, ptr::null(), ptr::null_mut(), ptr::null(), iv.as_ptr(), -1) == 1
                        && ffi::EVP_CipherUpdate(self.0, bytes, &mut out_bytes, bytes, len_bytes) == 1
                };
                if !done || out_bytes != len_bytes {
                    bail!(concat!($name, " failed at sector {}, {} of {} bytes done"), number, out_bytes, len_bytes);
                }
                Ok(())
            }
        }

        impl Drop for Context {
            fn drop(&mut self) {
                // SAFETY: this is the only pointer to the context (or null, which is taken too), and its last use.
                unsafe { ffi::EVP_CIPHER_CTX_free(self.0) }
            }
        }
    };
}
pub(crate) use evp_contender;
