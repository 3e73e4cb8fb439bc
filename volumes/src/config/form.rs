//! From the text to a [`Config`]: one function per table of the file, each naming its keys, bounds and defaults.

use std::path::{Path, PathBuf};

use luks::kdf::{
    ARGON2_LANES_MAX, ARGON2_MEMORY_MAX_KIB, ARGON2_MEMORY_MIN_KIB, ARGON2_TIME_MIN, PBKDF2_ITERATIONS_MIN,
};
use luks::limits::PBKDF2_ITERATIONS_MAX;
use toml_edit::Document;

use super::cross::{self, Marked};
use super::fault::{Fault, Faults};
use super::section::{Found, Section};
use super::value::{Account, plain_path};
use super::{
    Audit, Backend, Config, Container, FileSystem, Kdf, KeyPolicy, MasterSource, Mode, Owner, Place, Profile,
    SEVEN_YEARS_DAYS, Size, Store, VOLUMES_MAX, VolumeSpec,
};

/// Longest text that is a name of something outside: a credential, a key, an environment.
const LABEL_CHARS_MAX: usize = 64;
/// Most passes of Argon2 that a keyslot is made with.
const ARGON2_PASSES_MAX: u32 = 100;
/// A hundred years: the bound of every number of days.
const DAYS_MAX: u32 = 36_500;

/// Reads and checks everything.
pub(crate) fn parse(text: &str) -> Result<Config, Vec<Fault>> {
    let faults = Faults::of(text);
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let words = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            faults.add("", error.span(), false, words);
            return Err(faults.sorted());
        }
    };
    let root = Section::root(document.as_table(), &faults);
    let profile = root.parsed("profile", Profile::parse).unwrap_or(Profile::None);
    let store = store(root.below("store"));
    let keys = keys(root.below("keys"), profile, &store);
    let audit = audit(root.below("audit"), profile);
    let container = container(root.below("container"), &store);
    let volumes = volumes(&root, &store, &faults);
    root.finish();
    let marked =
        Marked { config: Config { profile, store, keys, audit, container, volumes }, root: document.as_table() };
    cross::check(&marked, &faults);
    let found = faults.sorted();
    if found.is_empty() { Ok(marked.config) } else { Err(found) }
}

fn store(section: Section<'_, '_>) -> Store {
    let folder = section.parsed("folder", plain_path);
    if folder.is_none() && section.take("folder").is_none() {
        section.missing("folder", "the folder of the images");
    }
    let keys = section.parsed("keys", plain_path);
    if keys.is_none() && section.take("keys").is_none() {
        section.missing("keys", "the folder of the keys");
    }
    let folder = folder.unwrap_or_default();
    let key_backup = section.parsed("key-backup", plain_path).unwrap_or_else(|| folder.join("key-backup"));
    let mapping_prefix = section.parsed("mapping-prefix", |text| Ok(text.to_owned())).unwrap_or_default();
    let application = section.parsed("application", unit_word).unwrap_or_else(|| application_of(&mapping_prefix));
    section.finish();
    Store { folder, keys: keys.unwrap_or_default(), key_backup, mapping_prefix, application }
}

/// The mapping prefix without what joins it to a name.
fn application_of(mapping_prefix: &str) -> String {
    let word = mapping_prefix.trim_end_matches(['-', '_', '.']);
    unit_word(word).unwrap_or_else(|_| "luksctl".to_owned())
}

/// A word that units and services may be called, the same in every language it is written in.
fn unit_word(text: &str) -> Result<String, String> {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    (first && plain && text.len() <= LABEL_CHARS_MAX)
        .then(|| text.to_owned())
        .ok_or_else(|| format!("must be 1 to {LABEL_CHARS_MAX} of A-Z a-z 0-9 _ -, a letter or digit first"))
}

/// The name of a container image: `registry:5000/path/name:tag` or `name@sha256:…`.
fn image_reference(text: &str) -> Result<String, String> {
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte));
    (first && plain && text.len() <= 255)
        .then(|| text.to_owned())
        .ok_or_else(|| "must be the name of an image: \"ai-trading-bot:latest\"".to_owned())
}

fn container(section: Section<'_, '_>, store: &Store) -> Container {
    let container = Container {
        service: section.parsed("service", unit_word).unwrap_or_else(|| store.application.clone()),
        image: section.parsed("image", image_reference),
    };
    section.finish();
    container
}

fn keys(section: Section<'_, '_>, profile: Profile, store: &Store) -> KeyPolicy {
    let (rotation, retention) = match profile {
        Profile::None => (90, 365),
        Profile::PciDss => (30, 365),
        Profile::Sox => (90, SEVEN_YEARS_DAYS),
    };
    let master = section.take("master").and_then(|found| master(&section, &found));
    let policy = KeyPolicy {
        rotation_days: section.number("rotation-days", 1..=DAYS_MAX, "days").unwrap_or(rotation),
        backup_retention_days: section.number("backup-retention-days", 1..=DAYS_MAX, "days").unwrap_or(retention),
        master: master.unwrap_or_else(|| MasterSource::File(store.keys.join("master.key"))),
        recovery: section.flag("recovery").unwrap_or(true),
        dual_approval: section.flag("dual-approval").unwrap_or(profile == Profile::Sox),
        approvals: section.parsed("approvals", plain_path).unwrap_or_else(|| "/var/lib/luksctl/approvals".into()),
    };
    section.finish();
    policy
}

/// `"passphrase"`, or a table of one key.
fn master(section: &Section<'_, '_>, found: &Found<'_>) -> Option<MasterSource> {
    const FORM: &str = "must be \"passphrase\", { file = PATH }, { credential = NAME }, { keyring = DESCRIPTION } or \
                        { command = [PROGRAM, ARGUMENT…] }";
    if found.text() == Some("passphrase") {
        return Some(MasterSource::Passphrase);
    }
    let entries: Vec<(&str, &toml_edit::Item)> = found.table().map(|table| table.iter().collect()).unwrap_or_default();
    let [(key, item)] = entries.as_slice() else {
        section.refuse(found, FORM);
        return None;
    };
    let text = item.as_str().unwrap_or_default();
    let source = match *key {
        "file" => plain_path(text).map(MasterSource::File),
        "credential" => label(text).map(MasterSource::Credential),
        "keyring" => label(text).map(MasterSource::Keyring),
        "command" => {
            let words: Option<Vec<String>> =
                item.as_array().and_then(|array| array.iter().map(|word| word.as_str().map(str::to_owned)).collect());
            command(words).map(MasterSource::Command)
        }
        _ => Err(FORM.to_owned()),
    };
    source.map_err(|what| section.refuse(found, what)).ok()
}

/// A name of something outside of this file.
fn label(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.chars().count() <= LABEL_CHARS_MAX && !text.chars().any(char::is_control);
    let plain = fits && !text.contains('/');
    plain
        .then(|| text.to_owned())
        .ok_or_else(|| format!("must be a name of 1 to {LABEL_CHARS_MAX} characters without slashes"))
}

/// Program and arguments.
fn command(words: Option<Vec<String>>) -> Result<Vec<String>, String> {
    let words = words.ok_or("must be an array of texts: [\"/usr/bin/program\", \"argument\"]")?;
    let program = words.first().ok_or("must name a program")?;
    if !Path::new(program).is_absolute() || words.iter().any(|word| word.contains('\0')) {
        return Err("must begin with the absolute path of a program; no shell looks for it".to_owned());
    }
    Ok(words)
}

fn audit(section: Section<'_, '_>, profile: Profile) -> Audit {
    let retention = if profile == Profile::None { 365 } else { SEVEN_YEARS_DAYS };
    let alert = section.take("alert-command").and_then(|found| {
        let words = match found.texts() {
            // An empty one is none.
            Some(words) if words.is_empty() => Ok(words),
            words => command(words),
        };
        words.map_err(|what| section.refuse(&found, what)).ok()
    });
    let audit = Audit {
        enabled: section.flag("enabled").unwrap_or(true),
        folder: section.parsed("folder", plain_path).unwrap_or_else(|| "/var/log/luksctl/audit".into()),
        seed: section.parsed("seed", plain_path).unwrap_or_else(|| "/etc/luksctl/audit.seed".into()),
        retention_days: section.number("retention-days", 31..=DAYS_MAX, "days").unwrap_or(retention),
        immutable: section.flag("immutable").unwrap_or(profile == Profile::Sox),
        environment: section.parsed("environment", label).unwrap_or_else(|| "unknown".to_owned()),
        alert_command: alert.unwrap_or_default(),
    };
    section.finish();
    audit
}

/// What a volume's table may leave to `[defaults]`.
struct Common {
    file_system: Option<FileSystem>,
    owner: Option<Owner>,
    mode: Option<Mode>,
    cipher: Option<String>,
    key_bits: Option<u32>,
    hash: Option<String>,
    sector_size: Option<u32>,
    backend: Option<Backend>,
    kdf: Option<Kdf>,
}

impl Common {
    fn of(section: &Section<'_, '_>, faults: &Faults<'_>) -> Common {
        let text = |text: &str| Ok(text.to_owned());
        let owner = section.take("owner").and_then(|found| owner(section, &found));
        Common {
            file_system: section.parsed("file-system", FileSystem::parse),
            owner,
            mode: section.parsed("mode", Mode::parse),
            cipher: section.parsed("cipher", text),
            key_bits: section.number("key-bits", 128..=4096, "bits"),
            hash: section.parsed("hash", text),
            sector_size: section.number("sector-size", 512..=4096, "bytes"),
            backend: section.parsed("backend", Backend::parse),
            kdf: kdf(section, faults),
        }
    }
}

/// A text, or the number of a user.
fn owner(section: &Section<'_, '_>, found: &Found<'_>) -> Option<Owner> {
    if let Some(id) = found.number().and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX) {
        return Some(Owner { user: Account::Id(id), group: None });
    }
    Owner::parse(found.text().unwrap_or_default()).map_err(|what| section.refuse(found, what)).ok()
}

/// `kdf = { type = "pbkdf2", iterations = 1000 }` or `{ type = "argon2id", memory = "64M", passes = 4, lanes = 4 }`.
fn kdf(above: &Section<'_, '_>, faults: &Faults<'_>) -> Option<Kdf> {
    let found = above.take("kdf")?;
    let section = Section::of(Some(&found), &found.path, faults);
    found.table()?;
    let kdf = match section.parsed("type", |text| match text {
        "pbkdf2" | "argon2id" => Ok(text.to_owned()),
        _ => Err("must be pbkdf2 or argon2id".to_owned()),
    }) {
        Some(name) if name == "pbkdf2" => {
            let bounds = PBKDF2_ITERATIONS_MIN..=PBKDF2_ITERATIONS_MAX;
            let iterations = section.number("iterations", bounds, "iterations");
            Some(Kdf::Pbkdf2 { iterations: iterations.unwrap_or(PBKDF2_ITERATIONS_MIN) })
        }
        Some(_) => {
            let least = u64::from(ARGON2_MEMORY_MIN_KIB) << 10;
            let most = u64::from(ARGON2_MEMORY_MAX_KIB) << 10;
            let memory = section.parsed("memory", |text| match Size::parse(text)? {
                size if (least..=most).contains(&size.0.0) => Ok(size),
                _ => Err("must be from 32K to 4G".to_owned()),
            });
            Some(Kdf::Argon2id {
                memory: memory.unwrap_or(Size(block::Bytes::from_mib(64))),
                passes: section
                    .number("passes", ARGON2_TIME_MIN..=ARGON2_PASSES_MAX, "passes")
                    .unwrap_or(ARGON2_TIME_MIN),
                lanes: section.number("lanes", 1..=ARGON2_LANES_MAX, "lanes").unwrap_or(ARGON2_LANES_MAX),
            })
        }
        None => {
            if section.take("type").is_none() {
                section.missing("type", "pbkdf2 or argon2id");
            }
            return None;
        }
    };
    section.finish();
    kdf
}

fn volumes(root: &Section<'_, '_>, store: &Store, faults: &Faults<'_>) -> Vec<VolumeSpec> {
    let defaults = root.below("defaults");
    let common = Common::of(&defaults, faults);
    defaults.finish();
    let all = root.below("volumes");
    let entries = all.entries();
    if entries.len() > VOLUMES_MAX {
        faults.add("volumes", all.span(), false, format!("has {} volumes; {VOLUMES_MAX} are the most", entries.len()));
        return Vec::new();
    }
    let mut volumes = Vec::new();
    for (name, _, found) in entries {
        let section = Section::of(Some(&found), &found.path, faults);
        volumes.extend(volume(name, &section, &common, store, faults));
        section.finish();
    }
    volumes
}

fn volume(
    name: String,
    section: &Section<'_, '_>,
    common: &Common,
    store: &Store,
    faults: &Faults<'_>,
) -> Option<VolumeSpec> {
    let own = Common::of(section, faults);
    let place = place(&name, section, store);
    let mount = section.parsed("mount", plain_path);
    let container = section.parsed("container", plain_path);
    let cipher = own.cipher.clone().or_else(|| common.cipher.clone()).unwrap_or_else(|| "aes-xts-plain64".to_owned());
    let usual_bits = if cipher.contains("xts") { 512 } else { 256 };
    Some(VolumeSpec {
        name,
        place: place?,
        file_system: own.file_system.or(common.file_system).unwrap_or(FileSystem::Ext4),
        mount,
        container,
        owner: own.owner.or_else(|| common.owner.clone()).unwrap_or(Owner { user: Account::Id(0), group: None }),
        mode: own.mode.or(common.mode).unwrap_or(Mode(0o750)),
        // A cipher of its own does not inherit the size of another's key.
        key_bits: own.key_bits.or(common.key_bits.filter(|_| own.cipher.is_none())).unwrap_or(usual_bits),
        cipher,
        hash: own.hash.or_else(|| common.hash.clone()).unwrap_or_else(|| "sha512".to_owned()),
        sector_size: own.sector_size.or(common.sector_size).unwrap_or(4096),
        backend: own.backend.or(common.backend).unwrap_or(Backend::Auto),
        kdf: own.kdf.or(common.kdf).unwrap_or(Kdf::LEAST),
    })
}

/// An image with a size, or a device without one.
fn place(name: &str, section: &Section<'_, '_>, store: &Store) -> Option<Place> {
    let size = section.parsed("size", Size::parse);
    let device = section.parsed("device", plain_path);
    let image = section.parsed("image", |text| image_path(text, store));
    if let Some(found) = section.take("device") {
        for (key, other) in [("size", section.take("size")), ("image", section.take("image"))] {
            if let Some(other) = other {
                section.refuse(&other, format!("a volume with a device has no {key}; leave one of them out"));
            }
        }
        if device.as_ref().is_some_and(|device| !device.starts_with("/dev")) {
            section.refuse(&found, "must be a block device below /dev");
        }
        return device.map(|device| Place::Device { device });
    }
    let image = match section.take("image") {
        Some(_) => image?,
        None => store.folder.join(format!("{name}.img")),
    };
    if section.take("size").is_none() {
        section.missing("size", "how large the image is, for example \"5G\"");
    }
    Some(Place::Image { image, size: size? })
}

/// A file name in the store, or a path.
fn image_path(text: &str, store: &Store) -> Result<PathBuf, String> {
    if text.contains('/') {
        return plain_path(text);
    }
    if text.is_empty() || text == "." || text == ".." || text.chars().any(char::is_control) {
        return Err("must be the name of a file in the store's folder, or an absolute path".to_owned());
    }
    Ok(store.folder.join(text))
}
