//! Roots across CR3 loads, and the two orders of the mailing list: whether the role is the MMU's own or the caller's.

use super::*;
use crate::roots::Root;
use crate::shadow::SwitchRole;
use crate::shadow::audit::ShadowCode;

/// A second set of tables, whose top one is a copy of the first's.
fn second_root(world: &mut World<Npt>) -> u64 {
    let second = 0x7ff_u64 << 12;
    for index in 0..512 {
        let word = world.word(world.state.cr3 + index * 8);
        world.set_word(second + index * 8, word);
    }
    second
}

#[test]
fn a_root_is_found_again_after_a_switch_and_back() {
    let mut world = World::paged(&Host::shadow(40));
    let (first, second) = (world.state.cr3, second_root(&mut world));
    world.map_small(0x40_0000, 0x500);
    world.touch(0x40_0000);
    assert!(!world.load_cr3(second));
    world.touch(0x40_0000);
    let pages = world.mmu.active().count();
    assert!(world.load_cr3(first));
    assert!(world.load_cr3(second));
    assert_eq!(world.mmu.active().count(), pages);
    assert_eq!(world.audit(), []);
}

/// Three earlier roots are kept; the fifth drops the oldest, whose page stays in the hash and is found there.
#[test]
fn a_root_that_was_dropped_is_found_in_the_hash() {
    let mut world = World::paged(&Host::shadow(40));
    let first = world.state.cr3;
    world.map_small(0x40_0000, 0x500);
    world.touch(0x40_0000);
    for number in 0..4 {
        let other = (0x7f0 + number) << 12;
        for index in 0..512 {
            let word = world.word(first + index * 8);
            world.set_word(other + index * 8, word);
        }
        assert!(!world.load_cr3(other));
        world.touch(0x40_0000);
    }
    assert!(!world.load_cr3(first));
    let zapped = world.mmu.stats().mmu_shadow_zapped;
    world.enter();
    let found = world.events.iter().rev().find_map(|event| match event {
        Event::ShadowPage { page, created } => Some((page.gfn.raw(), *created)),
        _ => None,
    });
    assert_eq!(found, Some((first >> 12, false)));
    assert_eq!(world.mmu.stats().mmu_shadow_zapped, zapped);
    assert_eq!(world.audit(), []);
}

/// CR0.WP changes. What the audit finds when the MMU is told before the switch or after it, and the switch looks for the MMU's
/// role or for the caller's.
#[test]
fn the_order_matters_unless_the_caller_passes_the_role() {
    let cases = [
        (SwitchRole::Mmus, "told before", vec![]),
        (
            SwitchRole::Mmus,
            "told after",
            vec![ShadowCode::RootRoleMismatch],
        ),
        (
            SwitchRole::Callers(PageRole::new(Level::L4)),
            "told before",
            vec![],
        ),
        (
            SwitchRole::Callers(PageRole::new(Level::L4)),
            "told after",
            vec![],
        ),
    ];
    for (source, order, wanted) in cases {
        let mut world = World::paged(&Host::shadow(40));
        world.map_small(0x40_0000, 0x500);
        world.touch(0x40_0000);
        world.state.cr0 -= Cr0::WP;
        let role = CpuRole::of(&world.state, RoleLayout::Baseline).shadow_root_role();
        let source = match source {
            SwitchRole::Mmus => SwitchRole::Mmus,
            SwitchRole::Callers(_) => SwitchRole::Callers(role),
        };
        if order == "told before" {
            world.roots.mmu.init(role);
        }
        let pgd = crate::roots::Pgd::new(world.state.cr3);
        let flush = crate::roots::FlushOnReuse::Off;
        let mut locked = world.mmu.lock(&mut world.events);
        let reused = locked.new_pgd_as(&mut world.roots, pgd, source, flush);
        world.roots.mmu.init(role);
        assert_eq!(reused, !wanted.is_empty(), "{source:?}, {order}");
        if !reused {
            assert_eq!(world.roots.mmu.cache().current(), Root::None);
            world.enter();
        }
        let found: Vec<ShadowCode> = world.audit().iter().map(|each| each.code).collect();
        assert_eq!(found, wanted, "{source:?}, {order}");
    }
}

/// A root with less than four levels is four pages: each is looked at.
#[test]
fn the_parts_of_a_pae_root_are_audited_too() {
    let state = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr3: 0x10_000,
        cr4: Cr4::PSE,
        ..VcpuState::default()
    };
    let role = CpuRole::of(&state, RoleLayout::Baseline).shadow_root_role();
    let mut world = World::<Npt>::new(&Host::shadow(40), state, role);
    world.enter();
    assert!(matches!(
        world.roots.current(&world.mmu),
        Some(crate::shadow::ShadowRoot::Pae(_))
    ));
    assert_eq!(world.audit(), []);
    world
        .roots
        .mmu
        .init(role.without(crate::role::RoleFlag::Cr0Wp));
    let found: Vec<ShadowCode> = world.audit().iter().map(|each| each.code).collect();
    assert_eq!(found, [ShadowCode::RootRoleMismatch]);
}
