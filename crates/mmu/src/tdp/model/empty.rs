//! Faults in a table that is known to be empty.

use slat_memslot::{Gfn, GfnRange, PageSize};

use super::check::consistent;
use super::world::{Thread, World, explore};
use crate::spte::NxHugePages;
use crate::table::ENTRIES;
use crate::tdp::leaves::Leaves;
use crate::tdp::{Collapse, Progress, Resolution, Uninterrupted, Unobserved, ZapLeafs};

impl World {
    /// Zaps the leaves of the first table of level 1, and gives how many there were.
    fn zap_leafs(&mut self) -> u64 {
        let range = GfnRange::between(Gfn::new(0), Gfn::new(ENTRIES as u64)).unwrap();
        let mut zap = ZapLeafs::of_valid_roots(range);
        let mut locked = self.tables.exclusive(Unobserved);
        assert_eq!(zap.run(&mut locked, &mut Uninterrupted), Progress::Done);
        zap.zapped()
    }

    /// With a table of level 1 that a zap has emptied.
    fn emptied() -> Self {
        let mut world = Self::new();
        assert_eq!(world.alone().map(1, PageSize::Size4K), Resolution::Fixed);
        assert_eq!(world.zap_leafs(), 1);
        let emptied = world.tables.find(world.table, 1).place.table;
        assert!(world.tables.knows(emptied, Leaves::None));
        world
    }
}

/// Two vCPUs fault on pages of the table, or on the same one: the next zap finds what they have mapped.
#[test]
fn what_is_mapped_into_an_empty_table_is_zapped() {
    for (gfns, leaves) in [([0, 3], 2), ([2, 2], 1)] {
        explore(3, move || {
            let [first, second] = gfns;
            let fault = |gfn| move |thread: &Thread<'_>| thread.map(gfn, PageSize::Size4K);
            let (mut world, _, _) = World::emptied().race(fault(first), fault(second));
            assert_eq!(consistent(&mut world.tables).pages_4k, leaves);
            assert_eq!(world.zap_leafs(), leaves);
            assert_eq!(consistent(&mut world.tables).pages_4k, 0);
        });
    }
}

/// The same while the table is replaced by nothing, or by a huge leaf: the table for the fault may be another one then, of
/// the same number.
#[test]
fn what_is_mapped_beside_a_collapse_is_zapped() {
    for how in [Collapse::Zap, Collapse::Recover(NxHugePages::Off)] {
        explore(2, move || {
            let fault = |thread: &Thread<'_>| thread.map(0, PageSize::Size4K);
            let collapse = move |thread: &Thread<'_>| thread.collapse(PageSize::Size2M, how);
            let (mut world, _, _) = World::emptied().race(fault, collapse);
            let mapped = consistent(&mut world.tables);
            assert_eq!(world.zap_leafs(), mapped.pages_4k + mapped.pages_2m);
            let left = consistent(&mut world.tables);
            assert_eq!((left.pages_4k, left.pages_2m), (0, 0));
        });
    }
}
