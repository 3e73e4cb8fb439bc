//! A policy held against a header, rule by rule. Each rule is stated once, for either version of LUKS.

use std::fmt;

use crate::header::Header;
use crate::luks1::Luks1Header;
use crate::metadata::keyslot::{Kdf, Keyslot};
use crate::metadata::segment::Segment;
use crate::metadata::{KeyslotId, Metadata, SegmentId};
use crate::requirements::{self, Kind};

use super::breach::LISTED_MAX;
use super::{Bounds, Breach, Fingerprint, Names, Place, Policy, PolicyRule, is_null_cipher};

/// The flag of the segment that a re-encryption works on.
const HOT: &str = "in-reencryption";

/// The breaches found so far.
struct Judge<'a> {
    policy: &'a Policy,
    breaches: Vec<Breach>,
}

impl<'a> Judge<'a> {
    fn new(policy: &'a Policy) -> Judge<'a> {
        Judge { policy, breaches: Vec::new() }
    }

    fn finish(self) -> Vec<Breach> {
        self.breaches
    }

    fn breach(&mut self, rule: PolicyRule, place: Place, value: impl fmt::Display, allowed: impl fmt::Display) {
        if self.breaches.len() < LISTED_MAX {
            self.breaches.push(Breach::new(rule, place, value, allowed));
        }
    }

    fn name(&mut self, rule: PolicyRule, place: Place, name: &str, names: &Names) {
        if !names.accepts(name) {
            self.breach(rule, place, name, names);
        }
    }

    fn version(&mut self, version: u16) {
        if !self.policy.versions.contains(&version) {
            let allowed: Vec<String> = self.policy.versions.iter().map(ToString::to_string).collect();
            self.breach(PolicyRule::Version, Place::Header, version, allowed.join(", "));
        }
    }

    /// `rule` is [`PolicyRule::Cipher`] or [`PolicyRule::KeyslotCipher`].
    fn cipher(&mut self, rule: PolicyRule, place: Place, encryption: &str) {
        let policy = self.policy;
        if is_null_cipher(encryption) {
            if !policy.null_cipher {
                self.breach(PolicyRule::NullCipher, place, encryption, "a cipher that encrypts");
            }
            return;
        }
        let names = if rule == PolicyRule::Cipher { &policy.ciphers } else { &policy.keyslot_ciphers };
        self.name(rule, place, encryption, names);
    }

    /// `rule` is [`PolicyRule::KeySize`] or [`PolicyRule::KeyslotKeySize`].
    fn key_size(&mut self, rule: PolicyRule, place: Place, key_size_bytes: u32) {
        let policy = self.policy;
        let min = if rule == PolicyRule::KeySize { policy.key_bits_min } else { policy.keyslot_key_bits_min };
        let bits = u64::from(key_size_bytes) * 8;
        if bits < u64::from(min) {
            self.breach(rule, place, format_args!("{bits} bits"), format_args!("{min} bits or more"));
        }
    }

    fn hash(&mut self, place: Place, use_of: &str, hash: &str) {
        let policy = self.policy;
        if !policy.hashes.accepts(hash) {
            self.breach(PolicyRule::Hash, place, format_args!("{hash} ({use_of})"), &policy.hashes);
        }
    }

    fn kdf_type(&mut self, place: Place, kdf: &str) {
        let policy = self.policy;
        self.name(PolicyRule::KdfType, place, kdf, &policy.kdf_types);
    }

    fn pbkdf2(&mut self, place: Place, iterations: u32) {
        let bounds = self.policy.pbkdf2_iterations;
        self.cost(place, "pbkdf2 iterations", iterations, bounds);
    }

    /// A digest's own derivation: nobody guesses a random volume key, but somebody may have to wait for it.
    fn digest_cost(&mut self, place: Place, iterations: u32) {
        let bounds = Bounds { min: 0, ..self.policy.pbkdf2_iterations };
        self.cost(place, "pbkdf2 iterations", iterations, bounds);
    }

    fn cost(&mut self, place: Place, what: &str, value: u32, bounds: Bounds) {
        if value < bounds.min {
            let allowed = format_args!("{} or more", bounds.min).to_string();
            self.breach(PolicyRule::KdfFloor, place, format_args!("{what} {value}"), allowed);
        }
        if value > bounds.max {
            let allowed = format_args!("{} or less", bounds.max).to_string();
            self.breach(PolicyRule::KdfCeiling, place, format_args!("{what} {value}"), allowed);
        }
    }

    fn reencryption(&mut self, place: Place, value: impl fmt::Display) {
        if !self.policy.reencryption {
            self.breach(PolicyRule::Reencryption, place, value, "no re-encryption under way");
        }
    }

    fn uuid(&mut self, uuid: &str) {
        let policy = self.policy;
        if let Some(pinned) = policy.pins.uuid.as_ref().filter(|pinned| !pinned.eq_ignore_ascii_case(uuid)) {
            self.breach(PolicyRule::PinnedUuid, Place::Header, uuid, pinned);
        }
    }

    /// `None` for a format that has no epoch.
    fn epoch(&mut self, epoch: Option<u64>) {
        let Some(pinned) = self.policy.pins.epoch else { return };
        let allowed = format!("{pinned} or higher");
        match epoch {
            None => self.breach(PolicyRule::PinnedEpoch, Place::Header, "none: LUKS1 has no epoch", allowed),
            Some(epoch) if epoch < pinned => self.breach(PolicyRule::PinnedEpoch, Place::Header, epoch, allowed),
            Some(_) => {}
        }
    }

    fn volume_key(&mut self, place: Place, found: Fingerprint) {
        let pinned = &self.policy.pins.volume_keys;
        if !pinned.is_empty() && !pinned.contains(&found) {
            let allowed: Vec<String> = pinned.iter().map(ToString::to_string).collect();
            self.breach(PolicyRule::PinnedVolumeKey, place, found, allowed.join(", "));
        }
    }

    fn segments(&mut self, found: Fingerprint) {
        if let Some(pinned) = self.policy.pins.segments.filter(|pinned| *pinned != found) {
            self.breach(PolicyRule::PinnedSegments, Place::Header, found, pinned);
        }
    }
}

/// Everything that `policy` does not accept of a LUKS2 header.
pub(super) fn of_luks2(policy: &Policy, header: &Header) -> Vec<Breach> {
    let mut judge = Judge::new(policy);
    judge.version(2);
    judge.uuid(&header.uuid());
    judge.epoch(Some(header.seqid()));
    judge.hash(Place::Header, "header checksum", &String::from_utf8_lossy(&header.binary().csum_alg));
    judge.metadata(header.metadata());
    judge.finish()
}

/// Everything that `policy` does not accept of a LUKS1 header.
pub(super) fn of_luks1(policy: &Policy, header: &Luks1Header) -> Vec<Breach> {
    let mut judge = Judge::new(policy);
    judge.version(1);
    judge.uuid(&header.uuid.to_text());
    judge.epoch(None);
    judge.metadata(&header.metadata());
    judge.finish()
}

impl Judge<'_> {
    /// What either version has, in LUKS2's words.
    fn metadata(&mut self, metadata: &Metadata) {
        self.requirements(metadata);
        for (id, segment) in metadata.segments.iter() {
            self.segment(id, segment);
        }
        for (id, keyslot) in metadata.keyslots.iter() {
            self.keyslot(metadata, id, keyslot);
        }
        self.digests(metadata);
        self.segments(Fingerprint::of_segments(metadata));
    }

    fn requirements(&mut self, metadata: &Metadata) {
        for name in &metadata.config.mandatory {
            if requirements::kind_of(name) == Kind::Reencryption {
                self.reencryption(Place::Header, format_args!("requirement {name}"));
            } else {
                let policy = self.policy;
                self.name(PolicyRule::Requirement, Place::Header, name, &policy.requirements);
            }
        }
    }

    fn segment(&mut self, id: SegmentId, segment: &Segment) {
        let (place, policy) = (Place::Segment(id), self.policy);
        self.name(PolicyRule::SegmentType, place, &segment.type_name, &policy.segment_types);
        if segment.is_backup() || segment.has_flag(HOT) {
            self.reencryption(place, format_args!("flagged {}", segment.flags.join(", ")));
        }
        if let Some(crypt) = &segment.crypt {
            self.cipher(PolicyRule::Cipher, place, &crypt.encryption);
        }
    }

    fn keyslot(&mut self, metadata: &Metadata, id: KeyslotId, keyslot: &Keyslot) {
        let (place, policy) = (Place::Keyslot(id), self.policy);
        if keyslot.type_name == "reencrypt" {
            return self.reencryption(place, "a keyslot of type reencrypt");
        }
        self.name(PolicyRule::KeyslotType, place, &keyslot.type_name, &policy.keyslot_types);
        let Some(slot) = keyslot.luks2() else { return };
        let mut digests = metadata.digests.iter();
        if digests.any(|(_, digest)| digest.keyslots.contains(&id) && !digest.segments.is_empty()) {
            self.key_size(PolicyRule::KeySize, place, keyslot.key_size_bytes);
        }
        if let Some(encryption) = &keyslot.area.encryption {
            self.cipher(PolicyRule::KeyslotCipher, place, encryption);
        }
        if let Some(key_size_bytes) = keyslot.area.key_size_bytes {
            self.key_size(PolicyRule::KeyslotKeySize, place, key_size_bytes);
        }
        self.hash(place, "anti-forensic splitter", &slot.af.hash);
        self.kdf(place, &slot.kdf);
    }

    fn kdf(&mut self, place: Place, kdf: &Kdf) {
        let policy = self.policy;
        match kdf {
            Kdf::Pbkdf2 { hash, iterations, .. } => {
                self.kdf_type(place, "pbkdf2");
                self.hash(place, "key derivation", hash);
                self.pbkdf2(place, *iterations);
            }
            Kdf::Argon2 { variant, time, memory_kib, cpus, .. } => {
                self.kdf_type(place, variant.name());
                self.cost(place, "argon2 passes", *time, policy.argon2_passes);
                self.cost(place, "argon2 memory in KiB", *memory_kib, policy.argon2_memory_kib);
                self.cost(place, "argon2 lanes", *cpus, policy.argon2_lanes);
            }
            Kdf::Other { type_name, .. } => self.kdf_type(place, type_name),
        }
    }

    fn digests(&mut self, metadata: &Metadata) {
        let mut bound = false;
        for (id, digest) in metadata.digests.iter() {
            let place = Place::Digest(id);
            if let Some(hash) = &digest.hash {
                self.hash(place, "digest", hash);
            }
            if let Some(iterations) = digest.iterations {
                self.digest_cost(place, iterations);
            }
            if !digest.segments.is_empty() {
                bound = true;
                self.volume_key(place, Fingerprint::of_digest(digest));
            }
        }
        if !bound && !self.policy.pins.volume_keys.is_empty() {
            self.breach(PolicyRule::PinnedVolumeKey, Place::Header, "no digest of a segment", "the pinned one");
        }
    }
}
