//! The flags of `hardmix train`.

use std::path::PathBuf;

use crate::config::{EncoderKind, Method, QueryGradient, TrainConfig};
use crate::device::Device;
use crate::error::Result;

/// The flags of `hardmix train`. Each setting's flag wins over the configuration file.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct TrainArgs {
    /// The folder to leave behind [default: the first free of runs/001, runs/002, …]
    #[arg(long, value_name = "DIR")]
    pub run: Option<PathBuf>,
    /// Go on with the run in this folder from its newest checkpoint
    #[arg(long, value_name = "DIR", exclusive = true)]
    pub resume: Option<PathBuf>,
    /// The settings
    #[command(flatten)]
    pub settings: Settings,
}

/// The settings that have flags: those of [`TrainConfig`], by the same names.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct Settings {
    /// A TOML file of settings, as config.toml in a run folder; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A folder of IDX files, of class folders of PNG or JPEG, or of CIFAR binaries
    /// [default: the embedded part of Fashion-MNIST]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Use only the first so many training images
    #[arg(long, value_name = "COUNT")]
    pub train_images: Option<usize>,
    /// Hold out so many training images and evaluate on them instead of on the test images
    #[arg(long, value_name = "COUNT")]
    pub validation_images: Option<usize>,
    /// Resize the images in class folders to this many pixels a side
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
    /// The encoder [default: conv for gray images, resnet for colour images]
    #[arg(long)]
    pub encoder: Option<EncoderKind>,
    /// Which negatives a query is trained against
    #[arg(long)]
    pub method: Option<Method>,
    /// N: how many of a query's nearest queue rows may be mixed
    #[arg(long, value_name = "N")]
    pub hardest: Option<usize>,
    /// s: negatives a query mixed from two of its hardest
    #[arg(long, value_name = "S")]
    pub mixed: Option<usize>,
    /// s′: negatives a query mixed from itself and one of its hardest
    #[arg(long, value_name = "S'")]
    pub query_mixed: Option<usize>,
    /// Whether the gradient flows through the query inside a query-mixed negative
    #[arg(long)]
    pub query_gradient: Option<QueryGradient>,
    /// The temperature τ
    #[arg(long, value_name = "TAU")]
    pub temperature: Option<f32>,
    /// K: how many keys the queue holds
    #[arg(long, value_name = "K")]
    pub queue: Option<usize>,
    /// The share of the momentum encoder that a step keeps
    #[arg(long)]
    pub momentum: Option<f64>,
    /// Epochs at the start without synthetic negatives
    #[arg(long, value_name = "COUNT")]
    pub warm_up_epochs: Option<u64>,
    /// Passes over the training images
    #[arg(long, value_name = "COUNT")]
    pub epochs: Option<u64>,
    /// B: images a step
    #[arg(long, value_name = "B")]
    pub batch: Option<usize>,
    /// The highest learning rate
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// The weight decay
    #[arg(long, value_name = "DECAY")]
    pub weight_decay: Option<f64>,
    /// The seed of everything random
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where to train [default: cpu]
    #[arg(long)]
    pub device: Option<Device>,
    /// Epochs between evaluations; 0 evaluates at the end only
    #[arg(long, value_name = "EPOCHS")]
    pub evaluate_every: Option<u64>,
    /// Steps between checkpoints
    #[arg(long, value_name = "STEPS")]
    pub checkpoint_every: Option<u64>,
    /// Steps between lines of metrics
    #[arg(long, value_name = "STEPS")]
    pub log_every: Option<u64>,
}

impl Settings {
    /// The configuration: the file's, or the default, with the flags on top.
    ///
    /// # Errors
    /// As for [`TrainConfig::read`] and [`TrainConfig::validate`].
    pub fn resolve(&self) -> Result<TrainConfig> {
        let mut config = match &self.config {
            Some(path) => TrainConfig::parse(path)?,
            None => TrainConfig::default(),
        };
        macro_rules! over {
            ($($setting:ident),*) => {
                $(if let Some(value) = &self.$setting { config.$setting = value.clone().into(); })*
            };
        }
        over!(
            data,
            train_images,
            validation_images,
            image_size,
            encoder,
            method,
            hardest,
            mixed,
            query_mixed,
            query_gradient,
            temperature,
            queue,
            momentum,
            warm_up_epochs,
            epochs,
            batch,
            learning_rate,
            weight_decay,
            seed,
            device,
            evaluate_every,
            checkpoint_every,
            log_every
        );
        config.validate()?;
        Ok(config)
    }
}
