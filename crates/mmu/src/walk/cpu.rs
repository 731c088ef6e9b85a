//! What a guest's CPUID says about its walks.

use slat_memslot::PageSize;

use crate::host::bits_between;
use crate::role::PhysBits;

/// Whose rules a guest's CPU follows (`guest_cpuid_is_amd_compatible`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GuestVendor {
    /// Any other: bit 8 of upper entries is ignored.
    #[default]
    Intel,
    /// AMD or Hygon: bit 8 of entries of levels 4 and 5 is reserved.
    Amd,
}

/// The properties of a guest's CPU that matter to walks of its tables.
///
/// ```
/// use slat_memslot::PageSize;
/// use slat_mmu::walk::{GuestCpu, GuestVendor};
/// let cpu = GuestCpu { vendor: GuestVendor::Amd, ..GuestCpu::new(48) };
/// assert_eq!(cpu.reserved_gpa_bits(), 0xffff << 48);
/// assert_eq!(cpu.largest_page, PageSize::Size1G);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestCpu {
    /// MAXPHYADDR: bits 7 to 0 of EAX of CPUID leaf `0x8000_0008`, or 36 without the leaf.
    pub maxphyaddr: u8,
    /// The vendor.
    pub vendor: GuestVendor,
    /// The largest page: 1 GiB if bit 26 of EDX of CPUID leaf `0x8000_0001` is set, else 2 MiB. KVM without TDP clears
    /// the bit for every guest if the host lacks such pages, and then it stays 2 MiB whatever the CPUID.
    pub largest_page: PageSize,
    /// The C-bit of an SEV guest, which is no address bit and not reserved.
    pub c_bit: Option<u8>,
}

impl GuestCpu {
    /// An Intel CPU with pages of 1 GiB and an address width.
    pub const fn new(maxphyaddr: u8) -> Self {
        Self {
            maxphyaddr,
            vendor: GuestVendor::Intel,
            largest_page: PageSize::Size1G,
            c_bit: None,
        }
    }

    /// The same for the widths of a vCPU's CPUID.
    pub const fn of(widths: PhysBits) -> Self {
        Self::new(widths.physical)
    }

    /// The bits that no guest-physical address has (`reserved_gpa_bits`).
    pub const fn reserved_gpa_bits(&self) -> u64 {
        let bits = bits_between(self.maxphyaddr, 64);
        match self.c_bit {
            Some(bit) if bit < 64 => bits & !(1 << bit),
            _ => bits,
        }
    }

    /// The bits that a present page-directory pointer of PAE paging must not have (`pdptr_rsvd_bits`).
    pub const fn reserved_pointer_bits(&self) -> u64 {
        self.reserved_gpa_bits() | bits_between(5, 9) | bits_between(1, 3)
    }

    pub(super) const fn reserved_global_bit(&self) -> u64 {
        match self.vendor {
            GuestVendor::Intel => 0,
            GuestVendor::Amd => 1 << 8,
        }
    }
}
