//! Target 13: the audit of every entry and role, beside plain walks of all leaves.

use crate::paired::Bound;
use crate::passes::CountLeaves;
use crate::peers::hyperlight::Hyperlight;
use crate::peers::multiarch::Multiarch;
use crate::race::{Beside, Part, Race};
use crate::side::{GIB, Kind, side};
use crate::zap::{HYPERLIGHT, MULTIARCH, floor, own};

pub(crate) fn audit() {
    let (kind, pages) = (Kind::Walk, GIB);
    let hyperlight = side(HYPERLIGHT, kind, pages, Hyperlight::new(kind, pages));
    let multiarch = side(MULTIARCH, kind, pages, Multiarch::new(kind, pages));
    Race::new("13 walk, 1 GiB", pages)
        .with_slat(own(kind, pages))
        .with(Part::Floor, floor("count leaves", kind, pages, CountLeaves))
        .with(Part::Peer, hyperlight)
        .with(Part::Peer, multiarch)
        .goal("best peer", Beside::BestPeer, Bound::AtMost(4.0))
        .report();
}
