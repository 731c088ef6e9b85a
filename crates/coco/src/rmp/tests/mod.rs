//! The reverse map against the vectors of the manuals' rules, and every instruction in every state against a naive table.
#![expect(
    clippy::cast_possible_truncation,
    reason = "tests run on hosts with 64 bits"
)]

mod access;
mod codec;
mod exhaustive;
mod reference;
mod vectors;

use slat_memslot::{Gfn, PageSize};
use slat_mmu::spte::Pfn;

use super::*;

fn asid(raw: u32) -> Asid {
    Asid::new(raw).unwrap()
}

/// The guest of the vectors.
fn guest() -> GuestCpu {
    GuestCpu {
        asid: asid(5),
        vmpl: Vmpl::Vmpl0,
    }
}

/// Where the vectors' page of 2 MiB is: guest address 1 GiB.
const GFN: u64 = 0x40000;
const PFN: u64 = 0x200;

/// A frame of the vectors' 2 MiB as tables of this size translate it.
fn page(index: u64, nested: PageSize) -> GuestPage {
    GuestPage {
        gfn: Gfn::new(GFN + index),
        pfn: Pfn::new(PFN + index),
        nested,
    }
}

fn private(index: u64, size: RmpSize) -> RmpState {
    RmpState::private(asid(5), Gfn::new(GFN + index), size)
}

/// A table with the vectors' entry of 2 MiB.
fn with_huge() -> Rmp {
    let rmp = Rmp::new(0x1000);
    let state = private(0, RmpSize::Size2M);
    rmp.rmpupdate(Pfn::new(PFN), &state).unwrap();
    rmp
}
