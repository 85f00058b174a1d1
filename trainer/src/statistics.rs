//! What a few numbers say: their middle, their spread, and how far a paired difference can be trusted.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// The confidence of every interval.
pub const CONFIDENCE: f64 = 0.95;

/// The median; NaN of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// The mean; NaN of nothing.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation of the population that these values are a sample of; none for fewer than
/// two values.
#[must_use]
pub fn deviation(values: &[f64]) -> Option<f64> {
    let middle = mean(values);
    let squares: f64 = values.iter().map(|value| (value - middle).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (values.len() - 1) as f64).sqrt())
}

/// The mean of some values with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// The interval's lower end; none for fewer than two values, or equal ones.
    pub low: Option<f64>,
    /// The interval's upper end.
    pub high: Option<f64>,
}

impl Interval {
    /// The interval of Student's t at [`CONFIDENCE`]: mean ± t · deviation / √n with n − 1 degrees
    /// of freedom. It takes the values for independent draws of one normal distribution; equal
    /// values (accuracies move in steps of one image) say nothing of its spread and get no interval.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let middle = mean(values);
        let count = values.len() as f64;
        // Equal values can differ from their mean by rounding.
        let rounding = 1e-12
            * values
                .iter()
                .fold(0.0, |most: f64, value| most.max(value.abs()));
        let spread = deviation(values).filter(|&deviation| deviation > rounding);
        let half = spread.and_then(|deviation| {
            let t = StudentsT::new(0.0, 1.0, count - 1.0).ok()?;
            Some(t.inverse_cdf(0.5 + CONFIDENCE / 2.0) * deviation / count.sqrt())
        });
        let (low, high) = (
            half.map(|half| middle - half),
            half.map(|half| middle + half),
        );
        Interval {
            mean: middle,
            low,
            high,
        }
    }

    /// Whether a mean of 0 is excluded; none where there is no interval.
    #[must_use]
    pub fn excludes_zero(&self) -> Option<bool> {
        Some(self.low? > 0.0 || self.high? < 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_nothing_is_nan() {
        assert!(median([]).is_nan());
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn the_interval_of_a_textbook_sample() {
        // n = 5, mean 3, deviation √2.5; t(0.975, 4) = 2.776445105 (tables), half-width 1.963243.
        let interval = Interval::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(interval.mean, 3.0);
        assert!((interval.low.unwrap() - 1.036_756_838).abs() < 1e-6);
        assert!((interval.high.unwrap() - 4.963_243_162).abs() < 1e-6);
        assert_eq!(interval.excludes_zero(), Some(true));
    }

    #[test]
    fn the_quantiles_of_the_tables() {
        // Two values ±1 around a mean: deviation √2, so half-width t(0.975, 1) = 12.7062047.
        let interval = Interval::of(&[-1.0, 1.0]);
        assert!((interval.high.unwrap() - 12.706_204_7).abs() < 1e-5);
        assert_eq!(interval.excludes_zero(), Some(false));
        // Ten values ±1: deviation √(10/9), t(0.975, 9) = 2.262157163, half-width 0.754052388.
        let ten: Vec<f64> = (0..10)
            .map(|i| if i % 2 == 0 { -1.0 } else { 1.0 })
            .collect();
        assert!((Interval::of(&ten).high.unwrap() - 0.754_052_388).abs() < 1e-6);
    }

    #[test]
    fn one_value_has_no_interval() {
        let interval = Interval::of(&[0.3]);
        assert_eq!(
            (interval.low, interval.high, interval.excludes_zero()),
            (None, None, None)
        );
        assert_eq!(deviation(&[0.3]), None);
    }

    #[test]
    fn equal_values_have_no_interval() {
        assert_eq!(Interval::of(&[0.0, 0.0, 0.0]).excludes_zero(), None);
        assert_eq!(Interval::of(&[0.1, 0.1, 0.1]).excludes_zero(), None);
    }
}
