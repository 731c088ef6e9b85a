//! What always holds between the mirror, the S-EPT, the attributes and the pages behind them.

use std::collections::BTreeMap;

use slat_memslot::{Gfn, Level};
use slat_mmu::Access;
use slat_mmu::role::RoleFlag;
use slat_mmu::spte::{Codec, Entry, Ept, Leaf, Pfn, Spte};
use slat_mmu::table::TableId;
use slat_mmu::tdp::audit::AuditContext;
use slat_mmu::tdp::dump::{Detail, Root};

use super::backend::Stage;
use super::vm::{TdxMmu, TdxTables};
use crate::sync::lock;
use crate::tdx::{EntryView, PageType, SeptState};

slat_mmu::audit_codes! {
    /// An invariant of the mirror.
    MirrorCode "M":
    1 ExternalPage "external-page" "Behind each table of the mirror is one page of the S-EPT, linked at the same address and level."
    2 LeafMismatch "leaf-mismatch" "What the mirror maps, the S-EPT maps to the same page, pending or mapped."
    3 NotFree "not-free" "Where the mirror has nothing, the S-EPT has nothing."
    4 HugeLeaf "huge-leaf" "The mirror maps pages of 4 KiB only."
    5 PendingWhileBuilt "pending-while-built" "Nothing waits to be accepted before the TD can run."
    6 SharedInMirror "shared-in-mirror" "The mirror maps no address with the SHARED bit."
    7 PrivateInDirect "private-in-direct" "A direct root maps addresses with the SHARED bit only."
    8 PrivateAttribute "private-attribute" "What the mirror maps is private by its attribute."
    9 SharedAttribute "shared-attribute" "What a direct root maps is shared by its attribute."
    10 Permissions "permissions" "What the mirror maps can be read, written and executed, and is not tracked."
    11 RootReplaced "root-replaced" "There is one mirror root, valid, from the first day to the last."
    12 WrongPage "wrong-page" "What the mirror maps is the page of guest_memfd for that frame, in a slot."
    13 TableLost "table-lost" "No table of the mirror is lost."
    14 Module "module" "The module's own invariants hold."
    15 Tables "tables" "The invariants of all page tables hold."
}

/// Where an invariant does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorViolation {
    /// Which.
    pub code: MirrorCode,
    /// At which frame, if it is about one.
    pub gfn: Option<Gfn>,
    /// What was found.
    pub evidence: String,
}

/// To read (which this bit means in an EPT leaf), to write, to execute.
const EVERYTHING: Access = Access::USER.union(Access::WRITE).union(Access::EXECUTE);

/// What one root maps.
#[derive(Debug, Default)]
struct Mapped {
    leaves: BTreeMap<Gfn, Leaf>,
    /// By first frame and level of the entry: the table that it links to.
    links: BTreeMap<(Gfn, Level), TableId>,
}

impl TdxMmu {
    /// Audits everything while nobody works on the TD, and gives every violation.
    pub fn audit(&self) -> Vec<MirrorViolation> {
        self.exclusively(|tables| {
            let mut audit = Audit {
                vm: self,
                violations: Vec::new(),
            };
            audit.below(tables);
            audit.roots(tables);
            audit.violations
        })
    }
}

struct Audit<'v> {
    vm: &'v TdxMmu,
    violations: Vec<MirrorViolation>,
}

impl Audit<'_> {
    fn check(
        &mut self,
        holds: bool,
        code: MirrorCode,
        gfn: Gfn,
        evidence: impl FnOnce() -> String,
    ) {
        if !holds {
            self.violations.push(MirrorViolation {
                code,
                gfn: Some(gfn),
                evidence: evidence(),
            });
        }
    }

    fn report(&mut self, code: MirrorCode, evidence: String) {
        self.violations.push(MirrorViolation {
            code,
            gfn: None,
            evidence,
        });
    }

    /// What the module and the page tables say of themselves.
    fn below(&mut self, tables: &TdxTables) {
        for each in self.vm.module().audit() {
            self.report(MirrorCode::Module, format!("{}: {each:?}", each.code));
        }
        for each in tables.audit(&AuditContext::default()) {
            self.report(MirrorCode::Tables, format!("{each:?}"));
        }
        let lost = tables.totals().lost;
        if lost > 0 {
            self.report(MirrorCode::TableLost, format!("{lost} tables"));
        }
    }

    fn roots(&mut self, tables: &mut TdxTables) {
        let dump = tables.dump(Detail::Entries);
        let codec = *tables.codec();
        let mirrors = dump.roots.iter().filter(|root| is_mirror(root));
        if mirrors.clone().count() != 1 || mirrors.clone().any(|root| root.role.is_invalid()) {
            self.report(MirrorCode::RootReplaced, "not one valid mirror".to_owned());
        }
        let kept = |root: &Root| {
            let first = root.entries.first();
            first.is_none_or(|table| table.table == self.vm.mirror.raw())
        };
        if !mirrors.clone().all(kept) {
            self.report(MirrorCode::RootReplaced, "another mirror".to_owned());
        }
        for root in &dump.roots {
            let mapped = mapped_by(root, &codec);
            if is_mirror(root) {
                self.mirror(&mapped);
            } else {
                self.direct(&mapped);
            }
        }
    }

    fn direct(&mut self, mapped: &Mapped) {
        let shared = Gfn::new(self.vm.gpaw.shared_bit() >> 12);
        for gfn in mapped.leaves.keys() {
            let has_bit = gfn.raw() & shared.raw() != 0;
            self.check(has_bit, MirrorCode::PrivateInDirect, *gfn, String::new);
            let plain = Gfn::new(gfn.raw() & !shared.raw());
            let private = self.vm.is_private(plain);
            self.check(!private, MirrorCode::SharedAttribute, plain, String::new);
        }
    }

    fn mirror(&mut self, mapped: &Mapped) {
        let (mut leaves, mut tables) = (BTreeMap::new(), BTreeMap::new());
        if self.vm.stage() != Stage::KeyFreed {
            for (gpa, entry) in self.vm.module().sept_entries(self.vm.td()) {
                if entry.state.is_table() {
                    tables.insert((gpa.gfn(), entry.level), entry);
                } else {
                    leaves.insert(gpa.gfn(), entry);
                }
            }
        }
        for (gfn, leaf) in &mapped.leaves {
            self.leaf(*gfn, leaf, leaves.remove(gfn));
        }
        for ((gfn, level), table) in &mapped.links {
            self.table(*gfn, *table, tables.remove(&(*gfn, *level)));
        }
        for (gfn, left) in leaves {
            self.check(false, MirrorCode::NotFree, gfn, || format!("{left:?}"));
        }
        for ((gfn, _), left) in tables {
            self.check(false, MirrorCode::NotFree, gfn, || format!("{left:?}"));
        }
    }

    fn leaf(&mut self, gfn: Gfn, leaf: &Leaf, real: Option<EntryView>) {
        let says = || format!("{leaf:?}, {real:?}");
        let same = real.is_some_and(|real| {
            let state = matches!(real.state, SeptState::Pending | SeptState::Mapped);
            state && real.base == Some(leaf.pfn) && real.level == leaf.level
        });
        self.check(same, MirrorCode::LeafMismatch, gfn, says);
        self.check(leaf.level == Level::L1, MirrorCode::HugeLeaf, gfn, says);
        let pending = real.is_some_and(|real| real.state.is_pending());
        let runs = self.vm.stage() != Stage::Initialized;
        self.check(runs || !pending, MirrorCode::PendingWhileBuilt, gfn, says);
        let private = gfn.raw() < self.vm.gpaw.shared_bit() >> 12;
        self.check(private, MirrorCode::SharedInMirror, gfn, says);
        let attribute = self.vm.is_private(gfn);
        self.check(attribute, MirrorCode::PrivateAttribute, gfn, says);
        let all = leaf.allowed().contains(EVERYTHING) && leaf.saved.is_empty();
        self.check(all, MirrorCode::Permissions, gfn, says);
        let right = self.is_page_of(gfn, leaf.pfn);
        self.check(right, MirrorCode::WrongPage, gfn, says);
    }

    fn is_page_of(&self, gfn: Gfn, page: Pfn) -> bool {
        let kvm = lock(&self.vm.kvm);
        kvm.page_behind(gfn) == Some(page)
    }

    fn table(&mut self, gfn: Gfn, table: TableId, real: Option<EntryView>) {
        let page = self.vm.backend.state().external.get(&table).copied();
        let linked =
            real.is_some_and(|real| real.state == SeptState::NlMapped && real.base == page);
        let of_td = page.is_some_and(|page| {
            let known = self.vm.module().page(page);
            (known.page_type, known.owner) == (PageType::Ept, Some(self.vm.td()))
        });
        let says = || format!("{table:?}, {page:?}, {real:?}");
        self.check(linked && of_td, MirrorCode::ExternalPage, gfn, says);
    }
}

fn is_mirror(root: &Root) -> bool {
    root.role.has(RoleFlag::IsMirror)
}

fn mapped_by(root: &Root, codec: &Codec<Ept>) -> Mapped {
    let mut mapped = Mapped::default();
    for table in &root.entries {
        for (index, raw) in &table.entries {
            let within = u64::from(*index) * table.level.pages().raw();
            let gfn = Gfn::new(table.gfn.raw() + within);
            match codec.decode(Spte::from_raw(*raw), table.level) {
                Entry::Leaf(leaf) => {
                    mapped.leaves.insert(gfn, leaf);
                }
                Entry::Link(link) => {
                    let number = u32::try_from(link.table.raw()).unwrap_or(u32::MAX);
                    let table_below = TableId::new(number);
                    mapped.links.insert((gfn, table.level), table_below);
                }
                Entry::Absent | Entry::Frozen | Entry::Mmio(_) => {}
            }
        }
    }
    mapped
}
