//! Many walks at a time: their references to memory overlap.
//!
//! One walk waits for memory at each level. Walks of different addresses need not wait for each other, so that a group
//! takes one level after the other together, and a CPU that executes out of order has many references under way.

use slat_memslot::Gva;

use super::ErrorCode;
use super::fault::WalkFault;
use super::format::{Paging32, Paging64, PagingEpt};
use super::guest::Translation;
use super::memory::TableMemory;
use super::mode::PagingMode;
use super::paging::GuestPaging;
use super::stage::{Stage, Unnested};

mod lanes;
mod smooth;

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
            let mut found = [const { None }; LANES];
            self.group(memory, stage, group, access, &mut found);
            for (address, found) in group.iter().zip(found) {
                // What came to nothing is walked alone.
                let found =
                    found.unwrap_or_else(|| self.walk(memory, stage, &mut (), *address, access));
                each(*address, found);
            }
            if count < LANES {
                return;
            }
        }
    }
    fn group<M, S>(
        &self,
        memory: &M,
        stage: &mut S,
        group: &[Gva],
        access: ErrorCode,
        found: &mut [Option<Found<S>>; LANES],
    ) where
        M: TableMemory<S::Address> + ?Sized,
        S: Stage,
    {
        match self.mode {
            PagingMode::Level4 | PagingMode::Level5 if S::QUIET => {
                self.smooth_group(memory, stage, group, access, found);
            }
            PagingMode::Level4 | PagingMode::Level5 | PagingMode::Pae => {
                self.careful_group::<Paging64, M, S>(memory, stage, group, access, found);
            }
            PagingMode::Bits32 | PagingMode::Bits32Pse => {
                self.careful_group::<Paging32, M, S>(memory, stage, group, access, found);
            }
            PagingMode::Ept4 | PagingMode::Ept5 => {
                self.careful_group::<PagingEpt, M, S>(memory, stage, group, access, found);
            }
            PagingMode::Unpaged => {}
        }
    }
}
