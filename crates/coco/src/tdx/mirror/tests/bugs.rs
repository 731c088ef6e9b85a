//! What VMMs and guests got wrong in the field, each shown with what would have told them.

use slat_memslot::{Errno, Gpa, Level, Pages};

use super::*;
use crate::convert::Contract;
use crate::tdx::mapgpa::*;

const SHARED: u64 = 1 << 47;

/// Asks for a conversion, answering every exit with `answer`; gives the last word and the number of exits.
fn convert(
    rules: &MapGpaRules,
    (gpa, size): (u64, u64),
    mut answer: impl FnMut(&MapGpaExit) -> (u64, bool),
) -> (Option<MapGpaReply>, u64) {
    let mut request = match MapGpa::begin(rules, Gpa::new(gpa), size) {
        Ok(request) => request,
        Err(reply) => return (Some(reply), 0),
    };
    let mut exits = 0;
    loop {
        let exit = request.exit();
        exits += 1;
        let (ret, event) = answer(&exit);
        match request.answer(ret, event) {
            MapGpaStep::Exit(_) => {}
            MapGpaStep::Reply(reply) => return (Some(reply), exits),
            MapGpaStep::RunFails => return (None, exits),
        }
    }
}

const YES: (u64, bool) = (0, false);

/// A guest library tests R11 against a range without the SHARED bit: it never retries, and goes on half converted, as soon
/// as the host answers in pieces (gramineproject/gramine-tdx, PR 34).
#[test]
fn a_retry_names_the_address_with_the_shared_bit() {
    let (start, size) = (0x4000_0000, 4 << 20);
    let event = |_: &MapGpaExit| (0, true);
    let (reply, exits) = convert(&MapGpaRules::default(), (SHARED | start, size), event);
    let reply = reply.unwrap();
    assert_eq!((reply.status, exits), (MapGpaStatus::Retry, 1));
    let wrong = (start..start + size).contains(&reply.next.raw());
    assert!(!wrong, "a range without the bit never contains it");
    let right = (SHARED | start..SHARED | (start + size)).contains(&reply.next.raw());
    assert!(right);
    assert_eq!(reply.next.raw(), SHARED | (start + (2 << 20)));
}

/// A guest takes PAGE_ALREADY_ACCEPTED for "mine and safe". The host can take a page away and have it accepted again by
/// another vCPU meanwhile: content is gone (coconut-svsm/svsm, PRs 506 and 515).
#[test]
fn already_accepted_says_nothing_about_content() {
    let vm = running(HookGen::Unified);
    let (mut one, mut other) = (vm.vcpu(0).unwrap(), vm.vcpu(1).unwrap());
    accept_and_write(&vm, &mut one, gfn(0), 7);
    vm.set_shared(range(START, 1));
    vm.set_private(range(START, 1));
    accept_and_write(&vm, &mut other, gfn(0), 9);
    let again = vm.accept(&mut one, gfn(0), Level::L1).unwrap();
    assert_eq!(again, Accept::AlreadyAccepted(Level::L1));
    assert!(!again.status().unwrap().is_error(), "it is a success");
    assert_eq!(value_at(&vm, &mut one, gfn(0)), Touch::Value(Some(9)));
}

/// A VMM adds memory that it never made private (Cloud Hypervisor's bring-up, July 2026).
#[test]
fn memory_is_private_before_it_is_added() {
    let vm = TdxMmu::new(&Config::default()).unwrap();
    vm.add_slot(SLOT, range(START, PAGES));
    let mut region = MemRegion {
        source: 0x7000_0000,
        gpa: gfn(0).gpa(),
        pages: 2,
    };
    let mut add = |vm: &TdxMmu| {
        let content = |_| Content::Value(1);
        vm.init_mem_region(&mut region, Measure::Content, content, || false)
    };
    let error = add(&vm).unwrap_err();
    assert_eq!(error, InitMemError::NotPrivate(gfn(0).gpa()));
    assert_eq!(error.errno(), Errno::EINVAL);
    vm.set_private(range(START, PAGES));
    add(&vm).unwrap();
    clean(&vm);
}

/// A fault of private memory where the attribute says shared is userspace's to answer. Who has no handler for it, or for
/// another technology's guests only, has no guest.
#[test]
fn a_fault_of_the_other_kind_is_userspaces() {
    let vm = running(HookGen::Unified);
    vm.set_shared(range(START, 1));
    let mut vcpu = vm.vcpu(0).unwrap();
    let exit = MemoryFault {
        gfn: gfn(0),
        private: true,
    };
    for _ in 0..3 {
        let fault = vm.fault_private(&mut vcpu, gfn(0));
        assert_eq!(fault, PrivateFault::Exit(exit), "it comes again and again");
    }
    vm.set_private(range(START, 1));
    assert_eq!(vm.fault_private(&mut vcpu, gfn(0)), PrivateFault::Fixed);
}

/// Firmware converts an aperture of 70 TiB: an exit for every 2 MiB.
#[test]
fn a_large_aperture_is_millions_of_exits() {
    assert_eq!(MapGpa::exits(70 << 40), 36_700_160);
    let (reply, exits) = convert(&MapGpaRules::default(), (SHARED, 1 << 30), |_| YES);
    assert_eq!(reply.unwrap().status, MapGpaStatus::Success);
    assert_eq!(exits, 512);
}

/// A VMM does not enable `KVM_CAP_EXIT_HYPERCALL`: the guest is told, the VMM is not, and conversions happen by faults, page
/// by page.
#[test]
fn without_the_capability_the_vmm_hears_nothing() {
    let rules = MapGpaRules {
        exit_hypercall: false,
        ..MapGpaRules::default()
    };
    let (reply, exits) = convert(&rules, (SHARED | 0x1000, 0x1000), |_| YES);
    assert_eq!(reply.unwrap().status, MapGpaStatus::SubfuncUnsupported);
    assert_eq!(exits, 0);
}

/// A guest whose MAXPHYADDR is below its GPAW: every shared address is illegal, and nobody is told but the guest.
#[test]
fn the_shared_bit_has_to_fit_the_guests_addresses() {
    for (guest_maxphyaddr, status) in [
        (46, MapGpaStatus::InvalidOperand),
        (48, MapGpaStatus::Success),
    ] {
        let rules = MapGpaRules {
            guest_maxphyaddr,
            ..MapGpaRules::default()
        };
        let (reply, _) = convert(&rules, (SHARED | 0x1000, 0x1000), |_| YES);
        assert_eq!(reply.unwrap().status, status);
        let (private, _) = convert(&rules, (0x1000, 0x1000), |_| YES);
        assert_eq!(private.unwrap().status, MapGpaStatus::Success);
    }
}

/// A VMM does not call again after EINTR, and runs a TD with half an image.
#[test]
fn an_interrupted_region_says_what_is_left() {
    let vm = building(HookGen::Unified);
    let mut region = MemRegion {
        source: 0x7000_0000,
        gpa: gfn(0).gpa(),
        pages: 4,
    };
    let mut signals = [false, false, true].into_iter();
    let content = |source: u64| Content::Value(source >> 12);
    let signal = || signals.next().unwrap_or(false);
    let error = vm
        .init_mem_region(&mut region, Measure::Content, content, signal)
        .unwrap_err();
    assert_eq!(error.errno(), Errno::EINTR);
    let left = MemRegion {
        source: 0x7000_2000,
        gpa: gfn(2).gpa(),
        pages: 2,
    };
    assert_eq!(region, left);
    vm.init_mem_region(&mut region, Measure::Content, content, || false)
        .unwrap();
    assert_eq!(region.pages, 0);
    assert_eq!(vm.module().measured(vm.td()), Some(4 * 17));
    vm.finalize().unwrap();
    let mut vcpu = vm.vcpu(0).unwrap();
    let last = value_at(&vm, &mut vcpu, gfn(3));
    assert_eq!(last, Touch::Value(Some(0x7_0003)));
}

/// A VMM converts on faults without giving pages of guest_memfd back: twice the memory.
#[test]
fn a_conversion_without_a_hole_keeps_the_page() {
    let vm = running(HookGen::Unified);
    let mut vcpu = vm.vcpu(0).unwrap();
    accept_and_write(&vm, &mut vcpu, gfn(0), 7);
    let before = vm.pages_in_use();
    vm.set_shared(range(START, 1));
    assert_eq!(vm.pages_in_use(), before, "nobody has punched a hole");
    vm.punch(range(START, 1));
    assert_eq!(vm.pages_in_use(), before - 1);
}

/// QEMU up to 9.2 never writes `hypercall.ret`, so KVM leaves 0 there; a VMM that forwards -1 makes `KVM_RUN` fail.
#[test]
fn the_answer_is_zero_eagain_or_einval() {
    let ask = |contract, ret| {
        let rules = MapGpaRules {
            contract,
            ..MapGpaRules::default()
        };
        let as_left = |exit: &MapGpaExit| (exit.ret.wrapping_add(ret), false);
        let (reply, _) = convert(&rules, (0x1000, 0x1000), as_left);
        reply.map(|reply| reply.status)
    };
    let (any, errno) = (Contract::Before2026, Contract::Since2026);
    assert_eq!(ask(errno, 0), Some(MapGpaStatus::Success));
    assert_eq!(ask(errno, 11), Some(MapGpaStatus::Retry));
    assert_eq!(ask(errno, 22), Some(MapGpaStatus::InvalidOperand));
    assert_eq!(ask(errno, u64::MAX), None, "KVM_RUN fails");
    assert_eq!(ask(any, 11), Some(MapGpaStatus::InvalidOperand));
    assert_eq!(ask(any, u64::MAX), Some(MapGpaStatus::InvalidOperand));
}

/// What else the guest can get wrong.
#[test]
fn ranges_that_are_none() {
    let cases = [
        ((0x1000, 0), MapGpaStatus::InvalidOperand),
        ((u64::MAX - 0xfff, 0x2000), MapGpaStatus::InvalidOperand),
        ((SHARED - 0x1000, 0x2000), MapGpaStatus::InvalidOperand),
        ((0x1800, 0x1000), MapGpaStatus::AlignError),
        ((0x1000, 0x800), MapGpaStatus::AlignError),
    ];
    for (request, status) in cases {
        let (reply, exits) = convert(&MapGpaRules::default(), request, |_| YES);
        let reply = reply.unwrap();
        assert_eq!((reply.status, exits), (status, 0), "{request:x?}");
        assert_eq!(reply.next.raw(), request.0);
    }
}

/// A guest accepts 2 MiB, the host maps 4 KiB: one exit, a mismatch, then 512 accepts of which 511 exit again
/// (Dstack-TEE/dstack, PR 1220).
#[test]
fn accepting_2_mib_where_pages_are_small() {
    let vm = running(HookGen::Unified);
    let mut vcpu = vm.vcpu(0).unwrap();
    let first = Gfn::new(0x200);
    let large = vm.accept(&mut vcpu, first, Level::L2).unwrap();
    assert!(matches!(large, Accept::Exit(_)));
    let mismatch = vm.accept(&mut vcpu, first, Level::L2).unwrap_err();
    assert_eq!(
        mismatch.status,
        Status::at(Code::PageSizeMismatch, Level::L2)
    );
    let mut exits = 0;
    for page in 0..Pages::new(512).raw() {
        while let Accept::Exit(_) = vm
            .accept(&mut vcpu, Gfn::new(first.raw() + page), Level::L1)
            .unwrap()
        {
            exits += 1;
        }
    }
    assert_eq!(exits, 511);
    clean(&vm);
}
