//! The folder that a run leaves.
//!
//! ```text
//! config.toml                  every setting, as it was in force
//! metrics.jsonl                see `metrics`
//! checkpoints/STEP.safetensors the newest checkpoints, STEP in ten digits
//! neighbours.safetensors       test images and their nearest neighbours, written at the end
//! report.html                  written at the end
//! ```

use std::path::{Path, PathBuf};

/// The paths within a run folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// The folder at `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every setting, as TOML.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The metrics, a JSON object a line.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The folder of checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The checkpoint after `step` steps.
    #[must_use]
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("{step:010}.safetensors"))
    }

    /// Some test images and their nearest neighbours, for T test images with M neighbours each:
    /// `images` u8 [T, C, H, W] and `labels` u32 `[T]`; `neighbour_images` u8 [T, M, C, H, W],
    /// `neighbour_labels` u32 [T, M] and `neighbour_similarities` f32 [T, M], nearest first, by the
    /// trained encoder; `raw_neighbour_*` the same by raw pixels. The metadata's `classes` is a JSON
    /// array of the class names.
    #[must_use]
    pub fn neighbours(&self) -> PathBuf {
        self.root.join("neighbours.safetensors")
    }

    /// The report.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.root.join("report.html")
    }
}
