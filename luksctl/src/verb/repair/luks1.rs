//! `repair` of a LUKS1 header, which has one copy: damaged fields of keyslots get their values back, removals are finished.

use luks::luks1::repair::{Luks1RepairPlan, Mend, MendedField, repair};
use luks::{AnyHeader, Version};
use serde_json::{Value, json};
use session::SystemEnv;

use super::RepairArgs;
use crate::args::Common;
use crate::args::target::LimitArgs;
use crate::confirm;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Image};
use crate::output;

/// Shows the plan, asks, repairs.
pub(super) fn run(args: &RepairArgs, image: &Image, plan: Luks1RepairPlan, common: &Common) -> Result<Code, Failure> {
    let failed = |error| Failure::of_luks(image.header().path(), error);
    image.accepts(&AnyHeader::Luks1(Box::new(plan.header.clone()))).map_err(failed)?;
    if plan.is_nothing() || args.dry_run {
        show(args, image, &plan, false)?;
        return Ok(if plan.is_nothing() { Code::Success } else { Code::Found });
    }
    if !common.batch_mode && confirm::can_ask() {
        confirm::typed_yes(&format!("{}: {}.", image.path().display(), words(&plan)))?;
    }
    let limits = image::limits(&LimitArgs::default());
    repair(image.header(), &SystemEnv.env(), &limits, &plan).map_err(failed)?;
    show(args, image, &plan, true)?;
    Ok(Code::Success)
}

fn show(args: &RepairArgs, image: &Image, plan: &Luks1RepairPlan, repaired: bool) -> Result<(), Failure> {
    if args.report.json {
        return output::json(&json!({
            "image": output::path(image.path()),
            "version": Version::Luks1.number(),
            "needs_repair": !plan.is_nothing() && !repaired,
            "repaired": repaired,
            "source": "primary",
            "epoch": null,
            "rewrite": null,
            "fields": plan.mends.iter().map(in_json).collect::<Vec<_>>(),
            "half_removed": plan.half_removed.iter().map(|id| id.0).collect::<Vec<_>>(),
        }));
    }
    let done = if repaired { "Done: " } else { "" };
    output::words(&format!("{done}{}", words(plan)));
    // Its key material was not touched; whether that lies where the header says now, only its passphrase tells.
    let placed = |mend: &&Mend| mend.enabled && matches!(mend.field, MendedField::Place { .. });
    if let Some(mend) = plan.mends.iter().find(placed).filter(|_| repaired) {
        let id = mend.keyslot;
        output::words(&format!("hint: luksctl keyslot test {} -S {id}", image.path().display()));
    }
    Ok(())
}

fn words(plan: &Luks1RepairPlan) -> String {
    if plan.is_nothing() {
        return "the header is valid, nothing to repair".to_owned();
    }
    let mut parts: Vec<String> = plan.mends.iter().map(ToString::to_string).collect();
    if !plan.half_removed.is_empty() {
        parts.push(super::finish_words(&plan.half_removed));
    }
    parts.join("; ")
}

fn in_json(mend: &Mend) -> Value {
    let (found, becomes) = match mend.field {
        MendedField::Stripes { found } => (json!(found), json!(4000)),
        MendedField::State { found } => {
            (json!(format!("{found:08x}")), json!(if mend.enabled { "enabled" } else { "disabled" }))
        }
        MendedField::Place { found_sectors, right_sectors } => (json!(found_sectors), json!(right_sectors)),
    };
    json!({ "keyslot": mend.keyslot.0, "field": mend.field.name(), "found": found, "becomes": becomes })
}
