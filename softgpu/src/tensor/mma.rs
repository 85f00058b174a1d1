//! `mma.sync.aligned.m16n8k*.row.col`: one warp multiplies a 16×k by a k×8 matrix.

use super::{Accumulator, Element, Lanes, accumulate_tile, b_position, gather_a};

/// One form of `mma.sync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mma {
    k: usize,
    a: Element,
    b: Element,
    accumulator: Accumulator,
}

impl Mma {
    /// The form `m16n8kK` with these types (C and D alike), if it exists.
    ///
    /// K is 8 or 16 for f16 and bf16, 4 or 8 for tf32, 16 or 32 for 8-bit types.
    #[must_use]
    pub fn new(k: u32, a: Element, b: Element, accumulator: Accumulator) -> Option<Self> {
        let k = k as usize;
        let shape = match a {
            Element::F16 | Element::Bf16 => k == 8 || k == 16,
            Element::Tf32 => k == 4 || k == 8,
            Element::S8 | Element::U8 | Element::E4m3 | Element::E5m2 => k == 16 || k == 32,
        };
        (shape && accumulator.accepts(a, b)).then_some(Self {
            k,
            a,
            b,
            accumulator,
        })
    }

    /// How many registers hold A: 2 or 4.
    #[must_use]
    pub const fn a_registers(&self) -> usize {
        self.k / 2 / self.a.per_register()
    }

    /// How many registers hold B: 1 or 2.
    #[must_use]
    pub const fn b_registers(&self) -> usize {
        self.k / 4 / self.b.per_register()
    }

    /// How many registers hold C, and D: 2 for f16, 4 otherwise.
    #[must_use]
    pub const fn accumulator_registers(&self) -> usize {
        4 / self.accumulator.per_register()
    }

    /// Multiply-adds of one instruction.
    #[must_use]
    pub const fn operations(&self) -> u64 {
        16 * 8 * self.k as u64
    }

    /// D = A·B + C; the registers of C are replaced by those of D.
    ///
    /// The slices hold `a_registers`, `b_registers` and `accumulator_registers` registers: what is
    /// missing counts as zero, what is too much is ignored.
    pub fn multiply(&self, a: &[Lanes], b: &[Lanes], accumulators: &mut [Lanes]) {
        if accumulators.len() < self.accumulator_registers() {
            return;
        }
        let rows = gather_a(self.a, &a[..self.a_registers().min(a.len())]);
        let per = self.b.per_register();
        let mut columns = [[0.0; 8]; 32];
        for (r, lanes) in b.iter().take(self.b_registers()).enumerate() {
            for (lane, &bits) in lanes.iter().enumerate() {
                for index in 0..per {
                    let (k, column) = b_position(per, lane, r * per + index);
                    columns[k][column] = self.b.value(bits, index);
                }
            }
        }
        accumulate_tile(
            self.accumulator,
            self.k,
            &rows,
            &columns,
            accumulators,
            true,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::documented::{self, Fragment};

    /// The PTX ISA's figures, as the map from a matrix element to (lane, element of the lane).
    fn figures(mma: &Mma) -> [Fragment; 3] {
        let a = match (mma.a.per_register(), mma.k) {
            (2, 8) => documented::a_m16k8_16bit(),
            (2, 16) => documented::a_m16k16_16bit(),
            (1, 4) => documented::a_m16k4_tf32(),
            (1, 8) => documented::a_m16k8_tf32(),
            (4, 16) => documented::a_m16k16_8bit(),
            (4, 32) => documented::a_m16k32_8bit(),
            other => panic!("no figure for {other:?}"),
        };
        let b = match (mma.b.per_register(), mma.k) {
            (2, 8) => documented::b_k8_16bit(),
            (2, 16) => documented::b_k16_16bit(),
            (1, 4) => documented::b_k4_tf32(),
            (1, 8) => documented::b_k8_tf32(),
            (4, 16) => documented::b_k16_8bit(),
            (4, 32) => documented::b_k32_8bit(),
            other => panic!("no figure for {other:?}"),
        };
        [a, b, documented::c_m16n8()]
    }

    /// Small integers that every type represents, so that sums are exact in any order.
    fn small(state: &mut u64, unsigned: bool) -> i32 {
        *state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let value = (*state >> 60) as i32 & 7;
        if unsigned { value } else { value - 3 }
    }

    fn encode(element: Element, value: i32) -> u32 {
        use crate::number::{Overflow, Rounding};
        let float = |format: crate::number::Format| {
            format.encode(value.into(), Rounding::NearestEven, Overflow::Infinity)
        };
        match element {
            Element::F16 => float(crate::number::F16),
            Element::Bf16 => float(crate::number::BF16),
            // The low bits of a tf32 register must not matter.
            Element::Tf32 => (value as f32).to_bits() | 0x1abc,
            Element::E4m3 => float(crate::number::E4M3),
            Element::E5m2 => float(crate::number::E5M2),
            Element::S8 | Element::U8 => value as u32 & 0xff,
        }
    }

    fn place(registers: &mut [Lanes], per: usize, (lane, element): (usize, usize), bits: u32) {
        registers[element / per][lane] |= bits << (32 / per * (element % per));
    }

    #[test]
    fn every_form_matches_a_naive_product_through_the_documented_figures() {
        use Accumulator::{F16, F32, S32};
        use Element as E;
        let forms = [
            (8, E::F16, E::F16, F32),
            (8, E::F16, E::F16, F16),
            (16, E::F16, E::F16, F32),
            (16, E::F16, E::F16, F16),
            (8, E::Bf16, E::Bf16, F32),
            (16, E::Bf16, E::Bf16, F32),
            (4, E::Tf32, E::Tf32, F32),
            (8, E::Tf32, E::Tf32, F32),
            (16, E::S8, E::S8, S32),
            (32, E::S8, E::U8, S32),
            (32, E::U8, E::S8, S32),
            (32, E::E4m3, E::E5m2, F32),
            (32, E::E5m2, E::E5m2, F16),
        ];
        let mut state = 7;
        for (k, a_type, b_type, accumulator) in forms {
            let mma = Mma::new(k, a_type, b_type, accumulator).unwrap();
            let k = k as usize;
            let [a_figure, b_figure, c_figure] = figures(&mma);
            let mut a = vec![[0; 32]; mma.a_registers()];
            let mut b = vec![[0; 32]; mma.b_registers()];
            let mut c = vec![[0; 32]; mma.accumulator_registers()];
            let mut a_matrix = vec![vec![0; k]; 16];
            let mut b_matrix = vec![vec![0; 8]; k];
            let mut expected = vec![vec![0; 8]; 16];
            for (row, a_row) in a_matrix.iter_mut().enumerate() {
                for (column, value) in a_row.iter_mut().enumerate() {
                    *value = small(&mut state, a_type == E::U8);
                    let bits = encode(a_type, *value);
                    place(
                        &mut a,
                        a_type.per_register(),
                        a_figure.at(row, column),
                        bits,
                    );
                }
            }
            for (row, b_row) in b_matrix.iter_mut().enumerate() {
                for (column, value) in b_row.iter_mut().enumerate() {
                    *value = small(&mut state, b_type == E::U8);
                    let bits = encode(b_type, *value);
                    place(
                        &mut b,
                        b_type.per_register(),
                        b_figure.at(row, column),
                        bits,
                    );
                }
            }
            let accumulator_bits = |value: i32| match accumulator {
                F16 => encode(E::F16, value),
                F32 => (value as f32).to_bits(),
                S32 => value as u32,
            };
            for row in 0..16 {
                for column in 0..8 {
                    let value = small(&mut state, false);
                    let at = c_figure.at(row, column);
                    place(
                        &mut c,
                        accumulator.per_register(),
                        at,
                        accumulator_bits(value),
                    );
                    let product: i32 = (0..k).map(|i| a_matrix[row][i] * b_matrix[i][column]).sum();
                    expected[row][column] = value + product;
                }
            }
            mma.multiply(&a, &b, &mut c);
            let mut wanted = vec![[0; 32]; c.len()];
            for (row, values) in expected.iter().enumerate() {
                for (column, &value) in values.iter().enumerate() {
                    let at = c_figure.at(row, column);
                    place(
                        &mut wanted,
                        accumulator.per_register(),
                        at,
                        accumulator_bits(value),
                    );
                }
            }
            assert_eq!(c, wanted, "{mma:?}");
        }
    }

    #[test]
    fn forms_that_do_not_exist_are_refused() {
        use Accumulator::{F16, F32, S32};
        use Element as E;
        for (k, a, b, accumulator) in [
            (32, E::F16, E::F16, F32),
            (16, E::Bf16, E::F16, F32),
            (16, E::Bf16, E::Bf16, F16),
            (16, E::Tf32, E::Tf32, F32),
            (32, E::S8, E::S8, F32),
            (16, E::F16, E::F16, S32),
        ] {
            assert_eq!(Mma::new(k, a, b, accumulator), None);
        }
    }

    #[test]
    fn integer_sums_wrap_and_nans_are_canonical() {
        let mma = Mma::new(32, Element::S8, Element::S8, Accumulator::S32).unwrap();
        let mut c = [[i32::MAX as u32; 32]; 4];
        mma.multiply(&[[0x0101_0101; 32]; 4], &[[0x0101_0101; 32]; 2], &mut c);
        assert_eq!(c[0][0] as i32, i32::MIN + 31);
        let mma = Mma::new(8, Element::Bf16, Element::Bf16, Accumulator::F32).unwrap();
        let mut c = [[0; 32]; 4];
        mma.multiply(&[[0xffc1_3f80; 32]; 2], &[[0x3f80_3f80; 32]; 1], &mut c);
        assert_eq!(c, [[0x7fff_ffff; 32]; 4]);
    }

    #[test]
    fn rounding_errors_stay_within_the_stated_bound() {
        let mma = Mma::new(16, Element::Bf16, Element::Bf16, Accumulator::F32).unwrap();
        let mut state = 99_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            // Random mantissas and signs, exponents 2^-8 to 2^7.
            ((state >> 48) as u32 & 0x87ff) | 0x3c00
        };
        let mut word = || next() << 16 | next();
        let a: Vec<Lanes> = (0..4).map(|_| std::array::from_fn(|_| word())).collect();
        let b: Vec<Lanes> = (0..2).map(|_| std::array::from_fn(|_| word())).collect();
        let mut d = [[0; 32]; 4];
        mma.multiply(&a, &b, &mut d);
        let [a_figure, b_figure, c_figure] = figures(&mma);
        let value = |registers: &[Lanes], (lane, element): (usize, usize)| {
            let bits = registers[element / 2][lane] >> (16 * (element % 2));
            f64::from(half::bf16::from_bits(bits as u16).to_f32())
        };
        let mut inexact = 0;
        for row in 0..16 {
            for column in 0..8 {
                let product =
                    |i| value(&a, a_figure.at(row, i)) * value(&b, b_figure.at(i, column));
                let exact: f64 = (0..16).map(product).sum();
                let scale: f64 = (0..16).map(|i| product(i).abs()).sum();
                let (lane, element) = c_figure.at(row, column);
                let error = (f64::from(f32::from_bits(d[element][lane])) - exact).abs();
                assert!(error <= 16.0 * 2_f64.powi(-23) * scale, "{error} {scale}");
                inexact += i32::from(error > 0.0);
            }
        }
        assert!(inexact > 0, "a test of rounding must round");
    }
}
