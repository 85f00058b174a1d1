//! Bad input, one by one: a typed error that names the argument, what it was and what was expected.
//! (The queue's own are in `queue.rs`, the settings' in `config.rs`, numbers that are none in
//! `non_finite.rs`, the operators' in their files.)

mod common;

use common::cases::{Case, DrawKind, Labels, Recipe};
use common::{Backend, devices};
use hardmix::{Batch, Config, DType, Draws, Error, GivenDraws, NO_LABEL, Queue, Rows};

fn refused(backend: &dyn Backend, case: &Case) -> String {
    backend.step(case).expect_err("a bad case").to_string()
}

#[test]
fn a_batch_of_the_wrong_shape() {
    for (queries, keys, dim, expected) in [
        (12, 12, 0, "dim is 0; expected at least 1"),
        (0, 0, 4, "queries is 0; expected at least 1"),
        (0, 8, 4, "queries is 0; expected at least 1"),
        (
            12,
            8,
            4,
            "keys has 8 elements; expected 12 (rows × dim, as queries)",
        ),
        (
            12,
            16,
            4,
            "keys has 16 elements; expected 12 (rows × dim, as queries)",
        ),
        (
            12,
            0,
            4,
            "keys has 0 elements; expected 12 (rows × dim, as queries)",
        ),
    ] {
        let (queries, keys) = (vec![0.5; queries], vec![0.5; keys]);
        let error = Batch::new(&queries, &keys, dim)
            .expect_err(expected)
            .to_string();
        assert_eq!(error, expected);
    }
    // Rows that are not whole: the message says how long they are and how long they should be.
    for (length, dim) in [(13, 4), (3, 4), (5, usize::MAX)] {
        let data = vec![0.5; length];
        let error = Batch::new(&data, &data, dim)
            .expect_err("ragged")
            .to_string();
        assert!(
            error.starts_with(&format!("queries has {length} elements")),
            "{error}"
        );
        assert!(
            !error.contains("expected 0 "),
            "no one can mean zero elements: {error}"
        );
    }
}

#[test]
fn labels_of_the_wrong_length() {
    let data = [0.5; 12];
    let batch = Batch::new(&data, &data, 4).expect("a batch");
    for labels in [&[][..], &[1, 2], &[1, 2, 3, 4]] {
        let error = batch
            .with_labels(labels)
            .expect_err("not one a row")
            .to_string();
        let expected = format!(
            "query labels has {} elements; expected 3 (rows)",
            labels.len()
        );
        assert_eq!(error, expected);
    }
    let queue = Queue::random(5, 4, DType::F32, 1).expect("a queue");
    for length in [0, 4, 6] {
        let error = queue
            .clone()
            .with_labels(vec![1; length])
            .expect_err("not one a row");
        let expected = format!("queue labels has {length} elements; expected 5 (capacity)");
        assert_eq!(error.to_string(), expected);
    }
    let mut queue = queue;
    let error = queue
        .enqueue(&data, Some(&[1, 2]))
        .expect_err("not one a row")
        .to_string();
    assert_eq!(error, "labels has 2 elements; expected 3 (rows)");
}

#[test]
fn a_row_offset_beyond_32_bits() {
    let data = [0.5; 12];
    let batch = Batch::new(&data, &data, 4).expect("a batch");
    assert!(batch.with_row_offset(u32::MAX - 2).is_ok());
    let error = batch
        .with_row_offset(u32::MAX - 1)
        .expect_err("too far")
        .to_string();
    assert_eq!(
        error,
        "row_offset is 4294967294; expected at most 2^32 − rows"
    );
}

#[test]
fn a_queue_of_no_size() {
    for (capacity, dim, expected) in [
        (0, 4, "capacity is 0; expected at least 1"),
        (4, 0, "dim is 0; expected at least 1"),
        (
            0xffff_ffff,
            1,
            "capacity is 4294967295; expected less than 4294967295 rows",
        ),
    ] {
        let error = Queue::random(capacity, dim, DType::F32, 1).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
    for (length, dim, expected) in [
        (0, 4, "queue is 0; expected at least 1"),
        (4, 0, "dim is 0; expected at least 1"),
    ] {
        let error = Queue::from_rows(Rows::F32(vec![0.0; length]), dim).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
    let error = Queue::from_rows(Rows::F32(vec![0.0; 9]), 4)
        .expect_err("ragged")
        .to_string();
    assert!(error.starts_with("queue has 9 elements"), "{error}");
    let queue = Queue::random(4, 2, DType::F32, 1).expect("a queue");
    let error = queue
        .with_cursor(4)
        .expect_err("behind the end")
        .to_string();
    assert_eq!(
        error,
        "cursor is 4; expected less than the queue's capacity"
    );
}

#[test]
fn queue_rows_that_are_no_numbers() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut rows = vec![0.5; 12];
        rows[9] = bad;
        let error = Queue::from_rows(Rows::F32(rows.clone()), 4)
            .expect_err("row 2")
            .to_string();
        assert_eq!(error, "row 2 of queue is not finite");
        let mut queue = Queue::random(4, 4, DType::F32, 1).expect("a queue");
        let error = queue.enqueue(&rows, None).expect_err("row 2").to_string();
        assert_eq!(error, "row 2 of keys is not finite");
    }
}

/// Allowed: of a batch larger than the queue the last K keys stay, and the caller is told.
#[test]
fn a_queue_smaller_than_the_batch_says_what_is_kept() {
    let mut queue = Queue::random(3, 1, DType::F32, 1).expect("a queue");
    let kept = queue
        .enqueue(&[1.0, 2.0, 3.0, 4.0, 5.0], None)
        .expect("enqueued");
    assert_eq!(kept, 3);
    assert_eq!(
        (0..3).map(|j| queue.row(j).expect("a row")[0]).sum::<f32>(),
        12.0
    );
}

#[test]
fn keys_that_are_no_whole_rows() {
    let mut queue = Queue::random(4, 3, DType::F32, 1).expect("a queue");
    let before = queue.clone();
    for normalise in [false, true] {
        for length in [1, 2, 4, 7] {
            let keys = vec![0.5; length];
            let error = if normalise {
                queue.enqueue_normalised(&keys, None)
            } else {
                queue.enqueue(&keys, None)
            };
            let error = error.expect_err("ragged").to_string();
            assert!(
                error.starts_with(&format!("keys has {length} elements")),
                "{error}"
            );
        }
    }
    let error = queue.enqueue(&[], None).expect_err("nothing").to_string();
    assert_eq!(error, "keys is 0; expected at least 1");
    assert_eq!(queue, before);
}

#[test]
fn a_step_against_a_queue_that_does_not_fit() {
    let case = Recipe::default().build();
    for backend in devices() {
        let mut wrong = case.clone();
        wrong.config = Config::mochi(151, 1, 0).expect("valid by itself");
        assert_eq!(
            refused(backend.as_ref(), &wrong),
            "hardest is 151, but the queue has 150 rows; expected at most that many"
        );
        let queue = Queue::random(150, 23, DType::F32, 1).expect("a queue");
        let error = backend
            .new_step(case.config.clone())
            .run(&case.batch(), &queue, &case.draws)
            .expect_err("another dimension");
        assert_eq!(
            error.to_string(),
            "queue has dimension 23; the queries have 24"
        );
    }
}

#[test]
fn an_oracle_without_labels() {
    let case = Recipe {
        labels: Labels::Oracle(3),
        ..Recipe::default()
    }
    .build();
    for backend in devices() {
        let mut wrong = case.clone();
        wrong.query_labels = None;
        assert_eq!(
            refused(backend.as_ref(), &wrong),
            "the oracle masks by label, but queries has no labels"
        );
        let mut wrong = case.clone();
        wrong.queue = Recipe::default().build().queue;
        assert_eq!(
            refused(backend.as_ref(), &wrong),
            "the oracle masks by label, but queue has no labels"
        );
    }
}

fn given(backend: &dyn Backend, spoil: impl Fn(&mut GivenDraws)) -> String {
    let mut case = Recipe {
        draws: DrawKind::Given,
        ..Recipe::default()
    }
    .build();
    if let Draws::Given(draws) = &mut case.draws {
        spoil(draws);
    }
    refused(backend, &case)
}

#[test]
fn draws_of_the_wrong_length() {
    for backend in devices() {
        let backend = backend.as_ref();
        for (expected, error) in [
            (
                "first has 209 elements; expected 210",
                given(backend, |d| d.first.truncate(209)),
            ),
            (
                "second has 211 elements; expected 210",
                given(backend, |d| d.second.push(0)),
            ),
            (
                "alpha has 0 elements; expected 210",
                given(backend, |d| d.alpha.clear()),
            ),
            (
                "pick has 76 elements; expected 77",
                given(backend, |d| d.pick.truncate(76)),
            ),
            (
                "beta has 78 elements; expected 77",
                given(backend, |d| d.beta.push(0.1)),
            ),
        ] {
            assert!(error.starts_with(expected), "{error}");
        }
        // Draws where none are wanted.
        let mut case = Recipe {
            draws: DrawKind::Given,
            ..Recipe::default()
        }
        .build();
        case.config = case.config.warm_up();
        assert!(refused(backend, &case).starts_with("first has 210 elements; expected 0"));
    }
}

#[test]
fn draws_out_of_range() {
    for backend in devices() {
        let backend = backend.as_ref();
        let beyond = "20; expected less than 20, the number of that row's hardest";
        assert_eq!(
            given(backend, |d| d.first[2 * 30 + 4] = 20),
            format!("draw first[2, 4] is position {beyond}")
        );
        assert_eq!(
            given(backend, |d| d.second[6 * 30 + 29] = 20),
            format!("draw second[6, 29] is position {beyond}")
        );
        assert_eq!(
            given(backend, |d| d.pick[0] = 20),
            format!("draw pick[0, 0] is position {beyond}")
        );
        assert!(given(backend, |d| d.pick[3] = u32::MAX).contains("position 4294967295"));
        for bad in [-0.1, 1.0001, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let expected = format!("is {bad}; expected a weight from 0 to 1");
            assert_eq!(
                given(backend, |d| d.alpha[7] = bad),
                format!("alpha {expected}")
            );
            assert_eq!(
                given(backend, |d| d.beta[7] = bad),
                format!("beta {expected}")
            );
        }
    }
}

/// A row with fewer than N left takes positions within its own list only.
#[test]
fn draws_out_of_the_range_of_a_short_list() {
    let mut case = Recipe {
        rows: 2,
        mixed: 1,
        query_mixed: 0,
        labels: Labels::Oracle(2),
        ..Recipe::default()
    }
    .build();
    let labels = (0..150)
        .map(|j| if j < 147 { 1 } else { NO_LABEL })
        .collect();
    case.queue = case.queue.clone().with_labels(labels).expect("labels");
    case.query_labels = Some(vec![2, 1]);
    let with = |position: u32| {
        let mut case = case.clone();
        case.draws = Draws::given(GivenDraws {
            first: vec![19, position],
            second: vec![0, 0],
            alpha: vec![0.5, 0.5],
            ..GivenDraws::default()
        });
        case
    };
    for backend in devices() {
        assert!(backend.step(&with(2)).is_ok());
        assert_eq!(
            refused(backend.as_ref(), &with(3)),
            "draw first[1, 0] is position 3; expected less than 3, \
             the number of that row's hardest"
        );
    }
}

#[test]
fn a_step_number_beyond_its_bits() {
    let case = Recipe::default().build();
    let error = Draws::seeded(1, 1 << 63)
        .expect_err("too large")
        .to_string();
    assert_eq!(
        error,
        "step is 9223372036854775808; expected less than 2^63"
    );
    for backend in devices() {
        let mut last = case.clone();
        last.draws = Draws::seeded(u64::MAX, (1 << 63) - 1).expect("the last step");
        assert!(backend.step(&last).is_ok());
    }
}

/// An error that says which size it was, and how much it would have taken.
fn refuses_size(error: &str) -> bool {
    error.contains("expected") || error.starts_with("no memory for ")
}

/// Sizes whose products overflow, or that no machine can hold: an error, never a panic or an abort.
#[test]
fn absurd_sizes_are_errors() {
    let most = u32::MAX as usize - 1;
    for (capacity, dim) in [
        (most, usize::MAX),
        (most, 1 << 40),
        (most, 1 << 31),
        (1, usize::MAX),
        (1, usize::MAX / 4),
        (most, 1 << 20),
    ] {
        let error = Queue::random(capacity, dim, DType::Bf16, 1)
            .expect_err("absurd")
            .to_string();
        assert!(refuses_size(&error), "{error}");
    }
    let error = Queue::from_rows(Rows::F32(vec![1.0; 4]), usize::MAX).expect_err("absurd");
    assert!(
        error.to_string().starts_with("queue has 4 elements"),
        "{error}"
    );

    let case = Recipe::default().build();
    for backend in devices() {
        let mut absurd = case.clone();
        for (hardest, mixed, query_mixed) in
            [(most, 1, 1), (20, most, 0), (20, 0, most), (20, most, most)]
        {
            absurd.config = Config::mochi(hardest, mixed, query_mixed).expect("valid by itself");
            let error = backend.step(&absurd).expect_err("absurd");
            println!("{hardest}, {mixed}, {query_mixed}: {error}");
            assert!(refuses_size(&error.to_string()), "{error}");
            absurd.draws = Draws::given(GivenDraws::default());
            assert!(backend.step(&absurd).is_err());
            absurd.draws = case.draws.clone();
        }
    }
}

/// Errors are values that travel: across threads, behind `dyn Error`, with their kind.
#[test]
fn errors_are_typed() {
    fn travels<T: std::error::Error + Send + Sync + 'static>() {}
    travels::<Error>();
    let data = [0.5; 8];
    assert!(matches!(
        Batch::new(&data, &data, 0),
        Err(Error::Zero { argument: "dim" })
    ));
    assert!(matches!(
        Batch::new(&data, &data[..4], 4),
        Err(Error::Length {
            argument: "keys",
            length: 4,
            expected: 8,
            ..
        })
    ));
    assert!(matches!(
        Config::mochi(0, 1, 0),
        Err(Error::NothingToMix {
            mixed: 1,
            query_mixed: 0
        })
    ));
    let missing = Queue::load("no such file").expect_err("no file");
    assert!(matches!(&missing, Error::File { path, .. } if path.ends_with("no such file")));
}
