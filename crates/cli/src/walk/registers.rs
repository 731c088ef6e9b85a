//! Registers and CPUID on the command line.

use slat_memslot::PageSize;
use slat_mmu::role::{Cr0, Cr4, Efer, VcpuState};
use slat_mmu::walk::{AlignmentCheck, GuestCpu, GuestPaging, GuestVendor, PagingMode, Pointers};

use super::number;

/// Registers that decide how a guest pages, and what its CPUID says. By default those of long mode with four levels.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Registers {
    /// CR0: PE, WP and PG are bits 0, 16 and 31.
    #[arg(long, value_parser = number, default_value = "0x80010001")]
    pub(super) cr0: u64,
    /// CR3.
    #[arg(long, value_parser = number, required_unless_present = "live")]
    cr3: Option<u64>,
    /// CR4: PSE, PAE, PGE, LA57, SMEP, SMAP and PKE are bits 4, 5, 7, 12, 20, 21 and 22.
    #[arg(long, value_parser = number, default_value = "0x20")]
    pub(super) cr4: u64,
    /// EFER: LME, LMA and NXE are bits 8, 10 and 11.
    #[arg(long, value_parser = number, default_value = "0xd00")]
    pub(super) efer: u64,
    /// RFLAGS: AC is bit 18.
    #[arg(long, value_parser = number, default_value = "0x2")]
    pub(super) rflags: u64,
    /// PKRU.
    #[arg(long, value_parser = number, default_value = "0")]
    pkru: u64,
    /// The four page-directory pointers that are loaded; by default those in memory.
    #[arg(long, value_parser = number, value_delimiter = ',', num_args = 4)]
    pdptrs: Option<Vec<u64>>,
    /// MAXPHYADDR.
    #[arg(long, default_value_t = 46, value_parser = clap::value_parser!(u8).range(32..=64))]
    pub(super) maxphyaddr: u8,
    /// An AMD CPU: bit 8 of upper entries is reserved.
    #[arg(long)]
    pub(super) amd: bool,
    /// The CPU has no pages of 1 GiB.
    #[arg(long)]
    pub(super) no_1g: bool,
}

impl Registers {
    pub(super) fn cr3(&self) -> u64 {
        self.cr3.unwrap_or(0)
    }

    pub(super) fn cpu(&self) -> GuestCpu {
        GuestCpu {
            vendor: match self.amd {
                true => GuestVendor::Amd,
                false => GuestVendor::Intel,
            },
            largest_page: match self.no_1g {
                true => PageSize::Size2M,
                false => PageSize::Size1G,
            },
            ..GuestCpu::new(self.maxphyaddr)
        }
    }

    pub(super) fn paging(&self) -> GuestPaging {
        let vcpu = VcpuState {
            cr0: Cr0::from_bits_retain(self.cr0),
            cr3: self.cr3(),
            cr4: Cr4::from_bits_retain(self.cr4),
            efer: Efer::from_bits_retain(self.efer),
            pkru: u32::try_from(self.pkru & 0xffff_ffff).unwrap_or(0),
            ..VcpuState::default()
        };
        GuestPaging::new(&vcpu, &self.cpu()).with_alignment_check(AlignmentCheck::of(self.rflags))
    }

    /// The pointers given, if the mode has any.
    pub(super) fn pointers(&self, mode: PagingMode) -> Option<Pointers> {
        let given = self.pdptrs.as_deref()?;
        let pointers = <[u64; 4]>::try_from(given).ok()?;
        (mode == PagingMode::Pae).then_some(Pointers(pointers))
    }
}
