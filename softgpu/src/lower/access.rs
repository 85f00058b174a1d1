//! Loads, stores, atomics, and instructions about addresses.

use super::control::SCOPES;
use super::opcode::{Opcode, Type};
use super::scope::Symbol;
use super::{Lowering, Result};
use crate::ir::{Atomic, Fence, Load, Locate, Op, Scope, Space, Store, Strength, Width};
use crate::number::{self, arithmetic};
use crate::parse::Operand;
use crate::registers::unary;
use crate::space;

const SPACES: [(&str, Space); 10] = [
    ("global", Space::Global),
    ("const", Space::Const),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("shared::cluster", Space::Shared),
    ("local", Space::Local),
    ("param", Space::Param),
    ("param::entry", Space::Param),
    ("param::func", Space::Local),
    ("generic", Space::Generic),
];

/// Hints that change no result.
const HINTS: [&str; 24] = [
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "nc",
    "wb",
    "wt",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_first",
    "L2::evict_last",
    "L2::evict_normal",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "L2::cache_hint",
    "unified",
    "weak",
    "noftz",
    "mmio",
];

type Update = Box<dyn Fn(u64, u64, u64) -> u64 + Send + Sync>;

pub(super) fn width(bytes: u32) -> Option<Width> {
    Some(match bytes {
        1 => Width::B8,
        2 => Width::B16,
        4 => Width::B32,
        8 => Width::B64,
        _ => return None,
    })
}

impl Lowering<'_> {
    pub(super) fn access(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Op>> {
        Ok(Some(match opcode.base {
            "ld" | "ldu" => self.load(opcode, operands)?,
            "st" => self.store(opcode, operands)?,
            "atom" | "red" => self.atomic(opcode, operands)?,
            "cvta" => self.convert_address(opcode, operands)?,
            "isspacep" => {
                let space = opcode.next().unwrap_or_default();
                let cluster = space == "shared::cluster";
                let space = SPACES.iter().find(|(name, _)| *name == space);
                let space = space.ok_or_else(|| opcode.unsupported())?.1;
                let [p, a] = operands else {
                    return Err(opcode.malformed("two operands"));
                };
                let p = self.target(opcode, p, Type::Pred)?;
                let a = self.source(opcode, a, Type::U64)?;
                Op::Locate(Locate::InSpace {
                    p,
                    a,
                    space,
                    cluster,
                })
            }
            "mapa" => {
                let is_generic = !opcode.take("shared::cluster");
                let kind = opcode.take_type()?;
                let kinds = [kind, kind, Type::U32];
                let [d, a, rank] = self.registers(opcode, operands, kinds)?;
                Op::Locate(Locate::Map {
                    d,
                    a,
                    rank,
                    is_wide: kind.is_wide(),
                    is_generic,
                })
            }
            "getctarank" => {
                opcode.take("shared::cluster");
                let kind = opcode.take_type()?;
                let [d, a] = self.registers(opcode, operands, [Type::U32, kind])?;
                Op::Locate(Locate::Rank {
                    d,
                    a,
                    is_wide: kind.is_wide(),
                })
            }
            "discard" => {
                while opcode.next().is_some() {}
                Op::Fence(Fence::None)
            }
            _ => return Ok(None),
        }))
    }

    fn strength(opcode: &mut Opcode, atomic: bool) -> Strength {
        let volatile = opcode.take("volatile");
        let relaxed = opcode.take("relaxed");
        let both = opcode.take("acq_rel");
        let acquire = opcode.take("acquire") || both;
        let release = opcode.take("release") || both;
        let scope = opcode.take_any(&SCOPES).unwrap_or(Scope::Device);
        let strong = atomic || volatile || relaxed || acquire || release;
        Strength {
            strong,
            acquire,
            release,
            scope,
        }
    }

    fn hints(opcode: &mut Opcode) -> bool {
        let mut policy = false;
        for hint in HINTS {
            if opcode.take(hint) {
                policy |= hint == "L2::cache_hint";
            }
        }
        for prefix in ["L2::fractional", "level::prefetch"] {
            opcode.take(prefix);
        }
        policy
    }

    /// The space of `[base]`, where parameters of device functions lie in local memory.
    fn space_of(&self, space: Space, operand: &Operand) -> Space {
        if let (Space::Param, Operand::Address { base, .. }) = (space, operand)
            && let Operand::Name(name, 0) = &**base
            && !matches!(self.symbol(name), Some(Symbol::Parameter(_)))
            && (self.symbol(name).is_some() || !self.returns.is_empty())
        {
            return Space::Local;
        }
        space
    }

    fn lanes_of(opcode: &mut Opcode) -> usize {
        opcode
            .take_any(&[("v2", 2), ("v4", 4), ("v8", 8)])
            .unwrap_or(1)
    }

    fn load(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Op> {
        let strength = Self::strength(opcode, false);
        let space = opcode.take_any(&SPACES).unwrap_or(Space::Generic);
        let policy = Self::hints(opcode);
        let lanes = Self::lanes_of(opcode);
        let kind = opcode.take_type()?;
        let operands = if policy {
            &operands[..operands.len().min(2)]
        } else {
            operands
        };
        let [d, from] = operands else {
            return Err(opcode.malformed("two operands are expected"));
        };
        let space = self.space_of(space, from);
        let element = width(kind.size()).ok_or_else(|| opcode.unsupported())?;
        let elements = Self::elements(d);
        if elements.len() != lanes {
            return Err(opcode.malformed("the vector has another length"));
        }
        let mut targets = Vec::new();
        for operand in elements {
            let target = self.any_target(opcode, operand)?;
            let discarded = (self.discard[usize::from(kind.is_wide())], element);
            targets.push(target.unwrap_or(discarded));
        }
        let signed = kind.is_signed();
        if let Some((base, at)) = self.parameter_at(space, from)
            && matches!(element, Width::B32 | Width::B64)
            && targets.iter().all(|(_, to)| *to == element)
        {
            return Ok(self.load_parameters(base.wrapping_add(at as u32), element, &targets));
        }
        let address = self.address(opcode, from)?;
        Ok(Op::Load(Load {
            space,
            address,
            element,
            signed,
            d: targets,
            strength,
        }))
    }

    /// The offset of a kernel parameter that is named directly.
    fn parameter_at(&self, space: Space, from: &Operand) -> Option<(u32, i64)> {
        let Operand::Address { base, offset, .. } = from else {
            return None;
        };
        let Operand::Name(name, 0) = &**base else {
            return None;
        };
        match (space, self.symbol(name)) {
            (Space::Param, Some(Symbol::Parameter(at))) => Some((at, *offset)),
            _ => None,
        }
    }

    /// Parameters at known places are in registers before the kernel starts.
    fn load_parameters(&mut self, mut at: u32, element: Width, targets: &[(u32, Width)]) -> Op {
        let mut actions = Vec::new();
        for (d, _) in targets {
            let is_wide = element == Width::B64;
            let known = self.code.parameters.iter();
            let known = known
                .clone()
                .find(|(offset, width, _)| (*offset, *width) == (at, element));
            let row = match known {
                Some((_, _, row)) => *row,
                None => {
                    let row = self.new_register(super::scope::Class::Data(element));
                    self.code.parameters.push((at, element, row));
                    row
                }
            };
            actions.push(if is_wide {
                unary([*d, row], |x: u64| x)
            } else {
                unary([*d, row], |x: u32| x)
            });
            at += element.bytes() as u32;
        }
        Op::Compute(match actions.len() {
            1 => actions.remove(0),
            _ => Box::new(move |registers, mask| {
                for action in &actions {
                    action(registers, mask);
                }
            }),
        })
    }

    fn store(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Op> {
        if opcode.take("async") {
            return Err(opcode.unsupported());
        }
        let strength = Self::strength(opcode, false);
        let space = opcode.take_any(&SPACES).unwrap_or(Space::Generic);
        let policy = Self::hints(opcode);
        let lanes = Self::lanes_of(opcode);
        let kind = opcode.take_type()?;
        let operands = if policy {
            &operands[..operands.len().min(2)]
        } else {
            operands
        };
        let [to, value] = operands else {
            return Err(opcode.malformed("two operands"));
        };
        let space = self.space_of(space, to);
        let element = width(kind.size()).ok_or_else(|| opcode.unsupported())?;
        let elements = Self::elements(value);
        if elements.len() != lanes {
            return Err(opcode.malformed("the vector has another length"));
        }
        let mut sources = Vec::new();
        for operand in elements {
            sources.push(self.any_source(opcode, operand, kind)?);
        }
        let address = self.address(opcode, to)?;
        Ok(Op::Store(Store {
            space,
            address,
            element,
            sources,
            strength,
        }))
    }

    fn atomic(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Op> {
        let strength = Self::strength(opcode, true);
        let space = opcode.take_any(&SPACES).unwrap_or(Space::Generic);
        opcode.take("shared::cta");
        Self::hints(opcode);
        let name = opcode.next().unwrap_or_default();
        Self::hints(opcode);
        let kind = opcode.take_type()?.as_unsigned();
        let width = width(kind.size()).ok_or_else(|| opcode.unsupported())?;
        let flushes = (name, kind) == ("add", Type::F32);
        let f = update(name, kind).ok_or_else(|| opcode.unsupported())?;
        let (d, rest) = match (opcode.base, operands) {
            ("atom", [d, rest @ ..]) => {
                let d = match d {
                    Operand::Name(name, 0) if name == "_" => None,
                    d => Some(self.target(opcode, d, kind)?),
                };
                (d, rest)
            }
            _ => (None, operands),
        };
        let (address, b, c) = match (name, rest) {
            ("cas", [address, b, c]) => (address, b, Some(c)),
            ("cas", _) => return Err(opcode.malformed("operands are missing")),
            (_, [address, b]) => (address, b, None),
            _ => return Err(opcode.unsupported()),
        };
        let address = self.address(opcode, address)?;
        let b = self.source(opcode, b, kind)?;
        let c = match c {
            Some(c) => self.source(opcode, c, kind)?,
            None => b,
        };
        Ok(Op::Atomic(Atomic {
            space,
            address,
            width,
            d,
            b,
            c,
            f,
            flushes,
            strength,
        }))
    }

    fn convert_address(&mut self, opcode: &mut Opcode, operands: &[Operand]) -> Result<Op> {
        let back = opcode.take("to");
        let space = opcode
            .take_any(&SPACES)
            .ok_or_else(|| opcode.unsupported())?;
        let kind = opcode.take_type()?;
        if !kind.is_wide() {
            return Err(opcode.unsupported());
        }
        // `cvta.shared.u64 d, symbol` and `… d, symbol+4` are covered by `source`.
        let r = self.registers(opcode, operands, [Type::U64; 2])?;
        let window = space::window(space);
        Ok(Op::Compute(if back {
            unary(r, move |x: u64| x.wrapping_sub(window))
        } else {
            unary(r, move |x: u64| x.wrapping_add(window))
        }))
    }
}

/// The function of an atomic: old value and operands to new value.
fn update(name: &str, kind: Type) -> Option<Update> {
    macro_rules! integer {
        ($($type:ident $rust:ty),*; |$a:ident, $b:ident| $e:expr) => {
            match kind {
                $(Type::$type => Some(Box::new(|a: u64, b: u64, _| {
                    let ($a, $b) = (a as $rust, b as $rust);
                    ($e) as u64
                }) as Update),)*
                _ => None,
            }
        };
    }
    let half = |packed: bool| {
        let format = super::arithmetic::half_format(kind)?;
        let one = move |a: u32, b: u32| arithmetic::half_add(format, a, b, Default::default());
        Some(if packed {
            Box::new(move |a: u64, b: u64, _: u64| {
                u64::from(number::arithmetic::packed(
                    [a as u32, b as u32],
                    |[a, b]| one(a, b),
                ))
            }) as Update
        } else {
            Box::new(move |a: u64, b: u64, _: u64| u64::from(one(a as u32, b as u32)))
        })
    };
    match (name, kind) {
        ("add", Type::F32) => Some(Box::new(|a, b, _| {
            let sum = f32::from_bits(a as u32) + f32::from_bits(b as u32);
            u64::from(arithmetic::canonical(sum).to_bits())
        })),
        ("add", Type::F64) => Some(Box::new(|a, b, _| {
            (f64::from_bits(a) + f64::from_bits(b)).to_bits()
        })),
        ("add", Type::F16 | Type::BF16) => half(false),
        ("add", Type::F16x2 | Type::BF16x2) => half(true),
        ("add", _) => integer!(U32 u32, S32 u32, U64 u64, S64 u64; |a, b| a.wrapping_add(b)),
        ("min", _) => integer!(U32 u32, S32 i32, U64 u64, S64 i64; |a, b| a.min(b)),
        ("max", _) => integer!(U32 u32, S32 i32, U64 u64, S64 i64; |a, b| a.max(b)),
        ("and", _) => integer!(U32 u32, U64 u64; |a, b| a & b),
        ("or", _) => integer!(U32 u32, U64 u64; |a, b| a | b),
        ("xor", _) => integer!(U32 u32, U64 u64; |a, b| a ^ b),
        ("exch", _) => integer!(U32 u32, U64 u64; |_a, b| b),
        ("inc", _) => integer!(U32 u32; |a, b| if a >= b { 0 } else { a + 1 }),
        ("dec", _) => integer!(U32 u32; |a, b| if a == 0 || a > b { b } else { a - 1 }),
        ("cas", Type::U16 | Type::U32 | Type::U64) => {
            Some(Box::new(|a, b, c| if a == b { c } else { a }))
        }
        _ => None,
    }
}
