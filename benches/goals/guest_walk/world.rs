//! A guest behind a second stage: slat's, and those of the floors.

use std::sync::atomic::Ordering;

use slat::memslot::{Gfn, Gva, PageSize};
use slat::mmu::host::Host;
use slat::mmu::role::{VcpuState, root_role_for_tdp};
use slat::mmu::spte::{Ept, Pfn};
use slat::mmu::table::{Arena, Epochs, Reader, TableId};
use slat::mmu::tdp::{Limits, MapRequest, Tables, Unobserved};
use slat::mmu::walk::second::TdpStage;
use slat::mmu::walk::tlb::{AddressSpaceId, Context, Pcid, Tlb, TlbAccess};
use slat::mmu::walk::{ErrorCode, GuestPaging};

use super::{ADDRESS, Flat, guest, index, load};
use crate::side::Seen;
use crate::tree::{Values, linked};

/// Where the second stage puts a page of the guest; the guest's tables stay where they are.
pub(super) const DISTANCE: u64 = 7;

/// What the second stage maps: the guest's tables, then its pages.
fn mapped(tables: &Flat, pages: impl Iterator<Item = u64>) -> impl Iterator<Item = (u64, u64)> {
    let own = (0..tables.tables()).map(|gfn| (gfn, gfn));
    own.chain(pages.map(|gfn| (gfn, gfn + DISTANCE)))
}

/// A guest behind the tables of the TDP MMU.
pub(super) struct Own {
    pub(super) tables: Tables<Ept>,
    pub(super) reader: Reader,
    pub(super) root: TableId,
    pub(super) context: Context,
    /// The guest's tables, where the second stage puts them.
    pub(super) memory: Vec<u64>,
    pub(super) paging: GuestPaging,
    pub(super) tlb: Tlb,
}

impl Own {
    pub(super) fn new(guest_tables: &Flat, pages: impl Iterator<Item = u64>) -> Self {
        let host = Host::ept(46);
        let limits = Limits {
            tables: 1 << 16,
            readers: 1,
        };
        let tables = Tables::with_limits(&host, limits);
        let mut reader = tables.reader().expect("the first");
        let mut locked = tables.shared(&mut reader, Unobserved);
        let role = root_role_for_tdp(&VcpuState::default(), &host.tdp().expect("EPT"));
        let root = locked.acquire_root(role).expect("room").root();
        let root = locked.root_table(root).expect("just made");
        for (gfn, pfn) in mapped(guest_tables, pages) {
            let request = MapRequest::page(Gfn::new(gfn), PageSize::Size4K, Pfn::new(pfn));
            let _mapped = locked.map(root, &request).expect("room");
        }
        drop(locked);
        Self {
            tables,
            reader,
            root,
            context: Context {
                root,
                role,
                space: AddressSpaceId(1),
                pcid: Pcid::default(),
            },
            memory: guest_tables.words.clone(),
            paging: guest(),
            tlb: Tlb::default(),
        }
    }

    /// The whole walk.
    pub(super) fn walk(&mut self, address: u64) -> u64 {
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        let mut stage = TdpStage::new(&mut locked, self.root);
        let found = self.paging.walk(
            self.memory.as_slice(),
            &mut stage,
            &mut (),
            Gva::new(address),
            ErrorCode::READ,
        );
        found.map_or(0, |found| found.address.raw())
    }

    /// An access through the caches.
    #[inline]
    pub(super) fn access(&mut self, address: u64) -> Option<TlbAccess> {
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        let what = (Gva::new(address), ErrorCode::READ);
        let memory = self.memory.as_slice();
        let found = self
            .tlb
            .access(&self.context, &self.paging, memory, &mut locked, what);
        found.ok()
    }

    /// What is kept about an address; no lock is taken.
    #[inline]
    pub(super) fn lookup(&self, address: u64) -> Option<u64> {
        let (address, access) = (Gva::new(address), ErrorCode::READ);
        let found = self
            .tlb
            .lookup::<Ept>(&self.context, &self.paging, address, access);
        found.map(slat::memslot::Hpa::raw)
    }
}

/// The second stage of floors: tables in slat's own arena with slat's own entries, found by number. Nothing is checked.
pub(super) struct Numbered {
    arena: Arena<()>,
    values: Values,
    root: TableId,
}

impl Numbered {
    fn new(guest_tables: &Flat, pages: impl Iterator<Item = u64>) -> Self {
        let values = Values::new();
        let arena = Arena::new(values.absent, 1 << 16);
        let root = arena.allocate().expect("the first table");
        let own = Self {
            arena,
            values,
            root,
        };
        for (gfn, pfn) in mapped(guest_tables, pages) {
            own.map(gfn, pfn);
        }
        own
    }

    fn map(&self, gfn: u64, pfn: u64) {
        let mut table = self.root;
        for level in [3, 2, 1] {
            let entry = &self.arena.table(table)[index(gfn, level)];
            table = linked(entry.load(Ordering::Relaxed)).unwrap_or_else(|| {
                let new = self.arena.allocate().expect("room");
                entry.store(self.values.link_to(new), Ordering::Relaxed);
                new
            });
        }
        let leaf = self.values.entry(Seen::Page(pfn));
        self.arena.table(table)[index(gfn, 0)].store(leaf, Ordering::Relaxed);
    }

    /// The table of level 1 for an address.
    #[inline]
    pub(super) fn last_table(&self, gpa: u64) -> TableId {
        let mut table = self.root;
        for level in [3, 2, 1] {
            let entry = &self.arena.table(table)[index(gpa >> 12, level)];
            table = below(entry.load(Ordering::Acquire));
        }
        table
    }

    /// Where an address is, by the table of level 1 for it.
    #[inline]
    pub(super) fn leaf(&self, table: TableId, gpa: u64) -> u64 {
        let entry = self.arena.table(table)[index(gpa >> 12, 0)].load(Ordering::Acquire);
        entry & ADDRESS | gpa & 0xfff
    }

    /// Four loads.
    #[inline]
    fn load(&self, gpa: u64) -> u64 {
        self.leaf(self.last_table(gpa), gpa)
    }
}

/// The table that a link leads to.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "tables are few")]
fn below(link: u64) -> TableId {
    TableId::new(((link & ADDRESS) >> 12) as u32)
}

/// A guest behind such tables, with the lock that slat takes.
pub(super) struct Floor {
    pub(super) second: Numbered,
    pub(super) reader: Reader,
    pub(super) memory: Vec<u64>,
    _epochs: Epochs,
}

impl Floor {
    pub(super) fn new(guest_tables: &Flat, pages: impl Iterator<Item = u64>) -> Self {
        let epochs = Epochs::new(1);
        Self {
            second: Numbered::new(guest_tables, pages),
            reader: epochs.reader().expect("the first"),
            memory: guest_tables.words.clone(),
            _epochs: epochs,
        }
    }

    /// 24 loads.
    #[inline]
    pub(super) fn load(&mut self, address: u64) -> u64 {
        let _pin = self.reader.pin();
        let mut table = 0;
        for shift in [39, 30, 21, 12] {
            let gpa = (table & ADDRESS) + ((address >> shift & 511) << 3);
            table = word(&self.memory, self.second.load(gpa));
        }
        self.second.load(table & ADDRESS | address & 0xfff)
    }
}

/// The word at an address.
#[inline]
pub(super) fn word(words: &[u64], address: u64) -> u64 {
    words[usize::try_from(address >> 3).unwrap_or(usize::MAX)]
}

/// 24 loads from one buffer in which the second stage lies behind the guest's tables; no lock.
pub(super) struct InOneBuffer {
    words: Vec<u64>,
    root: u64,
}

impl InOneBuffer {
    pub(super) fn new(guest_tables: &Flat, pages: impl Iterator<Item = u64>) -> Self {
        let mut second = Flat::new(0x337);
        for (gfn, pfn) in mapped(guest_tables, pages) {
            second.map(gfn, pfn);
        }
        let base = guest_tables.words.len() as u64 / 512;
        let mut words = guest_tables.words.clone();
        let entries = second.words.iter().enumerate();
        words.extend(entries.map(|(place, entry)| match *entry {
            0 => 0,
            entry if second.levels[place / 512] == 0 => entry,
            entry => entry + (base << 12),
        }));
        Self {
            words,
            root: base << 12,
        }
    }

    #[inline]
    pub(super) fn load(&self, address: u64) -> u64 {
        let mut table = 0;
        for shift in [39, 30, 21, 12] {
            let gpa = (table & ADDRESS) + ((address >> shift & 511) << 3);
            let hpa = load(&self.words, self.root, gpa);
            table = word(&self.words, hpa);
        }
        load(&self.words, self.root, table & ADDRESS | address & 0xfff)
    }
}
