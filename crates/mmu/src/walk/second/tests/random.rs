//! Random tables in every dimension, against the naive composition.

use std::cell::Cell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use slat_memslot::{Gva, Hpa};

use super::naive::{
    GUEST_BITS, INDEXES, Naive, Raw, any_address, any_backing, any_raws, fill, naive_guest, second,
    tell, tell_page, tell_second,
};
use super::{Backing, FRAME_COUNT, Fault, World, guest};
use crate::host::{ExecuteOnly, Host};
use crate::spte::{Ept, Format, Npt};
use crate::tdp::Unobserved;
use crate::walk::second::{NestedStage, TdpStage};
use crate::walk::tlb::{AddressSpaceId, Context, Pcid, Tlb, TlbAccess};
use crate::walk::{ErrorCode, GuestCpu, GuestPaging, NestedEptRoot, WalkFault};

const fn kind(write: bool) -> ErrorCode {
    match write {
        true => ErrorCode::WRITE,
        false => ErrorCode::READ,
    }
}

type Answer = Result<u64, String>;

fn answer(found: Result<Hpa, WalkFault<Fault>>) -> Answer {
    found
        .map(Hpa::raw)
        .map_err(|fault| tell(&fault, tell_second))
}

/// How accesses are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Each by a walk of its own.
    Walk,
    /// All reads together, then all writes.
    Batch,
    /// Each through the caches of a vCPU, everything twice.
    Caches,
}

impl Way {
    /// The accesses in the order in which they are made.
    fn order(self, accesses: &[(u64, bool)]) -> Vec<(u64, bool)> {
        let of_kind = |write| accesses.iter().filter(move |access| access.1 == write);
        match self {
            Self::Walk => accesses.to_vec(),
            Self::Batch => of_kind(false).chain(of_kind(true)).copied().collect(),
            Self::Caches => accesses
                .iter()
                .chain(accesses.iter().rev())
                .copied()
                .collect(),
        }
    }

    /// What each access comes to.
    fn make<F: Format>(self, world: &mut World<F>, accesses: &[(u64, bool)]) -> Vec<Answer> {
        match self {
            Self::Walk => {
                let walk = |(address, write): &(u64, bool)| {
                    let found = world.walk(&guest(0), *address, kind(*write));
                    answer(found.map(|found| found.address))
                };
                accesses.iter().map(walk).collect()
            }
            Self::Batch => {
                let mut answers = batch(world, accesses, false);
                answers.extend(batch(world, accesses, true));
                answers
            }
            Self::Caches => through_caches(world, accesses),
        }
    }
}

fn batch<F: Format>(world: &mut World<F>, accesses: &[(u64, bool)], write: bool) -> Vec<Answer> {
    let mut locked = world.tables.shared(&mut world.reader, Unobserved);
    let mut stage = TdpStage::new(&mut locked, world.root);
    let of_kind = accesses.iter().filter(|access| access.1 == write);
    let addresses: Vec<Gva> = of_kind.map(|access| Gva::new(access.0)).collect();
    let mut answers = Vec::new();
    guest(0).walk_batch(
        world.memory.as_slice(),
        &mut stage,
        addresses.iter().copied(),
        kind(write),
        |address, found| {
            assert_eq!(address, addresses[answers.len()]);
            answers.push(answer(found.map(|found| found.address)));
        },
    );
    answers
}

fn through_caches<F: Format>(world: &mut World<F>, accesses: &[(u64, bool)]) -> Vec<Answer> {
    let mut tlb = Tlb::default();
    let context = Context {
        root: world.root,
        role: world.tables.role_of(world.root),
        space: AddressSpaceId(1),
        pcid: Pcid::default(),
    };
    let mut locked = world.tables.shared(&mut world.reader, Unobserved);
    let memory = world.memory.as_slice();
    let answers = accesses.iter().map(|(address, write)| {
        let what = (Gva::new(*address), kind(*write));
        let found = tlb.access(&context, &guest(0), memory, &mut locked, what);
        answer(found.map(TlbAccess::hpa))
    });
    let answers = answers.collect();
    assert_eq!(tlb.audit(&locked, &[world.root]), []);
    answers
}

fn two_dimensions<F: Format>(
    host: &Host,
    backing: &[Backing],
    raws: &[Raw],
    accesses: &[(u64, bool)],
    way: Way,
) -> Result<(), TestCaseError> {
    let mut world = World::<F>::new(host, 46, backing);
    fill(&world, 0, 0, raws, GUEST_BITS);
    let expected: Vec<Cell<u64>> = world.memory.clone();
    let accesses = way.order(accesses);
    let found = way.make(&mut world, &accesses);
    let next = |gpa, write| second(&world.backing, gpa, write);
    let naive = naive_guest(0, &expected);
    let should: Vec<Answer> = accesses
        .iter()
        .map(|(address, write)| naive.translate(*address, *write, &next))
        .collect();
    prop_assert_eq!(found, should, "{:?}: {:x?}", way, accesses);
    let expected: Vec<u64> = expected.iter().map(Cell::get).collect();
    prop_assert_eq!(world.snapshot(), expected, "{:?}", way);
    Ok(())
}

/// What L1 puts before the memory of L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nested {
    Ept12,
    Npt12,
}

impl Nested {
    /// The bits of entries as [`GUEST_BITS`], without large leaves, and those that leaves have besides.
    const fn bits(self) -> ([u64; 5], u64) {
        match self {
            Self::Ept12 => ([0, 5, 0, 7, 7], 6 << 3),
            Self::Npt12 => ([0, 5, 0, 7, 7], 0),
        }
    }

    fn paging(self) -> GuestPaging {
        let root = NestedEptRoot::of(0x5e, ExecuteOnly::Unsupported);
        match self {
            Self::Ept12 => GuestPaging::nested_ept(&root, &GuestCpu::new(46)),
            Self::Npt12 => guest(0),
        }
    }

    const fn naive(self, memory: &[Cell<u64>]) -> Naive<'_> {
        let (present, accessed) = match self {
            Self::Ept12 => (7, 1 << 8),
            Self::Npt12 => (1, 1 << 5),
        };
        Naive {
            root: 0,
            present,
            write: 2,
            accessed,
            dirty: accessed << 1,
            memory,
        }
    }
}

/// L2's tables in L1's frames 16 to 31, which L2 knows as 0 to 15; L1's own tables for L2 in frames 0 to 15.
fn three_dimensions<F: Format>(
    host: &Host,
    backing: &[Backing],
    (l2, l1): (&[Raw], &[Raw]),
    accesses: &[(u64, bool)],
    nested: Nested,
) -> Result<(), TestCaseError> {
    let mut world = World::<F>::new(host, 46, backing);
    fill(&world, 16, 0, l2, GUEST_BITS);
    // Links among L1's own tables, but for those of level 1.
    let (nested_bits, leaf_bits) = nested.bits();
    for (place, (frame, flags)) in l1.iter().enumerate() {
        let at = (place as u64 / 3) << 12 | INDEXES[place % 3] << 3;
        let bits = nested_bits[usize::from(*flags)];
        // Tables of levels 4 to 2 are frames 0 to 3, 4 to 7 and 8 to 11, those of level 1 frames 12 to 15.
        let group = place as u64 / 12;
        let (next, more) = match group {
            0..3 => (4 * (group + 1) + frame % 4, 0),
            _ => (16 + frame, leaf_bits),
        };
        let bits = if bits == 0 { 0 } else { bits | more };
        world.word(at).set(next << 12 | bits);
    }
    let expected: Vec<Cell<u64>> = world.memory.clone();
    for (address, write) in accesses {
        let mut locked = world.tables.shared(&mut world.reader, Unobserved);
        let behind = TdpStage::new(&mut locked, world.root);
        let mut stage = NestedStage::new(nested.paging(), world.memory.as_slice(), behind);
        let found = guest(0).walk(
            world.memory.as_slice(),
            &mut stage,
            &mut (),
            Gva::new(*address),
            kind(*write),
        );
        drop(locked);
        let found = found.map(|found| found.address.raw());
        let found = found.map_err(|fault| tell(&fault, |fault| tell(fault, tell_second)));
        let behind = |gpa, write| second(&world.backing, gpa, write);
        let l1 = nested.naive(&expected);
        let next = |gpa, write| l1.translate(gpa, write, &behind);
        let should = naive_guest(0, &expected).translate(*address, *write, &next);
        prop_assert_eq!(found, should, "{:#x}", address);
        let expected: Vec<u64> = expected.iter().map(Cell::get).collect();
        prop_assert_eq!(world.snapshot(), expected);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn two_dimensions_are_one_after_the_other(
        backing in prop::collection::vec(any_backing(), FRAME_COUNT),
        raws in any_raws(),
        accesses in prop::collection::vec(any_address(), 6),
    ) {
        for way in [Way::Walk, Way::Batch, Way::Caches] {
            two_dimensions::<Ept>(&Host::ept(46), &backing, &raws, &accesses, way)?;
            two_dimensions::<Npt>(&Host::npt(46), &backing, &raws, &accesses, way)?;
        }
    }

    #[test]
    fn a_guest_of_a_guest_goes_through_all_three(
        backing in prop::collection::vec(any_backing(), FRAME_COUNT),
        l2 in any_raws(),
        l1 in any_raws(),
        accesses in prop::collection::vec(any_address(), 6),
    ) {
        for nested in [Nested::Ept12, Nested::Npt12] {
            three_dimensions::<Ept>(&Host::ept(46), &backing, (&l2, &l1), &accesses, nested)?;
            three_dimensions::<Npt>(&Host::npt(46), &backing, (&l2, &l1), &accesses, nested)?;
        }
    }
}

/// The property tests come to every end: pages, and each kind of fault in each dimension.
#[test]
fn random_walks_come_to_every_end() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut ends = BTreeMap::<String, u32>::new();
    for _ in 0..2000 {
        let backing = prop::collection::vec(any_backing(), FRAME_COUNT);
        let backing = backing.new_tree(&mut runner).unwrap().current();
        let raws = any_raws().new_tree(&mut runner).unwrap().current();
        let (address, write) = any_address().new_tree(&mut runner).unwrap().current();
        let mut world = World::<Ept>::new(&Host::ept(46), 46, &backing);
        fill(&world, 0, 0, &raws, GUEST_BITS);
        let end = match world.walk(&guest(0), address, kind(write)) {
            Ok(_) => "page".to_owned(),
            Err(WalkFault::Second { fault, table, .. }) => {
                let place = if table.is_some() { "table" } else { "page" };
                format!("{place} {}", tell_second(&fault))
            }
            Err(WalkFault::Page(fault)) => tell_page(&fault),
            Err(WalkFault::NonCanonical { .. }) => unreachable!("low addresses"),
        };
        *ends.entry(end).or_default() += 1;
    }
    for end in [
        "page",
        "table absent",
        "table read-only",
        "table MMIO",
        "page absent",
        "page read-only",
        "page MMIO",
        "entry 1 absent",
        "entry 4 absent",
        "entry 1 read-only",
        "entry 2 reserved",
        "entry 4 reserved",
    ] {
        assert!(
            ends.get(end).is_some_and(|count| *count >= 5),
            "{end}: {ends:?}"
        );
    }
}
