//! `token add IMAGE --key-description TEXT`: a `luks2-keyring` token. The key itself is put into the keyring by others
//! (`keyctl add user TEXT … @s`); opening then asks nobody.

use clap::Args;
use luks::{KeyslotId, Token, TokenId};
use serde_json::json;

use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, Image};
use crate::output;

/// Arguments of `token add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Description of the key of type `user` that holds the passphrase
    #[arg(long, value_name = "TEXT")]
    key_description: String,
    /// The keyslot that the passphrase opens [default: all that there are]
    #[arg(short = 'S', long, value_name = "N")]
    key_slot: Option<u32>,
    /// Tie it to no keyslot
    #[arg(long, conflicts_with = "key_slot")]
    unbound: bool,
    /// Number of the new token [default: the lowest free one]
    #[arg(long, value_name = "N")]
    token_id: Option<u32>,
    /// Replace the token that has this number
    #[arg(long, requires = "token_id")]
    token_replace: bool,
    #[command(flatten)]
    report: ReportArgs,
}

/// Adds the token.
pub(super) fn run(args: &AddArgs) -> Result<Code, Failure> {
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.luks2(&image::limits(&LimitArgs::default()), "tokens")?;
    let slots = match args.key_slot {
        Some(id) => vec![KeyslotId(id)],
        None if args.unbound => Vec::new(),
        None => {
            let slots = container.header().metadata().keyslots.iter();
            slots.filter(|(_, slot)| slot.luks2().is_some()).map(|(id, _)| id).collect()
        }
    };
    let refused = |error| Failure::of_luks(image.path(), error);
    let token = Token::keyring(&args.key_description, slots).map_err(refused)?;
    let id = super::text::put(&mut container, args.token_id, args.token_replace, token).map_err(refused)?;
    said(&image, id, args.report)
}

/// Reports the id of a new token.
pub(super) fn said(image: &Image, id: TokenId, report: ReportArgs) -> Result<Code, Failure> {
    if report.json {
        output::json(&json!({ "image": output::path(image.path()), "token": id.0 }))?;
    } else {
        output::words(&format!("Token {id} added."));
    }
    Ok(Code::Success)
}
