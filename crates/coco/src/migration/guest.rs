//! What the guest does to a page.

use core::fmt;

use super::page::{Page, Status};
use super::rules::{Rules, Technology};

/// Half of a page: what a guest writes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// The first.
    First,
    /// The second.
    Second,
}

impl Half {
    /// Both.
    pub const ALL: [Self; 2] = [Self::First, Self::Second];
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first half",
            Self::Second => "second half",
        })
    }
}

/// One step of the guest, on one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GuestOp {
    /// Changes how its own tables map the page, and tells nobody yet.
    Remap(Status),
    /// Announces what the page is from now on (`KVM_HC_MAP_GPA_RANGE`), and maps it so.
    Announce(Status),
    /// Writes half of the page as this kind.
    Write(Half, Status),
    /// Begins to count on what it wrote. It touches nothing; the host may act before and after it.
    Rely,
    /// Gives up what is in the page.
    Lose,
    /// Reads what it counts on.
    Read(Status),
}

impl GuestOp {
    /// What a guest that keeps to the rules may do to this page now. Reading changes nothing and is left out.
    pub(super) fn allowed(page: &Page, rules: Rules) -> impl Iterator<Item = Self> {
        let convert = if rules.announce_first {
            Some(Self::Announce(page.mapped.other()))
        } else {
            Some(Self::Remap(page.mapped.other()))
        };
        // A late guest tells what it has done already. One whose announcement is on its way waits with the next.
        let announced = page.unheard.unwrap_or(page.listed);
        let late = (!rules.announce_first && announced != page.mapped)
            .then_some(Self::Announce(page.mapped));
        let may_convert = page.unheard.is_none();
        let writes = Half::ALL.map(|half| Self::Write(half, page.mapped));
        convert
            .into_iter()
            .chain(late)
            .filter(move |_| may_convert)
            .chain(writes)
    }

    /// Does it.
    pub(super) fn apply(self, page: &mut Page, rules: Rules, has_moved: bool) {
        match self {
            Self::Remap(kind) => {
                page.mapped = kind;
                if rules.data_lost {
                    page.lose_other_than(kind);
                }
            }
            Self::Announce(kind) => {
                page.mapped = kind;
                if rules.data_lost {
                    page.lose_other_than(kind);
                }
                if rules.announcement_dirties {
                    page.dirty = true;
                }
                if rules.synchronous {
                    page.listed = kind;
                } else {
                    page.unheard = Some(kind);
                }
            }
            Self::Write(half, kind) => page.write(half, kind, has_moved),
            Self::Lose => {
                for half in Half::ALL {
                    page.content(half).relied_on = false;
                }
            }
            Self::Rely | Self::Read(_) => (),
        }
    }

    /// Where contents that hardware takes away go: a page of the other kind holds nothing.
    pub(super) fn take_contents(self, page: &mut Page, technology: Technology) {
        if technology.is_enforced() && matches!(self, Self::Announce(_)) {
            for half in Half::ALL {
                page.content(half).relied_on = false;
            }
        }
    }
}

impl fmt::Display for GuestOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remap(kind) => write!(f, "map as {kind}"),
            Self::Announce(kind) => write!(f, "set_{kind}"),
            Self::Write(half, kind) => write!(f, "write {half} as {kind}"),
            Self::Rely => f.write_str("count on it"),
            Self::Lose => f.write_str("give up the contents"),
            Self::Read(kind) => write!(f, "read as {kind}"),
        }
    }
}
