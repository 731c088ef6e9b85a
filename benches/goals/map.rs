//! Targets 6 and 12: ranges mapped with 4 KiB leaves; how long that takes, and how much memory.

use crate::floor::Floor;
use crate::memory;
use crate::paired::{Bound, Side};
use crate::passes::MapAll;
use crate::peers::hyperlight::Hyperlight;
use crate::peers::multiarch::Multiarch;
use crate::peers::x86_64::X86_64;
use crate::race::{Beside, Part, Race};
use crate::side::{GIB, Job, Kind, side};
use crate::slat;
use crate::zap::{HYPERLIGHT, MULTIARCH, X86, floor, own};

const KIND: Kind = Kind::Map;

/// Target 6: 1 GiB, exclusive.
pub(crate) fn one_gib() {
    let pages = GIB;
    let peers: [Side; 3] = [
        side(HYPERLIGHT, KIND, pages, Hyperlight::new(KIND, pages)),
        side(MULTIARCH, KIND, pages, Multiarch::new(KIND, pages)),
        side(X86, KIND, pages, X86_64::new(KIND, pages)),
    ];
    let race = Race::new("6 map, 1 GiB", pages)
        .with_slat(own(KIND, pages))
        .with(Part::Floor, floor("each table once", KIND, pages, MapAll));
    peers
        .into_iter()
        .fold(race, |race, peer| race.with(Part::Peer, peer))
        .goal("best peer", Beside::BestPeer, Bound::AtLeast(1.5))
        .report();
}

/// Target 12: as much as asked for, from warm memory, and the bytes for each page.
pub(crate) fn most(pages: u64) {
    let gib = pages / GIB;
    let (own, bytes) = weighed(pages, || slat::job(KIND, pages));
    let verdict = if bytes <= 8.5 { "ok" } else { "short" };
    println!("target 12 bytes for each page, {gib} GiB: {bytes:.3}  at most 8.5  {verdict}");
    let own = side("slat", KIND, pages, own);
    let (tables, bytes) = weighed(pages, || Floor::new(KIND, pages, MapAll));
    println!("floor  12 bytes for each page, {gib} GiB: tables alone {bytes:.3}");
    let hyperlight = side(HYPERLIGHT, KIND, pages, Hyperlight::new(KIND, pages));
    Race::new(format!("12 map, {gib} GiB"), pages)
        .with_slat(own)
        .with(Part::Floor, side("each table once", KIND, pages, tables))
        .with(Part::Peer, hyperlight)
        .goal("floor", Beside::Floor, Bound::AtMost(3.0))
        .report();
}

/// Makes a side and maps everything once; with the bytes that took for each page.
fn weighed<J: Job>(pages: u64, make: impl FnOnce() -> J) -> (J, f64) {
    let before = memory::live();
    let mut job = make();
    job.prepare();
    job.run();
    (job, (memory::live() - before) as f64 / pages as f64)
}
