//! The windows in which translated code sees address spaces: a few, given to the spaces that run.
//!
//! A space gets a window when translated code is about to run in it, and may lose it to another one later; nothing is
//! lost with it, since a window only shows what the page tables say.

use std::sync::Arc;

use super::frames::FrameStore;
use super::half::Half;
use super::window::Window;
use super::{Frames, HostProtection, MapError, SpaceId};
use lstar_translator::abi::USER_END;

/// Windows that one machine takes at most. Each reserves 10 TiB of the host's 128.
const MAX_WINDOWS: usize = 4;

#[derive(Debug)]
struct View {
    window: Window,
    space: Option<SpaceId>,
    last_used: u64,
}

/// All windows of a machine.
#[derive(Debug)]
pub(super) struct Views {
    store: Arc<FrameStore>,
    views: Vec<View>,
    /// Frames that every window shows below its base, and where.
    reserved: Option<(i32, Arc<Frames>)>,
    clock: u64,
}

impl Views {
    /// No windows yet.
    pub fn new(store: &Arc<FrameStore>) -> Self {
        Self { store: Arc::clone(store), views: Vec::new(), reserved: None, clock: 0 }
    }

    /// Shows frames at `displacement` from the base of each window made from now on.
    pub fn reserve(&mut self, displacement: i32, frames: Arc<Frames>) {
        self.reserved = Some((displacement, frames));
    }

    /// The windows in which a space's page at `address` is seen: all for the kernel half.
    fn showing(&self, space: SpaceId, address: u64) -> impl Iterator<Item = &Window> {
        let everywhere = address >= USER_END;
        self.views.iter().filter(move |view| everywhere || view.space == Some(space)).map(|view| &view.window)
    }

    /// Shows new mappings.
    pub fn map(
        &self,
        space: SpaceId,
        address: u64,
        size: u64,
        offset: u64,
        host: HostProtection,
    ) -> Result<(), MapError> {
        for window in self.showing(space, address) {
            window.map(address, size, &self.store.file, offset, host)?;
        }
        Ok(())
    }

    /// Shows nothing any more.
    pub fn unmap(&self, space: SpaceId, address: u64, size: u64) -> Result<(), MapError> {
        for window in self.showing(space, address) {
            window.unmap(address, size)?;
        }
        Ok(())
    }

    /// Shows other rights.
    pub fn protect(&self, space: SpaceId, address: u64, size: u64, host: HostProtection) -> Result<(), MapError> {
        for window in self.showing(space, address) {
            window.protect(address, size, host)?;
        }
        Ok(())
    }

    /// Base of the window that shows a space, which is brought into one if it has none.
    pub fn show(&mut self, space: SpaceId, user: &Half, kernel: &Half) -> Result<u64, MapError> {
        self.clock += 1;
        let index = match self.views.iter().position(|view| view.space == Some(space)) {
            Some(index) => index,
            None => {
                let index = self.vacant(kernel)?;
                let view = &mut self.views[index];
                if view.space.take().is_some() {
                    view.window.unmap(0, USER_END)?;
                }
                if let Err(error) = user.show(&view.window, &self.store.file) {
                    view.window.unmap(0, USER_END)?;
                    return Err(error);
                }
                view.space = Some(space);
                index
            }
        };
        self.views[index].last_used = self.clock;
        Ok(self.views[index].window.base())
    }

    /// A window that can show another space: an unused one, a new one, or the one that was not used for longest.
    fn vacant(&mut self, kernel: &Half) -> Result<usize, MapError> {
        if let Some(index) = self.views.iter().position(|view| view.space.is_none()) {
            return Ok(index);
        }
        if self.views.len() < MAX_WINDOWS {
            match self.add(kernel) {
                Ok(()) => return Ok(self.views.len() - 1),
                // Other machines may hold the host's addresses: share what there is.
                Err(error) if self.views.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
        let oldest = self.views.iter().enumerate().min_by_key(|(_, view)| view.last_used);
        Ok(oldest.map_or(0, |(index, _)| index))
    }

    fn add(&mut self, kernel: &Half) -> Result<(), MapError> {
        let window = Window::new()?;
        if let Some((displacement, frames)) = &self.reserved {
            window.map_reserved(*displacement, frames.size, &self.store.file, frames.offset)?;
        }
        kernel.show(&window, &self.store.file)?;
        self.views.push(View { window, space: None, last_used: 0 });
        Ok(())
    }

    /// Frees the window of a space that is gone.
    pub fn forget(&mut self, space: SpaceId) {
        for view in self.views.iter_mut().filter(|view| view.space == Some(space)) {
            // Without the host's cooperation the window stays as it is, and is cleared before it is used again.
            view.last_used = 0;
            if view.window.unmap(0, USER_END).is_ok() {
                view.space = None;
            }
        }
    }
}
