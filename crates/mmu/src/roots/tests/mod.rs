use slat_memslot::Gfn;

use super::*;
use crate::role::{
    AccessDirty, CpuRole, Cr0, Cr4, Efer, NestedEpt, NestedEptDepth, PageRole, RoleFlag,
    RoleLayout, TdpDepth, TdpHost, VcpuMode, VcpuState, nested_ept_root_role, root_role_for_tdp,
};

mod reference;
mod threads;

const LAYOUT: RoleLayout = RoleLayout::Baseline;

fn tdp(mode: VcpuMode) -> PageRole {
    let vcpu = VcpuState {
        mode,
        ..VcpuState::default()
    };
    root_role_for_tdp(&vcpu, &TdpHost::new(TdpDepth::Ept4))
}

/// A guest in long mode without TDP, running L1 or L2.
fn shadow(mode: VcpuMode) -> PageRole {
    let vcpu = VcpuState {
        cr0: Cr0::PE | Cr0::PG | Cr0::WP,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        mode,
        ..VcpuState::default()
    };
    CpuRole::of(&vcpu, LAYOUT).shadow_root_role()
}

/// Direct and shadow roles, of L1, SMM and L2.
fn roles() -> [PageRole; 6] {
    let ept = NestedEpt {
        depth: NestedEptDepth::Four,
        access_dirty: AccessDirty::Hardware,
    };
    [
        tdp(VcpuMode::Normal),
        tdp(VcpuMode::Smm),
        tdp(VcpuMode::Guest),
        shadow(VcpuMode::Normal),
        shadow(VcpuMode::Guest),
        nested_ept_root_role(ept, LAYOUT),
    ]
}

fn vcpus(role: PageRole) -> Vec<VcpuMmu> {
    (0..3).map(|_| VcpuMmu::new(role)).collect()
}

fn pgd(number: u64) -> Pgd {
    Pgd::new(number << 12)
}

fn load(mmu: &mut VcpuMmu, table: &RootTable<()>, number: u64) -> Load {
    mmu.load(table, GuestRoot::Visible(pgd(number)), || ())
}

/// Loads every CR3 in turn, so that the last is in use.
fn with_roots(numbers: &[u64]) -> (VcpuMmu, RootTable<()>) {
    let table = RootTable::new(TdpMmu::On);
    let mut mmu = VcpuMmu::new(shadow(VcpuMode::Normal));
    for number in numbers {
        let new = mmu.new_pgd(&table, pgd(*number), FlushOnReuse::Off);
        assert_eq!(new.switch.found, Found::Nowhere);
        assert!(matches!(load(&mut mmu, &table, *number), Load::Created(_)));
    }
    (mmu, table)
}

fn numbers(mmu: &VcpuMmu) -> [Option<u64>; 4] {
    let mut places = mmu.cache().roots();
    [(); 4].map(|()| {
        let (pgd, root) = places.next()?;
        (root != Root::None).then_some(pgd.raw() >> 12)
    })
}

fn switch(mmu: &mut VcpuMmu, table: &RootTable<()>, number: u64) -> Found {
    let new = mmu.new_pgd(table, pgd(number), FlushOnReuse::Off);
    new.switch.found
}

#[test]
fn a_hit_moves_the_earlier_ones_down_into_the_gap() {
    let (mut mmu, table) = with_roots(&[4, 3, 2, 1]);
    assert_eq!(numbers(&mmu), [Some(1), Some(2), Some(3), Some(4)]);
    assert_eq!(switch(&mut mmu, &table, 3), Found::Previous(1));
    assert_eq!(numbers(&mmu), [Some(3), Some(1), Some(2), Some(4)]);
    assert_eq!(switch(&mut mmu, &table, 3), Found::Current);
    assert_eq!(switch(&mut mmu, &table, 4), Found::Previous(2));
    assert_eq!(numbers(&mmu), [Some(4), Some(3), Some(1), Some(2)]);
    assert_eq!(switch(&mut mmu, &table, 3), Found::Previous(0));
    assert_eq!(numbers(&mmu), [Some(3), Some(4), Some(1), Some(2)]);
}

#[test]
fn a_miss_drops_the_oldest() {
    let (mut mmu, table) = with_roots(&[4, 3, 2, 1]);
    let new = mmu.new_pgd(&table, pgd(5), FlushOnReuse::Off);
    assert_eq!(new.reused, None);
    assert!(matches!(
        new.switch.dropped,
        Some(Dropped::Page(Released::Kept(_)))
    ));
    assert_eq!(numbers(&mmu), [None, Some(1), Some(2), Some(3)]);
    // The shadow page is still there, without references.
    assert_eq!(table.len(), 4);
    assert!(matches!(load(&mut mmu, &table, 4), Load::Shared(_)));
    assert_eq!(numbers(&mmu), [Some(4), Some(1), Some(2), Some(3)]);
}

#[test]
fn without_a_current_root_a_hit_moves_the_later_ones_up() {
    let (mut mmu, table) = with_roots(&[4, 3, 2, 1]);
    assert_eq!(mmu.free(&table, RootSet::CURRENT).len(), 1);
    assert_eq!(switch(&mut mmu, &table, 9), Found::Nowhere);
    assert_eq!(numbers(&mmu), [None, Some(2), Some(3), Some(4)]);
    assert_eq!(switch(&mut mmu, &table, 3), Found::Previous(1));
    assert_eq!(numbers(&mmu), [Some(3), Some(2), Some(4), None]);
}

#[test]
fn a_special_root_goes_before_the_search() {
    let (mut mmu, table) = with_roots(&[2, 1]);
    assert_eq!(mmu.free(&table, RootSet::CURRENT).len(), 1);
    let load = mmu.load(&table, GuestRoot::Unbacked(pgd(7)), || ());
    assert_eq!(load, Load::Dummy);
    assert_eq!(mmu.check(&table), Ok(()));
    let new = mmu.new_pgd(&table, pgd(2), FlushOnReuse::Off);
    assert_eq!(new.switch.found, Found::Previous(0));
    assert_eq!(
        new.switch.dropped,
        Some(Dropped::Special(SpecialRoot::Dummy))
    );
    assert_eq!(numbers(&mmu), [Some(2), None, None, None]);
}

#[test]
fn a_direct_root_serves_every_cr3() {
    let table = RootTable::new(TdpMmu::On);
    let mut mmu = VcpuMmu::new(tdp(VcpuMode::Normal));
    load(&mut mmu, &table, 1);
    for number in 0..10 {
        assert_eq!(switch(&mut mmu, &table, number), Found::Current);
    }
    assert_eq!(table.len(), 1);
}

#[test]
fn reuse_requests_what_it_needs() {
    let (mut mmu, table) = with_roots(&[2, 1]);
    let new = mmu.new_pgd(&table, pgd(2), FlushOnReuse::Off);
    assert_eq!(new.reused, Some(Reused::Shadow));
    assert!(mmu.requests().iter().eq([Request::LoadMmuPgd]));
    let new = mmu.new_pgd(&table, pgd(1), FlushOnReuse::On);
    assert_eq!(new.reused, Some(Reused::Shadow));
    let all = [
        Request::MmuSync,
        Request::LoadMmuPgd,
        Request::TlbFlushCurrent,
    ];
    assert!(mmu.requests().iter().eq(all));
}

/// Recorded: registers of the guest change, the MMU is reset each time, and the vCPU finds the same root again.
#[test]
fn a_reset_with_the_same_role_finds_the_same_root() {
    let table = RootTable::new(TdpMmu::On);
    let mut mmu = VcpuMmu::new(tdp(VcpuMode::Normal));
    let Load::Created(root) = load(&mut mmu, &table, 0) else {
        panic!("the first load makes a root");
    };
    for number in 0..4 {
        let dropped = mmu.reset_context(&table, tdp(VcpuMode::Normal));
        assert_eq!(dropped, [Dropped::Page(Released::Kept(root))]);
        assert_eq!(table.references(root), Some(1));
        assert_eq!(load(&mut mmu, &table, number), Load::Shared(root));
        assert_eq!(table.references(root), Some(2));
    }
}

/// Recorded: entering and leaving SMM frees nothing, and three roots are all that modes can need.
#[test]
fn modes_have_roots_of_their_own() {
    let table = RootTable::new(TdpMmu::On);
    let mut mmus = vcpus(tdp(VcpuMode::Normal));
    for mmu in &mut mmus {
        for mode in [
            VcpuMode::Normal,
            VcpuMode::Smm,
            VcpuMode::Guest,
            VcpuMode::Normal,
        ] {
            let dropped = mmu.reset_context(&table, tdp(mode));
            assert!(dropped.len() <= 1);
            load(mmu, &table, 0);
            assert_eq!(mmu.check(&table), Ok(()));
        }
    }
    assert_eq!(table.len(), 3);
}

#[test]
fn a_zap_of_all_frees_a_root_when_the_last_vcpu_drops_it() {
    let mut table = RootTable::new(TdpMmu::On);
    let mut mmus = vcpus(tdp(VcpuMode::Normal));
    mmus.iter_mut().for_each(|mmu| {
        load(mmu, &table, 0);
    });
    let Root::Page(old) = mmus[0].cache().current() else {
        panic!("a root is in use");
    };
    table.invalidate_all();
    assert!(table.zap_invalidated().is_empty());
    // Until the request is served the vCPU stays on the invalid root, and a load does not help.
    assert_eq!(load(&mut mmus[0], &table, 0), Load::InUse(Root::Page(old)));
    let mismatch = mmus[0].check(&table).unwrap_err();
    assert!(mismatch.fields().eq(["invalid"]));

    let mut freed = 0;
    for mmu in &mut mmus {
        mmu.request(Request::FreeObsoleteRoots);
        while let Some((_, dropped)) = mmu.serve(&table) {
            freed += dropped
                .into_iter()
                .filter(|dropped| matches!(dropped, Dropped::Page(Released::Freed(_))))
                .count();
        }
        assert!(!matches!(load(mmu, &table, 0), Load::InUse(_)));
        assert_eq!(mmu.check(&table), Ok(()));
    }
    assert_eq!((freed, table.len()), (1, 1));
    assert_eq!(table.role(old), None);
    assert_ne!(mmus[0].cache().current(), Root::Page(old));
}

/// The fault of a patch of 2022: the new CR3 is loaded while the MMU still wants the old role.
mod load_order {
    use super::*;

    /// L2 runs on shadow paging and exits to L1, whose CR3 is the same as L2's.
    fn l2_about_to_exit() -> (VcpuMmu, RootTable<()>) {
        let (mut mmu, table) = with_roots(&[1]);
        mmu.init(shadow(VcpuMode::Guest));
        assert_eq!(switch(&mut mmu, &table, 1), Found::Nowhere);
        assert!(matches!(load(&mut mmu, &table, 1), Load::Created(_)));
        assert_eq!(mmu.check(&table), Ok(()));
        (mmu, table)
    }

    #[test]
    fn the_role_first_then_cr3_finds_l1_s_root() {
        let (mut mmu, table) = l2_about_to_exit();
        mmu.init(shadow(VcpuMode::Normal));
        assert_eq!(switch(&mut mmu, &table, 1), Found::Previous(0));
        assert_eq!(mmu.check(&table), Ok(()));
    }

    #[test]
    fn cr3_first_leaves_l1_on_l2_s_root_and_the_audit_sees_it() {
        let (mut mmu, table) = l2_about_to_exit();
        // L2's role and the same CR3: the root in use seems to be the right one.
        assert_eq!(switch(&mut mmu, &table, 1), Found::Current);
        mmu.init(shadow(VcpuMode::Normal));
        // Before the entry KVM only asks whether there is a root.
        assert!(matches!(load(&mut mmu, &table, 1), Load::InUse(_)));
        let mismatch = mmu.check(&table).unwrap_err();
        assert!(mismatch.fields().eq(["guest_mode"]));
        assert_eq!(mismatch.wanted, shadow(VcpuMode::Normal));
    }

    /// Whatever the CR3 of L1 is, the wrong order never passes the audit unless it misses the cache.
    #[test]
    fn cr3_first_is_harmless_only_on_a_miss() {
        let (mut mmu, table) = l2_about_to_exit();
        assert_eq!(switch(&mut mmu, &table, 2), Found::Nowhere);
        mmu.init(shadow(VcpuMode::Normal));
        assert!(matches!(load(&mut mmu, &table, 2), Load::Created(_)));
        assert_eq!(mmu.check(&table), Ok(()));
    }

    /// With TDP the CR3 does not count, so that the wrong order hits whenever it is tried.
    #[test]
    fn with_tdp_cr3_first_always_goes_wrong() {
        let table = RootTable::new(TdpMmu::On);
        let mut mmu = VcpuMmu::new(tdp(VcpuMode::Guest));
        load(&mut mmu, &table, 1);
        for number in 1..4 {
            assert_eq!(switch(&mut mmu, &table, number), Found::Current);
            mmu.init(tdp(VcpuMode::Normal));
            assert!(mmu.check(&table).is_err());
            mmu.init(tdp(VcpuMode::Guest));
        }
    }
}

#[test]
fn a_shadow_root_that_is_zapped_while_held_goes_with_its_last_holder() {
    let (mut mmu, table) = with_roots(&[2, 1]);
    let Root::Page(root) = mmu.cache().current() else {
        panic!("a root is in use");
    };
    assert_eq!(table.zap_shadow(root), None);
    assert!(table.role(root).is_some_and(PageRole::is_invalid));
    // Invalid is part of the role: the root in use is no hit any more.
    assert_eq!(switch(&mut mmu, &table, 1), Found::Nowhere);
    let dropped = mmu.free(&table, RootSet::all());
    assert!(matches!(
        dropped[..],
        [
            Dropped::Page(Released::Freed(_)),
            Dropped::Page(Released::Kept(_))
        ] | [
            Dropped::Page(Released::Kept(_)),
            Dropped::Page(Released::Freed(_))
        ]
    ));
    assert_eq!(table.len(), 1);
}

#[test]
fn guest_mode_roots_and_unsync_roots_can_go_alone() {
    let (mut mmu, table) = with_roots(&[1]);
    mmu.init(shadow(VcpuMode::Guest));
    assert_eq!(switch(&mut mmu, &table, 2), Found::Nowhere);
    load(&mut mmu, &table, 2);
    mmu.init(shadow(VcpuMode::Normal));
    assert_eq!(switch(&mut mmu, &table, 1), Found::Previous(0));
    assert_eq!(mmu.free_guest_mode(&table).len(), 1);
    assert_eq!(numbers(&mmu), [Some(1), None, None, None]);

    let (mut mmu, table) = with_roots(&[3, 2, 1]);
    let dropped = mmu.free_unsync_previous(&table, |_| true);
    assert_eq!(dropped.len(), 2);
    assert_eq!(numbers(&mmu), [Some(1), None, None, None]);
}

#[test]
#[should_panic(expected = "no reference to give up")]
fn the_tdp_mmu_s_own_reference_cannot_be_given_up() {
    let table = RootTable::new(TdpMmu::On);
    let root = table
        .acquire(RootKind::Tdp, tdp(VcpuMode::Normal), || ())
        .root();
    assert_eq!(table.release(root), Released::Kept(root));
    let _ = table.release(root);
}

#[test]
fn ids_are_never_used_again() {
    let mut table = RootTable::new(TdpMmu::On);
    let mut seen = Vec::new();
    for _ in 0..10 {
        let root = table
            .acquire(RootKind::Tdp, tdp(VcpuMode::Normal), || ())
            .root();
        assert!(!seen.contains(&root));
        seen.push(root);
        let _ = table.release(root);
        table.invalidate_all();
        assert_eq!(table.zap_invalidated().len(), 1);
        assert_eq!(table.role(root), None);
        assert!(table.is_obsolete(root));
    }
}

#[test]
fn roots_are_walked_newest_first() {
    let table = RootTable::new(TdpMmu::On);
    for role in [tdp(VcpuMode::Normal), tdp(VcpuMode::Smm)] {
        table.acquire(RootKind::Tdp, role, || ());
    }
    let smm: Vec<_> = table
        .iter()
        .map(|(_, role)| role.has(RoleFlag::Smm))
        .collect();
    assert_eq!(smm, [true, false]);
}

#[test]
fn requests_are_served_in_order() {
    let mut requests = Requests::from(Request::ALL);
    assert!(requests.withdraw(Request::MmuSync) && !requests.withdraw(Request::MmuSync));
    let served: Vec<_> = requests.iter().collect();
    assert!(served.is_sorted() && served.len() == 9);
    assert_eq!(requests.pop(), Some(Request::VmDead));
    assert_eq!(std::iter::from_fn(|| requests.pop()).count(), 8);
    assert!(requests.is_empty());
}
