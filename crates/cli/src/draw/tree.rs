//! The radix tree: a bar of 512 entries for each table, a line from each link.

use std::collections::BTreeSet;

use slat_memslot::Level;
use svg::node::element::{Group, Path, Rectangle, Text, Title};

use super::colour::{EMPTY, FAINT, GONE, INK, Kind, LINE, NEW};
use super::state::Node;

/// The tables that are drawn of a level at most.
const MOST: usize = 10;
const BAR: f64 = 15.0;
const ROW: f64 = 50.0;
const GAP: f64 = 8.0;
const LABELS: f64 = 34.0;
const WIDEST: f64 = 256.0;

/// Which tables the other side of a comparison has not.
pub(super) type Places = BTreeSet<(u8, u64)>;

/// What is particular about tables that only one side has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// They are about to go.
    Before,
    /// They have come.
    After,
}

/// The places of all tables of a tree.
pub(super) fn places(node: &Node, into: &mut Places) {
    into.insert((node.level as u8, node.gfn));
    node.children.iter().for_each(|child| places(child, into));
}

/// The height of the drawing.
pub(super) fn height(node: &Node) -> f64 {
    depth(node) as f64 * ROW
}

fn depth(node: &Node) -> usize {
    let below = node.children.iter().map(depth).max();
    1 + below.unwrap_or(0)
}

/// Draws a tree in a box of this width.
pub(super) fn draw(node: &Node, width: f64, other: Option<(&Places, Side)>) -> Group {
    let mut drawing = Drawing {
        lines: Group::new(),
        bars: Group::new(),
        other,
    };
    let mut above: Vec<(&Node, Option<(f64, f64)>)> = vec![(node, None)];
    let mut y = 0.0;
    while let Some((first, _)) = above.first() {
        drawing.label(first.level, y);
        above = drawing.row(&above, y, width);
        y += ROW;
    }
    Group::new().add(drawing.lines).add(drawing.bars)
}

struct Drawing<'o> {
    lines: Group,
    bars: Group,
    other: Option<(&'o Places, Side)>,
}

impl Drawing<'_> {
    fn add(&mut self, node: impl Into<Box<dyn svg::Node>>) {
        let bars = std::mem::replace(&mut self.bars, Group::new());
        self.bars = bars.add(node);
    }

    fn label(&mut self, level: Level, y: f64) {
        let label = Text::new(format!("L{}", level as u8))
            .set("x", 0)
            .set("y", y + BAR - 3.0)
            .set("fill", FAINT)
            .set("font-size", 12);
        self.add(label);
    }

    /// Draws the tables of a level, and gives those of the next with the points that lead to them.
    fn row<'n>(
        &mut self,
        tables: &[(&'n Node, Option<(f64, f64)>)],
        y: f64,
        width: f64,
    ) -> Vec<(&'n Node, Option<(f64, f64)>)> {
        let shown = tables.len().min(MOST);
        let more = tables.len() - shown;
        let room = width - LABELS - if more > 0 { 70.0 } else { 0.0 };
        let bar = ((room + GAP) / shown as f64 - GAP).min(WIDEST);
        let mut next = Vec::new();
        for (number, (table, from)) in tables.iter().take(shown).enumerate() {
            let x = LABELS + number as f64 * (bar + GAP);
            if let Some(from) = from {
                self.connect(*from, (x, y), bar);
            }
            self.table(table, (x, y), bar);
            let children = table.children.iter();
            next.extend(children.map(|child| {
                let at = x + (child.index as f64 + 0.5) * bar / 512.0;
                (child, Some((at, y + BAR)))
            }));
        }
        if more > 0 {
            let x = LABELS + shown as f64 * (bar + GAP);
            let text = Text::new(format!("+ {more} more"))
                .set("x", x)
                .set("y", y + BAR - 3.0)
                .set("fill", FAINT)
                .set("font-size", 12);
            self.add(text);
        }
        next
    }

    /// From a link to both ends of what it leads to.
    fn connect(&mut self, (from_x, from_y): (f64, f64), (x, y): (f64, f64), bar: f64) {
        let (left, right, from_x) = (round(x), round(x + bar), round(from_x));
        let path = Path::new()
            .set("d", format!("M{from_x},{from_y} L{left},{y} H{right} Z"))
            .set("fill", LINE)
            .set("fill-opacity", 0.13)
            .set("stroke", LINE)
            .set("stroke-opacity", 0.5);
        let lines = std::mem::replace(&mut self.lines, Group::new());
        self.lines = lines.add(path);
    }

    fn table(&mut self, table: &Node, (x, y): (f64, f64), bar: f64) {
        let alone = self.other.filter(|(places, _)| {
            let place = (table.level as u8, table.gfn);
            !places.contains(&place)
        });
        let (stroke, wide) = match alone {
            Some((_, Side::Before)) => (GONE, 2.0),
            Some((_, Side::After)) => (NEW, 2.0),
            None => (LINE, 1.0),
        };
        let last = table.gfn + table.level.pages().raw() * 512;
        let what = format!(
            "level {} table, gfn {:#x}..{last:#x}, {} entries",
            table.level as u8,
            table.gfn,
            table.entries.len()
        );
        let back = Rectangle::new()
            .set("x", round(x))
            .set("y", y)
            .set("width", round(bar))
            .set("height", BAR)
            .set("fill", EMPTY)
            .add(Title::new(what));
        self.add(back);
        for (first, count, kind) in runs(table) {
            // An entry alone is made wide enough to be seen.
            let wide = (count as f64 * bar / 512.0).max(2.0);
            let at = x + (first as f64 * bar / 512.0).min(bar - wide);
            let run = Rectangle::new()
                .set("x", round(at))
                .set("y", y)
                .set("width", round(wide))
                .set("height", BAR)
                .set("fill", kind.fill());
            self.add(run.clone());
            if kind.is_private() {
                self.add(run.set("fill", "url(#private)"));
            }
        }
        let frame = Rectangle::new()
            .set("x", round(x))
            .set("y", y)
            .set("width", round(bar))
            .set("height", BAR)
            .set("fill", "none")
            .set("stroke", stroke)
            .set("stroke-width", wide);
        self.add(frame);
        let label = Text::new(format!("{:#x}", table.gfn))
            .set("x", round(x))
            .set("y", y + BAR + 11.0)
            .set("fill", INK)
            .set("font-size", 10)
            .set("font-family", "monospace");
        if bar > 56.0 || table.gfn < 0x1000 && bar > 34.0 {
            self.add(label);
        }
    }
}

/// Entries that follow each other and are alike.
fn runs(table: &Node) -> Vec<(usize, usize, Kind)> {
    let mut runs: Vec<(usize, usize, Kind)> = Vec::new();
    for (&index, &kind) in &table.entries {
        match runs.last_mut() {
            Some((first, count, of)) if *of == kind && *first + *count == index => *count += 1,
            _ => runs.push((index, 1, kind)),
        }
    }
    // Unknown ones go below.
    runs.sort_by_key(|(first, _, kind)| (*kind != Kind::Unknown, *first));
    runs
}

pub(super) fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
