//! Reasons of the calls on the VM as a whole.

use super::{fixed_errno, reasons};
use crate::VmType;

reasons! {
    /// Why every ioctl of a VM fails.
    pub enum GateError {
        /// A VM belongs to the address space that made it.
        OtherProcess {} = "other-process", EIO, "kvm_main.c:kvm_vm_ioctl", "always",
            "another process than the VM's creator calls";
        /// KVM found its own state broken and gave the VM up.
        Dead {} = "vm-dead", EIO, "kvm_main.c:kvm_vm_ioctl", "since 5.15", "KVM has marked the VM dead";
    }
}

reasons! {
    /// Why `KVM_SET_MEMORY_ATTRIBUTES` is refused.
    pub enum AttributeError {
        /// The kernel has no attributes.
        NotBuiltIn {} = "no-attributes", ENOTTY, "kvm_main.c:kvm_vm_ioctl",
            "until 6.7, and where no VM type with private memory is built in",
            "this kernel has no KVM_SET_MEMORY_ATTRIBUTES";
        /// No flag is defined.
        Flags { flags: u64 } = "attribute-flags", EINVAL, "kvm_main.c:kvm_vm_ioctl_set_mem_attributes", "since 6.8",
            "flags {flags:#x} must be 0";
        /// An attribute that this VM does not have.
        Unsupported { unsupported: u64, vm_type: VmType } = "attribute-unsupported", EINVAL,
            "kvm_main.c:kvm_vm_ioctl_set_mem_attributes", "since 6.8",
            "attribute bits {unsupported:#x} do not exist on a VM of type {vm_type}";
        /// The range is empty or leaves 64 bits.
        Range { address: u64, size: u64 } = "attribute-range", EINVAL, "kvm_main.c:kvm_vm_ioctl_set_mem_attributes",
            "since 6.8", "the range {address:#x} + {size:#x} is empty or wraps around";
        /// The range is not page aligned.
        Unaligned { address: u64, size: u64 } = "attribute-unaligned", EINVAL,
            "kvm_main.c:kvm_vm_ioctl_set_mem_attributes", "since 6.8",
            "the range {address:#x} + {size:#x} is not page aligned";
    }
}

reasons! {
    /// Why `KVM_ENABLE_CAP` is refused.
    pub enum CapError {
        /// The capability cannot be enabled on a VM, or does not exist.
        Unknown { cap: u32 } = "unknown-cap", EINVAL, "x86.c:kvm_vm_ioctl_enable_cap", "always",
            "capability {cap} cannot be enabled on a VM of this kernel";
        /// No flag is defined.
        Flags { cap: u32, flags: u32 } = "cap-flags", EINVAL, "x86.c:kvm_vm_ioctl_enable_cap", "always",
            "flags {flags:#x} of capability {cap} must be 0";
        /// A mode of manual protection that does not exist.
        ManualProtect { bits: u64 } = "manual-protect-bits", EINVAL,
            "kvm_main.c:kvm_vm_ioctl_enable_cap_generic", "since 5.0",
            "{bits:#x} is no mode of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 0, 1 or 3";
        /// A quirk that this host does not let go of.
        Quirks { unsupported: u64, supported: u64 } = "quirk-unsupported", EINVAL,
            "x86.c:kvm_vm_ioctl_enable_cap", "since 5.19",
            "quirks {unsupported:#x} are not among the {supported:#x} that can be disabled here";
        /// A hypercall that cannot exit to user space.
        Hypercalls { unsupported: u64 } = "hypercall-bits", EINVAL, "x86.c:kvm_vm_ioctl_enable_cap", "since 5.14",
            "hypercalls {unsupported:#x} cannot exit to user space; only KVM_HC_MAP_GPA_RANGE (0x1000) can";
    }
}

reasons! {
    /// Why `KVM_PRE_FAULT_MEMORY` fails.
    pub enum PreFaultError {
        /// The vCPU does not exist.
        NoVcpu { vcpu: u32 } = "no-vcpu", EBADF, "fs: the file table", "always", "vCPU {vcpu} does not exist";
        /// The kernel has no such ioctl.
        NotBuiltIn {} = "no-pre-fault", EINVAL, "x86.c:kvm_arch_vcpu_ioctl", "until 6.10",
            "this kernel has no KVM_PRE_FAULT_MEMORY";
        /// No flag is defined.
        Flags { flags: u64 } = "pre-fault-flags", EINVAL, "kvm_main.c:kvm_vcpu_pre_fault_memory", "since 6.11",
            "flags {flags:#x} must be 0";
        /// The range is not page aligned.
        Unaligned { gpa: u64, size: u64 } = "pre-fault-unaligned", EINVAL,
            "kvm_main.c:kvm_vcpu_pre_fault_memory", "since 6.11",
            "the range {gpa:#x} + {size:#x} is not page aligned";
        /// The range is empty or leaves 64 bits.
        Range { gpa: u64, size: u64 } = "pre-fault-range", EINVAL, "kvm_main.c:kvm_vcpu_pre_fault_memory",
            "since 6.11", "the range {gpa:#x} + {size:#x} is empty or wraps around";
        /// The VM is not there yet.
        NotAllowed { vm_type: VmType } = "pre-fault-not-allowed", EOPNOTSUPP, "x86.c:kvm_arch_vcpu_pre_fault_memory",
            "since 6.11", "a VM of type {vm_type} must be finalized before it can be pre-faulted";
        /// KVM allows itself no page for a root: no slot was ever made, nor the limit set.
        NoShadowPages {} = "no-shadow-pages", ENOSPC, "mmu.c:make_mmu_pages_available", "always; without the TDP MMU",
            "the VM has no shadow pages until its first slot is made or KVM_SET_NR_MMU_PAGES is called";
        /// There is no second-level table to fill.
        NoTdp {} = "pre-fault-no-tdp", EOPNOTSUPP, "mmu.c:kvm_arch_vcpu_pre_fault_memory", "since 6.11",
            "the vCPU's MMU is not a direct two-dimensional one";
        /// The frame is private, and no open guest_memfd backs it.
        NoPrivateMemory { gpa: u64 } = "pre-fault-no-private-memory", EFAULT, "mmu.c:kvm_mmu_faultin_pfn_private",
            "since 6.11", "{gpa:#x} is private, and no slot with an open guest_memfd holds it";
        /// Nothing is there to be mapped.
        NoSlot { gpa: u64 } = "pre-fault-no-slot", ENOENT, "mmu.c:kvm_tdp_map_page", "since 6.11",
            "no slot holds {gpa:#x}";
    }
}

reasons! {
    /// Why another VM ioctl that touches the memory layout is refused.
    pub enum VmError {
        /// A VM type that does not exist here.
        VmType { vm_type: u32 } = "vm-type", EINVAL, "x86.c:kvm_arch_init_vm", "since 6.8",
            "VM type {vm_type} is not supported on this host";
        /// The fewest shadow pages a VM can live with.
        NrMmuPages { pages: u64 } = "nr-mmu-pages", EINVAL, "x86.c:kvm_vm_ioctl_set_nr_mmu_pages", "always",
            "{pages} shadow pages are fewer than 64";
        /// The three pages must fit below 4 GiB.
        TssAddr { gpa: u64 } = "tss-addr", EINVAL, "x86.c:kvm_vm_ioctl_set_tss_addr", "always",
            "the three pages at {gpa:#x} do not fit below 4 GiB";
        /// The identity map is fixed once a vCPU exists.
        IdentityAfterVcpu {} = "identity-after-vcpu", EINVAL, "x86.c:kvm_arch_vm_ioctl", "always",
            "the identity map's address must be set before the first vCPU";
        /// One interrupt controller per VM.
        IrqchipExists {} = "irqchip-exists", EEXIST, "x86.c:kvm_arch_vm_ioctl", "always",
            "the VM has an interrupt controller already";
        /// The interrupt controller comes before the vCPUs.
        IrqchipAfterVcpu {} = "irqchip-after-vcpu", EINVAL, "x86.c:kvm_arch_vm_ioctl", "always",
            "the interrupt controller must be made before the first vCPU";
        /// More vCPUs than KVM can have.
        TooManyVcpus { vcpus: u32 } = "too-many-vcpus", EINVAL, "kvm_main.c:kvm_vm_ioctl_create_vcpu", "always",
            "the VM has {vcpus} vCPUs, the most there can be";
        /// System management mode is not built in.
        NoSmm {} = "no-smm", EINVAL, "x86.c:kvm_vcpu_ioctl_x86_set_vcpu_events", "always; without CONFIG_KVM_SMM",
            "this kernel has no system management mode to put a vCPU into";
        /// Only a TD has the call.
        NotTd {} = "not-td", ENOTTY, "vmx/main.c:vt_mem_enc_ioctl", "always",
            "the VM is no TD with memory of its own";
        /// Only a SEV guest has the call.
        NotSev {} = "not-sev", ENOTTY, "svm/sev.c:sev_mem_enc_ioctl", "always",
            "the VM is no SEV guest on a host with SEV";
    }
}

fixed_errno!(GateError, AttributeError, CapError, PreFaultError, VmError);
