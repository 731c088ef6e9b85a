//! Mirror tables, which somebody else's real tables follow.

use super::*;
use crate::role::mirror_root_role;
use crate::spte::Ept;
use crate::tdp::{Busy, Limits, NoCheck};

/// The owner of the real tables, who keeps the tables that he should free.
struct Owner;

impl External<Ept> for Owner {
    fn set_leaf(&self, _: Gfn, _: Level, _: Spte<Ept>) -> Result<(), Busy> {
        Ok(())
    }

    fn link_table(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        Ok(())
    }

    fn split_leaf(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        Ok(())
    }

    fn remove_leaf(&self, _: Gfn, _: Level, _: Spte<Ept>) -> Result<(), Busy> {
        Ok(())
    }

    fn free_table(&self, _: Gfn, _: Level, _: TableId) -> Result<(), Busy> {
        Err(Busy)
    }
}

#[test]
fn a_table_that_the_owner_keeps_is_lost_and_no_leak() {
    let host = Host::ept(46);
    let role = mirror_root_role(role(&host, VcpuMode::Normal));
    let tables = Tables::with(&host, Limits::default(), Owner, NoCheck);
    let mut world = World::<Ept, _>::of(tables, role);
    world.map(7, PageSize::Size4K, 0x1007);
    world.map(0x400, PageSize::Size2M, 0x2000);
    assert_eq!(world.audit(), []);
    let table = world.below(7, Level::L2);
    let mut nobody = Unobserved;
    assert!(world.tables.exclusive(&mut nobody).zap_page(table));
    assert_eq!(world.tables.totals().lost, 1);
    assert_eq!(world.audit(), []);
}
