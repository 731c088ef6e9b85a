//! Faults from the exit to the entry, by the kernel's rules.
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod apic;
mod fast;
mod nx;
mod outcomes;
mod parts;
mod prefault;
mod races;
mod sizes;

use slat_memslot::{
    AsId, Gfn, GfnRange, Memory, PageSize, Pages, Profile, Region, Slot, SlotFlags, SlotKey, VmType,
};

use super::*;
use crate::host::Host;
use crate::role::{VcpuState, root_role_for_tdp};
use crate::roots::RootId;
use crate::spte::{Format, NxHugePages, Pfn, PfnKind};
use crate::table::{Reader, TableId};
use crate::tdp::{Found, Tables, Unobserved};

/// From a guest frame to its page: a multiple of 1 GiB.
const PFN: u64 = 0x10_0000;

/// Pages, all alike.
struct SamePages {
    host: HostPage,
    file: Option<FilePage>,
}

impl Backing for SamePages {
    fn host_page(&mut self, _: &Slot, gfn: Gfn, _: bool) -> HostPage {
        match self.host {
            HostPage::Page {
                size,
                writable,
                kind,
                ..
            } => HostPage::Page {
                pfn: Pfn::new(gfn.raw() + PFN),
                size,
                writable,
                kind,
            },
            other => other,
        }
    }

    fn file_page(&mut self, _: &Slot, gfn: Gfn) -> FilePage {
        let size = PageSize::Size4K;
        let pfn = Pfn::new(gfn.raw() + PFN);
        self.file.unwrap_or(FilePage::Page { pfn, size })
    }
}

/// A VM with one vCPU, and the pages behind its slots.
struct World<F: Format> {
    tables: Tables<F>,
    reader: Reader,
    root: RootId,
    memory: Memory,
    backing: SamePages,
    invalidation: Invalidation,
    settings: Settings,
    mmio: MmioCache,
}

impl<F: Format> World<F> {
    fn new(host: &Host) -> Self {
        Self::of_type(host, VmType::Default)
    }

    fn of_type(host: &Host, vm_type: VmType) -> Self {
        let (tables, reader, root) = with_root(Tables::new(host));
        Self {
            tables,
            reader,
            root,
            memory: Memory::new(Profile::latest(), vm_type),
            backing: SamePages {
                host: HostPage::Page {
                    pfn: Pfn::new(0),
                    size: PageSize::Size4K,
                    writable: true,
                    kind: PfnKind::Memory,
                },
                file: None,
            },
            invalidation: Invalidation::default(),
            settings: Settings::default(),
            mmio: MmioCache::default(),
        }
    }

    /// Puts other tables in the place of its own.
    fn set_tables(&mut self, tables: Tables<F>) {
        (self.tables, self.reader, self.root) = with_root(tables);
    }

    /// With host pages of this size.
    fn backed_by(mut self, size: PageSize) -> Self {
        self.set_backing(size, true);
        self
    }

    fn set_backing(&mut self, size: PageSize, writable: bool) {
        let (pfn, kind) = (Pfn::new(0), PfnKind::Memory);
        self.backing.host = HostPage::Page {
            pfn,
            size,
            writable,
            kind,
        };
    }

    /// With a slot whose host addresses are as aligned as its frames.
    fn with_slot(mut self, first: u64, pages: u64, flags: SlotFlags) -> Self {
        self.set_slot(first, pages, flags);
        self
    }

    fn set_slot(&mut self, first: u64, pages: u64, flags: SlotFlags) {
        let (gpa, hva) = (first << 12, 0x7000_0000_0000 + (first << 12));
        self.set_region(Region::new(SlotKey::normal(1), gpa, pages << 12, hva).with_flags(flags));
    }

    fn set_region(&mut self, region: Region) {
        let _effects = self.memory.set_region(&region).unwrap();
    }

    /// An invalidation begins; its range may follow.
    fn begin(&mut self, range: Option<GfnRange>) {
        let held = self.tables.exclusive(Unobserved);
        self.invalidation.begin(&held);
        if let Some(range) = range {
            self.invalidation.add(&held, range);
        }
    }

    fn add(&mut self, range: GfnRange) {
        let held = self.tables.exclusive(Unobserved);
        self.invalidation.add(&held, range);
    }

    fn end(&mut self) {
        let held = self.tables.exclusive(Unobserved);
        self.invalidation.end(&held);
    }

    fn handle(&mut self, fault: &Fault) -> Handled {
        let mut env = Env {
            memory: &self.memory,
            backing: &mut self.backing,
            invalidation: &self.invalidation,
            settings: self.settings,
            mmio: &mut self.mmio,
            shadow: NotTracked,
        };
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        locked.page_fault(self.root, fault, &mut env)
    }

    fn fault(&mut self, gfn: u64, kind: Kind) -> Handled {
        self.handle(&Fault::new(Gfn::new(gfn), kind))
    }

    fn prefault(&mut self, gfn: u64, left: u64) -> Result<Prefault, PrefaultError> {
        let mut env = Env {
            memory: &self.memory,
            backing: &mut self.backing,
            invalidation: &self.invalidation,
            settings: self.settings,
            mmio: &mut self.mmio,
            shadow: NotTracked,
        };
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        locked.prefault(self.root, Gfn::new(gfn), Pages::new(left), &mut env)
    }

    fn table(&self) -> TableId {
        self.tables.roots().payload(self.root).unwrap()
    }

    fn find(&mut self, gfn: u64) -> Found<F> {
        let table = self.table();
        let locked = self.tables.shared(&mut self.reader, Unobserved);
        locked.find(table, Gfn::new(gfn))
    }

    /// Whether a frame is mapped so that the guest can write.
    fn is_writable(&mut self, gfn: u64) -> bool {
        let found = self.find(gfn);
        found.spte.is_leaf(found.level) && found.spte.is_writable()
    }
}

/// Tables with the ordinary root.
fn with_root<F: Format>(tables: Tables<F>) -> (Tables<F>, Reader, RootId) {
    let mut reader = tables.reader().unwrap();
    let tdp = tables.codec().host().tdp().unwrap();
    let role = root_role_for_tdp(&VcpuState::default(), &tdp);
    let mut locked = tables.shared(&mut reader, Unobserved);
    let root = locked.acquire_root(role).unwrap().root();
    drop(locked);
    (tables, reader, root)
}

/// A fault on an entry that was there.
fn on_present(gfn: u64, kind: Kind) -> Fault {
    Fault {
        present: Present::Yes,
        ..Fault::new(Gfn::new(gfn), kind)
    }
}

fn range(start: u64, end: u64) -> GfnRange {
    GfnRange::between(Gfn::new(start), Gfn::new(end)).unwrap()
}
