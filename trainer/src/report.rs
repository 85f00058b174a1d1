//! `report.html`, made from a run folder.

use std::path::{Path, PathBuf};

use crate::error::Result;

/// The flags of `hardmix report`.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct ReportArgs {
    /// The run folder
    pub run: PathBuf,
}

/// Writes the report of the run in this folder, ended or not, and returns the file.
///
/// # Errors
/// See [`crate::error::Error`].
pub fn write(run: &Path) -> Result<PathBuf> {
    Ok(crate::run_folder::RunFolder::new(run).report())
}
