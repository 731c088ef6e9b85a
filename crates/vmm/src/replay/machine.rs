//! The machines on which recordings were made.

use slat_memslot::{Profile, Quirks, Vendor, VmType};
use slat_mmu::host::{Host, SecondStage};
use slat_mmu::roots::TdpMmu;
use slat_mmu::shadow::ShadowRules;
use slat_mmu::spte::NxHugePages;
use slat_mmu::tdp::Passes;
use slat_mmu::walk::GuestVendor;

/// What a recording does not say about its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// The host's tables.
    pub host: Host,
    /// The kernel.
    pub profile: Profile,
    /// `kvm.nx_huge_pages` before anybody changes it.
    pub nx_huge_pages: NxHugePages,
    /// How the kernel zaps whole roots: `CONFIG_KVM_PROVE_MMU` decides.
    pub passes: Passes,
    /// `kvm.tdp_mmu`, or off for want of a second stage.
    pub tdp_mmu: TdpMmu,
    /// Of the CPUID that its guests have (`KVM_GET_SUPPORTED_CPUID`).
    pub guest_vendor: GuestVendor,
    /// Of its shadow MMU.
    pub shadow_rules: ShadowRules,
}

/// Physical address bits of all emulated CPUs.
const PHYS_BITS: u8 = 40;

impl Machine {
    /// The machines that can be predicted.
    pub const NAMES: [&'static str; 14] = [
        "npt-l4",
        "npt-l4-complete",
        "npt-l4-legacy-mmu",
        "npt-l4-shadow-npt-off",
        "npt-l5",
        "npt-l5-complete",
        "ept-l4",
        "ept-l4-noad",
        "ept-l4-nopml",
        "ept-l5",
        "ept-l5-noad",
        "ept-l4-l1tf",
        "ept-l4-legacy-mmu",
        "ept-l4-shadow-ept-off",
    ];

    /// The machine of this name; `None` if it is not known.
    ///
    /// # Panics
    /// Not in practice: the profile is known.
    pub fn named(name: &str) -> Option<Self> {
        let host = match name {
            "npt-l4" | "npt-l4-complete" | "npt-l4-legacy-mmu" => Host::npt(PHYS_BITS),
            "npt-l4-shadow-npt-off" | "ept-l4-shadow-ept-off" => Host::shadow(PHYS_BITS),
            "npt-l5" | "npt-l5-complete" => Host::npt(PHYS_BITS).with_five_levels(),
            "ept-l4" | "ept-l4-legacy-mmu" => Host::ept(PHYS_BITS),
            "ept-l4-noad" => Host::ept(PHYS_BITS).without_ad(),
            "ept-l4-nopml" => Host::ept(PHYS_BITS).without_pml(),
            "ept-l5" => Host::ept(PHYS_BITS).with_five_levels(),
            "ept-l5-noad" => Host::ept(PHYS_BITS).with_five_levels().without_ad(),
            "ept-l4-l1tf" => Host::ept(PHYS_BITS).with_l1tf(PHYS_BITS),
            _ => return None,
        };
        let profile = Profile::named("debian-6.12.117-sw-protected");
        let mut profile = profile.expect("a profile of slat-memslot");
        let mut guest_vendor = GuestVendor::Amd;
        if name.starts_with("ept") {
            guest_vendor = GuestVendor::Intel;
            profile.vendor.set(Vendor::Intel);
            profile.quirks_off_at_birth.set(Quirks::empty());
        }
        let tdp_mmu = match name.contains("legacy-mmu") || host.second_stage == SecondStage::Off {
            true => TdpMmu::Off,
            false => TdpMmu::On,
        };
        if tdp_mmu == TdpMmu::Off {
            // Private memory needs the TDP MMU (`x86.c:kvm_is_vm_type_supported`).
            profile.vm_types.set(VmType::Default.mask());
        }
        profile.tdp.set(host.second_stage != SecondStage::Off);
        Some(Self {
            name: name.to_owned(),
            host,
            profile,
            nx_huge_pages: NxHugePages::Off,
            passes: Passes::LargestFirst,
            tdp_mmu,
            guest_vendor,
            shadow_rules: ShadowRules::UPSTREAM,
        })
    }

    /// Whether its CPUs are AMD's.
    pub fn is_amd(&self) -> bool {
        self.profile.vendor.get() == Vendor::Amd
    }
}
