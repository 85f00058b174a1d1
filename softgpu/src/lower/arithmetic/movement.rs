//! `mov`: between registers, and between a register and a vector of its parts.

use super::super::opcode::{Opcode, Type};
use super::super::{Lowering, Result};
use crate::parse::Operand;
use crate::registers::{Action, binary, logic, quaternary, unary};

impl Lowering<'_> {
    pub(super) fn mov(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Action>> {
        let kind = opcode.take_type()?;
        let [d, a] = operands else { return Ok(None) };
        match (d, a) {
            (Operand::Vector(parts), a) => self.unpack(opcode, kind, parts, a),
            (d, Operand::Vector(parts)) => self.pack(opcode, kind, d, parts),
            _ if kind == Type::Pred => {
                let d = self.target(opcode, d, kind)?;
                let (a, negated) = self.signed_predicate(opcode, a)?;
                let flip = if negated { !0 } else { 0 };
                Ok(Some(logic([d, a, a, a], move |a, _, _| a ^ flip)))
            }
            (d, a) => {
                let d = self.target(opcode, d, kind)?;
                let a = self.source(opcode, a, kind)?;
                Ok(match kind.size() {
                    8 => Some(unary([d, a], |a: u64| a)),
                    2 => Some(unary([d, a], |a: u16| a)),
                    4 => Some(unary([d, a], |a: u32| a)),
                    _ => None,
                })
            }
        }
    }

    /// `mov.b64 d, {low, high}`.
    fn pack(
        &mut self,
        opcode: &Opcode,
        kind: Type,
        d: &Operand,
        parts: &[Operand],
    ) -> Result<Option<Action>> {
        let d = self.target(opcode, d, kind)?;
        let part = if parts.len() == 4 || kind.size() == 4 {
            Type::B16
        } else {
            Type::B32
        };
        let part = if kind.size() as usize == parts.len() {
            Type::B8
        } else {
            part
        };
        let sources: Vec<u32> = parts
            .iter()
            .map(|operand| self.source(opcode, operand, part))
            .collect::<Result<_>>()?;
        Ok(match (kind.size(), sources.as_slice()) {
            (8, &[a, b]) => Some(binary([d, a, b], |a: u32, b: u32| {
                u64::from(b) << 32 | u64::from(a)
            })),
            (8, &[a, b, c, e]) => Some(quaternary(
                [d, a, b, c, e],
                |a: u16, b: u16, c: u16, e: u16| {
                    let low = u64::from(b) << 16 | u64::from(a);
                    (u64::from(e) << 16 | u64::from(c)) << 32 | low
                },
            )),
            (4, &[a, b]) => Some(binary([d, a, b], |a: u16, b: u16| {
                u32::from(b) << 16 | u32::from(a)
            })),
            (4, &[a, b, c, e]) => {
                Some(quaternary([d, a, b, c, e], |a: u8, b: u8, c: u8, e: u8| {
                    u32::from_le_bytes([a, b, c, e])
                }))
            }
            _ => None,
        })
    }

    /// `mov.b64 {low, high}, a`.
    fn unpack(
        &mut self,
        opcode: &Opcode,
        kind: Type,
        parts: &[Operand],
        a: &Operand,
    ) -> Result<Option<Action>> {
        let a = self.source(opcode, a, kind)?;
        let bits = kind.size() * 8 / parts.len().max(1) as u32;
        let part = match bits {
            8 => Type::B8,
            16 => Type::B16,
            32 => Type::B32,
            _ => return Ok(None),
        };
        let targets: Vec<u32> = parts
            .iter()
            .map(|operand| self.target(opcode, operand, part))
            .collect::<Result<_>>()?;
        let is_wide = kind.is_wide();
        let ones = if bits == 32 { !0 } else { (1_u32 << bits) - 1 };
        Ok(Some(Box::new(move |registers, mask| {
            let whole: [u64; 32] = if is_wide {
                *registers.row::<u64>(a)
            } else {
                registers.row::<u32>(a).map(u64::from)
            };
            for (at, target) in targets.iter().enumerate() {
                let out = whole.map(|x| (x >> (at as u32 * bits)) as u32 & ones);
                registers.put(*target, mask, &out);
            }
        })))
    }
}
