//! `volume compose`: what is not mounted is refused, what others wrote stays.

use crate::desk::Desk;

#[test]
fn a_mount_point_that_is_not_up_is_refused_unless_that_is_said() {
    let desk = Desk::new();
    let example = desk.run(&["volume", "config", "example"]).ends(0).stdout;
    // A folder that is there, and nothing is mounted on it.
    let mount = desk.path("mounts");
    std::fs::create_dir_all(mount.join("data")).unwrap();
    let example = example.replace("/mnt/trading-", &format!("{}/", mount.display()));
    std::fs::write(desk.path("v.toml"), example).unwrap();
    let compose = |words: &[&str]| desk.run(&[&["volume", "compose", "--config", "v.toml"], words].concat());
    compose(&[]).fails(4, "mounts/data: volume data is not mounted there");
    assert!(!desk.path("docker-compose.encrypted.yml").exists());

    let printed = compose(&["--allow-unmounted", "-o", "-"]).ends(0).stdout;
    assert!(printed.contains("create_host_path: false") && printed.contains("/mounts/data\""), "{printed}");
    let written = compose(&["--allow-unmounted", "--json"]).ends(0).json();
    assert_eq!(written["written"], true);
    assert_eq!(std::fs::read_to_string(desk.path("docker-compose.encrypted.yml")).unwrap(), printed);
    assert_eq!(compose(&["--allow-unmounted", "--json"]).ends(0).json()["written"], false);

    std::fs::write(desk.path("mine.yml"), "services: {}\n").unwrap();
    compose(&["--allow-unmounted", "-o", "mine.yml"]).fails(5, "is not a file that luksctl wrote");
    assert_eq!(std::fs::read_to_string(desk.path("mine.yml")).unwrap(), "services: {}\n");
}
