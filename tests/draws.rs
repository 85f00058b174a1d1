//! The draws: known answers, an independent generator, and what makes them usable.

mod common;

use common::properties;
use common::reference::{Problem, philox, seeded_draws};
use hardmix::draws::{STEP_LIMIT, mixed_draw, philox4x32_10, query_mixed_draw};
use proptest::prelude::*;

const SEED: u64 = 0x0123_4567_89ab_cdef;

#[test]
fn the_generator_gives_its_known_answers() {
    for (counter, key, words) in [
        (
            [0; 4],
            [0; 2],
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
        ),
        (
            [u32::MAX; 4],
            [u32::MAX; 2],
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        ),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ] {
        assert_eq!(philox4x32_10(counter, key), words);
        assert_eq!(philox(counter, key), words, "the reference's own");
    }
}

#[test]
fn known_draws() {
    for (step, first, second, alpha, pick, beta) in [
        (
            5,
            446,
            746,
            0.914_166_510_105_133_1,
            348,
            0.425_198_525_190_353_4,
        ),
        (
            0x1_0000_0007,
            694,
            392,
            0.385_442_852_973_938,
            569,
            0.028_173_685_073_852_54,
        ),
    ] {
        let mixed = mixed_draw(SEED, step, 3, 7, 1024);
        assert_eq!((mixed.first, mixed.second), (first, second));
        assert_eq!(f64::from(mixed.alpha), alpha);
        let query_mixed = query_mixed_draw(SEED, step, 3, 7, 1024);
        assert_eq!(query_mixed.pick, pick);
        assert_eq!(f64::from(query_mixed.beta), beta);
    }
}

#[test]
fn draws_are_the_reference_generators_everywhere() {
    let case = common::cases::Recipe {
        mixed: 9,
        query_mixed: 9,
        ..Default::default()
    }
    .build();
    let problem = Problem::new(&case);
    let anywhere = (any::<u64>(), 0..STEP_LIMIT, any::<u32>(), 1..=u32::MAX);
    properties(500, anywhere, |(seed, step, row, count)| {
        let draws = seeded_draws(&problem, seed, step, row, count as usize);
        for (index, &(first, second, alpha)) in draws.pairs.iter().enumerate() {
            let ours = mixed_draw(seed, step, row, index as u32, count);
            prop_assert_eq!((ours.first, ours.second), (first, second));
            prop_assert_eq!(f64::from(ours.alpha), alpha);
            prop_assert!(first < count && second < count && (0.0..1.0).contains(&alpha));
        }
        for (index, &(pick, beta)) in draws.picks.iter().enumerate() {
            let ours = query_mixed_draw(seed, step, row, index as u32, count);
            prop_assert_eq!(ours.pick, pick);
            prop_assert_eq!(f64::from(ours.beta), beta);
            prop_assert!(pick < count && (0.0..0.5).contains(&beta));
        }
        Ok(())
    });
}

/// Chi-squared of 64 cells over 2¹⁶ draws: 63 ± 11.2; 63 + 6 · 11.2 is never met by chance.
#[test]
fn positions_and_weights_are_uniform() {
    let chi_squared = |cells: &[u32; 64]| {
        let expected = f64::from(1u32 << 16) / 64.0;
        let deviation = |&n: &u32| (f64::from(n) - expected).powi(2) / expected;
        cells.iter().map(deviation).sum::<f64>()
    };
    let mut cells = [[0; 64]; 5];
    for at in 0..1u32 << 16 {
        let (row, index) = (at >> 8, at & 255);
        let mixed = mixed_draw(SEED, 11, row, index, 64);
        let query_mixed = query_mixed_draw(SEED, 11, row, index, 64);
        cells[0][mixed.first as usize] += 1;
        cells[1][mixed.second as usize] += 1;
        cells[2][(mixed.alpha * 64.0) as usize] += 1;
        cells[3][query_mixed.pick as usize] += 1;
        cells[4][(query_mixed.beta * 128.0) as usize] += 1;
    }
    for (which, cells) in cells.iter().enumerate() {
        let x = chi_squared(cells);
        assert!(x < 63.0 + 6.0 * 11.2, "kind {which}: chi-squared {x}");
    }
}

/// Each part of the counter and the key matters, the halves of seed and step included.
#[test]
fn every_coordinate_makes_a_fresh_draw() {
    let at = |seed, step, row, index| {
        let draw = mixed_draw(seed, step, row, index, u32::MAX);
        (draw.first, draw.second)
    };
    let base = at(SEED, 5, 3, 7);
    assert_ne!(base, at(SEED ^ 1, 5, 3, 7));
    assert_ne!(base, at(SEED ^ 1 << 63, 5, 3, 7));
    assert_ne!(base, at(SEED, 6, 3, 7));
    assert_ne!(base, at(SEED, 5 + (1 << 32), 3, 7));
    assert_ne!(base, at(SEED, 5, 4, 7));
    assert_ne!(base, at(SEED, 5, 3, 8));
    assert_ne!(base.0, query_mixed_draw(SEED, 5, 3, 7, u32::MAX).pick);
}
