//! The ring: against a naive one, and its files against every kind of damage.

mod common;

use std::fs;

use common::cases::unit_rows;
use common::properties;
use half::{bf16, f16};
use hardmix::{DType, Error, NO_LABEL, Queue};
use proptest::prelude::*;

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

/// What a queue is: a list from which the cursor's row is replaced, one key at a time.
struct Model {
    rows: Vec<Vec<f32>>,
    labels: Option<Vec<u32>>,
    cursor: usize,
}

impl Model {
    fn of(queue: &Queue) -> Self {
        Model {
            rows: (0..queue.capacity())
                .map(|j| queue.row(j).expect("a row"))
                .collect(),
            labels: queue.labels().map(<[u32]>::to_vec),
            cursor: queue.cursor(),
        }
    }

    fn enqueue(&mut self, keys: &[f32], labels: Option<&[u32]>, dtype: DType) {
        let capacity = self.rows.len();
        let dim = self.rows[0].len();
        if labels.is_some() {
            self.labels.get_or_insert_with(|| vec![NO_LABEL; capacity]);
        }
        for (index, key) in keys.chunks_exact(dim).enumerate() {
            let round = |&x: &f32| match dtype {
                DType::F32 => x,
                DType::F16 => f16::from_f32(x).to_f32(),
                DType::Bf16 => bf16::from_f32(x).to_f32(),
            };
            self.rows[self.cursor] = key.iter().map(round).collect();
            if let Some(own) = &mut self.labels {
                own[self.cursor] = labels.map_or(NO_LABEL, |labels| labels[index]);
            }
            self.cursor = (self.cursor + 1) % capacity;
        }
    }

    fn check(&self, queue: &Queue) {
        assert_eq!(queue.cursor(), self.cursor);
        assert_eq!(queue.labels(), self.labels.as_deref());
        for (j, row) in self.rows.iter().enumerate() {
            assert_eq!(queue.row(j).as_ref(), Some(row), "row {j}");
            let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
            assert_eq!(queue.squared_norms()[j], squares as f32, "norm of row {j}");
        }
    }
}

#[test]
fn it_wraps_for_every_batch_size_and_capacity() {
    let rng = &mut fastrand::Rng::with_seed(1);
    for dtype in DTYPES {
        for capacity in 1..=12 {
            for batch in 1..=2 * capacity + 3 {
                let mut queue = Queue::random(capacity, 3, dtype, 5).expect("a queue");
                let mut model = Model::of(&queue);
                for round in 0..5u32 {
                    let keys = unit_rows(rng, batch, 3);
                    let labels: Vec<u32> = (0..batch as u32).map(|i| 100 * round + i).collect();
                    // No labels, then labels, then none again.
                    let labels = (round % 3 == 1).then_some(&labels[..]);
                    let kept = queue.enqueue(&keys, labels).expect("finite keys");
                    assert_eq!(kept, batch.min(capacity), "of {batch} in {capacity}");
                    model.enqueue(&keys, labels, dtype);
                    model.check(&queue);
                }
            }
        }
    }
}

#[test]
fn any_sequence_of_batches_leaves_what_the_model_holds() {
    let sequences = (
        1..40usize,
        1..6usize,
        prop::collection::vec(1..100usize, 1..8),
        any::<u64>(),
    );
    properties(200, sequences, |(capacity, dim, batches, seed)| {
        let rng = &mut fastrand::Rng::with_seed(seed);
        let dtype = DTYPES[rng.usize(..3)];
        let mut queue = Queue::random(capacity, dim, dtype, seed).expect("a queue");
        let mut model = Model::of(&queue);
        for batch in batches {
            let keys = unit_rows(rng, batch, dim);
            queue.enqueue(&keys, None).expect("finite keys");
            model.enqueue(&keys, None, dtype);
        }
        model.check(&queue);
        Ok(())
    });
}

/// Rows of N(0, 1)/norm: unit length, no direction preferred, none repeated.
#[test]
fn it_starts_full_of_random_unit_rows() {
    for dtype in DTYPES {
        let queue = Queue::random(2000, 16, dtype, 9).expect("a queue");
        assert_eq!(
            (queue.capacity(), queue.dim(), queue.cursor()),
            (2000, 16, 0)
        );
        assert_eq!(queue.labels(), None);
        let roundoff = match dtype {
            DType::F32 => 2f32.powi(-24),
            DType::F16 => 2f32.powi(-11),
            DType::Bf16 => 2f32.powi(-8),
        };
        for &squared in queue.squared_norms() {
            assert!(
                (squared - 1.0).abs() < 2.5 * roundoff,
                "{dtype:?}: {squared}"
            );
        }
        let data = queue.rows().to_f32();
        for axis in 0..16 {
            let column = data.iter().skip(axis).step_by(16);
            let mean = column.clone().sum::<f32>() / 2000.0;
            let square = column.map(|x| x * x).sum::<f32>() / 2000.0;
            // Standard deviations 1/√(16·2000) and about √(2/2000)/16; six of each.
            assert!(mean.abs() < 6.0 / 178.0, "axis {axis}: mean {mean}");
            assert!(
                (square - 1.0 / 16.0).abs() < 6.0 * 0.032 / 16.0,
                "axis {axis}: {square}"
            );
        }
        assert_eq!(queue, Queue::random(2000, 16, dtype, 9).expect("a queue"));
        assert_ne!(queue, Queue::random(2000, 16, dtype, 10).expect("a queue"));
        // A smaller queue is the beginning of a larger one; no row is another's.
        let other = Queue::random(3, 16, dtype, 9).expect("a queue");
        assert_eq!(other.row(2), queue.row(2));
        assert_ne!(queue.row(2), queue.row(3));
    }
}

#[test]
fn it_is_saved_and_loaded_bit_by_bit_with_its_cursor() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("queue.safetensors");
    for dtype in DTYPES {
        for labels in [None, Some(vec![4, NO_LABEL, 0])] {
            let mut queue = Queue::random(7, 5, dtype, 1).expect("a queue");
            // −0 and subnormals are bits like any other.
            let keys = [
                -0.0,
                1e-7,
                -1e-5,
                0.25,
                1.0,
                -0.0,
                0.0,
                -6e-8,
                1.0 / 3.0,
                -1.0,
            ];
            let keys = [&keys[..], &keys[..5]].concat();
            queue
                .enqueue(&keys, labels.as_deref())
                .expect("finite keys");
            queue.save(&path).expect("saved");
            let loaded = Queue::load(&path).expect("loaded");
            assert_eq!(loaded, queue);
            assert_eq!(loaded.cursor(), 3);
            assert_eq!(
                loaded.to_safetensors().expect("bytes"),
                queue.to_safetensors().expect("bytes"),
                "the same bits, signs of zero included"
            );
            // It goes on as the saved one would have.
            let (mut one, mut other) = (queue, loaded);
            let more = unit_rows(&mut fastrand::Rng::with_seed(2), 6, 5);
            one.enqueue(&more, None).expect("finite keys");
            other.enqueue(&more, None).expect("finite keys");
            assert_eq!(one, other);
        }
    }
    let files: Vec<_> = fs::read_dir(folder.path()).expect("the folder").collect();
    assert_eq!(files.len(), 1, "nothing is left beside the file");
}

fn small_file() -> Vec<u8> {
    let mut queue = Queue::random(3, 2, DType::Bf16, 1).expect("a queue");
    queue
        .enqueue(&[0.5, 0.5], Some(&[7]))
        .expect("a finite key");
    queue.to_safetensors().expect("bytes")
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small_file();
    assert!(Queue::from_safetensors(&bytes).is_ok());
    for length in 0..bytes.len() {
        let error = Queue::from_safetensors(&bytes[..length]).expect_err("truncated");
        assert!(!error.to_string().is_empty());
    }
}

/// A damaged file is refused, or it is another valid queue; it never panics.
#[test]
fn flipped_bytes_are_an_error_or_a_valid_queue() {
    let bytes = small_file();
    let check = |bytes: &[u8]| {
        if let Ok(queue) = Queue::from_safetensors(bytes) {
            assert!(queue.cursor() < queue.capacity());
            assert_eq!(queue.squared_norms().len(), queue.capacity());
            assert!(queue.rows().to_f32().iter().all(|x| x.is_finite()));
            assert!(queue.labels().is_none_or(|l| l.len() == queue.capacity()));
        }
    };
    for at in 0..bytes.len() {
        for value in [
            0,
            0xff,
            bytes[at] ^ 1,
            bytes[at] ^ 0x80,
            bytes[at].wrapping_add(1),
            b'9',
        ] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            check(&damaged);
        }
    }
    let damage = prop::collection::vec((0..bytes.len(), any::<u8>()), 1..6);
    properties(3000, damage, |flips| {
        let mut damaged = bytes.clone();
        for (at, value) in flips {
            damaged[at] = value;
        }
        check(&damaged);
        Ok(())
    });
    properties(1000, prop::collection::vec(any::<u8>(), 0..200), |noise| {
        check(&noise);
        Ok(())
    });
}

/// Files that are well-formed safetensors and yet no queue: the error names what is wrong.
#[test]
fn files_of_something_else_are_named() {
    use safetensors::tensor::{Dtype, TensorView};
    let zeros = [0u8; 64];
    let view = |dtype, shape: &[usize], bytes: usize| {
        TensorView::new(dtype, shape.to_vec(), &zeros[..bytes]).expect("a tensor")
    };
    let cursor = |text: &str| Some([("cursor".to_owned(), text.to_owned())].into());
    let good = || view(Dtype::F32, &[2, 3], 24);
    for (tensors, metadata, expected) in [
        (vec![("other", good())], cursor("0"), "queue"),
        (vec![("queue", good())], None, "cursor"),
        (vec![("queue", good())], cursor("two"), "cursor"),
        (vec![("queue", good())], cursor("-1"), "cursor"),
        (
            vec![("queue", good())],
            cursor("2"),
            "cursor is 2; expected less than the queue's capacity",
        ),
        (
            vec![("queue", view(Dtype::F64, &[2, 3], 48))],
            cursor("0"),
            "F64; expected F32, F16 or BF16",
        ),
        (
            vec![("queue", view(Dtype::F32, &[6], 24))],
            cursor("0"),
            "shape [6]; expected [K, d]",
        ),
        (
            vec![("queue", view(Dtype::F32, &[0, 3], 0))],
            cursor("0"),
            "queue is 0",
        ),
        (
            vec![("queue", view(Dtype::F32, &[3, 0], 0))],
            cursor("0"),
            "is 0",
        ),
        (
            vec![
                ("queue", good()),
                ("queue_labels", view(Dtype::U32, &[3], 12)),
            ],
            cursor("0"),
            "queue labels has 3 elements; expected 2",
        ),
        (
            vec![
                ("queue", good()),
                ("queue_labels", view(Dtype::I64, &[2], 16)),
            ],
            cursor("0"),
            "I64",
        ),
    ] {
        let bytes = safetensors::serialize(tensors, metadata).expect("a file");
        let error = Queue::from_safetensors(&bytes)
            .expect_err(expected)
            .to_string();
        assert!(
            error.contains(expected),
            "`{error}` should say `{expected}`"
        );
    }
    let nan = f32::NAN.to_le_bytes().repeat(6);
    let tensor = TensorView::new(Dtype::F32, vec![2, 3], &nan).expect("a tensor");
    let bytes = safetensors::serialize([("queue", tensor)], cursor("0")).expect("a file");
    let error = Queue::from_safetensors(&bytes).expect_err("NaN");
    assert!(
        error.to_string().contains("row 0 of queue is not finite"),
        "{error}"
    );
}

#[test]
fn a_failed_save_leaves_the_old_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("queue.safetensors");
    let old = Queue::random(4, 2, DType::F32, 1).expect("a queue");
    let new = Queue::random(4, 2, DType::F32, 2).expect("a queue");
    old.save(&path).expect("saved");

    // A full disk, while the new file is written.
    #[cfg(target_os = "linux")]
    {
        let beside = folder.path().join("queue.safetensors.partial");
        std::os::unix::fs::symlink("/dev/full", &beside).expect("a link");
        let error = new.save(&path).expect_err("no space").to_string();
        assert!(error.starts_with(path.to_str().expect("a path")), "{error}");
        assert!(error.to_lowercase().contains("space"), "{error}");
        assert!(
            fs::symlink_metadata(&beside).is_err(),
            "the leftover is gone"
        );
    }
    // Something in the way of the new file.
    let beside = folder.path().join("queue.safetensors.partial");
    fs::create_dir(&beside).expect("a folder");
    assert!(matches!(new.save(&path), Err(Error::File { .. })));
    fs::remove_dir(&beside).expect("still there");
    assert_eq!(Queue::load(&path).expect("loaded"), old);

    // A target that is a folder cannot be replaced; nothing is left beside it.
    let target = folder.path().join("folder");
    fs::create_dir(&target).expect("a folder");
    fs::write(target.join("inside"), "x").expect("a file");
    assert!(matches!(new.save(&target), Err(Error::File { .. })));
    assert!(!folder.path().join("folder.partial").exists());

    let missing = folder.path().join("nowhere").join("queue.safetensors");
    let error = new.save(&missing).expect_err("no folder").to_string();
    assert!(
        error.starts_with(missing.to_str().expect("a path")),
        "{error}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    for path in [folder.path().join("none"), folder.path().to_path_buf()] {
        let error = Queue::load(&path).expect_err("not a file");
        assert!(matches!(&error, Error::File { path: named, .. } if *named == path));
    }
    let path = folder.path().join("text");
    fs::write(&path, "not a queue").expect("a file");
    let error = Queue::load(&path).expect_err("not a queue").to_string();
    assert!(error.starts_with(path.to_str().expect("a path")), "{error}");
}

/// A refused batch writes nothing, whatever came before its bad row.
#[test]
fn a_refused_batch_changes_nothing() {
    let check = |dtype: DType, keys: &[f32], normalise: bool, expected: &str| {
        let mut queue = Queue::random(4, 2, dtype, 1).expect("a queue");
        let before = queue.clone();
        let error = if normalise {
            queue.enqueue_normalised(keys, Some(&[1, 2, 3]))
        } else {
            queue.enqueue(keys, Some(&[1, 2, 3]))
        };
        assert_eq!(error.expect_err(expected).to_string(), expected);
        assert_eq!(queue, before);
    };
    for dtype in DTYPES {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for normalise in [false, true] {
                let keys = [1.0, 0.0, 0.0, bad, 0.0, 1.0];
                check(dtype, &keys, normalise, "row 1 of keys is not finite");
            }
        }
        let keys = [1.0, 0.0, 0.0, 1.0, -0.0, 0.0];
        let message = "row 2 of keys has norm 0 and cannot be normalised";
        check(dtype, &keys, true, message);
    }
    // The largest f16 is 65504; from 65520 on, f32 rounds to infinity.
    let keys = [65519.0, 0.0, 0.0, 65520.0, 0.0, 1.0];
    check(DType::F16, &keys, false, "row 1 of keys is not finite");
    let mut queue = Queue::random(4, 2, DType::F16, 1).expect("a queue");
    queue
        .enqueue(&[65519.0, -65519.0], None)
        .expect("within range");
    assert_eq!(queue.row(0), Some(vec![65504.0, -65504.0]));
    // bf16 has the range of f32, but its largest is less than f32's.
    let keys = [f32::MAX, 0.0, 0.0, 0.0, 0.0, 1.0];
    check(DType::Bf16, &keys, false, "row 0 of keys is not finite");
}

#[test]
fn normalised_keys_are_directions() {
    let mut queue = Queue::random(4, 2, DType::F32, 1).expect("a queue");
    // Squares of the second would underflow in f32, of the third overflow.
    let keys = [3.0, 4.0, 3e-30, 4e-30, -3e30, 4e30, 0.0, 1e-45];
    queue.enqueue_normalised(&keys, None).expect("no zero row");
    for (j, expected) in [[0.6, 0.8], [0.6, 0.8], [-0.6, 0.8], [0.0, 1.0]]
        .iter()
        .enumerate()
    {
        let row = queue.row(j).expect("a row");
        for (x, e) in row.iter().zip(expected) {
            assert!((x - e).abs() < 1.2e-7, "row {j}: {row:?}");
        }
    }
}

/// The queue in device memory: whatever is done to it leaves the bits of one in host memory.
#[cfg(feature = "cuda")]
mod on_the_device {
    use super::*;
    use common::bits;
    use common::cuda::{device, under_all_schedules};
    use hardmix::cuda;

    /// Everything that a queue holds, its squared norms as the device has them.
    type Held = (Queue, Vec<u32>);

    fn held(queue: &cuda::Queue) -> Held {
        let norms = device()
            .download("norms", queue.squared_norms(), queue.capacity())
            .expect("norms");
        (queue.to_host(device()).expect("a copy"), bits(&norms))
    }

    #[test]
    fn it_holds_what_one_in_host_memory_holds() {
        let device = device();
        let rng = &mut fastrand::Rng::with_seed(5);
        for dtype in DTYPES {
            for (capacity, dim, batches) in [
                (1, 1, [1, 2, 1]),
                (5, 3, [2, 4, 11]),
                (12, 8, [12, 5, 25]),
                (300, 33, [64, 260, 1]),
            ] {
                let mut host = Queue::random(capacity, dim, dtype, 5).expect("a queue");
                let mut own = cuda::Queue::from_host(device, &host).expect("a copy");
                for (round, batch) in batches.into_iter().enumerate() {
                    let keys: Vec<f32> =
                        unit_rows(rng, batch, dim).iter().map(|x| x * 1.5).collect();
                    let labels: Vec<u32> = (0..batch as u32).collect();
                    let labels = (round == 1).then_some(&labels[..]);
                    // One element into an allocation, where no vector would be aligned.
                    let shifted = [&[f32::NAN], &keys[..]].concat();
                    let there = device.upload("keys", &shifted).expect("keys");
                    let there = there.slice(1..);
                    let labels_there = labels.map(|l| device.upload("labels", l).expect("labels"));
                    let labels_there = labels_there.as_ref().map(|l| l as _);
                    let kept = if round == 2 {
                        host.enqueue_normalised(&keys, labels).expect("keys");
                        own.enqueue_normalised(device, &there, labels_there)
                    } else {
                        host.enqueue(&keys, labels).expect("keys");
                        own.enqueue(device, &there, labels_there)
                    };
                    assert_eq!(kept.expect("keys"), batch.min(capacity));
                    own.check(device).expect("finite keys");
                    let expected = (host.clone(), bits(host.squared_norms()));
                    assert!(held(&own) == expected, "{dtype:?}, {batch} in {capacity}");
                    assert_eq!(own.cursor(device).expect("a cursor"), host.cursor());
                }
            }
        }
    }

    #[test]
    fn every_schedule_leaves_the_same_bits() {
        let device = device();
        let keys = unit_rows(&mut fastrand::Rng::with_seed(2), 70, 20);
        let keys = device.upload("keys", &keys).expect("keys");
        for dtype in DTYPES {
            under_all_schedules(|| {
                let host = Queue::random(50, 20, dtype, 5).expect("a queue");
                let mut queue = cuda::Queue::from_host(device, &host).expect("a copy");
                queue.enqueue(device, &keys, None).expect("keys");
                queue.enqueue_normalised(device, &keys, None).expect("keys");
                held(&queue)
            });
        }
    }

    #[test]
    fn a_refused_batch_changes_nothing_and_is_reported() {
        let device = device();
        let refuse = |dtype, keys: &[f32], normalise: bool, expected: &str| {
            let host = Queue::random(4, 2, dtype, 1).expect("a queue");
            let mut queue = cuda::Queue::from_host(device, &host).expect("a copy");
            let before = held(&queue);
            let there = device.upload("keys", keys).expect("keys");
            let fine = device.upload("keys", &[0.5f32; 2]).expect("keys");
            if normalise {
                queue.enqueue_normalised(device, &there, None)
            } else {
                queue.enqueue(device, &there, None)
            }
            .expect("only the device can see");
            assert!(held(&queue) == before, "{expected}");
            // A good batch goes in, and does not hide the refusal of the one before.
            queue.enqueue(device, &fine, None).expect("a key");
            assert_eq!(queue.cursor(device).expect("a cursor"), 1);
            let error = queue.check(device).expect_err(expected).to_string();
            assert_eq!(error, expected);
            queue.check(device).expect("told once");
            assert_eq!(queue.cursor(device).expect("a cursor"), 1);
        };
        for dtype in DTYPES {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for normalise in [false, true] {
                    let keys = [1.0, 0.0, 0.0, bad, 0.0, 1.0];
                    refuse(dtype, &keys, normalise, "row 1 of keys is not finite");
                }
            }
            let keys = [1.0, 0.0, 0.0, 1.0, -0.0, 0.0];
            let message = "row 2 of keys has norm 0 and cannot be normalised";
            refuse(dtype, &keys, true, message);
        }
        // Of more keys than there are rows, one that would not have stayed.
        let mut keys = [0.5; 20];
        keys[3] = f32::NAN;
        refuse(DType::F32, &keys, false, "row 1 of keys is not finite");
        let keys = [65519.0, 0.0, 0.0, 65520.0, 0.0, 1.0];
        refuse(DType::F16, &keys, false, "row 1 of keys is not finite");
        let keys = [f32::MAX, 0.0, 0.0, 0.0, 0.0, 1.0];
        refuse(DType::Bf16, &keys, false, "row 0 of keys is not finite");
    }

    #[test]
    fn what_cannot_be_enqueued_is_refused_before_a_launch() {
        let device = device();
        let host = Queue::random(4, 2, DType::F32, 1).expect("a queue");
        let mut queue = cuda::Queue::from_host(device, &host).expect("a copy");
        let before = held(&queue);
        let keys = device.upload("keys", &[0.5f32; 6]).expect("keys");
        let labels = device.upload("labels", &[1u32; 2]).expect("labels");
        let refused = |result: hardmix::Result<usize>| result.expect_err("refused").to_string();

        let ragged = refused(queue.enqueue(device, &keys.slice(..5), None));
        assert!(ragged.contains("keys has 5 elements"), "{ragged}");
        let wrong = refused(queue.enqueue(device, &keys, Some(&labels)));
        assert!(
            wrong.contains("labels has 2 elements; expected 3"),
            "{wrong}"
        );
        // SAFETY: the memory is the queue's own, which outlives the second owner; that one is
        // forgotten before it would free it.
        let alias = unsafe {
            use cudarc::driver::DevicePtr;
            let (pointer, _record) = match queue.rows() {
                cuda::Rows::F32(rows) => rows.device_ptr(device.stream()),
                _ => unreachable!(),
            };
            device.stream().upgrade_device_ptr::<f32>(pointer, 4)
        };
        let overlap = refused(queue.enqueue(device, &alias, None));
        assert_eq!(overlap, "queue overlaps keys; expected memory of its own");
        let _ = alias.leak();
        assert!(held(&queue) == before);
        assert!(queue.labels().is_none());
    }
}
