//! `.env` files: lines `NAME=VALUE`, with `export`, quotes and comments as shells and container tools read them. Such a file
//! is full of secrets of other programs: nothing of it is kept but the assignments of variables that are known here.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::variable;
use crate::VolumesError;

/// Longest file that is read.
const DOTENV_BYTES_MAX: u64 = 1 << 20;

/// One assignment of a variable that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The variable.
    pub name: &'static str,
    /// Its value, without quotes and comment.
    pub value: String,
    /// Its line, from 1; 0 for what came from the environment.
    pub line: usize,
}

/// What a file assigns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct DotEnv {
    /// Variables that are known here, in the order of the file.
    pub known: Vec<Assignment>,
    /// How many others there are. They are nobody's business here.
    pub others: usize,
}

/// A variable of ours that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DotEnvError {
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for DotEnvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.what)
    }
}

/// The text of the file at `path`.
///
/// # Errors
/// [`VolumesError::Io`], and [`VolumesError::File`] for one of more than 1 MiB or that is no text.
pub fn read_dotenv(path: &Path) -> Result<String, VolumesError> {
    let refused = |what: &str| VolumesError::File { path: path.to_owned(), what: what.to_owned() };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(VolumesError::io("read", path))?;
    file.take(DOTENV_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(VolumesError::io("read", path))?;
    if bytes.len() as u64 > DOTENV_BYTES_MAX {
        return Err(refused("it is longer than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| refused("it is no UTF-8 text"))
}

impl std::error::Error for DotEnvError {}

impl DotEnv {
    /// Reads `text`.
    ///
    /// # Errors
    /// [`DotEnvError`] for a variable of ours without an end of its quotes or that has two different values.
    pub fn parse(text: &str) -> Result<DotEnv, DotEnvError> {
        let mut found = DotEnv::default();
        let mut lines = text.lines().enumerate();
        while let Some((at, line)) = lines.next() {
            let line = line.trim();
            let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
            let Some((name, value)) = line.split_once('=') else { continue };
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                continue;
            }
            let refused = |what: String| DotEnvError { line: at + 1, what };
            let value = match unquoted(value) {
                Some(value) => value,
                None if variable(name).is_some() => {
                    return Err(refused(format!("{name}: the value's quotes are not closed on its line")));
                }
                // A longer secret of somebody else: what stands in it is no assignment.
                None => {
                    let quote = value.chars().next().unwrap_or('"');
                    lines.by_ref().find(|(_, line)| line.contains(quote));
                    found.others += 1;
                    continue;
                }
            };
            let Some(variable) = variable(name) else {
                found.others += 1;
                continue;
            };
            match found.known.iter().find(|earlier| earlier.name == variable.name) {
                Some(earlier) if earlier.value == value => {}
                Some(earlier) => {
                    let what = format!("{name} is {value} here and {} in line {}", earlier.value, earlier.line);
                    return Err(refused(what));
                }
                None => found.known.push(Assignment { name: variable.name, value: value.to_owned(), line: at + 1 }),
            }
        }
        Ok(found)
    }
}

/// The value without quotes and comment; nothing if its quotes do not end.
fn unquoted(text: &str) -> Option<&str> {
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            return rest.split_once(quote).map(|(value, _)| value);
        }
    }
    let end = text.find(" #").or_else(|| text.find("\t#")).unwrap_or(text.len());
    Some(text[..end].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(&'static str, String, usize)> {
        let found = DotEnv::parse(text).unwrap();
        found.known.into_iter().map(|found| (found.name, found.value, found.line)).collect()
    }

    #[test]
    fn as_shells_read_it() {
        let text = "# KEY_ROTATION_DAYS=1\n\nexport KEY_ROTATION_DAYS=30\nAUDIT_LOG_RETENTION=2555  # 7 years\n\
                    LUKS_CIPHER=\"aes-xts-plain64\" # strong\n LUKS_HASH='sha512'\nALPACA_SECRET_KEY=x\n";
        assert_eq!(
            values(text),
            [
                ("KEY_ROTATION_DAYS", "30".to_owned(), 3),
                ("AUDIT_LOG_RETENTION", "2555".to_owned(), 4),
                ("LUKS_CIPHER", "aes-xts-plain64".to_owned(), 5),
                ("LUKS_HASH", "sha512".to_owned(), 6),
            ]
        );
        assert_eq!(DotEnv::parse(text).unwrap().others, 1);
    }

    #[test]
    fn what_stands_in_anothers_secret_is_no_assignment() {
        assert_eq!(values("PEM=\"-----BEGIN\nKEY_ROTATION_DAYS=9999\n-----END\"\nLUKS_HASH=sha256\n").len(), 1);
    }

    #[test]
    fn doubtful_lines_are_named() {
        let error = DotEnv::parse("LUKS_HASH=sha512\n\nLUKS_HASH=sha256\n").unwrap_err();
        assert_eq!((error.line, error.what.as_str()), (3, "LUKS_HASH is sha256 here and sha512 in line 1"));
        assert_eq!(DotEnv::parse("\nLUKS_HASH=\"sha512\n").unwrap_err().line, 2);
        assert_eq!(values("LUKS_HASH=sha512\nLUKS_HASH=sha512\n").len(), 1);
    }
}
