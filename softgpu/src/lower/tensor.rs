//! Tensor-core instructions and `cp.async`.

use super::opcode::{Opcode, Type};
use super::{Lowering, Result};
use crate::ir::{AsyncCopy, Op, Space};
use crate::parse::Operand;
use crate::registers::LANES;
use crate::tensor::mma::Mma;
use crate::tensor::{Accumulator, Element, matrix};

pub(super) fn element(kind: &str) -> Option<Element> {
    Some(match kind {
        "f16" => Element::F16,
        "bf16" => Element::Bf16,
        "tf32" => Element::Tf32,
        "e4m3" => Element::E4m3,
        "e5m2" => Element::E5m2,
        "s8" => Element::S8,
        "u8" => Element::U8,
        _ => return None,
    })
}

pub(super) fn accumulator(kind: &str) -> Option<Accumulator> {
    Some(match kind {
        "f16" => Accumulator::F16,
        "f32" => Accumulator::F32,
        "s32" => Accumulator::S32,
        _ => return None,
    })
}

impl Lowering<'_> {
    pub(super) fn tensor(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Op>> {
        Ok(Some(match opcode.base {
            "mma" => self.mma(opcode, operands)?,
            "ldmatrix" | "stmatrix" => self.matrix(opcode, operands)?,
            "movmatrix" => {
                for modifier in ["sync", "aligned", "m8n8", "trans"] {
                    opcode.take(modifier);
                }
                opcode.take_type()?;
                let [d, a] = self.registers(opcode, operands, [Type::B32; 2])?;
                Op::Matrix {
                    operations: 0,
                    action: Box::new(move |registers, mask| {
                        let out = matrix::transpose(registers.row::<u32>(a));
                        registers.put(d, mask, &out);
                    }),
                }
            }
            "cp" => self.copy(opcode, operands)?,
            _ => return Ok(None),
        }))
    }

    /// The registers of a fragment.
    pub(super) fn fragment(
        &mut self,
        opcode: &Opcode,
        operand: &Operand,
        target: bool,
    ) -> Result<Vec<u32>> {
        Self::elements(operand)
            .iter()
            .map(|operand| {
                if target {
                    self.target(opcode, operand, Type::B32)
                } else {
                    self.source(opcode, operand, Type::B32)
                }
            })
            .collect()
    }

    fn mma(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Op> {
        for modifier in ["sync", "aligned"] {
            opcode.take(modifier);
        }
        let shape = opcode.next().unwrap_or_default();
        let k = shape.strip_prefix("m16n8k").and_then(|k| k.parse().ok());
        let k: u32 = k.ok_or_else(|| opcode.unsupported())?;
        if !(opcode.take("row") && opcode.take("col")) {
            return Err(opcode.unsupported());
        }
        let _saturates = opcode.take("satfinite");
        let [d, a, b, c] = std::array::from_fn(|_| opcode.next().unwrap_or_default());
        let form = match (element(a), element(b), accumulator(d)) {
            (Some(a), Some(b), Some(d)) => Mma::new(k, a, b, d),
            _ => None,
        };
        let form = form
            .filter(|_| c == d && !_saturates)
            .ok_or_else(|| opcode.unsupported())?;
        let [d, a, b, c] = operands else {
            return Err(opcode.malformed("four operands"));
        };
        let d = self.fragment(opcode, d, true)?;
        let a = self.fragment(opcode, a, false)?;
        let b = self.fragment(opcode, b, false)?;
        let c = self.fragment(opcode, c, false)?;
        let accumulators = form.accumulator_registers();
        if (a.len(), b.len()) != (form.a_registers(), form.b_registers())
            || [d.len(), c.len()] != [accumulators; 2]
        {
            return Err(opcode.malformed("a fragment has the wrong number of registers"));
        }
        Ok(Op::Matrix {
            operations: form.operations(),
            action: Box::new(move |registers, mask| {
                let mut rows = [[[0; LANES]; 4]; 3];
                for (to, from) in rows.iter_mut().zip([&a, &b, &c]) {
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = *registers.row::<u32>(*from);
                    }
                }
                let [rows_a, rows_b, mut sum] = rows;
                form.multiply(
                    &rows_a[..a.len()],
                    &rows_b[..b.len()],
                    &mut sum[..accumulators],
                );
                for (to, from) in d.iter().zip(&sum) {
                    registers.put(*to, mask, from);
                }
            }),
        })
    }

    fn matrix(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Op> {
        for modifier in ["sync", "aligned"] {
            opcode.take(modifier);
        }
        let count = opcode.take_any(&[("x1", 1), ("x2", 2), ("x4", 4)]);
        let transpose = opcode.take("trans");
        let shared = ["shared", "shared::cta"]
            .iter()
            .any(|space| opcode.take(space));
        let space = if shared {
            Space::Shared
        } else {
            Space::Generic
        };
        let m8n8 = opcode.take("m8n8");
        let count = count.filter(|_| m8n8).ok_or_else(|| opcode.unsupported())?;
        if opcode.take_type()? != Type::B16 {
            return Err(opcode.unsupported());
        }
        let is_load = opcode.base == "ldmatrix";
        let (fragment, address) = match operands {
            [d, address] if is_load => (d, address),
            [address, sources] => (sources, address),
            _ => return Err(opcode.malformed("two operands are expected")),
        };
        let registers = self.fragment(opcode, fragment, is_load)?;
        if registers.len() != count {
            return Err(opcode.malformed("a fragment has the wrong number of registers"));
        }
        let address = self.address(opcode, address)?;
        Ok(if is_load {
            Op::LoadMatrix {
                address,
                space,
                transpose,
                d: registers,
            }
        } else {
            Op::StoreMatrix {
                address,
                space,
                transpose,
                sources: registers,
            }
        })
    }

    fn copy(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Op> {
        if !opcode.take("async") {
            return Err(opcode.unsupported());
        }
        if opcode.take("commit_group") {
            return Ok(Op::CommitGroup);
        }
        if opcode.take("wait_all") {
            return Ok(Op::WaitGroup(None));
        }
        if opcode.take("wait_group") {
            let [Operand::Integer(groups)] = operands else {
                return Err(opcode.malformed("a number of groups is expected"));
            };
            return Ok(Op::WaitGroup(Some(*groups as u32)));
        }
        let cached = opcode.take("ca") || opcode.take("cg");
        let shared = opcode.take("shared") || opcode.take("shared::cta");
        if !cached || !shared || !opcode.take("global") {
            return Err(opcode.unsupported());
        }
        let policy = opcode.take("L2::cache_hint");
        for hint in ["L2::64B", "L2::128B", "L2::256B"] {
            opcode.take(hint);
        }
        let operands = if policy {
            &operands[..operands.len().saturating_sub(1)]
        } else {
            operands
        };
        let [to, from, Operand::Integer(bytes), rest @ ..] = operands else {
            return Err(opcode.malformed("operands are missing"));
        };
        let (mut source_bytes, mut ignore) = (None, None);
        for operand in rest {
            match operand {
                Operand::Not(_) => ignore = Some(self.signed_predicate(opcode, operand)?),
                Operand::Name(name, 0) if self.predicate_named(name, 0).is_ok() => {
                    ignore = Some(self.signed_predicate(opcode, operand)?);
                }
                operand => source_bytes = Some(self.source(opcode, operand, Type::U32)?),
            }
        }
        if !matches!(bytes, 4 | 8 | 16) {
            return Err(opcode.malformed("4, 8 or 16 bytes are copied"));
        }
        Ok(Op::Copy(AsyncCopy {
            to: self.address(opcode, to)?,
            from: self.address(opcode, from)?,
            bytes: *bytes as u32,
            source_bytes,
            ignore,
        }))
    }
}
