//! The numbers of bad interleavings for one page, two halves, one round and a last one, as they were enumerated once by another
//! program from the description of the model.

use super::super::{Count, ListOrder, ProgramName, count};

type Row = (ListOrder, [(u128, u128); 5]);

/// By order of the host: late, early, abort, abort-lost, abort-rewrite.
const PLAIN: [Row; 3] = [
    (
        ListOrder::ListFirst,
        [(126, 55), (126, 5), (35, 4), (70, 0), (330, 10)],
    ),
    (
        ListOrder::DirtyFirst,
        [(126, 41), (126, 0), (35, 6), (70, 0), (330, 0)],
    ),
    (
        ListOrder::Once,
        [(252, 97), (252, 3), (56, 8), (126, 0), (792, 42)],
    ),
];

/// The same where an announcement marks the page dirty.
const DIRTYING: [Row; 3] = [
    (
        ListOrder::ListFirst,
        [(126, 38), (126, 5), (35, 4), (70, 0), (330, 10)],
    ),
    (
        ListOrder::DirtyFirst,
        [(126, 34), (126, 0), (35, 4), (70, 0), (330, 0)],
    ),
    (
        ListOrder::Once,
        [(252, 90), (252, 3), (56, 8), (126, 0), (792, 42)],
    ),
];

fn compare(rows: &[Row], announcement_dirties: bool) {
    for (order, wanted) in rows {
        for (name, &(interleavings, bad)) in ProgramName::ALL.into_iter().zip(wanted) {
            let found = count(&name.program(), *order, 1, announcement_dirties);
            assert_eq!(found, Count { interleavings, bad }, "{order}, {name}");
        }
    }
}

#[test]
fn one_round_and_the_last() {
    compare(&PLAIN, false);
}

#[test]
fn announcements_that_dirty() {
    compare(&DIRTYING, true);
}

/// With more rounds there are more interleavings, and the same guests are safe.
#[test]
fn many_rounds() {
    for rounds in 0..12 {
        for name in ProgramName::ALL {
            let guest = name.program().ops().len();
            for order in ListOrder::ALL {
                let host = 3 * rounds + 1 + usize::from(order == ListOrder::Once);
                let found = count(&name.program(), order, rounds, false);
                assert_eq!(found.interleavings, choose(guest + host, guest));
                let safe_guest = !matches!(name, ProgramName::Late | ProgramName::Abort);
                if order == ListOrder::DirtyFirst && safe_guest {
                    assert_eq!(found.bad, 0, "{name}, {rounds} rounds");
                }
            }
        }
    }
}

fn choose(all: usize, some: usize) -> u128 {
    (1..=some as u128).fold(1, |ways, k| ways * (all as u128 - some as u128 + k) / k)
}
