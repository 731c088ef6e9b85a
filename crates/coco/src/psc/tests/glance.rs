//! What a glance tells of entries, against what is usual by definition.

use std::cell::Cell;

use super::*;
use crate::psc::glance::{Entries, Glance, PLACES, Usual};

/// As the module says it: whole pages in the guest's memory, one of the four operations, nothing reserved.
fn is_usual(word: u64, end_gfn: u64) -> bool {
    let (gfn, large) = (word >> 12 & 0xff_ffff_ffff, word >> 56 & 1 != 0);
    let pages = if large { 512 } else { 1 };
    word & 0xfff == 0
        && (1..=4).contains(&(word >> 52 & 0xf))
        && word >> 57 == 0
        && gfn % pages == 0
        && gfn + pages <= end_gfn / 512 * 512
}

struct Words([Cell<u64>; 3]);

impl PscBuffer for Words {
    fn load_u16(&self, _: usize) -> u16 {
        unreachable!("entries are read whole")
    }

    fn load_u64(&self, offset: usize) -> u64 {
        self.0[offset / 8].get()
    }

    fn store_u16(&self, _: usize, _: u16) {
        unreachable!("nothing is told")
    }
}

/// Pairs of entries around all that a limit can be confused with.
#[test]
fn a_glance_tells_the_usual_from_the_rest() {
    const END: u64 = 1 << 40;
    const HALF: u64 = 1 << 39;
    let limits = [
        0,
        511,
        512,
        1024,
        3 << 20,
        HALF - 512,
        HALF,
        HALF + 512,
        HALF + (3 << 20),
        END - 1024,
        END - 512,
    ];
    let mut seen = [0_u32; 3];
    for end_gfn in limits {
        let around = [0, end_gfn, HALF, end_gfn ^ HALF, end_gfn / 2, END];
        let frames = around.into_iter().flat_map(|frame| {
            let near = [-512_i64, -511, -1, 0, 1, 512];
            near.map(|by| frame.wrapping_add_signed(by) % END)
        });
        let mut words = Vec::new();
        for gfn in frames {
            for top in [1, 4, 0, 5, 8, 15, 0x11, 0x14, 0x10, 0x1f, 0x21, 0x801] {
                words.push(gfn << 12 | top << 52);
            }
            words.push(gfn << 12 | 1 << 52 | 0x800);
        }
        let glance = Glance::new(end_gfn);
        let mut entries = Entries {
            words: [0; PLACES],
            breaks: [0; PLACES],
        };
        for &first in &words {
            for &second in words.iter().step_by(7) {
                let buffer = Words([Cell::new(0), Cell::new(first), Cell::new(second)]);
                let told = glance.read(&buffer, 0..2, &mut entries);
                let usual = [first, second].map(|word| is_usual(word, end_gfn));
                let expected = match usual {
                    [true, true] => Usual::All,
                    [false, true] => Usual::AllButFirst,
                    [_, false] => Usual::No,
                };
                assert_eq!(told, expected, "{first:#x} {second:#x} of {end_gfn:#x}");
                seen[expected as usize] += 1;
            }
        }
    }
    println!("all, all but the first, not all: {seen:?}");
    assert!(seen.iter().all(|count| *count > 1000));
}
