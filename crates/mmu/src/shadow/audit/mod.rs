//! The audit of shadow pages: all violations of what has to hold of them, each with a stable code and its place.
//!
//! KVM counterparts: the warnings of `mmu.c`; the audit of roles is asked for in `docs/roots.md`.

mod check;
#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;

use core::fmt;

use slat_memslot::{AsId, Gfn, Level};

use super::ShadowMmu;
use super::load::Roots;
use super::page::{PageId, SpteRef};
use super::walk::ShadowRoot;
use crate::role::Quadrant;
use crate::spte::Format;

crate::audit_codes! {
    /// An invariant of shadow pages.
    ShadowCode "S":
    1 LeafNotListed "leaf-not-listed" "A leaf is in the list of its frame and level, once."
    2 StaleListEntry "stale-list-entry" "What is in a frame's list is a leaf of that frame and level."
    3 ParentNotListed "parent-not-listed" "A link is among the parents of the page that it leads to, once."
    4 StaleParent "stale-parent" "A page's parents are links to it."
    5 DanglingLink "dangling-link" "A link leads to a page that exists, one level down, and is valid if its own page is."
    6 LinearGfn "linear-gfn" "A direct page that a direct page links begins at the entry's frame."
    7 TrackCount "track-count" "A frame is tracked as often as valid pages above the last level follow a table in it."
    8 WritableTable "writable-table" "No leaf maps a followed table so that it could be written to without asking, unless all pages that follow it are out of step."
    9 HugeCount "huge-count" "Each valid page that follows a table is one reason against huge pages around the table."
    10 UnsyncPage "unsync-page" "Only pages of the last level that follow tables are out of step."
    11 UnsyncMarks "unsync-marks" "The pages above one that is out of step know of it."
    12 ActivePages "active-pages" "The active pages are the valid ones, the newest first."
    13 UsedCount "used-count" "As many pages count against the limit as are valid or wait to be freed."
    14 LeafCount "leaf-count" "The counts of leaves are the numbers of leaves."
    15 IndirectCount "indirect-count" "The count of pages that follow tables is the number of valid ones."
    16 UnsyncCount "unsync-count" "The count of pages out of step is the number of them."
    17 NonpresentValue "nonpresent-value" "What is not present is empty or an MMIO entry."
    18 RootRoleMismatch "root-role-mismatch" "The root in use has the role that the vCPU's MMU wants, or each of its four parts has."
    19 WaitingPage "waiting-page" "A page that is invalid waits for a vCPU that has it as a root, has no parent and maps nothing."
    20 SamePageTwice "same-page-twice" "No two valid pages have the same frame and role."
    21 NxPages "nx-pages" "The pages that could become huge again are those that are remembered, direct and counted."
}

/// What a violation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShadowPlace {
    /// An entry.
    Entry(SpteRef),
    /// A page.
    Page(PageId),
    /// A frame at a level.
    Frame(AsId, Level, Gfn),
    /// All pages.
    Everything,
    /// The vCPU with this number among those that were given.
    Vcpu(usize),
}

/// A violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowViolation {
    /// What is violated.
    pub code: ShadowCode,
    /// Where.
    pub place: ShadowPlace,
}

impl fmt::Display for ShadowViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.code)?;
        match self.place {
            ShadowPlace::Entry(at) => write!(f, "entry {} of sp {}", at.index, at.page.raw()),
            ShadowPlace::Page(page) => write!(f, "sp {}", page.raw()),
            ShadowPlace::Frame(as_id, level, gfn) => {
                let (as_id, level) = (as_id.index(), level as u8);
                write!(f, "as id {as_id} {gfn} level {level}")
            }
            ShadowPlace::Everything => f.write_str("all pages"),
            ShadowPlace::Vcpu(number) => write!(f, "vCPU {number}"),
        }
    }
}

impl<F: Format> ShadowMmu<F> {
    /// Audits all pages, and the roots that vCPUs use.
    ///
    /// ```
    /// use slat_mmu::{host::Host, roots::TdpMmu, shadow::ShadowMmu, spte::Npt};
    /// let mmu = ShadowMmu::<Npt>::new(&Host::shadow(40), TdpMmu::Off);
    /// assert_eq!(mmu.audit(&[]), []);
    /// ```
    pub fn audit(&self, vcpus: &[&Roots]) -> Vec<ShadowViolation> {
        let mut audit = check::Audit::new(self);
        audit.everything();
        for (number, vcpu) in vcpus.iter().enumerate() {
            let differs = vcpu.mmu.check(&self.roots).is_err() || self.quarter_differs(vcpu);
            if differs && !self.is_asked_to_leave(vcpu) {
                audit.add(ShadowCode::RootRoleMismatch, ShadowPlace::Vcpu(number));
            }
        }
        audit.violations
    }

    /// Whether a page behind one of a vCPU's four pointers has another role than the vCPU's MMU wants, but for its place: what
    /// KVM could not ask, since such a root is no page of its own.
    fn quarter_differs(&self, vcpu: &Roots) -> bool {
        let Some(ShadowRoot::Pae(pae)) = vcpu.current(self) else {
            return false;
        };
        let wanted = vcpu.mmu.role().with_level(Level::L2);
        let role = |page| Some(self.role_of(page)?.with_quadrant(Quadrant::Q0));
        pae.pages().any(|page| role(page) != Some(wanted))
    }

    /// An invalid root may stay until the vCPU has served the request to drop it.
    fn is_asked_to_leave(&self, vcpu: &Roots) -> bool {
        use crate::roots::Request::FreeObsoleteRoots;
        vcpu.mmu.requests().contains(FreeObsoleteRoots) || self.requests.contains(FreeObsoleteRoots)
    }
}
