//! The memory of one VM: everything userspace has asked for so far.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    AddressSpace, AsId, AttributeMap, Attributes, DirtyRing, Effects, GateError, Gfn, GfnRange,
    GmemFile, GmemId, Gpa, Hva, HvaError, Intent, ManualProtect, PageSize, Pages, Profile, Quirks,
    Reason, SlotKey, VmType,
};

mod call;

pub use call::CallResult;

/// A call that the kernel would refuse, or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[error("{reason}")]
pub struct Refusal {
    /// The one cause.
    #[source]
    pub reason: Reason,
    /// What the refused call leaves behind all the same.
    pub effects: Option<Effects>,
}

impl Refusal {
    /// The error number that the ioctl or system call gives.
    #[inline]
    pub fn errno(&self) -> crate::Errno {
        self.reason.errno()
    }
}

impl<E: Into<Reason>> From<E> for Refusal {
    #[inline]
    fn from(reason: E) -> Self {
        Self {
            reason: reason.into(),
            effects: None,
        }
    }
}

/// Whether a VM's ioctls get through at all (`kvm_main.c:kvm_vm_ioctl`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Gate {
    /// They do.
    #[default]
    Open,
    /// Another process than the VM's creator calls.
    OtherProcess,
    /// KVM has marked the VM dead.
    Dead,
}

/// The memory of one VM as its userspace has set it up: slots, guest_memfds, attributes, dirty logging.
///
/// [`Memory::call`] answers any [`Call`](crate::Call); every family also has its own `check_…` methods, which are
/// pure, and methods that carry out. Nothing per page is allocated before a page needs it.
///
/// ```
/// use slat_memslot::{Gpa, Memory, Profile, Region, SlotKey, VmType};
/// let mut memory = Memory::new(Profile::latest(), VmType::Default);
/// let tib = 1 << 40;
/// let effects = memory.set_region(&Region::new(SlotKey::normal(3), tib, tib, 0x1000)).unwrap();
/// let (slot, hva) = memory.hva_of(Default::default(), Gpa::new(tib + 0x5000)).unwrap();
/// assert_eq!((slot.key(), hva.raw()), (SlotKey::normal(3), 0x6000));
/// # let _ = effects;
/// ```
#[derive(Clone, Debug)]
pub struct Memory {
    profile: Arc<Profile>,
    vm_type: VmType,
    gate: Gate,
    spaces: [AddressSpace; 2],
    pub(crate) files: Vec<GmemFile>,
    pub(crate) maps: Vec<crate::gmem::Mapping>,
    pub(crate) attributes: AttributeMap,
    pub(crate) contents: crate::Contents,
    pub(crate) manual_protect: ManualProtect,
    pub(crate) ring_bytes: u64,
    pub(crate) rings: Vec<DirtyRing>,
    pub(crate) disabled_quirks: Quirks,
    pub(crate) hypercall_exits: u64,
    pub(crate) vcpus: u32,
    pub(crate) irqchip: bool,
    pub(crate) finalized: bool,
    pub(crate) shared_bit: Option<u64>,
    pub(crate) page_track_user: bool,
    pub(crate) total_pages: Pages,
    pub(crate) logged_slots: u32,
    /// A slot was made once, or `KVM_SET_NR_MMU_PAGES` called: the limit of shadow pages is not 0.
    pub(crate) shadow_pages: bool,
    pub(crate) version: u64,
}

impl Memory {
    /// A new VM without any memory.
    ///
    /// A TD's shared bit is that of a guest with 48 physical address bits until [`Memory::set_shared_bit`].
    pub fn new(profile: impl Into<Arc<Profile>>, vm_type: VmType) -> Self {
        let profile = profile.into();
        let disabled_quirks = profile.quirks_off_at_birth.get();
        Self {
            vm_type,
            gate: Gate::Open,
            spaces: [
                AddressSpace::new(AsId::NORMAL),
                AddressSpace::new(AsId::SMM),
            ],
            files: Vec::new(),
            maps: Vec::new(),
            attributes: AttributeMap::default(),
            contents: crate::Contents::default(),
            manual_protect: ManualProtect::empty(),
            ring_bytes: 0,
            rings: Vec::new(),
            disabled_quirks,
            hypercall_exits: 0,
            vcpus: 0,
            irqchip: false,
            finalized: false,
            shared_bit: (vm_type == VmType::Tdx).then_some(1 << (47 - crate::PAGE_SHIFT)),
            page_track_user: false,
            total_pages: Pages::new(0),
            logged_slots: 0,
            shadow_pages: false,
            version: fresh_version(),
            profile,
        }
    }

    /// The kernel and host this VM runs on.
    #[inline]
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The VM's type.
    #[inline]
    pub fn vm_type(&self) -> VmType {
        self.vm_type
    }

    /// How many address spaces the VM has.
    #[inline]
    pub fn address_space_count(&self) -> u8 {
        self.profile.address_spaces(self.vm_type)
    }

    /// The address spaces that the VM has.
    pub fn address_spaces(&self) -> impl Iterator<Item = AsId> + use<> {
        (0..self.address_space_count()).filter_map(AsId::new)
    }

    /// The frames behind a range of host addresses, slot by slot: what a notification of the host's memory management is about
    /// (`kvm_main.c:kvm_handle_hva_range`). A page may be behind several.
    ///
    /// ```
    /// use slat_memslot::{Hva, Memory, Profile, Region, SlotKey, VmType};
    /// let mut memory = Memory::new(Profile::latest(), VmType::Default);
    /// memory.set_region(&Region::new(SlotKey::normal(0), 0x1000, 0x2000, 0x7000_0000)).unwrap();
    /// let frames = memory.frames_behind(Hva::new(0x7000_1000), Hva::new(0x7000_9000));
    /// assert_eq!(frames[0].1.to_string(), "[0x2, 0x3)");
    /// ```
    pub fn frames_behind(&self, start: Hva, end: Hva) -> Vec<(AsId, GfnRange)> {
        let mut found = Vec::new();
        for as_id in self.address_spaces() {
            let slots = self.space(as_id).by_hva(start, end);
            found.extend(slots.map(|(_, frames)| (as_id, frames)));
        }
        found
    }

    /// The slots of an address space; one that the VM does not have is empty.
    #[inline]
    pub fn space(&self, as_id: AsId) -> &AddressSpace {
        // By a jump, not by an index: who foresees the jump searches the slots before it is known whose root asks for them.
        match as_id {
            AsId::NORMAL => &self.spaces[AsId::NORMAL.index()],
            _ => self.smm_space(),
        }
    }

    #[cold]
    #[inline(never)]
    fn smm_space(&self) -> &AddressSpace {
        &self.spaces[AsId::SMM.index()]
    }

    /// The slot that an ioctl's 32-bit `slot` names.
    pub fn slot(&self, slot: u32) -> Option<&crate::Slot> {
        let as_id = u8::try_from(slot >> 16).ok().and_then(AsId::new)?;
        let id = crate::SlotId::new(crate::set_region::low_half(slot));
        self.space(as_id).by_id(id)
    }

    /// The address space that the upper half of an ioctl's `slot` names, the normal one when it names none.
    pub(crate) fn space_of(&self, slot: u32) -> AsId {
        let index = u8::try_from(slot >> 16)
            .ok()
            .filter(|index| *index < self.address_space_count());
        index.and_then(AsId::new).unwrap_or(AsId::NORMAL)
    }

    #[inline]
    pub(crate) fn space_mut(&mut self, as_id: AsId) -> &mut AddressSpace {
        &mut self.spaces[as_id.index()]
    }

    /// Pages of all slots of all address spaces (`nr_memslot_pages`).
    pub fn total_pages(&self) -> Pages {
        self.total_pages
    }

    /// How many slots are logged (`nr_memslots_dirty_logging`).
    pub fn logged_slots(&self) -> u32 {
        self.logged_slots
    }

    /// The slot and host address behind a guest-physical address.
    pub fn hva_of(&self, as_id: AsId, gpa: Gpa) -> Option<(&crate::Slot, Hva)> {
        let slot = self.space(as_id).by_gfn(gpa.gfn())?;
        let page = slot.hva_of(gpa.gfn())?;
        Some((slot, Hva::new(page.raw() + gpa.raw() % crate::PAGE_SIZE)))
    }

    /// The host address for an access to a guest-physical address, as KVM's own accesses find it (`__gfn_to_hva_many`).
    ///
    /// # Errors
    /// No slot holds the address, or the slot is read-only and the access writes.
    pub fn hva_for(&self, as_id: AsId, gpa: Gpa, intent: Intent) -> Result<Hva, HvaError> {
        let (slot, hva) = self.hva_of(as_id, gpa).ok_or(HvaError::Bad)?;
        match intent {
            Intent::Write if slot.is_readonly() => Err(HvaError::ReadOnly),
            Intent::Read | Intent::Write => Ok(hva),
        }
    }

    /// The guest frames that a range of a guest_memfd backs, by slot: what punching a hole there unmaps
    /// (`kvm_gmem_invalidate_begin`).
    ///
    /// ```
    /// use slat_memslot::{Gfn, GfnRange, Memory, Pages, Profile, Region, SlotKey, VmType};
    /// let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
    /// let file = memory.create_gmem(0x10000, 0).unwrap();
    /// let region = Region::new(SlotKey::normal(1), 0x100000, 0x8000, 0).with_gmem(file, 0x4000);
    /// let _effects = memory.set_region(&region).unwrap();
    /// let backed: Vec<_> = memory.frames_of_file(file, 0, 0x6000).collect();
    /// let frames = GfnRange::new(Gfn::new(0x100), Pages::new(2)).unwrap();
    /// assert_eq!(backed, [(SlotKey::normal(1), frames)]);
    /// ```
    pub fn frames_of_file(
        &self,
        id: GmemId,
        offset: u64,
        len: u64,
    ) -> impl Iterator<Item = (SlotKey, GfnRange)> + '_ {
        let (start, end) = (
            offset / crate::PAGE_SIZE,
            offset.saturating_add(len).div_ceil(crate::PAGE_SIZE),
        );
        let bindings = self.gmem_file(id).into_iter().flat_map(GmemFile::bindings);
        bindings.filter_map(move |(first, behind, key)| {
            let base = self.space(key.as_id).by_id(key.id)?.range().start();
            let from = base + Pages::new(start.max(first) - first);
            let to = base + Pages::new(end.min(behind).checked_sub(first)?);
            Some((key, GfnRange::between(from, to)?))
        })
    }

    /// A guest_memfd of this VM, open or closed.
    pub fn gmem_file(&self, id: GmemId) -> Option<&GmemFile> {
        self.files.get(id.index())
    }

    /// How many guest_memfds were ever made.
    pub fn gmem_files(&self) -> usize {
        self.files.len()
    }

    /// The file behind a mapping that was not unmapped, where the mapping lies, and where in the file it begins.
    pub fn gmem_map(&self, id: crate::MapId) -> Option<(GmemId, core::ops::Range<Hva>, u64)> {
        let mapping = self.maps.get(id.index()).filter(|at| at.live)?;
        let start = self.address_of_map(id.index()).raw();
        let end = start.saturating_add(mapping.len.next_multiple_of(crate::PAGE_SIZE));
        Some((mapping.file, Hva::new(start)..Hva::new(end), mapping.offset))
    }

    /// How many mappings of guest_memfds were ever made.
    pub fn gmem_maps(&self) -> usize {
        self.maps.len()
    }

    pub(crate) fn gmem_file_mut(&mut self, id: GmemId) -> Option<&mut GmemFile> {
        self.files.get_mut(id.index())
    }

    /// What is private now, as the VM's attributes say.
    pub fn attributes(&self) -> &AttributeMap {
        &self.attributes
    }

    /// The attributes of one frame.
    pub fn attributes_of(&self, gfn: Gfn) -> Attributes {
        self.attributes.get(gfn)
    }

    /// Whether a huge page at `gfn` may be mapped: alignment, write tracking and uniform attributes allow it
    /// (`lpage_info` is 0).
    pub fn allows_huge(&self, slot: SlotKey, size: PageSize, gfn: Gfn) -> bool {
        let Some(slot) = self.space(slot.as_id).by_id(slot.id) else {
            return false;
        };
        slot.lpage().allows(size, gfn)
            && !(self.vm_type.has_private_memory() && self.is_mixed(slot.range(), size, gfn))
    }

    /// The largest page, of `most` at most, that may be mapped at `gfn`
    /// (`mmu.c:__kvm_mmu_max_mapping_level`).
    pub fn largest_page(&self, slot: SlotKey, gfn: Gfn, most: PageSize) -> PageSize {
        let mut huge = PageSize::HUGE.into_iter().rev();
        huge.find(|size| *size <= most && self.allows_huge(slot, *size, gfn))
            .unwrap_or(PageSize::Size4K)
    }

    /// Whether the VM's attributes say that a frame is private (`kvm_mem_is_private`).
    #[inline]
    pub fn is_private(&self, gfn: Gfn) -> bool {
        self.vm_type.has_private_memory() && self.attributes_of(gfn).contains(Attributes::PRIVATE)
    }

    /// Whether the huge page at `gfn` lies inside `slot` and holds more than one kind of page
    /// (`hugepage_test_mixed`).
    pub fn is_mixed(&self, slot: GfnRange, size: PageSize, gfn: Gfn) -> bool {
        self.attributes.is_mixed(slot, size, gfn)
    }

    /// The quirks that are off.
    #[inline]
    pub fn disabled_quirks(&self) -> Quirks {
        self.disabled_quirks
    }

    /// The mode of manual dirty-log protection.
    #[inline]
    pub fn manual_protect(&self) -> ManualProtect {
        self.manual_protect
    }

    /// Whether the VM keeps dirty rings; on x86 it then keeps no bitmaps.
    #[inline]
    pub fn has_rings(&self) -> bool {
        self.ring_bytes != 0
    }

    /// The hypercalls that exit to user space, as a mask of their numbers.
    pub fn hypercall_exits(&self) -> u64 {
        self.hypercall_exits
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// Says that an external page-track user (KVMGT) is attached, or no more.
    pub fn set_page_track_user(&mut self, attached: bool) {
        self.page_track_user = attached;
        self.mark_changed();
    }

    pub(crate) fn has_page_track_user(&self) -> bool {
        self.page_track_user
    }

    /// Says that the VM's launch is finalized (`KVM_SEV_SNP_LAUNCH_FINISH`, `KVM_TDX_FINALIZE_VM`).
    pub fn set_finalized(&mut self) {
        self.finalized = true;
        self.mark_changed();
    }

    /// Sets a TD's shared bit, as a mask over guest frame numbers.
    pub fn set_shared_bit(&mut self, gfn_mask: u64) {
        self.shared_bit = Some(gfn_mask);
        self.mark_changed();
    }

    pub(crate) fn shared_bit(&self) -> Option<u64> {
        self.shared_bit
    }

    /// Whether the vCPUs' roots are pages that KVM's limit of shadow pages counts, and that limit is still 0
    /// (`make_mmu_pages_available`).
    pub(crate) fn lacks_shadow_pages(&self) -> bool {
        let tdp_mmu = self.profile.tdp.get() && self.profile.tdp_mmu.get();
        !self.shadow_pages && !tdp_mmu
    }

    /// Opens or closes the gate before every ioctl.
    pub fn set_gate(&mut self, gate: Gate) {
        self.gate = gate;
        self.mark_changed();
    }

    /// Plans made before now no longer fit.
    pub(crate) fn mark_changed(&mut self) {
        self.version = fresh_version();
    }

    /// The test before every VM and vCPU ioctl.
    ///
    /// # Errors
    /// The VM is dead, or another process calls.
    #[inline]
    pub fn check_gate(&self) -> Result<(), GateError> {
        match self.gate {
            Gate::Open => Ok(()),
            Gate::OtherProcess => Err(GateError::OtherProcess {}),
            Gate::Dead => Err(GateError::Dead {}),
        }
    }
}

/// A number that no state of any VM has had: a plan made for one VM, or for a copy of it that has changed since, never
/// passes for a plan of another.
fn fresh_version() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests;
