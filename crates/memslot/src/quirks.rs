//! Quirks: old behaviour that a VMM can switch off (`KVM_CAP_DISABLE_QUIRKS`, `KVM_CAP_DISABLE_QUIRKS2`).

bitflags::bitflags! {
    /// `KVM_X86_QUIRK_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
    pub struct Quirks: u64 {
        /// LVT LINT0 resets to ExtINT. Since 4.1.
        const LINT0_REENABLED = 1 << 0;
        /// CR0.CD and CR0.NW are cleared for the guest on AMD. Since 4.1.
        const CD_NW_CLEARED = 1 << 1;
        /// The xAPIC window works in x2APIC mode. Since 4.19.
        const LAPIC_MMIO_HOLE = 1 << 2;
        /// RIP advances before the exit for `out 0x7e`. Since 5.1.
        const OUT_7E_INC_RIP = 1 << 3;
        /// CPUID's MWAIT bit does not follow the MSR. Since 5.3.
        const MISC_ENABLE_NO_MWAIT = 1 << 4;
        /// The other vendor's hypercall instruction is patched. Since 5.19.
        const FIX_HYPERCALL_INSN = 1 << 5;
        /// Intercepted MONITOR and MWAIT never raise #UD. Since 6.0.
        const MWAIT_NEVER_UD_FAULTS = 1 << 6;
        /// Deleting or moving a slot throws all roots away. Since 6.12; default VMs only.
        const SLOT_ZAP_ALL = 1 << 7;
        /// Feature MSRs start at KVM's maximum. Since 6.13.
        const STUFF_FEATURE_MSRS = 1 << 8;
        /// The guest's PAT is ignored without non-coherent DMA. Since 6.16.
        const IGNORE_GUEST_PAT = 1 << 9;
        /// A relaxed check of vmcs12. Since 7.0.
        const VMCS12_ALLOW_FREEZE_IN_SMM = 1 << 10;
        /// L1 and L2 share a PAT under nested NPT. Around 7.2.
        const NESTED_SVM_SHARED_PAT = 1 << 11;
    }
}

/// What a second call of `KVM_CAP_DISABLE_QUIRKS2` does to the first one's mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum QuirkUpdate {
    /// It replaces it, so that a quirk can be switched on again (up to about 6.14).
    Replace,
    /// It adds to it: what is off stays off (6.15, and stable trees that took it).
    Accumulate,
}
