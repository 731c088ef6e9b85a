//! How a slot is deleted: the sides of the thread of May 2024.

use slat_memslot::Level;
use slat_mmu::spte::Pfn;

use super::*;

fn with_pages() -> (TdxMmu, Vcpu) {
    let vm = running(HookGen::Unified);
    let mut vcpu = vm.vcpu(0).unwrap();
    vm.add_slot(2, range(0x1000, 0x10));
    vm.set_private(range(0x1000, 8));
    accept_and_write(&vm, &mut vcpu, gfn(0), 1);
    accept_and_write(&vm, &mut vcpu, Gfn::new(0x1000), 2);
    let shared = vm.fault_shared(&mut vcpu, Gfn::new(0x1008), Pfn::new(0x42));
    assert_eq!(shared, PrivateFault::Fixed);
    (vm, vcpu)
}

#[test]
fn throwing_all_tables_away_breaks_a_rule() {
    for hooks in BOTH {
        let vm = running(hooks);
        let mut vcpu = vm.vcpu(0).unwrap();
        accept_and_write(&vm, &mut vcpu, gfn(0), 1);
        let before = vm.module().calls();
        // Pages can be removed one by one; the first table cannot be given back while the TD has a key.
        let bug = vm.delete_slot(SLOT, SlotZap::AllRoots).unwrap_err();
        let level = match hooks {
            HookGen::Split => Level::L1,
            HookGen::Unified => Level::L2,
        };
        let Bug::TableBeforeKey(at, of) = bug else {
            panic!("{bug:?}");
        };
        println!(
            "{hooks:?}: {bug}, after {} calls",
            vm.module().calls() - before
        );
        assert_eq!((at, of), (Gfn::new(0), level));
        assert!(vm.slot(SLOT).is_some_and(|slot| !slot.deleting));
    }
}

#[test]
fn leaves_alone_cost_others_nothing() {
    let (vm, mut vcpu) = with_pages();
    vm.delete_slot(SLOT, SlotZap::Leafs).unwrap();
    let other = Gfn::new(0x1000);
    assert_eq!(value_at(&vm, &mut vcpu, other), Touch::Value(Some(2)));
    let shared = vm.fault_shared(&mut vcpu, Gfn::new(0x1008), Pfn::new(0x42));
    assert_eq!(shared, PrivateFault::Spurious);
    clean(&vm);
}

#[test]
fn throwing_shared_tables_away_costs_their_faults() {
    let (vm, mut vcpu) = with_pages();
    vm.delete_slot(SLOT, SlotZap::SharedRootsAndLeafs).unwrap();
    let other = Gfn::new(0x1000);
    assert_eq!(value_at(&vm, &mut vcpu, other), Touch::Value(Some(2)));
    let shared = vm.fault_shared(&mut vcpu, Gfn::new(0x1008), Pfn::new(0x42));
    assert_eq!(shared, PrivateFault::Fixed, "it was mapped before");
    clean(&vm);
}
