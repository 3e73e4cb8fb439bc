//! A set that meets its profile, and one thing after the other that does not, each found by name.

use std::fs;
use std::path::{Path, PathBuf};

use block::{Bytes, Direct, FileDisk, OpenMode};
use keystore::{KeyKind, KeyName};
use luks::HashAlg;
use luks::calibrate::{Effort, KdfChoice, KdfCost};
use luks::format::{FormatParams, NewKdf, format};
use secret::Secret;
use session::SystemEnv;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::audit::{Category, Event};
use crate::set::Set;

struct Room {
    folder: TempDir,
}

impl Room {
    /// A set of one volume with its key, its record, and a backup of keys.
    fn new(profile: &str) -> Room {
        let room = Room { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(room.file("images")).unwrap();
        room.configure(profile, "");
        room.format("aes-xts-plain64", HashAlg::Sha512);
        let set = room.set();
        let mut store = set.create_store().unwrap();
        let name = KeyName::new("data").unwrap();
        store.add_key(&name, KeyKind::Volume, Uuid::from_bytes([7; 16]), Set::now()).unwrap();
        store.activate(&name, Set::now()).unwrap();
        store.set_recovery_key(&keystore::RecoveryKey::random().unwrap(), Set::now()).unwrap();
        set.remember(&store).unwrap();
        set.back_up_keys(&store).unwrap();
        set.record(&Event::new(Category::Access, "up", "data")).unwrap();
        room
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self, profile: &str, more: &str) {
        let text = format!(
            "profile = \"{profile}\"\n[store]\nfolder = \"{0}/images\"\nkeys = \"{0}/keys\"\n[audit]\nfolder = \
             \"{0}/audit\"\nseed = \"{0}/audit.seed\"\n{more}\n[volumes.data]\nsize = \"20M\"\nmount = \"{0}/data\"\n",
            self.folder.path().display()
        );
        fs::write(self.file("volumes.toml"), text).unwrap();
    }

    fn set(&self) -> Set {
        Set::load(&self.file("volumes.toml")).unwrap()
    }

    fn format(&self, cipher: &str, hash: HashAlg) {
        let path = self.file("images/data.img");
        let mode = OpenMode { read_only: false, direct: Direct::Never, exclusive: false };
        drop(fs::remove_file(&path));
        let disk = FileDisk::create_new(&path, &mode).unwrap();
        disk.preallocate(Bytes::from_mib(20)).unwrap();
        let cost = KdfCost { effort: Effort::Forced { iterations: 1000 }, ..KdfCost::default() };
        let params = FormatParams {
            cipher: cipher.to_owned(),
            key_size_bits: Some(512),
            kdf: NewKdf::Calibrate(KdfChoice::Pbkdf2 { hash }, cost),
            hash: hash.name().to_owned(),
            ..FormatParams::default()
        };
        let key = Secret::copy_of(b"a key of this test").unwrap();
        format(&disk, &disk, &SystemEnv.env(), &params, &key).unwrap();
    }

    fn report_at(&self, profile: Profile, now: Timestamp) -> Report {
        let set = self.set();
        let metadata = set.metadata().map_err(|error| error.to_string());
        report(set.config(), profile, metadata.as_ref().map_err(String::as_str), now)
    }

    fn report(&self, profile: Profile) -> Report {
        self.report_at(profile, Set::now())
    }
}

fn verdict(report: &Report, name: &str) -> Verdict {
    let all = report.demands.iter().chain(&report.checklist);
    all.into_iter().find(|demand| demand.name == name).unwrap_or_else(|| panic!("{name}: {report:?}")).verdict
}

fn evidence(report: &Report, name: &str) -> String {
    report.demands.iter().find(|demand| demand.name == name).unwrap().evidence.join("\n")
}

#[test]
fn a_pci_dss_set_meets_what_it_demands_until_something_is_changed() {
    let room = Room::new("pci-dss");
    let good = room.report(Profile::PciDss);
    assert!(good.demands.iter().all(|demand| demand.verdict == Verdict::Met), "{good:#?}");
    assert_eq!(good.demands.len(), 4);
    assert!(evidence(&good, "cipher").contains("data: header: keyslot 0: 512 bits, sha512, sha512"), "{good:#?}");
    assert!(evidence(&good, "rotation").contains("generation 1 in use since"), "{good:#?}");

    // A month later, less a day and then to the day.
    let in_days = |days| Set::now().plus_days(days);
    assert_eq!(verdict(&room.report_at(Profile::PciDss, in_days(29)), "rotation"), Verdict::Met);
    assert_eq!(verdict(&room.report_at(Profile::PciDss, in_days(31)), "rotation"), Verdict::NotMet);

    // The header says otherwise than the configuration.
    room.format("serpent-xts-plain64", HashAlg::Sha512);
    let other = room.report(Profile::PciDss);
    assert_eq!(verdict(&other, "cipher"), Verdict::NotMet);
    assert!(evidence(&other, "cipher").contains("header: cipher serpent-xts-plain64: not met"), "{other:#?}");
    room.format("aes-xts-plain64", HashAlg::Sha256);
    assert_eq!(verdict(&room.report(Profile::PciDss), "cipher"), Verdict::NotMet);
    fs::write(room.file("images/data.img"), [0; 4096]).unwrap();
    assert_eq!(verdict(&room.report(Profile::PciDss), "cipher"), Verdict::NotMet);
    fs::remove_file(room.file("images/data.img")).unwrap();
    assert_eq!(verdict(&room.report(Profile::PciDss), "cipher"), Verdict::Unknown);

    // A line of the log that is none; no backup of keys.
    let log = fs::read_dir(room.file("audit")).unwrap().map(|entry| entry.unwrap().path());
    let log = log.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "jsonl")).unwrap();
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text.replacen('{', "", 1)).unwrap();
    assert_eq!(verdict(&room.report(Profile::PciDss), "audit-retention"), Verdict::NotMet);
    fs::remove_dir_all(room.file("images/key-backup")).unwrap();
    assert_eq!(verdict(&room.report(Profile::PciDss), "key-backups"), Verdict::NotMet);
}

#[test]
fn a_lax_set_is_held_against_a_profile_that_is_not_its_own() {
    let room = Room::new("none");
    let own = room.report(Profile::None);
    assert!(own.demands.iter().all(|demand| demand.verdict == Verdict::Met), "{own:#?}");
    let pci = room.report(Profile::PciDss);
    assert_eq!(verdict(&pci, "rotation"), Verdict::NotMet);
    assert_eq!(verdict(&pci, "audit-retention"), Verdict::NotMet);
    let sox = room.report(Profile::Sox);
    assert_eq!(sox.demands.len(), 6);
    for name in ["dual-approval", "audit-retention", "audit-immutable", "key-backups"] {
        assert_eq!(verdict(&sox, name), Verdict::NotMet, "{sox:#?}");
    }
    assert_eq!(verdict(&sox, "data-backups"), Verdict::Unknown);
    assert_eq!(sox.count(Verdict::NotMet), 4);
}

#[test]
fn what_cannot_be_read_is_not_called_met() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::parse(crate::config::EXAMPLE, Path::new("volumes.toml")).unwrap();
    let mut config = config;
    config.audit.folder = folder.path().join("none");
    config.store.keys = folder.path().join("keys");
    config.store.key_backup = folder.path().join("backups");
    config.volumes.iter_mut().for_each(|volume| {
        let image = folder.path().join(&volume.name);
        volume.place = crate::config::Place::Image { image, size: crate::config::Size(Bytes::from_mib(64)) };
    });
    let report = report(&config, Profile::PciDss, Err("there is no key store"), Set::now());
    assert_eq!(verdict(&report, "cipher"), Verdict::Unknown);
    assert_eq!(verdict(&report, "key-backups"), Verdict::Unknown);
    assert!(evidence(&report, "rotation").contains("there is no key store: cannot be told"), "{report:#?}");
}

#[test]
fn the_checklist_has_its_fifteen_points() {
    let room = Room::new("pci-dss");
    let report = room.report(Profile::PciDss);
    let words: Vec<&str> = report.checklist.iter().map(|point| point.demand.as_str()).collect();
    assert_eq!(words.len(), 15, "{words:?}");
    assert_eq!(words.first(), Some(&"Never use .env files in production"));
    assert_eq!(words.last(), Some(&"Compliance requirements met"));
    assert_eq!(report.checklist.iter().filter(|point| point.verdict == Verdict::Outside).count(), 10);
    assert_eq!(verdict(&report, "secrets-encrypted"), Verdict::Met);
    assert_eq!(verdict(&report, "monitoring-alerts"), Verdict::NotMet);
    assert_eq!(verdict(&report, "compliance"), Verdict::Met);
    // A raw key beside the sealed ones.
    fs::write(room.file("keys/logs.key"), [7; 64]).unwrap();
    assert_eq!(verdict(&room.report(Profile::PciDss), "secrets-encrypted"), Verdict::NotMet);
}
