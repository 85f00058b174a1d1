//! Opcodes taken apart: a base, modifiers that each decoder must consume, and types.

use crate::fault::{Fault, Kind};

/// A fundamental type of PTX, as instructions name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    B8,
    U8,
    S8,
    B16,
    U16,
    S16,
    F16,
    BF16,
    B32,
    U32,
    S32,
    F32,
    TF32,
    F16x2,
    BF16x2,
    E4M3x2,
    E5M2x2,
    B64,
    U64,
    S64,
    F64,
    Pred,
    B128,
}

impl Type {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "b8" => Self::B8,
            "u8" => Self::U8,
            "s8" => Self::S8,
            "b16" => Self::B16,
            "u16" => Self::U16,
            "s16" => Self::S16,
            "f16" => Self::F16,
            "bf16" => Self::BF16,
            "b32" => Self::B32,
            "u32" => Self::U32,
            "s32" => Self::S32,
            "f32" => Self::F32,
            "tf32" => Self::TF32,
            "f16x2" => Self::F16x2,
            "bf16x2" => Self::BF16x2,
            "e4m3x2" => Self::E4M3x2,
            "e5m2x2" => Self::E5M2x2,
            "b64" => Self::B64,
            "u64" => Self::U64,
            "s64" => Self::S64,
            "f64" => Self::F64,
            "pred" => Self::Pred,
            "b128" => Self::B128,
            _ => return None,
        })
    }

    /// Size in bytes; 0 for predicates.
    pub(crate) const fn size(self) -> u32 {
        match self {
            Self::Pred => 0,
            Self::B8 | Self::U8 | Self::S8 => 1,
            Self::B16
            | Self::U16
            | Self::S16
            | Self::F16
            | Self::BF16
            | Self::E4M3x2
            | Self::E5M2x2 => 2,
            Self::B64 | Self::U64 | Self::S64 | Self::F64 => 8,
            Self::B128 => 16,
            _ => 4,
        }
    }

    pub(crate) const fn is_wide(self) -> bool {
        self.size() == 8
    }

    pub(crate) const fn is_signed(self) -> bool {
        matches!(self, Self::S8 | Self::S16 | Self::S32 | Self::S64)
    }

    /// The type with untyped bits read as unsigned integers.
    pub(crate) const fn as_unsigned(self) -> Self {
        match self {
            Self::B8 => Self::U8,
            Self::B16 => Self::U16,
            Self::B32 => Self::U32,
            Self::B64 => Self::U64,
            other => other,
        }
    }

    /// The integer type that holds the same bits.
    pub(crate) const fn as_bits(self) -> Self {
        match self.size() {
            1 => Self::U8,
            2 => Self::U16,
            4 => Self::U32,
            8 => Self::U64,
            _ => self,
        }
    }
}

/// An opcode whose modifiers are taken one by one; what is left over is unsupported.
#[derive(Debug)]
pub(crate) struct Opcode<'a> {
    pub(crate) base: &'a str,
    whole: &'a str,
    modifiers: Vec<&'a str>,
    line: u32,
}

impl<'a> Opcode<'a> {
    pub(crate) fn new(whole: &'a str, line: u32) -> Self {
        let mut parts = whole.split('.');
        let base = parts.next().unwrap_or_default();
        Self {
            base,
            whole,
            modifiers: parts.collect(),
            line,
        }
    }

    /// Whether a modifier is there.
    pub(crate) fn has(&self, modifier: &str) -> bool {
        self.modifiers.contains(&modifier)
    }

    /// Takes a modifier; whether it was there.
    pub(crate) fn take(&mut self, modifier: &str) -> bool {
        let found = self.modifiers.iter().position(|found| *found == modifier);
        found.map(|at| self.modifiers.remove(at)).is_some()
    }

    /// Takes whichever of the modifiers comes first in the list given.
    pub(crate) fn take_any<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices
            .iter()
            .find(|(name, _)| self.take(name))
            .map(|(_, value)| *value)
    }

    /// Takes the first modifier left, whatever it is.
    pub(crate) fn next(&mut self) -> Option<&'a str> {
        if self.modifiers.is_empty() {
            None
        } else {
            Some(self.modifiers.remove(0))
        }
    }

    /// The type that the opcode ends with, left in place.
    pub(crate) fn last_type(&self) -> Option<Type> {
        self.modifiers.last().and_then(|name| Type::named(name))
    }

    /// Takes the first modifier that names a type.
    pub(crate) fn optional_type(&mut self) -> Option<Type> {
        let at = self
            .modifiers
            .iter()
            .position(|name| Type::named(name).is_some())?;
        Type::named(self.modifiers.remove(at))
    }

    /// Takes the first modifier that names a type.
    pub(crate) fn take_type(&mut self) -> Result<Type, Fault> {
        self.optional_type().ok_or_else(|| self.unsupported())
    }

    /// Fails if a modifier was not consumed.
    pub(crate) fn finish(&self) -> Result<(), Fault> {
        if self.modifiers.is_empty() {
            Ok(())
        } else {
            Err(self.unsupported())
        }
    }

    pub(crate) fn unsupported(&self) -> Fault {
        let what = format!("PTX line {}: instruction {}", self.line, self.whole);
        Fault::new(Kind::Unsupported, what)
    }

    pub(crate) fn malformed(&self, what: &str) -> Fault {
        let what = format!("PTX line {}: {}: {what}", self.line, self.whole);
        Fault::new(Kind::Parse, what)
    }
}
