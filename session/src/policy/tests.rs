//! A policy survives its text; what is wrong in a file is said with its line; raised pins leave the rest alone.

use luks::policy::{Bounds, Fingerprint, Names};

use super::*;

const PRINT: &str = "sha256:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn pins() -> Pins {
    let print: Fingerprint = PRINT.parse().unwrap();
    Pins::default().with_uuid("0b1c-\"quoted\"").with_epoch(7).with_volume_keys(vec![print]).with_segments(print)
}

/// Policies with every kind of value.
fn samples() -> Vec<Policy> {
    let mut odd = Policy::default_preset().named("odd").allowing_null_cipher().pinned(pins().with_epoch(u64::MAX));
    odd.versions = vec![1];
    odd.requirements = Names::only(["opal", "größe\n"]);
    odd.hashes = Names::only(["sha-256"]);
    odd.argon2_lanes = Bounds { min: 2, max: 2 };
    vec![Policy::default_preset(), Policy::strict(), Policy::strict().pinned(pins()), odd]
}

#[test]
fn a_policy_survives_its_toml_and_the_way_to_a_server() {
    for policy in samples() {
        let text = to_toml(&policy).unwrap();
        assert_eq!(parse(&text, &policy.name).unwrap(), policy, "{text}");
        let line = serde_json::to_string(&PolicyOrder::from(&policy)).unwrap();
        let order: PolicyOrder = serde_json::from_str(&line).unwrap();
        assert_eq!(Policy::from(&order), policy, "{line}");
    }
}

#[test]
fn what_a_file_does_not_say_is_strict_or_its_preset() {
    assert_eq!(parse("", "strict").unwrap(), Policy::strict());
    assert_eq!(parse("preset = \"default\"", "default").unwrap(), Policy::default_preset());
    let one = parse("preset = \"default\"\nciphers = [\"aes-xts-plain64\"]\nkdf.types = \"any\"", "one").unwrap();
    let mut expected = Policy::default_preset().named("one");
    expected.ciphers = Names::only(["aes-xts-plain64"]);
    assert_eq!(one, expected);
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    for (bad, line, words) in [
        ("cipher = []", 1, "unknown field `cipher`"),
        ("versions = [2]\npreset = \"lenient\"", 2, "unknown name \"lenient\"; there are default, strict"),
        ("versions = [3]", 1, "there is no LUKS version 3"),
        ("\n\nversions = []", 3, "accepts no header"),
        ("ciphers = \"all\"", 1, "expected \"any\" or a list of names"),
        ("ciphers = [\n  \"aes-xts-plain64\",\n  7,\n]", 3, "invalid type: integer `7`"),
        ("ciphers = [\"cipher_null-ecb\"]", 1, "allow-null-cipher = true"),
        ("\nkeyslot-ciphers = [\"capi:ecb(cipher_null)\"]", 2, "allow-null-cipher = true"),
        ("allow-null-cipher = \"yes\"", 1, "invalid type: string \"yes\", expected a boolean"),
        ("min-key-bits = -1", 1, "-1"),
        ("\n# long\nmin-key-bits = 9999", 3, "no key has 9999 bits"),
        ("hashes = [\"sha256\", \"sha257\"]", 1, "hash \"sha257\" is not known"),
        ("requirements = [\"\"]", 1, "a name of 0 bytes"),
        ("segment-types = [\"crypto\"]", 1, "unknown name \"crypto\"; there are crypt"),
        ("[kdf]\ntypes = [\"scrypt\"]", 2, "unknown name \"scrypt\"; there are argon2id"),
        ("[kdf]\n\nargon2-passes = { min = 5, max = 4 }", 3, "nothing is at least 5 and at most 4"),
        ("[kdf]\nargon2-passes = { min = 5 }", 2, "missing field `max`"),
        ("[kdf]\nargon2-passes = { min = 5, max = 6, typical = 5 }", 2, "unknown field `typical`"),
        ("[kdf]\npbkdf2-iterations = { min = 0, max = 4294967296 }", 2, "4294967296"),
        ("[kdf]\nmemory = 1", 2, "unknown field `memory`"),
        ("[pins]\nepoch = -4", 2, "an epoch"),
        ("[pins]\nepoch = \"four\"", 2, "an epoch"),
        ("[pins]\nuuid = \"\"", 2, "no header has the UUID \"\""),
        ("[pins]\nuuid = \"a\"\nvolume-keys = [\"sha1:00\"]", 3, "hexadecimal digits"),
        ("[pins]\nvolume-keys = []", 2, "leave the key out"),
        ("[pins]\nsegments = 7", 2, "invalid type: integer `7`"),
        ("[pins]\nserial = 7", 2, "unknown field `serial`"),
        ("versions = [2]\nversions = [2]", 2, "duplicate key"),
        ("versions = [2", 1, ""),
        ("[pins", 1, ""),
        ("versions = [2]\n\n???", 3, ""),
    ] {
        match parse(bad, "file") {
            Err(SessionError::PolicyFile { name, line: Some(at), what }) => {
                assert_eq!((name.as_str(), at), ("file", line), "{bad}\n{what}");
                assert!(what.contains(words) && !what.contains('\n') && !what.is_empty(), "{bad}\n{what}");
            }
            other => panic!("{bad}\n{other:?}"),
        }
    }
}

#[test]
fn raised_pins_leave_everything_else_as_it_was() {
    let text =
        "# mine\npreset = \"default\"   # soft\n\n[pins]\nepoch = 3 # old\n\n# costs\n[kdf]\ntypes = [\"argon2id\"]\n";
    let raised = with_pins(text, "file", &pins()).unwrap();
    assert!(raised.starts_with("# mine\npreset = \"default\"   # soft\n\n[pins]\nuuid ="), "{raised}");
    assert!(raised.ends_with("\n[kdf]\ntypes = [\"argon2id\"]\n") && !raised.contains("old"), "{raised}");
    assert_eq!(parse(&raised, "file").unwrap(), parse(text, "file").unwrap().pinned(pins()));
    assert_eq!(with_pins(&raised, "file", &pins()).unwrap(), raised, "again changes nothing");
    let fresh = with_pins(&preset_file("strict"), "strict", &pins()).unwrap();
    assert_eq!(parse(&fresh, "strict").unwrap(), Policy::strict().pinned(pins()));
    for elsewhere in ["pins.epoch = 3", "pins = { epoch = 3 }"] {
        let error = with_pins(elsewhere, "file", &pins()).unwrap_err().to_string();
        assert!(error.contains("by hand"), "{error}");
    }
}

#[test]
fn presets_and_files_are_loaded_and_a_long_or_binary_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.toml");
    assert_eq!(load(Path::new("strict")).unwrap(), Policy::strict());
    assert!(matches!(load(&path), Err(SessionError::Io { .. })));
    std::fs::write(&path, "preset = \"default\"").unwrap();
    assert_eq!(load(&path).unwrap(), Policy::default_preset().named(path.display().to_string()));
    for (content, words) in [(vec![b'#'; 40_000], "longer than"), (vec![0xff; 8], "no UTF-8")] {
        std::fs::write(&path, content).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
