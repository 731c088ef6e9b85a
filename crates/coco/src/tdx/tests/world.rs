//! A TD to try things on.

use slat_memslot::{Gpa, Level};
use slat_mmu::spte::Pfn;

use crate::tdx::*;

pub(super) const VP: VpId = VpId(0);

pub(super) fn at(gpa: u64, level: Level) -> GpaMapping {
    GpaMapping::new(Gpa::new(gpa), level)
}

pub(super) fn small(gpa: u64) -> GpaMapping {
    at(gpa, Level::L1)
}

pub(super) fn of(code: Code, operand: Operand) -> Status {
    Status::of(code, operand)
}

/// A module with one TD.
pub(super) struct World {
    pub(super) module: Module,
    pub(super) td: Tdr,
    next: core::cell::Cell<u64>,
}

impl World {
    /// A TD that is being built, with tables for the first 2 MiB.
    pub(super) fn building() -> Self {
        Self::with(TdParams::default(), 3)
    }

    pub(super) fn with(params: TdParams, vcpus: u16) -> Self {
        let module = Module::new(Pfn::new(0x4000));
        let td = build(&module, Pfn::new(0x10), params, vcpus).unwrap();
        let world = Self {
            module,
            td,
            next: core::cell::Cell::new(0x100),
        };
        let root = params.gpaw.root_level();
        for level in Level::ALL.into_iter().rev() {
            if level > Level::L1 && level <= root {
                world.table(0, level);
            }
        }
        world
    }

    /// The same, running.
    pub(super) fn running() -> Self {
        let world = Self::building();
        world.module.tdh_mr_finalize(world.td).unwrap();
        world
    }

    /// A page that nobody has.
    pub(super) fn page(&self) -> Pfn {
        let page = self.next.get();
        self.next.set(page + 1);
        Pfn::new(page)
    }

    /// 512 pages in a row that nobody has.
    pub(super) fn huge(&self) -> Pfn {
        let page = self.next.get().next_multiple_of(512);
        self.next.set(page + 512);
        Pfn::new(page)
    }

    /// Links a table below the entry of this level.
    pub(super) fn table(&self, gpa: u64, level: Level) -> Pfn {
        let page = self.page();
        let done = self.module.tdh_mem_sept_add(self.td, at(gpa, level), page);
        done.unwrap();
        page
    }

    pub(super) fn aug(&self, gpa: u64) -> Pfn {
        let page = self.page();
        self.module
            .tdh_mem_page_aug(self.td, small(gpa), page)
            .unwrap();
        page
    }

    pub(super) fn enter(&self, vp: VpId) {
        let entry = self.module.tdh_vp_enter(self.td, vp);
        assert_eq!(entry, Ok(Entry::Inside));
    }

    pub(super) fn exit(&self, vp: VpId) {
        self.module.vp_exit(self.td, vp).unwrap();
    }

    pub(super) fn accept(&self, vp: VpId, at: GpaMapping) -> Answer<Accept> {
        self.module
            .tdg_mem_page_accept(self.td, vp, at, Interrupt::Never)
    }

    pub(super) fn state(&self, at: GpaMapping) -> SeptState {
        self.module.tdh_mem_sept_rd(self.td, at).unwrap().state
    }

    pub(super) fn block(&self, at: GpaMapping) {
        let blocked = self.module.tdh_mem_range_block(self.td, at);
        assert_eq!(blocked, Ok(Block::Blocked));
    }

    /// Blocks, tracks and takes a page away, with all vCPUs outside.
    pub(super) fn remove(&self, at: GpaMapping) -> Pfn {
        self.block(at);
        self.module.tdh_mem_track(self.td).unwrap();
        self.module.tdh_mem_page_remove(self.td, at).unwrap()
    }

    #[track_caller]
    pub(super) fn audit(&self) {
        assert_eq!(self.module.audit(), []);
    }
}

/// The status of a refusal.
pub(super) fn status<T: core::fmt::Debug>(answer: Answer<T>) -> Status {
    answer.unwrap_err().status
}
