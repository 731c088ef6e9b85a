//! What the VMM does: rounds of reading the dirty log, reading the list, and sending.

use core::fmt;

use super::page::Page;
use super::rules::{Rules, Technology};

/// One step of the VMM, on all pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostOp {
    /// Hears of an announcement: where the guest did not wait for that.
    Hear,
    /// Reads and clears the dirty log (`KVM_GET_DIRTY_LOG`).
    GetDirty,
    /// Reads the list of kinds.
    GetList,
    /// Sends the pages that it took from the dirty log, by the kinds that it read: private ones by the firmware
    /// (`KVM_SEV_SEND_UPDATE_DATA`), shared ones as they are.
    Send,
    /// Stops the guest.
    Stop,
    /// Lets it go on at the destination.
    Resume,
}

impl HostOp {
    /// Does it to one page.
    pub(super) fn apply(self, page: &mut Page, rules: Rules, technology: Technology) {
        match self {
            Self::Hear => {
                if let Some(kind) = page.unheard.take() {
                    page.listed = kind;
                }
            }
            Self::GetDirty => page.taken |= core::mem::take(&mut page.dirty),
            Self::GetList => page.read = page.listed,
            // Hardware refuses a page of the wrong kind, whereupon the VMM reads what it is.
            Self::Send if technology.is_enforced() => page.send(page.listed),
            Self::Send => page.send(page.read),
            Self::Stop => (),
            Self::Resume => {
                if !rules.list_moves {
                    page.listed = super::search::default_status(rules);
                }
            }
        }
    }
}

impl fmt::Display for HostOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hear => "hears of it",
            Self::GetDirty => "get_dirty",
            Self::GetList => "get_list",
            Self::Send => "transfer",
            Self::Stop => "stop vCPU",
            Self::Resume => "migrate vCPU",
        })
    }
}

/// When a VMM reads the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListOrder {
    /// Before the dirty log, in every round.
    ListFirst,
    /// After the dirty log, in every round.
    DirtyFirst,
    /// After the dirty log, and for the last round once more before the guest is stopped.
    Once,
}

impl ListOrder {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ListFirst, Self::DirtyFirst, Self::Once];

    pub(super) const fn round(self) -> [HostOp; 3] {
        match self {
            Self::ListFirst => [HostOp::GetList, HostOp::GetDirty, HostOp::Send],
            Self::DirtyFirst | Self::Once => [HostOp::GetDirty, HostOp::GetList, HostOp::Send],
        }
    }

    /// What is done while the guest stands still.
    pub(super) fn last_round(self) -> impl Iterator<Item = HostOp> {
        let list = !matches!(self, Self::Once);
        self.round()
            .into_iter()
            .filter(move |&op| list || op != HostOp::GetList)
    }

    /// The order that these rules make.
    pub(super) const fn of(rules: Rules) -> Self {
        if rules.dirty_before_list {
            Self::DirtyFirst
        } else {
            Self::ListFirst
        }
    }
}

impl fmt::Display for ListOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ListFirst => "list before dirty",
            Self::DirtyFirst => "dirty before list",
            Self::Once => "list fetched once, before the stop",
        })
    }
}
