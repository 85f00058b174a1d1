//! AdamW (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019) and its learning rate.
//!
//! Gradients can hold the graph that made them, and moments made from them would keep every step's
//! alive: they are made from detached ones.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// First and second moment of one weight, of its shape and on its device.
#[derive(Debug, Clone)]
pub struct Moments {
    /// The running mean of the gradient.
    pub first: Tensor,
    /// The running mean of its square.
    pub second: Tensor,
}

/// The optimiser's state: the moments of each weight, by name.
#[derive(Debug, Clone, Default)]
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
            if !self.moments.contains_key(name) {
                let zeros = weight.as_detached_tensor().zeros_like()?;
                let moments = Moments {
                    first: zeros.clone(),
                    second: zeros,
                };
                self.moments.insert(name.clone(), moments);
            }
            let moments = self.moments.get_mut(name).expect("inserted above");
            let update = Update {
                keep: 1.0 - if weight.rank() > 1 { rate * decay } else { 0.0 },
                scale: rate / unbias_1,
                inverse: 1.0 / unbias_2,
            };
            if weight.device().is_cpu() {
                update.on_cpu(weight, &gradient.detach(), moments)?;
            } else {
                update.composed(weight, &gradient.detach(), moments)?;
            }
        }
        Ok(())
    }
}

/// What a step does to every number of a weight.
struct Update {
    keep: f64,
    scale: f64,
    inverse: f64,
}

impl Update {
    /// In one pass, on the CPU.
    fn on_cpu(&self, weight: &Var, gradient: &Tensor, moments: &mut Moments) -> Result<()> {
        let numbers = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let mut values = numbers(&weight.as_detached_tensor())?;
        let (mut first, mut second) = (numbers(&moments.first)?, numbers(&moments.second)?);
        let (keep, scale, inverse) = (self.keep as f32, self.scale as f32, self.inverse as f32);
        let (beta_1, beta_2, epsilon) = (BETA_1 as f32, BETA_2 as f32, EPSILON as f32);
        let pairs = first.iter_mut().zip(&mut second);
        for ((value, g), (first, second)) in values.iter_mut().zip(numbers(gradient)?).zip(pairs) {
            *first = beta_1 * *first + (1.0 - beta_1) * g;
            *second = beta_2 * *second + (1.0 - beta_2) * g * g;
            *value = *value * keep - scale * *first / ((*second * inverse).sqrt() + epsilon);
        }
        let tensor = |values| Tensor::from_vec(values, weight.shape(), weight.device());
        moments.first = tensor(first)?;
        moments.second = tensor(second)?;
        weight.set(&tensor(values)?)
    }

    /// The same from candle's own operations, for any device.
    fn composed(&self, weight: &Var, gradient: &Tensor, moments: &mut Moments) -> Result<()> {
        moments.first = ((&moments.first * BETA_1)? + (gradient * (1.0 - BETA_1))?)?;
        moments.second = ((&moments.second * BETA_2)? + (gradient.sqr()? * (1.0 - BETA_2))?)?;
        let root = ((&moments.second * self.inverse)?.sqrt()? + EPSILON)?;
        let change = ((&moments.first * self.scale)? / root)?;
        weight.set(&((weight.as_detached_tensor() * self.keep)? - change)?)
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn candle_s_own_operations_make_the_same_update() -> Result<()> {
        let numbers = |seed: f32| (0..35).map(move |i| (i as f32 * seed).sin());
        let tensor = |seed| Tensor::from_iter(numbers(seed), &Device::Cpu)?.reshape((5, 7));
        let update = Update {
            keep: 0.9996,
            scale: 0.04,
            inverse: 1000.0,
        };
        let run = |composed: bool| -> Result<[Tensor; 3]> {
            let weight = Var::from_tensor(&tensor(0.3)?)?;
            let mut moments = Moments {
                first: tensor(0.7)?,
                second: tensor(1.1)?.abs()?,
            };
            let gradient = tensor(1.7)?;
            if composed {
                update.composed(&weight, &gradient, &mut moments)?;
            } else {
                update.on_cpu(&weight, &gradient, &mut moments)?;
            }
            Ok([weight.as_detached_tensor(), moments.first, moments.second])
        };
        for (own, composed) in run(false)?.iter().zip(run(true)?) {
            let error = (own - composed)?.abs()?.max_all()?.to_scalar::<f32>()?;
            // A few roundings of numbers below 1.
            assert!(error < 4.0 * f32::EPSILON, "{error:e}");
        }
        Ok(())
    }
}
