//! Target 9: one dimension, beside the same loads alone, and beside memflow.

use slat::memslot::Gva;
use slat::mmu::walk::{ErrorCode, VmMemory};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress, VolatileMemory,
};

use super::{ADDRESS, chain, guest, hot, load, small};
use crate::paired::Bound;
use crate::peers::memflow::Memflow;
use crate::race::{Beside, Part, Race};

pub(crate) fn one_dimension() {
    let paging = guest();
    let flat = small();
    let words = flat.words.clone();
    let floor = flat.words.clone();
    let mut memflow = Memflow::new(&flat.words);
    for address in hot() {
        assert_eq!(
            memflow.translate(address),
            load(&floor, 0, address),
            "{address:#x}"
        );
    }
    Race::calls("9 walk, flat buffer")
        .with_slat(chain("slat", hot(), move |address| {
            paging
                .translate(words.as_slice(), Gva::new(address), ErrorCode::READ)
                .map_or(0, |found| found.address.raw())
        }))
        .with(
            Part::Floor,
            chain("four loads", hot(), move |address| load(&floor, 0, address)),
        )
        .with(
            Part::Peer,
            chain("memflow", hot(), move |address| memflow.translate(address)),
        )
        .goal("floor", Beside::Floor, Bound::AtMost(1.5))
        .goal("memflow", Beside::BestPeer, Bound::AtLeast(15.0))
        .report();

    let mmap = || {
        let words = flat.words.iter();
        let bytes: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
        let ranges = [
            (GuestAddress(0), bytes.len()),
            (GuestAddress(1 << 32), 1 << 20),
        ];
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("memory");
        memory.write_slice(&bytes, GuestAddress(0)).expect("inside");
        memory
    };
    let (memory, beside) = (mmap(), mmap());
    let lookups = "four region lookups and loads";
    Race::calls("9 walk, GuestMemoryMmap")
        .with_slat(chain("slat", hot(), move |address| {
            paging
                .translate(&VmMemory(&memory), Gva::new(address), ErrorCode::READ)
                .map_or(0, |found| found.address.raw())
        }))
        .with(
            Part::Floor,
            chain(lookups, hot(), move |address| {
                let mut table = 0;
                for shift in [39, 30, 21, 12] {
                    let at = GuestAddress((table & ADDRESS) + ((address >> shift & 511) << 3));
                    table = region_load(&beside, at).unwrap_or(0);
                }
                table & ADDRESS | address & 0xfff
            }),
        )
        .goal("floor", Beside::Floor, Bound::AtMost(1.5))
        .report();
}

#[inline]
fn region_load(memory: &GuestMemoryMmap<()>, at: GuestAddress) -> Option<u64> {
    use std::sync::atomic::{AtomicU64, Ordering};
    let region = memory.find_region(at)?;
    let offset = MemoryRegionAddress(at.0 - region.start_addr().0);
    let slice = region.get_slice(offset, 8).ok()?;
    Some(
        slice
            .get_atomic_ref::<AtomicU64>(0)
            .ok()?
            .load(Ordering::Acquire),
    )
}
