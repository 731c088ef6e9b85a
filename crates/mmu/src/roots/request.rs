//! What a vCPU is asked to do before it enters the guest again.

/// A request to a vCPU that concerns its MMU, in the order in which `x86.c:vcpu_enter_guest` serves them.
///
/// The number is the place in that order, not KVM's request number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Request {
    /// The VM is dead: the run ends with `EIO`.
    VmDead,
    /// The dirty ring is nearly full: the run ends with an exit.
    DirtyRingSoftFull,
    /// Read the pages of nested state.
    GetNestedStatePages,
    /// Drop the roots that are obsolete.
    FreeObsoleteRoots,
    /// Synchronise the shadow pages under the roots.
    MmuSync,
    /// Give the root in use to the hardware.
    LoadMmuPgd,
    /// Flush all translations.
    TlbFlush,
    /// Flush the translations of the context in use.
    TlbFlushCurrent,
    /// Flush the guest's own translations.
    TlbFlushGuest,
    /// Flush what the guest asked for through Hyper-V's interface.
    HvTlbFlush,
}

impl Request {
    /// All requests, in the order in which they are served.
    pub const ALL: [Self; 10] = [
        Self::VmDead,
        Self::DirtyRingSoftFull,
        Self::GetNestedStatePages,
        Self::FreeObsoleteRoots,
        Self::MmuSync,
        Self::LoadMmuPgd,
        Self::TlbFlush,
        Self::TlbFlushCurrent,
        Self::TlbFlushGuest,
        Self::HvTlbFlush,
    ];

    const fn bit(self) -> u16 {
        1 << self as u8
    }
}

/// A set of requests. Asking twice is asking once.
///
/// ```
/// use slat_mmu::roots::{Request, Requests};
///
/// let mut requests = Requests::from([Request::TlbFlushCurrent, Request::FreeObsoleteRoots]);
/// requests.insert(Request::LoadMmuPgd);
/// assert_eq!(requests.pop(), Some(Request::FreeObsoleteRoots));
/// assert!(requests.iter().eq([Request::LoadMmuPgd, Request::TlbFlushCurrent]));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requests(u16);

impl Requests {
    /// No request.
    pub const NONE: Self = Self(0);

    /// Adds a request.
    #[inline]
    pub const fn insert(&mut self, request: Request) {
        self.0 |= request.bit();
    }

    /// Takes a request out; says whether it was there.
    #[inline]
    pub const fn withdraw(&mut self, request: Request) -> bool {
        let was = self.contains(request);
        self.0 &= !request.bit();
        was
    }

    /// Takes out the request that is served first.
    pub fn pop(&mut self) -> Option<Request> {
        let first = Request::ALL
            .into_iter()
            .find(|request| self.contains(*request))?;
        self.withdraw(first);
        Some(first)
    }

    /// All of them, in the order in which they are served.
    pub fn iter(mut self) -> impl Iterator<Item = Request> {
        core::iter::from_fn(move || self.pop())
    }

    /// Whether a request is there.
    #[inline]
    pub const fn contains(self, request: Request) -> bool {
        self.0 & request.bit() != 0
    }

    /// Whether there is none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl<const N: usize> From<[Request; N]> for Requests {
    fn from(requests: [Request; N]) -> Self {
        let mut set = Self::NONE;
        requests.into_iter().for_each(|request| set.insert(request));
        set
    }
}
