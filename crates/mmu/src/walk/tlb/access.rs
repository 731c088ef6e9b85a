//! An access through the caches.

use slat_memslot::{Gpa, Gva, Hpa};

use super::Tlb;
use super::context::Context;
use super::pages::CachedPage;
use super::second::{SecondEntry, SecondPages};
use super::tables::GuestTables;
use crate::access::Access;
use crate::spte::Format;
use crate::tdp::{AccessCheck, External, Locked, SecondFault, SecondPage, Shared};
use crate::walk::guest::Start;
use crate::walk::second::wanted;
use crate::walk::{
    ErrorCode, GuestPaging, PagingMode, Stage, Step, TableMemory, WalkFault, WalkObserver,
};

/// How an access was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlbAccess {
    /// From the translations.
    Hit(Hpa),
    /// By a walk, which may have begun below the guest's root.
    Walked(Hpa),
}

impl TlbAccess {
    /// Where it goes.
    pub const fn hpa(self) -> Hpa {
        match self {
            Self::Hit(hpa) | Self::Walked(hpa) => hpa,
        }
    }
}

/// The tables of the TDP MMU behind a cache of guest-physical pages.
#[derive(Debug)]
pub struct CachedStage<'l, L> {
    locked: &'l mut L,
    context: Context,
    cache: &'l mut SecondPages,
    last: Option<SecondPage>,
}

impl<F, X, C, O> Stage for CachedStage<'_, Locked<Shared<'_, F, X, C>, O>>
where
    F: Format,
    X: External<F>,
    C: AccessCheck,
{
    const QUIET: bool = true;

    type Address = Hpa;
    type Fault = SecondFault<C::Denied>;

    #[inline]
    fn translate(&mut self, gpa: Gpa, access: ErrorCode) -> Result<Hpa, Self::Fault> {
        let marks = self.locked.tables().codec().host().ad_enabled();
        let wanted = wanted::<F>(access, marks);
        let offset = gpa.raw() & 0xfff;
        if let Some(entry) = self.cache.find(&self.context, gpa, wanted) {
            self.last = Some(entry.page);
            return Ok(Hpa::new(entry.page.hpa.raw() | offset));
        }
        let page = self
            .locked
            .hardware_walk(self.context.root, gpa, wanted, &mut ())?;
        let page = SecondPage {
            hpa: Hpa::new(page.hpa.raw() & !0xfff),
            ..page
        };
        self.last = Some(page);
        self.cache.insert(SecondEntry {
            context: self.context,
            gfn: gpa.gfn(),
            page,
            dirty: wanted.contains(Access::WRITE),
        });
        Ok(Hpa::new(page.hpa.raw() | offset))
    }

    fn before_mark(&mut self, gpa: Gpa) -> Result<(), Self::Fault> {
        if F::EXECUTE == 0 || self.locked.tables().codec().host().ad_enabled() {
            return Ok(());
        }
        let page = self
            .locked
            .hardware_walk(self.context.root, gpa, Access::WRITE, &mut ());
        page.map(|_| ())
    }
}

/// Collects the tables on the way; they are kept if the walk succeeds, since their entries are marked then.
#[derive(Default)]
struct Way {
    starts: [Option<Start>; 5],
}

impl WalkObserver for Way {
    #[inline]
    fn step(&mut self, step: &Step) {
        // The entry leads to a table of the level below.
        if let Some(below) = step.level.child() {
            self.starts[below as usize - 1] = Some(Start::below(step));
        }
    }
}

impl Tlb {
    /// Makes an access: from what is kept, or by a walk of which is kept what can be.
    ///
    /// # Errors
    /// Those of the walk.
    #[inline]
    pub fn access<F, X, C, O, M>(
        &mut self,
        context: &Context,
        paging: &GuestPaging,
        memory: &M,
        locked: &mut Locked<Shared<'_, F, X, C>, O>,
        (address, access): (Gva, ErrorCode),
    ) -> Result<TlbAccess, WalkFault<SecondFault<C::Denied>>>
    where
        F: Format,
        X: External<F>,
        C: AccessCheck,
        M: TableMemory<Hpa> + ?Sized,
    {
        if let Some(hpa) = self.lookup::<F>(context, paging, address, access) {
            return Ok(TlbAccess::Hit(hpa));
        }
        self.miss(context, paging, memory, locked, (address, access))
            .map(TlbAccess::Walked)
    }

    /// The translation of an address, if it is kept and allows the access without marks.
    #[inline]
    fn lookup<F: Format>(
        &self,
        context: &Context,
        paging: &GuestPaging,
        address: Gva,
        access: ErrorCode,
    ) -> Option<Hpa> {
        let page = self.pages.find(context, address)?;
        let second = wanted::<F>(access | ErrorCode::GUEST_FINAL, true);
        let allowed = page.second_rights.contains(second)
            && (page.dirty || !access.contains(ErrorCode::WRITE))
            && paging.allows(access, page.rights, page.key);
        allowed.then(|| Hpa::new(page.hpa.raw() | address.raw() & 0xfff))
    }

    fn miss<F, X, C, O, M>(
        &mut self,
        context: &Context,
        paging: &GuestPaging,
        memory: &M,
        locked: &mut Locked<Shared<'_, F, X, C>, O>,
        (address, access): (Gva, ErrorCode),
    ) -> Result<Hpa, WalkFault<SecondFault<C::Denied>>>
    where
        F: Format,
        X: External<F>,
        C: AccessCheck,
        M: TableMemory<Hpa> + ?Sized,
    {
        let start = self.tables.start(context, paging, address);
        let mut stage = CachedStage {
            locked,
            context: *context,
            cache: &mut self.second,
            last: None,
        };
        let mut way = Way::default();
        let found = paging.walk_from(memory, &mut stage, &mut way, (address, access), start)?;
        let second_rights = stage.last.map_or(Access::empty(), |page| page.rights);
        for (level, start) in slat_memslot::Level::ALL.into_iter().zip(way.starts) {
            if let Some(start) = start.filter(|start| start.is_table(paging)) {
                self.tables.insert(context, address, level, start);
            }
        }
        self.pages.insert(CachedPage {
            context: *context,
            address: Gva::new(address.raw() & !0xfff),
            gpa: Gpa::new(found.gpa.raw() & !0xfff),
            hpa: Hpa::new(found.address.raw() & !0xfff),
            size: found.size,
            rights: found.rights,
            second_rights,
            key: found.key,
            dirty: access.contains(ErrorCode::WRITE),
            global: paging.has_global_pages() && found.leaf & 1 << 8 != 0,
        });
        Ok(found.address)
    }
}

impl GuestTables {
    /// Where a walk may begin: only tables of eight-byte entries are kept.
    #[inline]
    fn start(&self, context: &Context, paging: &GuestPaging, address: Gva) -> Option<Start> {
        match paging.mode() {
            PagingMode::Level4 | PagingMode::Level5 => self.find(context, address),
            _ => None,
        }
    }
}
