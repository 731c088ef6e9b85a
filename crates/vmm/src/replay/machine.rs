//! The machines on which recordings were made.

use slat_memslot::{Profile, Quirks, Vendor};
use slat_mmu::host::{Host, SecondStage};
use slat_mmu::spte::NxHugePages;
use slat_mmu::tdp::Passes;

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
}

/// Physical address bits of all emulated CPUs.
const PHYS_BITS: u8 = 40;

impl Machine {
    /// The machines that can be predicted.
    pub const NAMES: [&'static str; 8] = [
        "npt-l4",
        "npt-l5",
        "ept-l4",
        "ept-l4-noad",
        "ept-l4-nopml",
        "ept-l5",
        "ept-l5-noad",
        "ept-l4-l1tf",
    ];

    /// The machine of this name; `None` if it is not known, or has no TDP MMU.
    ///
    /// # Panics
    /// Not in practice: the profile is known.
    pub fn named(name: &str) -> Option<Self> {
        let host = match name {
            "npt-l4" => Host::npt(PHYS_BITS),
            "npt-l5" => Host::npt(PHYS_BITS).with_five_levels(),
            "ept-l4" => Host::ept(PHYS_BITS),
            "ept-l4-noad" => Host::ept(PHYS_BITS).without_ad(),
            "ept-l4-nopml" => Host::ept(PHYS_BITS).without_pml(),
            "ept-l5" => Host::ept(PHYS_BITS).with_five_levels(),
            "ept-l5-noad" => Host::ept(PHYS_BITS).with_five_levels().without_ad(),
            "ept-l4-l1tf" => Host::ept(PHYS_BITS).with_l1tf(PHYS_BITS),
            _ => return None,
        };
        let profile = Profile::named("debian-6.12.117-sw-protected");
        let mut profile = profile.expect("a profile of slat-memslot");
        if host.second_stage == SecondStage::Ept {
            profile.vendor.set(Vendor::Intel);
            profile.quirks_off_at_birth.set(Quirks::empty());
        }
        Some(Self {
            name: name.to_owned(),
            host,
            profile,
            nx_huge_pages: NxHugePages::Off,
            passes: Passes::LargestFirst,
        })
    }
}
