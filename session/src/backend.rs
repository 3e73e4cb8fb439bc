//! How an open volume becomes a device: behind one face, the backends that a server process can have.
//!
//! A backend is there whole or not at all; [`Backend::stop`] refuses a device in use and leaves it working.

mod fuse;
mod nbd;
mod ublk;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use block::FileDisk;
use luks::Volume;

use crate::choice::ServedBy;
use crate::run_dir::Entry;
use crate::ublk_recovery::RecoveryOrder;
use crate::{Failure, FailureKind, Listen};
use fuse::FuseBackend;
use nbd::NbdBackend;
use ublk::UblkBackend;

pub(crate) use nbd::{listen_hindrance, path_hindrance};
pub(crate) use ublk::{clean as clean_ublk, hindrance as ublk_hindrance};

/// udev, a file manager, `losetup -a` or `nbdinfo` looks at a device and goes on.
const PASSER_BY_WAIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(20);

/// What the device is to be like.
pub(crate) struct BackendOptions {
    pub(crate) served_by: ServedBy,
    pub(crate) read_only: bool,
    pub(crate) threads: usize,
    pub(crate) no_loop: bool,
    /// With the fingerprint of the volume, where somebody wants to go on after the server's death.
    pub(crate) recovery: Option<(RecoveryOrder, String)>,
    pub(crate) attach: bool,
    pub(crate) listen: Option<Listen>,
}

/// A device in service.
pub(crate) enum Backend {
    Fuse(FuseBackend),
    Nbd(NbdBackend),
    Ublk(Box<UblkBackend>),
}

impl Backend {
    /// Serves `volume` as the options say.
    pub(crate) fn start(
        entry: &Entry,
        volume: &Arc<Volume<FileDisk>>,
        options: &BackendOptions,
    ) -> Result<Backend, Failure> {
        match options.served_by {
            ServedBy::Fuse => FuseBackend::start(entry, volume, options).map(Backend::Fuse),
            ServedBy::Nbd => NbdBackend::start(entry, volume, options).map(Backend::Nbd),
            ServedBy::Ublk => {
                UblkBackend::start(entry, volume, options).map(|backend| Backend::Ublk(Box::new(backend)))
            }
        }
    }

    /// The device to use: a block device, a file, or a socket.
    pub(crate) fn device(&self) -> &Path {
        match self {
            Backend::Fuse(backend) => backend.device(),
            Backend::Nbd(backend) => backend.device(),
            Backend::Ublk(backend) => backend.device(),
        }
    }

    /// How clients of a socket call it.
    pub(crate) fn uri(&self) -> Option<String> {
        match self {
            Backend::Fuse(_) | Backend::Ublk(_) => None,
            Backend::Nbd(backend) => Some(backend.uri()),
        }
    }

    /// How clients on the network call it, if they can.
    pub(crate) fn tls_uri(&self) -> Option<String> {
        match self {
            Backend::Fuse(_) | Backend::Ublk(_) => None,
            Backend::Nbd(backend) => backend.tls_uri(),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Backend::Fuse(backend) => backend.name(),
            Backend::Nbd(backend) => backend.name(),
            Backend::Ublk(backend) => backend.name(),
        }
    }

    /// What somebody took away behind our back, in words.
    pub(crate) fn loss(&self) -> Option<String> {
        match self {
            Backend::Fuse(backend) => backend.loss(),
            Backend::Nbd(backend) => backend.loss(),
            Backend::Ublk(backend) => backend.loss(),
        }
    }

    /// Who uses the device, in words; empty if nobody does. Who only passes by is waited for. After an empty answer a socket
    /// lets nobody in until [`Backend::go_on`].
    pub(crate) fn users(&self) -> Vec<String> {
        match self {
            Backend::Fuse(backend) => backend.users(),
            Backend::Nbd(backend) => backend.users(),
            Backend::Ublk(backend) => backend.users(),
        }
    }

    /// The disk has grown: the device tells its users.
    pub(crate) fn resized(&self) -> Result<(), Failure> {
        match self {
            Backend::Fuse(backend) => backend.resized(),
            Backend::Nbd(_) => Err(Failure::new(FailureKind::Size, "NBD has no way to tell its clients a new size")),
            Backend::Ublk(_) => {
                Err(Failure::new(FailureKind::Size, "the driver ublk_drv of Linux 6.12 takes no new size"))
            }
        }
    }

    /// It is not stopped after all.
    pub(crate) fn go_on(&self) {
        match self {
            Backend::Fuse(_) => {}
            Backend::Nbd(backend) => backend.go_on(),
            Backend::Ublk(backend) => backend.go_on(),
        }
    }

    /// Takes the device away and waits until it is gone. `Ok(Some)` tells which writes were lost on the way.
    pub(crate) fn stop(&mut self) -> Result<Option<String>, Failure> {
        match self {
            Backend::Fuse(backend) => backend.stop(),
            Backend::Nbd(backend) => backend.stop(),
            Backend::Ublk(backend) => backend.stop(),
        }
    }
}
