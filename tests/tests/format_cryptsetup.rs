//! cryptsetup accepts what we write: formats with many options, every keyslot edit, 32 keyslots; and with the same options
//! both write the same metadata, member for member.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use block::{BlockIo, Bytes, Direct, FileDisk, OpenMode};
use luks::calibrate::{Effort, KdfChoice, KdfCost};
use luks::format::format;
use luks::{
    Container, Error, FormatParams, HashAlg, KdfParams, KeyslotId, LastSlot, Limits, NewKdf, NewKeyslot, Purpose,
    UnlockRequest,
};
use promises::skip::needs_programs;
use secret::Secret;
use session::SystemEnv;

const PASSPHRASE: &str = "first passphrase";
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

type FileContainer = Container<Arc<FileDisk>, Arc<FileDisk>>;

/// A folder with an image, and a header of its own if that is detached.
struct Image {
    folder: tempfile::TempDir,
    detached: bool,
}

impl Image {
    fn new(size: u64, detached: bool) -> Image {
        let image = Image { folder: tempfile::tempdir().unwrap(), detached };
        std::fs::File::create(image.path("image")).unwrap().set_len(size).unwrap();
        image
    }

    /// Formatted by us.
    fn formatted(params: &FormatParams, size: u64) -> Image {
        let image = Image::new(size, params.detached);
        let data = image.disk("image");
        if params.detached {
            let file = std::fs::File::create(image.path("header")).unwrap();
            let plan = luks::format::plan(params, &data.geometry(), &data.geometry()).unwrap();
            file.set_len(plan.header_size().0).unwrap();
        }
        let header = image.disk(image.header_name());
        let header = format(&header, &data, &SystemEnv.env(), params, &secret(PASSPHRASE)).unwrap();
        assert!(header.health().is_healthy());
        image
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn header_name(&self) -> &'static str {
        if self.detached { "header" } else { "image" }
    }

    fn disk(&self, name: &str) -> Arc<FileDisk> {
        let mode = OpenMode { read_only: false, direct: Direct::Never, exclusive: false };
        Arc::new(FileDisk::open(&self.path(name), &mode).unwrap())
    }

    fn open(&self) -> FileContainer {
        Container::open(self.disk(self.header_name()), self.disk("image"), Limits::default()).unwrap()
    }

    /// Whether our own code opens it.
    fn opens(&self, passphrase: &str, keyslot: Option<u32>) -> Result<Vec<u8>, Error> {
        let request = UnlockRequest { keyslot: keyslot.map(KeyslotId), purpose: Purpose::AnyDigest };
        let key = self.open().unlock(&SystemEnv.env(), &request, &secret(passphrase))?;
        Ok(key.expose().to_vec())
    }

    fn key_file(&self, passphrase: &str) -> PathBuf {
        let path = self.path("key").with_extension(passphrase.replace(' ', "-"));
        std::fs::write(&path, passphrase).unwrap();
        path
    }

    fn cryptsetup(&self, verb: &str, options: &[&str], operands: &[&Path]) -> Output {
        let mut command = Command::new("cryptsetup");
        command.args(["-q", verb]).args(options).arg(self.path(self.header_name())).args(operands);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn must(&self, verb: &str, options: &[&str], operands: &[&Path]) -> String {
        let output = self.cryptsetup(verb, options, operands);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cryptsetup {verb} {options:?}: {words}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What cryptsetup says of a passphrase: 0 for yes, 2 for no.
    fn tested(&self, passphrase: &str, keyslot: Option<u32>) -> Option<i32> {
        let key_file = self.key_file(passphrase);
        let slot = keyslot.map(|id| id.to_string());
        let mut options = vec!["--test-passphrase", "--key-file", key_file.to_str().unwrap()];
        options.extend(slot.iter().flat_map(|id| ["--key-slot", id.as_str()]));
        self.cryptsetup("open", &options, &[]).status.code()
    }

    fn dump(&self) -> String {
        self.must("luksDump", &[], &[])
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.must("luksDump", &["--dump-json-metadata"], &[])).unwrap()
    }

    /// The volume key as cryptsetup sees it.
    fn volume_key(&self) -> Vec<u8> {
        let (key_file, out) = (self.key_file(PASSPHRASE), self.path("volume-key"));
        let options =
            ["--dump-volume-key", "--key-file", key_file.to_str().unwrap(), "--volume-key-file", out.to_str().unwrap()];
        self.must("luksDump", &options, &[]);
        let key = std::fs::read(&out).unwrap();
        std::fs::remove_file(out).unwrap();
        key
    }
}

fn secret(text: &str) -> Secret {
    Secret::copy_of(text.as_bytes()).unwrap()
}

fn has_cryptsetup(test: &str) -> bool {
    needs_programs(test, &["cryptsetup"])
}

fn cheap() -> NewKdf {
    NewKdf::Given(KdfParams::minimal_for_random_key())
}

fn params() -> FormatParams {
    FormatParams { kdf: cheap(), ..FormatParams::default() }
}

fn forced(choice: KdfChoice, iterations: u32, argon2: Option<(u32, u32)>) -> NewKdf {
    let effort = Effort::Forced { iterations };
    let (memory_kib, parallel) = (argon2.map(|cost| cost.0), argon2.map(|cost| cost.1));
    NewKdf::Calibrate(choice, KdfCost { effort, memory_kib, parallel, ..KdfCost::default() })
}

fn cheap_slot(id: Option<u32>) -> NewKeyslot {
    NewKeyslot { id: id.map(KeyslotId), ..NewKeyslot::new(KdfParams::minimal_for_random_key()) }
}

/// cryptsetup reads, opens and edits it; we read what it edited.
fn check_both_ways(image: &Image, what: &str) {
    let dump = image.dump();
    assert!(dump.lines().any(|line| line.starts_with("Epoch:") && line.ends_with("\t3")), "{what}: {dump}");
    assert_eq!(image.tested(PASSPHRASE, None), Some(0), "{what}");
    assert_eq!(image.tested("wrong", None), Some(2), "{what}");
    assert!(image.opens(PASSPHRASE, None).unwrap() == image.volume_key(), "{what}: another volume key");
    let (old, new) = (image.key_file(PASSPHRASE), image.key_file("added by cryptsetup"));
    let authorised = ["--key-file", old.to_str().unwrap(), "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    image.must("luksAddKey", &authorised, &[&new]);
    image.opens("added by cryptsetup", None).unwrap();
    image.must("luksKillSlot", &[], &[Path::new("0")]);
    assert!(matches!(image.opens(PASSPHRASE, None), Err(Error::NoKey { .. })), "{what}");
    image.opens("added by cryptsetup", None).unwrap();
}

#[test]
fn cryptsetup_takes_every_format_option() {
    if !has_cryptsetup("cryptsetup_takes_every_format_option") {
        return;
    }
    let cases: [(&str, FormatParams); 13] = [
        ("defaults", params()),
        (
            "pbkdf2 sha512",
            FormatParams {
                kdf: forced(KdfChoice::Pbkdf2 { hash: HashAlg::Sha512 }, 2000, None),
                hash: "sha512".into(),
                ..params()
            },
        ),
        ("argon2i", FormatParams { kdf: forced(KdfChoice::Argon2i, 4, Some((64, 2))), ..params() }),
        ("argon2id", FormatParams { kdf: forced(KdfChoice::Argon2id, 5, Some((1027, 3))), ..params() }),
        ("xts 256", FormatParams { key_size_bits: Some(256), sector_size: Some(512), ..params() }),
        ("cbc essiv", FormatParams { cipher: "aes-cbc-essiv:sha256".into(), sector_size: Some(1024), ..params() }),
        (
            "cbc 192",
            FormatParams {
                cipher: "aes-cbc-plain64".into(),
                key_size_bits: Some(192),
                sector_size: Some(2048),
                ..params()
            },
        ),
        (
            "keyslot cipher",
            FormatParams {
                keyslot_encryption: Some(("aes-cbc-essiv:sha256".into(), 128)),
                sector_size: Some(4096),
                ..params()
            },
        ),
        (
            "texts",
            FormatParams {
                label: Some("x".repeat(47)),
                subsystem: Some("a subsystem".into()),
                uuid: Some("6d3d1e0f-1111-4222-8333-abcdefabcdef".into()),
                ..params()
            },
        ),
        ("data offset", FormatParams { data_offset: Some(Bytes(4 * MIB)), ..params() }),
        ("keyslots size", FormatParams { keyslots_size: Some(Bytes(512 * KIB)), ..params() }),
        ("detached", FormatParams { detached: true, ..params() }),
        ("detached with offset", FormatParams { detached: true, data_offset: Some(Bytes(2 * MIB)), ..params() }),
    ];
    for (what, params) in cases {
        let image = Image::formatted(&params, 18 * MIB);
        if what == "texts" {
            let dump = image.dump();
            assert!(dump.contains(&"x".repeat(47)) && dump.contains("a subsystem"), "{dump}");
            assert!(dump.contains("6d3d1e0f-1111-4222-8333-abcdefabcdef"), "{dump}");
        }
        check_both_ways(&image, what);
    }
}

#[test]
fn cryptsetup_takes_every_metadata_size() {
    if !has_cryptsetup("cryptsetup_takes_every_metadata_size") {
        return;
    }
    for exponent in 0..9 {
        let params = FormatParams { metadata_size: Some(Bytes((16 * KIB) << exponent)), ..params() };
        check_both_ways(&Image::formatted(&params, 18 * MIB), &format!("metadata of {} KiB", 16 << exponent));
    }
}

/// The metadata with everything random or measured taken out.
fn without_chance(mut json: serde_json::Value) -> String {
    fn mask(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(map) => {
                for (name, value) in map {
                    if value.is_string() && ["salt", "digest"].contains(&name.as_str()) {
                        *value = "random".into();
                    }
                    mask(value);
                }
            }
            serde_json::Value::Array(list) => list.iter_mut().for_each(mask),
            _ => {}
        }
    }
    mask(&mut json);
    serde_json::to_string_pretty(&json).unwrap()
}

/// Same options, same metadata: sizes, offsets, member order.
#[test]
fn both_write_the_same_metadata() {
    if !has_cryptsetup("both_write_the_same_metadata") {
        return;
    }
    let odd_size = 32 * MIB + 512;
    let cases: [(u64, FormatParams, &[&str]); 9] = [
        (64 * MIB, params(), &[]),
        (odd_size, params(), &[]),
        (64 * MIB, FormatParams { metadata_size: Some(Bytes(4 * MIB)), ..params() }, &["--luks2-metadata-size", "4M"]),
        (
            64 * MIB,
            FormatParams { keyslots_size: Some(Bytes(20 * MIB)), ..params() },
            &["--luks2-keyslots-size", "20M"],
        ),
        (
            64 * MIB,
            FormatParams { keyslots_size: Some(Bytes(256 * KIB)), ..params() },
            &["--luks2-keyslots-size", "256K"],
        ),
        (64 * MIB, FormatParams { data_offset: Some(Bytes(4 * MIB)), ..params() }, &["--offset", "8192"]),
        (64 * MIB, FormatParams { cipher: "aes-cbc-essiv:sha256".into(), ..params() }, &["-c", "aes-cbc-essiv:sha256"]),
        (64 * MIB, FormatParams { keyslot: KeyslotId(5), ..params() }, &["--key-slot", "5"]),
        (64 * MIB, FormatParams { detached: true, ..params() }, &[]),
    ];
    for (size, params, options) in cases {
        let ours = Image::formatted(&params, size);
        let theirs = Image::new(size, params.detached);
        let (key_file, image) = (theirs.key_file(PASSPHRASE), theirs.path("image"));
        let mut command = Command::new("cryptsetup");
        command.args(["-q", "luksFormat", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
        if params.detached {
            command.arg("--header").arg(theirs.path("header"));
        }
        let output = command.args(options).arg(image).arg(key_file).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(without_chance(ours.json()), without_chance(theirs.json()), "{options:?}");
        let length = |image: &Image| std::fs::metadata(image.path(image.header_name())).unwrap().len();
        assert_eq!(length(&ours), length(&theirs), "{options:?}");
    }
}

#[test]
fn cryptsetup_follows_every_edit() {
    if !has_cryptsetup("cryptsetup_follows_every_edit") {
        return;
    }
    let image = Image::formatted(&params(), 18 * MIB);
    let system = SystemEnv;
    let env = system.env();
    let mut container = image.open();
    let key = container.unlock(&env, &UnlockRequest::default(), &secret(PASSPHRASE)).unwrap();

    container.keyslot_add(&env, &key, &secret("second"), &cheap_slot(Some(3))).unwrap();
    assert_eq!(image.tested("second", Some(3)), Some(0));
    let argon2 = luks::calibrate::calibrate(
        &env,
        KdfChoice::Argon2id,
        &KdfCost {
            effort: Effort::Forced { iterations: 4 },
            memory_kib: Some(64),
            parallel: Some(1),
            ..KdfCost::default()
        },
    );
    let argon2 = NewKeyslot::new(argon2.unwrap());
    assert_eq!(container.keyslot_add(&env, &key, &secret("third"), &argon2).unwrap(), KeyslotId(1));
    assert_eq!(image.tested("third", Some(1)), Some(0));

    let changed = container.keyslot_change(&env, &secret("second"), None, &secret("changed"), &argon2).unwrap();
    assert_eq!(changed, KeyslotId(3));
    assert_eq!((image.tested("changed", Some(3)), image.tested("second", None)), (Some(0), Some(2)));

    container.keyslot_kill(&env, KeyslotId(0), LastSlot::Refuse).unwrap();
    assert_eq!((image.tested(PASSPHRASE, None), image.tested("third", None)), (Some(2), Some(0)));
    assert_eq!(container.keyslot_remove(&env, &secret("third"), LastSlot::Refuse).unwrap(), KeyslotId(1));
    assert_eq!((image.tested("third", None), image.tested("changed", None)), (Some(2), Some(0)));

    container.set_label(Some("a label")).unwrap();
    container.set_subsystem(Some("a subsystem")).unwrap();
    container.set_label(Some("another")).unwrap();
    container.set_uuid("11111111-2222-4333-8444-555555555555").unwrap();
    let dump = image.dump();
    for line in ["Label:         \tanother", "Subsystem:     \ta subsystem", "11111111-2222-4333-8444-555555555555"] {
        assert!(dump.contains(line), "{line:?} in {dump}");
    }

    // And a change by cryptsetup is seen, not overwritten.
    image.must("config", &["--label", "theirs"], &[]);
    assert!(matches!(container.set_label(Some("ours")), Err(Error::ConcurrentUpdate { .. })));
    container.reload().unwrap();
    assert_eq!(container.header().label(), "theirs");
}

#[test]
fn thirty_two_keyslots_all_open_on_both_sides() {
    if !has_cryptsetup("thirty_two_keyslots_all_open_on_both_sides") {
        return;
    }
    let image = Image::formatted(&FormatParams { key_size_bits: Some(256), ..params() }, 18 * MIB);
    let system = SystemEnv;
    let mut container = image.open();
    let key = container.unlock(&system.env(), &UnlockRequest::default(), &secret(PASSPHRASE)).unwrap();
    for id in 1..32 {
        let added = container.keyslot_add(&system.env(), &key, &secret(&format!("slot {id}")), &cheap_slot(None));
        assert_eq!(added.unwrap(), KeyslotId(id));
    }
    let more = container.keyslot_add(&system.env(), &key, &secret("more"), &cheap_slot(None));
    assert!(matches!(more, Err(Error::NoFreeKeyslot { max: 32 })));
    for id in 1..32 {
        let passphrase = format!("slot {id}");
        assert_eq!(image.tested(&passphrase, Some(id)), Some(0), "{passphrase}");
        image.opens(&passphrase, Some(id)).unwrap();
    }
    assert_eq!(image.dump().matches(": luks2\n").count(), 32);
}
