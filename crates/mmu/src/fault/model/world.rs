//! What all threads share.

use std::sync::Arc;

use slat_memslot::{AsId, Gfn, GfnRange, Memory, Profile, VmType};

use super::host::Host as HostPages;
use super::log::Log;
use super::slots::Slots;
use crate::fault::{Invalidation, Settings};
use crate::host::Host;
use crate::role::{PageRole, VcpuState, root_role_for_tdp};
use crate::spte::Format;
use crate::sync::{AtomicBool, Mutex, Ordering, RwLock};
use crate::table::{ENTRIES, Reader};
use crate::tdp::{Limits, Tables};

/// Frames that are accessed: two huge pages.
pub(super) const FRAMES: u64 = 2 * ENTRIES as u64;

/// All of them.
pub(super) fn everything() -> GfnRange {
    GfnRange::between(Gfn::new(0), Gfn::new(FRAMES)).unwrap()
}

/// A VM with one slot.
///
/// Locks are taken in this order: `slots_lock` or `mmap_lock`, the slots, `guest`, `mmu_lock`, then one of the others.
#[derive(Debug)]
pub(super) struct World<F: Format> {
    /// `mmu_lock`.
    pub(super) tables: RwLock<Tables<F>>,
    pub(super) invalidation: Invalidation,
    /// `slots_lock`: slots and logs are changed by one thread at a time.
    pub(super) slots_lock: Mutex<()>,
    pub(super) slots: Slots,
    /// The host changes its own tables one after the other.
    pub(super) mmap_lock: Mutex<()>,
    pub(super) host: Mutex<HostPages>,
    pub(super) log: Mutex<Log>,
    /// Held for reading by a guest while it makes an access, so that who takes it for writing has flushed all TLBs.
    guest: RwLock<()>,
    pub(super) role: PageRole,
    pub(super) settings: Settings,
    /// By thread: its vCPU has to drop obsolete roots.
    obsolete: Vec<AtomicBool>,
}

impl<F: Format> World<F> {
    pub(super) fn new(host: &Host, threads: usize) -> Arc<Self> {
        let limits = Limits {
            tables: 1 << 10,
            readers: threads,
        };
        let memory = Memory::new(Profile::latest(), VmType::Default);
        Arc::new(Self {
            tables: RwLock::new(Tables::with_limits(host, limits)),
            invalidation: Invalidation::default(),
            slots_lock: Mutex::new(()),
            slots: Slots::new(memory),
            mmap_lock: Mutex::new(()),
            host: Mutex::new(HostPages::new()),
            log: Mutex::new(Log::default()),
            guest: RwLock::new(()),
            role: root_role_for_tdp(&VcpuState::default(), &host.tdp().unwrap()),
            settings: Settings::default(),
            obsolete: (0..threads).map(|_| AtomicBool::new(false)).collect(),
        })
    }

    /// A place among the readers.
    pub(super) fn reader(&self) -> Reader {
        self.tables.read().unwrap().reader().unwrap()
    }

    /// The guest makes an access.
    pub(super) fn in_guest<R>(&self, act: impl FnOnce() -> R) -> R {
        let _running = self.guest.read().unwrap();
        act()
    }

    /// All TLBs are flushed: what guests do from now on, they do by the tables as they are.
    pub(super) fn flush(&self) {
        drop(self.guest.write().unwrap());
    }

    /// Asks all vCPUs to drop obsolete roots.
    pub(super) fn request_obsolete(&self) {
        for each in &self.obsolete {
            each.store(true, Ordering::Release);
        }
    }

    /// Whether a vCPU was asked since it was last looked.
    pub(super) fn take_obsolete(&self, number: usize) -> bool {
        self.obsolete[number].swap(false, Ordering::AcqRel)
    }

    /// The address space of everything here.
    pub(super) const fn as_id(&self) -> AsId {
        AsId::NORMAL
    }
}
