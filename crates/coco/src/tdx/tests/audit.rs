//! One fault for every code.

use slat_memslot::{Gpa, Level};
use slat_mmu::spte::Pfn;

use super::world::{VP, World, at, small};
use crate::tdx::*;

#[test]
fn every_fault_is_found() {
    for code in TdxCode::ALL {
        let world = World::running();
        world.aug(0x1000);
        world.enter(VP);
        world.accept(VP, small(0x1000)).unwrap();
        let gpa = Gpa::new(0x1000);
        world
            .module
            .vp_access(world.td, VP, gpa, GuestAccess::Read)
            .unwrap();
        world.audit();
        plant(&world, *code);
        let found = world.module.audit();
        assert!(
            found.iter().any(|each| each.code == *code),
            "{code}: {found:?}"
        );
    }
}

/// Who entered in the epoch before is counted there, until he leaves.
#[test]
fn vcpus_of_two_epochs_are_well() {
    let world = World::running();
    for vp in [VP, VpId(1)] {
        world.enter(vp);
        world.audit();
        world.module.tdh_mem_track(world.td).unwrap();
        world.audit();
        if vp == VP {
            world.enter(VpId(2));
            world.audit();
            world.exit(VP);
            world.audit();
            world.exit(VpId(2));
        }
    }
    world.audit();
}

/// Plants the fault of a code. A code without one does not compile.
fn plant(world: &World, code: TdxCode) {
    let (module, td) = (&world.module, world.td);
    let page = |at| module.tdh_mem_sept_rd(td, at).unwrap().base.unwrap();
    let leaf = small(0x1000);
    match code {
        TdxCode::TableType => {
            let table = world.page();
            module.plant_table(td, table);
            module.plant_entry(td, at(0x20_0000, Level::L2), SeptState::NlMapped, table);
        }
        TdxCode::LeafType => module.plant_entry(td, leaf, SeptState::Mapped, world.page()),
        TdxCode::MappedTwice => {
            module.plant_entry(td, small(0x2000), SeptState::Mapped, page(leaf));
        }
        TdxCode::OrphanPage => module.plant_entry(td, leaf, SeptState::Free, Pfn::new(0)),
        TdxCode::OrphanTable => module.plant_table(td, world.page()),
        TdxCode::Children => module.plant_children(td, 1),
        TdxCode::Permissions => module.plant_permissions(td, leaf),
        TdxCode::FutureEpoch => {
            world.block(leaf);
            module.plant_blocked_epoch(page(leaf), 9);
        }
        TdxCode::InsideCount => module.plant_outside(td, VP),
        TdxCode::OldEpoch => {
            for _ in 0..2 {
                module.plant_epoch(td);
            }
        }
        TdxCode::StaleTlb => {
            module.plant_op_state(td, OpState::PausedExport);
            module.tdh_mem_page_remove(td, leaf).unwrap();
        }
        TdxCode::LockLeftBehind => {
            assert!(module.plant_lock(td, HeldLock::Tree(Hold::Shared)));
        }
    }
}
