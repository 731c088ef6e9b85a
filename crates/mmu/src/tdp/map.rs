//! Mapping a page where a fault wants it (`tdp_mmu.c:kvm_tdp_mmu_map`).

use slat_memslot::{Generation, Gfn, Level, PageSize};
use thiserror::Error;

use super::cursor::Cursor;
use super::events::{Event, FlushReason, Observer};
use super::lock::{Locked, Side};
use super::store::{NotStored, Store};
use super::tables::ExistingLeaf;
use crate::fault::{NotTracked, PageTrack};
use crate::role::{Access, PageRole};
use crate::shadow::PageInfo;
use crate::spte::{Fill, Format, LeafRequest, Pfn, Spte, TableRole, Tracking};
use crate::table::{TableId, span};

/// What a fault wants to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<F> {
    /// A page; which entry it replaces, and in which table, is found out on the way
    /// ([`LeafRequest::old`] and [`LeafRequest::table`] do not count).
    Page(LeafRequest<F>),
    /// Nothing: no slot is there, which an MMIO entry of this generation of slots will remember.
    Mmio(Generation),
}

/// A fault (`struct kvm_page_fault`), when everything about it has been decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest<F> {
    /// The frame that was accessed.
    pub gfn: Gfn,
    /// The size to map it at (`goal_level`). For MMIO it is 4 KiB.
    pub size: PageSize,
    /// What the guest wanted: to execute, to write, or neither, which is to read. Empty for a prefault.
    pub access: Access,
    /// What to map.
    pub target: Target<F>,
}

impl<F: Format> MapRequest<F> {
    /// A write to ordinary memory.
    pub const fn page(gfn: Gfn, size: PageSize, pfn: Pfn) -> Self {
        Self {
            gfn,
            size,
            access: Access::WRITE,
            target: Target::Page(LeafRequest::new(Spte::from_raw(0), size, pfn)),
        }
    }

    /// An access where no slot is.
    pub const fn mmio(gfn: Gfn, generation: Generation) -> Self {
        Self {
            gfn,
            size: PageSize::Size4K,
            access: Access::WRITE,
            target: Target::Mmio(generation),
        }
    }
}

/// Why the guest has to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// An entry on the way is frozen.
    Frozen,
    /// Another thread changed the entry first.
    Lost,
    /// The owner of the real tables is busy.
    Busy,
}

/// What a fault came to (`RET_PF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// Nothing was done, and the guest has to try again.
    Retry(Retry),
    /// The access has to be emulated.
    Emulate,
    /// The page is mapped, but the write has to be emulated.
    WriteProtected,
    /// The page is mapped.
    Fixed,
    /// Everything was there already.
    Spurious,
}

/// What mapping did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "the guest may have to try again, and the page may have to be logged"]
pub struct Mapped {
    /// What became of the fault.
    pub resolution: Resolution,
    /// The page was made writable in a logged slot, or nearly: KVM marks it dirty before it tries to store the entry.
    pub mark_dirty: bool,
    /// The size that it came to: that of the request, or a smaller one if execution does not allow it.
    pub size: PageSize,
}

/// What the mitigation of iTLB multihit has to say about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum NxFault {
    /// Nothing: it is off for this VM.
    #[default]
    Off,
    /// It is on, and the fault executes nothing: a huge leaf is not put where a table is for the sake of execution.
    On,
    /// It is on, and the fault executes: the page is mapped small, where it could have been of this size
    /// (`fault->req_level`).
    Disallowed(PageSize),
}

/// What cannot be mapped. Nothing but tables on the way has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum MapError {
    /// There are as many tables as there may be (`-ENOMEM`).
    #[error("all tables are in use")]
    OutOfTables,
    /// The frame is beyond what the tables map; KVM emulates such accesses before it comes here, but for a root of fewer
    /// levels than the host has: there it takes the frame for another one, the bits above being lost.
    #[error("{gfn} is beyond the last frame, {last}")]
    BeyondLastGfn {
        /// The frame.
        gfn: Gfn,
        /// The last one.
        last: Gfn,
    },
    /// The page does not start where pages of its size start (`VM_BUG_ON` in `kvm_mmu_hugepage_adjust`).
    #[error("{pfn:?} for {gfn} is not aligned to {size}")]
    Unaligned {
        /// The guest frame.
        gfn: Gfn,
        /// The first frame of the page.
        pfn: Pfn,
        /// The size.
        size: PageSize,
    },
    /// The page is beyond what the host can address; KVM would warn about reserved bits.
    #[error("{pfn:?} is beyond the last frame of the host, {last:?}")]
    BeyondLastPfn {
        /// The frame, or the last one of a range.
        pfn: Pfn,
        /// The host's last one.
        last: Pfn,
    },
    /// Another page is mapped there. KVM halts the host (`BUG` in `tdp_mmu.c:handle_changed_spte`): whoever changes the
    /// page must zap the leaf first.
    #[error("{gfn} is mapped to {old:?} and cannot be mapped to {new:?} without a zap")]
    PfnChanged {
        /// The guest frame.
        gfn: Gfn,
        /// The frame that is mapped.
        old: Pfn,
        /// The other one.
        new: Pfn,
    },
    /// A range of pages was asked for, and no page was given.
    #[error("a range is mapped to pages, not to MMIO")]
    NoPage,
    /// MMIO is not remembered in entries on this host; KVM emulates such accesses before it comes here.
    #[error("this host has no MMIO entries")]
    NoMmioEntries,
}

/// Why the walk to the entry ended early.
pub(super) enum Stopped {
    Retry(Retry),
    Error(MapError),
}

impl From<NotStored> for Stopped {
    fn from(reason: NotStored) -> Self {
        Self::Retry(match reason {
            NotStored::Lost => Retry::Lost,
            NotStored::Busy => Retry::Busy,
        })
    }
}

/// An entry that is ready to be stored.
struct Ready<F> {
    spte: Spte<F>,
    write_protected: bool,
    mark_dirty: bool,
}

impl<S: Store, O: Observer<S::Format>> Locked<S, O> {
    /// Maps a page, or remembers that there is none. Tables on the way are made, and huge leaves that are too large are
    /// split; a table where a huge leaf is wanted goes.
    ///
    /// `root` must be valid and held. Other threads may map and zap meanwhile.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map(
        &mut self,
        root: TableId,
        request: &MapRequest<S::Format>,
    ) -> Result<Mapped, MapError> {
        self.map_nx(root, request, NxFault::Off)
    }

    /// The same under the mitigation of iTLB multihit.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map_nx(
        &mut self,
        root: TableId,
        request: &MapRequest<S::Format>,
        nx: NxFault,
    ) -> Result<Mapped, MapError> {
        self.map_tracked(root, request, nx, &NotTracked)
    }

    /// The same where somebody watches the guest's writes.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map_tracked(
        &mut self,
        root: TableId,
        request: &MapRequest<S::Format>,
        nx: NxFault,
        watch: &impl PageTrack,
    ) -> Result<Mapped, MapError> {
        self.map_own(root, &mut { *request }, nx, watch)
    }

    /// The same with a request that nobody needs any more, for it changes on the way. It was written a moment ago by small
    /// parts, and a processor that copies such parts by larger ones waits for them; the cursor stays where it is, too.
    pub(crate) fn map_own(
        &mut self,
        root: TableId,
        request: &mut MapRequest<S::Format>,
        nx: NxFault,
        watch: &impl PageTrack,
    ) -> Result<Mapped, MapError> {
        self.check_request(root, request)?;
        debug_assert!(
            !self.tables().page(root).role().is_invalid(),
            "nobody faults on an invalid root"
        );
        self.report_request(request);
        let (tables, gfn) = (self.tables(), request.gfn.raw());
        // Most faults find all tables there.
        let table = tables.descend(tables.at_root(root), gfn, request.size.level());
        let mut cursor = Cursor::start_below(tables, table, Level::L1, gfn);
        let outcome = match self.descend(&mut cursor, request, nx) {
            Ok(()) => self.install(&mut cursor, request, watch),
            Err(stopped) => Err(stopped),
        };
        match outcome {
            Ok(mapped) => {
                self.audit_after_map(root, request.gfn);
                Ok(mapped)
            }
            Err(Stopped::Error(error)) => Err(error),
            Err(Stopped::Retry(retry)) => Ok(Mapped {
                resolution: Resolution::Retry(retry),
                mark_dirty: false,
                size: request.size,
            }),
        }
    }

    /// Reports what a fault is about to map, as the tracepoint at its start does.
    fn report_request(&mut self, request: &MapRequest<S::Format>) {
        if !O::EVENTS {
            return;
        }
        let level = request.size.level();
        let part = request.gfn.raw() & (span(level) - 1);
        let pfn = match &request.target {
            Target::Page(page) => Some(Pfn::new(page.pfn.raw() | part)),
            Target::Mmio(_) => None,
        };
        self.observer.event(Event::SpteRequested {
            gfn: request.gfn,
            pfn,
            level,
        });
    }

    fn check_request(
        &self,
        root: TableId,
        request: &MapRequest<S::Format>,
    ) -> Result<(), MapError> {
        let (gfn, end) = (request.gfn, self.tables().end_of(root));
        if gfn >= end {
            return Err(MapError::BeyondLastGfn {
                gfn,
                last: Gfn::new(end.raw() - 1),
            });
        }
        match &request.target {
            Target::Mmio(_) if !self.tables().codec.caches_mmio() => Err(MapError::NoMmioEntries),
            Target::Mmio(_) => Ok(()),
            Target::Page(page) => {
                let (size, pfn) = (request.size, page.pfn);
                let inside = span(size.level()) - 1;
                if pfn.raw() & inside != 0 {
                    return Err(MapError::Unaligned { gfn, pfn, size });
                }
                self.check_pfn(Pfn::new(pfn.raw() | inside))
            }
        }
    }

    /// Whether the host can address a frame.
    pub(super) fn check_pfn(&self, pfn: Pfn) -> Result<(), MapError> {
        let bits = self.tables().codec.host().phys_bits.min(52);
        let last = Pfn::new((1 << (bits - 12)) - 1);
        let inside = pfn <= last;
        inside
            .then_some(())
            .ok_or(MapError::BeyondLastPfn { pfn, last })
    }

    /// Goes down to the entry of the wanted level, making what is missing on the way.
    fn descend(
        &mut self,
        cursor: &mut Cursor<S::Format>,
        request: &mut MapRequest<S::Format>,
        nx: NxFault,
    ) -> Result<(), Stopped> {
        let gfn = request.gfn.raw();
        while cursor.is_before(gfn + 1) {
            if nx != NxFault::Off {
                self.adjust_to_table(cursor, request);
            }
            let goal = request.size.level();
            if self.tables().codec.is_frozen(cursor.old) {
                return Err(Stopped::Retry(Retry::Frozen));
            }
            if cursor.level() == goal {
                return Ok(());
            }
            if cursor.enter(self.tables()) {
                continue;
            }
            let child = self.link_or_split(cursor, request, nx)?;
            if let NxFault::Disallowed(wanted) = nx {
                self.track_nx(child, cursor.level(), wanted);
            }
            cursor.advance(self.tables());
        }
        // What was read again on the way down was not a link any more.
        Err(Stopped::Retry(Retry::Lost))
    }

    /// Puts a table where there is nothing, or a huge leaf.
    pub(super) fn link_or_split(
        &mut self,
        cursor: &mut Cursor<S::Format>,
        request: &MapRequest<S::Format>,
        nx: NxFault,
    ) -> Result<TableId, Stopped> {
        let child = self
            .allocate_child(cursor)
            .ok_or(Stopped::Error(MapError::OutOfTables))?;
        if matches!(nx, NxFault::Disallowed(_)) {
            self.tables().page(child).set_nx_disallowed(true);
        }
        let linked = if cursor.old.is_present() {
            self.split_into(cursor, child, nx_huge_pages(request))
        } else {
            let link = self.tables().link_to(child);
            let linked = S::replace(self, cursor, link);
            if linked.is_ok() {
                self.counts().add_tables(1);
            }
            linked
        };
        if linked.is_err() {
            // Nobody has seen it.
            self.tables().arena.recycle(child);
        }
        linked.map(|()| child).map_err(Stopped::from)
    }

    /// Stores the entry (`tdp_mmu.c:tdp_mmu_map_handle_target_level`).
    fn install(
        &mut self,
        cursor: &mut Cursor<S::Format>,
        request: &mut MapRequest<S::Format>,
        watch: &impl PageTrack,
    ) -> Result<Mapped, Stopped> {
        let role = self.tables().page(cursor.table()).role();
        if self.keeps_existing(cursor, request) {
            return Ok(Mapped {
                resolution: Resolution::Spurious,
                mark_dirty: false,
                size: request.size,
            });
        }
        let ready = self.make(cursor, role, request, watch)?;
        let old = cursor.old;
        let mut resolution = Resolution::Fixed;
        if ready.spte == old {
            resolution = Resolution::Spurious;
        } else if let Err(reason) = S::replace(self, cursor, ready.spte) {
            let Stopped::Retry(retry) = reason.into() else {
                unreachable!("a lost race is no error");
            };
            return Ok(Mapped {
                resolution: Resolution::Retry(retry),
                mark_dirty: ready.mark_dirty,
                size: request.size,
            });
        } else if old.is_link(cursor.level()) {
            self.flush_entry(cursor.gfn(), cursor.level(), FlushReason::TableReplaced);
        }
        if ready.write_protected && request.access.contains(Access::WRITE) {
            resolution = Resolution::WriteProtected;
        }
        Ok(Mapped {
            resolution: self.report_install(cursor, ready.spte, resolution),
            mark_dirty: ready.mark_dirty,
            size: request.size,
        })
    }

    /// Whether a leaf that is there is left alone.
    fn keeps_existing(&self, cursor: &Cursor<S::Format>, request: &MapRequest<S::Format>) -> bool {
        let Target::Page(page) = &request.target else {
            return false;
        };
        let tables = self.tables();
        if tables.existing_leaf == ExistingLeaf::MadeAnew || !cursor.is_at_leaf() {
            return false;
        }
        let same = tables.codec.pfn(cursor.old) == page.pfn;
        same && (page.fill == Fill::Prefetch || self.allows(cursor.old, request.access))
    }

    /// Whether a leaf allows what a fault is about: one thing, reading if nothing else (`mmu.c:is_access_allowed`).
    pub(super) fn allows(&self, leaf: Spte<S::Format>, access: Access) -> bool {
        let codec = &self.tables().codec;
        if access.contains(Access::EXECUTE) {
            codec.is_executable(leaf)
        } else if access.contains(Access::WRITE) {
            leaf.is_writable()
        } else {
            !codec.is_access_tracked(leaf)
        }
    }

    fn make(
        &mut self,
        cursor: &Cursor<S::Format>,
        role: PageRole,
        request: &mut MapRequest<S::Format>,
        watch: &impl PageTrack,
    ) -> Result<Ready<S::Format>, Stopped> {
        let codec = &self.tables().codec;
        let leaf = match &mut request.target {
            Target::Page(leaf) => leaf,
            Target::Mmio(generation) => {
                let mmio = codec.make_mmio(Gfn::new(cursor.gfn()), role.access(), *generation);
                let no_entries = Stopped::Error(MapError::NoMmioEntries);
                return mmio.ok_or(no_entries).map(|spte| Ready {
                    spte,
                    write_protected: false,
                    mark_dirty: false,
                });
            }
        };
        if cursor.is_at_leaf() && codec.pfn(cursor.old) != leaf.pfn {
            return Err(Stopped::Error(MapError::PfnChanged {
                gfn: Gfn::new(cursor.gfn()),
                old: codec.pfn(cursor.old),
                new: leaf.pfn,
            }));
        }
        leaf.old = cursor.old;
        leaf.table = TableRole {
            size: request.size,
            access: role.access(),
            ad: codec.ad_type_of_table(role),
        };
        if codec.asks_for_tracking(leaf) {
            let asked = watch.try_to_unsync(Gfn::new(cursor.gfn()), leaf.fill);
            if asked.every_write {
                leaf.tracking = Tracking::EveryWrite;
            }
            self.report_unsync(asked.unsynced);
        }
        let made = self.tables().codec.make_leaf(leaf);
        Ok(Ready {
            spte: made.spte,
            write_protected: made.write_protected,
            mark_dirty: made.mark_dirty,
        })
    }

    /// Reports the pages that have fallen out of step.
    fn report_unsync(&mut self, unsynced: Vec<PageInfo>) {
        if O::EVENTS {
            for page in unsynced {
                self.observer.event(Event::PageUnsync { page });
            }
        }
    }

    /// Reports what a fault leaves behind, as the tracepoints at its end do.
    fn report_install(
        &mut self,
        cursor: &Cursor<S::Format>,
        spte: Spte<S::Format>,
        resolution: Resolution,
    ) -> Resolution {
        if let Some(mmio) = self.tables().codec.decode_mmio(spte) {
            if O::EVENTS {
                self.observer.event(Event::MmioMarked { mmio, spte });
            }
            return Resolution::Emulate;
        }
        if O::EVENTS {
            let spte = self.tables().read(cursor.place());
            self.observer.event(Event::SpteSet {
                level: cursor.level(),
                gfn: Gfn::new(cursor.gfn()),
                spte,
            });
        }
        resolution
    }
}

fn nx_huge_pages<F>(request: &MapRequest<F>) -> crate::spte::NxHugePages {
    match &request.target {
        Target::Page(page) => page.nx_huge_pages,
        Target::Mmio(_) => crate::spte::NxHugePages::Off,
    }
}

impl<S: Side, O: Observer<S::Format>> Locked<S, O> {
    /// Makes a table for the entry that a cursor is at (`tdp_mmu.c:tdp_mmu_init_child_sp`). Nobody sees it yet.
    pub(super) fn allocate_child(&mut self, cursor: &Cursor<S::Format>) -> Option<TableId> {
        let tables = self.tables();
        let role = tables.page(cursor.table()).role();
        let role = role.with_level(role.level().child()?);
        let table = tables.arena.allocate()?;
        let gfn = Gfn::new(cursor.gfn());
        tables.describe(table, role, gfn, Some(cursor.place()));
        if O::EVENTS {
            self.observer
                .event(Event::PageAllocated { table, gfn, role });
        }
        Some(table)
    }
}
