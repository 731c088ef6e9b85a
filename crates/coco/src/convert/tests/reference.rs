//! A VM page by page: what is where, and what a conversion comes to, without ranges.

use std::collections::{BTreeMap, BTreeSet};

use slat_memslot::{AsId, Errno, Gfn, GmemId, Memory, PAGE_SHIFT, Slot};

use crate::convert::{Executor, Step};
use crate::migration::Status;

/// What the pages of a VM hold, and who reaches them. What is not there holds zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct World {
    pub(super) private: BTreeSet<Gfn>,
    /// By page of the host's address space.
    pub(super) shared: BTreeMap<u64, u64>,
    /// By page of a file.
    pub(super) files: BTreeMap<(GmemId, u64), u64>,
    /// Frames that devices reach.
    pub(super) devices: BTreeSet<Gfn>,
}

pub(super) fn host_page(slot: &Slot, gfn: Gfn) -> u64 {
    slot.hva_of(gfn).expect("the slot holds it").raw() >> PAGE_SHIFT
}

pub(super) fn file_page(slot: &Slot, gfn: Gfn) -> Option<(GmemId, u64)> {
    let binding = slot.binding()?;
    let page = binding.first_page + (gfn - slot.range().start()).raw();
    Some((binding.file?, page))
}

impl World {
    pub(super) fn status(&self, gfn: Gfn) -> Status {
        match self.private.contains(&gfn) {
            true => Status::Private,
            false => Status::Shared,
        }
    }

    /// What the guest reads.
    pub(super) fn read(&self, memory: &Memory, gfn: Gfn) -> Option<u64> {
        let slot = memory.space(AsId::NORMAL).by_gfn(gfn)?;
        match self.status(gfn) {
            Status::Shared => self.shared.get(&host_page(slot, gfn)).copied().or(Some(0)),
            Status::Private => {
                let page = file_page(slot, gfn)?;
                self.files.get(&page).copied().or(Some(0))
            }
        }
    }
}

/// Carries steps out page by page, but for those that are made to fail.
pub(super) struct Naive<'a> {
    pub(super) world: World,
    pub(super) memory: &'a Memory,
    /// Which steps fail, by their number from 0, and how.
    pub(super) failing: BTreeMap<usize, Errno>,
    pub(super) tried: Vec<Step>,
}

impl<'a> Naive<'a> {
    pub(super) fn new(world: World, memory: &'a Memory) -> Self {
        Self {
            world,
            memory,
            failing: BTreeMap::new(),
            tried: Vec::new(),
        }
    }
}

impl Executor for Naive<'_> {
    fn carry_out(&mut self, step: &Step) -> Result<(), Errno> {
        self.tried.push(*step);
        if let Some(errno) = self.failing.get(&(self.tried.len() - 1)) {
            return Err(*errno);
        }
        let range = step.range();
        let frames = range.start().raw()..range.end().raw();
        let world = &mut self.world;
        for (page, gfn) in (0..).zip(frames.map(Gfn::new)) {
            let at = self.memory.space(AsId::NORMAL).by_gfn(gfn);
            match step {
                Step::UnmapDma(part) => {
                    assert_eq!(
                        at.map(|slot| host_page(slot, gfn)),
                        Some((part.hva.raw() >> 12) + page)
                    );
                    assert!(
                        world.devices.remove(&gfn),
                        "{gfn} is not mapped for devices"
                    );
                }
                Step::MapDma(_) => assert!(world.devices.insert(gfn), "{gfn} is mapped already"),
                Step::SetAttributes {
                    to: Status::Private,
                    ..
                }
                | Step::Note {
                    to: Status::Private,
                    ..
                } => {
                    world.private.insert(gfn);
                }
                Step::SetAttributes { .. } | Step::Note { .. } => {
                    world.private.remove(&gfn);
                }
                Step::DiscardShared(part) => {
                    world.shared.remove(&((part.hva.raw() >> 12) + page));
                }
                Step::DiscardPrivate { file, offset, .. } => {
                    world.files.remove(&(*file, (offset >> 12) + page));
                }
            }
        }
        Ok(())
    }
}
