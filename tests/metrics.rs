//! The figures about a batch, on cases small enough to work out by hand. (`step.rs` compares them
//! with the reference on every random case.)

mod common;

use common::backends;
use common::cases::{Case, Labels, Recipe};
use common::tolerance::Arithmetic;
use hardmix::{Config, Draws, GivenDraws, NO_LABEL, NO_ROW, Output, Queue, Rows};

/// One query (1, 0) with the key (0.6, 0.8) against rows with the logits 0.8, 0.6, 0, −1.
fn by_hand(config: Config, draws: GivenDraws) -> Case {
    let rows = vec![0.8, 0.6, 0.6, 0.8, 0.0, 1.0, -1.0, 0.0];
    Case {
        queries: vec![1.0, 0.0],
        keys: vec![0.6, 0.8],
        query_labels: None,
        row_offset: 0,
        queue: Queue::from_rows(Rows::F32(rows), 2).expect("a queue"),
        config: config
            .with_temperature(0.5)
            .expect("valid")
            .with_uniformity(true)
            .with_matching_probability(true),
        draws: Draws::given(draws),
    }
}

/// How far a figure of [`by_hand`] may be off. A synthetic logit, of amplification 1/√0.8 or less, is off
/// as `tolerance::bounds` says, and by three roundings of 0.6 and 0.8 to f32. No figure changes by more
/// than four times a logit: the uniformity and, of two logits at τ = 0.5, the loss do.
fn tolerance(arithmetic: Arithmetic) -> f64 {
    let amplified = 0.8f64.sqrt().recip() + 0.5 / 0.8;
    let logit = amplified * arithmetic.gamma(2 + 6) + 3.0 / f64::from(1 << 24);
    4.0 * logit + arithmetic.softmax
}

#[test]
fn figures_worked_out_by_hand() {
    let draws = GivenDraws {
        // Rows 0 and 1, half and half: a direction between them, logit 0.7/√0.98 = 0.7071.
        first: vec![0, 0],
        second: vec![1, 0],
        alpha: vec![0.5, 0.25],
        // The query and row 1, half and half: (0.8, 0.4)/√0.8, logit 0.8944.
        pick: vec![1],
        beta: vec![0.5],
    };
    let case = by_hand(Config::mochi(3, 2, 1).expect("valid"), draws);
    for backend in backends() {
        let output = backend.step(&case).expect("a valid case");
        let tolerance = tolerance(backend.arithmetic());
        let close = |ours: f64, theirs: f64, what: &str| {
            assert!(
                (ours - theirs).abs() < tolerance,
                "{what} is {ours}; by hand {theirs}"
            );
        };
        let metrics = &output.metrics;
        assert_eq!(output.hardest, [0, 1, 2]);
        close(
            output.mixed_logits[0].into(),
            0.7 / 0.98f64.sqrt(),
            "mixed logit",
        );
        close(
            output.mixed_logits[1].into(),
            0.8,
            "mixed logit of a row with itself",
        );
        close(
            output.query_mixed_logits[0].into(),
            0.8 / 0.8f64.sqrt(),
            "query-mixed logit",
        );
        // l⁺ = 0.6 is less than 0.8.
        assert_eq!(
            (
                metrics.proxy_accuracy,
                metrics.proxy_accuracy_with_synthetic
            ),
            (0.0, 0.0)
        );
        close(metrics.alignment, 0.8, "alignment");
        let uniformity = [0.8, 0.6, 0.0, -1.0].map(|l: f64| (-2.0 * (2.0 - 2.0 * l)).exp());
        let uniformity = (uniformity.iter().sum::<f64>() / 4.0).ln();
        close(
            metrics.uniformity.expect("asked for"),
            uniformity,
            "uniformity",
        );
        // The positive and the four rows, at τ = 0.5, without synthetics.
        let e = |l: f64| (l / 0.5).exp();
        let total = e(0.6) + e(0.8) + e(0.6) + e(0.0) + e(-1.0);
        let matching = metrics.matching_probability.as_ref().expect("asked for");
        assert_eq!(matching.len(), 3);
        for (rank, logit) in [0.8, 0.6, 0.0].into_iter().enumerate() {
            close(matching[rank], e(logit) / total, "matching probability");
        }
        // Harder than 0.8: neither mixed one strictly, the query-mixed one.
        assert_eq!(metrics.mixed_harder, Some(0.0));
        assert_eq!(metrics.query_mixed_harder, Some(1.0));
        assert_eq!(metrics.same_label_share, None);
        let synthetic = e(0.7 / 0.98f64.sqrt()) + e(0.8) + e(0.8 / 0.8f64.sqrt());
        let sum = total + synthetic;
        close(output.log_sum_exp[0].into(), sum.ln(), "log-sum-exp");
        close(output.positive_probability[0].into(), e(0.6) / sum, "p⁺");
        close(output.loss_rows[0].into(), sum.ln() - 1.2, "loss");
    }
}

#[test]
fn what_was_not_asked_for_is_not_there() {
    let case = Recipe::default().build();
    for backend in backends() {
        let mut plain = case.clone();
        plain.config = Config::mochi(20, 30, 11).expect("valid");
        let output = backend.step(&plain).expect("a valid case");
        assert_eq!(output.metrics.uniformity, None);
        assert_eq!(output.metrics.matching_probability, None);
        assert_eq!(output.grad_keys, None);
        // Asking for more changes none of the rest.
        let all = backend.step(&case).expect("a valid case");
        assert_eq!(common::row_bits(&output), common::row_bits(&all));

        plain.config = Config::moco().with_matching_probability(true);
        let output = backend.step(&plain).expect("a valid case");
        assert_eq!(output.metrics.matching_probability, Some(vec![]));
        assert_eq!(output.metrics.mixed_harder, None);
        assert_eq!(output.metrics.query_mixed_harder, None);
        assert_eq!(
            output.metrics.proxy_accuracy,
            output.metrics.proxy_accuracy_with_synthetic
        );
    }
}

/// A hit is strictly greater. The numbers are exact in f32, so that equal is equal.
#[test]
fn a_tie_is_a_miss() {
    let case = |key: f32, rows: Vec<f32>| Case {
        queries: vec![1.0, 0.0],
        keys: vec![key, 0.0],
        query_labels: None,
        row_offset: 0,
        queue: Queue::from_rows(Rows::F32(rows), 2).expect("a queue"),
        config: Config::mochi(2, 1, 1).expect("valid"),
        draws: Draws::given(GivenDraws {
            first: vec![0],
            second: vec![0],
            alpha: vec![1.0],
            pick: vec![1],
            beta: vec![0.0],
        }),
    };
    // Logits ½ and ¼; mixed: row 0 alone, a unit vector after normalising: logit 1; the other too.
    let tied = case(0.5, vec![0.5, 0.0, 0.25, 0.0]);
    let above = case(0.75, vec![0.5, 0.0, 0.25, 0.0]);
    let synthetic = case(1.0, vec![0.5, 0.0, 0.25, 0.0]);
    let over_all = case(1.5, vec![0.5, 0.0, 0.25, 0.0]);
    for backend in backends() {
        for (case, hit, with_synthetic) in [
            (&tied, false, false),
            (&above, true, false),
            (&synthetic, true, false),
            (&over_all, true, true),
        ] {
            let output = backend.step(case).expect("a valid case");
            let what = format!("{}: l⁺ = {}", backend.name(), case.keys[0]);
            assert_eq!(output.hits, [hit], "{what}");
            assert_eq!(output.hits_with_synthetic, [with_synthetic], "{what}");
            assert_eq!(output.metrics.proxy_accuracy, f64::from(u8::from(hit)));
            let share = f64::from(u8::from(with_synthetic));
            assert_eq!(output.metrics.proxy_accuracy_with_synthetic, share);
        }
    }
}

/// Rows with fewer than N left count for the ranks that they have.
#[test]
fn matching_probability_is_over_the_rows_that_have_the_rank() {
    let mut case = Recipe {
        rows: 3,
        capacity: 6,
        hardest: 5,
        mixed: 0,
        query_mixed: 0,
        labels: Labels::Oracle(2),
        ..Recipe::default()
    }
    .build();
    // Row 0 has 6 negatives left, row 1 two, row 2 none: ranks 1 and 2 are of two rows, 3 to 5 of one.
    case.queue = case
        .queue
        .clone()
        .with_labels(vec![1, 1, 1, 1, 2, 2])
        .expect("labels");
    case.query_labels = Some(vec![NO_LABEL, 1, 2]);
    for backend in backends() {
        let output = backend.step(&case).expect("a valid case");
        let matching = output.metrics.matching_probability.expect("asked for");
        let alone: Vec<Vec<f64>> = (0..3)
            .map(|b| backend.step(&case.shard(b, b + 1)).expect("a valid case"))
            .map(|output: Output| output.metrics.matching_probability.expect("asked for"))
            .collect();
        // Row 2 has four left.
        let had = [5, 2, 4];
        for rank in 0..5 {
            let of: Vec<f64> = (0..3)
                .filter(|&b| rank < had[b])
                .map(|b| alone[b][rank])
                .collect();
            let expected = of.iter().sum::<f64>() / of.len() as f64;
            assert!((matching[rank] - expected).abs() < 1e-7, "rank {rank}");
        }
        assert_eq!(alone[1][2..], [0.0; 3], "a rank that no row has");
        assert_eq!(output.hardest[5..7], [4, 5]);
        assert_eq!(output.hardest[7..10], [NO_ROW; 3]);
    }
}

/// Fig. 2c of the paper: how many of the hardest are of the query's class.
#[test]
fn same_label_share_counts_known_pairs_among_the_hardest() {
    let case = |query: u32, labels: Vec<u32>, oracle: bool| {
        let config = Config::mochi(3, 0, 0).expect("valid").with_oracle(oracle);
        let mut case = by_hand(config, GivenDraws::default());
        case.query_labels = Some(vec![query]);
        case.queue = case.queue.clone().with_labels(labels).expect("labels");
        case
    };
    for backend in backends() {
        let share = |case: &Case| {
            let output = backend.step(case).expect("a valid case");
            output.metrics.same_label_share
        };
        // The three hardest are rows 0, 1, 2; row 3 never counts.
        assert_eq!(share(&case(7, vec![7, 8, 7, 7], false)), Some(2.0 / 3.0));
        assert_eq!(share(&case(7, vec![8, 8, 8, 7], false)), Some(0.0));
        assert_eq!(share(&case(7, vec![7, NO_LABEL, 8, 7], false)), Some(0.5));
        assert_eq!(
            share(&case(7, vec![NO_LABEL, NO_LABEL, NO_LABEL, 7], false)),
            None
        );
        assert_eq!(share(&case(NO_LABEL, vec![NO_LABEL, 1, 2, 3], false)), None);
        // The oracle leaves none of them.
        assert_eq!(share(&case(7, vec![7, 8, 8, 8], true)), Some(0.0));
    }
}

/// A key that is also a queue row has that row's logit to the bit, at any depth of the sums: a tie, which
/// is no hit.
#[test]
fn a_key_that_is_a_queue_row_ties_with_it() {
    for dim in [37, 128, 129, 700] {
        let mut case = Recipe {
            rows: 21,
            dim,
            capacity: 41,
            mixed: 0,
            query_mixed: 0,
            ..Recipe::default()
        }
        .build();
        let rows = case.queue.rows().to_f32();
        // Each query's nearest queue row is its key.
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let pairs = a.iter().zip(b);
            pairs.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let queries = case.queries.chunks_exact(dim);
        case.keys = queries
            .flat_map(|query| {
                let by_logit = |a: &&[f32], b: &&[f32]| dot(query, a).total_cmp(&dot(query, b));
                rows.chunks_exact(dim).max_by(by_logit).expect("a row")
            })
            .copied()
            .collect();
        for backend in backends() {
            let output = backend.step(&case).expect("a valid case");
            assert!(!output.hits.contains(&true), "{} of {dim}", backend.name());
        }
    }
}

/// At a low temperature the splits' sums are too far apart to add; the uniformity's are not.
#[test]
fn uniformity_counts_every_row_at_any_temperature() {
    let capacity = 20_000;
    // The first half has logits of about 0.9, the other of 0.
    let rows: Vec<f32> = (0..capacity)
        .flat_map(|row| match row < capacity / 2 {
            true => [0.9, 0.19f32.sqrt()],
            false => [0.0, 1.0],
        })
        .collect();
    let mean = (f64::exp(4.0 * (0.9 - 1.0)) + f64::exp(-4.0)) / 2.0;
    for backend in backends() {
        let case = Case {
            queue: Queue::from_rows(Rows::F32(rows.clone()), 2).expect("a queue"),
            config: Config::moco()
                .with_temperature(0.001)
                .expect("valid")
                .with_uniformity(true),
            ..by_hand(Config::moco(), GivenDraws::default())
        };
        let output = backend.step(&case).expect("a valid case");
        let uniformity = output.metrics.uniformity.expect("asked for");
        let off = (uniformity - mean.ln()).abs();
        let bound = tolerance(backend.arithmetic());
        assert!(off <= bound, "{}: off by {off:e}", backend.name());
    }
}
