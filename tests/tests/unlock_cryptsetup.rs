//! Keyslots that cryptsetup wrote open here, and give the very volume key that cryptsetup dumps: every key derivation
//! function, every hash it knows, several ciphers and key lengths, priorities, unbound slots and wrong passphrases.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use block::{Bytes, MemDisk};
use luks::env::{Clock, Env, EnvError, MemoryBudget, Rng};
use luks::{Error, Header, KeyslotId, Limits, Purpose, UnlockRequest, VolumeKey};
use promises::skip::needs_programs;
use secret::Secret;

const PASSPHRASE: &[u8] = b"correct horse \xff\x00 battery";
const CHEAP_PBKDF2: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

/// What cryptsetup calls its hashes; it is asked which of them its crypto library has.
const HASHES: [&str; 24] = [
    "sha1",
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "sha512-224",
    "sha512-256",
    "sha3-224",
    "sha3-256",
    "sha3-384",
    "sha3-512",
    "ripemd160",
    "whirlpool",
    "blake2b-160",
    "blake2b-256",
    "blake2b-384",
    "blake2b-512",
    "blake2s-128",
    "blake2s-160",
    "blake2s-224",
    "blake2s-256",
    "SHA256",
    "sha-512",
    "rmd160",
];
/// Those that every build of cryptsetup has.
const HASHES_ALWAYS: [&str; 5] = ["sha1", "sha224", "sha256", "sha384", "sha512"];

struct Machine;

impl Rng for Machine {
    fn fill(&self, buf: &mut [u8]) -> Result<(), EnvError> {
        getrandom::fill(buf).map_err(|error| EnvError::Random { len_bytes: buf.len(), reason: error.to_string() })
    }
}

impl Clock for Machine {
    fn monotonic(&self) -> Duration {
        static BEGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        BEGIN.get_or_init(Instant::now).elapsed()
    }
    fn process_cpu(&self) -> Duration {
        self.monotonic()
    }
}

impl MemoryBudget for Machine {
    fn total(&self) -> Bytes {
        Bytes::from_mib(4096)
    }
    fn available(&self) -> Bytes {
        Bytes::from_mib(512)
    }
    fn free_without_swap(&self) -> Option<Bytes> {
        None
    }
    fn online_cpus(&self) -> u32 {
        2
    }
}

const ENV: Env<'static> = Env { rng: &Machine, clock: &Machine, memory: &Machine };

/// An image of cryptsetup's and the file with its passphrase, in a folder of their own.
struct Image {
    folder: tempfile::TempDir,
}

impl Image {
    fn new() -> Image {
        let image = Image { folder: tempfile::tempdir().unwrap() };
        std::fs::write(image.key_file(), PASSPHRASE).unwrap();
        image
    }

    /// `None` when cryptsetup does not know the algorithm.
    fn formatted(options: &[&str]) -> Option<Image> {
        let image = Image::new();
        std::fs::File::create(image.path()).unwrap().set_len(17 << 20).unwrap();
        let output = image.cryptsetup(&["luksFormat", "--type", "luks2"], options, &[image.path(), image.key_file()]);
        if output.status.success() {
            return Some(image);
        }
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(words.contains("not supported"), "cryptsetup {options:?}: {words}");
        None
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn key_file(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    fn cryptsetup(&self, verb: &[&str], options: &[&str], paths: &[PathBuf]) -> Output {
        let mut command = Command::new("cryptsetup");
        command.arg("-q").args(verb).args(options).args(paths).stdin(Stdio::null());
        command.output().expect("cryptsetup runs")
    }

    fn must(&self, verb: &[&str], options: &[&str], paths: &[PathBuf]) {
        let output = self.cryptsetup(verb, options, paths);
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cryptsetup {verb:?} {options:?}: {words}");
    }

    /// Adds a keyslot for `passphrase`.
    fn add_key(&self, passphrase: &[u8], options: &[&str]) {
        let new = self.folder.path().join("new key");
        std::fs::write(&new, passphrase).unwrap();
        let key_file = self.key_file();
        let authorised = [&["--key-file", key_file.to_str().unwrap()], options].concat();
        self.must(&["luksAddKey"], &authorised, &[self.path(), new]);
    }

    /// The volume key as cryptsetup sees it.
    fn volume_key(&self) -> Vec<u8> {
        let out = self.folder.path().join("volume key");
        let (key_file, out_name) = (self.key_file(), out.to_str().unwrap().to_owned());
        let options = ["--dump-volume-key", "--key-file", key_file.to_str().unwrap(), "--volume-key-file", &out_name];
        self.must(&["luksDump"], &options, &[self.path()]);
        std::fs::read(Path::new(&out)).unwrap()
    }

    fn disk(&self) -> MemDisk {
        MemDisk::from_bytes(&std::fs::read(self.path()).unwrap())
    }

    fn unlock_with(&self, request: &UnlockRequest, passphrase: &[u8], limits: &Limits) -> Result<VolumeKey, Error> {
        let disk = self.disk();
        let header: Header = luks::load(&disk, &Limits::default()).unwrap();
        let passphrase = Secret::copy_of(passphrase).unwrap();
        luks::unlock(&disk, &header, &ENV, limits, request, &passphrase)
    }

    fn unlock(&self, request: &UnlockRequest, passphrase: &[u8]) -> Result<VolumeKey, Error> {
        self.unlock_with(request, passphrase, &Limits::default())
    }
}

fn slot(id: u32, purpose: Purpose) -> UnlockRequest {
    UnlockRequest { keyslot: Some(KeyslotId(id)), purpose }
}

#[test]
fn every_kdf_cipher_and_key_size_gives_the_same_volume_key() {
    if !needs_programs("every_kdf_cipher_and_key_size_gives_the_same_volume_key", &["cryptsetup"]) {
        return;
    }
    let kdfs: [&[&str]; 6] = [
        &CHEAP_PBKDF2,
        &["--pbkdf", "argon2i", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32", "--pbkdf-parallel", "1"],
        &["--pbkdf", "argon2i", "--pbkdf-force-iterations", "5", "--pbkdf-memory", "1027", "--pbkdf-parallel", "3"],
        &["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32", "--pbkdf-parallel", "4"],
        &["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "65536", "--pbkdf-parallel", "4"],
        &["--pbkdf", "argon2id", "--pbkdf-force-iterations", "7", "--pbkdf-memory", "2000", "--pbkdf-parallel", "2"],
    ];
    let ciphers: [&[&str]; 5] = [
        &["--cipher", "aes-xts-plain64", "--key-size", "512"],
        &["--cipher", "aes-xts-plain64", "--key-size", "256"],
        &["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"],
        &["--cipher", "aes-cbc-essiv:sha256", "--key-size", "128", "--sector-size", "512"],
        &["--cipher", "aes-xts-plain64", "--keyslot-cipher", "aes-cbc-essiv:sha256", "--keyslot-key-size", "128"],
    ];
    // Each KDF once with the default cipher, each cipher once with a cheap KDF.
    let cases = kdfs.iter().map(|kdf| (*kdf, ciphers[0])).chain(ciphers.iter().map(|cipher| (kdfs[1], *cipher)));
    for (kdf, cipher) in cases {
        let options = [kdf, cipher].concat();
        let image = Image::formatted(&options).unwrap_or_else(|| panic!("cryptsetup refuses {options:?}"));
        let key = image.unlock(&UnlockRequest::default(), PASSPHRASE);
        let key = key.unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert!(key.expose() == image.volume_key(), "{options:?}: another volume key");
        assert_eq!(key.keyslot(), Some(KeyslotId(0)));
        let wrong = image.unlock(&UnlockRequest::default(), b"correct horse");
        assert!(matches!(&wrong, Err(Error::NoKey { tried, broken }) if tried.len() == 1 && broken.is_empty()));
    }
}

#[test]
fn every_hash_that_cryptsetup_has_opens() {
    if !needs_programs("every_hash_that_cryptsetup_has_opens", &["cryptsetup"]) {
        return;
    }
    let mut opened = Vec::new();
    for hash in HASHES {
        let Some(image) = Image::formatted(&[&CHEAP_PBKDF2[..], &["--hash", hash]].concat()) else { continue };
        let key = image.unlock(&UnlockRequest::default(), PASSPHRASE);
        let key = key.unwrap_or_else(|error| panic!("{hash}: {error}"));
        assert!(key.expose() == image.volume_key(), "{hash}: another volume key");
        opened.push(hash);
    }
    println!("opened: {}", opened.join(" "));
    assert!(HASHES_ALWAYS.iter().all(|hash| opened.contains(hash)), "{opened:?}");
}

#[test]
fn slots_priorities_and_unbound_keys_are_told_apart() {
    if !needs_programs("slots_priorities_and_unbound_keys_are_told_apart", &["cryptsetup"]) {
        return;
    }
    let image = Image::formatted(&CHEAP_PBKDF2).unwrap();
    image.add_key(PASSPHRASE, &[&CHEAP_PBKDF2[..], &["--key-slot", "3"]].concat());
    image.add_key(b"ignored", &[&CHEAP_PBKDF2[..], &["--key-slot", "7"]].concat());
    let unbound = [&CHEAP_PBKDF2[..], &["--unbound", "--key-slot", "9", "--key-size", "256"]].concat();
    let own_key = image.folder.path().join("unbound");
    std::fs::write(&own_key, b"unbound").unwrap();
    image.must(&["luksAddKey"], &unbound, &[image.path(), own_key]);

    let any = UnlockRequest::default();
    let found = |request: &UnlockRequest, passphrase: &[u8]| image.unlock(request, passphrase).unwrap().keyslot();
    assert_eq!(found(&any, PASSPHRASE), Some(KeyslotId(0)));
    assert_eq!(found(&slot(3, Purpose::DefaultSegment), PASSPHRASE), Some(KeyslotId(3)));
    assert_eq!(found(&any, b"ignored"), Some(KeyslotId(7)), "still at normal priority");

    image.must(&["config"], &["--priority", "prefer", "--key-slot", "3"], &[image.path()]);
    image.must(&["config"], &["--priority", "ignore", "--key-slot", "7"], &[image.path()]);
    assert_eq!(found(&any, PASSPHRASE), Some(KeyslotId(3)), "preferred slots come first");
    assert!(matches!(image.unlock(&any, b"ignored"), Err(Error::NoKey { tried, .. }) if tried.len() == 2));
    assert_eq!(found(&slot(7, Purpose::DefaultSegment), b"ignored"), Some(KeyslotId(7)), "by its number");

    assert!(matches!(image.unlock(&any, b"unbound"), Err(Error::NoKey { .. })), "opens no segment");
    let anything = UnlockRequest { keyslot: None, purpose: Purpose::AnyDigest };
    let key = image.unlock(&anything, b"unbound").unwrap();
    assert_eq!((key.keyslot(), key.len_bytes()), (Some(KeyslotId(9)), 32));
    let as_segment = image.unlock(&slot(9, Purpose::DefaultSegment), b"unbound");
    assert!(matches!(as_segment, Err(Error::KeyslotUnbound { keyslot: KeyslotId(9) })));
    let missing = image.unlock(&slot(5, Purpose::AnyDigest), PASSPHRASE);
    assert!(matches!(missing, Err(Error::KeyslotMissing { keyslot: KeyslotId(5) })));
}

#[test]
fn a_slot_over_the_limits_is_named_and_does_not_hide_the_next() {
    if !needs_programs("a_slot_over_the_limits_is_named_and_does_not_hide_the_next", &["cryptsetup"]) {
        return;
    }
    let dear =
        ["--pbkdf", "argon2id", "--pbkdf-force-iterations", "9", "--pbkdf-memory", "64", "--pbkdf-parallel", "1"];
    let image = Image::formatted(&dear).unwrap();
    let limits = Limits { kdf_time: 8, ..Limits::default() };
    match image.unlock_with(&UnlockRequest::default(), PASSPHRASE, &limits) {
        Err(Error::NoUsableKeyslot { broken }) => {
            assert_eq!(broken.len(), 1);
            assert!(
                matches!(&*broken[0].reason, Error::KdfLimit { parameter: "time", value: 9, max: 8, .. }),
                "{}",
                broken[0]
            );
        }
        other => panic!("{other:?}"),
    }
    image.add_key(PASSPHRASE, &CHEAP_PBKDF2);
    let key = image.unlock_with(&UnlockRequest::default(), PASSPHRASE, &limits).unwrap();
    assert_eq!(key.keyslot(), Some(KeyslotId(1)));
    match image.unlock_with(&UnlockRequest::default(), b"wrong", &limits) {
        Err(Error::NoKey { tried, broken }) => assert_eq!((tried, broken.len()), (vec![KeyslotId(1)], 1)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_presented_volume_key_is_judged_by_the_digest() {
    if !needs_programs("a_presented_volume_key_is_judged_by_the_digest", &["cryptsetup"]) {
        return;
    }
    let image = Image::formatted(&[&CHEAP_PBKDF2[..], &["--key-size", "256"]].concat()).unwrap();
    let header = luks::load(&image.disk(), &Limits::default()).unwrap();
    let judge = |bytes: &[u8]| {
        let key = Secret::copy_of(bytes).unwrap();
        luks::verify_volume_key(&header, &Limits::default(), luks::DigestId(0), key)
    };
    let mut key = image.volume_key();
    assert_eq!(judge(&key).unwrap().keyslot(), None);
    // HMAC pads its key with zeros, so only the length tells this one apart.
    let longer = [&key[..], &[0; 32]].concat();
    assert!(matches!(judge(&longer), Err(Error::KeyRefused { .. })));
    key[31] ^= 0x80;
    assert!(matches!(judge(&key), Err(Error::KeyRefused { .. })));
}

/// Set for the process that unlocks and then waits to be looked at: the path of the image's folder.
const CHILD_VARIABLE: &str = "LUKS_TEST_UNLOCKED_CHILD";
const LEAK_TEST: &str = "after_an_unlock_the_key_is_only_in_protected_memory";

/// Unlocks, says so, and holds the key until its input ends.
fn be_the_unlocked_child(folder: &Path) {
    let disk = MemDisk::from_bytes(&std::fs::read(folder.join("image")).unwrap());
    let header = luks::load(&disk, &Limits::default()).unwrap();
    let passphrase = Secret::copy_of(PASSPHRASE).unwrap();
    let key = luks::unlock(&disk, &header, &ENV, &Limits::default(), &UnlockRequest::default(), &passphrase).unwrap();
    println!("unlocked");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    drop(key);
}

/// The whole of each secret and each half of it.
fn needles(secrets: &[&[u8]]) -> Vec<Vec<u8>> {
    let halves = |secret: &[u8]| {
        let (first, second) = secret.split_at(secret.len() / 2);
        [secret.to_vec(), first.to_vec(), second.to_vec()]
    };
    secrets.iter().flat_map(|secret| halves(secret)).collect()
}

/// No copy on a dead stack, in a freed allocation or in Argon2's memory: the memory of a process that has just unlocked
/// is searched from outside for the volume key and for the key that the KDF gave.
#[test]
fn after_an_unlock_the_key_is_only_in_protected_memory() {
    use std::io::BufRead as _;
    if let Some(folder) = std::env::var_os(CHILD_VARIABLE) {
        return be_the_unlocked_child(Path::new(&folder));
    }
    if !needs_programs(LEAK_TEST, &["cryptsetup"]) {
        return;
    }
    let argon2 =
        ["--pbkdf", "argon2id", "--pbkdf-force-iterations", "4", "--pbkdf-memory", "2048", "--pbkdf-parallel", "4"];
    let sha3 = [&CHEAP_PBKDF2[..], &["--hash", "sha3-256"]].concat();
    let blake2 = [&CHEAP_PBKDF2[..], &["--hash", "blake2b-512"]].concat();
    let sha512 = [&CHEAP_PBKDF2[..], &["--hash", "sha512"]].concat();
    for options in [&argon2[..], &CHEAP_PBKDF2[..], &sha512, &sha3, &blake2] {
        let Some(image) = Image::formatted(options) else { continue };
        let header = luks::load(&image.disk(), &Limits::default()).unwrap();
        let kdf = &header.metadata().keyslots.get(KeyslotId(0)).unwrap().luks2().unwrap().kdf;
        let passphrase = Secret::copy_of(PASSPHRASE).unwrap();
        let area_key = luks::kdf::derive(&ENV, &Limits::default(), kdf, &passphrase, 64).unwrap();
        let volume_key = image.volume_key();
        let needles = needles(&[&volume_key, area_key.expose()]);
        let needles: Vec<&[u8]> = needles.iter().map(Vec::as_slice).collect();

        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", LEAK_TEST, "--nocapture", "--test-threads=1"])
            .env(CHILD_VARIABLE, image.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Kept open to the end: the child goes on printing.
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.by_ref().map_while(Result::ok).any(|line| line.contains("unlocked")), "{options:?}: no unlock");
        let (findings, _) = promises::memory::search(child.id(), &needles).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();

        assert!(
            findings.iter().any(|finding| finding.needle == 0),
            "{options:?}: the search sees the key that is held"
        );
        for finding in findings {
            assert!(finding.mapping.undumped && finding.mapping.name.is_empty(), "{options:?}: {finding:x?}");
            assert!(finding.needle < 3, "{options:?}: the area's key outlived the unlock: {finding:x?}");
        }
    }
}
