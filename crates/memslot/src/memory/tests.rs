use super::*;
use crate::{FileCall, GmemFlags, MapCall, Outcome, Region, SlotFlags, SlotId, cap};

const MIB: u64 = 1 << 20;

fn set(memory: &mut Memory, region: Region) {
    let _effects = memory.set_region(&region).unwrap();
}

fn range(start: u64, end: u64) -> GfnRange {
    GfnRange::between(Gfn::new(start), Gfn::new(end)).unwrap()
}

/// Page by page over two slots of one file, which lie elsewhere in the guest than in the file.
#[test]
fn frames_of_a_file_are_those_of_its_pages() {
    let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
    let file = memory.create_gmem(0x10_000, 0).unwrap();
    let slots = [(1u16, 0x100u64, 2u64, 3u64), (4, 0x50, 7, 4)];
    for (id, gfn, first, pages) in slots {
        let region = Region::new(SlotKey::normal(id), gfn << 12, pages << 12, 0);
        set(&mut memory, region.with_gmem(file, first << 12));
    }
    for (start, end) in (0..13).flat_map(|a| (a..14).map(move |b| (a, b))) {
        let mut expected = Vec::new();
        for (id, gfn, first, pages) in slots {
            let mut touched = (0..pages).filter(|page| (start..end).contains(&(first + page)));
            if let Some(from) = touched.next() {
                let last = touched.next_back().unwrap_or(from);
                expected.push((SlotKey::normal(id), range(gfn + from, gfn + last + 1)));
            }
        }
        // Half a page counts as a page.
        for (offset, len) in [(start << 12, (end - start) << 12), ((start << 12) + 1, 0)] {
            let half = len == 0 && start != end;
            let len = if half { ((end - start) << 12) - 2 } else { len };
            if len == 0 {
                continue;
            }
            let found: Vec<_> = memory.frames_of_file(file, offset, len).collect();
            assert_eq!(found, expected, "{offset:#x} {len:#x}");
        }
    }
    let all = memory.frames_of_file(file, 0, u64::MAX);
    assert_eq!(all.count(), 2);
}

#[test]
fn files_and_mappings_are_numbered_as_they_are_made() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    assert_eq!((memory.gmem_files(), memory.gmem_maps()), (0, 0));
    let flags = GmemFlags::all().bits();
    let files = [0, 1, 2].map(|_| memory.create_gmem(MIB, flags).unwrap());
    assert_eq!(memory.gmem_files(), 3);
    let mut made = Vec::new();
    for (file, offset, len) in [(files[2], 0x3000, 0x1800), (files[0], 0, MIB)] {
        let call = FileCall::Mmap {
            len,
            prot: 3,
            flags: 1,
            offset,
        };
        let Ok(Outcome::Mapped(map, hva)) = memory.file_call(file, call) else {
            panic!("{call:?}");
        };
        let end = Hva::new(hva.raw() + len.next_multiple_of(0x1000));
        made.push((map, (file, hva..end, offset)));
    }
    assert_eq!(memory.gmem_maps(), 2);
    for (map, at) in &made {
        assert_eq!(memory.gmem_map(*map).as_ref(), Some(at));
    }
    let gone = made[0].0;
    memory.map_call(gone, MapCall::Unmap).unwrap();
    assert_eq!(memory.gmem_map(gone), None);
    assert_eq!(memory.gmem_maps(), 2);
    memory.file_call(files[1], FileCall::Close).unwrap();
    assert_eq!(memory.gmem_files(), 3);
}

#[test]
fn a_vm_has_a_second_address_space_for_smm() {
    let spaces = |smm, vm_type| {
        let mut profile = Profile::latest();
        profile.smm.set(smm);
        let memory = Memory::new(profile, vm_type);
        memory.address_spaces().collect::<Vec<_>>()
    };
    assert_eq!(spaces(true, VmType::Default), [AsId::NORMAL, AsId::SMM]);
    assert_eq!(spaces(false, VmType::Default), [AsId::NORMAL]);
    assert_eq!(spaces(true, VmType::SwProtected), [AsId::NORMAL]);
    let memory = Memory::new(Profile::latest(), VmType::Default);
    for as_id in memory.address_spaces() {
        assert_eq!(memory.space(as_id).as_id(), as_id);
    }
}

/// One page of userspace behind two slots of one address space and a slot of the other.
#[test]
fn a_page_of_the_host_is_behind_every_slot_that_maps_it() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    let smm = SlotKey {
        as_id: AsId::SMM,
        id: SlotId::new(0),
    };
    set(
        &mut memory,
        Region::new(SlotKey::normal(0), 0, 0x4000, 0x7000_0000),
    );
    set(
        &mut memory,
        Region::new(SlotKey::normal(1), 0x10_0000, 0x2000, 0x7000_2000),
    );
    set(
        &mut memory,
        Region::new(smm, 0x20_0000, 0x8000, 0x7000_0000),
    );
    let mut found = memory.frames_behind(Hva::new(0x7000_2000), Hva::new(0x7000_3000));
    found.sort_unstable();
    let expected = [
        (AsId::NORMAL, range(0x2, 0x3)),
        (AsId::NORMAL, range(0x100, 0x101)),
        (AsId::SMM, range(0x202, 0x203)),
    ];
    assert_eq!(found, expected);
    let behind_all = memory.frames_behind(Hva::new(0x7000_8000), Hva::new(0x7100_0000));
    assert_eq!(behind_all, []);
}

#[test]
fn the_largest_page_is_the_largest_that_is_allowed() {
    let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
    let key = SlotKey::normal(0);
    set(&mut memory, Region::new(key, 0, 4 << 30, 1 << 40));
    let private = Attributes::PRIVATE;
    memory
        .set_attributes(0x1000, 0x1000, private.bits(), 0)
        .unwrap();
    assert_eq!(memory.attributes_of(Gfn::new(1)), private);
    assert_eq!(memory.attributes_of(Gfn::new(2)), Attributes::empty());
    assert_eq!(memory.attributes().get(Gfn::new(1)), private);
    let (k4, m2, g1) = (PageSize::Size4K, PageSize::Size2M, PageSize::Size1G);
    // The first page is mixed on both levels, the second 2 MiB on one, the second 1 GiB on none.
    for (gfn, found) in [
        (0, [k4, k4, k4]),
        (0x200, [k4, m2, m2]),
        (0x4_0000, [k4, m2, g1]),
    ] {
        let largest = [k4, m2, g1].map(|most| memory.largest_page(key, Gfn::new(gfn), most));
        assert_eq!(largest, found, "{gfn:#x}");
    }
    let nowhere = memory.largest_page(SlotKey::normal(1), Gfn::new(0x4_0000), g1);
    assert_eq!(nowhere, k4);
}

#[test]
fn slots_of_a_range_come_by_frame() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    for (id, gfn) in [(3u16, 0x100u64), (1, 0x200), (2, 0x300)] {
        set(
            &mut memory,
            Region::new(SlotKey::normal(id), gfn << 12, 0x10_000, gfn << 12),
        );
    }
    let space = memory.space(AsId::NORMAL);
    let within = |start, end| {
        let slots = space.in_range(range(start, end));
        slots.map(|slot| slot.key().id.raw()).collect::<Vec<_>>()
    };
    assert_eq!(within(0, 0x1000), [3, 1, 2]);
    assert_eq!(within(0x10f, 0x201), [3, 1]);
    assert_eq!(within(0x110, 0x200), [0; 0]);
}

/// `KVM_SET_USER_MEMORY_REGION` moves a slot in steps, of which another thread may see the first.
#[test]
fn a_slot_is_invalid_until_it_is_set_anew() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    let key = SlotKey::normal(3);
    assert_eq!(memory.invalidate_slot(key), None);
    set(&mut memory, Region::new(key, 0, MIB, 0));
    assert!(!memory.slot(3).unwrap().is_invalid());
    assert_eq!(memory.invalidate_slot(key), Some(()));
    assert!(memory.slot(3).unwrap().is_invalid());
    set(&mut memory, Region::new(key, MIB, MIB, 0));
    assert!(!memory.slot(3).unwrap().is_invalid());
}

#[test]
fn each_vcpu_has_its_own_ring() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    memory
        .enable_cap(cap::DIRTY_LOG_RING, 0, [0x1_0000, 0, 0, 0])
        .unwrap();
    memory.create_vcpu().unwrap();
    memory.create_vcpu().unwrap();
    let slot = Region::new(SlotKey::normal(0), 0, MIB, 0);
    set(&mut memory, slot.with_flags(SlotFlags::LOG_DIRTY_PAGES));
    let _fill = memory.mark_dirty(1, AsId::NORMAL, Gfn::new(5));
    let used = |vcpu| memory.ring(vcpu).map(DirtyRing::used);
    assert_eq!([used(0), used(1), used(2)], [Some(0), Some(1), None]);
    // 64 KiB are 4096 entries, of which PML and KVM's own writes keep 512 and 64.
    let limit = memory.ring(0).unwrap().soft_limit();
    assert_eq!(limit, 4096 - 512 - 64);
}
