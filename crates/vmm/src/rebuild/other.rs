//! The events beside changes: tables made and taken apart, leaves told again, faults without the lock, roots invalidated.

use slat_memslot::{Gfn, Level};
use slat_mmu::role::PageRole;
use slat_mmu::spte::{Format, Spte};

use super::find::{Fit, Told};
use super::report::Contradiction;
use super::table::{Standing, State, Table, TableNo, VmNo, index_of};
use super::world::{Made, World};
use crate::traces::TracedPage;

impl<F: Format> World<F> {
    /// `kvm_mmu_get_page`.
    pub(super) fn got_page(&mut self, thread: u32, page: &TracedPage, created: bool) {
        self.settle_made(thread);
        let line = self.line;
        self.thread(thread).made = Some(Made {
            line,
            gfn: page.gfn,
            role: page.role,
            whole: false,
            created,
        });
    }

    /// The whole role of the table that was made last.
    pub(super) fn told_role(&mut self, thread: u32, gfn: Gfn, role: PageRole) {
        let made = self.thread(thread).made.as_mut();
        if let Some(made) = made.filter(|made| made.gfn == gfn) {
            (made.role, made.whole) = (role, true);
        }
    }

    /// What was made and not linked is a root, or a shadow page.
    pub(super) fn settle_made(&mut self, thread: u32) {
        let Some(made) = self.thread(thread).made.take() else {
            return;
        };
        let direct = made.role.is_direct() && made.role.level() >= Level::L4;
        if self.has_tdp && direct && made.created && made.gfn == Gfn::new(0) {
            self.new_root(thread, &made);
            return;
        }
        let vm = self.shadow_key(thread);
        self.shadow
            .get((vm, thread), made.gfn, made.role, made.created);
    }

    /// What tells the shadow pages of VMs apart.
    fn shadow_key(&self, thread: u32) -> u32 {
        let known = self.threads.get(&thread).and_then(|thread| thread.process);
        known.unwrap_or(0)
    }

    fn new_root(&mut self, thread: u32, made: &Made) {
        let vm = match self.vm_of(thread) {
            Some(vm) if self.is_torn_down(vm) => {
                self.end(vm);
                None
            }
            known => known,
        };
        let vm = vm.unwrap_or_else(|| {
            let process = self.thread(thread).process;
            let vm = self.new_vm(process);
            self.bind(thread, vm);
            vm
        });
        let empty = self.codec.nonpresent().raw();
        let place = (made.role.level(), 0);
        let mut table = Table::new((vm, None), place, (empty, State::Known));
        table.standing = Standing::Root { invalid: false };
        table.role = Some((made.role, made.whole));
        if made.whole {
            table.as_id = Some(made.role.as_id());
        }
        let line = std::mem::replace(&mut self.line, made.line);
        let root = self.add(table);
        self.line = line;
        if let Some(vm) = self.vms.get_mut(vm.0) {
            vm.roots.push(root);
        }
        self.thread(thread).root = Some(root);
    }

    /// `kvm_mmu_prepare_zap_page`: a table of the TDP MMU has lost its link just before.
    pub(super) fn zapping_page(&mut self, thread: u32, page: &TracedPage) {
        let level = page.role.level();
        let here = self.at(level, page.gfn.raw()).to_vec();
        if !self.has_tdp || !page.role.is_direct() || here.is_empty() {
            let vm = self.shadow_key(thread);
            self.shadow.zap(vm, page.gfn, page.role);
            return;
        }
        let told = |no: &TableNo| self.table(*no).is_none_or(|table| table.zap_told);
        let went = here
            .iter()
            .copied()
            .find(|no| self.is_removed(*no) && !told(no));
        if let Some(table) = went.and_then(|no| self.table_mut(no)) {
            table.zap_told = true;
            return;
        }
        let linked = here
            .first()
            .and_then(|no| self.table(*no))
            .map(|table| table.vm);
        if let Some(vm) = linked.filter(|vm| self.knows_all(*vm)) {
            self.fail(vm, page.gfn.raw(), level, Contradiction::StillLinked);
        }
    }

    /// Whether a VM has no shadow pages, and none from before the trace, which have the same events.
    fn knows_all(&self, vm: VmNo) -> bool {
        let vm = self.vms.get(self.resolve(vm).0);
        !self.shadow.any() && !self.loses && vm.is_some_and(|vm| !vm.partial)
    }

    /// `mark_mmio_spte`: a fault has stored an MMIO entry just before.
    pub(super) fn mark_mmio(&mut self, gfn: Gfn, generation: u32) {
        let index = index_of(gfn.raw(), Level::L1);
        let here = self.at(Level::L1, gfn.raw()).iter();
        let entries =
            here.filter_map(|no| Some((self.table(*no)?.vm, self.table(*no)?.get(index))));
        let mut wrong = None;
        for (vm, (value, state)) in entries {
            let mmio = self.codec.decode_mmio(Spte::from_raw(value));
            let same = mmio.is_some_and(|mmio| mmio.generation.raw() == u64::from(generation));
            if same || state != State::Known {
                return;
            }
            wrong = Some((vm, value));
        }
        if let Some((vm, rebuilt)) = wrong.filter(|(vm, _)| self.knows_all(*vm)) {
            let what = Contradiction::Mmio {
                rebuilt,
                generation,
            };
            self.fail(vm, gfn.raw(), Level::L1, what);
        }
    }

    /// `kvm_mmu_zap_all_fast`.
    pub(super) fn zap_all(&mut self, thread: u32) {
        match self.vm_of(thread) {
            Some(vm) => {
                self.invalidate(vm);
                // What it zaps next is there.
                let last = self.vms.get(vm.0).and_then(|vm| vm.roots.last().copied());
                self.thread(thread).root = last;
            }
            None => self.thread(thread).zap_all = true,
        }
    }

    /// `kvm_mmu_set_spte`: what a fault found in the end, and where.
    pub(super) fn set_spte(&mut self, thread: u32, (gfn, level): (Gfn, Level), spte: u64, at: u64) {
        let frame = at >> 12;
        let index = usize::try_from(at >> 3 & 511).unwrap_or(0);
        let right = index == index_of(gfn.raw(), level);
        let found = self.by_frame(frame).filter(|no| {
            let here = self.at(level, gfn.raw());
            right && here.contains(no) && !self.is_removed(*no)
        });
        let found = match found {
            Some(found) => {
                self.move_last(thread, found, (index, spte));
                Some(found)
            }
            None if right => self.place_leaf(thread, (gfn, level), spte),
            None => None,
        };
        let Some(found) = found else {
            self.shadow.set(thread, (gfn, level), spte, at);
            return;
        };
        self.set_frame(found, frame);
        let vm = self
            .table(found)
            .map_or(VmNo(0), |table| self.resolve(table.vm));
        self.settle_vm(thread, vm, true);
        self.check_leaf(found, (gfn, level, index), spte);
        let root = self.root_of(found);
        let thread = self.thread(thread);
        thread.root = root.or(thread.root);
    }

    fn is_removed(&self, no: TableNo) -> bool {
        self.table(no)
            .is_some_and(|table| table.standing == Standing::Removed)
    }

    /// The table that has this leaf, where its place in memory was not known.
    fn place_leaf(&self, thread: u32, (gfn, level): (Gfn, Level), spte: u64) -> Option<TableNo> {
        let index = index_of(gfn.raw(), level);
        let last = self.threads.get(&thread).and_then(|thread| thread.last);
        let last = last.map(|last| last.table);
        let fits = |no: &TableNo| {
            let placed = self.table(*no).is_none_or(|table| table.frame.is_some());
            !placed && !self.is_removed(*no) && self.fit(*no, index, spte).agrees()
        };
        let here = self.at(level, gfn.raw());
        let own = last.filter(|no| here.contains(no) && fits(no));
        own.or_else(|| here.iter().copied().find(fits))
    }

    /// The leaf that was stored last belongs to another table than was thought: its place says so.
    fn move_last(&mut self, thread: u32, found: TableNo, (index, spte): (usize, u64)) {
        let last = self.threads.get(&thread).and_then(|thread| thread.last);
        let Some(last) = last.filter(|last| {
            last.table != found
                && last.index == index
                && self.compare(last.new, spte).is_some()
                && self.fit(found, index, last.old) >= Fit::Doubtful
                && self.is_same_place(last.table, found)
        }) else {
            return;
        };
        let leaf = self
            .table(found)
            .is_some_and(|table| !self.is_link(last.new, table.level));
        if !leaf {
            return;
        }
        if let Some(table) = self.table_mut(last.table) {
            table.set(index, last.was.0, last.was.1);
        }
        if let Some(table) = self.table_mut(found) {
            table.set(index, last.new, State::Known);
        }
        self.thread(thread).last = None;
    }

    fn is_same_place(&self, a: TableNo, b: TableNo) -> bool {
        let place = |no| self.table(no).map(|table| (table.level, table.first));
        place(a) == place(b)
    }

    fn check_leaf(&mut self, found: TableNo, (gfn, level, index): (Gfn, Level, usize), spte: u64) {
        let rebuilt = self.entry(found, gfn.raw()).map_or(0, |(value, _)| value);
        match self.fit(found, index, spte) {
            Fit::Same => self.counts.leaves_confirmed += 1,
            Fit::Marked | Fit::Regained => {
                self.counts.hardware_marks += 1;
                self.set_known(found, index, spte);
            }
            Fit::Unknown => {
                self.counts.from_before += 1;
                self.learn(found, index, spte);
            }
            Fit::Doubtful => {
                self.counts.after_loss += 1;
                self.learn(found, index, spte);
            }
            Fit::Differs => {
                let what = Contradiction::SetSpte {
                    rebuilt,
                    told: spte,
                };
                let vm = self.table(found).map_or(VmNo(0), |table| table.vm);
                self.fail(vm, gfn.raw(), level, what);
                self.learn(found, index, spte);
            }
        }
    }

    fn set_known(&mut self, no: TableNo, index: usize, value: u64) {
        if let Some(table) = self.table_mut(no) {
            table.set(index, value, State::Known);
        }
    }

    /// `fast_page_fault` that changed an entry: no other event tells of it.
    pub(super) fn fast_fault(&mut self, thread: u32, address: u64, (old, new): (u64, u64)) {
        let gfn = address >> 12;
        let mut missed = None;
        for level in [Level::L1, Level::L2, Level::L3] {
            let told = Told {
                thread,
                as_id: None,
                gfn,
                level,
                old,
                freezes: false,
            };
            let Some(choice) = self.find(&told) else {
                continue;
            };
            let wanted = choice.fit.agrees() || choice.fit == Fit::Unknown;
            let wanted = wanted || choice.fit == Fit::Doubtful;
            if wanted && !self.is_link(old, level) {
                self.counts.fast_faults += 1;
                let marked = choice.fit == Fit::Marked;
                self.counts.hardware_marks += u64::from(marked);
                self.counts.from_before += u64::from(choice.fit == Fit::Unknown);
                self.counts.after_loss += u64::from(choice.fit == Fit::Doubtful);
                self.store(thread, (choice.table, choice.index), (old, new));
                return;
            }
            missed.get_or_insert((choice, level));
        }
        // Shadow pages have such faults too, and no table here.
        if let Some((choice, level)) = missed.filter(|(choice, _)| self.knows_all(choice.vm)) {
            let rebuilt = self.entry(choice.table, gfn).map_or(0, |(value, _)| value);
            let what = Contradiction::FastFault { rebuilt, told: old };
            self.fail(choice.vm, gfn, level, what);
        }
    }
}
