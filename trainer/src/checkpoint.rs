//! The whole state of a run in one safetensors file.
//!
//! A checkpoint is written beside its place, flushed to the disk and renamed, so that a file of its
//! name is always whole. Nothing in it depends on time: two equal runs write equal bytes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use hardmix::candle::Queue;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::encoder::Encoder;
use crate::error::{Error, Result};
use crate::optimiser::{AdamW, Moments};
use crate::run_folder::RunFolder;
use crate::train::EpochMeans;

/// Older checkpoints are removed when this many newer ones are there: the one before the newest
/// stays, in case the newest turns out to be unreadable.
const KEPT: usize = 2;

/// What is not a tensor. One string of JSON, since safetensors orders several by chance.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    step: u64,
    means: EpochMeans,
}

/// The format's number; a change that older code would misread raises it.
const FORMAT: u32 = 1;
const HEADER: &str = "hardmix";

/// Everything that training changes.
#[derive(Debug)]
pub struct State {
    /// Steps done: with the seed, it gives draws, data order and views.
    pub step: u64,
    /// The encoder.
    pub encoder: Encoder,
    /// The momentum encoder.
    pub momentum_encoder: Encoder,
    /// The optimiser's moments.
    pub optimiser: AdamW,
    /// The queue with its cursor.
    pub queue: Queue,
    /// The sums of the epoch that has begun.
    pub means: EpochMeans,
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Writes `bytes` beside `path`, flushes them and renames: `path` is never half a file.
///
/// # Errors
/// [`Error::Io`]; `path` is then as it was, unless all that failed was the folder's own flush.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = || Error::io("write", path);
    let mut beside = path.as_os_str().to_owned();
    beside.push(".partial");
    let beside = PathBuf::from(beside);
    // A bare name does not mention its folder.
    let named = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    // The rename lies in the folder and is flushed with it. Opened first: a folder that cannot be
    // should stop this before anything is replaced.
    let folder = File::open(named.unwrap_or(Path::new("."))).map_err(fail())?;
    let written = File::create(&beside)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(|error| {
        // The first error is the one to report; a leftover is only untidy.
        let _ = fs::remove_file(&beside);
        fail()(error)
    })?;
    folder.sync_all().map_err(fail())
}

impl State {
    /// Writes the checkpoint of this step and removes those that are too old.
    ///
    /// # Errors
    /// [`Error::Io`]; checkpoints that were there remain.
    pub fn save(&self, folder: &RunFolder) -> Result<()> {
        let path = folder.checkpoint(self.step);
        replace(&path, &self.to_bytes(&path)?)?;
        let mut old = list(folder)?;
        old.truncate(old.len().saturating_sub(KEPT));
        for path in old {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
        Ok(())
    }

    fn to_bytes(&self, path: &Path) -> Result<Vec<u8>> {
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for (prefix, encoder) in [
            ("encoder", &self.encoder),
            ("momentum_encoder", &self.momentum_encoder),
        ] {
            for (name, weight) in encoder.weights() {
                let values = weight
                    .as_detached_tensor()
                    .flatten_all()?
                    .to_vec1::<f32>()?;
                let shape = weight.dims().to_vec();
                tensors.push((
                    format!("{prefix}.{name}"),
                    Dtype::F32,
                    shape,
                    little_endian(&values),
                ));
            }
        }
        for (name, moments) in &self.optimiser.moments {
            for (which, moment) in [("first", &moments.first), ("second", &moments.second)] {
                let name = format!("optimiser.{which}.{name}");
                let values = moment.flatten_all()?.to_vec1::<f32>()?;
                tensors.push((name, Dtype::F32, vec![values.len()], little_endian(&values)));
            }
        }
        let queue = self.queue.to_host()?.to_safetensors()?;
        tensors.push(("queue".to_owned(), Dtype::U8, vec![queue.len()], queue));
        let damaged = |reason: String| Error::Checkpoint {
            path: path.to_owned(),
            reason,
        };
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| damaged(error.to_string()))?;
        let header = Header {
            format: FORMAT,
            step: self.step,
            means: self.means.clone(),
        };
        let header = serde_json::to_string(&header).map_err(|error| damaged(error.to_string()))?;
        safetensors::serialize(views, Some([(HEADER.to_owned(), header)].into()))
            .map_err(|error| damaged(error.to_string()))
    }

    /// Reads a checkpoint into a state of the same configuration.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be read, [`Error::Checkpoint`] where it is damaged or does not
    /// fit; the state is then not to be used.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        self.restore(&bytes).map_err(|reason| Error::Checkpoint {
            path: path.to_owned(),
            reason,
        })
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), String> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let header = metadata
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(HEADER));
        let header = header.ok_or("is not a checkpoint of this program")?;
        let header: Header = serde_json::from_str(header).map_err(|error| error.to_string())?;
        if header.format != FORMAT {
            return Err(format!("has format {}; expected {FORMAT}", header.format));
        }
        let floats = |name: &str, shape: &[usize]| {
            let view = file.tensor(name).map_err(|error| error.to_string())?;
            if view.dtype() != Dtype::F32 || view.shape() != shape {
                let (dtype, found) = (view.dtype(), view.shape());
                return Err(format!(
                    "`{name}` is {dtype:?} {found:?}; expected F32 {shape:?}"
                ));
            }
            let words = view.data().chunks_exact(4);
            Ok(words
                .map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]))
                .collect::<Vec<_>>())
        };
        for (prefix, encoder) in [
            ("encoder", &self.encoder),
            ("momentum_encoder", &self.momentum_encoder),
        ] {
            for (name, weight) in encoder.weights() {
                let values = floats(&format!("{prefix}.{name}"), weight.dims())?;
                Tensor::from_vec(values, weight.shape(), weight.device())
                    .and_then(|values| weight.set(&values))
                    .map_err(|error| error.to_string())?;
            }
        }
        self.optimiser = AdamW::default();
        // Before the first step there are no moments.
        if header.step > 0 {
            for (name, weight) in self.encoder.weights() {
                let moment = |which| {
                    let name = format!("optimiser.{which}.{name}");
                    let values = floats(&name, &[weight.elem_count()])?;
                    Tensor::from_vec(values, weight.shape(), weight.device())
                        .map_err(|error| error.to_string())
                };
                let moments = Moments {
                    first: moment("first")?,
                    second: moment("second")?,
                };
                self.optimiser.moments.insert(name.clone(), moments);
            }
        }
        let queue = file.tensor("queue").map_err(|error| error.to_string())?;
        let queue = hardmix::Queue::from_safetensors(queue.data());
        let queue = queue.map_err(|error| error.to_string())?;
        let (rows, dim) = (self.queue.capacity(), self.queue.dim());
        if (queue.capacity(), queue.dim()) != (rows, dim) {
            let (found_rows, found_dim) = (queue.capacity(), queue.dim());
            return Err(format!(
                "its queue is {found_rows}×{found_dim}; expected {rows}×{dim}"
            ));
        }
        self.queue = Queue::new(queue, self.queue.device()).map_err(|error| error.to_string())?;
        self.step = header.step;
        self.means = header.means;
        Ok(())
    }
}

/// The checkpoints of a run, oldest first.
fn list(folder: &RunFolder) -> Result<Vec<PathBuf>> {
    let path = folder.checkpoints();
    let entries = fs::read_dir(&path).map_err(Error::io("read", &path))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", &path))?;
        if is_checkpoint(&entry.file_name()) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Whether a file has a name of [`RunFolder::checkpoint`]'s. Others in the folder are someone
/// else's: they are neither resumed from nor removed.
fn is_checkpoint(name: &OsStr) -> bool {
    let step = name
        .to_str()
        .and_then(|name| name.strip_suffix(".safetensors"));
    step.is_some_and(|step| step.len() == 10 && step.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The newest checkpoint of a run.
///
/// # Errors
/// [`Error::Io`] where the folder cannot be read.
pub fn newest(folder: &RunFolder) -> Result<Option<PathBuf>> {
    Ok(list(folder)?.pop())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn what_cannot_be_flushed_is_not_replaced() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace(&path, b"old").unwrap();
        // Its files can be named, and made, but it cannot be opened itself.
        let mode = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode));
        mode(0o300).unwrap();
        if File::open(folder.path()).is_ok() {
            println!("not run: whoever runs this may open any folder");
            return;
        }
        assert!(matches!(replace(&path, b"new"), Err(Error::Io { .. })));
        mode(0o700).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
