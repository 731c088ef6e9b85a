//! The pages behind slots, as the host's memory management gives them.

use slat_memslot::{Gfn, PageSize, Slot};

use crate::spte::{Pfn, PfnKind};

/// What the host answers when KVM asks for the page behind a host address (`kvm_main.c:hva_to_pfn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostPage {
    /// A page.
    Page {
        /// Its frame.
        pfn: Pfn,
        /// The size that the host maps it in (`mmu.c:host_pfn_mapping_level`).
        size: PageSize,
        /// Whether the host maps it writable now.
        writable: bool,
        /// Memory or a device.
        kind: PfnKind,
    },
    /// Nothing is mapped there, or it cannot be written (`KVM_PFN_ERR_FAULT`).
    Bad,
    /// Asking for it replaced it, as a copy on write does: an invalidation came in between, and the answer is stale.
    Moved,
    /// The page is broken (`KVM_PFN_ERR_HWPOISON`).
    Poisoned,
    /// A signal is pending (`KVM_PFN_ERR_SIGPENDING`).
    Interrupted,
}

/// What a guest_memfd answers (`guest_memfd.c:kvm_gmem_get_pfn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FilePage {
    /// A page.
    Page {
        /// Its frame.
        pfn: Pfn,
        /// The size that the file keeps it in.
        size: PageSize,
    },
    /// The file has none.
    Bad,
}

/// Where pages come from.
pub trait Backing {
    /// The page behind a frame of a slot's host memory. `write` asks for one that can be written.
    fn host_page(&mut self, slot: &Slot, gfn: Gfn, write: bool) -> HostPage;

    /// The page behind a frame of a slot's guest_memfd.
    fn file_page(&mut self, slot: &Slot, gfn: Gfn) -> FilePage;
}
