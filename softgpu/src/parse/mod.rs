//! PTX text as a tree: variables, functions, statements. Names are not resolved here.

mod declaration;
mod statement;
mod token;

use std::collections::HashMap;

use crate::fault::Fault;
use token::{Token, TokenKind, malformed, tokens};

/// A whole PTX file.
#[derive(Debug, Default)]
pub(crate) struct Text {
    pub(crate) variables: Vec<Variable>,
    pub(crate) functions: Vec<Function>,
    /// `.file`: the names by number.
    pub(crate) files: HashMap<u32, String>,
}

/// A declared variable, of any state space.
#[derive(Clone, Debug)]
pub(crate) struct Variable {
    /// `global`, `const`, `shared`, `local` or `param`.
    pub(crate) space: String,
    pub(crate) name: String,
    pub(crate) align: u64,
    /// Size of one element, bytes.
    pub(crate) element: u64,
    /// Size of the whole, bytes; 0 for `[]`.
    pub(crate) size: u64,
    pub(crate) initial: Vec<Operand>,
    pub(crate) is_extern: bool,
    pub(crate) line: u32,
}

/// A kernel or device function.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) is_entry: bool,
    pub(crate) returns: Vec<Variable>,
    pub(crate) parameters: Vec<Variable>,
    /// `.maxntid`, `.reqntid`, `.reqnctapercluster`, … with their numbers.
    pub(crate) limits: HashMap<String, Vec<u32>>,
    /// `None` for a declaration.
    pub(crate) body: Option<Vec<Statement>>,
}

/// One statement of a body, flat: braces are statements of their own.
#[derive(Debug)]
pub(crate) enum Statement {
    Open,
    Close,
    Label(String),
    /// `.reg .b32 %r<4>`: class, name, and the count for a numbered family.
    Register {
        class: String,
        name: String,
        count: Option<u32>,
    },
    Variable(Variable),
    /// `.branchtargets` of the label before it.
    Targets(Vec<String>),
    /// `.loc`: file number and line.
    Location(u32, u32),
    Instruction(Instruction),
}

/// One instruction.
#[derive(Debug)]
pub(crate) struct Instruction {
    /// The guard predicate, and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    /// The opcode with all its modifiers.
    pub(crate) opcode: String,
    pub(crate) operands: Vec<Operand>,
    pub(crate) line: u32,
}

/// An operand as written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register, symbol or label, and an offset (`symbol+4`).
    Name(String, i64),
    /// `!p`.
    Not(String),
    Integer(u64),
    Single(u32),
    Double(u64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `[base+offset]`; for tensor maps, further operands follow the base.
    Address {
        base: Box<Operand>,
        offset: i64,
        more: Vec<Operand>,
    },
    /// `d|p`.
    Pair(Box<Operand>, Box<Operand>),
    /// `(a, b)`, in calls.
    List(Vec<Operand>),
}

/// Reads a PTX file.
pub(crate) fn parse(text: &str) -> Result<Text> {
    let tokens = tokens(text)?;
    let mut parser = Parser {
        tokens: &tokens,
        at: 0,
        depth: 0,
    };
    let mut out = Text::default();
    while parser.at < tokens.len() {
        parser.top_level(&mut out)?;
    }
    Ok(out)
}

struct Parser<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    /// How many brackets are open.
    depth: usize,
}

/// Brackets in brackets: more are hostile.
const DEEPEST: usize = 16;

type Result<T> = std::result::Result<T, Fault>;

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<TokenKind<'a>> {
        self.tokens.get(self.at).map(|token| token.kind)
    }

    fn line(&self) -> u32 {
        self.tokens
            .get(self.at)
            .or(self.tokens.last())
            .map_or(0, |token| token.line)
    }

    fn fail<T>(&self, what: &str) -> Result<T> {
        let found = match self.peek() {
            Some(TokenKind::Word(word)) => format!("'{word}'"),
            Some(TokenKind::Mark(mark)) => format!("'{mark}'"),
            Some(_) => "a literal".into(),
            None => "the end".into(),
        };
        Err(malformed(
            self.line(),
            &format!("expected {what}, found {found}"),
        ))
    }

    fn is(&self, mark: char) -> bool {
        self.peek() == Some(TokenKind::Mark(mark))
    }

    fn accept(&mut self, mark: char) -> bool {
        let found = self.is(mark);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Result<()> {
        if self.accept(mark) {
            Ok(())
        } else {
            self.fail(&format!("'{mark}'"))
        }
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(TokenKind::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.fail("a name"),
        }
    }

    fn integer(&mut self) -> Result<u64> {
        match self.peek() {
            Some(TokenKind::Integer(value)) => {
                self.at += 1;
                Ok(value)
            }
            _ => self.fail("an integer"),
        }
    }

    fn small(&mut self) -> Result<u32> {
        let value = self.integer()?;
        u32::try_from(value)
            .map_err(|_| malformed(self.line(), &format!("{value} is out of range")))
    }

    /// Everything up to the end of the line: for directives that carry nothing we need.
    fn skip_line(&mut self) {
        let line = self.line();
        while self.at < self.tokens.len() && self.tokens[self.at].line == line {
            self.at += 1;
        }
    }

    fn top_level(&mut self, out: &mut Text) -> Result<()> {
        let start = self.at;
        let word = self.word()?;
        match word {
            ".version" | ".target" | ".address_size" | ".pragma" | ".alias" => self.skip_line(),
            ".file" => {
                let number = self.small()?;
                if let Some(TokenKind::Text(name)) = self.peek() {
                    out.files.insert(number, name.to_owned());
                }
                self.skip_line();
            }
            ".section" => {
                while !self.is('{') && self.at < self.tokens.len() {
                    self.at += 1;
                }
                while !self.accept('}') {
                    if self.at >= self.tokens.len() {
                        return self.fail("'}'");
                    }
                    self.at += 1;
                }
            }
            ".visible" | ".weak" | ".extern" | ".common" => {
                let is_extern = word == ".extern";
                match self.peek() {
                    Some(TokenKind::Word(next @ (".func" | ".entry"))) => {
                        self.at += 1;
                        out.functions.push(self.function(next == ".entry")?);
                    }
                    _ => self.variables(is_extern, &mut |variable| out.variables.push(variable))?,
                }
            }
            ".func" | ".entry" => out.functions.push(self.function(word == ".entry")?),
            ".global" | ".const" | ".shared" => {
                self.at = start;
                self.variables(false, &mut |variable| out.variables.push(variable))?;
            }
            _ => {
                self.at = start;
                return self.fail("a directive");
            }
        }
        Ok(())
    }
}

/// The size of a fundamental type, bytes.
pub(crate) fn type_size(name: &str) -> Option<u64> {
    Some(match name {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" | "tf32" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        "b128" => 16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_read() {
        let text = parse(
            ".version 9.0\n.target sm_80\n.address_size 64\n\
             .visible .entry k(.param .u64 p, .param .align 8 .b8 q[24])\n.maxntid 128, 1, 1\n{\n\
             .reg .b32 %r<3>;\n@!%p1 ld.global.v2.u32 {%r1, %r2}, [%rd1+-8]; // note\n\
             $L1: shfl.sync.bfly.b32 %r1|%p1, %r2, 1, 31, -1;\n}",
        )
        .unwrap();
        let kernel = &text.functions[0];
        assert_eq!((kernel.name.as_str(), kernel.parameters[1].size), ("k", 24));
        assert_eq!(kernel.limits["maxntid"], [128, 1, 1]);
        let Statement::Instruction(load) = &kernel.body.as_ref().unwrap()[1] else {
            panic!()
        };
        assert_eq!(load.guard, Some(("%p1".into(), true)));
        assert!(matches!(
            load.operands[1],
            Operand::Address { offset: -8, .. }
        ));
    }

    #[test]
    fn hostile_text_is_an_error() {
        let nested = format!(".entry k() {{ ld {}", "{".repeat(100_000));
        for text in [
            "@",
            &nested,
            ".entry",
            ".entry k(",
            ".entry k() { ld",
            ".entry k() { /* ",
            "\u{e9}",
        ] {
            assert_eq!(
                parse(text).unwrap_err().kind,
                crate::fault::Kind::Parse,
                "{text}"
            );
        }
    }
}
