//! Looks for secrets where they must not be: in the memory of a live process, mapping by mapping, and in its files.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// One mapping of a process, as `/proc/PID/smaps` tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// `rwxp` as printed.
    pub permissions: String,
    /// File or `[stack]`, `[heap]`, or empty.
    pub name: String,
    /// Locked in memory (`lo` in VmFlags).
    pub locked: bool,
    /// Left out of core dumps (`dd` in VmFlags).
    pub undumped: bool,
}

/// Where one of the needles was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Index of the needle.
    pub needle: usize,
    /// Its address.
    pub address: u64,
    /// The mapping that holds it.
    pub mapping: Mapping,
}

/// The mappings of process `pid`.
///
/// # Errors
/// If the process is gone or not ours to read.
pub fn mappings(pid: u32) -> std::io::Result<Vec<Mapping>> {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(last) = mappings.last_mut() {
                last.locked = flags.split_whitespace().any(|flag| flag == "lo");
                last.undumped = flags.split_whitespace().any(|flag| flag == "dd");
            }
        } else if let Some(mapping) = parse_head(line) {
            mappings.push(mapping);
        }
    }
    Ok(mappings)
}

/// `7f00-7f10 rw-p 00000000 00:00 0   [stack]`
fn parse_head(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    if permissions.len() != 4 {
        return None;
    }
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        permissions: permissions.to_owned(),
        name: fields.nth(3).unwrap_or_default().to_owned(),
        ..Mapping::default()
    })
}

/// Every place in the readable memory of `pid` where one of `needles` stands, and how many bytes were looked at.
///
/// # Errors
/// If the process is gone or not ours to read.
pub fn search(pid: u32, needles: &[&[u8]]) -> std::io::Result<(Vec<Finding>, u64)> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut findings = Vec::new();
    let mut searched_bytes = 0;
    for mapping in mappings(pid)?.into_iter().filter(|mapping| mapping.permissions.starts_with('r')) {
        if mapping.name == "[vvar]" || mapping.name == "[vsyscall]" {
            continue;
        }
        searched_bytes += search_mapping(&memory, &mapping, needles, &mut findings);
    }
    Ok((findings, searched_bytes))
}

/// Windows overlap by the longest needle, so that none is missed at a border.
fn search_mapping(memory: &File, mapping: &Mapping, needles: &[&[u8]], findings: &mut Vec<Finding>) -> u64 {
    const WINDOW: usize = 4 << 20;
    let overlap = needles.iter().map(|needle| needle.len()).max().unwrap_or(1) - 1;
    let mut buffer = vec![0; WINDOW + overlap];
    let mut at = mapping.start;
    let mut searched_bytes = 0;
    while at < mapping.end {
        let window = usize::try_from(mapping.end - at).unwrap_or(usize::MAX).min(buffer.len());
        // A page that cannot be read (a guard, a file hole) holds no secret of ours.
        if memory.read_exact_at(&mut buffer[..window], at).is_ok() {
            for (index, needle) in needles.iter().enumerate() {
                findings.extend(positions(&buffer[..window], needle).map(|offset| Finding {
                    needle: index,
                    address: at + offset as u64,
                    mapping: mapping.clone(),
                }));
            }
            searched_bytes += window as u64;
        }
        at += WINDOW as u64;
    }
    searched_bytes
}

/// Every offset at which `needle` stands in `haystack`.
pub fn positions<'a>(haystack: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    let first = needle.first().copied();
    let mut from = 0;
    std::iter::from_fn(move || {
        let first = first?;
        while from + needle.len() <= haystack.len() {
            let at = from + haystack[from..].iter().position(|&byte| byte == first)?;
            from = at + 1;
            if haystack[at..].starts_with(needle) {
                return Some(at);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_of_ours_is_found_in_our_own_memory() {
        let marker: Vec<u8> = (0_u8..40).map(|byte| byte.wrapping_mul(37) ^ 0x5A).collect();
        let (findings, searched_bytes) = search(std::process::id(), &[&marker]).unwrap();
        let address = marker.as_ptr() as u64;
        assert!(findings.iter().any(|finding| finding.address == address), "{findings:?} in {searched_bytes} bytes");
    }

    #[test]
    fn overlapping_places_are_all_found() {
        assert_eq!(positions(b"aaaa", b"aa").collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(positions(b"abc", b"x").count(), 0);
    }
}
