//! WinDbg's MASM expressions: hexadecimal numbers with back-ticks, symbols, registers, operators, `poi()` and its kin.
//!
//! An expression ends where the next word is no operator, so that several can follow each other on a line.

use super::Fault;

/// What an expression refers to.
pub trait Scope {
    /// Address of a symbol.
    fn symbol(&self, name: &str) -> Option<u64>;
    /// Value of a register or pseudo-register, named without `@`.
    fn register(&mut self, name: &str) -> Option<u64>;
    /// A little-endian number of `size` bytes.
    fn read(&mut self, address: u64, size: usize) -> Result<u64, Fault>;
}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// Neither number, register nor symbol.
    #[error("Couldn't resolve error at '{0}'")]
    Unresolved(String),
    /// Something else was expected.
    #[error("Syntax error at '{0}'")]
    Syntax(String),
    /// The line ended too early.
    #[error("Missing expression at the end of the line")]
    Missing,
    /// `poi()` of an unreadable address.
    #[error("Memory access error at '{0}'")]
    Memory(String),
    /// Division by zero.
    #[error("Divide by zero at '{0}'")]
    Divide(String),
    /// Too many nested parentheses.
    #[error("Expression nested too deeply")]
    Depth,
}

/// Nested parentheses and unary operators at most.
const MOST_DEPTH: u32 = 64;

/// Evaluates the expression at the start of `text`; returns its value and what follows.
pub fn evaluate<'a>(text: &'a str, scope: &mut dyn Scope) -> Result<(u64, &'a str), ExpressionError> {
    let mut parser = Parser { rest: text.trim_start(), scope, depth: 0 };
    let value = parser.binary(0)?;
    Ok((value, parser.rest.trim_start()))
}

/// Evaluates an expression that must be all of `text`.
pub fn evaluate_all(text: &str, scope: &mut dyn Scope) -> Result<u64, ExpressionError> {
    match evaluate(text, scope)? {
        (value, "") => Ok(value),
        (_, rest) => Err(ExpressionError::Syntax(rest.into())),
    }
}

/// Binary operators with their precedence, longest first where one is a prefix of another.
const BINARY: &[(&str, u8)] = &[
    ("<<", 4),
    (">>", 4),
    ("<=", 3),
    (">=", 3),
    ("==", 2),
    ("!=", 2),
    ("and", 1),
    ("xor", 1),
    ("or", 1),
    ("mod", 6),
    ("+", 5),
    ("-", 5),
    ("*", 6),
    ("/", 6),
    ("%", 6),
    ("<", 3),
    (">", 3),
    ("=", 2),
    ("&", 1),
    ("^", 1),
    ("|", 1),
];

/// Functions that read memory, with the bytes they read.
const READERS: &[(&str, usize)] = &[("poi", 8), ("qwo", 8), ("dwo", 4), ("wo", 2), ("by", 1)];

struct Parser<'a, 's> {
    rest: &'a str,
    scope: &'s mut dyn Scope,
    depth: u32,
}

impl Parser<'_, '_> {
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn operator(&mut self) -> Option<(&'static str, u8)> {
        self.skip();
        let (name, precedence) = BINARY.iter().find(|(name, _)| {
            self.rest.strip_prefix(name).is_some_and(|after| {
                // A word operator must end there: `order` is a symbol.
                !name.starts_with(char::is_alphabetic) || !after.starts_with(is_word)
            })
        })?;
        Some((name, *precedence))
    }

    fn binary(&mut self, least: u8) -> Result<u64, ExpressionError> {
        let mut left = self.unary()?;
        while let Some((name, precedence)) = self.operator() {
            if precedence < least {
                break;
            }
            let at = self.rest;
            self.rest = &self.rest[name.len()..];
            let right = self.binary(precedence + 1)?;
            left = apply(name, left, right).ok_or_else(|| ExpressionError::Divide(at.into()))?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<u64, ExpressionError> {
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return Err(ExpressionError::Depth);
        }
        self.skip();
        let value = match self.rest.chars().next() {
            None => return Err(ExpressionError::Missing),
            Some(sign @ ('-' | '+' | '~')) => {
                self.rest = &self.rest[1..];
                let value = self.unary()?;
                match sign {
                    '-' => value.wrapping_neg(),
                    '~' => !value,
                    _ => value,
                }
            }
            Some('(') => self.parenthesised()?,
            Some(_) => self.primary()?,
        };
        self.depth -= 1;
        Ok(value)
    }

    fn parenthesised(&mut self) -> Result<u64, ExpressionError> {
        self.rest = &self.rest[1..];
        let value = self.binary(0)?;
        self.skip();
        match self.rest.strip_prefix(')') {
            Some(rest) => self.rest = rest,
            None if self.rest.is_empty() => return Err(ExpressionError::Missing),
            None => return Err(ExpressionError::Syntax(self.rest.into())),
        }
        Ok(value)
    }

    fn primary(&mut self) -> Result<u64, ExpressionError> {
        let at = self.rest;
        if let Some(rest) = at.strip_prefix('@') {
            let (name, rest) = split_word(rest);
            self.rest = rest;
            let value = self.scope.register(&name.to_ascii_lowercase());
            return value.ok_or_else(|| ExpressionError::Unresolved(at.into()));
        }
        let (word, rest) = split_word(at);
        if word.is_empty() {
            return Err(ExpressionError::Syntax(at.into()));
        }
        self.rest = rest;
        let reader = READERS.iter().find(|(name, _)| rest.starts_with('(') && word.eq_ignore_ascii_case(name));
        if let Some((_, size)) = reader {
            let address = self.parenthesised()?;
            return self.scope.read(address, *size).map_err(|_| ExpressionError::Memory(at.into()));
        }
        if word == "." {
            return self.scope.register("rip").ok_or_else(|| ExpressionError::Unresolved(at.into()));
        }
        number(word)
            .or_else(|| self.scope.symbol(word))
            .or_else(|| self.scope.register(&word.to_ascii_lowercase()))
            .ok_or_else(|| ExpressionError::Unresolved(at.into()))
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '!' | '$' | '?' | '.' | '`' | ':')
}

fn split_word(text: &str) -> (&str, &str) {
    // `!=` after a name is an operator.
    let end = text
        .char_indices()
        .find(|(index, c)| !is_word(*c) || *c == '!' && text[index + 1..].starts_with('='))
        .map_or(text.len(), |(index, _)| index);
    text.split_at(end)
}

/// A number: hexadecimal unless `0n` (decimal), `0t` (octal) or `0y` (binary) say otherwise; a trailing `h` is allowed.
fn number(word: &str) -> Option<u64> {
    let word = word.replace('`', "");
    let lower = word.to_ascii_lowercase();
    let (digits, radix) = match lower.get(..2) {
        Some("0x") => (&lower[2..], 16),
        Some("0n") => (&lower[2..], 10),
        Some("0t") => (&lower[2..], 8),
        Some("0y") => (&lower[2..], 2),
        _ => (lower.strip_suffix('h').unwrap_or(&lower), 16),
    };
    // `from_str_radix` would accept a sign.
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

fn apply(operator: &str, left: u64, right: u64) -> Option<u64> {
    Some(match operator {
        "+" => left.wrapping_add(right),
        "-" => left.wrapping_sub(right),
        "*" => left.wrapping_mul(right),
        "/" => left.checked_div(right)?,
        "%" | "mod" => left.checked_rem(right)?,
        "<<" => u32::try_from(right).ok().and_then(|count| left.checked_shl(count)).unwrap_or(0),
        ">>" => u32::try_from(right).ok().and_then(|count| left.checked_shr(count)).unwrap_or(0),
        "&" | "and" => left & right,
        "^" | "xor" => left ^ right,
        "|" | "or" => left | right,
        "<" => u64::from(left < right),
        ">" => u64::from(left > right),
        "<=" => u64::from(left <= right),
        ">=" => u64::from(left >= right),
        "!=" => u64::from(left != right),
        _ => u64::from(left == right),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Scope for Fixed {
        fn symbol(&self, name: &str) -> Option<u64> {
            match name {
                "nt!KiSystemCall64" => Some(0xFFFF_F800_03E7_BEC0),
                "order" => Some(0x40),
                _ => None,
            }
        }
        fn register(&mut self, name: &str) -> Option<u64> {
            match name {
                "rax" => Some(0x10),
                "rip" => Some(0x1234),
                "$teb" => Some(0x7000),
                _ => None,
            }
        }
        fn read(&mut self, address: u64, size: usize) -> Result<u64, Fault> {
            if address == 0 { Err(Fault(address)) } else { Ok(address + size as u64) }
        }
    }

    #[test]
    fn values() {
        for (text, value) in [
            ("fffff800`03e7bec0", 0xFFFF_F800_03E7_BEC0),
            ("nt!KiSystemCall64", 0xFFFF_F800_03E7_BEC0),
            ("nt!KiSystemCall64 + 8", 0xFFFF_F800_03E7_BEC8),
            ("nt!KiSystemCall64+@rax*2-1", 0xFFFF_F800_03E7_BEDF),
            ("10", 16),
            ("0n10", 10),
            ("0y101", 5),
            ("0x1F", 31),
            ("0C0h", 0xC0),
            ("rax", 0x10),
            ("@$teb", 0x7000),
            (".", 0x1234),
            ("2+3*4", 14),
            ("(2+3)*4", 20),
            ("-1", u64::MAX),
            ("~0 & ff", 0xFF),
            ("8 - 4 - 2", 2),
            ("1 << 4 | 1", 0x11),
            ("1 << 40", 0),
            ("poi(100)", 0x108),
            ("poi(poi(100)+8)", 0x118),
            ("dwo(100) + by(1)", 0x106),
            ("5 mod 3", 2),
            ("order or 1", 0x41),
            ("3 == 3", 1),
            ("order!=40", 0),
        ] {
            assert_eq!(evaluate_all(text, &mut Fixed), Ok(value), "{text}");
        }
    }

    #[test]
    fn several_on_a_line() {
        let (first, rest) = evaluate("@rax+8 L4", &mut Fixed).expect("value");
        assert_eq!((first, rest), (0x18, "L4"));
    }

    #[test]
    fn errors_say_where() {
        for (text, message) in [
            ("nt!Nothing", "Couldn't resolve error at 'nt!Nothing'"),
            ("@xyz + 1", "Couldn't resolve error at '@xyz + 1'"),
            ("", "Missing expression at the end of the line"),
            ("(1", "Missing expression at the end of the line"),
            ("1 + ", "Missing expression at the end of the line"),
            ("1 )", "Syntax error at ')'"),
            ("poi(0)", "Memory access error at 'poi(0)'"),
            ("4/0", "Divide by zero at '/0'"),
            ("11112222333344445", "Couldn't resolve error at '11112222333344445'"),
        ] {
            assert_eq!(evaluate_all(text, &mut Fixed).expect_err(text).to_string(), message);
        }
        assert_eq!(evaluate_all(&"(".repeat(10_000), &mut Fixed), Err(ExpressionError::Depth));
        assert!(evaluate_all("é(1)", &mut Fixed).is_err());
    }
}
