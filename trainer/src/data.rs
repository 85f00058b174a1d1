//! Images and labels: embedded, or read from IDX files, class folders or CIFAR's binary files.
//!
//! Training never sees a label, except for the oracle; labels measure.

mod cifar;
mod embedded;
mod folders;
mod idx;

use std::path::Path;

use crate::config::TrainConfig;
use crate::error::{Error, Result};

/// Images of one size with their labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Images {
    /// The pixels, [N, C, H, W].
    pub pixels: Vec<u8>,
    /// A class an image, `[N]`.
    pub labels: Vec<u32>,
    /// The size of one image.
    pub shape: Shape,
}

/// The size of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// C: 1 for gray, 3 for colour.
    pub channels: usize,
    /// H.
    pub height: usize,
    /// W.
    pub width: usize,
}

impl Shape {
    /// Bytes of an image.
    #[must_use]
    pub fn len(&self) -> usize {
        self.channels * self.height * self.width
    }

    /// Whether an image has no pixels.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Images {
    /// How many images there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The pixels of image `index`, [C, H, W].
    ///
    /// # Panics
    /// For an index that is not below [`Images::len`].
    #[must_use]
    pub fn image(&self, index: usize) -> &[u8] {
        let size = self.shape.len();
        &self.pixels[index * size..(index + 1) * size]
    }

    /// Cuts the images from `at` off and returns them.
    fn split_off(&mut self, at: usize) -> Self {
        Self {
            pixels: self.pixels.split_off(at * self.shape.len()),
            labels: self.labels.split_off(at),
            shape: self.shape,
        }
    }
}

/// Images to train on and others to be evaluated on.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The training images; their labels serve as the evaluation's bank.
    pub train: Images,
    /// The images that are classified: the test images, or those held out for validation.
    pub test: Images,
    /// The classes' names, by label.
    pub classes: Vec<String>,
}

impl Dataset {
    /// The data that `config` names, cut and split as it says.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Data`] name the file that cannot be read or is not what it should
    /// be; [`Error::Setting`] where no image is left to train on, or fewer than a batch, and for an
    /// `image_size` of images that are in no class folders.
    pub fn load(config: &TrainConfig) -> Result<Self> {
        let mut data = match &config.data {
            None => {
                expect_own_size(config.image_size)?;
                embedded::load()?
            }
            Some(path) => Self::read(path, config.image_size)?,
        };
        if let Some(count) = config.train_images {
            data.train.split_off(count.min(data.train.len()));
        }
        if config.validation_images > 0 {
            let left = data.train.len().saturating_sub(config.validation_images);
            if left == 0 {
                return Err(Error::Setting {
                    setting: "validation_images",
                    value: config.validation_images.to_string(),
                    expected: format!("fewer than the {} training images", data.train.len()),
                });
            }
            data.test = data.train.split_off(left);
        }
        if data.train.len() < config.batch {
            return Err(Error::Setting {
                setting: "batch",
                value: config.batch.to_string(),
                expected: format!("at most the {} training images", data.train.len()),
            });
        }
        Ok(data)
    }

    fn read(path: &Path, image_size: Option<usize>) -> Result<Self> {
        let data = if idx::is(path) {
            expect_own_size(image_size)?;
            idx::load(path)?
        } else if cifar::is(path) {
            expect_own_size(image_size)?;
            cifar::load(path)?
        } else {
            folders::load(path, image_size)?
        };
        let fail = |reason: String| {
            Err(Error::Data {
                path: path.to_owned(),
                reason,
            })
        };
        if data.train.shape != data.test.shape {
            return fail(format!(
                "training images are {}, test images {}",
                data.train.shape, data.test.shape
            ));
        }
        if data.train.is_empty() || data.test.is_empty() {
            return fail("no training images, or no test images".to_owned());
        }
        if data.train.shape.height < 8 || data.train.shape.width < 8 {
            return fail(format!(
                "images are {}; expected 8 pixels a side",
                data.train.shape
            ));
        }
        let labels = data.train.labels.iter().chain(&data.test.labels);
        match labels
            .into_iter()
            .find(|&&label| label as usize >= data.classes.len())
        {
            Some(label) => fail(format!("label {label} with {} classes", data.classes.len())),
            None => Ok(data),
        }
    }
}

/// Refuses a size for images that all have one already.
fn expect_own_size(image_size: Option<usize>) -> Result<()> {
    match image_size {
        None => Ok(()),
        Some(size) => Err(Error::Setting {
            setting: "image_size",
            value: size.to_string(),
            expected: "none: only images in class folders are resized".to_owned(),
        }),
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}×{}", self.channels, self.height, self.width)
    }
}
