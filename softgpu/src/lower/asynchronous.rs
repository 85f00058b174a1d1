//! mbarriers, bulk copies and wgmma.

use std::collections::HashSet;

use super::opcode::{Opcode, Type};
use super::scope::Class;
use super::{Lowering, Result};
use crate::ir::asynchronous::{
    Arrive, Asynchronous, BulkSource, BulkTarget, Phase, Pointer, WarpgroupMatrix,
};
use crate::ir::{Op, Space, Touched, Width};
use crate::parse::Operand;
use crate::tensor::wgmma::{Modifiers, Wgmma};

impl Lowering<'_> {
    /// Notes the registers that an instruction names, for [`Self::keep_shared_registers`].
    pub(super) fn note_registers(&mut self, number: usize, base: &str, operands: &[Operand]) {
        fn collect(lowering: &Lowering, operand: &Operand, found: &mut Vec<u32>) {
            match operand {
                Operand::Name(name, _) => {
                    if let Some((Class::Data(width), index)) = lowering.register_named(name)
                        && width != Width::B64
                    {
                        found.push(index);
                    }
                }
                Operand::Vector(inner) | Operand::List(inner) => {
                    inner
                        .iter()
                        .for_each(|operand| collect(lowering, operand, found));
                }
                Operand::Pair(a, b) => {
                    collect(lowering, a, found);
                    collect(lowering, b, found);
                }
                Operand::Address { base, .. } => collect(lowering, base, found),
                _ => {}
            }
        }
        let mut found = Vec::new();
        if !matches!(self.code.instructions[number].op, Op::Asynchronous(_)) {
            operands
                .iter()
                .for_each(|operand| collect(self, operand, &mut found));
        }
        self.code.touched.resize_with(number, Touched::default);
        self.code.touched.push(Touched {
            registers: found.into(),
            is_move: base == "mov",
        });
    }

    /// Leaves for each instruction the registers that some wgmma uses, too; without wgmma, nothing.
    pub(super) fn keep_shared_registers(&mut self) {
        let mut used: HashSet<u32> = HashSet::new();
        for instruction in &self.code.instructions {
            if let Op::Asynchronous(operation) = &instruction.op
                && let Asynchronous::Wgmma(matrix) = &**operation
            {
                used.extend(matrix.accumulators.iter().chain(matrix.a_registers.iter()));
            }
        }
        if used.is_empty() {
            self.code.touched = Vec::new();
            return;
        }
        for Touched { registers, .. } in &mut self.code.touched {
            *registers = registers
                .iter()
                .copied()
                .filter(|index| used.contains(index))
                .collect();
        }
    }

    pub(super) fn asynchronous(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Op>> {
        let bulk = opcode.base == "cp" && opcode.take("bulk");
        let arrival = opcode.base == "cp" && opcode.take("mbarrier");
        let decoded = match opcode.base {
            "mbarrier" => self.mbarrier(opcode, operands)?,
            "wgmma" => self.wgmma(opcode, operands)?,
            "cp" if bulk => {
                if !opcode.take("async") {
                    return Err(opcode.unsupported());
                }
                self.bulk(opcode, operands)?
            }
            "cp" if arrival => {
                let arrives = opcode.take("async") && opcode.take("arrive");
                let [barrier] = operands else {
                    return Err(opcode.malformed("one mbarrier is expected"));
                };
                let noinc = opcode.take("noinc");
                let barrier = self.pointer(opcode, barrier)?;
                opcode.take_type()?;
                if !arrives {
                    return Err(opcode.unsupported());
                }
                Asynchronous::ArriveOnCopies { barrier, noinc }
            }
            _ => return Ok(None),
        };
        Ok(Some(Op::Asynchronous(Box::new(decoded))))
    }

    /// An address whose state space is the next modifier: shared memory, or generic without one.
    fn pointer(&mut self, opcode: &mut Opcode, operand: &Operand) -> Result<Pointer> {
        let spaces = ["shared", "shared::cta", "shared::cluster"];
        let shared = spaces.iter().any(|space| opcode.take(space));
        let space = if shared {
            Space::Shared
        } else {
            Space::Generic
        };
        Ok(Pointer {
            address: self.address(opcode, operand)?,
            space,
        })
    }

    /// An address in shared memory that an instruction names without a modifier of its own.
    fn shared(&mut self, opcode: &Opcode, operand: &Operand) -> Result<Pointer> {
        Ok(Pointer {
            address: self.address(opcode, operand)?,
            space: Space::Shared,
        })
    }

    fn mbarrier(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Asynchronous> {
        let kinds = [
            "init",
            "inval",
            "arrive",
            "arrive_drop",
            "expect_tx",
            "complete_tx",
        ];
        // `arrive.expect_tx` is an arrival.
        let kind = opcode.next().unwrap_or_default();
        if kind == "pending_count" {
            opcode.take_type()?;
            let [d, state] = operands else {
                return Err(opcode.malformed("two operands"));
            };
            let d = self.target(opcode, d, Type::U32)?;
            return Ok(Asynchronous::PendingCount {
                d,
                state: self.source(opcode, state, Type::B64)?,
            });
        }
        if matches!(kind, "test_wait" | "try_wait") {
            return self.test(opcode, operands);
        }
        if !kinds.contains(&kind) {
            return Err(opcode.unsupported());
        }
        let expects = opcode.take("expect_tx");
        opcode.take("noComplete");
        let relaxed = opcode.take("relaxed");
        opcode.take("release");
        for scope in ["cta", "cluster"] {
            opcode.take(scope);
        }
        let (d, operands) = match operands {
            [d @ Operand::Name(..), rest @ ..] => (Some(d), rest),
            rest => (None, rest),
        };
        let [barrier, rest @ ..] = operands else {
            return Err(opcode.malformed("an mbarrier is expected"));
        };
        let barrier = self.pointer(opcode, barrier)?;
        opcode.take_type()?;
        let number = match rest {
            [] => None,
            [number] => Some(self.source(opcode, number, Type::U32)?),
            _ => return Err(opcode.malformed("too many operands")),
        };
        let needed = || opcode.malformed("a number is missing");
        let mut arrive = Arrive {
            barrier,
            d: None,
            count: None,
            expect: None,
            complete: None,
            drop: kind == "arrive_drop",
            release: !relaxed,
        };
        match kind {
            "init" => {
                return Ok(Asynchronous::Init {
                    barrier,
                    count: number.ok_or_else(needed)?,
                });
            }
            "inval" => return Ok(Asynchronous::Invalidate { barrier }),
            "expect_tx" => arrive.expect = Some(number.ok_or_else(needed)?),
            "complete_tx" => arrive.complete = Some(number.ok_or_else(needed)?),
            _ => {
                let one = self.constant(false, 1);
                arrive.count = Some(if expects { one } else { number.unwrap_or(one) });
                arrive.expect = if expects {
                    Some(number.ok_or_else(needed)?)
                } else {
                    None
                };
                if let Some(d) = d.filter(|d| !matches!(d, Operand::Name(name, _) if name == "_")) {
                    arrive.d = Some(self.target(opcode, d, Type::B64)?);
                }
            }
        }
        Ok(Asynchronous::Arrive(arrive))
    }

    fn test(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Asynchronous> {
        let parity = opcode.take("parity");
        let acquire = !opcode.take("relaxed");
        for modifier in ["acquire", "cta", "cluster"] {
            opcode.take(modifier);
        }
        // A fourth operand is a hint about the time to suspend for.
        let ([d, barrier, phase] | [d, barrier, phase, _]) = operands else {
            return Err(opcode.malformed("the wrong number of operands"));
        };
        let d = self.target(opcode, d, Type::Pred)?;
        let barrier = self.pointer(opcode, barrier)?;
        opcode.take_type()?;
        let phase = if parity {
            Phase::Parity(self.source(opcode, phase, Type::U32)?)
        } else {
            Phase::State(self.source(opcode, phase, Type::B64)?)
        };
        Ok(Asynchronous::Test {
            d,
            barrier,
            phase,
            acquire,
        })
    }

    /// `cp.async.bulk…`, its first two modifiers taken.
    fn bulk(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Asynchronous> {
        if opcode.take("commit_group") {
            return Ok(Asynchronous::CommitBulk);
        }
        if opcode.take("wait_group") {
            let [Operand::Integer(groups)] = operands else {
                return Err(opcode.malformed("a number of groups is expected"));
            };
            let read = opcode.take("read");
            return Ok(Asynchronous::WaitBulk {
                groups: *groups as u32,
                read,
            });
        }
        let tensor = opcode.take("tensor");
        let rank = opcode.take_any(&[("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)]);
        if tensor != rank.is_some() {
            return Err(opcode.unsupported());
        }
        opcode.take("tile");
        let hint = opcode.take("L2::cache_hint");
        let operands = if hint {
            &operands[..operands.len().saturating_sub(1)]
        } else {
            operands
        };
        let to = opcode.next().unwrap_or_default();
        let from = opcode.next().unwrap_or_default();
        if to == "global" && from == "shared::cta" {
            if !opcode.take("bulk_group") {
                return Err(opcode.unsupported());
            }
            return self.bulk_store(opcode, operands, rank);
        }
        let shared = matches!(to, "shared::cluster" | "shared::cta");
        if !shared || !opcode.take("mbarrier::complete_tx::bytes") {
            return Err(opcode.unsupported());
        }
        let multicasts = opcode.take("multicast::cluster");
        let (operands, multicast) = match operands {
            [operands @ .., mask] if multicasts => {
                (operands, Some(self.source(opcode, mask, Type::U16)?))
            }
            operands => (operands, None),
        };
        let (source, to, barrier) = match (operands, from, rank) {
            ([to, map, barrier], "global", Some(rank)) => {
                let (map, coordinates) = self.tensor_map(opcode, map, rank)?;
                (BulkSource::Tensor { map, coordinates }, to, barrier)
            }
            ([to, from, bytes, barrier], "global", None) => {
                let from = self.address(opcode, from)?;
                let bytes = self.source(opcode, bytes, Type::U32)?;
                (BulkSource::Global { from, bytes }, to, barrier)
            }
            ([to, from, bytes, barrier], "shared::cta", None) => {
                let from = self.shared(opcode, from)?;
                let bytes = self.source(opcode, bytes, Type::U32)?;
                (BulkSource::Shared { from, bytes }, to, barrier)
            }
            _ => return Err(opcode.unsupported()),
        };
        let (to, barrier) = (self.shared(opcode, to)?, self.shared(opcode, barrier)?);
        Ok(Asynchronous::BulkLoad {
            source,
            to,
            barrier,
            multicast,
        })
    }

    fn bulk_store(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
        rank: Option<usize>,
    ) -> Result<Asynchronous> {
        let (target, from) = match (operands, rank) {
            ([map, from], Some(rank)) => {
                let (map, coordinates) = self.tensor_map(opcode, map, rank)?;
                (BulkTarget::Tensor { map, coordinates }, from)
            }
            ([to, from, bytes], None) => {
                let to = self.address(opcode, to)?;
                let bytes = self.source(opcode, bytes, Type::U32)?;
                (BulkTarget::Global { to, bytes }, from)
            }
            _ => return Err(opcode.malformed("the wrong number of operands")),
        };
        Ok(Asynchronous::BulkStore {
            target,
            from: self.shared(opcode, from)?,
        })
    }

    /// `[map, {c0, c1, …}]`.
    fn tensor_map(
        &mut self,
        opcode: &Opcode,
        operand: &Operand,
        rank: usize,
    ) -> Result<(crate::ir::Address, Vec<u32>)> {
        let Operand::Address { base, offset, more } = operand else {
            return Err(opcode.malformed("a tensor map and coordinates are expected"));
        };
        let [coordinates] = more.as_slice() else {
            return Err(opcode.malformed("coordinates are expected"));
        };
        let map = self.based(opcode, base, *offset)?;
        let coordinates: Result<Vec<u32>> = Self::elements(coordinates)
            .iter()
            .map(|operand| self.source(opcode, operand, Type::S32))
            .collect();
        let coordinates = coordinates?;
        if coordinates.len() != rank {
            return Err(opcode.malformed("the wrong number of coordinates"));
        }
        Ok((map, coordinates))
    }

    fn wgmma(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Asynchronous> {
        let kind = opcode.next().unwrap_or_default();
        for modifier in ["sync", "aligned"] {
            opcode.take(modifier);
        }
        match (kind, operands) {
            ("fence", []) => return Ok(Asynchronous::WgmmaFence),
            ("commit_group", []) => return Ok(Asynchronous::WgmmaCommit),
            ("wait_group", [Operand::Integer(groups)]) => {
                return Ok(Asynchronous::WgmmaWait(*groups as u32));
            }
            ("mma_async", _) => {}
            _ => return Err(opcode.unsupported()),
        }
        let shape = opcode.next().unwrap_or_default();
        let sizes = shape
            .strip_prefix("m64n")
            .and_then(|rest| rest.split_once('k'));
        let sizes = sizes.and_then(|(n, k)| Some((n.parse().ok()?, k.parse().ok()?)));
        let (n, k): (u32, usize) = sizes.ok_or_else(|| opcode.unsupported())?;
        let [d, a, b] = std::array::from_fn(|_| opcode.next().unwrap_or_default());
        let (Some(sum), Some(a), Some(b)) = (
            super::tensor::accumulator(d),
            super::tensor::element(a),
            super::tensor::element(b),
        ) else {
            return Err(opcode.unsupported());
        };
        let [d, a_operand, b_operand, keep, immediates @ ..] = operands else {
            return Err(opcode.malformed("operands are missing"));
        };
        let from_registers = matches!(a_operand, Operand::Vector(_));
        let mut values = Vec::new();
        for immediate in immediates {
            let Operand::Integer(value) = immediate else {
                return Err(opcode.malformed("scales and transpositions are numbers"));
            };
            values.push(*value as i64);
        }
        // Scales of A and B, then whether A (in shared memory) and B are transposed.
        let (scales, transpositions) = values.split_at(values.len().min(2));
        let negative = |at: usize| scales.get(at).is_some_and(|scale| *scale as i32 == -1);
        let modifiers = Modifiers {
            negate_a: negative(0),
            negate_b: negative(1),
            transpose_a: !from_registers && transpositions.first() == Some(&1),
            transpose_b: transpositions.last() == Some(&1)
                && (from_registers || transpositions.len() == 2),
        };
        let form = Wgmma::new(n, a, b, sum, modifiers).filter(|form| form.k() == k);
        let form = form.ok_or_else(|| opcode.unsupported())?;
        let accumulators = self.fragment(opcode, d, true)?;
        let (a_registers, a) = if from_registers {
            (self.fragment(opcode, a_operand, false)?, None)
        } else {
            (Vec::new(), Some(self.source(opcode, a_operand, Type::B64)?))
        };
        if accumulators.len() != form.accumulator_registers()
            || from_registers && a_registers.len() != 4
        {
            return Err(opcode.malformed("a fragment has the wrong number of registers"));
        }
        Ok(Asynchronous::Wgmma(WarpgroupMatrix {
            form,
            accumulators: accumulators.into(),
            a_registers: a_registers.into(),
            a,
            b: self.source(opcode, b_operand, Type::B64)?,
            keep: self.signed_predicate(opcode, keep)?,
        }))
    }
}
