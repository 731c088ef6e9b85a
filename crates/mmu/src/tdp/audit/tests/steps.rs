//! The audits that operations end with.

use slat_memslot::{GfnRange, Pages};

use super::*;
use crate::spte::Ept;
use crate::tdp::{Collapse, Passes, Progress, Uninterrupted, ZapInvalidated, ZapLeafs};

/// A hundred full tables of level 1.
fn large() -> World<Ept> {
    let mut world = World::<Ept>::new(&Host::ept(46));
    let root = world.root_table();
    let request = MapRequest::page(Gfn::new(0), PageSize::Size4K, Pfn::new(0));
    let pages = Pages::new(100 << 9);
    let mut nobody = Unobserved;
    let _dirty = world
        .tables
        .exclusive(&mut nobody)
        .map_range(root, &request, pages);
    world
}

/// A zap of nothing, which is a step all the same.
fn step<F: Format>(world: &mut World<F>) {
    let nothing = GfnRange::between(Gfn::new(1 << 30), Gfn::new((1 << 30) + 1)).unwrap();
    let mut zap = ZapLeafs::of_valid_roots(nothing);
    let mut nobody = Unobserved;
    let mut locked = world.tables.exclusive(&mut nobody);
    let _progress = zap.run(&mut locked, &mut Uninterrupted);
}

#[test]
fn a_few_steps_see_every_table() {
    let world = large();
    let rounds = world.tables.arena.made().div_ceil(16) + 1;
    for gfn in [0, 50 << 9, (100 << 9) - 1] {
        let subject = world.poke(gfn, Level::L1, |raw| raw ^ 1 << 59);
        let mut all = (0..rounds).flat_map(|_| world.tables.audit_some());
        assert!(all.any(|each| each.subject == subject));
        world.poke(gfn, Level::L1, |raw| raw ^ 1 << 59);
    }
    let mut all = (0..rounds).flat_map(|_| world.tables.audit_some());
    assert_eq!(all.next(), None);
}

/// A fault may meet an entry that another thread has frozen, and nothing else that is wrong.
#[test]
fn the_way_to_a_frame_is_audited() {
    let mut world = World::<Ept>::new(&Host::ept(46));
    world.map(7, PageSize::Size4K, 0x1007);
    let (root, gfn) = (world.root_table(), Gfn::new(7));
    for level in [Level::L1, Level::L2, Level::L3, Level::L4] {
        let subject = world.poke(7, level, |raw| raw ^ 1 << 59);
        let violations = world.tables.audit_path(root, gfn);
        assert!(violations.iter().all(|each| each.subject == subject));
        assert_eq!(violations.len(), 1);
        world.poke(7, level, |raw| raw ^ 1 << 59);
    }
    world.poke(7, Level::L1, |_| 1 << 63 | 0x5a0);
    assert_eq!(world.tables.audit_path(root, gfn), []);
    world.poke(8, Level::L1, |_| 0x42);
    assert_eq!(world.tables.audit_path(root, gfn), []);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "A30 frozen-left-behind: gfn 0x7 level 1")]
fn a_step_panics_with_what_it_finds() {
    let mut world = World::<Ept>::new(&Host::ept(46));
    world.map(7, PageSize::Size4K, 0x1007);
    world.poke(7, Level::L1, |_| 1 << 63 | 0x5a0);
    step(&mut world);
}

/// Faults of all sizes, collapses and a fast zap meet each other, and every fault is audited on the way.
#[test]
fn a_fault_is_audited_while_others_work() {
    let host = Host::ept(46);
    for _ in 0..8 {
        let mut tables = Tables::<Ept>::new(&host);
        let role = role(&host, VcpuMode::Normal);
        let acquire = |tables: &Tables<Ept>| {
            let mut reader = tables.reader().unwrap();
            let mut nobody = Unobserved;
            let mut locked = tables.shared(&mut reader, &mut nobody);
            let root = locked.acquire_root(role).unwrap().root();
            locked.root_table(root).unwrap()
        };
        faults(&tables, acquire(&tables), 0);
        tables.exclusive(&mut Unobserved).invalidate_roots();
        let root = acquire(&tables);
        std::thread::scope(|scope| {
            for start in 0..2 {
                let tables = &tables;
                scope.spawn(move || faults(tables, root, start));
            }
            scope.spawn(|| zap_invalidated(&tables));
        });
        tables.reclaim();
        assert_eq!(tables.audit(&AuditContext::default()), []);
    }
}

/// Guest and host frames are the same.
fn faults(tables: &Tables<Ept>, root: TableId, start: u64) {
    let mut reader = tables.reader().unwrap();
    let mut nobody = Unobserved;
    for number in 0..2000 {
        let gfn = (start + number * 37) % 0x800;
        let size = match number % 16 {
            0 => PageSize::Size2M,
            1 => PageSize::Size1G,
            _ => PageSize::Size4K,
        };
        let pfn = Pfn::new(first(gfn, size.level()));
        let request = MapRequest::page(Gfn::new(gfn), size, pfn);
        let mut locked = tables.shared(&mut reader, &mut nobody);
        let _mapped = locked.map(root, &request).unwrap();
        if number % 32 == 5 {
            locked.collapse(root, Gfn::new(gfn), PageSize::Size2M, Collapse::Zap);
        }
        tables.reclaim();
    }
}

fn zap_invalidated(tables: &Tables<Ept>) {
    let mut reader = tables.reader().unwrap();
    let mut nobody = Unobserved;
    let mut locked = tables.shared(&mut reader, &mut nobody);
    let mut zap = ZapInvalidated::new(Passes::default());
    assert_eq!(zap.run(&mut locked, &mut Uninterrupted), Progress::Done);
}
