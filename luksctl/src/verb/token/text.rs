//! `token import` and `token export`: a token as JSON, byte for byte as its handler wrote it.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::Args;
use luks::{Error, KeyslotId, Token, TokenId};

use super::add::said;
use crate::args::target::{LimitArgs, ReportArgs, TargetArgs};
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, FileContainer, Image};
use crate::new_file::NewFile;
use crate::output;

/// No token can be larger than the largest JSON area.
const TEXT_BYTES_MAX: u64 = 4 << 20;

/// Arguments of `token import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Read the JSON from this file [default: standard input]
    #[arg(long, value_name = "FILE")]
    json_file: Option<PathBuf>,
    /// Number of the new token [default: the lowest free one]
    #[arg(long, value_name = "N")]
    token_id: Option<u32>,
    /// Replace the token that has this number
    #[arg(long, requires = "token_id")]
    token_replace: bool,
    /// Have it lead to this keyslot, too
    #[arg(short = 'S', long, value_name = "N")]
    key_slot: Option<u32>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Arguments of `token export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Number of the token
    #[arg(long, value_name = "N")]
    token_id: u32,
    /// Write the JSON to this new file [default: standard output]
    #[arg(long, value_name = "FILE")]
    json_file: Option<PathBuf>,
}

/// Imports a token.
pub(super) fn import(args: &ImportArgs) -> Result<Code, Failure> {
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.luks2(&image::limits(&LimitArgs::default()), "tokens")?;
    let text = read(args.json_file.as_deref().filter(|path| *path != Path::new("-")))?;
    let refused = |error| Failure::of_luks(image.path(), error);
    let mut token = Token::from_json(&text).map_err(refused)?;
    if let Some(id) = args.key_slot.map(KeyslotId).filter(|id| !token.keyslots.contains(id)) {
        token.keyslots.push(id);
    }
    let id = put(&mut container, args.token_id, args.token_replace, token).map_err(refused)?;
    said(&image, id, args.report)
}

/// Adds the token, or replaces one.
pub(super) fn put(
    container: &mut FileContainer,
    id: Option<u32>,
    replace: bool,
    token: Token,
) -> Result<TokenId, Error> {
    match id.map(TokenId) {
        Some(id) if replace => container.token_replace(id, token).map(|()| id),
        id => container.token_add(id, token),
    }
}

/// Exports a token.
pub(super) fn export(args: &ExportArgs) -> Result<Code, Failure> {
    let image = Image::open(&args.target, Access::Read)?;
    let header = image.load_luks2(&image::limits(&LimitArgs::default()), "tokens")?;
    let id = TokenId(args.token_id);
    let token = header.metadata().tokens.get(id);
    let token = token.ok_or_else(|| Failure::of_luks(image.path(), Error::TokenMissing { token: id }))?;
    match args.json_file.as_deref().filter(|path| *path != Path::new("-")) {
        // A terminal obeys what a stranger wrote into a token.
        None if std::io::IsTerminal::is_terminal(&std::io::stdout()) => output::line(&token.to_json())?,
        None => output::data(token.to_json().as_bytes())?,
        Some(path) => NewFile::write(path, token.to_json().as_bytes())?,
    }
    Ok(Code::Success)
}

fn read(path: Option<&Path>) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let (name, read) = match path {
        None => (Path::new("standard input"), std::io::stdin().lock().take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes)),
        Some(path) => {
            let file = std::fs::File::open(path).map_err(|error| Failure::from_open(path, &error))?;
            (path, file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes))
        }
    };
    read.map_err(|error| Failure::from_open(name, &error))?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(Failure::wrong(format!("{}: more than {TEXT_BYTES_MAX} bytes are no token", name.display()))
            .with_hint("name the file that holds the token's JSON"));
    }
    String::from_utf8(bytes).map_err(|error| {
        Failure::wrong(format!("{}: no JSON: {error}", name.display()))
            .with_hint("a token looks like {\"type\":\"name\",\"keyslots\":[]}")
    })
}
