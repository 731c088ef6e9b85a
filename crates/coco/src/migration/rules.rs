//! What guest and VMM promise each other.

use core::fmt;

/// What guest and VMM promise each other in a migration. The default is all that is needed, and nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rules {
    /// The guest announces a page's new kind before it accesses the page that way. Otherwise it announces afterwards.
    pub announce_first: bool,
    /// In every round the VMM reads the dirty log first and the list of kinds then. Otherwise the list first.
    pub dirty_before_list: bool,
    /// What was in a page is lost to the guest once it has announced another kind. Otherwise it may go back and read it.
    pub data_lost: bool,
    /// The VMM knows the new kind before the guest goes on after announcing it. Otherwise it hears later.
    pub synchronous: bool,
    /// The VMM stops the guest and makes one more round before the guest goes on elsewhere.
    pub final_round: bool,
    /// The list goes along with the guest.
    pub list_moves: bool,
    /// The list is read anew for the last round. Otherwise that of the round before is used again.
    pub fresh_list: bool,
    /// Pages of which nothing was heard are private. Otherwise the VMM takes them for shared.
    pub private_by_default: bool,
    /// An announcement marks the page dirty. Not needed; it repairs some of what the lack of other rules breaks.
    pub announcement_dirties: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            announce_first: true,
            dirty_before_list: true,
            data_lost: true,
            synchronous: true,
            final_round: true,
            list_moves: true,
            fresh_list: true,
            private_by_default: true,
            announcement_dirties: false,
        }
    }
}

impl Rules {
    /// These rules, one of them kept or not.
    #[must_use]
    pub const fn with(mut self, rule: Rule, kept: bool) -> Self {
        *self.rule_mut(rule) = kept;
        self
    }

    /// Whether a rule is kept.
    pub const fn has(mut self, rule: Rule) -> bool {
        *self.rule_mut(rule)
    }

    const fn rule_mut(&mut self, rule: Rule) -> &mut bool {
        match rule {
            Rule::AnnounceFirst => &mut self.announce_first,
            Rule::DirtyBeforeList => &mut self.dirty_before_list,
            Rule::DataLost => &mut self.data_lost,
            Rule::Synchronous => &mut self.synchronous,
            Rule::FinalRound => &mut self.final_round,
            Rule::ListMoves => &mut self.list_moves,
            Rule::FreshList => &mut self.fresh_list,
            Rule::PrivateByDefault => &mut self.private_by_default,
            Rule::AnnouncementDirties => &mut self.announcement_dirties,
        }
    }
}

/// The name of one of the [`Rules`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// [`Rules::announce_first`]
    AnnounceFirst,
    /// [`Rules::dirty_before_list`]
    DirtyBeforeList,
    /// [`Rules::data_lost`]
    DataLost,
    /// [`Rules::synchronous`]
    Synchronous,
    /// [`Rules::final_round`]
    FinalRound,
    /// [`Rules::list_moves`]
    ListMoves,
    /// [`Rules::fresh_list`]
    FreshList,
    /// [`Rules::private_by_default`]
    PrivateByDefault,
    /// [`Rules::announcement_dirties`]
    AnnouncementDirties,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::AnnounceFirst,
        Self::DirtyBeforeList,
        Self::DataLost,
        Self::Synchronous,
        Self::FinalRound,
        Self::ListMoves,
        Self::FreshList,
        Self::PrivateByDefault,
        Self::AnnouncementDirties,
    ];

    /// Its name in commands and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AnnounceFirst => "announce-first",
            Self::DirtyBeforeList => "dirty-before-list",
            Self::DataLost => "data-lost",
            Self::Synchronous => "synchronous",
            Self::FinalRound => "final-round",
            Self::ListMoves => "list-moves",
            Self::FreshList => "fresh-list",
            Self::PrivateByDefault => "private-by-default",
            Self::AnnouncementDirties => "announcement-dirties",
        }
    }

    /// What it demands, in a sentence.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::AnnounceFirst => {
                "the guest announces a page's new kind before it accesses the page that way"
            }
            Self::DirtyBeforeList => "each round reads the dirty log first and the list then",
            Self::DataLost => {
                "what was in a page is lost to the guest once it has announced another kind"
            }
            Self::Synchronous => "the VMM knows the new kind before the guest goes on",
            Self::FinalRound => "the guest is stopped for one more round before it moves",
            Self::ListMoves => "the list goes along with the guest",
            Self::FreshList => "the last round reads the list anew",
            Self::PrivateByDefault => "pages of which nothing was heard are private",
            Self::AnnouncementDirties => "an announcement marks the page dirty",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What tells the host of a page's kind, and what happens to one that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Technology {
    /// SEV and SEV-ES: the guest's own tables decide; nothing checks what the host was told, and the firmware takes any page.
    #[default]
    Sev,
    /// SEV-SNP: the reverse map decides. An access of the other kind faults until the host has changed the entry; a change takes
    /// the contents away, and the firmware refuses to export a page of the wrong kind.
    Snp,
    /// TDX: secure EPT and the shared bit decide. The same holds: a change removes the page, accepting it anew zeroes it, and
    /// the module exports no page that is not the guest's.
    Tdx,
}

impl Technology {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sev, Self::Snp, Self::Tdx];

    /// Whether the host's knowledge of a page is what hardware goes by, so that neither side can get ahead of the other.
    pub const fn is_enforced(self) -> bool {
        !matches!(self, Self::Sev)
    }

    /// Its name in commands and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sev => "sev",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
        }
    }

    /// What is left of the rules to break: hardware sees to the order of announcement and access, to the loss of contents, and
    /// to the VMM's knowledge; what is exported says what it is.
    pub(super) const fn enforce(self, mut rules: Rules) -> Rules {
        if self.is_enforced() {
            rules.announce_first = true;
            rules.data_lost = true;
            rules.synchronous = true;
            rules.private_by_default = true;
            rules.list_moves = true;
        }
        rules
    }
}
