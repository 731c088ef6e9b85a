//! The roots that vCPUs keep.

use super::{AuditCode, Evidence, Subject, Violation};
use crate::role::{PageRole, RoleFlag, check_mmu_role};
use crate::roots::{Payload, Request, Root, RootId, RootTable, VcpuMmu};

/// Audits the roots that vCPUs keep against the roots there are.
///
/// It must hold whenever a vCPU may enter the guest: when its role and its roots have both been brought up to date. The
/// vCPUs have to stand still, but roots may come and go by other vCPUs' doing.
pub fn audit_vcpus<P: Payload>(roots: &RootTable<P>, vcpus: &[&VcpuMmu]) -> Vec<Violation> {
    let mut audit = VcpuAudit {
        roots,
        vcpus,
        violations: Vec::new(),
    };
    for vcpu in 0..vcpus.len() {
        audit.vcpu(vcpu);
    }
    audit.check_references();
    audit.violations
}

struct VcpuAudit<'a, P> {
    roots: &'a RootTable<P>,
    vcpus: &'a [&'a VcpuMmu],
    violations: Vec<Violation>,
}

impl<P: Payload> VcpuAudit<'_, P> {
    fn report(&mut self, code: AuditCode, subject: Subject, evidence: Evidence) {
        self.violations
            .push(Violation::new(code, subject, evidence));
    }

    fn vcpu(&mut self, vcpu: usize) {
        let mmu = self.vcpus[vcpu];
        for (number, (_, root)) in mmu.cache().roots().enumerate() {
            let subject = Subject::Cache { vcpu, number };
            match root {
                Root::None => {}
                Root::Special(_) if number == 0 => {}
                Root::Special(_) => {
                    self.report(AuditCode::SpecialRootKept, subject, Evidence::None);
                }
                Root::Page(root) => self.check_page(mmu, root, subject, number),
            }
        }
    }

    fn check_page(&mut self, mmu: &VcpuMmu, root: RootId, subject: Subject, number: usize) {
        let Some(role) = self.roots.role(root) else {
            self.report(AuditCode::UnknownRoot, subject, Evidence::None);
            return;
        };
        if number == 0 {
            self.check_role(mmu.role(), role, subject);
        }
        let told = mmu.requests().contains(Request::FreeObsoleteRoots);
        if role.is_invalid() && !told {
            self.report(AuditCode::ObsoleteRootKept, subject, Evidence::Root(root));
        }
        let mut before = mmu.cache().roots().take(number);
        if before.any(|(_, other)| other == Root::Page(root)) {
            self.report(AuditCode::RootKeptTwice, subject, Evidence::Root(root));
        }
    }

    /// A root that was invalidated still has to be the right one; whether it may be kept is another question.
    fn check_role(&mut self, wanted: PageRole, found: PageRole, subject: Subject) {
        let checked = check_mmu_role(wanted, found.without(RoleFlag::Invalid));
        if let Err(mismatch) = checked {
            let evidence = Evidence::Roles(mismatch);
            self.report(AuditCode::RootRoleMismatch, subject, evidence);
        }
    }

    /// Each root has a reference for every place that holds it, besides the TDP MMU's own.
    fn check_references(&mut self) {
        for root in self.roots.audited() {
            let Some(standing) = self.roots.standing(root) else {
                continue;
            };
            let places = self.vcpus.iter().flat_map(|mmu| mmu.cache().roots());
            let holders = places.filter(|(_, held)| *held == Root::Page(root)).count();
            let wanted = holders as u64 + u64::from(standing.own);
            let found = u64::from(standing.references);
            if found < wanted {
                let evidence = Evidence::Count { wanted, found };
                self.report(AuditCode::TooFewReferences, Subject::Root(root), evidence);
            }
        }
    }
}
