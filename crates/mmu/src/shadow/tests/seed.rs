//! Roots across CR3 loads, and the two orders of the mailing list: whether the role is the MMU's own or the caller's.

use super::*;
use crate::roots::Root;
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

/// CR0.WP changes: the new role first and then the switch, as upstream has it, never leaves a root of the old role; the
/// switch first, with the role that the MMU still has, does, and the audit says so.
#[test]
fn the_order_of_role_and_switch_matters() {
    for role_first in [true, false] {
        let mut world = World::paged(&Host::shadow(40));
        world.map_small(0x40_0000, 0x500);
        world.touch(0x40_0000);
        let cr3 = world.state.cr3;
        world.state.cr0 -= Cr0::WP;
        let role = CpuRole::of(&world.state, RoleLayout::Baseline).shadow_root_role();
        if role_first {
            world.roots.mmu.init(role);
            assert!(!world.load_cr3(cr3));
            assert_eq!(world.roots.mmu.cache().current(), Root::None);
            world.enter();
            assert_eq!(world.audit(), []);
        } else {
            assert!(
                world.load_cr3(cr3),
                "the old role's root is still the MMU's"
            );
            world.roots.mmu.init(role);
            let codes: Vec<ShadowCode> = world.audit().iter().map(|each| each.code).collect();
            assert_eq!(codes, [ShadowCode::RootRoleMismatch]);
        }
    }
}
