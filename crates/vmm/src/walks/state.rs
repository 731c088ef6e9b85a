//! What a vCPU is before it translates: registers, CPUID, and memory with tables in it.

use std::cell::Cell;

use slat_memslot::{Gpa, PageSize};
use slat_mmu::role::{Cr0, Cr4, Efer, VcpuState};
use slat_mmu::walk::{
    AlignmentCheck, Exchange, GuestCpu, GuestPaging, GuestVendor, PagingMode, Pointers, TableMemory,
};

/// Words in a page.
pub(super) const PAGE_WORDS: usize = 512;
/// Pages of memory from address 0 on.
pub const RAM_PAGES: u64 = 8;
/// The first page of memory that is read-only for the guest.
pub const ROM_START: u64 = 16;
/// Pages of it.
pub const ROM_PAGES: u64 = 2;

/// Registers and CPUID of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// CR0.
    pub cr0: Cr0,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// RFLAGS.AC.
    pub ac: AlignmentCheck,
    /// MAXPHYADDR in CPUID.
    pub maxphyaddr: u8,
    /// The vendor in CPUID.
    pub vendor: GuestVendor,
    /// Whether CPUID has pages of 1 GiB.
    pub gigabyte_pages: bool,
    /// The mode that it is meant to be in.
    pub mode: PagingMode,
}

/// When a guest has pages of 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GigabytePages {
    /// Never: the host lacks them.
    Never,
    /// As its CPUID says: KVM walks the tables for it.
    ByCpuid,
    /// Always: hardware walks the tables, and does not ask KVM.
    Always,
}

impl CpuState {
    /// How it pages. `memory` is asked for the page-directory pointers of PAE paging, which are loaded with CR3.
    pub fn paging(&self, memory: &Memory, host: GigabytePages) -> GuestPaging {
        let gigabyte = match host {
            GigabytePages::Never => false,
            GigabytePages::ByCpuid => self.gigabyte_pages,
            GigabytePages::Always => true,
        };
        let cpu = GuestCpu {
            vendor: self.vendor,
            largest_page: if gigabyte {
                PageSize::Size1G
            } else {
                PageSize::Size2M
            },
            ..GuestCpu::new(self.maxphyaddr)
        };
        let vcpu = VcpuState {
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            ..VcpuState::default()
        };
        let paging = GuestPaging::new(&vcpu, &cpu).with_alignment_check(self.ac);
        let pointers = Pointers::load(memory, self.cr3, &cpu);
        paging.with_pointers(pointers.unwrap_or_default())
    }
}

/// A guest's memory: pages that it can write to, a hole, and pages that are read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The pages from address 0 on.
    pub ram: Vec<Cell<u64>>,
    /// The pages from [`ROM_START`] on.
    pub rom: Vec<u64>,
}

impl Memory {
    /// Zeroes.
    pub fn new() -> Self {
        let words = |pages: u64| usize::try_from(pages).unwrap_or(0) * PAGE_WORDS;
        Self {
            ram: vec![Cell::new(0); words(RAM_PAGES)],
            rom: vec![0; words(ROM_PAGES)],
        }
    }

    /// The words that a guest can write to.
    pub fn words(&self) -> Vec<u64> {
        self.ram.iter().map(Cell::get).collect()
    }

    fn rom_offset(at: Gpa) -> Option<Gpa> {
        Some(Gpa::new(at.raw().checked_sub(ROM_START << 12)?))
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl TableMemory for Memory {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        match Self::rom_offset(at) {
            None => self.ram.read_u64(at),
            Some(offset) => self.rom.read_u64(offset),
        }
    }

    fn compare_exchange_u64(&self, at: Gpa, current: u64, new: u64) -> Exchange {
        match Self::rom_offset(at) {
            None => self.ram.compare_exchange_u64(at, current, new),
            Some(_) => Exchange::ReadOnly,
        }
    }
}
