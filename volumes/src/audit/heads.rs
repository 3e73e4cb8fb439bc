//! [`Head`]: a count and the MAC of the last record then, as somebody outside of the log remembers it; and what the system's
//! journal remembers.

use std::fmt;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::str::FromStr;

use super::{from_hex, hex};

/// Most bytes that are read of the journal's answer.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// How long the log was, and the MAC of its last record then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Head {
    /// How many records there were, 1 or more.
    pub count: u64,
    /// MAC of the last.
    pub mac: [u8; 32],
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.count, hex(&self.mac))
    }
}

impl FromStr for Head {
    type Err = String;

    fn from_str(text: &str) -> Result<Head, String> {
        let head = text.split_once(':').and_then(|(count, mac)| {
            let count = count.parse().ok().filter(|count| *count > 0)?;
            Some(Head { count, mac: from_hex(mac)? })
        });
        head.ok_or_else(|| "must be COUNT:HEX, a number of records and the 64 hexadecimal digits of a MAC".to_owned())
    }
}

/// What the journal remembers of a chain, as the user with this uid announced it: nobody else can. `None` if there is no journal to
/// ask.
#[must_use]
pub fn heads_of_journal(chain: &str, uid: u32) -> Option<Vec<Head>> {
    let mut child = Command::new("journalctl")
        .args(["--quiet", "--no-pager", "--output=json", "--output-fields=LUKSCTL_AUDIT_COUNT,LUKSCTL_AUDIT_HEAD"])
        .args([format!("LUKSCTL_AUDIT_CHAIN={chain}"), format!("_UID={uid}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut answer = Vec::new();
    let read = child.stdout.take()?.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
    let ended = child.wait().ok()?;
    (read.is_ok() && ended.success()).then(|| of_answer(&String::from_utf8_lossy(&answer)))
}

/// One JSON object per line, its fields texts.
fn of_answer(answer: &str) -> Vec<Head> {
    let field =
        |line: &serde_json::Value, name: &str| line.get(name).and_then(|field| field.as_str()).map(str::to_owned);
    let head = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let (count, mac) = (field(&line, "LUKSCTL_AUDIT_COUNT")?, field(&line, "LUKSCTL_AUDIT_HEAD")?);
        format!("{count}:{mac}").parse().ok()
    };
    answer.lines().filter_map(head).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_read_as_they_print() {
        let head = Head { count: 7, mac: [171; 32] };
        assert_eq!(head.to_string().parse(), Ok(head));
        for bad in [
            "",
            "7",
            "0:".to_owned().as_str(),
            &format!("0:{}", hex(&[0; 32])),
            &format!("x:{}", hex(&[0; 32])),
            "7:ab",
        ] {
            assert!(bad.parse::<Head>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_journals_answer_is_searched() {
        let line = |count: &str, mac: &str| {
            format!("{{\"__CURSOR\":\"s=1\",\"LUKSCTL_AUDIT_COUNT\":\"{count}\",\"LUKSCTL_AUDIT_HEAD\":\"{mac}\"}}\n")
        };
        let mac = hex(&[1; 32]);
        let answer =
            [line("3", &mac), "{}\n".into(), "junk\n".into(), line("x", &mac), line("4", "ab"), line("5", &mac)]
                .concat();
        assert_eq!(of_answer(&answer).iter().map(|head| head.count).collect::<Vec<_>>(), [3, 5]);
    }
}
