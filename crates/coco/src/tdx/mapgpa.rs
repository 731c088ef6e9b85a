//! MapGPA: the guest asks for memory to be shared or private (GHCI TDVMCALL 0x10001), as KVM passes it on.
//!
//! KVM splits a request into pieces of 2 MiB and exits to userspace for each (`KVM_EXIT_HYPERCALL` with
//! `KVM_HC_MAP_GPA_RANGE`). [`MapGpa`] is one request on its way: it gives the exits, takes what userspace answers, and
//! ends with what the guest finds in R10 and R11.
//!
//! KVM counterpart: `tdx.c:tdx_map_gpa`, `__tdx_map_gpa`, `tdx_complete_vmcall_map_gpa`.

use slat_memslot::{Gpa, PAGE_SIZE, Pages};

use super::Gpaw;
use crate::convert::{Contract, Outcome};

/// The largest piece (`TDX_MAP_GPA_MAX_LEN`).
pub const MAP_GPA_MAX_LEN: u64 = 2 << 20;

/// What the guest finds in R10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum MapGpaStatus {
    /// Done.
    Success = 0,
    /// Not all of it; the guest goes on from R11.
    Retry = 1,
    /// The range cannot be right, or userspace refused.
    InvalidOperand = 1 << 63,
    /// The range is not made of pages.
    AlignError = 1 << 63 | 2,
    /// KVM cannot ask userspace.
    SubfuncUnsupported = 1 << 63 | 3,
}

/// What the guest is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapGpaReply {
    /// R10.
    pub status: MapGpaStatus,
    /// R11: the first address that was not processed, with the SHARED bit as it was passed.
    pub next: Gpa,
}

/// What decides about a request besides the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapGpaRules {
    /// Where the SHARED bit is.
    pub gpaw: Gpaw,
    /// The width of addresses that the guest's CPUID gives (MAXPHYADDR). An address with the SHARED bit has to fit.
    pub guest_maxphyaddr: u8,
    /// Whether userspace has enabled `KVM_HC_MAP_GPA_RANGE` (`KVM_CAP_EXIT_HYPERCALL`).
    pub exit_hypercall: bool,
    /// What it may answer.
    pub contract: Contract,
}

impl Default for MapGpaRules {
    fn default() -> Self {
        Self {
            gpaw: Gpaw::Bits48,
            guest_maxphyaddr: 48,
            exit_hypercall: true,
            contract: Contract::default(),
        }
    }
}

/// Which kind of memory a range shall be (`KVM_MAP_GPA_RANGE_ENCRYPTED`, `KVM_MAP_GPA_RANGE_DECRYPTED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conversion {
    /// Private.
    ToPrivate,
    /// Shared.
    ToShared,
}

/// `KVM_EXIT_HYPERCALL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapGpaExit {
    /// `args[0]`, without the SHARED bit.
    pub gpa: Gpa,
    /// `args[1]`.
    pub pages: Pages,
    /// `args[2]`.
    pub to: Conversion,
    /// `hypercall.ret` as KVM leaves it: 0, since there are VMMs that never write it.
    pub ret: u64,
}

/// What follows an answer of userspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MapGpaStep {
    /// Another exit.
    Exit(MapGpaExit),
    /// The guest goes on with this.
    Reply(MapGpaReply),
    /// `KVM_RUN` fails with `EINVAL`: the answer was none that is allowed.
    RunFails,
}

/// A request on its way.
///
/// ```
/// use slat_coco::tdx::mapgpa::{Conversion, MapGpa, MapGpaRules, MapGpaStatus, MapGpaStep};
/// use slat_memslot::{Gpa, Pages};
///
/// let (shared, size) = (Gpa::new(1 << 47 | 0x4000_0000), 3 << 20);
/// let mut request = MapGpa::begin(&MapGpaRules::default(), shared, size).unwrap();
/// let first = request.exit();
/// assert_eq!((first.gpa, first.pages), (Gpa::new(0x4000_0000), Pages::new(512)));
/// assert_eq!(first.to, Conversion::ToShared);
/// assert!(matches!(request.answer(0, false), MapGpaStep::Exit(second) if second.pages == Pages::new(256)));
/// let MapGpaStep::Reply(reply) = request.answer(0, false) else { panic!() };
/// assert_eq!(reply.status, MapGpaStatus::Success);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MapGpa {
    rules: MapGpaRules,
    next: u64,
    end: u64,
}

impl MapGpa {
    /// Checks a request. `gpa` has the SHARED bit if the range shall be shared.
    ///
    /// # Errors
    /// What the guest is answered at once.
    pub fn begin(rules: &MapGpaRules, gpa: Gpa, size: u64) -> Result<Self, MapGpaReply> {
        let refuse = |status| Err(MapGpaReply { status, next: gpa });
        if !rules.exit_hypercall {
            return refuse(MapGpaStatus::SubfuncUnsupported);
        }
        let start = gpa.raw();
        // A size of zero is caught here, too.
        let Some(end) = start.checked_add(size).filter(|end| *end > start) else {
            return refuse(MapGpaStatus::InvalidOperand);
        };
        let legal = |address: u64| address >> rules.guest_maxphyaddr.min(63) == 0;
        let shared = |address| rules.gpaw.is_shared(Gpa::new(address));
        if !legal(start) || !legal(end - 1) || shared(start) != shared(end - 1) {
            return refuse(MapGpaStatus::InvalidOperand);
        }
        if start % PAGE_SIZE != 0 || size % PAGE_SIZE != 0 {
            return refuse(MapGpaStatus::AlignError);
        }
        Ok(Self {
            rules: *rules,
            next: start,
            end,
        })
    }

    fn piece(&self) -> u64 {
        (self.end - self.next).min(MAP_GPA_MAX_LEN)
    }

    /// The exit that userspace is to answer.
    pub fn exit(&self) -> MapGpaExit {
        let gpa = Gpa::new(self.next);
        let to = if self.rules.gpaw.is_shared(gpa) {
            Conversion::ToShared
        } else {
            Conversion::ToPrivate
        };
        MapGpaExit {
            gpa: self.rules.gpaw.without_shared(gpa),
            pages: Pages::in_bytes(self.piece()),
            to,
            ret: 0,
        }
    }

    /// How many exits a request of this size takes.
    pub const fn exits(size: u64) -> u64 {
        size.div_ceil(MAP_GPA_MAX_LEN)
    }

    /// Goes on after userspace has answered with `ret`; `event` says whether an event waits for the vCPU.
    pub fn answer(&mut self, ret: u64, event: bool) -> MapGpaStep {
        let status = match Outcome::of_ret(ret, self.rules.contract) {
            Ok(Outcome::Done) => None,
            Ok(Outcome::TryAgain) => Some(MapGpaStatus::Retry),
            Ok(Outcome::Refused) => Some(MapGpaStatus::InvalidOperand),
            Err(_) => return MapGpaStep::RunFails,
        };
        if let Some(status) = status {
            return self.reply(status);
        }
        self.next += self.piece();
        if self.next >= self.end {
            return self.reply(MapGpaStatus::Success);
        }
        if event {
            return self.reply(MapGpaStatus::Retry);
        }
        MapGpaStep::Exit(self.exit())
    }

    const fn reply(&self, status: MapGpaStatus) -> MapGpaStep {
        MapGpaStep::Reply(MapGpaReply {
            status,
            next: Gpa::new(self.next),
        })
    }
}
