//! The settings: the paper's, and what is refused.

use hardmix::{Config, Error, QueryGradient, Reduction};

#[test]
fn the_papers_settings_by_name() {
    for (config, expected) in [
        (Config::imagenet100_1024_1024_128(), (1024, 1024, 128)),
        (Config::imagenet100_1024_256_512(), (1024, 256, 512)),
        (Config::imagenet100_1024_128_256(), (1024, 128, 256)),
        (Config::imagenet1k_1024_512_256(), (1024, 512, 256)),
        (Config::imagenet1k_512_1024_512(), (512, 1024, 512)),
        (Config::imagenet1k_256_512_0(), (256, 512, 0)),
        (Config::imagenet1k_256_512_256(), (256, 512, 256)),
        (Config::imagenet1k_256_2048_2048(), (256, 2048, 2048)),
        (Config::imagenet1k_128_1024_512(), (128, 1024, 512)),
    ] {
        let (hardest, mixed, query_mixed) = expected;
        assert_eq!(
            (config.hardest(), config.mixed(), config.query_mixed()),
            expected
        );
        assert_eq!(config.temperature(), 0.2);
        assert_eq!(config.query_gradient(), QueryGradient::Detached);
        let name = format!("({hardest}, {mixed}, {query_mixed})");
        let listed = Config::PAPER.iter().filter(|(_, of)| of() == config);
        assert_eq!(
            listed.filter(|(listed, _)| listed.ends_with(&name)).count(),
            1
        );
    }
}

#[test]
fn the_defaults_are_mocos() {
    let config = Config::moco();
    assert_eq!(
        (config.hardest(), config.mixed(), config.query_mixed()),
        (0, 0, 0)
    );
    assert_eq!(config.reduction(), Reduction::Mean);
    assert!(!config.oracle() && !config.key_gradient());
    assert!(!config.uniformity() && !config.matching_probability());
    assert_eq!(Config::mochi(0, 0, 0).expect("plain"), config);
}

#[test]
fn warm_up_only_drops_the_synthetics() {
    let config = Config::mochi(16, 8, 4)
        .and_then(|config| config.with_temperature(0.07))
        .expect("valid")
        .with_query_gradient(QueryGradient::Attached)
        .with_oracle(true)
        .with_reduction(Reduction::Sum)
        .with_key_gradient(true)
        .with_uniformity(true)
        .with_matching_probability(true);
    let warm = config.warm_up();
    assert_eq!(
        (warm.hardest(), warm.mixed(), warm.query_mixed()),
        (16, 0, 0)
    );
    assert_eq!(warm.temperature(), 0.07);
    assert_eq!(warm.query_gradient(), QueryGradient::Attached);
    assert_eq!(warm.reduction(), Reduction::Sum);
    assert!(warm.oracle() && warm.key_gradient());
    assert!(warm.uniformity() && warm.matching_probability());
}

/// s and s′ beyond N are the paper's own settings.
#[test]
fn more_synthetics_than_hardest_are_legal() {
    assert!(Config::mochi(1, 4096, 4096).is_ok());
}

#[test]
fn bad_settings_are_refused_with_argument_value_and_expectation() {
    for (config, expected) in [
        (
            Config::mochi(0, 3, 0),
            "hardest is 0 with mixed = 3 and query_mixed = 0; \
             expected at least 1, or no synthetic negatives",
        ),
        (
            Config::mochi(0, 0, 2),
            "hardest is 0 with mixed = 0 and query_mixed = 2; \
             expected at least 1, or no synthetic negatives",
        ),
        (
            Config::mochi(4_294_967_295, 0, 0),
            "hardest is 4294967295; expected less than 4294967295",
        ),
        (
            Config::mochi(1, usize::MAX, 0),
            "mixed is 18446744073709551615; expected less than 4294967295",
        ),
        (
            Config::mochi(1, 0, 4_294_967_296),
            "query_mixed is 4294967296; expected less than 4294967295",
        ),
    ] {
        assert_eq!(config.expect_err(expected).to_string(), expected);
    }
}

#[test]
fn a_temperature_that_is_not_positive_and_finite_is_refused() {
    let smallest = f32::from_bits(1);
    for bad in [
        0.0,
        -0.0,
        -0.2,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        smallest,
        // Its inverse is finite, and log₂e over it is not.
        3e-39,
    ] {
        let error = Config::moco().with_temperature(bad).expect_err("refused");
        assert!(matches!(
            error,
            Error::OutOfRange {
                argument: "temperature",
                ..
            }
        ));
        assert_eq!(
            error.to_string(),
            format!(
                "temperature is {bad}; \
                 expected a positive, finite number of at least 1.2e-38"
            )
        );
    }
    for good in [f32::MIN_POSITIVE, 0.01, 0.2, 1.0, f32::MAX] {
        assert!(Config::moco().with_temperature(good).is_ok(), "{good}");
    }
}

#[test]
fn other_negatives_keep_all_else() {
    let config = Config::mochi(16, 8, 4)
        .unwrap()
        .with_temperature(0.07)
        .unwrap()
        .with_reduction(hardmix::Reduction::Sum)
        .with_matching_probability(true);
    let other = config.clone().with_negatives(32, 0, 9).unwrap();
    assert_eq!(
        (other.hardest(), other.mixed(), other.query_mixed()),
        (32, 0, 9)
    );
    assert_eq!(other.with_negatives(16, 8, 4).unwrap(), config);
    assert!(config.with_negatives(0, 1, 0).is_err());
}
