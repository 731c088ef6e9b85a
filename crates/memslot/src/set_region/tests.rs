use super::*;
use crate::{
    AsId, Call, Generation, Gfn, GfnRange, Gpa, Hva, HvaError, Intent, Memory, PAGE_SIZE, PageSize,
    Pages, Profile, Quirks, Region, RegionVersion, SlotFlags, SlotId, SlotKey, VmType, cap,
};

const MIB: u64 = 1 << 20;
const HVA: u64 = 0x7f00_0000_0000;

/// A kernel with one address space or two.
fn vm(address_spaces: u8) -> Memory {
    vm_of(Profile::latest(), address_spaces)
}

fn vm_of(mut profile: Profile, address_spaces: u8) -> Memory {
    profile.smm.set(address_spaces == 2);
    Memory::new(profile, VmType::Default)
}

fn slot(as_id: AsId, id: u16) -> SlotKey {
    let id = SlotId::new(id);
    SlotKey { as_id, id }
}

fn region(key: SlotKey, gpa: u64) -> Region {
    Region::new(key, gpa, MIB, HVA)
}

fn done(memory: &mut Memory, request: Region) -> Effects {
    memory.set_region(&request).unwrap()
}

#[test]
fn each_change_takes_its_number_of_exchanges() {
    for count in [1u8, 2] {
        for as_id in (0..count).filter_map(AsId::new) {
            let mut memory = vm(count);
            let key = slot(as_id, 3);
            let n = u64::from(count);
            let logged = region(key, 0).with_flags(SlotFlags::LOG_DIRTY_PAGES);
            let too_high = Region {
                gpa: 1 << 46,
                ..logged
            };
            let steps = [
                (region(key, 0), ChangeKind::Create, n),
                (region(key, 0), ChangeKind::Nothing, 0),
                (logged, ChangeKind::FlagsOnly, n),
                (Region { gpa: MIB, ..logged }, ChangeKind::Move, 2 * n),
                (too_high, ChangeKind::Nothing, 2 * n),
                (region(key, 0), ChangeKind::Move, 2 * n),
                (Region::delete(key), ChangeKind::Delete, 2 * n),
                (Region::delete(key), ChangeKind::Nothing, 0),
            ];
            let mut expected = as_id.index() as u64;
            for (request, kind, delta) in steps {
                expected += delta;
                let effects = memory.set_region(&request);
                let effects = effects.map_or_else(|refusal| refusal.effects, Some);
                assert!(effects.is_none_or(|effects| effects.kind == kind));
                assert_eq!(memory.space(as_id).generation().raw(), expected);
            }
        }
    }
}

#[test]
fn a_refused_create_leaves_the_generation_alone() {
    let mut memory = vm(1);
    let refusal = memory.set_region(&region(slot(AsId::NORMAL, 0), 1 << 46));
    assert_eq!(refusal.unwrap_err().effects, None);
    assert_eq!(memory.space(AsId::NORMAL).generation().raw(), 0);
}

#[test]
fn generations_of_two_address_spaces_never_meet() {
    let mut memory = vm(2);
    let mut seen = [Vec::new(), Vec::new()];
    for round in 0..20u64 {
        for as_id in [AsId::NORMAL, AsId::SMM] {
            let key = slot(as_id, 0);
            let request = region(key, round % 3 * MIB);
            if round % 5 == 4 {
                let _effects = done(&mut memory, Region::delete(key));
            } else {
                let _effects = done(&mut memory, request);
            }
            seen[as_id.index()].push(memory.space(as_id).generation().raw());
        }
    }
    assert!(seen[0].iter().all(|generation| generation % 2 == 0));
    assert!(seen[1].iter().all(|generation| generation % 2 == 1));
}

#[test]
fn the_mmio_generation_wraps_after_the_bits_that_an_entry_holds() {
    for (kernel, bits) in [("linux-6.18", 19), ("linux-7.3-rc1", 18)] {
        let profile = Profile::named(kernel).unwrap();
        assert_eq!(profile.mmio_generation_bits.get(), bits);
        // Address spaces, the one at hand, the last generation that does not wrap with one exchange, with two: so far
        // from the wrap.
        for (count, as_id, before_one, before_two) in [
            (1, AsId::NORMAL, 2, 3),
            (2, AsId::NORMAL, 4, 6),
            (2, AsId::SMM, 3, 5),
        ] {
            let wrap = 1 << bits;
            wraps_between(
                &profile,
                (count, as_id),
                [wrap - before_one, wrap - before_two],
            );
        }
    }
}

/// Creating and deleting a slot of an address space, beginning at generations around the two that are given.
fn wraps_between(profile: &Profile, space: (u8, AsId), [before_one, before_two]: [u64; 2]) {
    let (count, as_id) = space;
    let step = u64::from(count);
    let key = slot(as_id, 0);
    let wraps = |generation: u64, request: Region| {
        let mut memory = vm_of(profile.clone(), count);
        if request.size == 0 {
            let _effects = done(&mut memory, region(key, 0));
        }
        memory.space_mut(as_id).generation = Generation::new(generation);
        done(&mut memory, request).wrap
    };
    let everything = Some(Zap {
        reach: ZapReach::AllRoots,
        rule: ZapRule::MmioGenerationWrap,
    });
    let (create, delete) = (region(key, 0), Region::delete(key));
    assert_eq!(wraps(before_one, create), None);
    assert_eq!(wraps(before_one + step, create), everything);
    assert_eq!(wraps(before_one + 2 * step, create), None);
    assert_eq!(wraps(before_two, delete), None);
    assert_eq!(wraps(before_two + step, delete), everything);
    assert_eq!(wraps(before_two + 2 * step, delete), everything);
    assert_eq!(wraps(before_two + 3 * step, delete), None);
}

#[test]
fn a_move_that_fails_late_zaps_and_can_wrap() {
    let mut memory = vm(1);
    let key = slot(AsId::NORMAL, 0);
    let _effects = done(&mut memory, region(key, 0));
    memory.space_mut(AsId::NORMAL).generation = Generation::new(0x7_fffe);
    let refusal = memory.set_region(&region(key, 1 << 46)).unwrap_err();
    let effects = refusal.effects.unwrap();
    assert_eq!(effects.kind, ChangeKind::Nothing);
    assert_eq!(effects.generation, Generation::new(0x8_0000));
    assert!(effects.wrap.is_some() && effects.zap.is_some() && effects.log.is_none());
    assert!(refusal.reason.to_string().contains("0x4000000ff"));
    let found = memory.space(AsId::NORMAL).by_gfn(Gfn::new(0)).unwrap();
    assert_eq!(found.key(), key);
}

/// What deleting slot 0 zaps, and what moving it zaps.
fn zaps(mut memory: Memory, flags: SlotFlags) -> Zap {
    let key = slot(AsId::NORMAL, 0);
    let request = Region {
        version: match memory.profile().region2.get() {
            true => RegionVersion::V2,
            false => RegionVersion::V1,
        },
        ..region(key, 0).with_flags(flags)
    };
    assert_eq!(done(&mut memory, request).zap, None);
    let moved = memory.check_region(&Region {
        gpa: MIB,
        ..request
    });
    let deleted = memory.check_region(&Region::delete(key)).unwrap();
    assert_eq!(moved.unwrap().zap, deleted.zap);
    deleted.zap.unwrap()
}

#[test]
fn how_far_a_zap_reaches() {
    use VmType::{Default, Sev, SevEs, Snp, SwProtected, Tdx};
    let kernel = |name| Profile::named(name).unwrap();
    let experiment = || kernel("linux-6.12").with_zap_leafs_flag();
    let (plain, flag) = (SlotFlags::empty(), SlotFlags::ZAP_LEAFS_ONLY);
    let (on, off) = (Quirks::empty(), Quirks::SLOT_ZAP_ALL);
    // Kernel, VM type, quirks disabled, the slot's flags; the rule, and whether all roots go.
    let table = [
        (
            kernel("linux-6.1"),
            Default,
            on,
            plain,
            ZapRule::KernelBeforeQuirk,
            true,
        ),
        (
            kernel("linux-6.8"),
            Default,
            on,
            plain,
            ZapRule::KernelBeforeQuirk,
            true,
        ),
        (
            kernel("linux-6.8"),
            SwProtected,
            on,
            plain,
            ZapRule::KernelBeforeQuirk,
            true,
        ),
        (
            kernel("linux-6.12"),
            Default,
            on,
            plain,
            ZapRule::DefaultVm,
            true,
        ),
        (
            kernel("linux-6.12"),
            Default,
            off,
            plain,
            ZapRule::QuirkDisabled,
            false,
        ),
        (
            kernel("linux-6.12"),
            SwProtected,
            on,
            plain,
            ZapRule::VmType(SwProtected),
            false,
        ),
        (
            kernel("linux-6.12"),
            SwProtected,
            off,
            plain,
            ZapRule::VmType(SwProtected),
            false,
        ),
        (
            kernel("linux-6.12"),
            Sev,
            on,
            plain,
            ZapRule::VmType(Sev),
            false,
        ),
        (
            kernel("linux-6.12"),
            SevEs,
            on,
            plain,
            ZapRule::VmType(SevEs),
            false,
        ),
        (
            kernel("linux-6.12"),
            Snp,
            on,
            plain,
            ZapRule::VmType(Snp),
            false,
        ),
        (
            kernel("linux-6.18"),
            Tdx,
            on,
            plain,
            ZapRule::VmType(Tdx),
            false,
        ),
        (
            kernel("linux-7.3-rc1"),
            Default,
            on,
            plain,
            ZapRule::DefaultVm,
            true,
        ),
        (
            kernel("linux-7.3-rc1"),
            Default,
            off,
            plain,
            ZapRule::QuirkDisabled,
            false,
        ),
        (experiment(), Default, on, plain, ZapRule::NoFlag, true),
        (experiment(), Default, off, plain, ZapRule::NoFlag, true),
        (experiment(), Default, on, flag, ZapRule::Flag, false),
        (experiment(), Tdx, on, flag, ZapRule::Flag, false),
        (experiment(), Snp, on, plain, ZapRule::NoFlag, true),
    ];
    for (profile, vm_type, quirks, flags, rule, all) in table {
        let name = profile.name.clone();
        let mut memory = Memory::new(profile, vm_type);
        if !quirks.is_empty() {
            let args = [quirks.bits(), 0, 0, 0];
            memory.enable_cap(cap::DISABLE_QUIRKS2, 0, args).unwrap();
        }
        let zap = zaps(memory, flags);
        assert_eq!(zap.rule, rule, "{name}, {vm_type}");
        let leafs = ZapReach::Leafs {
            as_id: AsId::NORMAL,
            range: GfnRange::new(Gfn::new(0), Pages::in_bytes(MIB)).unwrap(),
        };
        let reach = if all { ZapReach::AllRoots } else { leafs };
        assert_eq!(zap.reach, reach, "{name}, {vm_type}");
    }
}

/// As seen on Linux 6.12.117: neither a slot that moves nor one that is read-only has leaves to protect or to collapse.
#[test]
fn a_log_asks_nothing_of_tables_where_a_slot_moves_or_is_read_only() {
    let mut memory = vm(1);
    let request = region(slot(AsId::NORMAL, 0), 0);
    let _effects = done(&mut memory, request);
    let moved = region(slot(AsId::NORMAL, 0), 1 << 30).with_flags(SlotFlags::LOG_DIRTY_PAGES);
    let effects = done(&mut memory, moved);
    assert_eq!(effects.log, Some(LogSwitch::On));
    assert_eq!(memory.log_of_tables(&effects), None);
    let readonly = region(slot(AsId::NORMAL, 1), 2 << 30).with_flags(SlotFlags::READONLY);
    let _effects = done(&mut memory, readonly);
    let both = readonly.with_flags(SlotFlags::READONLY | SlotFlags::LOG_DIRTY_PAGES);
    let effects = done(&mut memory, both);
    assert_eq!(effects.log, Some(LogSwitch::On));
    assert_eq!(memory.log_of_tables(&effects), None);
}

#[test]
fn create_and_flags_zap_nothing() {
    let mut memory = vm(1);
    let request = region(slot(AsId::NORMAL, 0), 0);
    assert_eq!(done(&mut memory, request).zap, None);
    let logged = request.with_flags(SlotFlags::LOG_DIRTY_PAGES);
    let effects = done(&mut memory, logged);
    assert_eq!((effects.zap, effects.log), (None, Some(LogSwitch::On)));
    assert_eq!(memory.log_of_tables(&effects), Some(LogSwitch::On));
    let effects = done(&mut memory, request);
    assert_eq!((effects.zap, effects.log), (None, Some(LogSwitch::Off)));
}

#[test]
fn address_spaces_share_nothing_but_the_totals() {
    let mut memory = vm(2);
    let (normal, smm) = (slot(AsId::NORMAL, 5), slot(AsId::SMM, 5));
    let _effects = done(&mut memory, region(normal, 0));
    let other = Region::new(smm, 0, 2 * MIB, HVA).with_flags(SlotFlags::LOG_DIRTY_PAGES);
    let _effects = done(&mut memory, other);
    assert_eq!(memory.total_pages(), Pages::in_bytes(3 * MIB));
    assert_eq!(memory.logged_slots(), 1);
    let pages = |as_id| memory.space(as_id).by_gfn(Gfn::new(0)).unwrap().pages();
    assert_eq!(pages(AsId::NORMAL), Pages::in_bytes(MIB));
    assert_eq!(pages(AsId::SMM), Pages::in_bytes(2 * MIB));
    let hva = |as_id| memory.hva_of(as_id, Gpa::new(MIB));
    assert!(hva(AsId::NORMAL).is_none());
    assert_eq!(hva(AsId::SMM).unwrap().1, Hva::new(HVA + MIB));

    let _ = memory.mark_dirty(0, AsId::NORMAL, Gfn::new(1));
    let _ = memory.mark_dirty(0, AsId::SMM, Gfn::new(2));
    let dirty = memory
        .get_dirty_log(smm.raw(), crate::Buffer::Good)
        .unwrap();
    assert_eq!(dirty.to_string(), "2");

    let refusal = memory
        .set_region(&region(slot(AsId::SMM, 6), MIB))
        .unwrap_err();
    assert_eq!(refusal.reason.code(), "overlap");
    assert!(refusal.to_string().contains("slot 1:6"), "{refusal}");
    let effects = done(&mut memory, Region::delete(smm));
    assert_eq!(effects.zap.unwrap().rule, ZapRule::DefaultVm);
    assert!(memory.space(AsId::SMM).is_empty() && memory.space(AsId::NORMAL).len() == 1);
    assert_eq!(memory.logged_slots(), 0);
}

#[test]
fn a_vm_with_private_memory_has_one_address_space() {
    let memory = Memory::new(Profile::latest(), VmType::SwProtected);
    let refusal = memory
        .check_region(&region(slot(AsId::SMM, 0), 0))
        .unwrap_err();
    assert_eq!(refusal.reason.code(), "address-space");
}

#[test]
fn a_plan_is_for_one_state() {
    let mut memory = vm(1);
    let (first, second) = (slot(AsId::NORMAL, 0), slot(AsId::NORMAL, 1));
    let plan = memory.check_region(&region(first, 0)).unwrap();
    let same = memory.check_region(&region(second, 0)).unwrap();
    let effects = memory.commit_region(plan).unwrap();
    assert_eq!((effects.kind, effects.generation), (plan.kind, plan.after));
    assert_eq!(memory.commit_region(same), Err(StalePlan));
    assert_eq!(memory.space(AsId::NORMAL).len(), 1);
}

#[test]
fn whatever_changes_the_answer_makes_a_plan_stale() {
    type Disturb = fn(&mut Memory) -> bool;
    let changes: [Disturb; 7] = [
        |memory| {
            memory.set_page_track_user(true);
            true
        },
        |memory| {
            memory.set_gate(crate::Gate::Dead);
            true
        },
        |memory| {
            memory.set_shared_bit(1);
            true
        },
        |memory| memory.create_gmem(PAGE_SIZE, 0).is_ok(),
        |memory| {
            let answer = memory.enable_cap(cap::DISABLE_QUIRKS2, 0, [128, 0, 0, 0]);
            answer.is_ok()
        },
        // A refused move has made two generation steps.
        |memory| {
            let answer = memory.set_region(&region(SlotKey::normal(0), 1 << 46));
            answer.is_err()
        },
        |memory| memory.call(&Call::CreateVcpu).is_ok(),
    ];
    for disturb in changes {
        let mut memory = vm(1);
        let _effects = done(&mut memory, region(SlotKey::normal(0), 0));
        let plan = memory
            .check_region(&Region::delete(SlotKey::normal(0)))
            .unwrap();
        assert!(disturb(&mut memory));
        assert_eq!(memory.commit_region(plan), Err(StalePlan));
    }
    let mut memory = vm(1);
    let plan = memory.check_region(&region(SlotKey::normal(0), 0)).unwrap();
    memory
        .set_region(&region(SlotKey::normal(0), 0x800))
        .unwrap_err();
    assert!(memory.commit_region(plan).is_ok());
}

#[test]
fn mixed_ranges_forbid_huge_pages() {
    const GIB: u64 = 1 << 30;
    let mut memory = Memory::new(Profile::latest(), VmType::SwProtected);
    let key = slot(AsId::NORMAL, 0);
    // Two pages short of 3 GiB, so that the last huge pages stick out.
    let request = Region::new(key, 0, 3 * GIB - 2 * PAGE_SIZE, HVA);
    let _effects = done(&mut memory, request);
    let huge = |memory: &Memory, size, gpa| memory.allows_huge(key, size, Gpa::new(gpa).gfn());
    let (small, big) = (PageSize::Size2M, PageSize::Size1G);
    assert!(huge(&memory, small, 0) && huge(&memory, big, GIB));
    assert!(!huge(&memory, big, 2 * GIB) && !huge(&memory, small, 3 * GIB - 2 * MIB));

    assert!(
        memory
            .set_attributes(GIB + 4 * MIB, PAGE_SIZE, 8, 0)
            .unwrap()
    );
    assert!(!huge(&memory, small, GIB + 4 * MIB) && !huge(&memory, big, GIB));
    assert!(huge(&memory, small, GIB + 2 * MIB) && huge(&memory, small, GIB + 6 * MIB));
    assert!(huge(&memory, big, 0));

    assert!(memory.set_attributes(GIB + 4 * MIB, 2 * MIB, 8, 0).unwrap());
    assert!(huge(&memory, small, GIB + 4 * MIB) && !huge(&memory, big, GIB));
    assert!(memory.set_attributes(GIB, GIB, 8, 0).unwrap());
    assert!(huge(&memory, big, GIB));
    assert!(!memory.set_attributes(GIB, GIB, 8, 0).unwrap());

    // Attributes are the VM's: a slot that comes later finds them.
    let later = slot(AsId::NORMAL, 1);
    assert!(
        memory
            .set_attributes(8 * GIB + PAGE_SIZE, PAGE_SIZE, 8, 0)
            .unwrap()
    );
    let _effects = done(&mut memory, Region::new(later, 8 * GIB, GIB, HVA));
    assert!(!memory.allows_huge(later, small, Gpa::new(8 * GIB).gfn()));
    assert!(memory.allows_huge(later, small, Gpa::new(8 * GIB + 2 * MIB).gfn()));
    assert!(!memory.allows_huge(slot(AsId::NORMAL, 2), small, Gfn::new(0)));
}

/// What a plan asks of the CPUs, on a kernel with page-modification logging.
fn requests(vm_type: VmType, logged: bool, request: Region) -> Requests {
    let mut memory = Memory::new(Profile::latest(), vm_type);
    let flags = if logged {
        SlotFlags::LOG_DIRTY_PAGES
    } else {
        SlotFlags::empty()
    };
    let _effects = memory
        .set_region(&plain(0).with_flags(flags))
        .expect("a good slot");
    memory
        .check_region(&request)
        .expect("a good change")
        .requests
}

fn plain(gpa: u64) -> Region {
    Region::new(SlotKey::normal(0), gpa, 0x10_0000, 0x7000_0000_0000)
}

#[test]
fn the_first_and_the_last_log_reach_the_vcpus() {
    let logged = plain(0).with_flags(SlotFlags::LOG_DIRTY_PAGES);
    let on = requests(VmType::Default, false, logged);
    assert!(on.update_dirty_logging && on.flush_slot && !on.write_back_caches);
    let off = requests(VmType::Default, true, plain(0));
    assert!(off.update_dirty_logging && !off.flush_slot);
    assert_eq!(requests(VmType::Default, true, logged), Requests::default());
}

#[test]
fn encrypted_memory_that_goes_is_written_back() {
    let delete = Region::delete(SlotKey::normal(0));
    for (vm_type, expected) in [
        (VmType::Default, false),
        (VmType::Sev, true),
        (VmType::SevEs, true),
        (VmType::Snp, false),
        (VmType::Tdx, false),
    ] {
        let plan = requests(vm_type, false, delete);
        assert_eq!(plan.write_back_caches, expected, "{vm_type}");
        let moved = requests(vm_type, false, plain(0x100_0000));
        assert_eq!(moved.write_back_caches, expected, "{vm_type}");
    }
}

#[test]
fn a_readonly_slot_has_a_host_address_for_reading_only() {
    let mut memory = Memory::new(Profile::latest(), VmType::Default);
    let request = plain(0).with_flags(SlotFlags::READONLY);
    let _effects = memory.set_region(&request).expect("a good slot");
    let at = |gpa, intent| memory.hva_for(AsId::NORMAL, Gpa::new(gpa), intent);
    assert_eq!(at(0x1234, Intent::Read), Ok(Hva::new(0x7000_0000_1234)));
    assert_eq!(at(0x1234, Intent::Write), Err(HvaError::ReadOnly));
    assert_eq!(at(0x20_0000, Intent::Write), Err(HvaError::Bad));
}
