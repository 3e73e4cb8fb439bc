//! LUKS1 both ways: what cryptsetup makes is unlocked and changed here, what is made here is unlocked, changed and dumped by
//! cryptsetup; and qemu's LUKS driver reads and writes the data of both.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where it fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use promises::Rig;
use promises::disk_model::xorshift;
use promises::rig::{run, succeed};
use promises::skip::{needs_programs, skip};

/// Cipher, key size in bits, hash.
const KINDS: [(&str, &str, &str); 5] = [
    ("aes-xts-plain64", "512", "sha256"),
    ("aes-xts-plain64", "256", "sha1"),
    ("aes-cbc-essiv:sha256", "256", "sha512"),
    ("aes-cbc-plain", "128", "ripemd160"),
    ("aes-xts-plain64", "512", "whirlpool"),
];
const COST: [&str; 2] = ["--pbkdf-force-iterations", "1000"];
const UUID: &str = "3b31cbc7-8fc2-4c8f-9b1d-2ff36bd8b6a1";
const SIZE: u64 = 4 << 20;
const DATA_BYTES: usize = 1 << 20;

/// One image, two programs.
struct Pair {
    rig: Rig,
    image: PathBuf,
}

impl Pair {
    fn new(name: &str) -> Pair {
        let rig = Rig::new(name);
        for (file, passphrase) in [("first", "one"), ("second", "two"), ("third", "three")] {
            fs::write(rig.path(file), passphrase).unwrap();
        }
        let image = rig.path("image");
        fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        Pair { rig, image }
    }

    fn file(&self, name: &str) -> String {
        self.rig.path(name).display().to_string()
    }

    fn image(&self) -> String {
        self.image.display().to_string()
    }

    fn ours(&self, verb: &[&str], options: &[&str]) -> String {
        let output = succeed(self.rig.luksctl(verb).args(options));
        String::from_utf8(output.stdout).unwrap()
    }

    fn theirs(&self, action: &str, options: &[&str]) -> String {
        let output = succeed(Command::new("cryptsetup").args([action, "-q"]).args(options));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Both programs say that `key` opens exactly this keyslot, or none.
    fn opens(&self, key: &str, keyslot: Option<u32>) {
        let (image, key) = (self.image(), self.file(key));
        let mut ours = self.rig.luksctl(&["keyslot", "test", "--json", "--key-file", &key, &image]);
        let ours = run(&mut ours);
        let theirs =
            run(Command::new("cryptsetup").args(["open", "-v", "--test-passphrase", "--key-file", &key, &image]));
        match keyslot {
            None => assert_eq!((ours.status.code(), theirs.status.code()), (Some(2), Some(2)), "{key}"),
            Some(id) => {
                let found: serde_json::Value = serde_json::from_slice(&ours.stdout).unwrap();
                assert_eq!(found["keyslot"], id, "{key}");
                let words = String::from_utf8_lossy(&theirs.stdout).into_owned();
                assert!(words.contains(&format!("Key slot {id} unlocked")), "{key}: {words}");
            }
        }
    }

    /// Both programs print the same header.
    fn dumps_agree(&self) {
        let image = self.image();
        assert_eq!(self.ours(&["dump"], &[&image]), self.theirs("luksDump", &[&image]));
    }
}

fn random(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    (0..bytes).map(|_| u8::try_from(xorshift(&mut state) >> 56).unwrap()).collect()
}

/// Keyslots added, changed, removed, killed; the UUID set: by us, on an image of theirs.
fn change_by_us(pair: &Pair) {
    let (image, first, second, third) = (pair.image(), pair.file("first"), pair.file("second"), pair.file("third"));
    let add = |id: &str, new: &str| {
        pair.ours(&["keyslot", "add", "-q"], &[&COST[..], &["-S", id, "--key-file", &first, &image, new]].concat())
    };
    add("6", &second);
    pair.opens("second", Some(6));
    add("7", &third);
    pair.opens("third", Some(7));
    pair.ours(&["keyslot", "remove", "-q"], &["--key-file", &second, &image]);
    pair.opens("second", None);
    pair.ours(&["keyslot", "change", "-q"], &[&COST[..], &["--key-file", &third, &image, &second]].concat());
    pair.opens("second", Some(7));
    pair.opens("third", None);
    pair.dumps_agree();
    pair.ours(&["keyslot", "kill", "-q"], &["--key-file", &second, &image, "0"]);
    pair.opens("first", None);
    pair.ours(&["uuid", "-q"], &["--uuid", UUID, &image]);
    assert_eq!(pair.theirs("luksUUID", &[&image]).trim(), UUID);
    pair.dumps_agree();
    pair.opens("second", Some(7));
}

/// The same by them, on an image of ours.
fn change_by_them(pair: &Pair) {
    let (image, first, second, third) = (pair.image(), pair.file("first"), pair.file("second"), pair.file("third"));
    let add = |id: &str, new: &str| {
        pair.theirs("luksAddKey", &[&COST[..], &["-S", id, "--key-file", &first, &image, new]].concat())
    };
    add("6", &second);
    pair.opens("second", Some(6));
    add("1", &third);
    pair.theirs("luksRemoveKey", &["--key-file", &second, &image]);
    pair.opens("second", None);
    pair.theirs("luksChangeKey", &[&COST[..], &["-S", "1", "--key-file", &third, &image, &second]].concat());
    pair.opens("third", None);
    pair.dumps_agree();
    pair.theirs("luksKillSlot", &["--key-file", &second, &image, "0"]);
    pair.opens("first", None);
    pair.theirs("luksUUID", &["--uuid", UUID, &image]);
    assert_eq!(pair.ours(&["uuid"], &[&image]).trim(), UUID);
    pair.dumps_agree();
}

#[test]
fn with_all_keyslots_in_use_a_passphrase_is_changed_in_place() {
    let name = "with_all_keyslots_in_use_a_passphrase_is_changed_in_place";
    if !needs_programs(name, &["cryptsetup"]) {
        return;
    }
    let pair = Pair::new(name);
    let (image, first, third) = (pair.image(), pair.file("first"), pair.file("third"));
    pair.theirs("luksFormat", &[&COST[..], &["--type", "luks1", &image, &first]].concat());
    for id in 1..8 {
        let file = pair.rig.path(&format!("key{id}"));
        fs::write(&file, format!("passphrase {id}")).unwrap();
        pair.theirs("luksAddKey", &[&COST[..], &["--key-file", &first, &image, file.to_str().unwrap()]].concat());
    }
    let before = fs::read(&pair.image).unwrap();
    for id in [6, 2, 7] {
        let old = pair.file(&format!("key{id}"));
        let change = [&["keyslot", "change", "--key-file", &old, &image, &third][..], &COST].concat();
        let refused = run(&mut pair.rig.luksctl(&change));
        assert_eq!(refused.status.code(), Some(1));
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(words.contains("all 8 keyslots are in use") && words.contains("--in-place"), "{words}");
        assert!(fs::read(&pair.image).unwrap() == before, "a refused change wrote");
        succeed(pair.rig.luksctl(&change).arg("--in-place"));
        pair.opens("third", Some(id));
        pair.opens(&format!("key{id}"), None);
        for other in (1..8).filter(|other| *other != id) {
            pair.opens(&format!("key{other}"), Some(other));
        }
        pair.dumps_agree();
        fs::write(&pair.image, &before).unwrap();
    }
}

#[test]
fn what_cryptsetup_makes_is_unlocked_and_changed_here() {
    if !needs_programs("what_cryptsetup_makes_is_unlocked_and_changed_here", &["cryptsetup"]) {
        return;
    }
    for (cipher, bits, hash) in KINDS {
        let pair = Pair::new("luks1-theirs");
        let kind = ["--type", "luks1", "--cipher", cipher, "--key-size", bits, "--hash", hash];
        pair.theirs("luksFormat", &[&COST[..], &kind, &[&pair.image(), &pair.file("first")]].concat());
        pair.opens("first", Some(0));
        pair.opens("second", None);
        pair.dumps_agree();
        change_by_us(&pair);
    }
}

#[test]
fn what_is_made_here_is_unlocked_changed_and_dumped_by_cryptsetup() {
    if !needs_programs("what_is_made_here_is_unlocked_changed_and_dumped_by_cryptsetup", &["cryptsetup"]) {
        return;
    }
    for (cipher, bits, hash) in KINDS {
        let pair = Pair::new("luks1-ours");
        let kind = ["--type", "luks1", "--cipher", cipher, "--key-size", bits, "--hash", hash];
        pair.ours(&["format", "-q"], &[&COST[..], &kind, &[&pair.image(), &pair.file("first")]].concat());
        pair.opens("first", Some(0));
        pair.dumps_agree();
        change_by_them(&pair);
    }
}

#[test]
fn layouts_are_the_same_to_the_byte() {
    if !needs_programs("layouts_are_the_same_to_the_byte", &["cryptsetup"]) {
        return;
    }
    for options in [&[][..], &["--offset", "4040"], &["--offset", "6000", "-S", "6"], &["--key-size", "256"]] {
        let pair = Pair::new("luks1-layout");
        let theirs = pair.file("theirs");
        fs::File::create(&theirs).unwrap().set_len(SIZE).unwrap();
        let common = [&COST[..], &["--type", "luks1", "--uuid", UUID], options].concat();
        pair.theirs("luksFormat", &[&common[..], &[&theirs, &pair.file("first")]].concat());
        pair.ours(&["format", "-q"], &[&common[..], &[&pair.image(), &pair.file("first")]].concat());
        let [mut one, mut other] = [pair.image(), theirs].map(|path| fs::read(path).unwrap()[..592].to_vec());
        // Digest, salts and nothing else are random.
        for header in [&mut one, &mut other] {
            header[112..164].fill(0);
            (0..8).for_each(|id| header[208 + id * 48 + 8..][..32].fill(0));
        }
        assert_eq!(one, other, "{options:?}");
    }
}

#[test]
fn detached_headers_go_both_ways() {
    if !needs_programs("detached_headers_go_both_ways", &["cryptsetup"]) {
        return;
    }
    let pair = Pair::new("luks1-detached");
    let (header, first) = (pair.file("header"), pair.file("first"));
    let common = [&COST[..], &["--type", "luks1", "--header", &header]].concat();
    pair.ours(&["format", "-q"], &[&common[..], &[&pair.image(), &first]].concat());
    let ours = fs::metadata(&header).unwrap().len();
    pair.theirs("open", &["--test-passphrase", "--header", &header, "--key-file", &first, &pair.image()]);
    fs::remove_file(&header).unwrap();
    pair.theirs("luksFormat", &[&common[..], &[&pair.image(), &first]].concat());
    assert_eq!(fs::metadata(&header).unwrap().len(), ours);
    let data = pair.file("data");
    fs::write(&data, random(DATA_BYTES, 5)).unwrap();
    let place = ["--header", &header, "--key-file", &first];
    pair.ours(&["copy-in", "-q", "--force"], &[&place[..], &[&pair.image(), &data]].concat());
    let out = pair.file("out");
    pair.ours(&["copy-out"], &[&place[..], &[&pair.image(), &out]].concat());
    assert_eq!(fs::read(out).unwrap()[..DATA_BYTES], fs::read(data).unwrap());
    // Without its header the data would be the header.
    let alone = run(pair.rig.luksctl(&["copy-out", "--key-file", &first, &header]).arg(pair.file("out2")));
    assert_eq!(alone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&alone.stderr).contains("inside the header"), "{alone:?}");
}

/// qemu's name for an image under a passphrase.
fn qemu_options(image: &Path) -> String {
    format!("driver=luks,key-secret=secret,file.driver=file,file.filename={}", image.display())
}

fn qemu(program: &str, action: &[&str], pair: &Pair) -> Command {
    let mut command = Command::new(program);
    command.args(action).arg("--object").arg(format!("secret,id=secret,file={}", pair.file("first")));
    command
}

/// What qemu makes: its defaults, but for the time that it takes.
const QEMU_KIND: &str =
    "key-secret=secret,iter-time=10,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256";

/// Lets qemu make the image out of the data. It measures what PBKDF2 costs, and gives up where the kernel counts the
/// processor's time coarsely: then it is asked again, some times.
fn qemu_makes(pair: &Pair) -> bool {
    for _ in 0..30 {
        let mut convert = qemu("qemu-img", &["convert", "-f", "raw", "-O", "luks"], pair);
        let made = run(convert.args(["-o", QEMU_KIND, &pair.file("data"), &pair.image()]));
        if made.status.success() {
            return true;
        }
        let words = String::from_utf8_lossy(&made.stderr);
        assert!(words.contains("Unable to get accurate CPU usage"), "{words}");
    }
    false
}

#[test]
fn qemu_reads_and_writes_what_is_made_here() {
    if !needs_programs("qemu_reads_and_writes_what_is_made_here", &["qemu-img", "qemu-io"]) {
        return;
    }
    for (number, (cipher, bits, hash)) in KINDS.into_iter().filter(|kind| kind.2 != "whirlpool").enumerate() {
        let pair = Pair::new("luks1-qemu-reads");
        let (image, first, data) = (pair.image(), pair.file("first"), pair.file("data"));
        let kind = ["--type", "luks1", "--cipher", cipher, "--key-size", bits, "--hash", hash];
        pair.ours(&["format", "-q"], &[&COST[..], &kind, &[&image, &first]].concat());
        let mut expected = random(DATA_BYTES, number as u64 + 1);
        fs::write(&data, &expected).unwrap();
        pair.ours(&["copy-in", "-q", "--force"], &["--key-file", &first, &image, &data]);
        let plain = pair.file("plain");
        let mut convert = qemu("qemu-img", &["convert"], &pair);
        succeed(convert.arg("--image-opts").arg(qemu_options(&pair.image)).args(["-O", "raw", &plain]));
        assert_eq!(fs::read(&plain).unwrap()[..DATA_BYTES], expected, "{cipher}");

        let mut write = qemu("qemu-io", &["-c", "write -P 0x5a 4096 1536", "-c", "flush"], &pair);
        succeed(write.arg("--image-opts").arg(qemu_options(&pair.image)));
        expected[4096..4096 + 1536].fill(0x5a);
        let out = pair.file("out");
        pair.ours(&["copy-out"], &["--key-file", &first, &image, &out]);
        assert_eq!(fs::read(&out).unwrap()[..DATA_BYTES], expected, "{cipher}");
    }
}

#[test]
fn what_qemu_makes_is_read_written_and_changed_here() {
    if !needs_programs("what_qemu_makes_is_read_written_and_changed_here", &["qemu-img", "cryptsetup"]) {
        return;
    }
    let pair = Pair::new("luks1-qemu-makes");
    let (image, first, data) = (pair.image(), pair.file("first"), pair.file("data"));
    let mut expected = random(DATA_BYTES, 77);
    fs::write(&data, &expected).unwrap();
    if !qemu_makes(&pair) {
        return skip("what_qemu_makes_is_read_written_and_changed_here", "qemu cannot measure this processor");
    }
    let out = pair.file("out");
    pair.ours(&["copy-out"], &["--key-file", &first, &image, &out]);
    assert_eq!(fs::read(&out).unwrap(), expected);

    expected = random(DATA_BYTES, 78);
    fs::write(&data, &expected).unwrap();
    pair.ours(&["copy-in", "-q", "--force"], &["--key-file", &first, &image, &data]);
    let second = pair.file("second");
    pair.ours(&["keyslot", "add", "-q"], &[&COST[..], &["--key-file", &first, &image, &second]].concat());
    pair.opens("second", Some(1));
    pair.ours(&["keyslot", "kill", "-q"], &["--key-file", &second, &image, "0"]);
    fs::copy(&second, &first).unwrap();
    let plain = pair.file("plain");
    let mut convert = qemu("qemu-img", &["convert"], &pair);
    succeed(convert.arg("--image-opts").arg(qemu_options(&pair.image)).args(["-O", "raw", &plain]));
    assert_eq!(fs::read(&plain).unwrap(), expected);
}

#[test]
fn what_luks1_cannot_do_is_refused_by_name() {
    let pair = Pair::new("luks1-refused");
    let (image, first) = (pair.image(), pair.file("first"));
    pair.ours(&["format", "-q", "--type", "luks1"], &[&COST[..], &[&image, &first]].concat());
    let before = fs::read(&image).unwrap();
    let other = pair.file("other");
    let format = ["format", "-q", "--type", "luks1", "--size", "4M"];
    let refused: [(&[&str], &[&str], &str); 8] = [
        (&["label"], &["x"], "LUKS1 has no labels"),
        (&["dump", "--dump-json-metadata"], &[], "LUKS1 has no JSON"),
        (&["uuid", "--type", "luks2"], &[], "LUKS version 1, not 2"),
        (&["keyslot", "add", "-q", "--key-file", &first, "--pbkdf", "argon2id"], &[&first], "but PBKDF2"),
        (&[&format[..], &["--label", "x"]].concat(), &[], "LUKS1 has no labels"),
        (&[&format[..], &["--sector-size", "4096"]].concat(), &[], "512 bytes"),
        (&[&format[..], &["--pbkdf", "argon2i"]].concat(), &[], "but PBKDF2"),
        (&[&format[..], &["--luks2-metadata-size", "32k"]].concat(), &[], "metadata of another size"),
    ];
    for (verb, rest, says) in refused {
        let on = if verb[0] == "format" { &other } else { &image };
        let output = run(pair.rig.luksctl(verb).arg(on).args(rest));
        assert_eq!(output.status.code(), Some(1), "{verb:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{verb:?}: {output:?}");
    }
    assert!(!Path::new(&other).exists());
    assert_eq!(fs::read(&image).unwrap(), before, "nothing was changed");
    assert_eq!(run(&mut pair.rig.luksctl(&["is-luks", "--type", "luks1", &image])).status.code(), Some(0));
    assert_eq!(run(&mut pair.rig.luksctl(&["is-luks", "--type", "luks2", &image])).status.code(), Some(1));
}
