//! The file of test images and their nearest neighbours that the report shows.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

use crate::checkpoint::replace;
use crate::data::{Dataset, Images};
use crate::error::{Error, Result};
use crate::evaluate::Neighbour;

/// Test images shown, and neighbours of each.
const SHOWN: usize = 10;
const NEAREST: usize = 8;

/// A named tensor's type, shape and bytes.
type Part = (String, Dtype, Vec<usize>, Vec<u8>);

/// Writes the tensors that [`crate::run_folder::RunFolder::neighbours`] describes: the first test
/// image of each class, by class, with its neighbours by the encoder and by raw pixels.
///
/// # Errors
/// [`Error::Io`].
pub fn save(
    path: &Path,
    data: &Dataset,
    encoded: &[Vec<Neighbour>],
    raw: &[Vec<Neighbour>],
) -> Result<()> {
    let classes = (0..data.classes.len() as u32).take(SHOWN);
    let shown: Vec<usize> = classes
        .filter_map(|class| data.test.labels.iter().position(|&l| l == class))
        .collect();
    let mut parts: Vec<Part> = Vec::new();
    add_images(&mut parts, "", &[shown.len()], &data.test, &shown);
    for (prefix, nearest) in [("neighbour_", encoded), ("raw_neighbour_", raw)] {
        // A bank smaller than the list leaves fewer for each alike.
        let width = NEAREST.min(nearest.first().map_or(0, Vec::len));
        let flat: Vec<Neighbour> = shown
            .iter()
            .flat_map(|&index| nearest[index][..width].to_vec())
            .collect();
        let indices: Vec<usize> = flat.iter().map(|neighbour| neighbour.index).collect();
        let leading = [shown.len(), width];
        add_images(&mut parts, prefix, &leading, &data.train, &indices);
        let similarities = flat
            .iter()
            .flat_map(|n| n.similarity.to_le_bytes())
            .collect();
        parts.push((
            format!("{prefix}similarities"),
            Dtype::F32,
            leading.to_vec(),
            similarities,
        ));
    }
    let fail = |reason: String| Error::Data {
        path: path.to_owned(),
        reason,
    };
    let views = parts
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view))
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| fail(error.to_string()))?;
    let names = serde_json::to_string(&data.classes).map_err(|error| fail(error.to_string()))?;
    let metadata = [("classes".to_owned(), names)].into();
    let bytes = safetensors::serialize(views, Some(metadata));
    replace(path, &bytes.map_err(|error| fail(error.to_string()))?)
}

/// Adds `{prefix}images` and `{prefix}labels` of these images, shaped by `leading`.
fn add_images(
    parts: &mut Vec<Part>,
    prefix: &str,
    leading: &[usize],
    images: &Images,
    indices: &[usize],
) {
    let shape = images.shape;
    let mut full = leading.to_vec();
    full.extend([shape.channels, shape.height, shape.width]);
    let pixels = indices
        .iter()
        .flat_map(|&index| images.image(index).to_vec())
        .collect();
    let labels = indices
        .iter()
        .flat_map(|&index| images.labels[index].to_le_bytes())
        .collect();
    parts.push((format!("{prefix}images"), Dtype::U8, full, pixels));
    parts.push((
        format!("{prefix}labels"),
        Dtype::U32,
        leading.to_vec(),
        labels,
    ));
}
