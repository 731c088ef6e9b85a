//! Model VMs with page tables: the same answers as without, where page tables decide nothing, and KVM's where they do.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use slat_memslot::{
    Access, Call, GuestAccess, Hva, Outcome, PageSize, PmlOrder, Profile, Quirks, Region,
    SlotFlags, SlotKey, cap,
};
use slat_mmu::host::Host;
use slat_mmu::tdp::audit::AuditContext;
use slat_vmm::differential::{Area, Config, compare};
use slat_vmm::traces::Predicted;
use slat_vmm::{Machine, MemoryVm, model, run, scenario};

const GUEST: &str = include_str!("../scenarios/guest.slat");
const MAPPED: &str = include_str!("../scenarios/mapped.slat");

fn hosts() -> [Host; 5] {
    [
        Host::npt(40),
        Host::npt(48).with_five_levels(),
        Host::ept(46),
        Host::ept(46).without_pml(),
        Host::ept(39).without_ad(),
    ]
}

fn sw_protected() -> Profile {
    Profile::named("debian-6.12.117-sw-protected").unwrap()
}

fn agreed(text: &str, machine: &mut impl Machine) -> (usize, usize) {
    let report = run(&scenario::parse(text).unwrap(), machine).unwrap();
    let failures = report.failures();
    let failures: Vec<_> = failures
        .map(|s| format!("line {}: {} gave {:?}", s.line, s.text, s.result))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    (report.agreed(), report.not_tried().count())
}

/// Any call that is no guest access and no pre-fault: refused for the same reason, or accepted with the same outcome.
#[test]
fn page_tables_change_no_answer() {
    let areas = [
        Area::Slots,
        Area::Gmem,
        Area::Attributes,
        Area::Caps,
        Area::Layout,
    ];
    for name in ["linux-6.8", "debian-6.12.117-sw-protected", "linux-7.3-rc1"] {
        for (seed, host) in (1..).zip(hosts()) {
            let profile = Profile::named(name).unwrap();
            let mut machine = model::Machine::with_host(profile, host);
            let config = Config {
                seed,
                calls: 4_000,
                areas: areas.to_vec(),
                ..Config::default()
            };
            let outcome = compare(&mut machine, &config, |_| {}).unwrap();
            let finding = outcome.finding.map(|finding| finding.scenario.to_string());
            assert_eq!(finding, None, "{name}, seed {seed}");
        }
    }
}

#[test]
fn guest_accesses_end_alike_with_and_without_page_tables() {
    let pvm = Profile::named("linux-6.18.44-pvm").unwrap();
    let (without, not_tried) = agreed(GUEST, &mut model::Machine::new(pvm));
    assert_eq!(not_tried, 0);
    for host in hosts() {
        let mut machine = model::Machine::with_host(sw_protected(), host);
        assert_eq!(agreed(GUEST, &mut machine), (without, 0));
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
#[test]
fn guest_accesses_end_as_on_the_live_kernel() {
    let mut machine = match slat_vmm::kvm::Machine::open() {
        Ok(machine) => machine,
        Err(error) => return println!("skipped: {error}"),
    };
    let (agreed, not_tried) = agreed(GUEST, &mut machine);
    println!("{agreed} answers agree, {not_tried} not tried");
}

#[test]
fn guest_accesses_follow_the_page_tables() {
    for host in hosts() {
        let mut machine = model::Machine::with_host(sw_protected(), host);
        assert_eq!(agreed(MAPPED, &mut machine).1, 0, "{host:?}");
    }
}

fn with_code(host: Host, profile: Profile, before: &[Call]) -> model::Vm {
    let mut vm = model::Machine::with_host(profile, host)
        .create_vm(0)
        .unwrap();
    for call in before {
        vm.call(call).unwrap();
    }
    let region = |slot, gpa, size| Region::new(SlotKey::normal(slot), gpa, size, BASE + gpa);
    vm.set_user_memory_region(&region(0, 0, 0x10000)).unwrap();
    let logged = region(1, 0x20_0000, 16 << 20).with_flags(SlotFlags::LOG_DIRTY_PAGES);
    vm.set_user_memory_region(&logged).unwrap();
    vm.call(&Call::CreateVcpu).unwrap();
    vm
}

const BASE: u64 = 0x7f00_0000_0000;

fn write(vm: &mut model::Vm, page: u64) -> Access {
    let access = GuestAccess::write(0x20_0000 + page * 0x1000).by_code_at(0x1000);
    match vm.call(&Call::Guest(access)) {
        Ok(Outcome::Access(access)) => access,
        other => panic!("{other:?}"),
    }
}

fn ring(bytes: u64) -> Call {
    Call::EnableCap {
        cap: cap::DIRTY_LOG_RING_ACQ_REL,
        flags: 0,
        args: [bytes, 0, 0, 0],
    }
}

/// `dirty_ring.c`: 64 entries in reserve, 512 more with PML; the vCPU does not enter at the soft limit, and the page that
/// filled the ring is in it before it was written.
#[test]
fn a_full_ring_stops_the_guest_until_it_is_reset() {
    for (host, bytes, soft) in [
        (Host::npt(40), 0x1000, 192),
        (Host::ept(46).without_pml(), 0x1000, 192),
        (Host::ept(46), 0x4000, 1024 - 576),
    ] {
        let mut vm = with_code(host, sw_protected(), &[ring(bytes)]);
        let mut page = 0;
        while write(&mut vm, page) == Access::Done {
            page += 1;
        }
        // The last fault filled the ring, and the guest was not entered again.
        assert_eq!(page + 1, soft, "{host:?}");
        assert_eq!(write(&mut vm, page), Access::RingFull);
        let Ok(Outcome::Ring(taken)) = vm.call(&Call::HarvestDirtyRing { vcpu: 0 }) else {
            panic!("no ring");
        };
        assert!(taken.into_iter().eq((0..soft).map(|page| (1, page))));
        assert_eq!(write(&mut vm, page), Access::RingFull);
        assert_eq!(vm.reset_dirty_rings().unwrap(), soft);
        assert_eq!(write(&mut vm, page), Access::Done);
    }
}

/// `vmx.c:vmx_flush_pml_buffer`: hardware logs what it sets dirty, and KVM takes it out at the exit, until 6.13 from the
/// end that was written last.
#[test]
fn the_order_of_the_hardware_log_shows_in_the_ring() {
    for (order, expected) in [
        (PmlOrder::NewestFirst, [(1, 5), (1, 9)]),
        (PmlOrder::OldestFirst, [(1, 9), (1, 5)]),
    ] {
        let mut profile = sw_protected();
        profile.pml_order.set(order);
        let mut vm = with_code(Host::ept(46), profile, &[ring(0x4000)]);
        for page in [5, 9] {
            assert_eq!(write(&mut vm, page), Access::Done);
        }
        vm.call(&Call::HarvestDirtyRing { vcpu: 0 }).unwrap();
        assert_eq!(vm.reset_dirty_rings().unwrap(), 2);
        // One run of the guest that writes both: no fault, since both are writable.
        let activity = slat_vmm::tdp_vm::Activity::halt(slat_memslot::Gpa::new(0x1000))
            .step(slat_mmu::fault::Kind::Write, 0x20_9000)
            .step(slat_mmu::fault::Kind::Write, 0x20_5000);
        vm.watch(true);
        vm.paging_mut().unwrap().run_guest(0, &activity);
        assert_eq!(vm.take().len(), 1);
        let Ok(Outcome::Ring(taken)) = vm.call(&Call::HarvestDirtyRing { vcpu: 0 }) else {
            panic!("no ring");
        };
        assert_eq!(taken, expected);
    }
}

/// Deleting another slot throws the mapping away, unless the quirk is off.
#[test]
fn deleting_a_slot_follows_the_quirk() {
    let quirk = Call::EnableCap {
        cap: cap::DISABLE_QUIRKS2,
        flags: 0,
        args: [Quirks::SLOT_ZAP_ALL.bits(), 0, 0, 0],
    };
    for (before, survives) in [(vec![], false), (vec![quirk], true)] {
        let mut vm = with_code(Host::npt(40), sw_protected(), &before);
        vm.set_user_memory_region(&Region::new(SlotKey::normal(7), 1 << 30, 0x1000, BASE))
            .unwrap();
        assert_eq!(write(&mut vm, 3), Access::Done);
        vm.set_user_memory_region(&Region::delete(SlotKey::normal(7)))
            .unwrap();
        let mapped = vm.paging().unwrap().totals().pages_4k;
        assert_eq!(mapped == 2, survives, "{mapped} pages are mapped");
        assert_eq!(write(&mut vm, 3), Access::Done);
    }
}

/// What is told of the host decides frames and sizes, and nothing is kept that nobody takes.
#[test]
fn told_pages_are_mapped_as_they_are() {
    let mut vm = with_code(Host::ept(46), sw_protected(), &[]);
    vm.set_user_memory_region(&Region::new(
        SlotKey::normal(2),
        1 << 30,
        2 << 30,
        BASE + (1 << 30),
    ))
    .unwrap();
    assert_eq!(vm.take(), []);
    vm.watch(true);
    let host = vm.host_memory_mut().unwrap();
    host.tell(Hva::new(BASE + (1 << 30)), 0x4_0000, PageSize::Size1G);
    host.tell(Hva::new(BASE + (2 << 30) + 0x1000), 0x123, PageSize::Size4K);
    // A frame that does not fit its address cannot be part of a huge page.
    host.tell(
        Hva::new(BASE + (2 << 30) + 0x20_0000),
        0x777,
        PageSize::Size2M,
    );
    for gpa in [
        (1 << 30) + 0x5_6000,
        (2 << 30) + 0x1000,
        (2 << 30) + 0x20_0000,
    ] {
        let read = GuestAccess::read(gpa).by_code_at(0x1000);
        vm.call(&Call::Guest(read)).unwrap();
    }
    let set = vm.take().into_iter().filter_map(|what| match what {
        Predicted::SpteSet {
            gfn, level, spte, ..
        } if gfn.raw() >= 0x4_0000 => Some((gfn.raw(), level, spte >> 12 & 0xf_ffff_ffff)),
        _ => None,
    });
    let level = |size: PageSize| size.level();
    let (small, giant) = (level(PageSize::Size4K), level(PageSize::Size1G));
    let expected = [
        (0x4_0000, giant, 0x4_0000),
        (0x8_0001, small, 0x123),
        (0x8_0200, small, 0x777),
    ];
    assert_eq!(set.collect::<Vec<_>>(), expected);
    let paging = vm.paging().unwrap();
    assert_eq!(paging.audit(&AuditContext::default()), []);
}

/// A preview leaves no trace, in slots or tables.
#[test]
fn a_preview_changes_nothing() {
    let mut vm = with_code(Host::npt(40), sw_protected(), &[]);
    assert_eq!(write(&mut vm, 3), Access::Done);
    let delete = Call::SetRegion(Region::delete(SlotKey::normal(1)));
    assert_eq!(vm.preview(&delete), Ok(Outcome::Done));
    assert!(vm.memory().slot(1).is_some());
    assert_eq!(vm.paging().unwrap().totals().pages_4k, 2);
    assert_eq!(vm.call(&delete), Ok(Outcome::Done));
    assert_eq!(vm.paging().unwrap().totals().pages_4k, 0);
}

/// `mmu.c:kvm_arch_mmu_enable_log_dirty_pt_masked` rounds up where it asks whether 64 pages cross huge pages: one whose
/// first frame is the last to be watched stays writable, and writes to it are lost. Read in Linux 6.12.117.
#[test]
fn a_huge_page_that_begins_with_the_last_cleared_page_is_forgotten() {
    let initially_set = Call::EnableCap {
        cap: cap::MANUAL_DIRTY_LOG_PROTECT2,
        flags: 0,
        args: [3, 0, 0, 0],
    };
    for (bits, seen) in [(0b011, vec![]), (0b111, vec![3])] {
        let mut vm = with_code(
            Host::npt(40),
            sw_protected(),
            core::slice::from_ref(&initially_set),
        );
        vm.paging_mut()
            .unwrap()
            .set_eager_split(slat_vmm::tdp_vm::EagerSplit::Off);
        let host = vm.host_memory_mut().unwrap();
        host.tell(Hva::new(BASE + (1 << 30)), 0x4_0000, PageSize::Size2M);
        let first = (1 << 30) - 0x1000;
        let region = Region::new(SlotKey::normal(2), first, 4 << 20, BASE + first);
        vm.set_user_memory_region(&region).unwrap();
        let write = |vm: &mut model::Vm, page: u64| {
            let access = GuestAccess::write(first + page * 0x1000).by_code_at(0x1000);
            vm.call(&Call::Guest(access)).unwrap();
        };
        write(&mut vm, 3);
        let logged = region.with_flags(SlotFlags::LOG_DIRTY_PAGES);
        vm.set_user_memory_region(&logged).unwrap();
        assert_eq!(vm.paging().unwrap().totals().pages_2m, 1);
        // The bitmap is set throughout. Two or three pages are watched, and the others forgotten.
        vm.clear_dirty_log(2, 0, 64, &[bits]).unwrap();
        vm.memory_mut()
            .clear_dirty_log(2, 0, 1024, &slat_memslot::ClearBits::All)
            .unwrap();
        write(&mut vm, 3);
        assert!(vm.get_dirty_log(2).unwrap().iter().eq(seen));
    }
}
