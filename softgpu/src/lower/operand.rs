//! Operands as register indices: literals, symbols and special registers get rows of their own.

use super::opcode::{Opcode, Type};
use super::scope::{Class, Symbol};
use super::{Lowering, Result, malformed};
use crate::ir::{Address, Ordering, Special, Width};
use crate::parse::Operand;

impl Lowering<'_> {
    /// A register that holds a constant in every lane.
    pub(super) fn constant(&mut self, is_wide: bool, value: u64) -> u32 {
        if let Some(index) = self.constants.get(&(is_wide, value)) {
            return *index;
        }
        let index = self.new_constant(is_wide, value);
        self.constants.insert((is_wide, value), index);
        index
    }

    fn new_constant(&mut self, is_wide: bool, value: u64) -> u32 {
        if is_wide {
            self.code.registers.wide.push([value; 32]);
            self.code.registers.wide.len() as u32 - 1
        } else {
            self.code.registers.narrow.push([value as u32; 32]);
            self.code.registers.narrow.len() as u32 - 1
        }
    }

    /// A source operand of type `kind`: a register of the file that the type lies in.
    pub(super) fn source(&mut self, opcode: &Opcode, operand: &Operand, kind: Type) -> Result<u32> {
        if kind == Type::Pred {
            return self.predicate(opcode, operand);
        }
        let is_wide = kind.is_wide();
        let value = match operand {
            Operand::Integer(value) => match kind {
                Type::F32 | Type::F64 => {
                    return Err(opcode.malformed("an integer where a float is expected"));
                }
                _ => *value,
            },
            Operand::Single(bits) => match kind {
                Type::F64 => f64::from(f32::from_bits(*bits)).to_bits(),
                _ => u64::from(*bits),
            },
            Operand::Double(bits) => match kind {
                Type::F32 => u64::from((f64::from_bits(*bits) as f32).to_bits()),
                _ => *bits,
            },
            Operand::Name(name, offset) => {
                if let Some((class, index)) = self.register_named(name) {
                    if class == Class::Predicate || (class == Class::Data(Width::B64)) != is_wide {
                        return Err(opcode.malformed(&format!("{name} has the wrong width")));
                    }
                    return Ok(index);
                }
                if name == "WARP_SZ" {
                    32
                } else if let Some((special, wide)) = special(name) {
                    return self.special(opcode, special, wide, is_wide);
                } else {
                    match self.symbol(name) {
                        Some(Symbol::DynamicShared) => {
                            let index = self.new_constant(is_wide, offset.cast_unsigned());
                            self.dynamic.push((is_wide, index));
                            return Ok(index);
                        }
                        Some(symbol) => place(symbol).wrapping_add_signed(*offset),
                        None => return Err(opcode.malformed(&format!("{name} is unknown"))),
                    }
                }
            }
            _ => return Err(opcode.malformed("an operand of the wrong kind")),
        };
        let value = match kind.size() {
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
        Ok(self.constant(is_wide, value))
    }

    fn special(
        &mut self,
        opcode: &Opcode,
        special: Special,
        wide: bool,
        is_wide: bool,
    ) -> Result<u32> {
        if wide != is_wide {
            return Err(opcode.malformed("a special register of another width"));
        }
        if let Some((_, index)) = self
            .code
            .specials
            .iter()
            .find(|(known, _)| *known == special)
        {
            return Ok(*index);
        }
        let width = if is_wide { Width::B64 } else { Width::B32 };
        let index = self.new_register(Class::Data(width));
        self.code.specials.push((special, index));
        Ok(index)
    }

    /// A destination of type `kind`; `_` is a register that nobody reads.
    pub(super) fn target(&mut self, opcode: &Opcode, operand: &Operand, kind: Type) -> Result<u32> {
        let Operand::Name(name, 0) = operand else {
            return Err(opcode.malformed("a destination that is no register"));
        };
        if name == "_" {
            let at = if kind == Type::Pred {
                2
            } else {
                usize::from(kind.is_wide())
            };
            return Ok(self.discard[at]);
        }
        match self.register_named(name) {
            Some((Class::Predicate, index)) if kind == Type::Pred => Ok(index),
            Some((Class::Data(width), index))
                if kind != Type::Pred && (width == Width::B64) == kind.is_wide() =>
            {
                Ok(index)
            }
            _ => Err(opcode.malformed(&format!("{name} is no register of the right width"))),
        }
    }

    /// A destination that may be wider than its type: the register and its own width.
    pub(super) fn any_target(
        &mut self,
        opcode: &Opcode,
        operand: &Operand,
    ) -> Result<Option<(u32, Width)>> {
        match operand {
            Operand::Name(name, 0) if name == "_" => Ok(None),
            Operand::Name(name, 0) => match self.register_named(name) {
                Some((Class::Data(width), index)) => Ok(Some((index, width))),
                _ => Err(opcode.malformed(&format!("{name} is no data register"))),
            },
            _ => Err(opcode.malformed("a destination that is no register")),
        }
    }

    /// A source that may be wider than its type: the register and whether it has 64 bits.
    pub(super) fn any_source(
        &mut self,
        opcode: &Opcode,
        operand: &Operand,
        kind: Type,
    ) -> Result<(u32, bool)> {
        if let Operand::Name(name, 0) = operand
            && let Some((Class::Data(width), index)) = self.register_named(name)
        {
            return Ok((index, width == Width::B64));
        }
        if let Operand::Name(name, 0) = operand
            && let Some((_, wide)) = special(name)
        {
            let kind = if wide { Type::U64 } else { Type::U32 };
            return Ok((self.source(opcode, operand, kind)?, wide));
        }
        Ok((self.source(opcode, operand, kind)?, kind.is_wide()))
    }

    pub(super) fn predicate_named(&mut self, name: &str, line: u32) -> Result<u32> {
        match self.register_named(name) {
            Some((Class::Predicate, index)) => Ok(index),
            _ => Err(malformed(line, &format!("{name} is no predicate"))),
        }
    }

    /// A predicate source, negation (`!p`) materialised by [`Self::signed_predicate`] callers only.
    pub(super) fn predicate(&mut self, opcode: &Opcode, operand: &Operand) -> Result<u32> {
        match self.signed_predicate(opcode, operand)? {
            (index, false) => Ok(index),
            _ => Err(opcode.malformed("a negated predicate")),
        }
    }

    /// A predicate source and whether it is negated.
    pub(super) fn signed_predicate(
        &mut self,
        opcode: &Opcode,
        operand: &Operand,
    ) -> Result<(u32, bool)> {
        match operand {
            Operand::Not(name) | Operand::Name(name, 0) => {
                let negated = matches!(operand, Operand::Not(_));
                match self.register_named(name) {
                    Some((Class::Predicate, index)) => Ok((index, negated)),
                    _ => Err(opcode.malformed(&format!("{name} is no predicate"))),
                }
            }
            Operand::Integer(value) => Ok((self.truth, *value == 0)),
            _ => Err(opcode.malformed("a predicate is expected")),
        }
    }

    /// The registers of an instruction whose operands have these types, the first a destination.
    pub(super) fn registers<const N: usize>(
        &mut self,
        opcode: &Opcode,
        operands: &[Operand],
        kinds: [Type; N],
    ) -> Result<[u32; N]> {
        if operands.len() != N {
            return Err(opcode.malformed(&format!("{} operands, not {N}", operands.len())));
        }
        let mut out = [0; N];
        out[0] = self.target(opcode, &operands[0], kinds[0])?;
        for at in 1..N {
            out[at] = self.source(opcode, &operands[at], kinds[at])?;
        }
        Ok(out)
    }

    /// `[register+offset]` or `[symbol+offset]`.
    pub(super) fn address(&mut self, opcode: &Opcode, operand: &Operand) -> Result<Address> {
        let Operand::Address { base, offset, more } = operand else {
            return Err(opcode.malformed("an address is expected"));
        };
        if !more.is_empty() {
            return Err(opcode.malformed("coordinates in a plain address"));
        }
        self.based(opcode, base, *offset)
    }

    /// An address from its base (a register, symbol or number) and an offset.
    pub(super) fn based(
        &mut self,
        opcode: &Opcode,
        base: &Operand,
        offset: i64,
    ) -> Result<Address> {
        if let Operand::Name(name, 0) = base {
            match self.register_named(name) {
                Some((Class::Data(Width::B64), base)) => {
                    return Ok(Address {
                        base,
                        is_wide: true,
                        offset,
                    });
                }
                Some((Class::Data(Width::B32), base)) => {
                    return Ok(Address {
                        base,
                        is_wide: false,
                        offset,
                    });
                }
                Some(_) => return Err(opcode.malformed(&format!("{name} holds no address"))),
                None => {}
            }
        }
        let base = self.source(opcode, base, Type::U64)?;
        Ok(Address {
            base,
            is_wide: true,
            offset,
        })
    }

    /// The elements of `{a, b, …}`, or the operand itself.
    pub(super) fn elements(operand: &Operand) -> &[Operand] {
        match operand {
            Operand::Vector(elements) => elements,
            _ => std::slice::from_ref(operand),
        }
    }
}

/// A variable's address in its own state space.
pub(super) fn place(symbol: Symbol) -> u64 {
    match symbol {
        Symbol::Address(address) => address,
        Symbol::Shared(at) | Symbol::Local(at) | Symbol::Parameter(at) => u64::from(at),
        Symbol::DynamicShared => 0,
    }
}

/// The special register of that name, and whether it has 64 bits.
fn special(name: &str) -> Option<(Special, bool)> {
    let (base, axis) = match name.rsplit_once('.') {
        Some((base, "x")) => (base, 0),
        Some((base, "y")) => (base, 1),
        Some((base, "z")) => (base, 2),
        _ => (name, 3),
    };
    let special = match (base, axis) {
        ("%tid", 0..=2) => Special::Thread(axis),
        ("%ntid", 0..=2) => Special::BlockSize(axis),
        ("%ctaid", 0..=2) => Special::Block(axis),
        ("%nctaid", 0..=2) => Special::Grid(axis),
        ("%clusterid", 0..=2) => Special::ClusterId(axis),
        ("%nclusterid", 0..=2) => Special::Clusters(axis),
        ("%cluster_ctaid", 0..=2) => Special::BlockInCluster(axis),
        ("%cluster_nctaid", 0..=2) => Special::BlocksInCluster(axis),
        ("%cluster_ctarank", 3) => Special::ClusterRank,
        ("%cluster_nctarank", 3) => Special::ClusterBlocks,
        ("%laneid", 3) => Special::Lane,
        ("%warpid", 3) => Special::Warp,
        ("%nwarpid", 3) => Special::Warps,
        ("%lanemask_eq", 3) => Special::LaneMask(Ordering::Eq),
        ("%lanemask_lt", 3) => Special::LaneMask(Ordering::Lt),
        ("%lanemask_le", 3) => Special::LaneMask(Ordering::Le),
        ("%lanemask_gt", 3) => Special::LaneMask(Ordering::Gt),
        ("%lanemask_ge", 3) => Special::LaneMask(Ordering::Ge),
        ("%smid", 3) => Special::Multiprocessor,
        ("%nsmid", 3) => Special::Multiprocessors,
        ("%dynamic_smem_size", 3) => Special::DynamicShared,
        ("%total_smem_size", 3) => Special::TotalShared,
        ("%gridid", 3) => return Some((Special::GridId, true)),
        _ => {
            let number = name.strip_prefix("%envreg")?.parse().ok()?;
            Special::Environment(number)
        }
    };
    Some((special, false))
}
