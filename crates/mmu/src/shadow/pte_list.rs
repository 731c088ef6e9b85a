//! Lists of entries: those that map a frame, and those that link a page (`mmu.c:pte_list_add`).
//!
//! Most lists hold one entry, so a list is one word. More than one are kept in blocks of [`PER_BLOCK`], of which only the
//! youngest may have room. A removal fills its hole with the last entry of the youngest block. The order in which a list is
//! walked follows from that, and KVM's traces show it.

use super::page::{PageId, SpteRef};

/// Entries in a block (`PTE_LIST_EXT`).
pub(super) const PER_BLOCK: usize = 14;

/// The head of a list (`struct kvm_rmap_head`).
///
/// 0 is the empty list, an odd number holds one entry, an even one says where the youngest block is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ListHead(u64);

/// Which way a head is to be read.
enum Form {
    Empty,
    One(SpteRef),
    Blocks(u32),
}

impl ListHead {
    pub(super) const EMPTY: Self = Self(0);

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn one(entry: SpteRef) -> Self {
        Self(pack(entry) << 1 | 1)
    }

    fn blocks(block: u32) -> Self {
        Self(u64::from(block + 1) << 1)
    }

    fn form(self) -> Form {
        match (self.0, self.0 & 1) {
            (0, _) => Form::Empty,
            (raw, 1) => Form::One(unpack(raw >> 1)),
            (raw, _) => Form::Blocks(low(raw >> 1) - 1),
        }
    }
}

const INDEX_BITS: u32 = 9;

fn pack(entry: SpteRef) -> u64 {
    u64::from(entry.page.raw()) << INDEX_BITS | u64::from(entry.index)
}

fn unpack(raw: u64) -> SpteRef {
    let [a, b, ..] = (raw & ((1 << INDEX_BITS) - 1)).to_le_bytes();
    SpteRef {
        page: PageId::new(low(raw >> INDEX_BITS)),
        index: u16::from_le_bytes([a, b]),
    }
}

fn low(raw: u64) -> u32 {
    let [a, b, c, d, ..] = raw.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Some entries of a list (`struct pte_list_desc`).
#[derive(Clone, Debug)]
struct Block {
    /// The next older block.
    older: Option<u32>,
    entries: Vec<SpteRef>,
    /// Entries in all older blocks.
    behind: usize,
}

/// The blocks of all lists of a VM.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists {
    blocks: Vec<Block>,
    free: Vec<u32>,
    /// Blocks that were ever taken.
    taken: u64,
}

impl Lists {
    /// How many blocks were ever taken.
    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    /// Blocks in use.
    #[cfg(test)]
    pub(super) fn blocks_in_use(&self) -> usize {
        self.blocks.len() - self.free.len()
    }

    fn block(&mut self, older: Option<u32>, behind: usize) -> u32 {
        self.taken += 1;
        let block = Block {
            older,
            entries: Vec::with_capacity(PER_BLOCK),
            behind,
        };
        match self.free.pop() {
            Some(at) => {
                self.blocks[at as usize] = block;
                at
            }
            None => {
                self.blocks.push(block);
                u32::try_from(self.blocks.len() - 1).expect("fewer blocks than 2^32")
            }
        }
    }

    /// Adds an entry; gives how many there are now.
    pub(super) fn add(&mut self, head: &mut ListHead, entry: SpteRef) -> usize {
        match head.form() {
            Form::Empty => {
                *head = ListHead::one(entry);
                1
            }
            Form::One(first) => {
                let at = self.block(None, 0);
                self.blocks[at as usize].entries.extend([first, entry]);
                *head = ListHead::blocks(at);
                2
            }
            Form::Blocks(at) => self.add_to_blocks(head, at, entry),
        }
    }

    fn add_to_blocks(&mut self, head: &mut ListHead, at: u32, entry: SpteRef) -> usize {
        let young = &mut self.blocks[at as usize];
        let count = young.behind + young.entries.len() + 1;
        if young.entries.len() < PER_BLOCK {
            young.entries.push(entry);
            return count;
        }
        let at = self.block(Some(at), count - 1);
        self.blocks[at as usize].entries.push(entry);
        *head = ListHead::blocks(at);
        count
    }

    /// Takes an entry out; says whether it was there.
    #[must_use = "an entry that is not there is corruption"]
    pub(super) fn remove(&mut self, head: &mut ListHead, entry: SpteRef) -> bool {
        match head.form() {
            Form::Empty => false,
            Form::One(one) => {
                let found = one == entry;
                if found {
                    *head = ListHead::EMPTY;
                }
                found
            }
            Form::Blocks(young) => self.remove_from_blocks(head, young, entry),
        }
    }

    fn remove_from_blocks(&mut self, head: &mut ListHead, young: u32, entry: SpteRef) -> bool {
        let mut at = Some(young);
        while let Some(number) = at {
            let block = &self.blocks[number as usize];
            let hole = block.entries.iter().position(|other| *other == entry);
            if let Some(hole) = hole {
                self.fill_hole(head, young, (number, hole));
                return true;
            }
            at = block.older;
        }
        false
    }

    /// The last entry of the youngest block goes where one was taken out.
    fn fill_hole(&mut self, head: &mut ListHead, young: u32, hole: (u32, usize)) {
        let youngest = &mut self.blocks[young as usize];
        let last = youngest.entries.pop();
        let (emptied, older) = (youngest.entries.is_empty(), youngest.older);
        if let (Some(last), Some(place)) =
            (last, self.blocks[hole.0 as usize].entries.get_mut(hole.1))
        {
            *place = last;
        }
        if emptied {
            self.free.push(young);
            *head = older.map_or(ListHead::EMPTY, ListHead::blocks);
        }
    }

    /// How many entries a list has.
    #[cfg(test)]
    pub(super) fn len(&self, head: ListHead) -> usize {
        match head.form() {
            Form::Empty => 0,
            Form::One(_) => 1,
            Form::Blocks(at) => {
                let block = &self.blocks[at as usize];
                block.behind + block.entries.len()
            }
        }
    }

    /// The entry that a walk begins with.
    pub(super) fn first(&self, head: ListHead) -> Option<SpteRef> {
        self.iter(head).next()
    }

    /// All entries in the order of a walk: the youngest block first, and in a block the oldest entry first.
    ///
    /// A corrupt list, which comes back to a block, ends when it has been through as many blocks as there are.
    pub(super) fn iter(&self, head: ListHead) -> impl Iterator<Item = SpteRef> + '_ {
        let (one, mut at) = match head.form() {
            Form::Empty => (None, None),
            Form::One(entry) => (Some(entry), None),
            Form::Blocks(at) => (None, Some(at)),
        };
        let mut left = self.blocks.len();
        let blocks = core::iter::from_fn(move || {
            let block = &self.blocks[at? as usize];
            left = left.checked_sub(1)?;
            at = block.older;
            Some(block.entries.iter().copied())
        });
        one.into_iter().chain(blocks.flatten())
    }

    /// Empties a list and gives what was in it.
    pub(super) fn take(&mut self, head: &mut ListHead) -> Vec<SpteRef> {
        let all: Vec<SpteRef> = self.iter(*head).collect();
        if let Form::Blocks(young) = head.form() {
            let mut at = Some(young);
            while let Some(number) = at {
                self.free.push(number);
                at = self.blocks[number as usize].older;
            }
        }
        *head = ListHead::EMPTY;
        all
    }
}

#[cfg(test)]
mod tests {
    use super::{ListHead, Lists, PER_BLOCK};
    use crate::shadow::page::{PageId, SpteRef};

    fn entry(number: u32) -> SpteRef {
        SpteRef {
            page: PageId::new(number),
            index: u16::try_from(number % 512).unwrap(),
        }
    }

    fn numbers(lists: &Lists, head: ListHead) -> Vec<u32> {
        lists.iter(head).map(|entry| entry.page.raw()).collect()
    }

    #[test]
    fn the_youngest_block_comes_first() {
        let (mut lists, mut head) = (Lists::default(), ListHead::EMPTY);
        for number in 0..17 {
            assert_eq!(lists.add(&mut head, entry(number)), number as usize + 1);
        }
        let walked = [14, 15, 16].into_iter().chain(0..14);
        assert_eq!(numbers(&lists, head), walked.collect::<Vec<_>>());
        // The last entry of the youngest block goes into the hole.
        assert!(lists.remove(&mut head, entry(3)));
        let walked = [14, 15, 0, 1, 2, 16, 4];
        assert_eq!(numbers(&lists, head)[..7], walked);
        assert!(!lists.remove(&mut head, entry(3)));
    }

    /// The oldest block leads to the youngest, as where a block was freed and taken again while a list held it.
    #[test]
    fn a_circle_of_blocks_ends() {
        let (mut lists, mut head) = (Lists::default(), ListHead::EMPTY);
        for number in 0..30 {
            lists.add(&mut head, entry(number));
        }
        lists.blocks[0].older = Some(2);
        let walked = numbers(&lists, head);
        assert_eq!(walked[..3], [28, 29, 14]);
        assert_eq!(walked.len(), 30);
    }

    /// Against a plain vector in the order of arrival, in which a removal moves the last entry.
    #[test]
    fn a_list_is_a_vector_in_blocks() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |end: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random >> 20) % end
        };
        let (mut lists, mut head) = (Lists::default(), ListHead::EMPTY);
        let mut plain: Vec<u32> = Vec::new();
        for number in 0..20_000 {
            if plain.is_empty() || below(100) < 52 {
                plain.push(number);
                assert_eq!(lists.add(&mut head, entry(number)), plain.len());
            } else {
                let at = usize::try_from(below(plain.len() as u64)).unwrap();
                let gone = plain.swap_remove(at);
                assert!(lists.remove(&mut head, entry(gone)));
            }
            if number % 64 == 0 {
                let walked = plain.chunks(PER_BLOCK).rev().flatten().copied();
                assert_eq!(numbers(&lists, head), walked.collect::<Vec<_>>());
                assert_eq!(lists.len(head), plain.len());
            }
        }
        assert_eq!(lists.take(&mut head).len(), plain.len());
        assert_eq!((lists.blocks_in_use(), head), (0, ListHead::EMPTY));
    }
}
