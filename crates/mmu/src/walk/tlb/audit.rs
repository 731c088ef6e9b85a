//! Whether what is kept still holds.

use core::fmt;

use slat_memslot::{Gfn, Gpa, Gva};

use super::Tlb;
use super::context::Context;
use super::second::SecondEntry;
use super::second_tables::SecondTable;
use crate::access::Access;
use crate::spte::{Entry, Format};
use crate::table::{TableId, span};
use crate::tdp::{Locked, Side};
use crate::walk::guest::TABLE;
use crate::walk::second::wanted;

/// How a cached page contradicts the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Contradiction {
    /// The tables map nothing there.
    Gone,
    /// The tables map another page.
    Moved,
    /// The tables allow less.
    Weakened {
        /// What they do not allow.
        lost: Access,
    },
    /// The leaf is not marked as dirty any more: a write through the cache would leave no mark.
    Clean,
    /// The table of the second stage is not linked there any more: walks through the cache would go on in what has become of
    /// it.
    Unlinked,
}

/// A cached page or table that contradicts the tables: a flush is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// To whom it belongs.
    pub context: Context,
    /// The guest's own address; nothing for a guest-physical page, or a table of the second stage.
    pub address: Option<Gva>,
    /// Where it is for the guest; of a table, what it maps first.
    pub gpa: Gpa,
    /// What is wrong.
    pub contradiction: Contradiction,
}

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{address}, {}: ", self.gpa)?,
            None => write!(f, "{}: ", self.gpa)?,
        }
        match self.contradiction {
            Contradiction::Gone => f.write_str("kept, and the tables map nothing"),
            Contradiction::Moved => f.write_str("kept, and the tables map another page"),
            Contradiction::Weakened { lost } => {
                write!(f, "kept with {lost}, which the tables do not allow")
            }
            Contradiction::Unlinked => f.write_str("a table is kept that is not linked there"),
            Contradiction::Clean => f.write_str("kept as dirty, and the leaf is clean"),
        }
    }
}

/// A cached page, whatever kind it is of.
struct Kept {
    context: Context,
    address: Option<Gva>,
    gpa: Gpa,
    hpa: u64,
    rights: Access,
    dirty: bool,
}

impl Tlb {
    /// Compares everything that is kept under some roots with the tables of the second stage, and gives what contradicts
    /// them.
    ///
    /// `roots` are those that the vCPU could use without a flush: the one in use and the previous ones. What is kept
    /// under other roots is out of reach: a root is flushed when it is loaded. Marks as accessed do not count, since KVM
    /// ages pages without a flush.
    pub fn audit<S: Side, O>(&self, locked: &Locked<S, O>, roots: &[TableId]) -> Vec<Stale> {
        let pages = self.pages().map(|page| Kept {
            context: page.context,
            address: Some(page.address),
            gpa: page.gpa,
            hpa: page.hpa.raw(),
            rights: page.second_rights,
            dirty: page.dirty,
        });
        let second = self.second.iter().map(|entry: &SecondEntry| Kept {
            context: entry.context,
            address: None,
            gpa: entry.gfn.gpa(),
            hpa: entry.page.hpa.raw(),
            rights: entry.page.rights,
            dirty: entry.dirty,
        });
        let written = locked.tables().codec().host().ad_enabled() || S::Format::EXECUTE == 0;
        let last_tables = self.tables.last_tables().map(|table| Kept {
            context: *table.context(),
            address: Some(table.address()),
            gpa: table.gpa(),
            hpa: table.hpa().raw(),
            rights: wanted::<S::Format>(TABLE, written),
            dirty: written,
        });
        let stale_pages = pages
            .chain(second)
            .chain(last_tables)
            .filter(|kept| roots.contains(&kept.context.root))
            .filter_map(|kept| kept.check(locked));
        let stale_tables = self
            .second_tables
            .iter()
            .filter(|kept| roots.contains(&kept.context.root) && !kept.is_linked(locked))
            .map(SecondTable::stale);
        stale_pages.chain(stale_tables).collect()
    }
}

impl SecondTable {
    /// Whether a walk from the root comes to it.
    fn is_linked<S: Side, O>(&self, locked: &Locked<S, O>) -> bool {
        let tables = locked.tables();
        let root = tables.at_root(self.context.root);
        tables.descend(root, self.first, self.reached.level) == self.reached
    }

    fn stale(&self) -> Stale {
        Stale {
            context: self.context,
            address: None,
            gpa: Gfn::new(self.first).gpa(),
            contradiction: Contradiction::Unlinked,
        }
    }
}

impl Kept {
    fn check<S: Side, O>(&self, locked: &Locked<S, O>) -> Option<Stale> {
        let contradiction = self.contradiction(locked)?;
        Some(Stale {
            context: self.context,
            address: self.address,
            gpa: self.gpa,
            contradiction,
        })
    }

    fn contradiction<S: Side, O>(&self, locked: &Locked<S, O>) -> Option<Contradiction> {
        let found = locked.find(self.context.root, self.gpa.gfn());
        let codec = locked.tables().codec();
        let Entry::Leaf(leaf) = codec.decode(found.spte, found.level) else {
            return Some(Contradiction::Gone);
        };
        let offset = self.gpa.gfn().raw() & (span(found.level) - 1);
        if (leaf.pfn.raw() + offset) << 12 != self.hpa {
            return Some(Contradiction::Moved);
        }
        let lost = self.rights - leaf.allowed();
        if lost.intersects(Access::USER | Access::EXECUTE)
            || self.dirty && lost.contains(Access::WRITE)
        {
            return Some(Contradiction::Weakened { lost });
        }
        let marked = codec.is_ad_disabled(found.spte) || leaf.dirty;
        (self.dirty && !marked).then_some(Contradiction::Clean)
    }
}
