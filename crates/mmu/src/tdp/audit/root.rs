//! The roots, and what is noted about them.

use super::tree::Audit;
use super::{AuditCode, Evidence, Subject};
use crate::role::{PageRole, Quadrant, RoleFlag, RoleMismatch};
use crate::roots::{RootId, RootKind, Standing};
use crate::spte::{Format, Spte};
use crate::table::TableId;
use crate::tdp::hooks::External;
use slat_memslot::Level;

impl<F: Format, X: External<F>, C> Audit<'_, F, X, C> {
    /// Checks all roots, and all tables below them if it is to.
    pub(super) fn roots(&mut self, below: Below) {
        for root in self.tables.roots.audited() {
            if self.tables.roots.kind(root) == Some(RootKind::Tdp) {
                self.root(root, below);
            }
        }
    }

    fn root(&mut self, root: RootId, below: Below) {
        let roots = &self.tables.roots;
        let known = (roots.role(root), roots.standing(root), roots.payload(root));
        let (Some(role), Some(standing), Some(table)) = known else {
            self.report(AuditCode::RootNotHeld, Subject::Root(root), Evidence::None);
            return;
        };
        self.check_standing(root, role, standing);
        self.check_root_role(root, role);
        if !self.check_root_page(root, role, table) {
            return;
        }
        if role.is_invalid() && !standing.own {
            self.check_zapped(root, table);
        }
        self.tally.roots += 1;
        if below == Below::Walked {
            self.walk_root(role, table);
        }
    }

    fn walk_root(&mut self, role: PageRole, table: TableId) {
        let context = self.context;
        if role.is_invalid() {
            self.context = context.without_generations();
        }
        self.tree(table, role, 0);
        self.context = context;
    }

    fn check_standing(&mut self, root: RootId, role: PageRole, standing: Standing) {
        let valid = !role.is_invalid();
        if standing.references == 0 || valid && !standing.own {
            let evidence = Evidence::Count {
                wanted: 1,
                found: u64::from(standing.references),
            };
            self.report(AuditCode::RootNotHeld, Subject::Root(root), evidence);
        }
        if standing.scheduled && valid {
            self.report(
                AuditCode::ScheduledValidRoot,
                Subject::Root(root),
                Evidence::None,
            );
        }
        if let Some(other) = self.earlier_with_role(root, role).filter(|_| valid) {
            self.report(
                AuditCode::DuplicateRoot,
                Subject::Root(root),
                Evidence::Root(other),
            );
        }
    }

    fn earlier_with_role(&self, root: RootId, role: PageRole) -> Option<RootId> {
        let roots = &self.tables.roots;
        let mut earlier = roots.audited().take_while(|other| *other != root);
        earlier.find(|other| roots.role(*other) == Some(role))
    }

    fn check_root_role(&mut self, root: RootId, role: PageRole) {
        if !is_possible(role, self.tables.codec.host().ad_enabled()) {
            let evidence = Evidence::Roles(RoleMismatch {
                wanted: possible(role, self.tables.codec.host().ad_enabled()),
                found: role,
            });
            self.report(AuditCode::RootRoleImpossible, Subject::Root(root), evidence);
        }
        if role.has(RoleFlag::IsMirror) && !X::PRESENT {
            self.report(
                AuditCode::MirrorWithoutOwner,
                Subject::Root(root),
                Evidence::None,
            );
        }
    }

    /// Says whether the root's table is its own and can be gone into.
    fn check_root_page(&mut self, root: RootId, role: PageRole, table: TableId) -> bool {
        if !self.exists(table) {
            self.report(
                AuditCode::RootPageMismatch,
                Subject::Root(root),
                Evidence::None,
            );
            return false;
        }
        if let Some(other) = self.tables.root_of(table).filter(|other| *other != root) {
            self.report(
                AuditCode::LinkedTwice,
                Subject::Root(root),
                Evidence::Root(other),
            );
            return false;
        }
        let page = self.tables.page(table);
        let (found, parent) = (page.role(), page.parent());
        if found != role {
            let wanted = role;
            let evidence = Evidence::Roles(RoleMismatch { wanted, found });
            self.report(AuditCode::RootPageMismatch, Subject::Root(root), evidence);
        }
        if parent.is_some() || page.gfn().raw() != 0 {
            let evidence = Evidence::Linked { table, parent };
            self.report(AuditCode::RootPageMismatch, Subject::Root(root), evidence);
        }
        true
    }

    fn check_zapped(&mut self, root: RootId, table: TableId) {
        let found = self.present_entries(table);
        if found > 0 {
            let evidence = Evidence::Count { wanted: 0, found };
            self.report(AuditCode::ZappedRootPresent, Subject::Root(root), evidence);
        }
    }

    /// How many entries of a table are present.
    pub(super) fn present_entries(&self, table: TableId) -> u64 {
        let entries = 0..crate::table::ENTRIES;
        let sptes = entries.map(|index| self.tables.load(table, index));
        sptes
            .map(|spte: Spte<F>| u64::from(spte.is_present()))
            .sum()
    }
}

/// Whether an audit goes into the tables below, be it a root's or another one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Below {
    /// It does.
    Walked,
    /// It does not.
    LeftOut,
}

/// Whether a root of the TDP MMU can have this role (`mmu.c:kvm_calc_tdp_mmu_root_page_role`).
fn is_possible(role: PageRole, ad_enabled: bool) -> bool {
    let both = role.has(RoleFlag::Smm) && role.is_guest_mode();
    role == possible(role, ad_enabled) && role.level() >= Level::L4 && !both
}

/// The role with what every root has.
fn possible(role: PageRole, ad_enabled: bool) -> PageRole {
    let role = role
        .with(RoleFlag::Direct)
        .without(RoleFlag::FourByteGpte)
        .with_quadrant(Quadrant::Q0);
    if ad_enabled {
        role.without(RoleFlag::AdDisabled)
    } else {
        role.with(RoleFlag::AdDisabled)
    }
}
