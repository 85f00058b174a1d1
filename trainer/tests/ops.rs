//! The custom operations against candle's own, forwards and backwards.

use candle_core::{Device, Result, Tensor, Var};
use hardmix_trainer::ops;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(shape: &[usize], seed: u64) -> Var {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = shape.iter().product();
    let data: Vec<f32> = (0..count).map(|_| rng.random_range(-1.0..1.0)).collect();
    Var::from_vec(data, shape, &Device::Cpu).unwrap()
}

/// Largest difference over the largest magnitude. Sums of up to a few thousand products in another
/// order: √n roundings of 6e-8 each.
fn assert_close(actual: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(actual.dims(), expected.dims(), "{what}");
    let largest = |x: &Tensor| {
        let x = x.abs().unwrap().flatten_all().unwrap();
        x.max(0).unwrap().to_scalar::<f32>().unwrap()
    };
    let error = largest(&(actual - expected).unwrap()) / largest(expected);
    assert!(error < 5e-6, "{what}: {error:e}");
}

/// Output and gradients of `own` and `other`, with a random gradient from above.
fn compare(
    inputs: &[Var],
    own: impl Fn(&[Var]) -> Result<Tensor>,
    other: impl Fn(&[Var]) -> Result<Tensor>,
    what: &str,
) {
    let (own, other) = (own(inputs).unwrap(), other(inputs).unwrap());
    assert_close(&own, &other, what);
    let upstream = random(own.dims(), 99);
    let gradients = |out: &Tensor| (out * upstream.as_tensor()).unwrap().backward().unwrap();
    let (own, other) = (gradients(&own), gradients(&other));
    for (index, input) in inputs.iter().enumerate() {
        let (own, other) = (own.get(input).unwrap(), other.get(input).unwrap());
        assert_close(own, other, &format!("{what}, gradient {index}"));
    }
}

#[test]
fn convolution_is_candles() {
    // (batch, channels, height, width, filters, kernel, stride, padding)
    let cases = [
        (5, 1, 28, 28, 32, 3, 2, 1),
        (37, 8, 14, 14, 16, 3, 2, 1),
        (33, 16, 7, 7, 8, 3, 2, 1),
        (3, 3, 9, 13, 4, 3, 1, 1),
        (2, 4, 8, 8, 6, 1, 2, 0),
        (1, 2, 6, 5, 3, 5, 1, 2),
        (2, 2, 5, 5, 3, 4, 3, 0),
        (2, 2, 2, 2, 3, 3, 2, 3),
    ];
    for case in cases {
        let (b, c, h, w, o, k, stride, padding) = case;
        let inputs = [random(&[b, c, h, w], 1), random(&[o, c, k, k], 2)];
        compare(
            &inputs,
            |v| ops::conv2d(&v[0], &v[1], stride, padding),
            |v| v[0].conv2d(&v[1], padding, stride, 1, 1),
            &format!("{case:?}"),
        );
    }
}

/// Group norm from candle's elementary operations.
fn reference(v: &[Var], groups: usize, relu: bool) -> Result<Tensor> {
    let (b, c, h, w) = v[0].dims4()?;
    let x = v[0].reshape((b, groups, c / groups * h * w))?;
    let centred = x.broadcast_sub(&x.mean_keepdim(2)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(2)? + 1e-5)?.sqrt()?;
    let y = centred.broadcast_div(&deviation)?.reshape((b, c, h, w))?;
    let y = y.broadcast_mul(&v[1].reshape((1, c, 1, 1))?)?;
    let y = y.broadcast_add(&v[2].reshape((1, c, 1, 1))?)?;
    if relu { y.relu() } else { Ok(y) }
}

#[test]
fn group_norm_is_candles() {
    let cases = [
        (5, 32, 14, 14, 8),
        (33, 16, 4, 4, 8),
        (2, 6, 3, 5, 3),
        (1, 4, 1, 7, 1),
    ];
    for (b, c, h, w, groups) in cases {
        for relu in [false, true] {
            let inputs = [random(&[b, c, h, w], 3), random(&[c], 4), random(&[c], 5)];
            compare(
                &inputs,
                |v| ops::group_norm(&v[0], &v[1], &v[2], groups, relu),
                |v| reference(v, groups, relu),
                &format!("{:?}, relu {relu}", (b, c, h, w, groups)),
            );
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let v = [random(&[50, 8, 14, 14], 1), random(&[16, 8, 3, 3], 2)];
            let norm = [random(&[16], 3), random(&[16], 4)];
            let x = ops::conv2d(&v[0], &v[1], 2, 1).unwrap();
            let y = ops::group_norm(&x, &norm[0], &norm[1], 8, true).unwrap();
            let gradients = y.sqr().unwrap().backward().unwrap();
            let all = [&v[0], &v[1], &norm[0], &norm[1]].map(|var| {
                gradients
                    .get(var)
                    .unwrap()
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap()
            });
            all.concat()
                .into_iter()
                .map(f32::to_bits)
                .collect::<Vec<_>>()
        })
    };
    let one = run(1);
    for threads in [2, 3, 5] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

#[test]
fn unfit_shapes_are_errors() {
    let x = random(&[2, 3, 8, 8], 1);
    for weight in [[4, 2, 3, 3], [4, 3, 3, 2], [4, 3, 9, 9]] {
        assert!(
            ops::conv2d(&x, &random(&weight, 2), 1, 0).is_err(),
            "{weight:?}"
        );
    }
    assert!(ops::conv2d(&x, &random(&[4, 3, 3, 3], 2), 0, 0).is_err());
    assert!(ops::conv2d(&x.transpose(2, 3).unwrap(), &random(&[4, 3, 3, 3], 2), 1, 0).is_err());
    let [scale, short] = [random(&[3], 1), random(&[2], 1)];
    assert!(ops::group_norm(&x, &scale, &scale, 2, true).is_err());
    assert!(ops::group_norm(&x, &scale, &scale, 0, true).is_err());
    assert!(ops::group_norm(&x, &scale, &short, 3, true).is_err());
}
