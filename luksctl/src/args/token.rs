//! Unlocking by tokens: the kernel's keyring is looked into before anybody is asked.

use clap::Args;

/// Which tokens may unlock. Without a key file those whose key lies in the kernel's keyring are tried first.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TokenArgs {
    /// Unlock by a token or not at all, ask for no passphrase
    #[arg(hide_short_help = true, long, help_heading = "Tokens")]
    pub(crate) token_only: bool,
    /// Try only this token
    #[arg(hide_short_help = true, long, value_name = "N", help_heading = "Tokens")]
    pub(crate) token_id: Option<u32>,
    /// Try only tokens of this type; luks2-keyring is the one that can unlock here
    #[arg(hide_short_help = true, long, value_name = "TYPE", help_heading = "Tokens")]
    pub(crate) token_type: Option<String>,
}

impl TokenArgs {
    /// Whether tokens were asked for.
    pub(crate) fn is_given(&self) -> bool {
        self.token_only || self.token_id.is_some() || self.token_type.is_some()
    }
}
