//! Class folders of PNG and JPEG files: `train/CLASS/*.png` and `test/CLASS/*.png` (or `val`), or
//! class folders alone, of which every tenth image is then held out.

use std::fs;
use std::path::{Path, PathBuf};

use image::imageops::FilterType;
use rayon::prelude::*;

use super::{Dataset, Images, Shape};
use crate::error::{Error, Result};

/// Of class folders without a split, one image in so many is for the test.
const HELD_OUT: usize = 10;

/// Reads the folder; `image_size` resizes every image to a square, else all must have one size.
pub fn load(folder: &Path, image_size: Option<usize>) -> Result<Dataset> {
    let test = ["test", "val"]
        .map(|name| folder.join(name))
        .into_iter()
        .find(|p| p.is_dir());
    let (classes, train, test) = match test {
        Some(test) if folder.join("train").is_dir() => {
            let (classes, train) = list(&folder.join("train"))?;
            let (test_classes, files) = list(&test)?;
            if classes != test_classes {
                return Err(Error::Data {
                    path: test,
                    reason: format!(
                        "classes {test_classes:?}; the training classes are {classes:?}"
                    ),
                });
            }
            (classes, train, files)
        }
        _ => {
            let (classes, files) = list(folder)?;
            let (test, train): (Vec<_>, Vec<_>) = files
                .into_iter()
                .enumerate()
                .partition(|(index, _)| index % HELD_OUT == 0);
            let plain = |files: Vec<(usize, File)>| files.into_iter().map(|(_, f)| f).collect();
            (classes, plain(train), plain(test))
        }
    };
    let (train, test) = (interleaved(train), interleaved(test));
    let of_train = decode_all(&train, image_size)?;
    let of_test = decode_all(&test, image_size)?;
    // One image in colour makes all of them colour images, wherever it stands.
    let both = of_train.iter().chain(&of_test);
    let channels = both.map(|image| image.shape.channels).max().unwrap_or(1);
    Ok(Dataset {
        train: together(of_train, &train, channels)?,
        test: together(of_test, &test, channels)?,
        classes,
    })
}

/// A file and its label.
type File = (PathBuf, u32);

/// The classes, sorted, and their image files, class by class, sorted.
fn list(folder: &Path) -> Result<(Vec<String>, Vec<File>)> {
    let mut classes = Vec::new();
    let mut files = Vec::new();
    for class in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        let images = entries(&class)?.into_iter().filter(|path| {
            let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
            extension.is_some_and(|e| ["png", "jpg", "jpeg"].contains(&e.as_str()))
        });
        let label = classes.len() as u32;
        files.extend(images.map(|path| (path, label)));
        classes.push(
            class
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        );
    }
    if files.is_empty() {
        return Err(Error::Data {
            path: folder.to_owned(),
            reason: "holds no IDX files, no CIFAR files and no class folders of PNG or JPEG files"
                .to_owned(),
        });
    }
    Ok((classes, files))
}

/// The files, which come class by class, in an order of which every part has the classes in the
/// whole's proportions: the first images may be all that is trained on, and the last held out.
fn interleaved(files: Vec<File>) -> Vec<File> {
    // The last file's class is the highest.
    let classes = files.last().map_or(0, |&(_, label)| label as usize + 1);
    let (mut of_class, mut seen) = (vec![0_usize; classes], vec![0_usize; classes]);
    for &(_, label) in &files {
        of_class[label as usize] += 1;
    }
    let mut placed: Vec<_> = files
        .into_iter()
        .map(|file| {
            let class = file.1 as usize;
            let place = (seen[class] as f64 + 0.5) / of_class[class] as f64;
            seen[class] += 1;
            (place, file)
        })
        .collect();
    placed.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    placed.into_iter().map(|(_, file)| file).collect()
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let mut paths = entries
        .map(|entry| {
            entry
                .map(|entry| entry.path())
                .map_err(Error::io("read", folder))
        })
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn open(path: &Path) -> Result<image::DynamicImage> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    // By content, not by name: a PNG called .jpg is still an image.
    image::load_from_memory(&bytes).map_err(|error| Error::Data {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// An image in the channels that its file has.
struct Decoded {
    /// [C, H, W].
    pixels: Vec<u8>,
    shape: Shape,
}

fn decode_all(files: &[File], image_size: Option<usize>) -> Result<Vec<Decoded>> {
    files
        .par_iter()
        .map(|(path, _)| decode(path, image_size))
        .collect()
}

fn decode(path: &Path, image_size: Option<usize>) -> Result<Decoded> {
    let mut image = open(path)?;
    if let Some(size) = image_size {
        image = image.resize_exact(size as u32, size as u32, FilterType::Triangle);
    }
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (channels, pixels) = if image.color().has_color() {
        let interleaved = image.into_rgb8().into_raw();
        let plane = |channel| interleaved.iter().skip(channel).step_by(3).copied();
        (3, (0..3).flat_map(plane).collect())
    } else {
        (1, image.into_luma8().into_raw())
    };
    let shape = Shape {
        channels,
        height,
        width,
    };
    Ok(Decoded { pixels, shape })
}

/// The images of these files with so many channels each; a gray one's are alike.
fn together(images: Vec<Decoded>, files: &[File], channels: usize) -> Result<Images> {
    let (height, width) = images
        .first()
        .map_or((0, 0), |first| (first.shape.height, first.shape.width));
    let shape = Shape {
        channels,
        height,
        width,
    };
    let mut pixels = Vec::with_capacity(files.len() * shape.len());
    for (image, (path, _)) in images.into_iter().zip(files) {
        let own = Shape {
            channels,
            ..image.shape
        };
        if own != shape {
            return Err(Error::Data {
                path: path.clone(),
                reason: format!("is {own}, others are {shape}; give an image size to resize to"),
            });
        }
        for _ in 0..channels / image.shape.channels {
            pixels.extend_from_slice(&image.pixels);
        }
    }
    Ok(Images {
        pixels,
        labels: files.iter().map(|&(_, label)| label).collect(),
        shape,
    })
}
