//! `token list IMAGE`: the tokens, the keyslots they lead to, and what is known of them here.

use clap::Args;
use comfy_table::{Table, presets};
use luks::{SlotName, Token, TokenId};
use serde_json::{Value, json};

use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::output;

/// Arguments of `token list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Prints the tokens.
pub(super) fn run(args: &ListArgs) -> Result<Code, Failure> {
    let image = Image::open(&args.target, Access::Read)?;
    let header = image.load_luks2(&image::limits(&LimitArgs::default()), "tokens")?;
    image::advise(image.path(), header.health().advice());
    let tokens = &header.metadata().tokens;
    if args.report.json {
        let tokens: Vec<Value> = tokens.sorted().into_iter().map(|(id, token)| in_json(id, token)).collect();
        output::json(&json!({ "image": output::path(image.path()), "tokens": tokens }))?;
        return Ok(Code::Success);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["token", "type", "keyslots", "says"]);
    for (id, token) in tokens.sorted() {
        let slots: Vec<String> = token.keyslots.iter().map(ToString::to_string).collect();
        let slots = if slots.is_empty() { "none".to_owned() } else { slots.join(", ") };
        table.add_row([id.to_string(), token.type_name.clone(), slots, says(token)]);
    }
    for line in table.lines() {
        output::line(line.trim_end())?;
    }
    Ok(Code::Success)
}

/// One token for machines; shared with `dump --json`.
pub(crate) fn in_json(id: TokenId, token: &Token) -> Value {
    let slots: Vec<u32> = token.keyslots.iter().map(|slot| slot.0).collect();
    json!({
        "id": id.0,
        "type": token.type_name,
        "keyslots": slots,
        "key_description": token.key_description(),
    })
}

fn says(token: &Token) -> String {
    let name = || SlotName::read(token).map(|name| name.text);
    token.key_description().map(str::to_owned).or_else(name).unwrap_or_default()
}
