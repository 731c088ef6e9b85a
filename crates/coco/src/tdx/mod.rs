//! TDX: the memory half of a module, and KVM's mirror of its tables.
//!
//! [`Module`] does what the TDX module does with private memory, call by call: who owns which page of the host, the secure
//! EPT with the 16 states of its entries, what can be asked for in which state and what the answer is, when a TLB can hold
//! a translation no longer, what the guest accepts and what is measured. Methods carry the names of the calls; refusals
//! carry the module's own status.
//!
//! Rules are those of TDX module 1.5.01 (`sept_state_lookup`, `op_state_lookup`, and the order of checks in each call).
//! Not modelled: nested guests of a TD and their tables, the streams of a migration (the states that it leads to are),
//! registers, interrupts.

mod audit;
mod content;
mod epoch;
pub mod ioctl;
mod leaf;
mod locks;
pub mod mapgpa;
mod measure;
pub mod mirror;
mod module;
mod op_state;
mod pamt;
mod sept;
mod status;
mod stepping;
mod td;
#[cfg(all(test, not(shuttle)))]
#[expect(clippy::unwrap_used, reason = "a test may fail anywhere")]
mod tests;
mod vp;

pub use audit::{TdxCode, TdxViolation};
pub use content::Content;
pub use epoch::Epochs;
pub use leaf::{Seamcall, Tdcall};
pub use locks::Hold;
pub use measure::{Mrtd, PAGE_CHUNKS};
#[doc(hidden)]
pub use module::HeldLock;
pub use module::{
    Accept, Block, BusyPlan, Call, Entry, GpaMapping, GuestAccess, GuestFault, Interrupt, Module,
    Reclaimed, Violation, ViolationCause, build,
};
pub use op_state::{Lifecycle, OpState};
pub use pamt::{PageType, PamtEntry};
pub use sept::{EntryView, SeptEntry, SeptState};
pub use status::{Answer, Code, Operand, Refusal, Status};
pub use td::{Debug, Gpaw, PendingAccess, TDCS_PAGES, TdParams, Tdr, VpId};
