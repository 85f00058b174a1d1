//! What is in a function's body: statements and their operands.

use super::token::{TokenKind, malformed};
use super::{DEEPEST, Instruction, Operand, Parser, Result, Statement};

impl Parser<'_> {
    pub(super) fn body(&mut self) -> Result<Vec<Statement>> {
        self.expect('{')?;
        let mut out = Vec::new();
        let mut depth = 0;
        loop {
            if self.accept('{') {
                depth += 1;
                out.push(Statement::Open);
            } else if self.accept('}') {
                if depth == 0 {
                    return Ok(out);
                }
                depth -= 1;
                out.push(Statement::Close);
            } else if !self.accept(';') {
                self.statement(&mut out)?;
            }
        }
    }

    fn statement(&mut self, out: &mut Vec<Statement>) -> Result<()> {
        let line = self.line();
        let guard = if self.accept('@') {
            let negated = self.accept('!');
            Some((self.word()?.to_owned(), negated))
        } else {
            None
        };
        let start = self.at;
        let word = self.word()?;
        if guard.is_none() && self.accept(':') {
            out.push(Statement::Label(word.to_owned()));
            return Ok(());
        }
        match word {
            ".reg" => {
                let class = self.word()?.trim_start_matches('.');
                self.registers(class, out)
            }
            // As inline assembly in NVIDIA's headers writes it, without a space.
            _ if word.starts_with(".reg.") => self.registers(&word[".reg.".len()..], out),
            ".local" | ".shared" | ".param" | ".global" | ".const" => {
                self.at = start;
                self.variables(false, &mut |variable| {
                    out.push(Statement::Variable(variable))
                })
            }
            ".loc" => {
                let file = self.small()?;
                let source = self.small()?;
                out.push(Statement::Location(file, source));
                self.skip_line();
                Ok(())
            }
            ".branchtargets" => {
                let mut names = vec![self.word()?.to_owned()];
                while self.accept(',') {
                    names.push(self.word()?.to_owned());
                }
                out.push(Statement::Targets(names));
                self.expect(';')
            }
            ".pragma" => {
                self.skip_line();
                Ok(())
            }
            _ if word.starts_with('.') => {
                Err(malformed(line, &format!("unknown directive {word}")))
            }
            _ => {
                let mut operands = Vec::new();
                while !self.accept(';') {
                    operands.push(self.operand()?);
                    if !self.is(';') {
                        self.expect(',')?;
                    }
                }
                let opcode = word.to_owned();
                out.push(Statement::Instruction(Instruction {
                    guard,
                    opcode,
                    operands,
                    line,
                }));
                Ok(())
            }
        }
    }

    fn registers(&mut self, class: &str, out: &mut Vec<Statement>) -> Result<()> {
        loop {
            let name = self.word()?.to_owned();
            let count = if self.accept('<') {
                let count = self.small()?;
                self.expect('>')?;
                if count > 1 << 20 {
                    return Err(malformed(self.line(), "too many registers"));
                }
                Some(count)
            } else {
                None
            };
            out.push(Statement::Register {
                class: class.to_owned(),
                name,
                count,
            });
            if !self.accept(',') {
                return self.expect(';');
            }
        }
    }

    pub(super) fn list(&mut self, close: char) -> Result<Vec<Operand>> {
        let mut list = Vec::new();
        while !self.accept(close) {
            list.push(self.operand()?);
            if !self.is(close) {
                self.expect(',')?;
            }
        }
        Ok(list)
    }

    fn offset(&mut self) -> Result<i64> {
        let negative = match self.peek() {
            Some(TokenKind::Mark('+')) => false,
            Some(TokenKind::Mark('-')) => true,
            _ => return Ok(0),
        };
        self.at += 1;
        let negative = negative != self.accept('-');
        let value = self.integer()?.cast_signed();
        Ok(if negative {
            value.wrapping_neg()
        } else {
            value
        })
    }

    pub(super) fn operand(&mut self) -> Result<Operand> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return self.fail("fewer nested brackets");
        }
        let operand = self.nested_operand();
        self.depth -= 1;
        operand
    }

    fn nested_operand(&mut self) -> Result<Operand> {
        let first = match self.peek() {
            Some(TokenKind::Word("generic")) => {
                self.at += 1;
                self.expect('(')?;
                let inner = self.operand()?;
                self.expect(')')?;
                match (inner, self.offset()?) {
                    (Operand::Name(name, offset), more) => {
                        Operand::Name(name, offset.wrapping_add(more))
                    }
                    (inner, _) => inner,
                }
            }
            Some(TokenKind::Word(word)) => {
                self.at += 1;
                Operand::Name(word.to_owned(), self.offset()?)
            }
            Some(TokenKind::Integer(value)) => {
                self.at += 1;
                Operand::Integer(value)
            }
            Some(TokenKind::Single(bits)) => {
                self.at += 1;
                Operand::Single(bits)
            }
            Some(TokenKind::Double(bits)) => {
                self.at += 1;
                Operand::Double(bits)
            }
            Some(TokenKind::Mark('-')) => {
                self.at += 1;
                match self.operand()? {
                    Operand::Integer(value) => Operand::Integer(value.wrapping_neg()),
                    Operand::Single(bits) => Operand::Single(bits ^ 1 << 31),
                    Operand::Double(bits) => Operand::Double(bits ^ 1 << 63),
                    _ => return self.fail("a number"),
                }
            }
            Some(TokenKind::Mark('!')) => {
                self.at += 1;
                Operand::Not(self.word()?.to_owned())
            }
            Some(TokenKind::Mark('{')) => {
                self.at += 1;
                Operand::Vector(self.list('}')?)
            }
            Some(TokenKind::Mark('(')) => {
                self.at += 1;
                Operand::List(self.list(')')?)
            }
            Some(TokenKind::Mark('[')) => {
                self.at += 1;
                let base = self.operand()?;
                let offset = self.offset()?;
                let more = if self.accept(',') {
                    self.list(']')?
                } else {
                    self.expect(']')?;
                    Vec::new()
                };
                match base {
                    Operand::Name(name, inner) => Operand::Address {
                        base: Box::new(Operand::Name(name, 0)),
                        offset: inner.wrapping_add(offset),
                        more,
                    },
                    base => Operand::Address {
                        base: Box::new(base),
                        offset,
                        more,
                    },
                }
            }
            _ => return self.fail("an operand"),
        };
        if self.accept('|') {
            return Ok(Operand::Pair(Box::new(first), Box::new(self.operand()?)));
        }
        Ok(first)
    }
}
