//! One fault for every code.

use slat_memslot::{Attributes, Level, PageSize};
use slat_mmu::Access;
use slat_mmu::role::{PageRole, RoleFlag};
use slat_mmu::spte::{LeafRequest, Pfn, Spte};
use slat_mmu::table::TableId;
use slat_mmu::tdp::{MapRequest, Target, Unobserved};

use super::super::backend::Omit;
use super::*;
use crate::sync::lock;

#[test]
fn every_fault_is_found() {
    for code in MirrorCode::ALL {
        // With one hook for all changes a table that goes too early is noticed before it is unlinked.
        let hooks = if *code == MirrorCode::TableLost {
            HookGen::Split
        } else {
            HookGen::Unified
        };
        let vm = running(hooks);
        let mut vcpu = vm.vcpu(0).unwrap();
        accept_and_write(&vm, &mut vcpu, gfn(0), 1);
        vm.set_shared(range(START + 8, 1));
        let shared = vm.fault_shared(&mut vcpu, gfn(8), Pfn::new(0x42));
        assert_eq!(shared, PrivateFault::Fixed);
        clean(&vm);
        plant(&vm, *code);
        let found = vm.audit();
        assert!(
            found.iter().any(|each| each.code == *code),
            "{code}: {found:#?}"
        );
    }
}

/// Maps something that the module is not told of.
fn map(vm: &TdxMmu, root: TableId, gfn: u64, size: PageSize, page: u64) {
    map_with(vm, root, Access::all(), (gfn, size, page));
}

fn map_with(vm: &TdxMmu, root: TableId, access: Access, (gfn, size, page): (u64, PageSize, u64)) {
    vm.omit(Omit::Calls);
    vm.exclusively(|tables| {
        let leaf = LeafRequest {
            access,
            ..LeafRequest::new(Spte::from_raw(0), size, Pfn::new(page))
        };
        let request = MapRequest {
            gfn: Gfn::new(gfn),
            size,
            access: Access::empty(),
            target: Target::Page(leaf),
        };
        let _mapped = tables.exclusive(Unobserved).map(root, &request);
    });
}

/// A root that KVM would never make.
fn another_root(vm: &TdxMmu, flags: &[RoleFlag]) {
    vm.exclusively(|tables| {
        let roles: Vec<_> = tables.roots().iter().map(|(_, role)| role).collect();
        let direct = roles.into_iter().find(|role| !role.has(RoleFlag::IsMirror));
        let with = |role: PageRole, flag: &RoleFlag| role.with(*flag);
        let role = flags.iter().fold(direct.unwrap(), with);
        let _root = tables.exclusive(Unobserved).acquire_root(role).unwrap();
    });
}

/// Plants the fault of a code. A code without one does not compile.
fn plant(vm: &TdxMmu, code: MirrorCode) {
    let (module, td) = (vm.module(), vm.td());
    let leaf = GpaMapping::new(gfn(0).gpa(), Level::L1);
    let page = module.tdh_mem_sept_rd(td, leaf).unwrap().base.unwrap();
    match code {
        MirrorCode::ExternalPage => vm.backend().state().external.clear(),
        MirrorCode::LeafMismatch => module.plant_entry(td, leaf, SeptState::Blocked, page),
        MirrorCode::NotFree => {
            let at = GpaMapping::new(gfn(1).gpa(), Level::L1);
            module.tdh_mem_page_aug(td, at, Pfn::new(0x700)).unwrap();
        }
        MirrorCode::HugeLeaf => map(vm, vm.mirror, 0x400, PageSize::Size2M, 0x600),
        MirrorCode::PendingWhileBuilt => {
            module.plant_entry(td, leaf, SeptState::Pending, page);
            vm.backend().state().stage = Stage::Initialized;
        }
        MirrorCode::SharedInMirror => map(vm, vm.mirror, 1 << 35, PageSize::Size4K, 0x43),
        MirrorCode::PrivateInDirect => map(vm, vm.direct_table(), START, PageSize::Size4K, 0x43),
        MirrorCode::PrivateAttribute => {
            lock(&vm.kvm)
                .private
                .set(range(START, 1), Attributes::empty());
        }
        MirrorCode::SharedAttribute => {
            lock(&vm.kvm)
                .private
                .set(range(START + 8, 1), Attributes::PRIVATE);
        }
        MirrorCode::Permissions => {
            let page = (START + 1, PageSize::Size4K, 0x43);
            map_with(vm, vm.mirror, Access::USER, page);
        }
        MirrorCode::RootReplaced => another_root(vm, &[RoleFlag::IsMirror, RoleFlag::GuestMode]),
        MirrorCode::WrongPage => {
            let (file, index) = vm.slot(SLOT).unwrap().place(gfn(0)).unwrap();
            lock(&vm.kvm).files.insert(file, index, Pfn::new(0x999));
        }
        MirrorCode::TableLost => vm.exclusively(|tables| {
            let mut locked = tables.exclusive(Unobserved);
            let table = locked.find(vm.mirror, gfn(0)).place.table;
            assert!(locked.zap_page(table));
        }),
        MirrorCode::Module => module.plant_children(td, 1),
        MirrorCode::Tables => another_root(vm, &[RoleFlag::Smm, RoleFlag::GuestMode]),
    }
}
