//! `docker-compose.encrypted.yml`: the container that uses the volumes, tied down.
//!
//! * Every value of the configuration is a double-quoted scalar of printable ASCII in which nothing is special any more: not
//!   to YAML ([`scalar`]) and not to compose, which would put a variable in the place of `$NAME`.
//! * A mount point that nothing is mounted on is not handed to a container: the caller says what is up. `create_host_path` is
//!   false, so the engine makes none either.
//! * The container runs as the owner of its volumes, who is not root.
//!
//! Source: the Compose specification (services: `volumes` long syntax, `read_only`, `cap_drop`, `security_opt`, `user`;
//! interpolation), YAML 1.2.2 section 7.3.1.

use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};

use crate::config::{Account, Config, Owner, VolumeSpec};
use crate::units::{Put, put};
use crate::{Trouble, VolumesError};

/// The guide's name of the file.
pub const COMPOSE_FILE: &str = "docker-compose.encrypted.yml";
/// What the guide's container finds in its environment.
const ENVIRONMENT: [(&str, &str); 2] = [("ENABLE_ENCRYPTION", "true"), ("ENCRYPTION_AT_REST", "true")];
/// What it can write to beside its volumes: memory, gone with it.
const TEMPORARY: &str = "/tmp:mode=1777,size=64m,noexec,nosuid,nodev";

/// The first line of the file for this set.
fn mark(config: &Config) -> String {
    format!(
        "# Written by `luksctl volume compose` for {}: change volumes.toml and run it again.\n",
        config.store.application
    )
}

/// The compose file of the set. `is_up` says whether a volume is open and mounted where it is to be; `None` writes the file
/// whatever is up.
///
/// # Errors
/// [`VolumesError::Refused`] where no volume is for the container, one is not mounted, or its owner is unknown or root.
pub fn compose(config: &Config, is_up: Option<&dyn Fn(&VolumeSpec) -> bool>) -> Result<String, VolumesError> {
    let mut bound: Vec<(&Path, &Path)> = Vec::new();
    let mut owner = None;
    for volume in &config.volumes {
        let (Some(inside), Some(mount)) = (&volume.container, &volume.mount) else { continue };
        if is_up.is_some_and(|is_up| !is_up(volume)) {
            let what = format!("volume {} is not mounted there", volume.name);
            let mend = format!("luksctl volume up {}, then again; or --allow-unmounted", volume.name);
            return Err(VolumesError::refused(Trouble::Missing, mount.display().to_string(), what, mend));
        }
        bound.push((mount, inside));
        owner = Some(&volume.owner);
    }
    let owner = owner
        .ok_or_else(|| unsuited("no volume has a place in the container: container = \"/app/NAME\"".to_owned()))?;
    let user = user(owner)?;
    let environment: String =
        ENVIRONMENT.iter().map(|(name, value)| format!("      {name}: {}\n", scalar(value))).collect();
    let mounts: String = bound.iter().map(|(mount, inside)| bind(mount, inside)).collect::<Result<_, _>>()?;
    let image = config.container.image.as_deref().map(|image| format!("    image: {}\n", scalar(image)));
    Ok(format!(
        "{mark}services:
  {service}:
{image}    user: {user}
    read_only: true
    cap_drop:
      - \"ALL\"
    security_opt:
      - \"no-new-privileges:true\"
    tmpfs:
      - {temporary}
    environment:
{environment}    volumes:
{mounts}",
        mark = mark(config),
        service = scalar(&config.container.service),
        image = image.unwrap_or_default(),
        user = scalar(&user),
        temporary = scalar(TEMPORARY),
    ))
}

/// Writes the file: new, or over one that is ours.
///
/// # Errors
/// [`VolumesError::Refused`] for a file that is not ours, [`VolumesError::Io`].
pub fn write(config: &Config, text: &str, path: &Path) -> Result<Put, VolumesError> {
    put(path, text, &mark(config))
}

/// One mount, in the long form: the short one splits at colons and makes what is not there.
fn bind(mount: &Path, inside: &Path) -> Result<String, VolumesError> {
    let text = |path: &Path| {
        let text = path.to_str().map(scalar);
        text.ok_or_else(|| unsuited(format!("{}: is no UTF-8", path.display())))
    };
    Ok(format!(
        "      - type: \"bind\"
        source: {}
        target: {}
        read_only: false
        bind:
          create_host_path: false
",
        text(mount)?,
        text(inside)?
    ))
}

/// `UID:GID` of the owner: the container knows no names of this machine.
fn user(owner: &Owner) -> Result<String, VolumesError> {
    let found = match &owner.user {
        Account::Id(id) => User::from_uid(Uid::from_raw(*id)),
        Account::Name(name) => User::from_name(name),
    };
    let found = found.map_err(|error| unsuited(format!("owner {owner}: looking the user up: {error}")))?;
    let uid = match (&owner.user, &found) {
        (Account::Id(id), _) => Uid::from_raw(*id),
        (Account::Name(_), Some(user)) => user.uid,
        (Account::Name(name), None) => return Err(unsuited(format!("owner {owner}: there is no user {name} here"))),
    };
    let gid = match (&owner.group, &found) {
        (Some(Account::Id(id)), _) => Gid::from_raw(*id),
        (Some(Account::Name(name)), _) => {
            let group = Group::from_name(name);
            let group = group.map_err(|error| unsuited(format!("owner {owner}: looking the group up: {error}")))?;
            group.ok_or_else(|| unsuited(format!("owner {owner}: there is no group {name} here")))?.gid
        }
        (None, Some(user)) => user.gid,
        (None, None) => return Err(unsuited(format!("owner {owner}: name its group, too: \"{owner}:{owner}\""))),
    };
    if uid.is_root() {
        let what = "the container would run as root: give its volumes an owner, as owner = \"1000:1000\"";
        return Err(unsuited(what.to_owned()));
    }
    Ok(format!("{uid}:{gid}"))
}

fn unsuited(what: String) -> VolumesError {
    VolumesError::refused(Trouble::Wrong, "the container", what, "change volumes.toml, then again")
}

/// A double-quoted scalar that is `text` to whoever reads it through compose.
fn scalar(text: &str) -> String {
    let mut scalar = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => scalar.extend(['\\', letter]),
            // Compose: two dollars are one.
            '$' => scalar.push_str("$$"),
            ' '..='~' => scalar.push(letter),
            // Also what ends a line in older YAML: NEL, LS, PS.
            _ => scalar.push_str(&format!("\\U{:08X}", u32::from(letter))),
        }
    }
    scalar.push('"');
    scalar
}

/// Where the file goes unless somebody says otherwise: the working directory.
#[must_use]
pub fn usual_path() -> PathBuf {
    PathBuf::from(COMPOSE_FILE)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::config::EXAMPLE;

    fn parse(text: &str) -> Config {
        Config::parse(text, Path::new("volumes.toml")).unwrap()
    }

    /// What a YAML parser makes of it, as JSON; `None` where there is none.
    fn read_back(yaml: &str) -> Option<serde_json::Value> {
        let program = "import sys, yaml, json; json.dump(yaml.safe_load(sys.stdin), sys.stdout)";
        let mut command = Command::new("/usr/bin/python3");
        let mut child = command.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), yaml.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            let has_yaml = Command::new("/usr/bin/python3").args(["-c", "import yaml"]).status().unwrap().success();
            assert!(!has_yaml, "no YAML: {yaml}");
            eprintln!("SKIPPED: no python3-yaml (run tests/setup)");
            return None;
        }
        Some(serde_json::from_slice(&output.stdout).unwrap())
    }

    #[test]
    fn the_guides_file_holds_every_property() {
        let yaml = compose(&parse(EXAMPLE), None).unwrap();
        let Some(json) = read_back(&yaml) else { return };
        let services = json["services"].as_object().unwrap();
        assert_eq!(services.len(), 1);
        let service = &services["ai-trading-bot"];
        assert_eq!(service["image"], "ai-trading-bot:latest");
        assert_eq!(service["user"], "1000:1000");
        assert_eq!(service["read_only"], true);
        assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]));
        assert_eq!(service["security_opt"], serde_json::json!(["no-new-privileges:true"]));
        assert_eq!(
            service["environment"],
            serde_json::json!({"ENABLE_ENCRYPTION": "true", "ENCRYPTION_AT_REST": "true"})
        );
        let mounts: Vec<serde_json::Value> = [("data", "data"), ("logs", "logs"), ("config", "config")]
            .map(|(name, inside)| {
                serde_json::json!({
                    "type": "bind", "source": format!("/mnt/trading-{name}"), "target": format!("/app/{inside}"),
                    "read_only": false, "bind": {"create_host_path": false},
                })
            })
            .into();
        assert_eq!(service["volumes"], serde_json::Value::Array(mounts));
        assert!(service["tmpfs"][0].as_str().unwrap().starts_with("/tmp:"));
    }

    #[test]
    fn hostile_names_stay_values() {
        for name in
            ["/a\\\"b: {c}", "/a #b", "/a $HOME ${X:-y}", "/é\u{2028}x: y", "/a'b`c", "/- [!!python/x]", "/a\\\\"]
        {
            let text = format!(
                "{EXAMPLE}\n[volumes.odd]\nsize = \"1G\"\nmount = \"/mnt{name}\"\ncontainer = \"{name}\"\nowner = \"1000:1000\"\n"
            );
            let config = parse(&text);
            let odd = config.volume("odd").unwrap();
            let Some(json) = read_back(&compose(&config, None).unwrap()) else { return };
            assert_eq!(json.as_object().unwrap().len(), 1, "{json}");
            let volumes = json["services"]["ai-trading-bot"]["volumes"].as_array().unwrap();
            let read = |key: &str| volumes[3][key].as_str().unwrap().replace("$$", "$");
            assert_eq!(read("source"), odd.mount.as_ref().unwrap().to_str().unwrap());
            assert_eq!(read("target"), odd.container.as_ref().unwrap().to_str().unwrap());
            assert_eq!(volumes.len(), 4);
        }
    }

    #[test]
    fn what_is_not_up_or_would_be_root_is_refused() {
        let config = parse(EXAMPLE);
        let refused = |config: &Config, is_up: Option<&dyn Fn(&VolumeSpec) -> bool>| {
            compose(config, is_up).unwrap_err().to_string()
        };
        let all_but_logs = |volume: &VolumeSpec| volume.name != "logs";
        assert!(refused(&config, Some(&all_but_logs)).contains("/mnt/trading-logs: volume logs is not mounted there"));
        // The backup volume is not the container's business.
        assert!(compose(&config, Some(&|volume: &VolumeSpec| volume.name != "backup")).is_ok());
        assert!(refused(&parse(&EXAMPLE.replace("\"1000:1000\"", "\"root\"")), None).contains("run as root"));
        let nobody = EXAMPLE.replace("\"1000:1000\"", "\"no-such-user-here\"");
        assert!(refused(&parse(&nobody), None).contains("there is no user no-such-user-here here"));
        let lines = EXAMPLE.lines().filter(|line| !line.starts_with("container ="));
        assert!(refused(&parse(&lines.collect::<Vec<_>>().join("\n")), None).contains("no volume has a place"));
        // Without an image the application's own file has it.
        let lines = EXAMPLE.lines().filter(|line| !line.starts_with("image = \"ai-"));
        assert!(!compose(&parse(&lines.collect::<Vec<_>>().join("\n")), None).unwrap().contains("image:"));
    }

    #[test]
    fn a_file_of_somebody_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(usual_path());
        let config = parse(EXAMPLE);
        let text = compose(&config, None).unwrap();
        assert_eq!(write(&config, &text, &path).unwrap(), Put::Written);
        assert_eq!(write(&config, &text, &path).unwrap(), Put::Unchanged);
        std::fs::write(&path, "services: {}\n").unwrap();
        assert!(matches!(write(&config, &text, &path), Err(VolumesError::Refused { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "services: {}\n");
    }
}
