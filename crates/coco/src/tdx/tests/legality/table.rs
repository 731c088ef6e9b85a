//! What the module's tables say, written down from the fact sheet: states by name, op-states by number.

/// Which calls a state, an op-state and a level allow.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) states: &'static [&'static str],
    /// The lowest and the highest level of an entry; 0 for the root's.
    pub(super) levels: (u8, u8),
    pub(super) op_states: &'static [u8],
}

/// A call that leaves the entry's state behind.
const fn row(
    name: &'static str,
    states: &'static [&'static str],
    levels: (u8, u8),
    op_states: &'static [u8],
) -> Row {
    Row {
        name,
        states,
        levels,
        op_states,
    }
}

const AS_BLOCK: &[u8] = &[1, 2, 3, 4, 5, 8, 9];
const BUT_0: &[u8] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
const ALL: &[&str] = &[
    "FREE",
    "REMOVED",
    "NL_MAPPED",
    "NL_BLOCKED",
    "MAPPED",
    "BLOCKED",
    "BLOCKEDW",
    "EXPORTED_BLOCKEDW",
    "EXPORTED_DIRTY",
    "EXPORTED_DIRTY_BLOCKEDW",
    "PENDING",
    "PENDING_BLOCKED",
    "PENDING_BLOCKEDW",
    "PENDING_EXPORTED_BLOCKEDW",
    "PENDING_EXPORTED_DIRTY",
    "PENDING_EXPORTED_DIRTY_BLOCKEDW",
];
const LEAVES: &[&str] = ALL.split_at(4).1;

/// Calls about an entry.
#[rustfmt::skip]
pub(super) const CALLS: &[Row] = &[
    row("TDH.MEM.PAGE.ADD", &["FREE"], (1, 1), &[1]),
    row("TDH.MEM.SEPT.ADD", &["FREE"], (2, 0), &[1, 2, 3, 6, 7, 8, 9]),
    row("TDH.MEM.PAGE.RELOCATE", LEAVES, (1, 1), AS_BLOCK),
    row("TDH.MEM.PAGE.AUG", &["FREE", "REMOVED"], (1, 2), &[1, 2, 3, 9]),
    row("TDH.MEM.RANGE.BLOCK", &["NL_MAPPED", "MAPPED", "BLOCKEDW", "PENDING", "PENDING_BLOCKEDW"], (1, 0), AS_BLOCK),
    row("TDH.MEM.RD", &["MAPPED", "BLOCKEDW", "EXPORTED_BLOCKEDW", "EXPORTED_DIRTY", "EXPORTED_DIRTY_BLOCKEDW"], (1, 0), BUT_0),
    row("TDH.MEM.WR", &["MAPPED", "EXPORTED_DIRTY"], (1, 0), &[1, 2, 3, 6, 7, 8, 9, 10]),
    row("TDH.MEM.PAGE.DEMOTE", &["MAPPED", "BLOCKED", "PENDING", "PENDING_BLOCKED"], (2, 3), AS_BLOCK),
    row("TDH.MR.EXTEND", &["MAPPED"], (1, 0), &[1]),
    row("TDH.MEM.PAGE.PROMOTE", &["NL_MAPPED", "NL_BLOCKED"], (2, 3), AS_BLOCK),
    row("TDH.MEM.SEPT.RD", ALL, (1, 0), BUT_0),
    row("TDH.MEM.PAGE.REMOVE", &["MAPPED", "BLOCKED", "BLOCKEDW", "PENDING", "PENDING_BLOCKED", "PENDING_BLOCKEDW"], (1, 3),
        &[1, 2, 3, 4, 5, 8, 9, 10]),
    row("TDH.MEM.SEPT.REMOVE", &["NL_MAPPED", "NL_BLOCKED"], (2, 0), BUT_0),
    row("TDH.MEM.TRACK", &[], (1, 0), &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
    row("TDH.MEM.RANGE.UNBLOCK", &["NL_BLOCKED", "BLOCKED", "PENDING_BLOCKED"], (1, 0), AS_BLOCK),
];

/// Calls of which the model knows the tables only.
#[rustfmt::skip]
pub(super) const TABLES_ONLY: &[Row] = &[
    row("TDH.EXPORT.BLOCKW", &["MAPPED", "EXPORTED_DIRTY", "PENDING", "PENDING_EXPORTED_DIRTY"], (1, 0), &[3]),
    row("TDH.EXPORT.RESTORE", &["EXPORTED_BLOCKEDW", "EXPORTED_DIRTY", "EXPORTED_DIRTY_BLOCKEDW", "PENDING_EXPORTED_BLOCKEDW",
        "PENDING_EXPORTED_DIRTY", "PENDING_EXPORTED_DIRTY_BLOCKEDW"], (1, 0), &[2]),
    row("TDH.EXPORT.MEM", &["MAPPED", "BLOCKEDW", "EXPORTED_BLOCKEDW", "EXPORTED_DIRTY", "EXPORTED_DIRTY_BLOCKEDW", "PENDING",
        "PENDING_BLOCKEDW", "PENDING_EXPORTED_BLOCKEDW", "PENDING_EXPORTED_DIRTY", "PENDING_EXPORTED_DIRTY_BLOCKEDW"], (1, 0), &[3, 4, 5]),
    row("TDH.EXPORT.UNBLOCKW", &["BLOCKEDW", "EXPORTED_BLOCKEDW", "EXPORTED_DIRTY_BLOCKEDW", "PENDING_BLOCKEDW",
        "PENDING_EXPORTED_BLOCKEDW", "PENDING_EXPORTED_DIRTY_BLOCKEDW"], (1, 0), &[2, 3, 4, 5]),
    row("TDH.IMPORT.MEM", &["FREE", "REMOVED", "MAPPED", "PENDING"], (1, 0), &[6, 7, 8, 9]),
    row("TDH.VP.ENTER", &[], (1, 0), &[2, 3, 9]),
    row("TDH.VP.CREATE", &[], (1, 0), &[1, 7]),
    row("TDH.VP.INIT", &[], (1, 0), &[1]),
];

/// Calls of the guest.
#[rustfmt::skip]
pub(super) const GUEST: &[Row] = &[
    row("TDG.MEM.PAGE.ACCEPT", &["PENDING", "PENDING_EXPORTED_DIRTY"], (1, 2), &[]),
    row("TDG.MEM.PAGE.ATTR.RD", &["MAPPED", "BLOCKEDW", "EXPORTED_BLOCKEDW", "EXPORTED_DIRTY", "EXPORTED_DIRTY_BLOCKEDW", "PENDING",
        "PENDING_BLOCKEDW", "PENDING_EXPORTED_BLOCKEDW", "PENDING_EXPORTED_DIRTY", "PENDING_EXPORTED_DIRTY_BLOCKEDW"], (1, 0), &[]),
    row("TDG.MEM.PAGE.ATTR.WR", &["MAPPED", "EXPORTED_DIRTY", "PENDING", "PENDING_EXPORTED_DIRTY"], (1, 0), &[]),
];

/// Encoding and public value of every state, in the order of the module's tables.
#[rustfmt::skip]
pub(super) const STATES: &[(&str, u8, u8)] = &[
    ("FREE", 0x0e, 0), ("REMOVED", 0x0c, 5), ("NL_MAPPED", 0x00, 0x84), ("NL_BLOCKED", 0x08, 0x81),
    ("MAPPED", 0x60, 4), ("BLOCKED", 0x68, 1), ("BLOCKEDW", 0x64, 8), ("EXPORTED_BLOCKEDW", 0x66, 9),
    ("EXPORTED_DIRTY", 0x63, 11), ("EXPORTED_DIRTY_BLOCKEDW", 0x67, 12), ("PENDING", 0x70, 2),
    ("PENDING_BLOCKED", 0x78, 3), ("PENDING_BLOCKEDW", 0x74, 16), ("PENDING_EXPORTED_BLOCKEDW", 0x76, 17),
    ("PENDING_EXPORTED_DIRTY", 0x73, 19), ("PENDING_EXPORTED_DIRTY_BLOCKEDW", 0x77, 20),
];
