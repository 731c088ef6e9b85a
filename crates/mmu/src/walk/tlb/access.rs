//! An access through the caches.

use slat_memslot::{Gpa, Gva, Hpa, Level};

use super::Tlb;
use super::context::Context;
use super::pages::CachedPage;
use super::second::{SecondEntry, SecondPages};
use super::second_tables::SecondTables;
use super::tables::GuestTables;
use crate::access::Access;
use crate::spte::Format;
use crate::tdp::{AccessCheck, External, Locked, Reached, SecondFault, SecondPage, Shared};
use crate::walk::format::{GuestFormat, Paging64};
use crate::walk::guest::{Start, TABLE};
use crate::walk::second::wanted;
use crate::walk::{
    ErrorCode, GuestPaging, PagingMode, Stage, Step, TableMemory, Translation, WalkFault,
    WalkObserver,
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

/// The tables of the TDP MMU behind caches of its own tables, and of the pages that the guest's tables are in.
#[derive(Debug)]
pub struct CachedStage<'l, L> {
    locked: &'l mut L,
    context: Context,
    cache: &'l mut SecondPages,
    tables: &'l mut SecondTables,
    /// What the second stage allows for the page at the end.
    second_rights: Access,
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

    #[inline(always)]
    fn translate(&mut self, gpa: Gpa, access: ErrorCode) -> Result<Hpa, Self::Fault> {
        let marks = self.locked.tables().codec().host().ad_enabled();
        let wanted = wanted::<F>(access, marks);
        let offset = gpa.raw() & 0xfff;
        if !access.contains(ErrorCode::GUEST_PAGE) {
            // The page itself is kept by the guest's own address.
            let page = self.walk(gpa, wanted)?;
            self.second_rights = page.rights;
            return Ok(page.hpa);
        }
        if let Some(entry) = self.cache.find(&self.context, gpa, wanted) {
            return Ok(Hpa::new(entry.page.hpa.raw() | offset));
        }
        let page = self.walk(gpa, wanted)?;
        let page = SecondPage {
            hpa: Hpa::new(page.hpa.raw() & !0xfff),
            ..page
        };
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

impl<F, X, C, O> CachedStage<'_, Locked<Shared<'_, F, X, C>, O>>
where
    F: Format,
    X: External<F>,
    C: AccessCheck,
{
    /// Walks from the lowest table that is kept, and keeps those below.
    #[inline(always)]
    fn walk(&mut self, gpa: Gpa, wanted: Access) -> Result<SecondPage, SecondFault<C::Denied>> {
        let kept = self.tables.find(&self.context, gpa.gfn());
        let from = kept.unwrap_or_else(|| self.locked.tables().at_root(self.context.root));
        let (page, reached) = self.locked.hardware_walk_from(from, gpa, wanted, &mut ())?;
        if reached.level < from.level {
            self.keep(gpa, from, reached);
        }
        Ok(page)
    }

    #[cold]
    fn keep(&mut self, gpa: Gpa, from: Reached, reached: Reached) {
        let gfn = gpa.gfn();
        let high = self.locked.tables().descend(from, gfn.raw(), Level::L2);
        self.tables.insert(&self.context, gfn, high);
        self.tables.insert(&self.context, gfn, reached);
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

    /// The translation of an address, if it is kept and allows the access without marks. No table is read, so that no
    /// lock has to be held.
    #[inline(always)]
    pub fn lookup<F: Format>(
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
        what: (Gva, ErrorCode),
    ) -> Result<Hpa, WalkFault<SecondFault<C::Denied>>>
    where
        F: Format,
        X: External<F>,
        C: AccessCheck,
        M: TableMemory<Hpa> + ?Sized,
    {
        match self.short(context, paging, memory, locked, what) {
            Some(hpa) => Ok(hpa),
            None => self.walk(context, paging, memory, locked, what),
        }
    }

    /// The walk whose last tables are kept, of the guest and of the second stage: two entries are read. Nothing if there
    /// is more to do.
    #[inline(always)]
    fn short<F, X, C, O, M>(
        &mut self,
        context: &Context,
        paging: &GuestPaging,
        memory: &M,
        locked: &Locked<Shared<'_, F, X, C>, O>,
        (address, access): (Gva, ErrorCode),
    ) -> Option<Hpa>
    where
        F: Format,
        X: External<F>,
        C: AccessCheck,
        M: TableMemory<Hpa> + ?Sized,
    {
        if !keeps_tables(paging) {
            return None;
        }
        let access = access & ErrorCode::ACCESS;
        let table = self.tables.last(context, address)?;
        let entry = memory.read_u64(table.entry(address))?;
        let bits = table.bits() & (entry ^ Paging64::INVERTED);
        let leaf = paging.smooth_leaf((address, access), (entry, bits), 0)?;
        let second = self.second_tables.last(context, leaf.gpa.gfn())?;
        let marks = locked.tables().codec().host().ad_enabled();
        let wanted = wanted::<F>(access | ErrorCode::GUEST_FINAL, marks);
        let page = locked.hardware_leaf((context.root, second), leaf.gpa, wanted)?;
        let found = leaf.at(page.hpa);
        self.keep_page(context, paging, (address, access), &found, page.rights);
        Some(page.hpa)
    }

    /// The walk from the lowest table of the guest that is kept, of which is kept what can be.
    #[inline(never)]
    fn walk<F, X, C, O, M>(
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
        let marks = locked.tables().codec().host().ad_enabled();
        let start = self.tables.start(context, paging, address);
        let mut stage = CachedStage {
            locked,
            context: *context,
            cache: &mut self.second,
            tables: &mut self.second_tables,
            second_rights: Access::empty(),
        };
        let mut way = Way::default();
        let what = (address, access);
        let found = paging.walk_from(memory, &mut stage, &mut way, what, start)?;
        let second_rights = stage.second_rights;
        if keeps_tables(paging) {
            let wanted = wanted::<F>(TABLE, marks);
            self.keep_tables((context, paging, address), &way, start, wanted);
        }
        self.keep_page(context, paging, what, &found, second_rights);
        Ok(found.address)
    }

    /// Keeps the tables that a walk came through, and where the last one is if that is known.
    #[cold]
    fn keep_tables(
        &mut self,
        (context, paging, address): (&Context, &GuestPaging, Gva),
        way: &Way,
        start: Option<Start>,
        wanted: Access,
    ) {
        let is_table = |start: &Start| start.is_table(paging);
        for (level, start) in Level::ALL.into_iter().zip(way.starts) {
            if let Some(start) = start.filter(is_table) {
                self.tables.insert(context, address, level, start);
            }
        }
        let last = way.starts[0].filter(is_table).or(start);
        if let Some(last) = last.filter(|start| start.number == 0) {
            if let Some(entry) = self.second.find(context, last.table(), wanted) {
                let hpa = entry.page.hpa;
                self.tables.insert_last(context, address, last, hpa);
            }
        }
    }

    /// Keeps the translation that a walk came to.
    #[inline(always)]
    fn keep_page(
        &mut self,
        context: &Context,
        paging: &GuestPaging,
        (address, access): (Gva, ErrorCode),
        found: &Translation<Hpa>,
        second_rights: Access,
    ) {
        self.pages.insert(&CachedPage {
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
    }
}

impl GuestTables {
    /// Where a walk may begin.
    #[inline]
    fn start(&self, context: &Context, paging: &GuestPaging, address: Gva) -> Option<Start> {
        keeps_tables(paging)
            .then(|| self.find(context, address))
            .flatten()
    }
}

/// Only tables of long mode are kept, whose entries have eight bytes.
#[inline]
fn keeps_tables(paging: &GuestPaging) -> bool {
    matches!(paging.mode(), PagingMode::Level4 | PagingMode::Level5)
}
