//! What always holds between a module's tables, its page metadata and the TLBs.

use rustc_hash::FxHashMap;
use slat_memslot::{Gpa, PageSize};
use slat_mmu::spte::Pfn;

use super::module::{Module, State};
use super::op_state::Lifecycle;
use super::pamt::{PageType, size_at};
use super::sept::{Place, SeptEntry, SeptState};
use super::td::{Td, Tdr};

slat_mmu::audit_codes! {
    /// An invariant of the module.
    TdxCode "T":
    1 TableType "table-type" "A linked table is a page of the S-EPT that the TD owns."
    2 LeafType "leaf-type" "A mapped page is a page of memory of that size that the TD owns."
    3 MappedTwice "mapped-twice" "No page is mapped or linked by two entries."
    4 OrphanPage "orphan-page" "A page of memory or of the S-EPT is mapped or linked by its owner."
    5 OrphanTable "orphan-table" "A table is linked, or the root."
    6 Children "children" "A TD's count of pages is the number of its pages of 4 KiB."
    7 Permissions "permissions" "An entry's permissions follow from its state."
    8 FutureEpoch "future-epoch" "What is blocked was blocked in an epoch that has begun."
    9 InsideCount "inside-count" "The vCPUs inside are counted in the epochs in which they entered."
    10 OldEpoch "old-epoch" "A vCPU inside entered in the present epoch or in the one before."
    11 StaleTlb "stale-tlb" "No TLB of a vCPU inside leads to a page that the TD does not own."
    12 LockLeftBehind "lock-left-behind" "No lock is held while no call is under way."
}

/// Where an invariant does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TdxViolation {
    /// Which.
    pub code: TdxCode,
    /// For which TD.
    pub td: Tdr,
    /// At which address, if it is about an entry.
    pub gpa: Option<Gpa>,
    /// About which page of the host, if it is about one.
    pub page: Option<Pfn>,
}

impl Module {
    /// Audits everything while no call is under way, and gives every violation.
    pub fn audit(&self) -> Vec<TdxViolation> {
        let state = self.state();
        let mut violations = Vec::new();
        for (tdr, td) in &state.tds {
            let mut audit = Audit {
                state: &state,
                tdr: *tdr,
                td,
                seen: FxHashMap::default(),
                violations: &mut violations,
            };
            // Once the key is free nobody reads the tables any more.
            let alive = td.lifecycle != Lifecycle::Teardown;
            if alive {
                audit.entries();
            }
            audit.pages(alive);
            audit.vcpus();
        }
        violations
    }
}

struct Audit<'a> {
    state: &'a State,
    tdr: Tdr,
    td: &'a Td,
    /// Pages that an entry maps or links.
    seen: FxHashMap<Pfn, PageSize>,
    violations: &'a mut Vec<TdxViolation>,
}

impl Audit<'_> {
    fn report(&mut self, code: TdxCode, gpa: Option<Gpa>, page: Option<Pfn>) {
        self.violations.push(TdxViolation {
            code,
            td: self.tdr,
            gpa,
            page,
        });
    }

    fn check(&mut self, holds: bool, code: TdxCode, gpa: Option<Gpa>, page: Option<Pfn>) {
        if !holds {
            self.report(code, gpa, page);
        }
    }

    fn entries(&mut self) {
        let Some(sept) = &self.td.sept else { return };
        let mut linked = 1;
        sept.for_each(|gpa, place, entry| {
            linked += usize::from(entry.state().is_table());
            self.entry(gpa, place, entry);
        });
        self.check(linked == sept.len(), TdxCode::OrphanTable, None, None);
    }

    fn entry(&mut self, gpa: Gpa, place: Place, entry: SeptEntry) {
        let (state, at) = (entry.state(), Some(gpa));
        let page = entry.base(place.level);
        let (size, wanted, code) = if state.is_table() {
            (PageSize::Size4K, PageType::Ept, TdxCode::TableType)
        } else {
            let size = size_at(place.level).unwrap_or(PageSize::Size1G);
            (size, PageType::Regular, TdxCode::LeafType)
        };
        let found = self.state.pamt.find(page);
        let owned = found.is_some_and(|(known, of)| {
            (known.page_type, known.owner, of) == (wanted, Some(self.tdr), size)
        });
        self.check(owned, code, at, Some(page));
        let twice = self.seen.insert(page, size).is_some();
        self.check(!twice, TdxCode::MappedTwice, at, Some(page));
        let permitted = entry.permissions() == permissions_of(state);
        self.check(permitted, TdxCode::Permissions, at, Some(page));
        let blocked = found.map_or(0, |(known, _)| known.blocked_epoch);
        let past = !state.is_blocked() || blocked <= self.td.epochs.current();
        self.check(past, TdxCode::FutureEpoch, at, Some(page));
        self.check(!entry.is_locked(), TdxCode::LockLeftBehind, at, Some(page));
    }

    fn pages(&mut self, alive: bool) {
        let mut children = 0;
        let pamt = &self.state.pamt;
        for (page, size, known) in pamt.pages() {
            if known.owner != Some(self.tdr) || known.page_type == PageType::Tdr {
                continue;
            }
            children += size.pages().raw();
            let mapped = matches!(known.page_type, PageType::Regular | PageType::Ept);
            let seen = !alive || !mapped || self.seen.contains_key(&page);
            self.check(seen, TdxCode::OrphanPage, None, Some(page));
        }
        self.check(children == self.td.children, TdxCode::Children, None, None);
        self.check(
            self.td.locks.all_free(),
            TdxCode::LockLeftBehind,
            None,
            None,
        );
    }

    fn vcpus(&mut self) {
        let mut inside = [0; 2];
        let epoch = self.td.epochs.current();
        for vp in self.td.vps.iter().filter(|vp| vp.is_inside()) {
            inside[usize::from(vp.epoch % 2 == 1)] += 1;
            let recent = vp.epoch == epoch || vp.epoch + 1 == epoch;
            self.check(recent, TdxCode::OldEpoch, None, None);
            for (gfn, cached) in &vp.tlb {
                let owned = self.owns_memory(cached.page);
                let at = Some(gfn.gpa());
                self.check(owned, TdxCode::StaleTlb, at, Some(cached.page));
            }
        }
        let counted = inside == self.td.epochs.inside();
        self.check(counted, TdxCode::InsideCount, None, None);
    }

    /// Whether a page of 4 KiB is a part of the TD's memory.
    fn owns_memory(&self, page: Pfn) -> bool {
        use slat_memslot::Level;
        [Level::L1, Level::L2, Level::L3].into_iter().any(|level| {
            let found = self.state.pamt.find(page.round_down(level));
            found.is_some_and(|(known, size)| {
                let covers = size.level() >= level;
                covers && known.owner == Some(self.tdr) && known.page_type == PageType::Regular
            })
        })
    }
}

/// What the manual says of a state's permissions, apart from how entries are made.
const fn permissions_of(state: SeptState) -> u64 {
    match state {
        SeptState::NlMapped | SeptState::Mapped | SeptState::ExportedDirty => 0b111,
        SeptState::BlockedW | SeptState::ExportedBlockedW | SeptState::ExportedDirtyBlockedW => {
            0b101
        }
        _ => 0,
    }
}
