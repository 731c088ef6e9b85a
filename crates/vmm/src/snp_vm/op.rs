//! What is done with an SNP guest, and what comes of it, as values: by its VMM, by itself, by the host.

use slat_coco::psc::{MapGpaRange, PscEntry, PscQuirks};
use slat_coco::rmp::{Adjustment, PageState, Permissions, RmpSize, Visibility, Vmpl};
use slat_coco::snp::{ApCreation, Found, Hole, RmpFaultPolicy};
use slat_memslot::{Gfn, GfnRange};

/// What a page of `KVM_SEV_SNP_LAUNCH_UPDATE` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LaunchType {
    /// Contents, measured.
    Normal = 1,
    /// Zeros, measured.
    Zero = 3,
    /// Contents, not measured.
    Unmeasured = 4,
    /// Keys that firmware puts there.
    Secrets = 5,
    /// CPUID, which firmware checks.
    Cpuid = 6,
}

/// A command of `KVM_MEMORY_ENCRYPT_OP` for SNP guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SnpCommand {
    /// `KVM_SEV_SNP_LAUNCH_START`.
    LaunchStart {
        /// The guest's policy.
        policy: u64,
        /// Flags; there are none.
        flags: u64,
    },
    /// `KVM_SEV_SNP_LAUNCH_UPDATE`.
    LaunchUpdate {
        /// The first address.
        gpa: u64,
        /// Bytes.
        size: u64,
        /// What the pages are: a raw value of [`LaunchType`].
        page: u8,
        /// What userspace has put into each of them.
        tag: u64,
        /// Flags; there are none.
        flags: u64,
    },
    /// `KVM_SEV_SNP_LAUNCH_FINISH`.
    LaunchFinish {
        /// Flags; there are none.
        flags: u64,
    },
}

/// What a vCPU does in the guest, right or wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestAct {
    /// Reads a page, with the C-bit set (private) or clear (shared).
    Read(Gfn, Visibility),
    /// Writes a page.
    Write(Gfn, Visibility, u64),
    /// Fetches code, which always counts as private.
    Execute(Gfn),
    /// PVALIDATE.
    Validate(Gfn, RmpSize),
    /// PVALIDATE that rescinds.
    Rescind(Gfn, RmpSize),
    /// PVALIDATE of 512 pages: in one, and page by page where that is a mismatch, as Linux does.
    ValidateAll(Gfn),
    /// RMPADJUST.
    Adjust(Gfn, RmpSize, Adjustment),
    /// RMPQUERY.
    Query(Gfn, Vmpl),
    /// Page-state changes through the GHCB's buffer, asked again until all are done or one fails.
    Psc(Vec<PscEntry>),
    /// A value in the GHCB's MSR.
    Msr(u64),
    /// VMGEXIT `0x80000013`.
    ApCreate(ApCreation),
    /// It goes on at another privilege level.
    RunVmpl(Vmpl),
    /// It gets an INIT, as from another vCPU.
    Init,
}

/// How the VMM behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmmWays {
    /// What becomes of pages that the guest leaves behind in a change that it asked for.
    pub explicit: Hole,
    /// The same where it only made an access; `None` if the VMM takes that for a hint and stops the guest.
    pub implicit: Option<Hole>,
    /// Whose page-state change engine the host has.
    pub quirks: PscQuirks,
    /// How many pages the VMM changes at a time; `None` for whatever is asked for.
    pub chunk: Option<u64>,
    /// Which exit of an event fails, from 1; `None` if all succeed.
    pub fails_at: Option<u32>,
}

impl VmmWays {
    /// Punches holes, and takes an access for no more than a hint. The engine is KVM's.
    pub const CAREFUL: Self = Self {
        explicit: Hole::Punched,
        implicit: None,
        quirks: PscQuirks::kvm(),
        chunk: None,
        fails_at: None,
    };
}

/// What is done with an SNP guest besides KVM's memory calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnpOp {
    /// A vCPU runs, by its number in the order of creation.
    Guest(u32, GuestAct),
    /// The VMM behaves otherwise from now on.
    Vmm(VmmWays),
    /// The host does: what it makes of accesses that do not fit, and the size of folios of files.
    Host {
        /// The policy. That of 2021 knows no files, and is not for VMs of this type.
        policy: RmpFaultPolicy,
        /// The size.
        folio: RmpSize,
    },
    /// The VMM converts frames by itself: attributes first, then what is left behind.
    Convert(GfnRange, Visibility, Hole),
    /// The VMM discards the shared side of frames (`MADV_DONTNEED`).
    Discard(GfnRange),
    /// The VMM, or a device, reads the shared side of a frame.
    HostRead(Gfn),
    /// The same, writing.
    HostWrite(Gfn, u64),
    /// The host reads the frame of a private page.
    HostPeek(Gfn),
    /// The host asks for the reverse map's entry of a private page.
    Entry(Gfn),
    /// Everything is looked over.
    Audit,
}

/// Why a vCPU does not go on by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SnpStop {
    /// `KVM_EXIT_MEMORY_FAULT`, with `EFAULT`: what the access was.
    MemoryFault(Gfn, Visibility),
    /// No slot is there. In an SNP guest that becomes #VC, not an exit.
    Mmio(Gfn),
    /// The host has no page (`EFAULT`).
    NoPage(Gfn),
    /// #VC, without an exit.
    Vc(u32),
    /// The strict policy has told the guest that its access was wrong.
    Injected(Gfn),
    /// The access faults again and again, and nobody mends it.
    Stuck(Gfn),
    /// `KVM_EXIT_FAIL_ENTRY`: the vCPU's VMSA is none.
    FailEntry,
    /// The guest has stopped the vCPU, or not started it yet.
    Halted,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnpAnswer {
    /// It is done.
    Done,
    /// What was read.
    Found(Found),
    /// PVALIDATE: the entry changed.
    Changed,
    /// PVALIDATE: the entry was so already (CF is 1).
    Unchanged,
    /// Why an instruction did nothing: EAX.
    Refused(u32),
    /// RMPQUERY.
    Allows(Permissions, RmpSize),
    /// A page-state change: SW_EXITINFO2, `cur_entry`, and the exits that userspace saw.
    Psc(u64, u16, Vec<MapGpaRange>),
    /// A page-state change that ended `KVM_RUN` with `EINVAL`, since userspace answered what it must not.
    RunFailed,
    /// The GHCB's MSR.
    Msr(u64),
    /// AP creation was refused: [`ApError::code`](slat_coco::snp::ApError::code).
    ApRefused(&'static str),
    /// An entry of the reverse map.
    Entry(PageState, RmpSize),
    /// There is none: no private page is there.
    NoPage,
    /// The host faulted.
    Oops,
    /// The rules that do not hold, each once: [`SnpViolation::code`](slat_coco::snp::SnpViolation::code).
    Audit(Vec<&'static str>),
    /// The vCPU does not go on.
    Stopped(SnpStop),
}

impl From<SnpStop> for SnpAnswer {
    fn from(stop: SnpStop) -> Self {
        Self::Stopped(stop)
    }
}
