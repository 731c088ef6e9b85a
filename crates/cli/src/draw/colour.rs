//! What is drawn in which colour.

use slat_memslot::Level;

/// What an entry, or a part of guest memory, is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// A page.
    Leaf {
        level: Level,
        writable: bool,
        private: bool,
    },
    /// An access without a slot.
    Mmio,
    /// An entry that is being replaced.
    Frozen,
    /// Nothing that a trace told of.
    Unknown,
    /// A link to a table.
    Link,
}

/// Ink, and what is less important.
pub(super) const INK: &str = "#1f2933";
pub(super) const FAINT: &str = "#7b8794";
pub(super) const LINE: &str = "#9aa5b1";
pub(super) const EMPTY: &str = "#eef1f4";
/// What comes, and what goes.
pub(super) const NEW: &str = "#0b8043";
pub(super) const GONE: &str = "#c5221f";

impl Kind {
    /// The fill.
    pub(super) const fn fill(self) -> &'static str {
        match self {
            Self::Leaf {
                level,
                writable: true,
                ..
            } => match level {
                Level::L1 => "#3f78c4",
                Level::L2 => "#2f9e6e",
                Level::L3 | Level::L4 | Level::L5 => "#8e5bb5",
            },
            Self::Leaf {
                level,
                writable: false,
                ..
            } => match level {
                Level::L1 => "#a9c7ee",
                Level::L2 => "#a3dcc3",
                Level::L3 | Level::L4 | Level::L5 => "#d3b9e6",
            },
            Self::Mmio => "#f0a030",
            Self::Frozen => "#d64545",
            Self::Unknown => "url(#unknown)",
            Self::Link => "#52606d",
        }
    }

    pub(super) const fn is_private(self) -> bool {
        matches!(self, Self::Leaf { private: true, .. })
    }

    /// Where it stands in the legend: small pages first, those that can be written to before others.
    pub(super) const fn place_in_legend(self) -> (u8, bool) {
        match self {
            Self::Leaf {
                level, writable, ..
            } => (level as u8, !writable),
            Self::Mmio => (10, false),
            Self::Frozen => (11, false),
            Self::Unknown => (12, false),
            Self::Link => (13, false),
        }
    }

    /// What the legend says.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Leaf {
                level, writable, ..
            } => match (level, writable) {
                (Level::L1, true) => "4 KiB",
                (Level::L1, false) => "4 KiB, read-only",
                (Level::L2, true) => "2 MiB",
                (Level::L2, false) => "2 MiB, read-only",
                (_, true) => "1 GiB",
                (_, false) => "1 GiB, read-only",
            },
            Self::Mmio => "no slot (MMIO)",
            Self::Frozen => "frozen",
            Self::Unknown => "not known",
            Self::Link => "link to a table",
        }
    }
}
