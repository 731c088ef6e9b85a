//! One fault for every code.

use slat_memslot::{AsId, Generation};

use super::*;
use crate::host::Encryption;
use crate::role::RoleFlag;
use crate::roots::{Pgd, Root, SpecialRoot, VcpuMmu};
use crate::spte::bits::{self, ept};
use crate::spte::{Ept, Npt, NxHugePages};
use crate::tdp::audit::AuditCode as Code;
use crate::tdp::leaves::Leaves;

/// What an audit must find, and what it found.
type Planted = (Subject, Vec<Violation>);

#[test]
fn every_fault_is_found_in_its_place() {
    for code in Code::ALL {
        let (subject, violations) = plant(*code);
        let found = violations
            .iter()
            .any(|each| (each.code, each.subject) == (*code, subject));
        assert!(found, "{code}: {subject} is not among {violations:#?}");
    }
}

/// Plants the fault of a code, and audits. A code without one does not compile.
fn plant(code: Code) -> Planted {
    match code {
        Code::DuplicateRoot => duplicate_root(),
        Code::RootNotHeld => root(|world| world.tables.roots.plant_not_owned(world.root)),
        Code::ScheduledValidRoot => root(|world| world.tables.roots.plant_scheduled(world.root)),
        Code::ZappedRootPresent => zapped_root_present(),
        Code::RootPageMismatch => root(|world| {
            let page = world.tables.page(world.root_table());
            page.set_role(page.role().with(RoleFlag::GuestMode));
        }),
        Code::RootRoleImpossible => root(|world| {
            let role = world.tables.roots.role(world.root).unwrap();
            world.plant_role(role.with(RoleFlag::AdDisabled));
        }),
        Code::RootRoleMismatch => root_role_mismatch(),
        Code::ObsoleteRootKept => obsolete_root_kept(),
        Code::UnknownRoot => unknown_root(),
        Code::RootKeptTwice => vcpu_with(1, |world, mmu| mmu.plant_current(Root::Page(world.root))),
        Code::SpecialRootKept => vcpu_with(1, |world, mmu| {
            mmu.plant_current(Root::Special(SpecialRoot::Pae));
            mmu.plant_current(Root::Page(world.root));
        }),
        Code::TooFewReferences => too_few_references(),
        Code::DanglingLink => link(|raw| raw | 0xffff << 12),
        Code::LevelMismatch => level_mismatch(),
        Code::RoleMismatch => child(|world, table| {
            let page = world.tables.page(table);
            page.set_role(page.role().with(RoleFlag::Smm));
        }),
        Code::GfnMismatch => described(|gfn, parent| (gfn + 0x200, Some(parent))),
        Code::ParentMismatch => described(|gfn, _| (gfn, None)),
        Code::LinkedTwice => linked_twice(),
        Code::Cycle => cycle(),
        Code::TableUnaligned => described(|gfn, parent| (gfn + 1, Some(parent))),
        Code::BeyondMaxGfn => beyond_max_gfn(),
        Code::TableCount => counts(|world| world.tables.counts[0].add_tables(1)),
        Code::LeafCount => counts(|world| world.tables.counts[0].add_leaves(Level::L2, -1)),
        Code::FullMismatch => full_mismatch(),
        Code::LeakedTable => memory(|world| world.tables.arena.allocate().unwrap()),
        Code::FreedTableLinked => memory(|world| {
            let table = world.below(7, Level::L2);
            world.tables.arena.recycle(table);
            table
        }),
        Code::RetiredTablePresent => memory(retire_present),
        Code::MirrorWithoutOwner => root(|world| {
            let role = world.tables.roots.role(world.root).unwrap();
            world.plant_role(role.with(RoleFlag::IsMirror));
        }),
        Code::NonpresentValue => leaf(|_| 0x42 << 12),
        Code::FrozenLeftBehind => leaf(|_| 1 << 63 | 0x5a0),
        Code::ReservedBits => leaf(|raw| raw & !ept::MEMORY_TYPE | 2 << 3),
        Code::WritableTriple => leaf(|raw| raw & !(1 << 58)),
        Code::PageSizeBit => leaf(|raw| raw | bits::PAGE_SIZE),
        Code::AdType => leaf(|raw| raw | 1 << 52),
        Code::SavedPermissions => leaf(|raw| raw | 1 << 54),
        Code::SuppressVe => leaf(|raw| raw & !ept::SUPPRESS_VE),
        Code::StrayBits => leaf(|raw| raw | 1 << 59),
        Code::LeafUnaligned => huge_leaf(|raw| raw | 5 << 12),
        Code::LinkBits => link(|raw| raw & !ept::EXECUTE),
        Code::EncryptionBit => encryption_bit(),
        Code::ExecutableHugeLeaf => huge_leaf(|raw| raw),
        Code::MmioBits => mmio(|raw| raw | 1 << 51),
        Code::MmioGfn => mmio(|raw| raw + (1 << 12)),
        Code::MmioGeneration => mmio(|raw| raw + (3 << 3)),
        Code::EmptyMismatch => empty_mismatch(),
    }
}

// --- Worlds ----------------------------------------------------------------------------------------------------------

fn host() -> Host {
    Host::ept(46)
}

/// A leaf of 4 KiB, one of 2 MiB, and an MMIO entry, with nothing wrong.
fn world() -> World<Ept> {
    let mut world = World::new(&host());
    world.map(7, PageSize::Size4K, 0x1007);
    world.map(0x400, PageSize::Size2M, 0x2000);
    world.request(&MapRequest::mmio(Gfn::new(0x11), Generation::new(4)));
    assert_eq!(world.audit(), []);
    world
}

impl World<Ept> {
    fn plant_role(&self, role: PageRole) {
        self.tables.roots.plant_role(self.root, role);
        self.tables.page(self.root_table()).set_role(role);
    }

    /// With all that an audit can be told.
    fn audit_knowing(&self) -> Vec<Violation> {
        let context = AuditContext {
            nx_huge_pages: NxHugePages::On,
            host_mmio: HostMmio::Absent,
            ..AuditContext::default()
        };
        let now = Generation::new(6);
        self.tables
            .audit(&context.with_generation(AsId::NORMAL, now))
    }
}

/// Changes one entry.
fn entry(gfn: u64, level: Level, change: impl FnOnce(u64) -> u64) -> Planted {
    let world = world();
    (world.poke(gfn, level, change), world.audit_knowing())
}

fn leaf(change: impl FnOnce(u64) -> u64) -> Planted {
    entry(7, Level::L1, change)
}

fn huge_leaf(change: impl FnOnce(u64) -> u64) -> Planted {
    entry(0x400, Level::L2, change)
}

fn link(change: impl FnOnce(u64) -> u64) -> Planted {
    entry(7, Level::L2, change)
}

fn mmio(change: impl FnOnce(u64) -> u64) -> Planted {
    entry(0x11, Level::L1, change)
}

fn root(plant: impl FnOnce(&World<Ept>)) -> Planted {
    let world = world();
    plant(&world);
    (Subject::Root(world.root), world.audit())
}

/// Changes what the table of level 1 knows about itself; the link to it is to blame.
fn child(plant: impl FnOnce(&World<Ept>, TableId)) -> Planted {
    let world = world();
    plant(&world, world.below(7, Level::L2));
    (world.subject(7, Level::L2), world.audit())
}

fn described(change: impl FnOnce(u64, Parent) -> (u64, Option<Parent>)) -> Planted {
    child(|world, table| {
        let page = world.tables.page(table);
        let (gfn, parent) = change(page.gfn().raw(), page.parent().unwrap());
        page.describe(page.role(), Gfn::new(gfn), parent);
    })
}

fn counts(plant: impl FnOnce(&World<Ept>)) -> Planted {
    let world = world();
    plant(&world);
    (Subject::Tables, world.audit())
}

fn memory(plant: impl FnOnce(&World<Ept>) -> TableId) -> Planted {
    let world = world();
    let table = plant(&world);
    (Subject::Table(table), world.audit())
}

/// Changes what a vCPU keeps, and blames a place of its cache.
fn vcpu_with(number: usize, plant: impl FnOnce(&mut World<Ept>, &mut VcpuMmu)) -> Planted {
    let (mut world, mut mmu) = loaded();
    plant(&mut world, &mut mmu);
    let violations = world.tables.audit_vcpu(&mmu);
    (Subject::Cache { vcpu: 0, number }, violations)
}

/// A vCPU that has the root in use.
fn loaded() -> (World<Ept>, VcpuMmu) {
    let mut world = world();
    let mut mmu = VcpuMmu::new(role(&host(), VcpuMode::Normal));
    let _loaded = world.shared(|locked, _| locked.load(&mut mmu).unwrap());
    assert_eq!(world.tables.audit_vcpu(&mmu), []);
    (world, mmu)
}

// --- Faults that take more than a line -------------------------------------------------------------------------------

fn duplicate_root() -> Planted {
    let mut world = world();
    let (first, other) = (VcpuMode::Normal, VcpuMode::Guest);
    let role_of = |mode| role(&host(), mode);
    let acquired = world.shared(|locked, _| locked.acquire_root(role_of(other)).unwrap());
    world
        .tables
        .roots
        .plant_role(acquired.root(), role_of(first));
    (Subject::Root(acquired.root()), world.audit())
}

/// The TDP MMU gives a root up without having zapped it.
fn zapped_root_present() -> Planted {
    let mut world = world();
    world.tables.exclusive(&mut Unobserved).invalidate_roots();
    assert!(world.tables.roots.take_scheduled(world.root));
    let _kept = world.tables.roots.put_own(world.root);
    (Subject::Root(world.root), world.audit())
}

fn root_role_mismatch() -> Planted {
    vcpu_with(0, |_, mmu| mmu.init(role(&host(), VcpuMode::Guest)))
}

fn obsolete_root_kept() -> Planted {
    vcpu_with(0, |world, _| {
        world.tables.exclusive(&mut Unobserved).invalidate_roots();
    })
}

/// Everybody gives a root up, and the vCPU goes on.
fn unknown_root() -> Planted {
    vcpu_with(0, |world, _| {
        world.tables.exclusive(&mut Unobserved).invalidate_roots();
        let roots = &world.tables.roots;
        let _scheduled = roots.take_scheduled(world.root);
        let _own = roots.put_own(world.root);
        let _kept = roots.release(world.root);
        assert!(roots.release(world.root).freed().is_some());
    })
}

fn too_few_references() -> Planted {
    let (world, mut mmu) = loaded();
    let root = Subject::Root(world.root);
    let _miss = mmu.new_pgd(&world.tables.roots, Pgd::ZERO, Default::default());
    let _kept = world.tables.roots.release(world.root);
    let _kept = world.tables.roots.release(world.root);
    (root, world.tables.audit_vcpu(&mmu))
}

/// A link that skips a level.
fn level_mismatch() -> Planted {
    let world = world();
    let low = world.tables.link_to(world.below(7, Level::L2));
    let subject = world.poke(7, Level::L3, |_| low.raw());
    (subject, world.audit())
}

fn linked_twice() -> Planted {
    let world = world();
    let link = world.tables.link_to(world.below(7, Level::L2));
    let subject = world.poke(0x200, Level::L2, |_| link.raw());
    (subject, world.audit())
}

fn cycle() -> Planted {
    let world = world();
    let link = world.tables.link_to(world.root_table());
    let subject = world.poke(7, Level::L2, |_| link.raw());
    let violations = world.audit();
    (subject, violations)
}

/// A host of 37 bits maps 2^25 frames, which do not fill the table below its root.
fn beyond_max_gfn() -> Planted {
    let mut world = World::<Ept>::new(&Host::ept(37));
    world.map(0x1ff_ffff, PageSize::Size4K, 7);
    assert_eq!(world.audit(), []);
    let huge = 0x200_0000;
    let leaf = 0x8600_0000_4000_0bf7;
    let subject = world.poke(huge, Level::L3, |_| leaf);
    (subject, world.audit())
}

/// The page of a root has its role, begins at frame 0, knows no parent, and is no other root's.
#[test]
fn the_page_of_a_root_is_its_own() {
    let described = |gfn: u64, parent: bool| {
        let world = world();
        let table = world.root_table();
        let page = world.tables.page(table);
        let parent = parent.then_some(Parent { table, index: 3 });
        page.describe(page.role(), Gfn::new(gfn), parent);
        let evidence = Evidence::Linked { table, parent };
        (world.root, evidence, world.audit())
    };
    for (root, evidence, violations) in [described(0x200, false), described(0, true)] {
        let found = violations
            .iter()
            .find(|each| each.subject == Subject::Root(root));
        let found = found.unwrap();
        assert_eq!(
            (found.code, found.evidence),
            (Code::RootPageMismatch, evidence)
        );
    }
    let world = world();
    let role = world.tables.page(world.root_table()).role();
    let other = role.with(RoleFlag::GuestMode);
    let plant = |table| {
        let acquired = world
            .tables
            .roots
            .acquire(crate::roots::RootKind::Tdp, other, || table);
        acquired.root()
    };
    let second = plant(world.root_table());
    let twice: Vec<_> = world
        .audit()
        .iter()
        .filter(|each| each.code == Code::LinkedTwice)
        .map(|each| (each.subject, each.evidence))
        .collect();
    let expected = [
        (Subject::Root(world.root), Evidence::Root(second)),
        (Subject::Root(second), Evidence::Root(world.root)),
    ];
    assert!(
        twice.iter().any(|each| expected.contains(each)),
        "{twice:?}"
    );
}

#[test]
fn a_root_without_a_page_is_found() {
    let world = world();
    let role = world.tables.page(world.root_table()).role();
    let other = role.with(RoleFlag::GuestMode);
    let nowhere = TableId::new(1 << 20);
    let kind = crate::roots::RootKind::Tdp;
    let root = world.tables.roots.acquire(kind, other, || nowhere).root();
    let found = world.audit();
    let found = found
        .iter()
        .find(|each| each.subject == Subject::Root(root));
    assert_eq!(found.unwrap().code, Code::RootPageMismatch);
}

/// A table that reaches across the end and holds nothing but huge leaves, all alike.
#[test]
fn a_leaf_beyond_the_end_is_found_among_others_like_it() {
    let mut world = World::<Ept>::new(&Host::ept(37));
    world.map(0, PageSize::Size1G, 0x4_0000);
    assert_eq!(world.audit(), []);
    let subject = world.poke(0x200_0000, Level::L3, |_| 0x8600_0000_4000_0bf7);
    let found: Vec<(Code, Subject)> = world
        .audit()
        .iter()
        .map(|each| (each.code, each.subject))
        .collect();
    assert!(found.contains(&(Code::BeyondMaxGfn, subject)), "{found:?}");
}

fn full_mismatch() -> Planted {
    memory(|world| {
        let table = world.below(7, Level::L2);
        world.tables.learn_of_new(table, Leaves::All);
        table
    })
}

fn empty_mismatch() -> Planted {
    memory(|world| {
        let table = world.below(7, Level::L2);
        world.tables.learn_of_new(table, Leaves::None);
        table
    })
}

fn retire_present(world: &World<Ept>) -> TableId {
    let table = world.tables.arena.allocate().unwrap();
    let leaf = world.tables.read(world.at(7, Level::L1));
    let entry = world.tables.entry(table, 3);
    entry.store(leaf.raw(), Ordering::Relaxed);
    world.tables.epochs.retire(table);
    table
}

/// A leaf without the C-bit, where no device is mapped.
fn encryption_bit() -> Planted {
    let c_bit = 47;
    let host = Host::npt(48).with_encryption(Encryption::Active { c_bit }, 43);
    let mut world = World::<Npt>::new(&host);
    world.map(7, PageSize::Size4K, 0x1007);
    let subject = world.poke(7, Level::L1, |raw| raw & !(1 << c_bit));
    assert_eq!(world.audit(), []);
    let context = AuditContext {
        host_mmio: HostMmio::Absent,
        ..AuditContext::default()
    };
    (subject, world.tables.audit(&context))
}
