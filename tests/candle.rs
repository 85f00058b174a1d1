//! The drop-in for candle against candle's own autograd over elementary operations, in f64: on the
//! CPU, and with the feature `candle-cuda` on CUDA too.
#![cfg(feature = "candle")]

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use hardmix::candle::{Loss, Queue};
use hardmix::draws::philox4x32_10;
use hardmix::{Config, Draws, Error, Output, QueryGradient, Reduction, Rows};

const ROWS: usize = 6;
const DIM: usize = 24;
const CAPACITY: usize = 48;

type Anyway<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn devices() -> Vec<Device> {
    vec![
        Device::Cpu,
        #[cfg(feature = "candle-cuda")]
        Device::new_cuda(0).expect("a CUDA device"),
    ]
}

/// Seeded rows of norm about 1.
fn rows(count: usize, dim: usize, seed: u32) -> Vec<f32> {
    let bound = (3.0 / dim as f32).sqrt();
    (0..count * dim)
        .map(|i| {
            let word = philox4x32_10([i as u32, 0, 0, 0], [seed, 1])[0];
            (word as f32 / u32::MAX as f32 * 2.0 - 1.0) * bound
        })
        .collect()
}

struct Case {
    queries: Var,
    keys: Var,
    queue: Queue,
    draws: Draws,
}

fn case(device: &Device) -> Case {
    let var = |seed| Var::from_vec(rows(ROWS, DIM, seed), (ROWS, DIM), device).unwrap();
    let queue = hardmix::Queue::from_rows(Rows::F32(rows(CAPACITY, DIM, 3)), DIM).unwrap();
    Case {
        queries: var(1),
        keys: var(2),
        queue: Queue::new(queue, device).unwrap(),
        draws: Draws::seeded(7, 11).unwrap(),
    }
}

impl Case {
    /// Queries and keys in f64 on the CPU.
    fn exact(&self) -> Anyway<(Var, Var)> {
        let exact = |var: &Var| Var::from_tensor(&on_cpu(var)?.to_dtype(DType::F64)?);
        Ok((exact(&self.queries)?, exact(&self.keys)?))
    }
}

fn on_cpu(tensor: &Tensor) -> candle_core::Result<Tensor> {
    tensor.to_device(&Device::Cpu)
}

fn mochi() -> Config {
    Config::mochi(12, 9, 7).unwrap()
}

/// Row losses from elementary operations in f64, with the choices that `output` made.
fn composed(
    queries: &Tensor,
    keys: &Tensor,
    queue: &Queue,
    config: &Config,
    output: &Output,
) -> candle_core::Result<Tensor> {
    let device = Device::Cpu;
    let queue = queue.to_host().expect("a copy");
    let queue = queue.rows().to_f32().into_iter().map(f64::from).collect();
    let queue = Tensor::from_vec(queue, (CAPACITY, DIM), &device)?;
    let tau = f64::from(config.temperature());
    let mut losses = Vec::new();
    for b in 0..queries.dim(0)? {
        let query = queries.narrow(0, b, 1)?;
        let hardest = &output.hardest[b * config.hardest()..][..config.hardest()];
        let gather = |positions: &[u32], width: usize| {
            let indices = positions[b * width..][..width]
                .iter()
                .map(|&p| hardest[p as usize]);
            queue.index_select(&Tensor::from_iter(indices, &device)?, 0)
        };
        let weights = |values: &[f32], width: usize| {
            Tensor::from_iter(
                values[b * width..][..width].iter().map(|&v| f64::from(v)),
                &device,
            )?
            .unsqueeze(1)
        };
        let unit = |x: Tensor| x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?);
        let mut negatives = vec![queue.clone()];
        let (s, query_s) = (config.mixed(), config.query_mixed());
        if s > 0 {
            let alpha = weights(&output.draws.alpha, s)?;
            let first = gather(&output.draws.first, s)?.broadcast_mul(&alpha)?;
            let rest = alpha.affine(-1.0, 1.0)?;
            let second = gather(&output.draws.second, s)?.broadcast_mul(&rest)?;
            negatives.push(unit((first + second)?)?);
        }
        if query_s > 0 {
            let beta = weights(&output.draws.beta, query_s)?;
            let own = match config.query_gradient() {
                QueryGradient::Detached => query.detach(),
                QueryGradient::Attached => query.clone(),
            };
            let rest = beta.affine(-1.0, 1.0)?;
            let other = gather(&output.draws.pick, query_s)?.broadcast_mul(&rest)?;
            negatives.push(unit((beta.matmul(&own)? + other)?)?);
        }
        let negatives = Tensor::cat(&negatives, 0)?;
        let positive = (&query * keys.narrow(0, b, 1)?)?.sum_keepdim(1)?;
        let products = query.broadcast_mul(&negatives)?.sum_keepdim(1)?;
        let logits = (Tensor::cat(&[&positive, &products], 0)? / tau)?;
        let log_sum = logits.log_sum_exp(0)?;
        losses.push((log_sum - (positive.squeeze(1)? / tau)?)?);
    }
    Tensor::cat(&losses, 0)
}

fn relative(actual: &Tensor, expected: &Tensor) -> f64 {
    let actual = on_cpu(actual).unwrap().to_dtype(DType::F64).unwrap();
    let norm = |x: &Tensor| {
        x.sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
            .sqrt()
    };
    norm(&(actual - expected).unwrap()) / norm(expected)
}

/// f32 inputs against f64: rounding of sums over d and over the negatives, a few ulp.
const TOLERANCE: f64 = 1e-6;

fn expect_near(what: &str, actual: &Tensor, expected: &Tensor) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let error = relative(actual, expected);
    assert!(error < TOLERANCE, "{what}: {error:e}");
}

/// The gradients of both sides, for this case's variable and its exact twin.
fn expect_same_gradient(
    what: &str,
    (own, var): (&GradStore, &Tensor),
    (exact, twin): (&GradStore, &Tensor),
) {
    let gradient = own.get(var).expect("a gradient");
    expect_near(what, gradient, exact.get(twin).expect("a gradient"));
}

#[test]
fn loss_and_gradients_are_those_of_elementary_operations() -> Anyway {
    let configs = [
        Config::moco(),
        mochi(),
        mochi().with_query_gradient(QueryGradient::Attached),
        mochi().with_temperature(0.07)?,
        mochi().with_reduction(Reduction::Sum),
        mochi().with_reduction(Reduction::None),
    ];
    for device in devices() {
        let case = case(&device);
        for config in &configs {
            let config = config.clone().with_key_gradient(true);
            let mut own = Loss::new(config.clone());
            let loss = own.forward(&case.queries, &case.keys, &case.queue, &case.draws)?;
            // Another upstream value for each row tells rows and reductions apart.
            let upstream = Tensor::from_iter((1..=ROWS).map(|i| i as f32 / 4.0), &Device::Cpu)?;
            let weighted = match config.reduction() {
                Reduction::None => (&loss * upstream.to_device(&device)?)?.sum_all()?,
                _ => (&loss * 3.0)?,
            };
            let gradients = weighted.backward()?;

            let (queries, keys) = case.exact()?;
            let losses = composed(&queries, &keys, &case.queue, &config, &own.output()?)?;
            let expected = match config.reduction() {
                Reduction::Mean => losses.mean_all()?,
                Reduction::Sum => losses.sum_all()?,
                Reduction::None => losses,
            };
            let expected_weighted = match config.reduction() {
                Reduction::None => (&expected * upstream.to_dtype(DType::F64)?)?.sum_all()?,
                _ => (&expected * 3.0)?,
            };
            let exact = expected_weighted.backward()?;
            let what = format!("{device:?}, {config:?}");
            expect_near(&what, &loss, &expected);
            for (own, twin) in [(&case.queries, &queries), (&case.keys, &keys)] {
                expect_same_gradient(&what, (&gradients, own), (&exact, twin));
            }
        }
    }
    Ok(())
}

#[test]
fn keys_carry_no_gradient_unless_asked() -> Anyway {
    for device in devices() {
        let case = case(&device);
        let mut own = Loss::new(mochi());
        let loss = own.forward(&case.queries, &case.keys, &case.queue, &case.draws)?;
        let gradients = loss.backward()?;
        assert!(gradients.get(&case.queries).is_some());
        assert!(gradients.get(&case.keys).is_none());
    }
    Ok(())
}

#[test]
fn a_detached_part_of_the_queries_gets_no_gradient() -> Anyway {
    for device in devices() {
        let case = case(&device);
        let mut own = Loss::new(mochi());
        let detached = case.queries.detach();
        let loss = own.forward(&detached, &case.keys, &case.queue, &case.draws)?;
        assert!(loss.backward()?.get(&case.queries).is_none());

        let half = |queries: &Tensor| (queries.detach() * 0.75)? + (queries * 0.25)?;
        let queries = half(&case.queries)?;
        let loss = own.forward(&queries, &case.keys, &case.queue, &case.draws)?;
        let gradients = loss.backward()?;
        let (exact_queries, keys) = case.exact()?;
        let queries = half(&exact_queries)?;
        let losses = composed(&queries, &keys, &case.queue, &mochi(), &own.output()?)?;
        let exact = losses.mean_all()?.backward()?;
        let (own, exact) = ((&gradients, &*case.queries), (&exact, &*exact_queries));
        expect_same_gradient(&format!("{device:?}"), own, exact);
    }
    Ok(())
}

#[test]
fn several_losses_in_one_graph_keep_their_own_gradients() -> Anyway {
    let configs = [(mochi(), 1.0), (Config::moco(), -2.5), (mochi(), 0.5)];
    for device in devices() {
        let case = case(&device);
        let (queries, keys) = case.exact()?;
        let mut own = Loss::new(mochi());
        let mut total = Tensor::zeros((), DType::F32, &device)?;
        let mut exact_total = Tensor::zeros((), DType::F64, &Device::Cpu)?;
        for (step, (config, scale)) in configs.iter().enumerate() {
            own.set_config(config.clone());
            let draws = Draws::seeded(7, step as u64)?;
            let loss = own.forward(&case.queries, &case.keys, &case.queue, &draws)?;
            total = (total + (loss * *scale)?)?;
            let losses = composed(&queries, &keys, &case.queue, config, &own.output()?)?;
            exact_total = (exact_total + (losses.mean_all()? * *scale)?)?;
        }
        let (gradients, exact) = (total.backward()?, exact_total.backward()?);
        let (own, exact) = ((&gradients, &*case.queries), (&exact, &*queries));
        expect_same_gradient(&format!("{device:?}"), own, exact);
    }
    Ok(())
}

#[test]
fn gradients_accumulate_over_the_parts_of_a_batch() -> Anyway {
    const PARTS: usize = 3;
    for device in devices() {
        let case = case(&device);
        let (queries, keys) = case.exact()?;
        let mut own = Loss::new(mochi());
        let mut accumulated = Tensor::zeros((ROWS, DIM), DType::F32, &device)?;
        let mut losses = Vec::new();
        for part in 0..PARTS {
            let rows = |tensor: &Tensor| tensor.narrow(0, part * ROWS / PARTS, ROWS / PARTS);
            // A step number of its own for each part: its rows are not those of another.
            let draws = Draws::seeded(7, part as u64)?;
            let (own_queries, own_keys) = (rows(&case.queries)?, rows(&case.keys)?);
            let loss = own.forward(&own_queries, &own_keys, &case.queue, &draws)?;
            let gradients = (loss / PARTS as f64)?.backward()?;
            let gradient = gradients.get(&case.queries).expect("a gradient");
            accumulated = (accumulated + gradient)?;
            let (rows, keys) = (rows(&queries)?, rows(&keys)?);
            losses.push(composed(
                &rows,
                &keys,
                &case.queue,
                &mochi(),
                &own.output()?,
            )?);
        }
        let exact = Tensor::cat(&losses, 0)?.mean_all()?.backward()?;
        let expected = exact.get(&queries).expect("a gradient");
        expect_near(&format!("{device:?}"), &accumulated, expected);
    }
    Ok(())
}

#[test]
fn the_gradient_flows_on_through_what_made_the_queries() -> Anyway {
    for device in devices() {
        let case = case(&device);
        let mut own = Loss::new(mochi());
        let queries = (case.queries.as_tensor() * 0.5)?;
        let loss = own.forward(&queries, &case.keys, &case.queue, &case.draws)?;
        let gradients = loss.backward()?;
        let fused = own.output()?.grad_queries;
        let expected = (Tensor::from_vec(fused, (ROWS, DIM), &Device::Cpu)? * 0.5)?;
        let gradient = gradients.get(&case.queries).expect("a gradient");
        expect_near("halved", gradient, &expected.to_dtype(DType::F64)?);
    }
    Ok(())
}

#[test]
fn a_view_with_an_offset_is_read_where_it_lies() -> Anyway {
    for device in devices() {
        let case = case(&device);
        let twice = Tensor::cat(&[case.keys.as_tensor(), case.queries.as_tensor()], 0)?;
        let mut own = Loss::new(mochi());
        let expected = own.forward(&case.queries, &case.keys, &case.queue, &case.draws)?;
        let view = twice.narrow(0, ROWS, ROWS)?;
        let loss = own.forward(&view, &case.keys, &case.queue, &case.draws)?;
        assert_eq!(
            loss.to_scalar::<f32>()?.to_bits(),
            expected.to_scalar::<f32>()?.to_bits()
        );
    }
    Ok(())
}

#[test]
fn the_queue_takes_keys_and_labels_as_the_library_s_does() -> Anyway {
    for device in devices() {
        let Case { keys, queue, .. } = case(&device);
        let mut host = queue.to_host()?.into_owned().with_cursor(CAPACITY - 2)?;
        let mut queue = Queue::new(host.clone(), &device)?;
        let labels: Vec<u32> = (10..10 + ROWS as u32).collect();
        let rows_of = |keys: &Tensor| on_cpu(keys)?.flatten_all()?.to_vec1::<f32>();

        let own = Tensor::from_slice(&labels, ROWS, &device)?;
        let kept = queue.enqueue(&keys, Some(&own))?;
        assert_eq!(kept, host.enqueue(&rows_of(&keys)?, Some(&labels))?);
        assert_eq!(*queue.to_host()?, host);
        queue.enqueue_normalised(&(keys.as_tensor() * 3.0)?, None)?;
        host.enqueue_normalised(&rows_of(&(keys.as_tensor() * 3.0)?)?, None)?;
        assert_eq!(*queue.to_host()?, host);
        queue.check()?;

        let folder = tempfile::tempdir()?;
        let path = folder.path().join("queue.safetensors");
        queue.save(&path)?;
        assert_eq!(*Queue::load(&path, &device)?.to_host()?, host);
    }
    Ok(())
}

#[test]
fn labels_measure_and_the_oracle_masks() -> Anyway {
    for device in devices() {
        let case = case(&device);
        let of_rows: Vec<u32> = (0..ROWS as u32).map(|b| b % 3).collect();
        let of_queue = (0..CAPACITY as u32).map(|k| k % 3).collect();
        let host = case.queue.to_host()?.into_owned().with_labels(of_queue)?;
        let queue = Queue::new(host, &device)?;
        let labels = Tensor::from_slice(&of_rows, ROWS, &device)?;
        let (queries, keys) = (&case.queries, &case.keys);
        let mut own = Loss::new(mochi());
        let plain = own.forward(queries, keys, &queue, &case.draws)?;
        assert_eq!(own.output()?.metrics.same_label_share, None);
        let loss = own.forward_with_labels(queries, keys, &labels, &queue, &case.draws)?;
        assert_eq!(loss.to_scalar::<f32>()?, plain.to_scalar::<f32>()?);
        assert!(own.output()?.metrics.same_label_share.is_some());
        own.set_config(mochi().with_oracle(true));
        let masked = own.forward_with_labels(queries, keys, &labels, &queue, &case.draws)?;
        assert!(masked.to_scalar::<f32>()? < loss.to_scalar::<f32>()?);
    }
    Ok(())
}

#[test]
fn unfit_tensors_are_errors_by_name() -> Anyway {
    for device in devices() {
        let mut case = case(&device);
        let (queries, keys) = (case.queries.as_tensor(), case.keys.as_tensor());
        let strided = queries.t()?.contiguous()?.t()?;
        let labels = Tensor::zeros(ROWS, DType::U32, &device)?;
        let mut own = Loss::new(mochi());
        let mut fails = |queries: &Tensor, keys: &Tensor, labels: &Tensor| {
            own.forward_with_labels(queries, keys, labels, &case.queue, &case.draws)
                .expect_err("unfit")
                .to_string()
        };
        let double = Tensor::zeros((ROWS, DIM), DType::F64, &device)?;
        let few = keys.narrow(0, 0, 3)?;
        let narrow = queries.narrow(1, 0, 8)?.contiguous()?;
        let flat = queries.flatten_all()?;
        let folded = labels.reshape((2, ROWS / 2))?;
        for (message, queries, keys, labels) in [
            ("`queries`: is not contiguous", &strided, keys, &labels),
            ("`keys`: is not contiguous", queries, &strided, &labels),
            ("`queries`: is F64", &double, keys, &labels),
            ("`keys`: has shape [3, 24]", queries, &few, &labels),
            ("`queries`: has shape [144]", &flat, keys, &labels),
            ("dimension", &narrow, &narrow, &labels),
            ("`labels`: is F32", queries, keys, &flat),
            ("`labels`: has shape [2, 3]", queries, keys, &folded),
            (
                "labels has 3 elements",
                queries,
                keys,
                &labels.narrow(0, 0, 3)?,
            ),
        ] {
            let error = fails(queries, keys, labels);
            assert!(error.contains(message), "{error}; expected {message}");
        }

        let mut refuses = |keys: &Tensor, labels: Option<&Tensor>| {
            let error = case.queue.enqueue(keys, labels).expect_err("unfit");
            error.to_string()
        };
        assert!(refuses(&strided, None).contains("`keys`: is not contiguous"));
        assert!(refuses(&narrow, None).contains("`keys`: has dimension 8; the queue has 24"));
        assert!(refuses(keys, Some(&flat)).contains("`labels`: is F32"));
        assert!(refuses(keys, Some(&folded)).contains("`labels`: has shape [2, 3]"));
        assert!(refuses(&few, Some(&labels)).contains("labels has 6 elements"));
    }
    Ok(())
}

#[test]
fn a_row_that_is_not_finite_never_passes_for_a_loss() -> Anyway {
    for device in devices() {
        let mut case = case(&device);
        let mut own = Loss::new(mochi());
        assert!(own.output().is_err(), "nothing was run");
        let infinite = (case.queries.as_tensor() / 0.0)?;
        let forward = own.forward(&infinite, &case.keys, &case.queue, &case.draws);
        let error = if device.is_cpu() {
            forward.expect_err("refused at once")
        } else {
            assert!(forward?.to_scalar::<f32>()?.is_nan());
            own.output()?.loss().expect_err("refused when read")
        };
        let (argument, row) = ("queries", 0);
        let Error::NonFinite {
            argument: a,
            row: r,
        } = error
        else {
            panic!("{error}");
        };
        assert_eq!((a, r), (argument, row));

        let before = case.queue.to_host()?.into_owned();
        let refused = case
            .queue
            .enqueue(&infinite, None)
            .and_then(|_| case.queue.check());
        let Err(Error::NonFinite {
            argument: "keys",
            row: 0,
        }) = refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!(*case.queue.to_host()?, before);
    }
    Ok(())
}

/// The error names the first of them; the output of that batch tells all.
#[test]
fn which_rows_are_not_finite_can_be_read_after_the_error() -> Anyway {
    for device in devices() {
        for reduction in [Reduction::Mean, Reduction::None] {
            let case = case(&device);
            let mut own = Loss::new(mochi().with_reduction(reduction));
            // The batch before this one must not be taken for it.
            own.forward(&case.queries, &case.keys, &case.queue, &case.draws)?;
            let mut spoilt = rows(ROWS, DIM, 1);
            spoilt[2 * DIM + 5] = f32::NAN;
            spoilt[4 * DIM] = f32::INFINITY;
            let spoilt = Tensor::from_vec(spoilt, (ROWS, DIM), &device)?;
            let forward = own.forward(&spoilt, &case.keys, &case.queue, &case.draws);
            assert_eq!(forward.is_err(), device.is_cpu());
            let output = own.output()?;
            let is_nan: Vec<bool> = output.loss_rows.iter().map(|loss| loss.is_nan()).collect();
            assert_eq!(is_nan, [false, false, true, false, true, false]);
            assert!(matches!(
                output.loss(),
                Err(Error::NonFinite { row: 2, .. })
            ));
        }
    }
    Ok(())
}

#[test]
fn given_draws_are_used_and_those_out_of_range_refused() -> Anyway {
    for device in devices() {
        let case = case(&device);
        let mut own = Loss::new(mochi());
        let (queries, keys) = (&case.queries, &case.keys);
        let seeded = own.forward(queries, keys, &case.queue, &case.draws)?;
        let mut draws = own.output()?.draws;
        let given = Draws::given(draws.clone());
        let loss = own.forward(queries, keys, &case.queue, &given)?;
        assert_eq!(loss.to_scalar::<f32>()?, seeded.to_scalar::<f32>()?);
        draws.pick[8] = 12; // The second of row 1, of 7 a row and 12 hardest.
        let error = own.forward(queries, keys, &case.queue, &Draws::given(draws));
        let Err(Error::DrawOutOfRange {
            argument: "pick",
            row: 1,
            index: 1,
            ..
        }) = error
        else {
            panic!("{error:?}");
        };
    }
    Ok(())
}

#[cfg(feature = "candle-cuda")]
#[test]
fn tensors_of_another_device_than_the_queue_s_are_refused() -> Anyway {
    let [here, there] = &devices()[..] else {
        panic!("the CPU and CUDA");
    };
    let (here, mut there) = (case(here), case(there));
    let mut own = Loss::new(mochi());
    let error = own.forward(&here.queries, &there.keys, &there.queue, &there.draws);
    let message = error.expect_err("two devices").to_string();
    assert!(
        message.contains("`queries`: lies on another device"),
        "{message}"
    );
    let error = there.queue.enqueue(&here.keys, None);
    let message = error.expect_err("two devices").to_string();
    assert!(
        message.contains("`keys`: lies on another device"),
        "{message}"
    );
    Ok(())
}

/// How often this thread has waited for the device, by softgpu's count; a GPU's driver has none.
/// (Linked, softgpu would be the driver itself, in the place of the machine's.)
#[cfg(feature = "candle-cuda")]
fn waits() -> Option<u64> {
    // SAFETY: the driver is loaded already, and softgpu's function of this name has this type.
    unsafe {
        let driver = libloading::Library::new("libcuda.so.1").expect("the driver");
        let count = driver.get::<extern "C" fn() -> u64>("softgpu_waits").ok()?;
        Some(count())
    }
}

/// Everything that a trainer does with the library in a step, backward included.
#[cfg(feature = "candle-cuda")]
#[test]
fn a_step_on_cuda_never_waits_for_the_device() -> Anyway {
    let device = Device::new_cuda(0)?;
    let mut case = case(&device);
    let labels = Tensor::zeros(ROWS, DType::U32, &device)?;
    let mut own = Loss::new(mochi());
    let mut step = |number| -> Anyway<Tensor> {
        let draws = Draws::seeded(7, number)?;
        let (queries, keys) = (&case.queries, &case.keys);
        let loss = own.forward_with_labels(queries, keys, &labels, &case.queue, &draws)?;
        let gradient = loss.backward()?.remove(queries).expect("a gradient");
        case.queue.enqueue(keys, Some(&labels))?;
        Ok(gradient)
    };
    // The first makes room, and the labels of a queue that had none.
    step(0)?;
    let before = waits();
    let gradient = step(1)?;
    assert_eq!(waits(), before);
    gradient.flatten_all()?.to_vec1::<f32>()?;
    assert!(before.is_none() || waits() > before, "what is read counts");
    Ok(())
}
