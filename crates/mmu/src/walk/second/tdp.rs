//! The tables of the TDP MMU as a second stage.

use slat_memslot::{Gpa, Hpa};

use crate::access::Access;
use crate::spte::Format;
use crate::table::TableId;
use crate::tdp::{AccessCheck, External, Locked, SecondFault, SecondObserver, Shared};
use crate::walk::{ErrorCode, Stage};

/// The tables of the TDP MMU below one root, as hardware walks them.
///
/// `W` hears of every entry that is read.
#[derive(Debug)]
pub struct TdpStage<'l, L, W = ()> {
    locked: &'l mut L,
    root: TableId,
    observer: W,
}

impl<'l, L> TdpStage<'l, L> {
    /// The tables below a root, which must be held.
    pub const fn new(locked: &'l mut L, root: TableId) -> Self {
        Self {
            locked,
            root,
            observer: (),
        }
    }
}

impl<'l, L, W> TdpStage<'l, L, W> {
    /// With an observer.
    #[must_use]
    pub fn observed<V>(self, observer: V) -> TdpStage<'l, L, V> {
        TdpStage {
            locked: self.locked,
            root: self.root,
            observer,
        }
    }

    /// The tables.
    pub const fn locked(&mut self) -> &mut L {
        self.locked
    }

    /// The root.
    pub const fn root(&self) -> TableId {
        self.root
    }
}

/// What hardware wants of an address. With EPT a guest's table is read, and with A/D bits in EPT written as well; with NPT
/// it is always written, and all accesses are those of user mode.
#[inline]
pub(in crate::walk) fn wanted<F: Format>(access: ErrorCode, marks: bool) -> Access {
    let ept = F::EXECUTE != 0;
    if access.contains(ErrorCode::GUEST_PAGE) {
        return match ept && !marks {
            true => Access::USER,
            false => Access::USER | Access::WRITE,
        };
    }
    if access.contains(ErrorCode::FETCH) {
        return match ept {
            true => Access::EXECUTE,
            false => Access::EXECUTE | Access::USER,
        };
    }
    match (access.contains(ErrorCode::WRITE), ept) {
        (true, true) => Access::WRITE,
        (true, false) => Access::WRITE | Access::USER,
        (false, _) => Access::USER,
    }
}

impl<F, X, C, O, W> Stage for TdpStage<'_, Locked<Shared<'_, F, X, C>, O>, W>
where
    F: Format,
    X: External<F>,
    C: AccessCheck,
    W: SecondObserver,
{
    const QUIET: bool = !W::OBSERVES;

    type Address = Hpa;
    type Fault = SecondFault<C::Denied>;

    #[inline(always)]
    fn translate(&mut self, gpa: Gpa, access: ErrorCode) -> Result<Hpa, Self::Fault> {
        let marks = self.locked.tables().codec().host().ad_enabled();
        let wanted = wanted::<F>(access, marks);
        let root = self.locked.tables().at_root(self.root);
        let walked = self
            .locked
            .hardware_walk_from(root, gpa, wanted, &mut self.observer);
        walked.map(|(page, _)| page.hpa)
    }

    #[inline]
    fn translate_group(
        &mut self,
        group: &[Option<Gpa>],
        access: ErrorCode,
        to: &mut [Option<Hpa>],
    ) {
        if W::OBSERVES {
            for (gpa, to) in group.iter().zip(to) {
                *to = gpa.and_then(|gpa| self.translate(gpa, access).ok());
            }
            return;
        }
        let marks = self.locked.tables().codec().host().ad_enabled();
        let wanted = wanted::<F>(access, marks);
        self.locked
            .hardware_walk_group(self.root, group, wanted, to);
    }

    /// Without A/D bits in EPT reading a table needed no more than reading; marking its entry is a write of its own.
    fn before_mark(&mut self, gpa: Gpa) -> Result<(), Self::Fault> {
        if F::EXECUTE == 0 || self.locked.tables().codec().host().ad_enabled() {
            return Ok(());
        }
        let page = self
            .locked
            .hardware_walk(self.root, gpa, Access::WRITE, &mut self.observer);
        page.map(|_| ())
    }
}
