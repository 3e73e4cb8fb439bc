//! `compliance report`: words, JSON and exit code.

use crate::desk::Desk;

#[test]
fn a_report_ends_with_10_where_a_demand_is_not_met() {
    let desk = Desk::new();
    let example = desk.run(&["volume", "config", "example"]).ends(0).stdout;
    let here = desk.path("x").parent().unwrap().display().to_string();
    let example = example.replace("/opt/trading-bot", &here).replace("/var/log/luksctl", &here);
    std::fs::write(desk.path("v.toml"), example).unwrap();
    let report = |words: &[&str]| desk.run(&[&["compliance", "report", "--config", "v.toml"], words].concat());
    // Nothing is set up: nothing is met, and nothing but what the file says is unmet.
    let json = report(&["--profile", "sox", "--json"]).ends(10).json();
    let demands = json["demands"].as_array().unwrap();
    let verdict = |name: &str| demands.iter().find(|demand| demand["name"] == name).unwrap()["verdict"].clone();
    assert_eq!((verdict("dual-approval"), verdict("data-backups")), ("not-met".into(), "unknown".into()));
    assert_eq!(json["checklist"].as_array().unwrap().len(), 15);
    let words = report(&["--profile", "pci-dss"]).ends(10);
    assert!(words.stdout.contains("- rotation: every key is rotated within 30 days: not met"), "{words:?}");
    assert!(words.stdout.contains("    volumes.toml: keys.rotation-days = 90: not met"), "{words:?}");
    assert!(words.stdout.contains("- firewall: Firewall configured: outside of luksctl"), "{words:?}");
    assert!(words.stderr.contains("4 demands: 0 met, "), "{words:?}");
    // The set's own profile demands nothing that could be said to be unmet.
    report(&[]).ends(0);
    report(&["--profile", "hipaa"]).fails(1, "must be none, pci-dss or sox");
}
