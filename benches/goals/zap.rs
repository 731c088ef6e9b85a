//! Targets 1 to 4: leaves zapped, roots zapped, all roots invalidated, tables given back.

use crate::floor::{Floor, Pass, PlainStores, Select, SelectCounted, TearDown};
use crate::paired::{Bound, Side, Target};
use crate::passes::{Branch, BranchCounted};
use crate::peers::hyperlight::Hyperlight;
use crate::peers::multiarch::Multiarch;
use crate::peers::x86_64::X86_64;
use crate::race::{Beside, Part, Race};
use crate::shared::{fast_side, shared_side};
use crate::shared_floor::{Exchange, MarkAndBump, SharedFloor};
use crate::side::{Filling, GIB, Kind, side};
use crate::slat;

/// How `hyperlight-common` is called in reports.
pub(crate) const HYPERLIGHT: &str = "hyperlight-common";
/// How `page_table_multiarch` is called in reports.
pub(crate) const MULTIARCH: &str = "page_table_multiarch";
/// How `x86_64` is called in reports.
pub(crate) const X86: &str = "x86_64";

/// The label of the floor that target 3 counts.
const ONE_SWAP: &str = "one swap for each entry";

/// slat's side of a kind of work, where there is one.
pub(crate) fn own(kind: Kind, pages: u64) -> Option<Side> {
    slat::job(kind, pages).map(|job| side("slat", kind, pages, job))
}

/// A floor's side.
pub(crate) fn floor(label: &str, kind: Kind, pages: u64, pass: impl Pass + 'static) -> Side {
    side(label, kind, pages, Floor::new(kind, pages, pass))
}

/// Target 1: leaf zap, exclusive.
pub(crate) fn leaves() {
    let at_floor = Bound::AtMost(1.4);
    for gib in [1, 16] {
        let (kind, pages) = (Kind::Zap(Filling::Full), gib * GIB);
        let peers = [
            side(HYPERLIGHT, kind, pages, Hyperlight::new(kind, pages)),
            side(MULTIARCH, kind, pages, Multiarch::new(kind, pages)),
            side(X86, kind, pages, X86_64::new(kind, pages)),
        ];
        let race = Race::new(format!("1 leaf zap, full, {gib} GiB"), pages)
            .with_slat(own(kind, pages))
            .with(Part::Floor, floor("plain stores", kind, pages, PlainStores));
        peers
            .into_iter()
            .fold(race, |race, peer| race.with(Part::Peer, peer))
            .goal("floor", Beside::Floor, at_floor)
            .goal("best peer", Beside::BestPeer, Bound::AtLeast(2.0))
            .goal("x86_64", Beside::Named(X86), Bound::AtLeast(10.0))
            .report();
    }
    for (words, filling) in [("half full", Filling::Half), ("MMIO", Filling::Mmio)] {
        let (kind, pages) = (Kind::Zap(filling), GIB);
        Race::new(format!("1 leaf zap, {words}, 1 GiB"), pages)
            .with_slat(own(kind, pages))
            .with(
                Part::Floor,
                floor("load, select, store", kind, pages, Select),
            )
            .with(
                Part::Floor,
                floor("load, test, store if set", kind, pages, Branch),
            )
            .goal("floor", Beside::Floor, at_floor)
            .report();
    }
}

/// Target 2: leaf zap with A/D harvest and statistics.
pub(crate) fn harvest() {
    for gib in [1, 16] {
        let (kind, pages) = (Kind::Harvest, gib * GIB);
        Race::new(format!("2 leaf zap with harvest, {gib} GiB"), pages)
            .with_slat(own(kind, pages))
            .with(
                Part::Floor,
                floor("load, count, select, store", kind, pages, SelectCounted),
            )
            .with(
                Part::Floor,
                floor(
                    "load, test, count, store if set",
                    kind,
                    pages,
                    BranchCounted,
                ),
            )
            .goal("floor", Beside::Floor, Bound::AtMost(1.4))
            .report();
    }
}

/// Target 3: an invalid root under the lock held for reading, while another thread faults.
pub(crate) fn shared() {
    let pages = GIB;
    let once = SharedFloor::new(Exchange::Once, pages);
    let twice = SharedFloor::new(Exchange::Twice, pages);
    Race::new("3 invalid root, shared, 1 GiB", pages)
        .with_slat(slat::shared_zap(pages).map(|zap| shared_side("slat", pages, zap)))
        .with(Part::Floor, shared_side(ONE_SWAP, pages, Box::new(once)))
        .with(
            Part::Floor,
            shared_side("compare-exchange, then swap", pages, Box::new(twice)),
        )
        .goal("one swap", Beside::Named(ONE_SWAP), Bound::AtMost(1.3))
        .report();
}

/// Target 4: all roots invalidated, however much they map; tables given back later.
pub(crate) fn fast(most: u64) {
    if let (Some(small), Some(large)) = (slat::fast_zap(GIB), slat::fast_zap(most)) {
        Target {
            name: "4 invalidate all roots, most beside 1 GiB",
            measured: fast_side("slat, most", large),
            beside: fast_side("slat, 1 GiB", small),
            bound: Bound::AtMost(1.2),
        }
        .report();
    }
    let core = fast_side("mark and bump", Box::new(MarkAndBump::default()));
    Race::calls("4 invalidate all roots")
        .with_slat(slat::fast_zap(GIB).map(|zap| fast_side("slat", zap)))
        .with(Part::Floor, core)
        .goal("floor", Beside::Floor, Bound::AtMost(20.0))
        .report();
    for gib in [1, 16] {
        let (kind, pages) = (Kind::Free, gib * GIB);
        let multiarch = side(MULTIARCH, kind, pages, Multiarch::new(kind, pages));
        Race::new(format!("4 deferred free, {gib} GiB"), pages)
            .with_slat(own(kind, pages))
            .with(Part::Floor, floor("tear down", kind, pages, TearDown))
            .with(Part::Peer, multiarch)
            .goal("floor", Beside::Floor, Bound::AtMost(4.0))
            .report();
    }
}
