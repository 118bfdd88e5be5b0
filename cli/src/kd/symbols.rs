//! Modules and their symbols: names to addresses and back.

use std::sync::Arc;

/// Where a module's names come from, as `lm` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolSource {
    /// Complete: the image was built here.
    Private,
    /// The export directory.
    Export,
}

/// A module in guest memory.
#[derive(Clone, Debug)]
pub struct Module {
    /// Name in expressions (`nt`, `ntdll`).
    pub name: String,
    /// File name (`ntoskrnl.exe`).
    pub image: String,
    /// First address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Where the names come from.
    pub source: SymbolSource,
    /// Names and addresses, by address, preferred names first where several share one.
    symbols: Vec<(u64, String)>,
}

impl Module {
    /// A module with its symbols in any order.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        image: impl Into<String>,
        range: std::ops::Range<u64>,
        source: SymbolSource,
        mut symbols: Vec<(u64, String)>,
    ) -> Self {
        symbols.sort_by(|a, b| (a.0, is_alias(&a.1), &a.1).cmp(&(b.0, is_alias(&b.1), &b.1)));
        symbols.dedup();
        Self {
            name: name.into(),
            image: image.into(),
            base: range.start,
            size: range.end.saturating_sub(range.start),
            source,
            symbols,
        }
    }

    /// Whether the address lies in the module.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        address.wrapping_sub(self.base) < self.size
    }

    /// Names and addresses, by address.
    pub fn symbols(&self) -> impl Iterator<Item = (u64, &str)> {
        self.symbols.iter().map(|(address, name)| (*address, name.as_str()))
    }

    /// The symbol at or before an address.
    fn nearest(&self, address: u64) -> Option<(u64, &str)> {
        let after = self.symbols.partition_point(|(start, _)| *start <= address);
        let (start, _) = self.symbols.get(after.checked_sub(1)?)?;
        let first = self.symbols.partition_point(|(other, _)| other < start);
        self.symbols.get(first).map(|(start, name)| (*start, name.as_str()))
    }
}

/// `Zw` names of user mode are second names of the `Nt` functions.
fn is_alias(name: &str) -> bool {
    name.starts_with("Zw")
}

/// All modules.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    // Shared, because the instruction formatter keeps a copy.
    modules: Vec<Arc<Module>>,
}

impl Symbols {
    /// Adds a module; one of the same base is replaced.
    pub fn add(&mut self, module: Module) {
        self.modules.retain(|other| other.base != module.base);
        self.modules.push(Arc::new(module));
        self.modules.sort_by_key(|module| module.base);
    }

    /// The modules, by address.
    #[must_use]
    pub fn modules(&self) -> &[Arc<Module>] {
        &self.modules
    }

    /// The module at an address.
    #[must_use]
    pub fn module_at(&self, address: u64) -> Option<&Module> {
        self.modules.iter().find(|module| module.contains(address)).map(AsRef::as_ref)
    }

    /// Address of `module!name`, of a bare name in any module, or of a module.
    #[must_use]
    pub fn lookup(&self, text: &str) -> Option<u64> {
        let (module, name) = match text.split_once('!') {
            Some((module, name)) => (Some(module), name),
            None => (None, text),
        };
        let in_scope = |candidate: &&Arc<Module>| module.is_none_or(|name| candidate.name.eq_ignore_ascii_case(name));
        let mut scope = self.modules.iter().filter(in_scope);
        let found = scope.find_map(|module| {
            let same = |(_, other): &&(u64, String)| other.eq_ignore_ascii_case(name);
            module.symbols.iter().find(same).map(|(address, _)| *address)
        });
        found.or_else(|| {
            let bare = module.is_none().then_some(name)?;
            self.modules.iter().find(|module| module.name.eq_ignore_ascii_case(bare)).map(|module| module.base)
        })
    }

    /// The name of exactly this address.
    #[must_use]
    pub fn exact(&self, address: u64) -> Option<String> {
        let module = self.module_at(address)?;
        let (start, name) = module.nearest(address)?;
        (start == address).then(|| format!("{}!{name}", module.name))
    }

    /// `module!name+0x12` for an address in a module.
    #[must_use]
    pub fn name(&self, address: u64) -> Option<String> {
        let module = self.module_at(address)?;
        Some(match module.nearest(address) {
            Some((start, name)) if start == address => format!("{}!{name}", module.name),
            Some((start, name)) => format!("{}!{name}+0x{:x}", module.name, address - start),
            None => format!("{}+0x{:x}", module.name, address - module.base),
        })
    }

    /// Start of the symbol that an address belongs to.
    #[must_use]
    pub fn start_of(&self, address: u64) -> Option<u64> {
        self.module_at(address)?.nearest(address).map(|(start, _)| start)
    }

    /// Symbols that match `module!pattern`, both with `*` and `?`, without regard to case.
    #[must_use]
    pub fn matching(&self, pattern: &str) -> Vec<(u64, String)> {
        let (modules, names) = pattern.split_once('!').unwrap_or(("*", pattern));
        let mut found = Vec::new();
        for module in self.modules.iter().filter(|module| wildcard(modules, &module.name)) {
            let names = module.symbols().filter(|(_, name)| wildcard(names, name));
            found.extend(names.map(|(address, name)| (address, format!("{}!{name}", module.name))));
        }
        found
    }
}

/// Matches `*` (any run) and `?` (any one), without regard to case.
fn wildcard(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().map(|c| c.to_ascii_lowercase()).collect();
    let text: Vec<char> = text.chars().map(|c| c.to_ascii_lowercase()).collect();
    let (mut p, mut t) = (0, 0);
    // Where to continue when a later mismatch makes the last star take one character more.
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, taken)) => {
                    retry = Some((after_star, taken + 1));
                    p = after_star;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbols() -> Symbols {
        let mut symbols = Symbols::default();
        let names = |list: &[(u64, &str)]| list.iter().map(|(at, name)| (*at, (*name).to_owned())).collect();
        symbols.add(Module::new(
            "ntdll",
            "ntdll.dll",
            0x7000..0x9000,
            SymbolSource::Export,
            names(&[(0x7400, "ZwCreateFile"), (0x7400, "NtCreateFile"), (0x7420, "NtClose")]),
        ));
        symbols.add(Module::new(
            "nt",
            "ntoskrnl.exe",
            0x1000..0x3000,
            SymbolSource::Private,
            names(&[(0x2000, "KiSystemCall64"), (0x1F00, "KiSystemCall32"), (0x2100, "KeBugCheck")]),
        ));
        symbols
    }

    #[test]
    fn names_and_addresses() {
        let symbols = symbols();
        assert_eq!(symbols.lookup("ntdll!ZwCreateFile"), Some(0x7400));
        assert_eq!(symbols.lookup("NTDLL!ntclose"), Some(0x7420));
        assert_eq!(symbols.lookup("KeBugCheck"), Some(0x2100));
        assert_eq!(symbols.lookup("nt"), Some(0x1000));
        assert_eq!(symbols.lookup("nt!NtClose"), None);
        assert_eq!(symbols.exact(0x7400).as_deref(), Some("ntdll!NtCreateFile"));
        assert_eq!(symbols.name(0x7408).as_deref(), Some("ntdll!NtCreateFile+0x8"));
        assert_eq!(symbols.name(0x1010).as_deref(), Some("nt+0x10"));
        assert_eq!(symbols.name(0x4000), None);
        assert_eq!(symbols.start_of(0x20FF), Some(0x2000));
    }

    #[test]
    fn patterns() {
        let names = |pattern| symbols().matching(pattern).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        assert_eq!(names("nt!ki*"), ["nt!KiSystemCall32", "nt!KiSystemCall64"]);
        assert_eq!(names("*!*Create*"), ["ntdll!NtCreateFile", "ntdll!ZwCreateFile"]);
        assert_eq!(names("nt!KiSystemCall?2"), ["nt!KiSystemCall32"]);
        assert!(wildcard("*a*b", "xaxbxab") && !wildcard("a*b", "abc") && wildcard("**", ""));
    }
}
