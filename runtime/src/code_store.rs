//! Translated regions kept in a file between runs.
//!
//! A region is position-independent; what it depends on besides the guest code is the *key*: whoever opens a store puts
//! into it everything that shapes host code (this program's build, translator settings, host processor). A record also
//! carries a hash of the guest bytes it was translated from, which are compared before it is used.
//!
//! The file is read whole, and replaced whole by renaming, so that several processes can use it at once: the last one to
//! finish wins. A file with another key or a broken header is an empty store, a record with a wrong checksum or impossible
//! contents does not exist. That guards against accidents; host code is executed as it lies there, so the file must be as
//! safe from other users as the program itself. [`CodeStore::open`] refuses one that others can write.
//!
//! Layout, little-endian: `MAGIC`, 16 bytes of the key's hash, then records: a `Header` of 40 bytes and the region in
//! postcard's encoding.

use std::fs;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use lstar_translator::CompiledRegion;
use lstar_translator::abi::Mode;
use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_128};

/// First bytes of a file; the number counts format changes.
const MAGIC: [u8; 8] = *b"LSTARC01";
/// Bytes before the first record.
const PREFIX: usize = MAGIC.len() + 16;
/// Bytes of a record's header.
const HEADER: usize = 40;
/// Most bytes of a file.
const SIZE_LIMIT: usize = 256 << 20;

/// Start of a record.
#[derive(Clone, Copy)]
struct Header {
    entry: u64,
    mode: u64,
    /// Hash of the guest code.
    source: u64,
    /// Hash of the encoded region.
    checksum: u64,
    /// Bytes of it.
    length: u64,
}

impl Header {
    fn read(bytes: &[u8]) -> Option<Self> {
        let (fields, _) = bytes.get(..HEADER)?.as_chunks::<8>();
        let field = |index: usize| fields.get(index).map(|bytes| u64::from_le_bytes(*bytes));
        Some(Self { entry: field(0)?, mode: field(1)?, source: field(2)?, checksum: field(3)?, length: field(4)? })
    }

    fn write(self, out: &mut Vec<u8>) {
        for field in [self.entry, self.mode, self.source, self.checksum, self.length] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }
}

/// Reads guest code for comparison; `false` when it is not all there.
pub(crate) trait GuestCode {
    /// Fills `buf` from `address` on.
    fn read(&mut self, address: u64, buf: &mut [u8], mode: Mode) -> bool;
}

/// Regions of earlier runs, and new ones.
#[derive(Debug)]
pub struct CodeStore {
    path: PathBuf,
    prefix: [u8; PREFIX],
    /// The file as it was opened.
    old: Vec<u8>,
    /// Records in `old`, by what they are looked up with.
    index: FxHashMap<(u64, u64), Vec<Range<usize>>>,
    /// Records to be added.
    fresh: Vec<u8>,
}

impl CodeStore {
    /// Opens the store in a file, which need not exist.
    #[must_use]
    pub fn open(path: &Path, key: &str) -> Self {
        let mut prefix = [0; PREFIX];
        prefix[..MAGIC.len()].copy_from_slice(&MAGIC);
        prefix[MAGIC.len()..].copy_from_slice(&xxh3_128(key.as_bytes()).to_le_bytes());
        let mut store =
            Self { path: path.to_owned(), prefix, old: Vec::new(), index: FxHashMap::default(), fresh: Vec::new() };
        if let Some(bytes) = read_private(path).filter(|bytes| bytes.starts_with(&store.prefix)) {
            store.old = bytes;
            store.scan();
        }
        store
    }

    fn scan(&mut self) {
        let mut at = PREFIX;
        while let Some(header) = self.old.get(at..).and_then(Header::read) {
            let end = usize::try_from(header.length).ok().and_then(|length| (at + HEADER).checked_add(length));
            let Some(end) = end.filter(|&end| end <= self.old.len()) else { break };
            self.index.entry((header.entry, header.mode)).or_default().push(at..end);
            at = end;
        }
        self.old.truncate(at);
    }

    /// Whether there is anything to find.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The region at `entry`, if one was translated from the code that is there now.
    pub(crate) fn find(&self, entry: u64, mode: Mode, code: &mut dyn GuestCode) -> Option<CompiledRegion> {
        let records = self.index.get(&(entry, mode as u64))?;
        // The newest first: it has seen the most.
        records.iter().rev().find_map(|range| {
            let record = self.old.get(range.clone())?;
            let (header, encoded) = (Header::read(record)?, record.get(HEADER..)?);
            if xxh3_64(encoded) != header.checksum {
                return None;
            }
            let region: CompiledRegion = postcard::from_bytes(encoded).ok()?;
            let right = region.entry == entry && region.mode == mode && region.is_consistent();
            (right && hash_source(&region, code)? == header.source).then_some(region)
        })
    }

    /// Keeps a region that has just been translated.
    pub(crate) fn add(&mut self, region: &CompiledRegion, code: &mut dyn GuestCode) {
        let Some(source) = hash_source(region, code) else { return };
        let Ok(encoded) = postcard::to_allocvec(region) else { return };
        if PREFIX + self.fresh.len() + HEADER + encoded.len() > SIZE_LIMIT {
            return;
        }
        let (entry, mode) = (region.entry, region.mode as u64);
        let header = Header { entry, mode, source, checksum: xxh3_64(&encoded), length: encoded.len() as u64 };
        header.write(&mut self.fresh);
        self.fresh.extend_from_slice(&encoded);
    }

    /// Writes the file anew if there is anything new. Old records go when the file would grow too large.
    pub fn save(&mut self) -> io::Result<bool> {
        if self.fresh.is_empty() {
            return Ok(false);
        }
        let old = self.old.get(PREFIX..).unwrap_or_default();
        let old = if PREFIX + old.len() + self.fresh.len() > SIZE_LIMIT { &[] } else { old };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let temporary = self.path.with_extension(format!("{}.new", std::process::id()));
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| [&self.prefix, old, &self.fresh].into_iter().try_for_each(|part| file.write_all(part)))
            .and_then(|()| fs::rename(&temporary, &self.path));
        if written.is_err() {
            // The error that is told is the first one.
            let _ = fs::remove_file(&temporary);
        }
        self.fresh.clear();
        written.map(|()| true)
    }
}

/// A file's contents, unless somebody else could have written them.
fn read_private(path: &Path) -> Option<Vec<u8>> {
    let metadata = fs::metadata(path).ok()?;
    let private = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if !private || metadata.len() > SIZE_LIMIT as u64 {
        return None;
    }
    fs::read(path).ok()
}

/// Hash of the guest code that a region was translated from.
fn hash_source(region: &CompiledRegion, code: &mut dyn GuestCode) -> Option<u64> {
    /// Most bytes of guest code in a region that can be believed.
    const LIMIT: u64 = 1 << 20;
    let total = region
        .ranges
        .iter()
        .try_fold(0u64, |sum, range| sum.checked_add(range.end.checked_sub(range.start)?).filter(|&sum| sum <= LIMIT));
    total?;
    let mut hash = Xxh3::new();
    let mut bytes = Vec::new();
    for range in &region.ranges {
        bytes.resize((range.end - range.start) as usize, 0);
        if !code.read(range.start, &mut bytes, region.mode) {
            return None;
        }
        hash.update(&range.start.to_le_bytes());
        hash.update(&bytes);
    }
    Some(hash.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of memory holds this byte.
    struct Filled(u8);

    impl GuestCode for Filled {
        fn read(&mut self, _: u64, buf: &mut [u8], _: Mode) -> bool {
            buf.fill(self.0);
            true
        }
    }

    const ENTRY: u64 = 0x1_4000_0000;

    fn region() -> CompiledRegion {
        CompiledRegion {
            entry: ENTRY,
            mode: Mode::User,
            code: vec![0xC3; 64],
            links_offset: 64,
            links: Vec::new(),
            sites: Vec::new(),
            map: lstar_translator::statemap::StateMap::default(),
            ranges: [(0, 16)].map(|(start, end)| ENTRY + start..ENTRY + end).to_vec(),
            instructions: 16,
            blocks: 1,
            fallbacks: Vec::new(),
            host_operations: 0,
            helpers: 0,
            probes: Vec::new(),
        }
    }

    fn stored(folder: &Path) -> PathBuf {
        let path = folder.join("regions");
        let mut store = CodeStore::open(&path, "key");
        store.add(&region(), &mut Filled(0x90));
        store.save().expect("saved");
        path
    }

    #[test]
    fn finds_what_was_translated_from_the_same_code() {
        let folder = tempfile::tempdir().expect("folder");
        let store = CodeStore::open(&stored(folder.path()), "key");
        let found = store.find(ENTRY, Mode::User, &mut Filled(0x90)).expect("found");
        assert_eq!((found.code, found.ranges), (region().code, region().ranges));
        assert!(store.find(ENTRY, Mode::User, &mut Filled(0x91)).is_none(), "other code");
        for mode in [Mode::Kernel, Mode::Compatibility] {
            assert!(store.find(ENTRY, mode, &mut Filled(0x90)).is_none(), "other mode");
        }
        assert!(store.find(ENTRY + 1, Mode::User, &mut Filled(0x90)).is_none(), "other address");
    }

    #[test]
    fn ignores_files_of_other_keys_and_broken_ones() {
        let folder = tempfile::tempdir().expect("folder");
        let path = stored(folder.path());
        assert!(CodeStore::open(&path, "another key").is_empty());
        let good = fs::read(&path).expect("file");
        for cut in 0..good.len() {
            fs::write(&path, &good[..cut]).expect("written");
            assert!(CodeStore::open(&path, "key").find(ENTRY, Mode::User, &mut Filled(0x90)).is_none(), "cut at {cut}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).expect("written");
            assert!(CodeStore::open(&path, "key").find(ENTRY, Mode::User, &mut Filled(0x90)).is_none(), "flip at {at}");
        }
    }

    #[test]
    fn refuses_a_file_that_others_can_write() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("folder");
        let path = stored(folder.path());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("permissions");
        assert!(CodeStore::open(&path, "key").is_empty());
    }

    #[test]
    fn keeps_what_earlier_runs_have_stored() {
        let folder = tempfile::tempdir().expect("folder");
        let path = stored(folder.path());
        let mut store = CodeStore::open(&path, "key");
        let other = CompiledRegion { entry: ENTRY + 0x100, ..region() };
        store.add(&other, &mut Filled(0x90));
        store.save().expect("saved");
        let store = CodeStore::open(&path, "key");
        for entry in [ENTRY, ENTRY + 0x100] {
            assert!(store.find(entry, Mode::User, &mut Filled(0x90)).is_some());
        }
    }
}
