//! Who takes part: for each export this machine can do, its server on the plain and on the unlocked image, and nbdkit's LUKS
//! filter on an image of its own. What cannot take part says why.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use block::Bytes;
use tempfile::TempDir;

use super::clients::{Client, FileClient};
use super::nbd_client::NbdClient;
use super::server::format;
use crate::image::DATA_OFFSET;
use crate::served::{LoopDevice, Order, Server};

pub(crate) const FUSE: &str = "fuse";
pub(super) const LOOP: &str = "loop";
pub(crate) const NBD: &str = "nbd";
pub(crate) const UBLK: &str = "ublk";
pub(crate) const DM_CRYPT: &str = "dm-crypt";
/// Name of the file below FUSE.
pub(crate) const DISK_FILE: &str = "disk";
const START_WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// One export, served twice.
pub(super) struct Pair {
    pub(super) name: &'static str,
    pub(super) plain: Box<dyn Client>,
    pub(super) encrypted: Box<dyn Client>,
}

/// Everything that runs; dropped in this order, clients before servers.
pub(super) struct Contestants {
    pub(super) pairs: Vec<Pair>,
    /// nbdkit's LUKS filter.
    pub(super) filter: Option<Box<dyn Client>>,
    /// What does not take part, and why.
    pub(super) absent: Vec<String>,
    loops: Vec<LoopDevice>,
    servers: Vec<Server>,
    _folder: TempDir,
}

impl Contestants {
    /// Makes the images and starts the servers.
    pub(super) fn start(folder: &Path, size_mib: u64, threads: usize, only: &[String]) -> Result<Contestants> {
        for name in only {
            ensure!([FUSE, LOOP, NBD].contains(&name.as_str()), "there is no export {name}; there are fuse, loop, nbd");
        }
        let folder = tempfile::tempdir_in(folder).with_context(|| format!("folder {}", folder.display()))?;
        let image = folder.path().join("image");
        let size = Bytes::from_mib(size_mib);
        format(&image, size)?;
        let root = folder.path().to_path_buf();
        let mut all = Contestants {
            pairs: Vec::new(),
            filter: None,
            absent: Vec::new(),
            loops: Vec::new(),
            servers: Vec::new(),
            _folder: folder,
        };
        for name in [FUSE, LOOP, NBD] {
            if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
                continue;
            }
            if let Err(error) = all.add(name, &image, &root, size, threads) {
                all.absent.push(format!("{name}: {error:#}"));
            }
        }
        if all.pairs.iter().any(|pair| pair.name == NBD) {
            match all.add_filter(&root, size) {
                Ok(client) => all.filter = Some(client),
                Err(error) => all.absent.push(format!("nbdkit --filter=luks: {error:#}")),
            }
        }
        Ok(all)
    }

    fn add(&mut self, name: &'static str, image: &Path, root: &Path, size: Bytes, threads: usize) -> Result<()> {
        let mut clients = Vec::new();
        for plain in [true, false] {
            let place = root.join(format!("{name}-{}", if plain { "plain" } else { "encrypted" }));
            let kind = if name == LOOP { FUSE } else { name };
            if kind == FUSE {
                std::fs::create_dir(&place)?;
            }
            self.servers.push(Server::start(&Order { kind, image, header: None, place: &place, plain, threads })?);
            let file = place.join(DISK_FILE);
            let client: Box<dyn Client> = match name {
                NBD => Box::new(NbdClient::connect(&place)?),
                LOOP => {
                    let device = LoopDevice::attach(&file, false)?;
                    let client = FileClient::open(device.path(), size.0)?;
                    self.loops.push(device);
                    Box::new(client)
                }
                _ => Box::new(FileClient::open(&file, size.0)?),
            };
            clients.push(client);
        }
        let [plain, encrypted] = <[_; 2]>::try_from(clients).map_err(|_| anyhow!("two clients were made"))?;
        self.pairs.push(Pair { name, plain, encrypted });
        Ok(())
    }

    /// nbdkit on a LUKS1 image of the same size; only LUKS1 with sectors of 512 bytes is what its filter can.
    fn add_filter(&mut self, root: &Path, size: Bytes) -> Result<Box<dyn Client>> {
        let (image, key, socket) = (root.join("luks1"), root.join("key"), root.join("nbdkit"));
        std::fs::write(&key, b"measured")?;
        std::fs::File::create_new(&image)?.set_len(DATA_OFFSET.0 + size.0)?;
        let done = Command::new("cryptsetup")
            .args(["luksFormat", "-q", "--type", "luks1", "--cipher", "aes-xts-plain64", "--key-size", "512"])
            .args(["--hash", "sha256", "--pbkdf-force-iterations", "1000"])
            .arg(&image)
            .arg(&key)
            .output()
            .context("cryptsetup")?;
        ensure!(done.status.success(), "cryptsetup: {}", String::from_utf8_lossy(&done.stderr).trim());
        let mut child = Command::new("nbdkit")
            .args(["--foreground", "--exit-with-parent", "--unix"])
            .arg(&socket)
            .args(["--filter=luks", "file"])
            .arg(format!("file={}", image.display()))
            .arg(format!("passphrase=+{}", key.display()))
            .stdin(Stdio::piped())
            .spawn()
            .context("nbdkit")?;
        let until = Instant::now() + START_WAIT;
        while !socket.exists() {
            if let Some(ended) = child.try_wait()? {
                bail!("nbdkit ended with {ended}");
            }
            if Instant::now() >= until {
                child.kill()?;
                bail!("nbdkit made no socket");
            }
            std::thread::sleep(POLL);
        }
        self.servers.push(Server::foreign(child));
        let mut client = NbdClient::connect(&socket)?;
        // Every page is there before anything is measured.
        let zeros = vec![0; 1 << 20];
        for at in 0..client.size_bytes() >> 20 {
            client.write(at << 20, &zeros)?;
        }
        Ok(Box::new(client))
    }

    /// Ends all of it, in order.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.pairs.clear();
        self.filter = None;
        self.loops.clear();
        self.servers.drain(..).try_for_each(Server::stop)
    }
}
