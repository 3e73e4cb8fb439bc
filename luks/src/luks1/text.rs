//! [`FixedText`]: text in a field of fixed length, as LUKS1 has it for cipher, hash and UUID.
//!
//! The bytes behind the first NUL mean nothing, but they are kept, so that a header is written as it was read. A field
//! without a NUL is read as if its last byte were one, as cryptsetup does.

use std::borrow::Cow;
use std::fmt;

/// A field of `N` bytes that holds text and a NUL.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FixedText<const N: usize>(pub(super) [u8; N]);

impl<const N: usize> FixedText<N> {
    /// The field for `text`; `None` when it and its NUL do not fit, or when it holds a NUL itself.
    pub fn new(text: &str) -> Option<FixedText<N>> {
        let mut bytes = [0; N];
        if text.len() >= N || text.contains('\0') {
            return None;
        }
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(FixedText(bytes))
    }

    /// The bytes of the text.
    pub fn as_bytes(&self) -> &[u8] {
        let most = &self.0[..N.saturating_sub(1)];
        let end = most.iter().position(|byte| *byte == 0).unwrap_or(most.len());
        &most[..end]
    }

    /// The text; bytes that are no UTF-8 are replaced.
    pub fn to_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.as_bytes())
    }

    /// The whole field.
    pub fn field(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> fmt::Display for FixedText<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl<const N: usize> fmt::Debug for FixedText<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_ends_at_its_nul_and_a_full_field_loses_its_last_byte() {
        let field = FixedText::<8>::new("sha256").unwrap();
        assert_eq!((field.to_text().as_ref(), field.field()), ("sha256", b"sha256\0\0"));
        assert_eq!(FixedText(*b"ab\0cdefg").to_text(), "ab");
        assert_eq!(FixedText(*b"abcdefgh").to_text(), "abcdefg");
        assert_eq!(FixedText(*b"\xffbcdefg\0").to_text(), "\u{fffd}bcdefg");
        assert!(FixedText::<8>::new("abcdefg").is_some());
        assert!(FixedText::<8>::new("abcdefgh").is_none());
        assert!(FixedText::<8>::new("a\0b").is_none());
    }
}
