//! What six VMMs (and QEMU among them) make of the same exits, as their sources had it in 2026, and what slat says where they differ.

use std::collections::BTreeMap;

use slat_memslot::{Errno, Gfn, Gpa, Memory, Pages, VmType};

use super::decode::hypercall;
use super::plan::{memory, range, request};
use super::reference::{Naive, World};
use crate::convert::{
    Cause, Contract, DecodeError, Ended, Found, HostPart, Left, LeftBehind, MapGpaRangeExit,
    MemoryFaultExit, Outcome, Path, Plan, PlanError, Policy, Request, Run, Step, Unbacked,
};
use crate::migration::Status;

/// A VMM's reading of the attributes: what the range shall be, or that it refuses.
type Reading = fn(u64) -> Option<Status>;

const fn by_bit(attributes: u64) -> Option<Status> {
    match attributes & 0x10 {
        0 => Some(Status::Shared),
        _ => Some(Status::Private),
    }
}

/// libkrun: whatever is not zero is private.
const fn by_zero(attributes: u64) -> Option<Status> {
    match attributes {
        0 => Some(Status::Shared),
        _ => Some(Status::Private),
    }
}

/// OpenVMM: bits 7:4 are the kind, of which 0 and 1 are known.
const fn by_nibble(attributes: u64) -> Option<Status> {
    match attributes >> 4 & 0xf {
        0 => Some(Status::Shared),
        1 => Some(Status::Private),
        _ => None,
    }
}

/// Cloud Hypervisor, libkrun, OpenVMM, alioth, dragonball and QEMU read the words that guests use alike, but for one; where they differ,
/// this says what the word means.
#[test]
fn attributes_are_read_six_ways() {
    let vmms: [(&str, Reading); 6] = [
        ("Cloud Hypervisor", by_bit),
        ("libkrun", by_zero),
        ("OpenVMM", by_nibble),
        ("alioth", by_bit),
        ("dragonball", by_bit),
        ("QEMU", by_bit),
    ];
    let all_but = |name: &'static str| {
        vmms.map(|(vmm, _)| vmm)
            .into_iter()
            .filter(move |vmm| *vmm != name)
    };
    // Words that mean nothing: only OpenVMM refuses, and only those with other bits beside bit 4.
    let but_openvmm: Vec<_> = all_but("OpenVMM").collect();
    let everybody: Vec<_> = all_but("").collect();
    let table: [(u64, Option<Status>, &[&str]); 8] = [
        (0x00, Some(Status::Shared), &[]),
        (0x10, Some(Status::Private), &[]),
        (0x11, Some(Status::Private), &[]),
        (0x12, Some(Status::Private), &[]),
        // Shared memory in pages of 2 MiB and 1 GiB: libkrun makes it private.
        (0x01, Some(Status::Shared), &["libkrun"]),
        (0x02, Some(Status::Shared), &["libkrun"]),
        (0x30, None, &but_openvmm),
        (0x03, None, &everybody),
    ];
    for (word, meaning, differ) in table {
        let decoded = hypercall([0x20_0000, 512, word]).map(|request| request.to);
        assert_eq!(decoded.ok(), meaning, "{word:#x}");
        let others = vmms.into_iter().filter(|(_, read)| read(word) != meaning);
        let names: Vec<_> = others.map(|(name, _)| name).collect();
        assert_eq!(names, differ, "{word:#x}");
    }
}

/// Cloud Hypervisor has a comment that pages of 2 MiB would be counted in 2 MiB: they are counted in 4 KiB.
#[test]
fn cloud_hypervisor_counts_pages_of_4k_whatever_the_size() {
    for size in 0..3 {
        let request = hypercall([0x4000_0000, 512, 0x10 | size]).expect("a request");
        assert_eq!(request.range.pages(), Pages::new(512), "{size}");
    }
}

/// Cloud Hypervisor, libkrun, alioth and dragonball take the range as it is; OpenVMM and QEMU look at its alignment, OpenVMM at its end.
#[test]
fn openvmm_checks_ranges_and_so_does_slat() {
    let unaligned = Err(DecodeError::Unaligned(Gpa::new(0x800)));
    assert_eq!(hypercall([0x800, 1, 0x10]), unaligned);
    let (gpa, pages) = (Gpa::new(!0xfff), 2);
    assert_eq!(
        hypercall([!0xfff, 2, 0x10]),
        Err(DecodeError::Wraps { gpa, pages })
    );
    assert_eq!(
        hypercall([0, 0, 0x10]),
        Err(DecodeError::Empty(Gpa::new(0)))
    );
}

/// Cloud Hypervisor ignores it, alioth panics, the others stop the VM.
#[test]
fn alioth_panics_at_another_hypercall() {
    let exit = MapGpaRangeExit {
        nr: 5,
        args: [0x1000, 1, 0x10],
    };
    assert_eq!(
        Request::from_hypercall(&exit),
        Err(DecodeError::OtherHypercall(5))
    );
}

fn plan(memory: &Memory, request: &Request) -> Plan {
    Plan::new(memory, request, &Policy::default()).expect("a plan")
}

fn discards(plan: &Plan) -> usize {
    let discards = plan
        .steps()
        .filter(|step| matches!(step, Step::DiscardShared(_) | Step::DiscardPrivate { .. }));
    discards.count()
}

/// libkrun looks up the slot of the first page only, dragonball none.
#[test]
fn libkrun_looks_at_the_first_slot_only() {
    let plan = plan(&memory(VmType::Snp), &request(0x18, 0x30, Status::Private));
    let parts: Vec<_> = plan.steps().map(Step::range).collect();
    assert_eq!(
        parts,
        [range(0x18, 0x30), range(0x18, 0x20), range(0x20, 0x30)]
    );
}

/// OpenVMM wants segments to tile the range; alioth clips it to RAM; QEMU takes one section. Each is a policy.
#[test]
fn openvmm_refuses_holes_and_alioth_clips_them() {
    let memory = memory(VmType::Snp);
    let wanted = request(0x38, 0x48, Status::Private);
    let refused = Plan::new(&memory, &wanted, &Policy::default());
    assert!(
        matches!(refused, Err(PlanError::NothingPrivate { range: hole, .. }) if hole == range(0x40, 0x48))
    );
    let clipping = Policy {
        unbacked_to_private: Unbacked::Skip,
        ..Policy::default()
    };
    let clipped = Plan::new(&memory, &wanted, &clipping).expect("a plan");
    assert!(
        clipped
            .steps()
            .all(|step| step.range() == range(0x38, 0x40))
    );
}

/// OpenVMM answers 1 and the guest lives; the other five stop the VM, and QEMU once passed -1 on. Since May 2026 KVM takes neither.
#[test]
fn openvmm_answers_one_and_others_stop_the_vm() {
    let refused = Outcome::Refused;
    for contract in [Contract::Before2026, Contract::Since2026] {
        assert_eq!(refused.ret(contract, Path::Converted), 22);
        let heard = Outcome::of_ret(refused.ret(contract, Path::Converted), contract);
        assert_eq!(heard, Ok(refused));
    }
    for wrong in [1, u64::MAX, 22_u64.wrapping_neg()] {
        assert_eq!(Outcome::of_ret(wrong, Contract::Before2026), Ok(refused));
        assert!(Outcome::of_ret(wrong, Contract::Since2026).is_err());
    }
}

/// Cloud Hypervisor and alioth only set attributes for `KVM_EXIT_MEMORY_FAULT`, OpenVMM and dragonball stop the VM, libkrun and QEMU
/// convert: there is one way.
#[test]
fn cloud_hypervisor_discards_nothing_at_a_memory_fault() {
    let memory = memory(VmType::Snp);
    let exit = MemoryFaultExit {
        flags: 8,
        gpa: Gpa::new(0x1_8000),
        size: 0x1000,
    };
    let implicit = Request::from_memory_fault(&exit).expect("a request");
    assert_eq!(implicit.cause, Cause::MemoryFault);
    let explicit = hypercall([0x1_8000, 1, 0x10]).expect("a request");
    let steps = |request| plan(&memory, request).steps().copied().collect::<Vec<_>>();
    assert_eq!(steps(&implicit), steps(&explicit));
    assert_eq!(discards(&plan(&memory, &implicit)), 1);
}

/// libkrun's author took the exit's number for the flag once.
#[test]
fn libkrun_took_the_number_of_the_exit_for_the_flag() {
    let exit = MemoryFaultExit {
        flags: 39,
        gpa: Gpa::new(0),
        size: 0x1000,
    };
    let found = Request::from_memory_fault(&exit);
    assert_eq!(found, Err(DecodeError::UnknownFlags(39)));
}

/// Cloud Hypervisor discards on the way to shared only, libkrun, OpenVMM and QEMU both ways, alioth and dragonball never: memory is used
/// twice then, and old private contents come back.
#[test]
fn alioth_and_dragonball_discard_nothing() {
    let mut memory = memory(VmType::SwProtected);
    let keep = Policy {
        left_behind: LeftBehind::Keep,
        ..Policy::default()
    };
    for to in [Status::Private, Status::Shared] {
        let wanted = request(0x10, 0x20, to);
        assert_eq!(discards(&plan(&memory, &wanted)), 1, "{to}");
        let kept = Plan::new(&memory, &wanted, &keep).expect("a plan");
        assert_eq!(discards(&kept), 0);
        let [loss] = kept.losses() else {
            panic!("{kept}")
        };
        assert_eq!((loss.left, loss.found), (Left::Kept, Found::LastKept));
        memory
            .set_attributes(0x1_0000, 0x1_0000, 8, 0)
            .expect("set");
    }
}

/// Cloud Hypervisor logs that a discard failed, libkrun says no and then yes, OpenVMM says no although it has happened. It has, and the
/// VMM knows what is left.
#[test]
fn openvmm_says_no_to_what_has_happened() {
    let memory = memory(VmType::Snp);
    let plan = plan(&memory, &request(0x10, 0x20, Status::Private));
    let mut naive = Naive::new(World::default(), &memory);
    naive.failing = BTreeMap::from([(1, Errno::EINVAL)]);
    let mut run = Run::new(plan);
    let ended = run.to_end(&mut naive).expect("an end");
    assert_eq!((ended, ended.outcome()), (Ended::Converted, Outcome::Done));
    assert!(naive.world.private.contains(&Gfn::new(0x10)));
    // The same with hugetlbfs in QEMU, where the shared side cannot be given back at all.
    let [left] = run.left_over() else {
        panic!("{run:?}")
    };
    let hva = slat_memslot::Hva::new(0x7f00_0001_0000);
    let range = range(0x10, 0x20);
    assert_eq!(left.step, Step::DiscardShared(HostPart { range, hva }));
}

/// A VMM that answers a fault by setting what is set already sees it again for ever: a slot without guest_memfd, or one whose file is
/// gone.
#[test]
fn a_busy_loop_is_an_empty_plan() {
    let mut memory = memory(VmType::SwProtected);
    memory.set_attributes(0x5_0000, 0x1000, 8, 0).expect("set");
    let exit = MemoryFaultExit {
        flags: 8,
        gpa: Gpa::new(0x5_0000),
        size: 0x1000,
    };
    let fault = Request::from_memory_fault(&exit).expect("a request");
    assert!(plan(&memory, &fault).is_empty());
}
