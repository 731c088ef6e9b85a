//! Many addresses at a time against one after the other, wherever their ways part.

use proptest::prelude::*;

use super::*;

/// Frames that part from each other at any level.
fn frame() -> impl Strategy<Value = u64> {
    let index = || prop_oneof![6 => Just(0_u64), 1 => Just(1), 1 => Just(5), 1 => Just(511)];
    let indexes = (0..3_u64, index(), index(), index());
    indexes.prop_map(|(l4, l3, l2, l1)| l4 << 27 | l3 << 18 | l2 << 9 | l1)
}

fn size() -> impl Strategy<Value = PageSize> {
    prop_oneof![
        6 => Just(PageSize::Size4K),
        1 => Just(PageSize::Size2M),
        1 => Just(PageSize::Size1G),
    ]
}

/// No frame keeps its number, and a leaf of any size begins where leaves of its size do.
fn leaf<F: Format>((gfn, size): (u64, PageSize)) -> MapRequest<F> {
    let first = gfn & !(size.pages().raw() - 1);
    MapRequest::page(Gfn::new(gfn), size, Pfn::new(first | 1 << 32))
}

fn compare<F: Format>(host: &Host, leaves: &[(u64, PageSize)], frames: &[Option<u64>]) {
    let mut world = World::<F>::new(host, 46, &[]);
    let mut locked = world.tables.shared(&mut world.reader, Unobserved);
    for leaf_of in leaves {
        let _mapped = locked.map(world.root, &leaf(*leaf_of)).unwrap();
    }
    let mut stage = TdpStage::new(&mut locked, world.root);
    let group: Vec<Option<Gpa>> = frames
        .iter()
        .map(|gfn| gfn.map(|gfn| Gpa::new(gfn << 12 | 0x18)))
        .collect();
    let mut together = vec![Some(Hpa::new(1)); group.len()];
    stage.translate_group(&group, ErrorCode::READ, &mut together);
    let mut one = |gpa: Gpa| stage.translate(gpa, ErrorCode::READ).ok();
    let singly: Vec<Option<Hpa>> = group.iter().map(|gpa| gpa.and_then(&mut one)).collect();
    assert_eq!(together, singly);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_group_comes_to_what_its_addresses_come_to(
        leaves in proptest::collection::vec((frame(), size()), 1..24),
        others in proptest::collection::vec(proptest::option::of(frame()), 0..8),
        taken in proptest::collection::vec(any::<proptest::sample::Index>(), 0..32),
    ) {
        // Most are mapped.
        let mapped = taken.iter().map(|index| Some(index.get(&leaves).0));
        let frames: Vec<Option<u64>> = mapped.chain(others).collect();
        compare::<Ept>(&Host::ept(46), &leaves, &frames);
        compare::<Npt>(&Host::npt(46), &leaves, &frames);
    }
}
