//! Whole operations on page tables.
#![expect(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod check;
mod harvest;
mod log;
mod mirror;
mod order;
mod recorded;
mod reference;
mod words;

use slat_memslot::{Gfn, GfnRange, PageSize};

use super::*;
use crate::host::Host;
use crate::role::{PageRole, VcpuState, root_role_for_tdp};
use crate::spte::{Format, Npt, Pfn, Spte};
use crate::table::{Reader, TableId};

/// The role of the ordinary root.
fn role(host: &Host) -> PageRole {
    root_role_for_tdp(&VcpuState::default(), &host.tdp().unwrap())
}

/// Tables with one root, and what happened to them.
struct World<F: Format> {
    tables: Tables<F>,
    reader: Reader,
    root: TableId,
    events: Vec<Event<F>>,
}

impl<F: Format> World<F> {
    fn new(host: &Host) -> Self {
        let tables = Tables::new(host);
        let mut reader = tables.reader().unwrap();
        let mut events = Vec::new();
        let mut locked = tables.shared(&mut reader, &mut events);
        let root = locked.acquire_root(role(host)).unwrap().root();
        let root = locked.root_table(root).unwrap();
        drop(locked);
        Self {
            tables,
            reader,
            root,
            events,
        }
    }

    fn map(&mut self, gfn: u64, size: PageSize, pfn: u64) -> Resolution {
        let request = MapRequest::page(Gfn::new(gfn), size, Pfn::new(pfn));
        self.request(&request)
    }

    fn request(&mut self, request: &MapRequest<F>) -> Resolution {
        let mut locked = self.tables.shared(&mut self.reader, &mut self.events);
        locked.map(self.root, request).unwrap().resolution
    }

    fn spte(&mut self, gfn: u64) -> Spte<F> {
        let locked = self.tables.shared(&mut self.reader, &mut self.events);
        locked.find(self.root, Gfn::new(gfn)).spte
    }

    fn zap(&mut self, start: u64, end: u64) -> ZapLeafs {
        let range = GfnRange::between(Gfn::new(start), Gfn::new(end)).unwrap();
        let mut zap = ZapLeafs::of_valid_roots(range);
        let progress = zap.run(
            &mut self.tables.exclusive(&mut self.events),
            &mut Uninterrupted,
        );
        assert_eq!(progress, Progress::Done);
        zap
    }

    /// What happened since this was last asked, in words.
    fn story(&mut self) -> Vec<String> {
        let told = |event: &Event<F>| !matches!(event, Event::SpteRequested { .. });
        let events = self.events.drain(..).filter(told);
        events.map(|event| tell(&event)).collect()
    }
}

/// An event as one line; tables are known by the number that they happen to have.
fn tell<F>(event: &Event<F>) -> String {
    match event {
        Event::SpteChanged {
            gfn,
            level,
            old,
            new,
            ..
        } => format!(
            "spte {:#x} l{} {old:#x} -> {new:#x}",
            gfn.raw(),
            *level as u8
        ),
        Event::PageAllocated { gfn, role, .. } => {
            format!("page {:#x} l{}", gfn.raw(), role.level() as u8)
        }
        Event::PageZapped { gfn, role, .. } => {
            format!("zapped {:#x} l{}", gfn.raw(), role.level() as u8)
        }
        Event::SpteRequested { gfn, level, .. } => {
            format!("requested {:#x} l{}", gfn.raw(), *level as u8)
        }
        Event::SpteSet { gfn, level, spte } => {
            format!("set {:#x} l{} {spte:#x}", gfn.raw(), *level as u8)
        }
        Event::MmioMarked { mmio, .. } => format!("mmio {:#x}", mmio.gfn.raw()),
        Event::HugePageSplit {
            gfn, level, result, ..
        } => format!(
            "split {:#x} l{} {}",
            gfn.raw(),
            *level as u8,
            result.errno()
        ),
        Event::FastFault { gfn, fast, .. } => format!("fast {:#x} {fast:?}", gfn.raw()),
        Event::ZapAllFast => "zap all fast".into(),
        Event::ShadowPage { .. }
        | Event::ShadowPageZapped { .. }
        | Event::ShadowSpteSet { .. }
        | Event::PageUnsync { .. }
        | Event::PageSync { .. }
        | Event::ShadowZapAllFast { .. } => unreachable!("no shadow page is in use"),
        Event::Flushed { scope, reason } => format!("flush {scope:?} {reason:?}"),
    }
}
