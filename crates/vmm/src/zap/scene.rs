//! What is there when a slot changes.

use core::fmt;

use slat_memslot::{
    Gfn, Hva, PAGE_SIZE, PageSize, Pages, Region, RegionVersion, SlotFlags, SlotKey, VmType,
};
use thiserror::Error;

/// What is done to the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Operation {
    /// It is deleted.
    #[default]
    Delete,
    /// It goes to other guest frames.
    Move,
    /// Its dirty log is switched on, the only flag that may change on a slot.
    LogOn,
    /// Its dirty log is switched off again.
    LogOff,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Delete, Self::Move, Self::LogOn, Self::LogOff];

    /// `delete`, `move`, `log-on`, `log-off`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Move => "move",
            Self::LogOn => "log-on",
            Self::LogOff => "log-off",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What decides how far a zap reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// A default VM with the quirk `SLOT_ZAP_ALL`: all roots.
    #[default]
    QuirkOn,
    /// A default VM that has disabled it: the slot's leaves.
    QuirkOff,
    /// A VM with private memory, whatever its quirks: the slot's leaves.
    Protected,
    /// The flag `KVM_MEM_ZAP_LEAFS_ONLY` that was proposed in May 2024, set on the slot.
    Flag,
}

impl Policy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::QuirkOn, Self::QuirkOff, Self::Protected, Self::Flag];

    /// `quirk-on`, `quirk-off`, `protected`, `flag`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QuirkOn => "quirk-on",
            Self::QuirkOff => "quirk-off",
            Self::Protected => "protected",
            Self::Flag => "flag",
        }
    }

    /// The type of a VM with it.
    pub const fn vm_type(self) -> VmType {
        match self {
            Self::Protected => VmType::SwProtected,
            Self::QuirkOn | Self::QuirkOff | Self::Flag => VmType::Default,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a scene cannot be played.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SceneError {
    /// More is mapped than the slot has.
    #[error("{touched:?} pages are to be mapped of a slot of {pages:?}")]
    MoreThanSlot {
        /// What is to be mapped.
        touched: Pages,
        /// The slot's size.
        pages: Pages,
    },
    /// Not a number of leaves.
    #[error("{what} is {pages:?} small pages, not a multiple of a leaf of {leaf}")]
    Uneven {
        /// Which number.
        what: &'static str,
        /// The number.
        pages: Pages,
        /// The leaf.
        leaf: PageSize,
    },
    /// More roots than vCPUs, or than KVM has for direct guests of one address space.
    #[error("{roots} roots by {vcpus} vCPUs: there are 1 to 4, and each needs a vCPU")]
    Roots {
        /// How many.
        roots: u32,
        /// For how many vCPUs.
        vcpus: u32,
    },
    /// More vCPUs than a VM has.
    #[error("{0} vCPUs: a VM has 1 to 1024")]
    Vcpus(u32),
    /// The slot must have a page.
    #[error("a slot without pages")]
    Empty,
    /// The subject has no such VM.
    #[error("{subject} has no VM for the policy {policy}")]
    NoVm {
        /// Which machine.
        subject: String,
        /// What was wanted.
        policy: Policy,
    },
    /// The subject cannot play this scene.
    #[error("{subject}: {why}")]
    Unable {
        /// Which machine.
        subject: String,
        /// What it cannot.
        why: String,
    },
}

/// What is there when a slot changes.
///
/// Pages are counted in small ones, whatever maps them. Mapped pages of the slot are spread over it evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scene {
    /// What is done.
    pub operation: Operation,
    /// What decides how far a zap reaches.
    pub policy: Policy,
    /// The slot's size.
    pub pages: Pages,
    /// How many of its pages are mapped.
    pub touched: Pages,
    /// What maps them, and those of the other slot.
    pub leaf: PageSize,
    /// Pages that another slot has mapped.
    pub others: Pages,
    /// Roots that have all of this mapped, 1 to 4: L2s have another than L1, guests with more than 48 address bits one of
    /// five levels.
    pub roots: u32,
    /// vCPUs, which share the roots.
    pub vcpus: u32,
}

impl Scene {
    /// A slot of this size is deleted; all of it is mapped by small leaves, nothing else is, for one vCPU.
    pub const fn new(pages: Pages) -> Self {
        Self {
            operation: Operation::Delete,
            policy: Policy::QuirkOn,
            pages,
            touched: pages,
            leaf: PageSize::Size4K,
            others: Pages::new(0),
            roots: 1,
            vcpus: 1,
        }
    }

    /// With another operation.
    #[must_use]
    pub const fn with_operation(self, operation: Operation) -> Self {
        Self { operation, ..self }
    }

    /// With another policy.
    #[must_use]
    pub const fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// With so many pages mapped in another slot.
    #[must_use]
    pub const fn with_others(self, others: Pages) -> Self {
        Self { others, ..self }
    }

    /// With so many of the slot's pages mapped.
    #[must_use]
    pub const fn with_touched(self, touched: Pages) -> Self {
        Self { touched, ..self }
    }

    /// With leaves of this size.
    #[must_use]
    pub const fn with_leaf(self, leaf: PageSize) -> Self {
        Self { leaf, ..self }
    }

    /// With so many roots and vCPUs.
    #[must_use]
    pub const fn with_vcpus(self, roots: u32, vcpus: u32) -> Self {
        Self {
            roots,
            vcpus,
            ..self
        }
    }

    /// Whether it can be played.
    ///
    /// # Errors
    /// See [`SceneError`].
    pub fn check(&self) -> Result<(), SceneError> {
        if self.touched > self.pages {
            return Err(SceneError::MoreThanSlot {
                touched: self.touched,
                pages: self.pages,
            });
        }
        let numbers = [
            ("the slot's size", self.pages),
            ("what is mapped of the slot", self.touched),
            ("what others have mapped", self.others),
        ];
        for (what, pages) in numbers {
            if pages.raw() % self.leaf.pages().raw() != 0 {
                let leaf = self.leaf;
                return Err(SceneError::Uneven { what, pages, leaf });
            }
        }
        if self.pages == Pages::new(0) {
            return Err(SceneError::Empty);
        }
        let Self { roots, vcpus, .. } = *self;
        if !(1..=1024).contains(&vcpus) {
            return Err(SceneError::Vcpus(vcpus));
        }
        if !(1..=4).contains(&roots) || roots > vcpus {
            return Err(SceneError::Roots { roots, vcpus });
        }
        Ok(())
    }

    // --- Where everything is -----------------------------------------------------------------------------------------

    /// Frames of slots begin at multiples of this, so that leaves of the scene's size can map them.
    const fn alignment(&self) -> u64 {
        match self.leaf {
            PageSize::Size4K | PageSize::Size2M => CODE_PAGES,
            PageSize::Size1G => PageSize::Size1G.pages().raw(),
        }
    }

    /// The first frame of the other slot.
    pub(super) const fn others_at(&self) -> u64 {
        self.alignment()
    }

    /// The first frame of the slot that changes.
    pub(super) const fn slot_at(&self) -> u64 {
        let end = self.others_at() + self.others.raw();
        end.next_multiple_of(self.alignment())
    }

    /// Where it goes, if it moves.
    pub(super) const fn moved_to(&self) -> u64 {
        let end = self.slot_at() + self.pages.raw();
        end.next_multiple_of(self.alignment())
    }

    /// The first frame behind everything.
    pub(super) const fn end(&self) -> u64 {
        self.moved_to() + self.pages.raw()
    }

    /// The slots before the change, over host memory from `base`. The first one has the guest's instructions.
    pub(super) fn slots(&self, base: Hva) -> Vec<Region> {
        let mut slots = vec![slot(SlotKey::normal(0), 0, CODE_PAGES, base)];
        if self.others.raw() > 0 {
            slots.push(slot(
                SlotKey::normal(1),
                self.others_at(),
                self.others.raw(),
                base,
            ));
        }
        let logged = match self.operation {
            Operation::LogOff => SlotFlags::LOG_DIRTY_PAGES,
            Operation::Delete | Operation::Move | Operation::LogOn => SlotFlags::empty(),
        };
        slots.push(self.slot(base).with_flags(self.kept_flags() | logged));
        slots
    }

    fn slot(&self, base: Hva) -> Region {
        let version = match self.policy {
            // The older struct does not take the flag.
            Policy::Flag => RegionVersion::V2,
            Policy::QuirkOn | Policy::QuirkOff | Policy::Protected => RegionVersion::V1,
        };
        let slot = slot(SLOT, self.slot_at(), self.pages.raw(), base);
        Region { version, ..slot }
    }

    const fn kept_flags(&self) -> SlotFlags {
        match self.policy {
            Policy::Flag => SlotFlags::ZAP_LEAFS_ONLY,
            Policy::QuirkOn | Policy::QuirkOff | Policy::Protected => SlotFlags::empty(),
        }
    }

    /// The call that is measured.
    pub(super) fn change(&self, base: Hva) -> Region {
        let slot = self.slot(base);
        let keeps = self.kept_flags();
        match self.operation {
            Operation::Delete => Region::delete(SLOT),
            Operation::Move => Region {
                gpa: self.moved_to() * PAGE_SIZE,
                ..slot.with_flags(keeps)
            },
            Operation::LogOn => slot.with_flags(keeps | SlotFlags::LOG_DIRTY_PAGES),
            Operation::LogOff => slot.with_flags(keeps),
        }
    }

    /// Frames of the other slot that are touched: one of each leaf.
    pub(super) fn others_frames(&self) -> impl Iterator<Item = Gfn> + use<> {
        let (first, step) = (self.others_at(), self.leaf.pages().raw());
        (0..self.others.raw() / step).map(move |leaf| Gfn::new(first + leaf * step))
    }

    /// The same of the slot, with its first frame at `first`.
    pub(super) fn slot_frames(&self, first: u64) -> impl Iterator<Item = Gfn> + use<> {
        let step = self.leaf.pages().raw();
        let (leaves, places) = (self.touched.raw() / step, self.pages.raw() / step);
        let apart = places.checked_div(leaves).unwrap_or(1);
        (0..leaves).map(move |leaf| Gfn::new(first + leaf * apart * step))
    }

    /// Frames of the slot behind the operation; none where it is deleted.
    pub(super) fn slot_after(&self) -> Option<u64> {
        match self.operation {
            Operation::Delete => None,
            Operation::Move => Some(self.moved_to()),
            Operation::LogOn | Operation::LogOff => Some(self.slot_at()),
        }
    }
}

/// The slot with the guest's instructions and tables.
pub(super) const CODE_PAGES: u64 = 0x200;
/// The slot that changes.
pub(super) const SLOT: SlotKey = SlotKey::normal(2);

fn slot(key: SlotKey, first: u64, pages: u64, base: Hva) -> Region {
    let (gpa, size) = (first * PAGE_SIZE, pages * PAGE_SIZE);
    Region::new(key, gpa, size, base.raw() + gpa)
}

/// A number of pages, written as a size in bytes: `64K`, `2M`, `0x4000`.
///
/// # Errors
/// It is no number, or no number of pages.
pub fn pages(text: &str) -> Result<Pages, String> {
    let bytes = crate::scenario::bytes(text)?;
    match bytes % PAGE_SIZE {
        0 => Ok(Pages::in_bytes(bytes)),
        _ => Err(format!("{bytes} bytes are no number of pages")),
    }
}
