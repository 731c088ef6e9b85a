//! Shadow pages beside the tables of the TDP MMU: what a fault of L1's hears about frames with L1's tables for L2.

use super::*;
use crate::roots::RootId;
use crate::shadow::ShadowBeside;
use crate::table::Reader;
use crate::tdp::Tables;

/// L1's tables in the TDP MMU, and pages that follow what L1 keeps in frame 0x10 and on.
struct Both {
    world: World<Npt>,
    tables: Tables<Npt>,
    reader: Reader,
    root: RootId,
    size: PageSize,
}

impl Both {
    fn new(size: PageSize) -> Self {
        let host = Host::npt(40);
        let mut world = World::paged(&host);
        world.map_small(0x40_0000, 0x500);
        let tables = Tables::<Npt>::new(&host);
        let reader = tables.reader().unwrap();
        let role = root_role_for_tdp(&VcpuState::default(), &host.tdp().unwrap());
        let mut own = tables.reader().unwrap();
        let root = tables.shared(&mut own, crate::tdp::Unobserved);
        let root = { root }.acquire_root(role).unwrap().root();
        Self {
            world,
            tables,
            reader,
            root,
            size,
        }
    }

    /// L2 reads: pages begin to follow all tables on the way.
    fn l2_reads(&mut self, address: u64) {
        let world = &mut self.world;
        let paging = world.paging();
        let role = world.roots.mmu.role();
        let guest = guest_of(&paging, &world.ram, &world.memory, role);
        let mut locked = world.mmu.lock_beside(&mut world.events, &mut self.tables);
        locked
            .load_shadow(&mut world.roots, Pointers::default(), &guest)
            .unwrap();
        let mut trail = MarkedTrail::default();
        let wanted = ErrorCode::of(Kind::Read, Privilege::Supervisor);
        let tables = world.ram.as_slice();
        let at = Gva::new(address);
        let found = paging
            .walk(tables, &mut Unnested, &mut trail, at, wanted)
            .unwrap();
        let walk = GuestWalk {
            trail: &trail,
            found: &found,
        };
        let fault = ShadowFault {
            address,
            kind: Kind::Read,
            privilege: Privilege::Supervisor,
            present: Present::No,
        };
        let invalidation = Invalidation::default();
        let backing = &mut world.backing;
        let mut env = World::<Npt>::env(&world.memory, backing, &invalidation, &mut world.mmio);
        let (roots, out) = (&mut world.roots, &mut world.events);
        let of = (&walk, &guest);
        let tdp = &mut self.tables;
        let handled = world
            .mmu
            .shadow_page_fault_beside(roots, &fault, of, &mut env, out, tdp);
        assert_eq!(handled.outcome, Outcome::Fixed);
    }

    /// A fault of L1's. Gives what it came to and the leaf.
    fn l1_faults(&mut self, gfn: u64, kind: Kind, present: Present) -> (Outcome, PageSize) {
        let world = &mut self.world;
        let shadow: ShadowBeside<'_, Npt> = world.mmu.beside();
        let invalidation = Invalidation::default();
        let mut env = Env {
            memory: &world.memory,
            backing: &mut Line {
                size: self.size,
                ..Line::default()
            },
            invalidation: &invalidation,
            settings: Settings::default(),
            mmio: &mut world.mmio,
            shadow: &shadow,
        };
        let fault = Fault {
            present,
            ..Fault::new(Gfn::new(gfn), kind)
        };
        let mut locked = self.tables.shared(&mut self.reader, &mut world.events);
        let handled = locked.page_fault(self.root, &fault, &mut env);
        (handled.outcome, handled.size)
    }

    fn is_writable(&mut self, gfn: u64) -> bool {
        let mut locked = self.tables.shared(&mut self.reader, crate::tdp::Unobserved);
        let table = locked.root_table(self.root).unwrap();
        let access = Access::USER | Access::WRITE;
        let done = locked.hardware_access(table, Gfn::new(gfn), access);
        matches!(done, HardwareAccess::Done { .. })
    }
}

/// The frames of the tables for an address, the top one first.
fn tables_of(world: &mut World<Npt>, address: u64) -> [u64; 4] {
    let levels = [Level::L4, Level::L3, Level::L2, Level::L1];
    levels.map(|level| world.entry_of(address, level) >> 12)
}

#[test]
fn upper_tables_are_protected_and_last_ones_fall_out_of_step() {
    let mut both = Both::new(PageSize::Size4K);
    let frames = tables_of(&mut both.world, 0x40_0000);
    for frame in frames {
        assert_eq!(
            both.l1_faults(frame, Kind::Write, Present::No).0,
            Outcome::Fixed
        );
        assert!(both.is_writable(frame), "nobody follows {frame:#x} yet");
    }
    both.l2_reads(0x40_0000);
    for frame in frames {
        assert!(!both.is_writable(frame), "{frame:#x} is followed");
    }
    let [.., above, last] = frames;
    let (came, _) = both.l1_faults(above, Kind::Write, Present::Yes);
    assert_eq!(came, Outcome::WriteProtected);
    assert_eq!(both.world.mmu.stats().mmu_unsync, 0);
    both.world.events.clear();
    let (came, _) = both.l1_faults(last, Kind::Write, Present::Yes);
    assert_eq!(came, Outcome::Fixed);
    assert!(both.is_writable(last));
    assert_eq!(both.world.mmu.stats().mmu_unsync, 1);
    // The page falls out of step before its table can be written to.
    let order: Vec<bool> = both
        .world
        .events
        .iter()
        .filter_map(|event| match event {
            Event::PageUnsync { page } => {
                assert_eq!(page.gfn.raw(), last);
                Some(true)
            }
            Event::SpteChanged { .. } => Some(false),
            _ => None,
        })
        .collect();
    assert_eq!(order, [true, false]);
    assert_eq!(both.world.audit(), []);
}

/// A read of a followed table that nothing maps yet: the leaf is read-only from the start.
#[test]
fn a_leaf_made_for_a_read_protects_the_table_too() {
    let mut both = Both::new(PageSize::Size4K);
    let [top, ..] = tables_of(&mut both.world, 0x40_0000);
    both.l2_reads(0x40_0000);
    let (came, _) = both.l1_faults(top, Kind::Read, Present::No);
    assert_eq!(came, Outcome::Fixed);
    assert!(!both.is_writable(top));
}

#[test]
fn no_huge_leaf_is_made_around_a_followed_table() {
    let mut both = Both::new(PageSize::Size2M);
    both.l2_reads(0x40_0000);
    let (_, near) = both.l1_faults(0x100, Kind::Read, Present::No);
    let (_, far) = both.l1_faults(0x600, Kind::Read, Present::No);
    assert_eq!((near, far), (PageSize::Size4K, PageSize::Size2M));
}

/// Without pages that follow tables nothing is asked.
#[test]
fn a_vm_without_nested_guests_is_left_alone() {
    let mut both = Both::new(PageSize::Size2M);
    let (came, size) = both.l1_faults(0x10, Kind::Write, Present::No);
    assert_eq!((came, size), (Outcome::Fixed, PageSize::Size2M));
    assert!(both.is_writable(0x10));
}
