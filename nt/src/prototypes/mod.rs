//! Prototypes of system services, implemented or not: names and kinds of their arguments.
//!
//! They decode traces, tell the service tables how many arguments to copy from the stack, and name what an unknown
//! service was asked. `ntdll.txt` has a line per service with `name:kind` arguments; of `win32u.txt`'s services only
//! the number of arguments is known.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// What an argument is, for decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentKind {
    /// A handle.
    Handle,
    /// A pointer to a handle that the service fills in.
    OutHandle,
    /// A pointer to OBJECT_ATTRIBUTES.
    Attributes,
    /// A pointer to a UNICODE_STRING.
    Text,
    /// An access mask.
    Access,
    /// Flags or another number best read in hexadecimal.
    Flags,
    /// A decimal number.
    Decimal,
    /// BOOLEAN.
    Boolean,
    /// A length in bytes.
    Size,
    /// An information class.
    Class,
    /// A pointer to a 64-bit value in or out: size, address, offset.
    Value,
    /// A pointer to a timeout.
    Timeout,
    /// A pointer to IO_STATUS_BLOCK.
    IoStatus,
    /// Any other pointer.
    Pointer,
}

impl ArgumentKind {
    fn from_letter(letter: &str) -> Option<Self> {
        Some(match letter {
            "h" => Self::Handle,
            "H" => Self::OutHandle,
            "o" => Self::Attributes,
            "s" => Self::Text,
            "a" => Self::Access,
            "f" => Self::Flags,
            "d" => Self::Decimal,
            "b" => Self::Boolean,
            "z" => Self::Size,
            "c" => Self::Class,
            "Z" => Self::Value,
            "t" => Self::Timeout,
            "i" => Self::IoStatus,
            "p" => Self::Pointer,
            _ => return None,
        })
    }
}

/// An argument.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    /// Name.
    pub name: &'static str,
    /// Kind.
    pub kind: ArgumentKind,
}

/// A service.
#[derive(Clone, Debug)]
pub struct Prototype {
    /// Name with its Nt prefix.
    pub name: &'static str,
    /// Arguments in order.
    pub arguments: Vec<Argument>,
}

/// Names of arguments that are known by number only.
const NUMBERED: [&str; 18] = [
    "a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9", "a10", "a11", "a12", "a13", "a14", "a15", "a16", "a17", "a18",
];

fn native(line: &'static str) -> Option<Prototype> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let argument = |word: &'static str| {
        let (name, kind) = word.split_once(':')?;
        Some(Argument { name, kind: ArgumentKind::from_letter(kind)? })
    };
    Some(Prototype { name, arguments: words.map(argument).collect::<Option<_>>()? })
}

fn counted(word: &'static str) -> Option<Prototype> {
    let (name, count) = word.split_once(':')?;
    let names = NUMBERED.get(..count.parse().ok()?)?;
    let arguments = names.iter().map(|name| Argument { name, kind: ArgumentKind::Flags }).collect();
    Some(Prototype { name, arguments })
}

static PROTOTYPES: LazyLock<BTreeMap<&'static str, Prototype>> = LazyLock::new(|| {
    let native = include_str!("ntdll.txt").lines().filter_map(native);
    let counted = include_str!("win32u.txt").split_whitespace().filter_map(counted);
    native.chain(counted).map(|prototype| (prototype.name, prototype)).collect()
});

/// The prototype of a service; `Zw` names stand for their `Nt` twins.
#[must_use]
pub fn prototype(name: &str) -> Option<&'static Prototype> {
    match name.strip_prefix("Zw") {
        Some(rest) => PROTOTYPES.get(format!("Nt{rest}").as_str()),
        None => PROTOTYPES.get(name),
    }
}

/// Arguments that a caller passes on its stack. A service that nobody knows gets as many as a service table can say.
#[must_use]
pub fn stack_arguments(name: &str) -> u8 {
    /// Limit of the entry code's copy.
    const MOST: usize = 14;
    prototype(name).map_or(MOST, |prototype| prototype.arguments.len().saturating_sub(4)).min(MOST) as u8
}

/// All known services.
pub fn all() -> impl Iterator<Item = &'static Prototype> {
    PROTOTYPES.values()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_parses() {
        let lines = include_str!("ntdll.txt").lines().count();
        let words = include_str!("win32u.txt").split_whitespace().count();
        assert_eq!(PROTOTYPES.len(), lines + words);
        assert!(lines >= 241 && words == 431);
        assert!(all().all(|prototype| prototype.arguments.len() <= 18));
    }

    #[test]
    fn counts_are_known_by_either_name() {
        assert_eq!(stack_arguments("NtCreateFile"), 7);
        assert_eq!(stack_arguments("ZwCreateFile"), 7);
        assert_eq!(stack_arguments("NtCreateNamedPipeFile"), 10);
        assert_eq!(stack_arguments("NtClose"), 0);
        assert_eq!(stack_arguments("NtNobodyKnows"), 14);
    }

    #[test]
    fn declared_services_have_as_many_arguments_as_their_prototypes() {
        for service in crate::kernel::SERVICE_TABLES.iter().flat_map(|table| table.iter()) {
            if let Some(prototype) = prototype(service.name) {
                assert_eq!(service.parameters.len(), prototype.arguments.len(), "{}", service.name);
            }
        }
    }

    #[test]
    fn services_are_declared_once() {
        let mut seen = std::collections::BTreeSet::new();
        for service in crate::kernel::SERVICE_TABLES.iter().flat_map(|table| table.iter()) {
            assert!(seen.insert(service.name), "{} is declared twice", service.name);
        }
    }
}
