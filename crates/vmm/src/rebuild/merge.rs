//! Two VMs turn out to be one: its threads had changed tables that nothing connected.

use slat_mmu::spte::Format;

use super::table::{ENTRIES, State, Table, TableNo, VmNo};
use super::world::World;

impl<F: Format> World<F> {
    /// A VM turns out to be another.
    pub(super) fn merge(&mut self, from: VmNo, into: VmNo) {
        let (from, into) = (self.resolve(from), self.resolve(into));
        let Some(gone) = self.vms.get_mut(from.0).filter(|_| from != into) else {
            return;
        };
        gone.merged = Some(into);
        let (roots, threads) = (
            std::mem::take(&mut gone.roots),
            std::mem::take(&mut gone.threads),
        );
        for table in self.tables.iter_mut().flatten() {
            if table.vm == from {
                table.vm = into;
            }
        }
        for root in roots {
            self.merge_root(root, into);
        }
        if let Some(vm) = self.vms.get_mut(into.0) {
            vm.threads.extend(threads);
        }
    }

    fn merge_root(&mut self, root: TableNo, into: VmNo) {
        let others = self.vms.get(into.0).map(|vm| vm.roots.clone());
        let others = others.unwrap_or_default();
        let twin = others
            .into_iter()
            .find(|other| self.are_twins(*other, root));
        match (twin, self.vms.get_mut(into.0)) {
            (Some(twin), _) => self.graft(root, twin),
            (None, Some(vm)) => vm.roots.push(root),
            (None, None) => {}
        }
    }

    /// Whether two tables can be one: of one kind, and one of them known in part.
    fn are_twins(&self, a: TableNo, b: TableNo) -> bool {
        let (Some(a), Some(b)) = (self.table(a), self.table(b)) else {
            return false;
        };
        let in_part = |table: &Table| table.entries().any(|(_, _, state)| state == State::Unknown);
        a.level == b.level
            && a.as_id == b.as_id
            && a.standing == b.standing
            && in_part(a) | in_part(b)
    }

    /// Moves what is known of a table to another that is the same.
    fn graft(&mut self, from: TableNo, into: TableNo) {
        for index in 0..ENTRIES {
            let Some(source) = self.table(from) else {
                return;
            };
            let (value, state) = source.get(index);
            let child = source.children.get(&index).copied();
            let target = self
                .table(into)
                .map(|table| (table.get(index).1, table.children.get(&index).copied()));
            let Some((known, there)) = target else {
                return;
            };
            if known == State::Unknown {
                if let Some(table) = self.table_mut(into) {
                    table.set(index, value, state);
                }
            }
            match (child, there) {
                (Some(child), Some(there)) => self.graft(child, there),
                (Some(child), None) => self.adopt(child, into, index),
                (None, _) => {}
            }
        }
        if let Some(frame) = self.table(from).and_then(|table| table.frame) {
            self.set_frame(into, frame);
        }
        self.forget(from);
    }
}
