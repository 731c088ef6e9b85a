//! Who owns which page of the host (PAMT).

use slat_memslot::{Level, PageSize};
use slat_mmu::spte::Pfn;

use super::Tdr;
use super::status::{Code, Operand, Status};

/// What a page of the host is to the module (`PT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum PageType {
    /// Not the module's: the host may use it or give it away (`PT_NDA`).
    #[default]
    Host,
    /// A page of a TD's memory (`PT_REG`).
    Regular,
    /// The root of a TD (`PT_TDR`).
    Tdr,
    /// A page of a TD's control structure (`PT_TDCX`); the S-EPT's root is one.
    Tdcx,
    /// The root page of a vCPU (`PT_TDVPR`).
    Tdvpr,
    /// A table of an S-EPT (`PT_EPT`).
    Ept,
}

/// What is known of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PamtEntry {
    /// What it is.
    pub page_type: PageType,
    /// Whose it is.
    pub owner: Option<Tdr>,
    /// The TD's epoch when it was blocked (`BEPOCH`).
    pub blocked_epoch: u64,
}

/// Pages in a block of 2 MiB.
const PAGES: usize = 512;
const BLOCK: u64 = PAGES as u64;

/// A block of 2 MiB, as one page or as 512.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Block {
    #[default]
    Empty,
    Huge(PamtEntry),
    /// A part of a page of 1 GiB, whose entry is its first block's.
    Tail,
    Small {
        entries: Box<[PamtEntry; PAGES]>,
        used: u16,
    },
}

/// The metadata of all pages that the host can give to the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pamt {
    blocks: Vec<Block>,
    end: Pfn,
}

impl Pamt {
    /// For the frames below `end`, rounded up to 2 MiB.
    pub(crate) fn new(end: Pfn) -> Self {
        let blocks = end.raw().div_ceil(BLOCK);
        Self {
            blocks: vec![Block::Empty; usize::try_from(blocks).unwrap_or(usize::MAX)],
            end: Pfn::new(blocks * BLOCK),
        }
    }

    fn block(&self, page: Pfn) -> &Block {
        &self.blocks[usize::try_from(page.raw() / BLOCK).unwrap_or(usize::MAX)]
    }

    fn block_mut(&mut self, page: Pfn) -> &mut Block {
        &mut self.blocks[usize::try_from(page.raw() / BLOCK).unwrap_or(usize::MAX)]
    }

    /// What is known of the page that begins here; a page of the host if none does.
    pub(crate) fn get(&self, page: Pfn) -> PamtEntry {
        if page >= self.end {
            return PamtEntry::default();
        }
        match self.block(page) {
            Block::Empty | Block::Tail => PamtEntry::default(),
            Block::Huge(entry) if page.raw() % BLOCK == 0 => *entry,
            Block::Huge(_) => PamtEntry::default(),
            Block::Small { entries, .. } => entries[in_block(page)],
        }
    }

    /// The same, with the size of the page.
    pub(crate) fn find(&self, page: Pfn) -> Option<(PamtEntry, PageSize)> {
        let entry = self.get(page);
        if entry.page_type == PageType::Host {
            return None;
        }
        let next = Pfn::new(page.raw() + BLOCK);
        let size = match self.block(page) {
            Block::Huge(_) if next < self.end && matches!(self.block(next), Block::Tail) => {
                PageSize::Size1G
            }
            Block::Huge(_) => PageSize::Size2M,
            _ => PageSize::Size4K,
        };
        Some((entry, size))
    }

    /// Whether a page can be taken from the host.
    pub(crate) fn check_free(
        &self,
        page: Pfn,
        size: PageSize,
        operand: Operand,
    ) -> Result<(), Status> {
        let pages = size.pages().raw();
        if page.raw() % pages != 0 {
            return Err(Status::of(Code::OperandInvalid, operand));
        }
        if page
            .raw()
            .checked_add(pages)
            .is_none_or(|end| end > self.end.raw())
        {
            return Err(Status::of(Code::OperandAddrRangeError, operand));
        }
        let free = match size {
            PageSize::Size4K => match self.block(page) {
                Block::Empty => true,
                Block::Huge(_) | Block::Tail => false,
                Block::Small { entries, .. } => entries[in_block(page)].page_type == PageType::Host,
            },
            PageSize::Size2M | PageSize::Size1G => (0..pages / BLOCK).all(|block| {
                let page = Pfn::new(page.raw() + block * BLOCK);
                matches!(self.block(page), Block::Empty)
            }),
        };
        if free {
            Ok(())
        } else {
            Err(Status::of(Code::PageMetadataIncorrect, operand))
        }
    }

    /// Says what a free page is from now on.
    pub(crate) fn take(&mut self, page: Pfn, size: PageSize, page_type: PageType, owner: Tdr) {
        let entry = PamtEntry {
            page_type,
            owner: Some(owner),
            blocked_epoch: 0,
        };
        match size {
            PageSize::Size4K => self.take_small(page, entry),
            PageSize::Size2M => *self.block_mut(page) = Block::Huge(entry),
            PageSize::Size1G => {
                *self.block_mut(page) = Block::Huge(entry);
                for block in 1..BLOCK {
                    *self.block_mut(Pfn::new(page.raw() + block * BLOCK)) = Block::Tail;
                }
            }
        }
    }

    fn take_small(&mut self, page: Pfn, entry: PamtEntry) {
        let block = self.block_mut(page);
        if !matches!(block, Block::Small { .. }) {
            *block = Block::Small {
                entries: Box::new([PamtEntry::default(); PAGES]),
                used: 0,
            };
        }
        if let Block::Small { entries, used } = block {
            entries[in_block(page)] = entry;
            *used += 1;
        }
    }

    /// Gives a page back to the host.
    pub(crate) fn free(&mut self, page: Pfn, size: PageSize) {
        match size {
            PageSize::Size4K => {
                let block = self.block_mut(page);
                if let Block::Small { entries, used } = block {
                    entries[in_block(page)] = PamtEntry::default();
                    *used -= 1;
                    if *used == 0 {
                        *block = Block::Empty;
                    }
                }
            }
            PageSize::Size2M => *self.block_mut(page) = Block::Empty,
            PageSize::Size1G => {
                for block in 0..BLOCK {
                    *self.block_mut(Pfn::new(page.raw() + block * BLOCK)) = Block::Empty;
                }
            }
        }
    }

    /// Notes when a page was blocked.
    pub(crate) fn set_blocked_epoch(&mut self, page: Pfn, epoch: u64) {
        match self.block_mut(page) {
            Block::Huge(entry) => entry.blocked_epoch = epoch,
            Block::Small { entries, .. } => entries[in_block(page)].blocked_epoch = epoch,
            Block::Empty | Block::Tail => {}
        }
    }

    /// Makes 512 pages of a page of 2 MiB or 1 GiB, or one of 512. They are free or owned by one TD.
    pub(crate) fn resize(&mut self, page: Pfn, from: PageSize, to: PageSize, owner: Tdr) {
        self.free_all(page, from, to);
        let whole = from.max(to).pages().raw();
        for first in (0..whole).step_by(usize::try_from(to.pages().raw()).unwrap_or(1)) {
            let page = Pfn::new(page.raw() + first);
            self.take(page, to, PageType::Regular, owner);
        }
    }

    fn free_all(&mut self, page: Pfn, from: PageSize, to: PageSize) {
        let whole = from.max(to).pages().raw();
        for first in (0..whole).step_by(usize::try_from(from.pages().raw()).unwrap_or(1)) {
            self.free(Pfn::new(page.raw() + first), from);
        }
    }

    /// Every page that belongs to the module, with its size.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (Pfn, PageSize, PamtEntry)> {
        let blocks = self.blocks.iter().enumerate();
        let used = blocks.filter(|(_, block)| !matches!(block, Block::Empty | Block::Tail));
        used.flat_map(|(number, _)| {
            let first = number as u64 * BLOCK;
            (first..first + BLOCK).filter_map(|page| {
                let page = Pfn::new(page);
                let (entry, size) = self.find(page)?;
                Some((page, size, entry))
            })
        })
    }

    /// Memory that the metadata takes.
    pub(crate) fn bytes(&self) -> usize {
        let small = |block: &&Block| matches!(block, Block::Small { .. });
        let smalls = self.blocks.iter().filter(small).count();
        self.blocks.len() * size_of::<Block>() + smalls * size_of::<[PamtEntry; PAGES]>()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
const fn in_block(page: Pfn) -> usize {
    page.raw() as usize & (PAGES - 1)
}

/// The size of the page that a leaf of this level maps.
pub(crate) const fn size_at(level: Level) -> Option<PageSize> {
    match level {
        Level::L1 => Some(PageSize::Size4K),
        Level::L2 => Some(PageSize::Size2M),
        Level::L3 => Some(PageSize::Size1G),
        Level::L4 | Level::L5 => None,
    }
}
