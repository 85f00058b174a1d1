//! The method in f64, written from its formulas and computed the naive way: all logits, a full
//! sort, every synthetic negative materialised, the gradient term by term.

use hardmix::{Config, GivenDraws, NO_LABEL, NO_ROW, QueryGradient, Queue, Reduction};

use super::cases::Case;

/// Below this norm a synthetic negative is zero, and so are its logit and gradient.
const VANISHING: f64 = 1e-12;

/// What a step is given, in f64, row by row.
#[derive(Debug, Clone)]
pub struct Problem {
    pub queries: Vec<Vec<f64>>,
    pub keys: Vec<Vec<f64>>,
    pub queue: Vec<Vec<f64>>,
    pub query_labels: Option<Vec<u32>>,
    pub queue_labels: Option<Vec<u32>>,
    pub temperature: f64,
    pub hardest: usize,
    pub mixed: usize,
    pub query_mixed: usize,
    pub attached: bool,
    pub oracle: bool,
    pub reduction: Reduction,
}

/// One negative mixed from two rows, or from the query and a row.
#[derive(Debug, Clone)]
pub struct Synthetic {
    /// h or h′.
    pub feature: Vec<f64>,
    /// q·h.
    pub logit: f64,
    /// Its probability in the softmax of the row.
    pub probability: f64,
    /// (weight of the first + weight of the second, each times its norm) / r: how much the
    /// normalisation magnifies rounding errors. 1 where nothing cancels, 0 where all is zero.
    pub amplification: f64,
    /// ∂(q·h)/∂q.
    pub derivative: Vec<f64>,
}

/// What a step computes of one query.
#[derive(Debug, Clone)]
pub struct Row {
    /// l⁺.
    pub positive: f64,
    /// l_j of every queue row, −∞ where masked.
    pub logits: Vec<f64>,
    /// Ascending, not padded.
    pub hardest: Vec<usize>,
    pub mixed: Vec<Synthetic>,
    pub query_mixed: Vec<Synthetic>,
    pub loss: f64,
    pub log_sum_exp: f64,
    pub positive_probability: f64,
    /// 1 − p⁺, summed over the negatives.
    pub negative_probability: f64,
    /// Of this row's own loss.
    pub grad_query: Vec<f64>,
    pub grad_key: Vec<f64>,
    pub hit: bool,
    pub hit_with_synthetic: bool,
}

/// The figures about a batch.
#[derive(Debug, Clone)]
pub struct Figures {
    pub proxy_accuracy: f64,
    pub proxy_accuracy_with_synthetic: f64,
    pub alignment: f64,
    pub uniformity: Option<f64>,
    pub matching_probability: Vec<f64>,
    pub same_label_share: Option<f64>,
}

/// One row's draws.
#[derive(Debug, Clone, Default)]
pub struct RowDraws {
    pub pairs: Vec<(u32, u32, f64)>,
    pub picks: Vec<(u32, f64)>,
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

pub fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

fn add(to: &mut [f64], weight: f64, row: &[f64]) {
    to.iter_mut().zip(row).for_each(|(t, x)| *t += weight * x);
}

fn rows_of(data: &[f32], dim: usize) -> Vec<Vec<f64>> {
    data.chunks_exact(dim)
        .map(|row| row.iter().map(|&x| f64::from(x)).collect())
        .collect()
}

impl Problem {
    pub fn new(case: &Case) -> Self {
        Self::of(
            &case.config,
            &case.queries,
            &case.keys,
            &case.queue,
            case.query_labels.clone(),
        )
    }

    pub fn of(
        config: &Config,
        queries: &[f32],
        keys: &[f32],
        queue: &Queue,
        query_labels: Option<Vec<u32>>,
    ) -> Self {
        let dim = queue.dim();
        Self {
            queries: rows_of(queries, dim),
            keys: rows_of(keys, dim),
            queue: rows_of(&queue.rows().to_f32(), dim),
            query_labels,
            queue_labels: queue.labels().map(<[u32]>::to_vec),
            temperature: f64::from(config.temperature()),
            hardest: config.hardest(),
            mixed: config.mixed(),
            query_mixed: config.query_mixed(),
            attached: config.query_gradient() == QueryGradient::Attached,
            oracle: config.oracle(),
            reduction: config.reduction(),
        }
    }

    /// Whether queue row `j` is left out of query `b`'s negatives.
    pub fn masked(&self, b: usize, j: usize) -> bool {
        self.oracle && self.same_label(b, j) == Some(true)
    }

    /// Whether query and queue row share a label; `None` where one of them has none.
    fn same_label(&self, b: usize, j: usize) -> Option<bool> {
        let query = self.query_labels.as_ref()?[b];
        let row = self.queue_labels.as_ref()?[j];
        (query != NO_LABEL && row != NO_LABEL).then_some(query == row)
    }

    /// What the gradient of a row's loss is multiplied by.
    pub fn scale(&self) -> f64 {
        match self.reduction {
            Reduction::Mean => 1.0 / self.queries.len() as f64,
            Reduction::Sum | Reduction::None => 1.0,
        }
    }

    /// The reduced loss ([`Reduction::None`] reports the sum).
    pub fn reduce(&self, rows: &[Row]) -> f64 {
        let sum: f64 = rows.iter().map(|row| row.loss).sum();
        match self.reduction {
            Reduction::Mean => sum / rows.len() as f64,
            Reduction::Sum | Reduction::None => sum,
        }
    }

    /// The logits of query `b`, −∞ where masked.
    pub fn logits(&self, b: usize) -> Vec<f64> {
        (0..self.queue.len())
            .map(|j| {
                if self.masked(b, j) {
                    f64::NEG_INFINITY
                } else {
                    dot(&self.queries[b], &self.queue[j])
                }
            })
            .collect()
    }

    /// Row `b` with these draws, mixing these `hardest` (its own where `None`).
    pub fn row(&self, b: usize, draws: &RowDraws, hardest: Option<&[usize]>) -> Row {
        let (query, key) = (&self.queries[b], &self.keys[b]);
        let logits = self.logits(b);
        let hardest = match hardest {
            Some(given) => given.to_vec(),
            None => top(&logits, self.hardest),
        };
        let makes = !hardest.is_empty();
        let pairs = if makes { &draws.pairs[..] } else { &[] };
        let picks = if makes { &draws.picks[..] } else { &[] };
        let queue_row = |position: u32| &self.queue[hardest[position as usize]];

        let mut mixed: Vec<Synthetic> = pairs
            .iter()
            .map(|&(i, j, alpha)| mix(query, alpha, queue_row(i), queue_row(j)))
            .collect();
        let mut query_mixed: Vec<Synthetic> = picks
            .iter()
            .map(|&(pick, beta)| query_mix(query, beta, queue_row(pick), self.attached))
            .collect();

        let positive = dot(query, key);
        let tau = self.temperature;
        let maximum = logits
            .iter()
            .copied()
            .chain(mixed.iter().chain(&query_mixed).map(|h| h.logit))
            .fold(positive, f64::max);
        let exponential = |logit: f64| ((logit - maximum) / tau).exp();
        let exponentials: Vec<f64> = logits.iter().map(|&l| exponential(l)).collect();
        for h in mixed.iter_mut().chain(&mut query_mixed) {
            h.probability = exponential(h.logit);
        }
        let negatives: f64 = exponentials.iter().sum::<f64>()
            + mixed
                .iter()
                .chain(&query_mixed)
                .map(|h| h.probability)
                .sum::<f64>();
        let own = exponential(positive);
        let total = own + negatives;
        for h in mixed.iter_mut().chain(&mut query_mixed) {
            h.probability /= total;
        }

        let negative_probability = negatives / total;
        let mut grad_query = vec![0.0; query.len()];
        add(&mut grad_query, -negative_probability, key);
        for (e, row) in exponentials.iter().zip(&self.queue) {
            add(&mut grad_query, e / total, row);
        }
        for h in mixed.iter().chain(&query_mixed) {
            add(&mut grad_query, h.probability, &h.derivative);
        }
        grad_query.iter_mut().for_each(|g| *g /= tau);
        let grad_key = query
            .iter()
            .map(|q| -negative_probability * q / tau)
            .collect();

        let hit = logits.iter().all(|&l| positive > l);
        let over_synthetic = mixed.iter().chain(&query_mixed).all(|h| positive > h.logit);
        Row {
            positive,
            loss: if negatives < own {
                (negatives / own).ln_1p()
            } else {
                (maximum - positive) / tau + total.ln()
            },
            log_sum_exp: maximum / tau + total.ln(),
            positive_probability: own / total,
            negative_probability,
            grad_query,
            grad_key,
            hit,
            hit_with_synthetic: hit && over_synthetic,
            logits,
            hardest,
            mixed,
            query_mixed,
        }
    }

    pub fn figures(&self, rows: &[Row]) -> Figures {
        let share = |of: &dyn Fn(&Row) -> bool| {
            rows.iter().filter(|row| of(row)).count() as f64 / rows.len() as f64
        };
        let mean_positive = rows.iter().map(|row| row.positive).sum::<f64>() / rows.len() as f64;
        let exponents: Vec<f64> = rows
            .iter()
            .flat_map(|row| &row.logits)
            .filter(|&&l| l != f64::NEG_INFINITY)
            .map(|l| -2.0 * (2.0 - 2.0 * l))
            .collect();
        let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let shifted: f64 = exponents.iter().map(|x| (x - largest).exp()).sum();

        let (mut same, mut known) = (0u64, 0u64);
        for (b, row) in rows.iter().enumerate() {
            for &j in &row.hardest {
                if let Some(equal) = self.same_label(b, j) {
                    known += 1;
                    same += u64::from(equal);
                }
            }
        }
        Figures {
            proxy_accuracy: share(&|row| row.hit),
            proxy_accuracy_with_synthetic: share(&|row| row.hit_with_synthetic),
            alignment: 2.0 - 2.0 * mean_positive,
            uniformity: (!exponents.is_empty())
                .then(|| largest + (shifted / exponents.len() as f64).ln()),
            matching_probability: self.matching_probability(rows),
            same_label_share: (known > 0).then(|| same as f64 / known as f64),
        }
    }

    fn matching_probability(&self, rows: &[Row]) -> Vec<f64> {
        let mut sums = vec![0.0; self.hardest];
        let mut counts = vec![0u32; self.hardest];
        for row in rows {
            let mut sorted = row.logits.clone();
            sorted.retain(|&l| l != f64::NEG_INFINITY);
            sorted.sort_by(|a, b| b.total_cmp(a));
            let maximum = sorted.iter().copied().fold(row.positive, f64::max);
            let e = |l: f64| ((l - maximum) / self.temperature).exp();
            let total: f64 = e(row.positive) + sorted.iter().map(|&l| e(l)).sum::<f64>();
            for (rank, &l) in sorted.iter().take(self.hardest).enumerate() {
                sums[rank] += e(l) / total;
                counts[rank] += 1;
            }
        }
        sums.iter()
            .zip(&counts)
            .map(|(sum, &n)| if n > 0 { sum / f64::from(n) } else { 0.0 })
            .collect()
    }
}

/// The `count` largest that are not −∞, ties to the lower index, as ascending indices.
pub fn top(logits: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len())
        .filter(|&j| logits[j] != f64::NEG_INFINITY)
        .collect();
    // partial_cmp, so that −0 equals +0; the sort is stable, so that ties stay in index order.
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).expect("no NaN"));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// The direction of `a·x + b·y`, its norm and how much of the two has cancelled.
fn blend(a: f64, x: &[f64], b: f64, y: &[f64]) -> (Vec<f64>, f64, f64) {
    let mut sum: Vec<f64> = x.iter().map(|v| a * v).collect();
    add(&mut sum, b, y);
    let r = norm(&sum);
    let parts = a * norm(x) + b * norm(y);
    let amplification = if parts == 0.0 { 0.0 } else { parts / r };
    if r < VANISHING {
        return (vec![0.0; sum.len()], 0.0, amplification);
    }
    sum.iter_mut().for_each(|v| *v /= r);
    (sum, r, amplification)
}

/// h = (α n_i + (1−α) n_j)/r.
fn mix(query: &[f64], alpha: f64, first: &[f64], second: &[f64]) -> Synthetic {
    let (feature, _, amplification) = blend(alpha, first, 1.0 - alpha, second);
    Synthetic {
        logit: dot(query, &feature),
        probability: 0.0,
        amplification,
        derivative: feature.clone(),
        feature,
    }
}

/// h′ = (β q + (1−β) n)/r.
fn query_mix(query: &[f64], beta: f64, row: &[f64], attached: bool) -> Synthetic {
    let (feature, r, amplification) = blend(beta, query, 1.0 - beta, row);
    let logit = dot(query, &feature);
    let derivative = if attached && r > 0.0 {
        let mut derivative = vec![0.0; query.len()];
        add(
            &mut derivative,
            (1.0 - beta) / r * (1.0 - beta * logit / r),
            row,
        );
        add(&mut derivative, beta / r * (2.0 - beta * logit / r), query);
        derivative
    } else {
        feature.clone()
    };
    Synthetic {
        logit,
        probability: 0.0,
        amplification,
        derivative,
        feature,
    }
}

/// Given draws, row by row.
pub fn rows_of_draws(given: &GivenDraws, rows: usize) -> Vec<RowDraws> {
    let width = given.alpha.len() / rows;
    let query_width = given.beta.len() / rows;
    (0..rows)
        .map(|b| RowDraws {
            pairs: (b * width..(b + 1) * width)
                .map(|at| (given.first[at], given.second[at], given.alpha[at].into()))
                .collect(),
            picks: (b * query_width..(b + 1) * query_width)
                .map(|at| (given.pick[at], given.beta[at].into()))
                .collect(),
        })
        .collect()
}

/// Philox4x32-10, from its paper.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let wide = |m: u64, x: u32| ((m * u64::from(x)) >> 32, (m * u64::from(x)) & 0xffff_ffff);
        let (high_0, low_0) = wide(0xD251_1F53, counter[0]);
        let (high_1, low_1) = wide(0xCD9E_8D57, counter[2]);
        counter = [
            high_1 as u32 ^ counter[1] ^ key[0],
            low_1 as u32,
            high_0 as u32 ^ counter[3] ^ key[1],
            low_0 as u32,
        ];
        key = [
            key[0].wrapping_add(0x9E37_79B9),
            key[1].wrapping_add(0xBB67_AE85),
        ];
    }
    counter
}

/// The draws of a global row over `count` hardest, from the seed.
pub fn seeded_draws(problem: &Problem, seed: u64, step: u64, row: u32, count: usize) -> RowDraws {
    let words = |index: usize, tag: u32| {
        philox(
            [
                index as u32,
                row,
                (step % (1 << 32)) as u32,
                (step >> 32) as u32 | tag << 31,
            ],
            [(seed % (1 << 32)) as u32, (seed >> 32) as u32],
        )
    };
    let position = |word: u32| ((u64::from(word) * count as u64) >> 32) as u32;
    RowDraws {
        pairs: (0..problem.mixed)
            .map(|index| {
                let w = words(index, 0);
                let alpha = f64::from(w[2] >> 8) * 2f64.powi(-24);
                (position(w[0]), position(w[1]), alpha)
            })
            .collect(),
        picks: (0..problem.query_mixed)
            .map(|index| {
                let w = words(index, 1);
                (position(w[0]), f64::from(w[2] >> 8) * 2f64.powi(-25))
            })
            .collect(),
    }
}

/// A row of `hardest` without its padding.
pub fn unpadded(hardest: &[u32]) -> Vec<usize> {
    hardest
        .iter()
        .take_while(|&&j| j != NO_ROW)
        .map(|&j| j as usize)
        .collect()
}
