//! The remaining ioctls that touch the memory layout: vCPUs, interrupt controller, and KVM's own slots.

use crate::{
    AsId, GfnRange, Gpa, Hva, LpageInfo, Memory, Outcome, PAGE_SIZE, Pages, Refusal, RegionError,
    Slot, SlotFlags, SlotId, SlotKey, VmError,
};

/// Where the APIC access page lies (`APIC_DEFAULT_PHYS_BASE`).
const APIC_BASE: u64 = 0xfee0_0000;
/// The highest address of `KVM_SET_TSS_ADDR`: three pages below 4 GiB.
const MAX_TSS: u64 = (1 << 32) - 3 * PAGE_SIZE;
/// The fewest shadow pages of a VM (`KVM_MIN_ALLOC_MMU_PAGES`).
const MIN_MMU_PAGES: u64 = 64;
/// The most vCPUs that x86 can be built for (`KVM_MAX_VCPUS`).
const MAX_VCPUS: u32 = 4096;

impl Memory {
    /// `KVM_CREATE_VCPU` with the next id; gives that id.
    ///
    /// # Errors
    /// There are too many vCPUs, or a user slot lies where KVM puts the APIC access page.
    pub fn create_vcpu(&mut self) -> Result<Outcome, Refusal> {
        self.check_gate()?;
        let vcpus = self.vcpus;
        if vcpus >= MAX_VCPUS {
            return Err(VmError::TooManyVcpus { vcpus }.into());
        }
        if self.irqchip && self.profile().apic_access_slot.get() {
            self.set_internal_slot(SlotId::APIC_ACCESS, APIC_BASE, Pages::new(1))?;
        }
        self.vcpus += 1;
        let ring = self.new_ring();
        self.rings.extend(ring);
        self.mark_changed();
        Ok(Outcome::Done)
    }

    /// `KVM_CREATE_IRQCHIP`.
    ///
    /// # Errors
    /// There is one, or a vCPU exists.
    pub fn create_irqchip(&mut self) -> Result<Outcome, Refusal> {
        self.check_gate()?;
        if self.irqchip {
            return Err(VmError::IrqchipExists {}.into());
        }
        if self.vcpus != 0 {
            return Err(VmError::IrqchipAfterVcpu {}.into());
        }
        self.irqchip = true;
        self.mark_changed();
        Ok(Outcome::Done)
    }

    /// `KVM_SET_TSS_ADDR`.
    ///
    /// # Errors
    /// The address is too high, or a user slot lies there.
    pub fn set_tss_addr(&mut self, gpa: u64) -> Result<Outcome, Refusal> {
        self.check_gate()?;
        if gpa > MAX_TSS {
            return Err(VmError::TssAddr { gpa }.into());
        }
        if self.profile().tss_slot.get() {
            self.set_internal_slot(SlotId::TSS, gpa, Pages::new(3))?;
        }
        Ok(Outcome::Done)
    }

    /// `KVM_SET_IDENTITY_MAP_ADDR`; any address will do.
    ///
    /// # Errors
    /// A vCPU exists.
    pub fn set_identity_map_addr(&mut self, _gpa: u64) -> Result<Outcome, Refusal> {
        self.check_gate()?;
        match self.vcpus {
            0 => Ok(Outcome::Done),
            _ => Err(VmError::IdentityAfterVcpu {}.into()),
        }
    }

    /// Whether `KVM_SET_NR_MMU_PAGES` will succeed; the limit itself belongs to the MMU.
    ///
    /// # Errors
    /// Too few pages.
    pub fn check_nr_mmu_pages(&self, pages: u64) -> Result<(), Refusal> {
        self.check_gate()?;
        match pages {
            0..MIN_MMU_PAGES => Err(VmError::NrMmuPages { pages }.into()),
            _ => Ok(()),
        }
    }

    /// `KVM_SET_NR_MMU_PAGES`, as far as it concerns the slots; the limit itself belongs to the MMU.
    ///
    /// # Errors
    /// Too few pages.
    pub fn set_nr_mmu_pages(&mut self, pages: u64) -> Result<Outcome, Refusal> {
        self.check_nr_mmu_pages(pages)?;
        self.shadow_pages = true;
        Ok(Outcome::Done)
    }

    /// One of KVM's own slots, in every address space, unless it exists (`__x86_set_memory_region`).
    fn set_internal_slot(&mut self, id: SlotId, gpa: u64, pages: Pages) -> Result<(), Refusal> {
        let count = self.address_space_count();
        let Some(range) = GfnRange::new(Gpa::new(gpa).gfn(), pages) else {
            return Ok(());
        };
        for as_id in (0..count).filter_map(AsId::new) {
            let slot = SlotKey { as_id, id };
            if self.space(as_id).by_id(id).is_some() {
                continue;
            }
            if let Some(other) = self.space(as_id).overlap(range, None) {
                return Err(RegionError::Overlap {
                    slot,
                    with: other.key(),
                    range: other.range(),
                }
                .into());
            }
            self.insert_internal(slot, range, count);
        }
        Ok(())
    }

    fn insert_internal(&mut self, key: SlotKey, range: GfnRange, address_spaces: u8) {
        let hva = Hva::new(0);
        self.total_pages += range.pages();
        self.mark_changed();
        self.shadow_pages = true;
        let space = self.space_mut(key.as_id);
        space.generation = space.generation.after(1, address_spaces);
        space.insert(Slot {
            key,
            flags: SlotFlags::empty(),
            binding: None,
            dirty: None,
            lpage: LpageInfo::new(range, hva),
            invalid: false,
        });
    }
}
