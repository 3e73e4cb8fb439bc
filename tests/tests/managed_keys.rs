//! The keys of a managed set from outside: what `luksctl key` and `luksctl secret` say and do, and what was done to the store
//! behind their backs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use keystore::KeyName;
use promises::managed_set::{ManagedSet, cryptsetup_opens};
use promises::rig::{refused, run, run_with_input, succeed};
use promises::skip::{needs_fuse, needs_programs, needs_root};
use serde_json::Value;

/// A user that requests nothing: `nobody` on Debian.
const OTHER: u32 = 65534;

fn json(set: &ManagedSet, arguments: &[&str]) -> Value {
    serde_json::from_slice(&succeed(&mut set.luksctl(arguments)).stdout).unwrap()
}

/// Both streams.
fn words(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    succeed(Command::new("cp").arg("-a").arg(from).arg(to));
}

#[test]
fn keys_turn_and_the_report_says_what_opens_what() {
    let test = "managed_keys: keys_turn_and_the_report_says_what_opens_what";
    if !(needs_root(test) && needs_programs(test, &["cryptsetup"])) {
        return;
    }
    let set = ManagedSet::new("keys", &["data", "logs"], "");
    assert_eq!(run(&mut set.luksctl(&["key", "check-age"])).status.code(), Some(0));
    assert_eq!(run(&mut set.luksctl(&["key", "check-age", "--within", "90"])).status.code(), Some(10));

    let first = json(&set, &["key", "rotate", "data", "--json"]);
    assert_eq!((first[0]["from"].as_u64(), first[0]["to"].as_u64()), (Some(1), Some(2)));
    assert!(first[0]["header-backups-destroyed"][0].as_str().unwrap().ends_with("data.header.1"), "{first}");
    let second = json(&set, &["key", "rotate", "data", "--keep-old", "--json"]);
    assert_eq!(second[0]["header-backups-destroyed"].as_array().unwrap().len(), 0, "{second}");
    let old = set.set().store().unwrap().key_of(&KeyName::new("data").unwrap(), 2).unwrap();
    assert!(!set.opens("data", &old) && set.slots("data") == 1);
    let kept = json(&set, &["key", "report", "--json"]);
    let data = &kept["keys"][0];
    assert_eq!((data["name"].as_str(), data["generation"].as_u64()), (Some("data"), Some(3)), "{kept}");
    assert_eq!((data["retired"][0].as_u64(), &data["is-due"]), (Some(2), &Value::Bool(false)));
    let backup = data["header-backups"].as_array().unwrap();
    let backup = backup.iter().find(|backup| backup["opens-with-generation"] == 2).unwrap();
    assert!(cryptsetup_opens(Path::new(backup["path"].as_str().unwrap()), &set.key_file("old", &old)));

    for generation in [1, 2] {
        assert_eq!(json(&set, &["key", "rotate-backup", "--json"])[0]["to"], generation);
    }
    let all = json(&set, &["key", "rotate-all", "--json"]);
    assert_eq!(all.as_array().unwrap().len(), 3, "{all}");
    assert_eq!(json(&set, &["key", "rotate-all", "--due", "--json"]).as_array().unwrap().len(), 0);
    assert_eq!(json(&set, &["key", "rotate-all", "--due", "--within", "90", "--json"]).as_array().unwrap().len(), 3);

    let master = fs::read(set.path("keys/master.key")).unwrap();
    succeed(&mut set.luksctl(&["key", "rotate-master"]));
    assert_ne!(fs::read(set.path("keys/master.key")).unwrap(), master);
    let file = succeed(&mut set.luksctl(&["key", "export-set"])).stdout;
    assert!(Path::new(String::from_utf8(file).unwrap().trim_end()).is_file());
    let verified = words(&succeed(&mut set.luksctl(&["key", "verify"])));
    assert!(verified.contains("good: volume logs") && verified.contains("good: newest backup of keys"), "{verified}");
    let report = words(&succeed(&mut set.luksctl(&["key", "report"])));
    for said in ["The volume key, which the data is", "SSDs, copy-on-write", "IEEE 1619", "opens with generation"] {
        assert!(report.contains(said), "{said} is missing in {report}");
    }
    let audit = run(&mut set.luksctl(&["audit", "verify", "--no-journal"]));
    assert_eq!(audit.status.code(), Some(0), "{}", words(&audit));
}

#[test]
fn what_is_written_to_a_volume_is_counted() {
    let test = "managed_keys: what_is_written_to_a_volume_is_counted";
    if !(needs_root(test) && needs_fuse(test) && needs_programs(test, &["cryptsetup", "dd"])) {
        return;
    }
    let set = ManagedSet::new("written", &["data"], "");
    let written = || json(&set, &["key", "report", "--json"])["keys"][0]["written-bytes"].as_u64().unwrap();
    assert_eq!(written(), 0);
    let mut counted = 0;
    for _ in 0..2 {
        let up = json(&set, &["volume", "up", "--no-mount", "--json"]);
        let of = format!("of={}", up[0]["device"].as_str().unwrap());
        succeed(Command::new("dd").args(["if=/dev/urandom", &of, "bs=4k", "count=256", "conv=fsync,notrunc"]));
        succeed(&mut set.luksctl(&["volume", "down"]));
        assert!(written() >= counted + (1 << 20), "{} after {counted}", written());
        counted = written();
    }
    // The next opening of the store takes the notes over, and none twice.
    succeed(&mut set.luksctl(&["key", "verify"]));
    assert!(!set.path("keys/written").exists());
    assert_eq!(written(), counted);
}

#[test]
fn what_was_done_to_the_store_is_found_and_said() {
    let test = "managed_keys: what_was_done_to_the_store_is_found_and_said";
    if !(needs_root(test) && needs_programs(test, &["cryptsetup"])) {
        return;
    }
    let set = ManagedSet::new("keys-bad", &["data", "logs"], "");
    let verify = || run(&mut set.luksctl(&["key", "verify"]));
    let rotate = || run(&mut set.luksctl(&["key", "rotate", "data"]));
    let good = set.rig().path("good");
    copy(&set.path("keys"), &good);
    let back = || copy(&good, &set.path("keys"));

    fs::set_permissions(set.path("keys/master.key"), fs::Permissions::from_mode(0o640)).unwrap();
    refused(&rotate(), 1, &["hint: chmod 600", "master.key"]);
    back();
    fs::write(set.path("keys/master.key"), [7; 64]).unwrap();
    refused(&rotate(), 2, &["this master secret is not the one of the store"]);
    back();
    fs::copy(set.path("keys/logs.key"), set.path("keys/data.key")).unwrap();
    let swapped = verify();
    assert_eq!(swapped.status.code(), Some(10), "{}", words(&swapped));
    assert!(words(&swapped).contains("swapped with another file"), "{}", words(&swapped));
    back();
    let text = fs::read_to_string(set.path("keys/key_metadata.json")).unwrap();
    fs::write(set.path("keys/key_metadata.json"), text.replacen("\"active\"", "\"retired\"", 1)).unwrap();
    refused(&rotate(), 1, &["luksctl: "]);
    back();
    assert_eq!(verify().status.code(), Some(0), "{}", words(&verify()));

    // Another container in the place of the image.
    let image = fs::read(set.image("data")).unwrap();
    let other = "11111111-2222-3333-4444-555555555555";
    succeed(Command::new("cryptsetup").args(["luksUUID", "-q", "--uuid", other]).arg(set.image("data")));
    refused(&rotate(), 1, &["the image was replaced"]);
    fs::write(set.image("data"), image).unwrap();

    // The whole store from an older copy: found, and taken only when it is meant.
    succeed(&mut set.luksctl(&["key", "rotate-backup"]));
    back();
    refused(&rotate(), 1, &["an older copy was put back", "--accept-older"]);
    succeed(&mut set.luksctl(&["key", "verify", "--accept-older"]));
    succeed(&mut set.luksctl(&["key", "rotate", "data"]));
    let audit = words(&succeed(&mut set.luksctl(&["audit", "show", "--category", "SECURITY"])));
    assert!(audit.contains("HIGH SECURITY store-rolled-back") && audit.contains("store-accepted"), "{audit}");
}

#[test]
fn secrets_reach_a_program_and_nobody_else() {
    let test = "managed_keys: secrets_reach_a_program_and_nobody_else";
    if !(needs_root(test) && needs_programs(test, &["cryptsetup"])) {
        return;
    }
    let set = ManagedSet::new("secrets", &["data"], "");
    let value = "s3cr3t-of-the-exchange";
    let put = |words: &[&str], input: &[u8]| run_with_input(&mut set.luksctl(words), input);
    assert!(put(&["secret", "set", "api"], format!("{value}\n").as_bytes()).status.success());
    assert!(put(&["secret", "set", "binary", "--file", "-"], b"a\0b\n").status.success());
    refused(&put(&["secret", "set", "luksctl-audit"], b"x\n"), 1, &["this program's own"]);
    let listed = json(&set, &["secret", "list", "--json"]);
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["api", "binary"]);

    let ran = |options: &[&str], script: &str| {
        let mut command = set.luksctl(&[&["secret", "run"], options].concat());
        run(command.args(["--", "sh", "-c", script]))
    };
    assert_eq!(ran(&["--descriptor", "API=api"], "cat \"$API\"; exit 7").stdout, value.as_bytes());
    assert_eq!(ran(&["--descriptor", "API=api"], "exit 7").status.code(), Some(7));
    assert_eq!(ran(&["--environment", "API=api"], "printf %s \"$API\"").stdout, value.as_bytes());
    let credential = ran(
        &["--credential", "binary"],
        "cat \"$CREDENTIALS_DIRECTORY/binary\"; stat -f -c %T \"$CREDENTIALS_DIRECTORY\"",
    );
    assert_eq!(String::from_utf8_lossy(&credential.stdout), "a\0b\ntmpfs\n", "{}", words(&credential));
    assert_eq!(fs::read_dir(set.rig().run_dir().join(".credentials")).unwrap().count(), 0, "nobody else sees it");
    refused(&ran(&["--environment", "B=binary"], "true"), 1, &["zero byte"]);
    refused(&ran(&["--descriptor", "X=missing"], "true"), 4, &["missing"]);
    refused(&ran(&[], "true"), 1, &["no secret is named"]);

    let audit = json(&set, &["audit", "show", "--category", "ACCESS", "--json"]);
    let how: Vec<&str> = audit.as_array().unwrap().iter().filter_map(|row| row["details"]["how"].as_str()).collect();
    assert_eq!(how, ["descriptor", "descriptor", "environment", "credential", "environment"], "{audit}");
    succeed(&mut set.luksctl(&["secret", "remove", "-q", "api"]));
    refused(&ran(&["--descriptor", "API=api"], "true"), 4, &["api"]);
}

#[test]
fn a_second_person_approves_once() {
    let test = "managed_keys: a_second_person_approves_once";
    if !(needs_root(test) && needs_programs(test, &["cryptsetup", "setpriv"])) {
        return;
    }
    let set =
        ManagedSet::new("approval", &["data"], "[keys]\ndual-approval = true\napprovals = \"FOLDER/approvals\"\n");
    for folder in [set.rig().path(""), set.path("")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o711)).unwrap();
    }
    // The build folder may be closed to users: they get a copy.
    let binary = set.rig().path("luksctl");
    fs::copy(promises::bins::luksctl(), &binary).unwrap();
    let as_other = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &OTHER.to_string(), "--regid", &OTHER.to_string(), "--clear-groups"]);
        run(command.arg(&binary).args(words).arg("--config").arg(set.config()))
    };
    let rotate = || run(&mut set.luksctl(&["key", "rotate", "data"]));
    let first = set.key("data");
    refused(&rotate(), 1, &["needs the approval of a second person", "hint: luksctl key request rotate data"]);
    let id = String::from_utf8(succeed(&mut set.luksctl(&["key", "request", "rotate", "data"])).stdout).unwrap();
    let id = id.trim_end();
    refused(&rotate(), 1, &[&format!("luksctl key approve {id}")]);
    refused(&run(&mut set.luksctl(&["key", "approve", id])), 1, &["request of your own"]);
    // What root writes for another is root's, and what is not that request word by word is no approval.
    let approval = set.path(&format!("approvals/{id}.approval"));
    let forged =
        format!("{{\"request_sha256\":\"{:064}\",\"by\":{{\"time_s\":1,\"uid\":{OTHER},\"login_uid\":null}}}}", 0);
    fs::write(&approval, forged).unwrap();
    refused(&rotate(), 1, &["needs the approval of a second person"]);
    fs::remove_file(&approval).unwrap();

    let approved = as_other(&["key", "approve", id]);
    assert!(approved.status.success(), "{}", words(&approved));
    refused(&as_other(&["key", "approve", id]), 1, &["approved already"]);
    assert_eq!(json(&set, &["key", "requests", "--json"])[0]["approver"], OTHER);
    // For this operation only.
    refused(&run(&mut set.luksctl(&["key", "rotate-master"])), 1, &["key request rotate-master"]);
    succeed(&mut set.luksctl(&["key", "rotate", "data"]));
    assert!(!set.opens("data", &first));
    refused(&rotate(), 1, &["needs the approval of a second person"]);
    // The timer requests what is due, and waits.
    let timer = || run(&mut set.luksctl(&["key", "rotate-all", "--due", "--within", "90"]));
    assert_eq!(timer().status.code(), Some(10), "{}", words(&timer()));
    let requests = json(&set, &["key", "requests", "--json"]);
    assert_eq!((requests.as_array().unwrap().len(), requests[0]["state"].as_str()), (1, Some("waits")), "{requests}");
    assert!(as_other(&["key", "approve", requests[0]["id"].as_str().unwrap()]).status.success());
    assert_eq!(timer().status.code(), Some(0), "{}", words(&timer()));
    let audit = words(&succeed(&mut set.luksctl(&["audit", "show", "--category", "SECURITY"])));
    assert!(audit.contains("approval-use data") && audit.contains(&format!("approver={OTHER}")), "{audit}");
}
