//! Control registers that a guest changes, and addresses that it invalidates.

use slat_memslot::Gpa;
use slat_mmu::role::{Cr0, Cr4};
use slat_mmu::roots::{FlushOnReuse, Pgd, Request};
use slat_mmu::spte::Format;

use crate::shadow_vm::ShadowVm;
use crate::shadow_vm::log::mark_dirtied;

impl<F: Format> ShadowVm<F> {
    /// `mov` to CR0, CR3 or CR4.
    pub(super) fn move_to_cr(&mut self, id: u32, number: u8, value: u64) {
        let Some(vcpu) = self.vcpus.get_mut(&id) else {
            return;
        };
        let before = vcpu.state;
        match number {
            0 => vcpu.state.cr0 = Cr0::from_bits_retain(value),
            3 => vcpu.state.cr3 = value,
            _ => vcpu.state.cr4 = Cr4::from_bits_retain(value),
        }
        let state = vcpu.state;
        if state.cr3 != before.cr3 {
            let pgd = Pgd::new(state.cr3);
            let mut locked = self.mmu.lock(&mut self.out);
            let reused = locked.new_pgd(&mut vcpu.roots, pgd, FlushOnReuse::Off);
            if reused {
                vcpu.mmio.clear();
            }
        }
        if number == 3 {
            self.request(id, Request::MmuSync);
        }
        let roles0 = Cr0::PG | Cr0::WP;
        let roles4 = Cr4::PSE | Cr4::PAE | Cr4::LA57 | Cr4::SMEP | Cr4::SMAP | Cr4::PKE;
        if (state.cr0 ^ before.cr0).intersects(roles0)
            || (state.cr4 ^ before.cr4).intersects(roles4)
        {
            self.reset_context(id);
        }
        if (state.cr4 ^ before.cr4).contains(Cr4::PGE) {
            self.request(id, Request::TlbFlushGuest);
        }
    }

    /// `invlpg` (`mmu.c:kvm_mmu_invlpg`).
    pub(super) fn invlpg(&mut self, id: u32, address: u64) {
        self.invalidate(id, address, true);
    }

    /// Looks again at what shadow pages have for an address, below the root in use and, for the guest's own `invlpg`, below
    /// earlier ones.
    pub(super) fn invalidate(&mut self, id: u32, address: u64, previous: bool) {
        let settings = self.settings();
        let Some(vcpu) = self.vcpus.get(&id) else {
            return;
        };
        let (paging, role) = (self.paging_of(vcpu), vcpu.roots.mmu.role());
        if role.is_direct() {
            return;
        }
        let mut roots: Vec<_> = vcpu.roots.current(&self.mmu).into_iter().collect();
        if previous {
            roots.extend(vcpu.roots.previous(&self.mmu));
        }
        let tables = self.ram.view(&self.memory, role.as_id());
        let guest = tables.followed(&paging, settings, role);
        let mut locked = self.mmu.lock(&mut self.out);
        for root in roots {
            locked.invalidate_address(root, address, &guest);
        }
        let dirtied = locked.take_dirtied();
        mark_dirtied(&mut self.memory, id, dirtied);
        if let Some(vcpu) = self.vcpus.get_mut(&id) {
            vcpu.mmio.clear_at(Gpa::new(address).gfn());
        }
    }
}
