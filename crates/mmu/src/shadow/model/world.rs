//! What all threads share.

use std::collections::BTreeSet;
use std::sync::Arc;

use slat_memslot::{AsId, Gfn, GfnRange, Level, Memory, Pages, Profile, SlotFlags, VmType};

use super::guest::Ram;
use super::host::Host as HostPages;
use crate::fault::Invalidation;
use crate::fault::model::Slots;
use crate::host::Host;
use crate::role::{CpuRole, PageRole, RoleLayout, VcpuState, root_role_for_tdp};
use crate::roots::{Request, TdpMmu};
use crate::shadow::{Roots, ShadowLocked, ShadowMmu};
use crate::spte::Npt;
use crate::sync::{AtomicBool, Mutex, Ordering, RwLock, lock};
use crate::tdp::Unobserved;

/// Frames of the slot.
pub(super) const FRAMES: u64 = 0x60;

/// All of them.
pub(super) fn everything() -> GfnRange {
    GfnRange::new(Gfn::new(0), Pages::new(FRAMES)).unwrap()
}

/// Whose tables are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paging {
    /// Nobody's: pages map in a line.
    Off,
    /// The guest's own.
    Long,
}

/// What was written, and what userspace knows of it.
#[derive(Debug)]
pub(super) struct Log {
    /// Frames that the next read of the log gives.
    pub(super) dirty: BTreeSet<u64>,
    /// How often each frame was written to.
    pub(super) content: Vec<u64>,
    /// Userspace's copy of that, while it keeps one.
    pub(super) copy: Option<Vec<u64>>,
}

/// A VM with one slot.
///
/// Locks are taken in this order: `slots_lock` or `mmap_lock`, the slots, `guest`, `mmu_lock`, then one of the others.
#[derive(Debug)]
pub(super) struct World {
    /// `mmu_lock`.
    pub(super) mmu: RwLock<ShadowMmu<Npt>>,
    pub(super) invalidation: Invalidation,
    pub(super) slots_lock: Mutex<()>,
    pub(super) slots: Slots,
    pub(super) mmap_lock: Mutex<()>,
    pub(super) host: Mutex<HostPages>,
    pub(super) log: Mutex<Log>,
    /// Held for reading by a guest while it makes an access, so that who takes it for writing has flushed all TLBs.
    guest: RwLock<()>,
    pub(super) state: VcpuState,
    pub(super) role: PageRole,
    pub(super) ram: Ram,
    /// By thread: its vCPU has to drop obsolete roots.
    obsolete: Vec<AtomicBool>,
}

impl World {
    pub(super) fn new(paging: Paging, threads: usize) -> Arc<Self> {
        let (host, state) = match paging {
            Paging::Off => (Host::npt(40), VcpuState::default()),
            Paging::Long => (Host::shadow(40), Ram::registers()),
        };
        let role = match host.tdp() {
            Some(tdp) => root_role_for_tdp(&state, &tdp),
            None => CpuRole::of(&state, RoleLayout::Baseline).shadow_root_role(),
        };
        let log = Log {
            dirty: BTreeSet::new(),
            content: vec![0; FRAMES as usize],
            copy: None,
        };
        let world = Arc::new(Self {
            mmu: RwLock::new(ShadowMmu::new(&host, TdpMmu::Off)),
            invalidation: Invalidation::default(),
            slots_lock: Mutex::new(()),
            slots: Slots::new(Memory::new(Profile::latest(), VmType::Default)),
            mmap_lock: Mutex::new(()),
            host: Mutex::new(HostPages::new()),
            log: Mutex::new(log),
            guest: RwLock::new(()),
            state,
            role,
            ram: Ram::new(),
            obsolete: (0..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        world.exclusive(|locked| locked.set_limit(64).unwrap());
        world.set_slot(SlotFlags::empty());
        world
    }

    /// The address space of everything here.
    pub(super) const fn as_id(&self) -> AsId {
        AsId::NORMAL
    }

    /// Does something with the lock held for writing, and asks vCPUs for what follows.
    pub(super) fn exclusive<R>(
        &self,
        act: impl FnOnce(&mut ShadowLocked<'_, Npt, Unobserved>) -> R,
    ) -> R {
        let mut mmu = self.mmu.write().unwrap();
        let done = act(&mut mmu.lock(Unobserved));
        if mmu.take_requests().contains(Request::FreeObsoleteRoots) {
            for each in &self.obsolete {
                each.store(true, Ordering::Release);
            }
        }
        done
    }

    /// The guest makes an access.
    pub(super) fn in_guest<R>(&self, act: impl FnOnce() -> R) -> R {
        let _running = self.guest.read().unwrap();
        act()
    }

    /// All TLBs are flushed: what guests do from now on, they do by the pages as they are.
    pub(super) fn flush(&self) {
        drop(self.guest.write().unwrap());
    }

    /// Whether a vCPU was asked since it was last looked.
    pub(super) fn take_obsolete(&self, number: usize) -> bool {
        self.obsolete[number].swap(false, Ordering::AcqRel)
    }

    /// Every leaf maps the page that is behind its frame now, and there is none without a slot.
    pub(super) fn check_leafs(&self, mmu: &ShadowMmu<Npt>) {
        let host = lock(&self.host);
        for (gfn, head) in mmu.frames.all_leafs(self.as_id(), Level::L1) {
            for at in mmu.lists.iter(head) {
                let spte = mmu.pages.get(at.page).entry(at.index);
                let pfn = mmu.codec().pfn(spte);
                assert_eq!(pfn, host.pfn(gfn.raw()), "the page of {gfn}");
            }
        }
    }

    /// When all threads have left: the pages are as they have to be, and userspace's copy is the memory.
    pub(super) fn finish(&self, vcpus: &[&Roots]) {
        self.read_log();
        let has_slot = self.has_slot();
        let mmu = self.mmu.read().unwrap();
        assert_eq!(mmu.audit(vcpus), []);
        self.check_leafs(&mmu);
        assert!(
            has_slot || mmu.stats().pages_4k == 0,
            "leaves without a slot"
        );
        let log = lock(&self.log);
        if let Some(copy) = &log.copy {
            assert_eq!(*copy, log.content, "what was written and not logged");
        }
    }
}
