//! The rules that hold at rest.

use std::collections::BTreeMap;

use slat_memslot::{Attributes, Gfn, GfnRange, Memory, PageSize, Pages};
use slat_mmu::spte::Pfn;

use super::SnpViolation;
use crate::rmp::{Asid, PageState, Rmp, RmpEntry, RmpSize};
use crate::snp::frames::Frames;

/// A leaf of the nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leaf {
    /// The first guest frame.
    pub gfn: Gfn,
    /// The first frame.
    pub pfn: Pfn,
    /// Its size.
    pub size: PageSize,
}

/// A guest and its host, as an auditor sees them.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// The reverse map.
    pub rmp: &'a Rmp,
    /// The guest.
    pub asid: Asid,
    /// Its slots and attributes.
    pub memory: &'a Memory,
    /// The host's frames.
    pub frames: &'a Frames,
    /// The leaves of all its tables.
    pub leaves: &'a [Leaf],
    /// The pages of its files, by the guest frame that they are behind now.
    pub file: &'a BTreeMap<Gfn, Pfn>,
    /// The pages of its files, with the guest frame that each was prepared for.
    pub owned: &'a BTreeMap<Pfn, Gfn>,
    /// The pages of its host memory, by guest frame.
    pub shared: &'a BTreeMap<Gfn, Pfn>,
    /// Pages of KVM's own that vCPUs run on. They are in no file, and all at one guest frame (`INITIAL_VMSA_GPA`).
    pub vmsas: &'a [Pfn],
}

impl Observed<'_> {
    /// All violations.
    pub fn audit(&self) -> Vec<SnpViolation> {
        let mut found = self.audit_frames();
        for leaf in self.leaves {
            self.leaf(leaf, &mut found);
        }
        self.owners(&mut found);
        found
    }

    /// Those that neither attributes nor files are needed for: N04 to N07, N13 to N15.
    pub fn audit_frames(&self) -> Vec<SnpViolation> {
        let mut found = Vec::new();
        self.entries(&mut found);
        self.free(&mut found);
        self.direct_map(&mut found);
        found
    }

    fn leaf(&self, leaf: &Leaf, found: &mut Vec<SnpViolation>) {
        let Leaf { gfn, pfn, size } = *leaf;
        let Some(range) = GfnRange::new(gfn, size.pages()) else {
            return;
        };
        let Some(attributes) = self.memory.attributes().uniform(range) else {
            found.push(SnpViolation::MixedHuge(gfn));
            return;
        };
        let private = attributes.contains(Attributes::PRIVATE);
        let is_file = self.file.get(&gfn) == Some(&pfn);
        let is_shared = self.shared.get(&gfn) == Some(&pfn);
        match (private, is_file, is_shared) {
            (true, true, _) => self.private(leaf, found),
            (false, _, true) => self.shared(leaf, found),
            (true, false, true) | (false, true, false) => found.push(SnpViolation::WrongKind(gfn)),
            _ => found.push(SnpViolation::WrongPage { gfn, pfn }),
        }
    }

    fn private(&self, leaf: &Leaf, found: &mut Vec<SnpViolation>) {
        let Leaf { gfn, pfn, size } = *leaf;
        let entry = self.rmp.entry(pfn);
        if !entry.assigned || entry.asid != self.asid || entry.gfn != gfn {
            found.push(SnpViolation::NotAssigned { gfn, pfn, entry });
        } else if RmpSize::of(size) > entry.size {
            let entry = entry.size;
            let leaf = size;
            found.push(SnpViolation::LargerThanEntry { gfn, leaf, entry });
        }
    }

    fn shared(&self, leaf: &Leaf, found: &mut Vec<SnpViolation>) {
        let frames = leaf.pfn.raw()..leaf.pfn.raw() + leaf.size.pages().raw();
        for pfn in frames.map(Pfn::new) {
            if self.rmp.entry(pfn).assigned {
                let gfn = leaf.gfn;
                found.push(SnpViolation::SharedAssigned { gfn, pfn });
            }
        }
    }

    /// The reverse map by itself.
    fn entries(&self, found: &mut Vec<SnpViolation>) {
        let mut owners = BTreeMap::new();
        for (pfn, entry) in self.rmp.assigned() {
            self.entry(pfn, &entry, found);
            if entry.asid.is_host() || self.vmsas.contains(&pfn) {
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

    fn entry(&self, pfn: Pfn, entry: &RmpEntry, found: &mut Vec<SnpViolation>) {
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
    }

    fn free(&self, found: &mut Vec<SnpViolation>) {
        for pfn in self.frames.freed() {
            let state = self.rmp.entry(*pfn).state();
            if state != PageState::Hypervisor {
                found.push(SnpViolation::FreeNotHypervisor(*pfn, state));
            }
        }
        let oopses = self.frames.oopses().iter();
        found.extend(oopses.map(|(pfn, fault)| SnpViolation::Oops(*pfn, *fault)));
        let immutable = self.frames.immutable().iter();
        found.extend(immutable.map(|pfn| SnpViolation::ImmutableTouched(*pfn)));
    }

    /// Where a whole region is assigned the host writes nothing there, however it maps it: after PSMASH it is not split yet.
    fn direct_map(&self, found: &mut Vec<SnpViolation>) {
        let mut small: BTreeMap<u64, (Pfn, u64)> = BTreeMap::new();
        for (pfn, entry) in self.rmp.assigned() {
            if entry.size == RmpSize::Size4K {
                let region = pfn.raw() / RmpSize::Size2M.pages();
                small.entry(region).or_insert((pfn, 0)).1 += 1;
            }
        }
        for (first, count) in small.into_values() {
            let whole = self.frames.direct_map_size(first) > PageSize::Size4K;
            if whole && count < RmpSize::Size2M.pages() {
                found.push(SnpViolation::DirectMapNotSplit(first));
            }
        }
    }

    /// What is assigned to this guest has come from its files.
    fn owners(&self, found: &mut Vec<SnpViolation>) {
        for (first, entry) in self.rmp.assigned() {
            if entry.asid != self.asid || self.vmsas.contains(&first) {
                continue;
            }
            for index in 0..entry.size.pages() {
                let pfn = Pfn::new(first.raw() + index);
                let gfn = entry.gfn + Pages::new(index);
                if self.owned.get(&pfn) != Some(&gfn) {
                    found.push(SnpViolation::NotInFile { pfn, gfn });
                }
            }
        }
    }
}
