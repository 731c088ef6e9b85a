//! Target 8: leaves lose the right to write.

use crate::floor::Pass;
use crate::paired::Bound;
use crate::passes::{ProtectAtomically, ProtectPlainly, ProtectWords};
use crate::peers::hyperlight::Hyperlight;
use crate::peers::multiarch::Multiarch;
use crate::peers::x86_64::X86_64;
use crate::race::{Beside, Part, Race};
use crate::side::{GIB, Kind, Protection, side};
use crate::zap::{HYPERLIGHT, MULTIARCH, X86, floor, own};

/// A slot of 1 GiB, in all three ways.
pub(crate) fn one_gib() {
    let (kind, pages) = (Kind::Protect(Protection::Exclusive), GIB);
    let peers = [
        side(HYPERLIGHT, kind, pages, Hyperlight::new(kind, pages)),
        side(MULTIARCH, kind, pages, Multiarch::new(kind, pages)),
        side(X86, kind, pages, X86_64::new(kind, pages)),
    ];
    let exclusive = race(
        "8 write-protect, 1 GiB",
        kind,
        "plain stores",
        ProtectPlainly,
    );
    peers
        .into_iter()
        .fold(exclusive, |race, peer| race.with(Part::Peer, peer))
        .goal("floor", Beside::Floor, Bound::AtMost(2.0))
        .goal("best peer", Beside::BestPeer, Bound::AtLeast(2.0))
        .report();
    let (kind, label) = (Kind::Protect(Protection::Shared), "one atomic and for each");
    race(
        "8 write-protect, shared, 1 GiB",
        kind,
        label,
        ProtectAtomically,
    )
    .goal("floor", Beside::Floor, Bound::AtMost(1.2))
    .report();
    let (kind, label) = (
        Kind::Protect(Protection::ByWord),
        "plain stores by the word",
    );
    race("8 clear a dirty log, 1 GiB", kind, label, ProtectWords)
        .goal("floor", Beside::Floor, Bound::AtMost(2.0))
        .report();
}

/// slat beside a floor.
fn race(name: &str, kind: Kind, label: &str, pass: impl Pass + 'static) -> Race {
    Race::new(name, GIB)
        .with_slat(own(kind, GIB))
        .with(Part::Floor, floor(label, kind, GIB, pass))
}
