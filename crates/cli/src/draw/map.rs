//! A map of guest-physical space: rows of cells, each a power of two of pages.

use svg::node::element::{Group, Rectangle, Text, Title};

use super::colour::{EMPTY, INK, Kind, NEW};
use super::state::Part;
use super::tree::round;

/// Cells in a row.
const COLUMNS: u64 = 64;
/// The rows that a map has at most.
const ROWS: usize = 24;
const CELL: f64 = 14.0;
const LABEL: f64 = 84.0;
/// The room for a row that is left out.
const BREAK: f64 = 8.0;

/// Which frames are where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    /// Pages in a cell.
    cell: u64,
    /// The first frame of each row.
    rows: Vec<u64>,
    /// Rows that there is no room for.
    left_out: usize,
}

impl Grid {
    /// The grid with the smallest cells that has room for all.
    pub(super) fn of(parts: &[Part]) -> Self {
        let mut cell = 1;
        loop {
            let rows = rows(parts, cell * COLUMNS);
            if rows.len() <= ROWS || cell >= 1 << 18 {
                let left_out = rows.len().saturating_sub(ROWS);
                let rows = rows.into_iter().take(ROWS).collect();
                return Self {
                    cell,
                    rows,
                    left_out,
                };
            }
            cell *= 2;
        }
    }

    /// What a cell is, in words.
    pub(super) fn scale(&self) -> String {
        let size = match self.cell {
            pages @ 0..256 => format!("{} KiB", pages * 4),
            pages @ 256..0x4_0000 => format!("{} MiB", pages / 256),
            pages => format!("{} GiB", pages / 0x4_0000),
        };
        let more = match self.left_out {
            0 => String::new(),
            rows => format!("; {rows} more rows"),
        };
        format!("one cell is {size}, a row is {COLUMNS} cells{more}")
    }

    fn gaps(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut y = 0.0;
        let mut last = None;
        self.rows.iter().map(move |row| {
            let next = last.is_none_or(|last| last + self.cell * COLUMNS == *row);
            y += if last.is_none() {
                0.0
            } else if next {
                CELL
            } else {
                CELL + BREAK
            };
            last = Some(*row);
            (y, *row)
        })
    }

    pub(super) fn height(&self) -> f64 {
        self.gaps().last().map_or(0.0, |(y, _)| y + CELL)
    }

    /// Draws what is mapped; cells that another state has otherwise get a frame.
    pub(super) fn draw(&self, parts: &[Part], other: Option<&[Part]>, width: f64) -> Group {
        let cell = (width - LABEL) / COLUMNS as f64;
        let mut group = Group::new();
        for (y, row) in self.gaps() {
            let label = Text::new(format!("{row:#x}"))
                .set("x", LABEL - 8.0)
                .set("y", y + CELL - 4.0)
                .set("text-anchor", "end")
                .set("font-size", 10)
                .set("font-family", "monospace")
                .set("fill", INK);
            let back = Rectangle::new()
                .set("x", LABEL)
                .set("y", y + 0.5)
                .set("width", round(cell * COLUMNS as f64))
                .set("height", CELL - 1.0)
                .set("fill", EMPTY);
            group = group.add(label).add(back);
            for run in self.runs(row, parts) {
                group = run.draw(group, y, cell);
            }
            for (from, to) in self.changed(row, parts, other) {
                let frame = Rectangle::new()
                    .set("x", round(LABEL + from as f64 * cell))
                    .set("y", y + 0.5)
                    .set("width", round((to - from) as f64 * cell))
                    .set("height", CELL - 1.0)
                    .set("fill", "none")
                    .set("stroke", NEW)
                    .set("stroke-width", 1.6);
                group = group.add(frame);
            }
        }
        group
    }

    /// Parts of a row that are alike, in cells.
    fn runs(&self, row: u64, parts: &[Part]) -> Vec<Run> {
        let end = row + self.cell * COLUMNS;
        let inside = parts
            .iter()
            .filter(|part| part.start < end && row < part.end);
        let place = |gfn: u64| (gfn.clamp(row, end) - row) as f64 / self.cell as f64;
        let run = inside.map(|part| Run {
            from: place(part.start),
            to: place(part.end),
            kind: part.kind,
            text: format!(
                "gfn {:#x}..{:#x}: {}",
                part.start,
                part.end,
                part.kind.name()
            ),
        });
        run.collect()
    }

    /// The cells of a row that differ, as ranges.
    fn changed(&self, row: u64, parts: &[Part], other: Option<&[Part]>) -> Vec<(u64, u64)> {
        let Some(other) = other else {
            return Vec::new();
        };
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for cell in 0..COLUMNS {
            let (start, end) = (row + cell * self.cell, row + (cell + 1) * self.cell);
            if within(parts, start, end) == within(other, start, end) {
                continue;
            }
            match ranges.last_mut() {
                Some((_, to)) if *to == cell => *to += 1,
                _ => ranges.push((cell, cell + 1)),
            }
        }
        ranges
    }
}

/// What is in some frames.
fn within(parts: &[Part], start: u64, end: u64) -> Vec<(u64, u64, Kind)> {
    let inside = parts
        .iter()
        .filter(|part| part.start < end && start < part.end);
    let mut found: Vec<(u64, u64, Kind)> = Vec::new();
    for part in inside {
        let (from, to) = (part.start.max(start), part.end.min(end));
        match found.last_mut() {
            Some((_, last, kind)) if *last == from && *kind == part.kind => *last = to,
            _ => found.push((from, to, part.kind)),
        }
    }
    found
}

struct Run {
    from: f64,
    to: f64,
    kind: Kind,
    text: String,
}

impl Run {
    fn draw(self, group: Group, y: f64, cell: f64) -> Group {
        let wide = ((self.to - self.from) * cell).max(1.5);
        let rectangle = Rectangle::new()
            .set("x", round(LABEL + self.from * cell))
            .set("y", y + 0.5)
            .set("width", round(wide))
            .set("height", CELL - 1.0);
        let fill = rectangle.clone().set("fill", self.kind.fill());
        let group = group.add(fill.add(Title::new(self.text)));
        if self.kind.is_private() {
            return group.add(rectangle.set("fill", "url(#private)"));
        }
        group
    }
}

/// The first frames of the rows that have anything in them.
fn rows(parts: &[Part], span: u64) -> Vec<u64> {
    let mut rows: Vec<u64> = Vec::new();
    for part in parts {
        let (first, last) = (part.start / span, (part.end - 1) / span);
        // More than can be shown need not be counted.
        for row in (first..=last).take(4 * ROWS) {
            if rows.last().is_none_or(|last| *last < row * span) {
                rows.push(row * span);
            }
        }
    }
    rows.sort_unstable();
    rows.dedup();
    rows
}
