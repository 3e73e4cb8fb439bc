//! One line of a file of records, as it is read back: its claims, and whether its MAC holds.

use serde::Deserialize;

use super::chain::ChainKey;
use super::from_hex;

/// What stands between a record's body and its MAC.
pub(crate) const BEFORE_MAC: &str = ",\"mac\":\"";

/// What a line says of itself; believed once its MAC holds.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// The record's number.
    pub(crate) n: u64,
    /// MAC of the record before.
    pub(crate) prev: [u8; 32],
    /// MAC of this one.
    pub(crate) mac: [u8; 32],
    /// How long the part is that the MAC covers.
    body_bytes: usize,
}

/// What of a record the log itself acts on.
#[derive(Debug, Deserialize)]
pub(crate) struct Words {
    #[serde(default)]
    pub(crate) action: String,
    #[serde(default)]
    pub(crate) details: Details,
}

/// Details of records that the log writes about itself.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Details {
    /// How many bytes of a broken line were found.
    pub(crate) bytes: Option<String>,
    /// Beginning of their SHA-256.
    pub(crate) sha256: Option<String>,
    /// `torn` or `foreign`.
    pub(crate) found: Option<String>,
    /// The last record of a file that was removed.
    pub(crate) last: Option<String>,
}

#[derive(Deserialize)]
struct Numbers<'a> {
    n: u64,
    #[serde(borrow)]
    prev: &'a str,
    #[serde(borrow)]
    mac: &'a str,
}

impl Claim {
    /// The claims of a line without its newline; `None` if it is no record.
    pub(crate) fn of(line: &[u8]) -> Option<Claim> {
        let text = std::str::from_utf8(line).ok()?;
        let body_bytes = text.rfind(BEFORE_MAC)?;
        let numbers: Numbers<'_> = serde_json::from_str(text).ok()?;
        let claim = Claim { n: numbers.n, prev: from_hex(numbers.prev)?, mac: from_hex(numbers.mac)?, body_bytes };
        // Nothing stands behind the MAC, so that it covers all there is.
        let end = text.get(body_bytes + BEFORE_MAC.len() + 64..)?;
        (end == "\"}" && numbers.mac.bytes().all(|byte| !byte.is_ascii_uppercase())).then_some(claim)
    }

    /// Whether `key` made it of this line.
    pub(crate) fn holds(&self, line: &[u8], key: &ChainKey) -> bool {
        key.mac(self.body(line)) == self.mac
    }

    /// The part of its line that the MAC covers.
    pub(crate) fn body<'l>(&self, line: &'l [u8]) -> &'l [u8] {
        line.get(..self.body_bytes).unwrap_or_default()
    }
}

/// What a record whose MAC holds says about the log itself.
pub(crate) fn words(line: &[u8]) -> Option<Words> {
    serde_json::from_slice(line).ok()
}

/// A line from its body and MAC, with its newline.
pub(crate) fn line(body: &str, mac: &[u8; 32]) -> String {
    format!("{body}{BEFORE_MAC}{}\"}}\n", super::hex(mac))
}
