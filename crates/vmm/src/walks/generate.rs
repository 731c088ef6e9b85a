//! Random vCPUs and tables: mostly good ones, so that walks go deep, with few things wrong.

use std::cell::Cell;

use slat_memslot::Gva;
use slat_mmu::role::{Cr0, Cr4, Efer};
use slat_mmu::walk::{AlignmentCheck, GuestVendor, PagingMode};

use super::state::{CpuState, Memory, RAM_PAGES, ROM_PAGES, ROM_START};
use crate::differential::dice::Dice;

/// Makes states, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Generator {
    dice: Dice,
    modes: Vec<PagingMode>,
    refused: Cr4,
}

impl Generator {
    pub(super) fn new(seed: u64, modes: Vec<PagingMode>) -> Self {
        Self {
            dice: Dice::new(seed),
            modes,
            refused: Cr4::empty(),
        }
    }

    /// Never with these bits of CR4.
    pub(super) fn without(self, refused: Cr4) -> Self {
        Self { refused, ..self }
    }

    /// Registers and CPUID in one of the modes.
    pub(super) fn state(&mut self) -> CpuState {
        // Without paging there is little to see.
        let mode = match self.modes.as_slice() {
            [PagingMode::Unpaged, rest @ ..] if !rest.is_empty() && !self.dice.percent(2) => {
                self.dice.pick(rest)
            }
            modes => self.dice.pick(modes),
        };
        self.state_in(mode)
    }

    /// Registers and CPUID in a mode.
    pub(super) fn state_in(&mut self, mode: PagingMode) -> CpuState {
        let mut state = super::mode_state(mode);
        for (bit, percent) in [
            (Cr4::PGE, 50),
            (Cr4::SMEP, 50),
            (Cr4::SMAP, 40),
            (Cr4::PKE, 30),
            (Cr4::PSE, 50),
        ] {
            if !matches!(mode, PagingMode::Bits32 | PagingMode::Bits32Pse) || bit != Cr4::PSE {
                state.cr4.set(bit, self.dice.percent(percent));
            }
        }
        if matches!(mode, PagingMode::Level4 | PagingMode::Level5) {
            state.cr4.set(Cr4::PCIDE, self.dice.percent(40));
        }
        state.cr4 -= self.refused;
        state.cr0.set(Cr0::WP, self.dice.percent(50));
        state.efer.set(Efer::NX, self.dice.percent(75));
        state.ac = AlignmentCheck::of(self.dice.below(2) << 18);
        state.maxphyaddr = self.maxphyaddr();
        if self.dice.percent(50) {
            state.vendor = GuestVendor::Amd;
        }
        state.gigabyte_pages = self.dice.percent(50);
        let low = if mode == PagingMode::Pae {
            0
        } else {
            self.dice.bits() & 0xfff
        };
        state.cr3 = (self.page() << 12) | low;
        if mode == PagingMode::Pae {
            state.cr3 = self.dice.below(RAM_PAGES) << 12 | self.dice.below(128) << 5;
        }
        state
    }

    fn maxphyaddr(&mut self) -> u8 {
        let choices = [36, 39, 40, 46, 48, 51, 52];
        self.dice.pick(&choices)
    }

    /// A page that a table can be in, rarely none.
    fn page(&mut self) -> u64 {
        match self.dice.below(64) {
            0 => RAM_PAGES + self.dice.below(ROM_START - RAM_PAGES),
            1 => self.dice.bits() & 0xff_ffff,
            2..6 => ROM_START + self.dice.below(ROM_PAGES),
            _ => self.dice.below(RAM_PAGES),
        }
    }

    /// Memory full of entries for a mode.
    pub(super) fn memory(&mut self, state: &CpuState) -> Memory {
        let mut memory = Memory::new();
        // Some states have user pages only rarely, so that SMAP does not end every walk.
        let user = self.dice.pick(&[10, 60, 90]);
        let wrong = self.dice.pick(&[2, 5, 15]);
        let narrow = matches!(state.mode, PagingMode::Bits32 | PagingMode::Bits32Pse);
        let word = |generator: &mut Self| match narrow {
            false => generator.entry(user, wrong, 64),
            true => generator.entry(user, wrong, 32) | generator.entry(user, wrong, 32) << 32,
        };
        memory.ram = (0..memory.ram.len())
            .map(|_| Cell::new(word(self)))
            .collect();
        memory.rom = (0..memory.rom.len()).map(|_| word(self)).collect();
        if state.mode == PagingMode::Pae {
            self.pointers(&memory, state);
        }
        memory
    }

    /// Page-directory pointers that can be loaded: some absent.
    fn pointers(&mut self, memory: &Memory, state: &CpuState) {
        let first = usize::try_from(state.cr3 >> 3).unwrap_or(0);
        for pointer in memory.ram.iter().skip(first).take(4) {
            let present = u64::from(self.dice.percent(90));
            pointer.set(self.page() << 12 | present);
        }
    }

    fn entry(&mut self, user: u64, wrong: u64, width: u32) -> u64 {
        let mut entry = self.page() << 12;
        for (bit, percent) in [(0, 97), (1, 70), (2, user), (5, 50), (6, 50), (8, 3)] {
            entry |= u64::from(self.dice.percent(percent)) << bit;
        }
        if self.dice.percent(8) {
            entry |= 1 << 7;
            // The start of a huge page, or nearly.
            if self.dice.percent(80) {
                entry &= !(0x3ff_f000 & !(self.dice.bits() << 22));
            }
        }
        if width == 64 && self.dice.percent(5) {
            entry |= 1 << 63;
        }
        if self.dice.percent(wrong) {
            entry ^= 1 << self.dice.below(u64::from(width));
        }
        entry & u64::MAX >> (64 - width)
    }

    /// An address: any, most of them canonical.
    pub(super) fn address(&mut self, mode: PagingMode) -> Gva {
        let bits = self.dice.bits();
        let wild = self.dice.percent(5);
        Gva::new(match mode {
            PagingMode::Level4 if !wild => sign_extended(bits, 48),
            PagingMode::Level5 if !wild => sign_extended(bits, 57),
            PagingMode::Bits32 | PagingMode::Bits32Pse | PagingMode::Pae if !wild => {
                bits & 0xffff_ffff
            }
            _ => bits,
        })
    }
}

/// An address whose upper bits are copies of its highest of `bits`.
fn sign_extended(address: u64, bits: u32) -> u64 {
    let low = u64::MAX >> (64 - bits);
    match address >> (bits - 1) & 1 {
        0 => address & low,
        _ => address | !low,
    }
}
