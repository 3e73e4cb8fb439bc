//! Which backend makes an open volume a device, and what only one of them can do.
//!
//! The kernel's dm-crypt needs no process beside the volume and is what other tools expect, so it comes first wherever it
//! is possible. What is asked for by name is never silently something else.

use serde::{Deserialize, Serialize};

use crate::backend::ublk_hindrance;
use crate::open::OpenRequest;
use crate::spawn::search_path;
use crate::{SessionError, kernel};

/// Names of the backends, as reports show them.
pub(crate) const DM_CRYPT: &str = "dm-crypt";
pub(crate) const FUSE: &str = "fuse";
pub(crate) const NBD: &str = "nbd";
pub(crate) const UBLK: &str = "ublk";
/// NBD with a device of the kernel's client on it.
pub(crate) const NBD_DEVICE: &str = "nbd device";

/// Which backend to open a volume through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// The kernel's dm-crypt where it is possible, else ublk, else FUSE, else an NBD socket.
    #[default]
    Auto,
    /// The kernel's dm-crypt.
    Dm,
    /// A server process and a file below FUSE, for root with a loop device on it.
    Fuse,
    /// A server process and a Unix socket that speaks NBD.
    Nbd,
    /// A server process and a block device of the kernel's driver ublk_drv, for root.
    Ublk,
}

/// What a server process serves its volume through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ServedBy {
    #[default]
    Fuse,
    Nbd,
    Ublk,
}

impl ServedBy {
    fn name(self) -> &'static str {
        match self {
            ServedBy::Fuse => FUSE,
            ServedBy::Nbd => NBD,
            ServedBy::Ublk => UBLK,
        }
    }
}

/// Asks the system why it cannot be; `None` if nothing is known to stand in the way.
type Hindrance = fn() -> Option<String>;

/// Flags of a dm-crypt mapping. Those that the header keeps (`config.flags`) come on top, unless these are to replace them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappingFlags {
    /// Pass discards down: whoever sees the image learns which blocks are unused.
    pub allow_discards: bool,
    /// Decrypt without a work queue.
    pub no_read_workqueue: bool,
    /// Encrypt without a work queue.
    pub no_write_workqueue: bool,
    /// Encrypt on the CPU that the request came from.
    pub same_cpu_crypt: bool,
    /// Submit writes from the encrypting thread.
    pub submit_from_crypt_cpus: bool,
    /// Run the queues at high priority (Linux 6.10).
    pub high_priority: bool,
    /// No others: what the header keeps does not count, as the caller is about to have it keep these.
    pub instead_of_kept: bool,
}

impl MappingFlags {
    /// The options of the command line that are set, named as cryptsetup names them.
    #[must_use]
    pub fn options(&self) -> Vec<&'static str> {
        let all = [
            (self.allow_discards, "--allow-discards"),
            (self.no_read_workqueue, "--perf-no_read_workqueue"),
            (self.no_write_workqueue, "--perf-no_write_workqueue"),
            (self.same_cpu_crypt, "--perf-same_cpu_crypt"),
            (self.submit_from_crypt_cpus, "--perf-submit_from_crypt_cpus"),
            (self.high_priority, "--perf-high_priority"),
        ];
        all.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect()
    }
}

/// A backend that an opening could not use, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotPossible {
    /// Its name.
    pub backend: String,
    /// Why, and what mends it where that is known.
    pub reason: String,
}

/// What an opening goes through, in this order.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) try_dm: bool,
    /// Why no server is a way out; `None` if one is.
    pub(crate) no_fuse: Option<String>,
    /// What a server is to serve through.
    pub(crate) served_by: ServedBy,
    /// What a server could serve through where dm-crypt is not possible, the first that is; none where it was chosen by name.
    servers: Vec<(ServedBy, Hindrance)>,
    pub(crate) not_possible: Vec<NotPossible>,
}

impl Chosen {
    fn nbd(self) -> Chosen {
        Chosen { try_dm: false, served_by: ServedBy::Nbd, ..self }
    }

    /// Notes that dm-crypt is not possible. An error if nothing else is left.
    pub(crate) fn without_dm(&mut self, reason: String) -> Result<(), SessionError> {
        self.try_dm = false;
        if let Some(no_fuse) = &self.no_fuse {
            let reason = if no_fuse.is_empty() { reason } else { format!("{reason} ({no_fuse})") };
            return Err(SessionError::BackendNotPossible { backend: DM_CRYPT, reason });
        }
        self.not_possible.push(NotPossible { backend: DM_CRYPT.to_owned(), reason });
        for (served_by, hindrance) in std::mem::take(&mut self.servers) {
            self.served_by = served_by;
            match hindrance() {
                None => break,
                Some(reason) => self.not_possible.push(NotPossible { backend: served_by.name().to_owned(), reason }),
            }
        }
        Ok(())
    }
}

/// Chooses for `request`, before anybody is asked for a passphrase. `uuid` is the header's.
pub(crate) fn choose(request: &OpenRequest, uuid: &str) -> Result<Chosen, SessionError> {
    let only_dm = request.flags.options();
    let only_fuse = if request.no_loop { vec!["--no-loop"] } else { Vec::new() };
    let mut only_served = only_fuse.clone();
    if request.threads != 0 {
        only_served.push("--threads");
    }
    let refused = |backend, other: &str, options: &[&str]| {
        let reason = format!("it has no {}; {other} has", options.join(", "));
        Err(SessionError::BackendNotPossible { backend, reason })
    };
    let mut chosen = Chosen {
        try_dm: true,
        no_fuse: None,
        served_by: ServedBy::Fuse,
        servers: Vec::new(),
        not_possible: Vec::new(),
    };
    if request.recover && request.backend != BackendChoice::Ublk {
        let backend = match request.backend {
            BackendChoice::Dm => DM_CRYPT,
            BackendChoice::Fuse => FUSE,
            BackendChoice::Nbd => NBD,
            BackendChoice::Auto | BackendChoice::Ublk => "auto",
        };
        return refused(backend, UBLK, &["--recover"]);
    }
    let options = [(request.attach, "--attach"), (request.listen.is_some(), "--listen")];
    let only_nbd: Vec<&str> = options.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
    match request.backend {
        BackendChoice::Dm if !only_nbd.is_empty() => return refused(DM_CRYPT, NBD, &only_nbd),
        BackendChoice::Fuse if !only_nbd.is_empty() => return refused(FUSE, NBD, &only_nbd),
        BackendChoice::Ublk if !only_nbd.is_empty() => return refused(UBLK, NBD, &only_nbd),
        BackendChoice::Fuse if !only_dm.is_empty() => return refused(FUSE, DM_CRYPT, &only_dm),
        BackendChoice::Nbd if !only_dm.is_empty() => return refused(NBD, DM_CRYPT, &only_dm),
        BackendChoice::Ublk if !only_dm.is_empty() => return refused(UBLK, DM_CRYPT, &only_dm),
        BackendChoice::Nbd if !only_fuse.is_empty() => return refused(NBD, FUSE, &only_fuse),
        BackendChoice::Ublk if !only_fuse.is_empty() => return refused(UBLK, FUSE, &only_fuse),
        BackendChoice::Dm if !only_served.is_empty() => return refused(DM_CRYPT, FUSE, &only_served),
        BackendChoice::Fuse => {
            chosen.try_dm = false;
            return Ok(chosen);
        }
        BackendChoice::Ublk => {
            chosen.try_dm = false;
            chosen.served_by = ServedBy::Ublk;
            return match ublk_hindrance() {
                Some(reason) => Err(SessionError::BackendNotPossible { backend: UBLK, reason }),
                None => Ok(chosen),
            };
        }
        BackendChoice::Nbd => return Ok(chosen.nbd()),
        // Nothing else has it.
        BackendChoice::Auto if !only_nbd.is_empty() && only_dm.is_empty() && only_fuse.is_empty() => {
            return Ok(chosen.nbd());
        }
        BackendChoice::Auto if !only_nbd.is_empty() => {
            let others = [only_dm, only_fuse].concat();
            return refused(NBD, "another backend", &others);
        }
        BackendChoice::Dm => chosen.no_fuse = Some(String::new()),
        BackendChoice::Auto if !only_dm.is_empty() => {
            chosen.no_fuse = Some(format!("{FUSE} has no {}", only_dm.join(", ")));
        }
        // What only FUSE has is asked for: it has to say itself why it cannot.
        BackendChoice::Auto if !only_fuse.is_empty() => {}
        BackendChoice::Auto => {
            // NBD needs nothing but the server.
            chosen.servers =
                vec![(ServedBy::Ublk, ublk_hindrance), (ServedBy::Fuse, fuse_hindrance), (ServedBy::Nbd, || None)];
        }
    }
    if !only_served.is_empty() {
        chosen.without_dm(format!("it has no {}", only_served.join(", ")))?;
    } else if let Some(reason) = kernel::hindrance(&request.name, uuid) {
        chosen.without_dm(reason)?;
    }
    Ok(chosen)
}

/// Name of the backend that [`crate::open`] would try first for a volume here if it may choose: `dm-crypt`, `ublk`, `fuse` or `nbd`.
#[must_use]
pub fn automatic_backend() -> &'static str {
    // Of no volume: whether there is a mapping of this name does not matter.
    const UUID: &str = "00000000-0000-4000-8000-000000000000";
    match choose(&OpenRequest::new("", "any"), UUID) {
        Ok(chosen) if chosen.try_dm => DM_CRYPT,
        Ok(chosen) => chosen.served_by.name(),
        Err(_) => NBD,
    }
}

/// Why this process cannot make a FUSE mount; `None` if it seems that it can.
fn fuse_hindrance() -> Option<String> {
    const DEVICE: &str = "/dev/fuse";
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open(DEVICE) {
        return Some(format!("{DEVICE} does not open: {error} (`luksctl doctor` says what mends it)"));
    }
    let helper = "fusermount3";
    let found = std::env::split_paths(&search_path()).any(|folder| folder.join(helper).is_file());
    (!rustix::process::geteuid().is_root() && !found).then(|| format!("{helper} was not found (package fuse3)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "7f0c9a4e-1234-4cde-8899-aabbccddeeff";

    fn refusal(request: &OpenRequest) -> String {
        choose(request, UUID).unwrap_err().to_string()
    }

    #[test]
    fn an_option_of_one_backend_is_refused_by_name_on_the_other() {
        let mut request = OpenRequest::new("image", "name");
        request.flags = MappingFlags { allow_discards: true, high_priority: true, ..MappingFlags::default() };
        request.backend = BackendChoice::Fuse;
        let words = refusal(&request);
        assert!(words.contains("fuse cannot be used") && words.contains("--allow-discards, --perf-high_priority"));
        let mut request = OpenRequest::new("image", "name");
        request.backend = BackendChoice::Dm;
        request.no_loop = true;
        assert!(refusal(&request).contains("it has no --no-loop"));
        request.backend = BackendChoice::Auto;
        let chosen = choose(&request, UUID).unwrap();
        assert!(!chosen.try_dm && chosen.not_possible[0].reason.contains("--no-loop"));
        request.flags.allow_discards = true;
        assert!(refusal(&request).contains("--allow-discards"), "two backends at once");
    }

    #[test]
    fn only_ublk_by_name_recovers() {
        let mut request = OpenRequest::new("image", "name");
        request.recover = true;
        assert!(refusal(&request).contains("auto cannot be used: it has no --recover; ublk has"));
        request.backend = BackendChoice::Nbd;
        assert!(refusal(&request).contains("nbd cannot be used: it has no --recover; ublk has"));
    }

    #[test]
    fn nbd_by_name_has_threads_and_nothing_of_the_others() {
        let mut request = OpenRequest::new("image", "name");
        request.backend = BackendChoice::Nbd;
        request.threads = 3;
        let chosen = choose(&request, UUID).unwrap();
        assert!(!chosen.try_dm && chosen.served_by == ServedBy::Nbd && chosen.not_possible.is_empty());
        request.no_loop = true;
        assert!(refusal(&request).contains("nbd cannot be used: it has no --no-loop; fuse has"));
        request.flags.same_cpu_crypt = true;
        assert!(refusal(&request).contains("nbd cannot be used: it has no --perf-same_cpu_crypt; dm-crypt has"));
    }

    #[test]
    fn without_dm_it_is_the_first_that_is_possible_and_every_reason_is_told() {
        let told = |ublk: Hindrance, fuse: Hindrance| {
            let mut chosen =
                Chosen { not_possible: Vec::new(), ..choose(&OpenRequest::new("image", "name"), UUID).unwrap() };
            chosen.servers = vec![(ServedBy::Ublk, ublk), (ServedBy::Fuse, fuse), (ServedBy::Nbd, || None)];
            chosen.without_dm("no dm".to_owned()).unwrap();
            let told: Vec<String> = chosen.not_possible.into_iter().map(|other| other.reason).collect();
            (told.join(", "), chosen.served_by)
        };
        let (no_ublk, no_fuse): (Hindrance, Hindrance) = (|| Some("no ublk".into()), || Some("no fuse".into()));
        assert_eq!(told(no_ublk, no_fuse), ("no dm, no ublk, no fuse".to_owned(), ServedBy::Nbd));
        assert_eq!(told(no_ublk, || None), ("no dm, no ublk".to_owned(), ServedBy::Fuse));
        assert_eq!(told(|| None, no_fuse), ("no dm".to_owned(), ServedBy::Ublk));
    }

    #[test]
    fn a_device_of_the_nbd_driver_is_had_of_nbd_alone() {
        let mut request = OpenRequest::new("image", "name");
        request.attach = true;
        let chosen = choose(&request, UUID).unwrap();
        assert!(!chosen.try_dm && chosen.served_by == ServedBy::Nbd);
        request.backend = BackendChoice::Dm;
        assert!(refusal(&request).contains("dm-crypt cannot be used: it has no --attach; nbd has"));
        request.backend = BackendChoice::Fuse;
        assert!(refusal(&request).contains("fuse cannot be used: it has no --attach; nbd has"));
        request.backend = BackendChoice::Auto;
        request.no_loop = true;
        assert!(refusal(&request).contains("nbd cannot be used: it has no --no-loop"));
    }

    #[test]
    fn fuse_by_name_is_taken_without_a_word_about_others() {
        let mut request = OpenRequest::new("image", "name");
        request.backend = BackendChoice::Fuse;
        let chosen = choose(&request, UUID).unwrap();
        assert!(!chosen.try_dm && chosen.no_fuse.is_none() && chosen.not_possible.is_empty());
    }
}
