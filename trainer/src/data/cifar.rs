//! CIFAR's binary files: records of a label (CIFAR-100: coarse, then fine) and 3×32×32 bytes.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Dataset, Images, Shape};
use crate::error::{Error, Result};

const SHAPE: Shape = Shape {
    channels: 3,
    height: 32,
    width: 32,
};

/// Files and record layout of one of the two sets.
struct Layout {
    train: &'static [&'static str],
    test: &'static str,
    /// Bytes before the pixels; the last of them is the label.
    labels: usize,
    names: &'static str,
    classes: usize,
}

const CIFAR_10: Layout = Layout {
    train: &[
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
    ],
    test: "test_batch.bin",
    labels: 1,
    names: "batches.meta.txt",
    classes: 10,
};

const CIFAR_100: Layout = Layout {
    train: &["train.bin"],
    test: "test.bin",
    labels: 2,
    names: "fine_label_names.txt",
    classes: 100,
};

fn layout(folder: &Path) -> Option<&'static Layout> {
    [&CIFAR_10, &CIFAR_100]
        .into_iter()
        .find(|set| folder.join(set.train[0]).is_file())
}

/// Whether the folder holds CIFAR's files by their usual names.
pub fn is(folder: &Path) -> bool {
    layout(folder).is_some()
}

/// Reads CIFAR-10 or CIFAR-100; training batches that are missing are left out, all but the first.
pub fn load(folder: &Path) -> Result<Dataset> {
    let set = layout(folder).expect("`is` was asked");
    let present: Vec<PathBuf> = set
        .train
        .iter()
        .map(|name| folder.join(name))
        .filter(|path| path.exists())
        .collect();
    let train = read(&present, set)?;
    let test = read(&[folder.join(set.test)], set)?;
    let mut classes: Vec<String> = fs::read_to_string(folder.join(set.names))
        .map(|text| {
            text.lines()
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default();
    classes.truncate(set.classes);
    classes.extend((classes.len()..set.classes).map(|label| label.to_string()));
    Ok(Dataset {
        train,
        test,
        classes,
    })
}

fn read(paths: &[PathBuf], set: &Layout) -> Result<Images> {
    let mut images = Images {
        pixels: Vec::new(),
        labels: Vec::new(),
        shape: SHAPE,
    };
    let record = set.labels + SHAPE.len();
    for path in paths {
        let data = fs::read(path).map_err(Error::io("read", path))?;
        if data.is_empty() || data.len() % record != 0 {
            return Err(Error::Data {
                path: path.clone(),
                reason: format!(
                    "{} bytes; expected records of {record}: truncated?",
                    data.len()
                ),
            });
        }
        for (index, bytes) in data.chunks_exact(record).enumerate() {
            let (labels, pixels) = bytes.split_at(set.labels);
            let label = labels[set.labels - 1];
            if usize::from(label) >= set.classes {
                return Err(Error::Data {
                    path: path.clone(),
                    reason: format!("record {index} has label {label} of {}", set.classes),
                });
            }
            images.labels.push(label.into());
            images.pixels.extend_from_slice(pixels);
        }
    }
    Ok(images)
}
