//! Every setting of a training run: config.toml, with the command line's flags on top.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::error::{Error, Result};

/// Which negatives a query is trained against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The queue alone.
    Moco,
    /// The queue and mixtures of its hardest rows.
    Mochi,
    /// MoCHi with the query's own class masked from the negatives, by label: the paper's upper
    /// bound, not a method without supervision.
    Oracle,
}

/// The encoder's body. Its head is the same for each: two linear layers, the second to `embedding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EncoderKind {
    /// Three 3×3 convolutions of stride 2 to 32, 64 and 64 channels, each with group norm and ReLU.
    Conv,
    /// A ResNet of three stages of residual blocks, for colour images.
    Resnet,
}

/// Whether the gradient flows through the query inside a query-mixed negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum QueryGradient {
    /// It does not, as in the public ports of MoCHi.
    Detached,
    /// It does.
    Attached,
}

/// The random transformation that makes a view of an image.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// The smallest share of the image's area that a crop may keep.
    pub crop_scale: f32,
    /// The probability of a horizontal flip.
    pub flip: f32,
    /// The brightness is multiplied by a number within 1 ± this.
    pub brightness: f32,
    /// The contrast is multiplied by a number within 1 ± this.
    pub contrast: f32,
    /// The saturation of a colour image is multiplied by a number within 1 ± this.
    pub saturation: f32,
    /// The probability that a colour image becomes gray.
    pub grayscale: f32,
    /// The probability that a rectangle is erased.
    pub erasing: f32,
}

impl Default for Augment {
    fn default() -> Self {
        Self {
            crop_scale: 0.3,
            flip: 0.5,
            brightness: 0.8,
            contrast: 0.8,
            saturation: 0.8,
            grayscale: 0.2,
            erasing: 0.3,
        }
    }
}

impl Augment {
    /// The one setting whose domain a view cannot do without.
    pub(crate) fn check_crop_scale(&self) -> Result<()> {
        if self.crop_scale > 0.0 && self.crop_scale <= 1.0 {
            return Ok(());
        }
        Err(Error::Setting {
            setting: "augment.crop_scale",
            value: self.crop_scale.to_string(),
            expected: "above 0, at most 1".to_owned(),
        })
    }
}

/// Every setting of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// A folder of IDX files, of class folders or of CIFAR binaries; none is the embedded images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Use only the first so many training images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_images: Option<usize>,
    /// Hold out so many training images and evaluate on them instead of on the test images: for
    /// choosing settings.
    pub validation_images: usize,
    /// Resize the images in class folders to this many pixels a side; needed where they differ in
    /// size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// The encoder; none is `conv` for gray images and `resnet` for colour images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder: Option<EncoderKind>,
    /// The width of an embedding, d.
    pub embedding: usize,
    /// Which negatives a query is trained against.
    pub method: Method,
    /// N: how many of a query's nearest queue rows may be mixed.
    pub hardest: usize,
    /// s: negatives a query mixed from two of its hardest.
    pub mixed: usize,
    /// s′: negatives a query mixed from itself and one of its hardest.
    pub query_mixed: usize,
    /// Whether the gradient flows through the query inside a query-mixed negative.
    pub query_gradient: QueryGradient,
    /// The temperature τ of the loss.
    pub temperature: f32,
    /// K: how many keys the queue holds.
    pub queue: usize,
    /// The share of the momentum encoder that a step keeps.
    pub momentum: f64,
    /// Epochs at the start without synthetic negatives.
    pub warm_up_epochs: u64,
    /// Passes over the training images.
    pub epochs: u64,
    /// B: images a step.
    pub batch: usize,
    /// The highest learning rate of AdamW.
    pub learning_rate: f64,
    /// The weight decay of AdamW, on matrices and filters only.
    pub weight_decay: f64,
    /// Steps over which the learning rate rises to its highest, before it falls by a cosine.
    pub learning_rate_warm_up_steps: u64,
    /// The seed of everything random.
    pub seed: u64,
    /// Where to train.
    pub device: Device,
    /// Epochs between evaluations; 0 evaluates at the end only.
    pub evaluate_every: u64,
    /// Steps between checkpoints; one is also written at the end and on Ctrl-C.
    pub checkpoint_every: u64,
    /// Steps between lines of metrics.
    pub log_every: u64,
    /// The transformation that makes a view of an image.
    pub augment: Augment,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            data: None,
            train_images: None,
            validation_images: 0,
            image_size: None,
            encoder: None,
            embedding: 64,
            method: Method::Mochi,
            hardest: 128,
            mixed: 128,
            query_mixed: 32,
            query_gradient: QueryGradient::Detached,
            temperature: 0.2,
            queue: 4096,
            momentum: 0.99,
            warm_up_epochs: 2,
            epochs: 12,
            batch: 128,
            learning_rate: 0.004,
            weight_decay: 0.1,
            learning_rate_warm_up_steps: 200,
            seed: 0,
            device: Device::Cpu,
            evaluate_every: 3,
            checkpoint_every: 200,
            log_every: 10,
            augment: Augment::default(),
        }
    }
}

/// The most epochs of a run: far more than any, and few enough that their steps can be counted.
const MOST_EPOCHS: u64 = 1_000_000;

/// The widest embedding: far wider than any, and narrow enough that its weights can be counted.
const MOST_EMBEDDING: usize = 65_536;

impl TrainConfig {
    /// Reads a TOML file; settings that it leaves out keep their defaults.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read; [`Error::ConfigFile`] for invalid TOML, a value of the
    /// wrong type and an unknown key; [`Error::Setting`] as for [`TrainConfig::validate`].
    pub fn read(path: &Path) -> Result<Self> {
        let config = Self::parse(path)?;
        config.validate()?;
        Ok(config)
    }

    /// What the file says, whether or not it is within its domain: flags may yet correct it.
    pub(crate) fn parse(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        toml::from_str(&text).map_err(|error| Error::ConfigFile {
            path: path.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        })
    }

    /// The library's settings for this run, synthetic negatives included.
    ///
    /// # Errors
    /// [`Error::Loss`] where the library refuses them.
    pub fn loss(&self) -> Result<hardmix::Config> {
        let (mixed, query_mixed) = match self.method {
            Method::Moco => (0, 0),
            Method::Mochi | Method::Oracle => (self.mixed, self.query_mixed),
        };
        let query_gradient = match self.query_gradient {
            QueryGradient::Detached => hardmix::QueryGradient::Detached,
            QueryGradient::Attached => hardmix::QueryGradient::Attached,
        };
        Ok(hardmix::Config::mochi(self.hardest, mixed, query_mixed)?
            .with_temperature(self.temperature)?
            .with_query_gradient(query_gradient)
            .with_oracle(self.method == Method::Oracle))
    }

    /// The same with an absolute data path, so that the run can be resumed from anywhere.
    ///
    /// # Errors
    /// [`Error::Io`] where there is no current folder.
    pub fn absolute(&self) -> Result<Self> {
        let data = self
            .data
            .as_ref()
            .map(|path| std::path::absolute(path).map_err(Error::io("find", path)));
        Ok(Self {
            data: data.transpose()?,
            ..self.clone()
        })
    }

    /// The settings as [`TrainConfig::read`] reads them.
    ///
    /// # Errors
    /// [`Error::Setting`] for what TOML cannot hold: a path that is not UTF-8, a seed of 2⁶³ or
    /// more.
    pub fn to_toml(&self) -> Result<String> {
        if let Some(path) = self.data.as_ref().filter(|path| path.to_str().is_none()) {
            return Err(Error::Setting {
                setting: "data",
                value: path.display().to_string(),
                expected: "a path in UTF-8, as config.toml is".to_owned(),
            });
        }
        toml::to_string(self).map_err(|error| Error::Setting {
            setting: "config",
            value: error.to_string(),
            expected: "settings that TOML can hold".to_owned(),
        })
    }

    /// Checks every setting against its domain.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first setting outside its domain, [`Error::Loss`] one that the
    /// library refuses.
    pub fn validate(&self) -> Result<()> {
        let fail = |setting, value: String, expected: &str| {
            Err(Error::Setting {
                setting,
                value,
                expected: expected.to_owned(),
            })
        };
        for (setting, value) in [
            ("train_images", self.train_images.unwrap_or(1)),
            ("image_size", self.image_size.unwrap_or(1)),
            ("embedding", self.embedding),
            ("queue", self.queue),
            ("batch", self.batch),
            ("epochs", self.epochs as usize),
            ("checkpoint_every", self.checkpoint_every as usize),
            ("log_every", self.log_every as usize),
        ] {
            if value == 0 {
                return fail(setting, "0".to_owned(), "at least 1");
            }
        }
        if self.epochs > MOST_EPOCHS {
            return fail("epochs", self.epochs.to_string(), "at most 1000000");
        }
        if self.embedding > MOST_EMBEDDING {
            return fail("embedding", self.embedding.to_string(), "at most 65536");
        }
        if let Some(size) = self.image_size.filter(|size| !(8..=1024).contains(size)) {
            return fail("image_size", size.to_string(), "8 to 1024");
        }
        if self.hardest > self.queue {
            let expected = format!("at most the queue's {} rows", self.queue);
            return fail("hardest", self.hardest.to_string(), &expected);
        }
        if self.seed > i64::MAX as u64 {
            return fail(
                "seed",
                self.seed.to_string(),
                "less than 2^63, the largest that TOML holds",
            );
        }
        let share = |value: f64| (0.0..=1.0).contains(&value);
        let augment = &self.augment;
        for (setting, value) in [
            ("momentum", self.momentum),
            ("augment.flip", augment.flip.into()),
            ("augment.brightness", augment.brightness.into()),
            ("augment.contrast", augment.contrast.into()),
            ("augment.saturation", augment.saturation.into()),
            ("augment.grayscale", augment.grayscale.into()),
            ("augment.erasing", augment.erasing.into()),
        ] {
            if !share(value) {
                return fail(setting, value.to_string(), "0 to 1");
            }
        }
        augment.check_crop_scale()?;
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            let value = self.learning_rate.to_string();
            return fail("learning_rate", value, "a positive, finite number");
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            let value = self.weight_decay.to_string();
            return fail("weight_decay", value, "a finite number, 0 or above");
        }
        self.loss().map(drop)
    }
}
