//! Executive state that belongs to no component of its own: atoms, identifiers, NLS files, armed timers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::io::fold;
use crate::object::ObjectId;
use crate::status::Status;

/// A global atom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Atom {
    /// Original spelling.
    pub name: String,
    /// How often it was added.
    pub references: u32,
}

/// The global atom table: names without case, numbers from C000h.
#[derive(Clone, Debug, Default)]
pub struct AtomTable {
    atoms: BTreeMap<u16, Atom>,
}

/// First number of a named atom; lower ones are integer atoms that need no table.
const FIRST_ATOM: u16 = 0xC000;
/// Longest name in UTF-16 units.
const MAX_ATOM_NAME: usize = 255;

impl AtomTable {
    /// Number that a name such as `#123` stands for.
    fn integer(name: &str) -> Option<u16> {
        name.strip_prefix('#')?.parse().ok().filter(|&n| 0 < n && n < FIRST_ATOM)
    }

    fn check(name: &str) -> Result<(), Status> {
        if name.is_empty() {
            return Err(Status::OBJECT_NAME_INVALID);
        }
        if name.encode_utf16().count() > MAX_ATOM_NAME { Err(Status::INVALID_PARAMETER) } else { Ok(()) }
    }

    /// Adds a name or a reference to it.
    pub fn add(&mut self, name: &str) -> Result<u16, Status> {
        Self::check(name)?;
        if let Some(integer) = Self::integer(name) {
            return Ok(integer);
        }
        if let Some((&number, atom)) = self.find_entry(name) {
            atom.references = atom.references.saturating_add(1);
            return Ok(number);
        }
        let number = (FIRST_ATOM..=u16::MAX).find(|n| !self.atoms.contains_key(n)).ok_or(Status::NO_MEMORY)?;
        self.atoms.insert(number, Atom { name: name.to_owned(), references: 1 });
        Ok(number)
    }

    fn find_entry(&mut self, name: &str) -> Option<(&u16, &mut Atom)> {
        let wanted = fold(name);
        self.atoms.iter_mut().find(|(_, atom)| fold(&atom.name) == wanted)
    }

    /// Number of a name.
    pub fn find(&mut self, name: &str) -> Result<u16, Status> {
        Self::check(name)?;
        match Self::integer(name) {
            Some(integer) => Ok(integer),
            None => self.find_entry(name).map(|(&number, _)| number).ok_or(Status::OBJECT_NAME_NOT_FOUND),
        }
    }

    /// Takes a reference back.
    pub fn delete(&mut self, number: u16) -> Result<(), Status> {
        if number < FIRST_ATOM {
            return if number == 0 { Err(Status::INVALID_HANDLE) } else { Ok(()) };
        }
        let atom = self.atoms.get_mut(&number).ok_or(Status::INVALID_HANDLE)?;
        atom.references -= 1;
        if atom.references == 0 {
            self.atoms.remove(&number);
        }
        Ok(())
    }

    /// Name and references of an atom.
    pub fn get(&self, number: u16) -> Result<Atom, Status> {
        match number {
            0 => Err(Status::INVALID_PARAMETER),
            1..FIRST_ATOM => Ok(Atom { name: format!("#{number}"), references: 1 }),
            _ => self.atoms.get(&number).cloned().ok_or(Status::INVALID_HANDLE),
        }
    }
}

/// Locale identifier of US English: the system's, the user's and the installation's.
pub const DEFAULT_LOCALE: u32 = 0x409;

/// The rest of the executive's state.
#[derive(Debug)]
pub struct SystemState {
    /// Host folder of the system root's system32, where the NLS tables lie.
    pub system32: PathBuf,
    /// Global atoms.
    pub atoms: AtomTable,
    /// The process's primary token, once somebody asked for it.
    pub token: Option<ObjectId>,
    /// The keyed event for callers without one of their own.
    pub shared_keyed_event: Option<ObjectId>,
    /// Default locale of the user.
    pub user_locale: u32,
    /// Default locale of the system.
    pub system_locale: u32,
    /// Next locally unique identifier.
    pub next_luid: u64,
    /// Timers that are set.
    pub armed_timers: Vec<ObjectId>,
    /// Clock interval that somebody asked for.
    pub timer_resolution: Option<u32>,
    /// Session of the process.
    pub session: u32,
    /// UniqueProcessId of the process.
    pub process: u32,
}

impl SystemState {
    /// State at boot.
    #[must_use]
    pub fn new(system32: PathBuf, process: u32) -> Self {
        Self {
            system32,
            atoms: AtomTable::default(),
            token: None,
            shared_keyed_event: None,
            user_locale: DEFAULT_LOCALE,
            system_locale: DEFAULT_LOCALE,
            next_luid: 0x1000,
            armed_timers: Vec::new(),
            timer_resolution: None,
            session: 1,
            process,
        }
    }

    /// A new locally unique identifier.
    pub fn allocate_luid(&mut self) -> u64 {
        self.next_luid += 1;
        self.next_luid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atoms_are_counted() {
        let mut atoms = AtomTable::default();
        assert_eq!(atoms.add("Name"), Ok(0xC000));
        assert_eq!(atoms.add("NAME"), Ok(0xC000));
        assert_eq!(atoms.add("#17"), Ok(17));
        assert_eq!(atoms.find("name"), Ok(0xC000));
        assert_eq!(atoms.find("other"), Err(Status::OBJECT_NAME_NOT_FOUND));
        assert_eq!(atoms.add(""), Err(Status::OBJECT_NAME_INVALID));
        assert_eq!(atoms.add(&"x".repeat(256)), Err(Status::INVALID_PARAMETER));
        assert_eq!(atoms.get(0xC000).unwrap().references, 2);
        atoms.delete(0xC000).unwrap();
        atoms.delete(0xC000).unwrap();
        assert_eq!(atoms.delete(0xC000), Err(Status::INVALID_HANDLE));
        assert_eq!(atoms.get(5).unwrap().name, "#5");
    }

    #[test]
    fn the_atom_table_fills_up() {
        let mut atoms = AtomTable::default();
        let added = (0..).map_while(|i| atoms.add(&format!("a{i}")).ok()).take(3).count();
        assert_eq!(added, 3);
        atoms.atoms = (FIRST_ATOM..=u16::MAX).map(|n| (n, Atom { name: format!("n{n}"), references: 1 })).collect();
        assert_eq!(atoms.add("one more"), Err(Status::NO_MEMORY));
    }
}
