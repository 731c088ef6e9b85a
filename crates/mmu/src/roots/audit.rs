//! What an audit of page tables has to know about roots.

use super::place::Standing;
use super::root::{Payload, RootId};
use super::table::RootTable;
use crate::sync::lock;

impl<P: Payload> RootTable<P> {
    /// All roots, the oldest first. The list is locked for each step only, and nothing is allocated.
    pub(crate) fn audited(&self) -> impl Iterator<Item = RootId> + '_ {
        (0..).map_while(|number| lock(&self.list).nth(number))
    }

    /// The references to a root, and what is noted beside them.
    pub(crate) fn standing(&self, root: RootId) -> Option<Standing> {
        self.place(root)?.standing(root.generation)
    }
}

/// Faults, for the tests of the audit.
#[cfg(all(test, not(any(loom, shuttle))))]
mod plant {
    use super::{Payload, RootId, RootTable};
    use crate::role::PageRole;
    use crate::roots::cache::Root;
    use crate::roots::mmu::VcpuMmu;

    impl<P: Payload> RootTable<P> {
        /// Gives a root another role.
        pub(crate) fn plant_role(&self, root: RootId, role: PageRole) {
            let place = self.place(root).expect("the root is there");
            let entry = place.entry(root.generation).expect("the root is there");
            place.fill(root.generation, role, entry);
        }

        /// Has a root wait to be zapped.
        pub(crate) fn plant_scheduled(&self, root: RootId) {
            self.place(root).expect("the root is there").schedule();
        }

        /// Takes the TDP MMU's own reference away.
        pub(crate) fn plant_not_owned(&self, root: RootId) {
            let place = self.place(root).expect("the root is there");
            place.put_own(root.generation).expect("it was there");
        }
    }

    impl VcpuMmu {
        /// Puts the root in use among the earlier ones, and another in use.
        pub(crate) fn plant_current(&mut self, root: Root) {
            let role = self.role();
            self.cache_mut().plant_current(root, role);
        }
    }
}
