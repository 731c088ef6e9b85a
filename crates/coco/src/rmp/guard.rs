//! The check behind all walks of one vCPU.

use slat_memslot::{Gfn, Level};
use slat_mmu::spte::{Access, Pfn};
use slat_mmu::tdp::{AccessCheck, Translated};

use super::access::{Accessor, Touch, Visibility, reached};
use super::fault::Fault;
use super::guest::GuestCpu;
use super::raw::Wanted;
use super::table::{REGION, Rmp};
use crate::sync::{AtomicU64, Ordering};

/// How many parts of 2 MiB of the guest are remembered: as many as walks keep last tables of the second stage for.
const NEAR: usize = 64;

/// [`Rmp::check_access`] behind all walks of one vCPU: [`Rmp::guard`].
///
/// It cannot tell tables from data, which in an SNP guest's private memory are checked alike. It remembers where parts of the
/// guest were on the host, only to find entries sooner: every check reads the entry itself.
#[derive(Debug)]
pub struct RmpGuard<'r> {
    rmp: &'r Rmp,
    cpu: GuestCpu,
    visibility: Visibility,
    /// A frame of the host that a page of each part of the guest was in last.
    near: [AtomicU64; NEAR],
}

impl Rmp {
    /// The check behind all walks of one vCPU, for tables that only it uses (`Tables::with`). What is done to a page
    /// follows from the rights that are asked for.
    pub const fn guard(&self, cpu: GuestCpu, visibility: Visibility) -> RmpGuard<'_> {
        RmpGuard {
            rmp: self,
            cpu,
            visibility,
            near: [const { AtomicU64::new(0) }; NEAR],
        }
    }
}

impl RmpGuard<'_> {
    /// Whether the access is to private memory, the page is near the last one of its part of the guest, and its own entry, of
    /// 4 KiB, grants all that the access needs.
    #[inline(always)]
    fn allows_at_once(&self, access: &Translated) -> bool {
        if self.visibility == Visibility::Shared || access.level != Level::L1 {
            return false;
        }
        let near = Pfn::new(self.near[place(access.gfn)].load(Ordering::Relaxed));
        let frames = (access.gfn, access.pfn);
        self.rmp.own_has_near(near, frames, &self.wanted(access))
    }

    #[inline(always)]
    fn wanted(&self, access: &Translated) -> Wanted {
        let needs = touch(access.access).needs();
        Wanted::new(self.cpu.asid, access.gfn, self.cpu.vmpl, needs)
    }

    #[inline(never)]
    fn check_closely(&self, access: Translated) -> Result<(), Fault> {
        self.near[place(access.gfn)].store(access.pfn.raw(), Ordering::Relaxed);
        let by = Accessor::Snp(self.cpu, self.visibility);
        let touch = touch(access.access);
        self.rmp.check_access(by, touch, &reached(&access))
    }
}

impl AccessCheck for RmpGuard<'_> {
    type Denied = Fault;

    #[inline(always)]
    fn check(&self, access: &Translated) -> Result<(), Fault> {
        if self.allows_at_once(access) {
            return Ok(());
        }
        self.check_closely(*access)
    }
}

/// What is done to a page.
#[inline(always)]
const fn touch(access: Access) -> Touch {
    if access.contains(Access::WRITE) {
        Touch::Write
    } else if access.contains(Access::EXECUTE) {
        Touch::Fetch { user: false }
    } else {
        Touch::Read
    }
}

/// Where the part of the guest around a frame is remembered.
#[inline(always)]
const fn place(gfn: Gfn) -> usize {
    let [low, ..] = (gfn.raw() / REGION).to_le_bytes();
    low as usize % NEAR
}
