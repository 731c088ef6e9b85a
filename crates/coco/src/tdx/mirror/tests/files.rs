//! Pages belong to files, not to slots.

use slat_memslot::Level;

use super::*;

const FILE: FileId = FileId(7);

/// A TD with a slot of 16 frames, backed from page 4 of a file on.
fn bound() -> (TdxMmu, Vcpu) {
    let vm = TdxMmu::new(&Config::default()).unwrap();
    vm.bind_slot(SLOT, range(START, 16), Some((FILE, 4)));
    vm.set_private(range(START, 16));
    vm.finalize().unwrap();
    let mut vcpu = vm.vcpu(0).unwrap();
    accept_and_write(&vm, &mut vcpu, gfn(0), 1);
    accept_and_write(&vm, &mut vcpu, gfn(5), 2);
    (vm, vcpu)
}

#[test]
fn a_file_outlives_its_slot_and_content_does_not() {
    let (vm, mut vcpu) = bound();
    vm.delete_slot(SLOT, SlotZap::Leafs).unwrap();
    assert_eq!(vm.file_pages(FILE), Pages::new(2));
    vm.bind_slot(3, range(START, 16), Some((FILE, 4)));
    assert!(vm.has_private_page(gfn(5)) && !vm.has_private_page(gfn(6)));
    accept_and_write(&vm, &mut vcpu, gfn(5), 0);
    assert_eq!(vm.file_pages(FILE), Pages::new(2));
    clean(&vm);
}

#[test]
fn a_hole_is_where_the_slot_has_it() {
    let (vm, mut vcpu) = bound();
    let in_use = vm.pages_in_use();
    for (first, frames, any) in [(0, 1, true), (1, 4, false), (1, 5, true), (6, 10, false)] {
        let part = range(START + first, frames);
        assert_eq!(vm.has_private_page_in(part), any, "{part}");
    }
    vm.punch_file(FILE, 0, Pages::new(9));
    assert_eq!(
        vm.pages_in_use(),
        in_use - 1,
        "page 4 is frame 0, page 9 frame 5"
    );
    assert_eq!(value_at(&vm, &mut vcpu, gfn(5)), Touch::Value(Some(2)));
    assert!(!vm.has_private_page_in(range(START, 5)));
    vm.punch_file(FILE, 9, Pages::new(u64::MAX));
    assert_eq!(vm.private_pages(), 0);
    clean(&vm);
}

#[test]
fn a_file_that_is_closed_is_no_longer_behind_its_slot() {
    let (vm, mut vcpu) = bound();
    vm.release_file(FILE);
    assert_eq!(vm.private_pages(), 0);
    let fault = MemoryFault {
        gfn: gfn(0),
        private: true,
    };
    let again = vm.fault_private(&mut vcpu, gfn(0));
    assert_eq!(again, PrivateFault::Exit(fault));
    clean(&vm);
}

/// The attribute is tested before the slot: without either, userspace is asked (`mmu.c:kvm_mmu_faultin_pfn`).
#[test]
fn the_attribute_comes_before_the_slot() {
    let (vm, mut vcpu) = bound();
    let nowhere = Gfn::new(0x9000);
    let fault = MemoryFault {
        gfn: nowhere,
        private: true,
    };
    let asked = vm.fault_private(&mut vcpu, nowhere);
    assert_eq!(asked, PrivateFault::Exit(fault));
    vm.set_private(range(0x9000, 1));
    let missing = vm.fault_private(&mut vcpu, nowhere);
    assert_eq!(missing, PrivateFault::NoSlot);
}

#[test]
fn vcpus_are_made_until_there_are_enough() {
    let config = Config {
        vcpus: 0,
        ..Config::default()
    };
    let vm = TdxMmu::new(&config).unwrap();
    for number in 0..config.params.max_vcpus {
        assert_eq!(vm.add_vcpu(), Ok(number));
    }
    let status = vm.add_vcpu().unwrap_err().status;
    assert_eq!(status.code(), Some(Code::MaxVcpusExceeded));
    vm.bind_slot(SLOT, range(START, 16), Some((FILE, 0)));
    vm.set_private(range(START, 16));
    vm.finalize().unwrap();
    let mut last = vm.vcpu(config.params.max_vcpus - 1).unwrap();
    accept_and_write(&vm, &mut last, gfn(0), 1);
    let state = vm.sept_entry(GpaMapping::new(gfn(0).gpa(), Level::L1));
    assert_eq!(state, Some(SeptState::Mapped));
    vm.leave(&last);
    vm.destroy().unwrap();
}
