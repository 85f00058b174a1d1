//! What the benches measure on: a batch and a queue, of random or of real features.

#![allow(dead_code)] // Each bench uses its part.

use std::path::Path;

use hardmix::draws::philox4x32_10;
use hardmix::{Batch, Config, DType, Queue, Rows};
use rayon::prelude::*;
use safetensors::SafeTensors;

/// d of the paper's settings, and of the real features.
pub const DIM: usize = 128;

/// Where the rows come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Features {
    /// Uniform on the sphere: logits hardly differ, and the hardest are no one's neighbours.
    Random,
    /// Clustered and of low dimension, as a trained encoder's: the image features in tests/data,
    /// each row repeated with noise of its own until the queue is full.
    Real,
}

impl Features {
    pub const ALL: [Self; 2] = [Self::Random, Self::Real];

    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Real => "real",
        }
    }
}

#[derive(Debug)]
pub struct Input {
    pub features: Features,
    pub queries: Vec<f32>,
    pub keys: Vec<f32>,
    pub queue: Queue,
    pub dim: usize,
}

impl Input {
    /// `rows` queries with their keys against a queue of `capacity` rows; always the same ones.
    pub fn new(features: Features, capacity: usize, rows: usize) -> Self {
        Self::with_dim(features, capacity, rows, DIM)
    }

    /// [`Input::new`] of another dimension; real features have [`DIM`].
    pub fn with_dim(features: Features, capacity: usize, rows: usize, dim: usize) -> Self {
        let (queries, keys, queue) = match features {
            Features::Random => {
                let random = |count, seed| {
                    Queue::random(count, dim, DType::F32, seed).expect("positive sizes")
                };
                let queries = random(rows, 1).rows().to_f32();
                let keys = random(rows, 2).rows().to_f32();
                (queries, keys, random(capacity, 3))
            }
            Features::Real => {
                assert_eq!(dim, DIM, "real features");
                let (train, test) = real_features();
                let queue = Rows::F32(noisy(&train, capacity, 3));
                let queue = Queue::from_rows(queue, DIM).expect("finite rows");
                (noisy(&test, rows, 1), noisy(&test, rows, 2), queue)
            }
        };
        Self {
            features,
            queries,
            keys,
            queue,
            dim,
        }
    }

    pub fn batch(&self) -> Batch<'_> {
        Batch::new(&self.queries, &self.keys, self.dim).expect("as many keys as queries")
    }
}

/// The features of training and of test images.
fn real_features() -> (Vec<f32>, Vec<f32>) {
    const TRAIN_ROWS: usize = 4000;
    // Cargo runs benches at the root of the package, and so do those who carry them elsewhere.
    let path = Path::new("tests/data/fashion_features.safetensors");
    let file = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tensors = SafeTensors::deserialize(&file).expect("a safetensors file");
    let features = tensors.tensor("features").expect("a tensor `features`");
    assert_eq!(features.shape()[1], DIM);
    let mut rows = features
        .data()
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")));
    let train = rows.by_ref().take(TRAIN_ROWS * DIM).collect();
    (train, rows.collect())
}

/// `count` unit rows: those of `rows` in turn, each with noise of its own of about 0.3 in norm, so
/// that copies of an image lie at a cosine of about 0.92, as its augmented views would.
fn noisy(rows: &[f32], count: usize, stream: u32) -> Vec<f32> {
    // A uniform element on [−a, a] has the variance a²/3.
    let spread = 0.3 * (3.0 / DIM as f32).sqrt();
    let mut out = vec![0.0; count * DIM];
    out.par_chunks_exact_mut(DIM)
        .enumerate()
        .for_each(|(index, out)| {
            let row = &rows[index * DIM % rows.len()..][..DIM];
            for (at, (four, own)) in out.chunks_mut(4).zip(row.chunks(4)).enumerate() {
                let words = philox4x32_10([at as u32, index as u32, stream, 0], [0, 0]);
                for ((x, own), word) in four.iter_mut().zip(own).zip(words) {
                    *x = own + spread * (word as f32 / 2.0f32.powi(31) - 1.0);
                }
            }
            let norm = out.iter().map(|x| x * x).sum::<f32>().sqrt();
            out.iter_mut().for_each(|x| *x /= norm);
        });
    out
}

/// What is timed: plain MoCo, and MoCHi with every setting of the paper.
pub fn settings() -> Vec<(&'static str, Config)> {
    let paper = Config::PAPER.iter().map(|(name, config)| (*name, config()));
    std::iter::once(("MoCo", Config::moco()))
        .chain(paper)
        .collect()
}

/// The two matrix products of a step and nothing else, with the library's crate and blocking: the
/// floor that a step is measured against.
pub fn products(input: &Input) {
    const BLOCK: usize = 64;
    const TILE: usize = 512;
    const SPLIT: usize = 8192;
    let Rows::F32(queue) = input.queue.rows() else {
        unreachable!("the queue holds f32");
    };
    for block in input.queries.chunks(BLOCK * DIM) {
        let width = (block.len() / DIM).next_multiple_of(16);
        let mut queries = vec![0.0f32; width * DIM];
        for (lane, query) in block.chunks_exact(DIM).enumerate() {
            for (k, x) in query.iter().enumerate() {
                queries[k * width + lane] = *x;
            }
        }
        queue.par_chunks(SPLIT * DIM).for_each(|split| {
            let mut logits = vec![0.0f32; TILE * width];
            let mut sums = vec![0.0f32; DIM * width];
            for tile in split.chunks(TILE * DIM) {
                let rows = tile.len() / DIM;
                // [row][lane] = tile · queries, then [k][lane] += tileᵀ · logits.
                product(
                    false,
                    (width, rows, DIM),
                    &queries,
                    tile,
                    (DIM, 1),
                    &mut logits,
                );
                product(true, (width, DIM, rows), &logits, tile, (1, DIM), &mut sums);
            }
            std::hint::black_box(&sums);
        });
    }
}

/// C[n][m] = (or +=) Σ_k a[k][m]·b at n·`b_strides.0` + k·`b_strides.1`.
fn product(
    add: bool,
    (m, n, k): (usize, usize, usize),
    a: &[f32],
    b: &[f32],
    b_strides: (usize, usize),
    c: &mut [f32],
) {
    assert!(a.len() >= k * m && c.len() >= n * m);
    assert!(b.len() > (n - 1) * b_strides.0 + (k - 1) * b_strides.1);
    // SAFETY: the largest index of each operand was asserted to lie inside it, and `c` is a unique
    // borrow of initialised elements.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            m as isize,
            1,
            add,
            a.as_ptr(),
            m as isize,
            1,
            b.as_ptr(),
            b_strides.0 as isize,
            b_strides.1 as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
