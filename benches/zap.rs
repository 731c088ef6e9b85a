//! How fast pages are zapped, in pages a second and nanoseconds a page, over 1, 16 and 64 GiB of 4 KiB leaves.
//!
//! A table to read, without bounds; `benches/goals` has the targets. Rows are slat's own ways to zap and the floor beside
//! each.

#[path = "goals/floor.rs"]
mod floor;
#[path = "goals/memory.rs"]
#[expect(dead_code, reason = "the targets use more of it")]
mod memory;
#[expect(dead_code, reason = "the targets use more of it")]
mod paired;
#[path = "goals/shared.rs"]
mod shared;
#[path = "goals/shared_floor.rs"]
mod shared_floor;
#[path = "goals/side.rs"]
#[expect(dead_code, reason = "the targets use more of it")]
mod side;
#[path = "goals/slat.rs"]
mod slat;
#[path = "goals/tree.rs"]
mod tree;

use comfy_table::{CellAlignment, Table, presets};
use floor::{Floor, Pass, PlainStores, Select, SelectCounted, TearDown};
use paired::Side;
use shared::{fast_side, shared_side};
use shared_floor::{Exchange, MarkAndBump, SharedFloor};
use side::{Filling, GIB, Kind, side};

#[global_allocator]
static ALLOCATOR: memory::HugePages = memory::HugePages;

/// Columns, in GiB.
const SIZES: [u64; 3] = [1, 16, 64];
/// Measurements of a cell, of which the median counts; one more comes first.
const ROUNDS: usize = 5;

/// What is zapped, and how.
#[derive(Clone, Copy)]
enum Row {
    /// Leaves, with the tables to itself.
    Leaves(Kind),
    /// An invalid root, with the lock held for reading, another thread faulting.
    Shared(Exchange),
    /// All roots at once, by marking them.
    Fast,
}

const ROWS: [(&str, Row); 7] = [
    (
        "leaf zap, full tables",
        Row::Leaves(Kind::Zap(Filling::Full)),
    ),
    (
        "leaf zap, half-full tables",
        Row::Leaves(Kind::Zap(Filling::Half)),
    ),
    ("leaf zap with harvest", Row::Leaves(Kind::Harvest)),
    (
        "invalid root, lock held for reading, as 6.12",
        Row::Shared(Exchange::Twice),
    ),
    ("the same, by whole tables", Row::Shared(Exchange::Once)),
    ("fast zap: invalidate all roots", Row::Fast),
    ("deferred free, no harvest", Row::Leaves(Kind::Free)),
];

fn main() {
    // `cargo test --all-targets` runs benches too, and wants no measurements.
    if std::env::args().all(|argument| argument != "--bench") {
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let sizes = SIZES.iter().map(|gib| format!("{gib} GiB"));
    table.set_header(
        ["what".to_owned(), "who".to_owned()]
            .into_iter()
            .chain(sizes),
    );
    for (name, row) in ROWS {
        for (who, side_of) in [("slat", own as fn(Row, u64) -> Side), ("floor", floor)] {
            let cells = SIZES.map(|gib| cell(row, gib, side_of));
            table.add_row([name.to_owned(), who.to_owned()].into_iter().chain(cells));
        }
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}

/// One measurement in words: pages a second and nanoseconds a page. A fast zap looks at no page, so it is by the call.
fn cell(row: Row, gib: u64, side_of: fn(Row, u64) -> Side) -> String {
    let pages = gib * GIB;
    let mut side = side_of(row, pages);
    let times = match row {
        Row::Fast => 1 << 16,
        Row::Leaves(_) | Row::Shared(_) => 16 / gib.min(16),
    };
    let mut seconds: Vec<f64> = (0..=ROUNDS).map(|_| side.seconds(times)).skip(1).collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds[ROUNDS / 2];
    match row {
        Row::Fast => format!("{:.1} ns a call", median * 1e9),
        Row::Leaves(_) | Row::Shared(_) => {
            let each = median / pages as f64;
            format!("{} pages/s, {:.3} ns", rate(1.0 / each), each * 1e9)
        }
    }
}

/// A number with its thousands in a letter.
fn rate(number: f64) -> String {
    match number {
        n if n >= 1e9 => format!("{:.1} G", n / 1e9),
        n => format!("{:.0} M", n / 1e6),
    }
}

/// slat's side of a row.
fn own(row: Row, pages: u64) -> Side {
    match row {
        Row::Leaves(kind) => side("slat", kind, pages, slat::job(kind, pages)),
        Row::Shared(exchange) => shared_side("slat", pages, slat::shared_zap(pages, exchange)),
        Row::Fast => fast_side("slat", slat::fast_zap(pages)),
    }
}

/// The floor of a row.
fn floor(row: Row, pages: u64) -> Side {
    fn pass(kind: Kind, pages: u64, pass: impl Pass + 'static) -> Side {
        side("floor", kind, pages, Floor::new(kind, pages, pass))
    }
    match row {
        Row::Leaves(kind @ Kind::Zap(Filling::Full)) => pass(kind, pages, PlainStores),
        Row::Leaves(kind @ Kind::Zap(_)) => pass(kind, pages, Select),
        Row::Leaves(kind @ Kind::Harvest) => pass(kind, pages, SelectCounted),
        Row::Leaves(kind @ Kind::Free) => pass(kind, pages, TearDown),
        Row::Leaves(Kind::Map | Kind::Walk | Kind::Protect(_)) => {
            unreachable!("no row of this table")
        }
        Row::Shared(exchange) => {
            let zap = SharedFloor::new(exchange, pages);
            shared_side("floor", pages, Box::new(zap))
        }
        Row::Fast => fast_side("floor", Box::new(MarkAndBump::default())),
    }
}
