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

/// What to translate.
struct Request {
    entry: u64,
    mode: Mode,
    code: Snapshot,
}

/// A region that is ready, or cannot be.
pub(crate) struct Translated {
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
    under_way: FxHashMap<(u64, Mode), Ticket>,
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
                for Request { entry, mode, mut code } in inbox {
                    let start = Instant::now();
                    let result = translator.translate(entry, mode, &mut code);
                    if outbox.send(Translated { entry, mode, result, time: start.elapsed() }).is_err() {
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
    pub fn expects(&self, entry: u64, mode: Mode) -> bool {
        self.under_way.contains_key(&(entry, mode))
    }

    /// Asks for a region. `false` when the thread has died.
    pub fn request(&mut self, entry: u64, mode: Mode, code: Snapshot) -> bool {
        let ticket = Ticket { pages: code.pages().collect(), stale: false };
        self.under_way.insert((entry, mode), ticket);
        self.requests.send(Request { entry, mode, code }).is_ok()
    }

    /// Takes note that guest code has changed.
    pub fn invalidate(&mut self, range: &Range<u64>) {
        for ticket in self.under_way.values_mut() {
            ticket.stale |= ticket.pages.iter().any(|page| range.contains(page));
        }
    }

    /// The next region that is ready and still right.
    pub fn take(&mut self) -> Option<Translated> {
        loop {
            let ready = self.results.try_recv().ok()?;
            if self.under_way.remove(&(ready.entry, ready.mode)).is_some_and(|ticket| !ticket.stale) {
                return Some(ready);
            }
        }
    }
}
