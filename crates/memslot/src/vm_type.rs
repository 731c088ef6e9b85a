//! VM types and what KVM makes of each.

use core::fmt;

/// The type of a VM, the argument of `KVM_CREATE_VM` (`KVM_X86_*_VM`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(u8)]
pub enum VmType {
    /// An ordinary VM.
    #[default]
    Default = 0,
    /// Private memory without hardware behind it, for tests.
    SwProtected = 1,
    /// AMD SEV: encrypted memory.
    Sev = 2,
    /// AMD SEV-ES: encrypted memory and registers.
    SevEs = 3,
    /// AMD SEV-SNP: integrity too, through the RMP.
    Snp = 4,
    /// Intel TDX.
    Tdx = 5,
}

impl VmType {
    /// Every type, by number.
    pub const ALL: [Self; 6] = [
        Self::Default,
        Self::SwProtected,
        Self::Sev,
        Self::SevEs,
        Self::Snp,
        Self::Tdx,
    ];

    /// The type of this number.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Default),
            1 => Some(Self::SwProtected),
            2 => Some(Self::Sev),
            3 => Some(Self::SevEs),
            4 => Some(Self::Snp),
            5 => Some(Self::Tdx),
            _ => None,
        }
    }

    /// The number that `KVM_CREATE_VM` takes.
    pub const fn raw(self) -> u32 {
        self as u32
    }

    /// The type's bit in `KVM_CAP_VM_TYPES`.
    pub const fn mask(self) -> u32 {
        1 << self.raw()
    }

    /// Whether pages have a private side in a guest_memfd (`kvm_arch_has_private_mem`).
    pub const fn has_private_memory(self) -> bool {
        matches!(self, Self::SwProtected | Self::Snp | Self::Tdx)
    }

    /// Whether KVM cannot see the guest's registers (`has_protected_state`).
    pub const fn has_protected_state(self) -> bool {
        matches!(self, Self::SevEs | Self::Snp | Self::Tdx)
    }

    /// Whether the VM must be finalized before `KVM_PRE_FAULT_MEMORY` works on it.
    pub const fn must_be_finalized(self) -> bool {
        matches!(self, Self::Snp | Self::Tdx)
    }

    /// The word used in scenario files and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::SwProtected => "sw-protected",
            Self::Sev => "sev",
            Self::SevEs => "sev-es",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
        }
    }
}

impl fmt::Display for VmType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no VM type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown VM type {0:?}: default, sw-protected, sev, sev-es, snp, tdx, or 0 to 5")]
pub struct UnknownVmType(pub String);

impl core::str::FromStr for VmType {
    type Err = UnknownVmType;

    fn from_str(text: &str) -> Result<Self, UnknownVmType> {
        let by_number = || text.parse().ok().and_then(Self::from_raw);
        let by_name = Self::ALL.into_iter().find(|t| t.name() == text);
        by_name
            .or_else(by_number)
            .ok_or_else(|| UnknownVmType(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of `KVM_X86_*_VM` in the kernel's header.
    #[test]
    fn types_go_by_number_and_by_name() {
        let names = ["default", "sw-protected", "sev", "sev-es", "snp", "tdx"];
        for (number, name) in (0..).zip(names) {
            let vm_type = VmType::from_raw(number).unwrap();
            assert_eq!(
                (vm_type.raw(), vm_type.to_string().as_str()),
                (number, name)
            );
            assert_eq!(vm_type.mask(), [1, 2, 4, 8, 16, 32][number as usize]);
            assert_eq!(name.parse(), Ok(vm_type));
            assert_eq!(number.to_string().parse(), Ok(vm_type));
        }
        assert_eq!(VmType::from_raw(6), None);
        for text in ["6", "SEV", "", "sev-"] {
            assert_eq!(text.parse::<VmType>(), Err(UnknownVmType(text.to_owned())));
        }
    }
}
