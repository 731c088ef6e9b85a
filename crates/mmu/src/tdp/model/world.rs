//! Small tables for the model checker, and threads in them.

use core::cell::RefCell;
use core::ops::Deref;

use loom::sync::Arc;
use loom::thread;
use slat_memslot::{Gfn, PageSize};

use super::check::page_of;
use crate::host::Host;
use crate::role::{PageRole, TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
use crate::roots::RootId;
use crate::spte::Npt;
pub(super) use crate::sync::explore;
use crate::table::{Reader, TableId};
use crate::tdp::{
    Collapse, Collapsed, External, Limits, Locked, MapRequest, NoCheck, NoExternal, Observer,
    Passes, Progress, Resolution, Shared, Tables, Uninterrupted, Unobserved, ZapInvalidated,
};

/// The shared side, with nobody watching.
pub(super) type Side<'t, X> = Shared<'t, Npt, X, NoCheck>;

/// A root of three levels, to have less to explore.
pub(super) fn role() -> PageRole {
    root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::NptPae))
}

/// Tables with one root, which is held.
pub(super) struct World<X = NoExternal> {
    pub(super) tables: Tables<Npt, X>,
    pub(super) root: RootId,
    pub(super) table: TableId,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(NoExternal, role())
    }
}

impl<X: External<Npt> + Send + Sync + 'static> World<X> {
    pub(super) fn with(external: X, role: PageRole) -> Self {
        let limits = Limits {
            tables: 16,
            readers: 3,
        };
        let tables = Tables::with(&Host::npt(48), limits, external, NoCheck);
        let mut reader = tables.reader().unwrap();
        let mut observer = Unobserved;
        let mut locked = tables.shared(&mut reader, &mut observer);
        let root = locked.acquire_root(role).unwrap().root();
        let table = locked.root_table(root).unwrap();
        drop(locked);
        drop(reader);
        Self {
            tables,
            root,
            table,
        }
    }

    /// The only thread.
    pub(super) fn alone(&self) -> Thread<'_, X> {
        let reader = RefCell::new(self.tables.reader().unwrap());
        Thread {
            world: self,
            reader,
        }
    }

    /// Lets two threads in at once.
    ///
    /// Each has its place beforehand: to loom, a place that is given back may stay taken (see [`crate::sync::unfreeze`]).
    pub(super) fn race<A: Send + 'static, B>(
        self,
        a: impl FnOnce(&Thread<'_, X>) -> A + Send + 'static,
        b: impl FnOnce(&Thread<'_, X>) -> B,
    ) -> (Self, A, B) {
        let world = Arc::new(self);
        let readers = [(); 2].map(|()| RefCell::new(world.tables.reader().unwrap()));
        let [first, second] = readers;
        let other = {
            let world = world.clone();
            thread::spawn(move || {
                let (world, reader) = (&*world, first);
                a(&Thread { world, reader })
            })
        };
        let b = b(&Thread {
            world: &world,
            reader: second,
        });
        let a = other.join().unwrap();
        let world = Arc::try_unwrap(world);
        (world.unwrap_or_else(|_| panic!("both have left")), a, b)
    }
}

/// A thread, with its place among the readers.
pub(super) struct Thread<'w, X = NoExternal> {
    world: &'w World<X>,
    reader: RefCell<Reader>,
}

impl<X> Deref for Thread<'_, X> {
    type Target = World<X>;

    fn deref(&self) -> &World<X> {
        self.world
    }
}

impl<X: External<Npt>> Thread<'_, X> {
    /// Takes the shared side.
    pub(super) fn enter<R>(
        &self,
        act: impl FnOnce(&mut Locked<Side<'_, X>, Unobserved>) -> R,
    ) -> R {
        self.enter_with(Unobserved, act)
    }

    /// The same with an observer.
    pub(super) fn enter_with<O: Observer<Npt>, R>(
        &self,
        observer: O,
        act: impl FnOnce(&mut Locked<Side<'_, X>, O>) -> R,
    ) -> R {
        let mut reader = self.reader.borrow_mut();
        act(&mut self.tables.shared(&mut reader, observer))
    }

    /// Faults.
    pub(super) fn map(&self, gfn: u64, size: PageSize) -> Resolution {
        self.map_in(self.table, gfn, size)
    }

    /// Faults in another root.
    pub(super) fn map_in(&self, root: TableId, gfn: u64, size: PageSize) -> Resolution {
        let request = MapRequest::page(Gfn::new(gfn), size, page_of(gfn));
        self.enter(|locked| locked.map(root, &request).unwrap().resolution)
    }

    /// Takes a reference to the root of the ordinary role, and gives it with its table.
    pub(super) fn acquire(&self) -> (RootId, TableId) {
        self.enter(|locked| {
            let root = locked.acquire_root(role()).unwrap().root();
            (root, locked.root_table(root).unwrap())
        })
    }

    /// Zaps what was invalidated.
    pub(super) fn zap(&self) {
        self.zap_watched(&mut Unobserved);
    }

    /// The same with an observer.
    pub(super) fn zap_watched<O: Observer<Npt>>(&self, observer: &mut O) {
        let mut zap = ZapInvalidated::new(Passes::SmallestFirst);
        let progress = self.enter_with(observer, |locked| zap.run(locked, &mut Uninterrupted));
        assert_eq!(progress, Progress::Done);
    }

    /// Removes the table for the first frames.
    pub(super) fn collapse(&self, size: PageSize, how: Collapse) -> Collapsed {
        self.enter(|locked| locked.collapse(self.table, Gfn::new(0), size, how))
    }
}

impl World {
    /// The first half of a fast zap.
    pub(super) fn invalidate(&mut self) {
        self.tables.exclusive(Unobserved).invalidate_roots();
    }
}
