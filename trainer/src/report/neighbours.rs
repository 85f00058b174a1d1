//! Some test images and their nearest neighbours, as the trained encoder and as raw pixels see them.

use std::io::ErrorKind;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use maud::{Markup, html};
use safetensors::{Dtype, SafeTensors};

use super::run::Run;
use crate::error::{Error, Result};

/// How many neighbours are shown.
const SHOWN: usize = 8;

/// The section, also where the file is missing.
pub fn section(run: &Run) -> Result<Markup> {
    let path = run.folder.neighbours();
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    let queries = bytes.map(|bytes| read(&path, &bytes)).transpose()?;
    Ok(html! {
        section {
            h2 { "Nearest neighbours" }
            @match queries {
                None => p class="missing" { "No neighbours yet: they are found when the run ends." },
                Some(queries) => {
                    p class="lead" {
                        "At the left one of the " (run.evaluated()) ", then its " (SHOWN)
                        " nearest training images: above by the trained encoder, below by raw \
                         pixels. A framed image with a cross is of another class. Look for \
                         neighbours of the right class that differ in brightness or shape, and for \
                         the confusions that remain."
                    }
                    div class="queries" { @for query in &queries { (show(query)) } }
                }
            }
        }
    })
}

/// A test image with its neighbours under two measures.
struct Query {
    class: String,
    image: String,
    trained: Vec<Neighbour>,
    raw: Vec<Neighbour>,
}

struct Neighbour {
    class: String,
    right: bool,
    similarity: f32,
    image: String,
}

fn show(query: &Query) -> Markup {
    let strip = |name: &str, neighbours: &[Neighbour]| {
        html! {
            div class="strip" role="list" aria-label=(name) {
                @for neighbour in neighbours {
                    @let verdict = if neighbour.right { "right" } else { "wrong" };
                    span role="listitem" class={ "neighbour " (verdict) } {
                        img src=(neighbour.image) alt={ (neighbour.class) ", " (verdict) }
                            title={ (neighbour.class) ", cosine " (format!("{:.3}", neighbour.similarity)) };
                    }
                }
                span class="count" {
                    (neighbours.iter().filter(|n| n.right).count()) "/" (neighbours.len())
                    small { (name) }
                }
            }
        }
    };
    html! {
        div class="query" {
            div class="asked" {
                img src=(query.image) alt={ "test image: " (query.class) };
                small { (query.class) }
            }
            div {
                (strip("trained", &query.trained))
                (strip("pixels", &query.raw))
            }
        }
    }
}

/// Reads the file as `RunFolder::neighbours` states it.
fn read(path: &Path, bytes: &[u8]) -> Result<Vec<Query>> {
    let fail = |reason: String| Error::Data {
        path: path.to_owned(),
        reason,
    };
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| fail(error.to_string()))?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| fail(error.to_string()))?;
    let classes = header
        .metadata()
        .as_ref()
        .and_then(|all| all.get("classes"));
    let classes: Vec<String> = match classes {
        Some(json) => serde_json::from_str(json)
            .map_err(|error| fail(format!("metadata `classes`: {error}")))?,
        None => Vec::new(),
    };
    let class = |label: u32| match classes.get(label as usize) {
        Some(name) => name.clone(),
        None => format!("class {label}"),
    };

    let tensor = |name: &str, dtype: Dtype, shape: &[Option<usize>]| {
        let tensor = tensors
            .tensor(name)
            .map_err(|error| fail(format!("`{name}`: {error}")))?;
        let fits = tensor.shape().len() == shape.len()
            && tensor
                .shape()
                .iter()
                .zip(shape)
                .all(|(&is, want)| want.is_none_or(|w| w == is));
        if tensor.dtype() != dtype || !fits {
            let shape: Vec<String> = shape
                .iter()
                .map(|n| n.map_or("_".into(), |n| n.to_string()))
                .collect();
            return Err(fail(format!(
                "`{name}` is {:?} {:?}; expected {dtype:?} [{}]",
                tensor.dtype(),
                tensor.shape(),
                shape.join(", ")
            )));
        }
        Ok(tensor)
    };
    let words = |bytes: &[u8]| -> Vec<[u8; 4]> { bytes.as_chunks::<4>().0.to_vec() };

    let images = tensor("images", Dtype::U8, &[None; 4])?;
    let &[count, channels, height, width] = images.shape() else {
        return Err(fail("`images` is not of rank 4".into()));
    };
    if !matches!(channels, 1 | 3) || height == 0 || width == 0 {
        return Err(fail(format!(
            "images of {channels}×{height}×{width} cannot be shown"
        )));
    }
    let size = channels * height * width;
    let picture = |pixels: &[u8]| {
        png(pixels, channels, height, width).map_err(|error| fail(error.to_string()))
    };
    let labels = tensor("labels", Dtype::U32, &[Some(count)])?;
    let labels: Vec<u32> = words(labels.data())
        .into_iter()
        .map(u32::from_le_bytes)
        .collect();

    let neighbours = |prefix: &str| -> Result<Vec<Vec<Neighbour>>> {
        let name = |what: &str| format!("{prefix}neighbour_{what}");
        let near = tensor(&name("labels"), Dtype::U32, &[Some(count), None])?;
        let each = near.shape()[1];
        let shape = [
            Some(count),
            Some(each),
            Some(channels),
            Some(height),
            Some(width),
        ];
        let pixels = tensor(&name("images"), Dtype::U8, &shape)?;
        let similar = tensor(
            &name("similarities"),
            Dtype::F32,
            &[Some(count), Some(each)],
        )?;
        let near: Vec<u32> = words(near.data())
            .into_iter()
            .map(u32::from_le_bytes)
            .collect();
        let similar: Vec<f32> = words(similar.data())
            .into_iter()
            .map(f32::from_le_bytes)
            .collect();
        let one = |query: usize, place: usize| {
            let at = query * each + place;
            Ok(Neighbour {
                class: class(near[at]),
                right: near[at] == labels[query],
                similarity: similar[at],
                image: picture(&pixels.data()[at * size..(at + 1) * size])?,
            })
        };
        (0..count)
            .map(|query| {
                (0..each.min(SHOWN))
                    .map(|place| one(query, place))
                    .collect()
            })
            .collect()
    };
    let (trained, raw) = (neighbours("")?, neighbours("raw_")?);
    let pairs = trained.into_iter().zip(raw).enumerate();
    pairs
        .map(|(at, (trained, raw))| {
            let image = picture(&images.data()[at * size..(at + 1) * size])?;
            Ok(Query {
                class: class(labels[at]),
                image,
                trained,
                raw,
            })
        })
        .collect()
}

/// An image stored channel by channel, as a data URI of a PNG.
fn png(pixels: &[u8], channels: usize, height: usize, width: usize) -> image::ImageResult<String> {
    let plane = height * width;
    let interleaved: Vec<u8> = (0..plane)
        .flat_map(|at| (0..channels).map(move |c| pixels[c * plane + at]))
        .collect();
    let colour = if channels == 1 {
        ExtendedColorType::L8
    } else {
        ExtendedColorType::Rgb8
    };
    let mut out = Vec::new();
    PngEncoder::new(&mut out).write_image(&interleaved, width as u32, height as u32, colour)?;
    Ok(format!("data:image/png;base64,{}", STANDARD.encode(out)))
}
