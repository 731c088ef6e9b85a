//! What userspace asked KVM for: memory slots, guest_memfd, memory attributes, dirty logging, and the rules by which
//! the kernel accepts or refuses each call.
//!
//! The way in is [`Memory`], the memory of one VM on one kernel ([`Profile`]). Any [`Call`] of KVM's memory interface
//! can be asked about before it is made ([`Memory::check`], [`Memory::check_region`]): the answer is a plan of what
//! will change, or the one [`Reason`] why the kernel will refuse, with its errno, the kernel function that refuses,
//! and the change that would repair the call ([`Memory::repair`]).
//!
//! ```
//! use slat_memslot::{Call, Memory, Profile, Region, Repair, SlotFlags, SlotKey, VmType};
//! let mut memory = Memory::new(Profile::named("linux-6.12").unwrap(), VmType::Snp);
//! let file = memory.create_gmem(0x20_0000, 0).unwrap();
//! let request = Region::new(SlotKey::normal(0), 0, 0x20_0000, 0x7f00_0000_0000)
//!     .with_flags(SlotFlags::LOG_DIRTY_PAGES)
//!     .with_gmem(file, 0);
//! let refusal = memory.check_region(&request).unwrap_err();
//! assert_eq!(refusal.reason.code(), "log-with-gmem");
//! assert_eq!(refusal.reason.kernel_site(), "kvm_main.c:check_memory_region_flags");
//! match memory.repair(&Call::SetRegion(request), &refusal.reason) {
//!     Repair::Calls { call, .. } => assert!(memory.call(&call).is_ok()),
//!     Repair::Impossible { .. } => unreachable!(),
//! }
//! ```
//!
//! The crate knows no kernel types, allocates nothing per page before a page needs it, and runs anywhere.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod addr;
mod attributes;
mod call;
pub mod cap;
mod contents;
mod dirty;
mod errno;
mod flags;
mod gmem;
mod id;
#[cfg(feature = "kvm")]
mod kvm;
mod level;
mod lpage;
mod memory;
mod ordered;
mod profile;
mod quirks;
mod reason;
mod repair;
mod set_region;
mod slot;
mod slot_ids;
mod space;
mod vm;
mod vm_type;

pub use addr::{Gfn, GfnRange, Gpa, Gva, Hpa, Hva, PAGE_SHIFT, PAGE_SIZE, Pages};
pub use attributes::{AttributeMap, AttributeRanges};
pub use call::{
    Access, AccessKind, Buffer, Call, ClearBits, ContentsCall, FileCall, FileRef, GuestAccess,
    GuestContents, MapCall, MapId, OtherFile, Outcome, Region, RegionVersion, SevCall, SevCommand,
    SevHost, SevQuestion, SevSide,
};
pub use call::{
    MapGpaAnswer, TdOp, TdSide, TdxCall, TdxCommand, TdxConversion, TdxCount, TdxEntry, TdxFinding,
    TdxHost, TdxOutcome, TdxQuestion, TdxSlotZap, WaitingEvent,
};
pub use contents::{Contents, Place};
pub use dirty::{
    ClearMask, DirtyBacklog, DirtyBitmap, DirtyEpoch, DirtyPages, DirtyRing, DirtySource,
    DirtyWindow, FreedRings, InitialBits, MergeError, Rearm, RingEntry, RingFill, RingReset,
    coalesce_dirty, merge_dirty,
};
pub use errno::{Errno, UnknownErrno};
pub use flags::{Attributes, GmemFlags, ManualProtect, SlotFlags};
pub use gmem::GmemFile;
pub use id::{AsId, Generation, GmemId, SlotId, SlotKey, USER_SLOTS};
pub use level::{Level, PageSize};
pub use lpage::LpageInfo;
pub use memory::{CallResult, Gate, Memory, Refusal};
pub use profile::{Capabilities, Evidence, Fact, LogOff, PmlOrder, Profile, SlotZap, Vendor};
pub use quirks::{QuirkUpdate, Quirks};
pub use reason::{
    AttributeError, CapError, DirtyLogError, DirtyRingError, FileError, GateError, GmemError,
    MapError, PreFaultError, Reason, ReasonInfo, RegionError, VmError, catalogue,
};
pub use repair::{Repair, RepairStep};
pub use set_region::{
    Change, ChangeKind, Effects, LogSwitch, Requests, StalePlan, Zap, ZapReach, ZapRule,
};
pub use slot::{Binding, HvaError, Intent, Slot};
pub use slot_ids::SlotIdAllocator;
pub use space::AddressSpace;
pub use vm_type::{UnknownVmType, VmType};
