//! Page-state changes: planning a full buffer beside reading it, and the whole event.

use std::cell::Cell;
use std::hint::black_box;

use slat_coco::psc::{
    Answer, Psc, PscBuffer, PscEntry, PscHeader, PscOperation, PscPlan, PscQuirks, PscSettings,
    PscStep, Scratch,
};
use slat_coco::rmp::RmpSize;
use slat_memslot::{Gfn, Gpa};

use crate::{compare, time};

/// A buffer of one thread.
struct Words([Cell<u64>; 254]);

impl PscBuffer for Words {
    fn load_u16(&self, offset: usize) -> u16 {
        let bytes = self.0[offset / 8].get().to_le_bytes();
        u16::from_le_bytes([bytes[offset % 8], bytes[offset % 8 + 1]])
    }

    fn load_u64(&self, offset: usize) -> u64 {
        black_box(&self.0[offset / 8]).get()
    }

    fn store_u16(&self, offset: usize, value: u16) {
        let word = &self.0[offset / 8];
        word.set(word.get() & !0xffff | u64::from(value));
    }
}

fn words(step: u64) -> [u64; 254] {
    let header = PscHeader {
        cur_entry: 0,
        end_entry: 252,
        reserved: 0,
    };
    std::array::from_fn(|index| match index as u64 {
        0 => header.to_word(),
        number => {
            let gfn = Gfn::new(number * step);
            PscEntry::new(gfn, PscOperation::Private, RmpSize::Size4K).to_word()
        }
    })
}

pub(crate) fn plans(rounds: u32, times: u64) {
    let scratch = Scratch::in_ghcb(Gpa::new(0x1000), Gpa::new(0x1800)).expect("it is inside");
    let settings = PscSettings::new(PscQuirks::strict());
    for (name, step) in [("253 neighbours", 1), ("253 apart", 2)] {
        let fresh = words(step);
        let buffer = Words(std::array::from_fn(|index| Cell::new(fresh[index])));
        let refill = || {
            for (word, value) in buffer.0.iter().zip(fresh) {
                word.set(value);
            }
        };
        let read_all = || {
            let mut sum = 0;
            for offset in (0..254 * 8).step_by(8) {
                sum ^= buffer.load_u64(offset);
            }
            black_box(sum);
        };
        refill();
        let mut plan = PscPlan::new(settings);
        let (read, planned, ratio) = compare(rounds, || {
            let read = time(times, |_| read_all());
            let planned = time(times, |_| {
                plan.read(&buffer, scratch);
                black_box(&plan);
            });
            (read, planned)
        });
        println!(
            "PSC, {name}: read {read:.0} ns, read and planned {planned:.0} ns, ratio {ratio:.2} (goal 3)"
        );
        let (read, shown, ratio) = compare(rounds, || {
            let read = time(times, |_| read_all());
            let shown = time(times, |_| {
                plan.read(&buffer, scratch);
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
