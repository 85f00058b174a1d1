//! `metrics.jsonl`: one JSON object a line, told apart by `kind`.
//!
//! The first line, of kind `run`, says what was run on what. A line of kind `step` holds one sampled
//! step, a line of kind `epoch` the means over an epoch and its evaluation, and the last line, of
//! kind `result`, the final evaluation. Lines are in the order
//! of their steps. Seconds and images a second are wall-clock figures and the only numbers in a run
//! folder that differ between two equal runs.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::replace;
use crate::error::{Error, Result};

/// A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// What was run on what: always the first line.
    Run(RunLine),
    /// One step of training; every `log_every`-th is kept.
    Step(StepLine),
    /// The means over an epoch and the evaluation after it, where there was one.
    Epoch(EpochLine),
    /// The final evaluation: always the last line of a run that ended.
    Result(ResultLine),
}

/// What is not in config.toml.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunLine {
    /// The program's version.
    pub version: String,
    /// The data's name: the folder's, or that of the embedded images.
    pub data: String,
    /// The classes' names, by label.
    pub classes: Vec<String>,
    /// Channels, height and width of an image.
    pub image: [usize; 3],
    /// Images to train on, which are also the evaluation's bank.
    pub train_images: usize,
    /// Images that are classified.
    pub test_images: usize,
    /// Whether those were held out of the training images.
    pub validation: bool,
    /// Numbers that training changes, momentum encoder not counted.
    pub weights: usize,
    /// Steps of the whole run.
    pub steps: u64,
    /// Threads of the process that began the run.
    pub threads: usize,
}

/// One step of training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    /// Steps done, from 1.
    pub step: u64,
    /// Epochs done when the step began, with its fraction.
    pub epoch: f64,
    /// The loss: mean over the batch.
    pub loss: f64,
    /// Share of queries nearer to their key than to any negative of the queue.
    pub proxy_accuracy: f64,
    /// The same, also against the synthetic negatives.
    pub proxy_accuracy_with_synthetic: f64,
    /// Mean squared distance of query and key, 2 − 2 q·k.
    pub alignment: f64,
    /// log of the mean over queries and queue rows of e^(−2(2 − 2 q·n)).
    pub uniformity: Option<f64>,
    /// The learning rate.
    pub learning_rate: f64,
    /// Images a second of this step, both views counted as one image.
    pub images_per_second: f64,
    /// Seconds spent in the loss and its gradient.
    pub loss_seconds: f64,
    /// Seconds spent in the whole step, data included.
    pub step_seconds: f64,
}

/// The means over an epoch and its evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochLine {
    /// Steps done.
    pub step: u64,
    /// Epochs done, from 1; 0 is the untrained encoder.
    pub epoch: u64,
    /// Whether the epoch was one of warm-up: no synthetic negatives.
    pub warm_up: bool,
    /// Mean loss; absent for epoch 0, as all means are.
    pub loss: Option<f64>,
    /// Mean proxy accuracy against the queue.
    pub proxy_accuracy: Option<f64>,
    /// Mean proxy accuracy, also against the synthetic negatives.
    pub proxy_accuracy_with_synthetic: Option<f64>,
    /// Mean alignment.
    pub alignment: Option<f64>,
    /// Mean uniformity, over the sampled steps.
    pub uniformity: Option<f64>,
    /// Mean matching probability of the negatives of rank 1, 2, … (the paper's Fig. 2a), over the
    /// sampled steps.
    pub matching_probability: Option<Vec<f64>>,
    /// Of the hardest that have a label, the share with their query's (the paper's Fig. 2c), over the
    /// sampled steps. The random rows that the queue starts with have none.
    pub same_label_share: Option<f64>,
    /// Share of mixed negatives strictly harder than the hardest real one.
    pub mixed_harder: Option<f64>,
    /// Share of query-mixed negatives strictly harder than the hardest real one.
    pub query_mixed_harder: Option<f64>,
    /// Accuracy of the weighted 20-nearest-neighbours on the evaluation images, where evaluated.
    pub knn: Option<f64>,
    /// Seconds of training in this epoch, evaluation excluded; counted from the checkpoint in a run
    /// that was resumed within it.
    pub seconds: f64,
    /// The part of `seconds` spent in the loss and its gradient.
    pub loss_seconds: f64,
    /// Images a second of training in this epoch.
    pub images_per_second: f64,
    /// Seconds of the evaluation.
    pub evaluation_seconds: f64,
}

/// The final evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultLine {
    /// Steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// Weighted 20-nearest-neighbour accuracy of the trained encoder.
    pub knn: f64,
    /// The same of raw pixels.
    pub knn_raw: f64,
    /// The same of the encoder before training.
    pub knn_untrained: f64,
    /// Accuracy of a linear classifier on frozen features of the trained encoder.
    pub linear_probe: f64,
    /// The same on raw pixels.
    pub linear_probe_raw: f64,
    /// The same on features of the encoder before training.
    pub linear_probe_untrained: f64,
    /// How many labelled images the neighbours and the classifier come from.
    pub bank_images: usize,
    /// How many images were classified.
    pub test_images: usize,
    /// Seconds of the final evaluation.
    pub evaluation_seconds: f64,
}

impl Line {
    /// Steps done when the line was written.
    #[must_use]
    pub fn step(&self) -> u64 {
        match self {
            Self::Run(_) => 0,
            Self::Step(line) => line.step,
            Self::Epoch(line) => line.step,
            Self::Result(line) => line.step,
        }
    }
}

/// Reads every line of a `metrics.jsonl`.
///
/// # Errors
/// [`Error::Io`] where the file cannot be read and [`Error::Metrics`] for a line that is not one.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
    parse(path, &text)
}

/// The lines of the file at `path`, or of the part of it that is whole.
pub(crate) fn parse(path: &Path, text: &str) -> Result<Vec<Line>> {
    let line = |(index, text)| {
        serde_json::from_str(text).map_err(|source| Error::Metrics {
            path: path.to_owned(),
            line: index + 1,
            source,
        })
    };
    text.lines().enumerate().map(line).collect()
}

/// The end of a metrics file that is being written.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
}

impl Writer {
    /// Goes on with the file at `path`, made where it is missing, after its lines up to `step`:
    /// later lines, a result and an unfinished line are cut.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn after(path: &Path, step: u64) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            read => read.map_err(Error::io("read", path))?,
        };
        let stays = |text: &&str| match serde_json::from_str(text) {
            Ok(Line::Result(_)) | Err(_) => false,
            // A run that begins again writes its first lines again.
            Ok(line) => step > 0 && line.step() <= step,
        };
        let kept: String = text.split_inclusive('\n').take_while(stays).collect();
        if kept != text {
            replace(path, kept.as_bytes())?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        Ok(Self {
            file: file.map_err(Error::io("open", path))?,
            path: path.to_owned(),
        })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line).map_err(|error| Error::Io {
            action: "write",
            path: self.path.clone(),
            source: error.into(),
        })?;
        text.push('\n');
        self.file
            .write_all(text.as_bytes())
            .map_err(Error::io("write", &self.path))
    }

    /// Flushes everything to the disk, so that a checkpoint is never ahead of its metrics.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(Error::io("flush", &self.path))
    }
}
