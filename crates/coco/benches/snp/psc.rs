//! Page-state changes: planning a full buffer beside reading it, and the whole event.

use std::hint::black_box;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use slat_coco::psc::{
    Answer, Psc, PscBuffer, PscEntry, PscHeader, PscOperation, PscPlan, PscQuirks, PscSettings,
    PscStep, Scratch,
};
use slat_coco::rmp::RmpSize;
use slat_memslot::{Gfn, Gpa};

use crate::{compare, time};

/// A buffer as a VMM has it: its owner may write it meanwhile, so that no access is joined with another, or left out.
struct Words([AtomicU64; 254]);

impl PscBuffer for Words {
    #[inline]
    fn load_u16(&self, offset: usize) -> u16 {
        let bytes = self.load_u64(offset & !7).to_le_bytes();
        u16::from_le_bytes([bytes[offset % 8], bytes[offset % 8 + 1]])
    }

    #[inline]
    fn load_u64(&self, offset: usize) -> u64 {
        self.0[offset / 8].load(Relaxed)
    }

    #[inline]
    fn store_u16(&self, offset: usize, value: u16) {
        let word = &self.0[offset / 8];
        word.store(word.load(Relaxed) & !0xffff | u64::from(value), Relaxed);
    }
}

/// A full buffer, with entries in order.
fn words(entry: impl Fn(u64) -> PscEntry) -> [u64; 254] {
    let header = PscHeader {
        cur_entry: 0,
        end_entry: 252,
        reserved: 0,
    };
    std::array::from_fn(|index| match index as u64 {
        0 => header.to_word(),
        number => entry(number).to_word(),
    })
}

fn private(gfn: u64) -> PscEntry {
    PscEntry::new(Gfn::new(gfn), PscOperation::Private, RmpSize::Size4K)
}

/// A large or a small entry, private or shared, that goes on with the one before or not: all by bits that look random.
fn any(number: u64) -> PscEntry {
    let dice = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
    let operation = match dice & 1 {
        0 => PscOperation::Private,
        _ => PscOperation::Shared,
    };
    match dice & 6 {
        0 => PscEntry::new(Gfn::new(number * 512), operation, RmpSize::Size2M),
        2 => PscEntry::new(Gfn::new(number * 1024), operation, RmpSize::Size2M),
        4 => PscEntry::new(Gfn::new(number), PscOperation::Private, RmpSize::Size4K),
        _ => PscEntry::new(Gfn::new(number), operation, RmpSize::Size4K),
    }
}

fn high(number: u64) -> PscEntry {
    private((2 << 20) + number * 2)
}

/// Large pages, the first of them half done: what a guest asks again.
fn half_done(number: u64) -> PscEntry {
    PscEntry {
        cur_page: if number == 1 { 256 } else { 0 },
        ..PscEntry::new(
            Gfn::new(number * 512),
            PscOperation::Private,
            RmpSize::Size2M,
        )
    }
}

/// Reads what the header names, each entry once, and hands each on.
fn read_once(buffer: &impl PscBuffer) {
    for index in named(buffer) {
        black_box(buffer.load_u64(8 + index * 8));
    }
}

/// The same into memory of one's own, with nothing looked at.
fn copy_once(buffer: &impl PscBuffer, copy: &mut [u64; 256]) {
    for index in named(buffer) {
        copy[index] = buffer.load_u64(8 + index * 8);
    }
    black_box(copy);
}

fn named(buffer: &impl PscBuffer) -> Range<usize> {
    let header = PscHeader::from_word(buffer.load_u64(0));
    let [start, last] = [header.cur_entry, header.end_entry.min(252)].map(usize::from);
    start..last + 1
}

pub(crate) fn plans(rounds: u32, times: u64) {
    let scratch = Scratch::in_ghcb(Gpa::new(0x1000), Gpa::new(0x1800)).expect("it is inside");
    let shapes = [
        ("253 neighbours", words(private), 1 << 41),
        ("253 apart", words(|number| private(number * 2)), 1 << 41),
        ("253 mixed", words(any), 1 << 41),
        ("253 after a half", words(half_done), 1 << 41),
        // Of 12 GiB.
        ("253 in the last third", words(high), 3 << 20),
    ];
    for (name, fresh, end_gfn) in shapes {
        let settings = PscSettings {
            end_gfn: Gfn::new(end_gfn),
            ..PscSettings::new(PscQuirks::strict())
        };
        let buffer = Words(fresh.map(AtomicU64::new));
        let refill = || {
            for (word, value) in buffer.0.iter().zip(fresh) {
                word.store(value, Relaxed);
            }
        };
        let read_all = || read_once(black_box(&buffer));
        let mut copy = [0; 256];
        refill();
        let mut plan = PscPlan::new(settings);
        let (read, planned, ratio) = compare(rounds, || {
            let read = time(times, |_| read_all());
            let planned = time(times, |_| {
                plan.read(black_box(&buffer), scratch);
                black_box(&plan);
            });
            (read, planned)
        });
        let copied = time(times, |_| copy_once(black_box(&buffer), &mut copy));
        println!(
            "PSC, {name}: read {read:.0} ns, read and planned {planned:.0} ns, ratio {ratio:.2} (goal 3; a bare copy \
             {copied:.0} ns)"
        );
        let (read, shown, ratio) = compare(rounds, || {
            let read = time(times, |_| read_all());
            let shown = time(times, |_| {
                plan.read(black_box(&buffer), scratch);
                for step in plan.steps() {
                    black_box(&step);
                }
            });
            (read, shown)
        });
        println!(
            "PSC, {name}: the same with each exit made out {shown:.0} ns, ratio {ratio:.2} to {read:.0} ns"
        );
        let (read, event, ratio) = compare(rounds, || {
            let filled = time(times, |_| refill());
            let read = time(times, |_| {
                refill();
                read_all();
            });
            let event = time(times, |_| {
                refill();
                let mut psc = Psc::new(settings);
                let mut exit = psc.begin(&buffer, scratch);
                while !matches!(exit, PscStep::Resume(_)) {
                    black_box(&exit);
                    exit = psc.complete(&buffer, Answer::Done);
                }
            });
            (read - filled, event - filled)
        });
        println!(
            "PSC, {name}: read {read:.0} ns, the whole event with what the guest is told {event:.0} ns, ratio {ratio:.2}"
        );
    }
}
