//! Whether reverse map, nested tables, attributes and file agree.
//!
//! To be asked while nothing is under way. Each rule has a code:
//!
//! | code | rule |
//! |---|---|
//! | N01 | a private leaf's frame is assigned, to this guest, at this guest frame |
//! | N02 | no frame of a shared leaf is assigned |
//! | N03 | no private leaf is larger than the entry of its frame |
//! | N04 | no two frames are the same guest frame of the same guest, but for the VMSAs of KVM's own vCPUs |
//! | N05 | where a region's head is of 2 MiB, no tail is assigned |
//! | N06 | what is validated belongs to a guest |
//! | N07 | a frame that nobody has is the hypervisor's |
//! | N08 | a private leaf's frame is the file's, at this guest frame; a shared leaf's is not the file's |
//! | N09 | a leaf's kind is what the attribute says |
//! | N10 | no leaf is huge where attributes differ |
//! | N11 | what is assigned to this guest is in a file of its, or a VMSA |
//! | N12 | a VMSA is of 4 KiB, validated, and not at a guest frame that is a multiple of 512 |
//! | N13 | the host has not faulted |
//! | N14 | the host does not map 2 MiB as a whole of which it may write one page and not another |
//! | N15 | the host has not tried to change an immutable entry, which firmware has to reclaim first |
//! | N16 | a frame became the hypervisor's after it was unmapped, and after TLBs were flushed |
//! | N17 | a private leaf came after its frame was assigned |
//!
//! The last two are about the order in which things happen, and need somebody who tells it: [`Order`](super::Order).
//! [`Observed`] has the others, for any VM that can show its leaves, files and frames; [`SnpVm::audit`] is that of this crate's.

mod observed;
mod violation;

use std::collections::BTreeMap;

use slat_memslot::{Gfn, PageSize};
use slat_mmu::spte::Pfn;
use slat_mmu::tdp::Unobserved;

pub use observed::{Leaf, Observed};
pub use violation::{Reach, SnpViolation};

use super::vm::SnpVm;
use crate::sync::{lock, read};

impl SnpVm {
    /// All violations. Under the proposal of 2021 there are neither attributes nor a file, and a page's kind is what the
    /// reverse map says: only the rules about frames remain (N04 to N07, N13 to N15).
    pub fn audit(&self) -> Vec<SnpViolation> {
        let leaves = self.leaves();
        let file: BTreeMap<Gfn, Pfn> = lock(&self.file).frames().collect();
        let owned = file.iter().map(|(gfn, pfn)| (*pfn, *gfn)).collect();
        let shared = lock(&self.shared).clone();
        let observed = Observed {
            rmp: &self.rmp,
            asid: self.settings.asid,
            memory: &read(&self.memory),
            frames: &lock(&self.frames),
            leaves: &leaves,
            file: &file,
            owned: &owned,
            shared: &shared,
            vmsas: &[],
        };
        match self.settings.policy.has_file() {
            true => observed.audit(),
            false => observed.audit_frames(),
        }
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
}
