//! Many walks at a time: their references to memory overlap.
//!
//! One walk waits for memory at each level. Walks of different addresses need not wait for each other, so that a group
//! takes one level after the other together, and a CPU that executes out of order has many references under way.

use slat_memslot::Gva;

use super::ErrorCode;
use super::fault::WalkFault;
use super::format::{GuestFormat, Paging32, Paging64, PagingEpt};
use super::guest::{Start, Trail, Translation, Walk, is_leaf};
use super::memory::TableMemory;
use super::mode::PagingMode;
use super::paging::GuestPaging;
use super::stage::{Stage, Unnested};

/// Walks that are under way together.
const LANES: usize = 16;

/// What a walk of a group comes to.
type Found<S> = Result<Translation<<S as Stage>::Address>, WalkFault<<S as Stage>::Fault>>;

impl GuestPaging {
    /// Translates many addresses for the same access, and hands each answer to `each`, with the address, in the order of
    /// the addresses.
    ///
    /// The answers are those of [`GuestPaging::translate`]. Entries are marked where `memory` allows it.
    ///
    /// ```
    /// use slat_memslot::Gva;
    /// use slat_mmu::role::VcpuState;
    /// use slat_mmu::walk::{ErrorCode, GuestCpu, GuestPaging};
    /// let paging = GuestPaging::new(&VcpuState::default(), &GuestCpu::new(46));
    /// let mut found = Vec::new();
    /// let addresses = (0..100).map(|page| Gva::new(page << 12));
    /// paging.translate_batch([0_u64; 0].as_slice(), addresses, ErrorCode::READ, |address, answer| {
    ///     found.push((address, answer.map(|to| to.address.raw())));
    /// });
    /// assert_eq!(found[99], (Gva::new(99 << 12), Ok(99 << 12)));
    /// ```
    pub fn translate_batch<M: TableMemory + ?Sized>(
        &self,
        memory: &M,
        addresses: impl IntoIterator<Item = Gva>,
        access: ErrorCode,
        each: impl FnMut(Gva, Found<Unnested>),
    ) {
        self.walk_batch(memory, &mut Unnested, addresses, access, each);
    }

    /// The same through a second stage.
    pub fn walk_batch<M, S>(
        &self,
        memory: &M,
        stage: &mut S,
        addresses: impl IntoIterator<Item = Gva>,
        access: ErrorCode,
        mut each: impl FnMut(Gva, Found<S>),
    ) where
        M: TableMemory<S::Address> + ?Sized,
        S: Stage,
    {
        let access = access & ErrorCode::ACCESS;
        let mut addresses = addresses.into_iter();
        loop {
            let mut group = [Gva::new(0); LANES];
            let mut count = 0;
            for (place, address) in group.iter_mut().zip(addresses.by_ref()) {
                *place = address;
                count += 1;
            }
            let group = &group[..count];
            match self.mode {
                PagingMode::Level4 | PagingMode::Level5 | PagingMode::Pae => {
                    self.group::<Paging64, M, S>(memory, stage, group, access, &mut each);
                }
                PagingMode::Bits32 | PagingMode::Bits32Pse => {
                    self.group::<Paging32, M, S>(memory, stage, group, access, &mut each);
                }
                PagingMode::Ept4 | PagingMode::Ept5 => {
                    self.group::<PagingEpt, M, S>(memory, stage, group, access, &mut each);
                }
                PagingMode::Unpaged => {
                    for address in group {
                        each(
                            *address,
                            self.walk(memory, stage, &mut (), *address, access),
                        );
                    }
                }
            }
            if count < LANES {
                return;
            }
        }
    }

    /// One group, level by level.
    fn group<F, M, S>(
        &self,
        memory: &M,
        stage: &mut S,
        group: &[Gva],
        access: ErrorCode,
        each: &mut impl FnMut(Gva, Found<S>),
    ) where
        F: GuestFormat,
        M: TableMemory<S::Address> + ?Sized,
        S: Stage,
    {
        let mut lanes: [Lane<S>; LANES] = core::array::from_fn(|_| Lane::default());
        let lanes = &mut lanes[..group.len()];
        let mut under_way = 0;
        for (lane, address) in lanes.iter_mut().zip(group) {
            match self.start(*address) {
                Some(start) => (lane.at, under_way) = (Some(start), under_way + 1),
                // No table to begin at: a fault, or a pointer that is absent.
                None => lane.found = Some(self.walk(memory, stage, &mut (), *address, access)),
            }
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
        for (lane, address) in lanes.iter_mut().zip(group) {
            let found = lane.found.take();
            // Entries that have changed meanwhile: the walk starts again, alone.
            let found =
                found.unwrap_or_else(|| self.walk(memory, stage, &mut (), *address, access));
            each(*address, found);
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
