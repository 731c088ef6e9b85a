//! A range of leaves loses the right to write, or its dirty bits, while others go on (`tdp_mmu.c:wrprot_gfn_range`,
//! `tdp_mmu.c:clear_dirty_gfn_range`).

use slat_memslot::{AsId, GfnRange, Level, PageSize};

use crate::role::PageRole;
use crate::roots::RootSelect;
use crate::spte::{AdType, Codec, Format, Spte};
use crate::table::TableId;
use crate::tdp::cursor::Cursor;
use crate::tdp::events::Observer;
use crate::tdp::lock::Locked;
use crate::tdp::resched::{Progress, Resched};
use crate::tdp::rootwalk::RootWalk;
use crate::tdp::store::{NotStored, Store};

/// What leaves lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// The right to write.
    Write,
    /// The dirty bit where the hardware keeps one for this guest, else the right to write.
    Dirty,
}

/// Takes the right to write, or dirty bits, from the leaves of a range, in all valid roots of an address space.
///
/// KVM holds the lock for reading, and so does [`Weaken::run`]'s usual caller; it may as well be held for writing.
#[derive(Debug)]
#[must_use = "it does nothing until it is run"]
pub struct Weaken {
    walk: RootWalk,
    what: What,
    min_level: Level,
    changed: bool,
}

impl Weaken {
    /// Leaves of `smallest` and above lose the right to write (`tdp_mmu.c:kvm_tdp_mmu_wrprot_slot`). With
    /// page-modification logging KVM leaves 4 KiB leaves to their dirty bits.
    pub fn write_protect(as_id: AsId, range: GfnRange, smallest: PageSize) -> Self {
        Self::new(as_id, range, What::Write, smallest.level())
    }

    /// All leaves lose their dirty bits, or the right to write where the hardware keeps none for this guest
    /// (`tdp_mmu.c:kvm_tdp_mmu_clear_dirty_slot`).
    pub fn clear_dirty(as_id: AsId, range: GfnRange) -> Self {
        Self::new(as_id, range, What::Dirty, Level::L1)
    }

    fn new(as_id: AsId, range: GfnRange, what: What, min_level: Level) -> Self {
        Self {
            walk: RootWalk::new(RootSelect::Valid, Some(as_id), range),
            what,
            min_level,
            changed: false,
        }
    }

    /// Whether any leaf has changed so far.
    pub const fn has_changed(&self) -> bool {
        self.changed
    }

    /// Goes on until it is over or `resched` wants to give way.
    pub fn run<S: Store, O: Observer<S::Format>, R: Resched>(
        &mut self,
        locked: &mut Locked<S, O>,
        resched: &mut R,
    ) -> Progress {
        while let Some((root, from)) = self.walk.current(locked) {
            let lost = match self.what {
                What::Write => Loss::Write,
                What::Dirty => locked.loss_of(root),
            };
            let mut cursor = Cursor::start(locked.tables(), root, self.min_level, from);
            while cursor.is_before(self.walk.end()) {
                if self.walk.gives_way(&cursor, resched) {
                    return Progress::Paused;
                }
                if self.visit(locked, &mut cursor, lost) != Err(NotStored::Lost) {
                    cursor.advance(locked.tables());
                }
            }
            self.walk.next_root();
        }
        Progress::Done
    }

    fn visit<S: Store, O: Observer<S::Format>>(
        &mut self,
        locked: &mut Locked<S, O>,
        cursor: &mut Cursor<S::Format>,
        loss: Loss,
    ) -> Result<(), NotStored> {
        if !cursor.is_at_leaf() {
            return Ok(());
        }
        let weaker = loss.from(&locked.tables().codec, cursor.old);
        if weaker != cursor.old {
            S::replace(locked, cursor, weaker)?;
            self.changed = true;
        }
        Ok(())
    }
}

/// What the leaves of one tree lose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    Write,
    Dirty,
}

impl Loss {
    #[inline]
    pub(super) const fn from<F: Format>(self, codec: &Codec<F>, leaf: Spte<F>) -> Spte<F> {
        match self {
            Self::Write => codec.write_protect(leaf),
            Self::Dirty => codec.clear_dirty(leaf),
        }
    }

    /// What shows writes in the leaves below a table of this role (`tdp_mmu.c:tdp_mmu_need_write_protect`).
    pub(super) const fn for_role<F: Format>(codec: &Codec<F>, role: PageRole) -> Self {
        match (codec.ad_type_of_table(role), codec.host().ad_enabled()) {
            (AdType::Enabled, true) => Self::Dirty,
            _ => Self::Write,
        }
    }
}

impl<S: Store, O> Locked<S, O> {
    pub(super) fn loss_of(&self, root: TableId) -> Loss {
        let tables = self.tables();
        Loss::for_role(&tables.codec, tables.page(root).role())
    }
}
