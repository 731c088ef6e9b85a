//! One front for VMs on either of KVM's MMUs: what their userspace, their guests and their host's memory do to them.

pub(crate) mod fault;

use slat_memslot::{Errno, Gfn, GmemId, Memory, Pages, Region, VmType};
use slat_mmu::role::{Cr0, Cr4, Efer, VcpuMode, VcpuState};
use slat_mmu::spte::{Format, NxHugePages};
use slat_mmu::walk::Privilege;

use crate::replay::Machine;
use crate::shadow_vm::ShadowVm;
use crate::tdp_vm::{Activity, EagerSplit, HostMemory, HvaRange, Paging, TdpVm};
use crate::traces::{Control, Instruction, Leaves, MmuCounts, Predicted};

/// Bits of a control register that are set or cleared, by KVM's names with `|` between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlBits<'a> {
    /// `CR0`, `CR4` or `EFER`.
    pub register: &'a str,
    /// The names.
    pub bits: &'a str,
    /// Whether they are set.
    pub set: bool,
}

impl ControlBits<'_> {
    /// A vCPU's registers, changed.
    pub(crate) fn change(&self, state: &mut VcpuState) {
        for name in self.bits.split('|') {
            match self.register {
                "CR0" => Cr0::from_name(name)
                    .into_iter()
                    .for_each(|bit| state.cr0.set(bit, self.set)),
                "CR4" => Cr4::from_name(name)
                    .into_iter()
                    .for_each(|bit| state.cr4.set(bit, self.set)),
                _ => efer(name)
                    .into_iter()
                    .for_each(|bit| state.efer.set(bit, self.set)),
            }
        }
    }
}

/// The manual calls the bit NXE, KVM calls it NX.
fn efer(name: &str) -> Option<Efer> {
    Efer::from_name(
        name.strip_suffix('E')
            .filter(|name| *name == "NX")
            .unwrap_or(name),
    )
}

/// A VM whose page tables are modelled: a [`TdpVm`] or a [`ShadowVm`].
///
/// Each method does what the one of the same name of the two types does.
#[expect(missing_docs, reason = "the types say it")]
pub trait PagedVm: Sized {
    /// The format of its tables.
    type Format: Format;

    /// A VM on a machine, if the machine has VMs of this type.
    fn on(machine: &Machine, vm_type: VmType, nx_huge_pages: NxHugePages) -> Option<Self>;
    fn memory(&self) -> &Memory;
    /// How many leaves its tables have.
    fn leaves(&self) -> Leaves;
    fn host_mut(&mut self) -> &mut HostMemory;
    fn take(&mut self) -> Vec<Predicted>;
    fn tell(&mut self, what: Predicted);
    fn enable_cap(&mut self, cap: u32, arg: u64);
    fn set_eager_split(&mut self, eager_split: EagerSplit);
    fn set_nx_huge_pages(&mut self, nx_huge_pages: NxHugePages);
    fn create_vcpu(&mut self, id: u32);
    fn set_max_phys_addr(&mut self, id: u32, bits: u8);
    fn set_paging(&mut self, id: u32, paging: Paging);
    fn set_registers(&mut self, id: u32, bits: Option<ControlBits<'_>>);
    fn set_mode(&mut self, id: u32, mode: VcpuMode);
    fn set_region(&mut self, request: &Region);
    fn create_gmem(&mut self, size: u64) -> Option<GmemId>;
    fn close_gmem(&mut self, file: GmemId) -> Result<(), Errno>;
    fn punch_hole(&mut self, file: GmemId, offset: u64, len: u64);
    fn set_attributes(&mut self, gfn: Gfn, pages: Pages, attributes: u64);
    fn run_guest(&mut self, vcpu: u32, activity: &Activity);
    fn pre_fault(&mut self, vcpu: u32, gfn: Gfn, pages: Pages, flags: u64);
    fn get_dirty_log(&mut self, slot: u32);
    fn clear_dirty_log(&mut self, slot: u32, first: u64, pages: Pages);
    fn harvest_ring(&mut self, vcpu: u32);
    fn reset_rings(&mut self);
    /// As [`PagedVm::reset_rings`], but nothing is watched anew.
    fn forget_rings(&mut self);
    fn unmap_hva(&mut self, range: HvaRange);
    fn age_hva(&mut self, range: HvaRange) -> bool;
    fn recover_nx(&mut self, ratio: u64) -> u64;
    fn close(&mut self);

    /// What is counted of its shadow pages, if it has such.
    fn counts(&self) -> Option<MmuCounts> {
        None
    }

    /// Control registers of a guest whose own tables are walked. With two-dimensional paging no root depends on them.
    fn set_control(&mut self, id: u32, control: &Control) {
        let _ = control;
        self.set_registers(id, None);
    }

    /// A guest whose own tables are shadowed executes an instruction. Where they are not, it runs on its own tables, which
    /// nobody models: recordings with it are [not modelled](crate::replay::NotModelled) there.
    fn execute(&mut self, id: u32, instruction: &Instruction, privilege: Privilege) {
        let _ = (id, instruction, privilege);
    }

    /// The limit of shadow pages.
    fn set_mmu_pages(&mut self, pages: u64) {
        let _ = pages;
        self.tell(Predicted::Returned(Ok(Some(0))));
    }

    /// The program writes into the memory behind a slot, which matters where the guest's tables do.
    fn poke(&mut self, hva: u64, value: u64) {
        let _ = (hva, value);
    }
}

/// Calls the method of the same name.
macro_rules! as_the_type_does {
    ($vm:ident) => {
        as_the_type_does! { $vm,
            fn enable_cap(cap: u32, arg: u64);
            fn set_eager_split(eager_split: EagerSplit);
            fn set_nx_huge_pages(nx_huge_pages: NxHugePages);
            fn create_vcpu(id: u32);
            fn set_max_phys_addr(id: u32, bits: u8);
            fn set_paging(id: u32, paging: Paging);
            fn set_mode(id: u32, mode: VcpuMode);
            fn set_region(request: &Region);
            fn create_gmem(size: u64) -> Option<GmemId>;
            fn close_gmem(file: GmemId) -> Result<(), Errno>;
            fn punch_hole(file: GmemId, offset: u64, len: u64);
            fn set_attributes(gfn: Gfn, pages: Pages, attributes: u64);
            fn run_guest(vcpu: u32, activity: &Activity);
            fn get_dirty_log(slot: u32);
            fn clear_dirty_log(slot: u32, first: u64, pages: Pages);
            fn harvest_ring(vcpu: u32);
            fn reset_rings();
            fn forget_rings();
            fn unmap_hva(range: HvaRange);
            fn age_hva(range: HvaRange) -> bool;
            fn recover_nx(ratio: u64) -> u64;
            fn close();
            fn tell(what: Predicted);
            fn take() -> Vec<Predicted>;
            fn host_mut() -> &mut HostMemory;
        }
        fn memory(&self) -> &Memory {
            $vm::memory(self)
        }
    };
    ($vm:ident, $(fn $name:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(
            fn $name(&mut self $(, $arg: $type)*) $(-> $result)? {
                $vm::$name(self $(, $arg)*)
            }
        )*
    };
}

impl<F: Format> PagedVm for TdpVm<F> {
    type Format = F;

    fn on(machine: &Machine, vm_type: VmType, nx_huge_pages: NxHugePages) -> Option<Self> {
        let vm = Self::new(machine.profile.clone(), vm_type, &machine.host)?;
        let mut vm = vm.with_passes(machine.passes);
        vm.set_nx_huge_pages(nx_huge_pages);
        // No root is there yet.
        let _ = vm.take();
        Some(vm)
    }

    fn leaves(&self) -> Leaves {
        let (totals, of_l2) = (self.tables().totals(), self.shadow_stats());
        Leaves {
            pages_4k: totals.pages_4k + of_l2.pages_4k,
            pages_2m: totals.pages_2m + of_l2.pages_2m,
            pages_1g: totals.pages_1g + of_l2.pages_1g,
        }
    }

    fn set_registers(&mut self, id: u32, bits: Option<ControlBits<'_>>) {
        Self::set_registers(self, id, bits);
    }

    fn poke(&mut self, hva: u64, value: u64) {
        Self::poke(self, hva, value);
    }

    fn pre_fault(&mut self, vcpu: u32, gfn: Gfn, pages: Pages, flags: u64) {
        let _ = Self::pre_fault(self, vcpu, gfn, pages, flags);
    }

    as_the_type_does!(TdpVm);
}

impl<F: Format> PagedVm for ShadowVm<F> {
    type Format = F;

    fn on(machine: &Machine, vm_type: VmType, nx_huge_pages: NxHugePages) -> Option<Self> {
        let vm = Self::new(machine.profile.clone(), vm_type, &machine.host);
        let vm = vm.with_rules(machine.shadow_rules);
        let vm = vm.with_guest_vendor(machine.guest_vendor);
        Some(vm.with_nx_huge_pages(nx_huge_pages))
    }

    fn leaves(&self) -> Leaves {
        let stats = self.mmu().stats();
        Leaves {
            pages_4k: stats.pages_4k,
            pages_2m: stats.pages_2m,
            pages_1g: stats.pages_1g,
        }
    }

    fn set_registers(&mut self, id: u32, bits: Option<ControlBits<'_>>) {
        Self::set_registers(self, id, bits);
    }

    fn counts(&self) -> Option<MmuCounts> {
        let stats = self.mmu().stats();
        Some(MmuCounts {
            shadow_zapped: stats.mmu_shadow_zapped,
            pte_write: stats.mmu_pte_write,
            pde_zapped: stats.mmu_pde_zapped,
            flooded: stats.mmu_flooded,
            recycled: stats.mmu_recycled,
            cache_miss: stats.mmu_cache_miss,
            unsync: stats.mmu_unsync,
        })
    }

    fn set_control(&mut self, id: u32, control: &Control) {
        Self::set_control(self, id, control);
    }

    fn execute(&mut self, id: u32, instruction: &Instruction, privilege: Privilege) {
        Self::execute(self, id, instruction, privilege);
    }

    fn set_mmu_pages(&mut self, pages: u64) {
        Self::set_mmu_pages(self, pages);
    }

    fn poke(&mut self, hva: u64, value: u64) {
        Self::poke(self, hva, value);
    }

    fn pre_fault(&mut self, vcpu: u32, gfn: Gfn, pages: Pages, flags: u64) {
        Self::pre_fault(self, vcpu, gfn, pages, flags);
    }

    as_the_type_does!(ShadowVm);
}
