#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

use slat_memslot::{Profile, Region, SlotFlags, SlotKey, VmType};

use super::*;

/// 4 MiB at 2 MiB, two pages before them, logged 2 MiB behind a hole, on 6.12.
fn memory() -> Memory {
    let mut memory = Memory::new(Profile::named("linux-6.12").unwrap(), VmType::Default);
    let ram = Region::new(SlotKey::normal(0), 0x20_0000, 4 << 20, 0x7f00_0020_0000);
    let logged = Region::new(SlotKey::normal(1), 0x80_0000, 2 << 20, 0x7f00_0080_0000)
        .with_flags(SlotFlags::LOG_DIRTY_PAGES);
    let few = Region::new(SlotKey::normal(2), 0x1f_e000, 0x2000, 0x7f00_001f_e000);
    for region in [ram, few, logged] {
        let _effects = memory.set_region(&region).unwrap();
    }
    memory
}

fn plan(
    vcpu: &VcpuState,
    outside: PrefaultOutside,
    (start, end): (u64, u64),
) -> Result<PrefaultPlan, OutsideBaseMode> {
    let who = Prefaulter {
        host: &Host::ept(46).with_five_levels(),
        vcpu,
        outside,
        apicv: Apicv::Active,
    };
    let range = GfnRange::between(Gfn::new(start), Gfn::new(end)).unwrap();
    who.plan(&memory(), range, |_, _| PageSize::Size1G)
}

#[test]
fn leaves_are_as_large_as_the_slot_allows() {
    let vcpu = VcpuState::default();
    let plan = plan(&vcpu, PrefaultOutside::CurrentRoot, (0x200, 0x600)).unwrap();
    let frames = GfnRange::between(Gfn::new(0x200), Gfn::new(0x600)).unwrap();
    let size = PageSize::Size2M;
    assert_eq!(plan.runs, [PlannedRun { frames, size }]);
    assert_eq!((plan.faults(), plan.stop), (2, None));
    assert_eq!(plan.caveats, [Caveat::GoesWithAnySlot]);
}

#[test]
fn leaves_of_another_size_are_another_run() {
    let vcpu = VcpuState::default();
    let plan = plan(&vcpu, PrefaultOutside::CurrentRoot, (0x1fe, 0x601)).unwrap();
    let run = |start, end, size| {
        let frames = GfnRange::between(Gfn::new(start), Gfn::new(end)).unwrap();
        PlannedRun { frames, size }
    };
    let small = run(0x1fe, 0x200, PageSize::Size4K);
    let huge = run(0x200, 0x600, PageSize::Size2M);
    assert_eq!(plan.runs, [small, huge]);
    assert_eq!((plan.faults(), plan.pages()), (4, Pages::new(0x402)));
}

#[test]
fn a_logged_slot_is_mapped_small_and_becomes_dirty() {
    let vcpu = VcpuState::default();
    let plan = plan(&vcpu, PrefaultOutside::CurrentRoot, (0x800, 0xc00)).unwrap();
    assert_eq!((plan.faults(), plan.pages()), (512, Pages::new(512)));
    assert_eq!(plan.stop, Some(Stop::NoSlot(Gfn::new(0xa00))));
    assert!(plan.caveats.contains(&Caveat::MarksDirty));
}

#[test]
fn what_the_list_argued_about_is_a_policy() {
    let smm = VcpuState {
        mode: VcpuMode::Smm,
        ..VcpuState::default()
    };
    let range = (0x200, 0x201);
    let current = plan(&smm, PrefaultOutside::CurrentRoot, range).unwrap();
    // SMM has an address space of its own, in which no slot is.
    assert_eq!(current.stop, Some(Stop::NoSlot(Gfn::new(0x200))));
    assert!(current.caveats.contains(&Caveat::OtherRoot));
    let base = plan(&smm, PrefaultOutside::BaseRoot, range).unwrap();
    assert_eq!((base.faults(), base.stop), (1, None));
    assert!(base.caveats.contains(&Caveat::NotItsRoot));
    let refused = plan(&smm, PrefaultOutside::Refused, range);
    assert_eq!(refused, Err(OutsideBaseMode(VcpuMode::Smm)));
}

/// As `fault::tests::apic` has it of faults.
#[test]
fn the_apic_access_page_is_mapped_for_l1_while_apicv_is_active() {
    let mut memory = memory();
    memory.create_irqchip().unwrap();
    let _vcpu = memory.create_vcpu().unwrap();
    let apic = Gfn::new(0xfee00);
    let range = GfnRange::new(apic, Pages::new(1)).unwrap();
    for (mode, apicv, stop) in [
        (VcpuMode::Normal, Apicv::Active, None),
        (VcpuMode::Normal, Apicv::Inhibited, Some(apic)),
        (VcpuMode::Guest, Apicv::Active, Some(apic)),
    ] {
        let vcpu = VcpuState {
            mode,
            ..VcpuState::default()
        };
        let who = Prefaulter {
            host: &Host::ept(46),
            vcpu: &vcpu,
            outside: PrefaultOutside::CurrentRoot,
            apicv,
        };
        let plan = who.plan(&memory, range, |_, _| PageSize::Size4K).unwrap();
        assert_eq!(plan.stop, stop.map(Stop::ApicAccessPage));
        assert_eq!(plan.faults(), u64::from(stop.is_none()));
    }
}

#[test]
fn a_plan_reads_well() {
    let vcpu = VcpuState::default();
    let plan = plan(&vcpu, PrefaultOutside::CurrentRoot, (0x5ff, 0x601)).unwrap();
    let text = plan.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].contains(" in 1 faults, into root l4 8-byte q0 direct"),
        "{text}"
    );
    assert_eq!(lines[1], "  frames [0x5ff, 0x600): 1 of 2M");
    assert_eq!(lines[2], "  stops: no slot holds 0x600");
    assert_eq!(lines[3..], [format!("  but {}", Caveat::GoesWithAnySlot)]);
}

#[test]
fn without_accessed_bits_first_accesses_fault() {
    let who = Prefaulter {
        host: &Host::ept(46).without_ad(),
        vcpu: &VcpuState::default(),
        outside: PrefaultOutside::CurrentRoot,
        apicv: Apicv::Active,
    };
    let range = GfnRange::new(Gfn::new(0x200), Pages::new(1)).unwrap();
    let plan = who.plan(&memory(), range, |_, _| PageSize::Size4K).unwrap();
    assert_eq!(
        plan.caveats,
        [Caveat::FirstAccessFaults, Caveat::GoesWithAnySlot]
    );
    let text = plan.to_string();
    assert_eq!(text.matches("\n  but ").count(), 2, "{text}");
}

#[test]
fn without_the_quirk_other_slots_come_and_go() {
    let mut memory = memory();
    let args = [slat_memslot::Quirks::SLOT_ZAP_ALL.bits(), 0, 0, 0];
    let disable = slat_memslot::cap::DISABLE_QUIRKS2;
    memory.enable_cap(disable, 0, args).unwrap();
    let who = Prefaulter {
        host: &Host::ept(46),
        vcpu: &VcpuState::default(),
        outside: PrefaultOutside::CurrentRoot,
        apicv: Apicv::Active,
    };
    let range = GfnRange::new(Gfn::new(0x200), Pages::new(1)).unwrap();
    let plan = who.plan(&memory, range, |_, _| PageSize::Size4K).unwrap();
    assert_eq!(plan.caveats, []);
}
