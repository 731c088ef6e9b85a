//! Roots under the model checker.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::role::{PageRole, TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
use crate::sync::explore;

fn role() -> PageRole {
    root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Ept4))
}

fn acquire(table: &RootTable<u32>, payload: u32) -> Acquired {
    table.acquire(RootKind::Tdp, role(), || payload)
}

/// An invalid root that only the TDP MMU holds.
fn with_invalid_root() -> (RootTable<u32>, RootId) {
    let mut table = RootTable::new(TdpMmu::On);
    let root = acquire(&table, 7).root();
    assert_eq!(table.release(root), Released::Kept(root));
    table.invalidate_all();
    (table, root)
}

/// Gives up the TDP MMU's own reference, as whoever zaps does.
fn zap(table: &RootTable<u32>, root: RootId) -> usize {
    assert!(table.take_scheduled(root));
    usize::from(table.put_own(root).freed().is_some())
}

/// Visits all roots, which must not go while they are visited; counts what the steps free.
fn visit(table: &RootTable<u32>) -> usize {
    let (mut at, mut freed) = (None, 0);
    loop {
        let next = table.next_root(at, RootSelect::All, None);
        freed += usize::from(next.freed.is_some());
        at = next.root;
        let Some(root) = at else { return freed };
        assert!(table.role(root).is_some_and(PageRole::is_invalid));
        assert_eq!(table.payload(root), Some(7));
        assert!(table.references(root).is_some_and(|count| count > 0));
    }
}

/// One thread gives up an invalid root's last reference while another visits all roots.
#[test]
fn an_invalid_root_goes_once_and_not_while_it_is_visited() {
    explore(3, || {
        let (table, root) = with_invalid_root();
        let table = Arc::new(table);
        let zapper = {
            let table = table.clone();
            thread::spawn(move || zap(&table, root))
        };
        let freed = visit(&table) + zapper.join().expect("the zapper is content");
        assert_eq!(freed, 1);
        assert!(table.is_empty());
    });
}

/// The same with a reference that is taken by name, whose root may have been followed by another in the same place.
#[test]
fn an_old_name_never_reaches_the_next_root() {
    explore(3, || {
        let (table, root) = with_invalid_root();
        let table = Arc::new(table);
        let zapper = {
            let table = table.clone();
            thread::spawn(move || {
                let freed = zap(&table, root);
                (freed, acquire(&table, 8).root())
            })
        };
        let mut freed = 0;
        assert!(table.payload(root).is_none_or(|payload| payload == 7));
        if table.try_hold(root) {
            assert_eq!(table.payload(root), Some(7));
            freed += usize::from(table.release(root).freed().is_some());
        }
        let (freed_by_zapper, next) = zapper.join().expect("the zapper is content");
        assert_eq!(freed + freed_by_zapper, 1);
        assert_eq!((table.role(root), table.payload(next)), (None, Some(8)));
        assert_eq!((table.references(next), table.len()), (Some(2), 1));
    });
}

/// Two vCPUs want the same root at once.
#[test]
fn two_threads_acquire_one_root() {
    explore(3, || {
        let table = Arc::new(RootTable::new(TdpMmu::On));
        let other = {
            let table = table.clone();
            thread::spawn(move || acquire(&table, 2))
        };
        let own = acquire(&table, 1);
        let other = other.join().expect("the other is content");
        assert_eq!(own.root(), other.root());
        let created = |acquired: &Acquired| matches!(acquired, Acquired::Created(_));
        assert_eq!([own, other].iter().filter(|a| created(a)).count(), 1);
        let payload = if created(&own) { 1 } else { 2 };
        assert_eq!(table.payload(own.root()), Some(payload));
        assert_eq!((table.references(own.root()), table.len()), (Some(3), 1));
    });
}
