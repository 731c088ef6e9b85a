//! A group of walks that look at everything: each reads one entry before any reads the next.

use slat_memslot::Gva;

use super::{Found, LANES};
use crate::walk::format::GuestFormat;
use crate::walk::guest::{Start, Trail, Walk, is_leaf};
use crate::walk::memory::TableMemory;
use crate::walk::mode::PagingMode;
use crate::walk::stage::Stage;
use crate::walk::{ErrorCode, GuestPaging};

impl GuestPaging {
    /// One group, level by level. Walks whose entries change meanwhile come to nothing.
    pub(super) fn careful_group<F, M, S>(
        &self,
        memory: &M,
        stage: &mut S,
        group: &[Gva],
        access: ErrorCode,
        found: &mut [Option<Found<S>>; LANES],
    ) where
        F: GuestFormat,
        M: TableMemory<S::Address> + ?Sized,
        S: Stage,
    {
        let mut lanes: [Lane<S>; LANES] = core::array::from_fn(|_| Lane::default());
        let lanes = &mut lanes[..group.len()];
        let mut under_way = 0;
        for (lane, address) in lanes.iter_mut().zip(group) {
            // Without a table to begin at it is a fault, or a pointer that is absent.
            lane.at = self.start(*address);
            under_way += usize::from(lane.at.is_some());
        }
        while under_way > 0 {
            for (lane, address) in lanes.iter_mut().zip(group) {
                let Some(at) = lane.at else {
                    continue;
                };
                let mut walk = Walk {
                    paging: self,
                    memory,
                    stage: &mut *stage,
                    observer: &mut (),
                    address: *address,
                    access,
                };
                lane.step::<F, M>(&mut walk, at);
                under_way -= usize::from(lane.at.is_none());
            }
        }
        for (found, lane) in found.iter_mut().zip(lanes) {
            *found = lane.found.take();
        }
    }

    /// The table that a walk begins at; none if it does not come that far.
    fn start(&self, address: Gva) -> Option<Start> {
        if !self.is_canonical(address) {
            return None;
        }
        let top = self.mode.top_table()?;
        if self.mode != PagingMode::Pae {
            return Some(Start::at_root(self.root, top));
        }
        let pointer = self.pointers.select(address);
        (pointer & 1 != 0).then(|| Start::at_root(pointer, top))
    }
}

/// One walk of a group.
struct Lane<S: Stage> {
    /// Where it is; nothing once it is over.
    at: Option<Start>,
    trail: Trail<S::Address>,
    found: Option<Found<S>>,
}

impl<S: Stage> Default for Lane<S> {
    fn default() -> Self {
        Self {
            at: None,
            trail: Trail::new(),
            found: None,
        }
    }
}

impl<S: Stage> Lane<S> {
    /// Reads one entry.
    #[inline]
    fn step<F, M>(&mut self, walk: &mut Walk<'_, M, S, ()>, at: Start)
    where
        F: GuestFormat,
        M: TableMemory<S::Address> + ?Sized,
    {
        match walk.advance::<F>(at, &mut self.trail) {
            Ok((entry, bits)) if is_leaf(walk.paging.mode, entry, at.number) => {
                self.at = None;
                let top = walk.paging.mode.top_table().map_or(0, |top| top as u8 - 1);
                let leaf = walk.finish::<F>(top, at.number, entry, bits, &mut self.trail);
                self.found = leaf.transpose();
            }
            Ok((entry, bits)) => self.at = Some(at.down(entry, bits)),
            Err(fault) => (self.at, self.found) = (None, Some(Err(fault))),
        }
    }
}
