//! Which files sections show: such a file can be neither shortened nor, if it is an image, deleted.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// Volume and path without case.
type Key = (usize, String);

/// What a section of a file holds: the file counts as mapped as long as it lives.
#[derive(Clone, Debug)]
pub struct MappedUse(#[expect(dead_code, reason = "held, never read")] Arc<()>);

#[derive(Debug)]
struct Use {
    alive: Weak<()>,
    kind: MappingKind,
}

/// What a section makes of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingKind {
    /// Data that views read or copy.
    Data,
    /// Data that views may write back.
    WritableData,
    /// An image.
    Image,
}

/// The files that sections show.
#[derive(Debug, Default)]
pub struct MappedFiles {
    files: HashMap<Key, Vec<Use>>,
}

impl MappedFiles {
    /// A section of a file is made.
    pub fn add(&mut self, key: Key, kind: MappingKind) -> MappedUse {
        // What is over is forgotten as the table grows.
        self.files.retain(|_, uses| {
            uses.retain(|one| one.alive.strong_count() > 0);
            !uses.is_empty()
        });
        let alive = Arc::new(());
        self.files.entry(key).or_default().push(Use { alive: Arc::downgrade(&alive), kind });
        MappedUse(alive)
    }

    fn any(&self, key: &Key, wanted: impl Fn(&Use) -> bool) -> bool {
        self.files.get(key).is_some_and(|uses| uses.iter().any(|one| one.alive.strong_count() > 0 && wanted(one)))
    }

    /// Whether any section shows a file.
    #[must_use]
    pub fn is_mapped(&self, key: &Key) -> bool {
        self.any(key, |_| true)
    }

    /// Whether a section shows a file as an image.
    #[must_use]
    pub fn has_image(&self, key: &Key) -> bool {
        self.any(key, |one| one.kind == MappingKind::Image)
    }

    /// Whether views may write to a file.
    #[must_use]
    pub fn is_written(&self, key: &Key) -> bool {
        self.any(key, |one| one.kind == MappingKind::WritableData)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_mapped_as_long_as_a_section_shows_it() {
        let mut files = MappedFiles::default();
        let key = (0, "A".to_owned());
        let data = files.add(key.clone(), MappingKind::WritableData);
        assert!(files.is_mapped(&key) && files.is_written(&key) && !files.has_image(&key));
        let image = files.add(key.clone(), MappingKind::Image);
        drop(data);
        assert!(files.has_image(&key));
        drop(image);
        assert!(!files.is_mapped(&key));
        files.add((0, "B".to_owned()), MappingKind::Data);
        assert_eq!(files.files.len(), 1);
    }
}
