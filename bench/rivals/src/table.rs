//! The report for people.

use luksbench::rounds::Quartiles;

use crate::report::{Measured, Report, Target};

/// What is compared, and how.
pub(crate) fn opening(report: &Report) {
    println!("processor: {}", report.processor);
    println!("kernel in use: {}", report.kernel_in_use);
    println!("rivals: {}; aws-lc: {}", report.openssl, report.aws_lc);
    println!(
        "AES-256-XTS in place; medians of {} rounds (31 at most over 1 MiB), in brackets the quartiles; \
         pieces of {} us or one call",
        report.rounds, report.piece_us
    );
    println!("all contenders gave the same bytes in {} shapes of sector and buffer", report.shapes_checked);
}

/// One case.
pub(crate) fn case(measured: &Measured) {
    let limits: Vec<String> = measured
        .limits
        .iter()
        .map(|limit| format!("{} {:.2} GB/s {}", limit.instruction, limit.gb_per_s.median, spread(limit.gb_per_s, 2)))
        .collect();
    println!("\n{}", measured.name);
    println!("limits: {}", if limits.is_empty() { "none on this machine".into() } else { limits.join(", ") });
    if measured.attempts > 1 {
        let restless = if measured.is_disturbed() { "still disturbed" } else { "calm now" };
        println!("measured {} times, as others were at work; the calmest: {restless}", measured.attempts);
    }
    println!(
        "{:<15} {:>22} {:>11}   {:>19} {:<11}  {:>10} {:>8} {:>9}",
        "",
        "GB/s",
        if measured.single_sector { "ns a sector" } else { "" },
        "of the limit",
        "",
        "x xts-mode",
        "x aws-lc",
        "x OpenSSL"
    );
    for row in &measured.rows {
        let call = if measured.single_sector { format!("{:.1}", row.call_ns) } else { String::new() };
        let of_limit = row.of_limit.map_or("-".into(), |of_limit| {
            let percent = |value: f64| value * 100.0;
            let of_limit = Quartiles {
                low: percent(of_limit.low),
                median: percent(of_limit.median),
                high: percent(of_limit.high),
            };
            format!("{:.1}% {}", of_limit.median, spread(of_limit, 1))
        });
        println!(
            "{:<15} {:>22} {:>11}   {:>19} {:<11}  {:>10} {:>8} {:>9}",
            row.contender,
            format!("{:.2} {}", row.gb_per_s.median, spread(row.gb_per_s, 2)),
            call,
            of_limit,
            row.limit.unwrap_or_default(),
            ratio(row.to_xts_mode),
            ratio(row.to_aws_lc),
            ratio(row.to_openssl)
        );
    }
}

/// Which targets were met.
pub(crate) fn targets(targets: &[Target]) {
    println!("\ntargets (64 KiB, one thread, unless said otherwise)");
    for target in targets {
        let verdict = match target.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "not measured",
        };
        println!(
            "{:<52} {:<8} {:>10} {:>9}  {verdict}",
            target.what,
            target.operation,
            target.wanted,
            target.reached.as_deref().unwrap_or("-")
        );
    }
}

fn spread(of: Quartiles, digits: usize) -> String {
    format!("({:.digits$}-{:.digits$})", of.low, of.high)
}

fn ratio(of: Option<Quartiles>) -> String {
    of.map_or("-".into(), |ratio| format!("{:.2}", ratio.median))
}
