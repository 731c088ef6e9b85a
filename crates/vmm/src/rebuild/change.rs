//! An entry changed.

use slat_memslot::{AsId, Gfn, Level};
use slat_mmu::role::RoleFlag;
use slat_mmu::spte::Format;

use super::find::{Choice, Fit, Told};
use super::report::Contradiction;
use super::table::{Standing, State, Table, TableNo, VmNo, first_of, index_of};
use super::world::{LastChange, Made, World};

/// `kvm_tdp_mmu_spte_changed`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) thread: u32,
    pub(super) as_id: AsId,
    pub(super) gfn: Gfn,
    pub(super) level: Level,
    pub(super) old: u64,
    pub(super) new: u64,
}

impl<F: Format> World<F> {
    /// Takes a change over.
    pub(super) fn changed(&mut self, change: &Change) {
        self.counts.changes += 1;
        let told = Told {
            thread: change.thread,
            as_id: Some(change.as_id),
            gfn: change.gfn.raw(),
            level: change.level,
            old: change.old,
            freezes: self.is_frozen(change.new),
        };
        let found = self.find(&told);
        let found = found.filter(|choice| !self.is_of_a_stranger(&told, choice));
        let choice = match found {
            Some(choice) => choice,
            None => self.discover(&told),
        };
        self.note_fit(&told, &choice);
        self.place(change, choice);
    }

    /// Whether what does not fit may well be of a VM, or a part of one, that was not seen yet.
    fn is_of_a_stranger(&self, told: &Told, choice: &Choice) -> bool {
        let weak = !choice.fit.agrees() || self.is_empty_value(told.old);
        match self.vm_of(told.thread) {
            Some(own) => own != choice.vm && weak,
            None => {
                let known = self.knows_processes(choice.vm);
                self.has_threads && (!choice.fit.agrees() || weak && known)
            }
        }
    }

    /// Whether a VM's process is known, and so not that of a thread without a VM.
    fn knows_processes(&self, vm: VmNo) -> bool {
        self.vms.get(vm.0).is_some_and(|vm| vm.process.is_some())
    }

    /// Notes how the old entry fits, and takes it over where it does not.
    fn note_fit(&mut self, told: &Told, choice: &Choice) {
        let was_split = self
            .entry(choice.table, told.gfn)
            .is_some_and(|(_, s)| s == State::Split);
        self.counts.ambiguous += u64::from(choice.ambiguous && choice.fit.agrees());
        self.counts.split_confirmed += u64::from(was_split && choice.fit.agrees());
        match choice.fit {
            Fit::Same => self.counts.confirmed += 1,
            Fit::Marked => self.counts.hardware_marks += 1,
            Fit::Regained => self.counts.execution_regained += 1,
            Fit::Unknown => self.counts.from_before += 1,
            Fit::Doubtful => self.counts.after_loss += 1,
            Fit::Differs => {
                let rebuilt = self
                    .entry(choice.table, told.gfn)
                    .map_or(0, |(value, _)| value);
                let what = Contradiction::OldSpte {
                    rebuilt,
                    told: told.old,
                };
                self.fail(choice.vm, told.gfn, told.level, what);
            }
        }
        if !choice.fit.agrees() {
            self.learn(choice.table, choice.index, told.old);
        }
        let strong = choice.fit.agrees() && !self.is_empty_value(told.old);
        self.settle_vm(told.thread, choice.vm, strong);
    }

    /// A thread that has no VM, or one that is known in part only, turns out to work for this one.
    pub(super) fn settle_vm(&mut self, thread: u32, vm: VmNo, strong: bool) {
        match self.vm_of(thread) {
            None => self.bind(thread, vm),
            Some(own) if own != vm && strong => {
                let partial = |vm: VmNo| self.vms.get(vm.0).is_some_and(|vm| vm.partial);
                let process = |vm: VmNo| self.vms.get(vm.0).and_then(|vm| vm.process);
                let differ = process(own).is_some() && process(vm).is_some();
                if partial(own) && partial(vm) && !differ {
                    self.merge(own, vm);
                }
            }
            Some(_) => {}
        }
    }

    /// Stores what is there after a change.
    fn place(&mut self, change: &Change, choice: Choice) {
        let Choice { table, index, .. } = choice;
        let was = self
            .table(table)
            .map_or_else(Default::default, |table| table.get(index));
        let removed = self.store(change.thread, (table, index), (change.old, change.new));
        let freezes = self.is_frozen(change.new);
        let root = self.root_of(table);
        if let Some(found) = root.and_then(|root| self.table_mut(root)) {
            found.as_id.get_or_insert(change.as_id);
        }
        if let Some(found) = self.table_mut(table) {
            found.as_id.get_or_insert(change.as_id);
        }
        let thread = self.thread(change.thread);
        thread.root = root.or(thread.root);
        thread.last = Some(LastChange {
            table,
            index,
            old: change.old,
            was,
            new: change.new,
            removes: removed.is_some() || freezes,
            removed,
        });
    }

    /// Replaces an entry, with what hangs on it. Gives the table that went.
    pub(super) fn store(
        &mut self,
        thread: u32,
        (table, index): (TableNo, usize),
        (old, new): (u64, u64),
    ) -> Option<TableNo> {
        let freezes = self.is_frozen(new);
        let freezes_empty = freezes && self.is_empty_value(old);
        let found = self.table_mut(table)?;
        let child = found.children.remove(&index);
        found.set(index, new, State::Known);
        found.freezes_all |= freezes_empty;
        found.frozen_to = if freezes {
            Some(index)
        } else {
            found.frozen_to
        };
        let (level, first) = (found.level, found.frame_of(index));
        if let Some(child) = child {
            self.remove(child);
        }
        if self.is_link(new, level) {
            self.link(thread, (table, index), (level, first), (old, new));
        }
        child
    }

    /// Takes over what an entry was before, where that was not known or another.
    pub(super) fn learn(&mut self, table: TableNo, index: usize, value: u64) {
        let Some(found) = self.table_mut(table) else {
            return;
        };
        found.set(index, value, State::Known);
        let (level, first) = (found.level, found.frame_of(index));
        let (vm, as_id) = (found.vm, found.as_id);
        let child = found.children.get(&index).copied();
        let Some(below) = level.child().filter(|_| self.is_link(value, level)) else {
            if let Some(child) = child {
                if let Some(found) = self.table_mut(table) {
                    found.children.remove(&index);
                }
                self.remove(child);
            }
            return;
        };
        let frame = self.frame_in(value);
        let child = child.unwrap_or_else(|| {
            let child = self.add_unknown((vm, as_id), (below, first));
            self.adopt(child, table, index);
            child
        });
        self.set_frame(child, frame);
    }

    /// A table is linked: a new one, or the parts of what was a huge leaf.
    fn link(
        &mut self,
        thread: u32,
        (parent, index): (TableNo, usize),
        (level, first): (Level, u64),
        (old, new): (u64, u64),
    ) {
        let (Some(below), Some(above)) = (level.child(), self.table(parent)) else {
            return;
        };
        let (vm, as_id) = (above.vm, above.as_id);
        let frame = self.frame_in(new);
        self.make_room(vm, (below, first), frame);
        let empty = self.codec.nonpresent().raw();
        let mut table = Table::new((vm, as_id), (below, first), (empty, State::Known));
        let parts = if self.is_present(old) {
            self.split(old, level)
        } else {
            None
        };
        for (at, part) in parts.into_iter().flatten().enumerate() {
            table.set(at, part, State::Split);
            self.counts.split_children += 1;
        }
        let no = self.add(table);
        self.adopt(no, parent, index);
        self.set_frame(no, frame);
        let made = self.thread(thread).made;
        let own = |made: &Made| made.gfn.raw() == first && made.role.level() == below;
        if let Some(made) = made.filter(own) {
            self.thread(thread).made = None;
            self.check_role(no, &made);
        }
        self.thread(thread).linked = Some(no);
    }

    /// The frame of a new table was another table's, which is through with.
    fn make_room(&mut self, vm: VmNo, (level, first): (Level, u64), frame: u64) {
        let Some(earlier) = self.by_frame(frame) else {
            return;
        };
        let removed = self
            .table(earlier)
            .is_some_and(|table| table.standing == Standing::Removed);
        if !removed && !self.loses {
            self.fail(vm, first, level, Contradiction::LinkedTwice { frame });
        }
        self.unlink(earlier);
        self.retire(earlier);
    }

    /// Takes a table from its parent without an event.
    fn unlink(&mut self, no: TableNo) {
        let parent = self.table(no).and_then(|table| table.parent);
        if let Some((parent, index)) = parent {
            if let Some(table) = self.table_mut(parent) {
                table.children.remove(&index);
                table.set(index, 0, State::Unknown);
            }
        }
    }

    /// Holds the role of a new table against its root's.
    fn check_role(&mut self, no: TableNo, made: &Made) {
        if let Some(table) = self.table_mut(no) {
            table.role = Some((made.role, made.whole));
        }
        let (Some(root), Some(table)) = (self.root_of(no), self.table(no)) else {
            return;
        };
        let Some((wanted, whole)) = self.table(root).and_then(|root| root.role) else {
            return;
        };
        let partly = |role: slat_mmu::role::PageRole| {
            let left_out = [RoleFlag::GuestMode, RoleFlag::Smm, RoleFlag::Cr0Wp];
            let left_out = left_out.into_iter().filter(|_| !(whole && made.whole));
            let role = role
                .without(RoleFlag::Invalid)
                .with_level(made.role.level());
            left_out.fold(role, |role, flag| role.without(flag))
        };
        if partly(wanted) == partly(made.role) {
            self.counts.roles_confirmed += 1;
            return;
        }
        let (vm, gfn, level) = (table.vm, table.first, table.level);
        let what = Contradiction::Role {
            root: partly(wanted).to_string(),
            table: partly(made.role).to_string(),
        };
        self.fail(vm, gfn, level, what);
    }

    // --- What is not known yet ---------------------------------------------------------------------------------------

    /// Makes the table that an event is about, with all that has to be above it.
    fn discover(&mut self, told: &Told) -> Choice {
        let vm = match self.vm_of(told.thread) {
            Some(vm) => vm,
            None => {
                let process = self
                    .threads
                    .get(&told.thread)
                    .and_then(|thread| thread.process);
                let vm = self.new_vm(process);
                self.bind(told.thread, vm);
                vm
            }
        };
        let table = if told.freezes {
            let place = (told.level, told.gfn);
            let table = self.add_unknown((vm, told.as_id), place);
            self.remove(table);
            table
        } else {
            self.path_to(vm, told)
        };
        let index = index_of(told.gfn, told.level);
        Choice {
            table,
            index,
            fit: self.fit(table, index, told.old),
            ambiguous: false,
            vm,
        }
    }

    /// The table of a frame's entry below a root of the address space; those that are missing are made.
    fn path_to(&mut self, vm: VmNo, told: &Told) -> TableNo {
        let root = self.partial_root(vm, told);
        let mut at = root;
        while let Some(table) = self.table(at).filter(|table| table.level > told.level) {
            let index = index_of(told.gfn, table.level);
            let (below, entry) = (table.level.child(), table.get(index));
            let (level, as_id) = (table.level, table.as_id);
            if let Some(child) = table.children.get(&index) {
                at = *child;
                continue;
            }
            let Some(below) = below else {
                break;
            };
            if let (value, State::Known | State::Split) = entry {
                let what = Contradiction::BelowNothing { rebuilt: value };
                self.fail(vm, first_of(told.gfn, below), level, what);
            }
            let child = self.add_unknown((vm, as_id), (below, told.gfn));
            if let Some(table) = self.table_mut(at) {
                table.set(index, 0, State::Linked);
            }
            self.adopt(child, at, index);
            at = child;
        }
        at
    }

    /// A root of the address space in which the way to a frame is open, or a new one.
    fn partial_root(&mut self, vm: VmNo, told: &Told) -> TableNo {
        let roots = self.vms.get(vm.0).map(|vm| vm.roots.clone());
        let mut blocked = None;
        for root in roots.unwrap_or_default().into_iter().rev() {
            let Some(table) = self.table(root) else {
                continue;
            };
            let fits = table.as_id.is_none() || table.as_id == told.as_id;
            if !fits || !table.is_valid_root() || table.level < told.level {
                continue;
            }
            if self.is_open(root, told) {
                return root;
            }
            blocked.get_or_insert(root);
        }
        // Where all is known, a new root would hide that something is wrong.
        blocked.unwrap_or_else(|| self.add_root(vm, told))
    }

    fn add_root(&mut self, vm: VmNo, told: &Told) -> TableNo {
        let level = self.codec.host().max_level.max(told.level);
        let root = self.add_unknown((vm, told.as_id), (level, 0));
        self.counts.tables_from_before -= 1;
        if let Some(table) = self.table_mut(root) {
            table.standing = Standing::Root { invalid: false };
        }
        if let Some(vm) = self.vms.get_mut(vm.0) {
            vm.roots.push(root);
        }
        root
    }

    /// Whether nothing that is known stands in the way to a frame.
    fn is_open(&self, root: TableNo, told: &Told) -> bool {
        let mut at = root;
        loop {
            let Some(table) = self.table(at) else {
                return false;
            };
            if table.level <= told.level {
                return true;
            }
            let index = index_of(told.gfn, table.level);
            match table.children.get(&index) {
                Some(child) => at = *child,
                None => {
                    let (_, state) = table.get(index);
                    return matches!(state, State::Unknown | State::Doubtful);
                }
            }
        }
    }
}
