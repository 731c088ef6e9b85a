//! What is drawn: the tables of one VM at one time.

use std::collections::{BTreeMap, HashMap};

use slat_memslot::{Gfn, GfnRange, Level};
use slat_mmu::host::SecondStage;
use slat_mmu::role::RoleFlag;
use slat_mmu::spte::{Codec, Entry, Ept, Format, Leaf, Npt, Spte};
use slat_mmu::tdp::dump::{Content, Dump, RawTable, Root, RootNumber};

use super::colour::Kind;

/// The tables of a VM, and what is known beside them.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) dump: Dump,
    pub(super) unknown: Vec<(RootNumber, GfnRange)>,
    /// Frames whose attribute is private.
    pub(super) private: Vec<GfnRange>,
}

/// A part of guest memory that is all of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) kind: Kind,
}

/// A table in the tree.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) level: Level,
    pub(super) gfn: u64,
    /// Its entry in the table above.
    pub(super) index: usize,
    /// What its entries are, by number; links are in `children`.
    pub(super) entries: BTreeMap<usize, Kind>,
    pub(super) children: Vec<Node>,
}

impl State {
    /// What a root maps, in order.
    pub(super) fn parts(&self, root: &Root) -> Vec<Part> {
        let mut parts = Vec::new();
        for range in &root.ranges {
            let (start, end) = (range.frames.start().raw(), range.frames.end().raw());
            match range.content {
                Content::Leaf(leaf) => {
                    self.split_by_privacy(root, &leaf, range.level, (start, end), &mut parts);
                }
                Content::Mmio { .. } => parts.push(Part {
                    start,
                    end,
                    kind: Kind::Mmio,
                }),
                Content::Frozen => parts.push(Part {
                    start,
                    end,
                    kind: Kind::Frozen,
                }),
            }
        }
        parts
    }

    /// The parts of a root of which nothing is known.
    pub(super) fn unknown_of(&self, root: RootNumber) -> impl Iterator<Item = &GfnRange> {
        let own = self.unknown.iter().filter(move |(of, _)| *of == root);
        own.map(|(_, frames)| frames)
    }

    fn split_by_privacy(
        &self,
        root: &Root,
        leaf: &Leaf,
        level: Level,
        (start, end): (u64, u64),
        parts: &mut Vec<Part>,
    ) {
        let mirror = root.role.has(RoleFlag::IsMirror);
        let writable = leaf.writability.hardware;
        let part = |start, end, private| Part {
            start,
            end,
            kind: Kind::Leaf {
                level,
                writable,
                private,
            },
        };
        let mut at = start;
        for range in &self.private {
            let (from, to) = (range.start().raw().max(at), range.end().raw().min(end));
            if from < to && !mirror {
                if at < from {
                    parts.push(part(at, from, false));
                }
                parts.push(part(from, to, true));
                at = to;
            }
        }
        if at < end {
            parts.push(part(at, end, mirror));
        }
    }

    /// The tree of a root: from raw entries, or where there are none, from what is mapped.
    pub(super) fn tree(&self, root: &Root) -> Node {
        if root.entries.is_empty() {
            let parts = self.parts(root);
            return from_parts(root.role.level(), 0, 0, &parts);
        }
        let tree = match self.dump.host.second_stage {
            SecondStage::Ept => self.raw_tree::<Ept>(root),
            SecondStage::Npt | SecondStage::Off => self.raw_tree::<Npt>(root),
        };
        tree.unwrap_or_else(|| from_parts(root.role.level(), 0, 0, &[]))
    }

    fn raw_tree<F: Format>(&self, root: &Root) -> Option<Node> {
        let codec = Codec::<F>::new(&self.dump.host);
        let tables: HashMap<u32, &RawTable> =
            root.entries.iter().map(|raw| (raw.table, raw)).collect();
        let reader = RawReader {
            state: self,
            root,
            codec,
            tables,
        };
        Some(reader.node(root.entries.first()?, 0))
    }

    fn is_private(&self, root: &Root, gfn: u64) -> bool {
        let inside = |range: &GfnRange| range.contains(Gfn::new(gfn));
        root.role.has(RoleFlag::IsMirror) || self.private.iter().any(inside)
    }
}

struct RawReader<'s, F> {
    state: &'s State,
    root: &'s Root,
    codec: Codec<F>,
    tables: HashMap<u32, &'s RawTable>,
}

impl<F: Format> RawReader<'_, F> {
    fn node(&self, raw: &RawTable, index: usize) -> Node {
        let mut node = Node {
            level: raw.level,
            gfn: raw.gfn.raw(),
            index,
            entries: BTreeMap::new(),
            children: Vec::new(),
        };
        for &(index, value) in &raw.entries {
            let index = usize::from(index);
            let spte = Spte::<F>::from_raw(value);
            let gfn = node.gfn + index as u64 * raw.level.pages().raw();
            let kind = match self.codec.decode(spte, raw.level) {
                Entry::Leaf(leaf) => Kind::Leaf {
                    level: raw.level,
                    writable: leaf.writability.hardware,
                    private: self.state.is_private(self.root, gfn),
                },
                Entry::Mmio(_) => Kind::Mmio,
                Entry::Frozen => Kind::Frozen,
                Entry::Absent => continue,
                Entry::Link(_) => {
                    let number = u32::try_from(self.codec.pfn(spte).raw()).ok();
                    let child = number.and_then(|number| self.tables.get(&number));
                    node.children
                        .extend(child.map(|child| self.node(child, index)));
                    Kind::Link
                }
            };
            node.entries.insert(index, kind);
        }
        self.add_unknown(&mut node);
        node
    }

    /// Entries of which nothing is known, as far as no table is below.
    fn add_unknown(&self, node: &mut Node) {
        let span = node.level.pages().raw();
        for range in self.state.unknown_of(self.root.number) {
            for index in 0..512 {
                let first = node.gfn + index as u64 * span;
                let inside = range.start().raw() <= first && first + span <= range.end().raw();
                if inside && !node.entries.contains_key(&index) {
                    node.entries.insert(index, Kind::Unknown);
                }
            }
        }
    }
}

/// The tables that must be there for what is mapped.
fn from_parts(level: Level, gfn: u64, index: usize, parts: &[Part]) -> Node {
    let span = level.pages().raw();
    let mut node = Node {
        level,
        gfn,
        index,
        entries: BTreeMap::new(),
        children: Vec::new(),
    };
    for index in 0..512 {
        let (start, end) = (gfn + index as u64 * span, gfn + (index as u64 + 1) * span);
        let inside = |part: &&Part| part.start < end && start < part.end;
        let Some(first) = parts.iter().find(inside) else {
            continue;
        };
        match (first.kind, level.child()) {
            (Kind::Leaf { level: of, .. }, _) if of == level => {
                node.entries.insert(index, first.kind);
            }
            (kind, None) => {
                node.entries.insert(index, kind);
            }
            (_, Some(below)) => {
                node.entries.insert(index, Kind::Link);
                let parts: Vec<Part> = parts.iter().filter(inside).copied().collect();
                node.children.push(from_parts(below, start, index, &parts));
            }
        }
    }
    node
}
