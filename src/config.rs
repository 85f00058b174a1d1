//! What a step computes: temperature, how many hardest, how many synthetics, and what to report.

use crate::error::{Error, Result};

/// Whether the gradient also flows through the query inside a query-mixed negative h′.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum QueryGradient {
    /// h′ is a constant for the gradient, as in the public ports of MoCHi.
    #[default]
    Detached,
    /// The gradient flows through h′ = (βq + (1−β)n)/r as well. With unit rows its tangent part is
    /// half the detached one at β = ½: the choice changes training.
    Attached,
}

/// How the per-row losses become one loss, and what the gradient is a gradient of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Reduction {
    /// The mean over the rows of the batch.
    #[default]
    Mean,
    /// The sum over the rows of the batch.
    Sum,
    /// No reduction: row b of the gradient is the gradient of row b's own loss. Multiply it by the
    /// row's upstream value. [`crate::Output::loss`] then reports the sum.
    None,
}

/// The settings of a step, valid by construction.
///
/// ```
/// use hardmix::{Config, QueryGradient};
/// let config = Config::mochi(1024, 1024, 128)?.with_temperature(0.07)?;
/// assert_eq!(config.query_gradient(), QueryGradient::Detached);
/// assert_eq!(config.warm_up().mixed(), 0);
/// assert!(Config::mochi(0, 16, 0).is_err());
/// # Ok::<(), hardmix::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    temperature: f32,
    hardest: usize,
    mixed: usize,
    query_mixed: usize,
    query_gradient: QueryGradient,
    oracle: bool,
    reduction: Reduction,
    key_gradient: bool,
    uniformity: bool,
    matching_probability: bool,
}

/// A setting of the paper: its name, as `data set (N, s, s′)`, and its constructor.
pub type PaperSetting = (&'static str, fn() -> Config);

macro_rules! paper {
    ($($name:ident, $set:literal, $hardest:literal, $mixed:literal, $query_mixed:literal;)*) => {
        $(
            #[doc = concat!(
                "The paper's ", $set, " setting (N, s, s′) = (", $hardest, ", ", $mixed, ", ",
                $query_mixed, "), τ = 0.2 (MoCHi, Section 4)."
            )]
            pub fn $name() -> Self {
                Self { hardest: $hardest, mixed: $mixed, query_mixed: $query_mixed, ..Self::moco() }
            }
        )*

        /// Every (N, s, s′) that the paper reports, by data set.
        pub const PAPER: [PaperSetting; 9] = [
            $((concat!($set, " (", $hardest, ", ", $mixed, ", ", $query_mixed, ")"), Self::$name),)*
        ];
    };
}

impl Config {
    /// Plain MoCo-v2: no synthetic negatives, τ = 0.2, mean loss.
    pub fn moco() -> Self {
        Self {
            temperature: 0.2,
            hardest: 0,
            mixed: 0,
            query_mixed: 0,
            query_gradient: QueryGradient::Detached,
            oracle: false,
            reduction: Reduction::Mean,
            key_gradient: false,
            uniformity: false,
            matching_probability: false,
        }
    }

    /// MoCHi with (N, s, s′): per query, `mixed` negatives mixed from two of its `hardest` queue
    /// rows and `query_mixed` mixed from the query and one of them; τ = 0.2, mean loss, detached.
    /// `mixed` and `query_mixed` may exceed `hardest`.
    ///
    /// # Errors
    /// [`Error::NothingToMix`] for `hardest` = 0 with any synthetic negative, and
    /// [`Error::OutOfRange`] for counts that do not fit 32 bits (the draws' index, method's Philox).
    pub fn mochi(hardest: usize, mixed: usize, query_mixed: usize) -> Result<Self> {
        Self::moco().with_negatives(hardest, mixed, query_mixed)
    }

    /// With other N, s and s′.
    ///
    /// # Errors
    /// As [`Config::mochi`].
    pub fn with_negatives(
        mut self,
        hardest: usize,
        mixed: usize,
        query_mixed: usize,
    ) -> Result<Self> {
        if hardest == 0 && (mixed > 0 || query_mixed > 0) {
            return Err(Error::NothingToMix { mixed, query_mixed });
        }
        for (argument, value) in [
            ("hardest", hardest),
            ("mixed", mixed),
            ("query_mixed", query_mixed),
        ] {
            if value >= u32::MAX as usize {
                return Err(Error::OutOfRange {
                    argument,
                    value: value.to_string(),
                    expected: "less than 4294967295",
                });
            }
        }
        self.hardest = hardest;
        self.mixed = mixed;
        self.query_mixed = query_mixed;
        Ok(self)
    }

    paper! {
        imagenet100_1024_1024_128, "ImageNet-100", 1024, 1024, 128;
        imagenet100_1024_256_512, "ImageNet-100", 1024, 256, 512;
        imagenet100_1024_128_256, "ImageNet-100", 1024, 128, 256;
        imagenet1k_1024_512_256, "ImageNet-1K", 1024, 512, 256;
        imagenet1k_512_1024_512, "ImageNet-1K", 512, 1024, 512;
        imagenet1k_256_512_0, "ImageNet-1K", 256, 512, 0;
        imagenet1k_256_512_256, "ImageNet-1K", 256, 512, 256;
        imagenet1k_256_2048_2048, "ImageNet-1K", 256, 2048, 2048;
        imagenet1k_128_1024_512, "ImageNet-1K", 128, 1024, 512;
    }

    /// With another temperature τ.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless τ is positive, finite and not subnormal, so that logits over τ can be
    /// formed.
    pub fn with_temperature(mut self, temperature: f32) -> Result<Self> {
        if !(temperature.is_normal() && temperature > 0.0) {
            return Err(Error::OutOfRange {
                argument: "temperature",
                value: temperature.to_string(),
                expected: "a positive, finite number of at least 1.2e-38",
            });
        }
        self.temperature = temperature;
        Ok(self)
    }

    /// With the gradient through query-mixed negatives detached or attached.
    #[must_use]
    pub fn with_query_gradient(mut self, query_gradient: QueryGradient) -> Self {
        self.query_gradient = query_gradient;
        self
    }

    /// With the class oracle: queue rows of the query's own label leave the negatives and the
    /// hardest. Without it labels only measure.
    #[must_use]
    pub fn with_oracle(mut self, oracle: bool) -> Self {
        self.oracle = oracle;
        self
    }

    /// With another reduction of the per-row losses.
    #[must_use]
    pub fn with_reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// With the gradient with respect to the keys as well.
    #[must_use]
    pub fn with_key_gradient(mut self, key_gradient: bool) -> Self {
        self.key_gradient = key_gradient;
        self
    }

    /// With the uniformity metric (it doubles the exponentials).
    #[must_use]
    pub fn with_uniformity(mut self, uniformity: bool) -> Self {
        self.uniformity = uniformity;
        self
    }

    /// With the matching probability by rank, for the ranks 1 to N (the paper's Fig. 2a).
    #[must_use]
    pub fn with_matching_probability(mut self, matching_probability: bool) -> Self {
        self.matching_probability = matching_probability;
        self
    }

    /// The same without synthetic negatives: plain MoCo's bits, for the first epochs. The hardest
    /// are still ranked, so that what is reported by rank has no gap. The paper warms up for 10 of
    /// 200 epochs on ImageNet-100 and for 15 on ImageNet-1K.
    #[must_use]
    pub fn warm_up(&self) -> Self {
        let plain = self.clone().with_negatives(self.hardest, 0, 0);
        plain.expect("N is one that was taken before")
    }

    /// τ.
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// N: how many of a query's nearest queue rows may be mixed.
    pub fn hardest(&self) -> usize {
        self.hardest
    }

    /// s: negatives a query mixed from two of its hardest.
    pub fn mixed(&self) -> usize {
        self.mixed
    }

    /// s′: negatives a query mixed from itself and one of its hardest.
    pub fn query_mixed(&self) -> usize {
        self.query_mixed
    }

    /// Whether the gradient flows through the query inside query-mixed negatives.
    pub fn query_gradient(&self) -> QueryGradient {
        self.query_gradient
    }

    /// Whether rows of the query's label are masked.
    pub fn oracle(&self) -> bool {
        self.oracle
    }

    /// How the per-row losses become one loss.
    pub fn reduction(&self) -> Reduction {
        self.reduction
    }

    /// Whether the gradient with respect to the keys is computed.
    pub fn key_gradient(&self) -> bool {
        self.key_gradient
    }

    /// Whether the uniformity is computed.
    pub fn uniformity(&self) -> bool {
        self.uniformity
    }

    /// Whether the matching probability by rank is computed.
    pub fn matching_probability(&self) -> bool {
        self.matching_probability
    }
}
