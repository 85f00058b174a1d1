//! Declarations: variables with their initial values, and functions.

use std::collections::HashMap;

use super::token::{TokenKind, malformed};
use super::{Function, Operand, Parser, Result, Variable, type_size};

impl Parser<'_> {
    /// `.space .align n .type name[size] = initial, …;`
    pub(super) fn variables(
        &mut self,
        is_extern: bool,
        sink: &mut dyn FnMut(Variable),
    ) -> Result<()> {
        loop {
            let variable = self.variable(is_extern)?;
            let more = self.accept(',');
            sink(variable);
            if !more {
                return self.expect(';');
            }
        }
    }

    fn variable(&mut self, is_extern: bool) -> Result<Variable> {
        let line = self.line();
        let space = self.word()?.trim_start_matches('.').to_owned();
        let (mut align, mut element, mut lanes) = (0, 0, 1);
        while let Some(TokenKind::Word(word)) = self.peek() {
            let Some(word) = word.strip_prefix('.') else {
                break;
            };
            self.at += 1;
            match word {
                "align" => align = self.integer()?,
                "ptr" | "global" | "const" | "shared" | "local" | "attribute" => {}
                "v2" => lanes = 2,
                "v4" => lanes = 4,
                _ => {
                    element = type_size(word)
                        .ok_or_else(|| malformed(line, &format!("unknown type .{word}")))?;
                }
            }
        }
        let name = self.word()?.to_owned();
        let mut size = element * lanes;
        while self.accept('[') {
            let count = if self.is(']') { 0 } else { self.integer()? };
            size = size
                .checked_mul(count)
                .ok_or_else(|| malformed(line, &format!("{name} is too large")))?;
            self.expect(']')?;
        }
        let initial = if self.accept('=') {
            self.initial()?
        } else {
            Vec::new()
        };
        if align == 0 {
            align = (element * lanes).max(1);
        }
        if !align.is_power_of_two() || align > 1 << 20 {
            return Err(malformed(line, &format!("{name} is aligned to {align}")));
        }
        Ok(Variable {
            space,
            name,
            align,
            element,
            size,
            initial,
            is_extern,
            line,
        })
    }

    fn initial(&mut self) -> Result<Vec<Operand>> {
        if !self.accept('{') {
            return Ok(vec![self.operand()?]);
        }
        // Arrays of arrays lie one after the other.
        let (mut values, mut open) = (Vec::new(), 1);
        while open > 0 {
            if self.accept('{') {
                open += 1;
                continue;
            }
            if self.accept('}') {
                open -= 1;
            } else {
                values.push(self.operand()?);
            }
            self.accept(',');
        }
        Ok(values)
    }

    pub(super) fn parameters(&mut self) -> Result<Vec<Variable>> {
        let mut parameters = Vec::new();
        if self.accept('(') {
            while !self.accept(')') {
                parameters.push(self.variable(false)?);
                self.accept(',');
            }
        }
        Ok(parameters)
    }

    pub(super) fn function(&mut self, is_entry: bool) -> Result<Function> {
        let returns = self.parameters()?;
        let name = self.word()?.to_owned();
        let parameters = self.parameters()?;
        let mut limits = HashMap::new();
        while let Some(TokenKind::Word(word)) = self.peek() {
            let Some(word) = word.strip_prefix('.') else {
                break;
            };
            self.at += 1;
            let mut numbers = Vec::new();
            while let Some(TokenKind::Integer(_)) = self.peek() {
                numbers.push(self.small()?);
                self.accept(',');
            }
            if let Some(TokenKind::Text(_)) = self.peek() {
                self.at += 1;
            }
            if word == "pragma" {
                self.accept(';');
            }
            limits.insert(word.to_owned(), numbers);
        }
        let body = if self.accept(';') {
            None
        } else {
            Some(self.body()?)
        };
        Ok(Function {
            name,
            is_entry,
            returns,
            parameters,
            limits,
            body,
        })
    }
}
