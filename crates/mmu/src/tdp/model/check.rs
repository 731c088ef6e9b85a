//! What must hold when nobody is in the tables.

use std::collections::BTreeSet;

use slat_memslot::Level;

use crate::roots::RootId;
use crate::spte::{Entry, Format, Pfn, Spte};
use crate::sync::Ordering;
use crate::table::{ENTRIES, TableId, span};
use crate::tdp::leaves::Leaves;
use crate::tdp::{Parent, Tables, Totals};

/// The page that a frame is mapped to, if it is: the frame's place in each table, where tables have 512 entries. So a
/// huge page is as aligned as its leaf has to be, whatever the number of entries.
pub(super) fn page_of(gfn: u64) -> Pfn {
    let entries = ENTRIES as u64;
    let (mut rest, mut scale, mut pfn) = (gfn, 1, 0);
    while rest > 0 {
        pfn += rest % entries * scale;
        rest /= entries;
        scale *= 512;
    }
    Pfn::new(pfn)
}

/// What a walk over all roots finds.
#[derive(Default)]
struct Found {
    tables: BTreeSet<TableId>,
    leaves: [u64; 3],
}

/// Checks all tables, and gives how many leaves and tables there are: nothing is frozen, every leaf maps the page that it
/// should, every table is linked once and knows where, none that is known to be empty has a leaf, the counts are those of a
/// walk, a table that was removed has nothing in it, and none is lost.
pub(super) fn consistent<F: Format, X, C>(tables: &mut Tables<F, X, C>) -> Totals {
    let removed: Vec<_> = tables.epochs.drain().collect();
    let tables = &*tables;
    let mut found = Found::default();
    let roots: Vec<_> = tables.roots.iter().collect();
    for (root, _) in &roots {
        let table = tables.roots.payload(*root).unwrap();
        assert_eq!(tables.page(table).parent(), None);
        walk(tables, table, &mut found);
    }
    let linked = found.tables.len() - roots.len();
    let expected = Totals {
        pages_4k: found.leaves[0],
        pages_2m: found.leaves[1],
        pages_1g: found.leaves[2],
        tables: linked as u64,
        lost: 0,
        lost_pages: 0,
    };
    assert_eq!(tables.totals(), expected, "the counts and a walk");
    for table in removed {
        assert!(found.tables.insert(table), "{table:?} was freed twice");
        gone(tables, table);
        tables.arena.recycle(table);
        found.tables.remove(&table);
    }
    assert_eq!(
        tables.arena.in_use(),
        found.tables.len(),
        "a table was lost"
    );
    expected
}

fn walk<F: Format, X, C>(tables: &Tables<F, X, C>, table: TableId, found: &mut Found) {
    assert!(found.tables.insert(table), "{table:?} is linked twice");
    let page = tables.page(table);
    let level = page.role().level();
    let mut leaf_found = false;
    for index in 0..ENTRIES {
        let gfn = page.gfn().raw() + index as u64 * span(level);
        let spte = tables.load(table, index);
        match tables.codec.decode(spte, level) {
            Entry::Absent => {}
            Entry::Frozen => panic!("gfn {gfn:#x} at {level:?} was left frozen"),
            Entry::Mmio(mmio) => assert_eq!(mmio.gfn.raw(), gfn),
            Entry::Leaf(leaf) => {
                assert_eq!(leaf.pfn, page_of(gfn), "the page of gfn {gfn:#x}");
                found.leaves[level as usize - 1] += 1;
                leaf_found = true;
            }
            Entry::Link(_) => {
                let child = tables.child_of(spte, level).unwrap();
                let below = tables.page(child);
                assert_eq!(below.parent(), Some(Parent { table, index }));
                assert_eq!(below.gfn().raw(), gfn);
                assert_eq!(below.role().level().parent(), Some(level));
                walk(tables, child, found);
            }
        }
    }
    assert!(
        !(leaf_found && tables.knows(table, Leaves::None)),
        "{table:?} has a leaf and is known to be empty"
    );
}

/// A table that was unlinked under the shared lock has frozen entries only; a root's table has empty ones.
fn gone<F: Format, X, C>(tables: &Tables<F, X, C>, table: TableId) {
    let linked = tables.page(table).parent().is_some();
    for index in 0..ENTRIES {
        let spte = tables.load(table, index);
        assert_eq!(
            tables.codec.is_frozen(spte),
            linked,
            "{spte:?} in the freed {table:?}"
        );
        assert!(!spte.is_present(), "{spte:?} in the freed {table:?}");
    }
}

/// Whether a root maps nothing, not even empty tables.
#[cfg_attr(not(loom), expect(dead_code, reason = "for small models"))]
pub(super) fn is_empty<F: Format, X, C>(tables: &Tables<F, X, C>, root: RootId) -> bool {
    let table = tables.roots.payload(root).unwrap();
    let entries = tables.arena.table(table).iter();
    let mut sptes = entries.map(|entry| Spte::<F>::from_raw(entry.load(Ordering::Acquire)));
    sptes.all(|spte| tables.codec.is_nonpresent(spte))
}

/// The level of the leaf for a frame.
#[cfg_attr(not(loom), expect(dead_code, reason = "for small models"))]
pub(super) fn leaf_level<F: Format, X, C>(
    tables: &Tables<F, X, C>,
    root: TableId,
    gfn: u64,
) -> Option<Level> {
    let found = tables.find(root, gfn);
    found.spte.is_leaf(found.level).then_some(found.level)
}
