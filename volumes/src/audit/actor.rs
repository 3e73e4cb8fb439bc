//! [`Actor`]: who did it, as the kernel says.

/// What the kernel has in `/proc/self/loginuid` where nobody logged in.
const NO_LOGIN: u32 = u32::MAX;

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The user that the process runs for.
    pub uid: u32,
    /// The user that logged in, who `sudo` does not change; none for a service.
    pub login_uid: Option<u32>,
    /// The name of the process.
    pub process: String,
    /// Its number.
    pub pid: u32,
}

impl Actor {
    /// This process.
    #[must_use]
    pub fn this_process() -> Actor {
        let read =
            |name: &str| std::fs::read(name).map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned()).ok();
        Actor {
            uid: rustix::process::getuid().as_raw(),
            login_uid: read("/proc/self/loginuid").and_then(|text| text.parse().ok()).filter(|uid| *uid != NO_LOGIN),
            process: read("/proc/self/comm").unwrap_or_default(),
            pid: std::process::id(),
        }
    }
}
