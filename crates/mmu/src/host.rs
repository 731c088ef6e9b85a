//! What the host decides about page tables: one plain struct where KVM has globals.
//!
//! KVM keeps the properties of the host's CPU in `shadow_*_mask` globals and module parameters. Here they are a
//! [`Host`], given to a [`Codec`](crate::spte::Codec) once; two hosts can be modelled side by side.
//!
//! KVM counterparts: `spte.c:kvm_mmu_spte_module_init`, `spte.c:kvm_mmu_set_ept_masks`,
//! `spte.c:kvm_mmu_reset_all_pte_masks`, `svm.c:svm_adjust_mmio_mask`, `vmx.c:vmx_setup_me_spte_mask`.

use crate::role::{AccessDirty, RoleLayout, TdpDepth, TdpHost};
use slat_memslot::{Gfn, Level, PageSize, Profile};

#[cfg(test)]
mod tests;

/// The format of the tables that translate guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecondStage {
    /// Extended page tables (`kvm_intel.ept=1`).
    Ept,
    /// Nested page tables (`kvm_amd.npt=1`).
    Npt,
    /// None: every table is a shadow of the guest's (`ept=0`, `npt=0`), in the 64-bit format of NPT.
    Off,
}

/// Where KVM keeps its own bits in an entry.
///
/// The layouts cannot be told apart by release alone, since distributions carry the patches back. On Intel one record
/// of `kvm_tdp_mmu_spte_changed` for a fresh 4 KiB leaf shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Layout {
    /// Up to 6.9: an empty entry is 0.
    P1,
    /// Since 6.10: an empty entry has bit 63 set, so that a #VE is never raised for it.
    #[default]
    P2,
    /// With mode-based execute control (kvm/next since May 2026): KVM's bits of EPT entries moved, so that the
    /// user-execute bit can be saved while an entry is access-tracked.
    P3,
}

/// Which entries carry accessed and dirty bits, and when KVM sets them.
///
/// One series of 6.13 changed all of it, so it is one switch; [`Layout::P3`] is always the later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum AdBits {
    /// Up to 6.12: only entries whose bits the hardware maintains carry them, and a writable leaf that replaces a
    /// writable one starts clean.
    #[default]
    Hardware,
    /// Since 6.13: all entries carry them, as software bits where the hardware does not maintain them, and a leaf made
    /// writable is dirty.
    Software,
}

/// Memory encryption as far as it takes bits of a physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Encryption {
    /// None that entries would show.
    #[default]
    Off,
    /// Switched on in SYSCFG (AMD), but the host itself runs unencrypted: entries have no C-bit, only the bits that
    /// mark an MMIO entry change.
    Available {
        /// The C-bit's position, bits 5:0 of EBX of CPUID `0x8000001f`.
        c_bit: u8,
    },
    /// The host runs with SME: every entry but those of host MMIO carries the C-bit (`sme_me_mask`).
    Active {
        /// The C-bit's position, bits 5:0 of EBX of CPUID `0x8000001f`.
        c_bit: u8,
    },
}

/// Whether the hardware keeps accessed and dirty bits in second-stage entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HardwareAd {
    /// It does not (`eptad=0`, or a CPU without): KVM tracks accesses by taking permissions away.
    Off,
    /// It does.
    On,
    /// It does, and logs dirty pages (`pml=1`).
    WithPml,
}

/// Whether KVM caches MMIO in entries (`kvm.mmio_caching`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum MmioCaching {
    /// An access without a slot leaves an MMIO entry, if the CPU has a spare bit.
    #[default]
    On,
    /// Each access takes the long way.
    Off,
}

/// Whether EPT entries can allow execution without reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ExecuteOnly {
    /// They cannot: bit 0 is part of what makes an entry present.
    #[default]
    Unsupported,
    /// They can (`VMX_EPT_EXECUTE_ONLY_BIT` of the capabilities).
    Supported,
}

/// The properties of a host that show in page-table entries.
///
/// ```
/// use slat_mmu::host::{Host, Layout};
/// // A desktop CPU without EPT A/D bits, and one whose L1 cache leaks non-present entries.
/// let old = Host::ept(39).without_ad();
/// let leaky = Host::ept(46).with_l1tf(44);
/// assert_ne!(old, leaky.with_layout(Layout::P3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// The format of second-stage tables.
    pub second_stage: SecondStage,
    /// Where KVM's own bits are.
    pub layout: Layout,
    /// The rules for accessed and dirty bits.
    pub ad_bits: AdBits,
    /// Whether the hardware maintains them.
    pub hardware_ad: HardwareAd,
    /// Physical address bits as CPUID tells (`kvm_host.maxphyaddr`).
    pub maxphyaddr: u8,
    /// Physical address bits that are left when memory encryption has taken its own (`x86_phys_bits`).
    pub phys_bits: u8,
    /// Address bits of the L1 cache on CPUs with L1TF (`x86_cache_bits`), `None` on CPUs without.
    pub l1tf_cache_bits: Option<u8>,
    /// C-bit (AMD). Intel's key identifiers follow from `phys_bits` below `maxphyaddr`.
    pub encryption: Encryption,
    /// Execute-only EPT entries.
    pub execute_only: ExecuteOnly,
    /// MMIO entries.
    pub mmio_caching: MmioCaching,
    /// The highest level that second-stage tables can have: 4 or 5.
    pub max_level: Level,
    /// The largest leaf that the hardware takes.
    pub largest_page: PageSize,
}

impl Host {
    /// What the roles of TDP roots depend on, for an ordinary VM; `None` without a second stage.
    ///
    /// ```
    /// use slat_mmu::host::Host;
    /// use slat_mmu::role::TdpDepth;
    /// assert_eq!(Host::npt(48).tdp().unwrap().depth, TdpDepth::Npt4);
    /// assert_eq!(Host::ept(52).with_five_levels().tdp().unwrap().depth, TdpDepth::Ept5);
    /// assert!(Host::shadow(48).tdp().is_none());
    /// ```
    pub const fn tdp(&self) -> Option<TdpHost> {
        let depth = match (self.second_stage, self.max_level) {
            (SecondStage::Off, _) => return None,
            (SecondStage::Ept, Level::L5) => TdpDepth::Ept5,
            (SecondStage::Ept, _) => TdpDepth::Ept4,
            (SecondStage::Npt, Level::L5) => TdpDepth::Npt5,
            (SecondStage::Npt, _) => TdpDepth::Npt4,
        };
        let mut host = TdpHost::new(depth);
        if let Layout::P3 = self.layout {
            host.layout = RoleLayout::Mbec;
        }
        if !self.ad_enabled() {
            host.access_dirty = AccessDirty::Software;
        }
        Some(host)
    }

    /// An Intel host with EPT: A/D bits and PML, 4 levels, 1 GiB leaves, layout and rules of 6.12.
    pub const fn ept(maxphyaddr: u8) -> Self {
        Self {
            second_stage: SecondStage::Ept,
            layout: Layout::P2,
            ad_bits: AdBits::Hardware,
            hardware_ad: HardwareAd::WithPml,
            maxphyaddr,
            phys_bits: maxphyaddr,
            l1tf_cache_bits: None,
            encryption: Encryption::Off,
            execute_only: ExecuteOnly::Unsupported,
            mmio_caching: MmioCaching::On,
            max_level: Level::L4,
            largest_page: PageSize::Size1G,
        }
    }

    /// An AMD host with NPT: 4 levels, 1 GiB leaves, no memory encryption, layout and rules of 6.12.
    pub const fn npt(maxphyaddr: u8) -> Self {
        Self {
            second_stage: SecondStage::Npt,
            hardware_ad: HardwareAd::On,
            ..Self::ept(maxphyaddr)
        }
    }

    /// A host of either vendor that uses shadow tables only.
    pub const fn shadow(maxphyaddr: u8) -> Self {
        Self {
            second_stage: SecondStage::Off,
            ..Self::npt(maxphyaddr)
        }
    }

    /// With another layout of KVM's bits. [`Layout::P3`] brings the later rules of A/D bits along.
    pub const fn with_layout(self, layout: Layout) -> Self {
        let ad_bits = match layout {
            Layout::P1 => AdBits::Hardware,
            Layout::P2 => self.ad_bits,
            Layout::P3 => AdBits::Software,
        };
        Self {
            layout,
            ad_bits,
            ..self
        }
    }

    /// With the rules for A/D bits that came in 6.13.
    pub const fn with_software_ad(self) -> Self {
        Self {
            ad_bits: AdBits::Software,
            ..self
        }
    }

    /// With the rules for A/D bits of a kernel. [`Layout::P3`] is later than all kernels with the earlier ones.
    ///
    /// ```
    /// use slat_memslot::Profile;
    /// use slat_mmu::host::{AdBits, Host};
    /// let of = |name| Host::npt(48).of_kernel(&Profile::named(name).unwrap()).ad_bits;
    /// assert_eq!(of("linux-6.12"), AdBits::Hardware);
    /// assert_eq!(of("linux-6.18"), AdBits::Software);
    /// ```
    pub fn of_kernel(self, profile: &Profile) -> Self {
        let ad_bits = match (self.layout, profile.replaced_leaf_is_clean.get()) {
            (Layout::P3, _) | (_, false) => AdBits::Software,
            (Layout::P1 | Layout::P2, true) => AdBits::Hardware,
        };
        Self { ad_bits, ..self }
    }

    /// Without EPT A/D bits, and so without PML (`kvm_intel.eptad=0`).
    pub const fn without_ad(self) -> Self {
        Self {
            hardware_ad: HardwareAd::Off,
            ..self
        }
    }

    /// With EPT A/D bits but without PML (`kvm_intel.pml=0`).
    pub const fn without_pml(self) -> Self {
        Self {
            hardware_ad: HardwareAd::On,
            ..self
        }
    }

    /// With execute-only EPT entries.
    pub const fn with_execute_only(self) -> Self {
        Self {
            execute_only: ExecuteOnly::Supported,
            ..self
        }
    }

    /// With 5-level tables.
    pub const fn with_five_levels(self) -> Self {
        Self {
            max_level: Level::L5,
            ..self
        }
    }

    /// With leaves up to `size` only.
    pub const fn with_largest_page(self, size: PageSize) -> Self {
        Self {
            largest_page: size,
            ..self
        }
    }

    /// Without MMIO entries (`kvm.mmio_caching=0`).
    pub const fn without_mmio_caching(self) -> Self {
        Self {
            mmio_caching: MmioCaching::Off,
            ..self
        }
    }

    /// With a CPU that has L1TF and an L1 cache of `cache_bits` address bits.
    pub const fn with_l1tf(self, cache_bits: u8) -> Self {
        Self {
            l1tf_cache_bits: Some(cache_bits),
            ..self
        }
    }

    /// With AMD memory encryption, which leaves `phys_bits` of the physical address.
    pub const fn with_encryption(self, encryption: Encryption, phys_bits: u8) -> Self {
        Self {
            encryption,
            phys_bits,
            ..self
        }
    }

    /// With Intel key identifiers in the address bits from `phys_bits` on (MKTME).
    pub const fn with_key_ids(self, phys_bits: u8) -> Self {
        Self { phys_bits, ..self }
    }

    /// Whether the hardware maintains A/D bits in second-stage entries (`kvm_ad_enabled`).
    #[inline]
    pub const fn ad_enabled(&self) -> bool {
        !matches!(self.hardware_ad, HardwareAd::Off)
    }

    /// Whether the hardware logs dirty pages (`cpu_dirty_log_size`).
    #[inline]
    pub const fn pml(&self) -> bool {
        matches!(self.hardware_ad, HardwareAd::WithPml)
    }

    /// The highest guest frame that can be mapped (`mmu.h:kvm_mmu_max_gfn`).
    ///
    /// ```
    /// use slat_mmu::host::Host;
    /// assert_eq!(Host::ept(40).max_gfn().raw(), 0xfff_ffff);
    /// assert_eq!(Host::shadow(40).max_gfn().raw(), 0xff_ffff_ffff);
    /// ```
    pub const fn max_gfn(&self) -> Gfn {
        let bits = match self.second_stage {
            SecondStage::Ept | SecondStage::Npt => self.maxphyaddr,
            SecondStage::Off => 52,
        };
        Gfn::new(bits_between(12, bits) >> 12)
    }

    /// The C-bit of entries, 0 without (`sme_me_mask`).
    pub(crate) const fn me_value(&self) -> u64 {
        match self.encryption {
            Encryption::Active { c_bit } if c_bit < 64 => 1 << c_bit,
            _ => 0,
        }
    }

    /// The address bits that memory encryption may use in an entry (`shadow_me_mask`).
    pub(crate) const fn me_mask(&self) -> u64 {
        match self.encryption {
            Encryption::Off => bits_between(self.phys_bits, self.maxphyaddr),
            Encryption::Available { .. } | Encryption::Active { .. } => self.me_value(),
        }
    }
}

/// The bits from `low` up to but not including `high`; none if that is empty.
pub(crate) const fn bits_between(low: u8, high: u8) -> u64 {
    bits_below(high) & !bits_below(low)
}

const fn bits_below(end: u8) -> u64 {
    if end >= 64 { u64::MAX } else { (1 << end) - 1 }
}
