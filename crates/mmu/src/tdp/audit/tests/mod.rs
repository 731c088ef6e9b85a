//! The audit finds every fault that is planted, and nothing where there is none.
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod docs;
mod mirrors;
mod plants;
mod random;
mod steps;
mod vcpus;

use slat_memslot::{Gfn, Level, PageSize};

use super::*;
use crate::host::Host;
use crate::role::{PageRole, VcpuMode, VcpuState, root_role_for_tdp};
use crate::roots::RootId;
use crate::spte::{Format, Pfn, Spte};
use crate::sync::Ordering;
use crate::table::{Reader, TableId, first, index};
use crate::tdp::page::Parent;
use crate::tdp::{Locked, MapRequest, Resolution, Shared, Unobserved, hooks};

/// Tables with one root.
struct World<F: Format, X: External<F> = hooks::NoExternal> {
    tables: Tables<F, X>,
    reader: Reader,
    root: RootId,
}

fn role(host: &Host, mode: VcpuMode) -> PageRole {
    let vcpu = VcpuState {
        mode,
        ..VcpuState::default()
    };
    root_role_for_tdp(&vcpu, &host.tdp().unwrap())
}

impl<F: Format> World<F> {
    fn new(host: &Host) -> Self {
        Self::of(Tables::new(host), role(host, VcpuMode::Normal))
    }
}

impl<F: Format, X: External<F>> World<F, X> {
    fn of(tables: Tables<F, X>, role: PageRole) -> Self {
        let mut reader = tables.reader().unwrap();
        let root = {
            let mut nobody = Unobserved;
            let mut locked = tables.shared(&mut reader, &mut nobody);
            locked.acquire_root(role).unwrap().root()
        };
        Self {
            tables,
            reader,
            root,
        }
    }

    fn shared<R>(
        &mut self,
        run: impl FnOnce(&mut Locked<Shared<'_, F, X, hooks::NoCheck>, Unobserved>, TableId) -> R,
    ) -> R {
        let root = self.root_table();
        let mut locked = self.tables.shared(&mut self.reader, Unobserved);
        run(&mut locked, root)
    }

    fn root_table(&self) -> TableId {
        self.tables.roots.payload(self.root).unwrap()
    }

    fn map(&mut self, gfn: u64, size: PageSize, pfn: u64) {
        let request = MapRequest::page(Gfn::new(gfn), size, Pfn::new(pfn));
        self.request(&request);
    }

    fn request(&mut self, request: &MapRequest<F>) {
        let mapped = self.shared(|locked, root| locked.map(root, request).unwrap());
        assert!(!matches!(mapped.resolution, Resolution::Retry(_)));
    }

    /// The entry of a level that is for a frame.
    fn at(&self, gfn: u64, level: Level) -> Parent {
        let mut table = self.root_table();
        loop {
            let here = self.tables.page(table).role().level();
            let index = index(gfn, here);
            if here == level {
                return Parent { table, index };
            }
            let spte = self.tables.load(table, index);
            table = self.tables.child_of(spte, here).unwrap();
        }
    }

    /// Changes the bits of an entry, and says where that was.
    fn poke(&self, gfn: u64, level: Level, change: impl FnOnce(u64) -> u64) -> Subject {
        let place = self.at(gfn, level);
        let entry = self.tables.entry(place.table, place.index);
        let raw = change(entry.load(Ordering::Relaxed));
        entry.store(raw, Ordering::Relaxed);
        self.subject(gfn, level)
    }

    fn subject(&self, gfn: u64, level: Level) -> Subject {
        let place = self.at(gfn, level);
        Subject::Entry(EntryAt {
            place,
            gfn: Gfn::new(first(gfn, level)),
            level,
            raw: self.tables.read(place).raw(),
        })
    }

    /// The table below the entry of a level that is for a frame.
    fn below(&self, gfn: u64, level: Level) -> TableId {
        let spte: Spte<F> = self.tables.read(self.at(gfn, level));
        self.tables.child_of(spte, level).unwrap()
    }

    fn audit(&self) -> Vec<Violation> {
        self.tables.audit(&AuditContext::default())
    }
}
