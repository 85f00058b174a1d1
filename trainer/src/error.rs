//! What can go wrong in the trainer, in sentences that name the file or the setting.

use std::io;
use std::path::{Path, PathBuf};

/// The result of every fallible function of the trainer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that stops the trainer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as in "cannot create runs/x".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A data file is not what its name or header promises.
    #[error("{path}: {reason}")]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A line of a metrics file is not a line of metrics.
    #[error("{path}, line {line}: {source}")]
    Metrics {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A checkpoint is damaged, or belongs to another configuration.
    #[error("checkpoint {path}: {reason}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A configuration file cannot be read as one.
    #[error("{path}: {reason}")]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the line.
        reason: String,
    },
    /// A setting lies outside its domain.
    #[error("{setting} is {value}; expected {expected}")]
    Setting {
        /// The setting's name, as in config.toml.
        setting: &'static str,
        /// Its value.
        value: String,
        /// The domain, in words.
        expected: String,
    },
    /// The run folder already holds a run, or holds none where one is to be resumed.
    #[error("{path} {reason}")]
    RunFolder {
        /// The folder.
        path: PathBuf,
        /// What is the matter, and what to do.
        reason: &'static str,
    },
    /// The loss refused its input, or a row became NaN or infinite.
    #[error(transparent)]
    Loss(#[from] hardmix::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// For `map_err`: an [`Error::Io`] that names the action and the path.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
