//! Switching between the four roots of a cache, beside a scan of four plain entries that moves its hit to the front.
//!
//! The method is that of `docs/performance.md`; the lines have the same form.

use std::hint::black_box;

use crate::paired::{Bound, Side, Target};
use slat_mmu::role::{CpuRole, Cr0, Cr4, Efer, PageRole, RoleLayout, VcpuState};
use slat_mmu::roots::{FlushOnReuse, GuestRoot, Pgd, RootTable, TdpMmu, VcpuMmu};

/// How many random numbers are used in turn.
const NUMBERS: usize = 1 << 14;

/// Target 5: everything that is measured, with its bound.
pub(crate) fn targets() -> impl Iterator<Item = Target> {
    let same = vec![0; NUMBERS];
    let two = (0..NUMBERS).map(|number| number % 2).collect();
    let switches = [
        ("switch CR3, the root in use", same),
        ("switch CR3, two roots in turn", two),
        ("switch CR3, four roots at random", random()),
    ];
    switches
        .into_iter()
        .map(|(name, numbers)| target(name, numbers))
}

/// A guest in long mode on shadow paging, where CR3 counts.
fn role() -> PageRole {
    let vcpu = VcpuState {
        cr0: Cr0::PE | Cr0::PG | Cr0::WP,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        ..VcpuState::default()
    };
    CpuRole::of(&vcpu, RoleLayout::Baseline).shadow_root_role()
}

/// Numbers of the four CR3s (xorshift).
fn random() -> Vec<usize> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::from(state.to_le_bytes()[7] & 3)
    };
    std::iter::repeat_with(next).take(NUMBERS).collect()
}

fn target(name: &'static str, numbers: Vec<usize>) -> Target {
    let pgds = [1, 2, 3, 4].map(|number| number << 12);
    let table = RootTable::new(TdpMmu::On);
    let mut mmu = VcpuMmu::new(role());
    for pgd in pgds.map(Pgd::new) {
        let _ = mmu.new_pgd(&table, pgd, FlushOnReuse::Off);
        mmu.load(&table, GuestRoot::Visible(pgd), || ());
    }
    let (mut turn, own_numbers) = (0, numbers.clone());
    let measured = Side::new("VcpuMmu::new_pgd", move || {
        let pgd = Pgd::new(pgds[own_numbers[turn % NUMBERS]]);
        turn += 1;
        let _ = black_box(mmu.new_pgd(&table, black_box(pgd), FlushOnReuse::Off));
    });
    let mut entries = [4, 3, 2, 1].map(|number| (number << 12, role()));
    let role = role();
    let mut turn = 0;
    let beside = Side::new("scan of four entries, move to front", move || {
        let pgd = pgds[numbers[turn % NUMBERS]];
        turn += 1;
        black_box(scan(&mut entries, black_box(pgd), role));
    });
    Target {
        name,
        measured,
        beside,
        bound: Bound::AtMost(3.0),
    }
}

/// A plain list of pairs with the latest in front. All four are compared, without a branch on which one it is.
fn scan(entries: &mut [(u64, PageRole); 4], pgd: u64, role: PageRole) -> Option<usize> {
    let same = entries.map(|(other_pgd, other_role)| (other_pgd == pgd) & (other_role == role));
    let number = same.iter().position(|same| *same)?;
    entries[..=number].rotate_right(1);
    Some(number)
}
