//! The loss in any autograd, without a custom function: the surrogate trick, on plain arrays.
//!
//! hardmix gives the loss L and g = dL/dq, the gradient with respect to the queries. An autograd only
//! has to carry g on into the encoder. With
//!
//! ```text
//! s     = Σ (q · detach(g))        a product and a sum that every autograd knows
//! total = L + s − detach(s)        L's value, since the two s cancel
//! ```
//!
//! the total's value is the loss, and its gradient with respect to q is g exactly: L is a constant to
//! the autograd, s is linear in q with coefficients g, and the detached s is a constant again. Scaling
//! the total, adding other losses and accumulating gradients all work as with any other tensor.
//!
//! In tch (`queries`, `keys` contiguous f32 on the CPU; `step`, `queue`, `draws` as below):
//!
//! ```text
//! let output = step.run(&Batch::new(&q, &k, dim)?, &queue, &draws)?;
//! let g = Tensor::from_slice(&output.grad_queries).view_as(&queries);
//! let s = (&queries * g).sum(Kind::Float);
//! let total = &s - s.detach() + output.loss()? as f64;
//! total.backward();
//! ```
//!
//! In burn:
//!
//! ```text
//! let g = Tensor::from_data(TensorData::new(output.grad_queries, [batch, dim]), &device);
//! let s = (queries * g).sum();
//! let total = s.clone() - s.detach() + output.loss()?;
//! let gradients = total.backward();
//! ```
//!
//! Here the "autograd" is a dual number in one direction of the weights, and the claim is tried:
//! the derivative of `total` is that of the loss itself, by central differences.
//!
//! ```sh
//! cargo run --release -p hardmix --example any_autograd
//! ```

use std::ops::{Add, Mul, Sub};

use hardmix::{Batch, Config, DType, Draws, Queue, Result, cpu};

/// A value and its derivative: the smallest autograd there is.
#[derive(Clone, Copy)]
struct Dual {
    value: f64,
    derivative: f64,
}

impl Dual {
    fn constant(value: f64) -> Self {
        let derivative = 0.0;
        Self { value, derivative }
    }

    fn detach(self) -> Self {
        Self::constant(self.value)
    }
}

impl Add for Dual {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            value: self.value + other.value,
            derivative: self.derivative + other.derivative,
        }
    }
}

impl Sub for Dual {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self + other * Self::constant(-1.0)
    }
}

impl Mul for Dual {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self {
            value: self.value * other.value,
            derivative: self.value * other.derivative + self.derivative * other.value,
        }
    }
}

const BATCH: usize = 8;
const DIM: usize = 16;

fn main() -> Result<()> {
    let queue = Queue::random(256, DIM, DType::F32, 0)?;
    let images = Queue::random(BATCH, DIM, DType::F32, 1)?.rows().to_f32();
    let keys = Queue::random(BATCH, DIM, DType::F32, 2)?.rows().to_f32();
    let direction = Queue::random(1, DIM, DType::F32, 3)?.rows().to_f32();
    // So that the loss is smooth and a difference means something: all rows are listed, since the loss
    // jumps where another row becomes one of the hardest, and only pairs are mixed, since the gradient
    // takes query-mixed negatives for constants.
    let mut step = cpu::Step::new(Config::mochi(256, 16, 0)?);
    let draws = Draws::seeded(42, 0)?;

    // An encoder with one weight a feature, each 1 + t·direction: queries that depend on t.
    let encode = |t: f64| -> Vec<Dual> {
        let features = images.iter().enumerate();
        features
            .map(|(at, &x)| {
                let slope = f64::from(direction[at % DIM]);
                let weight = Dual {
                    value: 1.0 + t * slope,
                    derivative: slope,
                };
                weight * Dual::constant(f64::from(x))
            })
            .collect()
    };
    let mut run = |queries: &[Dual]| {
        let queries: Vec<f32> = queries.iter().map(|q| q.value as f32).collect();
        step.run(&Batch::new(&queries, &keys, DIM)?, &queue, &draws)
    };

    let queries = encode(0.0);
    let output = run(&queries)?;
    let s = queries
        .iter()
        .zip(&output.grad_queries)
        .map(|(&q, &g)| q * Dual::constant(f64::from(g)))
        .fold(Dual::constant(0.0), Add::add);
    let total = Dual::constant(f64::from(output.loss()?)) + s - s.detach();

    // The same slope without any gradient. The step's loss is f32: its rounding, 2⁻²⁴ of some 5, over
    // this width is 3e-5, and so is what is left of the third derivative.
    let width = 1e-2;
    let (above, below) = (run(&encode(width))?.loss()?, run(&encode(-width))?.loss()?);
    let slope = (f64::from(above) - f64::from(below)) / (2.0 * width);

    println!(
        "loss {:.6}, slope by the surrogate {:.6}, by differences {slope:.6}",
        total.value, total.derivative
    );
    assert!((total.value - f64::from(output.loss()?)).abs() < 1e-12);
    assert!((total.derivative - slope).abs() < 1e-3 * slope.abs().max(0.1));
    Ok(())
}
