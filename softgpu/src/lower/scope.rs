//! What names mean: registers, variables and labels, by scope.

use std::collections::HashMap;

use super::{Lowering, Result, malformed};
use crate::fault::{Fault, Kind};
use crate::ir::Width;
use crate::parse::Statement;

/// Registers of a kernel, device functions included: what bounds a warp's size.
const MOST_REGISTERS: usize = 1 << 18;

/// The class of a declared register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Predicate,
    Data(Width),
}

/// Where a variable lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Symbol {
    /// Global or constant memory.
    Address(u64),
    /// Offset in shared memory.
    Shared(u32),
    /// The start of dynamic shared memory.
    DynamicShared,
    /// Offset in a thread's local memory.
    Local(u32),
    /// Offset in the kernel's parameters.
    Parameter(u32),
}

/// The names between two braces.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    pub(crate) registers: HashMap<String, (Class, u32)>,
    pub(crate) symbols: HashMap<String, Symbol>,
    pub(crate) labels: HashMap<String, u32>,
    /// Jump tables: the labels by the name of the table.
    pub(crate) tables: HashMap<String, Vec<String>>,
}

impl Lowering<'_> {
    pub(super) fn scope(&mut self) -> &mut Scope {
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        self.scopes.last_mut().expect("just made")
    }

    /// Opens a scope over the statements that follow; its labels are known from the start.
    pub(super) fn open(&mut self, statements: &[Statement]) {
        let mut scope = Scope::default();
        let mut depth = 0;
        let mut last = "";
        for statement in statements {
            match statement {
                Statement::Open => depth += 1,
                Statement::Close if depth == 0 => break,
                Statement::Close => depth -= 1,
                Statement::Label(name) if depth == 0 => {
                    let label = self.new_label();
                    scope.labels.insert(name.clone(), label);
                    last = name;
                }
                Statement::Targets(names) if depth == 0 => {
                    scope.tables.insert(last.to_owned(), names.clone());
                }
                _ => {}
            }
        }
        self.scopes.push(scope);
    }

    /// Innermost first.
    fn find<T>(&self, look: impl Fn(&Scope) -> Option<T>) -> Option<T> {
        self.scopes.iter().rev().find_map(look)
    }

    pub(super) fn label(&self, name: &str) -> Option<u32> {
        self.find(|scope| scope.labels.get(name).copied())
    }

    pub(super) fn table(&self, name: &str) -> Option<Vec<String>> {
        self.find(|scope| scope.tables.get(name).cloned())
    }

    pub(super) fn symbol(&self, name: &str) -> Option<Symbol> {
        self.find(|scope| scope.symbols.get(name).copied())
    }

    pub(super) fn register_named(&self, name: &str) -> Option<(Class, u32)> {
        self.find(|scope| scope.registers.get(name).copied())
    }

    /// `.reg .class name` or `.reg .class name<count>`.
    pub(super) fn register(&mut self, class: &str, name: &str, count: Option<u32>) -> Result<()> {
        let class = match class {
            "pred" => Class::Predicate,
            "b8" | "u8" | "s8" => Class::Data(Width::B8),
            "b16" | "u16" | "s16" | "f16" | "bf16" => Class::Data(Width::B16),
            "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => Class::Data(Width::B32),
            "b64" | "u64" | "s64" | "f64" => Class::Data(Width::B64),
            _ => return Err(malformed(0, &format!("registers of class .{class}"))),
        };
        let registers = &self.code.registers;
        let total = registers.narrow.len() + registers.wide.len() + registers.predicates.len();
        if total + count.unwrap_or(1) as usize > MOST_REGISTERS {
            let what = format!("more than {MOST_REGISTERS} registers");
            return Err(Fault::new(Kind::Unsupported, what));
        }
        match count {
            None => {
                let index = self.new_register(class);
                self.scope()
                    .registers
                    .insert(name.to_owned(), (class, index));
            }
            Some(count) => {
                for number in 0..count {
                    let index = self.new_register(class);
                    self.scope()
                        .registers
                        .insert(format!("{name}{number}"), (class, index));
                }
            }
        }
        Ok(())
    }

    pub(super) fn new_register(&mut self, class: Class) -> u32 {
        let registers = &mut self.code.registers;
        match class {
            Class::Predicate => {
                registers.predicates.push(0);
                registers.predicates.len() as u32 - 1
            }
            Class::Data(Width::B64) => {
                registers.wide.push([0; 32]);
                registers.wide.len() as u32 - 1
            }
            Class::Data(_) => {
                registers.narrow.push([0; 32]);
                registers.narrow.len() as u32 - 1
            }
        }
    }
}
