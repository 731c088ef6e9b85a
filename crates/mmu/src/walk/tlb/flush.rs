//! What a vCPU is told to forget.

use slat_memslot::{GfnRange, Gva};

use super::Tlb;
use super::context::{AddressSpaceId, Context, Pcid};
use crate::roots::Request;
use crate::table::TableId;
use crate::tdp::FlushScope;

/// A flush, as KVM or the guest asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flush {
    /// Everything (`kvm_x86_ops.flush_tlb_all`, `KVM_REQ_TLB_FLUSH`).
    All,
    /// What depends on one root of the second stage (`flush_tlb_current`: INVEPT of a single context, a new ASID).
    Root(TableId),
    /// What one address space remembers of the guest's own tables (`flush_tlb_guest`: INVVPID). Guest-physical mappings
    /// stay.
    Guest(AddressSpaceId),
    /// What depends on some guest frames, under any root (`flush_remote_tlbs_range`).
    Frames(GfnRange),
    /// The guest's own: one page (INVLPG), global or not.
    Address {
        /// The address space.
        space: AddressSpaceId,
        /// The identifier in use.
        pcid: Pcid,
        /// An address in the page.
        address: Gva,
    },
    /// The guest's own: one identifier, but for global pages (`mov cr3`, INVPCID of a single context).
    Context {
        /// The address space.
        space: AddressSpaceId,
        /// The identifier.
        pcid: Pcid,
    },
}

impl Flush {
    /// The flush that a request asks for, if it asks for one. `context` is the one in use.
    pub const fn of_request(request: Request, context: &Context) -> Option<Self> {
        match request {
            Request::TlbFlush => Some(Self::All),
            // KVM flushes what hardware remembers of a root whenever it gives the root to the hardware anew
            // (`mmu.c:kvm_mmu_load`).
            Request::TlbFlushCurrent | Request::LoadMmuPgd => Some(Self::Root(context.root)),
            Request::TlbFlushGuest | Request::HvTlbFlush => Some(Self::Guest(context.space)),
            _ => None,
        }
    }

    /// The flush that the MMU asks for.
    pub const fn of_scope(scope: FlushScope) -> Self {
        match scope {
            FlushScope::All => Self::All,
            FlushScope::Frames(range) => Self::Frames(range),
        }
    }
}

impl Tlb {
    /// Forgets.
    pub fn flush(&mut self, flush: Flush) {
        match flush {
            Flush::All => *self = Self::default(),
            Flush::Root(root) => {
                self.pages.retain(|page| page.context.root != root);
                self.second.retain(|context, _| context.root != root);
                self.second_tables
                    .retain(|table| table.context.root != root);
                self.tables.clear();
            }
            Flush::Guest(space) => {
                self.pages.retain(|page| page.context.space != space);
                self.tables.clear();
            }
            Flush::Frames(range) => {
                self.pages.retain(|page| !range.contains(page.gpa.gfn()));
                self.second.retain(|_, gfn| !range.contains(gfn));
                self.second_tables.retain(|table| {
                    let frames = table.frames();
                    frames.end <= range.start().raw() || range.end().raw() <= frames.start
                });
                self.tables.clear();
            }
            Flush::Address {
                space,
                pcid,
                address,
            } => {
                let concerned = |context: &Context, global: bool| {
                    context.space == space && (global || context.pcid == pcid)
                };
                self.pages.retain(|page| {
                    !(concerned(&page.context, page.global) && page.covers(address))
                });
                self.tables.clear();
            }
            Flush::Context { space, pcid } => {
                self.pages.retain(|page| {
                    page.global || page.context.space != space || page.context.pcid != pcid
                });
                self.tables.clear();
            }
        }
    }
}
