//! OpenSSL's AES-256-XTS: the vendored build.

crate::evp::evp_contender!(openssl_sys, "OpenSSL");
