//! The hardest rows: a property oracle, bitwise, on hostile logits and adversarial queue orders.

mod common;

use common::cases::{gaussian, small_integers, unit_rows};
use common::oracle::{boundary_gap, exact, within};
use common::reference::{Problem, norm};
use common::{Backend, devices, properties};
use hardmix::cpu::Ranked;
use hardmix::{Config, DType, Error, NO_LABEL, NO_ROW, Queue, Rows};
use proptest::prelude::*;

/// Row `b` of a list of [B, N].
fn row<T>(list: &[T], b: usize, hardest: usize) -> &[T] {
    &list[b * hardest..(b + 1) * hardest]
}

/// Checks shapes, counts, values and padding of `ranked`, and each row by the property oracle.
fn check(
    ranked: &Ranked,
    logits: &[Vec<f32>],
    hardest: usize,
    masked: impl Fn(usize, usize) -> bool,
    what: &str,
) {
    assert_eq!(ranked.hardest, hardest, "{what}");
    assert_eq!(ranked.indices.len(), logits.len() * hardest, "{what}");
    assert_eq!(ranked.logits.len(), logits.len() * hardest, "{what}");
    assert_eq!(ranked.counts.len(), logits.len(), "{what}");
    for (b, own) in logits.iter().enumerate() {
        let indices = row(&ranked.indices, b, hardest);
        if let Err(reason) = exact(own, |j| masked(b, j), hardest, indices) {
            panic!("{what}, row {b}: {reason}");
        }
        let count = ranked.counts[b] as usize;
        for (at, (&j, &value)) in indices
            .iter()
            .zip(row(&ranked.logits, b, hardest))
            .enumerate()
        {
            if at < count {
                assert_ne!(j, NO_ROW, "{what}, row {b}");
                // −0 and +0 are one value of an inner product.
                let same = value.to_bits() == own[j as usize].to_bits() || value == own[j as usize];
                assert!(same, "{what}, row {b}, index {j}: {value}");
            } else {
                assert_eq!((j, value), (NO_ROW, f32::NEG_INFINITY), "{what}, row {b}");
            }
        }
    }
}

/// Ranks one row of logits for several N; `rank_logits` gives the logits back as they came.
fn check_logits(backend: &dyn Backend, logits: &[f32], what: &str) {
    let capacity = logits.len();
    for hardest in [1, 2, 7, capacity / 3, capacity / 2, capacity - 1, capacity] {
        if hardest == 0 || hardest > capacity {
            continue;
        }
        // A second row, so that one row's state cannot leak into the next.
        let reversed: Vec<f32> = logits.iter().rev().copied().collect();
        let both = [logits, &reversed].concat();
        let ranked = backend
            .rank_logits(&both, capacity, hardest)
            .expect("no NaN");
        let rows = [logits.to_vec(), reversed];
        let what = format!("{}, {what}, N = {hardest} of {capacity}", backend.name());
        check(&ranked, &rows, hardest, |_, _| false, &what);
        for (b, own) in rows.iter().enumerate() {
            for (&j, value) in
                row(&ranked.indices, b, hardest)
                    .iter()
                    .zip(row(&ranked.logits, b, hardest))
            {
                assert_eq!(
                    value.to_bits(),
                    own[j as usize].to_bits(),
                    "{what}, as given"
                );
            }
        }
    }
}

/// Logits that selection algorithms have tripped over.
fn hostile(capacity: usize, rng: &mut fastrand::Rng) -> Vec<(&'static str, Vec<f32>)> {
    let normal = |rng: &mut fastrand::Rng| -> Vec<f32> {
        gaussian(rng, capacity)
            .into_iter()
            .map(|x| x as f32)
            .collect()
    };
    let mut sorted = normal(rng);
    sorted.sort_by(f32::total_cmp);
    let reversed: Vec<f32> = sorted.iter().rev().copied().collect();
    let eight = normal(rng)[..8.min(capacity)].to_vec();
    let mut spot = vec![0.25; capacity];
    spot[capacity / 2] = 9.0;
    let classes = normal(rng);
    let per_class = capacity.div_ceil(10);
    let from = |rng: &mut fastrand::Rng, values: &[f32]| -> Vec<f32> {
        (0..capacity)
            .map(|_| values[rng.usize(..values.len())])
            .collect()
    };
    vec![
        ("random", normal(rng)),
        ("all equal", vec![-0.75; capacity]),
        ("eight values", from(rng, &eight)),
        ("signed zeros", from(rng, &[0.0, -0.0])),
        (
            "signed zeros among others",
            from(rng, &[0.0, -0.0, 1e-45, -1e-45, 1.0]),
        ),
        (
            "infinities",
            from(
                rng,
                &[f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0],
            ),
        ),
        ("all −∞", vec![f32::NEG_INFINITY; capacity]),
        (
            "a tiny range",
            (0..capacity)
                .map(|_| f32::from_bits(1.0f32.to_bits() + rng.u32(..4)))
                .collect(),
        ),
        (
            "subnormal",
            (0..capacity)
                .map(|_| f32::from_bits(rng.u32(..1 << 23)))
                .collect(),
        ),
        (
            "subnormal of both signs",
            (0..capacity)
                .map(|_| f32::from_bits(rng.u32(..5) | rng.u32(..2) << 31))
                .collect(),
        ),
        ("one hot spot", spot),
        ("sorted", sorted),
        ("reversed", reversed),
        (
            "class-sorted",
            (0..capacity).map(|j| classes[j / per_class]).collect(),
        ),
        (
            "periodic",
            (0..capacity)
                .map(|j| classes[j % 16.min(capacity)])
                .collect(),
        ),
        (
            "all magnitudes",
            (0..capacity)
                .map(|_| f32::from_bits(rng.u32(..)))
                .map(|x| if x.is_nan() { 0.5 } else { x })
                .collect(),
        ),
    ]
}

#[test]
fn hostile_logits_are_ranked_exactly() {
    let rng = &mut fastrand::Rng::with_seed(1);
    for backend in devices() {
        for capacity in [1, 2, 3, 31, 64, 65, 257, 1000, 4096, 4097, 65_537] {
            if capacity > 5000 && backend.is_slow() {
                continue;
            }
            for (what, logits) in hostile(capacity, rng) {
                check_logits(backend.as_ref(), &logits, what);
            }
        }
    }
}

#[test]
fn random_logits_with_ties_are_ranked_exactly() {
    let logits = (1..400usize, 1..5usize, 0..3u32, any::<u64>(), 0.0..1.0f64);
    for backend in devices() {
        properties(
            if backend.is_slow() { 100 } else { 400 },
            logits.clone(),
            |(capacity, rows, grain, seed, share)| {
                let rng = &mut fastrand::Rng::with_seed(seed);
                let hardest = ((share * capacity as f64) as usize).max(1);
                let logits: Vec<Vec<f32>> = (0..rows)
                    .map(|_| match grain {
                        0 => unit_rows(rng, capacity, 1),
                        1 => small_integers(rng, capacity),
                        _ => (0..capacity).map(|_| rng.f32()).collect(),
                    })
                    .collect();
                let ranked = backend
                    .rank_logits(&logits.concat(), capacity, hardest)
                    .expect("no NaN");
                check(&ranked, &logits, hardest, |_, _| false, backend.name());
                Ok(())
            },
        );
    }
}

#[test]
fn nan_is_an_error_that_names_the_row() {
    for backend in devices() {
        for (bad, at) in [(0, 0), (1, 99), (2, 50), (2, 0)] {
            for sign in [f32::NAN, -f32::NAN] {
                let mut logits = vec![0.5; 300];
                logits[bad * 100 + at] = sign;
                // A later row too: the first is the one to name.
                logits[299] = f32::NAN;
                let error = backend.rank_logits(&logits, 100, 7).expect_err("NaN");
                assert_eq!(
                    error.to_string(),
                    format!("row {bad} of logits is not finite")
                );
            }
        }
    }
}

#[test]
fn no_hardest_and_all_hardest() {
    for backend in devices() {
        let none = backend.rank_logits(&[1.0, 2.0, 3.0, 4.0], 2, 0);
        assert_eq!(
            none.expect_err("N = 0").to_string(),
            "hardest is 0; expected at least 1"
        );
        let all = backend
            .rank_logits(&[1.0, 2.0, 4.0, 3.0], 2, 2)
            .expect("N = K");
        assert_eq!(all.indices, [0, 1, 0, 1]);
        assert_eq!(all.logits, [1.0, 2.0, 4.0, 3.0]);
        assert_eq!(all.counts, [2, 2]);
    }
}

/// Dot products that are exact in f32, in any order.
fn exact_logits(queries: &[f32], rows: &[f32], dim: usize) -> Vec<Vec<f32>> {
    queries
        .chunks_exact(dim)
        .map(|q| {
            rows.chunks_exact(dim)
                .map(|n| q.iter().zip(n).map(|(a, b)| a * b).sum())
                .collect()
        })
        .collect()
}

/// With small integers every sum is exact and ties abound: the list is known bit by bit.
#[test]
fn small_integers_are_ranked_bit_by_bit() {
    let shapes = (
        1..20usize,
        prop_oneof![1..70usize, 1..1500usize],
        1..70usize,
        prop_oneof![Just(1.0), Just(0.0), 0.0..1.0f64],
        prop::sample::select(&[DType::F32, DType::F16, DType::Bf16][..]),
        0..4u32,
        any::<u64>(),
    );
    for backend in devices() {
        properties(
            if backend.is_slow() { 25 } else { 300 },
            shapes.clone(),
            |(rows, capacity, dim, share, dtype, classes, seed)| {
                let rng = &mut fastrand::Rng::with_seed(seed);
                let hardest = ((share * capacity as f64) as usize).max(1);
                let queries = small_integers(rng, rows * dim);
                let stored = small_integers(rng, capacity * dim);
                let mut label = |_| match rng.u32(..=classes) {
                    0 => NO_LABEL,
                    class => class,
                };
                let query_labels: Vec<u32> = (0..rows).map(&mut label).collect();
                let queue_labels: Vec<u32> = (0..capacity).map(&mut label).collect();
                let queue = Queue::from_rows(Rows::from_f32(dtype, &stored), dim)
                    .and_then(|queue| queue.with_labels(queue_labels.clone()))
                    .expect("a queue");
                let logits = exact_logits(&queries, &stored, dim);

                let ranked = backend
                    .rank(&queries, &queue, hardest, None)
                    .expect("ranked");
                check(&ranked, &logits, hardest, |_, _| false, "unmasked");
                let ranked = backend
                    .rank(&queries, &queue, hardest, Some(&query_labels))
                    .expect("ranked");
                let masked = |b: usize, j: usize| {
                    query_labels[b] != NO_LABEL && query_labels[b] == queue_labels[j]
                };
                check(&ranked, &logits, hardest, masked, "masked");
                Ok(())
            },
        );
    }
}

/// Queues in orders that mislead whoever samples them: each as rows of small integers, long enough
/// that a sample is smaller than the queue.
fn adversarial(
    capacity: usize,
    dim: usize,
    rng: &mut fastrand::Rng,
) -> Vec<(&'static str, Vec<f32>)> {
    let stored = small_integers(rng, capacity * dim);
    let mut sorted: Vec<&[f32]> = stored.chunks_exact(dim).collect();
    // Of what all the queries of the test share.
    let similarity = |row: &[f32]| row.iter().take(dim / 2).sum::<f32>();
    sorted.sort_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    let ascending: Vec<f32> = sorted.iter().flat_map(|row| row.iter().copied()).collect();
    let descending: Vec<f32> = sorted
        .iter()
        .rev()
        .flat_map(|row| row.iter().copied())
        .collect();
    let repeated = |at: &dyn Fn(usize) -> usize| -> Vec<f32> {
        (0..capacity)
            .flat_map(|j| stored[at(j) * dim..(at(j) + 1) * dim].iter().copied())
            .collect()
    };
    let mut cluster = small_integers(rng, dim).repeat(capacity);
    // A few rows stand out, all in one place.
    let tail = cluster.len() - 40 * dim;
    cluster[tail..].copy_from_slice(&stored[tail..]);
    let hot: Vec<f32> = vec![2.0 / 16.0; dim];
    let mut spot = vec![0.0; capacity * dim];
    spot[(capacity / 3) * dim..(capacity / 3 + 1) * dim].copy_from_slice(&hot);
    vec![
        ("ascending", ascending),
        ("descending", descending),
        ("class-sorted", repeated(&|j| j / (capacity / 10 + 1))),
        ("of period 2", repeated(&|j| j % 2)),
        ("of period 5", repeated(&|j| j % 5)),
        ("of period 64", repeated(&|j| j % 64)),
        ("of one cluster", cluster),
        ("of zeros with one hot row", spot),
        ("random", stored),
    ]
}

#[test]
fn long_queues_in_adversarial_orders_are_ranked_bit_by_bit() {
    const DIM: usize = 8;
    let rng = &mut fastrand::Rng::with_seed(7);
    for backend in devices() {
        // One that is longer than its sample, and one that is longer than the candidates of a kernel.
        for capacity in [20_001, 50_000] {
            if capacity > 20_001 && backend.is_slow() {
                continue;
            }
            // Queries that lean the way the queues are sorted, and ones that do not.
            let mut queries = vec![2.0 / 16.0; DIM];
            queries[DIM / 2..].fill(0.0);
            queries.extend(queries.clone().iter().map(|x| -x));
            queries.extend(small_integers(rng, 3 * DIM));
            queries.extend([0.0; DIM]);
            for (order, stored) in adversarial(capacity, DIM, rng) {
                let labels: Vec<u32> = (0..capacity).map(|j| (j / 2000) as u32).collect();
                let query_labels = [0, 1, 2, NO_LABEL, 9, 3];
                let queue = Queue::from_rows(Rows::F32(stored.clone()), DIM)
                    .and_then(|queue| queue.with_labels(labels.clone()))
                    .expect("a queue");
                let logits = exact_logits(&queries, &stored, DIM);
                for hardest in [1, 16, 100, 1024, 5000, capacity - 1, capacity] {
                    if ![16, 5000].contains(&hardest) && backend.is_slow() {
                        continue;
                    }
                    let what = format!("{}: {order}, N = {hardest} of {capacity}", backend.name());
                    let ranked = backend
                        .rank(&queries, &queue, hardest, None)
                        .expect("ranked");
                    check(&ranked, &logits, hardest, |_, _| false, &what);
                    let ranked = backend
                        .rank(&queries, &queue, hardest, Some(&query_labels))
                        .expect("ranked");
                    let masked = |b: usize, j: usize| {
                        query_labels[b] != NO_LABEL && query_labels[b] == labels[j]
                    };
                    check(
                        &ranked,
                        &logits,
                        hardest,
                        masked,
                        &format!("{what}, masked"),
                    );
                }
            }
        }
    }
}

/// With the true logits known only to a rounding error, whatever lies beyond it is decided.
#[test]
fn real_valued_rows_are_ranked_to_within_rounding() {
    const DIM: usize = 48;
    let rng = &mut fastrand::Rng::with_seed(3);
    for backend in devices() {
        let (mut decided, mut close) = (0, 0);
        for capacity in [300, 5000, 30_000] {
            if capacity > 5000 && backend.is_slow() {
                continue;
            }
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                let queries = unit_rows(rng, 5, DIM);
                let stored = unit_rows(rng, capacity, DIM);
                let queue = Queue::from_rows(Rows::from_f32(dtype, &stored), DIM).expect("a queue");
                let problem = Problem::of(&Config::moco(), &queries, &queries, &queue, None);
                for hardest in [1, 16, 256, capacity] {
                    let ranked = backend
                        .rank(&queries, &queue, hardest, None)
                        .expect("ranked");
                    for b in 0..5 {
                        let logits = problem.logits(b);
                        let longest = problem.queue.iter().map(|n| norm(n)).fold(0.0, f64::max);
                        let error =
                            backend.arithmetic().gamma(DIM) * norm(&problem.queries[b]) * longest;
                        let indices = row(&ranked.indices, b, hardest);
                        if let Err(reason) = within(&logits, hardest, indices, error) {
                            panic!("{}, N = {hardest} of {capacity}: {reason}", backend.name());
                        }
                        for (&j, &value) in indices.iter().zip(row(&ranked.logits, b, hardest)) {
                            let off = (f64::from(value) - logits[j as usize]).abs();
                            assert!(off <= error, "{}: a logit is {off} off", backend.name());
                        }
                        if boundary_gap(&logits, hardest) > 2.0 * error {
                            decided += 1;
                            let expected = common::reference::top(&logits, hardest);
                            assert_eq!(common::reference::unpadded(indices), expected);
                        } else {
                            close += 1;
                        }
                    }
                }
            }
        }
        println!(
            "{}: {decided} rows decided, {close} within rounding",
            backend.name()
        );
        assert!(decided > 4 * close, "the bound leaves too much open");
    }
}

#[test]
fn what_cannot_be_ranked_is_refused() {
    let queue = Queue::random(5, 3, DType::F32, 1).expect("a queue");
    let labelled = queue.clone().with_labels(vec![0; 5]).expect("labels");
    for backend in devices() {
        let rank = |queries: &[f32], queue: &Queue, hardest: usize, labels: Option<&[u32]>| {
            backend
                .rank(queries, queue, hardest, labels)
                .expect_err("refused")
                .to_string()
        };
        let query = [1.0, 0.0, 0.0];
        assert_eq!(
            rank(&query, &queue, 6, None),
            "hardest is 6, but the queue has 5 rows; expected at most that many"
        );
        let ragged = rank(&[1.0; 4], &queue, 1, None);
        assert!(ragged.contains("queries has 4 elements"), "{ragged}");
        assert!(rank(&[], &queue, 1, None).contains("queries is 0"));
        let wrong = rank(&query, &labelled, 1, Some(&[1, 2]));
        assert!(
            wrong.contains("labels has 2 elements; expected 1"),
            "{wrong}"
        );
        assert_eq!(
            rank(&query, &queue, 1, Some(&[1])),
            "the oracle masks by label, but queue has no labels"
        );
        let nan = [1.0, 0.0, 0.0, 0.0, f32::NAN, 0.0];
        assert_eq!(
            rank(&nan, &queue, 1, None),
            "row 1 of queries is not finite"
        );
        for huge in [u32::MAX as usize - 1, u32::MAX as usize, usize::MAX] {
            let error = backend.rank(&query, &queue, huge, None);
            assert!(matches!(
                error,
                Err(Error::HardestBeyondQueue { capacity: 5, .. })
            ));
            let error = backend.rank_logits(&[1.0, 2.0], 2, huge);
            assert!(matches!(
                error,
                Err(Error::HardestBeyondQueue { capacity: 2, .. })
            ));
        }
        let logits = |logits: &[f32], capacity| {
            backend
                .rank_logits(logits, capacity, 1)
                .expect_err("refused")
                .to_string()
        };
        assert!(logits(&[1.0], 0).contains("capacity is 0"));
        assert!(logits(&[], 3).contains("logits is 0"));
        assert!(logits(&[1.0; 7], 3).contains("logits has 7 elements"));
    }
}
