//! The walk of a guest's tables.
//!
//! | | |
//! |---|---|
//! | `careful` | looks at everything, tells every step, marks entries |
//! | `smooth` | the short way through tables in which nothing has to be told or marked |
//! | `mark` | accessed and dirty bits |
//! | `leaf` | what a walk comes to |
//! | `start` | tables that walks begin at |
//!
//! KVM counterparts: `paging_tmpl.h:walk_addr_generic`, `paging_tmpl.h:update_accessed_dirty_bits`,
//! `mmu.c:nonpaging_gva_to_gpa`; kernel 6.12.117.

use slat_memslot::{Gva, Level};

use super::ErrorCode;
use super::fault::WalkFault;
use super::format::Paging64;
use super::log::WalkObserver;
use super::memory::TableMemory;
use super::mode::PagingMode;
use super::paging::GuestPaging;
use super::stage::{Stage, Unnested};

mod careful;
mod leaf;
mod mark;
mod smooth;
mod start;

pub use leaf::{LeafSize, Translation};
pub(super) use leaf::{is_leaf, leaf_size, page_address};
pub(super) use mark::Trail;
pub(super) use smooth::{SmoothLeaf, TABLE};
pub(super) use start::Start;

impl GuestPaging {
    /// Translates an address for an access: the whole of it for a guest without a second stage, or seen from the guest.
    ///
    /// Marks entries as accessed and dirty where `memory` allows it.
    ///
    /// # Errors
    /// The fault that the guest gets.
    #[inline]
    pub fn translate<M: TableMemory + ?Sized>(
        &self,
        memory: &M,
        address: Gva,
        access: ErrorCode,
    ) -> Result<Translation, WalkFault> {
        self.walk(memory, &mut Unnested, &mut (), address, access)
    }

    /// What `KVM_TRANSLATE` answers: a read in supervisor mode, with no check that the address is canonical
    /// (`x86.c:kvm_arch_vcpu_ioctl_translate`).
    ///
    /// # Errors
    /// Why KVM says that the address is not valid; it does not tell the reason.
    pub fn kvm_translate<M: TableMemory + ?Sized>(
        &self,
        memory: &M,
        address: Gva,
    ) -> Result<Translation, WalkFault> {
        self.without_canonical_check()
            .translate(memory, address, ErrorCode::READ)
    }

    /// Translates an address for an access through a second stage, and tells an observer each step.
    ///
    /// The tables are in `memory`, by the addresses that `stage` gives. Of `access` only [`ErrorCode::ACCESS`] counts.
    ///
    /// # Errors
    /// The fault that the guest gets, or what the second stage says.
    #[inline]
    pub fn walk<M, S, O>(
        &self,
        memory: &M,
        stage: &mut S,
        observer: &mut O,
        address: Gva,
        access: ErrorCode,
    ) -> Result<Translation<S::Address>, WalkFault<S::Fault>>
    where
        M: TableMemory<S::Address> + ?Sized,
        S: Stage,
        O: WalkObserver,
    {
        self.walk_from(memory, stage, observer, (address, access), None)
    }

    /// The same from a table below the root, for addresses that it was kept for.
    #[inline]
    pub(super) fn walk_from<M, S, O>(
        &self,
        memory: &M,
        stage: &mut S,
        observer: &mut O,
        (address, access): (Gva, ErrorCode),
        start: Option<Start>,
    ) -> Result<Translation<S::Address>, WalkFault<S::Fault>>
    where
        M: TableMemory<S::Address> + ?Sized,
        S: Stage,
        O: WalkObserver,
    {
        if !self.is_canonical(address) {
            return Err(WalkFault::NonCanonical { address });
        }
        let access = access & ErrorCode::ACCESS;
        let mut walk = Walk {
            paging: self,
            memory,
            stage,
            observer,
            address,
            access,
        };
        if let Some(start) = start {
            if let Some(found) = walk.once::<Paging64>(start)? {
                return Ok(found);
            }
            walk.observer.restart();
        }
        let smooth = match self.mode {
            PagingMode::Level4 => walk.smooth::<3>(),
            PagingMode::Level5 => walk.smooth::<4>(),
            _ => None,
        };
        match smooth {
            Some(found) => Ok(found),
            None => walk.careful(),
        }
    }
}

/// One walk, with all it needs.
pub(super) struct Walk<'w, M: ?Sized, S, O> {
    pub(super) paging: &'w GuestPaging,
    pub(super) memory: &'w M,
    pub(super) stage: &'w mut S,
    pub(super) observer: &'w mut O,
    pub(super) address: Gva,
    pub(super) access: ErrorCode,
}

/// The level of a number, which counts from 0.
#[inline]
const fn level_of(number: u8) -> Level {
    Level::ALL[number as usize]
}
