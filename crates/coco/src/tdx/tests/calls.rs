//! Calls of the host. Oracle: the fact sheet's effects of each call.

use slat_memslot::{Gpa, Level};
use slat_mmu::spte::Pfn;

use super::world::{VP, World, at, of, small, status};
use crate::tdx::*;

#[test]
fn tables_come_from_the_root_down() {
    let world = World::building();
    let far = 1 << 30;
    let refusal = world
        .module
        .tdh_mem_page_aug(world.td, small(far), world.page())
        .unwrap_err();
    assert_eq!(refusal.status, of(Code::EptWalkFailed, Operand::Rcx));
    let stopped = refusal.entry.unwrap();
    assert_eq!((stopped.level, stopped.state), (Level::L3, SeptState::Free));
    assert_eq!(stopped.rdx(), 2);
    world.table(far, Level::L3);
    world.table(far, Level::L2);
    world.aug(far);
    world.audit();
}

#[test]
fn a_page_is_counted_and_given_back() {
    let world = World::running();
    let before = world.module.children(world.td).unwrap();
    let page = world.aug(0x1000);
    assert_eq!(world.module.page(page).page_type, PageType::Regular);
    assert_eq!(world.module.children(world.td), Some(before + 1));
    assert_eq!(world.remove(small(0x1000)), page);
    assert_eq!(world.module.children(world.td), Some(before));
    assert_eq!(world.module.page(page).page_type, PageType::Host);
    assert_eq!(world.state(small(0x1000)), SeptState::Free);
    world.audit();
}

#[test]
fn a_page_of_2_mib_counts_512() {
    let world = World::running();
    let before = world.module.children(world.td).unwrap();
    let huge = at(0x20_0000, Level::L2);
    let page = world.huge();
    world.module.tdh_mem_page_aug(world.td, huge, page).unwrap();
    assert_eq!(world.module.children(world.td), Some(before + 512));
    // A part of it is nobody else's.
    let part = Pfn::new(page.raw() + 5);
    let taken = world.module.tdh_mem_page_aug(world.td, small(0x1000), part);
    let metadata = of(Code::PageMetadataIncorrect, Operand::R8);
    assert_eq!(status(taken), metadata);
    world.audit();
}

#[test]
fn a_page_belongs_to_one_entry_of_one_td() {
    let world = World::running();
    let page = world.aug(0x1000);
    let again = world.module.tdh_mem_page_aug(world.td, small(0x2000), page);
    let metadata = of(Code::PageMetadataIncorrect, Operand::R8);
    assert_eq!(status(again), metadata);
    let other = build(&world.module, Pfn::new(0x40), TdParams::default(), 1).unwrap();
    let root = at(0, Level::L4);
    let stolen = world.module.tdh_mem_sept_add(other, root, page);
    assert_eq!(status(stolen), metadata);
    let beyond = world
        .module
        .tdh_mem_sept_add(other, root, Pfn::new(1 << 30));
    assert_eq!(status(beyond), of(Code::OperandAddrRangeError, Operand::R8));
    world.audit();
}

#[test]
fn removal_needs_block_and_track_once_the_td_can_run() {
    let world = World::running();
    world.aug(0x1000);
    let remove = || world.module.tdh_mem_page_remove(world.td, small(0x1000));
    assert_eq!(status(remove()), of(Code::GpaRangeNotBlocked, Operand::Rcx));
    world.block(small(0x1000));
    assert_eq!(status(remove()), of(Code::TlbTrackingNotDone, Operand::Rcx));
    world.module.tdh_mem_track(world.td).unwrap();
    remove().unwrap();
}

#[test]
fn removal_needs_neither_while_the_td_is_built() {
    let world = World::building();
    let source = Content::Value(7);
    world
        .module
        .tdh_mem_page_add(world.td, small(0x1000), world.page(), source)
        .unwrap();
    world
        .module
        .tdh_mem_page_remove(world.td, small(0x1000))
        .unwrap();
    world.audit();
}

#[test]
fn blocking_twice_is_a_success_that_changes_nothing() {
    let world = World::running();
    let page = world.aug(0x1000);
    world.block(small(0x1000));
    let first = world.module.page(page).blocked_epoch;
    world.module.tdh_mem_track(world.td).unwrap();
    let again = world
        .module
        .tdh_mem_range_block(world.td, small(0x1000))
        .unwrap();
    assert_eq!(again, Block::AlreadyBlocked);
    assert_eq!(again.status().raw(), 0x0000_0b07_0000_0001);
    assert!(!again.status().is_error());
    assert_eq!(world.module.page(page).blocked_epoch, first);
}

#[test]
fn leaves_go_before_tables() {
    let world = World::running();
    world.aug(0x1000);
    let table = at(0, Level::L2);
    world.block(table);
    world.module.tdh_mem_track(world.td).unwrap();
    let remove = || world.module.tdh_mem_sept_remove(world.td, table);
    assert_eq!(status(remove()), of(Code::EptPageNotFree, Operand::Rcx));
    // Below a blocked table nobody gets to the leaf.
    let leaf = world.module.tdh_mem_page_remove(world.td, small(0x1000));
    assert_eq!(status(leaf), of(Code::EptWalkFailed, Operand::Rcx));
    world.module.tdh_mem_range_unblock(world.td, table).unwrap();
    world.remove(small(0x1000));
    world.block(table);
    world.module.tdh_mem_track(world.td).unwrap();
    remove().unwrap();
    world.audit();
}

#[test]
fn a_block_that_is_taken_back_keeps_the_content() {
    let world = World::running();
    let page = world.aug(0x1000);
    world.enter(VP);
    world.accept(VP, small(0x1000)).unwrap();
    let write = GuestAccess::Write(42);
    let gpa = Gpa::new(0x1000);
    world.module.vp_access(world.td, VP, gpa, write).unwrap();
    world.block(small(0x1000));
    let early = world.module.tdh_mem_range_unblock(world.td, small(0x1000));
    let not_done = of(Code::TlbTrackingNotDone, Operand::SeptTree);
    assert_eq!(status(early), not_done);
    world.exit(VP);
    world.module.tdh_mem_track(world.td).unwrap();
    world
        .module
        .tdh_mem_range_unblock(world.td, small(0x1000))
        .unwrap();
    assert_eq!(world.module.content(page), Content::Value(42));
    assert_eq!(world.state(small(0x1000)), SeptState::Mapped);
}

#[test]
fn demote_and_promote_undo_each_other() {
    let world = World::running();
    let huge = at(0x20_0000, Level::L2);
    let page = world.huge();
    world.module.tdh_mem_page_aug(world.td, huge, page).unwrap();
    world.enter(VP);
    assert_eq!(world.accept(VP, huge), Ok(Accept::Accepted));
    world.exit(VP);
    world.block(huge);
    world.module.tdh_mem_track(world.td).unwrap();
    let table = world.page();
    world
        .module
        .tdh_mem_page_demote(world.td, huge, table)
        .unwrap();
    assert_eq!(world.state(huge), SeptState::NlMapped);
    assert_eq!(world.state(small(0x20_3000)), SeptState::Mapped);
    world.audit();
    world.block(huge);
    world.module.tdh_mem_track(world.td).unwrap();
    let back = world.module.tdh_mem_page_promote(world.td, huge);
    assert_eq!(back, Ok(table));
    assert_eq!(world.state(huge), SeptState::Mapped);
    world.audit();
}

#[test]
fn promote_wants_512_alike_in_a_row() {
    let world = World::running();
    let page = world.huge();
    let table = at(0x20_0000, Level::L2);
    world.table(0x20_0000, Level::L2);
    for index in 0..512 {
        let part = Pfn::new(page.raw() + index);
        let gpa = small(0x20_0000 + index * 0x1000);
        world.module.tdh_mem_page_aug(world.td, gpa, part).unwrap();
    }
    world.enter(VP);
    world.accept(VP, small(0x20_0000)).unwrap();
    world.exit(VP);
    world.block(table);
    world.module.tdh_mem_track(world.td).unwrap();
    let promote = || world.module.tdh_mem_page_promote(world.td, table);
    let conditions = of(Code::EptInvalidPromoteConditions, Operand::Rcx);
    assert_eq!(status(promote()), conditions);
    world.module.tdh_mem_range_unblock(world.td, table).unwrap();
    world.remove(small(0x20_0000));
    world
        .module
        .tdh_mem_page_aug(world.td, small(0x20_0000), page)
        .unwrap();
    world.block(table);
    world.module.tdh_mem_track(world.td).unwrap();
    promote().unwrap();
    assert_eq!(world.state(table), SeptState::Pending);
    world.audit();
}

#[test]
fn a_relocated_page_takes_its_content_along() {
    let world = World::running();
    let page = world.aug(0x1000);
    world.enter(VP);
    world.accept(VP, small(0x1000)).unwrap();
    let gpa = Gpa::new(0x1000);
    world
        .module
        .vp_access(world.td, VP, gpa, GuestAccess::Write(9))
        .unwrap();
    world.exit(VP);
    world.block(small(0x1000));
    world.module.tdh_mem_track(world.td).unwrap();
    let relocate = |to| {
        world
            .module
            .tdh_mem_page_relocate(world.td, small(0x1000), to)
    };
    let itself = of(Code::OperandInvalid, Operand::R8);
    assert_eq!(status(relocate(page)), itself);
    let target = world.page();
    assert_eq!(relocate(target), Ok(page));
    assert_eq!(world.state(small(0x1000)), SeptState::Mapped);
    assert_eq!(world.module.content(target), Content::Value(9));
    assert_eq!(world.module.content(page), Content::Scrambled);
    world.audit();
}

#[test]
fn the_host_finds_nothing_in_a_page_that_comes_back() {
    let world = World::running();
    let page = world.aug(0x1000);
    world.remove(small(0x1000));
    assert_eq!(world.module.content(page), Content::Scrambled);
    world.module.tdh_phymem_page_wbinvd(page).unwrap();
    assert!(world.module.host_clears(page));
    assert_eq!(world.module.content(page), Content::Zero);
    world.aug(0x1000);
}

#[test]
fn only_a_debug_td_can_be_looked_into() {
    let world = World::running();
    let read = world.module.tdh_mem_rd(world.td, Gpa::new(0));
    assert_eq!(status(read), Status::new(Code::TdNonDebug));
    let params = TdParams {
        debug: Debug::On,
        ..TdParams::default()
    };
    let world = World::with(params, 1);
    world
        .module
        .tdh_mem_page_add(world.td, small(0x1000), world.page(), Content::Value(5))
        .unwrap();
    let gpa = Gpa::new(0x1000);
    assert_eq!(world.module.tdh_mem_rd(world.td, gpa), Ok(Some(5)));
    assert_eq!(world.module.tdh_mem_wr(world.td, gpa, 6), Ok(Some(5)));
    assert_eq!(world.module.tdh_mem_rd(world.td, gpa), Ok(Some(6)));
    let nothing = world.module.tdh_mem_rd(world.td, Gpa::new(0x2000));
    assert_eq!(status(nothing), of(Code::EptEntryNotPresent, Operand::Rcx));
}

#[test]
fn locks_are_tried_and_never_waited_for() {
    let world = World::running();
    world.aug(0x1000);
    let page = world.page();
    let aug = || world.module.tdh_mem_page_aug(world.td, small(0x2000), page);
    let block = || world.module.tdh_mem_range_block(world.td, small(0x1000));
    let busy = |operand| of(Code::OperandBusy, operand);
    let cases = [
        (HeldLock::Tdr(Hold::Exclusive), Operand::Rdx, Operand::Rdx),
        (
            HeldLock::Tree(Hold::Exclusive),
            Operand::SeptTree,
            Operand::SeptTree,
        ),
    ];
    for (lock, for_aug, for_block) in cases {
        assert!(world.module.plant_lock(world.td, lock));
        assert_eq!(status(aug()), busy(for_aug), "{lock:?}");
        assert_eq!(status(block()), busy(for_block), "{lock:?}");
        world.module.release_lock(world.td, lock);
    }
    // Adding shares the tree, blocking does not.
    let shared = HeldLock::Tree(Hold::Shared);
    world.module.plant_lock(world.td, shared);
    assert_eq!(status(block()), busy(Operand::SeptTree));
    aug().unwrap();
    world.module.release_lock(world.td, shared);
    let entry = HeldLock::Entry(small(0x1000));
    world.module.plant_lock(world.td, entry);
    assert_eq!(status(block()), busy(Operand::Rcx));
    world.module.release_lock(world.td, entry);
    let epoch = HeldLock::Epoch(Hold::Shared);
    world.module.plant_lock(world.td, epoch);
    let track = world.module.tdh_mem_track(world.td);
    assert_eq!(status(track), busy(Operand::TdEpoch));
    world.module.release_lock(world.td, epoch);
    block().unwrap();
    world.audit();
}

#[test]
fn a_planned_busy_changes_nothing() {
    let world = World::running();
    let plan = BusyPlan::once(Seamcall::MemPageAug, 1, Operand::Rcx);
    world.module.plan_busy(plan);
    world.aug(0x1000);
    let page = world.page();
    let second = world.module.tdh_mem_page_aug(world.td, small(0x2000), page);
    assert_eq!(status(second), of(Code::OperandBusy, Operand::Rcx));
    assert_eq!(world.state(small(0x2000)), SeptState::Free);
    assert_eq!(world.module.page(page).page_type, PageType::Host);
    world
        .module
        .tdh_mem_page_aug(world.td, small(0x2000), page)
        .unwrap();
    world.audit();
}

/// A table is a page of 4 KiB; metadata are kept for each page of a block that is in use.
#[test]
fn memory_is_counted_by_tables_and_blocks() {
    let world = World::building();
    let (metadata, tables) = world.module.bytes();
    // Levels 4 to 1 of the first 2 MiB.
    assert_eq!(tables, 4 * 4096);
    assert!(metadata > 0);
    world.table(1 << 30, Level::L3);
    let (same, more) = world.module.bytes();
    assert_eq!((same, more), (metadata, 5 * 4096));
    assert_eq!(Module::new(Pfn::new(0x4000)).bytes().1, 0);
}

/// Bit 63 says that it is an error, bit 62 that it stays one.
#[test]
fn a_status_is_final_where_asking_again_is_no_use() {
    for code in Code::ALL {
        let top = (*code as u32) >> 28;
        let status = Status::of(*code, Operand::Tdr);
        let asked = (status.is_error(), status.is_final());
        let expected = match top {
            0 => (false, false),
            8 => (true, false),
            0xc => (true, true),
            _ => panic!("{code}"),
        };
        assert_eq!(asked, expected, "{code}");
        assert_eq!(status.is_busy(), *code == Code::OperandBusy, "{code}");
    }
}

#[test]
fn a_plan_of_busy_calls_is_spent_when_all_were_busy() {
    let world = World::running();
    let twice = |leaf| BusyPlan::times(leaf, 0, 1, Operand::Tdr);
    let plan = twice(Seamcall::MemTrack).and(twice(Seamcall::MemPageAug));
    assert!(!plan.is_spent() && BusyPlan::default().is_spent());
    assert!(!BusyPlan::random(3, 1).is_spent());
    assert!(!BusyPlan::default().and(BusyPlan::random(3, 1)).is_spent());
    world.module.plan_busy(plan);
    let track = || world.module.tdh_mem_track(world.td).is_ok();
    assert_eq!([track(), track()], [false, true]);
    let page = world.page();
    let aug = || {
        let added = world.module.tdh_mem_page_aug(world.td, small(0x1000), page);
        added.is_ok()
    };
    assert_eq!([aug(), aug()], [false, true]);
}

#[test]
fn what_a_td_does_and_counts_is_asked_by_its_root_page() {
    let world = World::building();
    let other = Tdr::new(Pfn::new(0x3fff));
    let module = &world.module;
    assert_eq!(module.op_state(world.td), Some(OpState::Initialized));
    assert!(module.epochs(world.td).is_some() && module.mrtd(world.td).is_none());
    world.module.tdh_mr_finalize(world.td).unwrap();
    assert_eq!(module.op_state(world.td), Some(OpState::Runnable));
    assert!(module.mrtd(world.td).is_some());
    assert_eq!((module.op_state(other), module.epochs(other)), (None, None));
    assert_eq!(
        (module.children(other), module.measured(other)),
        (None, None)
    );
}
