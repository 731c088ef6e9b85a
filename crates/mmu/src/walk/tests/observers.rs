//! What walks tell about themselves.

use std::cell::Cell;

use slat_memslot::{Gpa, Gva, Level};

use crate::host::ExecuteOnly;
use crate::role::{Cr0, Cr4, Efer, VcpuState};
use crate::walk::second::NestedStage;
use crate::walk::{
    Dimension, ErrorCode, GuestCpu, GuestPaging, Ladder, Mark, NestedEptRoot, Step, Unnested,
    WalkEvent, WalkObserver, WalkTrail,
};

fn vcpu() -> VcpuState {
    VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA,
        ..VcpuState::default()
    }
}

/// Four tables, with a page at 0 and one of 2 MiB at 2 MiB.
fn memory() -> Vec<Cell<u64>> {
    let memory = vec![Cell::new(0); 4 * 512];
    for (at, entry) in [
        (0, 0x1007),
        (512, 0x2007),
        (1024, 0x3007),
        (1025, 0x40_0087),
        (3 * 512, 0x5007),
    ] {
        memory[at].set(entry);
    }
    memory
}

fn paging() -> GuestPaging {
    GuestPaging::new(&vcpu(), &GuestCpu::new(46))
}

fn walk(observer: &mut impl WalkObserver, memory: &[Cell<u64>], address: u64) {
    let found = paging().walk(
        memory,
        &mut Unnested,
        observer,
        Gva::new(address),
        ErrorCode::WRITE,
    );
    assert!(found.is_ok(), "{found:?}");
}

fn steps(events: &[WalkEvent]) -> Vec<Step> {
    let steps = events.iter().filter_map(|event| match event {
        WalkEvent::Step(step) => Some(*step),
        _ => None,
    });
    steps.collect()
}

/// The list of all events, kept by another observer, is the oracle.
#[test]
fn a_trail_is_the_last_walk() {
    let memory = memory();
    let mut trail = WalkTrail::default();
    for address in [0, 0x20_0000, 0x123] {
        let mut events = Vec::new();
        walk(&mut events, &memory, address);
        walk(&mut &mut trail, &memory, address);
        let read = steps(&events);
        let levels = read.iter().map(|step| step.level);
        // Entries are read with their marks the second time.
        assert!(trail.iter().map(|step| step.level).eq(levels));
        assert_eq!(trail.steps().len(), trail.iter().count());
        for level in Level::ALL {
            let found = trail.at(level).map(|step| step.place);
            let expected = read.iter().find(|step| step.level == level);
            assert_eq!(found, expected.map(|step| step.place), "{level:?}");
        }
    }
    trail.restart();
    assert_eq!(trail.steps(), []);
    walk(&mut trail, &memory, 0);
    assert_eq!(trail.steps().len(), 4);
    trail.clear();
    assert_eq!(trail.iter().count(), 0);
}

/// Marks that were tried and came too late.
struct Tried(Vec<Mark>);

impl WalkObserver for Tried {
    fn changed(&mut self, tried: &Mark) {
        self.0.push(*tried);
    }
}

#[test]
fn an_observer_hears_through_a_reference_to_it() {
    fn lent(mut observer: impl WalkObserver, memory: &[Cell<u64>]) {
        walk(&mut observer, memory, 0);
        observer.restart();
    }
    let mut events = Vec::new();
    lent(&mut events, &memory());
    let mut direct = Vec::new();
    let memory = memory();
    walk(&mut direct, &memory, 0);
    direct.push(WalkEvent::Restart);
    assert_eq!(events, direct);
    let marks = |event: &&WalkEvent| matches!(event, WalkEvent::Mark(_));
    assert_eq!(events.iter().filter(marks).count(), 4);
    let mark = events.iter().find_map(|event| match event {
        WalkEvent::Mark(mark) => Some(*mark),
        _ => None,
    });
    let mut tried = Tried(Vec::new());
    (&mut &mut tried).changed(&mark.unwrap());
    assert_eq!(tried.0, [mark.unwrap()]);
}

/// Intel's figure of a nested walk: four references, each of which takes four of EPT, and four for the page itself.
#[test]
fn a_ladder_has_24_rungs() {
    let memory = vec![Cell::new(0); 8 * 512];
    for level in 0..4 {
        let next = (level as u64 + 1) << 12;
        memory[level * 512].set(if level == 3 { 0x7 } else { next | 0x7 });
        memory[(4 + level) * 512].set((next + 0x4000) | 0x107);
    }
    for page in 0..8 {
        memory[7 * 512 + page].set((page as u64) << 12 | 0x337);
    }
    let root = NestedEptRoot::of(0x405e, ExecuteOnly::Unsupported);
    let ept = GuestPaging::nested_ept(&root, &GuestCpu::new(46));
    let ladder = Ladder::default();
    let nested = ladder.observer(Dimension::Nested);
    let mut stage = NestedStage::new(ept, memory.as_slice(), Unnested).observed(nested);
    let found = paging().walk(
        memory.as_slice(),
        &mut stage,
        &mut ladder.observer(Dimension::Guest),
        Gva::new(8),
        ErrorCode::READ,
    );
    assert!(found.is_ok(), "{found:?}");
    let all = ladder.references();
    let dimensions: String = all
        .iter()
        .map(|one| one.dimension.to_string().remove(0))
        .collect();
    assert_eq!(dimensions, "nnnngnnnngnnnngnnnngnnnn");
    let levels = [Level::L4, Level::L3, Level::L2, Level::L1];
    let guests: Vec<_> = all
        .iter()
        .filter(|one| one.dimension == Dimension::Guest)
        .collect();
    for ((reference, level), page) in guests.iter().zip(levels).zip(0..) {
        assert_eq!(reference.level, level);
        assert_eq!(reference.place, Some(Gpa::new(page << 12)));
        // Each was marked as accessed.
        assert_eq!(reference.marked, Some(reference.entry | 0x20));
    }
    // Nested tables whose leaves are marked already are not marked again.
    let nested = all.iter().filter(|one| one.dimension == Dimension::Nested);
    assert!(nested.clone().all(|one| one.marked.is_none()));
    assert_eq!(nested.filter(|one| one.level == Level::L1).count(), 5);
}
