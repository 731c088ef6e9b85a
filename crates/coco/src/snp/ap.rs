//! vCPUs that the guest starts itself: what KVM takes (`sev.c:sev_snp_ap_creation`).

use slat_memslot::Gpa;
use thiserror::Error;

/// Bits of SEV_FEATURES that say how interrupts are injected: restricted and alternate injection
/// (`SVM_SEV_FEAT_INT_INJ_MODES`).
pub const INJECTION_MODES: u64 = 1 << 3 | 1 << 4;

/// What a guest asks for (VMGEXIT `0x80000013`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApRequest {
    /// 0: the vCPU shall start from this page with its next INIT.
    CreateOnInit(Gpa),
    /// 1: the vCPU shall start from this page now.
    Create(Gpa),
    /// 2: the vCPU shall stop.
    Destroy,
}

/// Why KVM refuses: SW_EXITINFO1 is 2, SW_EXITINFO2 is 5 (invalid input).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum ApError {
    /// No vCPU has this APIC id.
    #[error("no vCPU has APIC id {0:#x}")]
    ApicId(u32),
    /// Interrupts would be injected in another way than so far.
    #[error("SEV features {wanted:#x} change the injection mode of {has:#x}")]
    InjectionMode {
        /// What the guest asks for.
        wanted: u64,
        /// What the VM has.
        has: u64,
    },
    /// The page is not aligned, or not in the guest's address space.
    #[error("a VMSA at {0:?}")]
    Address(Gpa),
    /// The page is at a multiple of 2 MiB, where some CPUs mistake huge pages for it.
    #[error("a VMSA at {0:?}, a multiple of 2M")]
    HugeAligned(Gpa),
    /// There is no such request.
    #[error("AP creation request {0:#x}")]
    Request(u32),
}

impl ApError {
    /// All codes.
    pub const CODES: [&'static str; 5] = [
        "apic-id",
        "injection-mode",
        "address",
        "huge-aligned",
        "request",
    ];

    /// A stable word for the cause.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ApicId(_) => "apic-id",
            Self::InjectionMode { .. } => "injection-mode",
            Self::Address(_) => "address",
            Self::HugeAligned(_) => "huge-aligned",
            Self::Request(_) => "request",
        }
    }
}

/// What the guest passes, and what the VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApCreation {
    /// EXITINFO1: the request in the low half, the APIC id in the high one.
    pub exit_info_1: u64,
    /// EXITINFO2: the page.
    pub exit_info_2: u64,
    /// RAX: SEV_FEATURES of the new vCPU.
    pub sev_features: u64,
}

impl ApCreation {
    /// What is asked for, if KVM takes it. `has` are the VM's features, `address_bits` the guest's physical address width.
    ///
    /// ```
    /// use slat_coco::snp::{ApCreation, ApError, ApRequest};
    /// use slat_memslot::Gpa;
    /// let at = |gpa| ApCreation { exit_info_1: 3 << 32 | 1, exit_info_2: gpa, sev_features: 1 };
    /// let check = |gpa| at(gpa).check(|apic_id| apic_id == 3, 1, 48);
    /// assert_eq!(check(0x5000), Ok(ApRequest::Create(Gpa::new(0x5000))));
    /// assert_eq!(check(0x20_0000), Err(ApError::HugeAligned(Gpa::new(0x20_0000))));
    /// ```
    ///
    /// # Errors
    /// The first check that fails, in KVM's order.
    pub fn check(
        &self,
        has_apic_id: impl FnOnce(u32) -> bool,
        has: u64,
        address_bits: u32,
    ) -> Result<ApRequest, ApError> {
        let [a, b, c, d, e, f, g, h] = self.exit_info_1.to_le_bytes();
        let request = u32::from_le_bytes([a, b, c, d]);
        let apic_id = u32::from_le_bytes([e, f, g, h]);
        if !has_apic_id(apic_id) {
            return Err(ApError::ApicId(apic_id));
        }
        let wanted = self.sev_features;
        if request < 2 && (wanted ^ has) & INJECTION_MODES != 0 {
            return Err(ApError::InjectionMode { wanted, has });
        }
        match request {
            0 => self.page(address_bits).map(ApRequest::CreateOnInit),
            1 => self.page(address_bits).map(ApRequest::Create),
            2 => Ok(ApRequest::Destroy),
            _ => Err(ApError::Request(request)),
        }
    }

    fn page(&self, address_bits: u32) -> Result<Gpa, ApError> {
        let gpa = Gpa::new(self.exit_info_2);
        let beyond = self.exit_info_2.checked_shr(address_bits).unwrap_or(0) != 0;
        if !gpa.is_page_aligned() || beyond {
            return Err(ApError::Address(gpa));
        }
        if gpa.raw() % (2 << 20) == 0 {
            return Err(ApError::HugeAligned(gpa));
        }
        Ok(gpa)
    }
}
