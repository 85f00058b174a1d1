//! Branches, barriers, fences, and the instructions that cross lanes.

use super::opcode::{Opcode, Type};
use super::{Lowering, Result};
use crate::fault::Kind;
use crate::ir::{Barrier, BarrierKind, Fence, Op, Scope, Width};
use crate::parse::Operand;
use crate::registers::{Action, LANES, Registers};

/// Fence and access scopes; within a cluster counts as within the device.
pub(super) const SCOPES: [(&str, Scope); 4] = [
    ("cta", Scope::Block),
    ("cluster", Scope::Device),
    ("gpu", Scope::Device),
    ("sys", Scope::Device),
];

impl Lowering<'_> {
    pub(super) fn control(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Op>> {
        Ok(Some(match opcode.base {
            "bra" => {
                opcode.take("uni");
                let [Operand::Name(name, 0)] = operands else {
                    return Err(opcode.malformed("a label is expected"));
                };
                let label = self.label(name);
                Op::Jump(label.ok_or_else(|| opcode.malformed(&format!("no label {name}")))?)
            }
            "brx" => {
                opcode.take("idx");
                opcode.take("uni");
                let [index, Operand::Name(table, 0)] = operands else {
                    return Err(opcode.malformed("an index and a table are expected"));
                };
                let names = self
                    .table(table)
                    .ok_or_else(|| opcode.malformed("no such table"))?;
                let targets: Option<Vec<u32>> = names.iter().map(|name| self.label(name)).collect();
                let targets = targets.ok_or_else(|| opcode.malformed("a label is missing"))?;
                Op::Switch {
                    index: self.source(opcode, index, Type::U32)?,
                    targets,
                }
            }
            "ret" => {
                opcode.take("uni");
                self.returns.last().map_or(Op::Exit, |end| Op::Jump(*end))
            }
            "exit" => Op::Exit,
            "trap" => Op::Trap(Kind::Trap),
            "nanosleep" => {
                opcode.take_type()?;
                Op::Yield
            }
            "brkpt" | "pmevent" | "setmaxnreg" | "griddepcontrol" | "prefetch" | "prefetchu"
            | "applypriority" => {
                while opcode.next().is_some() {}
                Op::Fence(Fence::None)
            }
            "mov" => {
                let [d, Operand::Name(name, 0)] = operands else {
                    return Ok(None);
                };
                let kind = match name.as_str() {
                    "%clock" | "%clock_hi" | "%globaltimer_lo" | "%globaltimer_hi" => Type::U32,
                    "%clock64" | "%globaltimer" => Type::U64,
                    _ => return Ok(None),
                };
                opcode.take_type()?;
                let width = if kind.is_wide() {
                    Width::B64
                } else {
                    Width::B32
                };
                Op::Clock {
                    d: self.target(opcode, d, kind)?,
                    width,
                }
            }
            "bar" | "barrier" => self.barrier(opcode, operands)?,
            "membar" => {
                let scopes = [
                    ("cta", Scope::Block),
                    ("gl", Scope::Device),
                    ("gpu", Scope::Device),
                    ("sys", Scope::Device),
                ];
                let scope = opcode
                    .take_any(&scopes)
                    .ok_or_else(|| opcode.unsupported())?;
                Op::Fence(Fence::Memory(scope))
            }
            "fence" => self.fence(opcode)?,
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => {
                return self.collective(opcode, operands).map(Some);
            }
            _ => return Ok(None),
        }))
    }

    fn fence(&mut self, opcode: &mut Opcode) -> Result<Op> {
        if opcode.take("proxy") {
            let fence = if opcode.take("async") {
                Fence::Proxy
            } else {
                Fence::None
            };
            while opcode.next().is_some() {}
            return Ok(Op::Fence(fence));
        }
        let initialises = opcode.take("mbarrier_init");
        for order in ["sc", "acq_rel", "acquire", "release", "sync_restrict"] {
            opcode.take(order);
        }
        while opcode.take("shared::cta") || opcode.take("shared::cluster") {}
        let scope = opcode
            .take_any(&SCOPES)
            .ok_or_else(|| opcode.unsupported())?;
        Ok(Op::Fence(if initialises {
            Fence::None
        } else {
            Fence::Memory(scope)
        }))
    }

    fn barrier(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Op> {
        if opcode.take("cluster") {
            let (arrive, wait) = (opcode.take("arrive"), opcode.take("wait"));
            for modifier in ["release", "acquire", "relaxed", "aligned"] {
                opcode.take(modifier);
            }
            return Ok(Op::ClusterBarrier { arrive, wait });
        }
        if opcode.take("warp") {
            opcode.take("sync");
            let [members] = operands else {
                return Err(opcode.malformed("a mask is expected"));
            };
            return Ok(Op::WarpBarrier {
                members: self.source(opcode, members, Type::U32)?,
            });
        }
        opcode.take("cta");
        let aligned = opcode.take("aligned") || opcode.base == "bar";
        let (kind, operands) = if opcode.take("sync") {
            (BarrierKind::Sync, operands)
        } else if opcode.take("arrive") {
            (BarrierKind::Arrive, operands)
        } else if opcode.take("red") {
            let [d, middle @ .., vote] = operands else {
                return Err(opcode.malformed("operands are missing"));
            };
            let (p, negated) = self.signed_predicate(opcode, vote)?;
            let kind = if opcode.take("popc") {
                opcode.take_type()?;
                BarrierKind::Count {
                    p,
                    negated,
                    d: self.target(opcode, d, Type::U32)?,
                }
            } else {
                let and = opcode.take("and");
                if !and && !opcode.take("or") {
                    return Err(opcode.unsupported());
                }
                opcode.take_type()?;
                let d = self.target(opcode, d, Type::Pred)?;
                if and {
                    BarrierKind::And { p, negated, d }
                } else {
                    BarrierKind::Or { p, negated, d }
                }
            };
            (kind, middle)
        } else {
            return Err(opcode.unsupported());
        };
        let (id, count) = match operands {
            [id] => (id, None),
            [id, count] => (id, Some(self.source(opcode, count, Type::U32)?)),
            _ => return Err(opcode.malformed("the wrong number of operands")),
        };
        let id = self.source(opcode, id, Type::U32)?;
        Ok(Op::Barrier(Barrier {
            id,
            count,
            aligned,
            kind,
        }))
    }

    fn collective(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Op> {
        if opcode.base == "activemask" {
            opcode.take_type()?;
            let [d] = operands else {
                return Err(opcode.malformed("one operand"));
            };
            let d = self.target(opcode, d, Type::U32)?;
            return Ok(Op::Compute(Box::new(move |registers, mask| {
                registers.put(d, mask, &[mask; LANES]);
            })));
        }
        if !(opcode.take("sync") || opcode.base == "elect") {
            return Err(opcode.unsupported());
        }
        let [first, middle @ .., members] = operands else {
            return Err(opcode.malformed("operands are missing"));
        };
        let members = self.source(opcode, members, Type::U32)?;
        let (d, p) = match first {
            Operand::Pair(d, p) => (&**d, self.target(opcode, p, Type::Pred)?),
            d => (d, self.discard[2]),
        };
        let action = match opcode.base {
            "shfl" => self.shuffle(opcode, d, p, middle)?,
            "vote" => self.vote(opcode, d, middle)?,
            "match" => self.match_values(opcode, d, p, middle)?,
            "redux" => self.reduce(opcode, d, middle)?,
            _ => {
                let d = self.target(opcode, d, Type::U32)?;
                let action: Action = Box::new(move |registers, mask| {
                    let leader = mask.trailing_zeros();
                    registers.put(d, mask, &[leader; LANES]);
                    registers.put_predicate(p, mask, mask & mask.wrapping_neg());
                });
                action
            }
        };
        Ok(Op::Collective { members, action })
    }

    fn shuffle(
        &mut self,
        opcode: &mut Opcode,
        d: &Operand,
        p: u32,
        operands: &[Operand],
    ) -> Result<Action> {
        let modes = [("up", 0), ("down", 1), ("bfly", 2), ("idx", 3)];
        let mode = opcode
            .take_any(&modes)
            .ok_or_else(|| opcode.unsupported())?;
        opcode.take_type()?;
        let [a, b, c] = operands else {
            return Err(opcode.malformed("operands are missing"));
        };
        let d = self.target(opcode, d, Type::U32)?;
        let a = self.source(opcode, a, Type::U32)?;
        let b = self.source(opcode, b, Type::U32)?;
        let c = self.source(opcode, c, Type::U32)?;
        Ok(Box::new(move |registers, mask| {
            let values = *registers.row::<u32>(a);
            let (b, c) = (registers.row::<u32>(b), registers.row::<u32>(c));
            let mut out = values;
            let mut in_range = 0;
            for lane in 0..LANES {
                let own = lane as i32;
                let by = (b[lane] & 31) as i32;
                let segment = (c[lane] >> 8 & 31) as i32;
                let first = own & segment;
                let last = first | (c[lane] & 31) as i32 & !segment;
                let (from, valid) = match mode {
                    0 => (own - by, own - by >= last),
                    1 => (own + by, own + by <= last),
                    2 => (own ^ by, own ^ by <= last),
                    _ => (first | by & !segment, (first | by & !segment) <= last),
                };
                if valid {
                    out[lane] = values[(from & 31) as usize];
                    in_range |= 1 << lane;
                }
            }
            registers.put(d, mask, &out);
            registers.put_predicate(p, mask, in_range);
        }))
    }

    fn vote(&mut self, opcode: &mut Opcode, d: &Operand, operands: &[Operand]) -> Result<Action> {
        let [vote] = operands else {
            return Err(opcode.malformed("one vote is expected"));
        };
        let (p, negated) = self.signed_predicate(opcode, vote)?;
        let flip = if negated { !0 } else { 0 };
        let votes = move |registers: &Registers, mask: u32| (registers.predicate(p) ^ flip) & mask;
        if opcode.take("ballot") {
            opcode.take_type()?;
            let d = self.target(opcode, d, Type::U32)?;
            return Ok(Box::new(move |registers, mask| {
                let ballot = votes(registers, mask);
                registers.put(d, mask, &[ballot; LANES]);
            }));
        }
        type Kind = fn(u32, u32) -> bool;
        let kinds: [(&str, Kind); 3] = [
            ("all", |votes, mask| votes == mask),
            ("any", |votes, _| votes != 0),
            ("uni", |votes, mask| votes == 0 || votes == mask),
        ];
        let kind = opcode
            .take_any(&kinds)
            .ok_or_else(|| opcode.unsupported())?;
        opcode.take_type()?;
        let d = self.target(opcode, d, Type::Pred)?;
        Ok(Box::new(move |registers, mask| {
            let result = if kind(votes(registers, mask), mask) {
                !0
            } else {
                0
            };
            registers.put_predicate(d, mask, result);
        }))
    }

    fn match_values(
        &mut self,
        opcode: &mut Opcode,
        d: &Operand,
        p: u32,
        operands: &[Operand],
    ) -> Result<Action> {
        let all = opcode.take("all");
        opcode.take("any");
        let kind = opcode.take_type()?;
        let [a] = operands else {
            return Err(opcode.malformed("one value is expected"));
        };
        let d = self.target(opcode, d, Type::U32)?;
        let a = self.source(opcode, a, kind)?;
        let is_wide = kind.is_wide();
        Ok(Box::new(move |registers, mask| {
            let values = if is_wide {
                *registers.row::<u64>(a)
            } else {
                registers.row::<u32>(a).map(u64::from)
            };
            let equal = |lane: usize| {
                (0..LANES)
                    .filter(|other| mask >> other & 1 != 0 && values[*other] == values[lane])
                    .fold(0_u32, |found, other| found | 1 << other)
            };
            if all {
                let same = equal(mask.trailing_zeros() as usize & 31) == mask;
                registers.put(d, mask, &[if same { mask } else { 0 }; LANES]);
                registers.put_predicate(p, mask, if same { !0 } else { 0 });
            } else {
                registers.put(d, mask, &std::array::from_fn(equal));
            }
        }))
    }

    fn reduce(&mut self, opcode: &mut Opcode, d: &Operand, operands: &[Operand]) -> Result<Action> {
        type Combine = fn(u32, u32) -> u32;
        let name = opcode.next().unwrap_or_default();
        let kind = opcode.take_type()?;
        let combine: Combine = match (name, kind) {
            ("add", Type::U32 | Type::S32) => u32::wrapping_add,
            ("min", Type::U32) => u32::min,
            ("max", Type::U32) => u32::max,
            ("min", Type::S32) => |a, b| (a as i32).min(b as i32) as u32,
            ("max", Type::S32) => |a, b| (a as i32).max(b as i32) as u32,
            ("and", Type::B32) => |a, b| a & b,
            ("or", Type::B32) => |a, b| a | b,
            ("xor", Type::B32) => |a, b| a ^ b,
            _ => return Err(opcode.unsupported()),
        };
        let [a] = operands else {
            return Err(opcode.malformed("one value is expected"));
        };
        let d = self.target(opcode, d, Type::U32)?;
        let a = self.source(opcode, a, Type::U32)?;
        Ok(Box::new(move |registers, mask| {
            let values = registers.row::<u32>(a);
            let lanes = (0..LANES).filter(|lane| mask >> lane & 1 != 0);
            let result = lanes.map(|lane| values[lane]).reduce(combine).unwrap_or(0);
            registers.put(d, mask, &[result; LANES]);
        }))
    }
}
