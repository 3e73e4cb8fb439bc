//! Flags of a dm-crypt mapping, named as in cryptsetup. Those that the header keeps come on top.

use clap::Args;
use luks::ActivationFlag;
use session::MappingFlags;

/// What dm-crypt may do to be faster or to pass down.
#[derive(Debug, Clone, Copy, Default, Args)]
#[allow(clippy::struct_excessive_bools)] // one per flag of the kernel
pub(crate) struct FlagArgs {
    /// Pass discards down: the image then shows which blocks are unused
    #[arg(long, help_heading = "dm-crypt")]
    allow_discards: bool,
    /// Decrypt without a work queue
    #[arg(hide_short_help = true, long = "perf-no_read_workqueue", help_heading = "dm-crypt")]
    no_read_workqueue: bool,
    /// Encrypt without a work queue
    #[arg(hide_short_help = true, long = "perf-no_write_workqueue", help_heading = "dm-crypt")]
    no_write_workqueue: bool,
    /// Encrypt on the CPU that the request came from
    #[arg(hide_short_help = true, long = "perf-same_cpu_crypt", help_heading = "dm-crypt")]
    same_cpu_crypt: bool,
    /// Submit writes from the encrypting thread
    #[arg(hide_short_help = true, long = "perf-submit_from_crypt_cpus", help_heading = "dm-crypt")]
    submit_from_crypt_cpus: bool,
    /// Run the queues at high priority (Linux 6.10)
    #[arg(hide_short_help = true, long = "perf-high_priority", help_heading = "dm-crypt")]
    high_priority: bool,
}

impl FlagArgs {
    /// What the session is told.
    pub(crate) fn flags(self) -> MappingFlags {
        MappingFlags {
            allow_discards: self.allow_discards,
            no_read_workqueue: self.no_read_workqueue,
            no_write_workqueue: self.no_write_workqueue,
            same_cpu_crypt: self.same_cpu_crypt,
            submit_from_crypt_cpus: self.submit_from_crypt_cpus,
            high_priority: self.high_priority,
            instead_of_kept: false,
        }
    }

    /// What a header is told to keep.
    pub(crate) fn kept(self) -> Vec<ActivationFlag> {
        let all = [
            (self.allow_discards, ActivationFlag::AllowDiscards),
            (self.same_cpu_crypt, ActivationFlag::SameCpuCrypt),
            (self.submit_from_crypt_cpus, ActivationFlag::SubmitFromCryptCpus),
            (self.no_read_workqueue, ActivationFlag::NoReadWorkqueue),
            (self.no_write_workqueue, ActivationFlag::NoWriteWorkqueue),
            (self.high_priority, ActivationFlag::HighPriority),
        ];
        all.into_iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).collect()
    }
}
