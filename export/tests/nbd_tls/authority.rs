//! An authority made by openssl, and what it signs: each certificate in a folder as nbdkit and qemu want it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What `openssl ca` wants to know.
const CONFIGURATION: &str = "[ca]\ndefault_ca = disks\n[disks]\ndatabase = signed.txt\ncrlnumber = number.txt\n\
    default_md = sha256\ncrl_extensions = list\npolicy = any\nunique_subject = no\nrand_serial = yes\nnew_certs_dir = .\n\
    [list]\nauthorityKeyIdentifier = keyid\n[any]\ncommonName = supplied\n";
/// Notations of `openssl ca`, from and until when.
const VALID: (&str, &str) = ("20200101000000Z", "20990101000000Z");
pub(crate) const EXPIRED: (&str, &str) = ("20200101000000Z", "20200102000000Z");

pub(crate) struct Authority {
    folder: PathBuf,
}

impl Authority {
    pub(crate) fn make(folder: &Path) -> Authority {
        fs::create_dir(folder).unwrap();
        let authority = Authority { folder: folder.to_path_buf() };
        for (name, text) in [("ca.conf", CONFIGURATION), ("signed.txt", ""), ("number.txt", "01\n")] {
            fs::write(folder.join(name), text).unwrap();
        }
        let request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2"];
        let files = ["-subj", "/CN=a test", "-keyout", "ca-key.pem", "-out", "ca-cert.pem"];
        authority.openssl(&[&request[..], &files].concat());
        authority
    }

    fn openssl(&self, arguments: &[&str]) {
        let mut command = Command::new("openssl");
        let output = command.args(arguments).current_dir(&self.folder).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
    }

    fn sign(&self, arguments: &[&str]) {
        let ca = ["ca", "-batch", "-config", "ca.conf", "-cert", "ca-cert.pem", "-keyfile", "ca-key.pem"];
        self.openssl(&[&ca[..], arguments].concat());
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.join("ca-cert.pem")
    }

    /// A folder with a certificate for `role`, `server` or `client`, and the authority's.
    pub(crate) fn certify(&self, role: &str, folder: &Path) -> PathBuf {
        self.certify_for(role, folder, VALID)
    }

    pub(crate) fn certify_for(&self, role: &str, folder: &Path, (from, until): (&str, &str)) -> PathBuf {
        let extensions = format!(
            "basicConstraints=CA:FALSE\nextendedKeyUsage={role}Auth\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n"
        );
        fs::write(self.folder.join("extensions"), extensions).unwrap();
        let request =
            ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-subj", "/CN=localhost"];
        self.openssl(&[&request[..], &["-keyout", "key.pem", "-out", "request.pem"]].concat());
        let sign = ["-notext", "-startdate", from, "-enddate", until, "-extfile", "extensions", "-in", "request.pem"];
        self.sign(&[&sign[..], &["-out", "cert.pem"]].concat());
        fs::create_dir_all(folder).unwrap();
        fs::copy(self.certificate(), folder.join("ca-cert.pem")).unwrap();
        fs::copy(self.folder.join("cert.pem"), folder.join(format!("{role}-cert.pem"))).unwrap();
        let key = folder.join(format!("{role}-key.pem"));
        fs::copy(self.folder.join("key.pem"), &key).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        folder.to_path_buf()
    }

    /// Revokes a client's certificate, and gives `server` the list, all at once as an administrator should.
    pub(crate) fn revoke(&self, client: &Path, server: &Path) {
        self.sign(&["-revoke", client.join("client-cert.pem").to_str().unwrap()]);
        self.sign(&["-gencrl", "-crldays", "2", "-out", "list.pem"]);
        fs::copy(self.folder.join("list.pem"), server.join("new")).unwrap();
        fs::rename(server.join("new"), server.join("ca-crl.pem")).unwrap();
    }
}
