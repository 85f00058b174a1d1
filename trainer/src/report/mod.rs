//! `report.html`: one self-contained page about a run, for a person who has read the paper.
//!
//! It can be made at any time. What a run has not measured yet is named on the page where its
//! picture would stand.

mod neighbours;
pub(crate) mod page;
mod pictures;
mod results;
mod run;

use std::fs;
use std::path::{Path, PathBuf};

pub use page::Figure;
pub(crate) use results::percent;
pub use run::Run;

use crate::checkpoint::replace;
use crate::error::{Error, Result};
use crate::run_folder::RunFolder;

/// The flags of `hardmix report`.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct ReportArgs {
    /// The run folder
    pub run: PathBuf,
    /// Also write every picture as an SVG file of its own into this folder
    #[arg(long, value_name = "DIR")]
    pub pictures: Option<PathBuf>,
}

/// `hardmix report`: writes the report, and the pictures where asked, and prints what it wrote.
///
/// # Errors
/// As for [`write()`] and [`write_pictures`].
pub fn run(args: &ReportArgs) -> Result<()> {
    println!("{}", write(&args.run)?.display());
    if let Some(into) = &args.pictures {
        for path in write_pictures(&args.run, into)? {
            println!("{}", path.display());
        }
    }
    Ok(())
}

/// Writes the report of the run in this folder, ended or not, and returns the file.
///
/// # Errors
/// As for [`Run::read`]; [`Error::Data`] for damaged neighbours; [`Error::Io`] where the report
/// cannot be written.
pub fn write(root: &Path) -> Result<PathBuf> {
    let path = RunFolder::new(root).report();
    replace(&path, render(&Run::read(root)?)?.as_bytes())?;
    Ok(path)
}

/// Writes every picture of the run as an SVG file of its own into `into`, which is created.
///
/// # Errors
/// As for [`Run::read`]; [`Error::Io`] where a picture cannot be written.
pub fn write_pictures(root: &Path, into: &Path) -> Result<Vec<PathBuf>> {
    let run = Run::read(root)?;
    fs::create_dir_all(into).map_err(Error::io("create", into))?;
    let mut written = Vec::new();
    for figure in pictures::all(&run) {
        if let Ok(picture) = figure.picture {
            let path = into.join(format!("{}.svg", figure.name));
            replace(&path, picture.standalone().as_bytes())?;
            written.push(path);
        }
    }
    Ok(written)
}

fn render(run: &Run) -> Result<String> {
    let figures = pictures::all(run);
    let body = maud::html! {
        (results::header(run))
        (results::headline(run))
        (pictures::sections(&figures))
        (neighbours::section(run)?)
        (results::by_epoch(run))
        (results::settings(run))
    };
    Ok(page::page(&run.title(), body))
}
