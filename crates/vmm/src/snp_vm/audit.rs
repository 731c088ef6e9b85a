//! Whether everything agrees: what the auditor of `slat-coco` is shown of a whole VM.

use std::collections::BTreeMap;

use slat_coco::snp::{Act, Leaf, Observed, SnpViolation};
use slat_memslot::{AsId, Gfn, GfnRange, Level, PageSize};
use slat_mmu::spte::{Entry, Format, Pfn, Spte};
use slat_mmu::tdp::Unobserved;

use super::Snp;
use crate::tdp_vm::TdpVm;
use crate::traces::Predicted;

impl<F: Format> TdpVm<F> {
    /// What the VM has beside its tables, if it is an SNP guest.
    pub fn snp(&self) -> Option<&Snp> {
        self.snp.as_deref()
    }

    /// All violations of SNP's rules; none for a VM of another type.
    pub fn audit_snp(&mut self) -> Vec<SnpViolation> {
        self.hear();
        let leaves = self.snp_leaves();
        let Some(snp) = &self.snp else {
            return Vec::new();
        };
        let mut owned: BTreeMap<Pfn, Gfn> = snp
            .files
            .values()
            .map(|page| (page.pfn, page.gfn))
            .collect();
        owned.extend(&snp.leaked);
        let (file, shared) = self.pages_behind(&leaves);
        let observed = Observed {
            rmp: &snp.rmp,
            asid: snp.asid,
            memory: &self.memory,
            frames: &snp.frames,
            leaves: &leaves,
            file: &file,
            owned: &owned,
            shared: &shared,
            vmsas: &snp.own_vmsas(),
        };
        let mut found = observed.audit();
        found.extend_from_slice(snp.order.found());
        found
    }

    fn snp_leaves(&mut self) -> Vec<Leaf> {
        let mut leaves = Vec::new();
        let space = self.memory.space(AsId::NORMAL);
        let ranges: Vec<GfnRange> = space.iter().map(slat_memslot::Slot::range).collect();
        let locked = self.tables.shared(&mut self.reader, Unobserved);
        for (root, _) in self.tables.roots().iter() {
            let Some(table) = self.tables.roots().payload(root) else {
                continue;
            };
            for range in &ranges {
                let mut gfn = range.start();
                while gfn < range.end() {
                    let found = locked.find(table, gfn);
                    let first = gfn.round_down(found.level);
                    if found.spte.is_leaf(found.level) {
                        leaves.push(Leaf {
                            gfn: first,
                            pfn: self.tables.codec().pfn(found.spte),
                            size: size_of(found.level),
                        });
                    }
                    gfn = first + found.level.pages();
                }
            }
        }
        leaves
    }

    /// The pages that should be behind the frames of leaves: of files, and of host memory.
    fn pages_behind(&self, leaves: &[Leaf]) -> (BTreeMap<Gfn, Pfn>, BTreeMap<Gfn, Pfn>) {
        let (mut file, mut shared) = (BTreeMap::new(), BTreeMap::new());
        for leaf in leaves {
            file.extend(self.private_page(leaf.gfn).map(|pfn| (leaf.gfn, pfn)));
            let slot = self.memory.space(AsId::NORMAL).by_gfn(leaf.gfn);
            let hva = slot.and_then(|slot| slot.hva_of(leaf.gfn));
            let page = hva.and_then(|hva| self.host.page_at(hva));
            shared.extend(page.map(|(pfn, ..)| (leaf.gfn, Pfn::new(pfn))));
        }
        (file, shared)
    }

    /// The order of things hears what has happened to leaves since it last did.
    pub(crate) fn hear(&mut self) {
        let Some(snp) = &mut self.snp else { return };
        for event in self.out.events.iter().skip(snp.heard) {
            let Predicted::SpteChanged {
                level, old, new, ..
            } = *event
            else {
                continue;
            };
            let leaf = |raw| match self.tables.codec().decode(Spte::<F>::from_raw(raw), level) {
                Entry::Leaf(leaf) => Some((leaf.pfn, level.pages().raw())),
                _ => None,
            };
            let (before, after) = (leaf(old), leaf(new));
            if before == after {
                continue;
            }
            if let Some((pfn, pages)) = before {
                snp.order.act(&snp.rmp, Act::Unmapped { pfn, pages });
            }
            if let Some((pfn, pages)) = after {
                let private = snp.is_private_frame(pfn);
                let mapped = Act::Mapped {
                    pfn,
                    pages,
                    private,
                };
                snp.order.act(&snp.rmp, mapped);
            }
        }
        snp.heard = self.out.events.len();
    }

    /// The events that were heard are taken.
    pub(crate) fn forget_heard(&mut self) {
        self.hear();
        if let Some(snp) = &mut self.snp {
            snp.heard = 0;
        }
    }

    /// KVM has flushed TLBs.
    pub(crate) fn flushed(&mut self) {
        self.hear();
        if let Some(snp) = &mut self.snp {
            snp.order.act(&snp.rmp, Act::Flushed);
        }
    }
}

const fn size_of(level: Level) -> PageSize {
    match level {
        Level::L1 => PageSize::Size4K,
        Level::L2 => PageSize::Size2M,
        Level::L3 | Level::L4 | Level::L5 => PageSize::Size1G,
    }
}
