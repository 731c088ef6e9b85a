//! Operations as values, and their random choice.

use slat_memslot::PageSize;

use super::model::{base, frames, page_size};
use crate::tdp::Passes;

/// The size of a page, short enough for a list of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    K4,
    M2,
    G1,
}

impl Size {
    pub(super) const fn level(self) -> u8 {
        match self {
            Self::K4 => 1,
            Self::M2 => 2,
            Self::G1 => 3,
        }
    }

    pub(super) const fn page_size(self) -> PageSize {
        page_size(self.level())
    }
}

/// What a fault is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Read,
    Write,
    Execute,
    Prefetch,
}

/// What else decides about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) want: Want,
    pub(super) host_writable: bool,
    pub(super) tracked: bool,
    pub(super) logged: bool,
    pub(super) nx: bool,
}

/// One operation. A root is the n-th of those that are valid and held, modulo their number; without any, nothing is done.
/// `every` is the budget after which it gives way, 0 for none.
#[derive(Clone, Copy, Debug)]
pub(super) enum Op {
    Acquire {
        role: u8,
    },
    Put {
        root: u8,
    },
    Map {
        root: u8,
        gfn: u64,
        size: Size,
        pfn: u64,
        ask: Ask,
        exclusive: bool,
    },
    Mmio {
        root: u8,
        gfn: u64,
        generation: u64,
    },
    MapRange {
        root: u8,
        gfn: u64,
        size: Size,
        pfn: u64,
        pages: u64,
        ask: Ask,
    },
    Split {
        space: u8,
        start: u64,
        end: u64,
        target: Size,
        nx: bool,
        exclusive: bool,
        every: u32,
    },
    CollapseZap {
        root: u8,
        gfn: u64,
        size: Size,
    },
    CollapseRecover {
        root: u8,
        gfn: u64,
        size: Size,
        nx: bool,
    },
    ZapValid {
        start: u64,
        end: u64,
        every: u32,
    },
    ZapSpace {
        space: u8,
        start: u64,
        end: u64,
        every: u32,
    },
    ZapTable {
        root: u8,
        gfn: u64,
    },
    Invalidate,
    ZapInvalidated {
        passes: Passes,
        every: u32,
    },
    Discard,
    ZapAll {
        passes: Passes,
        every: u32,
    },
    /// Leaves lose the right to write, or their dirty bits.
    Weaken {
        space: u8,
        start: u64,
        end: u64,
        dirty: bool,
        smallest: Size,
        exclusive: bool,
        every: u32,
    },
    ClearMasked {
        space: u8,
        gfn: u64,
        mask: u64,
        dirty: bool,
    },
    Age {
        space: u8,
        start: u64,
        end: u64,
        take: bool,
    },
    WriteTrack {
        space: u8,
        gfn: u64,
        size: Size,
    },
    FastFault {
        root: u8,
        gfn: u64,
        want: Want,
        logged: bool,
    },
    CollapseTables {
        space: u8,
        start: u64,
        end: u64,
        /// Pages up to this size could be mapped.
        size: Size,
        /// By a huge leaf in place, which may be executable or not.
        recover: Option<bool>,
        every: u32,
    },
    /// Lets removed tables be used again.
    Reclaim,
    /// Takes tables away until this many are left.
    Starve {
        left: u16,
    },
    Translate {
        root: u8,
        gfn: u64,
        want: Want,
    },
}

/// A stream of numbers that a seed repeats (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    const fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    const fn small(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        let at = self.below(of.len() as u64);
        of[usize::try_from(at).unwrap_or(0)]
    }
}

/// The frames around which everything happens: borders of tables, few enough to meet often.
pub(super) fn places(end: u64) -> Vec<u64> {
    let mut places = vec![0, 1, 2, 0x1ff, 0x200, 0x201, 0x3ff, 0x400, 0x7f0];
    places.extend([
        0x3_fe00, 0x3_ffff, 0x4_0000, 0x4_0001, 0x4_0200, 0x7_ffff, 0x8_0000,
    ]);
    for level in [4, 5] {
        let border = frames(level);
        if border < end {
            places.extend([
                border - 0x200,
                border - 1,
                border,
                border + 1,
                border + 0x201,
            ]);
        }
    }
    places.extend([end - 0x4_0000, end - 0x201, end - 0x200, end - 1]);
    places
}

/// Chooses the operations of a sequence.
pub(super) struct Choice<'r> {
    pub(super) random: &'r mut Random,
    pub(super) places: &'r [u64],
    pub(super) end: u64,
}

impl Choice<'_> {
    /// A sequence of about `length` operations.
    pub(super) fn sequence(&mut self, length: usize) -> Vec<Op> {
        let start = Op::Acquire {
            role: self.random.small(),
        };
        let more = (1..length).map(|_| self.op());
        core::iter::once(start).chain(more).collect()
    }

    fn gfn(&mut self) -> u64 {
        match self.random.below(12) {
            // The first places most of the time, so that operations meet.
            0..6 => self.random.pick(&self.places[..8]),
            6..11 => self.random.pick(self.places),
            _ if self.random.one_in(8) => self.end + self.random.below(2),
            _ => self.random.below(0x600),
        }
    }

    fn size(&mut self) -> Size {
        self.random
            .pick(&[Size::K4, Size::K4, Size::K4, Size::M2, Size::M2, Size::G1])
    }

    fn every(&mut self) -> u32 {
        self.random.pick(&[0, 0, 0, 1, 3, 100, 512, 1000])
    }

    fn range(&mut self) -> (u64, u64) {
        let start = self.gfn().min(self.end - 1);
        let lengths = [1, 1, 2, 0x1ff, 0x200, 0x201, 0x4_0000, 0x8_0001, self.end];
        (start, start + self.random.pick(&lengths))
    }

    fn ask(&mut self) -> Ask {
        let wants = [
            Want::Read,
            Want::Write,
            Want::Write,
            Want::Execute,
            Want::Prefetch,
        ];
        Ask {
            want: self.random.pick(&wants),
            host_writable: !self.random.one_in(4),
            tracked: self.random.one_in(6),
            logged: self.random.one_in(5),
            nx: self.random.one_in(4),
        }
    }

    /// The frame that belongs to a guest frame, mostly the same one each time.
    fn pfn(&mut self, gfn: u64, size: Size) -> u64 {
        let first = base(gfn, size.level());
        match self.random.below(16) {
            0 => first + 0x4_0000,
            1 => first + self.random.below(2),
            _ => first,
        }
    }

    fn op(&mut self) -> Op {
        let (root, space) = (self.random.small(), self.random.small());
        let (gfn, size, every, ask) = (self.gfn(), self.size(), self.every(), self.ask());
        let (start, end) = self.range();
        let (pfn, nx, exclusive) = (self.pfn(gfn, size), ask.nx, self.random.one_in(2));
        let passes = self
            .random
            .pick(&[Passes::SmallestFirst, Passes::LargestFirst]);
        match self.random.below(92) {
            0..4 => Op::Acquire { role: root },
            4..6 => Op::Put { root },
            6..28 => Op::Map {
                root,
                gfn,
                size,
                pfn,
                ask,
                exclusive,
            },
            28..31 => Op::Mmio {
                root,
                gfn,
                generation: self.random.below(3),
            },
            31..36 => self.map_range(root, gfn, size, ask),
            36..40 => Op::Split {
                space,
                start,
                // A GiB in pages of 4 KiB would take the reference too long.
                end: if size == Size::K4 {
                    end.min(start + 0x601)
                } else {
                    end
                },
                target: size,
                nx,
                exclusive,
                every,
            },
            40..42 => Op::CollapseZap {
                root,
                gfn,
                size: self.random.pick(&[Size::M2, Size::G1, size]),
            },
            42..45 => Op::CollapseRecover {
                root,
                gfn,
                size: self.random.pick(&[Size::M2, Size::G1, size]),
                nx,
            },
            45..49 => Op::ZapValid { start, end, every },
            49..53 => Op::ZapSpace {
                space,
                start,
                end,
                every,
            },
            53..55 => Op::ZapTable { root, gfn },
            55..56 => Op::Invalidate,
            56..58 => Op::ZapInvalidated { passes, every },
            58 => self.random.pick(&[Op::Discard, Op::Reclaim]),
            59 => self
                .random
                .pick(&[Op::ZapAll { passes, every }, Op::Reclaim]),
            60 if self.random.one_in(3) => Op::Starve {
                left: u16::from(root % 6),
            },
            64..71 => Op::Weaken {
                space,
                start,
                end,
                dirty: self.random.one_in(2),
                smallest: size,
                exclusive,
                every,
            },
            71..76 => Op::ClearMasked {
                space,
                gfn: gfn - self.random.below(gfn.min(64) + 1),
                mask: self.mask(),
                dirty: self.random.one_in(2),
            },
            76..80 => Op::Age {
                space,
                start,
                end,
                take: !self.random.one_in(4),
            },
            80..83 => Op::WriteTrack { space, gfn, size },
            83..89 => Op::FastFault {
                root,
                gfn,
                want: ask.want,
                logged: ask.logged,
            },
            89..92 => Op::CollapseTables {
                space,
                start,
                end,
                size,
                recover: exclusive.then_some(nx),
                every,
            },
            _ => Op::Translate {
                root,
                gfn,
                want: ask.want,
            },
        }
    }

    fn mask(&mut self) -> u64 {
        let random = self.random.next();
        self.random
            .pick(&[0, 1, 1 << 63, u64::MAX, u64::MAX << 60, random])
    }

    fn map_range(&mut self, root: u8, gfn: u64, size: Size, ask: Ask) -> Op {
        let pages = match size {
            Size::K4 => self
                .random
                .pick(&[0, 1, 2, 0x1ff, 0x200, 0x201, 0x400, 0x600]),
            Size::M2 => self.random.pick(&[0x200, 0x400, 0x600, 0x300]),
            Size::G1 => self.random.pick(&[0x4_0000, 0x8_0000]),
        };
        let gfn = match self.random.one_in(16) {
            true => gfn,
            false => base(gfn, size.level()),
        };
        let pfn = self.pfn(gfn, size);
        Op::MapRange {
            root,
            gfn,
            size,
            pfn,
            pages,
            ask,
        }
    }
}
