//! What dm-crypt and cryptsetup have and this crate has not, so that a refusal says what the volume needs.
//!
//! Source: luks2-format §8 (cipher strings, IV generators, modes that users meet).

/// Names of ciphers, of modes and of IV generators, and what each is.
const KNOWN: [(&str, &str); 27] = [
    ("cipher_null", "it encrypts nothing"),
    ("null", "it encrypts nothing, or is an IV of zeros"),
    ("xchacha20,aes", "the ciphers of Adiantum, a wide-block mode"),
    ("xchacha12,aes", "the ciphers of Adiantum, a wide-block mode"),
    ("adiantum", "a wide-block mode of stream cipher and hash"),
    ("hctr2", "a wide-block mode of AES"),
    ("paes", "AES whose key is wrapped by hardware"),
    ("phmac", "a hash whose key is wrapped by hardware"),
    ("gcm", "authenticated encryption, which needs dm-integrity"),
    ("ccm", "authenticated encryption, which needs dm-integrity"),
    ("aegis128", "authenticated encryption, which needs dm-integrity"),
    ("aegis256", "authenticated encryption, which needs dm-integrity"),
    ("chacha20", "authenticated encryption, which needs dm-integrity"),
    ("authenc", "authenticated encryption, which needs dm-integrity"),
    ("rfc4309", "authenticated encryption, which needs dm-integrity"),
    ("rfc7539", "authenticated encryption, which needs dm-integrity"),
    ("random", "an IV stored with each sector, which needs dm-integrity"),
    ("ecb", "no chaining: equal blocks look equal"),
    ("ctr", "a stream: writing a sector twice gives both away"),
    ("lrw", "a mode older than XTS"),
    ("benbi", "the IV of LRW"),
    ("eboiv", "the IV of BitLocker"),
    ("elephant", "the diffuser of BitLocker"),
    ("lmk", "the IV of loop-AES"),
    ("tcw", "the IV of TrueCrypt"),
    ("plain64be", "the sector number with its bytes the other way round"),
    ("essiv", "an IV under another hash than SHA-256"),
];

/// What `part` of a cipher string is; options and what stands in brackets do not count.
pub(crate) fn what(part: &str) -> Option<&'static str> {
    let name = part.split([':', '(']).next().unwrap_or(part);
    let found = KNOWN.iter().find(|(known, _)| *known == name);
    found.map(|(_, what)| *what)
}

#[cfg(test)]
mod tests {
    use crate::CipherSpec;

    #[test]
    fn a_refusal_says_what_the_volume_needs() {
        for (spec, what) in [
            ("aes-gcm-random", "authenticated encryption"),
            ("capi:authenc(hmac(sha256),xts(aes))-plain64", "authenticated encryption"),
            ("xchacha12,aes-adiantum-plain64", "Adiantum"),
            ("aes-lrw-benbi", "older than XTS"),
            ("aes-cbc-eboiv", "BitLocker"),
            ("cipher_null-ecb-plain", "encrypts nothing"),
            ("capi:ecb(cipher_null)-null", "equal blocks look equal"),
            ("aes-cbc-essiv:sha512", "another hash"),
        ] {
            let message = CipherSpec::parse(spec).unwrap_err().to_string();
            assert!(message.contains("is not supported: ") && message.contains(what), "{message}");
        }
        let unknown = CipherSpec::parse("anubis-xts-plain64").unwrap_err().to_string();
        assert!(unknown.ends_with("\"anubis\" is not supported"), "{unknown}");
    }
}
