//! `luksctl volume adopt`: a set that cryptsetup made the guide's way, with data in it, is taken over whole: no byte of the images
//! changes, and cryptsetup opens them with the raw keys, which are wiped on request only.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use promises::managed::{OWNER, demand_data, guides_set, raw_key};
use promises::rig::{refused, run, succeed};
use promises::skip::{needs_fuse, needs_programs, needs_root};

fn possible(test: &str) -> bool {
    needs_root(test) && needs_fuse(test) && needs_programs(test, &["cryptsetup", "mkfs.ext4"])
}

#[test]
fn a_set_of_the_guides_scripts_is_taken_over() {
    let test = "set_adopt: a_set_of_the_guides_scripts_is_taken_over";
    if !possible(test) {
        return;
    }
    let set = guides_set("set-adopt");
    // Nobody has described it: adopt does.
    fs::remove_file(set.rig.path("volumes.toml")).unwrap();
    let root = fs::canonicalize(set.rig.path(".")).unwrap();
    let place = |option: &str, folder: &str| [option.to_owned(), root.join(folder).display().to_string()];
    let places =
        [place("--images", "encrypted"), place("--keys", "keys"), place("--mounts", "mnt"), place("--audit", "audit")]
            .concat();
    let adopt = |more: &[&str]| {
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        set.volume(&[&["adopt", "--yes"], &places[..], more].concat())
    };
    let raw = ["data", "logs"].map(|volume| raw_key(&set, volume));
    let images = ["data", "logs"].map(|volume| fs::read(set.image(volume)).unwrap());
    // A key that others can read, and one that opens another volume.
    fs::set_permissions(set.rig.path("keys/data.key"), fs::Permissions::from_mode(0o640)).unwrap();
    refused(&run(&mut adopt(&[])), 1, &["others can read the key", "chmod 600"]);
    fs::set_permissions(set.rig.path("keys/data.key"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(set.rig.path("keys/data.key"), &raw[1]).unwrap();
    refused(&run(&mut adopt(&[])), 1, &["does not open"]);
    fs::write(set.rig.path("keys/data.key"), &raw[0]).unwrap();
    assert!(!set.rig.path("volumes.toml").exists(), "nothing was written");

    let dry = succeed(&mut adopt(&["--dry-run"]));
    assert!(String::from_utf8_lossy(&dry.stdout).contains("missing    adopt         data"), "{dry:?}");
    assert!(!set.rig.path("volumes.toml").exists() && !set.rig.path("audit").exists());
    succeed(&mut adopt(&[]));
    assert!(set.rig.path("keys/key_metadata.json.before-adopt").exists());
    let described = fs::read_to_string(set.rig.path("volumes.toml")).unwrap();
    assert!(described.contains(&format!("owner = \"{OWNER}\"")), "{described}");
    for (at, volume) in ["data", "logs"].into_iter().enumerate() {
        assert_eq!(raw_key(&set, volume), raw[at], "the raw key stays");
        assert!(fs::read(set.image(volume)).unwrap() == images[at], "no byte of the image changed");
    }
    let again = succeed(&mut adopt(&[]));
    assert!(String::from_utf8_lossy(&again.stderr).contains("nothing was changed"), "{again:?}");
    demand_data(&set);

    succeed(&mut adopt(&["--wipe-raw-keys"]));
    for (at, volume) in ["data", "logs"].into_iter().enumerate() {
        assert_ne!(fs::read(set.rig.path(&format!("keys/{volume}.key"))).ok(), Some(raw[at].clone()));
        assert!(set.cryptsetup_opens(volume, &raw[at]), "the key is the same, only sealed");
    }
    demand_data(&set);
}
