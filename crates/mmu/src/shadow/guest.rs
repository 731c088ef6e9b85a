//! The guest's tables, as whoever shadows them sees them.

use slat_memslot::{AsId, Gfn, Gpa, Level, Memory, Slot};

use crate::fault::Settings;
use crate::role::PageRole;
use crate::walk::{GuestEntry, GuestPaging, TableMemory};

/// What shadow pages follow: a guest's own tables, or those of a nested hypervisor.
#[derive(Debug)]
pub struct Shadowed<'g, M: ?Sized> {
    /// How they are to be read.
    pub paging: &'g GuestPaging,
    /// Where they are.
    pub tables: &'g M,
    /// The slots behind.
    pub memory: &'g Memory,
    /// The VM's settings.
    pub settings: Settings,
    /// The role that the vCPU's MMU wants for its root.
    pub role: PageRole,
}

impl<M: ?Sized> Clone for Shadowed<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: ?Sized> Copy for Shadowed<'_, M> {}

/// How many bytes an entry of the guest's has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntrySize {
    Four,
    Eight,
}

impl EntrySize {
    pub(super) const fn bytes(self) -> u64 {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }
}

/// What synchronising a page needs of the guest.
pub(super) trait GuestTables {
    fn read(&self, at: Gpa, size: EntrySize) -> Option<u64>;
    fn decode(&self, entry: u64, level: Level) -> GuestEntry;
    fn slot(&self, as_id: AsId, gfn: Gfn) -> Option<&Slot>;
    fn generation(&self, as_id: AsId) -> slat_memslot::Generation;
    fn settings(&self) -> Settings;
    fn role(&self) -> Option<PageRole>;
}

impl<M: TableMemory + ?Sized> GuestTables for Shadowed<'_, M> {
    fn read(&self, at: Gpa, size: EntrySize) -> Option<u64> {
        match size {
            EntrySize::Four => self.tables.read_u32(at).map(u64::from),
            EntrySize::Eight => self.tables.read_u64(at),
        }
    }

    fn decode(&self, entry: u64, level: Level) -> GuestEntry {
        self.paging.entry(entry, level)
    }

    fn slot(&self, as_id: AsId, gfn: Gfn) -> Option<&Slot> {
        self.memory.space(as_id).by_gfn(gfn)
    }

    fn generation(&self, as_id: AsId) -> slat_memslot::Generation {
        self.memory.space(as_id).generation()
    }

    fn settings(&self) -> Settings {
        self.settings
    }

    fn role(&self) -> Option<PageRole> {
        Some(self.role)
    }
}

/// No tables: pages that map in a line follow nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoTables;

impl GuestTables for NoTables {
    fn read(&self, _: Gpa, _: EntrySize) -> Option<u64> {
        None
    }

    fn decode(&self, _: u64, _: Level) -> GuestEntry {
        GuestEntry::Absent
    }

    fn slot(&self, _: AsId, _: Gfn) -> Option<&Slot> {
        None
    }

    fn generation(&self, _: AsId) -> slat_memslot::Generation {
        slat_memslot::Generation::new(0)
    }

    fn settings(&self) -> Settings {
        Settings::default()
    }

    fn role(&self) -> Option<PageRole> {
        None
    }
}
