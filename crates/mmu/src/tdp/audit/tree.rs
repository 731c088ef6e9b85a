//! Going through tables: every entry, every link, and what each table knows about itself.

use slat_memslot::{Gfn, Level};

use super::entry::EntryRules;
use super::root::Below;
use super::{AuditCode, AuditContext, EntryAt, Evidence, FrozenEntries, Subject, Violation};
use crate::role::{PageRole, RoleFlag, RoleMismatch};
use crate::roots::RootId;
use crate::spte::{Format, Spte};
use crate::sync::Ordering;
use crate::table::{ENTRIES, TableId, first, index, span};
use crate::tdp::leaves::Leaves;
use crate::tdp::page::Parent;
use crate::tdp::tables::Tables;

/// What was counted on the way.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Leaves, by level from 1.
    pub(super) leaves: [u64; 3],
    /// Linked tables.
    pub(super) tables: u64,
    /// Tables of roots.
    pub(super) roots: u64,
}

/// One audit.
pub(super) struct Audit<'t, F, X, C> {
    pub(super) tables: &'t Tables<F, X, C>,
    pub(super) context: AuditContext,
    frozen: FrozenEntries,
    /// As many tables as there were when it began.
    pub(super) made: u32,
    pub(super) tally: Tally,
    pub(super) violations: Vec<Violation>,
}

impl<'t, F: Format, X, C> Audit<'t, F, X, C> {
    pub(super) fn new(
        tables: &'t Tables<F, X, C>,
        context: &AuditContext,
        frozen: FrozenEntries,
    ) -> Self {
        Self {
            tables,
            context: *context,
            frozen,
            made: tables.arena.made(),
            tally: Tally::default(),
            violations: Vec::new(),
        }
    }

    pub(super) fn report(&mut self, code: AuditCode, subject: Subject, evidence: Evidence) {
        self.violations
            .push(Violation::new(code, subject, evidence));
    }

    fn rules(&self, role: PageRole) -> EntryRules<'t, F> {
        EntryRules::new(&self.tables.codec, role, self.frozen, &self.context)
    }

    /// Checks a table and all below it.
    pub(super) fn tree(&mut self, table: TableId, role: PageRole, gfn: u64) {
        if let Some(rules) = self.table(table, role, gfn) {
            self.entries(&rules, table, (role, gfn), Below::Walked);
        }
    }

    /// Checks one table, and that what it links to is right, but not what is in there.
    pub(super) fn single(&mut self, table: TableId) {
        let (role, gfn) = {
            let page = self.tables.page(table);
            (page.role(), page.gfn().raw())
        };
        if let Some(rules) = self.table(table, role, gfn) {
            self.entries(&rules, table, (role, gfn), Below::LeftOut);
        }
    }

    /// Checks the leaves of a table all at once. Gives the rules if its entries have to be looked at one by one: something
    /// is wrong with a leaf, or some are not leaves.
    fn table(&mut self, table: TableId, role: PageRole, gfn: u64) -> Option<EntryRules<'t, F>> {
        let (rules, level) = (self.rules(role), role.level());
        let empty = self.tables.codec.nonpresent().raw();
        let (mut leaves, mut odd, mut alike) = (0, false, rules.empty());
        for entry in self.tables.arena.table(table) {
            let raw = entry.load(Ordering::Relaxed);
            if alike.has(raw) {
                leaves += alike.leaves;
            } else if !rules.is_leaf(raw) {
                odd |= raw != empty;
            } else {
                leaves += 1;
                if rules.is_bad_leaf(raw) {
                    odd = true;
                } else {
                    alike = rules.leaf(raw);
                }
            }
        }
        self.count_leaves(table, level, leaves);
        let reaches_end = gfn + span(level) * ENTRIES as u64 > rules.end().raw();
        (odd || reaches_end).then_some(rules)
    }

    fn count_leaves(&mut self, table: TableId, level: Level, leaves: u64) {
        if let Some(count) = self.tally.leaves.get_mut(level as usize - 1) {
            *count += leaves;
        }
        let wanted = ENTRIES as u64;
        if leaves != wanted && self.tables.knows(table, Leaves::All) {
            let found = leaves;
            let evidence = Evidence::Count { wanted, found };
            self.report(AuditCode::FullMismatch, Subject::Table(table), evidence);
        }
        if leaves != 0 && self.tables.knows(table, Leaves::None) {
            let (wanted, found) = (0, leaves);
            let evidence = Evidence::Count { wanted, found };
            self.report(AuditCode::EmptyMismatch, Subject::Table(table), evidence);
        }
    }

    /// Looks at the entries one by one.
    #[inline(never)]
    fn entries(
        &mut self,
        rules: &EntryRules<'t, F>,
        table: TableId,
        (role, gfn): (PageRole, u64),
        below: Below,
    ) {
        for index in 0..ENTRIES {
            let raw = self.tables.load(table, index).raw();
            if raw == self.tables.codec.nonpresent().raw() {
                continue;
            }
            let at = EntryAt {
                place: Parent { table, index },
                gfn: Gfn::new(gfn + index as u64 * span(role.level())),
                level: role.level(),
                raw,
            };
            if let (Some(child), Below::Walked) = (self.entry(rules, role, at), below) {
                self.tally.tables += 1;
                self.tree(child, child_role(role), at.gfn.raw());
            }
        }
    }

    /// Checks one entry, and gives the table that it links to if that can be gone into.
    fn entry(&mut self, rules: &EntryRules<'t, F>, role: PageRole, at: EntryAt) -> Option<TableId> {
        if rules.is_leaf(at.raw) {
            if rules.is_bad_leaf(at.raw) || at.gfn >= rules.end() {
                rules.explain_leaf(at, &mut self.violations);
            }
            return None;
        }
        if Spte::<F>::from_raw(at.raw).is_present() {
            return self.link(rules, role, at);
        }
        rules.check_nonpresent(at, &mut self.violations);
        None
    }

    /// Checks the entries on the way to a frame. Sound while others change entries: an entry is read once, and what is
    /// known about a table does not change while it can be reached.
    pub(super) fn path(&mut self, root: TableId, gfn: u64) {
        let (mut table, mut role) = (root, self.tables.page(root).role());
        loop {
            let level = role.level();
            let index = index(gfn, level);
            let at = EntryAt {
                place: Parent { table, index },
                gfn: Gfn::new(first(gfn, level)),
                level,
                raw: self.tables.load(table, index).raw(),
            };
            let rules = self.rules(role);
            let Some(child) = self.entry(&rules, role, at) else {
                return;
            };
            (table, role) = (child, child_role(role));
        }
    }

    // --- Links -------------------------------------------------------------------------------------------------------

    /// Checks a link and what the table below knows about itself. Gives the table if it is this entry's.
    fn link(&mut self, rules: &EntryRules<'t, F>, role: PageRole, at: EntryAt) -> Option<TableId> {
        let pfn = self.tables.codec.pfn(Spte::from_raw(at.raw));
        let child = u32::try_from(pfn.raw()).ok().map(TableId::new);
        let Some(child) = child.filter(|child| self.exists(*child)) else {
            self.report(AuditCode::DanglingLink, Subject::Entry(at), Evidence::None);
            return None;
        };
        rules.check_link(at, self.tables.link_to(child), &mut self.violations);
        let page = self.tables.page(child);
        if Some(page.role().level()) != at.level.child() {
            self.report_level(at, child);
            return None;
        }
        self.check_role(at, child_role(role), page.role());
        self.check_gfn(at, page.gfn());
        self.check_parent(at, child).then_some(child)
    }

    /// Whether a table was ever given out. Others may have been since the audit began.
    pub(super) fn exists(&mut self, table: TableId) -> bool {
        if table.raw() >= self.made {
            self.made = self.tables.arena.made();
        }
        table.raw() < self.made
    }

    fn report_level(&mut self, at: EntryAt, child: TableId) {
        let above = self.tables.ancestors(at.place.table, self.made);
        let code = if above.into_iter().flatten().any(|table| table == child) {
            AuditCode::Cycle
        } else {
            AuditCode::LevelMismatch
        };
        let evidence = self.linked(child);
        self.report(code, Subject::Entry(at), evidence);
    }

    fn check_role(&mut self, at: EntryAt, wanted: PageRole, found: PageRole) {
        if wanted != found {
            let evidence = Evidence::Roles(RoleMismatch { wanted, found });
            self.report(AuditCode::RoleMismatch, Subject::Entry(at), evidence);
        }
    }

    fn check_gfn(&mut self, at: EntryAt, gfn: Gfn) {
        let (wanted, found) = (at.gfn.raw(), gfn.raw());
        let evidence = Evidence::Count { wanted, found };
        if wanted != found {
            self.report(AuditCode::GfnMismatch, Subject::Entry(at), evidence);
        }
        if found & (span(at.level) - 1) != 0 {
            self.report(AuditCode::TableUnaligned, Subject::Entry(at), evidence);
        }
    }

    /// Says whether the table is to be gone into: not if another entry leads there by right.
    fn check_parent(&mut self, at: EntryAt, child: TableId) -> bool {
        let parent = self.tables.page(child).parent();
        if parent == Some(at.place) {
            return true;
        }
        let elsewhere = self.tables.is_linked(child, self.made);
        let code = if elsewhere {
            AuditCode::LinkedTwice
        } else {
            AuditCode::ParentMismatch
        };
        let evidence = self.linked(child);
        self.report(code, Subject::Entry(at), evidence);
        !elsewhere
    }

    fn linked(&self, table: TableId) -> Evidence {
        let parent = self.tables.page(table).parent();
        Evidence::Linked { table, parent }
    }
}

/// The role of a table below one of this role. Being invalid is a root's alone.
fn child_role(role: PageRole) -> PageRole {
    let below = role.level().child().unwrap_or(Level::L1);
    role.without(RoleFlag::Invalid).with_level(below)
}

impl<F: Format, X, C> Tables<F, X, C> {
    /// A table and those above it, going by what they know.
    fn ancestors(&self, table: TableId, made: u32) -> [Option<TableId>; 5] {
        let mut next = Some(table);
        [(); 5].map(|()| {
            let table = next.filter(|table| table.raw() < made)?;
            next = self.page(table).parent().map(|parent| parent.table);
            Some(table)
        })
    }

    /// Whether the entry that a table takes for its parent leads to it.
    pub(super) fn is_linked(&self, table: TableId, made: u32) -> bool {
        let parent = self.page(table).parent();
        parent.filter(|at| at.table.raw() < made).is_some_and(|at| {
            let level = self.page(at.table).role().level();
            self.child_of(self.read(at), level) == Some(table)
        })
    }

    /// Whether a root and the links below it lead to a table.
    pub(super) fn is_reachable(&self, table: TableId, made: u32) -> bool {
        let above = self.ancestors(table, made);
        for table in above.into_iter().flatten() {
            if self.page(table).parent().is_none() {
                return self.root_of(table).is_some();
            }
            if !self.is_linked(table, made) {
                return false;
            }
        }
        false
    }

    /// The first root whose table this is.
    pub(super) fn root_of(&self, table: TableId) -> Option<RootId> {
        let mut roots = self.roots.audited();
        roots.find(|root| self.roots.payload(*root) == Some(table))
    }
}
