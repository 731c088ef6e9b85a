//! The owner of the mirror, and what it keeps.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use slat_memslot::{Gfn, Level};
use slat_mmu::spte::Pfn;
use slat_mmu::table::TableId;
use thiserror::Error;

use super::pages::FreePages;
use crate::sync::{AtomicBool, AtomicU64, Mutex, MutexGuard, lock};
use crate::tdx::{Content, Module, Refusal, Seamcall, Tdr};

/// How KVM tells its TDX code of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HookGen {
    /// A hook for each kind of change: `link_external_spt`, `set_external_spte`, `remove_external_spte`,
    /// `free_external_spt`. Kernels 6.16 to 6.19.
    Split,
    /// One hook with the old and the new entry, `set_external_spte`, and `free_external_spt`. It judges by the change.
    #[default]
    Unified,
}

/// How far a TD has come, as KVM sees it (`enum kvm_tdx_state`, and whether the key is assigned).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// `TD_STATE_INITIALIZED`: memory is added and measured.
    Initialized,
    /// `TD_STATE_RUNNABLE`.
    Runnable,
    /// The key has been freed: the TD is no more, its pages can be reclaimed.
    KeyFreed,
}

/// Where KVM gives a VM up (`KVM_BUG_ON`, `TDX_BUG_ON`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Bug {
    /// A page is added while the TD is built, and there is nothing to copy from.
    #[error("{0} is to be added without a source")]
    NoSource(Gfn),
    /// A page is larger than 4 KiB.
    #[error("{0} is to be mapped at level {level}", level = *.1 as u8)]
    HugeLeaf(Gfn, Level),
    /// A page that is mapped is to be another, or a table.
    #[error("the entry of {0} is present and is to be something else")]
    PresentChanged(Gfn),
    /// A table goes while the TD has a key. Its page is lost.
    #[error("the table of level {level} at {0} goes while the TD has a key", level = *.1 as u8)]
    TableBeforeKey(Gfn, Level),
    /// The module was still busy when all vCPUs had left.
    #[error("{0} is busy with no vCPU inside")]
    StillBusy(Seamcall),
    /// The module refused.
    #[error("{0}: {1}")]
    Refused(Seamcall, Refusal),
    /// There is no page for a table.
    #[error("the host is out of pages")]
    NoPage,
}

/// A rule of the protocol that a test leaves out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(hidden)]
pub enum Omit {
    /// Epochs are not advanced.
    Track,
    /// vCPUs are not made to leave.
    Kick,
    /// Who is busy is not asked again.
    Retry,
    /// The module is told of nothing.
    Calls,
}

/// The owner of the mirror: KVM's TDX code for one TD.
#[derive(Debug)]
pub struct Backend {
    pub(super) module: Arc<Module>,
    pub(super) td: Tdr,
    pub(super) hooks: HookGen,
    /// vCPUs wait before they enter while it is set (`wait_for_sept_zap`).
    pub(super) wait_for_zap: AtomicBool,
    /// By vCPU: odd while it is in guest mode or about to be, another number each time (`vcpu->mode`).
    pub(super) modes: Box<[AtomicU64]>,
    state: Mutex<State>,
}

/// What changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) stage: Stage,
    pub(super) pages: FreePages,
    /// The page of the S-EPT behind each table of the mirror (`sp->external_spt`).
    pub(super) external: FxHashMap<TableId, Pfn>,
    /// What the page that is added next is copied from (`page_add_src`).
    pub(super) source: Option<Content>,
    pub(super) bug: Option<Bug>,
    pub(super) omit: Option<Omit>,
}

/// The same, as the page tables hold it.
#[derive(Clone, Debug)]
pub(super) struct Owner(pub(super) Arc<Backend>);

impl Backend {
    pub(super) fn new(module: Arc<Module>, td: Tdr, hooks: HookGen, pages: FreePages) -> Self {
        // A place for each vCPU that the TD may get.
        let modes = (0..module.max_vcpus(td)).map(|_| AtomicU64::new(0));
        let modes = modes.collect();
        Self {
            modes,
            module,
            td,
            hooks,
            wait_for_zap: AtomicBool::new(false),
            state: Mutex::new(State {
                stage: Stage::Initialized,
                pages,
                external: FxHashMap::default(),
                source: None,
                bug: None,
                omit: None,
            }),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The module.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// The TD.
    pub const fn td(&self) -> Tdr {
        self.td
    }

    /// How far the TD has come.
    pub fn stage(&self) -> Stage {
        self.state().stage
    }

    /// Why KVM has given the VM up, if it has.
    pub fn bug(&self) -> Option<Bug> {
        self.state().bug
    }

    /// Leaves a rule out.
    #[doc(hidden)]
    pub fn omit(&self, omit: Omit) {
        self.state().omit = Some(omit);
    }

    pub(super) fn omits(&self, omit: Omit) -> bool {
        self.state().omit == Some(omit)
    }

    /// Gives the VM up; the first reason stays.
    pub(super) fn give_up(&self, bug: Bug) {
        self.state().bug.get_or_insert(bug);
    }
}
