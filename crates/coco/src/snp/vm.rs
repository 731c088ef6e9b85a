//! A guest with SNP: its memory, nested tables, and the locks around them.

use std::collections::BTreeMap;
use std::sync::Arc;

use slat_memslot::{AsId, Attributes, Gfn, GfnRange, Memory, Profile, Region, SlotKey, VmType};
use slat_mmu::fault::Invalidation;
use slat_mmu::host::Host;
use slat_mmu::role::{VcpuState, root_role_for_tdp};
use slat_mmu::roots::RootId;
use slat_mmu::spte::{Npt, Pfn};
use slat_mmu::table::Reader;
use slat_mmu::tdp::{Limits, Tables, Uninterrupted, Unobserved, ZapLeafs};
use thiserror::Error;

use super::frames::{Found, Frames, Key, Value};
use super::gmem::{File, Invalidated, gmem_invalidate};
use super::policy::RmpFaultPolicy;
use crate::psc::Direction;
use crate::rmp::{Asid, Fault, GuestCpu, Rmp, RmpSize, RmpState, Vmpl};
use crate::sync::{Mutex, RwLock, lock, read, write};

/// What a VM is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnpSettings {
    /// The guest's ASID.
    pub asid: Asid,
    /// What becomes of accesses that do not fit.
    pub policy: RmpFaultPolicy,
    /// Size of the file's folios. 4 KiB in 6.12.
    pub folio: RmpSize,
    /// Guest frames: one slot from 0 on.
    pub frames: u64,
}

impl SnpSettings {
    /// A guest of so many frames, under KVM's rules, with folios of 4 KiB.
    pub const fn new(asid: Asid, frames: u64) -> Self {
        Self {
            asid,
            policy: RmpFaultPolicy::Upstream,
            folio: RmpSize::Size4K,
            frames,
        }
    }
}

/// Why there is no such VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum SnpVmError {
    /// The guest has no frame, or more than a slot.
    #[error("a guest of {0:#x} frames")]
    Frames(u64),
    /// The ASID is the host's.
    #[error("ASID 0 is the host's")]
    HostAsid,
    /// The host has too few frames from the first one on.
    #[error("the host has frames up to {0:?} only")]
    HostFrames(Pfn),
    /// No place is left for a vCPU.
    #[error("there are too many vCPUs")]
    TooManyVcpus,
}

/// The tables and what faults have to watch, behind `mmu_lock`.
#[derive(Debug)]
pub(super) struct Mmu {
    pub(super) tables: Tables<Npt>,
    pub(super) invalidation: Invalidation,
}

impl Mmu {
    /// Begins an invalidation and takes the leaves out.
    fn begin(&mut self, range: GfnRange) {
        let held = &self.tables.exclusive(Unobserved);
        self.invalidation.begin(held);
        self.invalidation.add(held, range);
        self.zap(range);
    }

    /// It is over.
    fn end(&mut self) {
        let held = &self.tables.exclusive(Unobserved);
        self.invalidation.end(held);
    }

    pub(super) fn zap(&mut self, range: GfnRange) {
        let mut zap = ZapLeafs::of_address_space(AsId::NORMAL, range);
        let _whole = zap.run(&mut self.tables.exclusive(Unobserved), &mut Uninterrupted);
    }
}

/// A vCPU: where it stands in the tables, and its privilege level.
#[derive(Debug)]
pub struct SnpVcpu {
    pub(super) reader: Reader,
    pub(super) root: RootId,
    pub(super) cpu: GuestCpu,
}

impl SnpVcpu {
    /// Runs at another privilege level from now on.
    pub const fn set_vmpl(&mut self, vmpl: Vmpl) {
        self.cpu.vmpl = vmpl;
    }
}

/// What a conversion does to the pages that the guest leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hole {
    /// They are freed: a hole is punched into the file, or the shared pages are discarded.
    Punched,
    /// They stay, and so do their contents, for whenever the guest comes back.
    Kept,
}

/// A guest with SNP.
///
/// All methods take `&self`: vCPUs and the VMM's threads run side by side. Locks, outermost first, as in KVM: `slots_lock`,
/// the file's invalidate lock, references of its pages, `mmu_lock`. The reverse map is changed under the file's lock when pages are prepared and
/// freed, and under none by PSMASH.
///
/// There is no TLB: an access goes through the tables, whole, with `mmu_lock` held for reading.
#[derive(Debug)]
pub struct SnpVm {
    pub(super) settings: SnpSettings,
    pub(super) rmp: Arc<Rmp>,
    pub(super) slots_lock: Mutex<()>,
    pub(super) memory: RwLock<Memory>,
    pub(super) file: Mutex<File>,
    /// References of the file's pages, all in one: held for reading by who uses a page, for writing by who frees some.
    pub(super) references: RwLock<()>,
    /// Pages of the slot's host memory.
    pub(super) shared: Mutex<BTreeMap<Gfn, Pfn>>,
    pub(super) frames: Mutex<Frames>,
    pub(super) mmu: RwLock<Mmu>,
}

const LIMITS: Limits = Limits {
    tables: 512,
    readers: 16,
};

impl SnpVm {
    /// A VM whose pages are the host's frames from `first` on.
    ///
    /// # Errors
    /// See [`SnpVmError`].
    ///
    /// # Panics
    /// Not in practice: the built-in profile knows SNP, and the slot is a plain one.
    pub fn new(settings: SnpSettings, rmp: Arc<Rmp>, first: Pfn) -> Result<Self, SnpVmError> {
        if settings.asid.is_host() {
            return Err(SnpVmError::HostAsid);
        }
        if settings.frames == 0 || settings.frames > 1 << 20 {
            return Err(SnpVmError::Frames(settings.frames));
        }
        if first >= rmp.end() {
            return Err(SnpVmError::HostFrames(rmp.end()));
        }
        let tables = Tables::with_limits(&Host::npt(48), LIMITS);
        Ok(Self {
            memory: RwLock::new(memory_of(&settings)),
            settings,
            slots_lock: Mutex::new(()),
            file: Mutex::new(File::default()),
            references: RwLock::new(()),
            shared: Mutex::new(BTreeMap::new()),
            frames: Mutex::new(Frames::new(first, rmp.end())),
            rmp,
            mmu: RwLock::new(Mmu {
                tables,
                invalidation: Invalidation::default(),
            }),
        })
    }

    /// The settings.
    pub const fn settings(&self) -> &SnpSettings {
        &self.settings
    }

    /// The host's reverse map.
    pub fn rmp(&self) -> &Rmp {
        &self.rmp
    }

    /// The guest's frames.
    ///
    /// # Panics
    /// Never: there is one at least.
    pub fn range(&self) -> GfnRange {
        GfnRange::between(Gfn::new(0), Gfn::new(self.settings.frames)).expect("there are frames")
    }

    /// A vCPU at VMPL0.
    ///
    /// # Errors
    /// There are too many.
    ///
    /// # Panics
    /// Never: NPT hosts have two-dimensional paging.
    pub fn create_vcpu(&self) -> Result<SnpVcpu, SnpVmError> {
        let mmu = read(&self.mmu);
        let mut reader = mmu.tables.reader().ok_or(SnpVmError::TooManyVcpus)?;
        let tdp = mmu.tables.codec().host().tdp().expect("the host has NPT");
        let role = root_role_for_tdp(&VcpuState::default(), &tdp);
        let root = mmu
            .tables
            .shared(&mut reader, Unobserved)
            .acquire_root(role)
            .map_err(|_| SnpVmError::TooManyVcpus)?
            .root();
        let cpu = GuestCpu {
            asid: self.settings.asid,
            vmpl: Vmpl::Vmpl0,
        };
        Ok(SnpVcpu { reader, root, cpu })
    }

    /// Whether the attributes say that a frame is private.
    pub fn is_private(&self, gfn: Gfn) -> bool {
        read(&self.memory).is_private(gfn)
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`: whether anything changed. Frames outside the slot do not count.
    ///
    /// In KVM's order: the old kind's leaves go while an invalidation is under way, then the attributes change, then it ends.
    pub fn set_attributes(&self, range: GfnRange, to: Direction) -> bool {
        let _slots = lock(&self.slots_lock);
        self.set_attributes_locked(range, to)
    }

    fn set_attributes_locked(&self, range: GfnRange, to: Direction) -> bool {
        let Some(range) = range.intersection(self.range()) else {
            return false;
        };
        let attributes = match to {
            Direction::ToPrivate => Attributes::PRIVATE,
            Direction::ToShared => Attributes::empty(),
        };
        let same = read(&self.memory).attributes().has(range, attributes);
        if same || !self.settings.policy.has_file() {
            return false;
        }
        write(&self.mmu).begin(range);
        let set = write(&self.memory).set_attributes(
            range.start().gpa().raw(),
            range.pages().bytes(),
            attributes.bits(),
            0,
        );
        write(&self.mmu).end();
        set.is_ok()
    }

    /// `fallocate` with `FALLOC_FL_PUNCH_HOLE` on the file: what is in the range is freed, the reverse map first.
    pub fn punch_hole(&self, range: GfnRange) -> Invalidated {
        let mut done = Invalidated::default();
        let mut file = lock(&self.file);
        if file.is_empty(range) {
            return done;
        }
        write(&self.mmu).begin(range);
        let unused = write(&self.references);
        for (_, pfn, pages) in file.take(range) {
            let end = Pfn::new(pfn.raw() + pages);
            if pages == 1 || self.rmp.entry(pfn).size == RmpSize::Size4K {
                lock(&self.frames).adjust_direct_map(pfn, RmpSize::Size4K);
            }
            let one = gmem_invalidate(&self.rmp, pfn, end);
            done.smashed += one.smashed;
            done.huge += one.huge;
            done.small += one.small;
            done.leaked += one.leaked;
            done.immutable += one.immutable;
            let mut frames = lock(&self.frames);
            if one.immutable > 0 {
                frames.note_immutable(pfn);
            }
            let freed = (pfn.raw()..end.raw()).map(Pfn::new);
            // A page that stays assigned would take the host down when it is used again.
            freed
                .filter(|pfn| !self.rmp.entry(*pfn).assigned)
                .for_each(|pfn| frames.free(pfn));
        }
        drop(unused);
        write(&self.mmu).end();
        done
    }

    /// Discards pages of the slot's host memory (`MADV_DONTNEED`, with the MMU notifier it calls).
    pub fn discard_shared(&self, range: GfnRange) {
        write(&self.mmu).begin(range);
        let mut shared = lock(&self.shared);
        let gone: Vec<Gfn> = shared
            .range(range.start()..range.end())
            .map(|(gfn, _)| *gfn)
            .collect();
        for gfn in gone {
            if let Some(pfn) = shared.remove(&gfn) {
                if !self.settings.policy.has_file() && self.rmp.entry(pfn).assigned {
                    // One page for both kinds: the host takes it back from the guest first.
                    let _ =
                        super::gmem::rmpupdate(&self.rmp, pfn, &RmpState::shared(RmpSize::Size4K));
                }
                lock(&self.frames).free(pfn);
            }
        }
        drop(shared);
        write(&self.mmu).end();
    }

    /// A conversion as a VMM makes it: attributes first, then what is left behind; one at a time.
    pub fn convert(&self, range: GfnRange, to: Direction, hole: Hole) {
        let _one_at_a_time = lock(&self.slots_lock);
        self.set_attributes_locked(range, to);
        match (hole, to) {
            (Hole::Kept, _) => {}
            (Hole::Punched, Direction::ToShared) => {
                self.punch_hole(range);
            }
            (Hole::Punched, Direction::ToPrivate) => self.discard_shared(range),
        }
    }

    /// The VMM reads a page of the slot's host memory.
    pub fn host_read(&self, gfn: Gfn) -> Option<Found> {
        let pfn = self.shared_page(gfn)?;
        Some(lock(&self.frames).get(pfn, Key::Plain))
    }

    /// The VMM, or a device, writes a page of the slot's host memory. Whether it could.
    pub fn host_write(&self, gfn: Gfn, value: Value) -> Option<bool> {
        let pfn = self.shared_page(gfn)?;
        Some(lock(&self.frames).host_write(&self.rmp, pfn, value))
    }

    /// The host reads the frame that is behind a private page. It finds noise, or something is wrong.
    pub fn host_peek_private(&self, gfn: Gfn) -> Option<Found> {
        let pfn = lock(&self.file).pfn(gfn)?;
        Some(lock(&self.frames).get(pfn, Key::Plain))
    }

    /// Faults that the host itself has had.
    pub fn oopses(&self) -> Vec<(Pfn, Fault)> {
        lock(&self.frames).oopses().to_vec()
    }

    /// The page of the slot's host memory, made if need be.
    pub(super) fn shared_page(&self, gfn: Gfn) -> Option<Pfn> {
        let mut shared = lock(&self.shared);
        if let Some(pfn) = shared.get(&gfn) {
            return Some(*pfn);
        }
        if !self.range().contains(gfn) {
            return None;
        }
        let pfn = lock(&self.frames).allocate(&self.rmp, RmpSize::Size4K)?;
        shared.insert(gfn, pfn);
        Some(pfn)
    }
}

/// One slot over all frames, with a file if private pages come from one.
fn memory_of(settings: &SnpSettings) -> Memory {
    let profile = Profile::named("linux-6.12").expect("it is built in");
    let size = settings.frames << 12;
    let region = Region::new(SlotKey::normal(0), 0, size, 0x7f00_0000_0000);
    let vm_type = match settings.policy.has_file() {
        true => VmType::Snp,
        false => VmType::Default,
    };
    let mut memory = Memory::new(profile, vm_type);
    let region = match settings.policy.has_file() {
        true => {
            let file = memory.create_gmem(size, 0).expect("the size is right");
            region.with_gmem(file, 0)
        }
        false => region,
    };
    let _effects = memory.set_region(&region).expect("it is the only slot");
    memory
}
