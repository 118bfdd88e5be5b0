//! Translation on a thread of its own, so that the guest goes on in the interpreter meanwhile.
//!
//! A request carries a [`Snapshot`] of the guest code: the thread never looks at guest memory. When a page of the snapshot
//! changes before the region is ready, the region is thrown away. What is ready is taken in by the machine's own thread
//! whenever it is in the interpreter.

use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use lstar_translator::abi::Mode;
use lstar_translator::{CompiledRegion, Snapshot, Translator, TranslatorConfig, TranslatorError};
use rustc_hash::FxHashMap;

use crate::memory::SpaceId;

/// What to translate.
struct Request {
    space: SpaceId,
    entry: u64,
    mode: Mode,
    code: Snapshot,
}

/// A region that is ready, or cannot be.
pub(crate) struct Translated {
    /// In which address space.
    pub space: SpaceId,
    /// Where it begins.
    pub entry: u64,
    /// For which mode.
    pub mode: Mode,
    /// The region.
    pub result: Result<CompiledRegion, TranslatorError>,
    /// How long it took.
    pub time: Duration,
}

/// A request under way.
struct Ticket {
    pages: Vec<u64>,
    stale: bool,
}

/// The thread and what it has been asked.
pub(crate) struct Compiler {
    requests: Sender<Request>,
    results: Receiver<Translated>,
    under_way: FxHashMap<(SpaceId, u64, Mode), Ticket>,
}

impl Compiler {
    /// Starts the thread. It ends when this value is dropped and what it is working on is done.
    pub fn start(config: TranslatorConfig) -> Result<Self, String> {
        let mut translator = Translator::new(config).map_err(|error| error.to_string())?;
        let (requests, inbox) = channel::<Request>();
        let (outbox, results) = channel();
        thread::Builder::new()
            .name("lstar-translator".to_owned())
            .spawn(move || {
                for Request { space, entry, mode, mut code } in inbox {
                    let start = Instant::now();
                    let result = translator.translate(entry, mode, &mut code);
                    if outbox.send(Translated { space, entry, mode, result, time: start.elapsed() }).is_err() {
                        break;
                    }
                }
            })
            .map_err(|error| format!("no thread for translation: {error}"))?;
        Ok(Self { requests, results, under_way: FxHashMap::default() })
    }

    /// Whether anything has been asked for and not been taken yet.
    pub fn is_busy(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Whether this region has been asked for.
    pub fn expects(&self, space: SpaceId, entry: u64, mode: Mode) -> bool {
        self.under_way.contains_key(&(space, entry, mode))
    }

    /// Asks for a region. `false` when the thread has died.
    pub fn request(&mut self, space: SpaceId, entry: u64, mode: Mode, code: Snapshot) -> bool {
        let ticket = Ticket { pages: code.pages().collect(), stale: false };
        self.under_way.insert((space, entry, mode), ticket);
        self.requests.send(Request { space, entry, mode, code }).is_ok()
    }

    /// Takes note that guest code has changed in a space, or in all.
    pub fn invalidate(&mut self, space: Option<SpaceId>, range: &Range<u64>) {
        let concerned = self.under_way.iter_mut().filter(|((own, ..), _)| space.is_none_or(|space| space == *own));
        for (_, ticket) in concerned {
            ticket.stale |= ticket.pages.iter().any(|page| range.contains(page));
        }
    }

    /// The next region that is ready and still right.
    pub fn take(&mut self) -> Option<Translated> {
        loop {
            let ready = self.results.try_recv().ok()?;
            if self.under_way.remove(&(ready.space, ready.entry, ready.mode)).is_some_and(|ticket| !ticket.stale) {
                return Some(ready);
            }
        }
    }
}
