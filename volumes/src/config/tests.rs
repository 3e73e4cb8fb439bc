//! The example is what the guide has; what cannot be is named with its line; what is left out has its default.

use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Config, VolumesError> {
    Config::parse(text, Path::new("volumes.toml"))
}

/// A file with one volume, and `more` lines in its table.
fn with(more: &str) -> String {
    format!(
        "[store]\nfolder = \"/s/images\"\nkeys = \"/s/keys\"\n[volumes.data]\nsize = \"1G\"\nmount = \"/mnt/data\"\n{more}\n"
    )
}

#[test]
fn the_example_is_the_guides_layout() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.store.folder, Path::new("/opt/trading-bot/encrypted"));
    assert_eq!(config.store.keys, Path::new("/opt/trading-bot/keys"));
    assert_eq!(config.store.key_backup, Path::new("/opt/trading-bot/encrypted/key-backup"));
    let volumes: Vec<(String, String, String, String)> = config
        .volumes
        .iter()
        .map(|volume| {
            let Place::Image { image, size } = &volume.place else { panic!("a device") };
            let mount = volume.mount.as_deref().unwrap().display().to_string();
            (config.mapping(volume), image.display().to_string(), size.to_string(), mount)
        })
        .collect();
    let row = |name: &str, size: &str| {
        let image = format!("/opt/trading-bot/encrypted/{name}.img");
        (format!("trading-{name}"), image, size.to_owned(), format!("/mnt/trading-{name}"))
    };
    assert_eq!(volumes, [row("data", "5G"), row("logs", "2G"), row("config", "512M"), row("backup", "10G")]);
    assert!(config.volumes.iter().all(|volume| (volume.key_bits, volume.sector_size) == (512, 4096)));
    assert_eq!((config.keys.rotation_days, config.keys.backup_retention_days), (90, 365));
}

#[test]
fn what_is_written_out_reads_back() {
    for text in [
        EXAMPLE.to_owned(),
        with(""),
        with("kdf = { type = \"argon2id\", memory = \"128M\" }\nowner = \"bot:1000\"\nbackend = \"fuse\""),
        with(
            "[volumes.disk]\ndevice = \"/dev/sdb1\"\nfile-system = \"none\"\n[keys]\nmaster = { command = [\"/bin/x\", \"y\"] }",
        ),
        with("[keys]\nmaster = \"passphrase\"\n[audit]\nalert-command = [\"/bin/mail\", \"root\"]"),
        format!("profile = \"sox\"\n{}", with("")),
        format!("profile = \"pci-dss\"\n{}", with("[keys]\nmaster = { credential = \"master\" }")),
    ] {
        let config = parse(&text).unwrap();
        assert_eq!(parse(&config.to_toml().unwrap()).unwrap(), config, "{}", config.to_toml().unwrap());
    }
}

#[test]
fn profiles_set_what_is_not_said() {
    let of = |profile: &str| parse(&format!("profile = \"{profile}\"\n{}", with(""))).unwrap();
    let numbers =
        |config: &Config| (config.keys.rotation_days, config.keys.backup_retention_days, config.audit.retention_days);
    assert_eq!(numbers(&of("none")), (90, 365, 365));
    assert_eq!(numbers(&of("pci-dss")), (30, 365, 2555));
    assert_eq!(numbers(&of("sox")), (90, 2555, 2555));
    assert!(of("sox").keys.dual_approval && of("sox").audit.immutable && !of("pci-dss").keys.dual_approval);
}

/// Text, and how the message about it begins and what it says.
const FAULTS: &[(&str, &str, &str)] = &[
    ("sizes = \"5G\"", "7:1: volumes.data.sizes: ", "is no key that is known here; known are"),
    ("mode = \"0788\"", "7:8: volumes.data.mode = \"0788\": ", "octal"),
    ("mode = 750", "7:8: volumes.data.mode = 750: ", "text in quotes"),
    ("owner = \"a b\"", "7:9: volumes.data.owner = \"a b\": ", "USER or USER:GROUP"),
    ("owner = -1", "7:9: volumes.data.owner = -1: ", "USER or USER:GROUP"),
    ("file-system = \"ntfs\"", "7:15: volumes.data.file-system = \"ntfs\": ", "one of ext4, xfs, btrfs, none"),
    ("file-system = \"none\"", "6:9: volumes.data.mount = \"/mnt/data\": ", "without a file system"),
    ("backend = \"vhost\"", "7:11: volumes.data.backend = \"vhost\": ", "one of auto, dm, fuse, nbd, ublk"),
    ("backend = \"nbd\"", "7:11: volumes.data.backend = \"nbd\": ", "cannot be mounted"),
    ("cipher = \"aes-ecb-plain\"", "7:10: volumes.data.cipher = \"aes-ecb-plain\": ", "ecb"),
    ("cipher = \"cipher_null-ecb\"", "7:10: volumes.data.cipher = \"cipher_null-ecb\": ", "null"),
    ("key-bits = 500", "7:12: volumes.data.key-bits = 500: ", ""),
    ("cipher = \"aes-cbc-essiv:sha256\"\nkey-bits = 512", "8:12: volumes.data.key-bits = 512: ", ""),
    ("hash = \"md5\"", "7:8: volumes.data.hash = \"md5\": ", "sha512"),
    ("sector-size = 1000", "7:15: volumes.data.sector-size = 1000: ", "512, 1024, 2048 or 4096"),
    ("sector-size = 8192", "7:15: volumes.data.sector-size = 8192: ", "from 512 to 4096"),
    ("kdf = \"pbkdf2\"", "7:7: volumes.data.kdf = \"pbkdf2\": ", "must be a table"),
    ("kdf = { iterations = 1000 }", "7:7: volumes.data.kdf.type: ", "is missing"),
    ("kdf = { type = \"pbkdf2\", memory = \"1G\" }", "7:26: volumes.data.kdf.memory: ", "is no key"),
    ("kdf = { type = \"pbkdf2\", iterations = 10 }", "7:39: volumes.data.kdf.iterations = 10: ", "from 1000"),
    ("kdf = { type = \"argon2id\", memory = \"64G\" }", "7:37: volumes.data.kdf.memory = \"64G\": ", "to 4G"),
    ("image = \"../x.img\"", "7:9: volumes.data.image = \"../x.img\": ", "absolute path"),
    ("device = \"/dev/sdb\"", "5:8: volumes.data.size = \"1G\": ", "a volume with a device has no size"),
    ("[volumes.\"a/b\"]\nsize = \"1G\"\nmount = \"/mnt/b\"", "7:10: volumes.a/b: ", "only letters, digits"),
    ("[volumes.data]", "7:", "duplicate key"),
    ("[volumes.logs]\nmount = \"/mnt/logs\"", "7:1: volumes.logs.size: ", "is missing"),
    ("[volumes.logs]\nsize = \"1G\"", "7:1: volumes.logs.mount: ", "is missing"),
    ("[volumes.logs]\nsize = \"5X\"\nmount = \"/mnt/logs\"", "8:8: volumes.logs.size = \"5X\": ", "K, M, G or T"),
    ("[volumes.logs]\nsize = 5\nmount = \"/mnt/logs\"", "8:8: volumes.logs.size = 5: ", "text in quotes"),
    ("[volumes.logs]\nsize = \"16M\"\nmount = \"/mnt/logs\"", "8:8: volumes.logs.size = \"16M\": ", "too small"),
    (
        "[volumes.logs]\nsize = \"100M\"\nmount = \"/mnt/logs\"\nfile-system = \"xfs\"",
        "8:8: volumes.logs.size",
        "with xfs",
    ),
    ("[volumes.logs]\nsize = \"65537K\"\nmount = \"/mnt/logs\"", "8:8: volumes.logs.size", "multiple of 4K"),
    (
        "[volumes.logs]\nsize = \"1G\"\nmount = \"/mnt/data\"",
        "9:9: volumes.logs.mount = ",
        "overlaps with the mount point of volume data",
    ),
    ("[volumes.logs]\nsize = \"1G\"\nmount = \"/mnt/data/logs\"", "9:9: volumes.logs.mount = ", "overlaps"),
    (
        "[volumes.logs]\nsize = \"1G\"\nmount = \"/s\"",
        "9:9: volumes.logs.mount = \"/s\": ",
        "overlaps with store.folder",
    ),
    (
        "[volumes.logs]\nsize = \"1G\"\nmount = \"/s/images/m\"",
        "9:9: volumes.logs.mount = ",
        "overlaps with store.folder",
    ),
    (
        "[volumes.logs]\nsize = \"1G\"\nmount = \"/usr\"",
        "9:9: volumes.logs.mount = \"/usr\": ",
        "belongs to the system",
    ),
    ("[volumes.logs]\nsize = \"1G\"\nmount = \"mnt\"", "9:9: volumes.logs.mount = \"mnt\": ", "absolute"),
    (
        "[volumes.logs]\nsize = \"1G\"\nmount = \"/mnt/logs\"\nimage = \"data.img\"",
        "10:9: volumes.logs.image = ",
        "the place of volume data",
    ),
    (
        "[volumes.logs]\nsize = \"1G\"\nmount = \"/mnt/logs\"\nimage = \"/mnt/data/logs.img\"",
        "6:9: volumes.data.mount = ",
        "overlaps with an image",
    ),
    ("[key]\nrotation-days = 3", "7:2: key: ", "known are profile, store, keys, audit, container, defaults, volumes"),
    ("[keys]\nrotation-days = 0", "8:17: keys.rotation-days = 0: ", "days from 1"),
    ("[keys]\nrotation-days = \"90\"", "8:17: keys.rotation-days = \"90\": ", "whole number"),
    ("[keys]\nrecovery = \"no\"", "8:12: keys.recovery = \"no\": ", "true or false"),
    ("[keys]\nmaster = \"file\"", "8:10: keys.master = \"file\": ", "{ file = PATH }"),
    ("[keys]\nmaster = { file = \"x\" }", "8:10: keys.master = ", "absolute path"),
    ("[keys]\nmaster = { command = \"pass show\" }", "8:10: keys.master = ", "array"),
    ("[audit]\nalert-command = [\"mail\"]", "8:17: audit.alert-command = ", "absolute path of a program"),
    ("[audit]\nretention-days = 7", "8:18: audit.retention-days = 7: ", "from 31"),
    ("[audit]\nfolder = \"/mnt/data/audit\"", "6:9: volumes.data.mount = ", "overlaps with audit.folder"),
    ("container = \"/usr\"", "7:13: volumes.data.container = \"/usr\": ", "the container's own system"),
    (
        "container = \"/a\"\n[volumes.logs]\nsize = \"1G\"\nmount = \"/mnt/logs\"\ncontainer = \"/a/b\"",
        "11:13: volumes.logs.container = \"/a/b\": ",
        "overlaps with that of volume data",
    ),
    (
        "container = \"/a\"\n[volumes.logs]\nsize = \"1G\"\nmount = \"/mnt/logs\"\ncontainer = \"/b\"\nowner = 5",
        "11:13: volumes.logs.container = \"/b\": ",
        "one owner for all volumes of the container",
    ),
    ("[container]\nimage = \"a b\"", "8:9: container.image = \"a b\": ", "the name of an image"),
    ("[container]\nservice = \"a: b\"", "8:11: container.service = \"a: b\": ", "1 to 64 of"),
    ("[defaults]\nsize = \"1G\"", "8:1: defaults.size: ", "is no key"),
    ("[defaults]\nhash = \"md4\"", "8:8: defaults.hash = \"md4\": ", "no hash"),
    ("x = [1,", "7:", ""),
];

#[test]
fn faults_name_line_column_key_and_value() {
    for (more, begins, says) in FAULTS {
        let error = parse(&with(more)).expect_err(more);
        let VolumesError::Config { faults, .. } = &error else { panic!("{error}") };
        let found =
            faults.iter().map(ToString::to_string).find(|fault| fault.starts_with(begins) && fault.contains(says));
        assert!(found.is_some(), "{more}\nwanted {begins}…{says}\ngot {error}");
        assert!(error.to_string().starts_with("volumes.toml:"), "{error}");
    }
    let nothing = parse("").unwrap_err().to_string();
    assert!(nothing.contains("store.folder: is missing") && nothing.contains("store.keys: is missing"), "{nothing}");
}

#[test]
fn all_faults_are_found_at_once_in_order() {
    let error = parse(&with("mode = \"9\"\nbackend = \"x\"\nfoo = 1\n[keys]\nrotation-days = -1")).unwrap_err();
    let VolumesError::Config { faults, .. } = error else { panic!() };
    assert_eq!(faults.iter().map(|fault| fault.line).collect::<Vec<_>>(), [7, 8, 9, 11]);
}

#[test]
fn profiles_have_demands() {
    for (profile, more, key, line) in [
        ("pci-dss", "[keys]\nrotation-days = 90", "keys.rotation-days = 90", 9),
        ("pci-dss", "cipher = \"serpent-xts-plain64\"", "volumes.data.cipher", 8),
        ("pci-dss", "key-bits = 256", "volumes.data.key-bits = 256", 8),
        ("pci-dss", "[defaults]\nhash = \"sha256\"", "defaults.hash", 9),
        ("pci-dss", "[audit]\nretention-days = 365", "audit.retention-days", 9),
        ("pci-dss", "[audit]\nenabled = false", "audit.enabled", 9),
        ("sox", "[audit]\nimmutable = false", "audit.immutable", 9),
        ("sox", "[keys]\ndual-approval = false", "keys.dual-approval", 9),
        ("sox", "[keys]\nbackup-retention-days = 365", "keys.backup-retention-days", 9),
    ] {
        let text = format!("profile = \"{profile}\"\n{}", with(more));
        let error = parse(&text).expect_err(more);
        let VolumesError::Config { faults, .. } = &error else { panic!("{error}") };
        assert_eq!(faults.len(), 1, "{error}");
        let said = faults[0].to_string();
        assert!(said.contains(key) && said.contains(&format!("profile {profile} demands")), "{said}");
        assert_eq!(faults[0].line, line, "{said}");
        assert!(parse(&with(more)).is_ok(), "without the profile: {more}");
    }
}

#[test]
fn a_file_that_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volumes.toml");
    std::fs::write(&path, EXAMPLE).unwrap();
    for (mode, good) in [(0o644, true), (0o600, true), (0o664, false), (0o602, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(Config::load(&path).is_ok(), good, "{mode:o}");
    }
    assert!(Config::load(&folder.path().join("none")).unwrap_err().to_string().contains("none"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    replace(&path, "x = 1\n").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "x = 1\n");
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o640);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a part stayed");
}
