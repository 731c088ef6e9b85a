//! Faults planted for the rules that a whole VM adds: the host's own map, immutable entries, and the order of things.

use std::collections::BTreeSet;

use slat_coco::rmp::{RmpSize, RmpState, Visibility};
use slat_coco::snp::SnpViolation;
use slat_memslot::{
    AsId, Attributes, Call, Gfn, GfnRange, GmemId, Pages, Profile, Region, SlotKey, VmType,
};
use slat_mmu::host::Host;
use slat_mmu::spte::{Npt, Pfn};

use super::{FilePage, GuestAct, Snp, SnpAnswer, SnpCommand, SnpOp};
use crate::tdp_vm::TdpVm;

const FILE: GmemId = GmemId::new(0);
const PAGE: Gfn = Gfn::new(7);

/// A VM with a private page that is mapped and written.
fn vm() -> TdpVm<Npt> {
    let profile = Profile::named("linux-6.12").expect("built in");
    let mut vm = TdpVm::<Npt>::new(profile, VmType::Snp, &Host::npt(48)).expect("NPT");
    vm.create_gmem(0x10000).expect("a file");
    let region = Region::new(SlotKey::normal(0), 0, 0x10000, 0x7f00_0000_0000);
    vm.set_region(&region.with_gmem(FILE, 0));
    vm.set_attributes(Gfn::new(0), Pages::new(16), Attributes::PRIVATE.bits());
    vm.call(&Call::CreateVcpu).expect("a vCPU");
    let start = SnpCommand::LaunchStart {
        policy: 0x3_0000,
        flags: 0,
    };
    for command in [start, SnpCommand::LaunchFinish { flags: 0 }] {
        vm.snp_command(&command).expect("it is in order");
    }
    for act in [
        GuestAct::Validate(PAGE, RmpSize::Size4K),
        GuestAct::Write(PAGE, Visibility::Private, 1),
    ] {
        let _ = vm.snp_op(&SnpOp::Guest(0, act));
    }
    assert_eq!(vm.audit_snp(), []);
    vm
}

fn snp(vm: &mut TdpVm<Npt>) -> &mut Snp {
    vm.snp.as_mut().expect("an SNP guest")
}

fn pfn(vm: &TdpVm<Npt>) -> Pfn {
    vm.private_page(PAGE).expect("it is there")
}

fn codes(vm: &mut TdpVm<Npt>) -> BTreeSet<&'static str> {
    vm.audit_snp().iter().map(SnpViolation::code).collect()
}

/// The page goes to the hypervisor while a leaf still maps it.
#[test]
fn n16_given_back_before_the_zap() {
    let mut vm = vm();
    vm.free_private(FILE, PAGE.gpa().raw(), 0x1000);
    let found = codes(&mut vm);
    assert!(found.contains("N16") && found.contains("N08"), "{found:?}");
}

/// The leaf is gone, and TLBs have not been flushed.
#[test]
fn n16_given_back_before_the_flush() {
    let mut vm = vm();
    let range = GfnRange::new(PAGE, Pages::new(1)).expect("a page");
    let mut zap = slat_mmu::tdp::ZapLeafs::of_address_space(AsId::NORMAL, range);
    let locked = &mut vm.tables.exclusive(&mut vm.out);
    let _ = zap.run(locked, &mut slat_mmu::tdp::Uninterrupted);
    vm.free_private(FILE, PAGE.gpa().raw(), 0x1000);
    assert_eq!(codes(&mut vm), BTreeSet::from(["N16"]));
}

/// The page counts as prepared, and is not assigned.
#[test]
fn n17_mapped_before_it_is_assigned() {
    let mut vm = vm();
    let snp = snp(&mut vm);
    let pfn = snp
        .frames
        .allocate(&snp.rmp, RmpSize::Size4K)
        .expect("room");
    let page = FilePage {
        pfn,
        gfn: Gfn::new(3),
        folio: RmpSize::Size4K,
        prepared: true,
    };
    snp.insert_page((FILE, 3), page);
    let read = GuestAct::Read(Gfn::new(3), Visibility::Private);
    let stuck = vm.snp_op(&SnpOp::Guest(0, read));
    assert!(matches!(stuck, Ok(SnpAnswer::Stopped(_))));
    let found = codes(&mut vm);
    assert!(found.contains("N17") && found.contains("N01"), "{found:?}");
}

/// A page on its way to swap is freed without being reclaimed. It is leaked, and nobody uses it again.
#[test]
fn n15_an_immutable_page_is_freed() {
    let mut vm = vm();
    let pfn = pfn(&vm);
    snp(&mut vm)
        .rmp
        .swap_out_prepare(pfn)
        .expect("it is validated");
    vm.punch_hole(FILE, PAGE.gpa().raw(), 0x1000);
    assert_eq!(codes(&mut vm), BTreeSet::from(["N15"]));
    assert_eq!(snp(&mut vm).leaked.len(), 1);
}

/// The kernel's own map is not split before a page is assigned.
#[test]
fn n14_the_direct_map_is_not_split() {
    let mut vm = vm();
    let snp = snp(&mut vm);
    let other = slat_coco::rmp::Asid::new(9).expect("small");
    let state = RmpState::private(other, Gfn::new(1), RmpSize::Size4K);
    snp.rmp.rmpupdate(Pfn::new(0x8_0001), &state).expect("free");
    assert_eq!(codes(&mut vm), BTreeSet::from(["N14"]));
}

/// The rules that `slat-coco` plants faults for itself are looked at in a whole VM, too.
#[test]
fn entries_behind_kvms_back_are_found() {
    let mut vm = vm();
    let pfn = pfn(&vm);
    let state = RmpState::shared(RmpSize::Size4K);
    snp(&mut vm)
        .rmp
        .rmpupdate(pfn, &state)
        .expect("it is not immutable");
    assert_eq!(codes(&mut vm), BTreeSet::from(["N01"]));
}
