//! From the first fault to the last page.

use slat_memslot::Level;
use slat_mmu::spte::Pfn;

use super::*;

#[test]
fn a_td_lives() {
    for hooks in BOTH {
        let vm = building(hooks);
        vm.add_measured(gfn(0), Content::Value(1)).unwrap();
        vm.add_unmeasured(gfn(1), Content::Value(2)).unwrap();
        clean(&vm);
        // Two pages, and 16 chunks of one.
        assert_eq!(vm.module().measured(vm.td()), Some(18));
        vm.finalize().unwrap();
        let mut vcpu = vm.vcpu(0).unwrap();
        assert_eq!(value_at(&vm, &mut vcpu, gfn(0)), Touch::Value(Some(1)));
        accept_and_write(&vm, &mut vcpu, gfn(0x300), 7);
        clean(&vm);
        vm.delete_slot(SLOT, SlotZap::Leafs).unwrap();
        clean(&vm);
        let tables = vm.pages_in_use();
        assert_eq!(tables, 4, "tables stay: two, and one for each 2 MiB");
        drop(vcpu);
        vm.destroy().unwrap();
        assert_eq!((vm.bug(), vm.pages_in_use()), (None, 0));
        assert_eq!(vm.audit(), []);
    }
}

#[test]
fn a_td_can_be_destroyed_with_all_it_maps() {
    for hooks in BOTH {
        let vm = running(hooks);
        let mut vcpu = vm.vcpu(0).unwrap();
        for page in [0, 1, 0x300] {
            accept_and_write(&vm, &mut vcpu, gfn(page), 1);
        }
        drop(vcpu);
        vm.destroy().unwrap();
        assert_eq!(vm.bug(), None);
        assert_eq!(vm.pages_in_use(), 3, "guest_memfd is still open");
        assert_eq!(vm.audit(), []);
    }
}

#[test]
fn a_page_that_is_taken_away_comes_back_empty_and_unaccepted() {
    let vm = running(HookGen::Unified);
    let mut vcpu = vm.vcpu(0).unwrap();
    accept_and_write(&vm, &mut vcpu, gfn(0), 7);
    accept_and_write(&vm, &mut vcpu, gfn(1), 8);
    // There and back: the page of guest_memfd is the same, its content is not.
    vm.set_shared(range(START, 1));
    clean(&vm);
    vm.set_private(range(START, 1));
    assert_eq!(
        value_at(&vm, &mut vcpu, gfn(0)),
        Touch::Fault(PrivateFault::Fixed)
    );
    assert_eq!(value_at(&vm, &mut vcpu, gfn(0)), Touch::Pending);
    vm.accept(&mut vcpu, gfn(0), Level::L1).unwrap();
    assert_eq!(value_at(&vm, &mut vcpu, gfn(0)), Touch::Value(Some(0)));
    // Nobody else has lost anything.
    assert_eq!(value_at(&vm, &mut vcpu, gfn(1)), Touch::Value(Some(8)));
    clean(&vm);
}

#[test]
fn an_attribute_that_is_so_already_zaps_nothing() {
    let vm = running(HookGen::Unified);
    let mut vcpu = vm.vcpu(0).unwrap();
    accept_and_write(&vm, &mut vcpu, gfn(0), 7);
    vm.set_private(range(START, PAGES));
    assert_eq!(value_at(&vm, &mut vcpu, gfn(0)), Touch::Value(Some(7)));
}

#[test]
fn deleting_a_slot_takes_its_leaves_and_no_others() {
    let vm = running(HookGen::Unified);
    vm.add_slot(2, range(0x1000, 0x10));
    vm.set_private(range(0x1000, 0x10));
    let mut vcpu = vm.vcpu(0).unwrap();
    let other = Gfn::new(0x1000);
    accept_and_write(&vm, &mut vcpu, gfn(0), 1);
    accept_and_write(&vm, &mut vcpu, other, 2);
    vm.delete_slot(SLOT, SlotZap::Leafs).unwrap();
    assert_eq!(value_at(&vm, &mut vcpu, other), Touch::Value(Some(2)));
    let gone = Touch::Fault(PrivateFault::NoSlot);
    assert_eq!(value_at(&vm, &mut vcpu, gfn(0)), gone);
    // Attributes outlive slots: a new one there begins private.
    vm.add_slot(3, range(START, 4));
    accept_and_write(&vm, &mut vcpu, gfn(0), 3);
    clean(&vm);
}

#[test]
fn shared_memory_is_in_the_other_root_under_the_shared_bit() {
    for gpaw in [Gpaw::Bits48, Gpaw::Bits52] {
        let config = Config {
            params: TdParams {
                gpaw,
                ..TdParams::default()
            },
            ..Config::default()
        };
        let vm = of_config(&config);
        vm.finalize().unwrap();
        let mut vcpu = vm.vcpu(0).unwrap();
        let page = Pfn::new(0x42);
        let fault = vm.fault_shared(&mut vcpu, gfn(0), page);
        let exit = MemoryFault {
            gfn: gfn(0),
            private: false,
        };
        assert_eq!(fault, PrivateFault::Exit(exit));
        vm.set_shared(range(START, 2));
        assert_eq!(
            vm.fault_shared(&mut vcpu, gfn(0), page),
            PrivateFault::Fixed
        );
        clean(&vm);
        let exit = MemoryFault {
            gfn: gfn(0),
            private: true,
        };
        let fault = vm.fault_private(&mut vcpu, gfn(0));
        assert_eq!(fault, PrivateFault::Exit(exit));
        accept_and_write(&vm, &mut vcpu, gfn(2), 5);
        vm.set_private(range(START, 2));
        clean(&vm);
        assert_eq!(vm.fault_private(&mut vcpu, gfn(0)), PrivateFault::Fixed);
        clean(&vm);
    }
}

#[test]
fn throwing_shared_tables_away_leaves_the_mirror() {
    let vm = running(HookGen::Unified);
    let mut vcpu = vm.vcpu(0).unwrap();
    accept_and_write(&vm, &mut vcpu, gfn(0), 7);
    vm.set_shared(range(START + 1, 1));
    let fault = vm.fault_shared(&mut vcpu, gfn(1), Pfn::new(0x42));
    assert_eq!(fault, PrivateFault::Fixed);
    vm.zap_direct_roots();
    assert_eq!(value_at(&vm, &mut vcpu, gfn(0)), Touch::Value(Some(7)));
    clean(&vm);
    // A new root of the same role is used from now on.
    let fault = vm.fault_shared(&mut vcpu, gfn(1), Pfn::new(0x42));
    assert_eq!(fault, PrivateFault::Fixed);
    clean(&vm);
}

#[test]
fn what_the_protocol_does_not_have_is_a_bug() {
    for hooks in BOTH {
        let vm = building(hooks);
        let mut vcpu = vm.vcpu(0).unwrap();
        assert_eq!(vm.fault_private(&mut vcpu, gfn(0)), PrivateFault::Dead);
        assert_eq!(vm.bug(), Some(Bug::NoSource(gfn(0))));
        // The entry has its old value back.
        assert_eq!(vm.audit(), []);
    }
}

#[test]
fn a_fault_gives_up_when_its_slot_goes() {
    let vm = running(HookGen::Unified);
    let mut vcpu = vm.vcpu(0).unwrap();
    vm.start_deletion(SLOT).unwrap();
    let deleted = |fault| (fault == PrivateFault::SlotDeleted).then_some(Stop::SlotDeleted);
    let stopped = vm.fault_until(&mut vcpu, gfn(0), 1000, deleted);
    assert_eq!(stopped, StoppedFault::Stopped(Stop::SlotDeleted));
    // Without that test it waits for a deletion that waits for it.
    let never = vm.fault_until(&mut vcpu, gfn(0), 1000, |_| None);
    assert_eq!(never, StoppedFault::Spinning(1000));
}
