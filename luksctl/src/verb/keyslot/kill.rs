//! `keyslot kill IMAGE N`: destroys a keyslot by its number, after a passphrase of another keyslot. With `-q` and nothing
//! on standard input no passphrase is asked for, as in cryptsetup; the last keyslot goes only with `--force` or a typed YES.

use std::io::IsTerminal as _;

use clap::Args;
use luks::{KeyslotId, LastSlot, UnlockRequest};
use secret::Purpose;
use session::SystemEnv;

use crate::args::Common;
use crate::args::key::KeyArgs;
use crate::args::target::{LimitArgs, TargetArgs};
use crate::confirm;
use crate::exit::Code;
use crate::failure::Failure;
use crate::image::{self, Access, AnyFileContainer, Image};
use crate::keys::KeySource;
use crate::output;
use crate::unlock::{self, Ask};
use crate::verb::keyslot::list;

/// Arguments of `keyslot kill`.
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Number of the keyslot to destroy
    #[arg(value_name = "N")]
    number: u32,
    /// Destroy even the last keyslot that opens the volume: its data is lost
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

/// Destroys a keyslot.
pub(crate) fn run(args: &KillArgs, common: &Common) -> Result<Code, Failure> {
    let mut source = KeySource::unlocking(&args.key, None)?;
    let image = Image::open(&args.target, Access::ChangeHeader)?;
    let mut container = image.container(&image::limits(&args.limits))?;
    let id = KeyslotId(args.number);
    if !container.metadata().keyslots.contains(id) {
        return Err(Failure::wrong(format!("{}: keyslot {id} is not in use", image.path().display()))
            .with_hint(format!("luksctl keyslot list {}", image.path().display())));
    }
    if !may_skip_passphrase(args, common) {
        prove_another(&image, &container, id, &mut source)?;
    }
    destroy(&image, &mut container, id, args.force, common)?;
    output::words(&format!("Keyslot {id} destroyed."));
    Ok(Code::Success)
}

/// `-q`, no key option, and nothing to read on standard input.
fn may_skip_passphrase(args: &KillArgs, common: &Common) -> bool {
    let no_source = args.key.key_file.is_none() && args.key.key_fd.is_none();
    common.batch_mode && no_source && !std::io::stdin().is_terminal() && stdin_is_empty()
}

/// Whether standard input ends here: the next read would give nothing.
fn stdin_is_empty() -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let stdin = std::io::stdin();
    let null = rustix::fs::fstat(&stdin).is_ok_and(|found| {
        rustix::fs::stat("/dev/null").is_ok_and(|null| null.st_rdev == found.st_rdev && null.st_mode == found.st_mode)
    });
    let mut descriptors = [PollFd::new(&stdin, PollFlags::IN)];
    let hung_up = poll(&mut descriptors, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|_| {
        descriptors[0].revents().contains(PollFlags::HUP) && !descriptors[0].revents().contains(PollFlags::IN)
    });
    null || hung_up
}

/// Demands a passphrase of a keyslot other than `victim` that opens what it opens; of `victim` itself where it is the only one.
pub(super) fn prove_another(
    image: &Image,
    container: &AnyFileContainer,
    victim: KeyslotId,
    source: &mut KeySource,
) -> Result<(), Failure> {
    let ask = Ask { keyslot: None, unlock: luks::Purpose::AnyDigest, purpose: Purpose::RemainingPassphrase };
    let (key, passphrase) = unlock::unlock(image, container, &ask, source)?;
    let metadata = container.metadata();
    let metadata = metadata.as_ref();
    // An unbound keyslot opens nothing, so it is no proof that the volume still can be opened.
    let counts = |id: KeyslotId| id != victim && (list::is_bound(metadata, id) || !list::is_bound(metadata, victim));
    if key.keyslot().is_some_and(counts) {
        return Ok(());
    }
    let opened = key.keyslot();
    drop(key);
    // The same passphrase may open another keyslot, too.
    let slots = metadata.keyslots.iter().filter(|(id, slot)| counts(*id) && slot.luks2().is_some());
    let others: Vec<KeyslotId> = slots.map(|(id, _)| id).collect();
    let opens = |id: &KeyslotId| {
        let request = UnlockRequest { keyslot: Some(*id), purpose: luks::Purpose::AnyDigest };
        container.unlock(&SystemEnv.env(), &request, &passphrase).is_ok()
    };
    if (others.is_empty() && opened == Some(victim)) || others.iter().any(opens) {
        return Ok(());
    }
    let words = match opened {
        Some(id) if id != victim => format!("this passphrase opens keyslot {id}, which opens no volume"),
        _ => format!("this passphrase opens keyslot {victim} itself"),
    };
    Err(Failure::new(Code::Permission, format!("{}: {words}; one that stays is needed", image.path().display()))
        .with_hint(format!("luksctl keyslot list {}", image.path().display())))
}

/// Destroys keyslot `id`; the last one only with `force` or a typed YES.
pub(super) fn destroy(
    image: &Image,
    container: &mut AnyFileContainer,
    id: KeyslotId,
    force: bool,
    common: &Common,
) -> Result<(), Failure> {
    let system = SystemEnv;
    let last = if force { LastSlot::Allow } else { LastSlot::Refuse };
    let outcome = match container.keyslot_kill(&system.env(), id, last) {
        Err(luks::Error::LastKeyslot { .. }) if !common.batch_mode && confirm::can_ask() => {
            confirm::typed_yes(&format!(
                "keyslot {id} is the last one that opens {}. Without it the data is lost for good.",
                image.path().display()
            ))?;
            container.keyslot_kill(&system.env(), id, LastSlot::Allow)
        }
        outcome => outcome,
    };
    outcome.map_err(|error| Failure::of_luks(image.path(), error))
}
