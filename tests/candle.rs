//! The drop-in for candle against candle's own autograd over elementary operations, in f64.
#![cfg(feature = "candle")]

use candle_core::{DType, Device, Tensor, Var};
use hardmix::candle::Loss;
use hardmix::draws::philox4x32_10;
use hardmix::{Config, Draws, Error, Output, QueryGradient, Queue, Reduction, Rows};

const ROWS: usize = 6;
const DIM: usize = 24;
const CAPACITY: usize = 48;

type Anyway = Result<(), Box<dyn std::error::Error>>;

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

fn case() -> Case {
    let var = |seed| Var::from_vec(rows(ROWS, DIM, seed), (ROWS, DIM), &Device::Cpu).unwrap();
    Case {
        queries: var(1),
        keys: var(2),
        queue: Queue::from_rows(Rows::F32(rows(CAPACITY, DIM, 3)), DIM).unwrap(),
        draws: Draws::seeded(7, 11).unwrap(),
    }
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
    let queue = queue.rows().to_f32().into_iter().map(f64::from).collect();
    let queue = Tensor::from_vec(queue, (CAPACITY, DIM), &device)?;
    let tau = f64::from(config.temperature());
    let mut losses = Vec::new();
    for b in 0..ROWS {
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
    let actual = actual.to_dtype(DType::F64).unwrap();
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

#[test]
fn loss_and_gradients_are_those_of_elementary_operations() -> Anyway {
    let case = case();
    let configs = [
        Config::moco(),
        mochi(),
        mochi().with_query_gradient(QueryGradient::Attached),
        mochi().with_temperature(0.07)?,
        mochi().with_reduction(Reduction::Sum),
        mochi().with_reduction(Reduction::None),
    ];
    for config in configs {
        let config = config.with_key_gradient(true);
        let mut own = Loss::new(config.clone());
        let (loss, output) = own.forward(&case.queries, &case.keys, &case.queue, &case.draws)?;
        // Another upstream value for each row tells rows and reductions apart.
        let upstream = Tensor::from_iter((1..=ROWS).map(|i| i as f32 / 4.0), &Device::Cpu)?;
        let weighted = match config.reduction() {
            Reduction::None => (&loss * &upstream)?.sum_all()?,
            _ => (&loss * 3.0)?,
        };
        let gradients = weighted.backward()?;

        let queries = Var::from_tensor(&case.queries.to_dtype(DType::F64)?)?;
        let keys = Var::from_tensor(&case.keys.to_dtype(DType::F64)?)?;
        let losses = composed(&queries, &keys, &case.queue, &config, &output)?;
        let expected = match config.reduction() {
            Reduction::Mean => losses.mean_all()?,
            Reduction::Sum => losses.sum_all()?,
            Reduction::None => losses,
        };
        let expected_weighted = match config.reduction() {
            Reduction::None => (&expected * upstream.to_dtype(DType::F64)?)?.sum_all()?,
            _ => (&expected * 3.0)?,
        };
        let expected_gradients = expected_weighted.backward()?;
        assert_eq!(loss.dims(), expected.dims());
        assert!(relative(&loss, &expected) < TOLERANCE, "{config:?}");
        for (own, other) in [(&case.queries, &queries), (&case.keys, &keys)] {
            let own = gradients.get(own).expect("a gradient");
            let error = relative(own, expected_gradients.get(other).expect("a gradient"));
            assert!(error < TOLERANCE, "{config:?}: {error:e}");
        }
    }
    Ok(())
}

#[test]
fn keys_carry_no_gradient_unless_asked() -> Anyway {
    let case = case();
    let (loss, _) =
        Loss::new(mochi()).forward(&case.queries, &case.keys, &case.queue, &case.draws)?;
    let gradients = loss.backward()?;
    assert!(gradients.get(&case.queries).is_some());
    assert!(gradients.get(&case.keys).is_none());
    Ok(())
}

#[test]
fn detached_queries_get_no_gradient() -> Anyway {
    let case = case();
    let mut own = Loss::new(mochi());
    let (loss, _) = own.forward(&case.queries.detach(), &case.keys, &case.queue, &case.draws)?;
    assert!(loss.backward()?.get(&case.queries).is_none());
    Ok(())
}

#[test]
fn several_losses_in_one_graph_keep_their_own_gradients() -> Anyway {
    let case = case();
    let mut own = Loss::new(mochi());
    let gradient =
        |own: &mut Loss, step, scale: f64| -> Result<Tensor, Box<dyn std::error::Error>> {
            let draws = Draws::seeded(7, step)?;
            let (loss, _) = own.forward(&case.queries, &case.keys, &case.queue, &draws)?;
            Ok((loss * scale)?)
        };
    let alone = |own: &mut Loss, step, scale| -> Result<Tensor, Box<dyn std::error::Error>> {
        let gradients = gradient(own, step, scale)?.backward()?;
        Ok(gradients.get(&case.queries).expect("a gradient").clone())
    };
    let sum = (alone(&mut own, 1, 1.0)? + alone(&mut own, 2, -2.5)?)?;
    let both = (gradient(&mut own, 1, 1.0)? + gradient(&mut own, 2, -2.5)?)?.backward()?;
    let both = both.get(&case.queries).expect("a gradient");
    assert!(relative(both, &sum.to_dtype(DType::F64)?) < TOLERANCE);
    Ok(())
}

#[test]
fn the_gradient_flows_on_through_what_made_the_queries() -> Anyway {
    let case = case();
    let (loss, output) = Loss::new(mochi()).forward(
        &(case.queries.as_tensor() * 0.5)?,
        &case.keys,
        &case.queue,
        &case.draws,
    )?;
    let gradients = loss.backward()?;
    let expected = Tensor::from_vec(output.grad_queries, (ROWS, DIM), &Device::Cpu)?;
    let expected = (expected * 0.5)?.to_dtype(DType::F64)?;
    let own = gradients.get(&case.queries).expect("a gradient");
    assert!(relative(own, &expected) < TOLERANCE);
    Ok(())
}

#[test]
fn a_view_with_an_offset_is_read_where_it_lies() -> Anyway {
    let case = case();
    let twice = Tensor::cat(&[case.keys.as_tensor(), case.queries.as_tensor()], 0)?;
    let mut own = Loss::new(mochi());
    let (expected, _) = own.forward(&case.queries, &case.keys, &case.queue, &case.draws)?;
    let view = twice.narrow(0, ROWS, ROWS)?;
    let (loss, _) = own.forward(&view, &case.keys, &case.queue, &case.draws)?;
    assert_eq!(
        loss.to_scalar::<f32>()?.to_bits(),
        expected.to_scalar::<f32>()?.to_bits()
    );
    Ok(())
}

#[test]
fn unfit_tensors_are_errors_by_name() -> Anyway {
    let case = case();
    let mut own = Loss::new(mochi());
    let mut fails = |queries: &Tensor, keys: &Tensor| {
        own.forward(queries, keys, &case.queue, &case.draws)
            .expect_err("unfit")
            .to_string()
    };
    let (queries, keys) = (case.queries.as_tensor(), case.keys.as_tensor());
    let strided = queries.t()?.contiguous()?.t()?;
    assert!(fails(&strided, keys).contains("`queries`: is not contiguous"));
    assert!(fails(queries, &strided).contains("`keys`: is not contiguous"));
    assert!(fails(&queries.to_dtype(DType::F64)?, keys).contains("`queries`: is F64"));
    assert!(fails(queries, &keys.narrow(0, 0, 3)?).contains("`keys`: has shape [3, 24]"));
    assert!(fails(&queries.flatten_all()?, keys).contains("`queries`: has shape [144]"));
    let narrow = queries.narrow(1, 0, 8)?.contiguous()?;
    assert!(fails(&narrow, &narrow).contains("dimension"));
    let infinite = (queries / 0.0)?;
    assert!(matches!(
        own.forward(&infinite, keys, &case.queue, &case.draws),
        Err(Error::NonFinite {
            argument: "queries",
            row: 0
        })
    ));
    Ok(())
}
