//! Targets 9, 10 and 11: walks of a guest's tables in one and two dimensions, beside loops that only load.
//!
//! Every access depends on the one before it, but for target 11: the page that an access comes to has a say in the next
//! address. All entries are marked already, and all is warm but for target 11, whose tables are larger than the caches.

mod batch;
mod caches;
mod one;
mod two;
mod world;

use std::hint::black_box;
use std::time::Instant;

use slat::mmu::role::{Cr0, Cr4, Efer, VcpuState};
use slat::mmu::walk::{GuestCpu, GuestPaging};

use crate::paired::Side;

pub(crate) use batch::batch;
pub(crate) use one::one_dimension;
pub(crate) use two::two_dimensions;

/// Pages that the small guest maps: 64 MiB.
const PAGES: u64 = 1 << 14;
/// Addresses that are used in turn.
const HOT: usize = 1024;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Present, writable, user, accessed, dirty.
const FLAGS: u64 = 0x67;

fn random(seed: u64) -> u64 {
    let mixed = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Tables of a format that all sides read alike, in words from address 0 on: the first table is the root.
#[derive(Clone)]
struct Flat {
    words: Vec<u64>,
    /// The level of each table, from 0.
    levels: Vec<u32>,
    flags: u64,
}

impl Flat {
    fn new(flags: u64) -> Self {
        Self {
            words: vec![0; 512],
            levels: vec![3],
            flags,
        }
    }

    /// Maps a page, with tables at the end where they are missing.
    fn map(&mut self, page: u64, to: u64) {
        let mut table = 0;
        for level in (1..4).rev() {
            let place = table * 512 + index(page, level);
            if self.words[place] == 0 {
                let new = self.words.len() / 512;
                self.words[place] = (new as u64) << 12 | self.flags;
                self.words.resize(self.words.len() + 512, 0);
                self.levels.push(level - 1);
            }
            table = usize::try_from((self.words[place] & ADDRESS) >> 12).expect("small");
        }
        self.words[table * 512 + index(page, 0)] = to << 12 | self.flags;
    }

    fn tables(&self) -> u64 {
        self.words.len() as u64 / 512
    }
}

/// Which entry of a table of `level`, from 0, is for a page.
#[inline]
fn index(page: u64, level: u32) -> usize {
    let [low, high, ..] = (page >> (9 * level)).to_le_bytes();
    usize::from(u16::from_le_bytes([low, high])) % 512
}

/// Four loads, and nothing else.
#[inline]
fn load(words: &[u64], root: u64, address: u64) -> u64 {
    let mut table = root;
    for shift in [39, 30, 21, 12] {
        let place = ((table & ADDRESS) >> 3) + (address >> shift & 511);
        table = words[usize::try_from(place).unwrap_or(usize::MAX)];
    }
    table & ADDRESS | address & 0xfff
}

fn guest() -> GuestPaging {
    let vcpu = VcpuState {
        cr0: Cr0::PG | Cr0::PE | Cr0::WP,
        cr4: Cr4::PAE | Cr4::SMEP,
        efer: Efer::LME | Efer::LMA | Efer::NX,
        ..VcpuState::default()
    };
    GuestPaging::new(&vcpu, &GuestCpu::new(46))
}

/// The small guest: its pages in an order of their own, behind its tables.
fn small() -> Flat {
    let mut flat = Flat::new(FLAGS);
    for page in 0..PAGES {
        flat.map(page, PAGES + (page * 4797 + 11) % PAGES);
    }
    flat
}

/// Addresses in pages all over the small guest.
fn hot() -> Vec<u64> {
    (0..HOT as u64)
        .map(|i| (random(i) % PAGES) << 12 | 0x18)
        .collect()
}

/// A chain of accesses: each goes to the address that the one before it chooses.
fn chain(label: &str, hot: Vec<u64>, mut access: impl FnMut(u64) -> u64 + 'static) -> Side {
    Side::timed(label, move |times| {
        let start = Instant::now();
        let mut last = 0;
        for turn in 0..times {
            let next = (last >> 12) ^ turn;
            last = access(hot[usize::try_from(next).unwrap_or(0) % HOT]);
        }
        black_box(last);
        start.elapsed()
    })
}

/// A chain of accesses in turn: each goes to the next address, which is not known before the one before it has ended.
fn turns(label: &str, hot: Vec<u64>, mut access: impl FnMut(u64) -> u64 + 'static) -> Side {
    Side::timed(label, move |times| {
        let start = Instant::now();
        let mut last = 0;
        for turn in 0..times {
            // No address of the host has bit 63.
            let next = turn + (last >> 63);
            last = access(hot[usize::try_from(next).unwrap_or(0) % HOT]);
        }
        black_box(last);
        start.elapsed()
    })
}
