//! The files that a server shows and checks certificates by.
//!
//! * A key that others can read is refused. What is read of it is wiped; the signing key lives as long as it is used.
//! * A file that was replaced counts from the next connection on. If the new ones cannot be used, nobody is let in.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64ct::{Base64, Encoding as _};
use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::pki_types::{PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use zeroize::{Zeroize as _, Zeroizing};

use crate::fuse::ExportError;

/// Names of the files, as nbdkit and qemu have them.
const AUTHORITY: &str = "ca-cert.pem";
const REVOKED: &str = "ca-crl.pem";
const CERTIFICATE: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";
/// Largest of these files.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// The server's certificate, and the authority whose clients may come.
#[derive(Clone)]
pub struct Certificates {
    folder: PathBuf,
    current: Arc<Mutex<Current>>,
}

struct Current {
    /// What the files were when they were read.
    seen: Seen,
    config: Arc<ServerConfig>,
}

/// Device, inode, size, and when it was changed, of each file; `None` of one that is not there.
type Seen = [Option<(u64, u64, u64, i64, i64)>; 4];

impl Certificates {
    /// Reads `ca-cert.pem`, `server-cert.pem`, `server-key.pem` and, if it is there, `ca-crl.pem` in `folder`.
    ///
    /// # Errors
    /// [`ExportError::Certificates`]: a file is missing, is none, does not fit the others, or is a key that others may read.
    pub fn load(folder: &Path) -> Result<Certificates, ExportError> {
        let seen = look(folder);
        let current = Current { seen, config: read_all(folder)? };
        Ok(Certificates { folder: folder.to_path_buf(), current: Arc::new(Mutex::new(current)) })
    }

    /// What counts now.
    pub(super) fn config(&self) -> Result<Arc<ServerConfig>, ExportError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = look(&self.folder);
        if seen != current.seen {
            *current = Current { seen, config: read_all(&self.folder)? };
            log::info!("the certificates in {} were read again", self.folder.display());
        }
        Ok(Arc::clone(&current.config))
    }
}

fn look(folder: &Path) -> Seen {
    let facts =
        |metadata: Metadata| (metadata.dev(), metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec());
    [AUTHORITY, REVOKED, CERTIFICATE, KEY].map(|name| std::fs::metadata(folder.join(name)).ok().map(facts))
}

fn read_all(folder: &Path) -> Result<Arc<ServerConfig>, ExportError> {
    let refused = |name: &str| {
        let path = folder.join(name);
        move |reason: String| ExportError::Certificates { path, reason }
    };
    let mut roots = RootCertStore::empty();
    for authority in certificates(&read(&folder.join(AUTHORITY), false)?).map_err(refused(AUTHORITY))? {
        roots.add(authority).map_err(|error| refused(AUTHORITY)(error.to_string()))?;
    }
    let revoked = revoked(folder)?;
    let chain = certificates(&read(&folder.join(CERTIFICATE), false)?).map_err(refused(CERTIFICATE))?;
    let mut key = private_key(&read(&folder.join(KEY), true)?).map_err(|reason| refused(KEY)(reason.to_owned()))?;
    let signing = any_supported_type(&key);
    key.zeroize();
    let signing = signing.map_err(|_| refused(KEY)("it is no key of a kind that TLS 1.3 signs with".to_owned()))?;
    let own = CertifiedKey::new(chain, signing);
    let misfit = |error: rustls::Error| refused(CERTIFICATE)(format!("it does not fit {KEY}: {error}"));
    own.keys_match().map_err(misfit)?;
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .with_crls(revoked)
        .build()
        .map_err(|error| match error {
            VerifierBuilderError::InvalidCrl(_) => refused(REVOKED)(error.to_string()),
            error => refused(AUTHORITY)(error.to_string()),
        })?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| refused(CERTIFICATE)(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The lists of revoked certificates. A file that is there and holds none is a mistake, not an empty list.
fn revoked(folder: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, ExportError> {
    let path = folder.join(REVOKED);
    if std::fs::symlink_metadata(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(Vec::new());
    }
    let text = read(&path, false)?;
    let refused = |reason: String| ExportError::Certificates { path: path.clone(), reason };
    let found: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| refused(error.to_string()))?;
    if found.is_empty() { Err(refused("it holds no revocation list".to_owned())) } else { Ok(found) }
}

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    if found.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(found) }
}

/// The first private key of a PEM text. Decoded here because what others decode through stays behind in memory.
fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, &'static str> {
    const NONE: &str = "it holds no private key in PEM";
    let text = std::str::from_utf8(text).map_err(|_| NONE)?;
    let mut lines = text.lines().map(str::trim);
    let label =
        lines.find_map(|line| line.strip_prefix("-----BEGIN ")?.strip_suffix("PRIVATE KEY-----")).ok_or(NONE)?;
    let mut encoded = Zeroizing::new(String::with_capacity(text.len()));
    let mut ended = false;
    for line in lines {
        if line.starts_with("-----END ") {
            ended = true;
            break;
        }
        if line.contains(':') {
            return Err("the key is encrypted, and nobody is asked for its passphrase");
        }
        encoded.push_str(line);
    }
    let mut decoded = Zeroizing::new(vec![0; encoded.len()]);
    let der = Base64::decode(encoded.as_bytes(), &mut decoded).map_err(|_| NONE)?;
    if !ended || der.is_empty() {
        return Err(NONE);
    }
    match label {
        "" => Ok(PrivatePkcs8KeyDer::from(der.to_vec()).into()),
        "RSA " => Ok(PrivatePkcs1KeyDer::from(der.to_vec()).into()),
        "EC " => Ok(PrivateSec1KeyDer::from(der.to_vec()).into()),
        "ENCRYPTED " => Err("the key is encrypted, and nobody is asked for its passphrase"),
        _ => Err(NONE),
    }
}

fn read(path: &Path, secret: bool) -> Result<Zeroizing<Vec<u8>>, ExportError> {
    let refused = |reason: String| ExportError::Certificates { path: PathBuf::from(path), reason };
    let system = |error: std::io::Error| refused(error.to_string());
    // A FIFO does not make anybody wait for its other end.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(system)?;
    let metadata = file.metadata().map_err(system)?;
    if !metadata.is_file() || metadata.len() > FILE_MAX_BYTES {
        return Err(refused("it is no file of at most 1 MiB".to_owned()));
    }
    if secret && metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(refused(format!(
            "others may read this key (mode {mode:o}); make a new one, and `chmod 600 {}`",
            path.display()
        )));
    }
    // All of it at once: a buffer that grows would leave parts of the key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1));
    file.take(metadata.len()).read_to_end(&mut text).map_err(system)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(label: &str, body: &str) -> Vec<u8> {
        format!("a word before\n-----BEGIN {label}PRIVATE KEY-----\n{body}\n-----END {label}PRIVATE KEY-----\n").into()
    }

    #[test]
    fn a_key_is_taken_by_its_label_and_nothing_else_is_one() {
        assert!(matches!(private_key(&pem("", "MAAwAA==")), Ok(PrivateKeyDer::Pkcs8(_))));
        assert!(matches!(private_key(&pem("EC ", "MAAw\r\nAA==")), Ok(PrivateKeyDer::Sec1(_))));
        let rsa = private_key(&pem("RSA ", "MAAwAA==")).unwrap();
        assert!(matches!(&rsa, PrivateKeyDer::Pkcs1(_)) && rsa.secret_der() == [0x30, 0, 0x30, 0]);
        let encrypted = [pem("ENCRYPTED ", "MAAwAA=="), pem("RSA ", "Proc-Type: 4,ENCRYPTED\n\nMAAwAA==")];
        for text in encrypted {
            assert!(private_key(&text).unwrap_err().contains("encrypted"));
        }
        let cut = pem("", "MAAwAA==");
        let none =
            [&b""[..], &pem("", "no base64"), &pem("DSA ", "MAAwAA=="), &pem("", ""), &cut[..cut.len() - 40], b"\xff"];
        for text in none {
            assert!(private_key(text).unwrap_err().contains("no private key"), "{text:?}");
        }
    }
}
