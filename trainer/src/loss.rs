//! `hardmix loss`: a case from a safetensors file.

use std::path::PathBuf;

use crate::error::Result;

/// The flags of `hardmix loss`.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct LossArgs {
    /// The case
    pub case: PathBuf,
}

/// Computes the case.
///
/// # Errors
/// See [`crate::error::Error`].
pub fn run(args: &LossArgs) -> Result<()> {
    let _ = args;
    todo!("loss")
}
