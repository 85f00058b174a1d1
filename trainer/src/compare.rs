//! `hardmix compare`: MoCo against MoCHi over paired seeds.

use std::sync::atomic::AtomicBool;

use crate::error::Result;

/// The flags of `hardmix compare`.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct CompareArgs {
    /// The settings that all runs share
    #[command(flatten)]
    pub settings: crate::train::Settings,
}

/// Runs the comparison.
///
/// # Errors
/// See [`crate::error::Error`].
pub fn run(args: &CompareArgs, interrupt: &AtomicBool) -> Result<()> {
    let _ = (args, interrupt);
    todo!("compare")
}
