//! Tables made from dumps.

use super::*;
use crate::role::RoleFlag;
use crate::tdp::audit::AuditContext;

/// Leaves of two sizes, an MMIO entry, and a root that was invalidated, with one that came after it.
fn dumped() -> Dump {
    let host = Host::npt(48);
    let (mut tables, root, _) = world::<Npt>(&host, VcpuMode::Normal);
    let role = tables.roots().role(root).unwrap();
    tables.roots.invalidate_all();
    let again = tables
        .exclusive(Unobserved)
        .acquire_root(role)
        .unwrap()
        .root();
    let table = tables.roots().payload(again).unwrap();
    map(&mut tables, table, 0x200, page(PageSize::Size2M, 0x4200));
    map(&mut tables, table, 7, page(PageSize::Size4K, 0x77));
    let mmio = MapRequest {
        target: Target::Mmio(Generation::new(6)),
        ..MapRequest::page(Gfn::new(0xfee00), PageSize::Size4K, Pfn::new(0))
    };
    let _mapped = tables.exclusive(Unobserved).map(table, &mmio).unwrap();
    tables.dump(Detail::Entries)
}

#[test]
fn tables_from_a_dump_are_the_same() {
    let dump = dumped();
    assert_eq!(dump.roots.len(), 2);
    let mut tables = Tables::<Npt>::from_dump(&dump).unwrap();
    assert_eq!(tables.audit(&AuditContext::default()), []);
    let totals = tables.totals();
    assert_eq!((totals.pages_4k, totals.pages_2m, totals.tables), (1, 1, 5));
    let again = tables.dump(Detail::Entries);
    let roots = |dump: &Dump| -> Vec<_> {
        let roots = dump.roots.iter();
        roots
            .map(|root| (root.role, root.tables, root.ranges.clone()))
            .collect()
    };
    assert_eq!(roots(&again), roots(&dump));
    // They are tables like any others.
    let table = tables
        .roots()
        .iter()
        .find(|(_, role)| !role.has(RoleFlag::Invalid));
    let table = tables.roots().payload(table.unwrap().0).unwrap();
    map(&mut tables, table, 8, page(PageSize::Size4K, 0x78));
    assert_eq!(tables.totals().pages_4k, 2);
}

#[test]
fn a_dump_that_contradicts_itself_is_refused() {
    let refused = |change: fn(&mut Dump)| {
        let mut dump = dumped();
        change(&mut dump);
        Tables::<Npt>::from_dump(&dump).unwrap_err().to_string()
    };
    assert_eq!(
        Tables::<Ept>::from_dump(&dumped()).unwrap_err().to_string(),
        "the dump is of Npt tables"
    );
    let ranges = refused(|dump| dump.roots[0].entries.clear());
    assert_eq!(ranges, "root 1.0 has no raw tables");
    let moved = refused(|dump| dump.roots[0].entries[1].gfn = Gfn::new(0x8_0000));
    assert!(moved.contains("is not where it is linked"), "{moved}");
    let twice = refused(|dump| {
        let first = dump.roots[0].entries[0].clone();
        dump.roots[0].entries.push(first);
    });
    assert!(twice.ends_with("comes twice"), "{twice}");
    let entry = refused(|dump| dump.roots[0].entries[0].entries.push((512, 0x807)));
    assert!(entry.ends_with("has no entry 512"), "{entry}");
    let same = refused(|dump| dump.roots[1].role = dump.roots[0].role);
    assert_eq!(same, "roots 1.0 and another have the same role");
}

#[test]
fn a_link_to_nothing_is_for_the_audit() {
    let mut dump = dumped();
    let (_, link) = &mut dump.roots[0].entries[0].entries[0];
    *link = *link & 0xfff | 0x9999 << 12;
    let tables = Tables::<Npt>::from_dump(&dump).unwrap();
    let found = tables.audit(&AuditContext::default());
    assert!(
        found
            .iter()
            .any(|violation| violation.to_string().starts_with("A13 ")),
        "{found:?}"
    );
}
