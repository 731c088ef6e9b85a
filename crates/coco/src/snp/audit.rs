//! Whether reverse map, nested tables, attributes and file agree.
//!
//! To be asked while nothing is under way. Each rule has a code:
//!
//! | code | rule |
//! |---|---|
//! | N01 | a private leaf's frame is assigned, to this guest, at this guest frame |
//! | N02 | no frame of a shared leaf is assigned |
//! | N03 | no private leaf is larger than the entry of its frame |
//! | N04 | no two frames are the same guest frame of the same guest |
//! | N05 | where a region's head is of 2 MiB, no tail is assigned |
//! | N06 | what is validated belongs to a guest |
//! | N07 | a frame that nobody has is the hypervisor's |
//! | N08 | a private leaf's frame is the file's, at this guest frame; a shared leaf's is not the file's |
//! | N09 | a leaf's kind is what the attribute says |
//! | N10 | no leaf is huge where attributes differ |
//! | N11 | what is assigned to this guest is in its file |
//! | N12 | a VMSA is of 4 KiB, validated, and not at a guest frame that is a multiple of 512 |
//! | N13 | the host has not faulted |
//!
//! Not checked here: that TLBs are flushed before a page becomes the hypervisor's (there are none), and that the host's own
//! huge mappings are split (it has none).

use std::collections::BTreeMap;

use slat_memslot::{Gfn, GfnRange, PageSize, Pages};
use slat_mmu::spte::Pfn;
use slat_mmu::tdp::Unobserved;
use thiserror::Error;

use super::vm::SnpVm;
use crate::rmp::{Asid, Fault, PageState, RmpEntry, RmpSize};
use crate::sync::{lock, read};

/// A rule that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum SnpViolation {
    /// N01.
    #[error("N01 private leaf of {gfn:?} maps {pfn:?}, whose entry is {entry:?}")]
    NotAssigned {
        /// The guest frame.
        gfn: Gfn,
        /// The frame.
        pfn: Pfn,
        /// Its entry.
        entry: RmpEntry,
    },
    /// N02.
    #[error("N02 shared leaf of {gfn:?} maps {pfn:?}, which is assigned")]
    SharedAssigned {
        /// The guest frame.
        gfn: Gfn,
        /// The frame.
        pfn: Pfn,
    },
    /// N03.
    #[error("N03 leaf of {gfn:?} is of {leaf}, the entry of its frame of {entry}")]
    LargerThanEntry {
        /// The guest frame.
        gfn: Gfn,
        /// Size of the leaf.
        leaf: PageSize,
        /// Size of the entry.
        entry: RmpSize,
    },
    /// N04.
    #[error("N04 {first:?} and {second:?} are both {gfn:?} of ASID {asid}")]
    Twice {
        /// The guest.
        asid: Asid,
        /// The guest frame.
        gfn: Gfn,
        /// One frame.
        first: Pfn,
        /// The other.
        second: Pfn,
    },
    /// N05.
    #[error("N05 {0:?} is assigned under a head of 2M")]
    TailAssigned(Pfn),
    /// N06.
    #[error("N06 {0:?} is validated, and no guest's")]
    ValidatedByNobody(Pfn),
    /// N07.
    #[error("N07 {0:?} is free, and {1:?}")]
    FreeNotHypervisor(Pfn, PageState),
    /// N08.
    #[error("N08 leaf of {gfn:?} maps {pfn:?}, which is the wrong page")]
    WrongPage {
        /// The guest frame.
        gfn: Gfn,
        /// The frame.
        pfn: Pfn,
    },
    /// N09.
    #[error("N09 {0:?} is mapped as what its attribute does not say")]
    WrongKind(Gfn),
    /// N10.
    #[error("N10 the huge leaf of {0:?} covers private and shared frames")]
    MixedHuge(Gfn),
    /// N11.
    #[error("N11 {pfn:?} is assigned as {gfn:?}, and not in the file")]
    NotInFile {
        /// The frame.
        pfn: Pfn,
        /// The guest frame.
        gfn: Gfn,
    },
    /// N12.
    #[error("N12 the VMSA in {0:?} is huge, not validated, or at a multiple of 2M")]
    BadVmsa(Pfn),
    /// N13.
    #[error("N13 the host faulted at {0:?}: {1}")]
    Oops(Pfn, Fault),
}

impl SnpViolation {
    /// The rule's code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotAssigned { .. } => "N01",
            Self::SharedAssigned { .. } => "N02",
            Self::LargerThanEntry { .. } => "N03",
            Self::Twice { .. } => "N04",
            Self::TailAssigned(_) => "N05",
            Self::ValidatedByNobody(_) => "N06",
            Self::FreeNotHypervisor(..) => "N07",
            Self::WrongPage { .. } => "N08",
            Self::WrongKind(_) => "N09",
            Self::MixedHuge(_) => "N10",
            Self::NotInFile { .. } => "N11",
            Self::BadVmsa(_) => "N12",
            Self::Oops(..) => "N13",
        }
    }

    /// All codes.
    pub const CODES: [&'static str; 13] = [
        "N01", "N02", "N03", "N04", "N05", "N06", "N07", "N08", "N09", "N10", "N11", "N12", "N13",
    ];
}

/// A leaf of the nested tables.
struct Leaf {
    gfn: Gfn,
    pfn: Pfn,
    size: PageSize,
}

impl SnpVm {
    /// All violations. Under the proposal of 2021 there are neither attributes nor a file, and a page's kind is what the
    /// reverse map says: only the rules about frames remain (N04 to N07, N13).
    pub fn audit(&self) -> Vec<SnpViolation> {
        let mut found = Vec::new();
        self.audit_entries(&mut found);
        self.audit_free(&mut found);
        if self.settings.policy.has_file() {
            for leaf in self.leaves() {
                self.audit_leaf(&leaf, &mut found);
            }
            self.audit_file(&mut found);
        }
        found
    }

    fn leaves(&self) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        let mmu = read(&self.mmu);
        let Some(mut reader) = mmu.tables.reader() else {
            return leaves;
        };
        for (root, _) in mmu.tables.roots().iter() {
            let Some(table) = mmu.tables.roots().payload(root) else {
                continue;
            };
            let locked = mmu.tables.shared(&mut reader, Unobserved);
            let mut gfn = Gfn::new(0);
            while gfn < self.range().end() {
                let found = locked.find(table, gfn);
                let first = gfn.round_down(found.level);
                if found.spte.is_leaf(found.level) {
                    leaves.push(Leaf {
                        gfn: first,
                        pfn: mmu.tables.codec().pfn(found.spte),
                        size: match found.level {
                            slat_memslot::Level::L1 => PageSize::Size4K,
                            slat_memslot::Level::L2 => PageSize::Size2M,
                            _ => PageSize::Size1G,
                        },
                    });
                }
                gfn = first + found.level.pages();
            }
        }
        leaves
    }

    fn audit_leaf(&self, leaf: &Leaf, found: &mut Vec<SnpViolation>) {
        let Leaf { gfn, pfn, size } = *leaf;
        let Some(range) = GfnRange::new(gfn, size.pages()) else {
            return;
        };
        let memory = read(&self.memory);
        let Some(attributes) = memory.attributes().uniform(range) else {
            found.push(SnpViolation::MixedHuge(gfn));
            return;
        };
        let private = attributes.contains(slat_memslot::Attributes::PRIVATE);
        let file = lock(&self.file).pfn(gfn);
        let is_file = file == Some(pfn);
        let is_shared = lock(&self.shared).get(&gfn) == Some(&pfn);
        match (private, is_file, is_shared) {
            (true, true, _) => self.audit_private(leaf, found),
            (false, _, true) => self.audit_shared(leaf, found),
            (true, false, true) | (false, true, false) => found.push(SnpViolation::WrongKind(gfn)),
            _ => found.push(SnpViolation::WrongPage { gfn, pfn }),
        }
    }

    fn audit_private(&self, leaf: &Leaf, found: &mut Vec<SnpViolation>) {
        let Leaf { gfn, pfn, size } = *leaf;
        let entry = self.rmp.entry(pfn);
        if !entry.assigned || entry.asid != self.settings.asid || entry.gfn != gfn {
            found.push(SnpViolation::NotAssigned { gfn, pfn, entry });
        } else if RmpSize::of(size) > entry.size {
            let entry = entry.size;
            let leaf = size;
            found.push(SnpViolation::LargerThanEntry { gfn, leaf, entry });
        }
    }

    fn audit_shared(&self, leaf: &Leaf, found: &mut Vec<SnpViolation>) {
        let frames = leaf.pfn.raw()..leaf.pfn.raw() + leaf.size.pages().raw();
        for pfn in frames.map(Pfn::new) {
            if self.rmp.entry(pfn).assigned {
                let gfn = leaf.gfn;
                found.push(SnpViolation::SharedAssigned { gfn, pfn });
            }
        }
    }

    /// The reverse map by itself.
    fn audit_entries(&self, found: &mut Vec<SnpViolation>) {
        let mut owners = BTreeMap::new();
        for (pfn, entry) in self.rmp.assigned() {
            if entry.validated && entry.asid.is_host() {
                found.push(SnpViolation::ValidatedByNobody(pfn));
            }
            if entry.size == RmpSize::Size2M {
                let tails = pfn.raw() + 1..pfn.raw() + RmpSize::Size2M.pages();
                let assigned = |pfn: &Pfn| self.rmp.own_entry(*pfn).assigned;
                let tails = tails.map(Pfn::new).filter(assigned);
                found.extend(tails.map(SnpViolation::TailAssigned));
            }
            let unaligned = entry.gfn.raw() % RmpSize::Size2M.pages() != 0;
            let good = entry.size == RmpSize::Size4K && entry.validated && unaligned;
            if entry.vmsa && !good {
                found.push(SnpViolation::BadVmsa(pfn));
            }
            if entry.asid.is_host() {
                continue;
            }
            for index in 0..entry.size.pages() {
                let (asid, gfn) = (entry.asid, entry.gfn + Pages::new(index));
                let second = Pfn::new(pfn.raw() + index);
                if let Some(first) = owners.insert((asid, gfn), second) {
                    found.push(SnpViolation::Twice {
                        asid,
                        gfn,
                        first,
                        second,
                    });
                }
            }
        }
    }

    fn audit_free(&self, found: &mut Vec<SnpViolation>) {
        let frames = lock(&self.frames);
        for pfn in frames.freed() {
            let state = self.rmp.entry(*pfn).state();
            if state != PageState::Hypervisor {
                found.push(SnpViolation::FreeNotHypervisor(*pfn, state));
            }
        }
        let oopses = frames.oopses().iter();
        found.extend(oopses.map(|(pfn, fault)| SnpViolation::Oops(*pfn, *fault)));
    }

    /// What is assigned to this guest has come from its file.
    fn audit_file(&self, found: &mut Vec<SnpViolation>) {
        let file: BTreeMap<Pfn, Gfn> = lock(&self.file)
            .frames()
            .map(|(gfn, pfn)| (pfn, gfn))
            .collect();
        for (first, entry) in self.rmp.assigned() {
            if entry.asid != self.settings.asid {
                continue;
            }
            for index in 0..entry.size.pages() {
                let pfn = Pfn::new(first.raw() + index);
                let gfn = entry.gfn + Pages::new(index);
                if file.get(&pfn) != Some(&gfn) {
                    found.push(SnpViolation::NotInFile { pfn, gfn });
                }
            }
        }
    }
}
