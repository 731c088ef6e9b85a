//! From what was rebuilt to dumps, audited.

use std::collections::BTreeMap;

use slat_memslot::{AsId, Gfn, GfnRange, Level};
use slat_mmu::role::{PageRole, RoleFlag, reachable_tdp_roots};
use slat_mmu::spte::{AdType, Format, Pfn, Spte};
use slat_mmu::tdp::Tables;
use slat_mmu::tdp::audit::AuditContext;
use slat_mmu::tdp::dump::{Detail, Dump, RawTable, Root, RootNumber};

use super::report::Contradiction;
use super::table::{Standing, State, Table, TableNo, VmNo};
use super::world::{Vm, World};
use super::{RebuiltVm, Unknown};

impl<F: Format> World<F> {
    /// What went must have been taken apart, unless the trace ends on the way.
    pub(super) fn settle(&mut self) {
        let threads: Vec<u32> = self.threads.keys().copied().collect();
        for thread in &threads {
            self.settle_made(*thread);
        }
        if self.loses {
            return;
        }
        let under_way = self.under_way();
        let removed = self
            .all()
            .filter(|(_, table)| table.standing == Standing::Removed);
        let removed: Vec<TableNo> = removed.map(|(no, _)| no).collect();
        for no in removed {
            if !under_way.contains(&no) {
                self.retire(no);
            } else if let Some(table) = self.table(no) {
                let told = table.frozen_to.map_or(0, |last| last + 1);
                let entries = self.left_behind(table, told);
                let (vm, gfn, level) = (table.vm, table.first, table.level);
                if entries > 0 {
                    self.fail(vm, gfn, level, Contradiction::LeftBehind { entries });
                }
            }
        }
    }

    /// The tables that threads were taking apart when the trace ended.
    fn under_way(&self) -> Vec<TableNo> {
        let mut tables = Vec::new();
        let last = self
            .threads
            .values()
            .filter_map(|thread| thread.last.as_ref());
        for last in last.filter(|last| last.removes) {
            tables.extend(last.removed);
            let mut at = Some(last.table);
            for _ in 0..5 {
                tables.extend(at);
                at = at.and_then(|no| self.table(no)?.was_below);
            }
        }
        tables
    }

    /// The VMs that are there in the end.
    pub(super) fn finished(&mut self) -> Vec<RebuiltVm> {
        let vms: Vec<(VmNo, Vm)> = self.live().map(|(no, vm)| (no, vm.clone())).collect();
        let mut finished = Vec::new();
        for (no, vm) in vms {
            let roots = vm.roots.iter().copied();
            let (gone, left): (Vec<TableNo>, Vec<TableNo>) =
                roots.partition(|no| self.is_gone(*no));
            self.counts.roots_gone += gone.len() as u64;
            finished.push(self.finish(no, &vm, &left));
        }
        finished
    }

    /// An invalid root without entries: it goes when the last vCPU lets it go, which no event tells.
    fn is_gone(&self, no: TableNo) -> bool {
        self.table(no).is_none_or(|root| {
            let mut entries = root.entries();
            !root.is_valid_root()
                && entries.all(|(_, value, state)| {
                    state != State::Linked && state != State::Unknown && self.is_empty_value(value)
                })
        })
    }

    fn finish(&self, no: VmNo, vm: &Vm, roots: &[TableNo]) -> RebuiltVm {
        let roles = self.roles_of(roots);
        let mut unknown = Vec::new();
        let mut dumped = Vec::new();
        let mut next = 0;
        for (place, (root, role)) in (0_u32..).zip(roots.iter().zip(roles)) {
            let mut walk = Walk {
                world: self,
                next,
                tables: Vec::new(),
                unknown: Vec::new(),
                counts: [0; 5],
            };
            walk.table(*root);
            next = walk.next;
            let number = RootNumber {
                place,
                generation: 0,
            };
            let frames = walk.unknown.into_iter();
            unknown.extend(frames.map(|frames| Unknown {
                root: number,
                frames,
            }));
            dumped.push(Root {
                number,
                role,
                references: 1,
                tables: walk.counts,
                ranges: Vec::new(),
                entries: walk.tables,
            });
        }
        dumped.reverse();
        let dump = Dump {
            host: *self.codec.host(),
            roots: dumped,
        };
        let (dump, audit, not_audited) = match Tables::<F>::from_dump(&dump) {
            Ok(mut tables) => {
                let violations = tables.audit(&AuditContext::default());
                let audit = violations.iter().map(ToString::to_string).collect();
                (with_ranges(dump, tables.dump(Detail::Ranges)), audit, None)
            }
            Err(error) => (dump, Vec::new(), Some(error.to_string())),
        };
        RebuiltVm {
            number: no.0,
            process: vm.process,
            threads: vm.threads.clone(),
            dump,
            unknown,
            audit,
            not_audited,
        }
    }

    /// The roles of all roots, no two valid ones the same. Of two that could be, the later is for L2; but where events were
    /// lost, the earlier has become invalid.
    fn roles_of(&self, roots: &[TableNo]) -> Vec<PageRole> {
        let mut numbers: Vec<usize> = (0..roots.len()).collect();
        if self.loses {
            numbers.reverse();
        }
        let mut taken: Vec<PageRole> = Vec::new();
        let mut roles = vec![PageRole::new(Level::L4); roots.len()];
        for number in numbers {
            let root = roots
                .get(number)
                .and_then(|no| Some((*no, self.table(*no)?)));
            let (Some((no, table)), Some(role)) = (root, roles.get_mut(number)) else {
                continue;
            };
            let plain = self.role_of(no, table);
            let nested = plain.with(RoleFlag::GuestMode);
            let free = |role: &PageRole| !taken.contains(role);
            *role = match [plain, nested].into_iter().find(free) {
                _ if plain.is_invalid() => plain,
                Some(role) if role == plain || !self.loses => role,
                Some(_) | None => plain.with(RoleFlag::Invalid),
            };
            taken.push(*role);
        }
        roles
    }

    /// A root's role: what its event told, with what the text leaves out inferred.
    fn role_of(&self, no: TableNo, root: &Table) -> PageRole {
        let invalid = |role: PageRole| match root.is_valid_root() {
            true => role,
            false => role.with(RoleFlag::Invalid),
        };
        if let Some((role, true)) = root.role {
            return invalid(role.without(RoleFlag::Invalid));
        }
        let plain = self.plain_role(root);
        let plain = match root.as_id == Some(AsId::SMM) {
            true => plain.with(RoleFlag::Smm),
            false => plain,
        };
        // Only for L2 are writes found by protection where hardware logs them.
        let logged = self.has_type(no, AdType::WriteProtectOnly);
        invalid(match logged {
            true => plain.with(RoleFlag::GuestMode),
            false => plain,
        })
    }

    /// The role of an ordinary root of its level.
    fn plain_role(&self, root: &Table) -> PageRole {
        let told = root.role.map(|(role, _)| role.without(RoleFlag::Invalid));
        if let Some(role) = told {
            // trace-cmd's plugin does not know of A/D bits.
            let role = role.with(RoleFlag::Cr0Wp).without(RoleFlag::AdDisabled);
            return match self.codec.host().ad_enabled() {
                true => role,
                false => role.with(RoleFlag::AdDisabled),
            };
        }
        let host = self.codec.host().tdp();
        let mut roots = host.into_iter().flat_map(reachable_tdp_roots);
        let plain = roots.find(|role| !role.has(RoleFlag::Smm) && !role.is_guest_mode());
        let plain = plain.unwrap_or_else(|| PageRole::new(root.level).with(RoleFlag::Direct));
        plain.with_level(root.level)
    }

    /// Whether a leaf below has this type.
    fn has_type(&self, no: TableNo, wanted: AdType) -> bool {
        self.table(no).is_some_and(|table| {
            let leaf = |value: u64| Spte::<F>::from_raw(value).is_leaf(table.level);
            let of_type = |value: u64| self.codec.ad_type(Spte::from_raw(value)) == wanted;
            table
                .entries()
                .any(|(_, value, _)| leaf(value) && of_type(value))
                || table
                    .children
                    .values()
                    .any(|child| self.has_type(*child, wanted))
        })
    }
}

/// The raw tables of one dump with the ranges of the other, which is of the same tables.
fn with_ranges(mut raw: Dump, loaded: Dump) -> Dump {
    let mut ranges: BTreeMap<PageRole, Vec<_>> = BTreeMap::new();
    for root in loaded.roots {
        ranges.entry(root.role).or_default().push(root.ranges);
    }
    for root in &mut raw.roots {
        let of_role = ranges.get_mut(&root.role);
        // The newest comes first in both.
        root.ranges = of_role
            .filter(|r| !r.is_empty())
            .map(|r| r.remove(0))
            .unwrap_or_default();
    }
    raw
}

/// From the top of a tree down.
struct Walk<'w, F> {
    world: &'w World<F>,
    next: u32,
    tables: Vec<RawTable>,
    unknown: Vec<GfnRange>,
    counts: [u32; 5],
}

impl<F: Format> Walk<'_, F> {
    /// A table and what is below it; gives its number.
    fn table(&mut self, no: TableNo) -> u32 {
        let number = self.next;
        let Some(table) = self.world.table(no) else {
            return number;
        };
        self.next += 1;
        if let Some(count) = self.counts.get_mut(table.level as usize - 1) {
            *count += 1;
        }
        let at = self.tables.len();
        self.tables.push(RawTable {
            table: number,
            level: table.level,
            gfn: Gfn::new(table.first),
            entries: Vec::new(),
        });
        let mut entries = Vec::new();
        for (index, value, state) in table.entries() {
            if let Some(child) = table.children.get(&index) {
                let child = self.table(*child);
                entries.push((entry_number(index), self.link(value, state, child)));
                continue;
            }
            if matches!(state, State::Unknown | State::Linked) {
                self.unknown(table.frame_of(index), table.level);
            } else if !self.world.is_empty_value(value) {
                entries.push((entry_number(index), value));
            }
        }
        if let Some(raw) = self.tables.get_mut(at) {
            raw.entries = entries;
        }
        number
    }

    /// A link to a table by its number; one that was not told is as KVM makes it.
    fn link(&self, value: u64, state: State, child: u32) -> u64 {
        let codec = &self.world.codec;
        let made = |ad| codec.make_link(Pfn::new(u64::from(child)), ad).raw();
        let ad = match codec.host().ad_enabled() {
            true => AdType::Enabled,
            false => AdType::Disabled,
        };
        if state == State::Linked {
            return made(ad);
        }
        let address = codec.pfn(Spte::from_raw(value)).raw() << 12;
        value ^ address | u64::from(child) << 12
    }

    fn unknown(&mut self, first: u64, level: Level) {
        let (start, end) = (Gfn::new(first), Gfn::new(first + level.pages().raw()));
        let last = self.unknown.last_mut().filter(|last| last.end() == start);
        let joined = last.and_then(|last| {
            *last = GfnRange::between(last.start(), end)?;
            Some(())
        });
        if joined.is_none() {
            self.unknown.extend(GfnRange::between(start, end));
        }
    }
}

fn entry_number(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}
