//! What userspace asked KVM for.
#![forbid(unsafe_code)]

mod addr;
mod attributes;
mod call;
mod dirty;
mod errno;
mod flags;
mod id;
mod level;
mod lpage;
#[doc(hidden)]
pub mod ordered;
mod slot_ids;

pub use addr::{Gfn, GfnRange, Gpa, Hva, PAGE_SHIFT, PAGE_SIZE, Pages};
pub use attributes::{AttributeMap, AttributeRanges};
pub use call::{
    Access, Buffer, Call, ClearBits, FileCall, FileRef, MapCall, MapId, OtherFile, Outcome, Region,
    RegionVersion,
};
pub use dirty::DirtyPages;
pub use dirty::{ClearMask, DirtyBitmap, DirtyWindow, InitialBits};
pub use dirty::{DirtyBacklog, DirtyEpoch, DirtySource, MergeError, coalesce_dirty, merge_dirty};
pub use dirty::{DirtyRing, Rearm, RingEntry, RingFill, RingReset};
pub use errno::{Errno, UnknownErrno};
pub use flags::{Attributes, GmemFlags, ManualProtect, SlotFlags};
pub use id::{AsId, Generation, GmemId, SlotId, SlotKey, USER_SLOTS};
pub use level::{Level, PageSize};
pub use lpage::LpageInfo;
pub use slot_ids::SlotIdAllocator;
