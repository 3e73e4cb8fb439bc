//! What dmcrypt is meant to reach, and whether this run saw it. All at 64 KiB and one thread but the single sector.

use dmcrypt::{Kernel, SectorSize};
use luksbench::contender::Direction;

use crate::report::{Measured, Row, Target};

const CALL_BYTES: usize = 64 << 10;

/// What a target looks at.
#[derive(Clone, Copy)]
enum Goal {
    /// Fraction of the limit of the kernel's own width, at least.
    OfLimit(f64),
    /// Times aws-lc, at least.
    OverAwsLc(f64),
    /// Times aes + xts-mode, at least.
    OverXtsMode(f64),
    /// Nanoseconds for one single sector, at most.
    SectorNs(f64),
}

impl Goal {
    /// The words for the row of a target: subject, wanted, and how to write what was reached.
    fn wanted(self) -> (&'static str, String) {
        match self {
            Goal::OfLimit(least) => ("of its limit", format!(">= {:.0}%", least * 100.0)),
            Goal::OverAwsLc(least) => ("x aws-lc", format!(">= {least:.1}")),
            Goal::OverXtsMode(least) => ("x aes + xts-mode", format!(">= {least:.1}")),
            Goal::SectorNs(most) => ("one single sector", format!("<= {most:.0} ns")),
        }
    }

    /// What a row shows of it, in words, and whether that is enough.
    fn judge(self, row: &Row) -> Option<(String, bool)> {
        match self {
            Goal::OfLimit(least) => row.of_limit.map(|of| (format!("{:.1}%", of.median * 100.0), of.median >= least)),
            Goal::OverAwsLc(least) => row.to_aws_lc.map(|of| (format!("{:.2}", of.median), of.median >= least)),
            Goal::OverXtsMode(least) => row.to_xts_mode.map(|of| (format!("{:.2}", of.median), of.median >= least)),
            Goal::SectorNs(most) => Some((format!("{:.1} ns", row.call_ns), row.call_ns <= most)),
        }
    }
}

const GOALS: [(Kernel, SectorSize, Goal); 14] = [
    (Kernel::Vaes512, SectorSize::S4096, Goal::OfLimit(0.92)),
    (Kernel::Vaes512, SectorSize::S4096, Goal::OverAwsLc(1.2)),
    (Kernel::Vaes512, SectorSize::S512, Goal::OfLimit(0.87)),
    (Kernel::Vaes512, SectorSize::S512, Goal::OverAwsLc(2.0)),
    (Kernel::Vaes256, SectorSize::S4096, Goal::OfLimit(0.82)),
    (Kernel::Vaes256, SectorSize::S512, Goal::OfLimit(0.79)),
    (Kernel::AesNi, SectorSize::S4096, Goal::OfLimit(0.90)),
    (Kernel::Vaes512, SectorSize::S4096, Goal::OverXtsMode(7.0)),
    (Kernel::Vaes512, SectorSize::S512, Goal::OverXtsMode(7.0)),
    (Kernel::Vaes256, SectorSize::S4096, Goal::OverXtsMode(7.0)),
    (Kernel::Vaes256, SectorSize::S512, Goal::OverXtsMode(7.0)),
    (Kernel::AesNi, SectorSize::S4096, Goal::OverXtsMode(7.0)),
    (Kernel::AesNi, SectorSize::S512, Goal::OverXtsMode(7.0)),
    (Kernel::Vaes512, SectorSize::S512, Goal::SectorNs(80.0)),
];

/// All targets against what was measured.
pub(crate) fn judged(cases: &[Measured]) -> Vec<Target> {
    let mut targets = Vec::with_capacity(2 * GOALS.len());
    for (kernel, sector_size, goal) in GOALS {
        let call_bytes = match goal {
            Goal::SectorNs(_) => sector_size.bytes() as usize,
            _ => CALL_BYTES,
        };
        for direction in Direction::ALL {
            let (subject, wanted) = goal.wanted();
            let found = cases.iter().find(|case| case.is(sector_size, call_bytes, direction));
            let seen = found.and_then(|case| case.row(kernel.name())).and_then(|row| goal.judge(row));
            let (reached, met) = seen.unzip();
            targets.push(Target {
                what: format!("{}, {}-byte sectors, {subject}", kernel.name(), sector_size.bytes()),
                operation: direction.name(),
                wanted,
                reached,
                met,
            });
        }
    }
    targets
}

#[cfg(test)]
mod tests {
    use super::*;
    use luksbench::contender;
    use luksbench::rounds::{Case, Rates};

    fn measured(call_bytes: usize, own: f64, rival: f64) -> Measured {
        let case =
            Case { sector_size: SectorSize::S512, call_bytes, buffers: 1, direction: Direction::Decrypt, threads: 1 };
        let mut ours = contender::kernel(Kernel::Portable);
        ours.name = Kernel::Vaes512.name().into();
        let rates = |rate| Rates { own: vec![rate; 3], limit: vec![10e9; 3] };
        Measured::new(case, &[ours, contender::xts_mode()], &[rates(own), rates(rival)])
    }

    #[test]
    fn restless_limits_are_the_work_of_others() {
        assert!(!measured(1 << 16, 8.75e9, 3e9).is_disturbed());
        let mut measured = measured(1 << 16, 8.75e9, 3e9);
        let limit = &mut measured.limits[0].gb_per_s;
        limit.high = limit.median * 1.02;
        limit.low = limit.median * 0.99;
        assert!(measured.is_disturbed(), "spread {}", measured.limit_spread());
    }

    #[test]
    fn met_missed_and_not_measured() {
        let targets = judged(&[measured(CALL_BYTES, 8.8e9, 1.3e9), measured(512, 6.4e9, 1e9)]);
        assert_eq!(targets.len(), 28);
        let verdict = |what: &str, operation: &str| {
            let what = format!("vaes512, 512-byte sectors, {what}");
            let target = targets.iter().find(|target| target.what == what && target.operation == operation).unwrap();
            (target.reached.clone().unwrap_or_default(), target.met)
        };
        assert_eq!(verdict("of its limit", "decrypt"), ("88.0%".into(), Some(true)));
        assert_eq!(verdict("of its limit", "encrypt"), (String::new(), None));
        assert_eq!(verdict("x aes + xts-mode", "decrypt"), ("6.77".into(), Some(false)));
        assert_eq!(verdict("x aws-lc", "decrypt"), (String::new(), None));
        assert_eq!(verdict("one single sector", "decrypt"), ("80.0 ns".into(), Some(true)));
    }
}
