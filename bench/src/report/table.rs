//! The table of a run on a terminal: for each job the layers as rows, the targets below, then what is absent and what there
//! is to know. Fits into 100 columns and works in 80; narrower, columns fall away from the right of the latencies.

use std::fmt::Write as _;

use super::{Look, number, percent, shown, size, words_of_job};
use crate::run::{Job, Layer, PLAIN, Run, Sample};
use crate::stats;
use crate::targets::{Judgement, Subject, Targets, Verdict, judge};

/// A column: its head, its width, and the narrowest table that has it.
struct Column {
    head: &'static str,
    width: usize,
    from_columns: usize,
}

const LAYER_WIDTH: usize = 11;
const COLUMNS: [Column; 7] = [
    Column { head: "MB/s", width: 8, from_columns: 0 },
    Column { head: "quartiles", width: 15, from_columns: 100 },
    Column { head: "IOPS", width: 8, from_columns: 54 },
    Column { head: "p50 µs", width: 8, from_columns: 62 },
    Column { head: "p99 µs", width: 8, from_columns: 70 },
    Column { head: "CPU s/GB", width: 12, from_columns: 80 },
    Column { head: "overhead (95%)", width: 22, from_columns: 0 },
];

/// The table of a run and its judgement.
#[must_use]
pub fn table(run: &Run, targets: &Targets, look: Look) -> String {
    let mut text = String::new();
    let judged = judge(run, targets);
    let mut lines = head(run);
    for job in &run.jobs {
        lines.push(String::new());
        lines.push(format!("{}: {}", shown(&job.name), words_of_job(job)));
        lines.extend(rows(run, job, look.width));
    }
    lines.push(String::new());
    lines.extend(key(run));
    for line in lines {
        folded(&mut text, &line, look.width);
    }
    targets_below(&mut text, run, &judged, look);
    let absent = run.layers.iter().filter_map(|layer| Some((layer, layer.absent.as_ref()?)));
    let absent: Vec<_> =
        absent.map(|(layer, why)| format!("not here: {}: {}", shown(&layer.title), shown(why))).collect();
    let remarks = run.remarks.iter().map(|remark| format!("remark: {}", shown(remark)));
    let interrupted = run.interrupted.then(|| "ended early: what is there is whole rounds".to_owned());
    let last: Vec<_> = absent.into_iter().chain(remarks).chain(interrupted).collect();
    if !last.is_empty() {
        text.push('\n');
    }
    for line in last {
        folded(&mut text, &line, look.width);
    }
    text
}

fn head(run: &Run) -> Vec<String> {
    let (machine, settings) = (&run.machine, &run.settings);
    let cache = if settings.direct { "direct" } else { "through the page cache" };
    vec![
        format!("target  {}, {} on {}", shown(&settings.target), size(settings.size_bytes), shown(&machine.storage)),
        format!("machine {}, {} processors, Linux {}", shown(&machine.cpu), machine.cpus, shown(&machine.kernel)),
        format!("cipher  {}, sectors of {} bytes", shown(&machine.aes_kernel), settings.sector_bytes),
        format!("how     {}, {cache}, {} rounds of {} ms", shown(&settings.queue), settings.rounds, settings.piece_ms),
    ]
}

fn key(run: &Run) -> Vec<String> {
    let mut key = vec![
        "medians of the rounds; CPU: seconds in user mode + in the kernel for 10^9 bytes, servers included; overhead: share of the \
         plain rate that is lost, from the same rounds"
            .to_owned(),
    ];
    if let Some(chosen) = run.layers.iter().find(|layer| layer.chosen_by_open) {
        key.push(format!("* what luksctl open would take here: {}", shown(&chosen.title)));
    }
    key
}

/// The head and a row for each layer that was measured.
fn rows(run: &Run, job: &Job, width: usize) -> Vec<String> {
    let shown_columns: Vec<usize> = (0..COLUMNS.len()).filter(|at| width >= COLUMNS[*at].from_columns).collect();
    let line = |first: &str, cells: &[String]| {
        let mut line = format!("  {first:<LAYER_WIDTH$}");
        for at in &shown_columns {
            let _ = write!(line, "{:>width$}", cells[*at], width = COLUMNS[*at].width);
        }
        line.trim_end().to_owned()
    };
    let heads: Vec<String> = COLUMNS.iter().map(|column| column.head.to_owned()).collect();
    let mut rows = vec![line("", &heads)];
    for layer in &run.layers {
        let samples = run.samples(&job.name, &layer.name);
        if !samples.is_empty() {
            let name: String = shown(&layer.name).chars().take(LAYER_WIDTH - 1).collect();
            let name = format!("{name}{}", if layer.chosen_by_open { "*" } else { "" });
            rows.push(line(&name, &cells(run, job, layer, samples)));
        }
    }
    if rows.len() == 1 { vec!["  not measured".to_owned()] } else { rows }
}

/// What stands in the columns, in their order.
fn cells(run: &Run, job: &Job, layer: &Layer, samples: &[Sample]) -> Vec<String> {
    let median = |values: Vec<f64>| stats::median(&values);
    let rates: Vec<f64> = samples.iter().map(|sample| sample.bytes_per_s() / 1e6).collect();
    let quartiles = stats::quartiles(&rates);
    let requests = job.block_bytes <= 64 << 10;
    let iops = requests.then(|| median(samples.iter().map(requests_per_s).collect())).flatten();
    let percentile = |name: &str| {
        let of = |sample: &Sample| sample.latency.percentiles_ns.get(name).map(|ns| *ns as f64 / 1e3);
        median(samples.iter().filter_map(of).collect()).map_or_else(|| "-".to_owned(), number)
    };
    let overhead = if layer.name == PLAIN { None } else { stats::overhead(samples, run.samples(&job.name, PLAIN)) };
    vec![
        median(rates).map_or_else(String::new, number),
        quartiles.map_or_else(String::new, |(low, _, high)| format!("{} to {}", number(low), number(high))),
        iops.map_or_else(String::new, |iops| format!("{iops:.0}")),
        percentile("50"),
        percentile("99"),
        cpu_s_per_gb(samples).map_or_else(|| "-".to_owned(), |(user, kernel)| format!("{user:.2}+{kernel:.2}")),
        overhead.map_or_else(String::new, |overhead| percent(&overhead)),
    ]
}

pub(super) fn requests_per_s(sample: &Sample) -> f64 {
    sample.requests as f64 * 1e9 / sample.elapsed_ns.max(1) as f64
}

/// Seconds of processor time for 10^9 bytes, in user mode and in the kernel, over all samples.
pub(super) fn cpu_s_per_gb(samples: &[Sample]) -> Option<(f64, f64)> {
    let sum = |of: fn(&Sample) -> u64| samples.iter().map(|sample| of(sample) as f64).sum::<f64>();
    let bytes = sum(|sample| sample.bytes);
    (bytes > 0.0).then(|| (sum(|sample| sample.user_ns) / bytes, sum(|sample| sample.kernel_ns) / bytes))
}

fn targets_below(text: &mut String, run: &Run, judged: &[Judgement], look: Look) {
    if judged.is_empty() {
        return;
    }
    text.push('\n');
    let layer = run.layers.iter().find(|layer| layer.chosen_by_open).map_or("-", |layer| &layer.name);
    folded(text, &format!("targets, of {}", shown(layer)), look.width);
    for judged in judged {
        let line = format!(
            "  {:<13} {:<8} {:<18} {:<23} ",
            shown(&judged.job),
            judged.kind(),
            judged.wanted(),
            judged.reached()
        );
        let words = match judged.why.as_str() {
            "" => judged.verdict.words().to_owned(),
            why => format!("{} ({})", judged.verdict.words(), shown(why)),
        };
        let line = format!("{line}{words}");
        let mut lines = String::new();
        folded(&mut lines, &line, look.width);
        text.push_str(&if look.colour { coloured(&lines, judged.verdict) } else { lines });
    }
}

impl Judgement {
    /// What the target is about, in one word or two.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.subject {
            Subject::Rate => "rate",
            Subject::Overhead => "overhead",
            Subject::AddedLatency => "latency",
        }
    }

    /// The bounds, for people.
    #[must_use]
    pub fn wanted(&self) -> String {
        match (self.subject, self.bounds) {
            (_, None) => "added, no bound".to_owned(),
            (Subject::Rate, Some((met, better))) => format!("≥ {}, {} MB/s", number(met / 1e6), number(better / 1e6)),
            (Subject::Overhead, Some((met, better))) => format!("≤ {:.1}%, {:.1}%", met * 100.0, better * 100.0),
            (Subject::AddedLatency, Some((met, better))) => format!("added ≤ {}, {} µs", number(met), number(better)),
        }
    }

    /// What came out, for people.
    #[must_use]
    pub fn reached(&self) -> String {
        let Some(found) = &self.found else { return "-".to_owned() };
        let scaled = |scale: f64, unit: &str| match found.interval {
            Some(interval) => format!(
                "{} {unit} ({} to {})",
                number(found.value / scale),
                number(interval.low / scale),
                number(interval.high / scale)
            ),
            None => format!("{} {unit}", number(found.value / scale)),
        };
        match self.subject {
            Subject::Rate => scaled(1e6, "MB/s"),
            Subject::Overhead => percent(found),
            Subject::AddedLatency => scaled(1.0, "µs"),
        }
    }
}

/// The line's verdict in its colour; the words say the same.
fn coloured(lines: &str, verdict: Verdict) -> String {
    let colour = match verdict {
        Verdict::Better | Verdict::Met => "32",
        Verdict::Missed => "31",
        Verdict::DiskCannot | Verdict::TooNoisy => "33",
        Verdict::NotMeasured | Verdict::Shown => return lines.to_owned(),
    };
    lines.replacen(verdict.words(), &format!("\u{1b}[{colour}m{}\u{1b}[0m", verdict.words()), 1)
}

/// Appends a line, broken at spaces where it is longer than `width`; what follows is indented.
fn folded(text: &mut String, line: &str, width: usize) {
    const INDENT: &str = "      ";
    let width = width.max(2 * INDENT.len());
    let mut rest = line;
    let mut indent = "";
    loop {
        let room = width - indent.len();
        let end = rest.char_indices().nth(room).map(|(at, _)| at);
        let Some(end) = end else { break };
        let cut = rest[..end].rfind(' ').filter(|at| !rest[..*at].trim().is_empty()).unwrap_or(end);
        let _ = writeln!(text, "{indent}{}", rest[..cut].trim_end());
        rest = rest[cut..].trim_start();
        indent = INDENT;
    }
    let _ = writeln!(text, "{indent}{}", rest.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::simulated::run;
    use crate::targets::compiled_in;

    fn of(run: &Run, width: usize) -> String {
        table(run, &compiled_in().unwrap(), Look { width, colour: false })
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut run = run(7, 9, |_, _| 1.0);
        run.settings.target = "/a/long/path".repeat(20);
        run.machine.cpu = "a processor with a name ".repeat(9);
        for width in [40, 60, 80, 100] {
            for line in of(&run, width).lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
    }

    #[test]
    fn all_that_was_measured_and_all_that_was_not_is_there() {
        let text = of(&run(7, 9, |_, _| 1.0), 80);
        for part in
            ["seq-read: sequential read, 1 MiB, depth 8, 1 thread", "  fuse-loop*", "overhead (95%)", "p99 µs", "IOPS"]
        {
            assert!(text.contains(part), "{part}\n{text}");
        }
        for part in [
            "not here: ublk: no /dev/ublk-control",
            "remark: the disk is shared",
            "targets, of fuse-loop",
            "≥ 400, 600 MB/s",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("ended early") && !text.contains("quartiles") && !text.contains('\u{1b}'));
        assert!(of(&run(7, 9, |_, _| 1.0), 100).contains("quartiles"));
    }

    #[test]
    fn cells_by_hand() {
        let mut run = run(7, 6, |_, _| 1.0);
        run.jobs.retain(|job| job.name == "rand-read");
        for measured in &mut run.measurements {
            let rate = if measured.layer == PLAIN { 200e6 } else { 180e6 };
            measured.samples = (0..6).map(|round| crate::stats::simulated::sample(round, rate)).collect();
        }
        let text = of(&run, 80);
        let row = text.lines().find(|line| line.starts_with("  fuse-loop*")).unwrap();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells[..6], ["fuse-loop*", "180", "43945", "728", "2185", "0.67+2.67"]);
        assert_eq!(cells[6..], ["10.0%", "(10.0", "to", "10.0)"]);
    }

    #[test]
    fn colour_is_added_and_changes_nothing_else() {
        let run = run(7, 9, |_, _| 1.0);
        let plain = of(&run, 80);
        let coloured = table(&run, &compiled_in().unwrap(), Look { width: 80, colour: true });
        assert!(coloured.contains("\u{1b}[32m"));
        let bare = ["\u{1b}[32m", "\u{1b}[31m", "\u{1b}[33m", "\u{1b}[0m"]
            .iter()
            .fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(bare, plain);
    }

    #[test]
    fn foreign_words_cannot_move_the_cursor() {
        let mut run = run(7, 6, |_, _| 1.0);
        run.remarks = vec!["\u{1b}[2J\rgone".into()];
        run.layers[0].title = "\u{7}".into();
        run.settings.target = "\u{9b}31m".into();
        assert!(!of(&run, 80).chars().any(|c| c.is_control() && c != '\n'));
    }
}
