//! The bug that a thread of February 2022 found by reading, on real tables: CR3 before the role.
//!
//! See `docs/roots.md` and the example `root_role_audit`.

use super::*;
use crate::role::RoleMismatch;
use crate::roots::{FlushOnReuse, Pgd, Request, Root, VcpuMmu};
use crate::spte::Npt;

/// Which of the two steps of an exit from L2 to L1 comes first.
#[derive(Clone, Copy)]
enum Order {
    RoleFirst,
    Cr3First,
}

/// A vCPU that has run L1 and runs L2 now, each on its own direct root.
fn nested() -> (World<Npt>, VcpuMmu, Host) {
    let host = Host::npt(48);
    let mut world = World::new(&host);
    let mut mmu = VcpuMmu::new(role(&host, VcpuMode::Normal));
    for mode in [VcpuMode::Normal, VcpuMode::Guest] {
        mmu.init(role(&host, mode));
        load_cr3(&mut world, &mut mmu);
        assert_eq!(world.tables.audit_vcpu(&mmu), []);
    }
    (world, mmu, host)
}

fn load_cr3(world: &mut World<Npt>, mmu: &mut VcpuMmu) {
    world.shared(|locked, _| {
        let new = mmu.new_pgd(locked.tables().roots(), Pgd::new(0x1000), FlushOnReuse::Off);
        locked.free_roots(new.switch.dropped);
        let _loaded = locked.load(mmu).unwrap();
    });
}

fn exit_to_l1(order: Order) -> Vec<Violation> {
    let (mut world, mut mmu, host) = nested();
    let l1 = role(&host, VcpuMode::Normal);
    match order {
        Order::RoleFirst => {
            mmu.init(l1);
            load_cr3(&mut world, &mut mmu);
        }
        Order::Cr3First => {
            load_cr3(&mut world, &mut mmu);
            mmu.init(l1);
        }
    }
    assert_eq!(world.audit(), []);
    world.tables.audit_vcpu(&mmu)
}

#[test]
fn role_before_cr3_is_right() {
    assert_eq!(exit_to_l1(Order::RoleFirst), []);
}

#[test]
fn cr3_before_role_leaves_l1_on_the_tables_of_l2() {
    let host = Host::npt(48);
    let mismatch = RoleMismatch {
        wanted: role(&host, VcpuMode::Normal),
        found: role(&host, VcpuMode::Guest),
    };
    let violations = exit_to_l1(Order::Cr3First);
    assert_eq!(
        violations,
        [Violation {
            code: AuditCode::RootRoleMismatch,
            subject: Subject::Cache { vcpu: 0, number: 0 },
            evidence: Evidence::Roles(mismatch),
        }]
    );
    let line = violations[0].to_string();
    assert!(line.starts_with("A07 root-role-mismatch: the root in use of vCPU 0, the MMU wants"));
    assert!(line.ends_with("guest_mode differ"));
}

/// Between a fast zap and the service of its request a vCPU may keep what is invalid, and not longer.
#[test]
fn an_obsolete_root_may_be_kept_until_the_request_is_served() {
    let (mut world, mut mmu, _) = nested();
    world.tables.exclusive(&mut Unobserved).invalidate_roots();
    let codes = |violations: Vec<Violation>| violations.into_iter().map(|each| each.code);
    let both = [AuditCode::ObsoleteRootKept; 2];
    assert!(codes(world.tables.audit_vcpu(&mmu)).eq(both));
    mmu.request(Request::FreeObsoleteRoots);
    assert_eq!(world.tables.audit_vcpu(&mmu), []);
    world.shared(|locked, _| {
        let (_, dropped) = mmu.serve(locked.tables().roots()).unwrap();
        locked.free_roots(dropped);
    });
    assert_eq!(mmu.cache().current(), Root::None);
    assert_eq!(world.tables.audit_vcpu(&mmu), []);
}
