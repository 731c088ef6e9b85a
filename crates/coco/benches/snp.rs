//! What checks and plans cost, as ratios of one round, and what the reverse map costs.
//!
//! `cargo bench -p slat-coco`; with `--test` a round of little work, to see that it runs.

use std::cell::Cell;
use std::hint::black_box;
use std::time::Instant;

use slat_coco::psc::{
    Answer, Psc, PscBuffer, PscEntry, PscHeader, PscOperation, PscQuirks, PscSettings, PscStep,
    Scratch,
};
use slat_coco::rmp::{
    Accessor, Asid, GuestCpu, GuestPage, Rmp, RmpSize, RmpState, Touch, Visibility, Vmpl,
};
use slat_memslot::{Gfn, Gpa, PageSize};
use slat_mmu::host::Host;
use slat_mmu::role::{TdpDepth, TdpHost, VcpuState, root_role_for_tdp};
use slat_mmu::spte::{Access, Npt, Pfn};
use slat_mmu::tdp::{MapRequest, Tables, Unobserved};

/// Nanoseconds a run, of `times` runs.
fn time(times: u64, mut run: impl FnMut(u64)) -> f64 {
    let start = Instant::now();
    for number in 0..times {
        run(number);
    }
    start.elapsed().as_secs_f64() * 1e9 / times as f64
}

/// The median of some rounds of two things, and of their ratio.
fn compare(rounds: u32, mut both: impl FnMut() -> (f64, f64)) -> (f64, f64, f64) {
    let all: Vec<(f64, f64)> = (0..rounds).map(|_| both()).collect();
    let median = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = all.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    (
        median(&|one| one.0),
        median(&|one| one.1),
        median(&|one| one.1 / one.0),
    )
}

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

fn plans(rounds: u32, times: u64) {
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
        let (read, begin, ratio) = compare(rounds, || {
            let read = time(times, |_| read_all());
            let begin = time(times, |_| {
                let mut psc = Psc::new(settings);
                let _ = black_box(psc.begin(&buffer, scratch));
            });
            (read, begin)
        });
        println!(
            "PSC, {name}: read {read:.0} ns, up to the first exit {begin:.0} ns, ratio {ratio:.2}"
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
        println!("PSC, {name}: read {read:.0} ns, the whole event {event:.0} ns, ratio {ratio:.2}");
    }
}

fn walks(rounds: u32, times: u64) {
    const PAGES: u64 = 4096;
    let rmp = Rmp::new(1 << 20);
    let cpu = GuestCpu {
        asid: Asid::new(5).expect("it is small"),
        vmpl: Vmpl::Vmpl0,
    };
    let tables = Tables::<Npt>::new(&Host::npt(48));
    let mut reader = tables.reader().expect("nobody has taken a place");
    let role = root_role_for_tdp(&VcpuState::default(), &TdpHost::new(TdpDepth::Npt4));
    let mut shared = tables.shared(&mut reader, Unobserved);
    let root = shared.acquire_root(role).expect("there is room").root();
    let table = shared.root_table(root).expect("it is held");
    for number in 0..PAGES {
        let (gfn, pfn) = (Gfn::new(number), Pfn::new(0x1_0000 + number));
        let request = MapRequest::page(gfn, PageSize::Size4K, pfn);
        let _ = shared.map(table, &request).expect("there is room");
        let state = RmpState::private(cpu.asid, gfn, RmpSize::Size4K);
        rmp.rmpupdate(pfn, &state).expect("the page is free");
        let page = GuestPage {
            gfn,
            pfn,
            nested: PageSize::Size4K,
        };
        let _ = rmp.pvalidate(cpu, page, RmpSize::Size4K, true);
    }
    let check = rmp.check(Accessor::Snp(cpu, Visibility::Private), Touch::Write);
    let at = |number: u64| Gfn::new(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52);
    let (plain, checked, ratio) = compare(rounds, || {
        let plain = time(times, |number| {
            black_box(shared.translate(table, at(number), Access::WRITE).is_ok());
        });
        let checked = time(times, |number| {
            let found = shared.translate_checked(table, at(number), Access::WRITE, &check);
            black_box(found.is_ok());
        });
        (plain, checked)
    });
    println!("walk: {plain:.1} ns, with the reverse map {checked:.1} ns, ratio {ratio:.2}");
}

fn rates(times: u64) {
    let rmp = Rmp::new(1 << 28);
    let asid = Asid::new(5).expect("it is small");
    let regions = times.min(1 << 19);
    let update = time(regions, |number| {
        let gfn = Gfn::new(number * 512);
        let state = RmpState::private(asid, gfn, RmpSize::Size2M);
        let done = rmp.rmpupdate(Pfn::new(number * 512), &state);
        debug_assert!(done.is_ok());
    });
    let bytes_huge = rmp.bytes() as f64 / (regions * 512) as f64;
    let small = regions.min(1 << 10);
    let psmash = time(small, |number| {
        let done = rmp.psmash(Pfn::new(number * 512));
        debug_assert!(done.is_ok());
    });
    let again = time(small * 512, |number| {
        let state = RmpState::private(asid, Gfn::new(number), RmpSize::Size4K);
        let done = rmp.rmpupdate(Pfn::new(number), &state);
        debug_assert!(done.is_ok());
    });
    println!(
        "RMPUPDATE 2M {update:.0} ns with memory, 4K {again:.0} ns; PSMASH {psmash:.0} ns; {bytes_huge:.2} bytes a page \
         in 2M entries, 16 in 4K entries"
    );
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--test");
    let (rounds, times) = if quick { (3, 100) } else { (15, 100_000) };
    plans(rounds, times);
    walks(rounds, times * 10);
    rates(times * 4);
}
