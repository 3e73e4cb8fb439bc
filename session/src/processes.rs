//! Which processes have a file open.
//!
//! The kernel makes whoever reads `/proc/PID/fd` wait while that process is in the middle of an exec. An exec closes
//! descriptors, and closing a file of a FUSE or NFS server that answers nobody takes for ever: so does the look, for which
//! the process itself need not have anything to do with us. Each process is therefore looked at for a limited time, and one
//! that does not let itself be looked at is left out. Sources: proc_pid_fd(5), execve(2).

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Processes and descriptors looked at.
const PROCESSES_MAX: usize = 1 << 16;
const DESCRIPTORS_MAX: usize = 1 << 14;
/// Longest look at one process.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Processes that may keep a look waiting; with one more the search ends with what it has.
const STUCK_MAX: usize = 8;

/// Ids of the processes that have `file` open, as far as this user may see and as far as each lets itself be looked at.
pub(crate) fn with_file_open(file: &Path) -> Vec<i32> {
    let file = file.to_owned();
    filter(all(), STUCK_MAX, LOOK_MAX, move |pid| has_open(pid, &file))
}

/// Processes that work in `folder` or have a file open below it, each in words, as far as this user may see; this process
/// is none of them. At most `most`.
#[must_use]
pub fn working_below(folder: &Path, most: usize) -> Vec<String> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let below = folder.to_owned();
    let found = filter(all(), STUCK_MAX, LOOK_MAX, move |pid| pid != own && is_below(pid, &below));
    let name = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    found.into_iter().take(most).map(|pid| format!("{} (process {pid})", name(pid).trim())).collect()
}

fn is_below(pid: i32, folder: &Path) -> bool {
    let leads_below = |link: &Path| std::fs::read_link(link).is_ok_and(|to| to.starts_with(folder));
    let process = Path::new("/proc").join(pid.to_string());
    if ["cwd", "root", "exe"].iter().any(|link| leads_below(&process.join(link))) {
        return true;
    }
    let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten().take(DESCRIPTORS_MAX);
    descriptors.into_iter().any(|descriptor| leads_below(&descriptor.path()))
}

fn all() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten().take(PROCESSES_MAX);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn has_open(pid: i32, file: &Path) -> bool {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let has_it = |descriptor: std::fs::DirEntry| std::fs::read_link(descriptor.path()).is_ok_and(|to| to == file);
    descriptors.take(DESCRIPTORS_MAX).any(has_it)
}

/// Those of `pids` of which `question` is answered with yes within `patience`. A question that is not answered in that time
/// keeps its thread; the kernel ends its waiting with this process.
fn filter<F>(mut pids: Vec<i32>, stuck_max: usize, patience: Duration, question: F) -> Vec<i32>
where
    F: Fn(i32) -> bool + Clone + Send + 'static,
{
    let mut found = Vec::new();
    for _ in 0..=stuck_max {
        let Some(answers) = ask(pids.clone(), question.clone()) else { break };
        let mut asked = 0;
        while asked < pids.len() {
            let Ok(answer) = answers.recv_timeout(patience) else { break };
            found.extend(answer.then(|| pids[asked]));
            asked += 1;
        }
        let Some(stuck) = pids.get(asked) else { break };
        log::debug!("process {stuck} does not let its descriptors be looked at");
        pids.drain(..=asked);
    }
    found
}

/// The answers for `pids`, in their order, from a thread of its own; `None` if there can be no thread.
fn ask(pids: Vec<i32>, question: impl Fn(i32) -> bool + Send + 'static) -> Option<Receiver<bool>> {
    let (sender, receiver) = channel();
    let all = move || {
        for pid in pids {
            if sender.send(question(pid)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("openers".to_owned()).spawn(all).ok()?;
    Some(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Even numbers have it; those of `stuck` never answer.
    fn even(stuck: &'static [i32]) -> impl Fn(i32) -> bool + Clone + Send + 'static {
        move |pid| {
            while stuck.contains(&pid) {
                std::thread::park();
            }
            pid % 2 == 0
        }
    }

    const SOON: Duration = Duration::from_millis(200);

    #[test]
    fn a_process_that_does_not_answer_is_left_out_and_the_others_are_found() {
        assert_eq!(filter((1..=6).collect(), 2, SOON, even(&[])), [2, 4, 6]);
        assert_eq!(filter((1..=6).collect(), 2, SOON, even(&[1, 4])), [2, 6]);
        assert_eq!(filter((1..=6).collect(), 2, SOON, even(&[6])), [2, 4]);
        assert_eq!(filter(Vec::new(), 2, SOON, even(&[])), [0; 0]);
    }

    #[test]
    fn the_search_ends_where_too_many_do_not_answer() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);
        let question = |_| {
            ASKED.fetch_add(1, Ordering::SeqCst);
            loop {
                std::thread::park();
            }
        };
        assert_eq!(filter((1..=100).collect(), 2, SOON, question), [0; 0]);
        assert_eq!(ASKED.load(Ordering::SeqCst), 3);
    }
}
