//! The audit of shadow pages: all violations of what has to hold of them, each with a stable code and its place.
//!
//! - `S01 leaf-not-listed`: A leaf is in the list of its frame and level, once.
//! - `S02 stale-list-entry`: What is in a frame's list is a leaf of that frame and level.
//! - `S03 parent-not-listed`: A link is among the parents of the page that it leads to, once.
//! - `S04 stale-parent`: A page's parents are links to it.
//! - `S05 dangling-link`: A link leads to a page that exists, one level down, and is valid if its own page is.
//! - `S06 linear-gfn`: A direct page that a direct page links begins at the entry's frame.
//! - `S07 track-count`: A frame is tracked as often as valid pages above the last level follow a table in it.
//! - `S08 writable-table`: No leaf maps a followed table so that it could be written to without asking, unless all pages that
//!   follow it are out of step.
//! - `S09 huge-count`: Each valid page that follows a table is one reason against huge pages around the table.
//! - `S10 unsync-page`: Only pages of the last level that follow tables are out of step.
//! - `S11 unsync-marks`: The pages above one that is out of step know of it.
//! - `S12 active-pages`: The active pages are the valid ones, the newest first.
//! - `S13 used-count`: As many pages count against the limit as are valid or wait to be freed.
//! - `S14 leaf-count`: The counts of leaves are the numbers of leaves.
//! - `S15 indirect-count`: The count of pages that follow tables is the number of valid ones.
//! - `S16 unsync-count`: The count of pages out of step is the number of them.
//! - `S17 nonpresent-value`: What is not present is empty or an MMIO entry.
//! - `S18 root-role-mismatch`: The root in use has the role that the vCPU's MMU wants, or each of its four parts has.
//! - `S19 waiting-page`: A page that is invalid waits for a vCPU that has it as a root, has no parent and maps nothing.
//! - `S20 same-page-twice`: No two valid pages have the same frame and role.
//! - `S21 nx-pages`: The pages that could become huge again are those that are remembered, direct and counted.
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

/// What is violated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the module says what each one means")]
pub enum ShadowCode {
    LeafNotListed = 1,
    StaleListEntry,
    ParentNotListed,
    StaleParent,
    DanglingLink,
    LinearGfn,
    TrackCount,
    WritableTable,
    HugeCount,
    UnsyncPage,
    UnsyncMarks,
    ActivePages,
    UsedCount,
    LeafCount,
    IndirectCount,
    UnsyncCount,
    NonpresentValue,
    RootRoleMismatch,
    WaitingPage,
    SamePageTwice,
    NxPages,
}

impl ShadowCode {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::LeafNotListed,
        Self::StaleListEntry,
        Self::ParentNotListed,
        Self::StaleParent,
        Self::DanglingLink,
        Self::LinearGfn,
        Self::TrackCount,
        Self::WritableTable,
        Self::HugeCount,
        Self::UnsyncPage,
        Self::UnsyncMarks,
        Self::ActivePages,
        Self::UsedCount,
        Self::LeafCount,
        Self::IndirectCount,
        Self::UnsyncCount,
        Self::NonpresentValue,
        Self::RootRoleMismatch,
        Self::WaitingPage,
        Self::SamePageTwice,
        Self::NxPages,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeafNotListed => "leaf-not-listed",
            Self::StaleListEntry => "stale-list-entry",
            Self::ParentNotListed => "parent-not-listed",
            Self::StaleParent => "stale-parent",
            Self::DanglingLink => "dangling-link",
            Self::LinearGfn => "linear-gfn",
            Self::TrackCount => "track-count",
            Self::WritableTable => "writable-table",
            Self::HugeCount => "huge-count",
            Self::UnsyncPage => "unsync-page",
            Self::UnsyncMarks => "unsync-marks",
            Self::ActivePages => "active-pages",
            Self::UsedCount => "used-count",
            Self::LeafCount => "leaf-count",
            Self::IndirectCount => "indirect-count",
            Self::UnsyncCount => "unsync-count",
            Self::NonpresentValue => "nonpresent-value",
            Self::RootRoleMismatch => "root-role-mismatch",
            Self::WaitingPage => "waiting-page",
            Self::SamePageTwice => "same-page-twice",
            Self::NxPages => "nx-pages",
        }
    }
}

impl fmt::Display for ShadowCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S{:02} {}", *self as u8, self.name())
    }
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
