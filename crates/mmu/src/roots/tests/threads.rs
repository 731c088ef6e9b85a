//! One table and many threads.

use slat_memslot::AsId;

use super::*;

fn visit(
    table: &RootTable<u32>,
    select: RootSelect,
    as_id: Option<AsId>,
    mut seen: impl FnMut(RootId),
) -> usize {
    let (mut at, mut freed) = (None, 0);
    loop {
        let next = table.next_root(at, select, as_id);
        freed += usize::from(next.freed.is_some());
        at = next.root;
        let Some(root) = at else { return freed };
        seen(root);
    }
}

fn visited(table: &RootTable<u32>, select: RootSelect, as_id: Option<AsId>) -> Vec<u32> {
    let mut payloads = Vec::new();
    assert_eq!(
        visit(table, select, as_id, |root| payloads
            .extend(table.payload(root))),
        0
    );
    payloads
}

fn acquire(table: &RootTable<u32>, mode: VcpuMode, payload: u32) -> RootId {
    table.acquire(RootKind::Tdp, tdp(mode), || payload).root()
}

#[test]
fn a_table_can_be_shared() {
    fn shared<T: Send + Sync>() {}
    shared::<RootTable<u32>>();
}

#[test]
fn an_iteration_visits_what_was_asked_for() {
    let mut table = RootTable::new(TdpMmu::On);
    acquire(&table, VcpuMode::Normal, 0);
    table.invalidate_all();
    acquire(&table, VcpuMode::Smm, 1);
    let newest = acquire(&table, VcpuMode::Normal, 2);
    table.acquire(
        RootKind::Shadow { gfn: Gfn::new(1) },
        shadow(VcpuMode::Normal),
        || 3,
    );
    assert_eq!(visited(&table, RootSelect::Valid, None), [2, 1]);
    assert_eq!(visited(&table, RootSelect::All, None), [2, 1, 0]);
    assert_eq!(visited(&table, RootSelect::All, Some(AsId::NORMAL)), [2, 0]);
    assert_eq!(visited(&table, RootSelect::Valid, Some(AsId::SMM)), [1]);
    // All references are given back.
    assert_eq!(table.references(newest), Some(2));
}

/// The zapper's reference and the last vCPU's go while an iteration is on the root.
#[test]
fn a_step_frees_the_root_it_leaves() {
    let mut table = RootTable::new(TdpMmu::On);
    let root = acquire(&table, VcpuMode::Normal, 7);
    table.invalidate_all();
    let at = table.next_root(None, RootSelect::All, None).root;
    assert_eq!(at, Some(root));
    assert!(table.take_scheduled(root) && !table.take_scheduled(root));
    assert_eq!(table.put_own(root), Released::Kept(root));
    assert_eq!(table.release(root), Released::Kept(root));
    let last = table.next_root(at, RootSelect::All, None);
    assert_eq!(
        (last.root, last.freed.map(|freed| freed.payload)),
        (None, Some(7))
    );
    assert!(!table.try_hold(root) && !table.take_scheduled(root));
    assert_eq!((table.references(root), table.payload(root)), (None, None));
}

/// A shadow page without references is found by its role, but not held by its name.
#[test]
fn only_an_acquisition_finds_a_shadow_root_without_references() {
    let table = RootTable::new(TdpMmu::On);
    let kind = RootKind::Shadow { gfn: Gfn::new(5) };
    let acquire = || table.acquire(kind, shadow(VcpuMode::Normal), || ());
    let root = acquire().root();
    assert!(table.try_hold(root));
    for _ in 0..2 {
        assert_eq!(table.release(root), Released::Kept(root));
    }
    assert!(!table.try_hold(root));
    assert_eq!(acquire(), Acquired::Shared(root));
    assert_eq!(
        (table.kind(root), table.references(root)),
        (Some(kind), Some(1))
    );
}

#[test]
#[should_panic(expected = "not on its way out")]
fn the_tdp_mmu_keeps_a_valid_root() {
    let table = RootTable::new(TdpMmu::On);
    let root = acquire(&table, VcpuMode::Normal, 0);
    let _ = table.put_own(root);
}

#[test]
#[should_panic(expected = "not held by the TDP MMU")]
fn the_tdp_mmu_s_reference_goes_once() {
    let mut table = RootTable::new(TdpMmu::On);
    let root = acquire(&table, VcpuMode::Normal, 0);
    table.invalidate_all();
    let _ = table.put_own(root);
    let _ = table.put_own(root);
}

/// vCPUs come and go while one thread visits all roots and another zaps what the round before made invalid.
#[test]
fn every_root_goes_once_whoever_holds_it() {
    const ROUNDS: u32 = 200;
    let mut table = RootTable::new(TdpMmu::On);
    let (mut made, mut freed) = (0, 0);
    for round in 0..ROUNDS {
        let shared = &table;
        let vcpu = || {
            let mut counts = (0, 0);
            for turn in 0..20 {
                let mode = [VcpuMode::Normal, VcpuMode::Smm][turn % 2];
                let acquired = shared.acquire(RootKind::Tdp, tdp(mode), || round);
                counts.0 += usize::from(matches!(acquired, Acquired::Created(_)));
                assert_eq!(shared.payload(acquired.root()), Some(round));
                counts.1 += usize::from(shared.release(acquired.root()).freed().is_some());
            }
            counts
        };
        let visitor = || {
            let alive = |root| assert!(shared.payload(root).is_some_and(|made| made <= round));
            (0, visit(shared, RootSelect::All, None, alive))
        };
        std::thread::scope(|scope| {
            let threads = [
                scope.spawn(vcpu),
                scope.spawn(vcpu),
                scope.spawn(visitor),
                scope.spawn(|| (0, shared.zap_invalidated().len())),
            ];
            for thread in threads {
                let counts = thread.join().unwrap();
                made += counts.0;
                freed += counts.1;
            }
        });
        assert_eq!(table.len(), 2);
        table.invalidate_all();
    }
    freed += table.zap_invalidated().len();
    assert!(table.is_empty());
    assert_eq!((made, freed), (2 * ROUNDS as usize, made));
}
