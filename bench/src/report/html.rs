//! The page of a run: one file, no script, nothing fetched from anywhere; for wide windows and phones, light and dark.
//!
//! What comes from the run is written by [`escape`] only. The page forbids itself to load anything
//! (Content-Security-Policy), so that even a mistake here could not.

use std::fmt::Write as _;

use super::plot::{self, Row, escape};
use super::{number, percent, size, table, words_of_job};
use crate::run::{Job, Layer, PLAIN, Run, Sample};
use crate::stats;
use crate::targets::{Judgement, Targets, Verdict, judge};

/// How a page of ours begins: what begins so may be written over.
pub const MARK: &str = "<!DOCTYPE html>\n<!-- a report of luksbench -->\n";

const STYLE: &str = include_str!("html.css");

/// The page of a run and its judgement.
#[must_use]
pub fn html(run: &Run, targets: &Targets) -> String {
    let mut page = String::from(MARK);
    let title = format!("luksbench: {}", run.settings.target);
    let _ = write!(
        page,
        "<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        escape(&title)
    );
    head(&mut page, run);
    judged_targets(&mut page, run, &judge(run, targets));
    throughput(&mut page, run);
    overheads(&mut page, run, targets);
    latencies(&mut page, run);
    numbers(&mut page, run);
    notes(&mut page, run);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn head(page: &mut String, run: &Run) {
    let (machine, settings) = (&run.machine, &run.settings);
    let _ = writeln!(page, "<h1>What encryption costs on {}</h1>\n<dl>", escape(&settings.target));
    let cache = if settings.direct { "direct" } else { "through the page cache" };
    let versions: Vec<String> = machine.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    for (name, value) in [
        ("when", utc(run.started_unix_s)),
        ("storage", format!("{}, {} in a file", machine.storage, size(settings.size_bytes))),
        ("machine", format!("{}, {} processors, {}", machine.cpu, machine.cpus, memory(machine.memory_bytes))),
        ("kernel", machine.kernel.clone()),
        ("cipher", format!("{}, sectors of {} bytes", machine.aes_kernel, settings.sector_bytes)),
        (
            "how",
            format!(
                "{}, {cache}, {} rounds of {} ms after {} ms",
                settings.queue, settings.rounds, settings.piece_ms, settings.warm_up_ms
            ),
        ),
        ("versions", versions.join(", ")),
    ] {
        let _ = writeln!(page, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    page.push_str("</dl>\n");
    if run.interrupted {
        page.push_str("<p class=\"unsure\">Ended early: what is there is whole rounds.</p>\n");
    }
}

/// The kernel keeps some for itself, so it is hardly ever a whole number.
fn memory(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // one decimal is shown
    let gib = bytes as f64 / f64::from(1 << 30);
    format!("{gib:.1} GiB of memory")
}

fn judged_targets(page: &mut String, run: &Run, judged: &[Judgement]) {
    if judged.is_empty() {
        return;
    }
    let layer = run.layers.iter().find(|layer| layer.chosen_by_open);
    let _ = writeln!(
        page,
        "<h2>Targets</h2>\n<p>Judged is what <code>luksctl open</code> would take here: {}.</p>\n<div class=\"scroll\" role=\"region\" aria-label=\"Targets\" tabindex=\"0\"><table class=\"verdicts\">\n\
         <thead><tr><th scope=\"col\">job</th><th scope=\"col\" class=\"words\">verdict</th>\
         <th scope=\"col\">reached (95%)</th><th scope=\"col\">met, better</th></tr></thead><tbody>",
        escape(layer.map_or("nothing", |layer| &layer.title))
    );
    for judged in judged {
        let class = match judged.verdict {
            Verdict::Better | Verdict::Met => "good",
            Verdict::Missed => "bad",
            Verdict::DiskCannot | Verdict::TooNoisy => "unsure",
            Verdict::NotMeasured | Verdict::Shown => "dim",
        };
        let why = if judged.why.is_empty() {
            String::new()
        } else {
            format!(" <span class=\"dim\">{}</span>", escape(&judged.why))
        };
        let _ = writeln!(
            page,
            "<tr><th scope=\"row\">{} <span class=\"dim\">{}</span></th>\
             <td class=\"words why\"><span class=\"{class}\">{}</span>{why}</td><td>{}</td><td>{}</td></tr>",
            escape(&judged.job),
            judged.kind(),
            judged.verdict.words(),
            escape(&judged.reached()),
            escape(&judged.wanted())
        );
    }
    page.push_str("</tbody></table></div>\n");
}

/// A plot for each job, of the layers that have something to show.
fn cards(
    page: &mut String,
    run: &Run,
    row: impl Fn(&Job, &Layer, &[Sample]) -> Option<Row>,
    draw: impl Fn(usize, &str, &[Row]) -> String,
) {
    page.push_str("<div class=\"cards\">\n");
    for (nth, job) in run.jobs.iter().enumerate() {
        let of = |layer: &Layer| {
            Some(run.samples(&job.name, &layer.name))
                .filter(|samples| !samples.is_empty())
                .and_then(|samples| row(job, layer, samples))
        };
        let rows: Vec<Row> = run.layers.iter().filter_map(of).collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(
            page,
            "<figure><figcaption><h3>{}</h3><span class=\"dim\">{}</span></figcaption>",
            escape(&job.name),
            escape(&words_of_job(job))
        );
        page.push_str(&draw(nth, &job.name, &rows));
        page.push_str("</figure>\n");
    }
    page.push_str("</div>\n");
}

fn class(layer: &Layer) -> &'static str {
    match layer {
        layer if layer.name == PLAIN => "plain",
        layer if layer.chosen_by_open => "chosen",
        _ => "other",
    }
}

fn throughput(page: &mut String, run: &Run) {
    page.push_str("<h2>Throughput by layer</h2>\n<p class=\"dim\">Median of the rounds; the line is from a quarter to three quarters of them. Strong colour: what <code>luksctl open</code> would take; grey: the plain file.</p>\n");
    let row = |_: &Job, layer: &Layer, samples: &[Sample]| {
        let rates: Vec<f64> = samples.iter().map(|sample| sample.bytes_per_s() / 1e6).collect();
        let (low, value, high) = stats::quartiles(&rates)?;
        let label = number(value);
        Some(Row {
            name: layer.name.clone(),
            class: class(layer),
            value,
            range: Some((low, high)),
            further: vec![],
            label,
        })
    };
    cards(page, run, row, |nth, job, rows| {
        plot::bars(&format!("rate{nth}"), &format!("Throughput of {job} by layer"), "MB/s", rows)
    });
}

fn overheads(page: &mut String, run: &Run, targets: &Targets) {
    page.push_str("<h2>Overhead</h2>\n<p class=\"dim\">Share of the plain file's rate that is lost, from ratios inside the same rounds, with 95% intervals; left of zero is faster than plain. Dashed: the targets.</p>\n");
    let bounds: Vec<f64> =
        targets.overhead_bounds().map_or_else(Vec::new, |(met, better)| vec![better * 100.0, met * 100.0]);
    let row = |job: &Job, layer: &Layer, samples: &[Sample]| {
        let plain = Some(run.samples(&job.name, PLAIN)).filter(|_| layer.name != PLAIN)?;
        let found = stats::overhead(samples, plain)?.map(|share| share * 100.0);
        let range = found.interval.map(|interval| (interval.low, interval.high));
        let label = format!("{:.1}%", found.value);
        Some(Row { name: layer.name.clone(), class: class(layer), value: found.value, range, further: vec![], label })
    };
    cards(page, run, row, |nth, job, rows| {
        plot::intervals(
            &format!("over{nth}"),
            &format!("Overhead of {job} by layer"),
            "% slower than plain",
            rows,
            &bounds,
        )
    });
}

fn latencies(page: &mut String, run: &Run) {
    page.push_str("<h2>Latency</h2>\n<p class=\"dim\">Filled: the median, which the number says; then 90%, 99% and 99.9% of the requests. Each is the median over the rounds.</p>\n");
    let row = |_: &Job, layer: &Layer, samples: &[Sample]| {
        let percentile = |name: &str| {
            let of = |sample: &Sample| sample.latency.percentiles_ns.get(name).map(|ns| *ns as f64 / 1e3);
            stats::median(&samples.iter().filter_map(of).collect::<Vec<_>>())
        };
        let value = percentile("50")?;
        let further = ["90", "99", "99.9"].into_iter().filter_map(percentile).collect();
        Some(Row { name: layer.name.clone(), class: class(layer), value, range: None, further, label: number(value) })
    };
    cards(page, run, row, |nth, job, rows| {
        plot::points(&format!("late{nth}"), &format!("Latency of {job} by layer"), "µs", rows)
    });
}

fn numbers(page: &mut String, run: &Run) {
    page.push_str(
        "<h2>Numbers</h2>\n<p class=\"dim\">CPU: seconds in user mode + in the kernel for 10<sup>9</sup> bytes, servers included.</p>\n\
         <div class=\"scroll\" role=\"region\" aria-label=\"Numbers\" tabindex=\"0\"><table>\n<thead><tr><th scope=\"col\">layer</th><th scope=\"col\">MB/s</th><th scope=\"col\">quartiles</th>\
         <th scope=\"col\">IOPS</th><th scope=\"col\">p50 µs</th><th scope=\"col\">p90</th><th scope=\"col\">p99</th><th scope=\"col\">p99.9</th>\
         <th scope=\"col\">CPU s/GB</th><th scope=\"col\">overhead (95%)</th></tr></thead><tbody>\n",
    );
    for job in &run.jobs {
        let _ = writeln!(
            page,
            "<tr class=\"job\"><th scope=\"rowgroup\" colspan=\"10\"><span>{}: {}</span></th></tr>",
            escape(&job.name),
            escape(&words_of_job(job))
        );
        for layer in &run.layers {
            let samples = run.samples(&job.name, &layer.name);
            if samples.is_empty() {
                continue;
            }
            let _ = write!(page, "<tr><th scope=\"row\">{}</th>", escape(&layer.title));
            for cell in cells(run, job, layer, samples) {
                let _ = write!(page, "<td>{}</td>", escape(&cell));
            }
            page.push_str("</tr>\n");
        }
    }
    page.push_str("</tbody></table></div>\n");
}

fn cells(run: &Run, job: &Job, layer: &Layer, samples: &[Sample]) -> Vec<String> {
    let rates: Vec<f64> = samples.iter().map(|sample| sample.bytes_per_s() / 1e6).collect();
    let iops: Vec<f64> = samples.iter().map(table::requests_per_s).collect();
    let (low, rate, high) = stats::quartiles(&rates).unwrap_or_default();
    let mut cells = vec![
        number(rate),
        format!("{} to {}", number(low), number(high)),
        stats::median(&iops).map_or_else(String::new, |iops| format!("{iops:.0}")),
    ];
    for name in ["50", "90", "99", "99.9"] {
        let of = |sample: &Sample| sample.latency.percentiles_ns.get(name).map(|ns| *ns as f64 / 1e3);
        cells.push(
            stats::median(&samples.iter().filter_map(of).collect::<Vec<_>>()).map_or_else(|| "-".to_owned(), number),
        );
    }
    cells.push(
        table::cpu_s_per_gb(samples)
            .map_or_else(|| "-".to_owned(), |(user, kernel)| format!("{user:.2} + {kernel:.2}")),
    );
    let overhead = if layer.name == PLAIN { None } else { stats::overhead(samples, run.samples(&job.name, PLAIN)) };
    cells.push(overhead.map_or_else(String::new, |overhead| percent(&overhead)));
    cells
}

fn notes(page: &mut String, run: &Run) {
    let absent: Vec<String> =
        run.layers.iter().filter_map(|layer| Some(format!("{}: {}", layer.title, layer.absent.as_ref()?))).collect();
    for (title, lines) in [("Not here", &absent), ("Remarks", &run.remarks)] {
        if !lines.is_empty() {
            let _ = writeln!(page, "<h2>{title}</h2>\n<ul>");
            for line in lines {
                let _ = writeln!(page, "<li>{}</li>", escape(line));
            }
            page.push_str("</ul>\n");
        }
    }
}

/// "2026-11-23 08:26 UTC": the Gregorian calendar by days since 1970, after Howard Hinnant's `civil_from_days`.
#[must_use]
pub fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3600, second / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::simulated::run;
    use crate::targets::compiled_in;

    #[test]
    fn days_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_795_422_412), "2026-11-23 08:26 UTC");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00 UTC");
    }

    #[test]
    fn the_page_stands_alone_and_is_whole() {
        let page = html(&run(7, 9, |_, _| 1.0), &compiled_in().unwrap());
        assert!(page.starts_with(MARK) && page.ends_with("</html>\n"));
        for outside in ["http:", "https:", "//cdn", "<script", "<link", "<img", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("<svg").count(), 18, "three plots for each of six jobs");
        for (open, close) in [
            ("<svg", "</svg>"),
            ("<title", "</title>"),
            ("<desc", "</desc>"),
            ("<table", "</table>"),
            ("<tr", "</tr>"),
            ("<figure", "</figure>"),
            ("<div", "</div>"),
        ] {
            assert_eq!(page.matches(open).count(), page.matches(close).count(), "{open}");
        }
        assert_eq!(page.matches("role=\"img\"").count(), 18);
        assert!(page.contains("no /dev/ublk-control") && page.contains("the disk is shared"));
    }

    #[test]
    fn words_from_outside_stay_words() {
        const HOSTILE: &str = "</title><script>alert(1)</script>\"'&";
        let mut run = run(7, 6, |_, _| 1.0);
        run.settings.target = HOSTILE.into();
        run.settings.queue = HOSTILE.into();
        run.machine.cpu = HOSTILE.into();
        run.machine.storage = HOSTILE.into();
        run.machine.kernel = HOSTILE.into();
        run.machine.aes_kernel = HOSTILE.into();
        run.machine.versions.insert(HOSTILE.into(), HOSTILE.into());
        run.remarks = vec![HOSTILE.into()];
        for layer in &mut run.layers {
            layer.title = HOSTILE.into();
            layer.absent = layer.absent.as_ref().map(|_| HOSTILE.into());
        }
        run.jobs[0].name = HOSTILE.into();
        run.measurements
            .iter_mut()
            .filter(|measured| measured.job == "seq-read")
            .for_each(|measured| measured.job = HOSTILE.into());
        let page = html(&run, &compiled_in().unwrap());
        assert!(!page.contains("<script>") && !page.contains("alert(1)</script>"));
        assert!(page.contains("&lt;/title&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"));
    }
}
