//! A vCPU whose guest accesses memory, and faults as KVM does it: the lock is not held while a page is found.

use std::sync::Arc;

use slat_memslot::{Gfn, Memory};

use super::host::Pages;
use super::world::World;
use crate::fault::{Begun, Env, Fault, Handled, Kind, MmioCache, NotTracked, Outcome, Present};
use crate::roots::{Request, Root, RootId, RootSet, VcpuMmu};
use crate::spte::{Access, Format};
use crate::sync::lock;
use crate::table::Reader;
use crate::tdp::{HardwareAccess, Unobserved};

/// How often an access is tried; the guest would go on.
const TRIES: usize = 4;

/// A thread with a vCPU.
#[derive(Debug)]
pub(super) struct Vcpu<F: Format> {
    world: Arc<World<F>>,
    number: usize,
    pub(super) reader: Reader,
    mmu: VcpuMmu,
    mmio: MmioCache,
}

/// What hardware makes of an access.
enum Reached {
    Done,
    Fault(Present),
    /// The root is not valid any more: the vCPU is on its way out of the guest.
    Kicked,
}

impl<F: Format> Vcpu<F> {
    pub(super) fn new(world: &Arc<World<F>>, number: usize) -> Self {
        Self {
            world: Arc::clone(world),
            number,
            reader: world.reader(),
            mmu: VcpuMmu::new(world.role),
            mmio: MmioCache::default(),
        }
    }

    /// The guest accesses a frame; it tries a few times.
    pub(super) fn access(&mut self, gfn: Gfn, kind: Kind) {
        for _ in 0..TRIES {
            if self.try_access(gfn, kind) {
                return;
            }
        }
    }

    /// A page is mapped ahead.
    pub(super) fn prefault(&mut self, gfn: Gfn) {
        let fault = Fault {
            prefetch: true,
            ..Fault::new(gfn, Kind::Read)
        };
        let world = Arc::clone(&self.world);
        let root = self.load_root();
        world.slots.read(|memory| {
            let _handled = self.fault(memory, root, &fault);
        });
    }

    /// Says whether the access is done.
    fn try_access(&mut self, gfn: Gfn, kind: Kind) -> bool {
        let world = Arc::clone(&self.world);
        let root = self.load_root();
        world.slots.read(|memory| {
            let present = match self.hardware(memory, root, gfn, kind) {
                Reached::Done => return true,
                Reached::Kicked => return false,
                Reached::Fault(present) => present,
            };
            let fault = Fault {
                present,
                ..Fault::new(gfn, kind)
            };
            // Userspace does what is emulated.
            self.fault(memory, root, &fault).outcome == Outcome::Emulate
        })
    }

    /// Serves requests and loads a root, as each entry into the guest does.
    fn load_root(&mut self) -> RootId {
        if self.world.take_obsolete(self.number) {
            self.mmu.request(Request::FreeObsoleteRoots);
        }
        let tables = self.world.tables.read().unwrap();
        let mut locked = tables.shared(&mut self.reader, Unobserved);
        while let Some((_, dropped)) = self.mmu.serve(tables.roots()) {
            locked.free_roots(dropped);
        }
        let _ = locked.load(&mut self.mmu).unwrap();
        match self.mmu.cache().current() {
            Root::Page(root) => root,
            Root::None | Root::Special(_) => panic!("a root was loaded"),
        }
    }

    fn hardware(&mut self, memory: &Memory, root: RootId, gfn: Gfn, kind: Kind) -> Reached {
        let world = Arc::clone(&self.world);
        world.in_guest(|| {
            let tables = world.tables.read().unwrap();
            let mut locked = tables.shared(&mut self.reader, Unobserved);
            if tables.roots().role(root).unwrap().is_invalid() {
                return Reached::Kicked;
            }
            let table = locked.root_table(root).unwrap();
            let access = match kind {
                Kind::Read => Access::USER,
                Kind::Write => Access::USER | Access::WRITE,
                Kind::Execute => Access::EXECUTE,
            };
            let present = match locked.hardware_access(table, gfn, access) {
                HardwareAccess::Done { became_dirty } => {
                    let logs_itself = tables.codec().host().pml() && became_dirty;
                    note(&world, gfn, kind, logs_itself);
                    return Reached::Done;
                }
                HardwareAccess::NotPresent => Present::No,
                HardwareAccess::NotAllowed => Present::Yes,
                HardwareAccess::Mmio { mmio, .. } => {
                    let generation = memory.space(world.as_id()).generation();
                    match tables.codec().is_mmio_current(&mmio, generation) {
                        true => return Reached::Done,
                        false => Present::Reserved,
                    }
                }
            };
            Reached::Fault(present)
        })
    }

    /// In three parts (`mmu.c:kvm_tdp_mmu_page_fault`).
    fn fault(&mut self, memory: &Memory, root: RootId, fault: &Fault) -> Handled {
        let world = Arc::clone(&self.world);
        let mut env = Env {
            memory,
            backing: &mut Pages(&world.host),
            invalidation: &world.invalidation,
            settings: world.settings,
            mmio: &mut self.mmio,
            shadow: NotTracked,
        };
        let begun = {
            let tables = world.tables.read().unwrap();
            let mut locked = tables.shared(&mut self.reader, Unobserved);
            locked.begin_fault(root, fault, &env)
        };
        let handled = match begun {
            Begun::Done(handled) => handled,
            Begun::Slow(slow) => match slow.fault_in(&mut env) {
                Err(outcome) => outcome.into(),
                Ok(found) => {
                    let tables = world.tables.read().unwrap();
                    let mut locked = tables.shared(&mut self.reader, Unobserved);
                    locked.finish_fault(&found, &env)
                }
            },
        };
        if let Some((_, gfn)) = handled.mark_dirty {
            lock(&world.log).mark(gfn);
        }
        handled
    }

    /// Lets go of all roots.
    pub(super) fn drop_roots(&mut self) {
        let tables = self.world.tables.read().unwrap();
        let mut locked = tables.shared(&mut self.reader, Unobserved);
        let dropped = self.mmu.free(tables.roots(), RootSet::all());
        locked.free_roots(dropped);
    }
}

/// A write was made; hardware that logs modified pages may have logged it.
fn note<F: Format>(world: &World<F>, gfn: Gfn, kind: Kind, by_hardware: bool) {
    let mut log = lock(&world.log);
    if kind == Kind::Write {
        log.wrote(gfn);
    }
    if by_hardware {
        log.mark(gfn);
    }
}
