//! AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019) and its learning rate.
//!
//! The moments are plain numbers, not tensors: gradients can hold the graph that made them, and
//! moments made from them would keep every step's alive.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// First and second moment of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// The running mean of the gradient.
    pub first: Vec<f32>,
    /// The running mean of its square.
    pub second: Vec<f32>,
}

/// The optimiser's state: the moments of each weight, by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AdamW {
    /// The moments; a weight that is not here has had no gradient yet.
    pub moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// Moves `weights` against their gradients; `step` counts from 0. The decay is for matrices and
    /// filters, not for biases, scales and shifts.
    ///
    /// # Errors
    /// Where a gradient's shape is not its weight's.
    pub fn step(
        &mut self,
        weights: &BTreeMap<String, Var>,
        gradients: &GradStore,
        step: u64,
        rate: f64,
        decay: f64,
    ) -> Result<()> {
        let count = (step + 1) as f64;
        let unbias_1 = 1.0 - BETA_1.powf(count);
        let unbias_2 = 1.0 - BETA_2.powf(count);
        for (name, weight) in weights {
            let Some(gradient) = gradients.get(weight) else {
                continue;
            };
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            let mut values = weight
                .as_detached_tensor()
                .flatten_all()?
                .to_vec1::<f32>()?;
            let moments = self.moments.entry(name.clone()).or_insert_with(|| {
                let zeros = vec![0.0; values.len()];
                Moments {
                    first: zeros.clone(),
                    second: zeros,
                }
            });
            let keep = (1.0 - if weight.rank() > 1 { rate * decay } else { 0.0 }) as f32;
            let (beta_1, beta_2) = (BETA_1 as f32, BETA_2 as f32);
            let scale = (rate / unbias_1) as f32;
            let (inverse, epsilon) = ((1.0 / unbias_2) as f32, EPSILON as f32);
            let moments = moments.first.iter_mut().zip(&mut moments.second);
            for ((value, &g), (first, second)) in values.iter_mut().zip(&gradient).zip(moments) {
                *first = beta_1 * *first + (1.0 - beta_1) * g;
                *second = beta_2 * *second + (1.0 - beta_2) * g * g;
                *value = *value * keep - scale * *first / ((*second * inverse).sqrt() + epsilon);
            }
            weight.set(&Tensor::from_vec(values, weight.shape(), weight.device())?)?;
        }
        Ok(())
    }
}

/// The learning rate of `step` (from 0) of `steps`: linear to `highest` over `warm_up` steps, then a
/// half cosine to 0.
#[must_use]
pub fn learning_rate(step: u64, steps: u64, warm_up: u64, highest: f64) -> f64 {
    if step < warm_up {
        return highest * (step + 1) as f64 / warm_up as f64;
    }
    let progress = (step - warm_up) as f64 / (steps.saturating_sub(warm_up)).max(1) as f64;
    highest * 0.5 * (1.0 + (PI * progress).cos())
}
