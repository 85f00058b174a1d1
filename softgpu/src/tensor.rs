//! The tensor-core instructions, as functions on the registers of a warp.
//!
//! Fragment layouts are those of the PTX ISA, "Warp Level Matrix Multiply-Accumulate
//! Instructions" and "Asynchronous Warpgroup Level Matrix Instructions".
//!
//! # Precision
//! Products of f16, bf16, tf32 and fp8 are exact in f32 unless they leave its exponent range. A
//! result element is the f32 sum `c + p₀ + p₁ + …` in ascending k, each addition rounded to
//! nearest; an f16 accumulator is rounded once, at the end. The hardware aligns several products
//! to the largest and *truncates* what lies below its adder (its width differs by generation),
//! and keeps products in a wider exponent range. Neither is modelled: results agree exactly where
//! every partial sum is representable, and otherwise to within the usual bound
//! `k · 2⁻²³ · Σ|aᵢbᵢ|`. Of an f32 register read as tf32 the low 13 bits are ignored.

pub mod descriptor;
#[cfg(test)]
mod documented;
pub mod matrix;
pub mod mma;
pub mod pipe;
pub mod wgmma;

/// One 32-bit register of every lane of a warp.
pub type Lanes = [u32; 32];

/// The type of the elements of a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// `.f16`
    F16,
    /// `.bf16`
    Bf16,
    /// `.tf32`
    Tf32,
    /// `.e4m3`
    E4m3,
    /// `.e5m2`
    E5m2,
    /// `.s8`
    S8,
    /// `.u8`
    U8,
}

impl Element {
    /// How many elements a 32-bit register holds.
    #[must_use]
    pub const fn per_register(self) -> usize {
        match self {
            Self::Tf32 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::E4m3 | Self::E5m2 | Self::S8 | Self::U8 => 4,
        }
    }

    /// Element `index` of a register, exactly.
    fn value(self, register: u32, index: usize) -> f32 {
        use crate::number::{E4M3, E5M2, bf16_to_f32, f16_to_f32, tf32_truncate};
        let byte = (register >> (8 * (index & 3))) & 0xff;
        match self {
            Self::F16 => f16_to_f32((register >> (16 * index)) as u16),
            Self::Bf16 => bf16_to_f32((register >> (16 * index)) as u16),
            Self::Tf32 => tf32_truncate(register),
            Self::E4m3 => E4M3.decode(byte) as f32,
            Self::E5m2 => E5M2.decode(byte) as f32,
            Self::S8 => f32::from(byte as u8 as i8),
            Self::U8 => byte as f32,
        }
    }

    const fn is_integer(self) -> bool {
        matches!(self, Self::S8 | Self::U8)
    }

    const fn is_fp8(self) -> bool {
        matches!(self, Self::E4m3 | Self::E5m2)
    }
}

/// The type of an accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accumulator {
    /// `.f16`, two in a register.
    F16,
    /// `.f32`
    F32,
    /// `.s32`
    S32,
}

impl Accumulator {
    /// How many elements a 32-bit register holds.
    #[must_use]
    pub const fn per_register(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::S32 => 1,
        }
    }

    /// Whether the ISA multiplies `a` by `b` into this type.
    const fn accepts(self, a: Element, b: Element) -> bool {
        match self {
            Self::S32 => a.is_integer() && b.is_integer(),
            Self::F16 => matches!((a, b), (Element::F16, Element::F16)) || a.is_fp8() && b.is_fp8(),
            Self::F32 => {
                matches!(
                    (a, b),
                    (Element::F16, Element::F16)
                        | (Element::Bf16, Element::Bf16)
                        | (Element::Tf32, Element::Tf32)
                ) || a.is_fp8() && b.is_fp8()
            }
        }
    }
}

/// Where element `element` (counted through a lane's registers) of a 16-row A fragment lies:
/// (row, k).
fn a_position(per_register: usize, lane: usize, element: usize) -> (usize, usize) {
    let (register, index) = (element / per_register, element % per_register);
    let row = lane / 4 + 8 * (register % 2);
    let k = (lane % 4 + 4 * (register / 2)) * per_register + index;
    (row, k)
}

/// Where element `element` of an 8-column B fragment lies: (k, column).
fn b_position(per_register: usize, lane: usize, element: usize) -> (usize, usize) {
    let (register, index) = (element / per_register, element % per_register);
    ((lane % 4 + 4 * register) * per_register + index, lane / 4)
}

/// Where element `element` of an accumulator fragment of 16 rows lies: (row, column).
fn accumulator_position(lane: usize, element: usize) -> (usize, usize) {
    let (tile, within) = (element / 4, element % 4);
    (
        lane / 4 + 8 * (within / 2),
        8 * tile + lane % 4 * 2 + within % 2,
    )
}

/// The factor A of one warp: 16 rows of at most 32 elements.
type Rows = [[f32; 32]; 16];

/// Gathers a warp's A fragment.
fn gather_a(element: Element, registers: &[Lanes]) -> Rows {
    let per = element.per_register();
    let mut rows = [[0.0; 32]; 16];
    for (r, lanes) in registers.iter().enumerate() {
        for (lane, &bits) in lanes.iter().enumerate() {
            for index in 0..per {
                let (row, k) = a_position(per, lane, r * per + index);
                rows[row][k] = element.value(bits, index);
            }
        }
    }
    rows
}

/// Sums with the arithmetic of an accumulator type.
trait Sum: Copy + Default {
    fn multiply_add(self, a: f32, b: f32) -> Self;
}

impl Sum for f32 {
    #[inline(always)]
    fn multiply_add(self, a: f32, b: f32) -> Self {
        self + a * b
    }
}

impl Sum for i32 {
    #[inline(always)]
    fn multiply_add(self, a: f32, b: f32) -> Self {
        // Products of 8-bit integers are exact in f32; the 32-bit sum wraps.
        self.wrapping_add((a * b) as i32)
    }
}

/// sums += rows · columns for one tile of 8 columns, ascending in k.
#[inline(always)]
fn multiply_tile<S: Sum>(k: usize, rows: &Rows, columns: &[[f32; 8]; 32], sums: &mut [[S; 8]; 16]) {
    for (row, sums) in rows.iter().zip(sums) {
        for (&a, b) in row[..k].iter().zip(&columns[..k]) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = sum.multiply_add(a, b);
            }
        }
    }
}

/// Runs `multiply_tile` on one tile of an accumulator fragment in registers.
///
/// `registers` are the 4 (f32, s32) or 2 (f16) registers of the tile; `keep` tells whether their
/// old values are added.
fn accumulate_tile(
    accumulator: Accumulator,
    k: usize,
    rows: &Rows,
    columns: &[[f32; 8]; 32],
    registers: &mut [Lanes],
    keep: bool,
) {
    match accumulator {
        Accumulator::F32 => run(
            k,
            (rows, columns),
            registers,
            keep,
            |r, lane, e| f32::from_bits(r[e][lane]),
            |r, lane, e, sum: f32| {
                r[e][lane] = crate::number::arithmetic::canonical(sum).to_bits();
            },
        ),
        Accumulator::S32 => run(
            k,
            (rows, columns),
            registers,
            keep,
            |r, lane, e| r[e][lane] as i32,
            |r, lane, e, sum: i32| r[e][lane] = sum as u32,
        ),
        Accumulator::F16 => run(
            k,
            (rows, columns),
            registers,
            keep,
            |r, lane, e| crate::number::f16_to_f32((r[e / 2][lane] >> (16 * (e % 2))) as u16),
            |r, lane, e, sum: f32| {
                let shift = 16 * (e % 2);
                let bits = u32::from(crate::number::f32_to_f16(sum)) << shift;
                r[e / 2][lane] = r[e / 2][lane] & !(0xffff << shift) | bits;
            },
        ),
    }
}

fn run<S: Sum>(
    k: usize,
    (rows, columns): (&Rows, &[[f32; 8]; 32]),
    registers: &mut [Lanes],
    keep: bool,
    load: impl Fn(&[Lanes], usize, usize) -> S,
    store: impl Fn(&mut [Lanes], usize, usize, S),
) {
    let mut sums = [[S::default(); 8]; 16];
    let positions = || (0..32).flat_map(|lane| (0..4).map(move |e| (lane, e)));
    if keep {
        for (lane, e) in positions() {
            let (row, column) = accumulator_position(lane, e);
            sums[row][column] = load(registers, lane, e);
        }
    }
    multiply_tile(k, rows, columns, &mut sums);
    for (lane, e) in positions() {
        let (row, column) = accumulator_position(lane, e);
        store(registers, lane, e, sums[row][column]);
    }
}
