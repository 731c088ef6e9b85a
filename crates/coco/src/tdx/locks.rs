//! Locks that nobody waits for.

/// How a call holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// Together with others that hold it so.
    Shared,
    /// Alone.
    Exclusive,
}

/// A lock that is either had at once or not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TryLock {
    shared: u16,
    exclusive: bool,
}

impl TryLock {
    /// Takes it, or says that somebody else has it.
    #[must_use]
    pub(crate) const fn acquire(&mut self, hold: Hold) -> bool {
        match hold {
            Hold::Shared if !self.exclusive => self.shared += 1,
            Hold::Exclusive if !self.exclusive && self.shared == 0 => self.exclusive = true,
            Hold::Shared | Hold::Exclusive => return false,
        }
        true
    }

    /// Lets it go.
    pub(crate) const fn release(&mut self, hold: Hold) {
        match hold {
            Hold::Shared => self.shared -= 1,
            Hold::Exclusive => self.exclusive = false,
        }
    }

    /// Whether nobody has it.
    pub(crate) const fn is_free(&self) -> bool {
        !self.exclusive && self.shared == 0
    }
}

/// The locks of a TD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Locks {
    pub(crate) tdr: TryLock,
    pub(crate) tree: TryLock,
    pub(crate) epoch: TryLock,
}

impl Locks {
    pub(crate) const fn all_free(&self) -> bool {
        self.tdr.is_free() && self.tree.is_free() && self.epoch.is_free()
    }
}
