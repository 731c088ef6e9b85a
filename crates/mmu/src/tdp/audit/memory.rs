//! The tables as memory: what is given out, what waits, what came back, and the counts.

use super::tree::Audit;
use super::{AuditCode, Evidence, Subject};
use crate::role::RoleFlag;
use crate::spte::Format;
use crate::table::TableId;
use crate::tdp::count::Totals;
use crate::tdp::hooks::External;

impl<F: Format, X: External<F>, C> Audit<'_, F, X, C> {
    /// Compares what was counted with the counts.
    pub(super) fn check_counts(&mut self) {
        let totals = self.tables.totals();
        let noted = [totals.pages_4k, totals.pages_2m, totals.pages_1g];
        self.check_count(AuditCode::TableCount, self.tally.tables, totals.tables);
        for (wanted, found) in self.tally.leaves.into_iter().zip(noted) {
            self.check_count(AuditCode::LeafCount, wanted, found);
        }
    }

    fn check_count(&mut self, code: AuditCode, wanted: u64, found: u64) {
        if wanted != found {
            let evidence = Evidence::Count { wanted, found };
            self.report(code, Subject::Tables, evidence);
        }
    }

    /// Checks that nothing leads to a table that came back or waits.
    pub(super) fn check_freed(&mut self) {
        let tables = self.tables;
        tables
            .arena
            .visit_recycled(|table| self.check_unreachable(table));
        tables.epochs.visit_waiting(|table| {
            self.check_unreachable(table);
            self.check_retired(table);
        });
    }

    fn check_unreachable(&mut self, table: TableId) {
        if self.tables.is_reachable(table, self.made) {
            let parent = self.tables.page(table).parent();
            let evidence = Evidence::Linked { table, parent };
            self.report(AuditCode::FreedTableLinked, Subject::Table(table), evidence);
        }
    }

    fn check_retired(&mut self, table: TableId) {
        let found = self.present_entries(table);
        if found > 0 {
            let evidence = Evidence::Count { wanted: 0, found };
            self.report(
                AuditCode::RetiredTablePresent,
                Subject::Table(table),
                evidence,
            );
        }
    }

    /// Checks that every table that was given out is somewhere.
    pub(super) fn check_leaks(&mut self) {
        let totals = self.tables.totals();
        let waiting = self.tables.epochs.waiting() as u64;
        let known = self.tally.tables + self.tally.roots + waiting + totals.lost;
        if self.tables.arena.in_use() as u64 > known {
            self.report_leaks(totals);
        }
    }

    /// Names the tables that are nowhere. Among mirrors those that are lost cannot be told from them.
    #[cold]
    fn report_leaks(&mut self, totals: Totals) {
        let mut free = Vec::new();
        self.tables.arena.visit_recycled(|table| free.push(table));
        self.tables.epochs.visit_waiting(|table| free.push(table));
        free.sort_unstable();
        for table in (0..self.made).map(TableId::new) {
            let role = self.tables.page(table).role();
            let lost = totals.lost > 0 && role.has(RoleFlag::IsMirror);
            let free = free.binary_search(&table).is_ok();
            if !lost && !free && !self.tables.is_reachable(table, self.made) {
                self.report(
                    AuditCode::LeakedTable,
                    Subject::Table(table),
                    Evidence::None,
                );
            }
        }
    }
}
