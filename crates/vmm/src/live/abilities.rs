//! What programs may ask a kernel for.

use std::fs;
use std::path::Path;

use slat_memslot::VmType;

use crate::replay::Machine;

/// What a kernel can be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Abilities {
    /// `KVM_X86_SW_PROTECTED_VM`.
    pub private_memory: bool,
    /// Address space 1 and SMM.
    pub smm: bool,
    /// `KVM_PRE_FAULT_MEMORY`.
    pub pre_fault: bool,
    /// Dirty rings.
    pub rings: bool,
    /// What is changed in the host's memory.
    pub host: HostAbilities,
}

/// What the host's memory management can be asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostAbilities {
    /// `/sys/kernel/mm/page_idle`.
    pub ageing: bool,
    /// Pages with the same bytes become one (KSM).
    pub merging: bool,
    /// Pages move (`MADV_SOFT_OFFLINE`).
    pub offlining: bool,
    /// `/proc/sys/vm/compact_memory`.
    pub compaction: bool,
    /// `userfaultfd`.
    pub userfault: bool,
    /// How many free huge pages of 2 MiB there are in the pool.
    pub huge_pages: u64,
    /// The same of 1 GiB.
    pub gigantic_pages: u64,
}

impl Abilities {
    /// What the kernel of this machine can be asked for.
    pub fn of(machine: &Machine) -> Self {
        let profile = &machine.profile;
        Self {
            private_memory: profile.supports(VmType::SwProtected),
            smm: profile.address_spaces(VmType::Default) > 1,
            pre_fault: profile.pre_fault.get(),
            rings: profile.dirty_ring.get(),
            host: HostAbilities::here(),
        }
    }
}

impl HostAbilities {
    fn here() -> Self {
        let is_there = |path: &str| Path::new(path).exists();
        let free = |size: &str| {
            let path = format!("/sys/kernel/mm/hugepages/hugepages-{size}/free_hugepages");
            let text = fs::read_to_string(path).unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            ageing: is_there("/sys/kernel/mm/page_idle/bitmap"),
            merging: is_there("/sys/kernel/mm/ksm/run"),
            offlining: memory.contains("HardwareCorrupted"),
            compaction: is_there("/proc/sys/vm/compact_memory"),
            userfault: is_there("/proc/sys/vm/unprivileged_userfaultfd"),
            huge_pages: free("2048kB"),
            gigantic_pages: free("1048576kB"),
        }
    }
}
