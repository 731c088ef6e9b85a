//! A vCPU whose guest accesses memory, and faults as KVM does it: the lock is held for the last part only.

use std::sync::Arc;

use slat_memslot::{Gfn, Gpa, Gva, Memory, PageSize};

use super::guest::{PAGES, Ram, SEEN};
use super::host::Pages;
use super::world::World;
use crate::fault::{Env, Fault, Handled, Kind, MmioCache, NotTracked, Outcome, Present, Settings};
use crate::roots::{Request, RootSet};
use crate::shadow::{
    EmulatedWrite, EntryWritten, GuestWalk, MarkedTrail, Roots, ShadowBegun, ShadowFault, Shadowed,
};
use crate::spte::{Access, Entry};
use crate::sync::lock;
use crate::tdp::{HardwareAccess, Unobserved};
use crate::walk::{ErrorCode, GuestCpu, GuestPaging, Pointers, Privilege, ReadOnly, Unnested};

/// How often an access is tried; the guest would go on.
const TRIES: usize = 4;

/// A word that the guest stores.
type Store = (u64, u64);

/// A thread with a vCPU.
#[derive(Debug)]
pub(super) struct Vcpu {
    world: Arc<World>,
    number: usize,
    pub(super) roots: Roots,
    mmio: MmioCache,
    paging: GuestPaging,
}

impl Vcpu {
    pub(super) fn new(world: &Arc<World>, number: usize) -> Self {
        Self {
            roots: Roots::new(world.role),
            paging: GuestPaging::new(&world.state, &GuestCpu::new(40)),
            mmio: MmioCache::default(),
            world: Arc::clone(world),
            number,
        }
    }

    /// The guest makes an access; it tries a few times.
    pub(super) fn access(&mut self, address: u64, kind: Kind, store: Option<Store>) {
        for _ in 0..TRIES {
            if self.try_access(address, kind, store) {
                return;
            }
        }
    }

    /// The guest changes the last-level entry of a page, and forgets what it knows of the page.
    pub(super) fn edit(&mut self, page: u64, word: u64) {
        let place = (PAGES << 12) + page * 8;
        self.access(SEEN + place, Kind::Write, Some((place, word)));
        let world = Arc::clone(&self.world);
        world.slots.read(|memory| {
            let (roots, guest) = self.parts(&world, memory);
            world.exclusive(|locked| {
                if let Some(root) = roots.current(locked.mmu()) {
                    locked.invalidate_address(root, page << 12, &guest);
                }
            });
        });
    }

    /// The guest flushes its TLB.
    pub(super) fn flush_tlb(&mut self) {
        let world = Arc::clone(&self.world);
        world.slots.read(|memory| {
            self.enter(memory);
            let (roots, guest) = self.parts(&world, memory);
            world.exclusive(|locked| locked.sync_roots(roots, &guest));
        });
    }

    /// Lets go of all roots.
    pub(super) fn drop_roots(&mut self) {
        let world = Arc::clone(&self.world);
        world.exclusive(|locked| locked.free_roots(&mut self.roots, RootSet::all()));
    }

    fn parts<'v>(
        &'v mut self,
        world: &'v World,
        memory: &'v Memory,
    ) -> (&'v mut Roots, Shadowed<'v, Ram>) {
        let guest = Shadowed {
            paging: &self.paging,
            tables: &world.ram,
            memory,
            settings: Settings::default(),
            role: world.role,
        };
        (&mut self.roots, guest)
    }

    /// Serves requests and loads a root, as each entry into the guest does.
    fn enter(&mut self, memory: &Memory) {
        let world = Arc::clone(&self.world);
        if world.take_obsolete(self.number) {
            self.roots.mmu.request(Request::FreeObsoleteRoots);
        }
        let (roots, guest) = self.parts(&world, memory);
        world.exclusive(|locked| {
            while let Some((_, dropped)) = roots.mmu.serve(locked.mmu().roots()) {
                locked.drop_roots(roots, dropped);
            }
            match world.role.is_direct() {
                true => locked.load_direct(roots).unwrap(),
                false => locked
                    .load_shadow(roots, Pointers::default(), &guest)
                    .unwrap(),
            }
            let mut log = lock(&world.log);
            let dirtied = locked.take_dirtied().into_iter();
            log.dirty.extend(dirtied.map(|(_, gfn)| gfn.raw()));
        });
    }

    /// Says whether the access is done.
    fn try_access(&mut self, address: u64, kind: Kind, store: Option<Store>) -> bool {
        let world = Arc::clone(&self.world);
        world.slots.read(|memory| {
            if memory.slot(0).is_none() {
                // There is no memory: userspace does what it does.
                return true;
            }
            self.enter(memory);
            let Some(present) = self.hardware(memory, address, kind, store) else {
                return true;
            };
            let handled = match world.role.is_direct() {
                true => self.direct_fault(memory, address, kind, present),
                false => self.shadow_fault(memory, address, kind, present),
            };
            match handled.outcome {
                Outcome::WriteProtected => self.emulate(store),
                Outcome::Emulate | Outcome::BadPage => {}
                _ => return false,
            }
            true
        })
    }

    /// What hardware makes of an access; `None` if it is done.
    fn hardware(
        &self,
        memory: &Memory,
        address: u64,
        kind: Kind,
        store: Option<Store>,
    ) -> Option<Present> {
        let world = &self.world;
        world.in_guest(|| {
            let mmu = world.mmu.read().unwrap();
            let Some(root) = self.roots.current(&mmu) else {
                return Some(Present::No);
            };
            let access = match kind {
                Kind::Read if world.role.is_direct() => Access::USER,
                Kind::Read => Access::empty(),
                Kind::Write => Access::WRITE,
                Kind::Execute => Access::EXECUTE,
            };
            match mmu.hardware_access(root, address, access) {
                HardwareAccess::Done { .. } => {}
                HardwareAccess::NotPresent => return Some(Present::No),
                HardwareAccess::NotAllowed => return Some(Present::Yes),
                HardwareAccess::Mmio { mmio, .. } => {
                    let generation = memory.space(world.as_id()).generation();
                    let current = mmu.codec().is_mmio_current(&mmio, generation);
                    return (!current).then_some(Present::Reserved);
                }
            }
            let reached = mmu.walk(root, address).unwrap();
            let Entry::Leaf(_) = mmu.codec().decode(reached.spte, reached.level) else {
                panic!("an access went through {reached:?}");
            };
            let pfn = mmu.codec().pfn(reached.spte);
            let gfn = pfn.raw() % (1 << 12);
            assert_eq!(pfn, lock(&world.host).pfn(gfn), "a page that is gone");
            if kind == Kind::Write {
                lock(&world.log).content[gfn as usize] += 1;
            }
            if let Some((place, word)) = store {
                world.ram.set(place, word);
            }
            None
        })
    }

    /// In three parts (`mmu.c:direct_page_fault`).
    fn direct_fault(
        &mut self,
        memory: &Memory,
        address: u64,
        kind: Kind,
        present: Present,
    ) -> Handled {
        let world = Arc::clone(&self.world);
        let mut env = Env {
            memory,
            backing: &mut Pages(&world.host),
            invalidation: &world.invalidation,
            settings: Settings::default(),
            mmio: &mut self.mmio,
            shadow: NotTracked,
        };
        let fault = Fault {
            present,
            ..Fault::new(Gfn::new(address >> 12), kind)
        };
        let begun = {
            let mmu = world.mmu.read().unwrap();
            mmu.begin_direct_fault(&self.roots, &fault, &env, &mut Unobserved)
        };
        let slow = match begun {
            ShadowBegun::Slow(slow) => slow,
            ShadowBegun::Done(handled) => {
                mark(&world, &handled);
                return handled;
            }
        };
        match slow.fault_in(&mut env) {
            Err(outcome) => outcome.into(),
            Ok(found) => world.exclusive(|locked| {
                let (roots, most) = (&self.roots, PageSize::Size4K);
                let handled = locked.finish_direct_fault(roots, &fault, most, &found, &mut env);
                mark(&world, &handled);
                handled
            }),
        }
    }

    /// In three parts, after the guest's own walk (`paging_tmpl.h:page_fault`).
    fn shadow_fault(
        &mut self,
        memory: &Memory,
        address: u64,
        kind: Kind,
        present: Present,
    ) -> Handled {
        let world = Arc::clone(&self.world);
        let mut trail = MarkedTrail::default();
        let wanted = ErrorCode::of(kind, Privilege::Supervisor);
        let at = Gva::new(address);
        let walked = self
            .paging
            .walk(&world.ram, &mut Unnested, &mut trail, at, wanted);
        let Ok(found) = walked else {
            // The guest gets the fault itself.
            return Outcome::BadPage.into();
        };
        let walk = GuestWalk {
            trail: &trail,
            found: &found,
        };
        let fault = ShadowFault {
            address,
            kind,
            privilege: Privilege::Supervisor,
            present,
        };
        let mut mmio = MmioCache::default();
        let mut env = Env {
            memory,
            backing: &mut Pages(&world.host),
            invalidation: &world.invalidation,
            settings: Settings::default(),
            mmio: &mut mmio,
            shadow: NotTracked,
        };
        let begun = {
            let mmu = world.mmu.read().unwrap();
            mmu.begin_shadow_fault(&self.roots, &fault, &walk, &env)
        };
        let slow = match begun {
            ShadowBegun::Slow(slow) => slow,
            ShadowBegun::Done(handled) => return handled,
        };
        let found = match slow.fault_in(&mut env) {
            Ok(found) => found,
            Err(outcome) => return outcome.into(),
        };
        let (roots, guest) = self.parts(&world, memory);
        world.exclusive(|locked| {
            let of = (&walk, &guest);
            let handled = locked.finish_shadow_fault(roots, &fault, of, &found, &mut env);
            mark(&world, &handled);
            handled
        })
    }

    /// KVM carries out a write to a table that it follows: first the memory, then the pages.
    fn emulate(&self, store: Option<Store>) {
        let Some((place, word)) = store else {
            return;
        };
        let world = &self.world;
        world.ram.set(place, word);
        let gpa = Gpa::new(place);
        let gfn = gpa.gfn().raw();
        {
            let mut log = lock(&world.log);
            log.content[gfn as usize] += 1;
            log.dirty.insert(gfn);
        }
        let present = match word {
            0 => EntryWritten::Zero,
            _ => EntryWritten::NotZero,
        };
        let write = EmulatedWrite {
            gpa,
            len: 8,
            present,
        };
        world.exclusive(|locked| locked.track_write(&write));
    }

    /// After a flush of the TLB: what is mapped is what a walk of the guest's own tables finds.
    pub(super) fn check_translations(&mut self, pages: u64) {
        self.flush_tlb();
        let world = Arc::clone(&self.world);
        let mmu = world.mmu.read().unwrap();
        let Some(root) = self.roots.current(&mmu) else {
            return;
        };
        for page in 0..pages {
            let reached = mmu.walk(root, page << 12);
            let Some(leaf) = reached.filter(|at| at.spte.is_leaf(at.level)) else {
                continue;
            };
            let wanted = ErrorCode::of(Kind::Read, Privilege::Supervisor);
            let tables = ReadOnly(&world.ram);
            let found = self.paging.translate(&tables, Gva::new(page << 12), wanted);
            let gfn = found.ok().map(|found| found.gpa.gfn().raw());
            let mapped = mmu.codec().pfn(leaf.spte).raw() % (1 << 12);
            assert_eq!(gfn, Some(mapped), "page {page}");
        }
    }
}

fn mark(world: &World, handled: &Handled) {
    if let Some((_, gfn)) = handled.mark_dirty {
        lock(&world.log).dirty.insert(gfn.raw());
    }
}
