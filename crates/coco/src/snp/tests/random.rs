//! Random guests on random VMMs, page by page against the reference, with the audit after each step.
//!
//! `SLAT_SEQUENCES` sets how many sequences, `SLAT_SEED` the first seed. A failure names its seed.

use super::reference::Reference;
use super::*;
use crate::psc::{Direction, PscEntry, PscOperation, PscQuirks, PscResult};

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % sides
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let count = u64::try_from(from.len()).unwrap();
        from[usize::try_from(self.roll(count)).unwrap()]
    }
}

fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |given| given.parse().unwrap())
}

const PAGES: u64 = 8;

fn at(page: u64) -> usize {
    usize::try_from(page).unwrap()
}

/// One operation on both. Gives what it was.
fn step(one: &mut One, reference: &mut Reference, dice: &mut Dice) -> String {
    let page = dice.roll(PAGES);
    let vmm = Vmm {
        explicit: dice.pick(&[Hole::Punched, Hole::Kept]),
        implicit: dice.pick(&[None, Some(Hole::Punched), Some(Hole::Kept)]),
        quirks: dice.pick(&[PscQuirks::kvm(), PscQuirks::strict()]),
    };
    let access = dice.pick(&[PRIVATE, PRIVATE, SHARED]);
    let value = dice.roll(1 << 40);
    let (op, expected) = match dice.roll(12) {
        0..=2 => (
            GuestOp::Read(gfn(page), access),
            reference.read(at(page), access, vmm),
        ),
        3..=5 => (
            GuestOp::Write(gfn(page), access, Value::Tag(value)),
            reference.write(at(page), access, value, vmm),
        ),
        6 | 7 => (
            GuestOp::Validate(gfn(page), RmpSize::Size4K),
            reference.validate(at(page), true, vmm),
        ),
        8 => (
            GuestOp::Rescind(gfn(page), RmpSize::Size4K),
            reference.validate(at(page), false, vmm),
        ),
        9 => psc(reference, dice, vmm),
        10 => {
            let pages = 1 + dice.roll(PAGES - page);
            one.vm.punch_hole(range(page, pages));
            reference.punch(at(page)..at(page + pages));
            return format!("punch {page} + {pages}");
        }
        _ => {
            if dice.roll(2) == 0 {
                assert_eq!(
                    one.vm.host_read(gfn(page)),
                    Some(reference.host_read(at(page)))
                );
                return format!("host reads {page}");
            }
            assert_eq!(one.vm.host_write(gfn(page), Value::Tag(value)), Some(true));
            reference.host_write(at(page), value);
            return format!("host writes {page}");
        }
    };
    assert_eq!(one.run(&op, vmm), expected, "{op:?} {vmm:?}");
    format!("{op:?}")
}

/// A page-state change of a few entries, each of which the reference makes by itself where the engine joins them.
fn psc(reference: &mut Reference, dice: &mut Dice, vmm: Vmm) -> (GuestOp, GuestReply) {
    let mut entries = Vec::new();
    for _ in 0..1 + dice.roll(4) {
        let page = dice.roll(PAGES);
        let operation = dice.pick(&[PscOperation::Private, PscOperation::Shared]);
        entries.push(PscEntry::new(gfn(page), operation, RmpSize::Size4K));
    }
    let mut at_entry = 0;
    while at_entry < entries.len() {
        let first = entries[at_entry];
        let mut end = at_entry + 1;
        while end < entries.len()
            && entries[end].operation == first.operation
            && entries[end].gfn.raw() == entries[end - 1].gfn.raw() + 1
        {
            end += 1;
        }
        let to = match first.operation {
            PscOperation::Private => Direction::ToPrivate,
            _ => Direction::ToShared,
        };
        let start = at(first.gfn.raw());
        reference.convert(start..start + (end - at_entry), to, vmm.explicit);
        at_entry = end;
    }
    (GuestOp::Psc(entries), GuestReply::Psc(PscResult::Success))
}

#[test]
fn sequences_of_4k_pages() {
    let sequences = setting("SLAT_SEQUENCES", 2_000);
    let first = setting("SLAT_SEED", 1);
    let (mut steps, mut stale, mut lost) = (0u64, 0, 0);
    let mut one = small();
    for seed in first..first + sequences {
        // From time to time other frames.
        if seed % 64 == 0 {
            one = small();
        }
        let mut dice = Dice(seed);
        let mut reference = Reference::new(at(PAGES));
        let mut told = Vec::new();
        for _ in 0..24 {
            let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                step(&mut one, &mut reference, &mut dice)
            }));
            match attempt {
                Ok(what) => told.push(what),
                Err(panic) => {
                    println!("seed {seed}, after {told:#?}");
                    std::panic::resume_unwind(panic);
                }
            }
            let violations = one.vm.audit();
            assert!(
                violations.is_empty(),
                "seed {seed}: {violations:?} after {told:#?}"
            );
            for page in 0..PAGES {
                let peeked = one.vm.host_peek_private(gfn(page));
                assert_eq!(
                    peeked,
                    reference.host_peek(at(page)),
                    "seed {seed}, page {page}"
                );
            }
            steps += 1;
        }
        stale += reference.stale;
        lost += reference.lost;
        reset(&one);
    }
    println!(
        "{sequences} sequences from seed {first}, {steps} steps: {stale} times old contents came back, {lost} times they \
         were lost to a hole"
    );
    assert!(stale > 0 && lost > 0);
}

/// As few frames as the sequences need, so that the audit after each step is cheap.
fn small() -> One {
    let settings = SnpSettings::new(asid(), PAGES);
    let vm = SnpVm::new(settings, Arc::new(Rmp::new(0x400)), Pfn::new(0x100)).unwrap();
    let vcpu = vm.create_vcpu().unwrap();
    One { vm, vcpu }
}

fn reset(one: &One) {
    let all = one.vm.range();
    one.vm.convert(all, Direction::ToShared, Hole::Punched);
    one.vm.discard_shared(all);
    one.assert_clean();
}

/// Pages of 2 MiB: whatever is read as private was written there as private last, and not before a hole.
#[test]
fn sequences_of_2m_pages() {
    let sequences = setting("SLAT_SEQUENCES", 2_000) / 20;
    let first = setting("SLAT_SEED", 1);
    let (mut reads, mut huge, mut smashed) = (0u64, 0u64, 0);
    for seed in first..first + sequences {
        let mut dice = Dice(seed);
        let mut one = One::huge();
        let mut written = std::collections::BTreeMap::new();
        for _ in 0..40 {
            let page = 512 * dice.roll(3) + dice.pick(&[0, 0, 3, 511]);
            let head = page & !511;
            match dice.roll(9) {
                0 | 1 => {
                    let (start, pages) = dice.pick(&[(head, 512), (head, 512), (page, 1)]);
                    let to = dice.pick(&[
                        Direction::ToPrivate,
                        Direction::ToPrivate,
                        Direction::ToShared,
                    ]);
                    let hole = dice.pick(&[Hole::Punched, Hole::Kept]);
                    one.vm.convert(range(start, pages), to, hole);
                    if to == Direction::ToShared && hole == Hole::Punched {
                        written.retain(|at, _| !(start..start + pages).contains(at));
                    }
                }
                2 => {
                    let done = one.vm.punch_hole(range(page, 1));
                    smashed += done.smashed;
                    written.remove(&page);
                }
                3 | 4 => {
                    let whole = one.careful(&GuestOp::ValidateAll(gfn(head)));
                    huge += u64::from(matches!(whole, GuestReply::Validated(_)));
                }
                5 => {
                    let _ = one.rescind(page);
                }
                6 => {
                    let value = dice.roll(1 << 40);
                    if one.write(page, PRIVATE, value) == GuestReply::Done {
                        written.insert(page, value);
                    }
                }
                _ => {
                    let found = match one.read(page, PRIVATE) {
                        GuestReply::Read(found) => found,
                        _ => continue,
                    };
                    let value = written.get(&page).copied();
                    let expected =
                        value.map_or(Found::Scrambled, |value| Found::Value(Value::Tag(value)));
                    assert_eq!(found, expected, "seed {seed}, page {page}");
                    reads += 1;
                }
            }
            let violations = one.vm.audit();
            assert!(violations.is_empty(), "seed {seed}: {violations:?}");
            if let Some(Found::Value(Value::Tag(_))) = one.vm.host_peek_private(gfn(page)) {
                panic!("seed {seed}: the host reads page {page}");
            }
        }
    }
    println!(
        "{sequences} sequences from seed {first}: {reads} reads, {huge} times 2M validated, {smashed} entries taken apart by holes"
    );
    assert!(reads > 0 && huge > 0 && smashed > 0);
}
