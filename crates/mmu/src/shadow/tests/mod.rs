//! A small VM for tests: a guest with tables of its own in real words of memory, and one without.

mod beside;
mod frames;
mod legacy;
mod nx;
mod random;
mod rules;
mod seed;
mod slow;
mod split;

use std::cell::Cell;

use slat_memslot::{
    Gfn, Gpa, Gva, Level, Memory, PageSize, Profile, Region, Slot, SlotKey, VmType,
};

use super::audit::ShadowViolation;
use super::{
    EmulatedWrite, EntryWritten, GuestWalk, MarkedTrail, ResidentPages, Roots, ShadowFault,
    ShadowMmu, Shadowed,
};
use crate::access::Access;
use crate::fault::{
    Backing, Env, Fault, FilePage, HostPage, Invalidation, Kind, MmioCache, NotTracked, Outcome,
    Present, Settings,
};
use crate::host::Host;
use crate::role::{CpuRole, Cr0, Cr4, Efer, PageRole, RoleLayout, VcpuState, root_role_for_tdp};
use crate::roots::{Request, Requests, TdpMmu};
use crate::spte::{Format, Npt, Pfn, PfnKind};
use crate::tdp::{Event, HardwareAccess};
use crate::walk::{ErrorCode, GuestCpu, GuestPaging, Pointers, Privilege, Unnested};

/// Frames of guest memory.
pub(super) const FRAMES: u64 = 0x800;

/// Where the guest's tables begin; the first is the top one.
const TABLES: u64 = 0x10;

/// Where the guest sees all its memory in small pages.
pub(super) const WINDOW: u64 = 0x4000_0000;

/// Host pages follow guest frames in a line.
pub(super) struct Line {
    size: PageSize,
    writable: bool,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            size: PageSize::Size4K,
            writable: true,
        }
    }
}

const FIRST_PFN: u64 = 0x10_0000;

impl Backing for Line {
    fn host_page(&mut self, _: &Slot, gfn: Gfn, _: bool) -> HostPage {
        HostPage::Page {
            pfn: Pfn::new(FIRST_PFN + gfn.raw()),
            size: self.size,
            writable: self.writable,
            kind: PfnKind::Memory,
        }
    }

    fn file_page(&mut self, _: &Slot, _: Gfn) -> FilePage {
        FilePage::Bad
    }
}

impl ResidentPages for Line {
    fn resident_page(&mut self, _: &Slot, gfn: Gfn) -> Option<(Pfn, PfnKind)> {
        Some((Pfn::new(FIRST_PFN + gfn.raw()), PfnKind::Memory))
    }
}

/// The VM, with one vCPU in supervisor mode.
pub(super) struct World<F: Format> {
    pub(super) mmu: ShadowMmu<F>,
    pub(super) roots: Roots,
    pub(super) state: VcpuState,
    pub(super) memory: Memory,
    pub(super) ram: Vec<Cell<u64>>,
    pub(super) events: Vec<Event<F>>,
    backing: Line,
    mmio: MmioCache,
    settings: Settings,
    pages: GuestPages,
    next_table: u64,
}

/// How the guest pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GuestPages {
    /// In long mode.
    Long,
    /// With PAE: four pointers, and two levels.
    Pae,
    /// With entries of four bytes, and pages of 4 MiB.
    Bits32,
}

impl GuestPages {
    const ALL: [Self; 3] = [Self::Long, Self::Pae, Self::Bits32];

    /// In supervisor mode, with WP and, where there is room for it, NX.
    fn state(self) -> VcpuState {
        let (cr4, efer) = match self {
            Self::Long => (Cr4::PAE, Efer::LME | Efer::LMA | Efer::NX),
            Self::Pae => (Cr4::PAE, Efer::NX),
            Self::Bits32 => (Cr4::PSE, Efer::empty()),
        };
        VcpuState {
            cr0: Cr0::PG | Cr0::PE | Cr0::WP,
            cr3: TABLES << 12,
            cr4,
            efer,
            ..VcpuState::default()
        }
    }

    const fn levels(self) -> &'static [Level] {
        match self {
            Self::Long => &[Level::L4, Level::L3, Level::L2, Level::L1],
            Self::Pae => &[Level::L3, Level::L2, Level::L1],
            Self::Bits32 => &[Level::L2, Level::L1],
        }
    }

    pub(super) const fn entry_bytes(self) -> u8 {
        match self {
            Self::Long | Self::Pae => 8,
            Self::Bits32 => 4,
        }
    }

    fn index(self, address: u64, level: Level) -> u64 {
        let (low, bits) = match self {
            Self::Long | Self::Pae => (level.gfn_shift(), 9),
            Self::Bits32 => (10 * (level as u32 - 1), 10),
        };
        address >> (12 + low) & ((1 << bits) - 1)
    }

    /// What an entry of a level has beside the table that it links. A page-directory pointer is present and nothing else.
    const fn link(self, level: Level) -> u64 {
        match (self, level) {
            (Self::Pae, Level::L3) => 1,
            _ => LINK,
        }
    }
}

fn memory() -> Memory {
    let mut memory = Memory::new(Profile::named("linux-6.12").unwrap(), VmType::Default);
    let ram = Region::new(SlotKey::normal(0), 0, FRAMES << 12, 1 << 40);
    let _ = memory.set_region(&ram).unwrap();
    memory
}

impl<F: Format> World<F> {
    fn new(host: &Host, state: VcpuState, role: PageRole) -> Self {
        let mut mmu = ShadowMmu::new(host, TdpMmu::Off);
        mmu.lock(crate::tdp::Unobserved).set_limit(1000).unwrap();
        Self {
            mmu,
            roots: Roots::new(role),
            state,
            memory: memory(),
            ram: vec![Cell::new(0); usize::try_from(FRAMES * 512).unwrap()],
            events: Vec::new(),
            backing: Line::default(),
            mmio: MmioCache::default(),
            settings: Settings::default(),
            pages: GuestPages::Long,
            next_table: TABLES + 1,
        }
    }

    /// A guest that does not page.
    pub(super) fn direct(host: &Host) -> Self {
        let state = VcpuState::default();
        let role = root_role_for_tdp(&state, &host.tdp().unwrap());
        Self::new(host, state, role)
    }

    pub(super) fn with_host_pages(mut self, size: PageSize) -> Self {
        self.backing.size = size;
        self
    }

    fn env<'e>(
        memory: &'e Memory,
        backing: &'e mut Line,
        invalidation: &'e Invalidation,
        mmio: &'e mut MmioCache,
    ) -> Env<'e, Line> {
        Env {
            memory,
            backing,
            invalidation,
            settings: Settings::default(),
            mmio,
            shadow: NotTracked,
        }
    }

    pub(super) fn audit(&self) -> Vec<ShadowViolation> {
        self.mmu.audit(&[&self.roots])
    }

    /// Serves what was asked for, and loads a root.
    pub(super) fn enter(&mut self) {
        let asked = self.mmu.take_requests();
        if asked.contains(Request::FreeObsoleteRoots) {
            self.roots.mmu.request(Request::FreeObsoleteRoots);
        }
        let mut requests: Requests = self.roots.mmu.requests();
        while requests.pop().is_some() {
            if let Some((_, dropped)) = self.roots.mmu.serve(self.mmu.roots()) {
                let mut locked = self.mmu.lock(&mut self.events);
                locked.drop_roots(&mut self.roots, dropped);
            }
        }
        if self.roots.mmu.role().is_direct() {
            let mut locked = self.mmu.lock(&mut self.events);
            locked.load_direct(&mut self.roots).unwrap();
            return;
        }
        let paging = self.paging();
        let guest = guest_of(&paging, &self.ram, &self.memory, self.roots.mmu.role());
        let pointers = match self.pages {
            GuestPages::Pae => {
                Pointers::load(self.ram.as_slice(), self.state.cr3, &GuestCpu::new(40)).unwrap()
            }
            _ => Pointers::default(),
        };
        let mut locked = self.mmu.lock(&mut self.events);
        locked
            .load_shadow(&mut self.roots, pointers, &guest)
            .unwrap();
    }

    pub(super) fn paging(&self) -> GuestPaging {
        let paging = GuestPaging::new(&self.state, &GuestCpu::new(40));
        paging.with_loaded_pointers(self.ram.as_slice()).unwrap()
    }

    /// An access until it is done. Says whether KVM has to carry it out.
    pub(super) fn access(&mut self, address: u64, kind: Kind) -> Outcome {
        for _ in 0..20 {
            self.enter();
            let root = self.roots.current(&self.mmu).unwrap();
            let direct = self.roots.mmu.role().is_direct();
            let wanted = match (kind, direct) {
                (Kind::Read, false) => Access::empty(),
                (Kind::Read, true) => Access::USER,
                (Kind::Write, _) => Access::WRITE,
                (Kind::Execute, _) => Access::EXECUTE,
            };
            let present = match self.mmu.hardware_access(root, address, wanted) {
                HardwareAccess::Done { .. } => return Outcome::Fixed,
                HardwareAccess::Mmio { .. } => Present::Reserved,
                HardwareAccess::NotPresent => Present::No,
                HardwareAccess::NotAllowed => Present::Yes,
            };
            let outcome = match direct {
                true => self.direct_fault(address, kind, present),
                false => self.shadow_fault(address, kind, present),
            };
            match outcome {
                Outcome::Retry | Outcome::Fixed | Outcome::Spurious => {}
                other => return other,
            }
        }
        panic!("{address:#x} faults for ever");
    }

    fn direct_fault(&mut self, address: u64, kind: Kind, present: Present) -> Outcome {
        let fault = Fault {
            present,
            ..Fault::new(Gpa::new(address).gfn(), kind)
        };
        let invalidation = Invalidation::default();
        let backing = &mut self.backing;
        let mut env = Self::env(&self.memory, backing, &invalidation, &mut self.mmio);
        env.settings = self.settings;
        let (most, out) = (PageSize::Size1G, &mut self.events);
        let mmu = &mut self.mmu;
        mmu.direct_page_fault(&self.roots, &fault, most, &mut env, out)
            .outcome
    }

    fn shadow_fault(&mut self, address: u64, kind: Kind, present: Present) -> Outcome {
        let paging = self.paging();
        let mut trail = MarkedTrail::default();
        let wanted = ErrorCode::of(kind, Privilege::Supervisor);
        let (at, tables) = (Gva::new(address), self.ram.as_slice());
        let Ok(found) = paging.walk(tables, &mut Unnested, &mut trail, at, wanted) else {
            // The guest gets the fault itself.
            return Outcome::BadPage;
        };
        let guest = guest_of(&paging, tables, &self.memory, self.roots.mmu.role());
        let fault = ShadowFault {
            address,
            kind,
            privilege: Privilege::Supervisor,
            present,
        };
        let walk = GuestWalk {
            trail: &trail,
            found: &found,
        };
        let invalidation = Invalidation::default();
        let backing = &mut self.backing;
        let mut env = Self::env(&self.memory, backing, &invalidation, &mut self.mmio);
        let (roots, out) = (&mut self.roots, &mut self.events);
        let mmu = &mut self.mmu;
        mmu.shadow_page_fault(roots, &fault, (&walk, &guest), &mut env, out)
            .outcome
    }

    pub(super) fn touch(&mut self, address: u64) {
        assert_eq!(self.access(address, Kind::Read), Outcome::Fixed);
    }
}

fn guest_of<'g>(
    paging: &'g GuestPaging,
    tables: &'g [Cell<u64>],
    memory: &'g Memory,
    role: PageRole,
) -> Shadowed<'g, [Cell<u64>]> {
    Shadowed {
        paging,
        tables,
        memory,
        settings: Settings::default(),
        role,
    }
}

/// Present, writable, user; and a huge page.
pub(super) const LINK: u64 = 7;
const HUGE: u64 = 0x87;

impl World<Npt> {
    /// A guest in long mode, with WP and NX, that sees all its memory through the window.
    pub(super) fn paged(host: &Host) -> Self {
        Self::paged_as(GuestPages::Long, host)
    }

    pub(super) fn paged_as(pages: GuestPages, host: &Host) -> Self {
        let state = pages.state();
        let role = CpuRole::of(&state, RoleLayout::Baseline).shadow_root_role();
        let mut world = Self::new(host, state, role);
        world.pages = pages;
        for gfn in 0..FRAMES {
            world.map_small(WINDOW + (gfn << 12), gfn);
        }
        world
    }

    /// Where the guest's entry of a level for an address is; missing tables above are made, without the MMU's knowing.
    pub(super) fn entry_of(&mut self, address: u64, level: Level) -> u64 {
        let mut table = self.state.cr3 >> 12;
        for above in self.pages.levels().iter().copied() {
            let bytes = u64::from(self.pages.entry_bytes());
            let place = (table << 12) + self.pages.index(address, above) * bytes;
            if above == level {
                return place;
            }
            if self.word(place) & 1 == 0 {
                self.set_word(place, self.next_table << 12 | self.pages.link(above));
                self.next_table += 1;
            }
            table = self.word(place) >> 12 & 0xf_ffff;
        }
        unreachable!("this guest has no tables of {level:?}");
    }

    /// An entry at a place.
    pub(super) fn word(&self, place: u64) -> u64 {
        let word = self.ram[usize::try_from(place / 8).unwrap()].get();
        match self.pages {
            GuestPages::Bits32 => word >> (place % 8 * 8) & 0xffff_ffff,
            _ => word,
        }
    }

    /// Of entries of four bytes the lower half of `word` counts.
    pub(super) fn set_word(&mut self, place: u64, word: u64) {
        let cell = &self.ram[usize::try_from(place / 8).unwrap()];
        let (mask, shift) = match self.pages {
            GuestPages::Bits32 => (0xffff_ffff, place % 8 * 8),
            _ => (u64::MAX, 0),
        };
        cell.set(cell.get() & !(mask << shift) | (word & mask) << shift);
    }

    pub(super) fn map_small(&mut self, address: u64, gfn: u64) {
        let place = self.entry_of(address, Level::L1);
        self.set_word(place, gfn << 12 | LINK);
    }

    pub(super) fn map_huge(&mut self, address: u64, gfn: u64) {
        let place = self.entry_of(address, Level::L2);
        self.set_word(place, gfn << 12 | HUGE);
    }

    /// The guest writes a word of its memory, through the window.
    pub(super) fn guest_write(&mut self, place: u64, word: u64) {
        match self.access(WINDOW + place, Kind::Write) {
            Outcome::Fixed => self.set_word(place, word),
            Outcome::WriteProtected => {
                self.set_word(place, word);
                let present = match word {
                    0 => EntryWritten::Zero,
                    _ => EntryWritten::NotZero,
                };
                let write = EmulatedWrite {
                    gpa: Gpa::new(place),
                    len: self.pages.entry_bytes(),
                    present,
                };
                self.mmu.lock(&mut self.events).track_write(&write);
            }
            other => panic!("a write to {place:#x} came to {other:?}"),
        }
    }

    /// The guest writes to the last-level table of an address, so that its page falls out of step. `beside` is an address in
    /// the same table that nothing is mapped at.
    pub(super) fn write_own_table(&mut self, beside: u64, address: u64) {
        self.touch(address);
        let place = self.entry_of(beside, Level::L1);
        self.guest_write(place, 0);
    }

    /// The guest flushes its TLB: what is out of step is brought into it.
    pub(super) fn flush_guest_tlb(&mut self) {
        self.enter();
        let paging = self.paging();
        let guest = guest_of(&paging, &self.ram, &self.memory, self.roots.mmu.role());
        let mut locked = self.mmu.lock(&mut self.events);
        locked.sync_roots(&self.roots, &guest);
    }

    /// The guest loads CR3; says whether a root was found in the cache.
    pub(super) fn load_cr3(&mut self, cr3: u64) -> bool {
        self.state.cr3 = cr3;
        let mut locked = self.mmu.lock(&mut self.events);
        let flush = crate::roots::FlushOnReuse::Off;
        locked.new_pgd(&mut self.roots, crate::roots::Pgd::new(cr3), flush)
    }
}
