//! Real features: Fashion-MNIST images as a network sees them, low-dimensional and clustered as no
//! random rows are, with the classes as labels.

mod common;

use common::cases::Case;
use common::{backends, compare};
use hardmix::{Config, DType, Draws, Queue, Rows};
use safetensors::SafeTensors;

const DIM: usize = 128;
const TRAIN: usize = 4000;
const BATCH: usize = 24;

fn features() -> (Vec<f32>, Vec<u32>) {
    let bytes = std::fs::read("tests/data/fashion_features.safetensors").expect("the features");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let words = |name: &str| -> Vec<[u8; 4]> {
        file.tensor(name)
            .expect(name)
            .data()
            .as_chunks::<4>()
            .0
            .to_vec()
    };
    (
        words("features")
            .into_iter()
            .map(f32::from_le_bytes)
            .collect(),
        words("labels")
            .into_iter()
            .map(u32::from_le_bytes)
            .collect(),
    )
}

/// Test images as queries; another image of the same class as the key of each.
fn case(dtype: DType, oracle: bool, hardest: usize) -> Case {
    let (features, labels) = features();
    let row = |j: usize| &features[j * DIM..(j + 1) * DIM];
    let batch = TRAIN..TRAIN + BATCH;
    let key_of = |b: usize| {
        (TRAIN + BATCH..labels.len())
            .find(|&j| labels[j] == labels[b])
            .expect("one of the class")
    };
    Case {
        queries: batch.clone().flat_map(|b| row(b).to_vec()).collect(),
        keys: batch
            .clone()
            .flat_map(|b| row(key_of(b)).to_vec())
            .collect(),
        query_labels: Some(labels[batch].to_vec()),
        row_offset: 0,
        queue: Queue::from_rows(Rows::from_f32(dtype, &features[..TRAIN * DIM]), DIM)
            .and_then(|queue| queue.with_labels(labels[..TRAIN].to_vec()))
            .expect("a queue"),
        config: Config::mochi(hardest, 256, 128)
            .expect("valid")
            .with_oracle(oracle)
            .with_uniformity(true)
            .with_matching_probability(true),
        draws: Draws::seeded(20, 11).expect("a small step"),
    }
}

#[test]
fn real_features_agree_with_the_reference() {
    for backend in backends() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for oracle in [false, true] {
                for hardest in [64, 1024] {
                    let case = case(dtype, oracle, hardest);
                    let what = format!(
                        "{}: {dtype:?}, oracle {oracle}, N {hardest}",
                        backend.name()
                    );
                    let output = backend.step(&case).expect("a valid case");
                    match compare::step(&case, &output, backend.arithmetic()) {
                        Ok(tally) => {
                            println!("{what}: {tally}");
                            assert!(tally.gradient <= 1.0, "{what}: {tally}");
                        }
                        Err(reason) => panic!("{what}: {reason}"),
                    }
                }
            }
        }
    }
}

/// What the paper plots: most of the hardest are of the query's own class, until the oracle takes
/// them away, and the matching probability falls with the rank.
#[test]
fn the_hardest_of_real_features_are_false_negatives() {
    for backend in backends() {
        let plain = backend
            .step(&case(DType::F32, false, 64))
            .expect("a valid case")
            .metrics;
        let oracle = backend
            .step(&case(DType::F32, true, 64))
            .expect("a valid case")
            .metrics;
        let share = plain.same_label_share.expect("labels on both sides");
        println!(
            "{}: {share:.3} of the 64 hardest are of the query's class",
            backend.name()
        );
        // By chance a tenth would be.
        assert!(share > 0.5, "{share}");
        assert_eq!(oracle.same_label_share, Some(0.0));
        assert!(oracle.proxy_accuracy >= plain.proxy_accuracy);
        let matching = plain.matching_probability.expect("asked for");
        assert!(matching.is_sorted_by(|a, b| a >= b) && matching[0] > matching[63]);
    }
}

/// A queue sorted by class is the worst place to take a sample from.
#[test]
fn class_sorted_real_features_rank_as_shuffled_ones() {
    let case = case(DType::F32, false, 64);
    let labels = case.queue.labels().expect("labels").to_vec();
    let mut order: Vec<usize> = (0..TRAIN).collect();
    order.sort_by_key(|&j| labels[j]);
    let rows: Vec<f32> = order
        .iter()
        .flat_map(|&j| case.queue.row(j).expect("a row"))
        .collect();
    let mut sorted = case.clone();
    sorted.queue = Queue::from_rows(Rows::F32(rows), DIM).expect("a queue");
    for backend in backends() {
        let rank = |case: &Case| {
            backend
                .rank(&case.queries, &case.queue, 64, None)
                .expect("ranked")
                .indices
        };
        let (shuffled, sorted) = (rank(&case), rank(&sorted));
        let mut same = 0;
        for (one, other) in shuffled.chunks_exact(64).zip(sorted.chunks_exact(64)) {
            let mut back: Vec<u32> = other.iter().map(|&j| order[j as usize] as u32).collect();
            back.sort_unstable();
            same += usize::from(one == back);
        }
        // A row may have its boundary within rounding, or its images twice.
        assert!(same >= BATCH - 1, "{same} of {BATCH} rows rank alike");
    }
}
