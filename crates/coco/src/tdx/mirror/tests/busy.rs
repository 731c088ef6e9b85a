//! A module that is busy.

use super::*;

/// Every call on the way in, one after the other.
#[test]
fn whoever_is_busy_on_the_way_in_leaves_everything_as_it_was() {
    for hooks in BOTH {
        for (leaf, calls) in [(Seamcall::MemSeptAdd, 3), (Seamcall::MemPageAug, 1)] {
            for skip in 0..calls {
                let vm = running(hooks);
                let mut vcpu = vm.vcpu(0).unwrap();
                let pages = vm.pages_in_use();
                let plan = BusyPlan::once(leaf, skip, Operand::Rcx);
                vm.module().plan_busy(plan);
                let busy = vm.fault_private(&mut vcpu, gfn(0));
                assert!(busy.is_retried(), "{leaf} {skip}: {busy:?}");
                assert!(vm.pages_in_use() <= pages + u64::from(skip) + 1 + 3);
                clean(&vm);
                let fixed = vm.fault_private(&mut vcpu, gfn(0));
                assert_eq!(fixed, PrivateFault::Fixed);
                clean(&vm);
            }
        }
    }
}

#[test]
fn whoever_is_busy_on_the_way_out_is_asked_again_without_vcpus() {
    let leaves = [
        Seamcall::MemRangeBlock,
        Seamcall::MemTrack,
        Seamcall::MemPageRemove,
        Seamcall::PhymemPageWbinvd,
    ];
    for leaf in leaves {
        for times in [1, 2] {
            let vm = running(HookGen::Unified);
            let mut vcpu = vm.vcpu(0).unwrap();
            accept_and_write(&vm, &mut vcpu, gfn(0), 1);
            assert!(vm.module().is_inside(vm.td(), VpId(0)));
            let plan = BusyPlan::times(leaf, 0, times, Operand::SeptTree);
            vm.module().plan_busy(plan);
            vm.set_shared(range(START, 1));
            assert!(!vm.module().is_inside(vm.td(), VpId(0)), "it was kicked");
            if times == 1 {
                clean(&vm);
            } else {
                assert_eq!(vm.bug(), Some(Bug::StillBusy(leaf)));
            }
        }
    }
}

#[test]
fn pages_of_a_td_that_is_built_are_not_tracked() {
    let vm = building(HookGen::Unified);
    vm.add_measured(gfn(0), Content::Value(1)).unwrap();
    let calls = vm.module().calls();
    vm.set_shared(range(START, 1));
    assert_eq!(
        vm.module().calls(),
        calls + 3,
        "blocked, removed, written back"
    );
    clean(&vm);
}
