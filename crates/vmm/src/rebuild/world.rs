//! All tables of all VMs in a trace, and which thread works for which VM.

use std::collections::{BTreeMap, HashMap};

use slat_memslot::{AsId, Gfn, Level};
use slat_mmu::role::PageRole;
use slat_mmu::spte::{Codec, Format, Spte};

use super::report::{Contradiction, Counts, Failure};
use super::shadow::ShadowPages;
use super::table::{ENTRIES, Standing, State, Table, TableNo, VmNo, first_of, index_of};

/// A VM.
#[derive(Clone, Debug, Default)]
pub(super) struct Vm {
    pub(super) process: Option<u32>,
    /// The threads that work for it, by number.
    pub(super) threads: BTreeMap<u32, String>,
    /// Its roots, the oldest first.
    pub(super) roots: Vec<TableNo>,
    /// The VM that it turned out to be the same as.
    pub(super) merged: Option<VmNo>,
    pub(super) ended: bool,
    /// Whether anything of it is from before the trace.
    pub(super) partial: bool,
}

/// A page table that was made and of which it is not known yet what it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) line: u32,
    pub(super) gfn: Gfn,
    pub(super) role: PageRole,
    /// Whether the role is the whole word.
    pub(super) whole: bool,
    pub(super) created: bool,
}

/// The change that a thread made last.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastChange {
    pub(super) table: TableNo,
    pub(super) index: usize,
    pub(super) old: u64,
    pub(super) was: (u64, State),
    pub(super) new: u64,
    /// Whether it took apart what is being removed.
    pub(super) removes: bool,
    /// The table that went with it.
    pub(super) removed: Option<TableNo>,
}

/// A thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Thread {
    pub(super) name: String,
    pub(super) process: Option<u32>,
    pub(super) vm: Option<VmNo>,
    pub(super) made: Option<Made>,
    pub(super) root: Option<TableNo>,
    pub(super) linked: Option<TableNo>,
    pub(super) last: Option<LastChange>,
    /// All roots were invalidated before it was known whose.
    pub(super) zap_all: bool,
}

/// Everything that was rebuilt so far.
#[derive(Debug)]
pub(super) struct World<F> {
    pub(super) codec: Codec<F>,
    pub(super) vms: Vec<Vm>,
    pub(super) threads: HashMap<u32, Thread>,
    /// Whether the trace says whose events are whose.
    pub(super) has_threads: bool,
    pub(super) has_tdp: bool,
    pub(super) counts: Counts,
    pub(super) failures: Vec<Failure>,
    pub(super) shadow: ShadowPages,
    pub(super) line: u32,
    pub(super) loses: bool,
    pub(super) tables: Vec<Option<Table>>,
    free: Vec<TableNo>,
    places: HashMap<(Level, u64), Vec<TableNo>>,
    frames: HashMap<u64, TableNo>,
}

impl<F: Format> World<F> {
    pub(super) fn new(codec: Codec<F>, has_tdp: bool) -> Self {
        Self {
            codec,
            vms: Vec::new(),
            threads: HashMap::new(),
            has_threads: false,
            has_tdp,
            counts: Counts::default(),
            failures: Vec::new(),
            shadow: ShadowPages::default(),
            line: 0,
            loses: false,
            tables: Vec::new(),
            free: Vec::new(),
            places: HashMap::new(),
            frames: HashMap::new(),
        }
    }

    // --- Tables by number, place and frame ---------------------------------------------------------------------------

    pub(super) fn table(&self, no: TableNo) -> Option<&Table> {
        self.tables.get(no.0)?.as_ref()
    }

    pub(super) fn table_mut(&mut self, no: TableNo) -> Option<&mut Table> {
        self.tables.get_mut(no.0)?.as_mut()
    }

    /// The tables of a level that have an entry for a frame.
    pub(super) fn at(&self, level: Level, gfn: u64) -> &[TableNo] {
        let place = (level, first_of(gfn, level));
        self.places.get(&place).map_or(&[], Vec::as_slice)
    }

    pub(super) fn by_frame(&self, frame: u64) -> Option<TableNo> {
        self.frames.get(&frame).copied()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (TableNo, &Table)> {
        let numbered = self.tables.iter().enumerate();
        numbered.filter_map(|(no, table)| Some((TableNo(no), table.as_ref()?)))
    }

    pub(super) fn add(&mut self, table: Table) -> TableNo {
        let place = (table.level, table.first);
        let mut table = table;
        table.since = self.line;
        let no = match self.free.pop() {
            Some(no) => no,
            None => {
                self.tables.push(None);
                TableNo(self.tables.len() - 1)
            }
        };
        if let Some(free) = self.tables.get_mut(no.0) {
            *free = Some(table);
        }
        self.places.entry(place).or_default().push(no);
        no
    }

    pub(super) fn set_frame(&mut self, no: TableNo, frame: u64) {
        if let Some(table) = self.table_mut(no) {
            table.frame = Some(frame);
            self.frames.insert(frame, no);
        }
    }

    /// Forgets a table, and what hangs below it.
    pub(super) fn forget(&mut self, no: TableNo) {
        let Some(table) = self.tables.get_mut(no.0).and_then(Option::take) else {
            return;
        };
        self.free.push(no);
        if let Some(place) = self.places.get_mut(&(table.level, table.first)) {
            place.retain(|other| *other != no);
        }
        if let Some(frame) = table
            .frame
            .filter(|frame| self.by_frame(*frame) == Some(no))
        {
            self.frames.remove(&frame);
        }
        if let Some(vm) = self.vms.get_mut(table.vm.0) {
            vm.roots.retain(|root| *root != no);
        }
        for child in table.children.into_values() {
            self.forget(child);
        }
    }

    /// Forgets a table that went, and reports what was in it to the last.
    pub(super) fn retire(&mut self, no: TableNo) {
        let Some(table) = self.table(no) else {
            return;
        };
        let left = self.left_behind(table, ENTRIES);
        if left > 0 && table.standing == Standing::Removed {
            let (vm, gfn, level) = (table.vm, table.first, table.level);
            let what = Contradiction::LeftBehind { entries: left };
            self.fail(vm, gfn, level, what);
        }
        self.forget(no);
    }

    /// How many of the first entries of a table that went were not told to have gone with it.
    pub(super) fn left_behind(&self, table: &Table, end: usize) -> usize {
        let left = table.entries().take(end).filter(|(_, value, state)| {
            let left = self.is_present(*value) || table.freezes_all && !self.is_frozen(*value);
            matches!(state, State::Known | State::Split) && left
        });
        left.count()
    }

    /// The link to a table is gone: what is in it will be told entry by entry.
    pub(super) fn remove(&mut self, no: TableNo) {
        let Some(table) = self.table_mut(no) else {
            return;
        };
        table.was_below = table.parent.map(|(above, _)| above);
        (table.standing, table.parent) = (Standing::Removed, None);
        let (vm, level, first) = (table.vm, table.level, table.first);
        self.counts.tables_removed += 1;
        // Earlier ones at the same place are through.
        let others = self.at(level, first).iter().copied();
        let done: Vec<TableNo> = others
            .filter(|other| *other != no && self.is_through(*other, vm))
            .collect();
        for other in done {
            self.retire(other);
        }
    }

    fn is_through(&self, no: TableNo, vm: VmNo) -> bool {
        self.table(no).is_some_and(|table| {
            let mut entries = table.entries();
            table.standing == Standing::Removed
                && table.vm == vm
                && !entries
                    .any(|(_, value, state)| state != State::Unknown && self.is_present(value))
        })
    }

    /// The table at the top of the tree that a table is in.
    pub(super) fn root_of(&self, no: TableNo) -> Option<TableNo> {
        let mut at = no;
        for _ in 0..5 {
            match self.table(at)?.parent {
                Some((above, _)) => at = above,
                None => break,
            }
        }
        matches!(self.table(at)?.standing, Standing::Root { .. }).then_some(at)
    }

    pub(super) fn is_present(&self, value: u64) -> bool {
        Spte::<F>::from_raw(value).is_present()
    }

    pub(super) fn is_link(&self, value: u64, level: Level) -> bool {
        Spte::<F>::from_raw(value).is_link(level)
    }

    pub(super) fn is_frozen(&self, value: u64) -> bool {
        self.codec.is_frozen(Spte::from_raw(value))
    }

    pub(super) fn is_empty_value(&self, value: u64) -> bool {
        self.codec.is_nonpresent(Spte::from_raw(value))
    }

    pub(super) fn frame_in(&self, link: u64) -> u64 {
        self.codec.pfn(Spte::from_raw(link)).raw()
    }

    pub(super) fn fail(&mut self, vm: VmNo, gfn: u64, level: Level, what: Contradiction) {
        let failure = Failure {
            line: self.line,
            vm: self.resolve(vm).0,
            gfn: Gfn::new(gfn),
            level,
            what,
        };
        self.failures.push(failure);
    }

    // --- VMs and threads ---------------------------------------------------------------------------------------------

    /// The VM that this one turned out to be.
    pub(super) fn resolve(&self, vm: VmNo) -> VmNo {
        let mut at = vm;
        while let Some(next) = self.vms.get(at.0).and_then(|vm| vm.merged) {
            at = next;
        }
        at
    }

    pub(super) fn new_vm(&mut self, process: Option<u32>) -> VmNo {
        self.vms.push(Vm {
            process,
            ..Vm::default()
        });
        VmNo(self.vms.len() - 1)
    }

    /// The VMs that are there.
    pub(super) fn live(&self) -> impl Iterator<Item = (VmNo, &Vm)> {
        let numbered = self.vms.iter().enumerate();
        numbered
            .filter(|(_, vm)| vm.merged.is_none() && !vm.ended)
            .map(|(no, vm)| (VmNo(no), vm))
    }

    pub(super) fn thread(&mut self, id: u32) -> &mut Thread {
        self.threads.entry(id).or_default()
    }

    /// The VM that a thread works for, as far as it is known.
    pub(super) fn vm_of(&self, id: u32) -> Option<VmNo> {
        let thread = self.threads.get(&id);
        if let Some(vm) = thread.and_then(|thread| thread.vm) {
            let vm = self.resolve(vm);
            if self.vms.get(vm.0).is_some_and(|vm| !vm.ended) {
                return Some(vm);
            }
        }
        if !self.has_threads {
            return self.live().next().map(|(no, _)| no);
        }
        let process = thread?.process?;
        let same = self.live().filter(|(_, vm)| vm.process == Some(process));
        same.last().map(|(no, _)| no)
    }

    /// From now on a thread works for a VM.
    pub(super) fn bind(&mut self, id: u32, vm: VmNo) {
        let thread = self.thread(id);
        thread.vm = Some(vm);
        let (name, process) = (thread.name.clone(), thread.process);
        let zap_all = std::mem::take(&mut thread.zap_all);
        if let Some(vm) = self.vms.get_mut(vm.0) {
            vm.threads.insert(id, name);
            vm.process = vm.process.or(process);
        }
        if zap_all {
            self.invalidate(vm);
        }
    }

    /// All roots of a VM become invalid.
    pub(super) fn invalidate(&mut self, vm: VmNo) {
        let roots = self.vms.get(vm.0).map(|vm| vm.roots.clone());
        for root in roots.unwrap_or_default() {
            if let Some(table) = self.table_mut(root) {
                table.standing = Standing::Root { invalid: true };
            }
        }
    }

    /// Whether all valid roots of a VM have nothing in them, as when it was destroyed.
    pub(super) fn is_torn_down(&self, vm: VmNo) -> bool {
        let Some(vm) = self.vms.get(vm.0) else {
            return false;
        };
        let roots = vm.roots.iter().filter_map(|root| self.table(*root));
        let mut valid = roots.filter(|table| table.is_valid_root()).peekable();
        valid.peek().is_some()
            && valid.all(|table| {
                let mut entries = table.entries();
                table.as_id.is_some()
                    && entries.all(|(_, value, state)| {
                        state == State::Known && self.is_empty_value(value)
                    })
            })
    }

    /// A VM is gone.
    pub(super) fn end(&mut self, vm: VmNo) {
        let roots = self.vms.get_mut(vm.0).map(|vm| {
            vm.ended = true;
            std::mem::take(&mut vm.roots)
        });
        for root in roots.unwrap_or_default() {
            self.forget(root);
        }
    }

    /// Hangs a table below an entry.
    pub(super) fn adopt(&mut self, child: TableNo, parent: TableNo, index: usize) {
        if let Some((old, at)) = self.table(child).and_then(|table| table.parent) {
            if let Some(old) = self.table_mut(old) {
                old.children.remove(&at);
            }
        }
        if let Some(table) = self.table_mut(parent) {
            table.children.insert(index, child);
        }
        if let Some(table) = self.table_mut(child) {
            (table.parent, table.standing) = (Some((parent, index)), Standing::Linked);
        }
    }

    /// Events are missing: nothing is certain any more.
    pub(super) fn lose(&mut self) {
        self.loses = true;
        for table in self.tables.iter_mut().flatten() {
            table.doubt();
        }
        for thread in self.threads.values_mut() {
            (thread.made, thread.last, thread.linked) = (None, None, None);
        }
    }

    /// The entry of a frame in a table.
    pub(super) fn entry(&self, no: TableNo, gfn: u64) -> Option<(u64, State)> {
        let table = self.table(no)?;
        Some(table.get(index_of(gfn, table.level)))
    }

    /// A table that the trace does not tell of as a whole, at an entry.
    pub(super) fn add_unknown(
        &mut self,
        (vm, as_id): (VmNo, Option<AsId>),
        (level, gfn): (Level, u64),
    ) -> TableNo {
        self.counts.tables_from_before += 1;
        if let Some(vm) = self.vms.get_mut(vm.0) {
            vm.partial = true;
        }
        let place = (level, first_of(gfn, level));
        self.add(Table::new((vm, as_id), place, (0, State::Unknown)))
    }
}
