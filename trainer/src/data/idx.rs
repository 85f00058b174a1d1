//! IDX, the format of MNIST and its successors: a magic number, the sizes, the bytes; gzipped or not.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use super::{Dataset, Images, Shape, embedded};
use crate::error::{Error, Result};

/// Unsigned bytes in three and in one dimension.
const IMAGES: u32 = 0x803;
const LABELS: u32 = 0x801;

fn find(folder: &Path, stem: &str) -> Option<PathBuf> {
    [".gz", ""]
        .map(|end| folder.join(format!("{stem}{end}")))
        .into_iter()
        .find(|p| p.is_file())
}

/// Whether the folder holds IDX files by their usual names.
pub fn is(folder: &Path) -> bool {
    find(folder, "train-images-idx3-ubyte").is_some()
}

/// Reads `train-` and `t10k-`, `images-idx3-ubyte` and `labels-idx1-ubyte`, each with .gz or without.
pub fn load(folder: &Path) -> Result<Dataset> {
    let open = |stem: &str| {
        let path = find(folder, stem).ok_or_else(|| Error::Data {
            path: folder.to_owned(),
            reason: format!("holds no {stem} and no {stem}.gz"),
        })?;
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        Ok::<_, Error>((path, BufReader::new(file)))
    };
    let read = |split: &str| {
        let images = open(&format!("{split}-images-idx3-ubyte"))?;
        let labels = open(&format!("{split}-labels-idx1-ubyte"))?;
        parse((&images.0, images.1), (&labels.0, labels.1))
    };
    let (train, test) = (read("train")?, read("t10k")?);
    let count = train
        .labels
        .iter()
        .max()
        .map_or(0, |&last| last as usize + 1);
    // Only Fashion-MNIST has this folder name in common; digits are named by themselves.
    let fashion = folder.to_string_lossy().to_lowercase().contains("fashion");
    let classes = if fashion && count == embedded::CLASSES.len() {
        embedded::CLASSES.map(str::to_owned).to_vec()
    } else {
        (0..count).map(|label| label.to_string()).collect()
    };
    Ok(Dataset {
        train,
        test,
        classes,
    })
}

/// Parses a file of images and one of labels; the paths are for the errors.
pub fn parse(images: (&Path, impl Read), labels: (&Path, impl Read)) -> Result<Images> {
    let ([count, height, width], pixels) = read_array(images.0, images.1, IMAGES)?;
    let ([label_count], label_bytes) = read_array(labels.0, labels.1, LABELS)?;
    if count != label_count {
        return Err(Error::Data {
            path: labels.0.to_owned(),
            reason: format!("{label_count} labels for {count} images"),
        });
    }
    Ok(Images {
        pixels,
        labels: label_bytes.into_iter().map(u32::from).collect(),
        shape: Shape {
            channels: 1,
            height,
            width,
        },
    })
}

fn read_array<const D: usize>(
    path: &Path,
    file: impl Read,
    magic: u32,
) -> Result<([usize; D], Vec<u8>)> {
    let fail = |reason: String| Error::Data {
        path: path.to_owned(),
        reason,
    };
    let wrap = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => fail("truncated".to_owned()),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            fail(format!("corrupt: {error}"))
        }
        _ => Error::Io {
            action: "read",
            path: path.to_owned(),
            source: error,
        },
    };
    let mut file = decompressed(file).map_err(wrap)?;
    let mut word = || {
        let mut bytes = [0; 4];
        file.read_exact(&mut bytes)
            .map(|()| u32::from_be_bytes(bytes))
            .map_err(wrap)
    };
    let found = word()?;
    if found != magic {
        return Err(fail(format!(
            "starts with {found:#010x}; expected {magic:#010x} (IDX of bytes)"
        )));
    }
    let mut sizes = [0; D];
    for size in &mut sizes {
        *size = word()? as usize;
    }
    let total = sizes
        .iter()
        .try_fold(1usize, |total, &size| total.checked_mul(size))
        .filter(|&total| total > 0 && total <= isize::MAX as usize)
        .ok_or_else(|| fail(format!("sizes {sizes:?} are zero or do not fit memory")))?;
    let mut data = Vec::new();
    // One byte more than promised tells a file that goes on; nothing is reserved on a header's word.
    file.take(total as u64 + 1)
        .read_to_end(&mut data)
        .map_err(wrap)?;
    if data.len() != total {
        let found = if data.len() < total {
            data.len().to_string()
        } else {
            "more".to_owned()
        };
        return Err(fail(format!(
            "holds {found} bytes of data; its header promises {total}"
        )));
    }
    Ok((sizes, data))
}

fn decompressed(mut file: impl Read) -> io::Result<impl Read> {
    let mut start = [0; 2];
    file.read_exact(&mut start)?;
    let file = Cursor::new(start).chain(file);
    let gzipped = start == [0x1f, 0x8b];
    Ok(if gzipped {
        Either::Left(GzDecoder::new(file))
    } else {
        Either::Right(file)
    })
}

enum Either<L, R> {
    Left(L),
    Right(R),
}

impl<L: Read, R: Read> Read for Either<L, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Left(inner) => inner.read(buffer),
            Self::Right(inner) => inner.read(buffer),
        }
    }
}
