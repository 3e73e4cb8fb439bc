//! The two versions that `format` makes: the library's parameters and plans of each, and what LUKS1 does not have.

use std::fmt;
use std::sync::Arc;

use block::{Bytes, FileDisk, Geometry, Sectors};
use luks::env::Env;
use luks::format::{FormatParams, FormatPlan, NewKdf, format, format_with_key, plan};
use luks::luks1::format::{Luks1FormatParams, Luks1FormatPlan, format as format_luks1, plan as plan_luks1};
use luks::{Error, KeyslotId, Version};
use secret::Secret;
use serde_json::{Value, json};

use super::FormatArgs;
use crate::failure::Failure;
use crate::kdf;

/// The library's parameters. Their key derivation is a cheap placeholder until it is measured, after every refusal.
pub(super) enum Params {
    Luks1(Box<Luks1FormatParams>),
    Luks2(Box<FormatParams>),
}

/// What would be written.
pub(super) enum Plan {
    Luks1(Box<Luks1FormatPlan>),
    Luks2(Box<FormatPlan>),
}

impl Params {
    /// What the options ask for.
    pub(super) fn of(args: &FormatArgs) -> Result<Params, Failure> {
        let data_offset = args.offset.map(|sectors| {
            Sectors(sectors).to_bytes().ok_or_else(|| Failure::wrong(format!("--offset {sectors}: too many sectors")))
        });
        let data_offset = data_offset.transpose()?;
        let digest = Some(kdf::digest_cost(&args.kdf));
        if args.target.version() == Some(Version::Luks1) {
            let refused = |error| {
                Failure::of_luks(&args.target.image, error).with_hint("leave the option out, or make it --type luks2")
            };
            refuse_luks2(args).map_err(refused)?;
            return Ok(Params::Luks1(Box::new(Luks1FormatParams {
                cipher: args.cipher.clone(),
                key_size_bits: args.key_size,
                digest,
                hash: args.kdf.hash().to_owned(),
                keyslot: KeyslotId(args.key_slot),
                uuid: args.uuid.clone(),
                data_offset,
                detached: args.target.header.is_some(),
                policy: args.target.policy()?,
                ..Luks1FormatParams::default()
            })));
        }
        Ok(Params::Luks2(Box::new(FormatParams {
            cipher: args.cipher.clone(),
            key_size_bits: args.key_size,
            sector_size: args.sector_size,
            digest,
            hash: args.kdf.hash().to_owned(),
            keyslot: KeyslotId(args.key_slot),
            keyslot_encryption: kdf::keyslot_encryption(&args.kdf),
            label: args.label.clone(),
            subsystem: args.subsystem.clone(),
            uuid: args.uuid.clone(),
            metadata_size: args.luks2_metadata_size,
            keyslots_size: args.luks2_keyslots_size,
            data_offset,
            detached: args.target.header.is_some(),
            policy: args.target.policy()?,
            ..FormatParams::default()
        })))
    }

    /// Works out what would be written.
    pub(super) fn plan(&self, header: &Geometry, data: &Geometry) -> Result<Plan, Error> {
        Ok(match self {
            Params::Luks1(params) => Plan::Luks1(Box::new(plan_luks1(params, data)?)),
            Params::Luks2(params) => Plan::Luks2(Box::new(plan(params, header, data)?)),
        })
    }

    /// Measures or checks what the first keyslot will cost.
    pub(super) fn measure(&mut self, args: &FormatArgs, plan: &Plan, env: &Env<'_>) -> Result<(), Error> {
        let key_size_bytes = plan.keyslot_key_size_bytes();
        match self {
            Params::Luks1(params) => {
                let args = kdf::of_luks1(&args.kdf, &params.hash)?;
                params.kdf = NewKdf::Given(kdf::params(&args, key_size_bytes, env)?);
            }
            Params::Luks2(params) => params.kdf = NewKdf::Given(kdf::params(&args.kdf, key_size_bytes, env)?),
        }
        Ok(())
    }

    /// Formats, and gives the UUID. `key` is the volume key of a LUKS2 container where it is given.
    pub(super) fn format(
        &self,
        header: &Arc<FileDisk>,
        data: &Arc<FileDisk>,
        env: &Env<'_>,
        passphrase: &Secret,
        key: Option<Secret>,
    ) -> Result<String, Error> {
        match self {
            Params::Luks1(params) => Ok(format_luks1(header, data, env, params, passphrase)?.uuid.to_string()),
            Params::Luks2(params) => Ok(match key {
                Some(key) => format_with_key(header, data, env, params, passphrase, key)?.uuid(),
                None => format(header, data, env, params, passphrase)?.uuid(),
            }),
        }
    }
}

/// Names the first option that LUKS1 cannot follow.
fn refuse_luks2(args: &FormatArgs) -> Result<(), Error> {
    let asked = [
        (args.label.is_some() || args.subsystem.is_some(), "labels"),
        (args.sector_size.is_some_and(|size| size != 512), "encryption sectors but those of 512 bytes"),
        (args.luks2_metadata_size.is_some() || args.luks2_keyslots_size.is_some(), "metadata of another size"),
    ];
    match asked.into_iter().find(|(asked, _)| *asked) {
        Some((_, no)) => Err(Error::Luks1Has { no }),
        None => kdf::of_luks1(&args.kdf, args.kdf.hash()).map(drop),
    }
}

impl Plan {
    /// How long the device that holds the header must be.
    pub(super) fn header_size(&self) -> Bytes {
        match self {
            Plan::Luks1(plan) => plan.header_size(),
            Plan::Luks2(plan) => plan.header_size(),
        }
    }

    /// What is allowed but should be known.
    pub(super) fn warnings(&self) -> &[String] {
        match self {
            Plan::Luks1(plan) => &plan.warnings,
            Plan::Luks2(plan) => &plan.warnings,
        }
    }

    /// Size of the volume.
    pub(super) fn data_size(&self) -> Bytes {
        match self {
            Plan::Luks1(plan) => plan.data_size,
            Plan::Luks2(plan) => plan.data_size,
        }
    }

    /// Which version it is.
    pub(super) fn version(&self) -> Version {
        match self {
            Plan::Luks1(_) => Version::Luks1,
            Plan::Luks2(_) => Version::Luks2,
        }
    }

    /// Size of the volume key.
    pub(super) fn key_size_bytes(&self) -> usize {
        match self {
            Plan::Luks1(plan) => plan.header().key_bytes as usize,
            Plan::Luks2(plan) => plan.key_size_bytes,
        }
    }

    fn keyslot_key_size_bytes(&self) -> usize {
        match self {
            Plan::Luks1(plan) => plan.header().key_bytes as usize,
            Plan::Luks2(plan) => plan.keyslot_encryption.1,
        }
    }

    /// What a machine wants to know of it; `uuid` if it was written.
    pub(super) fn in_json(&self, args: &FormatArgs, uuid: Option<String>) -> Value {
        let mut report = match self {
            Plan::Luks1(plan) => luks1_json(plan),
            Plan::Luks2(plan) => luks2_json(plan),
        };
        let planned = match self {
            Plan::Luks1(plan) => plan.uuid(),
            Plan::Luks2(plan) => plan.uuid.clone(),
        };
        report["image"] = output(&args.target.image);
        report["header"] = args.target.header.as_deref().map_or(Value::Null, output);
        report["version"] = self.version().number().into();
        report["written"] = uuid.is_some().into();
        report["uuid"] = uuid.or(planned).into();
        report
    }
}

fn output(path: &std::path::Path) -> Value {
    json!(crate::output::path(path))
}

fn luks1_json(plan: &Luks1FormatPlan) -> Value {
    let header = plan.header();
    json!({
        "label": null,
        "subsystem": null,
        "cipher": header.cipher(),
        "key_size_bits": u64::from(header.key_bytes) * 8,
        "sector_size_bytes": 512,
        "data_offset_bytes": header.payload_offset().0,
        "volume_size_bytes": plan.data_size.0,
        "keyslot_room": header.slots.len(),
        "hash": header.hash_spec.to_text(),
        "warnings": plan.warnings,
    })
}

fn luks2_json(plan: &FormatPlan) -> Value {
    json!({
        "label": plan.label,
        "subsystem": plan.subsystem,
        "cipher": plan.cipher,
        "key_size_bits": plan.key_size_bytes * 8,
        "sector_size_bytes": plan.sector_size.bytes(),
        "metadata_size_bytes": plan.metadata_size.0,
        "keyslots_size_bytes": plan.keyslots_size.0,
        "data_offset_bytes": plan.data_offset.0,
        "volume_size_bytes": plan.data_size.0,
        "keyslot_room": plan.keyslot_room(),
        "hash": plan.hash.name(),
        "warnings": plan.warnings,
    })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plan::Luks1(plan) => plan.fmt(f),
            Plan::Luks2(plan) => plan.fmt(f),
        }
    }
}
