//! The `wgmma.mma_async` operations of a warp that are in flight, and the registers they own.
//!
//! From issue to the `wgmma.wait_group` that covers it, an operation owns its accumulators and the
//! registers of A: any other access to them is undefined. Operations of one shape may follow each
//! other on the same accumulators. Before an operation, `wgmma.fence` must come after every other
//! access to its registers; before the first one, in any case.

use std::collections::HashSet;
use std::sync::Arc;

use super::Lanes;
use super::descriptor::Descriptor;
use super::wgmma::{OperandA, Wgmma};
use crate::copy::Groups;
use crate::fault::Fault;
use crate::launch::Copies;
use crate::random;

/// One issued operation. `O` says who issued it, and where.
#[derive(Clone, Debug)]
pub struct Issue<O> {
    /// The form.
    pub operation: Wgmma,
    /// The warp's place in its warpgroup, 0 to 3.
    pub warp: u32,
    /// The indices of the accumulator registers.
    pub accumulators: Arc<[u32]>,
    /// The indices of the registers of A; empty if A is in shared memory.
    pub a_registers: Arc<[u32]>,
    /// A, its registers read at issue.
    pub a: OperandA,
    /// B.
    pub b: Descriptor,
    /// scale-d: whether the old accumulators are added.
    pub keep: bool,
    /// Who and where.
    pub origin: O,
}

/// Reads 16 bytes of shared memory for the operation of this origin, with the executor's checks.
pub type Read<'a, O> = dyn FnMut(&O, u32, &mut [u8; 16]) -> Result<(), Fault> + 'a;

/// A use of registers that the ISA leaves undefined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misuse<O> {
    /// The register of this index belongs to an operation in flight.
    InFlight(u32, O),
    /// The register of this index was accessed (or, for the first operation, may have been) after
    /// the last `wgmma.fence`.
    Unfenced(u32),
}

#[derive(Clone, Debug)]
struct Flight<O> {
    issue: Issue<O>,
    landed: bool,
}

/// The operations in flight of one warp.
#[derive(Clone, Debug)]
pub struct Pipe<O> {
    policy: Copies,
    random: u64,
    groups: Groups<Flight<O>>,
    fenced: bool,
    accessed: HashSet<u32>,
}

impl<O: Clone> Pipe<O> {
    /// An empty pipe whose operations land as `policy` says.
    #[must_use]
    pub fn new(policy: Copies, seed: u64) -> Self {
        Self {
            policy,
            random: seed ^ 0x9e37_79b9_7f4a_7c15,
            groups: Groups::default(),
            fenced: false,
            accessed: HashSet::new(),
        }
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.groups.is_empty()
    }

    /// Notes that an ordinary instruction reads or writes registers; the executor calls it with
    /// those that any wgmma of the kernel uses.
    ///
    /// # Errors
    /// If one is in flight.
    pub fn access(&mut self, registers: &[u32]) -> Result<(), Misuse<O>> {
        self.accessed.extend(registers);
        self.copy(registers)
    }

    /// As [`Self::access`], for a `mov`: it needs no fence after it.
    ///
    /// # Errors
    /// If a register is in flight.
    pub fn copy(&self, registers: &[u32]) -> Result<(), Misuse<O>> {
        self.owner(registers, |_| true)
    }

    fn owner(
        &self,
        registers: &[u32],
        forbidden: impl Fn(&Issue<O>) -> bool,
    ) -> Result<(), Misuse<O>> {
        for Flight { issue, .. } in self.groups.iter().filter(|flight| forbidden(&flight.issue)) {
            let mut owned = issue.accumulators.iter().chain(issue.a_registers.iter());
            if let Some(&register) = owned.find(|register| registers.contains(register)) {
                return Err(Misuse::InFlight(register, issue.origin.clone()));
            }
        }
        Ok(())
    }

    /// Whether the registers of an operation may be used by it now.
    ///
    /// # Errors
    /// If one is in flight otherwise than as the accumulator of the same shape; if one is not
    /// fenced.
    pub fn check(&self, next: &Issue<O>) -> Result<(), Misuse<O>> {
        let same_accumulators = |earlier: &Issue<O>| {
            earlier.operation.has_shape_of(&next.operation)
                && earlier.accumulators == next.accumulators
        };
        self.owner(&next.accumulators, |earlier| !same_accumulators(earlier))?;
        let is_accumulator = |issue: &Issue<O>| {
            issue
                .accumulators
                .iter()
                .any(|register| next.a_registers.contains(register))
        };
        self.owner(&next.a_registers, is_accumulator)?;
        let mut used = next.accumulators.iter().chain(next.a_registers.iter());
        match used.find(|register| !self.fenced || self.accessed.contains(register)) {
            Some(&register) => Err(Misuse::Unfenced(register)),
            None => Ok(()),
        }
    }

    /// `wgmma.fence`.
    pub fn fence(&mut self) {
        self.fenced = true;
        self.accessed.clear();
    }

    /// `wgmma.mma_async`. `registers` is the warp's register file.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn issue(
        &mut self,
        issue: Issue<O>,
        registers: &mut [Lanes],
        read: &mut Read<O>,
    ) -> Result<(), Fault> {
        self.groups.issue(Flight {
            issue,
            landed: false,
        });
        if self.early() {
            // In order: a later operation may add to what an earlier one leaves.
            for flight in self.groups.iter_mut() {
                flight.land(registers, read)?;
            }
        }
        Ok(())
    }

    /// `wgmma.commit_group`.
    pub fn commit(&mut self) {
        self.groups.commit();
    }

    /// `wgmma.wait_group n`.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn wait(
        &mut self,
        n: usize,
        registers: &mut [Lanes],
        read: &mut Read<O>,
    ) -> Result<(), Fault> {
        self.groups
            .wait(n)
            .try_for_each(|mut flight| flight.land(registers, read))
    }

    fn early(&mut self) -> bool {
        match self.policy {
            Copies::Early => true,
            Copies::Late => false,
            Copies::Random => random::flip(&mut self.random),
        }
    }
}

impl<O> Flight<O> {
    fn land(&mut self, registers: &mut [Lanes], read: &mut Read<O>) -> Result<(), Fault> {
        if std::mem::replace(&mut self.landed, true) {
            return Ok(());
        }
        let Issue {
            operation,
            warp,
            accumulators,
            a,
            b,
            keep,
            origin,
            ..
        } = &self.issue;
        let register = |index: &u32| registers.get(*index as usize).copied().unwrap_or([0; 32]);
        let mut values: Vec<Lanes> = accumulators.iter().map(register).collect();
        let read = &mut |address, bytes: &mut [u8; 16]| read(origin, address, bytes);
        operation.multiply(*warp, a, *b, *keep, &mut values, read)?;
        for (&index, value) in accumulators.iter().zip(values) {
            if let Some(register) = registers.get_mut(index as usize) {
                *register = value;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::wgmma::Modifiers;
    use crate::tensor::{Accumulator, Element};

    const ONES: u32 = 0x3f80_3f80;

    /// An operation on registers 0 to 3 (n = 8) with A in registers 4 to 7, all ones: each adds 16.
    fn issue(n: u32, origin: &'static str) -> Issue<&'static str> {
        let bf16 = Element::Bf16;
        Issue {
            operation: Wgmma::new(n, bf16, bf16, Accumulator::F32, Modifiers::default()).unwrap(),
            warp: 0,
            accumulators: (0..n / 2).collect(),
            a_registers: (100..104).collect(),
            a: OperandA::Registers(Box::new([[ONES; 32]; 4])),
            b: Descriptor::decode(0),
            keep: true,
            origin,
        }
    }

    fn value(registers: &[Lanes]) -> f32 {
        f32::from_bits(registers[0][0])
    }

    /// Shared memory full of ones.
    fn ones(_: &&'static str, _: u32, bytes: &mut [u8; 16]) -> Result<(), Fault> {
        bytes.copy_from_slice(&[0x80, 0x3f].repeat(8));
        Ok(())
    }

    #[test]
    fn operations_land_in_order_at_issue_or_at_the_wait() {
        for (policy, at_issue) in [(Copies::Early, 32.0), (Copies::Late, 0.0)] {
            let (mut pipe, mut registers) = (Pipe::new(policy, 1), vec![[0; 32]; 8]);
            pipe.issue(issue(8, "first"), &mut registers, &mut ones)
                .unwrap();
            pipe.commit();
            pipe.issue(issue(8, "second"), &mut registers, &mut ones)
                .unwrap();
            pipe.commit();
            assert_eq!(value(&registers), at_issue);
            pipe.wait(1, &mut registers, &mut ones).unwrap();
            assert!(!pipe.is_idle());
            pipe.wait(0, &mut registers, &mut ones).unwrap();
            assert_eq!(value(&registers), 32.0);
            assert!(pipe.is_idle());
        }
    }

    #[test]
    fn registers_in_flight_belong_to_the_operation() {
        for policy in [Copies::Early, Copies::Late] {
            let (mut pipe, mut registers) = (Pipe::new(policy, 1), vec![[0; 32]; 8]);
            pipe.fence();
            pipe.issue(issue(8, "first"), &mut registers, &mut ones)
                .unwrap();
            assert_eq!(pipe.access(&[4, 5]), Ok(()));
            assert_eq!(pipe.access(&[5, 3]), Err(Misuse::InFlight(3, "first")));
            assert_eq!(pipe.access(&[101]), Err(Misuse::InFlight(101, "first")));
            pipe.commit();
            pipe.wait(0, &mut registers, &mut ones).unwrap();
            assert_eq!(pipe.access(&[3, 101]), Ok(()));
        }
    }

    #[test]
    fn a_fence_must_follow_every_other_access() {
        let mut pipe = Pipe::new(Copies::Late, 1);
        assert_eq!(pipe.check(&issue(8, "first")), Err(Misuse::Unfenced(0)));
        pipe.fence();
        assert_eq!(pipe.check(&issue(8, "first")), Ok(()));
        pipe.access(&[2, 50]).unwrap();
        assert_eq!(pipe.check(&issue(8, "first")), Err(Misuse::Unfenced(2)));
        pipe.fence();
        pipe.access(&[103]).unwrap();
        assert_eq!(pipe.check(&issue(8, "first")), Err(Misuse::Unfenced(103)));
    }

    #[test]
    fn only_accumulators_of_the_same_shape_may_be_chained() {
        let (mut pipe, mut registers) = (Pipe::new(Copies::Late, 1), vec![[0; 32]; 8]);
        pipe.fence();
        pipe.issue(issue(8, "first"), &mut registers, &mut ones)
            .unwrap();
        assert_eq!(pipe.check(&issue(8, "same")), Ok(()));
        assert_eq!(
            pipe.check(&issue(16, "wider")),
            Err(Misuse::InFlight(0, "first"))
        );
        let mut reads_sums = issue(8, "second product");
        reads_sums.accumulators = (200..204).collect();
        reads_sums.a_registers = (0..4).collect();
        assert_eq!(pipe.check(&reads_sums), Err(Misuse::InFlight(0, "first")));
    }

    #[test]
    fn random_landing_keeps_the_order() {
        for seed in 0..32 {
            let (mut pipe, mut registers) = (Pipe::new(Copies::Random, seed), vec![[0; 32]; 8]);
            for step in 0..6 {
                // The fourth operation starts over.
                let issue = Issue {
                    keep: step != 3,
                    ..issue(8, "step")
                };
                pipe.issue(issue, &mut registers, &mut ones).unwrap();
                pipe.commit();
            }
            pipe.wait(0, &mut registers, &mut ones).unwrap();
            assert_eq!(value(&registers), 48.0);
        }
    }
}
