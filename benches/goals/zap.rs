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

/// slat's side of a kind of work.
pub(crate) fn own(kind: Kind, pages: u64) -> Side {
    side("slat", kind, pages, slat::job(kind, pages))
}

/// A floor's side.
pub(crate) fn floor(label: &str, kind: Kind, pages: u64, pass: impl Pass + 'static) -> Side {
    side(label, kind, pages, Floor::new(kind, pages, pass))
}

/// Target 1: leaf zap, exclusive.
pub(crate) fn leaves() {
    let at_floor = Bound::AtMost(1.4);
    // The tables of 256 MiB fit the cache of a core, those of 64 GiB no cache. Between them caches end, and a few more lines
    // of metadata decide who falls off: the tables of 1 GiB are as large as the second cache of some.
    for (words, pages) in [("256 MiB", GIB / 4), ("1 GiB", GIB), ("64 GiB", 64 * GIB)] {
        let kind = Kind::Zap(Filling::Full);
        let race = Race::new(format!("1 leaf zap, full, {words}"), pages)
            .with_slat(own(kind, pages))
            .with(Part::Floor, floor("plain stores", kind, pages, PlainStores))
            .with(
                Part::Peer,
                side(HYPERLIGHT, kind, pages, Hyperlight::new(kind, pages)),
            )
            .goal("floor", Beside::Floor, at_floor);
        let race = if pages <= GIB {
            with_peers(race, pages)
        } else {
            race
        };
        race.report();
    }
    for (words, filling) in [("half full", Filling::Half), ("MMIO", Filling::Mmio)] {
        let (kind, pages) = (Kind::Zap(filling), GIB / 4);
        Race::new(format!("1 leaf zap, {words}, 256 MiB"), pages)
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

/// Beside the other projects: where memory is the limit, the floor itself is hardly faster than they are. Ten times as fast
/// as the slowest can only be what runs at the speed of the inner caches.
fn with_peers(race: Race, pages: u64) -> Race {
    let kind = Kind::Zap(Filling::Full);
    let peers = [
        side(MULTIARCH, kind, pages, Multiarch::new(kind, pages)),
        side(X86, kind, pages, X86_64::new(kind, pages)),
    ];
    let race = peers
        .into_iter()
        .fold(race, |race, peer| race.with(Part::Peer, peer))
        .goal("best peer", Beside::BestPeer, Bound::AtLeast(2.0));
    if pages < GIB {
        race.goal("x86_64", Beside::Named(X86), Bound::AtLeast(10.0))
    } else {
        race
    }
}

/// Target 2: leaf zap with A/D harvest and statistics.
pub(crate) fn harvest() {
    for gib in [1, 64] {
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
///
/// Kernel 6.12 zaps leaves first, by one compare-exchange each, and then freezes the entries of their empty tables, by one
/// swap each; where it goes by whole tables (up to 6.8, and when it proves its MMU) there is the swap alone. The floors do
/// the same.
pub(crate) fn shared() {
    let pages = GIB;
    for (words, label, exchange) in [
        ("as 6.12", "compare-exchange, then swap", Exchange::Twice),
        ("by whole tables", "one swap for each entry", Exchange::Once),
    ] {
        let own = shared_side("slat", pages, slat::shared_zap(pages, exchange));
        let floor = Box::new(SharedFloor::new(exchange, pages));
        Race::new(format!("3 invalid root, shared, {words}"), pages)
            .with_slat(own)
            .with(Part::Floor, shared_side(label, pages, floor))
            .goal("floor", Beside::Floor, Bound::AtMost(1.3))
            .report();
    }
}

/// Target 4: all roots invalidated, however much they map; tables given back later.
pub(crate) fn fast(most: u64) {
    Target {
        name: "4 invalidate all roots, most beside 1 GiB",
        measured: fast_side("slat, most", slat::fast_zap(most)),
        beside: fast_side("slat, 1 GiB", slat::fast_zap(GIB)),
        bound: Bound::AtMost(1.2),
    }
    .report();
    let core = fast_side("mark and bump", Box::new(MarkAndBump::default()));
    Race::calls("4 invalidate all roots")
        .with_slat(fast_side("slat", slat::fast_zap(GIB)))
        .with(Part::Floor, core)
        .goal("floor", Beside::Floor, Bound::AtMost(20.0))
        .report();
    for gib in [1, 64] {
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
