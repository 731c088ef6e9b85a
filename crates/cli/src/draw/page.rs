//! The whole picture: titles, a tree and a map for each root, before and after, a legend.

use std::collections::BTreeSet;

use slat_mmu::role::PageRole;
use slat_mmu::tdp::dump::{Root, RootNumber};
use svg::Document;
use svg::node::element::{Definitions, Group, Path, Pattern, Rectangle, Text};

use super::colour::{EMPTY, FAINT, GONE, INK, Kind, LINE, NEW};
use super::map::Grid;
use super::state::{Node, Part, State};
use super::tree::{self, Places, Side};

const WIDTH: f64 = 1120.0;
const MARGIN: f64 = 28.0;
const FONT: &str = "Helvetica, Arial, 'DejaVu Sans', sans-serif";

/// A state with what stands above it.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) state: State,
}

/// The drawing of one state, or of two beside each other.
pub(super) fn draw(title: &str, panels: &[Panel]) -> Document {
    let mut page = Page {
        body: Group::new(),
        y: MARGIN + 18.0,
        kinds: BTreeSet::new(),
    };
    page.heading(title);
    let column = (WIDTH - 2.0 * MARGIN + 40.0) / panels.len() as f64 - 40.0;
    for (number, panel) in panels.iter().enumerate() {
        let x = MARGIN + number as f64 * (column + 40.0);
        let size = if panel.title.len() > 44 { 12 } else { 14 };
        page.text((x, page.y), &panel.title, (size, "bold"), INK);
    }
    if panels.iter().any(|panel| !panel.title.is_empty()) {
        page.y += 14.0;
    } else {
        page.y -= 20.0;
    }
    for number in roots_of(panels) {
        page.root(number, panels, column);
    }
    page.legend(panels.len() > 1);
    let height = page.y + MARGIN;
    Document::new()
        .set("viewBox", (0, 0, WIDTH, tree::round(height)))
        .set("width", WIDTH)
        .set("height", tree::round(height))
        .set("font-family", FONT)
        .add(definitions())
        .add(
            Rectangle::new()
                .set("width", "100%")
                .set("height", "100%")
                .set("fill", "#ffffff"),
        )
        .add(page.body)
}

/// The roots of all panels, oldest first.
fn roots_of(panels: &[Panel]) -> Vec<RootNumber> {
    let all = panels.iter().flat_map(|panel| &panel.state.dump.roots);
    let numbers: BTreeSet<RootNumber> = all.map(|root| root.number).collect();
    numbers.into_iter().collect()
}

/// Hatches for what is private, and for what is not known.
fn definitions() -> Definitions {
    let hatch = |name: &'static str, colour: &'static str, back: Option<&'static str>| {
        let pattern = Pattern::new()
            .set("id", name)
            .set("width", 6)
            .set("height", 6)
            .set("patternUnits", "userSpaceOnUse");
        let pattern = match back {
            Some(fill) => pattern.add(
                Rectangle::new()
                    .set("width", 6)
                    .set("height", 6)
                    .set("fill", fill),
            ),
            None => pattern,
        };
        let lines = Path::new()
            .set("d", "M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2")
            .set("stroke", colour)
            .set("stroke-width", 1.4);
        pattern.add(lines)
    };
    Definitions::new()
        .add(hatch("private", "#ffffff", None))
        .add(hatch("unknown", "#cbd2d9", Some("#f5f7fa")))
}

struct Page {
    body: Group,
    y: f64,
    /// What the legend has to explain.
    kinds: BTreeSet<Kind>,
}

impl Page {
    fn add(&mut self, node: impl Into<Box<dyn svg::Node>>) {
        let body = std::mem::replace(&mut self.body, Group::new());
        self.body = body.add(node);
    }

    fn text(
        &mut self,
        (x, y): (f64, f64),
        text: &str,
        (size, weight): (u32, &'static str),
        fill: &'static str,
    ) {
        let text = Text::new(text)
            .set("x", tree::round(x))
            .set("y", tree::round(y))
            .set("font-size", size)
            .set("font-weight", weight)
            .set("fill", fill);
        self.add(text);
    }

    fn heading(&mut self, title: &str) {
        self.text((MARGIN, self.y), title, (20, "bold"), INK);
        self.y += 34.0;
    }

    /// A root in all panels: tree above map, to the same scale.
    fn root(&mut self, number: RootNumber, panels: &[Panel], column: f64) {
        let sides: Vec<Option<Drawn>> = panels
            .iter()
            .map(|panel| Drawn::of(panel, number))
            .collect();
        let parts: Vec<Part> = sides
            .iter()
            .flatten()
            .flat_map(|side| side.parts.clone())
            .collect();
        let grid = Grid::of(&sorted(parts));
        let trees = sides.iter().flatten().map(|side| tree::height(&side.tree));
        let tallest = trees.fold(0.0, f64::max);
        self.y += 20.0;
        let top = self.y;
        for (at, side) in sides.iter().enumerate() {
            let x = MARGIN + at as f64 * (column + 40.0);
            let Some(side) = side else {
                self.text(
                    (x, top),
                    &format!("root {number}: not there"),
                    (12, "normal"),
                    FAINT,
                );
                continue;
            };
            let other = (sides.len() == 2).then(|| sides.get(1 - at)).flatten();
            let other = other.and_then(Option::as_ref);
            self.text((x, top), &side.heading(number), (12, "bold"), INK);
            self.text((x, top + 16.0), &side.summary(), (11, "normal"), FAINT);
            let mut elsewhere = Places::new();
            if let Some(other) = other {
                tree::places(&other.tree, &mut elsewhere);
            }
            let which = if at == 0 { Side::Before } else { Side::After };
            let compared = other.is_some().then_some((&elsewhere, which));
            let drawn = tree::draw(&side.tree, column, compared);
            self.place(drawn, (x, top + 30.0));
            let map_y = top + 30.0 + tallest + 14.0;
            self.text(
                (x, map_y),
                "guest-physical space, by gfn",
                (12, "bold"),
                INK,
            );
            self.text((x, map_y + 15.0), &grid.scale(), (11, "normal"), FAINT);
            let before = other
                .filter(|_| at == 1)
                .map(|other| other.parts.as_slice());
            let map = grid.draw(&side.parts, before, column);
            self.place(map, (x, map_y + 24.0));
            self.note(&side.tree);
            self.kinds.extend(side.parts.iter().map(|part| part.kind));
        }
        self.y = top + 30.0 + tallest + 14.0 + 24.0 + grid.height() + 18.0;
    }

    /// Remembers what a tree shows.
    fn note(&mut self, node: &Node) {
        self.kinds.extend(node.entries.values());
        node.children.iter().for_each(|child| self.note(child));
    }

    fn place(&mut self, group: Group, (x, y): (f64, f64)) {
        let (x, y) = (tree::round(x), tree::round(y));
        self.add(group.set("transform", format!("translate({x},{y})")));
    }

    fn legend(&mut self, compares: bool) {
        self.y += 10.0;
        let line = Path::new()
            .set("d", format!("M{MARGIN},{} H{}", self.y, WIDTH - MARGIN))
            .set("stroke", LINE);
        self.add(line);
        self.y += 24.0;
        let mut x = MARGIN;
        let kinds = std::mem::take(&mut self.kinds);
        let private = kinds.iter().any(|kind| kind.is_private());
        let mut kinds: Vec<Kind> = kinds.into_iter().collect();
        kinds.sort_by_key(|kind| kind.place_in_legend());
        kinds.dedup_by_key(|kind| kind.name());
        for kind in kinds {
            x = self.key(x, kind.name(), kind.fill(), LINE);
        }
        if private {
            self.swatch(x, "#2f5e9e", LINE);
            x = self.key(x, "private (hatched)", "url(#private)", LINE);
        }
        x = self.key(x, "nothing mapped", EMPTY, LINE);
        if compares {
            x = self.key(x, "table that goes", "none", GONE);
            self.key(x, "table or mapping that is new or changed", "none", NEW);
        }
        self.y += 14.0;
    }

    fn swatch(&mut self, x: f64, fill: &'static str, stroke: &'static str) {
        let swatch = Rectangle::new()
            .set("x", tree::round(x))
            .set("y", self.y - 10.0)
            .set("width", 14)
            .set("height", 12)
            .set("fill", fill)
            .set("stroke", stroke);
        self.add(swatch);
    }

    /// A colour and its name; gives where the next begins, in the next line if there is no room.
    fn key(&mut self, x: f64, name: &str, fill: &'static str, stroke: &'static str) -> f64 {
        let wide = 20.0 + name.len() as f64 * 7.0 + 18.0;
        let x = if x + wide > WIDTH - MARGIN + 18.0 {
            self.y += 22.0;
            MARGIN
        } else {
            x
        };
        self.swatch(x, fill, stroke);
        self.text((x + 20.0, self.y), name, (12, "normal"), INK);
        x + wide
    }
}

/// One root of one panel.
struct Drawn {
    role: PageRole,
    tree: Node,
    parts: Vec<Part>,
    tables: [u32; 5],
    unknown: usize,
}

impl Drawn {
    fn of(panel: &Panel, number: RootNumber) -> Option<Self> {
        let state = &panel.state;
        let root: &Root = state.dump.roots.iter().find(|root| root.number == number)?;
        Some(Self {
            role: root.role,
            tree: state.tree(root),
            parts: state.parts(root),
            tables: root.tables,
            unknown: state.unknown_of(number).count(),
        })
    }

    fn heading(&self, number: RootNumber) -> String {
        let valid = if self.role.is_invalid() {
            "invalid"
        } else {
            "valid"
        };
        format!("root {number}, {valid}: {:#}", self.role)
    }

    fn summary(&self) -> String {
        let leaves = |level| {
            let of =
                |part: &&Part| matches!(part.kind, Kind::Leaf { level: l, .. } if l as u8 == level);
            let pages: u64 = self
                .parts
                .iter()
                .filter(of)
                .map(|part| part.end - part.start)
                .sum();
            pages >> (9 * (u32::from(level) - 1))
        };
        let named = [(1, "4 KiB"), (2, "2 MiB"), (3, "1 GiB")];
        let leaves = named.map(|(level, name)| (leaves(level), name));
        let leaves = leaves.iter().filter(|(count, _)| *count > 0);
        let leaves: Vec<String> = leaves
            .map(|(count, name)| format!("{count} x {name}"))
            .collect();
        let tables: u32 = self.tables.iter().sum();
        let mut text = match leaves.as_slice() {
            [] => format!("{tables} tables, no pages"),
            some => format!("{tables} tables, {}", some.join(", ")),
        };
        if self.unknown > 0 {
            text.push_str(&format!(", {} ranges not known", self.unknown));
        }
        text
    }
}

fn sorted(mut parts: Vec<Part>) -> Vec<Part> {
    parts.sort_by_key(|part| (part.start, part.end));
    parts
}
