//! Sums in several words: `add`, `sub` and `mad` that leave a carry (`.cc`) or take one (`c`).

use super::super::opcode::{Opcode, Type};
use super::super::{Lowering, Result};
use super::High;
use crate::parse::Operand;
use crate::registers::{Action, Index, LANES, Lane, Registers};

/// What is added to what, and the carry.
#[derive(Clone, Copy)]
struct Sum {
    base: &'static str,
    high: bool,
    takes: bool,
    leaves: bool,
    carry: Index,
}

impl Lowering<'_> {
    pub(super) fn carrying(
        &mut self,
        opcode: &mut Opcode,
        operands: &[Operand],
    ) -> Result<Option<Action>> {
        let kind = opcode.take_type()?;
        let (base, takes) = match opcode.base {
            "add" => ("add", false),
            "addc" => ("add", true),
            "sub" => ("sub", false),
            "subc" => ("sub", true),
            "mad" => ("mad", false),
            _ => ("mad", true),
        };
        let sum = Sum {
            base,
            high: base == "mad" && !opcode.take("lo") && opcode.take("hi"),
            takes,
            leaves: opcode.take("cc"),
            carry: self.carry,
        };
        // The lower words of sums and products are those of the unsigned type.
        let kind = if sum.high { kind } else { kind.as_unsigned() };
        let registers = match base {
            "mad" => self.registers(opcode, operands, [kind; 4])?,
            _ => {
                let [d, a, b] = self.registers(opcode, operands, [kind; 3])?;
                [d, a, b, b]
            }
        };
        Ok(match kind {
            Type::U32 => Some(sum.action::<u32>(registers)),
            Type::U64 => Some(sum.action::<u64>(registers)),
            _ => None,
        })
    }
}

/// The words that carry.
trait Word: Lane + High {
    fn low(self, other: Self) -> Self;
    fn add(self, other: Self, carry: bool) -> (Self, bool);
    fn subtract(self, other: Self, borrow: bool) -> (Self, bool);
}

macro_rules! word {
    ($($type:ty),*) => {$(
        impl Word for $type {
            fn low(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            fn add(self, other: Self, carry: bool) -> (Self, bool) {
                let (sum, first) = self.overflowing_add(other);
                let (sum, second) = sum.overflowing_add(carry.into());
                (sum, first | second)
            }
            fn subtract(self, other: Self, borrow: bool) -> (Self, bool) {
                let (difference, first) = self.overflowing_sub(other);
                let (difference, second) = difference.overflowing_sub(borrow.into());
                (difference, first | second)
            }
        }
    )*};
}

word!(u32, u64);

impl Sum {
    fn action<T: Word>(self, [d, a, b, c]: [Index; 4]) -> Action {
        Box::new(move |registers: &mut Registers, mask| {
            let carry = match self.takes {
                true => registers.predicate(self.carry),
                false => 0,
            };
            let row = |index| registers.row::<T::Raw>(index);
            let (a, b, c) = (row(a), row(b), row(c));
            let mut carries = 0;
            let out = std::array::from_fn::<_, LANES, _>(|lane| {
                let word = |row: &[T::Raw; LANES]| T::from_raw(row[lane]);
                let (a, b, carry) = (word(a), word(b), carry >> lane & 1 != 0);
                let (sum, over) = match self.base {
                    "add" => a.add(b, carry),
                    "sub" => a.subtract(b, carry),
                    _ if self.high => a.high(b).add(word(c), carry),
                    _ => a.low(b).add(word(c), carry),
                };
                carries |= u32::from(over) << lane;
                sum.to_raw()
            });
            registers.put(d, mask, &out);
            if self.leaves {
                registers.put_predicate(self.carry, mask, carries);
            }
        })
    }
}
