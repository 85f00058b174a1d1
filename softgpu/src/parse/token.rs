//! PTX text as tokens.

use crate::fault::{Fault, Kind};

/// A token and the line that it stands on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token<'a> {
    pub(super) kind: TokenKind<'a>,
    pub(super) line: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum TokenKind<'a> {
    /// An identifier, opcode, register or directive, with its dots: `ld.global.f32`, `%tid.x`.
    Word(&'a str),
    /// An integer, two's complement where it was negative.
    Integer(u64),
    /// `0f…`: the bits of an f32.
    Single(u32),
    /// `0d…`, or a decimal fraction: the bits of an f64.
    Double(u64),
    /// A string, without its quotes.
    Text(&'a str),
    /// Any other character.
    Mark(char),
}

/// Cuts a text into tokens, comments left out.
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, Fault> {
    let bytes = text.as_bytes();
    let (mut at, mut line) = (0, 1);
    let mut out = Vec::with_capacity(text.len() / 4);
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'\n' => {
                line += 1;
                at += 1;
            }
            byte if byte.is_ascii_whitespace() || byte == 0 => at += 1,
            b'/' if bytes[at..].starts_with(b"//") => {
                at += text[at..].find('\n').unwrap_or(text.len() - at);
            }
            b'/' if bytes[at..].starts_with(b"/*") => {
                let end = text[at..]
                    .find("*/")
                    .ok_or_else(|| malformed(line, "open comment"))?;
                line += text[at..at + end].matches('\n').count() as u32;
                at += end + 2;
            }
            b'"' => {
                let end = text[at + 1..]
                    .find('"')
                    .ok_or_else(|| malformed(line, "open string"))?;
                out.push(Token {
                    kind: TokenKind::Text(&text[at + 1..at + 1 + end]),
                    line,
                });
                at += end + 2;
            }
            byte if is_word(byte) => {
                while at < bytes.len() && (is_word(bytes[at]) || bytes[at..].starts_with(b"::")) {
                    at += if bytes[at] == b':' { 2 } else { 1 };
                }
                let word = &text[start..at];
                let kind = if byte.is_ascii_digit() {
                    number(word).ok_or_else(|| malformed(line, &format!("number '{word}'")))?
                } else {
                    TokenKind::Word(word)
                };
                out.push(Token { kind, line });
            }
            byte if byte.is_ascii() => {
                out.push(Token {
                    kind: TokenKind::Mark(byte as char),
                    line,
                });
                at += 1;
            }
            _ => return Err(malformed(line, "a character that is not ASCII")),
        }
    }
    Ok(out)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

fn number(word: &str) -> Option<TokenKind<'_>> {
    let lower = word.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0f") {
        return u32::from_str_radix(hex, 16).ok().map(TokenKind::Single);
    }
    if let Some(hex) = lower.strip_prefix("0d") {
        return u64::from_str_radix(hex, 16).ok().map(TokenKind::Double);
    }
    if lower.contains('.') {
        return lower
            .parse::<f64>()
            .ok()
            .map(|value| TokenKind::Double(value.to_bits()));
    }
    let digits = lower.strip_suffix('u').unwrap_or(&lower);
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x', ..] => (&digits[2..], 16),
        [b'0', b'b', ..] => (&digits[2..], 2),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    };
    u64::from_str_radix(digits, radix)
        .ok()
        .map(TokenKind::Integer)
}

pub(super) fn malformed(line: u32, what: &str) -> Fault {
    Fault::new(Kind::Parse, format!("PTX line {line}: {what}"))
}
