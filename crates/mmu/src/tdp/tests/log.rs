//! Dirty logs, in order and entry by entry.

use core::num::NonZeroU32;

use slat_memslot::{AsId, Generation};

use super::*;

/// A word of leaves, an MMIO entry among them, on both sides of a border of tables, and a huge leaf behind.
fn world() -> World<Npt> {
    let mut world = World::<Npt>::new(&Host::npt(40));
    for gfn in (0x1e0..0x220).filter(|gfn| *gfn != 0x1f3) {
        world.map(gfn, PageSize::Size4K, 0x4000 + gfn);
    }
    world.request(&MapRequest::mmio(Gfn::new(0x1f3), Generation::new(2)));
    world.map(0x400, PageSize::Size2M, 0x4400);
    world.story();
    world
}

/// Who runs it, and when it gives way.
#[derive(Clone, Copy, Debug)]
enum Way {
    Exclusive(Option<u32>),
    Shared(Option<u32>),
}

fn run(world: &mut World<Npt>, weaken: &mut Weaken, way: Way) -> u32 {
    let mut pauses = 0;
    let (Way::Exclusive(every) | Way::Shared(every)) = way;
    let mut budget = every.and_then(NonZeroU32::new).map(Every::new);
    loop {
        let (tables, reader) = (&mut world.tables, &mut world.reader);
        let progress = match (way, &mut budget) {
            (Way::Exclusive(_), None) => {
                weaken.run(&mut tables.exclusive(&mut world.events), &mut Uninterrupted)
            }
            (Way::Exclusive(_), Some(budget)) => {
                weaken.run(&mut tables.exclusive(&mut world.events), budget)
            }
            (Way::Shared(_), None) => weaken.run(
                &mut tables.shared(reader, &mut world.events),
                &mut Uninterrupted,
            ),
            (Way::Shared(_), Some(budget)) => {
                weaken.run(&mut tables.shared(reader, &mut world.events), budget)
            }
        };
        if progress == Progress::Done {
            return pauses;
        }
        pauses += 1;
    }
}

#[test]
fn every_way_to_weaken_tells_the_same_story() {
    for write in [true, false] {
        // Without the MMIO entry; the huge leaf reaches into the range.
        let stories = same_stories(0x1f0, write);
        assert_eq!(stories.len(), 0x30 - 1 + 1);
        assert!(stories[0].starts_with("spte 0x1f0 l1"), "{}", stories[0]);
        assert!(stories[0x2f].starts_with("spte 0x400 l2"));
        // From the second table on.
        let stories = same_stories(0x210, write);
        assert_eq!(stories.len(), 0x10 + 1);
        assert!(stories[0].starts_with("spte 0x210 l1"), "{}", stories[0]);
    }
}

/// What every way tells about leaves from a frame on that lose the right to write, or their dirty bits.
fn same_stories(first: u64, write: bool) -> Vec<String> {
    let range = GfnRange::between(Gfn::new(first), Gfn::new(0x401)).unwrap();
    let ways = [
        Way::Exclusive(None),
        Way::Exclusive(Some(1)),
        Way::Exclusive(Some(7)),
        Way::Shared(None),
        Way::Shared(Some(1)),
        Way::Shared(Some(100)),
    ];
    let mut stories = ways.map(|way| {
        let mut world = world();
        let mut weaken = match write {
            true => Weaken::write_protect(AsId::NORMAL, range, PageSize::Size4K),
            false => Weaken::clear_dirty(AsId::NORMAL, range),
        };
        let pauses = run(&mut world, &mut weaken, way);
        let (Way::Exclusive(every) | Way::Shared(every)) = way;
        assert_eq!(pauses > 0, every.is_some(), "{way:?}");
        assert!(weaken.has_changed());
        let story = world.story();
        let mut again = Weaken::write_protect(AsId::NORMAL, range, PageSize::Size4K);
        run(&mut world, &mut again, way);
        assert_eq!(again.has_changed(), !write, "{way:?}");
        story
    });
    assert!(stories.iter().all(|story| *story == stories[0]));
    core::mem::take(&mut stories[0])
}

#[test]
fn from_2_mib_on_small_leaves_keep_the_right_to_write() {
    let mut world = world();
    let range = GfnRange::between(Gfn::new(0), Gfn::new(0x600)).unwrap();
    let mut weaken = Weaken::write_protect(AsId::NORMAL, range, PageSize::Size2M);
    run(&mut world, &mut weaken, Way::Shared(None));
    assert_eq!(world.story().len(), 1);
    assert!(world.spte(0x1e0).is_writable() && !world.spte(0x400).is_writable());
}

#[test]
fn a_word_of_a_log_is_cleared_bit_by_bit() {
    for (first, mask, cleared) in [
        (0x1e0, 0, vec![]),
        (0x1e0, 1 | 1 << 63, vec![0x1e0, 0x21f]),
        // 0x1f3 is MMIO; tables end between 0x1ff and 0x200.
        (0x1f2, 0b11, vec![0x1f2]),
        (0x1fe, 0b1111, vec![0x1fe, 0x1ff, 0x200, 0x201]),
        // Huge leaves are left to others, and nothing is mapped at 0x300.
        (0x400, u64::MAX, vec![]),
        (0x300, u64::MAX, vec![]),
        // Frames that the root cannot tell from 0x1e0 and the following, and some that nothing can have.
        ((1 << 36) + 0x1e0, u64::MAX, vec![]),
        (u64::MAX - 10, u64::MAX, vec![]),
    ] {
        let mut world = world();
        let mut locked = world.tables.exclusive(&mut world.events);
        let (as_id, by) = (AsId::NORMAL, ByWhat::WriteProtection);
        locked.clear_dirty(as_id, by).word(Gfn::new(first), mask);
        let other = AsId::new(1).unwrap();
        locked.clear_dirty(other, by).word(Gfn::new(first), mask);
        let story = world.story();
        assert_eq!(story.len(), cleared.len(), "{first:#x}: {story:?}");
        for (line, gfn) in story.iter().zip(cleared) {
            assert!(line.starts_with(&format!("spte {gfn:#x} l1")), "{line}");
            assert!(!world.spte(gfn).is_writable());
        }
    }
}

#[test]
fn words_cleared_together_tell_the_same_story() {
    let (as_id, by) = (AsId::NORMAL, ByWhat::WriteProtection);
    // Upwards over several tables, back, and across the end of one.
    let words: Vec<u64> = (0x180..0x480)
        .step_by(64)
        .chain([0x1c0, 0x1f0, 0])
        .collect();
    let mut apart = world();
    for first in &words {
        let mut locked = apart.tables.exclusive(&mut apart.events);
        locked
            .clear_dirty(as_id, by)
            .word(Gfn::new(*first), 0x8000_ffff_0f0f_5555);
    }
    let mut together = world();
    let mut locked = together.tables.exclusive(&mut together.events);
    let mut log = locked.clear_dirty(as_id, by);
    for first in &words {
        log.word(Gfn::new(*first), 0x8000_ffff_0f0f_5555);
    }
    let story = apart.story();
    assert!(story.len() > 20, "{story:?}");
    assert_eq!(together.story(), story);
}
