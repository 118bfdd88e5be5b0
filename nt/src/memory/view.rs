//! Views of sections, and queries about addresses.

use std::ops::Range;
use std::sync::Arc;

use lstar_arch::PAGE_SIZE;
use lstar_runtime::{AddressSpace, Protection};

use super::protection::PageProtection;
use super::section::{Contents, Section, attributes};
use super::vad::{Backing, Placement};
use super::{HIGHEST_USER_ADDRESS, MemoryManager};
use crate::status::Status;

crate::guest_struct! {
    /// MEMORY_BASIC_INFORMATION.
    pub struct MemoryBasicInformation: 0x30 {
        /// First page asked about.
        pub base_address @ 0x00: u64,
        /// Start of the allocation.
        pub allocation_base @ 0x08: u64,
        /// Protection it was reserved with.
        pub allocation_protect @ 0x10: u32,
        /// Bytes from the page on that are alike.
        pub region_size @ 0x18: u64,
        /// MEM_COMMIT, MEM_RESERVE or MEM_FREE.
        pub state @ 0x20: u32,
        /// Protection of the pages.
        pub protect @ 0x24: u32,
        /// MEM_PRIVATE, MEM_MAPPED or MEM_IMAGE.
        pub kind @ 0x28: u32,
    }
}

const MEM_COMMIT: u32 = 0x1000;
const MEM_RESERVE: u32 = 0x2000;
const MEM_FREE: u32 = 0x1_0000;
/// MEM_PRIVATE, MEM_MAPPED, MEM_IMAGE.
const TYPES: [u32; 3] = [0x2_0000, 0x4_0000, 0x100_0000];

/// Constant parts of images from this size on (resources, symbols for debuggers) are read when they are touched.
const LARGE_PART: u64 = 0x2_0000;

/// A wanted view of a data section.
#[derive(Clone, Copy, Debug)]
pub struct ViewRequest {
    /// Fixed address, if not NULL.
    pub base: Option<u64>,
    /// Where it may go otherwise.
    pub placement: Placement,
    /// Offset in the section, page-aligned.
    pub offset: u64,
    /// Bytes; 0 for the rest of the section.
    pub size: u64,
    /// Protection.
    pub protection: PageProtection,
    /// The range is a placeholder to be replaced.
    pub replace_placeholder: bool,
}

impl MemoryManager {
    /// Maps an image, at its preferred base when that is free. Away from it the status is STATUS_IMAGE_NOT_AT_BASE and
    /// the caller relocates it.
    pub fn map_image(
        &mut self,
        space: &mut AddressSpace,
        section: &Arc<Section>,
        base: Option<u64>,
        placement: Placement,
    ) -> Result<(u64, u64, Status), Status> {
        let headers = section.image().ok_or(Status::SECTION_NOT_IMAGE)?;
        let size = u64::from(headers.size);
        let fits = |start: u64| {
            let end = start.checked_add(size);
            start >= super::LOWEST_USER_ADDRESS && end.is_some_and(|end| end <= HIGHEST_USER_ADDRESS + 1)
        };
        let start = match base {
            Some(base) if !fits(base) => return Err(Status::INVALID_PARAMETER_3),
            Some(base) => base,
            None if fits(headers.base) && self.vads.is_free(&(headers.base..headers.base + size)) => headers.base,
            None => self.vads.find_free(size, placement).ok_or(Status::NO_MEMORY)?,
        };
        self.vads.insert(
            start..start + size,
            Backing::Image(Arc::clone(section)),
            PageProtection::EXECUTE_WRITECOPY,
        )?;
        let mapped = self.commit_image(space, section, start);
        if let Err(status) = mapped {
            self.vads.remove(space, start)?;
            return Err(status);
        }
        let status = if start == headers.base { Status::SUCCESS } else { Status::IMAGE_NOT_AT_BASE };
        Ok((start, size, status))
    }

    fn commit_image(&mut self, space: &mut AddressSpace, section: &Section, start: u64) -> Result<(), Status> {
        let headers = section.image().ok_or(Status::SECTION_NOT_IMAGE)?;
        let (_, vad) = self.vads.find_mut(start).ok_or(Status::NO_MEMORY)?;
        for part in &headers.parts {
            let at = start + u64::from(part.rva);
            let protection = match part.protection {
                _ if section.attributes & attributes::IMAGE_NO_EXECUTE == attributes::IMAGE_NO_EXECUTE => {
                    PageProtection::READONLY
                }
                protection => protection,
            };
            let range = at..at + u64::from(part.size);
            let access = protection.access();
            let constant = !access.intersects(Protection::WRITE | Protection::EXECUTE) && !protection.is_copy();
            if constant && u64::from(part.size) >= LARGE_PART {
                vad.commit_unloaded(range, protection);
            } else {
                vad.commit(space, start, range.clone(), protection)?;
                section.load_image_part(space, start, &range)?;
            }
        }
        Ok(())
    }

    /// Maps part of a data section; returns address and size.
    pub fn map_data(
        &mut self,
        space: &mut AddressSpace,
        section: &Arc<Section>,
        request: ViewRequest,
    ) -> Result<(u64, u64), Status> {
        let Contents::Data(frames) = &section.contents else { return Err(Status::INVALID_PARAMETER) };
        let rest =
            section.size.checked_sub(request.offset).filter(|&rest| rest > 0).ok_or(Status::INVALID_VIEW_SIZE)?;
        let wanted = if request.size == 0 { rest } else { request.size };
        let size = wanted.checked_next_multiple_of(PAGE_SIZE).ok_or(Status::INVALID_VIEW_SIZE)?;
        if wanted > rest {
            return Err(Status::INVALID_VIEW_SIZE);
        }
        let start = match request.base {
            Some(base) => base,
            None => self.vads.find_free(size, request.placement).ok_or(Status::NO_MEMORY)?,
        };
        let end = start.checked_add(size).filter(|&end| end <= HIGHEST_USER_ADDRESS + 1);
        let range = start..end.ok_or(Status::INVALID_PARAMETER_3)?;
        if request.replace_placeholder {
            self.take_placeholder(space, &range)?;
        }
        let backing =
            Backing::View { section: Arc::clone(section), frames: Arc::clone(frames), offset: request.offset };
        self.vads.insert(range.clone(), backing, request.protection)?;
        if section.is_reserved() {
            self.adopt_commits(space, start);
            return Ok((start, size));
        }
        let mapped = match self.vads.find_mut(start) {
            Some((_, vad)) => vad.commit(space, start, range, request.protection),
            None => Err(Status::NO_MEMORY),
        };
        if let Err(status) = mapped {
            self.vads.remove(space, start)?;
            return Err(status);
        }
        Ok((start, size))
    }

    /// Removes a placeholder that covers a range exactly, so that something can take its place.
    pub fn take_placeholder(&mut self, space: &mut AddressSpace, range: &Range<u64>) -> Result<(), Status> {
        match self.vads.find(range.start) {
            Some((start, vad))
                if start == range.start && vad.end == range.end && matches!(vad.backing, Backing::Placeholder) =>
            {
                self.vads.remove(space, range.start).map(drop)
            }
            _ => Err(Status::CONFLICTING_ADDRESSES),
        }
    }

    /// Unmaps the view that holds `address`; its changes go to the file. With `preserve` a placeholder remains.
    pub fn unmap_view(&mut self, space: &mut AddressSpace, address: u64, preserve: bool) -> Result<(), Status> {
        let (start, vad) = self.vads.find(address).ok_or(Status::NOT_MAPPED_VIEW)?;
        let end = vad.end;
        match &vad.backing {
            Backing::Image(_) | Backing::View { .. } => vad.flush(space, start)?,
            _ => return Err(Status::NOT_MAPPED_VIEW),
        }
        self.vads.remove(space, start)?;
        if preserve {
            self.vads.insert(start..end, Backing::Placeholder, PageProtection::NOACCESS)?;
        }
        Ok(())
    }

    /// Writes the views of files that a range touches back.
    pub fn flush(&self, space: &AddressSpace, range: &Range<u64>) -> Result<(), Status> {
        for (start, vad) in self.vads.iter().filter(|(start, vad)| *start < range.end && vad.end > range.start) {
            vad.flush(space, start)?;
        }
        Ok(())
    }

    /// Writes every view of a file back: the process ends.
    pub fn flush_all(&self, space: &AddressSpace) {
        // A file that cannot be written any more loses what the views hold, as after a power failure.
        let _ = self.flush(space, &(0..u64::MAX));
    }

    /// MemoryBasicInformation.
    pub fn query_basic(&self, address: u64) -> Result<MemoryBasicInformation, Status> {
        if address > HIGHEST_USER_ADDRESS {
            return Err(Status::INVALID_PARAMETER);
        }
        let page = address & !(PAGE_SIZE - 1);
        let Some((start, vad)) = self.vads.find(page) else {
            let end = self.vads.next_start(page).unwrap_or(HIGHEST_USER_ADDRESS + 1);
            return Ok(MemoryBasicInformation {
                base_address: page,
                region_size: end - page,
                state: MEM_FREE,
                protect: PageProtection::NOACCESS.raw(),
                ..Default::default()
            });
        };
        let (end, protection) = vad.run_at(page);
        let kind = match vad.backing {
            Backing::Private | Backing::Placeholder | Backing::Stack { .. } | Backing::KernelFrames(_) => TYPES[0],
            Backing::View { .. } => TYPES[1],
            Backing::Image(_) => TYPES[2],
        };
        Ok(MemoryBasicInformation {
            base_address: page,
            allocation_base: start,
            allocation_protect: vad.protection.raw(),
            region_size: end - page,
            state: if protection.is_some() { MEM_COMMIT } else { MEM_RESERVE },
            protect: protection.map_or(0, PageProtection::raw),
            kind,
        })
    }

    /// The section that a view at `address` shows, with the view's start.
    #[must_use]
    pub fn section_at(&self, address: u64) -> Option<(u64, &Arc<Section>)> {
        let (start, vad) = self.vads.find(address)?;
        match &vad.backing {
            Backing::View { section, .. } | Backing::Image(section) => Some((start, section)),
            _ => None,
        }
    }

    /// All images in the current process, with their bases.
    pub fn images(&self) -> impl Iterator<Item = (u64, &Arc<Section>)> {
        self.vads.iter().filter_map(|(start, vad)| match &vad.backing {
            Backing::Image(section) => Some((start, section)),
            _ => None,
        })
    }

    /// The image that holds an address: its base and file name without folders. For traces and crash reports.
    #[must_use]
    pub fn module_at(&self, address: u64) -> Option<(u64, &str)> {
        let (start, section) = self.section_at(address)?;
        section.image()?;
        let name = section.file.as_ref().map_or("", |file| file.name.as_str());
        Some((start, name.rsplit('\\').next().unwrap_or(name)))
    }
}

impl super::vad::Vad {
    /// Writes what a view shares with its file back; private copies stay where they are.
    fn flush(&self, space: &AddressSpace, start: u64) -> Result<(), Status> {
        let Backing::View { section, offset, .. } = &self.backing else { return Ok(()) };
        // What has not been read has not been changed.
        let mut untouched = self.private.clone();
        self.unloaded.iter().for_each(|part| untouched.insert(part.clone()));
        let shared: Vec<Range<u64>> = untouched.gaps(&(start..self.end)).collect();
        shared
            .into_iter()
            .try_for_each(|part| section.flush(space, part.start, offset + (part.start - start), part.end - part.start))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use lstar_arch::Privilege;

    use super::super::section::SectionFile;
    use super::*;

    #[test]
    fn files_are_read_where_they_are_touched() {
        const SIZE: u64 = 0x10_0000;
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"later", 0x8_0000).unwrap();
        let mut space = AddressSpace::new(1 << 30).unwrap();
        let mut manager = MemoryManager::default();
        let named = SectionFile { file: file.try_clone().unwrap(), name: "\\a".to_owned(), held: None };
        let section = Section::of_file(&mut space, named, 0, PageProtection::READWRITE, attributes::COMMIT).unwrap();
        let section = Arc::new(section);
        let request = ViewRequest {
            base: None,
            placement: Placement::default(),
            offset: 0,
            size: 0,
            protection: PageProtection::READWRITE,
            replace_placeholder: false,
        };
        let views = [0, 1].map(|_| manager.map_data(&mut space, &section, request).unwrap().0);
        assert!(section.is_unread(&(0..SIZE)) && space.protection(views[0]).is_none());
        let read = |manager: &mut MemoryManager, space: &mut AddressSpace, address| {
            let mut bytes = [0; 5];
            manager.read(space, address, &mut bytes, Privilege::User).map(|()| bytes)
        };
        assert_eq!(read(&mut manager, &mut space, views[0] + 0x8_0000), Ok(*b"later"));
        assert!(section.is_unread(&(0..0x1000)) && !section.is_unread(&(0x8_0000..0x8_1000)));
        // Both views show the same memory, and what was changed is written back.
        manager.write(&mut space, views[0] + 0x8_0000, b"LATER", Privilege::User).unwrap();
        assert_eq!(read(&mut manager, &mut space, views[1] + 0x8_0000), Ok(*b"LATER"));
        manager.unmap_view(&mut space, views[0], false).unwrap();
        let mut written = [0; 5];
        file.read_exact_at(&mut written, 0x8_0000).unwrap();
        assert_eq!(&written, b"LATER");
        // Other rights do not lose what has not been read yet.
        let (start, vad) = manager.vads.find_mut(views[1]).unwrap();
        vad.protect(&mut space, start, start..start + 0x2000, PageProtection::READONLY).unwrap();
        assert_eq!(read(&mut manager, &mut space, views[1]), Ok(*b"first"));
        let refused = manager.write(&mut space, views[1], b"x", Privilege::User);
        assert_eq!(refused, Err(Status::ACCESS_VIOLATION));
    }
}
