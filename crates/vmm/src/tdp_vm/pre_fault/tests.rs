use slat_memslot::{Gpa, Profile, Region, SlotKey, VmType};
use slat_mmu::fault::Endless;
use slat_mmu::host::Host;
use slat_mmu::spte::Npt;

use super::*;
use crate::tdp_vm::Activity;

const PAGES: Pages = Pages::new(4);

/// A VM with two slots of 64 KiB and a vCPU, which has run once.
fn vm(profile: &str) -> TdpVm<Npt> {
    let profile = Profile::named(profile).unwrap();
    let mut vm = TdpVm::new(profile, VmType::Default, &Host::npt(40)).unwrap();
    vm.create_vcpu(0);
    for (id, gpa) in [(0, 0), (1, 0x10_0000)] {
        let slot = SlotKey::normal(id);
        vm.set_region(&Region::new(slot, gpa, 0x1_0000, 0x4000_0000 + gpa));
    }
    vm.run_guest(0, &Activity::halt(Gpa::new(0xf000)));
    let _ = vm.take();
    vm
}

fn pre_fault(vm: &mut TdpVm<Npt>) -> PreFaulted {
    vm.pre_fault(0, Gfn::new(0), PAGES, 0)
}

fn told(vm: &mut TdpVm<Npt>) -> String {
    let events: Vec<String> = vm.take().iter().map(ToString::to_string).collect();
    events.join("\n")
}

/// Recording 36 of 6.12.117 has `EINTR` from a timer, and success after an entry; 6.15 mended it.
#[test]
fn after_a_fast_zap_old_kernels_spin_until_the_guest_was_entered() {
    for (profile, spins) in [
        ("debian-6.12.117", true),
        ("linux-6.12", true),
        ("linux-6.18", false),
    ] {
        let mut vm = vm(profile);
        vm.set_region(&Region::new(SlotKey::normal(1), 0x10_0000, 0, 0));
        let _ = vm.take();
        let ended = pre_fault(&mut vm);
        if spins {
            let PreFaulted::Stopped { left, why } = ended else {
                panic!("{profile}: {ended:?}");
            };
            assert!(matches!(
                why,
                PrefaultError::Endless {
                    why: Endless::ObsoleteRoot,
                    ..
                }
            ));
            assert_eq!(left, PAGES);
            vm.run_guest(0, &Activity::halt(Gpa::new(0xf000)));
            assert_eq!(pre_fault(&mut vm), PreFaulted::All);
        } else {
            assert_eq!(ended, PreFaulted::All, "{profile}");
        }
    }
}

/// Recordings 33 and 34 of 6.12.117: `0xe47 -> 0xe07`, accessed and dirty both gone. Later kernels leave the leaf.
#[test]
fn a_second_pre_fault_changes_leaves_up_to_6_12_only() {
    for (profile, changes) in [("debian-6.12.117", true), ("linux-6.18", false)] {
        let mut vm = vm(profile);
        assert_eq!(pre_fault(&mut vm), PreFaulted::All);
        let first = told(&mut vm);
        assert!(first.contains("kvm_tdp_mmu_spte_changed"), "{first}");
        assert_eq!(pre_fault(&mut vm), PreFaulted::All);
        let second = told(&mut vm);
        let changed = second.contains("kvm_tdp_mmu_spte_changed");
        assert_eq!(changed, changes, "{profile}: {second}");
    }
}

/// The thread in which the call was argued about: what merged, mapping for the base mode without a word, and an error.
#[test]
fn a_vcpu_in_smm_is_treated_as_the_policy_has_it() {
    for (outside, ended, leaves) in [
        (
            PrefaultOutside::CurrentRoot,
            // SMM has no slots here.
            PreFaulted::Stopped {
                left: PAGES,
                why: PrefaultError::NoSlot,
            },
            0,
        ),
        (PrefaultOutside::BaseRoot, PreFaulted::All, PAGES.raw()),
        (
            PrefaultOutside::Refused,
            PreFaulted::OutsideBaseMode(OutsideBaseMode(VcpuMode::Smm)),
            0,
        ),
    ] {
        let mut vm = vm("debian-6.12.117");
        vm.set_prefault_outside(outside);
        let before = vm.tables().totals().pages_4k;
        vm.set_mode(0, VcpuMode::Smm);
        assert_eq!(pre_fault(&mut vm), ended);
        assert_eq!(vm.tables().totals().pages_4k - before, leaves);
        vm.set_mode(0, VcpuMode::Normal);
        let _ = vm.take();
        // Back in the base mode, the guest finds what was mapped, and only that.
        vm.run_guest(0, &Activity::halt(Gpa::new(0)));
        let requested = told(&mut vm).contains("kvm_mmu_spte_requested");
        assert_eq!(requested, leaves == 0, "{outside:?}");
        // A root that nobody but the TDP MMU holds is no obstacle.
        assert_eq!(pre_fault(&mut vm), PreFaulted::All);
    }
}

/// In the base mode there is nothing to argue about.
#[test]
fn in_the_base_mode_all_policies_are_one() {
    let events = [
        PrefaultOutside::CurrentRoot,
        PrefaultOutside::BaseRoot,
        PrefaultOutside::Refused,
    ]
    .map(|outside| {
        let mut vm = vm("debian-6.12.117");
        vm.set_prefault_outside(outside);
        assert_eq!(pre_fault(&mut vm), PreFaulted::All);
        told(&mut vm)
    });
    assert!(events.iter().all(|each| *each == events[0]));
}
