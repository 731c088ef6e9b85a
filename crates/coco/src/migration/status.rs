//! The list of what a guest has told: which pages are shared.

use slat_memslot::{AttributeMap, Attributes, Gfn, GfnRange};

use super::page::Status;

/// Which guest frames are shared. All others are private, those too of which nothing was ever heard.
///
/// Setting a range costs as much as there are borders in it, whatever its size.
///
/// ```
/// use slat_coco::migration::{Status, StatusList};
/// use slat_memslot::{Gfn, GfnRange, Pages};
/// let range = |start, pages| GfnRange::new(Gfn::new(start), Pages::new(pages)).unwrap();
/// let mut list = StatusList::new();
/// list.set(range(0x10, 0x20), Status::Shared);
/// list.set(range(0x18, 8), Status::Private);
/// assert_eq!(list.get(Gfn::new(0x18)), Status::Private);
/// assert_eq!(list.shared().collect::<Vec<_>>(), [range(0x10, 8), range(0x20, 0x10)]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusList {
    /// Everything is private at first.
    kinds: AttributeMap,
}

impl Default for StatusList {
    fn default() -> Self {
        Self::new()
    }
}

/// All frames.
fn all() -> GfnRange {
    GfnRange::between(Gfn::new(0), Gfn::new(u64::MAX)).expect("not empty")
}

const fn status(attributes: Attributes) -> Status {
    match attributes.contains(Attributes::PRIVATE) {
        true => Status::Private,
        false => Status::Shared,
    }
}

impl StatusList {
    /// Everything is private.
    pub fn new() -> Self {
        let mut kinds = AttributeMap::new();
        let _changed = kinds.set(all(), Attributes::PRIVATE);
        Self { kinds }
    }

    /// The list as it was sent by [`StatusList::shared`].
    pub fn from_shared(ranges: impl IntoIterator<Item = GfnRange>) -> Self {
        let mut list = Self::new();
        for range in ranges {
            let _changed = list.set(range, Status::Shared);
        }
        list
    }

    /// Notes what a range is from now on; whether that is news for any frame.
    pub fn set(&mut self, range: GfnRange, status: Status) -> bool {
        let attributes = match status {
            Status::Private => Attributes::PRIVATE,
            Status::Shared => Attributes::empty(),
        };
        self.kinds.set(range, attributes)
    }

    /// What a frame is.
    pub fn get(&self, gfn: Gfn) -> Status {
        status(self.kinds.get(gfn))
    }

    /// A range cut where its kind changes, ascending: how dirty pages are to be sent.
    pub fn cut(&self, range: GfnRange) -> impl Iterator<Item = (GfnRange, Status)> + '_ {
        let parts = self.kinds.ranges(range);
        parts.map(|(part, attributes)| (part, status(attributes)))
    }

    /// The shared ranges, ascending: what goes along with a guest.
    pub fn shared(&self) -> impl Iterator<Item = GfnRange> + '_ {
        let parts = self.cut(all());
        parts.filter_map(|(part, status)| (status == Status::Shared).then_some(part))
    }

    /// How many shared ranges there are.
    pub fn len(&self) -> usize {
        self.shared().count()
    }

    /// Whether everything is private.
    pub fn is_empty(&self) -> bool {
        self.shared().next().is_none()
    }

    /// Forgets everything: a guest that starts another kernel tells anew.
    pub fn reset(&mut self) {
        *self = Self::new();
    }
}

/// Who keeps the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Keeper {
    /// The VMM: each announcement is an exit (`KVM_CAP_EXIT_HYPERCALL`). Merged in 5.14.
    #[default]
    Vmm,
    /// KVM, as proposed until 2021 (`KVM_GET_SHARED_PAGES_LIST`): announcements are no exits, but nothing tells the VMM of one, so that it
    /// asks for the whole list after each reading of the dirty log.
    Kernel,
}

/// What a keeper has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeeperCost {
    /// Exits to userspace for announcements.
    pub exits: u64,
    /// Calls that ask for the list.
    pub calls: u64,
    /// Ranges that those copied.
    pub ranges_copied: u64,
}

/// A list with its keeper, and what that costs.
///
/// ```
/// use slat_coco::migration::{Keeper, Status, StatusKeeper};
/// use slat_memslot::{Gfn, GfnRange, Pages};
/// for (keeper, exits, copied) in [(Keeper::Vmm, 100, 0), (Keeper::Kernel, 0, 3000)] {
///     let mut list = StatusKeeper::new(keeper);
///     for page in 0..100 {
///         list.announce(GfnRange::new(Gfn::new(2 * page), Pages::new(1)).unwrap(), Status::Shared);
///     }
///     for _round in 0..30 {
///         assert_eq!(list.query().len(), 100);
///     }
///     assert_eq!((list.cost().exits, list.cost().ranges_copied), (exits, copied));
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct StatusKeeper {
    keeper: Keeper,
    list: StatusList,
    cost: KeeperCost,
}

impl StatusKeeper {
    /// An empty list.
    pub fn new(keeper: Keeper) -> Self {
        Self {
            keeper,
            ..Self::default()
        }
    }

    /// The guest announces what a range is.
    pub fn announce(&mut self, range: GfnRange, status: Status) {
        self.cost.exits += u64::from(self.keeper == Keeper::Vmm);
        let _changed = self.list.set(range, status);
    }

    /// What the VMM needs after each reading of the dirty log.
    pub fn query(&mut self) -> &StatusList {
        if self.keeper == Keeper::Kernel {
            self.cost.calls += 1;
            self.cost.ranges_copied += self.list.len() as u64;
        }
        &self.list
    }

    /// What it has cost so far.
    pub const fn cost(&self) -> KeeperCost {
        self.cost
    }
}
