//! Every reason of the catalogue is met by a call, named rightly, and repaired.

use std::collections::BTreeSet;

use slat_memslot::{
    Call, ClearBits, Errno, FileCall, GuestAccess, Memory, Profile, Reason, Region, RegionVersion,
    Repair, SlotFlags, SlotKey, VmType, cap, catalogue,
};

mod triggers;

use triggers::triggers;

/// Reasons of calls that are made where no VM is yet: creating a VM of a type that the host lacks.
const BEFORE_A_VM: [&str; 1] = ["vm-type"];

#[test]
fn every_trigger_meets_its_reason() {
    for mut t in triggers() {
        let refusal = t.memory.call(&t.call).expect_err(t.code);
        assert_eq!(refusal.reason.code(), t.code);
        assert_eq!(refusal.errno(), t.errno, "{}", t.code);
        assert!(
            refusal.to_string().contains(t.shows),
            "{}: {refusal:?} should name {}",
            t.code,
            t.shows
        );
        let site = refusal.reason.kernel_site();
        assert!(site.contains(':'), "{}: {site}", t.code);
    }
}

#[test]
fn checking_gives_the_same_answer_and_changes_nothing() {
    for t in triggers() {
        let refusal = t.memory.check(&t.call).expect_err(t.code);
        assert_eq!(refusal.reason.code(), t.code);
        assert_eq!(t.memory.check(&t.call), Err(refusal), "{}", t.code);
    }
}

#[test]
fn the_triggers_are_the_catalogue() {
    let codes: Vec<&str> = triggers().iter().map(|t| t.code).collect();
    let met: BTreeSet<&str> = codes.iter().copied().collect();
    assert_eq!(met.len(), codes.len(), "a reason is triggered twice");
    let known: BTreeSet<&str> = catalogue().map(|(_, info)| info.code).collect();
    assert_eq!(known.len(), catalogue().count(), "a code names two reasons");
    let elsewhere: BTreeSet<&str> = BEFORE_A_VM.into();
    assert_eq!(&met | &elsewhere, known);
    assert!(met.is_disjoint(&elsewhere));
}

#[test]
fn only_a_binding_conflict_changed_its_number() {
    for mut t in triggers() {
        let refusal = t.memory.call(&t.call).expect_err(t.code);
        assert_eq!(refusal.errno(), refusal.reason.info().errno, "{}", t.code);
    }
    let mut memory = Memory::new(Profile::named("linux-7.2").unwrap(), VmType::Default);
    let file = memory.create_gmem(0x1000, 0).unwrap();
    let region = |id: u16| {
        let gpa = u64::from(id) * 0x1000;
        Region::new(SlotKey::normal(id), gpa, 0x1000, 0).with_gmem(file, 0)
    };
    let _effects = memory.set_region(&region(0)).unwrap();
    let refusal = memory.set_region(&region(1)).unwrap_err();
    assert_eq!(refusal.reason.code(), "gmem-bound");
    assert_eq!(refusal.errno(), Errno::EEXIST);
}

/// Follows a chain of repairs on the VM itself: to a call that it accepts, or to one that nothing helps.
fn follow(mut memory: Memory, call: &Call) -> Vec<&'static str> {
    let chain = memory.repairs(call);
    let codes: Vec<&'static str> = chain.iter().map(|step| step.reason.code()).collect();
    let repeated = codes.windows(2).any(|pair| pair[0] == pair[1]);
    assert!(!repeated, "{call:?}: {codes:?}");
    let mut current = call.clone();
    for step in &chain {
        let refusal = memory.check(&current).expect_err("a step has a reason");
        assert_eq!(refusal.reason, step.reason, "{call:?}: {codes:?}");
        let Repair::Calls { first, call: next } = &step.repair else {
            assert_eq!(Some(step), chain.last(), "{call:?}: {codes:?}");
            return codes;
        };
        for first in first {
            let answer = memory.call(first);
            assert!(answer.is_ok(), "{call:?}: {codes:?}: {first:?} {answer:?}");
        }
        current = next.clone();
    }
    let answer = memory.call(&current);
    assert!(answer.is_ok(), "{call:?}: {codes:?}: {answer:?}");
    codes
}

#[test]
fn every_reason_is_repaired_or_final() {
    for t in triggers() {
        let codes = follow(t.memory, &t.call);
        assert_eq!(codes[0], t.code);
    }
}

#[test]
fn a_repair_takes_its_reason_away() {
    for t in triggers() {
        let refusal = t.memory.check(&t.call).expect_err(t.code);
        let Repair::Calls { first, call } = t.memory.repair(&t.call, &refusal.reason) else {
            continue;
        };
        let mut memory = t.memory.clone();
        for first in &first {
            memory.call(first).expect(t.code);
        }
        let next = memory.check(&call).map_err(|refusal| refusal.reason);
        assert_ne!(next, Err(refusal.reason), "{}", t.code);
    }
}

#[test]
fn a_flagged_slot_can_be_logged_to_repair() {
    let profile = Profile::latest().with_zap_leafs_flag();
    let mut memory = Memory::new(profile, VmType::Default);
    let region = Region {
        version: RegionVersion::V2,
        ..Region::new(SlotKey::normal(0), 0, 0x1000, 0).with_flags(SlotFlags::ZAP_LEAFS_ONLY)
    };
    let _effects = memory.set_region(&region).unwrap();
    let clear = Call::ClearDirtyLog {
        slot: 0,
        first_page: 0,
        num_pages: 1,
        bits: ClearBits::All,
    };
    assert_eq!(follow(memory, &clear), ["dirty-not-logged"]);
}

#[test]
fn nothing_helps_a_private_slot_that_needs_what_the_host_lacks() {
    let mut profile = Profile::latest().with_zap_leafs_flag();
    profile.tdp_mmu.set(false);
    let mut memory = Memory::new(profile, VmType::Tdx);
    let file = memory.create_gmem(0x1000, 0).unwrap();
    let region = Region::new(SlotKey::normal(0), 0, 0x1000, 0).with_gmem(file, 0);
    let codes = follow(memory, &Call::SetRegion(region));
    assert_eq!(codes, ["zap-leafs-required", "zap-leafs-needs-tdp-mmu"]);
}

/// Only a TD's private slot needs the flag: others do without it.
#[test]
fn where_the_flag_is_not_had_it_is_left_out() {
    for (vm_type, private) in [
        (VmType::Default, false),
        (VmType::SwProtected, true),
        (VmType::Tdx, false),
    ] {
        let mut profile = Profile::latest().with_zap_leafs_flag();
        profile.tdp_mmu.set(false);
        let mut memory = Memory::new(profile, vm_type);
        let plain = Region {
            version: RegionVersion::V2,
            ..Region::new(SlotKey::normal(0), 0, 0x1000, 0)
        };
        let plain = match private {
            true => plain.with_gmem(memory.create_gmem(0x1000, 0).unwrap(), 0),
            false => plain,
        };
        let flags = plain.flags | SlotFlags::ZAP_LEAFS_ONLY.bits();
        let call = Call::SetRegion(Region { flags, ..plain });
        let refusal = memory.check(&call).unwrap_err();
        assert_eq!(refusal.reason.code(), "zap-leafs-needs-tdp-mmu");
        let repair = memory.repair(&call, &refusal.reason);
        assert!(
            matches!(&repair, Repair::Calls { first, call } if first.is_empty() && *call == Call::SetRegion(plain)),
            "{vm_type} {repair:?}"
        );
    }
}

#[test]
fn no_slot_can_help_a_pre_fault_above_the_highest_frame() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    memory.call(&Call::CreateVcpu).unwrap();
    let call = Call::PreFault {
        vcpu: 0,
        gpa: 1 << 50,
        size: 0x1000,
        flags: 0,
    };
    assert_eq!(follow(memory, &call), ["pre-fault-no-slot"]);
}

#[test]
fn a_vcpu_that_cannot_be_made_repairs_nothing() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    memory.call(&Call::CreateIrqchip).unwrap();
    let apic = Region::new(SlotKey::normal(0), 0xfee0_0000, 0x1000, 0);
    let _effects = memory.set_region(&apic).unwrap();
    let refusal = memory.check(&Call::CreateVcpu).unwrap_err();
    assert_eq!(refusal.reason.code(), "overlap");
    assert_eq!(
        follow(memory, &Call::Guest(GuestAccess::write(0))),
        ["no-vcpu"]
    );
}

#[test]
fn a_closed_gate_stops_every_ioctl_but_no_system_call() {
    for t in triggers() {
        let mut memory = t.memory;
        memory.set_gate(slat_memslot::Gate::Dead);
        let refusal = memory.call(&t.call).expect_err(t.code);
        let expected = match (t.code, &t.call) {
            ("other-process", _) => "vm-dead",
            ("no-vcpu" | "no-ring", _) | (_, Call::File(..) | Call::Map(..)) => t.code,
            _ => "vm-dead",
        };
        assert_eq!(refusal.reason.code(), expected, "{:?}", t.call);
        let gate = matches!(refusal.reason, Reason::Gate(_));
        assert_eq!(gate, refusal.errno() == Errno::EIO);
    }
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    memory.set_gate(slat_memslot::Gate::OtherProcess);
    let refusal = memory.call(&Call::CheckExtension { cap: 10 }).unwrap_err();
    assert_eq!(refusal.reason.code(), "other-process");
}

/// The call that comes of all repairs, if nothing is in the way.
fn repaired(memory: &Memory, call: &Call) -> Call {
    match memory.repairs(call).pop() {
        None => call.clone(),
        Some(step) => match step.repair {
            Repair::Calls { call, .. } => call,
            Repair::Impossible { why } => panic!("{call:?}: {why}"),
        },
    }
}

/// Wrong arguments are what repairs can always mend; whatever they come to, [`follow`] sees accepted.
#[test]
fn wrong_arguments_are_mended() {
    let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
    let file = memory.create_gmem(0x4000, 0).unwrap();
    let slot = Region::new(SlotKey::normal(0), 0, 0x10_0000, 0);
    let _effects = memory.set_region(&slot).unwrap();
    memory.call(&Call::CreateVcpu).unwrap();
    let values = [
        0,
        1,
        0x1000,
        0x1800,
        0x5000,
        1 << 63,
        u64::MAX - 0xfff,
        u64::MAX,
    ];
    let mut calls = Vec::new();
    for (a, b) in values.iter().flat_map(|a| values.map(|b| (*a, b))) {
        for mode in [0, 1, 2, 3, 4, 8, 0x11, 0x80] {
            let (offset, len) = (a, b);
            calls.push(Call::File(file, FileCall::Fallocate { mode, offset, len }));
        }
        for attributes in [0, 8, 9, u64::MAX] {
            calls.push(Call::SetAttributes {
                address: a,
                size: b,
                attributes,
                flags: a & 1,
            });
        }
        let (vcpu, gpa, size) = (0, a % 0x10_0000, b);
        let flags = a & 1;
        calls.push(Call::PreFault {
            vcpu,
            gpa,
            size,
            flags,
        });
    }
    for cap in [
        cap::MANUAL_DIRTY_LOG_PROTECT2,
        cap::DISABLE_QUIRKS2,
        cap::EXIT_HYPERCALL,
    ] {
        for (flags, arg) in (0..2).flat_map(|flags| values.map(|arg| (flags, arg))) {
            for arg in [arg, arg | 2, arg | 1 << 12] {
                let args = [arg, 0, 0, 0];
                calls.push(Call::EnableCap { cap, flags, args });
            }
        }
    }
    for call in &calls {
        repaired(&memory, call);
        follow(memory.clone(), call);
    }
}

/// What was right stays: a repair changes the argument that was refused.
#[test]
fn a_repair_leaves_the_rest_alone() {
    let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
    let file = memory.create_gmem(0x4000, 0).unwrap();
    let punch = |mode, offset, len| Call::File(file, FileCall::Fallocate { mode, offset, len });
    assert_eq!(
        repaired(&memory, &punch(2, 0x1000, 0x2000)),
        punch(3, 0x1000, 0x2000)
    );
    assert_eq!(
        repaired(&memory, &punch(0x80, 0x1000, 0x2000)),
        punch(1, 0x1000, 0x2000)
    );
    assert_eq!(
        repaired(&memory, &punch(3, 0x1234, 0x100)),
        punch(3, 0x1000, 0x1000)
    );
    assert_eq!(
        repaired(&memory, &punch(1, 0x3000, 0x2000)),
        punch(1, 0x2000, 0x2000)
    );
    let set = |address, size, attributes, flags| Call::SetAttributes {
        address,
        size,
        attributes,
        flags,
    };
    assert_eq!(
        repaired(&memory, &set(0x1000, 0x1000, 0x18, 1)),
        set(0x1000, 0x1000, 8, 0)
    );
    assert_eq!(
        repaired(&memory, &set(0x1000, 0, 8, 0)),
        set(0x1000, 0x1000, 8, 0)
    );
    let enable = |cap, flags, arg| Call::EnableCap {
        cap,
        flags,
        args: [arg, 0, 0, 0],
    };
    let manual = cap::MANUAL_DIRTY_LOG_PROTECT2;
    for (wrong, right) in [(2, 3), (4, 0), (5, 1), (6, 3)] {
        assert_eq!(
            repaired(&memory, &enable(manual, 0, wrong)),
            enable(manual, 0, right)
        );
    }
    let calls = cap::EXIT_HYPERCALL;
    assert_eq!(
        repaired(&memory, &enable(calls, 1, 0x1001)),
        enable(calls, 0, 0x1000)
    );
    // A vCPU that is missing is made where it is the next one.
    let access = |vcpu| Call::Guest(GuestAccess::read(0).by_vcpu(vcpu));
    assert_eq!(repaired(&memory, &access(0)), access(0));
}

/// The older struct and an older kernel know two flags.
#[test]
fn a_region_for_an_older_kernel_keeps_the_flags_that_it_knows() {
    let old = Memory::new(Profile::named("linux-6.1").unwrap(), VmType::Default);
    let region = Region::new(SlotKey::normal(0), 0, 0x1000, 0);
    let newer = Region {
        version: RegionVersion::V2,
        ..region.with_flags(SlotFlags::READONLY | SlotFlags::LOG_DIRTY_PAGES)
    };
    let older = Region {
        version: RegionVersion::V1,
        ..newer
    };
    let call = Call::SetRegion(newer);
    assert_eq!(repaired(&old, &call), Call::SetRegion(older));
}

/// Flags of the newer struct need the newer call, where the kernel has it.
#[test]
fn flags_of_the_newer_struct_need_the_newer_call() {
    let with_gmem = Region {
        version: RegionVersion::V1,
        ..Region::new(SlotKey::normal(0), 0, 0x1000, 0).with_flags(SlotFlags::GUEST_MEMFD)
    };
    let mend = |name| {
        let memory = Memory::new(Profile::named(name).unwrap(), VmType::Default);
        let call = Call::SetRegion(with_gmem);
        let refusal = memory.check(&call).unwrap_err();
        match memory.repair(&call, &refusal.reason) {
            Repair::Calls { call, .. } => call,
            Repair::Impossible { why } => panic!("{name}: {why}"),
        }
    };
    let newer = Region {
        version: RegionVersion::V2,
        ..with_gmem
    };
    assert_eq!(mend("linux-6.18"), Call::SetRegion(newer));
    let without = Region {
        flags: 0,
        ..with_gmem
    };
    assert_eq!(mend("linux-6.1"), Call::SetRegion(without));
}

/// Rings are switched on before the first vCPU, if at all.
#[test]
fn rings_are_enabled_for_a_reset_only_while_that_is_possible() {
    let repair = |rings, vcpu| {
        let mut profile = Profile::latest();
        profile.dirty_ring.set(rings);
        let mut memory = Memory::new(profile, VmType::Default);
        if vcpu {
            memory.call(&Call::CreateVcpu).unwrap();
        }
        let refusal = memory.check(&Call::ResetDirtyRings).unwrap_err();
        assert_eq!(refusal.reason.code(), "ring-not-enabled");
        memory.repair(&Call::ResetDirtyRings, &refusal.reason)
    };
    assert!(matches!(repair(true, false), Repair::Calls { first, .. } if first.len() == 1));
    for (rings, vcpu) in [(true, true), (false, false), (false, true)] {
        assert!(matches!(repair(rings, vcpu), Repair::Impossible { .. }));
    }
}
