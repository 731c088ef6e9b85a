//! The tables of a hypervisor in the guest, as the second stage of its own guest.

use slat_memslot::{Gpa, Gva};

use crate::walk::{ErrorCode, GuestPaging, Stage, TableMemory, WalkFault, WalkObserver};

/// In whose way L2's accesses become accesses to L1's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NestedAccess {
    /// As KVM's own walker does (`mmu.c:translate_nested_gpa`): each access is one of user mode, which in EPT is reading, so
    /// that executing needs a page that can be read.
    Kvm,
    /// As hardware does with EPT: executing needs no more than that.
    HardwareEpt,
}

/// L1's EPT or NPT: translates what L2 takes for physical addresses to those of L1, and these by the stage behind.
///
/// The tables are in `memory`, by the addresses that the stage behind gives.
#[derive(Debug)]
pub struct NestedStage<'w, M: ?Sized, S, O> {
    paging: GuestPaging,
    memory: &'w M,
    behind: S,
    observer: O,
    access: NestedAccess,
}

impl<'w, M: ?Sized, S> NestedStage<'w, M, S, ()> {
    /// L1's tables, as KVM walks them. Addresses are not checked for being canonical.
    pub const fn new(paging: GuestPaging, memory: &'w M, behind: S) -> Self {
        Self {
            paging: paging.without_canonical_check(),
            memory,
            behind,
            observer: (),
            access: NestedAccess::Kvm,
        }
    }
}

impl<'w, M: ?Sized, S, O> NestedStage<'w, M, S, O> {
    /// With accesses made in another way.
    #[must_use]
    pub fn with_access(self, access: NestedAccess) -> Self {
        Self { access, ..self }
    }

    /// With an observer of the walks through L1's tables.
    #[must_use]
    pub fn observed<P>(self, observer: P) -> NestedStage<'w, M, S, P> {
        NestedStage {
            paging: self.paging,
            memory: self.memory,
            behind: self.behind,
            observer,
            access: self.access,
        }
    }

    fn wanted(&self, access: ErrorCode) -> ErrorCode {
        let kind = access & (ErrorCode::WRITE | ErrorCode::FETCH);
        match self.access {
            NestedAccess::HardwareEpt if access.contains(ErrorCode::FETCH) => kind,
            _ => kind | ErrorCode::USER,
        }
    }
}

impl<M, S, O> Stage for NestedStage<'_, M, S, O>
where
    M: TableMemory<S::Address> + ?Sized,
    S: Stage,
    O: WalkObserver,
{
    const QUIET: bool = !O::OBSERVES && S::QUIET;

    type Address = S::Address;
    type Fault = WalkFault<S::Fault>;

    fn translate(&mut self, gpa: Gpa, access: ErrorCode) -> Result<S::Address, Self::Fault> {
        let wanted = self.wanted(access);
        let address = Gva::new(gpa.raw());
        let found = self.paging.walk(
            self.memory,
            &mut self.behind,
            &mut self.observer,
            address,
            wanted,
        );
        Ok(found?.address)
    }
}
