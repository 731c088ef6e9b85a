//! Which walks end on the short way. The others come to the same by the long one, so that only speed would tell.

use std::cell::Cell;

use slat_memslot::{Gpa, Gva};

use crate::role::{Cr0, Cr4, Efer, VcpuState};
use crate::walk::{ErrorCode, Exchange, GuestCpu, GuestPaging, Stage, TableMemory, Unnested};

const MARKED: u64 = 0x67;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const NO_EXECUTE: u64 = 1 << 63;

fn paging() -> GuestPaging {
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        ..VcpuState::default()
    };
    GuestPaging::new(&vcpu, &GuestCpu::new(46))
}

/// Counts what is read of four tables with a small page at 0 and a large one at 2 MiB, all marked but the page at 0x1000.
struct Counting {
    words: Vec<u64>,
    read: Cell<u32>,
}

impl TableMemory for Counting {
    fn read_u64(&self, at: Gpa) -> Option<u64> {
        self.read.set(self.read.get() + 1);
        self.words.get(usize::try_from(at.raw() / 8).ok()?).copied()
    }

    fn read_u32(&self, _: Gpa) -> Option<u32> {
        None
    }

    fn compare_exchange_u64(&self, _: Gpa, _: u64, _: u64) -> Exchange {
        Exchange::Done
    }

    fn compare_exchange_u32(&self, _: Gpa, _: u32, _: u32) -> Exchange {
        Exchange::Failed
    }
}

/// Only a walk that cannot end on the short way reads tables again.
#[test]
fn a_walk_reads_each_entry_once() {
    let mut words = vec![0; 4 * 512];
    for (at, entry) in [
        (0, 0x1000 | MARKED),
        (512, 0x2000 | MARKED),
        (1024, 0x3000 | MARKED),
        (1025, 0x40_0080 | MARKED),
        (3 * 512, 0x5000 | MARKED),
        (3 * 512 + 1, 0x6000 | MARKED & !ACCESSED),
    ] {
        words[at] = entry;
    }
    let memory = Counting {
        words,
        read: Cell::new(0),
    };
    for (address, gpa, read) in [
        (0x10, 0x5010, 4),
        (0x20_0010, 0x40_0010, 3),
        (0x1010, 0x6010, 8),
    ] {
        memory.read.set(0);
        let found = paging().translate(&memory, Gva::new(address), ErrorCode::READ);
        assert_eq!(found.map(|found| found.gpa), Ok(Gpa::new(gpa)));
        assert_eq!(memory.read.get(), read, "{address:#x}");
    }
}

#[test]
fn only_good_links_are_followed_on_the_short_way() {
    let reserved = paging().reserved;
    for level in 1..4 {
        let leads_on = |entry| reserved.is_good_link(entry, level);
        assert!(leads_on(0x5067) && leads_on(0x5001) && leads_on(NO_EXECUTE | 0x5067));
        for entry in [0x5066, 0x50e7, 1 << 46 | 0x5067, 1 << 51 | 0x5067, 0] {
            assert!(!leads_on(entry), "{entry:#x} at {level}");
        }
    }
}

#[test]
fn a_marked_leaf_that_allows_the_access_ends_the_short_way() {
    let paging = paging();
    // Bits that allow, or say that a page was used, count if all entries have them; what forbids counts turned round.
    let ends = |access, leaf: u64, above: u64| {
        let bits = (above ^ NO_EXECUTE) & (leaf ^ NO_EXECUTE);
        let what = (Gva::new(0x123), access);
        let found = paging.smooth_leaf(what, (leaf | 0x5000, bits), 0);
        found.map(|leaf| leaf.gpa.raw())
    };
    for access in [ErrorCode::READ, ErrorCode::WRITE, ErrorCode::FETCH] {
        assert_eq!(ends(access, MARKED, MARKED), Some(0x5123), "{access:?}");
        for (leaf, above) in [
            (MARKED & !ACCESSED, MARKED),
            (MARKED, MARKED & !ACCESSED),
            (MARKED & !1, MARKED),
            (MARKED | 1 << 51, MARKED),
        ] {
            assert_eq!(
                ends(access, leaf, above),
                None,
                "{access:?} {leaf:#x} below {above:#x}"
            );
        }
    }
    // Above the last level nothing is dirty.
    assert_eq!(
        ends(ErrorCode::WRITE, MARKED, MARKED & !DIRTY),
        Some(0x5123)
    );
    assert_eq!(ends(ErrorCode::READ, MARKED & !DIRTY, MARKED), Some(0x5123));
    assert_eq!(ends(ErrorCode::WRITE, MARKED & !DIRTY, MARKED), None);
    assert_eq!(ends(ErrorCode::WRITE, MARKED, MARKED & !2), None);
    assert_eq!(ends(ErrorCode::FETCH, MARKED, MARKED | NO_EXECUTE), None);
}

/// A stage that has nothing better asks for one address after the other.
#[test]
fn a_group_is_translated_one_by_one() {
    let group = [Some(Gpa::new(0x1000)), None, Some(Gpa::new(0x3008))];
    let mut to = [None; 3];
    Unnested.translate_group(&group, ErrorCode::empty(), &mut to);
    assert_eq!(to, group);
}
