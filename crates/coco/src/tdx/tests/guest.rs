//! What vCPUs do. Oracle: the fact sheet's decision table of ACCEPT, the epochs, the guard against stepping.

use slat_memslot::{Gpa, Level};

use super::world::{VP, World, at, of, small, status};
use crate::tdx::*;

#[test]
fn accepting_by_what_is_there() {
    let world = World::running();
    let exits = |cause| {
        Accept::Exit(Violation {
            gpa: Gpa::new(0x1000),
            cause,
        })
    };
    world.enter(VP);
    // Nothing: the host has to add a page.
    let asked = ViolationCause::Accept(Level::L1);
    assert_eq!(world.accept(VP, small(0x1000)), Ok(exits(asked)));
    assert!(!world.module.is_inside(world.td, VP));
    world.aug(0x1000);
    world.enter(VP);
    assert_eq!(world.accept(VP, small(0x1000)), Ok(Accept::Accepted));
    let again = world.accept(VP, small(0x1000)).unwrap();
    assert_eq!(again, Accept::AlreadyAccepted(Level::L1));
    assert_eq!(again.status().unwrap().raw(), 0x0000_0b0a_0000_0000);
    // Mapped in small pieces.
    let large = world.accept(VP, at(0, Level::L2));
    assert_eq!(status(large).raw(), 0xc000_0b0b_0000_0001);
    // Blocked.
    world.block(small(0x1000));
    assert_eq!(world.accept(VP, small(0x1000)), Ok(exits(asked)));
    world.audit();
}

#[test]
fn accepting_small_what_is_large() {
    let world = World::running();
    let huge = at(0x20_0000, Level::L2);
    world
        .module
        .tdh_mem_page_aug(world.td, huge, world.huge())
        .unwrap();
    world.enter(VP);
    let part = small(0x20_3000);
    let cause = ViolationCause::Accept(Level::L1);
    let violation = Violation {
        gpa: part.gpa,
        cause,
    };
    assert_eq!(world.accept(VP, part), Ok(Accept::Exit(violation)));
    world.enter(VP);
    assert_eq!(world.accept(VP, huge), Ok(Accept::Accepted));
    let already = Accept::AlreadyAccepted(Level::L2);
    assert_eq!(world.accept(VP, part), Ok(already));
    let wrong = world.accept(VP, at(0x20_0000, Level::L3));
    assert_eq!(status(wrong), of(Code::OperandInvalid, Operand::Rcx));
    let shared = world.accept(VP, small(1 << 47));
    assert_eq!(status(shared), of(Code::OperandInvalid, Operand::Rcx));
}

#[test]
fn a_large_accept_goes_on_where_it_was_interrupted() {
    let world = World::running();
    let huge = at(0x20_0000, Level::L2);
    world
        .module
        .tdh_mem_page_aug(world.td, huge, world.huge())
        .unwrap();
    world.enter(VP);
    let accept = |pages| {
        let interrupt = Interrupt::After(pages);
        world
            .module
            .tdg_mem_page_accept(world.td, VP, huge, interrupt)
    };
    assert_eq!(accept(100), Ok(Accept::Interrupted(100)));
    assert_eq!(accept(0), Ok(Accept::Interrupted(101)));
    assert_eq!(world.state(huge), SeptState::Pending);
    // A block forgets how far it got.
    world.block(huge);
    world.exit(VP);
    world.module.tdh_mem_track(world.td).unwrap();
    world.module.tdh_mem_range_unblock(world.td, huge).unwrap();
    world.enter(VP);
    assert_eq!(accept(300), Ok(Accept::Interrupted(300)));
    assert_eq!(accept(300), Ok(Accept::Accepted));
    assert_eq!(world.state(huge), SeptState::Mapped);
    world.audit();
}

#[test]
fn accepting_fills_with_zeroes() {
    let world = World::running();
    let page = world.aug(0x1000);
    world.remove(small(0x1000));
    // The host gives the page back as it is.
    world
        .module
        .tdh_mem_page_aug(world.td, small(0x1000), page)
        .unwrap();
    assert_eq!(world.module.content(page), Content::Scrambled);
    world.enter(VP);
    world.accept(VP, small(0x1000)).unwrap();
    let read = world
        .module
        .vp_access(world.td, VP, Gpa::new(0x1000), GuestAccess::Read);
    assert_eq!(read, Ok(Some(0)));
}

#[test]
fn who_touches_a_pending_page_is_told_or_leaves() {
    for (pending_access, ve) in [(PendingAccess::Ve, true), (PendingAccess::Exit, false)] {
        let params = TdParams {
            pending_access,
            ..TdParams::default()
        };
        let world = World::with(params, 1);
        world.module.tdh_mr_finalize(world.td).unwrap();
        world.aug(0x1000);
        world.enter(VP);
        let gpa = Gpa::new(0x1000);
        let fault = world
            .module
            .vp_access(world.td, VP, gpa, GuestAccess::Read)
            .unwrap_err();
        let cause = ViolationCause::Pending;
        let exit = GuestFault::Exit(Violation { gpa, cause });
        assert_eq!(fault, if ve { GuestFault::Ve(gpa) } else { exit });
        assert_eq!(world.module.is_inside(world.td, VP), ve);
    }
}

#[test]
fn a_blocked_page_is_reached_through_the_tlb_until_it_is_tracked() {
    let world = World::running();
    world.aug(0x1000);
    world.enter(VP);
    world.accept(VP, small(0x1000)).unwrap();
    let gpa = Gpa::new(0x1000);
    let access = |access| world.module.vp_access(world.td, VP, gpa, access);
    access(GuestAccess::Write(1)).unwrap();
    world.block(small(0x1000));
    assert_eq!(access(GuestAccess::Read), Ok(Some(1)));
    world.module.tdh_mem_track(world.td).unwrap();
    let remove = || world.module.tdh_mem_page_remove(world.td, small(0x1000));
    assert_eq!(status(remove()), of(Code::TlbTrackingNotDone, Operand::Rcx));
    // A second epoch cannot begin while the vCPU is inside.
    let track = world.module.tdh_mem_track(world.td);
    assert_eq!(status(track), Status::new(Code::PreviousTlbEpochBusy));
    world.exit(VP);
    remove().unwrap();
    world.enter(VP);
    let cause = ViolationCause::Access;
    let exit = GuestFault::Exit(Violation { gpa, cause });
    assert_eq!(access(GuestAccess::Read), Err(exit));
    world.audit();
}

#[test]
fn the_host_gets_an_entry_before_the_guest() {
    let world = World::running();
    world.aug(0x1000);
    world.enter(VP);
    let lock = HeldLock::Entry(small(0x1000));
    assert!(world.module.plant_lock(world.td, lock));
    // The guest finds it taken; the host too, and gets priority.
    let busy = of(Code::OperandBusy, Operand::Rcx);
    assert_eq!(status(world.accept(VP, small(0x1000))), busy);
    let block = || world.module.tdh_mem_range_block(world.td, small(0x1000));
    assert_eq!(status(block()), busy);
    world.module.release_lock(world.td, lock);
    let priority = of(Code::OperandBusyHostPriority, Operand::Rcx);
    assert_eq!(status(world.accept(VP, small(0x1000))), priority);
    // Its next success takes the priority back.
    assert_eq!(world.state(small(0x1000)), SeptState::Pending);
    assert_eq!(world.accept(VP, small(0x1000)), Ok(Accept::Accepted));
    world.audit();
}

#[test]
fn a_vcpu_that_does_not_get_on_is_guarded() {
    let world = World::running();
    let fault = |gpa| {
        let gpa = Gpa::new(gpa);
        let access = GuestAccess::Read;
        let _fault = world.module.vp_access(world.td, VP, gpa, access);
    };
    for _ in 0..6 {
        world.enter(VP);
        fault(0x1000);
    }
    // Six violations at one instruction are endured, the seventh is noted.
    world.enter(VP);
    fault(0x1000);
    let enter = || world.module.tdh_vp_enter(world.td, VP);
    let still = Entry::StillUnmapped(Gpa::new(0x1000));
    assert_eq!(enter(), Ok(still));
    // It needs the tree for that, alone.
    let lock = HeldLock::Tree(Hold::Shared);
    world.module.plant_lock(world.td, lock);
    let busy = of(Code::OperandBusy, Operand::SeptTree);
    assert_eq!(status(enter()), busy);
    world.module.release_lock(world.td, lock);
    world.aug(0x1000);
    assert_eq!(enter(), Ok(still), "it waits to be accepted");
    world.audit();
    // Another instruction is progress.
    world.module.plant_entry(
        world.td,
        small(0x1000),
        SeptState::Mapped,
        world
            .module
            .tdh_mem_sept_rd(world.td, small(0x1000))
            .unwrap()
            .base
            .unwrap(),
    );
    assert_eq!(enter(), Ok(Entry::Inside));
    world.module.vp_advance(world.td, VP, 0x1008).unwrap();
    world.exit(VP);
    world.enter(VP);
    fault(0x2000);
    world.enter(VP);
}
