//! The keys of a policy file and what each may be. Every check is made while the value is read, so that the parser knows its
//! line.

use std::fmt;

use luks::policy::{Bounds, Fingerprint, Names, Pins, is_null_cipher};
use luks::{HashAlg, Policy};
use serde::de::{Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name in a list, and longest UUID, which is what a header has room for.
const NAME_BYTES_MAX: usize = 80;
const UUID_BYTES_MAX: usize = 39;
/// Largest volume key that `luks::Limits` lets pass by default.
const KEY_BITS_MAX: u32 = 4096;

/// A policy as its file states it: what is `None` is the preset's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct PolicyForm {
    #[serde(default, deserialize_with = "preset", skip_serializing_if = "Option::is_none")]
    preset: Option<String>,
    #[serde(default, deserialize_with = "versions", skip_serializing_if = "Option::is_none")]
    versions: Option<Vec<u16>>,
    #[serde(default, deserialize_with = "ciphers", skip_serializing_if = "Option::is_none")]
    ciphers: Option<NamesForm>,
    #[serde(default, deserialize_with = "ciphers", skip_serializing_if = "Option::is_none")]
    keyslot_ciphers: Option<NamesForm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_null_cipher: Option<bool>,
    #[serde(default, deserialize_with = "key_bits", skip_serializing_if = "Option::is_none")]
    min_key_bits: Option<u32>,
    #[serde(default, deserialize_with = "key_bits", skip_serializing_if = "Option::is_none")]
    min_keyslot_key_bits: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keyslot_types: Option<NamesForm>,
    #[serde(default, deserialize_with = "hashes", skip_serializing_if = "Option::is_none")]
    hashes: Option<NamesForm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    requirements: Option<NamesForm>,
    #[serde(default, deserialize_with = "segment_types", skip_serializing_if = "Option::is_none")]
    segment_types: Option<NamesForm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_reencryption: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kdf: Option<KdfForm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pins: Option<PinsForm>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct KdfForm {
    #[serde(default, deserialize_with = "kdf_types", skip_serializing_if = "Option::is_none")]
    types: Option<NamesForm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pbkdf2_iterations: Option<BoundsForm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2_passes: Option<BoundsForm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2_memory_kib: Option<BoundsForm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2_lanes: Option<BoundsForm>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PinsForm {
    #[serde(default, deserialize_with = "uuid", skip_serializing_if = "Option::is_none")]
    uuid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<Epoch>,
    #[serde(default, deserialize_with = "volume_keys", skip_serializing_if = "Option::is_none")]
    volume_keys: Option<Vec<FingerprintForm>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<FingerprintForm>,
}

impl PolicyForm {
    /// Everything that `policy` says, so that no preset matters.
    pub(super) fn of(policy: &Policy) -> PolicyForm {
        let names = |names: &Names| Some(NamesForm(names.clone()));
        let bounds = |bounds: Bounds| Some(BoundsForm { min: bounds.min, max: bounds.max });
        PolicyForm {
            preset: None,
            versions: Some(policy.versions.clone()),
            ciphers: names(&policy.ciphers),
            keyslot_ciphers: names(&policy.keyslot_ciphers),
            allow_null_cipher: Some(policy.null_cipher),
            min_key_bits: Some(policy.key_bits_min),
            min_keyslot_key_bits: Some(policy.keyslot_key_bits_min),
            keyslot_types: names(&policy.keyslot_types),
            hashes: names(&policy.hashes),
            requirements: names(&policy.requirements),
            segment_types: names(&policy.segment_types),
            allow_reencryption: Some(policy.reencryption),
            kdf: Some(KdfForm {
                types: names(&policy.kdf_types),
                pbkdf2_iterations: bounds(policy.pbkdf2_iterations),
                argon2_passes: bounds(policy.argon2_passes),
                argon2_memory_kib: bounds(policy.argon2_memory_kib),
                argon2_lanes: bounds(policy.argon2_lanes),
            }),
            pins: (!policy.pins.is_empty()).then(|| PinsForm::of(&policy.pins)),
        }
    }

    /// The policy, called `name`.
    pub(super) fn policy(self, name: &str) -> Policy {
        let preset = self.preset.as_deref().and_then(Policy::preset).unwrap_or_else(Policy::strict);
        let mut policy = preset.named(name);
        put(&mut policy.versions, self.versions);
        put(&mut policy.ciphers, names(self.ciphers));
        put(&mut policy.keyslot_ciphers, names(self.keyslot_ciphers));
        put(&mut policy.null_cipher, self.allow_null_cipher);
        put(&mut policy.key_bits_min, self.min_key_bits);
        put(&mut policy.keyslot_key_bits_min, self.min_keyslot_key_bits);
        put(&mut policy.keyslot_types, names(self.keyslot_types));
        put(&mut policy.hashes, names(self.hashes));
        put(&mut policy.requirements, names(self.requirements));
        put(&mut policy.segment_types, names(self.segment_types));
        put(&mut policy.reencryption, self.allow_reencryption);
        let kdf = self.kdf.unwrap_or_default();
        put(&mut policy.kdf_types, names(kdf.types));
        put(&mut policy.pbkdf2_iterations, kdf.pbkdf2_iterations.map(Bounds::from));
        put(&mut policy.argon2_passes, kdf.argon2_passes.map(Bounds::from));
        put(&mut policy.argon2_memory_kib, kdf.argon2_memory_kib.map(Bounds::from));
        put(&mut policy.argon2_lanes, kdf.argon2_lanes.map(Bounds::from));
        policy.pins = self.pins.map(PinsForm::pins).unwrap_or_default();
        policy
    }
}

fn put<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn names(form: Option<NamesForm>) -> Option<Names> {
    form.map(|form| form.0)
}

impl PinsForm {
    fn of(pins: &Pins) -> PinsForm {
        let volume_keys: Vec<FingerprintForm> = pins.volume_keys.iter().copied().map(FingerprintForm).collect();
        PinsForm {
            uuid: pins.uuid.clone(),
            epoch: pins.epoch.map(Epoch),
            volume_keys: (!volume_keys.is_empty()).then_some(volume_keys),
            segments: pins.segments.map(FingerprintForm),
        }
    }

    fn pins(self) -> Pins {
        let mut pins = Pins::default();
        pins.uuid = self.uuid;
        pins.epoch = self.epoch.map(|epoch| epoch.0);
        pins.volume_keys = self.volume_keys.unwrap_or_default().into_iter().map(|form| form.0).collect();
        pins.segments = self.segments.map(|form| form.0);
        pins
    }
}

/// The lines below `[pins]`.
pub(super) fn pins_table(pins: &Pins) -> Result<String, toml::ser::Error> {
    toml::to_string(&PinsForm::of(pins))
}

/// A list of names, or "any".
#[derive(Clone, Debug, PartialEq, Eq)]
struct NamesForm(Names);

impl Serialize for NamesForm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Names::Any => serializer.serialize_str("any"),
            Names::Only(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for NamesForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NamesForm, D::Error> {
        deserializer.deserialize_any(NamesVisitor)
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = NamesForm;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"any\" or a list of names")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<NamesForm, E> {
        if text == "any" { Ok(NamesForm(Names::Any)) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<NamesForm, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = list.next_element::<String>()? {
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return Err(A::Error::custom(format!(
                    "a name of {} bytes; 1 to {NAME_BYTES_MAX} are possible",
                    name.len()
                )));
            }
            names.push(name);
        }
        Ok(NamesForm(Names::Only(names)))
    }
}

/// A list of names, each of which must be known to `check`.
fn known<'de, D: Deserializer<'de>>(
    deserializer: D,
    check: impl Fn(&str) -> Result<(), String>,
) -> Result<Option<NamesForm>, D::Error> {
    let form = NamesForm::deserialize(deserializer)?;
    if let Names::Only(names) = &form.0 {
        names.iter().try_for_each(|name| check(name)).map_err(D::Error::custom)?;
    }
    Ok(Some(form))
}

fn ciphers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NamesForm>, D::Error> {
    known(deserializer, |name| match is_null_cipher(name) {
        true => Err(format!("{name} encrypts nothing and is in no list: say `allow-null-cipher = true`")),
        false => Ok(()),
    })
}

fn hashes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NamesForm>, D::Error> {
    known(deserializer, |name| HashAlg::parse(name).map(drop).map_err(|error| error.to_string()))
}

fn kdf_types<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NamesForm>, D::Error> {
    known(deserializer, |name| one_of(name, &["argon2id", "argon2i", "pbkdf2"]))
}

fn segment_types<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<NamesForm>, D::Error> {
    known(deserializer, |name| one_of(name, &["crypt", "linear", "hw-opal", "hw-opal-crypt"]))
}

fn one_of(name: &str, all: &[&str]) -> Result<(), String> {
    if all.contains(&name) { Ok(()) } else { Err(format!("unknown name {name:?}; there are {}", all.join(", "))) }
}

fn preset<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(deserializer)?;
    one_of(&name, &["default", "strict"]).map_err(D::Error::custom)?;
    Ok(Some(name))
}

fn versions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u16>>, D::Error> {
    let versions = Vec::<u16>::deserialize(deserializer)?;
    match versions.iter().find(|version| !matches!(version, 1 | 2)) {
        Some(other) => Err(D::Error::custom(format!("there is no LUKS version {other}; there are 1 and 2"))),
        None if versions.is_empty() => Err(D::Error::custom("no version at all: that accepts no header")),
        None => Ok(Some(versions)),
    }
}

fn key_bits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let bits = u32::deserialize(deserializer)?;
    if bits > KEY_BITS_MAX {
        return Err(D::Error::custom(format!("no key has {bits} bits; the longest has {KEY_BITS_MAX}")));
    }
    Ok(Some(bits))
}

/// A floor and a ceiling, both stated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BoundsText")]
struct BoundsForm {
    min: u32,
    max: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BoundsText {
    min: u32,
    max: u32,
}

impl TryFrom<BoundsText> for BoundsForm {
    type Error = String;

    fn try_from(text: BoundsText) -> Result<BoundsForm, String> {
        let BoundsText { min, max } = text;
        if min > max {
            Err(format!("nothing is at least {min} and at most {max}"))
        } else {
            Ok(BoundsForm { min, max })
        }
    }
}

impl From<BoundsForm> for Bounds {
    fn from(form: BoundsForm) -> Bounds {
        Bounds { min: form.min, max: form.max }
    }
}

fn uuid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let uuid = String::deserialize(deserializer)?;
    if uuid.is_empty() || uuid.len() > UUID_BYTES_MAX || uuid.chars().any(char::is_control) {
        return Err(D::Error::custom(format!("no header has the UUID {uuid:?}")));
    }
    Ok(Some(uuid))
}

fn volume_keys<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<FingerprintForm>>, D::Error> {
    let prints = Vec::<FingerprintForm>::deserialize(deserializer)?;
    if prints.is_empty() {
        return Err(D::Error::custom("no volume key at all: leave the key out to pin none"));
    }
    Ok(Some(prints))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FingerprintForm(Fingerprint);

impl Serialize for FingerprintForm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for FingerprintForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<FingerprintForm, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(FingerprintForm).map_err(D::Error::custom)
    }
}

/// A sequence number. TOML's integers end at 2^63, so a larger one is a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Epoch(u64);

impl Serialize for Epoch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match i64::try_from(self.0) {
            Ok(number) => serializer.serialize_i64(number),
            Err(_) => serializer.collect_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Epoch, D::Error> {
        deserializer.deserialize_any(EpochVisitor)
    }
}

struct EpochVisitor;

impl Visitor<'_> for EpochVisitor {
    type Value = Epoch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an epoch: a number that is not negative")
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Epoch, E> {
        Ok(Epoch(number))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Epoch, E> {
        u64::try_from(number).map(Epoch).map_err(|_| E::invalid_value(Unexpected::Signed(number), &self))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Epoch, E> {
        text.parse().map(Epoch).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}
