//! `format` destroys nothing by accident and leaves nothing half-made.

use crate::desk::{CHEAP, Desk};

/// The first bytes of an ext4 file system, as far as a probe looks: 1024-byte blocks, an extents flag, its magic.
fn ext4(len_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0u8; len_bytes];
    let superblock = &mut bytes[1024..2048];
    superblock[0..4].copy_from_slice(&1024u32.to_le_bytes());
    superblock[4..8].copy_from_slice(&8192u32.to_le_bytes());
    superblock[32..36].copy_from_slice(&8192u32.to_le_bytes());
    superblock[40..44].copy_from_slice(&1024u32.to_le_bytes());
    superblock[56..58].copy_from_slice(&[0x53, 0xef]);
    superblock[76..80].copy_from_slice(&1u32.to_le_bytes());
    superblock[88..90].copy_from_slice(&256u16.to_le_bytes());
    superblock[96..100].copy_from_slice(&0x40u32.to_le_bytes());
    bytes
}

#[test]
fn known_content_is_refused_without_force_whatever_q_says() {
    let desk = Desk::with_image();
    let luks = std::fs::read(desk.path("image")).unwrap();
    desk.format("image", &[]).fails(1, "holds LUKS2");
    desk.format("image", &["--size", "30M"]).fails(1, "holds LUKS2");
    assert!(std::fs::read(desk.path("image")).unwrap() == luks, "a refused format changed the image");

    let ext4 = ext4(20 << 20);
    std::fs::write(desk.path("ext4"), &ext4).unwrap();
    desk.format("ext4", &[]).fails(1, "ext");
    assert!(std::fs::read(desk.path("ext4")).unwrap() == ext4);
    desk.format("ext4", &["--force"]).ends(0);
    desk.run(&["is-luks", "ext4"]).ends(0);
}

#[test]
fn copy_in_refuses_known_content_of_the_volume() {
    let desk = Desk::with_image();
    let ext4 = ext4(1 << 20);
    std::fs::write(desk.path("ext4"), &ext4).unwrap();
    desk.run(&["copy-in", "-q", "image", "ext4", "-d", "key"]).ends(0);
    let before = std::fs::read(desk.path("image")).unwrap();
    desk.run(&["copy-in", "-q", "image", "key", "-d", "key"]).fails(1, "the volume holds ext");
    assert!(std::fs::read(desk.path("image")).unwrap() == before);
    desk.run(&["copy-in", "-q", "--force", "image", "key", "-d", "key"]).ends(0);
}

#[test]
fn size_makes_grows_and_never_cuts() {
    use std::os::unix::fs::MetadataExt as _;
    let desk = Desk::new();
    desk.format("full", &["--size", "20M"]).ends(0);
    desk.format("thin", &["--size", "20M", "--sparse"]).ends(0);
    let (full, thin) = (desk.path("full").metadata().unwrap(), desk.path("thin").metadata().unwrap());
    assert_eq!((full.len(), thin.len()), (20 << 20, 20 << 20));
    assert!(full.blocks() * 512 >= 20 << 20, "the space is not reserved: {} blocks", full.blocks());
    assert!(thin.blocks() < full.blocks());
    assert_eq!(full.mode() & 0o777, 0o600);

    std::fs::write(desk.path("large"), vec![7; 21 << 20]).unwrap();
    desk.format("large", &["--size", "20M"]).fails(1, "never cut");
    assert!(std::fs::read(desk.path("large")).unwrap() == vec![7; 21 << 20]);
    std::fs::write(desk.path("small"), vec![7; 1 << 20]).unwrap();
    desk.format("small", &["--size", "20M"]).ends(0);
    assert_eq!(desk.path("small").metadata().unwrap().len(), 20 << 20);
    desk.run(&["format", "x", "--sparse"]).ends(1);
}

#[test]
fn a_failed_format_leaves_no_file_and_the_old_length() {
    let desk = Desk::new();
    let before = desk.names();
    for wrong in [
        &["--cipher", "rot13-xts-plain64"][..],
        &["--key-size", "123"],
        &["--key-size", "1024"],
        &["--hash", "md2"],
        &["--uuid", "no-uuid"],
        &["--label", "a label that is longer than the header has room for it, by far"],
        &["--luks2-metadata-size", "17K"],
        &["--luks2-keyslots-size", "1M", "--offset", "8"],
        &["--offset", "7"],
        &["--sector-size", "1000"],
        &["-S", "32"],
        &["--pbkdf-memory", "64"],
    ] {
        desk.format("image", &[&["--size", "20M"], wrong].concat()).ends(1);
        assert_eq!(desk.names(), before, "{wrong:?} left something");
    }
    desk.format("image", &["--size", "1M"]).fails(1, "too small");
    desk.run_with_input(&["format", "image", "--size", "20M"], b"").fails(1, "Nothing to read");
    desk.run_with_input(&["format", "image", "--size", "20M"], b"\n").fails(1, "passphrase is empty");
    let both = ["format", "image", "--size", "20M", "-i", "100", "--pbkdf-force-iterations", "4"];
    desk.run(&both).ends(1);
    assert_eq!(desk.names(), before);
}

#[test]
fn a_dry_run_writes_nothing_and_tells_what_it_would() {
    let desk = Desk::with_image();
    let before = std::fs::read(desk.path("image")).unwrap();
    let names = desk.names();
    let plan = desk.run(&["format", "--dry-run", "new", "--size", "40M"]).ends(0);
    assert!(plan.stdout.contains("aes-xts-plain64") && plan.stdout.contains("24 MiB"), "{plan:?}");
    let over = desk.run(&["format", "--dry-run", "image"]).ends(0);
    assert!(over.stderr.contains("needs --force"), "{over:?}");
    let json = desk.run(&["format", "--dry-run", "--json", "new", "--size", "40M"]).ends(0).json();
    assert_eq!(json["written"], false);
    assert_eq!(json["volume_size_bytes"], 24 << 20);
    assert_eq!(desk.names(), names);
    assert!(std::fs::read(desk.path("image")).unwrap() == before);
}

#[test]
fn a_detached_header_is_made_and_used() {
    let desk = Desk::new();
    std::fs::write(desk.path("data"), vec![0; 4 << 20]).unwrap();
    desk.format("data", &["--header", "header"]).ends(0);
    assert!(std::fs::read(desk.path("data")).unwrap() == vec![0; 4 << 20], "a detached format wrote the data");
    std::fs::write(desk.path("plain"), "plaintext".repeat(1000)).unwrap();
    desk.run(&["copy-in", "-q", "data", "plain", "-d", "key", "--header", "header"]).ends(0);
    let out = ["copy-out", "-q", "data", "out", "-d", "key", "--header", "header", "--length", "9000"];
    desk.run(&out).ends(0);
    assert_eq!(std::fs::read(desk.path("out")).unwrap(), std::fs::read(desk.path("plain")).unwrap());
    desk.run(&["is-luks", "data"]).ends(1);
    desk.run(&["label", "data", "apart", "--header", "header"]).ends(0);
    assert!(desk.run(&["dump", "header"]).ends(0).stdout.contains("apart"));
    desk.format("data", &["--header", "data", "--force"]).fails(1, "same file");
}

#[test]
fn a_short_passphrase_is_warned_about_an_empty_one_refused() {
    let desk = Desk::new();
    let mut format = vec!["format", "image", "--size", "20M"];
    format.extend(CHEAP);
    let done = desk.run_with_input(&format, b"short\n").ends(0);
    assert!(done.stderr.contains("shorter than 8 bytes") && !done.stderr.contains("short\n"), "{done:?}");
    let mut empty = vec!["format", "image2", "--size", "20M", "--force-password"];
    empty.extend(CHEAP);
    desk.run_with_input(&empty, b"\n").ends(0);
    desk.run_with_input(&["keyslot", "test", "image2"], b"\n").ends(0);
}
