//! What hands that know cryptsetup type and what is not so here: `-h NAME`, which is its `--hash`, and options and verbs that
//! it has and we have not, each with the way to the same end.

use std::ffi::{OsStr, OsString};

use luks::HashAlg;

/// cryptsetup's options that no verb here has: its name, the short form, what to do instead.
const OPTIONS: [(&str, &str, &str); 19] = [
    ("--timeout", "-t", "leave it out; a prompt that nobody answers is ended by `timeout 30 luksctl …`"),
    ("--disable-locks", "", "leave it out: a header is never changed without its lock"),
    ("--disable-keyring", "", "leave it out: a volume key is never put into a table, where root can read it"),
    ("--disable-external-tokens", "", "leave it out: there are no token plugins here"),
    ("--disable-blkid", "", "leave it out; `format --force` overwrites known content"),
    ("--use-random", "", "leave it out: keys come from getrandom(2), which waits until the kernel has entropy"),
    ("--use-urandom", "", "leave it out: keys come from getrandom(2), which waits until the kernel has entropy"),
    ("--align-payload", "", "write --offset SECTORS: where data starts, not a multiple of it"),
    ("--integrity", "", "there is no authenticated encryption here; cryptsetup makes and opens such containers"),
    ("--integrity-no-wipe", "", "there is no authenticated encryption here"),
    ("--integrity-no-journal", "", "there is no authenticated encryption here"),
    ("--integrity-legacy-padding", "", "there is no authenticated encryption here"),
    ("--debug", "", "-v says more"),
    ("--verify-passphrase", "-y", "leave it out: only a new passphrase is typed twice, and always without -q"),
    ("--serialize-memory-hard-pbkdf", "", "leave it out: the memory that there is bounds each unlock"),
    ("--refresh", "", "luksctl refresh NAME"),
    ("--shared", "", "leave it out: a container is opened for one volume at a time"),
    ("--cancel-deferred", "", "not here: cryptsetup close --cancel-deferred NAME"),
    ("--new-token-id", "", "add the keyslot, then `luksctl token add IMAGE --key-description TEXT -S N`"),
];

/// cryptsetup's verbs that are not here.
const VERBS: [(&str, &str); 12] = [
    ("reencrypt", "re-encryption is not here: cryptsetup reencrypt"),
    ("benchmark", "luksbench crypto, luksbench unlock"),
    ("remove", "luksctl close NAME"),
    ("create", "plain dm-crypt is not here: cryptsetup open --type plain"),
    ("plainOpen", "plain dm-crypt is not here: cryptsetup open --type plain"),
    ("loopaesOpen", "loop-AES is not here: cryptsetup open --type loopaes"),
    ("tcryptOpen", "TrueCrypt is not here: cryptsetup open --type tcrypt"),
    ("tcryptDump", "TrueCrypt is not here: cryptsetup tcryptDump"),
    ("bitlkOpen", "BitLocker is not here: cryptsetup open --type bitlk"),
    ("bitlkDump", "BitLocker is not here: cryptsetup bitlkDump"),
    ("fvault2Open", "FileVault is not here: cryptsetup open --type fvault2"),
    ("fvault2Dump", "FileVault is not here: cryptsetup fvault2Dump"),
];

/// The arguments with `--hash` where cryptsetup's `-h NAME` stands. Without the name of a hash behind it `-h` is help.
pub(super) fn with_hash_named(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut named: Vec<OsString> = Vec::new();
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            named.push(argument);
            named.extend(arguments);
            break;
        }
        let glued = argument.to_str().and_then(|text| text.strip_prefix("-h")).filter(|rest| is_hash(OsStr::new(rest)));
        if let Some(hash) = glued {
            named.push(format!("--hash={hash}").into());
        } else if argument == "-h" && arguments.peek().is_some_and(|next| is_hash(next)) {
            named.push("--hash".into());
        } else {
            named.push(argument);
        }
    }
    named
}

fn is_hash(text: &OsStr) -> bool {
    text.to_str().is_some_and(|text| HashAlg::parse(text).is_ok())
}

/// What to do instead of the option or the verb that was refused with `words`.
pub(super) fn instead(words: &str) -> Option<&'static str> {
    let refused = words.split('\'').nth(1)?;
    if words.starts_with("unrecognized subcommand") {
        return VERBS.iter().find(|(verb, _)| *verb == refused).map(|(_, hint)| *hint);
    }
    let option = refused.split(['=', ' ']).next()?;
    let unexpected = words.starts_with("unexpected argument");
    let found = OPTIONS.iter().find(|(long, short, _)| *long == option || (!short.is_empty() && *short == option));
    found.filter(|_| unexpected).map(|(_, _, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(arguments: &[&str]) -> Vec<OsString> {
        with_hash_named(arguments.iter().map(OsString::from))
    }

    #[test]
    fn a_hash_behind_h_is_a_hash() {
        assert_eq!(named(&["x", "-h", "sha512", "a"]), ["x", "--hash", "sha512", "a"]);
        assert_eq!(named(&["x", "-hsha512", "a"]), ["x", "--hash=sha512", "a"]);
        for same in [&["x", "-h"][..], &["x", "-h", "image"], &["x", "-help"], &["x", "--", "-h", "sha256"]] {
            assert_eq!(named(same), same);
        }
    }

    #[test]
    fn what_is_not_here_says_what_is() {
        assert!(instead("unexpected argument '--timeout' found").is_some_and(|hint| hint.contains("timeout 30")));
        assert!(instead("unexpected argument '-t' found").is_some());
        assert!(instead("unexpected argument '--align-payload=8' found").is_some());
        assert!(instead("unrecognized subcommand 'reencrypt'").is_some());
        for none in
            ["unexpected argument '--nonsense' found", "unrecognized subcommand 'x'", "unexpected argument '' found"]
        {
            assert_eq!(instead(none), None);
        }
    }

    /// Nobody is sent away from an option that has come since.
    #[test]
    fn no_verb_has_what_is_said_to_be_missing() {
        let root = super::super::command();
        for (verb, _) in VERBS {
            assert!(root.find_subcommand(verb).is_none(), "{verb}");
        }
        for long in ["--disable-locks", "--timeout", "--use-random", "--integrity", "--align-payload", "--debug"] {
            let has = |command: &clap::Command| command.get_arguments().any(|a| a.get_long() == Some(&long[2..]));
            assert!(!root.get_subcommands().any(has), "{long}");
        }
    }
}
