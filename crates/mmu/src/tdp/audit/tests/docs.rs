//! The list of invariants is the same wherever it is written.

use super::*;

/// Each invariant as one line of the module's documentation.
#[test]
fn the_module_lists_every_invariant() {
    let wanted = AuditCode::ALL.iter().map(|code| {
        let (number, name, rule) = (code.number(), code.name(), code.rule());
        format!("//! - `A{number:02} {name}`: {rule}")
    });
    let listed = include_str!("../mod.rs").lines();
    let listed = listed.filter(|line| line.starts_with("//! - `A"));
    assert!(listed.eq(wanted));
}

/// `docs/audit.md` has them in a table.
#[test]
fn the_page_lists_every_invariant() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/audit.md");
    let Ok(page) = std::fs::read_to_string(page) else {
        eprintln!("skipped: docs/audit.md is not part of the package");
        return;
    };
    let wanted = AuditCode::ALL.iter().map(|code| {
        let (number, name, rule) = (code.number(), code.name(), code.rule());
        format!("| A{number:02} | `{name}` | {rule} |")
    });
    let listed = page.lines().filter(|line| line.starts_with("| A"));
    assert!(listed.eq(wanted));
}

#[test]
fn numbers_and_names_are_unique() {
    for (number, code) in (1..).zip(AuditCode::ALL) {
        assert_eq!(code.number(), number);
        let others = AuditCode::ALL.iter().filter(|other| *other != code);
        assert!(others.into_iter().all(|other| other.name() != code.name()));
    }
}
