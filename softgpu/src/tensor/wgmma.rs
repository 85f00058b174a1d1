//! `wgmma.mma_async`: a warpgroup multiplies a 64×k by a k×N matrix; each warp has 16 of the rows.

use super::descriptor::Descriptor;
use super::{Accumulator, Element, Lanes, Rows, accumulate_tile, gather_a};
use crate::fault::Fault;

/// One form of `wgmma.mma_async.sync.aligned.m64nNkK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Wgmma {
    n: u32,
    a: Element,
    b: Element,
    accumulator: Accumulator,
    modifiers: Modifiers,
}

/// The immediate operands of `wgmma.mma_async`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Modifiers {
    /// `imm-scale-a` is −1.
    pub negate_a: bool,
    /// `imm-scale-b` is −1.
    pub negate_b: bool,
    /// `imm-trans-a`: A in shared memory is M-major.
    pub transpose_a: bool,
    /// `imm-trans-b`: B is N-major.
    pub transpose_b: bool,
}

/// The operand A.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperandA {
    /// The warp's 16 rows, in four registers.
    Registers(Box<[Lanes; 4]>),
    /// All 64 rows, in shared memory.
    Shared(Descriptor),
}

/// Reads 16 bytes of shared memory, with the executor's checks.
pub type ReadChunk<'a> = dyn FnMut(u32, &mut [u8; 16]) -> Result<(), Fault> + 'a;

impl Wgmma {
    /// The form with these types, if it exists.
    ///
    /// N is a multiple of 8 up to 256 (of 16 above 32 for integers). Only 16-bit types can be
    /// transposed, and only floating-point factors negated.
    #[must_use]
    pub fn new(
        n: u32,
        a: Element,
        b: Element,
        accumulator: Accumulator,
        modifiers: Modifiers,
    ) -> Option<Self> {
        let step = if a.is_integer() && n > 32 { 16 } else { 8 };
        let Modifiers {
            negate_a,
            negate_b,
            transpose_a,
            transpose_b,
        } = modifiers;
        let exists = (8..=256).contains(&n)
            && n.is_multiple_of(step)
            && accumulator.accepts(a, b)
            && (a.per_register() == 2 || !(transpose_a || transpose_b))
            && (!a.is_integer() || !(negate_a || negate_b));
        exists.then_some(Self {
            n,
            a,
            b,
            accumulator,
            modifiers,
        })
    }

    /// K: what 32 bytes hold.
    #[must_use]
    pub const fn k(&self) -> usize {
        8 * self.a.per_register()
    }

    /// How many registers hold the accumulators of a lane.
    #[must_use]
    pub const fn accumulator_registers(&self) -> usize {
        self.n as usize / 2 / self.accumulator.per_register()
    }

    /// Whether both have the same shape and accumulator type: such operations may follow each
    /// other on the same accumulators.
    #[must_use]
    pub fn has_shape_of(&self, other: &Self) -> bool {
        (self.n, self.k(), self.accumulator) == (other.n, other.k(), other.accumulator)
    }

    /// Multiply-adds of one warp's part.
    #[must_use]
    pub const fn operations(&self) -> u64 {
        16 * self.n as u64 * self.k() as u64
    }

    /// D = A·B, plus D where `keep` (scale-d), for warp `warp` (0 to 3) of the warpgroup.
    ///
    /// `accumulators` holds `accumulator_registers` registers: without them nothing happens.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn multiply(
        &self,
        warp: u32,
        a: &OperandA,
        b: Descriptor,
        keep: bool,
        accumulators: &mut [Lanes],
        read: &mut ReadChunk,
    ) -> Result<(), Fault> {
        if accumulators.len() < self.accumulator_registers() {
            return Ok(());
        }
        let mut rows = match a {
            OperandA::Registers(registers) => gather_a(self.a, &registers[..]),
            OperandA::Shared(descriptor) => self.read_a(warp, *descriptor, read)?,
        };
        if self.modifiers.negate_a != self.modifiers.negate_b {
            rows.iter_mut().flatten().for_each(|value| *value = -*value);
        }
        let per_tile = 4 / self.accumulator.per_register();
        for (tile, registers) in accumulators[..self.accumulator_registers()]
            .chunks_exact_mut(per_tile)
            .enumerate()
        {
            let columns = self.read_b(tile as u32, b, read)?;
            accumulate_tile(self.accumulator, self.k(), &rows, &columns, registers, keep);
        }
        Ok(())
    }

    /// Calls `f` with the address of every chunk that [`Self::multiply`] reads.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn for_each_address(
        &self,
        warp: u32,
        a: &OperandA,
        b: Descriptor,
        mut f: impl FnMut(u32) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut matrix = |at: Descriptor, transposed, first: u32, count: u32| {
            if transposed {
                let chunks =
                    (first / 8..(first + count) / 8).flat_map(|c| (0..16).map(move |k| (c, k)));
                chunks
                    .map(|(chunk, k)| at.mn_major(chunk, k))
                    .try_for_each(&mut f)
            } else {
                let chunks = (first..first + count).flat_map(|row| [(row, 0), (row, 1)]);
                chunks
                    .map(|(row, chunk)| at.k_major(row, chunk))
                    .try_for_each(&mut f)
            }
        };
        if let OperandA::Shared(a) = a {
            matrix(*a, self.modifiers.transpose_a, 16 * warp, 16)?;
        }
        matrix(b, self.modifiers.transpose_b, 0, self.n)
    }

    /// The 16 rows of A that belong to a warp.
    fn read_a(&self, warp: u32, at: Descriptor, read: &mut ReadChunk) -> Result<Rows, Fault> {
        let mut rows = [[0.0; 32]; 16];
        if self.modifiers.transpose_a {
            for (half, rows) in rows.chunks_exact_mut(8).enumerate() {
                for k in 0..self.k() {
                    let address = at.mn_major(2 * warp + half as u32, k as u32);
                    let values = self.chunk(self.a, address, read)?;
                    for (row, value) in rows.iter_mut().zip(values) {
                        row[k] = value;
                    }
                }
            }
        } else {
            for (row, values) in rows.iter_mut().enumerate() {
                self.read_row(self.a, at, 16 * warp + row as u32, values, read)?;
            }
        }
        Ok(rows)
    }

    /// Columns 8·tile to 8·tile + 7 of B, by k.
    fn read_b(
        &self,
        tile: u32,
        at: Descriptor,
        read: &mut ReadChunk,
    ) -> Result<[[f32; 8]; 32], Fault> {
        let mut columns = [[0.0; 8]; 32];
        if self.modifiers.transpose_b {
            for (k, values) in columns.iter_mut().enumerate().take(self.k()) {
                let chunk = self.chunk(self.b, at.mn_major(tile, k as u32), read)?;
                values.copy_from_slice(&chunk[..8]);
            }
        } else {
            for column in 0..8 {
                let mut along_k = [0.0; 32];
                self.read_row(self.b, at, 8 * tile + column as u32, &mut along_k, read)?;
                for (values, value) in columns.iter_mut().zip(along_k) {
                    values[column] = value;
                }
            }
        }
        Ok(columns)
    }

    /// Row `row` of a K-major matrix: two chunks.
    fn read_row(
        &self,
        element: Element,
        at: Descriptor,
        row: u32,
        values: &mut [f32; 32],
        read: &mut ReadChunk,
    ) -> Result<(), Fault> {
        for (chunk, part) in values[..self.k()]
            .chunks_exact_mut(self.k() / 2)
            .enumerate()
        {
            let elements = self.chunk(element, at.k_major(row, chunk as u32), read)?;
            part.copy_from_slice(&elements[..part.len()]);
        }
        Ok(())
    }

    /// The elements of 16 bytes.
    fn chunk(
        &self,
        element: Element,
        address: u32,
        read: &mut ReadChunk,
    ) -> Result<[f32; 16], Fault> {
        let mut bytes = [0; 16];
        read(address, &mut bytes)?;
        let mut values = [0.0; 16];
        let per = element.per_register();
        for (word, values) in bytes
            .as_chunks::<4>()
            .0
            .iter()
            .zip(values[..4 * per].chunks_exact_mut(per))
        {
            let word = u32::from_le_bytes(*word);
            for (index, value) in values.iter_mut().enumerate() {
                *value = element.value(word, index);
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
#[path = "wgmma_tests.rs"]
mod tests;
