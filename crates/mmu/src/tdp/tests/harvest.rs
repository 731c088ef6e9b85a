//! What a zap passes on of the marks that hardware has left, in each way an observer may want it.

use slat_memslot::Level;

use super::*;
use crate::spte::{Ept, Marks};
use crate::sync::Ordering;
use crate::table::index;

/// Every page whose marks are passed on.
#[derive(Debug, Default)]
struct Pages(Vec<(u64, Level, Marks)>);

impl<F> Observer<F> for Pages {
    const HARVEST: Harvesting = Harvesting::EveryPage;

    fn harvest(&mut self, pfn: Pfn, level: Level, marks: Marks) {
        self.0.push((pfn.raw(), level, marks));
    }
}

/// Three tables of small leaves with every third frame left out, a huge leaf between them, and marks that differ.
fn marked<F: Format>(host: &Host) -> World<F> {
    let mut world = World::<F>::new(host);
    for gfn in (0x200..0x800).filter(|gfn| gfn % 3 != 1 && !(0x400..0x600).contains(gfn)) {
        world.map(gfn, PageSize::Size4K, 0x1_0000 + gfn);
        let keeps = match gfn % 4 {
            0 => 0,
            1 => F::ACCESSED,
            2 => F::DIRTY,
            _ => F::ACCESSED | F::DIRTY,
        };
        if host.ad_enabled() {
            let locked = world.tables.shared(&mut world.reader, Unobserved);
            let place = locked.find(world.root, Gfn::new(gfn)).place;
            drop(locked);
            let entry = world.tables.entry(place.table, place.index);
            assert_eq!(place.index, index(gfn, Level::L1));
            let unmarked = entry.load(Ordering::Relaxed) & !(F::ACCESSED | F::DIRTY);
            entry.store(unmarked | keeps, Ordering::Relaxed);
        }
    }
    world.map(0x400, PageSize::Size2M, 0x2_0000);
    world
}

/// What the leaves of these frames say, one after the other.
fn marks_of<F: Format>(world: &mut World<F>, start: u64, end: u64) -> Vec<(u64, Level, Marks)> {
    let mut found = Vec::new();
    let mut gfn = start;
    while gfn < end {
        let locked = world.tables.shared(&mut world.reader, Unobserved);
        let at = locked.find(world.root, Gfn::new(gfn));
        drop(locked);
        let codec = world.tables.codec();
        if at.spte.is_leaf(at.level) {
            let marks = Marks {
                accessed: codec.is_accessed(at.spte),
                dirty: codec.is_dirty(at.spte),
            };
            found.push((codec.pfn(at.spte).raw(), at.level, marks));
        }
        gfn = (gfn | (at.level.pages().raw() - 1)) + 1;
    }
    found
}

fn run<F: Format, O: Observer<F>>(world: &mut World<F>, range: (u64, u64), observer: O) -> u64 {
    let range = GfnRange::between(Gfn::new(range.0), Gfn::new(range.1)).unwrap();
    let mut zap = ZapLeafs::of_valid_roots(range);
    let mut locked = world.tables.exclusive(observer);
    assert_eq!(zap.run(&mut locked, &mut Uninterrupted), Progress::Done);
    zap.zapped()
}

fn check<F: Format>(host: &Host) {
    for range in [
        (0x200, 0x800),
        (0x200, 0x400),
        (0x201, 0x3ff),
        (0x27f, 0x481),
        (0x603, 0x604),
    ] {
        let mut world = marked::<F>(host);
        let wanted = marks_of(&mut world, range.0, range.1);
        let count = |of: fn(&Marks) -> bool| {
            let marks = wanted.iter().filter(|(_, _, marks)| of(marks));
            marks.count() as u64
        };
        let numbers = Harvest {
            accessed: count(|marks| marks.accessed),
            dirty: count(|marks| marks.dirty),
        };
        let leaves = wanted.len() as u64;
        assert!(leaves > 0 && numbers.accessed > 0);

        let mut counted = Harvest::default();
        assert_eq!(run(&mut world, range, &mut counted), leaves, "{range:x?}");
        assert_eq!(counted, numbers, "{range:x?}");

        let mut world = marked::<F>(host);
        let mut pages = Pages::default();
        assert_eq!(run(&mut world, range, &mut pages), leaves);
        let with_marks = wanted
            .iter()
            .filter(|(_, _, marks)| *marks != Marks::default());
        assert_eq!(
            pages.0,
            with_marks.copied().collect::<Vec<_>>(),
            "{range:x?}"
        );

        let mut world = marked::<F>(host);
        assert_eq!(run(&mut world, range, Unobserved), leaves);
        assert_eq!(marks_of(&mut world, range.0, range.1), []);
        assert_eq!(
            world.tables.totals().pages_2m,
            u64::from(range.1 <= 0x400 || range.0 >= 0x600)
        );
    }
}

#[test]
fn marks_are_passed_on_as_they_are_wanted() {
    check::<Ept>(&Host::ept(46));
    check::<Npt>(&Host::npt(48));
}

/// Without accessed and dirty bits the marks of a leaf are what it allows.
#[test]
fn leaves_without_such_bits_have_marks_too() {
    check::<Ept>(&Host::ept(46).without_ad());
}
