//! [`MasterCredential`]: the master secret as a credential that systemd handed to the service (`LoadCredential=`,
//! `LoadCredentialEncrypted=`): a file in `$CREDENTIALS_DIRECTORY`. Source: systemd.exec(5), systemd-creds(1).

use super::{Master, MasterSource};
use crate::Error;
use crate::limits::MASTER_BYTES_MAX;
use secret::KeyFile;
use std::path::{Path, PathBuf};

/// The variable by which systemd names the folder.
const FOLDER_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// A credential of this service.
#[derive(Clone, Debug)]
pub struct MasterCredential {
    folder: Option<PathBuf>,
    name: String,
}

impl MasterCredential {
    /// The credential called `name`, in the folder that the environment names.
    pub fn new(name: impl Into<String>) -> MasterCredential {
        MasterCredential { folder: std::env::var_os(FOLDER_VARIABLE).map(PathBuf::from), name: name.into() }
    }

    /// The credential called `name` in `folder`.
    pub fn within(folder: &Path, name: impl Into<String>) -> MasterCredential {
        MasterCredential { folder: Some(folder.to_owned()), name: name.into() }
    }

    /// systemd allows no slash and not the names of folders.
    fn is_name(&self) -> bool {
        !self.name.is_empty() && self.name.len() <= 255 && !self.name.contains('/') && !self.name.starts_with('.')
    }
}

impl MasterSource for MasterCredential {
    fn describe(&self) -> String {
        match &self.folder {
            Some(_) => format!("the credential {:?}", self.name),
            None => format!("the credential {:?} ({FOLDER_VARIABLE} is not set: no service of systemd)", self.name),
        }
    }

    fn fetch(&mut self) -> Result<Master, Error> {
        let path = self.folder.as_ref().filter(|_| self.is_name()).map(|folder| folder.join(&self.name));
        let Some(path) = path.filter(|path| path.is_file()) else {
            return Err(Error::NoMaster { what: self.describe() });
        };
        // systemd opens the folder to the service's user by an ACL, which the group's bits of the mode then show: no
        // look at them here. The folder is the service's own.
        let size_bytes = std::fs::metadata(&path).map_err(Error::io(format!("look at {}", path.display())))?.len();
        if size_bytes > MASTER_BYTES_MAX as u64 {
            return Err(Error::TooLarge { file: path.display().to_string(), limit_bytes: MASTER_BYTES_MAX });
        }
        Master::new(KeyFile::whole(&path).read()?, &self.describe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_file_is_the_secret_and_nothing_outside_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(inner.join("luks-master"), [3; 40]).unwrap();
        std::fs::write(folder.path().join("outside"), [4; 40]).unwrap();
        let fetched = MasterCredential::within(&inner, "luks-master").fetch().unwrap();
        assert!(fetched.secret().ct_eq(&[3; 40]));
        for name in ["../outside", "missing", "", "..", "."] {
            let error = MasterCredential::within(&inner, name).fetch().unwrap_err();
            assert!(matches!(error, Error::NoMaster { .. }), "{name}: {error}");
        }
        std::fs::write(inner.join("large"), vec![3; 9000]).unwrap();
        assert!(matches!(MasterCredential::within(&inner, "large").fetch(), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn without_systemd_the_error_names_the_variable() {
        let mut none = MasterCredential { folder: None, name: "m".into() };
        assert!(none.fetch().unwrap_err().to_string().contains(FOLDER_VARIABLE));
    }
}
