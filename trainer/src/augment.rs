//! Random views of images, on rayon, the same for every number of threads.
//!
//! The view of an image depends on the seed, the epoch, the image's number and the view's number
//! alone: each has a generator of its own.

use std::ops::Range;

use candle_core::{Device, Tensor, bail};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::config::Augment;
use crate::data::{Images, Shape};

/// Which random view of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewKey {
    /// The run's seed.
    pub seed: u64,
    /// Epochs done.
    pub epoch: u64,
    /// 0 for the query, 1 for the key.
    pub view: u64,
}

fn generator(words: [u64; 4]) -> ChaCha8Rng {
    let mut seed = [0; 32];
    for (bytes, word) in seed.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    ChaCha8Rng::from_seed(seed)
}

/// The order in which an epoch visits `count` images: Fisher and Yates, seeded.
#[must_use]
pub fn order(seed: u64, epoch: u64, count: usize) -> Vec<usize> {
    // No image has this number, so that the generator is none of the views'.
    let mut rng = generator([seed, epoch, u64::MAX, u64::MAX]);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, rng.random_range(0..=last));
    }
    order
}

/// Mean and deviation of each channel over all pixels, by which the encoder's input is normalised.
#[derive(Debug, Clone, PartialEq)]
pub struct Normalisation {
    /// Mean and 1/deviation of each channel, of pixels in 0 to 1.
    channels: Vec<(f32, f32)>,
}

impl Normalisation {
    /// Over these images; of none, the mean is 0 and the deviation that of one step of a pixel.
    #[must_use]
    pub fn of(images: &Images) -> Self {
        let plane = (images.shape.height * images.shape.width).max(1);
        let channels = (0..images.shape.channels).map(|channel| {
            // Whole numbers: exact in any order.
            let (mut sum, mut squares, mut count) = (0u64, 0u64, 0u64);
            let planes = images.pixels.chunks_exact(plane);
            for pixels in planes.skip(channel).step_by(images.shape.channels) {
                sum += pixels.iter().map(|&x| u64::from(x)).sum::<u64>();
                squares += pixels
                    .iter()
                    .map(|&x| u64::from(x) * u64::from(x))
                    .sum::<u64>();
                count += pixels.len() as u64;
            }
            let count = count.max(1) as f64;
            let mean = sum as f64 / count;
            let variance = squares as f64 / count - mean * mean;
            (
                (mean / 255.0) as f32,
                (255.0 / variance.max(1.0).sqrt()) as f32,
            )
        });
        Self {
            channels: channels.collect(),
        }
    }

    fn apply(&self, image: &mut [f32]) {
        let plane = image.len() / self.channels.len();
        for (pixels, (mean, inverse)) in image.chunks_exact_mut(plane).zip(&self.channels) {
            pixels.iter_mut().for_each(|x| *x = (*x - mean) * inverse);
        }
    }
}

/// The images with these numbers.
fn chosen<'a>(
    images: &'a Images,
    numbers: impl Iterator<Item = usize>,
    normalisation: &Normalisation,
) -> candle_core::Result<Vec<&'a [u8]>> {
    let (shape, count) = (
        images.shape,
        images.pixels.len() / images.shape.len().max(1),
    );
    if shape.is_empty() || shape.channels != normalisation.channels.len() {
        let channels = normalisation.channels.len();
        bail!("images are {shape}; expected pixels in {channels} channels, as were normalised");
    }
    let image = |number| match number < count {
        true => Ok(images.image(number)),
        false => bail!("image {number} was asked for; expected less than {count}"),
    };
    numbers.map(image).collect()
}

fn tensor(data: Vec<f32>, shape: Shape) -> candle_core::Result<Tensor> {
    let count = data.len() / shape.len();
    Tensor::from_vec(
        data,
        (count, shape.channels, shape.height, shape.width),
        &Device::Cpu,
    )
}

/// Images as they are, normalised: [count, C, H, W].
///
/// # Errors
/// For images that are not there or have no pixels, and a normalisation of other channels.
pub fn plain(
    images: &Images,
    range: Range<usize>,
    normalisation: &Normalisation,
) -> candle_core::Result<Tensor> {
    let chosen = chosen(images, range, normalisation)?;
    let size = images.shape.len();
    let mut data = vec![0.0; chosen.len() * size];
    data.par_chunks_mut(size)
        .zip(chosen)
        .for_each(|(to, from)| {
            to.iter_mut()
                .zip(from)
                .for_each(|(to, &from)| *to = f32::from(from) / 255.0);
            normalisation.apply(to);
        });
    tensor(data, images.shape)
}

/// One random view of each of the images with these numbers: [count, C, H, W].
///
/// # Errors
/// As for [`plain`], and for a `crop_scale` outside its domain.
pub fn views(
    images: &Images,
    numbers: &[usize],
    key: ViewKey,
    augment: &Augment,
    normalisation: &Normalisation,
) -> candle_core::Result<Tensor> {
    augment
        .check_crop_scale()
        .map_err(candle_core::Error::wrap)?;
    let chosen = chosen(images, numbers.iter().copied(), normalisation)?;
    let size = images.shape.len();
    let mut data = vec![0.0; numbers.len() * size];
    data.par_chunks_mut(size)
        .zip(numbers.par_iter().zip(chosen))
        .for_each(|(view, (&number, image))| {
            let mut rng = generator([key.seed, key.epoch, number as u64, key.view]);
            crop(image, images.shape, augment, &mut rng, view);
            colour(view, images.shape, augment, &mut rng);
            normalisation.apply(view);
            erase(view, images.shape, augment, &mut rng);
        });
    tensor(data, images.shape)
}

/// Where along a line of `size` pixels the output pixels of a crop lie: the left neighbour, the right
/// one and the right one's weight.
fn taps(start: f32, length: f32, size: usize, flipped: bool) -> Vec<(usize, usize, f32)> {
    let step = length / size as f32;
    let tap = |index: usize| {
        let at = start + (index as f32 + 0.5) * step - 0.5;
        let at = at.clamp(0.0, (size - 1) as f32);
        let left = at as usize;
        (left, (left + 1).min(size - 1), at - left as f32)
    };
    if flipped {
        (0..size).rev().map(tap).collect()
    } else {
        (0..size).map(tap).collect()
    }
}

/// A random part of the image, of a random aspect of 3/4 to 4/3, resized bilinearly to the whole and
/// perhaps flipped; in 0 to 1.
fn crop(image: &[u8], shape: Shape, augment: &Augment, rng: &mut ChaCha8Rng, view: &mut [f32]) {
    let (height, width) = (shape.height as f32, shape.width as f32);
    let mut part = (height, width);
    for _ in 0..10 {
        let area = height * width * rng.random_range(augment.crop_scale..=1.0);
        let aspect = rng.random_range(-1.0f32..=1.0) * (4.0f32 / 3.0).ln();
        let aspect = aspect.exp();
        let (h, w) = ((area / aspect).sqrt(), (area * aspect).sqrt());
        if h <= height && w <= width {
            part = (h, w);
            break;
        }
    }
    let top = rng.random::<f32>() * (height - part.0);
    let left = rng.random::<f32>() * (width - part.1);
    let flipped = rng.random::<f32>() < augment.flip;
    let rows = taps(top, part.0, shape.height, false);
    let columns = taps(left, part.1, shape.width, flipped);
    let plane = shape.height * shape.width;
    for (view, image) in view.chunks_exact_mut(plane).zip(image.chunks_exact(plane)) {
        for (to, &(above, below, down)) in view.chunks_exact_mut(shape.width).zip(&rows) {
            let above = &image[above * shape.width..][..shape.width];
            let below = &image[below * shape.width..][..shape.width];
            for (to, &(left, right, along)) in to.iter_mut().zip(&columns) {
                let mix = |line: &[u8]| {
                    let (left, right) = (f32::from(line[left]), f32::from(line[right]));
                    left + (right - left) * along
                };
                let (above, below) = (mix(above), mix(below));
                *to = (above + (below - above) * down) * (1.0 / 255.0);
            }
        }
    }
}

/// Weights of red, green and blue in the gray of a colour image (ITU-R BT.601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// Brightness, contrast and, for colour images, saturation and gray, in 0 to 1.
fn colour(view: &mut [f32], shape: Shape, augment: &Augment, rng: &mut ChaCha8Rng) {
    let mut factor = |range: f32| rng.random_range(-1.0f32..=1.0) * range + 1.0;
    let brightness = factor(augment.brightness);
    let contrast = factor(augment.contrast);
    let mean = view.iter().sum::<f32>() / view.len() as f32 * brightness;
    for x in &mut *view {
        *x = ((*x * brightness - mean) * contrast + mean).clamp(0.0, 1.0);
    }
    if shape.channels == 3 {
        let saturation = factor(augment.saturation);
        let gray = rng.random::<f32>() < augment.grayscale;
        let saturation = if gray { 0.0 } else { saturation };
        let plane = shape.height * shape.width;
        for index in 0..plane {
            let colours = [0, 1, 2].map(|channel| view[channel * plane + index]);
            let luma: f32 = colours
                .iter()
                .zip(LUMA)
                .map(|(colour, weight)| colour * weight)
                .sum();
            for (channel, colour) in colours.into_iter().enumerate() {
                view[channel * plane + index] =
                    (luma + (colour - luma) * saturation).clamp(0.0, 1.0);
            }
        }
    }
}

/// Sets a rectangle of 2 to 33 % of the area to the mean, as Zhong et al., "Random Erasing", 2020.
fn erase(view: &mut [f32], shape: Shape, augment: &Augment, rng: &mut ChaCha8Rng) {
    if rng.random::<f32>() >= augment.erasing {
        return;
    }
    let area = (shape.height * shape.width) as f32 * rng.random_range(0.02f32..=0.33);
    let aspect = (rng.random_range(-1.0f32..=1.0) * (10.0f32 / 3.0).ln()).exp();
    let side = |length: f32, limit: usize| (length.round() as usize).clamp(1, limit);
    let height = side((area / aspect).sqrt(), shape.height);
    let width = side((area * aspect).sqrt(), shape.width);
    let top = rng.random_range(0..=shape.height - height);
    let left = rng.random_range(0..=shape.width - width);
    for plane in view.chunks_exact_mut(shape.height * shape.width) {
        for row in plane.chunks_exact_mut(shape.width).skip(top).take(height) {
            row[left..left + width].fill(0.0);
        }
    }
}
