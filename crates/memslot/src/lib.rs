//! What userspace asked KVM for.
#![forbid(unsafe_code)]

mod addr;
mod call;
pub mod cap;
mod dirty;
mod errno;
mod flags;
mod id;
mod level;
mod profile;
mod quirks;
mod reason;
mod vm_type;

pub use addr::{Gfn, GfnRange, Gpa, Hva, PAGE_SHIFT, PAGE_SIZE, Pages};
pub use call::{
    Access, Buffer, Call, ClearBits, FileCall, FileRef, MapCall, MapId, OtherFile, Outcome, Region,
    RegionVersion,
};
pub use dirty::DirtyPages;
pub use errno::{Errno, UnknownErrno};
pub use flags::{Attributes, GmemFlags, ManualProtect, SlotFlags};
pub use id::{AsId, Generation, GmemId, SlotId, SlotKey, USER_SLOTS};
pub use level::{Level, PageSize};
pub use profile::{Capabilities, Evidence, Fact, LogOff, Profile, SlotZap, Vendor};
pub use quirks::{QuirkUpdate, Quirks};
pub use reason::{
    AttributeError, CapError, DirtyLogError, DirtyRingError, FileError, GateError, GmemError,
    MapError, PreFaultError, Reason, ReasonInfo, RegionError, VmError, catalogue,
};
pub use vm_type::{UnknownVmType, VmType};
