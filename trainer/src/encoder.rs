//! The encoders: images [B, C, H, W] to features, and on to embeddings of norm 1.
//!
//! Group norm has no running statistics and no sums across images, so that nothing leaks between a
//! query and its key, and an image's features do not depend on its batch.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor, Var};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::EncoderKind;
use crate::data::Shape;
use crate::ops;

/// The width between the two layers of the head.
const HIDDEN: usize = 256;
/// The groups of every group norm.
const GROUPS: usize = 8;

/// An encoder and its weights.
#[derive(Debug)]
pub struct Encoder {
    kind: EncoderKind,
    device: Device,
    weights: BTreeMap<String, Var>,
}

/// Whether a forward pass is recorded for the gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Weights carry gradients.
    Training,
    /// They do not.
    Inference,
}

impl Encoder {
    /// An encoder on a device for images of this shape with seeded random weights (He et al., "Delving Deep into
    /// Rectifiers", 2015: normal, variance 2/fan-in).
    ///
    /// # Errors
    /// Where the device fails; never on the CPU.
    pub fn new(
        kind: EncoderKind,
        shape: Shape,
        embedding: usize,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let mut make = Initialiser {
            device,
            weights: BTreeMap::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        };
        let (channels, halvings) = match kind {
            EncoderKind::Conv => {
                for (index, (from, to)) in [(shape.channels, 32), (32, 64), (64, 64)]
                    .iter()
                    .enumerate()
                {
                    make.convolution(&format!("conv{}", index + 1), *from, *to, 3)?;
                }
                (64, 3)
            }
            EncoderKind::Resnet => {
                make.convolution("stem", shape.channels, STAGES[0], 3)?;
                let mut from = STAGES[0];
                for (index, to) in STAGES.into_iter().enumerate() {
                    let name = format!("stage{}", index + 1);
                    make.convolution(&format!("{name}.conv1"), from, to, 3)?;
                    make.convolution(&format!("{name}.conv2"), to, to, 3)?;
                    if from != to {
                        make.convolution(&format!("{name}.shortcut"), from, to, 1)?;
                    }
                    from = to;
                }
                (from, 3)
            }
        };
        let halved = |size: usize| (0..halvings).fold(size, |size, _| size.div_ceil(2));
        let features = channels * halved(shape.height) * halved(shape.width);
        make.linear("head1", features, HIDDEN)?;
        make.linear("head2", HIDDEN, embedding)?;
        Ok(Self {
            kind,
            device: device.clone(),
            weights: make.weights,
        })
    }

    /// The same weights in variables of their own.
    ///
    /// # Errors
    /// Where the device fails; never on the CPU.
    pub fn copied(&self) -> Result<Self> {
        let copy = |(name, weight): (&String, &Var)| {
            Ok((name.clone(), Var::from_tensor(&weight.copy()?)?))
        };
        Ok(Self {
            kind: self.kind,
            device: self.device.clone(),
            weights: self.weights.iter().map(copy).collect::<Result<_>>()?,
        })
    }

    /// The weights, by name.
    #[must_use]
    pub fn weights(&self) -> &BTreeMap<String, Var> {
        &self.weights
    }

    /// Moves every weight to `momentum` times itself plus the rest of `other`'s (MoCo, Equation 2).
    ///
    /// # Errors
    /// Where `other` is another encoder.
    pub fn follow(&self, other: &Self, momentum: f64) -> Result<()> {
        for (own, other) in self.weights.values().zip(other.weights.values()) {
            let rest = other.as_detached_tensor().affine(1.0 - momentum, 0.0)?;
            own.set(&(own.as_detached_tensor().affine(momentum, 0.0)? + rest)?)?;
        }
        Ok(())
    }

    /// The features [B, F] of images [B, C, H, W], which are copied to the encoder's device: the last map, flattened. (Pooled, it stayed ten
    /// points of accuracy lower on Fashion-MNIST.)
    ///
    /// # Errors
    /// Where the images have another shape than the encoder was made for.
    pub fn features(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let pass = Pass {
            weights: &self.weights,
            mode,
        };
        let images = &images.to_device(&self.device)?;
        let map = match self.kind {
            EncoderKind::Conv => {
                let x = pass.block(images, "conv1", 2, true)?;
                let x = pass.block(&x, "conv2", 2, true)?;
                pass.block(&x, "conv3", 2, true)?
            }
            EncoderKind::Resnet => {
                let mut x = pass.block(images, "stem", 2, true)?;
                for index in 0..STAGES.len() {
                    let name = format!("stage{}", index + 1);
                    let stride = if index == 0 { 1 } else { 2 };
                    let inner = pass.block(&x, &format!("{name}.conv1"), stride, true)?;
                    let inner = pass.block(&inner, &format!("{name}.conv2"), 1, false)?;
                    let shortcut = format!("{name}.shortcut");
                    if index > 0 {
                        x = pass.block(&x, &shortcut, stride, false)?;
                    }
                    x = (inner + x)?.relu()?;
                }
                x
            }
        };
        map.flatten_from(1)
    }

    /// The embeddings [B, d] of images, rows of norm 1.
    ///
    /// # Errors
    /// As for [`Encoder::features`].
    pub fn embed(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let pass = Pass {
            weights: &self.weights,
            mode,
        };
        let hidden = pass
            .linear(&self.features(images, mode)?, "head1")?
            .relu()?;
        let rows = pass.linear(&hidden, "head2")?;
        // The smallest normal number keeps a row of zeros from becoming NaN.
        let norms = (rows.sqr()?.sum_keepdim(1)? + f64::from(f32::MIN_POSITIVE))?.sqrt()?;
        rows.broadcast_div(&norms)
    }
}

/// Channels of the ResNet's stages; the stem has those of the first.
const STAGES: [usize; 3] = [32, 64, 128];

struct Initialiser<'a> {
    device: &'a Device,
    weights: BTreeMap<String, Var>,
    rng: ChaCha8Rng,
}

impl Initialiser<'_> {
    fn insert(&mut self, name: &str, part: &str, data: Vec<f32>, shape: &[usize]) -> Result<()> {
        let weight = Var::from_vec(data, shape, self.device)?;
        self.weights.insert(format!("{name}.{part}"), weight);
        Ok(())
    }

    /// Normal numbers by Box and Muller.
    fn normal(&mut self, count: usize, deviation: f64) -> Vec<f32> {
        let mut next = || {
            let radius = (-2.0 * (1.0 - self.rng.random::<f64>()).ln()).sqrt();
            let angle = std::f64::consts::TAU * self.rng.random::<f64>();
            (radius * angle.cos() * deviation) as f32
        };
        (0..count).map(|_| next()).collect()
    }

    /// A convolution without a bias and the group norm after it.
    fn convolution(&mut self, name: &str, from: usize, to: usize, kernel: usize) -> Result<()> {
        let fan_in = from * kernel * kernel;
        let filters = self.normal(to * fan_in, (2.0 / fan_in as f64).sqrt());
        self.insert(name, "filters", filters, &[to, from, kernel, kernel])?;
        self.insert(name, "scale", vec![1.0; to], &[to])?;
        self.insert(name, "shift", vec![0.0; to], &[to])
    }

    fn linear(&mut self, name: &str, from: usize, to: usize) -> Result<()> {
        let matrix = self.normal(from * to, (2.0 / from as f64).sqrt());
        self.insert(name, "matrix", matrix, &[from, to])?;
        self.insert(name, "bias", vec![0.0; to], &[to])
    }
}

#[derive(Clone, Copy)]
struct Pass<'a> {
    weights: &'a BTreeMap<String, Var>,
    mode: Mode,
}

impl Pass<'_> {
    fn weight(self, name: &str, part: &str) -> Tensor {
        let weight = &self.weights[&format!("{name}.{part}")];
        match self.mode {
            Mode::Training => weight.as_tensor().clone(),
            Mode::Inference => weight.as_detached_tensor(),
        }
    }

    /// Convolution, group norm and, if asked for, ReLU.
    fn block(self, x: &Tensor, name: &str, stride: usize, relu: bool) -> Result<Tensor> {
        let filters = self.weight(name, "filters");
        let padding = filters.dim(2)? / 2;
        let x = ops::conv2d(x, &filters, stride, padding)?;
        ops::group_norm(
            &x,
            &self.weight(name, "scale"),
            &self.weight(name, "shift"),
            GROUPS,
            relu,
        )
    }

    fn linear(self, x: &Tensor, name: &str) -> Result<Tensor> {
        x.matmul(&self.weight(name, "matrix"))?
            .broadcast_add(&self.weight(name, "bias"))
    }
}
