//! One page: what the guest has in it, what the host knows of it, what has arrived at the destination.

use core::fmt;

use super::guest::Half;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Status {
    /// Encrypted.
    #[default]
    Private,
    /// In the clear.
    Shared,
}

impl Status {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Private, Self::Shared];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Private => Self::Shared,
            Self::Shared => Self::Private,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Private => "private",
            Self::Shared => "shared",
        })
    }
}

/// What the guest has in half a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Content {
    /// How it was written last.
    pub(super) written: Status,
    /// Whether the guest counts on it.
    pub(super) relied_on: bool,
}

/// What the destination has of half a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Copy {
    /// Nothing, or what the guest has overwritten since.
    Old,
    /// What the guest has.
    Latest,
    /// Noise: sent as what it was not.
    Noise,
}

/// A page on both hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Page {
    /// How the guest's tables map it (the C-bit).
    pub(super) mapped: Status,
    /// What the guest has announced and the VMM has not heard yet.
    pub(super) unheard: Option<Status>,
    /// What the list of the host where the guest runs says.
    pub(super) listed: Status,
    pub(super) dirty: bool,
    pub(super) halves: [Content; 2],
    /// Whether the VMM has taken it from the dirty log and not sent it yet.
    pub(super) taken: bool,
    /// What the VMM has read in the list.
    pub(super) read: Status,
    pub(super) copies: [Copy; 2],
}

impl Page {
    /// Private memory that the guest counts on, none of it sent.
    pub(super) const fn new(default: Status) -> Self {
        let content = Content {
            written: Status::Private,
            relied_on: true,
        };
        Self {
            mapped: Status::Private,
            unheard: None,
            listed: default,
            dirty: true,
            halves: [content; 2],
            taken: false,
            read: default,
            copies: [Copy::Old; 2],
        }
    }

    pub(super) fn content(&mut self, half: Half) -> &mut Content {
        &mut self.halves[half as usize]
    }

    /// The guest writes half of it. Elsewhere than where the migration began, what it writes is what it has there.
    pub(super) fn write(&mut self, half: Half, kind: Status, has_moved: bool) {
        *self.content(half) = Content {
            written: kind,
            relied_on: true,
        };
        self.dirty = true;
        let copy = &mut self.copies[half as usize];
        match (has_moved, *copy) {
            (true, _) => *copy = Copy::Latest,
            (false, Copy::Latest) => *copy = Copy::Old,
            (false, Copy::Old | Copy::Noise) => (),
        }
    }

    /// What was written as another kind than this counts no more.
    pub(super) fn lose_other_than(&mut self, kind: Status) {
        for content in &mut self.halves {
            content.relied_on &= content.written == kind;
        }
    }

    /// The VMM sends it as this kind, if it has taken it.
    pub(super) fn send(&mut self, kind: Status) {
        if core::mem::take(&mut self.taken) {
            for (copy, content) in self.copies.iter_mut().zip(self.halves) {
                *copy = if content.written == kind {
                    Copy::Latest
                } else {
                    Copy::Noise
                };
            }
        }
    }

    /// A half that the guest counts on and does not find, though it maps the page as what it wrote there.
    pub(super) fn broken_half(&self) -> Option<Half> {
        Half::ALL.into_iter().find(|&half| {
            let content = self.halves[half as usize];
            content.written == self.mapped && self.has_lost(half)
        })
    }

    /// Whether the destination lacks what the guest counts on.
    pub(super) fn has_lost(&self, half: Half) -> bool {
        self.halves[half as usize].relied_on && self.copies[half as usize] != Copy::Latest
    }
}
