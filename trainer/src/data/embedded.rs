//! The embedded part of Fashion-MNIST: 10,000 training and 3,000 test images (trainer/data/NOTICE).

use std::path::Path;

use super::{Dataset, idx};
use crate::error::Result;

/// The names of Fashion-MNIST's classes.
pub const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

macro_rules! file {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../../data/", $name)).as_slice(),
        )
    };
}

/// Decodes the embedded images.
pub fn load() -> Result<Dataset> {
    let read = |images: (&str, &[u8]), labels: (&str, &[u8])| {
        idx::parse(
            (Path::new(images.0), images.1),
            (Path::new(labels.0), labels.1),
        )
    };
    Ok(Dataset {
        train: read(
            file!("train-images-idx3-ubyte.gz"),
            file!("train-labels-idx1-ubyte.gz"),
        )?,
        test: read(
            file!("t10k-images-idx3-ubyte.gz"),
            file!("t10k-labels-idx1-ubyte.gz"),
        )?,
        classes: CLASSES.map(str::to_owned).to_vec(),
    })
}
