//! aws-lc's AES-256-XTS.

crate::evp::evp_contender!(aws_lc_sys, "aws-lc");
