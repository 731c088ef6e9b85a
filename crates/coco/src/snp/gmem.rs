//! guest_memfd: its folios, and what SNP adds when a page is prepared for the guest, mapped, and given back.
//!
//! A private page of a file goes through three states: none; prepared, when its frame is assigned in the reverse map; mapped.
//! A zap takes it back to prepared, freeing its folio back to none. Assigned without being mapped is right; mapped without
//! being assigned is not.

use std::collections::BTreeMap;

use slat_memslot::{Gfn, GfnRange, PageSize};
use slat_mmu::spte::Pfn;
use thiserror::Error;

use crate::rmp::{Asid, NotPermitted, PsmashError, Rmp, RmpSize, RmpState, RmpupdateError};
use crate::sync::spin;

/// Why a page cannot be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum PrepareError {
    /// The reverse map has no entry for it (`ENOENT`).
    #[error("{0:?} has no entry")]
    NoEntry(Pfn),
    /// RMPUPDATE failed (`EINVAL`).
    #[error("{0:?}: {1}")]
    Update(Pfn, RmpupdateError),
}

/// What preparing a page did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prepared {
    /// Nothing: the page is assigned already. It is neither cleared nor updated.
    Already,
    /// It is assigned now, in an entry of this size.
    Assigned(RmpSize),
}

/// What giving pages back did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Invalidated {
    /// Entries of 2 MiB that were taken apart.
    pub smashed: u64,
    /// Entries of 2 MiB that became the hypervisor's.
    pub huge: u64,
    /// Entries of 4 KiB that did.
    pub small: u64,
    /// Pages that could not be given back, and must never be used again (`snp_leak_pages`).
    pub leaked: u64,
    /// Those of them whose entries are immutable: they should have been reclaimed first.
    pub immutable: u64,
}

/// How often an instruction is tried while somebody else is at the entry.
const PATIENCE: u32 = 1 << 20;

/// RMPUPDATE until it succeeds, or fails for good (`rmpupdate`). Linux tries again whatever overlaps; here an overlap that
/// will not go away ends it.
///
/// # Errors
/// As [`Rmp::rmpupdate`].
pub fn rmpupdate(rmp: &Rmp, pfn: Pfn, state: &RmpState) -> Result<(), RmpupdateError> {
    for _ in 0..PATIENCE {
        match rmp.rmpupdate(pfn, state) {
            Err(error) if error.is_transient() => spin(),
            done => return done,
        }
    }
    rmp.rmpupdate(pfn, state)
}

/// PSMASH of the 2 MiB around a frame until nobody else is at it (`snp_rmptable_psmash`).
///
/// # Errors
/// As [`Rmp::psmash`].
pub fn psmash(rmp: &Rmp, pfn: Pfn) -> Result<(), PsmashError> {
    let head = Pfn::new(pfn.raw() & !(RmpSize::Size2M.pages() - 1));
    for _ in 0..PATIENCE {
        match rmp.psmash(head) {
            Err(PsmashError::InUse) => spin(),
            done => return done,
        }
    }
    rmp.psmash(head)
}

/// Assigns a page of a folio to a guest, before it is mapped (`sev_gmem_prepare`): in 2 MiB if the folio is that large and
/// nothing of it is assigned.
///
/// # Errors
/// The reverse map does not let it.
pub fn gmem_prepare(
    rmp: &Rmp,
    asid: Asid,
    gfn: Gfn,
    pfn: Pfn,
    folio: RmpSize,
) -> Result<Prepared, PrepareError> {
    if !rmp.covers(pfn) {
        return Err(PrepareError::NoEntry(pfn));
    }
    if rmp.entry(pfn).assigned {
        return Ok(Prepared::Already);
    }
    let size = prepared_size(rmp, pfn, folio);
    let first = |frame: u64| frame & !(size.pages() - 1);
    let state = RmpState::private(asid, Gfn::new(first(gfn.raw())), size);
    let at = Pfn::new(first(pfn.raw()));
    rmpupdate(rmp, at, &state).map_err(|error| PrepareError::Update(at, error))?;
    Ok(Prepared::Assigned(size))
}

/// The size that a page of a folio is assigned in.
pub fn prepared_size(rmp: &Rmp, pfn: Pfn, folio: RmpSize) -> RmpSize {
    match folio {
        RmpSize::Size2M if !rmp.any_assigned(pfn) => RmpSize::Size2M,
        _ => RmpSize::Size4K,
    }
}

/// Gives frames back to the hypervisor before they are freed (`sev_gmem_invalidate`).
///
/// KVM looks at each frame's own entry, and can find the frames inside an entry of 2 MiB only because hardware shows them as
/// assigned too. Here the entry that decides is asked.
pub fn gmem_invalidate(rmp: &Rmp, start: Pfn, end: Pfn) -> Invalidated {
    let mut done = Invalidated::default();
    let mut frame = start.raw();
    while frame < end.raw() {
        let (pfn, pages) = (Pfn::new(frame), RmpSize::Size2M.pages());
        let entry = rmp.entry(pfn);
        if !entry.assigned {
            frame += 1;
            continue;
        }
        let huge = entry.size == RmpSize::Size2M;
        let whole = huge && frame % pages == 0 && end.raw() >= frame + pages;
        if huge && !whole && psmash(rmp, pfn).is_ok() {
            done.smashed += 1;
        }
        let size = if whole {
            RmpSize::Size2M
        } else {
            RmpSize::Size4K
        };
        match (rmpupdate(rmp, pfn, &RmpState::shared(size)), size) {
            (Ok(()), RmpSize::Size2M) => done.huge += 1,
            (Ok(()), RmpSize::Size4K) => done.small += 1,
            (Err(error), _) => {
                done.leaked += size.pages();
                if error == RmpupdateError::Permission(NotPermitted::Immutable) {
                    done.immutable += size.pages();
                }
            }
        }
        frame += size.pages();
    }
    done
}

/// The largest leaf that may map a private frame (`sev_private_max_mapping_level`): never larger than its entry.
pub fn private_max_mapping_level(rmp: &Rmp, pfn: Pfn) -> PageSize {
    let entry = rmp.entry(pfn);
    match entry.assigned {
        true => entry.size.page_size(),
        false => PageSize::Size4K,
    }
}

/// Frames of a file that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Folio {
    pub(super) pfn: Pfn,
    pub(super) size: RmpSize,
    /// Whether it was prepared. It stays so until the folio is freed, whatever the attributes say.
    pub(super) prepared: bool,
}

/// The folios of a file, by the guest frame they are behind.
#[derive(Debug, Default)]
pub(super) struct File {
    folios: BTreeMap<Gfn, Folio>,
}

impl File {
    /// The folio that holds a frame, and its first frame.
    pub(super) fn folio(&self, gfn: Gfn) -> Option<(Gfn, Folio)> {
        let (first, folio) = self.folios.range(..=gfn).next_back()?;
        let inside = gfn.raw() - first.raw() < folio.size.pages();
        inside.then_some((*first, *folio))
    }

    /// The frame behind a guest frame.
    pub(super) fn pfn(&self, gfn: Gfn) -> Option<Pfn> {
        let (first, folio) = self.folio(gfn)?;
        Some(Pfn::new(folio.pfn.raw() + (gfn - first).raw()))
    }

    pub(super) fn insert(&mut self, first: Gfn, folio: Folio) {
        self.folios.insert(first, folio);
    }

    /// Whether nothing is in a range.
    pub(super) fn is_empty(&self, range: GfnRange) -> bool {
        self.folio(range.start()).is_none()
            && self
                .folios
                .range(range.start()..range.end())
                .next()
                .is_none()
    }

    /// The folio that begins at a frame is prepared now.
    pub(super) fn set_prepared(&mut self, first: Gfn) {
        if let Some(folio) = self.folios.get_mut(&first) {
            folio.prepared = true;
        }
    }

    /// Takes the frames of a range out. Folios that reach beyond it are taken apart.
    pub(super) fn take(&mut self, range: GfnRange) -> Vec<(Gfn, Pfn, u64)> {
        for edge in [range.start(), range.end()] {
            self.split_around(edge);
        }
        let firsts: Vec<Gfn> = self
            .folios
            .range(range.start()..range.end())
            .map(|(first, _)| *first)
            .collect();
        let taken = firsts.iter().filter_map(|first| {
            let folio = self.folios.remove(first)?;
            Some((*first, folio.pfn, folio.size.pages()))
        });
        taken.collect()
    }

    fn split_around(&mut self, edge: Gfn) {
        let Some((first, folio)) = self.folio(edge).filter(|(first, _)| *first != edge) else {
            return;
        };
        for index in 0..folio.size.pages() {
            let part = Folio {
                pfn: Pfn::new(folio.pfn.raw() + index),
                size: RmpSize::Size4K,
                ..folio
            };
            self.folios.insert(Gfn::new(first.raw() + index), part);
        }
    }

    /// All frames, ascending.
    pub(super) fn frames(&self) -> impl Iterator<Item = (Gfn, Pfn)> + '_ {
        self.folios.iter().flat_map(|(first, folio)| {
            let pages = 0..folio.size.pages();
            pages.map(|index| {
                let gfn = Gfn::new(first.raw() + index);
                (gfn, Pfn::new(folio.pfn.raw() + index))
            })
        })
    }
}
