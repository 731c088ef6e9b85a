//! The module: every call, in the order of its checks.
//!
//! A call first takes what it needs (the TD's root page, its op-state, the tree, the entry), never waiting: who finds
//! something taken is told `OPERAND_BUSY`. Then it checks the state, then it acts, then it gives everything back. With
//! [`Module::with_pauses`] other threads can call in while a call holds its locks.

mod add;
mod block;
mod build;
mod call;
mod debug;
mod faults;
mod guest;
mod plant;
mod remove;
mod resize;
mod run;
mod teardown;

use rustc_hash::FxHashMap;
use slat_mmu::spte::Pfn;
use std::collections::BTreeMap;

use super::content::Content;
use super::op_state::OpState;
use super::pamt::{PageType, Pamt, PamtEntry};
use super::status::{Code, Operand, Status};
use super::td::{Td, Tdr, VpId};
use crate::sync::{Mutex, MutexGuard, lock, pause};

pub use block::Block;
pub use build::build;
pub use call::{Call, GpaMapping};
pub use faults::BusyPlan;
pub use guest::{Accept, GuestAccess, GuestFault, Interrupt, Violation, ViolationCause};
#[doc(hidden)]
pub use plant::HeldLock;
#[cfg(all(test, not(shuttle)))]
pub(crate) use plant::Snapshot;
pub use run::Entry;
pub use teardown::Reclaimed;

use call::OnEntry;

/// Whether other threads can call in while a call holds its locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
enum Pauses {
    #[default]
    Never,
    InEveryCall,
}

/// What is known after `TDH.SYS.INIT`: a module with memory to manage, and no TD.
///
/// Methods carry the names of the calls. They take `&self`: logical processors call in at the same time.
///
/// ```
/// use slat_coco::tdx::{GpaMapping, Module, SeptState, TdParams, build};
/// use slat_memslot::{Gpa, Level};
/// use slat_mmu::spte::Pfn;
///
/// let module = Module::new(Pfn::new(0x1000));
/// let td = build(&module, Pfn::new(0x10), TdParams::default(), 1)?;
/// // Tables from the root down, then a page, then the end of the building.
/// for (level, page) in [(Level::L4, 0x100), (Level::L3, 0x101), (Level::L2, 0x102)] {
///     module.tdh_mem_sept_add(td, GpaMapping::new(Gpa::new(0), level), Pfn::new(page))?;
/// }
/// module.tdh_mr_finalize(td)?;
/// let page = GpaMapping::new(Gpa::new(0x1000), Level::L1);
/// module.tdh_mem_page_aug(td, page, Pfn::new(0x200))?;
/// assert_eq!(module.tdh_mem_sept_rd(td, page)?.state, SeptState::Pending);
/// # Ok::<(), slat_coco::tdx::Refusal>(())
/// ```
#[derive(Debug)]
pub struct Module {
    state: Mutex<State>,
    pauses: Pauses,
}

/// What the module holds.
#[derive(Debug)]
pub(super) struct State {
    pub(super) pamt: Pamt,
    pub(super) tds: BTreeMap<Tdr, Td>,
    /// What is in the pages that are not full of zeroes.
    pub(super) contents: FxHashMap<Pfn, Content>,
    pub(super) busy: BusyPlan,
    pub(super) calls: u64,
}

impl Module {
    /// A module that manages the frames below `end`, rounded up to 2 MiB.
    pub fn new(end: Pfn) -> Self {
        Self {
            state: Mutex::new(State {
                pamt: Pamt::new(end),
                tds: BTreeMap::new(),
                contents: FxHashMap::default(),
                busy: BusyPlan::default(),
                calls: 0,
            }),
            pauses: Pauses::Never,
        }
    }

    /// The same, where every call lets other threads run while it holds its locks.
    #[must_use]
    pub fn with_pauses(mut self) -> Self {
        self.pauses = Pauses::InEveryCall;
        self
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Lets others in, if they may, between the locks of a call and its work.
    fn paused<'m>(&'m self, state: MutexGuard<'m, State>) -> MutexGuard<'m, State> {
        match self.pauses {
            Pauses::Never => state,
            Pauses::InEveryCall => {
                drop(state);
                pause();
                self.state()
            }
        }
    }

    /// Which calls are to find something busy.
    pub fn plan_busy(&self, plan: BusyPlan) {
        self.state().busy = plan;
    }

    /// How many calls have been made.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// What a TD does; `None` if there is no such TD.
    pub fn op_state(&self, td: Tdr) -> Option<OpState> {
        self.state().tds.get(&td).map(|td| td.op_state)
    }

    /// How many pages of 4 KiB belong to a TD, its root page not counted (`TDR.CHLDCNT`).
    pub fn children(&self, td: Tdr) -> Option<u64> {
        self.state().tds.get(&td).map(|td| td.children)
    }

    /// A TD's epochs.
    pub fn epochs(&self, td: Tdr) -> Option<super::Epochs> {
        self.state().tds.get(&td).map(|td| td.epochs)
    }

    /// The measurement of a TD whose building has ended.
    pub fn mrtd(&self, td: Tdr) -> Option<super::Mrtd> {
        self.state().tds.get(&td)?.mrtd
    }

    /// How many operations a TD's measurement is made of.
    pub fn measured(&self, td: Tdr) -> Option<u64> {
        self.state()
            .tds
            .get(&td)
            .map(|td| td.measurement.operations())
    }

    /// What is known of a page of the host.
    pub fn page(&self, page: Pfn) -> PamtEntry {
        self.state().pamt.get(page)
    }

    /// What is in a page of the host, as its owner would read it.
    pub fn content(&self, page: Pfn) -> Content {
        self.state()
            .contents
            .get(&page)
            .cloned()
            .unwrap_or_default()
    }

    /// The host writes zeroes to a page that is its own (`tdx_quirk_reset_paddr`). A TD's page is left alone.
    pub fn host_clears(&self, page: Pfn) -> bool {
        let mut state = self.state();
        let own = state.pamt.get(page).page_type == PageType::Host;
        if own {
            state.contents.remove(&page);
        }
        own
    }

    /// Memory for page metadata and for tables, in bytes: what the hardware would have in the host's memory.
    pub fn bytes(&self) -> (usize, usize) {
        let state = self.state();
        let tables = |td: &Td| td.sept.as_ref().map_or(0, super::sept::Sept::len);
        let tables: usize = state.tds.values().map(tables).sum();
        (state.pamt.bytes(), tables * 4096)
    }

    /// Every entry of a TD that is in use, from the root down.
    pub fn sept_entries(&self, td: Tdr) -> Vec<(slat_memslot::Gpa, super::EntryView)> {
        let state = self.state();
        let mut entries = Vec::new();
        if let Some(sept) = state.tds.get(&td).and_then(|td| td.sept.as_ref()) {
            sept.for_each(|gpa, place, entry| {
                entries.push((gpa, super::EntryView::of(entry, place.level)));
            });
        }
        entries
    }
}

impl State {
    /// The TD with this root page.
    pub(super) fn td(&mut self, td: Tdr, operand: Operand) -> Result<&mut Td, Status> {
        let page = td.page();
        if self
            .pamt
            .check_free(page, slat_memslot::PageSize::Size4K, operand)
            == Err(Status::of(Code::OperandAddrRangeError, operand))
        {
            return Err(Status::of(Code::OperandAddrRangeError, operand));
        }
        let metadata = Status::of(Code::PageMetadataIncorrect, operand);
        self.tds.get_mut(&td).ok_or(metadata)
    }

    pub(super) fn td_ref(&self, td: Tdr) -> &Td {
        &self.tds[&td]
    }

    /// The TD that a call has found before.
    ///
    /// # Panics
    /// It is gone: nobody can take it away while a call holds its root page.
    pub(super) fn td_mut(&mut self, td: Tdr) -> &mut Td {
        self.tds
            .get_mut(&td)
            .expect("the TD's root page is held by the call")
    }

    /// A vCPU of a TD.
    pub(super) fn vp(&mut self, td: Tdr, vp: VpId) -> Result<&mut super::vp::Vp, Status> {
        let td = self.td(td, Operand::Tdr)?;
        let wrong = Status::of(Code::PageMetadataIncorrect, Operand::Rcx);
        td.vps.get_mut(usize::from(vp.0)).ok_or(wrong)
    }
}
