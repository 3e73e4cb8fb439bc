//! The units of the guide's set are what the guide has; hostile paths stay one word; an installation is safe to repeat.

use std::process::Command;

use super::*;
use crate::config::EXAMPLE;

fn parse(text: &str) -> Config {
    Config::parse(text, Path::new("volumes.toml")).unwrap()
}

fn around() -> Around<'static> {
    // A program that every machine has, as `systemd-analyze verify` looks for it.
    Around {
        program: Path::new("/bin/true"),
        config: Path::new("/etc/luksctl/volumes.toml"),
        encrypted_credential: None,
    }
}

fn text<'f>(files: &'f [UnitFile], name: &str) -> &'f str {
    &files.iter().find(|file| file.path == Path::new(name)).unwrap_or_else(|| panic!("no {name}")).text
}

fn has_analyze() -> bool {
    let found = Command::new("systemd-analyze").arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("SKIPPED: no systemd-analyze (run tests/setup)");
    }
    found
}

/// Sets of every kind of volume and master key.
fn sets() -> Vec<String> {
    let with = |more: &str| format!("{EXAMPLE}\n{more}");
    let master = |value: &str| EXAMPLE.replace("{ file = \"/opt/trading-bot/keys/master.key\" }", value);
    vec![
        EXAMPLE.to_owned(),
        with("[volumes.disk]\ndevice = \"/dev/sdb\"\nfile-system = \"none\""),
        with("[volumes.odd]\nsize = \"1G\"\nmount = \"/mnt/a \\\"b\\\" %h $HOME é\"\nimage = \"/srv/x %i/y.img\""),
        master("{ credential = \"trading-bot.master\" }"),
        master("{ keyring = \"trading-bot\" }"),
        EXAMPLE.replace("/opt/trading-bot", "/home/bot/set").replace("/mnt/trading-data", "/home/bot/data"),
    ]
}

#[test]
fn the_guides_names_are_there_and_order_is_kept() {
    let config = parse(EXAMPLE);
    let files = units(&config, &around()).unwrap();
    let names: Vec<&str> = files.iter().map(|file| file.path.to_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "trading-bot-volumes.service",
            "trading-bot-volumes-open.service",
            "trading-bot-key-rotation.service",
            "trading-bot-key-rotation.timer",
            "mnt-trading\\x2ddata.mount",
            "mnt-trading\\x2dlogs.mount",
            "mnt-trading\\x2dconfig.mount",
            "mnt-trading\\x2dbackup.mount",
            "docker.service.d/50-trading-bot-volumes.conf",
        ]
    );
    let mount = text(&files, "mnt-trading\\x2ddata.mount");
    for line in [
        "What=/run/luksctl/trading-data/device",
        "Where=/mnt/trading-data",
        "Type=ext4",
        "After=trading-bot-volumes-open.service",
        "Requires=trading-bot-volumes-open.service",
        "DefaultDependencies=no",
    ] {
        assert!(mount.lines().any(|found| found == line), "{line} in {mount}");
    }
    let open = text(&files, "trading-bot-volumes-open.service");
    assert!(
        open.contains("ExecStart=\"/bin/true\" volume up --no-mount --config \"/etc/luksctl/volumes.toml\"\n"),
        "{open}"
    );
    let docker = text(&files, "docker.service.d/50-trading-bot-volumes.conf");
    assert!(docker.contains("Requires=mnt-trading\\x2ddata.mount mnt-trading\\x2dlogs.mount"), "{docker}");
    assert!(text(&files, "trading-bot-key-rotation.timer").contains("OnCalendar=weekly"));
    assert!(files.iter().all(|file| file.text.starts_with(&mark("trading-bot"))));
}

#[test]
fn the_master_key_comes_as_a_credential_or_is_refused() {
    let with = |value: &str| parse(&EXAMPLE.replace("{ file = \"/opt/trading-bot/keys/master.key\" }", value));
    let config = with("{ credential = \"trading-bot.master\" }");
    for (encrypted, line) in [
        (true, "LoadCredentialEncrypted=trading-bot.master:/etc/credstore.encrypted/trading-bot.master\n"),
        (false, "LoadCredential=trading-bot.master:/etc/credstore/trading-bot.master\n"),
    ] {
        let files = units(&config, &Around { encrypted_credential: Some(encrypted), ..around() }).unwrap();
        for name in ["trading-bot-volumes-open.service", "trading-bot-key-rotation.service"] {
            assert!(text(&files, name).contains(line), "{name}: {line}");
        }
    }
    for refused in ["\"passphrase\"", "{ credential = \"a:b\" }"] {
        let error = units(&with(refused), &around()).unwrap_err();
        assert!(matches!(error, VolumesError::Refused { trouble: Trouble::Wrong, .. }), "{error}");
    }
}

#[test]
fn no_value_of_the_file_ends_its_line_or_word() {
    let config = parse(&sets()[2]);
    let files = units(&config, &around()).unwrap();
    let mount = files.iter().find(|file| file.text.contains("volume odd")).unwrap();
    assert!(mount.text.contains("Where=/mnt/a \"b\" %%h $HOME é\n"), "{}", mount.text);
    let main = text(&files, "trading-bot-volumes.service");
    assert!(main.contains("-q \"/mnt/a \\\"b\\\" %%h $$HOME é\"\n"), "{main}");
    for bad in ["/mnt/x\\\\", "/mnt/x "] {
        let config = parse(&format!("{EXAMPLE}\n[volumes.odd]\nsize = \"1G\"\nmount = \"{bad}\""));
        assert!(
            matches!(units(&config, &around()), Err(VolumesError::Refused { trouble: Trouble::Wrong, .. })),
            "{bad}"
        );
    }
}

#[test]
fn systemd_finds_no_fault_in_them() {
    if !has_analyze() {
        return;
    }
    for set in sets() {
        let folder = tempfile::tempdir().unwrap();
        let files = units(&parse(&set), &around()).unwrap();
        install(&files, folder.path()).unwrap();
        let own = files.iter().filter(|file| !file.path.starts_with("docker.service.d"));
        let paths: Vec<PathBuf> = own.map(|file| folder.path().join(&file.path)).collect();
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .args(&paths)
            .env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let about_ours: Vec<&str> = said
            .lines()
            .filter(|line| line.contains(folder.path().to_str().unwrap()) || line.contains("trading"))
            .collect();
        assert!(output.status.success() && about_ours.is_empty(), "{set}\n{said}");
    }
}

#[test]
fn systemd_would_find_a_fault() {
    if !has_analyze() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.service");
    std::fs::write(&path, "[Service]\nType=oneshot\nExecStart=/bin/true\nProtectSistem=strict\n").unwrap();
    let analyze = |words: &[&str]| Command::new("systemd-analyze").args(words).arg(&path).output().unwrap();
    let said = analyze(&["verify", "--man=no", "--recursive-errors=no"]);
    assert!(String::from_utf8_lossy(&said.stderr).contains("ProtectSistem"), "{said:?}");
    let said = analyze(&["security", "--offline=true", "--threshold=30", "--no-pager"]);
    assert!(!said.status.success(), "{said:?}");
}

#[test]
fn systemd_finds_the_services_hardened() {
    if !has_analyze() {
        return;
    }
    for set in sets() {
        let folder = tempfile::tempdir().unwrap();
        let files = units(&parse(&set), &around()).unwrap();
        install(&files, folder.path()).unwrap();
        for file in files.iter().filter(|file| file.path.extension().is_some_and(|kind| kind == "service")) {
            let path = folder.path().join(&file.path);
            let output = Command::new("systemd-analyze")
                .args(["security", "--offline=true", "--threshold=30", "--no-pager"])
                .arg(&path)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let level = said.lines().last().unwrap_or_default();
            assert!(output.status.success(), "{}: {level} {}", path.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
}

#[test]
fn an_installation_changes_only_what_is_ours_and_differs() {
    let folder = tempfile::tempdir().unwrap();
    let files = units(&parse(EXAMPLE), &around()).unwrap();
    let first = install(&files, folder.path()).unwrap();
    assert_eq!((first.written.len(), first.unchanged.len(), first.removed.len()), (9, 0, 0));
    assert_eq!(installed(&files, folder.path()).unwrap().unchanged.len(), 9);
    assert_eq!(install(&files, folder.path()).unwrap().written, Vec::<PathBuf>::new());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 9, "a part stayed");
    // A volume that is no longer there takes its unit along, and nobody else's.
    std::fs::write(folder.path().join("ssh.service"), "[Unit]\n").unwrap();
    std::fs::write(folder.path().join("other.mount"), mark("other") + "[Mount]\n").unwrap();
    let fewer = parse(&EXAMPLE.replace("/mnt/trading-backup", "/srv/backup"));
    let changed = install(&units(&fewer, &around()).unwrap(), folder.path()).unwrap();
    assert_eq!(changed.removed, [folder.path().join("mnt-trading\\x2dbackup.mount")]);
    assert_eq!(changed.written.len(), 4, "{changed:?}");
    assert!(folder.path().join("ssh.service").exists() && folder.path().join("other.mount").exists());
    // A foreign file, or a masked unit, and nothing is written.
    let foreign = folder.path().join("trading-bot-key-rotation.timer");
    for make in [(|path: &Path| std::fs::write(path, "[Timer]\n").unwrap()) as fn(&Path), |path| {
        std::os::unix::fs::symlink("/dev/null", path).unwrap()
    }] {
        std::fs::remove_file(&foreign).unwrap();
        make(&foreign);
        let error = install(&files, folder.path()).unwrap_err();
        assert!(
            matches!(&error, VolumesError::Refused { target, .. } if *target == foreign.display().to_string()),
            "{error}"
        );
        assert!(!folder.path().join("mnt-trading\\x2dbackup.mount").exists());
    }
}
