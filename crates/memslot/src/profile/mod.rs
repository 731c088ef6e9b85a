//! The kernel as data: what differs between kernels and hosts, and how each difference is known.
//!
//! The rules of this crate never ask for a version. They ask a [`Profile`], which is named ([`Profile::named`]),
//! or filled from what a live kernel answers to capability queries ([`Profile::probed`]). Stable trees carry later
//! work, so a name says the tree (`debian-6.12.117`), and a fact says its [`Evidence`].

use std::borrow::Cow;
use std::fmt;

use crate::{Errno, GmemFlags, QuirkUpdate, Quirks, VmType};

mod named;
mod probe;

pub use probe::Capabilities;

/// How a fact is known.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Evidence {
    /// Seen in the answers of a running kernel.
    Observed(Cow<'static, str>),
    /// Read in this tree's source.
    Read(Cow<'static, str>),
    /// Concluded from something else.
    Inferred(Cow<'static, str>),
    /// Answered by the kernel at hand to a query.
    Probed(Cow<'static, str>),
    /// Chosen by the user of the profile.
    Set,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Observed(on) => write!(f, "observed on {on}"),
            Self::Read(source) => write!(f, "read in {source}"),
            Self::Inferred(from) => write!(f, "inferred: {from}"),
            Self::Probed(query) => write!(f, "probed: {query}"),
            Self::Set => f.write_str("set by the caller"),
        }
    }
}

/// A value with its evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Fact<T> {
    value: T,
    evidence: Evidence,
}

impl<T: Copy> Fact<T> {
    /// A value and how it is known.
    pub const fn new(value: T, evidence: Evidence) -> Self {
        Self { value, evidence }
    }

    /// The value.
    #[inline]
    pub const fn get(&self) -> T {
        self.value
    }

    /// How it is known.
    pub const fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Replaces the value by the caller's choice.
    pub fn set(&mut self, value: T) {
        *self = Self::new(value, Evidence::Set);
    }
}

/// Who made the CPU, for rules that follow the vendor module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Vendor {
    /// kvm_intel.
    Intel,
    /// kvm_amd.
    Amd,
    /// A paravirtual backend: neither EPT nor NPT.
    Paravirtual,
}

/// What deleting or moving a slot zaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum SlotZap {
    /// All roots of the VM, whatever its type (before 6.12).
    AlwaysAll,
    /// All roots for a default VM whose quirk `SLOT_ZAP_ALL` is on, else the slot's leaves (6.12).
    ByTypeAndQuirk,
    /// As proposed in May 2024: the slot's leaves if its `KVM_MEM_ZAP_LEAFS_ONLY` is set, else all roots.
    BySlotFlag,
}

/// What happens to small mappings when a slot's dirty log is switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum LogOff {
    /// Those that could be huge are zapped.
    Zap,
    /// The TDP MMU rebuilds huge mappings in place (6.13).
    Recover,
}

/// In which order KVM takes the pages out of the log that hardware keeps of them (PML). Only a dirty ring shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum PmlOrder {
    /// The last one written first: hardware fills the buffer from its end (until 6.13).
    NewestFirst,
    /// As they were written (6.14).
    OldestFirst,
}

macro_rules! profile {
    ($($(#[$doc:meta])* $field:ident: $ty:ty),* $(,)?) => {
        /// One kernel on one host.
        ///
        /// ```
        /// use slat_memslot::{Errno, Profile};
        /// let old = Profile::named("linux-6.1").unwrap();
        /// assert!(!old.region2.get());
        /// let new = Profile::named("linux-7.3-rc1").unwrap();
        /// assert_eq!(new.gmem_bind_conflict.get(), Errno::EEXIST);
        /// println!("{}", new.gmem_bind_conflict.evidence());
        /// ```
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct Profile {
            /// What the profile is called.
            pub name: Cow<'static, str>,
            $($(#[$doc])* pub $field: Fact<$ty>,)*
        }

        impl Profile {
            /// Every fact: name, value, evidence.
            pub fn facts(&self) -> Vec<(&'static str, String, &Evidence)> {
                vec![$((stringify!($field), format!("{:?}", self.$field.get()), self.$field.evidence())),*]
            }
        }
    };
}

profile! {
    /// `KVM_SET_USER_MEMORY_REGION2` exists.
    region2: bool,
    /// `KVM_CREATE_GUEST_MEMFD` exists.
    guest_memfd: bool,
    /// guest_memfd slots are for VMs with private memory only (until 6.17).
    gmem_needs_private_memory: bool,
    /// Flags of `KVM_CREATE_GUEST_MEMFD` on a VM without private memory (`KVM_CAP_GUEST_MEMFD_FLAGS`).
    gmem_flags: GmemFlags,
    /// What binding a range of a guest_memfd twice gives.
    gmem_bind_conflict: Errno,
    /// guest_memfds lie on a file system that is mounted noexec.
    gmem_noexec: bool,
    /// Offsets into a guest_memfd are signed when they are bound, so that a range across 2^63 passes for one that
    /// ends inside the file.
    gmem_signed_offsets: bool,
    /// `KVM_SET_MEMORY_ATTRIBUTES` exists: a VM type with private memory is built in.
    attributes: bool,
    /// What deleting or moving a slot zaps.
    slot_zap: SlotZap,
    /// What switching a dirty log off does.
    log_off: LogOff,
    /// What a second `KVM_CAP_DISABLE_QUIRKS2` does.
    quirk_update: QuirkUpdate,
    /// The quirks that can be disabled here (`KVM_CAP_DISABLE_QUIRKS2`).
    quirks: Quirks,
    /// The quirks that are off in every new VM.
    quirks_off_at_birth: Quirks,
    /// Dirty rings exist.
    dirty_ring: bool,
    /// `KVM_PRE_FAULT_MEMORY` exists.
    pre_fault: bool,
    /// After all roots were thrown away, pre-faulting spins until the vCPU has entered the guest once, or a signal
    /// comes.
    pre_fault_spins: bool,
    /// Pre-faulting a slot that is being deleted or moved tries until a signal comes, while the deletion waits for it to
    /// end (until 6.17). Later kernels give `EAGAIN`.
    pre_fault_waits_for_slot: bool,
    /// Pre-faulting a page that is mapped makes its leaf anew, without the accessed bit (up to 6.12).
    pre_fault_remakes_leaf: bool,
    /// A leaf that replaces a writable entry, for which an MMIO entry passes as well, starts clean; and accessed and dirty
    /// bits are kept only where hardware maintains them (up to 6.12). One series changed both.
    replaced_leaf_is_clean: bool,
    /// Userspace may answer `KVM_HC_MAP_GPA_RANGE` with 0, `EAGAIN` or `EINVAL` and nothing else (2026-05); before, anything
    /// but 0 is a failure.
    map_gpa_answers: bool,
    /// VM types that can be made here (`KVM_CAP_VM_TYPES`).
    vm_types: u32,
    /// System management mode is built in, and with it a second address space.
    smm: bool,
    /// The vendor module.
    vendor: Vendor,
    /// Two-dimensional paging is on.
    tdp: bool,
    /// The TDP MMU is on.
    tdp_mmu: bool,
    /// Physical address bits of the host that a second-level table can hold.
    maxphyaddr: u8,
    /// How many bits of a slot generation an MMIO entry can hold. When they are all zero after an exchange of slots,
    /// everything is zapped.
    mmio_generation_bits: u8,
    /// Page-modification logging is on; dirty rings then keep 512 more entries in reserve.
    pml: bool,
    /// The order in which logged pages enter a dirty ring.
    pml_order: PmlOrder,
    /// Where user space ends: a host range may reach up to here.
    user_end: u64,
    /// A vCPU with an in-kernel APIC makes the APIC access page's slot.
    apic_access_slot: bool,
    /// `KVM_SET_TSS_ADDR` makes a slot: Intel without unrestricted guest.
    tss_slot: bool,
}

impl Profile {
    /// The profile of this name; see [`Profile::names`].
    pub fn named(name: &str) -> Option<Self> {
        named::BY_NAME
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, make)| make())
    }

    /// The names that [`Profile::named`] knows, oldest kernel first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        named::BY_NAME.iter().map(|(name, _)| *name)
    }

    /// The newest released kernel that the fact sheets cover, on a common host.
    pub fn latest() -> Self {
        named::linux_6_18()
    }

    /// Whether VMs of `vm_type` can be made.
    pub fn supports(&self, vm_type: VmType) -> bool {
        self.vm_types.get() & vm_type.mask() != 0
    }

    /// Address spaces of a VM of `vm_type` (`kvm_arch_nr_memslot_as_ids`).
    #[inline]
    pub fn address_spaces(&self, vm_type: VmType) -> u8 {
        if self.smm.get() && !vm_type.has_private_memory() {
            2
        } else {
            1
        }
    }

    /// The highest frame a slot may hold (`kvm_mmu_max_gfn`): by the host's physical address bits with
    /// two-dimensional paging, by the 52 bits of a page-table entry without.
    #[inline]
    pub fn max_gfn(&self) -> u64 {
        let bits = if self.tdp.get() {
            u32::from(self.maxphyaddr.get())
        } else {
            52
        };
        (1 << (bits - crate::PAGE_SHIFT)) - 1
    }

    /// Entries that a dirty ring keeps in reserve (`kvm_dirty_ring_get_rsvd_entries`); a TD has no PML reserve.
    pub fn ring_reserve(&self, vm_type: VmType) -> u32 {
        if self.pml.get() && vm_type != VmType::Tdx {
            64 + 512
        } else {
            64
        }
    }

    /// Flags that a guest_memfd of a VM of `vm_type` takes.
    pub fn gmem_flags_for(&self, vm_type: VmType) -> GmemFlags {
        match vm_type.has_private_memory() {
            true => self.gmem_flags.get() & GmemFlags::MMAP,
            false => self.gmem_flags.get(),
        }
    }

    /// Whether a slot of a VM of `vm_type` may carry `KVM_MEM_GUEST_MEMFD`.
    pub fn allows_gmem_slots(&self, vm_type: VmType) -> bool {
        self.guest_memfd.get()
            && (vm_type.has_private_memory() || !self.gmem_needs_private_memory.get())
    }

    /// Turns the experiment of May 2024 on: the slot flag `KVM_MEM_ZAP_LEAFS_ONLY` instead of VM type and quirk.
    #[must_use]
    pub fn with_zap_leafs_flag(mut self) -> Self {
        self.slot_zap.set(SlotZap::BySlotFlag);
        self.name = format!("{} with KVM_MEM_ZAP_LEAFS_ONLY", self.name).into();
        self
    }
}
