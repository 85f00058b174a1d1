//! What a run folder holds, as the report needs it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::config::{Method, TrainConfig};
use crate::error::{Error, Result};
use crate::metrics::{self, EpochLine, Line, ResultLine, RunLine, StepLine};
use crate::run_folder::RunFolder;

/// A run as its folder tells it.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where it lies.
    pub folder: RunFolder,
    /// Its settings.
    pub config: TrainConfig,
    /// What was run on what; none where the run has written no metrics yet.
    pub about: Option<RunLine>,
    /// The sampled steps.
    pub steps: Vec<StepLine>,
    /// The epochs, with 0 for the untrained encoder.
    pub epochs: Vec<EpochLine>,
    /// The final evaluation of a run that ended.
    pub result: Option<ResultLine>,
    /// Whether the last line of metrics was cut off: the run was writing, or was killed.
    pub torn: bool,
}

impl Run {
    /// Reads a run folder; a run that has not ended, or has written nothing yet, is a run too.
    ///
    /// # Errors
    /// [`Error::Io`] where config.toml or metrics.jsonl cannot be read, [`Error::ConfigFile`] and
    /// [`Error::Setting`] for a config.toml that is none, and [`Error::Metrics`] for a line that is
    /// no line of metrics. Only the last line may be cut off.
    pub fn read(root: &Path) -> Result<Self> {
        let folder = RunFolder::new(root);
        let config = TrainConfig::read(&folder.config())?;
        let (lines, torn) = read_lines(&folder.metrics())?;
        let (mut steps, mut epochs) = (Vec::new(), Vec::new());
        let (mut about, mut result) = (None, None);
        for line in lines {
            match line {
                Line::Run(line) => about = Some(line),
                Line::Step(line) => steps.push(line),
                Line::Epoch(line) => epochs.push(line),
                Line::Result(line) => result = Some(line),
            }
        }
        Ok(Run {
            folder,
            config,
            about,
            steps,
            epochs,
            result,
            torn,
        })
    }

    /// The method and what it was trained on.
    pub fn title(&self) -> String {
        format!("{} on {}", self.method(), self.data())
    }

    /// The method with its (N, s, s′).
    pub fn method(&self) -> String {
        let TrainConfig {
            hardest,
            mixed,
            query_mixed,
            ..
        } = self.config;
        match self.config.method {
            Method::Moco => "MoCo".into(),
            Method::Mochi => format!("MoCHi ({hardest}, {mixed}, {query_mixed})"),
            Method::Oracle => format!("class oracle ({hardest}, {mixed}, {query_mixed})"),
        }
    }

    /// The name of the images it was trained on.
    pub fn data(&self) -> String {
        match (&self.about, &self.config.data) {
            (Some(about), _) => about.data.clone(),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => "the embedded images".into(),
        }
    }

    /// Whether the run makes synthetic negatives after its warm-up.
    pub fn mixes(&self) -> bool {
        self.config.method != Method::Moco && self.config.mixed + self.config.query_mixed > 0
    }

    /// Epochs of warm-up that show in the pictures: those of a run that mixes afterwards.
    pub fn warm_up(&self) -> f64 {
        if self.mixes() {
            self.config.warm_up_epochs as f64
        } else {
            0.0
        }
    }

    /// The epochs of training, without the evaluation that precedes them.
    pub fn trained_epochs(&self) -> impl Iterator<Item = &EpochLine> + Clone {
        self.epochs.iter().filter(|line| line.epoch > 0)
    }

    /// What the accuracies were measured on.
    pub fn evaluated(&self) -> &'static str {
        if self.config.validation_images > 0 {
            "validation images"
        } else {
            "test images"
        }
    }

    /// The epochs that the metrics reach into, as far as a whole number.
    pub fn epochs_begun(&self) -> f64 {
        let steps = self.steps.last().map_or(0.0, |line| line.epoch.ceil());
        steps.max(self.epochs_done() as f64)
    }

    /// The last epoch that ended.
    pub fn epochs_done(&self) -> u64 {
        self.epochs.last().map_or(0, |line| line.epoch)
    }
}

/// The lines of a metrics file, and whether its last line is cut off. No file is no lines: a run
/// writes its settings first.
fn read_lines(path: &Path) -> Result<(Vec<Line>, bool)> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        read => read.map_err(Error::io("read", path))?,
    };
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let lines = metrics::parse(path, &text[..whole])?;
    Ok((lines, whole < text.len()))
}
